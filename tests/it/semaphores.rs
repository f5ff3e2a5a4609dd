//! So many at a time, of all processes: semaphores, on real servers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use pglock::{ErrorKind, Key, LockManager, Permit, Semaphore};
use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, Proxy, Settings, Shutdown, Traffic, Way};
use pglock_test_cluster::{eventually, role};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use crate::processes::{Part, Process};
use crate::stage::{NOTICED_WITHIN, PATIENCE, Stage, next_to_end, poll_here, sometime, soon};

/// Long enough for a request to reach the server's queue, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);
/// What the second number of a key is for.
const TURNSTILE: i32 = -1;

/// A name that no other test uses.
fn name(stage: &Stage<'_>) -> String {
    format!("semaphore of {}", stage.key())
}

/// The key of this second number, of the semaphore that has a permit.
fn key(permit: &Permit, object: i32) -> Key {
    let class = permit.key().to_string();
    let class = class.trim_start_matches('(').split(',').next().unwrap();
    Key::pair(class.parse().unwrap(), object)
}

/// As many permits as there are.
async fn all_of(semaphore: &Semaphore, permits: usize) -> Vec<Permit> {
    let mut all = Vec::new();
    for _ in 0..permits {
        all.push(soon(semaphore.acquire()).await.unwrap());
    }
    all
}

#[tokio::test]
async fn so_many_have_a_permit_and_each_a_slot_of_its_own() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let (hers, his) = (alice.semaphore(&name(&stage), 3), bob.semaphore(&name(&stage), 3));
    let first = soon(hers.acquire()).await.unwrap();
    let second = soon(his.try_acquire()).await.unwrap().unwrap();
    let third = soon(hers.acquire_timeout(PATIENCE)).await.unwrap().unwrap();
    let slots = BTreeSet::from([&first, &second, &third].map(Permit::slot));
    assert_eq!(slots, BTreeSet::from([0, 1, 2]));
    assert!(first.is_held());
    for semaphore in [&hers, &his] {
        assert!(soon(semaphore.try_acquire()).await.unwrap().is_none());
        assert!(soon(semaphore.acquire_timeout(SHORT)).await.unwrap().is_none());
        assert!(soon(semaphore.acquire_timeout(Duration::ZERO)).await.unwrap().is_none());
    }
    let mut expected = [
        format!("alice holds exclusive {}", first.key()),
        format!("alice holds exclusive {}", third.key()),
        format!("bob holds exclusive {}", second.key()),
        format!("alice holds shared {}", key(&first, -4)),
        format!("bob holds shared {}", key(&first, -4)),
    ];
    expected.sort();
    stage.until(&expected.each_ref().map(String::as_str)).await;

    let slot = second.slot();
    soon(second.release()).await.unwrap();
    let next = soon(hers.try_acquire()).await.unwrap().unwrap();
    assert_eq!(next.slot(), slot);
    assert_eq!(soon(next.hold(async { 7 })).await.unwrap(), 7);
    let tokens =
        [soon(next.fencing_token()).await.unwrap(), soon(first.fencing_token()).await.unwrap()];
    assert!(tokens[0] < tokens[1]);
    drop((first, next, third));
    drop((hers, his));
    stage.until(&[]).await;
}

/// Managers in threads of their own stand for processes.
#[test]
fn no_slot_is_taken_twice_and_everybody_is_served() {
    const PERMITS: usize = 5;
    const TASKS: usize = 20;
    const TURNS: usize = 10;
    let stage = Stage::new();
    let slots = [const { AtomicBool::new(false) }; PERMITS];
    let (inside, most, served) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let contend = |actor: &str| {
        let manager = stage.manager(actor);
        let semaphore = manager.semaphore(&name(&stage), 5);
        let task = async |number: usize| {
            for turn in 0..TURNS {
                let permit = if (number + turn) % 3 == 0 {
                    semaphore.acquire_timeout(PATIENCE).await.unwrap().unwrap()
                } else {
                    semaphore.acquire().await.unwrap()
                };
                let slot = usize::try_from(permit.slot()).unwrap();
                assert!(!slots[slot].swap(true, SeqCst), "slot {slot} is taken twice");
                most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                for _ in 0..=turn {
                    yield_now().await;
                }
                inside.fetch_sub(1, SeqCst);
                slots[slot].store(false, SeqCst);
                served.fetch_add(1, SeqCst);
                if turn % 2 == 0 { permit.release().await.unwrap() } else { drop(permit) }
            }
        };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut tasks: Vec<_> = (0..TASKS).map(|number| Box::pin(task(number))).collect();
            let all = std::future::poll_fn(|cx| {
                tasks.retain_mut(|task| task.as_mut().poll(cx).is_pending());
                if tasks.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            });
            sometime(all, || served.load(SeqCst)).await;
        });
    };
    thread::scope(|scope| {
        for actor in ["alice", "bob", "carol"] {
            scope.spawn(move || contend(actor));
        }
    });
    assert_eq!(served.into_inner(), 3 * TASKS * TURNS);
    assert!(most.into_inner() <= PERMITS);
}

#[tokio::test]
async fn tasks_of_a_process_are_served_in_their_turn() {
    let mut stage = Stage::new();
    let alice = stage.manager("alice");
    let semaphore = alice.semaphore(&name(&stage), 2);
    let first = all_of(&semaphore, 2).await;
    let (turns, mut taken) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for number in 0..200 {
        let (semaphore, turns) = (semaphore.clone(), turns.clone());
        tasks.spawn(async move {
            let permit = semaphore.acquire().await.unwrap();
            turns.send(number).unwrap();
            drop(permit);
        });
        // Each asks before the next one is there.
        yield_now().await;
    }
    assert!(soon(semaphore.try_acquire()).await.unwrap().is_none());
    drop(first);
    drop(turns);
    while next_to_end(&mut tasks, || taken.len()).await.is_some() {}
    let mut order = Vec::new();
    soon(taken.recv_many(&mut order, 1_000)).await;
    assert_eq!(order, (0..200).collect::<Vec<_>>());
    drop(semaphore);
    stage.until(&[]).await;
}

/// The server has granted a slot before the client has an answer to anything.
#[tokio::test]
async fn one_free_slot_among_many_is_found_in_one_round_trip() {
    let mut stage = Stage::new();
    let cluster = Cluster::default_cluster();
    let proxy = Proxy::start(cluster.port());
    let url = cluster.url_for(&role::TRUST);
    let url = url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", proxy.port()));
    let alice = LockManager::new(stage.config_by(&url, "alice"));
    let (hers, his) =
        (alice.semaphore(&name(&stage), 100), stage.manager("bob").semaphore(&name(&stage), 100));
    soon(hers.acquire()).await.unwrap().release().await.unwrap();
    let all_but_one = all_of(&his, 99).await;
    assert_eq!(all_but_one.iter().map(Permit::slot).collect::<BTreeSet<_>>().len(), 99);
    stage.until_count(101).await;
    proxy.set(Way::ToClient, Traffic::Silent);
    let trying = tokio::spawn({
        let hers = hers.clone();
        async move { hers.try_acquire().await }
    });
    stage.until_count(102).await;
    assert!(!trying.is_finished());
    proxy.set(Way::ToClient, Traffic::Flows);
    assert!(soon(trying).await.unwrap().unwrap().is_some());
}

#[tokio::test]
async fn one_waiter_of_a_process_is_in_the_servers_queue() {
    let mut stage = Stage::new();
    let semaphore = |actor: &str| stage.manager(actor).semaphore(&name(&stage), 1);
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(semaphore);
    let permit = soon(carol.acquire()).await.unwrap();
    let mut waits = JoinSet::new();
    for semaphore in [&alice, &bob] {
        for _ in 0..10 {
            let semaphore = semaphore.clone();
            waits.spawn(async move { semaphore.acquire().await.map(drop) });
        }
    }
    let turnstile = key(&permit, TURNSTILE).to_string();
    let mut at_turnstile = || {
        let mut locks = stage.locks();
        locks.retain(|lock| lock.ends_with(&turnstile));
        locks.iter().map(|lock| lock.split(' ').nth(1).unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut expected = vec!["awaits", "holds"];
    eventually("one of them tries, and one waits", PATIENCE, || {
        let mut found = at_turnstile();
        found.sort();
        found == expected
    })
    .await;
    // Nobody overtakes those who wait, although the slot is free for a moment.
    soon(permit.release()).await.unwrap();
    while next_to_end(&mut waits, || ()).await.is_some() {}
    expected.clear();
    eventually("nobody is there any more", PATIENCE, || at_turnstile() == expected).await;
}

#[tokio::test]
async fn nobody_overtakes_who_waits_elsewhere() {
    let stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let semaphore = alice.semaphore(&name(&stage), 5);
    let permit = soon(semaphore.acquire()).await.unwrap();
    let turnstile = soon(bob.lock(key(&permit, TURNSTILE))).await.unwrap();
    assert!(soon(semaphore.try_acquire()).await.unwrap().is_none());
    let mut waiting = tokio::spawn(async move { semaphore.acquire().await });
    assert!(timeout(SHORT * 5, &mut waiting).await.is_err());
    drop(turnstile);
    drop(soon(waiting).await.unwrap().unwrap());
}

#[tokio::test]
async fn hand_overs_within_the_process_are_bounded() {
    for (hand_overs, next) in [(0, "bob"), (1_000, "alice")] {
        let stage = Stage::new();
        let alice = LockManager::builder(stage.config("alice"))
            .hand_overs(hand_overs, Duration::from_secs(3600))
            .build();
        let (hers, his) =
            (alice.semaphore(&name(&stage), 1), stage.manager("bob").semaphore(&name(&stage), 1));
        let permit = soon(hers.acquire()).await.unwrap();
        let bob = soon(stage.manager("look").lock(key(&permit, TURNSTILE))).await.unwrap();
        let (served, mut order) = mpsc::unbounded_channel();
        let wait = |who: &'static str, semaphore: &Semaphore| {
            let (semaphore, served) = (semaphore.clone(), served.clone());
            tokio::spawn(async move {
                let permit = semaphore.acquire().await.unwrap();
                served.send(who).unwrap();
                permit.release().await.unwrap();
            })
        };
        let mut look = Stage::new();
        let mut queued = async |waiting: &str| {
            let turnstile = key(&permit, TURNSTILE);
            eventually("somebody waits at the turnstile", PATIENCE, || {
                look.waits_for(turnstile) == waiting
            })
            .await;
        };
        let his = wait("bob", &his);
        queued("1").await;
        let hers = wait("alice", &hers);
        if hand_overs == 0 {
            queued("2").await;
        } else {
            // She expects it from within her process.
            yield_now().await;
        }
        drop(bob);
        soon(permit.release()).await.unwrap();
        assert_eq!(soon(order.recv()).await.unwrap(), next);
        soon(his).await.unwrap();
        soon(hers).await.unwrap();
    }
}

#[tokio::test]
async fn the_permit_of_a_killed_process_comes_back() {
    const TEST: &str = "semaphores::the_permit_of_a_killed_process_comes_back";
    if let Some(part) = Part::assigned() {
        let manager = LockManager::new(part.config.clone());
        let semaphore = manager.semaphore(&format!("semaphore of {}", part.key), 1);
        let permit = semaphore.acquire().await.unwrap();
        return drop(permit.lost().await);
    }
    let mut stage = Stage::new();
    let mut alice = Process::start(TEST, &stage, "alice", None);
    stage.until_count(2).await;
    let bob = stage.manager("bob").semaphore(&name(&stage), 1);
    assert!(soon(bob.try_acquire()).await.unwrap().is_none());
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.acquire().await }
    });
    alice.kill().await;
    let permit = timeout(NOTICED_WITHIN, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(permit.slot(), 0);
}

#[tokio::test]
async fn a_permit_is_lost_with_its_session_and_the_next_one_is_had() {
    let mut stage = Stage::new();
    let alice = stage.manager("alice").semaphore(&name(&stage), 1);
    let permit = soon(alice.acquire()).await.unwrap();
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.acquire().await }
    });
    let held = permit.hold(std::future::pending::<()>());
    let process = stage.holder(permit.key());
    let ending = async { assert!(stage.end_process(process)) };
    let (ended, ()) = soon(async { tokio::join!(held, ending) }).await;
    let error = ended.unwrap_err();
    assert!(error.is_lost() && error.to_string().contains("semaphore of"), "{error}");
    assert!(!permit.is_held());
    assert!(soon(permit.lost()).await.is_lost());
    // It is no good to anybody, and is not handed over.
    assert!(soon(permit.release()).await.unwrap_err().is_lost());
    let next = soon(waiting).await.unwrap().unwrap();
    assert!(next.is_held());
    assert_eq!(stage.holders_of(key(&next, -2)), "1");
}

#[tokio::test]
async fn those_who_wait_outlast_a_restart_of_the_server() {
    let mut cluster = Settings::new().start();
    let url = cluster.url_for(&role::TRUST);
    let manager = || LockManager::new(url.parse().unwrap());
    let (alice, bob) = (manager().semaphore("restart", 1), manager().semaphore("restart", 1));
    let permit = soon(bob.acquire()).await.unwrap();
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.acquire().await }
    });
    let mut look = cluster.raw();
    eventually("alice waits", PATIENCE, || {
        let sql =
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'";
        look.value(sql) == "2"
    })
    .await;
    drop(look);
    cluster.stop(Shutdown::Fast);
    assert!(soon(permit.lost()).await.is_lost());
    let error = soon(bob.try_acquire()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    let error = soon(bob.acquire_timeout(SHORT)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    cluster.start();
    drop(soon(waiting).await.unwrap().unwrap());
}

/// Whichever task of the process it is that asks the server. The turnstile is taken by a prepared transaction, which
/// still has it when the server has come back.
#[tokio::test]
async fn who_is_out_of_time_is_told_why_the_server_was_not_reached() {
    let mut cluster = Settings::new().set("max_prepared_transactions", "1").start();
    let url = cluster.url_for(&role::TRUST);
    let semaphore = || LockManager::new(url.parse().unwrap()).semaphore("outage", 1);
    let (alice, bob) = (semaphore(), semaphore());
    let permit = soon(bob.acquire()).await.unwrap();
    let mut psql = cluster.raw();
    psql.rows("BEGIN");
    psql.rows(&format!("SELECT pg_advisory_xact_lock{}", key(&permit, TURNSTILE)));
    psql.rows("PREPARE TRANSACTION 'turnstile'");
    let acquire = |timeout: Duration| {
        let alice = alice.clone();
        tokio::spawn(async move { alice.acquire_timeout(timeout).await })
    };
    // It begins while the server is there, waits there, and ends when the server is gone.
    let waits = [8, 7].map(|seconds| acquire(Duration::from_secs(seconds)));
    eventually_somebody_waits(&cluster).await;
    cluster.stop(Shutdown::Fast);
    for waiting in waits {
        let error = soon(waiting).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
        assert!(error.to_string().contains("outage"), "{error}");
    }

    // It begins while the server is gone, and ends when the server is there, and others are in the way.
    drop(permit);
    let waits = [15, 16].map(|seconds| acquire(Duration::from_secs(seconds)));
    // One of them has tried.
    soon(async { while alice.acquire_timeout(SHORT).await.is_ok() {} }).await;
    cluster.start();
    eventually_somebody_waits(&cluster).await;
    for waiting in waits {
        assert!(soon(waiting).await.unwrap().unwrap().is_none());
    }
    cluster.raw().rows("ROLLBACK PREPARED 'turnstile'");
    drop(soon(alice.acquire()).await.unwrap());
}

async fn eventually_somebody_waits(cluster: &Cluster) {
    const WAITS: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    eventually("somebody waits", PATIENCE, || cluster.raw().value(WAITS) != "0").await;
}

#[tokio::test]
async fn different_numbers_of_permits_are_told() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let (five, seven) = (alice.semaphore(&name(&stage), 5), bob.semaphore(&name(&stage), 7));
    let permit = soon(five.acquire()).await.unwrap();
    for error in [
        soon(seven.acquire()).await.unwrap_err(),
        soon(seven.try_acquire()).await.unwrap_err(),
        soon(seven.acquire_timeout(PATIENCE)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("7 permits here, and 5 where") && text.contains(&name(&stage)),
            "{text}"
        );
    }
    // Whoever was there first goes on.
    soon(five.acquire()).await.unwrap().release().await.unwrap();
    drop(five);
    assert_eq!(soon(seven.acquire()).await.unwrap_err().kind(), ErrorKind::Config);
    // The permit is the last of it.
    drop(permit);
    stage.until(&[]).await;
    drop(soon(seven.acquire()).await.unwrap());

    for permits in [0, 1_001, u32::MAX] {
        let error = soon(alice.semaphore("any", permits).acquire()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("1 to 1000"), "{error}");
    }
    let many = alice.semaphore(&format!("many {}", stage.key()), 1_000);
    drop(soon(many.acquire()).await.unwrap());
}

#[tokio::test]
async fn a_permit_is_held_in_a_transaction_through_a_pooler() {
    let mut stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 12);
    let url = bouncer.url_for(&role::TRUST);
    let pooled = |actor: &str| LockManager::new(stage.config_by(&url, actor));
    let (alice, bob) = (pooled("alice"), pooled("bob"));
    let (hers, his) = (alice.semaphore(&name(&stage), 3), bob.semaphore(&name(&stage), 3));
    let mut permits = all_of(&hers, 2).await;
    permits.push(soon(his.try_acquire()).await.unwrap().unwrap());
    let slots: BTreeSet<_> = permits.iter().map(Permit::slot).collect();
    assert_eq!(slots, BTreeSet::from([0, 1, 2]));
    assert!(soon(hers.try_acquire()).await.unwrap().is_none());
    assert!(soon(his.acquire_timeout(SHORT)).await.unwrap().is_none());
    let waiting = tokio::spawn({
        let his = his.clone();
        async move { his.acquire().await }
    });
    let released = permits.remove(0);
    let slot = released.slot();
    soon(released.release()).await.unwrap();
    let next = soon(waiting).await.unwrap().unwrap();
    assert_eq!(next.slot(), slot);
    let odd = pooled("carol").semaphore(&name(&stage), 4);
    assert_eq!(soon(odd.acquire()).await.unwrap_err().kind(), ErrorKind::Config);
    drop((permits, next, hers, his, odd));
    stage.until(&[]).await;
    soon(alice.close()).await.unwrap();
    soon(bob.close()).await.unwrap();
}

#[tokio::test]
async fn a_full_lock_table_is_told_and_leaves_no_slot_behind() {
    let cluster =
        Settings::new().set("max_connections", "10").set("max_locks_per_transaction", "10");
    // Autovacuum would take locks of its own, and make room again.
    let cluster = cluster.set("autovacuum", "off").start();
    let alice = LockManager::new(cluster.url_for(&role::TRUST).parse().unwrap());
    let semaphore = alice.semaphore("full", 5);
    let _permit = soon(semaphore.acquire()).await.unwrap();
    let mut taken = Vec::new();
    // Hundreds, as long as there is room for one, and then single ones.
    for (class, size) in [(7_300, 100), (7_301, 1)] {
        for set in 0.. {
            let keys = (set * size..(set + 1) * size).map(|object| (class, object));
            match soon(alice.try_lock_all(keys)).await {
                Ok(set) => taken.push(set.unwrap()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::OutOfLockMemory, "{error}");
                    break;
                }
            }
        }
    }
    for error in [
        soon(semaphore.try_acquire()).await.unwrap_err(),
        soon(semaphore.acquire()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::OutOfLockMemory, "{error}");
        assert!(!error.is_lost() && error.to_string().contains("semaphore \"full\""), "{error}");
    }
    // There is room again, also for a look.
    drop(taken);
    let rest = all_of(&semaphore, 4).await;
    assert!(soon(semaphore.try_acquire()).await.unwrap().is_none());
    drop(rest);
    let mut look = cluster.raw();
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    eventually("a permit is held, and the number", PATIENCE, || look.value(held) == "2").await;
}

/// Whichever slot the server had granted before.
#[tokio::test]
async fn requests_that_somebody_ends_leave_no_slot_behind() {
    const ENDED: usize = 10;
    let mut stage = Stage::new();
    let semaphore = stage.manager("alice").semaphore(&name(&stage), 300);
    drop(soon(semaphore.acquire()).await.unwrap());
    let process = stage.pid("alice");
    let (ended, made) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let tries = async {
        while ended.load(SeqCst) < ENDED {
            match semaphore.try_acquire().await {
                Ok(permit) => drop(permit),
                Err(error) => {
                    assert_eq!(error.sqlstate(), Some("57014"), "{error}");
                    ended.fetch_add(1, SeqCst);
                }
            }
            made.fetch_add(1, SeqCst);
        }
    };
    let mut look = Cluster::default_cluster().raw();
    let ends = async {
        loop {
            let before = made.load(SeqCst);
            look.value(&format!("SELECT pg_cancel_backend({process})"));
            // What was ended is settled meanwhile, which is not to be ended as well.
            while made.load(SeqCst) == before {
                sleep(Duration::from_millis(1)).await;
            }
        }
    };
    let both = async {
        tokio::select! {
            () = tries => {}
            () = ends => {}
        }
    };
    sometime(both, || ended.load(SeqCst)).await;
    drop(soon(semaphore.acquire()).await.unwrap());
    stage.until_count(1).await;
    assert_eq!(stage.pid("alice"), process);
}

#[tokio::test]
async fn a_slot_that_is_locked_otherwise_is_taken_by_nobody() {
    let stage = Stage::new();
    let alice = stage.manager("alice");
    let semaphore = alice.semaphore(&name(&stage), 2);
    let permit = soon(semaphore.acquire()).await.unwrap();
    let other = key(&permit, i32::from(permit.slot() == 0));
    // On the same session: the server would grant it once more.
    let guard = soon(alice.lock(other)).await.unwrap();
    assert!(soon(semaphore.try_acquire()).await.unwrap().is_none());
    soon(guard.unlock()).await.unwrap();
    assert!(soon(semaphore.try_acquire()).await.unwrap().is_some());
}

#[tokio::test]
async fn closing_the_manager_ends_its_semaphores() {
    let stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let semaphore = alice.semaphore(&name(&stage), 1);
    let _held = soon(bob.semaphore(&name(&stage), 1).acquire()).await.unwrap();
    let mut waits = JoinSet::new();
    for _ in 0..3 {
        let semaphore = semaphore.clone();
        waits.spawn(async move { semaphore.acquire().await.map(drop) });
    }
    yield_now().await;
    soon(alice.close()).await.unwrap();
    while let Some(waited) = next_to_end(&mut waits, || ()).await {
        assert_eq!(waited.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(soon(semaphore.try_acquire()).await.unwrap_err().kind(), ErrorKind::Closed);
}

/// Pauses need a clock.
#[test]
fn a_permit_is_waited_for_where_there_is_no_runtime() {
    let stage = Stage::new();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let alice = stage.manager("alice");
    let semaphore = alice.semaphore(&name(&stage), 1);
    let permit = runtime.block_on(async { soon(semaphore.acquire()).await }).unwrap();
    assert!(poll_here(semaphore.acquire_timeout(4 * SHORT)).unwrap().is_none());
    let waiting = thread::spawn({
        let semaphore = semaphore.clone();
        move || poll_here(semaphore.acquire()).map(drop)
    });
    thread::sleep(SHORT);
    drop(permit);
    waiting.join().unwrap().unwrap();
}
