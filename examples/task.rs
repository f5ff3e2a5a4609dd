//! Tasks that have names, and workers that go through all of them: each task is done once.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use pglock::{Config, Key, Mode, Session};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

const TASKS: [&str; 4] = ["example-invoice-1", "example-invoice-2", "example-report", "日本"];
const WORKERS: u32 = 3;

/// How often each task was done. It stands for the table in which a program notes this.
type Ledger = Arc<Mutex<BTreeMap<&'static str, u32>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = Config::from_env()?;
    let ledger = Ledger::default();
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(config.clone(), Arc::clone(&ledger)));
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    for (task, times) in ledger.lock().await.iter() {
        // Every program that derives the key in this way means the same lock, in Go too.
        println!("{task}: key {}, done {times} time(s)", Key::from_name(task));
    }
    Ok(())
}

/// Locks on many keys fit on one session.
async fn work(config: Config, ledger: Ledger) -> pglock::Result<()> {
    let mut session = Session::connect(&config).await?;
    for task in TASKS {
        if !session.try_lock(task, Mode::Exclusive).await? {
            continue; // Another worker is at it.
        }
        // The lock says that nobody is at it now, not that nobody was before.
        if !ledger.lock().await.contains_key(task) {
            sleep(Duration::from_millis(20)).await; // The work.
            *ledger.lock().await.entry(task).or_default() += 1;
        }
        session.unlock(task, Mode::Exclusive).await?;
    }
    session.close().await
}
