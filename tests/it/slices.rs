//! Waits in slices, between which the server is not kept from its work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use pglock::{ErrorKind, Lock};
use pglock_test_cluster::Settings;
use tokio::task::{JoinSet, spawn_blocking};

use crate::stage::{PATIENCE, Stage, next_to_end, soon};

/// As short as it can be.
const SLICE: Duration = Duration::from_millis(100);

async fn lock(stage: &Stage<'_>, actor: &str) -> Lock {
    let mut config = stage.config(actor);
    config.wait_slice(SLICE);
    Lock::connect(&config, stage.key()).await.unwrap()
}

/// A wait in one piece would wait for the holder, who waits for the index, which waits for the wait.
#[tokio::test]
async fn an_index_is_built_concurrently_while_others_wait_for_the_builder() {
    // On a server of its own: an index waits for the waits of other tests as well.
    let cluster = Settings::new().start();
    let mut stage = Stage::on(&cluster);
    let (mut alice, mut bob) = (stage.lock("alice").await, lock(&stage, "bob").await);
    alice.lock().await.unwrap();
    let waiting = tokio::spawn(async move { bob.lock().await.map(|()| bob) });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    let mut builder = cluster.raw();
    let building = spawn_blocking(move || {
        builder.rows("CREATE TABLE sliced (n int)");
        builder.rows("CREATE INDEX CONCURRENTLY ON sliced (n)");
    });
    soon(building).await.unwrap();
    assert!(!waiting.is_finished());
    alice.unlock().await.unwrap();
    let _bob = soon(waiting).await.unwrap().unwrap();
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

#[tokio::test]
async fn a_wait_in_slices_ends_as_one_in_one_piece_does() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, lock(&stage, "bob").await);
    alice.lock().await.unwrap();
    for limit in [SLICE / 2, SLICE, SLICE * 5 / 2] {
        assert!(!soon(bob.lock_timeout(limit)).await.unwrap());
        assert_eq!(stage.locks(), ["alice holds exclusive"]);
    }
    let canceller = bob.canceller();
    let waiting = tokio::spawn(async move { (bob.lock().await, bob) });
    tokio::time::sleep(SLICE * 5 / 2).await;
    canceller.cancel().await;
    let (ended, mut bob) = soon(waiting).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    stage.until(&["alice holds exclusive"]).await;

    tokio::time::timeout(SLICE * 5 / 2, bob.lock()).await.expect_err("alice has it");
    alice.unlock().await.unwrap();
    assert!(bob.lock_timeout(PATIENCE).await.unwrap());
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

/// The slices of many end while the lock goes from hand to hand.
#[tokio::test]
async fn contenders_who_wait_in_slices_count_right() {
    const CONTENDERS: u32 = 10;
    const TURNS: u32 = 10;
    let stage = Stage::new();
    let count = Arc::new(AtomicU32::new(0));
    let is_occupied = Arc::new(AtomicBool::new(false));
    let mut contenders = JoinSet::new();
    for _ in 0..CONTENDERS {
        let mut lock = lock(&stage, "contender").await;
        let (count, is_occupied) = (Arc::clone(&count), Arc::clone(&is_occupied));
        contenders.spawn(async move {
            for _ in 0..TURNS {
                lock.lock().await.unwrap();
                assert!(!is_occupied.swap(true, Ordering::Relaxed), "two hold the lock");
                tokio::time::sleep(SLICE / 10).await;
                count.fetch_add(1, Ordering::Relaxed);
                is_occupied.store(false, Ordering::Relaxed);
                lock.unlock().await.unwrap();
            }
        });
    }
    while next_to_end(&mut contenders, || count.load(Ordering::Relaxed)).await.is_some() {}
    assert_eq!(count.load(Ordering::Relaxed), CONTENDERS * TURNS);
}
