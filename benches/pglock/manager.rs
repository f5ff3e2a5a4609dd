//! Locks of a [`LockManager`]: by one task, and by many at a time.
//!
//! Those who have one `Lock` each, or one for all, are beside them.

use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::ItemsCount;
use pglock::{Key, LockManager};
use pglock_test_cluster::role;
use tokio::task::JoinSet;

use crate::server::{Transport, runtime};

const KEY: i64 = 9;
/// Tasks that want a key each.
const TASKS: i32 = 1_000;
/// Tasks that want the same key.
const CROWD: i32 = 10_000;
/// Sessions that the server has to spare.
const SESSIONS: i32 = 50;

/// A lock that nobody else wants, taken and given back.
#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 50)]
fn lock_unlock(bencher: Bencher, transport: Transport) {
    let runtime = runtime();
    let manager = LockManager::new(transport.config(&role::TRUST));
    bencher.bench_local(|| {
        runtime.block_on(async {
            manager.lock(KEY).await.unwrap().unlock().await.unwrap();
        });
    });
}

/// A thousand tasks, each of which tries a key of its own and releases it.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn keys_of_1000_tasks(bencher: Bencher) {
    let runtime = runtime();
    let manager = LockManager::new(Transport::Tcp.config(&role::TRUST));
    bencher.counter(ItemsCount::new(1_000_u32)).bench_local(|| {
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for object in 0..TASKS {
                let manager = manager.clone();
                tasks.spawn(async move {
                    let guard = manager.try_lock(Key::pair(9, object)).await;
                    guard.unwrap().unwrap().unlock().await.unwrap();
                });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
        });
    });
}

/// The same number of pairs with one `Lock`, one after the other.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn keys_of_one_lock(bencher: Bencher) {
    let runtime = runtime();
    let mut lock = runtime.block_on(Transport::Tcp.lock(KEY));
    bencher.counter(ItemsCount::new(1_000_u32)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..TASKS {
                assert!(lock.try_lock().await.unwrap());
                lock.unlock().await.unwrap();
            }
        });
    });
}

/// Ten thousand tasks that want the same key, each for a moment.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn one_key_of_10000_tasks(bencher: Bencher) {
    let runtime = runtime();
    let manager = LockManager::new(Transport::Tcp.config(&role::TRUST));
    bencher.counter(ItemsCount::new(10_000_u32)).bench_local(|| {
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..CROWD {
                let manager = manager.clone();
                tasks.spawn(async move {
                    let guard = manager.lock(KEY).await.unwrap();
                    work();
                    drop(guard);
                });
            }
            while let Some(task) = tasks.join_next().await {
                task.unwrap();
            }
        });
    });
}

/// Tasks with a `Lock` each, as many as the server has sessions for.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn one_key_of_50_locks(bencher: Bencher) {
    let runtime = runtime();
    bencher
        .counter(ItemsCount::new(1_000_u32))
        .with_inputs(|| {
            runtime.block_on(async {
                let mut locks = Vec::new();
                for _ in 0..SESSIONS {
                    locks.push(Transport::Tcp.lock(KEY).await);
                }
                locks
            })
        })
        .bench_local_values(|locks| {
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                for mut lock in locks {
                    tasks.spawn(async move {
                        for _ in 0..1_000 / SESSIONS {
                            lock.lock().await.unwrap();
                            work();
                            lock.unlock().await.unwrap();
                        }
                        lock
                    });
                }
                tasks.join_all().await
            })
        });
}

/// Ten microseconds.
fn work() {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_micros(10) {}
}
