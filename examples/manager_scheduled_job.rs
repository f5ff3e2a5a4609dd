//! Instances of a service that all wake for the same jobs: exactly one of them runs each.

use std::time::Duration;

use pglock::{Config, Guard, LockManager};
use tokio::time::sleep;

const JOBS: [&str; 2] = ["example-manager-clean-up", "example-manager-report"];

#[tokio::main]
async fn main() -> pglock::Result<()> {
    // Each manager stands for a process of its own, and serves all of its jobs.
    let instances = [(); 3].map(|()| Config::from_env().map(LockManager::new));
    let [first, second, third] = instances;
    let (first, second, third) = (first?, second?, third?);

    for tick in 1..=2 {
        for job in JOBS {
            let (one, two, three) =
                tokio::try_join!(wake(job, &first), wake(job, &second), wake(job, &third))?;
            let ran: Vec<Guard> = [one, two, three].into_iter().flatten().collect();
            println!("tick {tick}: {} of 3 instances ran {job}", ran.len());

            // The guard is kept until the tick is over for all. If the job's end released the lock, an
            // instance that wakes a little later would run the job again. Between machines, keep it for
            // longer than their clocks differ.
            for guard in ran {
                guard.unlock().await?;
            }
        }
    }
    println!("connections of each: {}", first.stats().sessions);
    first.close().await?;
    second.close().await?;
    third.close().await
}

/// Runs the job if no other instance does.
async fn wake(job: &str, manager: &LockManager) -> pglock::Result<Option<Guard>> {
    let guard = manager.try_lock(job).await?;
    if let Some(guard) = &guard {
        guard.hold(sleep(Duration::from_millis(20))).await?; // The work.
    }
    Ok(guard)
}
