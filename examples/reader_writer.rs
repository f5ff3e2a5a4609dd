//! Readers together, a writer alone, and a waiting writer who is not overtaken.

use std::time::Duration;

use pglock::{Config, Lock};
use tokio::time::sleep;

const NAME: &str = "example-reader-writer";

#[tokio::main]
async fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    let mut reader = Lock::connect(&config, NAME).await?;
    let mut another = Lock::connect(&config, NAME).await?;
    let mut writer = Lock::connect(&config, NAME).await?;

    println!("a reader tries: {}", reader.try_lock_shared().await?);
    println!("another reader tries: {}", another.try_lock_shared().await?);
    println!("a writer tries: {}", writer.try_lock().await?);

    another.unlock_shared().await?;
    let write = async {
        writer.lock().await?;
        println!("the writer writes");
        Ok(())
    };
    let read = async {
        wait_for_writer(&mut another).await?;
        println!("the writer waits, and newcomers are refused");
        reader.unlock_shared().await
    };
    tokio::try_join!(write, read)?;

    println!("a reader tries: {}", reader.try_lock_shared().await?);
    writer.unlock().await?;
    println!("the writer is done");
    println!("a reader tries: {}", reader.try_lock_shared().await?);

    writer.close().await?;
    another.close().await?;
    reader.close().await
}

/// Returns when a writer stands in the server's queue: from then on, newcomers are refused.
async fn wait_for_writer(reader: &mut Lock) -> pglock::Result<()> {
    while reader.try_lock_shared().await? {
        reader.unlock_shared().await?;
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
