//! Locks of a [`LockManager`]: by one task, and by many at a time.
//!
//! Those who have one `Lock` each, or one for all, are beside them. A task that works under the lock keeps
//! the thread busy for ten microseconds, whoever it has the lock from: of 100,000 turns in a second, no way
//! of locking has more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::ItemsCount;
use pglock::{Key, LockManager};
use pglock_test_cluster::role;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::server::{Transport, runtime};

const KEY: i64 = 9;
/// Tasks that want a key each.
const TASKS: i32 = 1_000;
/// Tasks that want the same key.
const CROWD: u16 = 10_000;
/// Sessions that a server has to spare, with as many as PostgreSQL allows if nothing is said.
const SESSIONS: u16 = 90;
/// How often each `Lock` is taken.
const TURNS: u16 = 11;
/// Tasks with a `Lock` of their own, of which no more are connected at a time than there are sessions.
const CONNECTING: u16 = 450;

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
    bencher.counter(ItemsCount::new(CROWD)).bench_local(|| runtime.block_on(crowd(&manager, work)));
}

/// The same without any work under the lock: what a turn costs.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn one_key_of_10000_idle_tasks(bencher: Bencher) {
    let runtime = runtime();
    let manager = LockManager::new(Transport::Tcp.config(&role::TRUST));
    bencher
        .counter(ItemsCount::new(CROWD))
        .bench_local(|| runtime.block_on(crowd(&manager, || ())));
}

async fn crowd(manager: &LockManager, work: fn()) {
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
}

/// Tasks of which each has a `Lock` of its own: it connects, as soon as the server has a session to spare,
/// and works once.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn one_key_of_450_tasks_with_a_lock_each(bencher: Bencher) {
    let runtime = runtime();
    bencher.counter(ItemsCount::new(CONNECTING)).bench_local(|| {
        runtime.block_on(async {
            let sessions = Arc::new(Semaphore::new(SESSIONS.into()));
            let mut tasks = JoinSet::new();
            for _ in 0..CONNECTING {
                let sessions = Arc::clone(&sessions);
                tasks.spawn(async move {
                    let _session = sessions.acquire_owned().await.unwrap();
                    let mut lock = Transport::Tcp.lock(KEY).await;
                    lock.lock().await.unwrap();
                    work();
                    lock.close().await.unwrap();
                });
            }
            tasks.join_all().await
        });
    });
}

/// Tasks whose `Lock`s have been connected before, as many as the server has sessions for.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn one_key_of_90_connected_locks(bencher: Bencher) {
    contend_with_locks(bencher, work);
}

/// The same without any work under the lock.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn one_key_of_90_idle_connected_locks(bencher: Bencher) {
    contend_with_locks(bencher, || ());
}

fn contend_with_locks(bencher: Bencher, work: fn()) {
    let runtime = runtime();
    bencher
        .counter(ItemsCount::new(SESSIONS * TURNS))
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
                        for _ in 0..TURNS {
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
