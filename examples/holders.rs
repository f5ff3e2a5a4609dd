//! Who has the lock that is not free, and how many wait for it.

use std::time::Duration;

use pglock::{Config, Lock};

const NAME: &str = "example-holders";

#[tokio::main]
async fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    // The name is what others are told.
    let mut nightly =
        Lock::connect(config.clone().application_name("example-nightly"), NAME).await?;
    let mut report = Lock::connect(config.clone().application_name("example-report"), NAME).await?;
    let mut looker = Lock::connect(config.clone().application_name("example-looker"), NAME).await?;
    show(&mut looker).await?;

    nightly.lock().await?;
    show(&mut looker).await?;

    // While somebody waits. For a person, `println!("{}", looker.holders().await?)` says it all in one
    // line, with process id, address and time.
    let waiting = report.lock_timeout(Duration::from_secs(60));
    let looking = async {
        while looker.holders().await?.waiting() == 0 {}
        show(&mut looker).await?;
        nightly.unlock().await
    };
    tokio::try_join!(waiting, looking)?;
    show(&mut looker).await?;

    report.close().await?;
    nightly.close().await?;
    looker.close().await
}

async fn show(lock: &mut Lock) -> pglock::Result<()> {
    let holders = lock.holders().await?;
    println!("holders: {}, waiting: {}", holders.count(), holders.waiting());
    for holder in holders.holders() {
        println!("  {} ({})", holder.application_name().unwrap_or("?"), holder.mode());
    }
    Ok(())
}
