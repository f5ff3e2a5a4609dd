//! What many keys cost that a manager holds: the memory of this process, which has nothing else to do.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what it expects, and ends where that does not hold"
)]

use std::fs;

use pglock::{Config, Guard, Key, LockManager};
use pglock_test_cluster::{Settings, role};
use tokio::task::JoinSet;

const KEYS: i64 = 100_000;
/// How many are asked for at a time.
const TASKS: i64 = 1_000;
/// The room for a key in this process, besides its guard, which its owner puts where he likes.
const BYTES_A_KEY: usize = 200;

#[test]
fn a_hundred_thousand_keys_are_held_on_one_session_in_little_memory() {
    let cluster = Settings::new()
        .set("max_connections", "20")
        .set("max_locks_per_transaction", "6000")
        .start();
    let config: Config = cluster.url_for(&role::TRUST).parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let manager = LockManager::new(config);
        // Whatever is only needed once is there afterwards.
        drop(lock_all(&manager, -TASKS..0).await);
        let before = resident();
        let mut guards: Vec<Guard> = Vec::with_capacity(usize::try_from(KEYS).unwrap());
        for first in (0..KEYS).step_by(usize::try_from(TASKS).unwrap()) {
            guards.extend(lock_all(&manager, first..first + TASKS).await);
        }
        let of_guards = guards.len() * size_of::<Guard>();
        let grown = resident() - before - of_guards;
        println!("{} bytes a key, and {} for its guard", grown / guards.len(), size_of::<Guard>());

        let held = "SELECT count(*), count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory'";
        let row = &cluster.raw().rows(held)[0];
        assert_eq!(row.iter().flatten().collect::<Vec<_>>(), ["100000", "1"]);
        assert!(guards.iter().all(Guard::is_held));
        assert!(grown < guards.len() * BYTES_A_KEY, "grown by {} KiB", grown >> 10);
        manager.close().await.unwrap();
    });
}

/// Guards of keys of these numbers, which are spread as names are.
async fn lock_all(manager: &LockManager, numbers: std::ops::Range<i64>) -> Vec<Guard> {
    let mut tasks = JoinSet::new();
    for number in numbers {
        let manager = manager.clone();
        let key = Key::from_name(&number.to_string());
        tasks.spawn(async move { manager.lock(key).await.unwrap() });
    }
    tasks.join_all().await
}

/// How much of this process is in memory, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kibibytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes * 1024
}
