//! Connects, tries and unlocks as often as its argument says (once, without one), and closes.

use pglock::{Config, Lock, Result};
use tokio::runtime::Builder;

fn main() -> Result<()> {
    let pairs =
        std::env::args().nth(1).map_or(1, |count| count.parse().expect("a number of pairs"));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(try_and_unlock(pairs))
}

async fn try_and_unlock(pairs: u32) -> Result<()> {
    let mut lock = Lock::connect(&Config::from_env()?, 42).await?;
    for _ in 0..pairs {
        if lock.try_lock().await? {
            lock.unlock().await?;
        }
    }
    lock.close().await
}
