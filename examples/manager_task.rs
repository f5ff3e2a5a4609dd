//! Tasks that have names, and workers of one process that go through all of them: each task is done once,
//! and all locks are on one connection.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use pglock::{Config, LockManager};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

const TASKS: u32 = 30;
const WORKERS: u32 = 10;

/// How often each task was done. It stands for the table in which a program notes this.
type Ledger = Arc<Mutex<BTreeMap<String, u32>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let manager = LockManager::new(Config::from_env()?);
    let ledger = Ledger::default();
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(manager.clone(), Arc::clone(&ledger)));
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    let ledger = ledger.lock().await;
    let once = ledger.values().filter(|&&times| times == 1).count();
    println!("{} tasks were done, {once} of them once", ledger.len());
    println!("{WORKERS} workers had their locks on {} connection(s)", manager.stats().connects);
    Ok(manager.close().await?)
}

async fn work(manager: LockManager, ledger: Ledger) -> pglock::Result<()> {
    for number in 0..TASKS {
        let task = format!("example-manager-invoice-{number}");
        let Some(guard) = manager.try_lock(task.as_str()).await? else {
            continue; // Another worker is at it, of this process or of another one.
        };
        // The lock says that nobody is at it now, not that nobody was before.
        if !ledger.lock().await.contains_key(&task) {
            // The work is dropped if the lock is lost.
            guard.hold(sleep(Duration::from_millis(1))).await?;
            *ledger.lock().await.entry(task).or_default() += 1;
        }
        // Dropping the guard would do, too, and not wait for the server.
        guard.unlock().await?;
    }
    Ok(())
}
