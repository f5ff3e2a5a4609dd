//! Holds as many keys on one session as its argument says, and prints how much memory is resident
//! then, in kB. Reads it where Linux tells it.

use pglock::{Config, Mode, Result, Session};
use tokio::runtime::Builder;

fn main() -> Result<()> {
    let keys = std::env::args().nth(1).and_then(|count| count.parse().ok());
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(hold(keys.expect("a number of keys")))
}

async fn hold(keys: i64) -> Result<()> {
    let mut session = Session::connect(&Config::from_env()?).await?;
    for key in 0..keys {
        assert!(session.try_lock(key, Mode::Exclusive).await?, "key {key} is held elsewhere");
    }
    println!("{}", resident_kilobytes());
    session.close().await
}

fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process's status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    resident.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok()).expect("VmRSS in kB")
}
