//! What a manager counts, beside what was done: [`LockManager::stats`].

use std::time::Duration;

use pglock::{Config, ErrorKind, LockManager, Stats};
use pglock_test_cluster::{Settings, Shutdown, eventually, role};

use crate::stage::{PATIENCE, Stage, soon};

/// Long enough for a request to reach the server's queue, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);

/// Sessions, keys held, guards, requests waiting.
fn present(stats: &Stats) -> (usize, usize, usize, u64) {
    (stats.sessions, stats.held, stats.guards, stats.waiting)
}

/// Requests, and what became of them: granted, handed over, busy, failed, given up.
fn requests(stats: &Stats) -> [u64; 6] {
    let Stats { requests, granted, handed_over, busy, failed, given_up, .. } = *stats;
    [requests, granted, handed_over, busy, failed, given_up]
}

/// Connected, not connected, lost, cancelled.
fn sessions(stats: &Stats) -> [u64; 4] {
    [stats.connects, stats.connect_failures, stats.lost_sessions, stats.cancels]
}

#[tokio::test]
async fn what_becomes_of_requests_is_counted() {
    let mut stage = Stage::new();
    let bob = stage.manager("bob");
    // However long its turn takes.
    let alice = LockManager::builder(stage.config("alice")).hand_overs(64, PATIENCE).build();
    assert_eq!(present(&alice.stats()), (0, 0, 0, 0));
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    assert_eq!(present(&alice.stats()), (1, 1, 1, 0));
    assert_eq!(requests(&alice.stats()), [1, 1, 0, 0, 0, 0]);

    assert!(soon(alice.try_lock(stage.key())).await.unwrap().is_none());
    assert!(soon(alice.lock_timeout(stage.key(), SHORT)).await.unwrap().is_none());
    assert_eq!(requests(&alice.stats()), [3, 1, 0, 1, 0, 1]);

    // Three in a row, of whom the first had it already.
    let next = [1, 2].map(|_| {
        let (alice, key) = (alice.clone(), stage.key());
        tokio::spawn(async move { alice.lock(key).await })
    });
    eventually("both wait", PATIENCE, || alice.stats().waiting == 2).await;
    drop(guard);
    for next in next {
        drop(soon(next).await.unwrap().unwrap());
    }
    stage.until(&[]).await;
    eventually("it is released", PATIENCE, || present(&alice.stats()) == (1, 0, 0, 0)).await;
    assert_eq!(requests(&alice.stats()), [5, 3, 2, 1, 0, 1]);

    // Readers join, and hand nothing over.
    let readers = [
        soon(alice.lock_shared(stage.key())).await.unwrap(),
        soon(alice.lock_shared(stage.key())).await.unwrap(),
    ];
    assert_eq!(present(&alice.stats()), (1, 1, 2, 0));
    assert_eq!(requests(&alice.stats()), [7, 5, 2, 1, 0, 1]);

    // One who waits at the server until nobody wants it, and one who waits until the end.
    let key = stage.key();
    let lock = || {
        let bob = bob.clone();
        tokio::spawn(async move { bob.lock(key).await })
    };
    let (dropped, both) = (lock(), ["alice holds shared", "bob awaits exclusive"]);
    stage.until(&both).await;
    dropped.abort();
    stage.until(&["alice holds shared"]).await;
    assert_eq!(requests(&bob.stats()), [1, 0, 0, 0, 0, 1]);
    assert_eq!(sessions(&bob.stats()), [2, 0, 0, 1]);
    let waiting = lock();
    stage.until(&both).await;
    assert_eq!(present(&bob.stats()), (2, 0, 0, 1));
    soon(bob.close()).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    soon(bob.lock(stage.key())).await.unwrap_err();
    assert_eq!(present(&bob.stats()), (0, 0, 0, 0));
    assert_eq!(requests(&bob.stats()), [3, 0, 0, 0, 2, 1]);

    assert_eq!(sessions(&alice.stats()), [1, 0, 0, 0]);
    stage.terminate("alice");
    soon(readers[0].lost()).await;
    eventually("the loss is counted", PATIENCE, || {
        (present(&alice.stats()), sessions(&alice.stats())) == ((0, 0, 0, 0), [1, 0, 1, 0])
    })
    .await;
    drop(readers);
    assert_eq!(present(&alice.stats()), (0, 0, 0, 0));
}

#[tokio::test]
async fn times_of_waits_are_counted() {
    let stage = Stage::new();
    let alice = stage.manager("alice");
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    let before = alice.stats().wait_times;
    assert_eq!(before.count(), 1);
    let waiting = tokio::spawn({
        let (alice, key) = (alice.clone(), stage.key());
        async move { alice.lock(key).await }
    });
    eventually("somebody waits", PATIENCE, || alice.stats().waiting == 1).await;
    tokio::time::sleep(SHORT).await;
    drop(guard);
    drop(soon(waiting).await.unwrap().unwrap());
    let after = alice.stats().wait_times;
    assert_eq!(after.count(), 2);
    let waited = after.total().saturating_sub(before.total());
    assert!(waited >= SHORT, "{waited:?}");
    let longer: u64 = after
        .buckets()
        .filter(|(bound, _)| bound.is_none_or(|bound| bound > SHORT))
        .map(|(_, count)| count)
        .sum();
    assert!(longer >= 1, "{after:?}");
}

#[tokio::test]
async fn failures_to_connect_are_counted() {
    let mut cluster = Settings::new().start();
    let config: Config = cluster.url_for(&role::TRUST).parse().unwrap();
    let manager = LockManager::new(config);
    cluster.stop(Shutdown::Fast);
    soon(manager.try_lock("key")).await.unwrap_err();
    assert_eq!(sessions(&manager.stats()), [0, 1, 0, 0]);
    assert_eq!(requests(&manager.stats()), [1, 0, 0, 0, 1, 0]);
    cluster.start();
    drop(soon(manager.lock("key")).await.unwrap());
    assert_eq!(sessions(&manager.stats()), [1, 1, 0, 0]);
}
