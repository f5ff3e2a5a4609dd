//! Permits of a [`Semaphore`]: one that is free among a hundred, and a few for many tasks.

use divan::Bencher;
use divan::counter::ItemsCount;
use pglock::{LockManager, Permit, Semaphore};
use pglock_test_cluster::role;
use tokio::task::JoinSet;

use crate::server::{Transport, runtime};

/// How many permits there are where one is to be found.
const MANY: u32 = 100;
/// How many tasks want one of a few.
const CROWD: u32 = 1_000;

/// A permit taken and given back, while another process has so many of the hundred that these are free.
#[divan::bench(args = [100, 50, 1], sample_count = 100, sample_size = 20)]
fn free_of_100(bencher: Bencher, free: u32) {
    let runtime = runtime();
    let [here, elsewhere] = [(); 2].map(|()| semaphore("free", MANY));
    let _taken = runtime.block_on(take(&elsewhere, MANY - free));
    runtime.block_on(take(&here, 1));
    bencher.bench_local(|| {
        runtime.block_on(async {
            here.acquire().await.unwrap().release().await.unwrap();
        });
    });
}

/// The answer that none is free, where each of the hundred has to be tried.
#[divan::bench(sample_count = 100, sample_size = 20)]
fn none_free_of_100(bencher: Bencher) {
    let runtime = runtime();
    let [here, elsewhere] = [(); 2].map(|()| semaphore("none free", MANY));
    let _taken = runtime.block_on(take(&elsewhere, MANY));
    bencher.bench_local(|| {
        assert!(runtime.block_on(here.try_acquire()).unwrap().is_none());
    });
}

/// A thousand tasks of one process, each of which wants one of five permits for a moment.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn five_for_1000_tasks(bencher: Bencher) {
    let runtime = runtime();
    let semaphore = semaphore("crowd", 5);
    bencher.counter(ItemsCount::new(CROWD)).bench_local(|| {
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..CROWD {
                let semaphore = semaphore.clone();
                tasks.spawn(async move { drop(semaphore.acquire().await.unwrap()) });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
        });
    });
}

fn semaphore(name: &str, permits: u32) -> Semaphore {
    LockManager::new(Transport::Tcp.config(&role::TRUST)).semaphore(name, permits)
}

async fn take(semaphore: &Semaphore, permits: u32) -> Vec<Permit> {
    let mut taken = Vec::new();
    for _ in 0..permits {
        taken.push(semaphore.acquire().await.unwrap());
    }
    taken
}
