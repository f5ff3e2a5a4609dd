//! Instances that all wake for the same job: exactly one of them runs it.

use std::time::Duration;

use pglock::{Config, Lock, Mode};
use tokio::time::sleep;

const NAME: &str = "example-scheduled-job";

#[tokio::main]
async fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    let mut first = Lock::connect(&config, NAME).await?;
    let mut second = Lock::connect(&config, NAME).await?;
    let mut third = Lock::connect(&config, NAME).await?;

    for tick in 1..=3 {
        let (one, two, three) = tokio::try_join!(
            wake(tick, &mut first),
            wake(tick, &mut second),
            wake(tick, &mut third),
        )?;
        let ran = [one, two, three].into_iter().filter(|&ran| ran).count();
        println!("tick {tick}: {ran} of 3 instances ran it");

        // The lock is kept until the tick is over for all. If the job's end released it, an instance
        // that wakes a little later would run the job again. Between machines, keep it for longer than
        // their clocks differ.
        for instance in [&mut first, &mut second, &mut third] {
            if instance.level(Mode::Exclusive) > 0 {
                instance.unlock().await?;
            }
        }
    }
    first.close().await?;
    second.close().await?;
    third.close().await
}

/// Runs the job if no other instance does, and says whether it did.
async fn wake(tick: u32, lock: &mut Lock) -> pglock::Result<bool> {
    if !lock.try_lock().await? {
        return Ok(false);
    }
    println!("tick {tick}: the job runs");
    lock.hold(sleep(Duration::from_millis(20))).await?; // The work.
    Ok(true)
}
