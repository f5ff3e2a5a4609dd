//! Work that need not be done twice: whoever comes while it is being done goes on without it.

use pglock::{Config, Lock};

const NAME: &str = "example-try-lock";

#[tokio::main]
async fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    let mut first = Lock::connect(&config, NAME).await?;
    let mut second = Lock::connect(&config, NAME).await?;

    if first.try_lock().await? {
        println!("first: begins to refresh the cache");
        refresh("second", &mut second).await?;
        println!("first: is done");
        first.unlock().await?;
    }
    refresh("second", &mut second).await?;

    first.close().await?;
    second.close().await
}

async fn refresh(name: &str, lock: &mut Lock) -> pglock::Result<()> {
    if !lock.try_lock().await? {
        println!("{name}: somebody else is at it");
        return Ok(());
    }
    println!("{name}: refreshes the cache");
    lock.unlock().await
}
