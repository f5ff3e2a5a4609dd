//! Many tasks of one process and many keys, on a handful of connections.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use pglock::{Config, LockManager};
use tokio::task::{JoinSet, yield_now};

const ACCOUNTS: usize = 10;
const TASKS: usize = 200;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let manager = LockManager::new(Config::from_env()?);
    let accounts: Arc<[Account; ACCOUNTS]> = Arc::default();
    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        tasks.spawn(post(number % ACCOUNTS, manager.clone(), Arc::clone(&accounts)));
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let total: u32 = accounts.iter().map(|account| account.balance.load(SeqCst)).sum();
    println!("{TASKS} tasks posted {total} to {ACCOUNTS} accounts");

    // Two keys at a time: whatever their order here, nobody waits in a circle.
    let accounts = manager.lock_all(["example-account-2", "example-account-1"]).await?;
    println!("a transfer has both of its accounts");
    // Another process would have a manager of its own.
    let elsewhere = LockManager::new(Config::from_env()?);
    let reached = elsewhere.try_lock("example-account-2").await?.is_some();
    println!("another process gets one of them: {reached}");
    accounts.unlock().await?;
    let reached = elsewhere.try_lock("example-account-2").await?.is_some();
    println!("and now that the transfer is done with it: {reached}");

    elsewhere.close().await?;
    Ok(manager.close().await?)
}

async fn post(
    number: usize,
    manager: LockManager,
    accounts: Arc<[Account; ACCOUNTS]>,
) -> pglock::Result<()> {
    let guard = manager.lock(format!("example-account-{number}").as_str()).await?;
    if let Some(account) = accounts.get(number) {
        // The work is dropped if the lock is lost.
        guard.hold(account.post(1)).await?;
    }
    guard.unlock().await
}

#[derive(Default)]
struct Account {
    balance: AtomicU32,
}

impl Account {
    async fn post(&self, amount: u32) {
        // Read, work, write: what overlaps would be lost.
        let balance = self.balance.load(SeqCst);
        yield_now().await;
        self.balance.store(balance + amount, SeqCst);
    }
}
