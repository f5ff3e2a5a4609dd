//! Two ways to wait no longer than so long, after both of which the lock goes on working.

use std::time::Duration;

use pglock::{Config, Lock};
use tokio::time::timeout;

const NAME: &str = "example-timeout";
const PATIENCE: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    let mut holder = Lock::connect(&config, NAME).await?;
    let mut waiter = Lock::connect(&config, NAME).await?;
    holder.lock().await?;

    // The lock's own: the answer is the truth even if the lock was granted at the last moment.
    println!("lock_timeout: {}", waiter.lock_timeout(PATIENCE).await?);

    // Around anything: the wait is dropped, the request withdrawn, and a lock that was granted at the
    // last moment released. The next call waits until that is done.
    match timeout(PATIENCE, waiter.lock()).await {
        Ok(outcome) => outcome.map(|()| println!("timeout: acquired"))?,
        Err(_) => println!("timeout: not in time"),
    }

    holder.unlock().await?;
    println!("the holder unlocks");
    println!("lock_timeout: {}", waiter.lock_timeout(Duration::from_secs(10)).await?);

    waiter.close().await?;
    holder.close().await
}
