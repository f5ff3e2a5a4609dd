//! How a manager ends: by [`LockManager::close`], with its last handle, or with its runtime.

use std::time::Duration;

use pglock::{Election, ErrorKind, Guard, LockManager};
use pglock_test_cluster::{Cluster, Proxy, Traffic, eventually, role};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::fences::{alice_waits_for_a_standby, server_without_its_standby};
use crate::stage::{PATIENCE, Stage, poll_times, soon};

/// Long enough for a request to reach the server's queue, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);
/// More than closing may take, and less than a token that does not come.
const LESS_THAN_A_TOKEN: Duration = Duration::from_secs(20);
/// More polls than a close needs.
const POLLS_MAX: usize = 1_000;

const ALICE_WAITS: [&str; 3] =
    ["alice awaits exclusive", "alice holds exclusive (7, 1)", "bob holds exclusive"];

/// Alice holds a key and waits for another, which Bob has.
async fn alice_waits(
    stage: &mut Stage<'_>,
    alice: &LockManager,
) -> (LockManager, [Guard; 2], JoinHandle<pglock::Result<Guard>>) {
    let bob = stage.manager("bob");
    let guards =
        [soon(bob.lock(stage.key())).await.unwrap(), soon(alice.lock((7, 1))).await.unwrap()];
    let waiting = tokio::spawn({
        let (alice, key) = (alice.clone(), stage.key());
        async move { alice.lock(key).await }
    });
    stage.until(&ALICE_WAITS).await;
    (bob, guards, waiting)
}

fn new_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn kind<T>(result: pglock::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[tokio::test]
async fn many_may_close_at_a_time_and_again() {
    let mut stage = Stage::new();
    let alice = stage.manager("alice");
    let (_bob, _guards, waiting) = alice_waits(&mut stage, &alice).await;
    let mut closing = JoinSet::new();
    for _ in 0..5 {
        let alice = alice.clone();
        closing.spawn(async move { alice.close().await });
    }
    while let Some(closed) = soon(closing.join_next()).await {
        closed.unwrap().unwrap();
        assert_eq!(stage.locks(), ["bob holds exclusive"]);
    }
    assert_eq!(kind(soon(waiting).await.unwrap()), Some(ErrorKind::Closed));
    soon(alice.close()).await.unwrap();
    assert_eq!(kind(soon(alice.lock(stage.key())).await), Some(ErrorKind::Closed));
    // Nothing was connected in the first place.
    let carol = stage.manager("carol");
    soon(carol.close()).await.unwrap();
    assert_eq!(kind(soon(carol.try_lock(stage.key())).await), Some(ErrorKind::Closed));
}

#[tokio::test]
async fn a_close_can_be_dropped_at_every_point() {
    let mut stage = Stage::new();
    for polls in 0.. {
        assert!(polls < POLLS_MAX, "it is never done");
        let alice = stage.manager("alice");
        let (bob, guards, waiting) = alice_waits(&mut stage, &alice).await;
        let closed = soon(poll_times(polls, alice.close())).await;
        if polls == 0 {
            assert!(guards.iter().all(Guard::is_held));
            soon(alice.close()).await.unwrap();
        }
        assert_eq!(kind(soon(waiting).await.unwrap()), Some(ErrorKind::Closed));
        stage.until(&["bob holds exclusive"]).await;
        drop(guards);
        soon(bob.close()).await.unwrap();
        eventually("no session is left", PATIENCE, || stage.sessions() == 0).await;
        if let Some(closed) = closed {
            closed.unwrap();
            assert!(polls > 1, "it never waited");
            return;
        }
    }
}

#[tokio::test]
async fn closing_waits_for_no_session_that_is_being_opened() {
    let stage = Stage::new();
    let cluster = Cluster::default_cluster();
    let proxy = Proxy::start(cluster.port());
    proxy.set_both(Traffic::Silent);
    let url = cluster.url_for(&role::TRUST);
    let url = url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", proxy.port()));
    let alice = LockManager::new(stage.config_by(&url, "alice"));
    let mut waiting = JoinSet::new();
    for object in 0..3 {
        let alice = alice.clone();
        waiting.spawn(async move { alice.lock((8, object)).await });
    }
    eventually("somebody connects", PATIENCE, || proxy.connections() > 0).await;
    assert_eq!(alice.stats().waiting, 3);
    // Its `connect_timeout` is not over for long.
    timeout(LESS_THAN_A_TOKEN, alice.close()).await.expect("it ends").unwrap();
    while let Some(waited) = soon(waiting.join_next()).await {
        assert_eq!(kind(waited.unwrap()), Some(ErrorKind::Closed));
    }
    assert_eq!(alice.stats().sessions, 0);
}

#[tokio::test]
async fn closing_waits_for_no_token() {
    let cluster = server_without_its_standby();
    let mut stage = Stage::on(&cluster);
    let alice = stage.manager("alice");
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    let (fenced, ()) = timeout(LESS_THAN_A_TOKEN, async {
        tokio::join!(guard.fencing_token(), async {
            alice_waits_for_a_standby(&mut stage).await;
            alice.close().await.unwrap();
            assert_eq!(stage.locks(), [""; 0]);
        })
    })
    .await
    .expect("it ends");
    assert_eq!(kind(fenced), Some(ErrorKind::Closed));
}

#[tokio::test]
async fn a_token_that_nobody_waits_for_is_in_nobodys_way() {
    let cluster = server_without_its_standby();
    let mut stage = Stage::on(&cluster);
    let alice = stage.manager("alice");
    drop(soon(alice.lock((9, 1))).await.unwrap());
    let election = alice.election(stage.key());
    let campaign = |election: Election| tokio::spawn(async move { election.campaign().await });
    let (first, second) = (campaign(election.clone()), campaign(election.clone()));
    alice_waits_for_a_standby(&mut stage).await;
    first.abort();
    alice_waits_for_a_standby(&mut stage).await;
    second.abort();
    timeout(LESS_THAN_A_TOKEN, stage.until(&[])).await.expect("it is released");
    let other = timeout(LESS_THAN_A_TOKEN, alice.lock((9, 1))).await.expect("it goes on");
    drop(other.unwrap());

    let last = campaign(election);
    alice_waits_for_a_standby(&mut stage).await;
    drop(alice);
    last.abort();
    let ended = eventually("no session is left", PATIENCE, || stage.sessions() == 0);
    timeout(LESS_THAN_A_TOKEN, ended).await.expect("it ends");
}

#[tokio::test]
async fn what_is_dropped_at_last_ends_in_the_background() {
    let mut stage = Stage::new();
    // While it waits, and while it connects.
    for connects in [false, true] {
        let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
        let guard = soon(bob.lock(stage.key())).await.unwrap();
        let mut lock = Box::pin(alice.lock(stage.key()));
        if connects {
            assert!(poll_times(1, &mut lock).await.is_none());
        } else {
            let waits = stage.until(&["alice awaits exclusive", "bob holds exclusive"]);
            tokio::select! {
                _ = &mut lock => panic!("Bob has it"),
                () = waits => {}
            }
        }
        drop(lock);
        drop(alice);
        stage.until(&["bob holds exclusive"]).await;
        drop((guard, bob));
        eventually("no session is left", PATIENCE, || stage.sessions() == 0).await;
    }
}

#[test]
fn nobody_waits_for_a_manager_whose_runtime_has_ended() {
    let mut stage = Stage::new();
    let (its, other) = (new_runtime(), new_runtime());
    let alice = stage.manager("alice");
    let (bob, guards, waiting) = its.block_on(alice_waits(&mut stage, &alice));
    let elsewhere = other.spawn({
        let (alice, key) = (alice.clone(), stage.key());
        async move { alice.lock(key).await }
    });
    let asks = other.spawn({
        let (alice, key) = (alice.clone(), stage.key());
        async move {
            tokio::task::yield_now().await;
            alice.inspect(key).await
        }
    });
    other.block_on(async { soon(tokio::time::sleep(SHORT)).await });
    drop(its);
    other.block_on(async {
        // The task that waited there ended with it; the one that waits here is told.
        drop(waiting);
        assert!(soon(elsewhere).await.unwrap().is_err());
        drop(soon(asks).await.unwrap());
        for guard in guards {
            assert!(!guard.is_held());
            soon(guard.unlock()).await.unwrap_err();
        }
        for manager in [&alice, &bob] {
            // The sockets are closed, but nobody saw that the server knows.
            assert_eq!(kind(soon(manager.close()).await), Some(ErrorKind::Lost));
            assert_eq!(kind(soon(manager.inspect(stage.key())).await), Some(ErrorKind::Closed));
            assert_eq!(manager.stats().sessions, 0);
        }
        stage.until(&[]).await;
    });
}
