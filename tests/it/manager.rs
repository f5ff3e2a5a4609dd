//! Many locks and tasks on few sessions: [`LockManager`], on real servers.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use pglock::{Config, Error, ErrorKind, Guard, Key, Lock, LockManager, Mode, SslMode};
use pglock_test_cluster::{
    Break, Cluster, PgBouncer, PoolMode, Proxy, Raw, Settings, Shutdown, Traffic, eventually, role,
    wait_until,
};
use tokio::runtime::Builder;
use tokio::sync::Mutex;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use crate::fences::{alice_waits_for_a_standby, server_without_its_standby};
use crate::leases::{ENDS_SILENT_SESSIONS, LONGER_LEASE, undisturbed};
use crate::stage::{PATIENCE, Stage, next_to_end, poll_here, poll_times, sometime, soon};

/// Long enough for a request to reach the server's queue, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);

/// Far less than what would have to be waited for takes, and enough on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// How long a request may stay in a pooler's queue for which nobody waits: 5 s, and more on a busy machine.
const NOT_SERVED_WITHIN: Duration = Duration::from_secs(10);

/// How long the end of a session may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_guard_excludes_others_until_it_is_gone() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    assert!(guard.is_held());
    assert_eq!((guard.key(), guard.mode()), (stage.key(), Mode::Exclusive));
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    assert!(soon(alice.try_lock(stage.key())).await.unwrap().is_none());
    assert!(soon(bob.try_lock(stage.key())).await.unwrap().is_none());
    assert!(soon(bob.lock_timeout(stage.key(), SHORT)).await.unwrap().is_none());

    soon(guard.unlock()).await.unwrap();
    // What was released is free at once.
    let guard = soon(bob.try_lock(stage.key())).await.unwrap().unwrap();
    drop(guard);
    stage.until(&[]).await;
}

#[tokio::test]
async fn readers_share_and_exclude_writers() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let first = soon(alice.lock_shared(stage.key())).await.unwrap();
    let second = soon(alice.try_lock_shared(stage.key())).await.unwrap().unwrap();
    let third = soon(bob.lock_shared_timeout(stage.key(), PATIENCE)).await.unwrap().unwrap();
    assert_eq!(stage.locks(), ["alice holds shared", "bob holds shared"]);
    assert!(soon(bob.try_lock(stage.key())).await.unwrap().is_none());
    soon(first.unlock()).await.unwrap();
    assert_eq!(stage.locks(), ["alice holds shared", "bob holds shared"]);
    soon(second.unlock()).await.unwrap();
    assert_eq!(stage.locks(), ["bob holds shared"]);
    soon(third.unlock()).await.unwrap();
    assert!(soon(alice.try_lock(stage.key())).await.unwrap().is_some());
}

/// The two are asked for together, and the one that cannot be had comes first.
#[tokio::test]
async fn who_tries_to_share_gets_that_whoever_else_tries() {
    let stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let _reader = soon(bob.lock_shared(stage.key())).await.unwrap();
    let tried =
        async { tokio::join!(alice.try_lock(stage.key()), alice.try_lock_shared(stage.key())) };
    let (alone, shared) = soon(tried).await;
    assert!(alone.unwrap().is_none());
    assert!(shared.unwrap().is_some_and(|guard| guard.is_held()));
}

#[tokio::test]
async fn any_number_of_keys_are_held_on_one_session() {
    let mut stage = Stage::new();
    let alice = stage.manager("alice");
    let mut guards = Vec::new();
    for object in 0..300 {
        guards.push(soon(alice.lock((7_000, object))).await.unwrap());
    }
    assert_eq!(stage.locks().len(), 300);
    assert_eq!(stage.sessions(), 1);
    // In any order.
    guards.rotate_left(123);
    guards.drain(..150);
    stage.until_count(150).await;
    drop(guards);
    stage.until(&[]).await;
}

#[tokio::test]
async fn many_tasks_want_one_key_and_each_gets_it_in_its_turn() {
    const TASKS: usize = 10_000;
    let mut stage = Stage::new();
    let alice = stage.manager("alice");
    let turns = Arc::new(Mutex::new(Vec::new()));
    let first = soon(alice.lock(stage.key())).await.unwrap();
    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        let (alice, turns, key) = (alice.clone(), Arc::clone(&turns), stage.key());
        tasks.spawn(async move {
            let guard = alice.lock(key).await.unwrap();
            // Nobody else is here.
            turns.try_lock().unwrap().push(number);
            drop(guard);
        });
        // Each asks before the next one is there.
        tokio::task::yield_now().await;
    }
    drop(first);
    let count = || turns.try_lock().map(|turns| turns.len()).ok();
    while next_to_end(&mut tasks, count).await.is_some() {}
    assert_eq!(*turns.lock().await, (0..TASKS).collect::<Vec<_>>());
    // None is closed before it was idle for a while.
    assert!(stage.sessions() <= 2, "{} sessions", stage.sessions());
}

#[tokio::test]
async fn readers_overlap_and_overtake_no_writer() {
    const TASKS: u32 = 100;
    const TURNS: u32 = 10;
    let stage = Stage::new();
    let alice = stage.manager("alice");
    let (asked, inside, most) = <(Arc<AtomicU32>, Arc<AtomicU32>, Arc<AtomicU32>)>::default();
    // The numbers of those who have it, in the order in which they got it.
    let granted = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (alice, key, granted) = (alice.clone(), stage.key(), Arc::clone(&granted));
        let (asked, inside, most) = (Arc::clone(&asked), Arc::clone(&inside), Arc::clone(&most));
        tasks.spawn(async move {
            for _ in 0..TURNS {
                let number = asked.fetch_add(1, Ordering::SeqCst);
                let writes = task % 10 == 0;
                let lock =
                    if writes { alice.lock(key).await } else { alice.lock_shared(key).await };
                granted.try_lock().unwrap().push((number, writes));
                let beside = inside.fetch_add(1, Ordering::SeqCst);
                assert!(beside == 0 || !writes, "{beside} beside a writer");
                most.fetch_max(beside + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(lock.unwrap());
            }
        });
    }
    let count = || granted.try_lock().map(|granted| granted.len()).ok();
    while next_to_end(&mut tasks, count).await.is_some() {}
    let most = most.load(Ordering::SeqCst);
    assert!(most >= 5, "no more than {most} readers together");
    // Whoever asks after a writer gets the lock after it.
    let mut last_asked = 0;
    for &(number, writes) in granted.lock().await.iter() {
        assert!(!writes || number >= last_asked, "{last_asked} was granted before {number}");
        last_asked = last_asked.max(number);
    }
}

#[test]
fn readers_of_one_process_do_not_starve_a_writer_of_another() {
    const READERS: u32 = 90;
    const TURNS: u32 = 20;
    let stage = Stage::new();
    let (reads, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    let read = async || {
        let alice = stage.manager("alice");
        let read_on = async || {
            while !is_over.load(Ordering::SeqCst) {
                let guard = alice.lock_shared(stage.key()).await.unwrap();
                reads.fetch_add(1, Ordering::SeqCst);
                // There is always one who reads when another one stops.
                tokio::task::yield_now().await;
                drop(guard);
            }
        };
        let mut readers: Vec<_> = (0..READERS).map(|_| Box::pin(read_on())).collect();
        poll_fn(|cx| {
            readers.retain_mut(|reader| reader.as_mut().poll(cx).is_pending());
            if readers.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    };
    let write = async || {
        let bob = stage.manager("bob");
        for turn in 0..TURNS {
            let before = reads.load(Ordering::SeqCst);
            drop(soon(bob.lock(stage.key())).await.unwrap());
            // And neither do writers starve the readers.
            let reads = || reads.load(Ordering::SeqCst);
            eventually(&format!("somebody reads after turn {turn}"), PATIENCE, || reads() > before)
                .await;
        }
    };
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    thread::scope(|scope| {
        let (runtime, read) = (&runtime, &read);
        scope.spawn(move || runtime().block_on(read()));
        let written = scope.spawn(|| runtime().block_on(write())).join();
        is_over.store(true, Ordering::SeqCst);
        written.unwrap();
    });
}

/// Managers in threads of their own stand for processes.
#[test]
fn several_managers_count_exactly() {
    const TURNS: u32 = 40;
    let stage = Stage::new();
    let (count, inside) = (AtomicU32::new(0), AtomicU32::new(0));
    let contend = |actor: &str| {
        let (manager, key) = (stage.manager(actor), stage.key());
        let turns = async {
            for turn in 0..TURNS {
                let guard = if turn % 2 == 0 {
                    manager.lock(key).await.unwrap()
                } else {
                    manager.lock_timeout(key, PATIENCE).await.unwrap().unwrap()
                };
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
                guard.unlock().await.unwrap();
            }
        };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(sometime(turns, || count.load(Ordering::SeqCst)));
    };
    thread::scope(|scope| {
        for actor in ["alice", "bob", "carol", "dave"] {
            scope.spawn(move || contend(actor));
        }
    });
    assert_eq!(count.into_inner(), 4 * TURNS);
}

#[tokio::test]
async fn a_request_can_be_dropped_at_every_point() {
    let mut stage = Stage::new();
    let bob = stage.manager("bob");
    for busy in [false, true] {
        let guard = if busy { Some(soon(bob.lock(stage.key())).await.unwrap()) } else { None };
        for polls in 1..4 {
            let alice = stage.manager("alice");
            // What nobody wakes is not polled.
            let dropped = timeout(SHORT, poll_times(polls, alice.lock(stage.key()))).await;
            assert!(!busy || !matches!(dropped, Ok(Some(_))));
            drop(dropped);
            // The next request is not held up, and nothing is left behind.
            drop(soon(alice.lock((7_001, 1))).await.unwrap());
            let expected: &[&str] = if busy { &["bob holds exclusive"] } else { &[] };
            stage.until(expected).await;
            soon(alice.close()).await.unwrap();
        }
        drop(guard);
        stage.until(&[]).await;
    }
}

#[tokio::test]
async fn a_wait_leaves_the_servers_queue_with_the_last_who_wants_it() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let guard = soon(bob.lock(stage.key())).await.unwrap();
    let mut waits = JoinSet::new();
    for _ in 0..20 {
        let (alice, key) = (alice.clone(), stage.key());
        waits.spawn(async move { alice.lock(key).await.map(drop) });
    }
    let waiting = ["alice awaits exclusive", "bob holds exclusive"];
    stage.until(&waiting).await;
    assert_eq!(stage.sessions(), 3);
    waits.shutdown().await;
    stage.until(&["bob holds exclusive"]).await;
    drop(guard);
}

#[tokio::test]
async fn keys_beyond_the_sessions_are_acquired_too() {
    let mut stage = Stage::new();
    let bob = stage.manager("bob");
    for max_sessions in [1, 2] {
        let alice = LockManager::builder(stage.config("alice")).max_sessions(max_sessions).build();
        let keys = (0..10).map(|object| Key::pair(7_002, object));
        let mut guards: Vec<Guard> = Vec::new();
        for key in keys.clone() {
            guards.push(soon(bob.lock(key)).await.unwrap());
        }
        let mut waits = JoinSet::new();
        for key in keys {
            let alice = alice.clone();
            waits.spawn(async move { alice.lock(key).await.map(|guard| guard.key()) });
        }
        eventually("somebody waits or tries", PATIENCE, || stage.locks().len() >= 10).await;
        // The last ones first: none may be in the way of another.
        for guard in guards.into_iter().rev() {
            let key = guard.key();
            soon(guard.unlock()).await.unwrap();
            assert_eq!(soon(waits.join_next()).await.unwrap().unwrap().unwrap(), key);
        }
        soon(alice.close()).await.unwrap();
    }
}

/// A key that others always wait for is never free when it is tried.
#[tokio::test]
async fn keys_without_a_session_get_a_place_in_the_servers_queue_by_turns() {
    let mut stage = Stage::new();
    let (bob, carol) = (stage.manager("bob"), stage.manager("carol"));
    let alice = LockManager::builder(stage.config("alice")).max_sessions(2).build();
    let keys = [Key::pair(7_010, 1), Key::pair(7_010, 2)];
    let mut guards = Vec::new();
    let mut waits = JoinSet::new();
    for key in keys {
        guards.push(soon(bob.lock(key)).await.unwrap());
        let carol = carol.clone();
        waits.spawn(async move { carol.lock(key).await.map(drop) });
    }
    eventually("carol waits", PATIENCE, || stage.locks().len() == 4).await;
    for key in keys {
        let alice = alice.clone();
        waits.spawn(async move { alice.lock(key).await.map(drop) });
    }
    eventually("a key has no session", PATIENCE, || alice.stats().crowded_out == 1).await;
    // One after the other, and again.
    for key in keys.iter().cycle().take(4) {
        let what = format!("alice waits for {key}");
        eventually(&what, PATIENCE, || stage.waits_for(*key) == "2").await;
    }
    drop(guards);
    while let Some(got) = soon(waits.join_next()).await {
        got.unwrap().unwrap();
    }
    assert_eq!(alice.stats().crowded_out, 0);
}

/// The session that tries keys is not needed for that alone, if another one holds something.
#[tokio::test]
async fn each_session_that_holds_nothing_may_wait() {
    let mut stage = Stage::new();
    let bob = stage.manager("bob");
    let alice = LockManager::builder(stage.config("alice")).max_sessions(2).build();
    let [first, second, third] = [1, 2, 3].map(|object| Key::pair(7_011, object));
    let busy = soon(bob.lock(first)).await.unwrap();
    let wait = |key| {
        let alice = alice.clone();
        tokio::spawn(async move { alice.lock(key).await })
    };
    let waiting = wait(first);
    stage.until(&["alice awaits exclusive (7011, 1)", "bob holds exclusive (7011, 1)"]).await;
    drop(busy);
    let held = soon(waiting).await.unwrap().unwrap();

    let busy = soon(bob.lock(second)).await.unwrap();
    let waiting = wait(second);
    let expected = [
        "alice awaits exclusive (7011, 2)",
        "alice holds exclusive (7011, 1)",
        "bob holds exclusive (7011, 2)",
    ];
    stage.until(&expected).await;
    // Keys are tried all the same, on the session that holds one.
    drop(soon(alice.try_lock(third)).await.unwrap().unwrap());
    assert!(soon(alice.try_lock(second)).await.unwrap().is_none());
    stage.until(&expected).await;
    drop(busy);
    drop((held, soon(waiting).await.unwrap().unwrap()));
    stage.until(&[]).await;
}

/// Many keys are tried and released by one query, which somebody else ends at the server.
#[tokio::test]
async fn queries_for_many_keys_that_are_ended_from_outside_leave_nothing_behind() {
    const ENDED: usize = 5;
    const KEYS: i32 = 500;
    const QUERY: &str = "/* pglock manager */ SELECT ARRAY";
    let cluster = Settings::new().start();
    let mut stage = Stage::on(&cluster);
    let alice = stage.manager("alice");
    let kept = soon(alice.lock(stage.key())).await.unwrap();
    let process = stage.pid("alice");
    // The log names the statement of each error.
    let ended = || cluster.log().lines().filter(|line| line.contains(QUERY)).count();
    let tries = async {
        while ended() < ENDED {
            let mut tried = JoinSet::new();
            for object in 0..KEYS {
                let alice = alice.clone();
                tried.spawn(async move { alice.try_lock((7_013, object)).await });
            }
            for result in tried.join_all().await {
                // The calls are made one by one then, of which each may be ended as well.
                if let Err(error) = result {
                    assert_eq!(error.sqlstate(), Some("57014"), "{error}");
                }
            }
        }
    };
    let mut look = cluster.raw();
    let ends = async {
        loop {
            look.value(&format!("SELECT pg_cancel_backend({process})"));
            // What was ended is settled meanwhile, and that is not always to be ended as well.
            sleep(Duration::from_millis(2)).await;
        }
    };
    let both = async {
        tokio::select! {
            () = tries => {}
            () = ends => {}
        }
    };
    sometime(both, ended).await;
    stage.until(&["alice holds exclusive"]).await;
    assert_eq!(stage.pid("alice"), process);
    // The server may have released them, and the manager not heard of it yet.
    let kept_alone = || (alice.stats().held, alice.stats().guards) == (1, 1);
    eventually("one is held", PATIENCE, kept_alone).await;
    soon(kept.unlock()).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_session_is_told_to_its_guards_only() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let busy = soon(bob.lock((7_003, 1))).await.unwrap();
    let on_first = soon(alice.lock(stage.key())).await.unwrap();
    let first_process = stage.pid("alice");
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.lock((7_003, 1)).await }
    });
    stage
        .until(&[
            "alice awaits exclusive (7003, 1)",
            "alice holds exclusive",
            "bob holds exclusive (7003, 1)",
        ])
        .await;
    drop(busy);
    let on_second = soon(waiting).await.unwrap().unwrap();

    let held = on_first.hold(std::future::pending::<()>());
    let ending = async {
        assert!(stage.end_process(first_process));
    };
    let (ended, ()) = soon(async { tokio::join!(held, ending) }).await;
    let error = ended.unwrap_err();
    assert!(error.is_lost(), "{error}");
    assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
    assert!(!on_first.is_held());
    assert!(soon(on_first.lost()).await.is_lost());
    assert!(soon(on_first.unlock()).await.unwrap_err().is_lost());

    assert!(on_second.is_held());
    // And nothing else has happened.
    let again = soon(alice.lock(stage.key())).await.unwrap();
    assert_eq!(stage.locks(), ["alice holds exclusive", "alice holds exclusive (7003, 1)"]);
    drop((again, on_second));
}

#[tokio::test]
async fn those_who_wait_outlast_a_restart_of_the_server() {
    let mut cluster = Settings::new().start();
    let url = cluster.url_for(&role::TRUST);
    let config: Config = url.parse().unwrap();
    let (alice, bob) = (LockManager::new(config.clone()), LockManager::new(config.clone()));
    let guard = soon(bob.lock("restart")).await.unwrap();
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.lock("restart").await }
    });
    let mut look = cluster.raw();
    eventually("alice waits", PATIENCE, || {
        look.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            == "1"
    })
    .await;
    drop(look);
    cluster.stop(Shutdown::Fast);
    assert!(soon(guard.lost()).await.is_lost());
    // Who has no patience is told why, and so is who runs out of it.
    let error = soon(bob.try_lock("other")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    let error = soon(bob.lock_timeout("other", SHORT)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    cluster.start();
    drop(soon(waiting).await.unwrap().unwrap());
    drop(guard);
}

#[tokio::test]
async fn what_waiting_will_not_mend_is_told_at_once() {
    let stage = Stage::new();
    let mut config = stage.config("alice");
    config.user("nobody_of_this_name");
    let manager = LockManager::new(config);
    for _ in 0..2 {
        let error = soon(manager.lock(stage.key())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        assert!(error.to_string().contains("exclusive lock on key"), "{error}");
    }
}

#[tokio::test]
async fn closing_ends_everything() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let busy = soon(bob.lock((7_004, 1))).await.unwrap();
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.lock((7_004, 1)).await }
    });
    stage
        .until(&[
            "alice awaits exclusive (7004, 1)",
            "alice holds exclusive",
            "bob holds exclusive (7004, 1)",
        ])
        .await;
    soon(alice.close()).await.unwrap();
    assert_eq!(stage.locks(), ["bob holds exclusive (7004, 1)"]);
    assert_eq!(soon(waiting).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert!(!guard.is_held());
    for error in [
        soon(guard.lost()).await,
        soon(guard.hold(async {})).await.unwrap_err(),
        soon(guard.fencing_token()).await.unwrap_err(),
        soon(guard.unlock()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        assert!(error.is_lost(), "{error}");
    }
    let error = soon(alice.try_lock(stage.key())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    assert!(!error.is_lost(), "nothing was held by {error}");
    soon(alice.close()).await.unwrap();
    drop(busy);
}

#[tokio::test]
async fn sessions_end_with_the_last_handle_and_guard() {
    let mut stage = Stage::new();
    let alice = stage.manager("alice");
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    drop(alice.clone());
    drop(alice);
    assert!(guard.is_held());
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    drop(guard);
    eventually("no session is left", PATIENCE, || stage.sessions() == 0).await;
}

#[test]
fn guards_know_when_the_runtime_has_ended() {
    let mut stage = Stage::new();
    let alice = stage.manager("alice");
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let guard = runtime.block_on(soon(alice.lock(stage.key()))).unwrap();
    assert!(guard.is_held());
    drop(runtime);
    assert!(!guard.is_held());
    drop(guard);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(soon(alice.lock(stage.key()))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    assert!(error.to_string().contains("the runtime has ended"), "{error}");
    let error = runtime.block_on(soon(alice.inspect(stage.key()))).unwrap_err();
    assert!(error.to_string().contains("the runtime has ended"), "{error}");
    runtime.block_on(stage.until(&[]));
}

/// What has a time limit needs a clock.
#[test]
fn guards_and_waits_can_be_polled_where_there_is_no_runtime() {
    let mut stage = Stage::new();
    let mut config = stage.config("alice");
    if stage.major_version() >= ENDS_SILENT_SESSIONS {
        config.lease(Duration::from_secs(20));
    }
    let alice = LockManager::new(config);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let guard = runtime.block_on(soon(alice.lock(stage.key()))).unwrap();
    assert!(poll_here(alice.lock_timeout(stage.key(), SHORT)).unwrap().is_none());
    let other = poll_here(alice.lock_timeout((7_012, 1), PATIENCE)).unwrap().unwrap();
    poll_here(other.unlock()).unwrap();
    assert_eq!(poll_here(guard.hold(async { 7 })).unwrap(), 7);
    let mut lost = pin!(guard.lost());
    assert!(lost.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    stage.terminate("alice");
    assert!(poll_here(lost).is_lost());
}

#[tokio::test]
async fn tokens_rise_from_guard_to_guard() {
    let stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let mut tokens = Vec::new();
    for turn in 0..10 {
        let manager = if turn % 2 == 0 { &alice } else { &bob };
        let guard = soon(manager.lock(stage.key())).await.unwrap();
        tokens.push(soon(guard.fencing_token()).await.unwrap());
        soon(guard.unlock()).await.unwrap();
    }
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "{tokens:?}");
}

/// The session does nothing else before the token is there, which it will not be for long.
#[tokio::test]
async fn work_does_not_wait_for_a_token_that_somebody_takes() {
    let cluster = server_without_its_standby();
    let mut stage = Stage::on(&cluster);
    let manager = stage.manager("alice");
    let keys = [stage.key(), Key::pair(7_016, 1)];
    let set = Arc::new(soon(manager.lock_all(keys)).await.unwrap());
    let guard = soon(manager.lock((7_016, 2))).await.unwrap();
    let token = tokio::spawn({
        let set = Arc::clone(&set);
        async move { set.fencing_token().await }
    });
    alice_waits_for_a_standby(&mut stage).await;
    let held = timeout(AT_ONCE, guard.hold(async { 7 })).await;
    assert_eq!(held.expect("a guard's work goes on").unwrap(), 7);
    let held = timeout(AT_ONCE, set.hold(async { 8 })).await;
    assert_eq!(held.expect("a set's work goes on").unwrap(), 8);
    assert!(!token.is_finished());
    token.abort();
}

#[tokio::test]
async fn a_reset_connection_ends_the_work_under_its_guard() {
    let stage = Stage::new();
    let cluster = Cluster::default_cluster();
    let proxy = Proxy::start(cluster.port());
    let url = cluster.url_for(&role::TRUST);
    let url = url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", proxy.port()));
    let alice = LockManager::new(stage.config_by(&url, "alice"));
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    let work = guard.hold(async {
        proxy.break_all(Break::Reset);
        std::future::pending::<()>().await;
    });
    assert!(soon(work).await.unwrap_err().is_lost());
}

/// The runtime has no time for its sockets: the work, which never waits, is all that it sees.
#[test]
fn work_that_leaves_the_runtime_no_time_stops_with_its_guard() {
    for is_of_a_set in [false, true] {
        const LAST_STEP: u32 = 3;
        let mut stage = Stage::new();
        let manager = LockManager::new(stage.config("alice"));
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_all().event_interval(u32::MAX).build().unwrap();
        let holding = runtime.spawn(async move {
            let (key, mut steps) = (stage.key(), 0);
            let work = poll_fn(|cx| {
                steps += 1;
                if steps == LAST_STEP {
                    stage.terminate("alice");
                    wait_until("the session is gone", PATIENCE, || stage.sessions() == 0);
                }
                cx.waker().wake_by_ref();
                if steps < 2 * LAST_STEP { Poll::Pending } else { Poll::Ready(()) }
            });
            let ended = if is_of_a_set {
                manager.lock_all([key, Key::pair(7_106, 1)]).await.unwrap().hold(work).await
            } else {
                manager.lock(key).await.unwrap().hold(work).await
            };
            (ended, steps)
        });
        let (ended, steps) = runtime.block_on(holding).unwrap();
        assert!(ended.unwrap_err().is_lost());
        assert_eq!(steps, LAST_STEP, "of a set: {is_of_a_set}");
    }
}

/// How `actor` connects through this proxy.
fn config_through(proxy: &Proxy, stage: &Stage<'_>, actor: &str) -> Config {
    let cluster = Cluster::default_cluster();
    let url = cluster.url_for(&role::TRUST);
    let [from, to] = [cluster.port(), proxy.port()].map(|port| format!(":{port}/"));
    stage.config_by(&url.replace(&from, &to), actor)
}

#[tokio::test]
async fn a_silent_network_ends_a_guard_with_its_lease() {
    if Stage::new().major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    for is_request_under_way in [false, true] {
        let is_early = undisturbed(async || is_next_early(is_request_under_way).await).await;
        assert!(!is_early, "under way: {is_request_under_way}");
    }
}

/// Whether somebody else can have the lock before its holder knows that it is lost.
async fn is_next_early(is_request_under_way: bool) -> bool {
    let mut stage = Stage::new();
    let proxy = Proxy::start(Cluster::default_cluster().port());
    let mut config = config_through(&proxy, &stage, "alice");
    config.lease(LONGER_LEASE);
    let alice = LockManager::new(config);
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    // Heartbeats keep it for longer than the lease.
    timeout(LONGER_LEASE * 6 / 5, guard.lost()).await.expect_err("nothing was lost");
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    let other = soon(alice.lock(-stage.number())).await.unwrap();
    let bob = stage.manager("bob");
    let next = tokio::spawn({
        let key = stage.key();
        async move { bob.lock(key).await }
    });
    proxy.set_both(Traffic::Silent);
    if is_request_under_way {
        drop(other);
    }
    let ended = soon(guard.hold(std::future::pending::<()>())).await;
    assert!(ended.unwrap_err().is_lost());
    assert!(!guard.is_held());
    let is_early = next.is_finished();
    drop(soon(next).await.unwrap().unwrap());
    proxy.set_both(Traffic::Flows);
    is_early
}

#[tokio::test]
async fn closing_does_not_wait_for_an_answer_that_does_not_come() {
    let stage = Stage::new();
    let proxy = Proxy::start(Cluster::default_cluster().port());
    let alice = LockManager::new(config_through(&proxy, &stage, "alice"));
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    proxy.set_both(Traffic::Silent);
    drop(guard);
    // The server is asked to release it.
    yield_now().await;
    let error = soon(alice.close()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("did not answer a request within 10 s"), "{error}");
    proxy.set_both(Traffic::Flows);
}

/// The server's word that the session is over has come, and the runtime has not looked at its sockets
/// since: its thread waits until Carol has the lock.
#[tokio::test]
async fn a_lock_does_not_go_on_to_others_on_a_session_that_has_ended() {
    for mode in [Mode::Exclusive, Mode::Shared] {
        let mut stage = Stage::new();
        let key = stage.key();
        let alice = LockManager::builder(stage.config("alice")).hand_overs(64, PATIENCE).build();
        let next = |alice: LockManager| async move {
            match mode {
                Mode::Exclusive => alice.lock(key).await,
                Mode::Shared => alice.lock_shared(key).await,
            }
        };
        let first = soon(next(alice.clone())).await.unwrap();
        // A writer is in the queue, and a reader joins who comes later.
        let mut waiting = (mode == Mode::Exclusive).then(|| tokio::spawn(next(alice.clone())));
        while alice.stats().waiting < u64::from(waiting.is_some()) {
            yield_now().await;
        }
        let (has_it, is_taken) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        stage.terminate("alice");
        let config = stage.config("carol");
        let carol = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut carol = Lock::connect(&config, key).await.unwrap();
                carol.lock().await.unwrap();
                has_it.send(()).unwrap();
                released.recv().unwrap();
                carol.unlock().await.unwrap();
            });
        });
        is_taken.recv_timeout(PATIENCE).unwrap();
        drop(first);
        let waiting = waiting.take().unwrap_or_else(|| tokio::spawn(next(alice.clone())));
        let awaits = format!("alice awaits {mode}");
        stage.until(&[&awaits, "carol holds exclusive"]).await;
        assert!(!waiting.is_finished());
        release.send(()).unwrap();
        drop(soon(waiting).await.unwrap().unwrap());
        carol.join().unwrap();
    }
}

#[tokio::test]
async fn tasks_that_want_the_same_key_take_one_session_through_a_pooler() {
    let mut stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 10);
    let alice = LockManager::new(stage.config_by(&bouncer.url_for(&role::TRUST), "alice"));
    let first = soon(alice.lock(-stage.number())).await.unwrap();
    let busy = soon(stage.manager("bob").lock(stage.key())).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let (alice, key) = (alice.clone(), stage.key());
        tasks.spawn(async move { drop(alice.lock(key).await.unwrap()) });
    }
    let other = format!("alice holds exclusive {}", -stage.number());
    stage.until(&["alice awaits exclusive", &other, "bob holds exclusive"]).await;
    assert_eq!(alice.stats().sessions, 2);
    drop(busy);
    while let Some(task) = soon(tasks.join_next()).await {
        task.unwrap();
    }
    drop(first);
}

#[tokio::test]
async fn a_pooler_lends_a_server_connection_for_each_key() {
    let mut stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 5);
    let url = bouncer.url_for(&role::TRUST);
    let alice = LockManager::builder(stage.config_by(&url, "alice")).max_sessions(4).build();
    let mut guards = Vec::new();
    for object in 0..4 {
        guards.push(soon(alice.lock((7_005, object))).await.unwrap());
    }
    assert_eq!(stage.locks().len(), 4);
    // There is no session for another key before one is free.
    let error = soon(alice.try_lock((7_005, 4))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.lock((7_005, 4)).await }
    });
    let key = guards.pop().unwrap().key();
    let last = soon(waiting).await.unwrap().unwrap();
    assert_ne!(last.key(), key);
    drop((guards, last));
    stage.until(&[]).await;
    soon(alice.close()).await.unwrap();
}

/// Nobody knows yet that there is a pooler when they are asked for, and all wait for the first session.
#[tokio::test]
async fn who_does_not_wait_is_turned_away_where_a_pooler_leaves_too_few_sessions() {
    let mut stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 5);
    let config = stage.config_by(&bouncer.url_for(&role::TRUST), "alice");
    let alice = LockManager::builder(config).max_sessions(2).build();
    let keys = (0..3).map(|object| (7_014, object));
    let error = soon(alice.try_lock_all(keys)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    stage.until(&[]).await;
    soon(alice.close()).await.unwrap();
}

/// Bob has the only server connection of the pool, and Alice's sessions ask for one.
#[tokio::test]
async fn closing_does_not_wait_for_a_pooler_that_has_no_server_connection() {
    let stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 1);
    let pooled = |actor| LockManager::new(stage.config_by(&bouncer.url_for(&role::TRUST), actor));
    let (alice, bob) = (pooled("alice"), pooled("bob"));
    soon(soon(alice.lock((7_015, 1))).await.unwrap().unlock()).await.unwrap();
    let guard = soon(bob.lock((7_015, 2))).await.unwrap();
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.lock((7_015, 1)).await }
    });
    eventually("Alice asks for the key", PATIENCE, || alice.stats().waiting > 0).await;
    let closed = timeout(CLOSE_WITHIN / 2, alice.close()).await;
    closed.expect("it does not wait").unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    soon(guard.unlock()).await.unwrap();
}

/// A pool with so few server connections, and a manager with so many sessions.
fn small_pool(stage: &Stage<'_>, size: u32, sessions: usize) -> (PgBouncer, LockManager) {
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, size);
    let config = stage.config_by(&bouncer.url_for(&role::TRUST), "alice");
    (bouncer, LockManager::builder(config).max_sessions(sessions).build())
}

/// Another program's transaction, which keeps a server connection of the pool.
fn occupy(bouncer: &PgBouncer) -> Raw {
    let mut occupant = bouncer.raw(&role::TRUST, "app");
    occupant.rows("BEGIN");
    occupant
}

/// The session of a request that is given up in the pooler's queue is free if it is served soon.
#[tokio::test]
async fn whoever_asks_next_gets_the_session_of_a_request_that_a_pooler_did_not_serve() {
    for is_for_one_of_several in [false, true] {
        let stage = Stage::new();
        let size = if is_for_one_of_several { 2 } else { 1 };
        let (bouncer, alice) = small_pool(&stage, size, size.try_into().unwrap());
        let semaphore = alice.semaphore(&format!("small pool {}", stage.number()), 2);
        let mut occupant;
        if is_for_one_of_several {
            // Its name takes one session, and each permit another.
            soon(soon(semaphore.acquire()).await.unwrap().release()).await.unwrap();
            occupant = occupy(&bouncer);
            assert!(timeout(SHORT, semaphore.try_acquire()).await.is_err());
        } else {
            soon(soon(alice.lock(stage.key())).await.unwrap().unlock()).await.unwrap();
            occupant = occupy(&bouncer);
            assert!(soon(alice.lock_timeout(stage.key(), SHORT)).await.unwrap().is_none());
        }
        let connects = alice.stats().connects;
        // Once the next request is made.
        let served = async { drop(occupant.rows("COMMIT")) };
        let (next, ()) =
            soon(async { tokio::join!(alice.try_lock(-stage.number()), served) }).await;
        let guard = next.unwrap().expect("nobody else wants it");
        assert_eq!(alice.stats().connects, connects);
        soon(guard.unlock()).await.unwrap();
    }
}

/// It ends with nothing to lose, and the next request has another one.
#[tokio::test]
async fn a_session_that_a_pooler_does_not_serve_ends_with_its_request() {
    let stage = Stage::new();
    let (bouncer, alice) = small_pool(&stage, 1, 1);
    soon(soon(alice.lock(stage.key())).await.unwrap().unlock()).await.unwrap();
    let mut occupant = occupy(&bouncer);
    assert!(soon(alice.lock_timeout(stage.key(), SHORT)).await.unwrap().is_none());
    let ended = async { eventually("it ends", PATIENCE, || alice.stats().sessions == 0).await };
    timeout(NOT_SERVED_WITHIN, ended).await.expect("it does not wait to be served");
    assert_eq!(alice.stats().lost_sessions, 0);
    occupant.rows("COMMIT");
    let guard = soon(alice.try_lock(stage.key())).await.unwrap().expect("it is free");
    soon(guard.unlock()).await.unwrap();
}

/// All server connections of the pool are lent, whether another session has to be opened or not.
#[tokio::test]
async fn whoever_does_not_wait_does_not_wait_for_a_pooler_either() {
    let stage = Stage::new();
    let needs_sessions = async {
        let (_bouncer, alice) = small_pool(&stage, 1, 4);
        let guard = soon(alice.lock((7_018, 1))).await.unwrap();
        let set = alice.lock_all_timeout([(7_018, 3), (7_018, 4)], Duration::ZERO);
        tokio::join!(assert_not_served(alice.try_lock((7_018, 2))), assert_not_served(set));
        assert!(guard.is_held());
    };
    let has_session = async {
        let (bouncer, alice) = small_pool(&stage, 1, 1);
        soon(soon(alice.lock((7_018, 5))).await.unwrap().unlock()).await.unwrap();
        let _occupant = occupy(&bouncer);
        assert_not_served(alice.try_lock_shared((7_018, 6))).await;
    };
    let wants_permit = async {
        let (bouncer, alice) = small_pool(&stage, 2, 2);
        let semaphore = alice.semaphore(&format!("not served {}", stage.number()), 2);
        soon(soon(semaphore.acquire()).await.unwrap().release()).await.unwrap();
        let _occupant = occupy(&bouncer);
        assert_not_served(semaphore.try_acquire()).await;
    };
    tokio::join!(needs_sessions, has_session, wants_permit);
}

async fn assert_not_served<T>(tried: impl Future<Output = pglock::Result<Option<T>>>) {
    let tried = timeout(NOT_SERVED_WITHIN, tried).await.expect("it does not wait");
    let error = tried.map(|tried| tried.is_some()).unwrap_err();
    assert_eq!((error.kind(), error.is_lost()), (ErrorKind::Timeout, false), "{error}");
    assert!(error.to_string().contains("the pooler had no free server connection"), "{error}");
}

/// It sleeps for no more than the test's own time.
#[tokio::test]
async fn work_under_a_guard_returns_what_it_comes_to() {
    let stage = Stage::new();
    let guard = soon(stage.manager("alice").lock(stage.key())).await.unwrap();
    let done = soon(guard.hold(async {
        sleep(SHORT).await;
        7
    }));
    assert_eq!(done.await.unwrap(), 7);
    soon(guard.unlock()).await.unwrap();
}

#[tokio::test]
async fn a_full_lock_table_is_told_and_what_was_held_stays_held() {
    // As many connections as PostgreSQL allows if nothing is said, which the size of its table follows.
    let cluster = Settings::new().set("max_connections", "100").start();
    let config: Config = cluster.url_for(&role::TRUST).parse().unwrap();
    let alice = LockManager::new(config);
    let mut look = cluster.raw();
    let (mut guards, mut refused) = (Vec::new(), 0);
    // All at once, so that many are under way when one fails.
    for first in (0..100_000).step_by(1_000) {
        if refused > 0 {
            break;
        }
        let mut tasks = JoinSet::new();
        for object in first..first + 1_000 {
            let alice = alice.clone();
            tasks.spawn(async move { alice.lock((7_006, object)).await });
        }
        while let Some(locked) = next_to_end(&mut tasks, || alice.stats().requests).await {
            match locked {
                Ok(guard) => guards.push(guard),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::OutOfLockMemory, "{error}");
                    assert!(!error.is_lost());
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 0 && guards.len() > 100, "{refused} refused, {} held", guards.len());
    assert!(guards.iter().all(Guard::is_held));
    // The table is too full to be looked at before there is some room in it.
    let released = guards.split_off(guards.len() / 2);
    drop(released);
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    eventually("the rest is held", PATIENCE, || {
        look.try_rows(held)
            .is_ok_and(|rows| rows[0][0].as_deref() == Some(guards.len().to_string().as_str()))
    })
    .await;
    soon(alice.close()).await.unwrap();
}

#[tokio::test]
async fn readers_join_until_another_process_waits() {
    let mut stage = Stage::new();
    // No hand-over without asking the server whether anybody waits.
    let alice = LockManager::builder(stage.config("alice")).hand_overs(0, Duration::ZERO).build();
    let bob = stage.manager("bob");
    let mut readers = Vec::new();
    for _ in 0..3 {
        readers.push(soon(alice.try_lock_shared(stage.key())).await.unwrap().unwrap());
        readers.push(soon(alice.lock_shared(stage.key())).await.unwrap());
    }
    let writer = tokio::spawn({
        let (bob, key) = (bob.clone(), stage.key());
        async move { bob.lock(key).await }
    });
    stage.until(&["alice holds shared", "bob awaits exclusive"]).await;
    assert!(soon(alice.try_lock_shared(stage.key())).await.unwrap().is_none());
    let late = tokio::spawn({
        let (alice, key) = (alice.clone(), stage.key());
        async move { alice.lock_shared(key).await }
    });
    drop(readers);
    let writer = soon(writer).await.unwrap().unwrap();
    assert!(!late.is_finished());
    soon(writer.unlock()).await.unwrap();
    drop(soon(late).await.unwrap().unwrap());
}

#[tokio::test]
async fn who_holds_a_key_is_told_without_a_lock() {
    let mut stage = Stage::new();
    let [alice, bob, eve] = ["alice", "bob", "eve"].map(|actor| stage.manager(actor));
    // By a manager that has not connected yet.
    assert_eq!(soon(eve.inspect(stage.key())).await.unwrap().to_string(), "nobody holds it");
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    let waits = ["bob awaits exclusive", "eve awaits exclusive"];
    let waiting = [&bob, &eve].map(|manager| {
        let (manager, key) = (manager.clone(), stage.key());
        tokio::spawn(async move { manager.lock(key).await.map(drop) })
    });
    stage.until(&["alice holds exclusive", waits[0], waits[1]]).await;
    // By the holder, and by one who waits.
    for manager in [&alice, &eve] {
        let holders = soon(manager.inspect(stage.key())).await.unwrap();
        assert_eq!((holders.count(), holders.waiting()), (1, 2));
        let holder = &holders.holders()[0];
        assert_eq!(holder.process_id(), Some(stage.pid("alice")));
        assert_eq!(
            (holder.mode(), Some(stage.application_name("alice").as_str())),
            (Mode::Exclusive, holder.application_name())
        );
    }
    assert_eq!(stage.locks(), ["alice holds exclusive", waits[0], waits[1]]);
    // The session of the shared keys is lost, and another is asked instead.
    drop(guard);
    for waiting in waiting {
        soon(waiting).await.unwrap().unwrap();
    }
    stage.until(&[]).await;
    stage.terminate("alice");
    assert_eq!(soon(alice.inspect(stage.key())).await.unwrap().count(), 0);
    soon(alice.close()).await.unwrap();
    assert_eq!(soon(alice.inspect(stage.key())).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn who_holds_a_key_is_not_told_where_nobody_can_be_asked() {
    let mut cluster = Settings::new().start();
    let config: Config = cluster.url_for(&role::TRUST).parse().unwrap();
    let manager = LockManager::new(config);
    assert_eq!(soon(manager.inspect("key")).await.unwrap().count(), 0);
    cluster.stop(Shutdown::Fast);
    let error = soon(manager.inspect("key")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    cluster.start();
    assert_eq!(soon(manager.inspect("key")).await.unwrap().count(), 0);
}

#[tokio::test]
async fn through_a_pooler_a_session_that_is_free_asks_who_holds_a_key() {
    let stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 3);
    let config = stage.config_by(&bouncer.url_for(&role::TRUST), "alice");
    let alice = LockManager::builder(config).max_sessions(2).build();
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    let holders = soon(alice.inspect(stage.key())).await.unwrap();
    assert_eq!((holders.count(), holders.waiting()), (1, 0));
    let other = soon(alice.lock((7_007, 1))).await.unwrap();
    let error = soon(alice.inspect(stage.key())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    soon(other.unlock()).await.unwrap();
    assert_eq!(soon(alice.inspect(stage.key())).await.unwrap().count(), 1);
    assert!(guard.is_held());
    soon(guard.unlock()).await.unwrap();
}

/// While a request is under way, the server does not count; but the holder does.
#[tokio::test]
async fn a_session_that_was_said_to_be_lost_is_not_used_again() {
    let cluster = server_without_its_standby();
    let stage = Stage::on(&cluster);
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut config = stage.config("alice");
    config.lease(Duration::from_secs(3));
    let alice = LockManager::new(config);
    let guard = Arc::new(soon(alice.lock(stage.key())).await.unwrap());
    let token = tokio::spawn({
        let guard = Arc::clone(&guard);
        async move { guard.fencing_token().await }
    });
    eventually("the lease is over", PATIENCE, || !guard.is_held()).await;
    token.abort();
    assert!(soon(guard.lost()).await.is_lost());
    drop(guard);
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    assert!(guard.is_held());
    soon(guard.unlock()).await.unwrap();
    assert_eq!(alice.stats().lost_sessions, 1);
}

/// The server has not heard that it is withdrawn either, and counts from the last request that it answered.
#[tokio::test]
async fn a_guard_is_not_held_beyond_its_lease_while_a_token_is_being_withdrawn() {
    let stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let proxy = Proxy::start(Cluster::default_cluster().port());
    let mut config = stage.config("alice");
    config.hosts([("127.0.0.1", proxy.port())]).sslmode(SslMode::Disable);
    config.lease(Duration::from_secs(2));
    let alice = LockManager::new(config);
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    let mut bob = stage.lock("bob").await;
    proxy.set_both(Traffic::Silent);
    timeout(SHORT, guard.fencing_token()).await.expect_err("nothing is answered");
    soon(bob.lock()).await.unwrap();
    assert!(!guard.is_held(), "both have it");
}

/// A lock goes from task to task while it is told that its session is over.
#[test]
fn whoever_waits_does_not_hear_of_a_session_that_was_lost_before() {
    const LOSSES: u32 = 100;
    let stage = Stage::new();
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let (alice, key) = (stage.manager("alice"), stage.key());
    let is_over = Arc::new(AtomicBool::new(false));
    let contend = || {
        let (alice, is_over) = (alice.clone(), Arc::clone(&is_over));
        async move {
            while !is_over.load(Ordering::SeqCst) {
                drop(alice.lock(key).await?);
                yield_now().await;
            }
            Ok::<_, Error>(())
        }
    };
    let contenders: Vec<_> = (0..8).map(|_| runtime.spawn(contend())).collect();
    let mut admin = Cluster::default_cluster().raw();
    let name = stage.application_name("alice");
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'"
    );
    for _ in 0..LOSSES {
        admin.rows(&end);
        thread::sleep(Duration::from_millis(15));
    }
    is_over.store(true, Ordering::SeqCst);
    for contender in contenders {
        runtime.block_on(async { soon(contender).await }).unwrap().unwrap();
    }
}

/// Nothing could be lost with its lease yet, and its place in the server's queue would be.
#[tokio::test]
async fn a_wait_lasts_for_longer_than_a_lease() {
    const LEASE: Duration = Duration::from_secs(3);
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut bob = stage.lock("bob").await;
    bob.lock().await.unwrap();
    let mut config = stage.config("alice");
    config.lease(LEASE);
    let alice = LockManager::new(config);
    let waiting = tokio::spawn({
        let (alice, key) = (alice.clone(), stage.key());
        async move { alice.lock(key).await }
    });
    stage.until(&["alice awaits exclusive", "bob holds exclusive"]).await;
    let process = stage.waiter("alice");
    sleep(2 * LEASE).await;
    assert_eq!(stage.waiter("alice"), process);
    bob.unlock().await.unwrap();
    let guard = soon(waiting).await.unwrap().unwrap();
    // From then on, heartbeats keep it.
    sleep(2 * LEASE).await;
    soon(guard.unlock()).await.unwrap();
}

#[tokio::test]
async fn an_error_names_the_server_the_key_and_what_that_is_for() {
    let mut stage = Stage::new();
    let cluster = Cluster::default_cluster();
    let server = format!("127.0.0.1 port {}", cluster.port());
    let key = stage.key();
    let rejected = stage.config_by(&cluster.url_for(&role::REJECTED), "alice");
    let error = soon(LockManager::new(rejected).lock(key)).await.unwrap_err();
    let expected =
        format!("exclusive lock on key {key}: connecting to {server}: the server refused");
    assert!(error.to_string().starts_with(&expected), "{error}");

    let alice = stage.manager("alice");
    let guard = soon(alice.lock(key)).await.unwrap();
    let permit = soon(alice.semaphore("named", 1).acquire()).await.unwrap();
    stage.terminate("alice");
    let ended = format!("session with {server}: the server ended the session");
    let error = soon(guard.lost()).await;
    let expected = format!("exclusive lock on key {key}: {ended}");
    assert!(error.to_string().starts_with(&expected), "{error}");
    let error = soon(permit.lost()).await;
    let lock = format!("exclusive lock on key {}", permit.key());
    let expected = format!("semaphore \"named\": permit 0: {lock}: {ended}");
    assert!(error.to_string().starts_with(&expected), "{error}");

    // What the session said of the key is not said again.
    let alice = stage.manager("alice");
    let mut bob = stage.lock("bob").await;
    bob.lock().await.unwrap();
    let waiting = tokio::spawn(async move { alice.lock(key).await });
    stage.until(&["alice awaits exclusive", "bob holds exclusive"]).await;
    let process = stage.waiter("alice");
    cluster.raw().value(&format!("SELECT pg_cancel_backend({process})"));
    let error = soon(waiting).await.unwrap().unwrap_err();
    let expected = format!("exclusive lock on key {key} at {server}: the server refused");
    assert!(error.to_string().starts_with(&expected), "{error}");
}
