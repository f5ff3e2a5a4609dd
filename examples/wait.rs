//! Waiting for a lock, and ending the wait from elsewhere.

use std::time::Duration;

use pglock::{Config, ErrorKind, Lock};
use tokio::time::sleep;

const NAME: &str = "example-wait";

#[tokio::main]
async fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    let mut holder = Lock::connect(&config, NAME).await?;
    let mut waiter = Lock::connect(&config, NAME).await?;

    holder.lock().await?;
    println!("the holder has the lock");
    cancelled_wait(&mut waiter).await?;

    // The session and whatever else it holds are none the worse for it: the same lock waits again.
    let wait = async {
        waiter.lock().await?;
        println!("the waiter has the lock");
        Ok(())
    };
    let work = async {
        sleep(Duration::from_millis(200)).await;
        println!("the holder is done");
        holder.unlock().await
    };
    tokio::try_join!(wait, work)?;

    waiter.close().await?;
    holder.close().await
}

/// A canceller can be sent to wherever it is known that the wait is pointless: here it stands for a
/// program that is told to shut down.
async fn cancelled_wait(waiter: &mut Lock) -> pglock::Result<()> {
    let canceller = waiter.canceller();
    // A cancel ends the wait that is going on and no later one. The first future of join! is polled
    // first, so there is one.
    let (outcome, ()) = tokio::join!(waiter.lock(), async {
        println!("the program shuts down");
        canceller.cancel().await;
    });
    match outcome {
        Err(error) if error.kind() == ErrorKind::Cancelled => println!("the waiter gave up"),
        other => other?,
    }
    Ok(())
}
