//! A pool of three resources that the tasks of several processes share: a semaphore, with a slot for each.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pglock::{Config, LockManager, Permit, Semaphore};
use tokio::task::{JoinSet, yield_now};

const POOL: &str = "example-pool";
const RESOURCES: u32 = 3;
const TASKS: usize = 40;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let here = LockManager::new(Config::from_env()?);
    // Another process would have a manager of its own.
    let elsewhere = LockManager::new(Config::from_env()?);
    let pools = [&here, &elsewhere].map(|manager| manager.semaphore(POOL, RESOURCES));
    let [pool, pool_elsewhere] = &pools;

    let ann = pool.acquire().await?;
    let bert = pool.acquire().await?;
    let carl = pool_elsewhere.acquire().await?;
    let slots: BTreeSet<_> = [&ann, &bert, &carl].map(Permit::slot).into();
    println!("Ann, Bert and Carl have the slots {slots:?}");
    let dora = pool_elsewhere.try_acquire().await?;
    println!("Dora gets one without waiting: {}", dora.is_some());
    let slot = bert.slot();
    let waiting = pool_elsewhere.acquire();
    let leaving = async {
        println!("Bert works on and leaves");
        bert.hold(tokio::time::sleep(Duration::from_millis(20))).await?;
        bert.release().await
    };
    let (dora, left) = tokio::join!(waiting, leaving);
    left?;
    println!("Dora has waited and has Bert's slot: {}", dora?.slot() == slot);
    drop((ann, carl));

    let usage = Arc::new(Usage::default());
    let mut tasks = JoinSet::new();
    for pool in pools.iter().cycle().take(TASKS) {
        tasks.spawn(work(pool.clone(), Arc::clone(&usage)));
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let most = usage.most.load(SeqCst);
    println!(
        "{TASKS} tasks of two processes used them, {RESOURCES} at most at a time: {}",
        most <= RESOURCES
    );

    elsewhere.close().await?;
    Ok(here.close().await?)
}

#[derive(Default)]
struct Usage {
    now: AtomicU32,
    most: AtomicU32,
}

async fn work(pool: Semaphore, usage: Arc<Usage>) -> pglock::Result<()> {
    let permit = pool.acquire().await?;
    usage.most.fetch_max(usage.now.fetch_add(1, SeqCst) + 1, SeqCst);
    // The work is dropped if the permit is lost.
    permit.hold(yield_now()).await?;
    usage.now.fetch_sub(1, SeqCst);
    permit.release().await
}
