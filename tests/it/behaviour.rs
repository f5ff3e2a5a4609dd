//! What locks and sessions do on a real server, judged from another connection.

use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pglock::{Config, Error, ErrorKind, Key, Lock, Locker, Mode, Session};
use pglock_test_cluster::{Cluster, Settings, eventually, role, wait_until};
use tokio::task::JoinSet;

use crate::stage::{PATIENCE, Stage, next_to_end, poll_here, soon};

const ADMIN_SHUTDOWN: &str = "57P01";

#[tokio::test]
async fn a_lock_is_held_until_it_is_unlocked() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    assert_eq!(alice.key(), stage.key());
    assert_eq!(stage.locks(), [""; 0]);
    assert!(alice.try_lock().await.unwrap());
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    assert_eq!(alice.level(Mode::Exclusive), 1);
    alice.unlock().await.unwrap();
    assert_eq!(stage.locks(), [""; 0]);
    assert_eq!(alice.level(Mode::Exclusive), 0);
}

#[tokio::test]
async fn a_busy_key_is_not_acquired() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock().await.unwrap();
    assert!(!bob.try_lock().await.unwrap());
    assert!(!bob.try_lock_shared().await.unwrap());
    assert_eq!(bob.level(Mode::Exclusive), 0);
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    alice.unlock().await.unwrap();
    assert!(bob.try_lock().await.unwrap());
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

#[tokio::test]
async fn a_stacked_lock_is_released_by_as_many_unlocks() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock().await.unwrap();
    assert!(alice.try_lock().await.unwrap());
    assert!(alice.lock_timeout(Duration::from_secs(1)).await.unwrap());
    for level in [3, 2, 1] {
        assert_eq!(alice.level(Mode::Exclusive), level);
        assert!(!bob.try_lock().await.unwrap(), "at level {level}");
        alice.unlock().await.unwrap();
    }
    assert_eq!(alice.unlock().await.unwrap_err().kind(), ErrorKind::NotHeld);
    assert!(bob.try_lock().await.unwrap());
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

#[tokio::test]
async fn the_modes_stack_apart() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    alice.lock_shared().await.unwrap();
    alice.lock_shared().await.unwrap();
    assert_eq!(stage.locks(), ["alice holds exclusive", "alice holds shared"]);
    alice.unlock().await.unwrap();
    assert_eq!(stage.locks(), ["alice holds shared"]);
    assert_eq!((alice.level(Mode::Exclusive), alice.level(Mode::Shared)), (0, 2));
    alice.unlock_shared().await.unwrap();
    assert_eq!(stage.locks(), ["alice holds shared"]);
    alice.unlock_shared().await.unwrap();
    assert_eq!(stage.locks(), [""; 0]);
}

#[tokio::test]
async fn a_waiter_gets_the_lock_when_it_is_released() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock().await.unwrap();
    let waiting = tokio::spawn(async move {
        bob.lock().await.unwrap();
        bob
    });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    alice.unlock().await.unwrap();
    let bob = soon(waiting).await.unwrap();
    assert_eq!(bob.level(Mode::Exclusive), 1);
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

#[tokio::test]
async fn a_wait_ends_when_its_time_is_up() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock().await.unwrap();
    let timeout = Duration::from_millis(50);
    let begun = Instant::now();
    assert!(!soon(bob.lock_timeout(timeout)).await.unwrap());
    assert!(!soon(bob.lock_shared_timeout(timeout)).await.unwrap());
    assert!(begun.elapsed() >= timeout * 2, "after {:?}", begun.elapsed());
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
}

#[tokio::test]
async fn no_time_to_wait_is_a_try() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    assert!(alice.lock_timeout(Duration::ZERO).await.unwrap());
    assert!(!soon(bob.lock_timeout(Duration::ZERO)).await.unwrap());
    assert!(!soon(bob.lock_shared_timeout(Duration::ZERO)).await.unwrap());
    alice.unlock().await.unwrap();
    assert!(bob.lock_shared_timeout(Duration::ZERO).await.unwrap());
    assert_eq!(stage.locks(), ["bob holds shared"]);
}

#[tokio::test]
async fn more_time_than_the_clock_has_is_no_limit() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock().await.unwrap();
    let waiting = tokio::spawn(async move { bob.lock_timeout(Duration::MAX).await });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    alice.unlock().await.unwrap();
    assert!(soon(waiting).await.unwrap().unwrap());
}

#[tokio::test]
async fn connecting_ends_when_its_time_is_up() {
    // The system takes the connection, and nobody ever answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let stage = Stage::new();
    let mut config = stage.config("alice");
    config.port(silent.local_addr().unwrap().port()).connect_timeout(Duration::from_nanos(1));
    let error = soon(Lock::connect(&config, stage.key())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(!error.is_lost());
}

#[tokio::test]
async fn connecting_that_is_given_up_leaves_no_session() {
    let mut stage = Stage::new();
    let config = stage.config("alice");
    let connecting = Lock::connect(&config, stage.key());
    assert!(tokio::time::timeout(Duration::ZERO, connecting).await.is_err());
    eventually("no session is left", PATIENCE, || stage.sessions() == 0).await;
}

#[tokio::test]
async fn one_session_holds_several_keys() {
    let mut stage = Stage::new();
    let mut alice = stage.session("alice").await;
    let mut bob = stage.session("bob").await;
    let [first, second, third] = [1, 2, 3].map(|digit| 10 * stage.number() + digit);
    let pair = (i32::try_from(stage.number()).unwrap(), 5);
    for key in [first, second, third] {
        assert!(alice.try_lock(key, Mode::Exclusive).await.unwrap());
    }
    alice.lock(pair, Mode::Shared).await.unwrap();
    assert_eq!(
        stage.locks(),
        [
            format!("alice holds exclusive {first}"),
            format!("alice holds exclusive {second}"),
            format!("alice holds exclusive {third}"),
            format!("alice holds shared {pair:?}")
        ]
    );
    alice.unlock(second, Mode::Exclusive).await.unwrap();
    assert!(!bob.try_lock(first, Mode::Exclusive).await.unwrap());
    assert!(bob.try_lock(second, Mode::Exclusive).await.unwrap());
    assert!(bob.try_lock(pair, Mode::Shared).await.unwrap());
    alice.close().await.unwrap();
    assert_eq!(
        stage.locks(),
        [format!("bob holds exclusive {second}"), format!("bob holds shared {pair:?}")]
    );
}

#[tokio::test]
async fn waiters_are_served_in_the_order_of_their_arrival() {
    const WAITERS: usize = 5;
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();

    let (tell, mut served) = tokio::sync::mpsc::unbounded_channel();
    let mut waiters = JoinSet::new();
    for number in 0..WAITERS {
        let (mut bob, tell) = (stage.lock("bob").await, tell.clone());
        waiters.spawn(async move {
            bob.lock().await.unwrap();
            tell.send(number).unwrap();
            bob.unlock().await.unwrap();
        });
        let mut expected = vec!["alice holds exclusive"];
        expected.resize(number + 2, "bob awaits exclusive");
        stage.until(&expected).await;
    }
    alice.unlock().await.unwrap();
    for number in 0..WAITERS {
        assert_eq!(soon(served.recv()).await, Some(number));
    }
    while let Some(waiter) = waiters.join_next().await {
        waiter.unwrap();
    }
}

#[tokio::test]
async fn readers_share() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    assert!(alice.try_lock_shared().await.unwrap());
    soon(bob.lock_shared()).await.unwrap();
    assert_eq!(stage.locks(), ["alice holds shared", "bob holds shared"]);
    alice.unlock_shared().await.unwrap();
    assert_eq!(stage.locks(), ["bob holds shared"]);
}

#[tokio::test]
async fn a_writer_waits_for_every_reader() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    let mut carol = stage.lock("carol").await;
    alice.lock_shared().await.unwrap();
    bob.lock_shared().await.unwrap();
    assert!(!carol.try_lock().await.unwrap());
    let writing = tokio::spawn(async move { carol.lock().await.map(|()| carol) });
    stage.until(&["alice holds shared", "bob holds shared", "carol awaits exclusive"]).await;
    alice.unlock_shared().await.unwrap();
    assert_eq!(stage.locks(), ["bob holds shared", "carol awaits exclusive"]);
    bob.unlock_shared().await.unwrap();
    let _carol = soon(writing).await.unwrap().unwrap();
    assert_eq!(stage.locks(), ["carol holds exclusive"]);
}

#[tokio::test]
async fn a_queued_writer_keeps_further_readers_out() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    let mut carol = stage.lock("carol").await;
    alice.lock_shared().await.unwrap();
    let writing = tokio::spawn(async move { bob.lock().await.map(|()| bob) });
    stage.until(&["alice holds shared", "bob awaits exclusive"]).await;
    assert!(!carol.try_lock_shared().await.unwrap());
    alice.unlock_shared().await.unwrap();
    soon(writing).await.unwrap().unwrap().unlock().await.unwrap();
    assert!(carol.try_lock_shared().await.unwrap());
}

#[tokio::test]
async fn readers_wait_for_a_writer_and_then_share() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    let mut carol = stage.lock("carol").await;
    alice.lock().await.unwrap();
    assert!(!bob.try_lock_shared().await.unwrap());
    let reading = tokio::spawn(async move {
        let (first, second) = tokio::join!(bob.lock_shared(), carol.lock_shared());
        first.and(second).map(|()| (bob, carol))
    });
    stage.until(&["alice holds exclusive", "bob awaits shared", "carol awaits shared"]).await;
    alice.unlock().await.unwrap();
    let _readers = soon(reading).await.unwrap().unwrap();
    assert_eq!(stage.locks(), ["bob holds shared", "carol holds shared"]);
}

#[tokio::test]
async fn unlocking_the_other_mode_is_an_error_and_changes_nothing() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    assert_not_held(&alice.unlock().await.unwrap_err());
    alice.lock_shared().await.unwrap();
    assert_not_held(&alice.unlock().await.unwrap_err());
    assert_eq!(stage.locks(), ["alice holds shared"]);
    alice.unlock_shared().await.unwrap();
    alice.lock().await.unwrap();
    assert_not_held(&alice.unlock_shared().await.unwrap_err());
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
}

fn assert_not_held(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::NotHeld);
    assert!(!error.is_lost());
    assert_eq!(error.sqlstate(), None);
}

#[tokio::test]
async fn closing_releases_everything() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock().await.unwrap();
    alice.lock().await.unwrap();
    alice.lock_shared().await.unwrap();
    soon(alice.close()).await.unwrap();
    assert_eq!(stage.locks(), [""; 0]);
    assert!(bob.try_lock().await.unwrap());
}

#[tokio::test]
async fn dropping_releases_soon() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    drop(alice);
    stage.until(&[]).await;
    eventually("the session is gone", PATIENCE, || stage.sessions() == 0).await;
}

/// The runtime has no time for its sockets: the work, which never waits, is all that it sees.
#[test]
fn work_that_leaves_the_runtime_no_time_stops_with_its_session() {
    const LAST_STEP: u32 = 3;
    let cluster = Cluster::default_cluster();
    let by_tcp = cluster.url_for(&role::TRUST);
    let encrypted = format!("{by_tcp}?sslmode=require");
    for url in [by_tcp, encrypted, cluster.socket_url_for(&role::TRUST)] {
        let mut stage = Stage::new();
        let config = stage.config_by(&url, "alice");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().event_interval(u32::MAX).build().unwrap();
        let holding = runtime.spawn(async move {
            let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
            alice.lock().await.unwrap();
            let mut steps = 0;
            let work = poll_fn(|cx| {
                steps += 1;
                if steps == LAST_STEP {
                    stage.terminate("alice");
                    wait_until("the session is gone", PATIENCE, || stage.sessions() == 0);
                }
                cx.waker().wake_by_ref();
                if steps < 2 * LAST_STEP { Poll::Pending } else { Poll::Ready(()) }
            });
            (alice.hold(work).await, steps)
        });
        let (ended, steps) = runtime.block_on(holding).unwrap();
        assert_eq!(ended.unwrap_err().sqlstate(), Some(ADMIN_SHUTDOWN), "{url}");
        assert_eq!(steps, LAST_STEP, "{url}");
    }
}

/// What else a task does may use up what tokio allows it at a time.
#[tokio::test]
async fn a_loss_is_told_in_a_task_that_is_never_idle() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    stage.terminate("alice");
    let mut busy = pin!(async {
        loop {
            tokio::task::consume_budget().await;
        }
    });
    let mut lost = pin!(alice.hold(pending::<()>()));
    let lost = poll_fn(|cx| {
        let _: Poll<()> = busy.as_mut().poll(cx);
        lost.as_mut().poll(cx)
    });
    let error = soon(lost).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(ADMIN_SHUTDOWN));
}

/// Whoever polls is on another runtime, which ends before, or on none.
#[test]
fn a_session_stays_with_the_runtime_on_which_it_was_connected() {
    const BRIEFLY: Duration = Duration::from_millis(50);
    let stage = Stage::new();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let locks = async { (stage.lock("alice").await, stage.lock("bob").await) };
    let (mut alice, mut bob) = runtime.block_on(locks);
    runtime.block_on(alice.lock()).unwrap();
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(!other.block_on(bob.lock_timeout(BRIEFLY)).unwrap());
    drop(other);
    assert!(!runtime.block_on(bob.lock_timeout(BRIEFLY)).unwrap());
    {
        let mut waiting = pin!(bob.lock());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
    }
    // The wait is withdrawn when its time is over, by a socket of its own.
    assert!(!poll_here(bob.lock_timeout(BRIEFLY)).unwrap());
    runtime.block_on(alice.unlock()).unwrap();
    assert!(runtime.block_on(bob.try_lock()).unwrap());
    poll_here(bob.close()).unwrap();
}

#[tokio::test]
async fn of_many_workers_one_at_a_time_is_inside() {
    const WORKERS: u32 = 20;
    const TURNS: u32 = 10;
    let stage = Stage::new();
    let (inside, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let mut lock = stage.lock("worker").await;
        let (inside, turns) = (Arc::clone(&inside), Arc::clone(&turns));
        workers.spawn(async move {
            for _ in 0..TURNS {
                lock.lock().await.unwrap();
                assert!(!inside.swap(true, Ordering::SeqCst), "two are inside");
                tokio::task::yield_now().await;
                turns.fetch_add(1, Ordering::SeqCst);
                assert!(inside.swap(false, Ordering::SeqCst));
                lock.unlock().await.unwrap();
            }
        });
    }
    while next_to_end(&mut workers, || turns.load(Ordering::SeqCst)).await.is_some() {}
    assert_eq!(turns.load(Ordering::SeqCst), WORKERS * TURNS);
}

#[tokio::test]
async fn the_two_kinds_of_keys_do_not_exclude_each_other() {
    let mut stage = Stage::new();
    let mut alice = stage.session("alice").await;
    let mut bob = stage.session("bob").await;
    // The same 64 bits.
    let (bigint, pair) = (Key::bigint((7 << 32) | 9), Key::pair(7, 9));
    assert!(alice.try_lock(bigint, Mode::Exclusive).await.unwrap());
    assert!(bob.try_lock(pair, Mode::Exclusive).await.unwrap());
    assert!(!bob.try_lock(bigint, Mode::Shared).await.unwrap());
    assert!(!alice.try_lock(pair, Mode::Shared).await.unwrap());
    assert_eq!(stage.locks(), ["alice holds exclusive 30064771081", "bob holds exclusive (7, 9)"]);
}

#[tokio::test]
async fn a_name_is_the_key_that_go_pglock_makes_of_it() {
    for (name, key) in [
        ("hello", "-6615550055289275125"),
        ("MyLockName", "592534358865518967"),
        ("日本", "1305338235904577169"),
    ] {
        let mut stage = Stage::new();
        let mut alice = stage.session("alice").await;
        alice.lock(name, Mode::Exclusive).await.unwrap();
        assert_eq!(stage.locks(), [format!("alice holds exclusive {key}")], "for {name}");
    }
}

#[tokio::test]
async fn every_key_reaches_the_server_as_it_is() {
    let mut stage = Stage::new();
    let mut alice = stage.session("alice").await;
    for key in [i64::MIN, i64::MAX, -1, 0, 1, i64::from(i32::MIN), 1 << 32] {
        alice.lock(key, Mode::Exclusive).await.unwrap();
        assert_eq!(stage.locks(), [format!("alice holds exclusive {key}")]);
        alice.unlock(key, Mode::Exclusive).await.unwrap();
        assert_eq!(stage.locks(), [""; 0], "after {key}");
    }
    for key in [(i32::MIN, i32::MAX), (i32::MAX, i32::MIN), (-1, 0), (0, -1), (1, 2)] {
        alice.lock(key, Mode::Shared).await.unwrap();
        assert_eq!(stage.locks(), [format!("alice holds shared {key:?}")]);
        alice.unlock(key, Mode::Shared).await.unwrap();
        assert_eq!(stage.locks(), [""; 0], "after {key:?}");
    }
}

#[tokio::test]
async fn every_way_to_the_server_leads_to_the_same_lock() {
    let cluster = Cluster::default_cluster();
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    let by_ipv4 = cluster.url_for(&role::TRUST);
    let mut urls = vec![cluster.socket_url_for(&role::TRUST), by_ipv4.clone()];
    urls.push(by_ipv4.replace("127.0.0.1", "localhost"));
    if std::net::TcpListener::bind(("::1", 0)).is_ok() {
        urls.push(by_ipv4.replace("127.0.0.1", "[::1]"));
    }
    for url in urls {
        let mut bob = Lock::connect(&stage.config_by(&url, "bob"), stage.key()).await.unwrap();
        alice.lock().await.unwrap();
        assert!(!bob.try_lock().await.unwrap(), "by {url}");
        // The cancel takes the same way.
        assert!(!soon(bob.lock_timeout(Duration::from_millis(20))).await.unwrap(), "by {url}");
        alice.unlock().await.unwrap();
        assert!(bob.try_lock().await.unwrap(), "by {url}");
        assert_eq!(stage.locks(), ["bob holds exclusive"]);
        soon(bob.close()).await.unwrap();
        assert_eq!(stage.locks(), [""; 0], "by {url}");
    }
}

#[tokio::test]
async fn locks_of_different_databases_are_apart() {
    let mut stage = Stage::new();
    let mut elsewhere = stage.config("bob");
    elsewhere.dbname("postgres");
    let mut alice = stage.lock("alice").await;
    let mut bob = Lock::connect(&elsewhere, stage.key()).await.unwrap();
    assert!(alice.try_lock().await.unwrap());
    assert!(bob.try_lock().await.unwrap());
    assert_eq!(stage.locks(), ["alice holds exclusive", "bob holds exclusive"]);
}

#[tokio::test]
async fn the_trait_does_what_the_lock_does() {
    async fn both_modes(mut lock: impl Locker, stage: &mut Stage<'_>) {
        assert!(lock.try_lock().await.unwrap());
        lock.lock().await.unwrap();
        assert_eq!(stage.locks(), ["alice holds exclusive"]);
        lock.unlock().await.unwrap();
        lock.unlock().await.unwrap();
        assert!(lock.try_lock_shared().await.unwrap());
        lock.lock_shared().await.unwrap();
        assert_eq!(stage.locks(), ["alice holds shared"]);
        lock.unlock_shared().await.unwrap();
        assert_eq!(stage.locks(), ["alice holds shared"]);
        lock.close().await.unwrap();
        assert_eq!(stage.locks(), [""; 0]);
    }
    let mut stage = Stage::new();
    let alice = stage.lock("alice").await;
    both_modes(alice, &mut stage).await;
}

#[tokio::test]
async fn held_work_runs_to_its_end() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    let locks = alice.hold(async { stage.locks() }).await.unwrap();
    assert_eq!(locks, ["alice holds exclusive"]);
    alice.unlock().await.unwrap();
    alice.lock_shared().await.unwrap();
    let locks = alice.hold(async { stage.locks() }).await.unwrap();
    assert_eq!(locks, ["alice holds shared"]);
}

#[tokio::test]
async fn work_without_a_lock_is_not_begun() {
    let stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    let mut begun = false;
    let error = alice.hold(async { begun = true }).await.unwrap_err();
    assert_not_held(&error);
    assert!(!begun);
}

#[tokio::test]
async fn work_is_dropped_when_the_lock_is_lost() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    let work = async {
        stage.terminate("alice");
        std::future::pending::<()>().await;
    };
    let error = soon(alice.hold(work)).await.unwrap_err();
    assert_terminated(&error);
    assert_eq!(alice.level(Mode::Exclusive), 0);
}

#[tokio::test]
async fn a_loss_is_told_to_a_holder_who_listens() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    let listening = tokio::spawn(async move { (alice.lost().await, alice) });
    stage.terminate("alice");
    let (error, mut alice) = soon(listening).await.unwrap();
    assert_terminated(&error);
    assert_terminated(&soon(alice.lost()).await);
}

#[tokio::test]
async fn a_loss_is_told_at_the_next_call() {
    let mut stage = Stage::new();
    for call in 0..6 {
        let mut alice = stage.lock("alice").await;
        alice.lock().await.unwrap();
        stage.terminate("alice");
        // This blocks the thread: the runtime has no opportunity to look at the socket.
        wait_until("the session is gone", PATIENCE, || stage.sessions() == 0);
        let error = match call {
            // Not even a further level is given: it would be of a lock that is free.
            0 => alice.try_lock().await.unwrap_err(),
            1 => alice.lock().await.unwrap_err(),
            2 => alice.unlock().await.unwrap_err(),
            3 => alice.lock_shared().await.unwrap_err(),
            4 => alice.try_lock_shared().await.unwrap_err(),
            _ => alice.hold(async {}).await.unwrap_err(),
        };
        assert_terminated(&error);
        assert_eq!(alice.level(Mode::Exclusive), 0, "after call {call}");
    }
}

#[tokio::test]
async fn a_loss_is_told_to_a_waiter() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock().await.unwrap();
    let waiting = tokio::spawn(async move { bob.lock().await });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    stage.terminate("bob");
    assert_terminated(&soon(waiting).await.unwrap().unwrap_err());
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
}

#[tokio::test]
async fn nothing_works_after_a_loss() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    alice.lock().await.unwrap();
    alice.lock_shared().await.unwrap();
    stage.terminate("alice");
    assert_terminated(&soon(alice.lost()).await);
    let second = Duration::from_secs(1);
    for error in [
        alice.unlock().await.unwrap_err(),
        alice.unlock_shared().await.unwrap_err(),
        alice.try_lock().await.unwrap_err(),
        alice.try_lock_shared().await.unwrap_err(),
        alice.lock().await.unwrap_err(),
        alice.lock_shared().await.unwrap_err(),
        alice.lock_timeout(second).await.unwrap_err(),
        alice.lock_shared_timeout(second).await.unwrap_err(),
        alice.hold(async {}).await.unwrap_err(),
        soon(alice.lost()).await,
        alice.close().await.unwrap_err(),
    ] {
        assert_terminated(&error);
    }
}

fn assert_terminated(error: &Error) {
    assert!(error.is_lost(), "{error}");
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(error.sqlstate(), Some(ADMIN_SHUTDOWN), "{error}");
}

#[tokio::test]
async fn of_two_sessions_in_a_deadlock_one_gets_the_error_and_the_other_the_lock() {
    let mut stage = Stage::new();
    let (one, two) = (Key::pair(1, 1), Key::pair(2, 2));
    let (mut alice, mut bob) = (stage.session("alice").await, stage.session("bob").await);
    alice.lock(one, Mode::Exclusive).await.unwrap();
    bob.lock(two, Mode::Exclusive).await.unwrap();

    // What each of them was refused, after both have released the key that they began with.
    let crossing = |mut session: Session, held, wanted| async move {
        let refused = session.lock(wanted, Mode::Exclusive).await.err();
        if let Some(error) = &refused {
            assert_eq!(error.kind(), ErrorKind::Deadlock, "{error}");
            assert_eq!(error.sqlstate(), Some("40P01"));
            assert!(!error.is_lost());
            assert_eq!(session.level(wanted, Mode::Exclusive), 0);
        }
        session.unlock(held, Mode::Exclusive).await.unwrap();
        (session, refused)
    };
    let crossings = async { tokio::join!(crossing(alice, one, two), crossing(bob, two, one)) };
    let ((_alice, of_alice), (_bob, of_bob)) = soon(crossings).await;
    match (of_alice, of_bob) {
        (Some(_), None) => assert_eq!(stage.locks(), ["bob holds exclusive (1, 1)"]),
        (None, Some(_)) => assert_eq!(stage.locks(), ["alice holds exclusive (2, 2)"]),
        both => panic!("not one of the two was refused: {both:?}"),
    }
}

#[tokio::test]
async fn a_full_lock_table_costs_no_lock_that_is_held() {
    let cluster = Settings::new()
        .set("max_connections", "8")
        .set("max_locks_per_transaction", "10")
        .set("max_wal_senders", "0")
        // It would take locks of its own, and make room again.
        .set("autovacuum", "off")
        .start();
    let mut stage = Stage::on(&cluster);
    let mut alice = stage.session("alice").await;
    // Looking at pg_stat_activity needs room in the lock table, looking at pg_locks alone does not.
    let mut look = cluster.raw();
    let count = format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = {}",
        stage.pid("alice")
    );
    let mut held = 0;
    let error = loop {
        match alice.try_lock((0, held), Mode::Exclusive).await {
            Ok(acquired) => assert!(acquired),
            Err(error) => break error,
        }
        held += 1;
    };
    assert_out_of_lock_memory(&error);
    let waited = alice.lock((1, 0), Mode::Exclusive).await.unwrap_err();
    assert_out_of_lock_memory(&waited);
    assert_eq!(look.value(&count), held.to_string());

    for number in 0..held {
        alice.unlock((0, number), Mode::Exclusive).await.unwrap();
    }
    assert_eq!(stage.locks(), [""; 0]);
    soon(alice.lock((1, 0), Mode::Exclusive)).await.unwrap();
    assert_eq!(stage.locks(), ["alice holds exclusive (1, 0)"]);
}

fn assert_out_of_lock_memory(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::OutOfLockMemory, "{error}");
    assert_eq!(error.sqlstate(), Some("53200"));
    assert!(!error.is_lost());
    assert!(error.to_string().contains("max_locks_per_transaction"), "{error}");
}

/// The role's timeouts are two seconds.
#[tokio::test]
async fn the_timeouts_of_a_role_end_neither_a_wait_nor_a_hold() {
    let mut stage = Stage::new();
    let url = Cluster::default_cluster().url_for(&role::HURRIED);
    let [of_alice, of_bob] = ["alice", "bob"].map(|actor| stage.config_by(&url, actor));
    let mut alice = Lock::connect(&of_alice, stage.key()).await.unwrap();
    let mut bob = Lock::connect(&of_bob, stage.key()).await.unwrap();
    alice.lock().await.unwrap();
    let waiting = tokio::spawn(async move { bob.lock().await.map(|()| bob) });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;

    let listening = tokio::time::timeout(Duration::from_secs(3), alice.lost());
    assert!(listening.await.is_err(), "the holder's session has ended");
    assert_eq!(stage.locks(), ["alice holds exclusive", "bob awaits exclusive"]);
    alice.unlock().await.unwrap();
    let _bob = soon(waiting).await.unwrap().unwrap();
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

#[tokio::test]
async fn the_server_shows_whose_session_it_is_and_what_for() {
    let mut stage = Stage::new();
    let key = stage.key();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    let _session = stage.session("carol").await;
    let comment = format!("/* pglock lock {key} */");
    assert!(stage.activity("alice", "query").starts_with(&comment));
    assert!(stage.activity("carol", "query").starts_with("/* pglock session */"));
    // The comment stays while the lock is in use.
    alice.lock().await.unwrap();
    let _waiting = tokio::spawn(async move { bob.lock().await });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    assert!(stage.activity("alice", "query").starts_with(&comment));
    assert!(stage.activity("bob", "query").starts_with(&comment));
    eventually("bob's wait is shown", PATIENCE, || stage.waits_in("bob", "advisory")).await;
}

#[tokio::test]
async fn the_default_application_name_is_that_of_the_library_and_tells_the_key() {
    let mut look = Cluster::default_cluster().raw_to("postgres");
    let mut config: Config = Cluster::default_cluster().url_for(&role::TRUST).parse().unwrap();
    // No other test uses the names with this database.
    config.dbname("postgres");
    let _session = Session::connect(&config).await.unwrap();
    let _locks = (
        Lock::connect(&config, 42).await.unwrap(),
        Lock::connect(&config, (-1, i32::MIN)).await.unwrap(),
    );
    for name in ["pglock", "pglock 42", "pglock (-1, -2147483648)"] {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE application_name = '{name}' AND datname = 'postgres'"
        );
        assert_eq!(look.value(&sql), "1", "{name}");
    }
}

/// By default `orphan_timeout` is 30 s, and both ends begin to probe after a sixth of it. Without
/// that, they would begin after two hours.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn both_ends_probe_a_silent_connection() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    let client: u16 = stage.activity("alice", "client_port").parse().unwrap();
    let server = Cluster::default_cluster().port();
    for (end, local, remote) in [("server", server, client), ("client", client, server)] {
        let mut probe_in = None;
        eventually("the connection is silent", PATIENCE, || {
            probe_in = next_probe(local, remote);
            probe_in.is_some()
        })
        .await;
        assert!(probe_in <= Some(Duration::from_secs(5)), "the {end} probes in {probe_in:?}");
    }
}

/// When a keepalive probe is due on an IPv4 connection, if nothing else is under way on it: the
/// column `tr tm->when` of `/proc/net/tcp`, where 02 is the timer for keepalive.
#[cfg(target_os = "linux")]
fn next_probe(local: u16, remote: u16) -> Option<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let connections = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = [local, remote].map(|port| format!(":{port:04X}"));
    let connection: Vec<&str> = connections
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        // While others come and go, a list may lack one.
        .find(|fields| fields[1].ends_with(&ends[0]) && fields[2].ends_with(&ends[1]))?;
    let ticks = connection[5].strip_prefix("02:")?;
    Some(TICK * u32::from_str_radix(ticks, 16).unwrap())
}

#[tokio::test]
async fn a_standby_is_refused_until_it_is_promoted() {
    let mut cluster = Settings::new().start();
    let config: Config = cluster.url_for(&role::TRUST).parse().unwrap();
    let _primary = Lock::connect(&config, 1).await.unwrap();
    cluster.become_standby();
    let error = Lock::connect(&config, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("standby"), "{error}");
    cluster.promote();
    assert!(Lock::connect(&config, 1).await.unwrap().try_lock().await.unwrap());
}
