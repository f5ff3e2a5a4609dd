//! What a server sends too much of is not kept: the memory of this process, which has nothing else to
//! do, does not grow.

#![cfg(target_os = "linux")]
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what it expects, ends where that does not hold, and needs only some of \
              the words of a script"
)]

#[path = "it/scripted/mod.rs"]
mod scripted;

use std::fs;
use std::time::Duration;

use scripted::messages::{authentication_ok, notice, parameter_status, void};
use scripted::{LOCK, Script, timely};

const MEBIBYTE: usize = 1 << 20;

/// How much of this process is in memory, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kibibytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes * 1024
}

/// Runs the work, and fails if this process is larger by so many mebibytes after it.
async fn assert_grows_less_than(mebibytes: usize, work: impl Future<Output = ()>) {
    let before = resident();
    work.await;
    let grown = resident().saturating_sub(before);
    assert!(grown < mebibytes * MEBIBYTE, "grown by {} KiB", grown >> 10);
}

#[tokio::test]
async fn the_memory_of_a_client_is_bounded() {
    // Whatever is only needed once is there afterwards.
    sit_through_notices(2).await;
    assert_grows_less_than(8, sit_through_notices(200)).await;
    assert_grows_less_than(8, refuse_an_endless_login()).await;
    assert_grows_less_than(8, hold_many_idle_sessions()).await;
}

/// Gets the lock after so many notices of 1 MiB.
async fn sit_through_notices(count: usize) {
    let script = Script::new().session().hears(LOCK);
    let script = script.says_again_and_again(notice(MEBIBYTE), count);
    let backend = script.says(void()).ready().left().play().await;
    let mut lock = backend.connect().await.unwrap();
    timely(lock.lock()).await.unwrap();
    drop(lock);
    backend.done().await;
}

/// Is told the same settings over and over, until it gives up.
async fn refuse_an_endless_login() {
    let settings = parameter_status("server_version", &"15".repeat(500_000));
    let script = Script::new().says(authentication_ok()).floods(settings);
    let backend = script.play().await;
    let config = backend.config().connect_timeout(Duration::from_secs(2)).clone();
    timely(pglock::Lock::connect(&config, 1)).await.unwrap_err();
    backend.done().await;
}

/// Holds sessions that were sent a notice of 1 MiB each.
async fn hold_many_idle_sessions() {
    let mut held = Vec::new();
    for _ in 0..50 {
        let script = Script::new().session().hears(LOCK).says(notice(MEBIBYTE)).says(void());
        let backend = script.ready().left().play().await;
        let mut lock = backend.connect().await.unwrap();
        timely(lock.lock()).await.unwrap();
        held.push((lock, backend));
    }
    assert!(resident() < 64 * MEBIBYTE);
    for (lock, backend) in held {
        drop(lock);
        backend.done().await;
    }
}
