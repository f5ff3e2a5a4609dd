//! Several locks at once, on real servers: all of them, or none.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pglock::{ErrorKind, Key, LockManager, Mode};
use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, Proxy, Traffic, Way, role, wait_until};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::stage::{PATIENCE, Stage, next_to_end, sometime, soon};

/// Long enough for a request to reach the server's queue, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);
const NONE: [Key; 0] = [];

#[tokio::test]
async fn all_are_taken_or_none() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let keys = [(7_100, 3), (7_100, 1), (7_100, 2), (7_100, 1)];
    let all = soon(alice.lock_all(keys)).await.unwrap();
    assert!(all.keys().eq([1, 2, 3].map(|object| Key::pair(7_100, object))));
    assert!(all.is_held());
    let held = [1, 2, 3].map(|object| format!("alice holds exclusive (7100, {object})"));
    assert_eq!(stage.locks(), held);

    assert!(soon(bob.try_lock_all([(7_100, 4), (7_100, 3)])).await.unwrap().is_none());
    assert!(soon(bob.lock_all_timeout([(7_100, 0), (7_100, 2)], SHORT)).await.unwrap().is_none());
    assert!(soon(bob.lock_all_timeout([(7_100, 2)], Duration::ZERO)).await.unwrap().is_none());
    // What was free is free again.
    stage.until(&held.each_ref().map(String::as_str)).await;

    soon(all.unlock()).await.unwrap();
    let all = soon(bob.try_lock_all(keys)).await.unwrap().unwrap();
    assert_eq!(stage.locks().len(), 3);
    drop(all);
    stage.until(&[]).await;
    assert!(soon(bob.lock_all_timeout(keys, PATIENCE)).await.unwrap().is_some());
}

#[tokio::test]
async fn of_no_keys_all_are_had() {
    let mut stage = Stage::new();
    let alice = stage.manager("alice");
    for none in [
        soon(alice.lock_all(NONE)).await.unwrap(),
        soon(alice.try_lock_all(NONE)).await.unwrap().unwrap(),
        soon(alice.lock_all_timeout(NONE, SHORT)).await.unwrap().unwrap(),
    ] {
        assert!(none.is_held());
        assert_eq!(none.keys().count(), 0);
        assert_eq!(soon(none.hold(async { 7 })).await.unwrap(), 7);
        let error = soon(none.fencing_token()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotHeld, "{error}");
        assert!(tokio::time::timeout(SHORT, none.lost()).await.is_err());
        soon(none.unlock()).await.unwrap();
    }
    assert_eq!(stage.sessions(), 0);
}

/// The server has all requests before the client has an answer to any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_takes_one_round_trip_for_all() {
    const KEYS: i32 = 200;
    let mut stage = Stage::new();
    let cluster = Cluster::default_cluster();
    let proxy = Proxy::start(cluster.port());
    let url = cluster.url_for(&role::TRUST);
    let url = url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", proxy.port()));
    let alice = LockManager::new(stage.config_by(&url, "alice"));
    soon(alice.lock(stage.key())).await.unwrap().unlock().await.unwrap();
    for _ in 0..5 {
        proxy.set(Way::ToClient, Traffic::Silent);
        let keys = (0..KEYS).map(|object| (7_101, object));
        let trying = tokio::spawn({
            let alice = alice.clone();
            async move { alice.try_lock_all(keys).await }
        });
        stage.until_count(200).await;
        assert!(!trying.is_finished());
        proxy.set(Way::ToClient, Traffic::Flows);
        let all = soon(trying).await.unwrap().unwrap().unwrap();
        soon(all.unlock()).await.unwrap();
        assert_eq!(stage.locks(), [""; 0]);
    }
}

/// Managers in threads of their own stand for processes.
#[test]
fn overlapping_sets_in_opposite_order_exclude_each_other_and_all_are_had() {
    const KEYS: usize = 6;
    const TASKS: usize = 4;
    const TURNS: usize = 25;
    let stage = Stage::new();
    let inside = [const { AtomicBool::new(false) }; KEYS];
    let turns = AtomicU32::new(0);
    let key = |number: usize| Key::pair(7_102, i32::try_from(number).unwrap());
    let contend = |actor: &str, backwards: bool| {
        // The fewest sessions, so that some keys have none to wait on.
        let manager = LockManager::builder(stage.config(actor)).max_sessions(2).build();
        let take_turns = async |task: usize| {
            for turn in 0..TURNS {
                let mut numbers: Vec<_> = (0..3).map(|next| (task + turn + next) % KEYS).collect();
                if backwards {
                    numbers.reverse();
                }
                let keys = numbers.iter().map(|number| key(*number));
                let all = match manager.try_lock_all(keys.clone()).await.unwrap() {
                    Some(all) => all,
                    None => manager.lock_all(keys).await.unwrap(),
                };
                for number in &numbers {
                    assert!(!inside[*number].swap(true, SeqCst), "key {number} is held twice");
                }
                tokio::task::yield_now().await;
                for number in &numbers {
                    inside[*number].store(false, SeqCst);
                }
                turns.fetch_add(1, SeqCst);
                if turn % 2 == 0 { all.unlock().await.unwrap() } else { drop(all) }
            }
        };
        let all =
            async { tokio::join!(take_turns(0), take_turns(1), take_turns(2), take_turns(3)) };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(sometime(all, || turns.load(SeqCst)));
    };
    thread::scope(|scope| {
        scope.spawn(|| contend("alice", false));
        scope.spawn(|| contend("bob", true));
    });
    assert_eq!(turns.into_inner(), u32::try_from(2 * TASKS * TURNS).unwrap());
}

#[tokio::test]
async fn a_set_is_lost_with_the_first_of_its_locks() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let busy = soon(bob.lock((7_103, 2))).await.unwrap();
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.lock_all([(7_103, 1), (7_103, 2)]).await }
    });
    stage
        .until(&[
            "alice awaits exclusive (7103, 2)",
            "alice holds exclusive (7103, 1)",
            "bob holds exclusive (7103, 2)",
        ])
        .await;
    let waiter = stage.waiter("alice");
    drop(busy);
    let all = soon(waiting).await.unwrap().unwrap();
    let earlier = soon(all.fencing_token()).await.unwrap();
    // The second key is on a session of its own.
    let held = all.hold(std::future::pending::<()>());
    let ending = async { assert!(stage.end_process(waiter)) };
    let (ended, ()) = soon(async { tokio::join!(held, ending) }).await;
    assert!(ended.unwrap_err().is_lost());
    assert!(!all.is_held());
    assert!(soon(all.lost()).await.is_lost());
    assert!(soon(all.fencing_token()).await.unwrap_err().is_lost());
    let later = soon(bob.lock((7_103, 2))).await.unwrap();
    assert!(earlier < soon(later.fencing_token()).await.unwrap());
    assert!(soon(all.unlock()).await.unwrap_err().is_lost());
    // The other one was released all the same.
    assert_eq!(stage.locks(), ["bob holds exclusive (7103, 2)"]);
}

#[tokio::test]
async fn what_is_lost_while_the_rest_is_awaited_is_taken_again() {
    let mut stage = Stage::new();
    let (alice, bob) = (stage.manager("alice"), stage.manager("bob"));
    let busy = soon(bob.lock((7_105, 2))).await.unwrap();
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.lock_all([(7_105, 1), (7_105, 2)]).await }
    });
    let awaited = [
        "alice awaits exclusive (7105, 2)",
        "alice holds exclusive (7105, 1)",
        "bob holds exclusive (7105, 2)",
    ];
    stage.until(&awaited).await;
    let holder = stage.holder(Key::pair(7_105, 1));
    assert!(stage.end_process(holder));
    stage.until(&[awaited[0], awaited[2]]).await;
    drop(busy);
    let all = soon(waiting).await.unwrap().unwrap();
    assert!(all.is_held());
    assert_eq!(
        stage.locks(),
        ["alice holds exclusive (7105, 1)", "alice holds exclusive (7105, 2)"]
    );
}

/// The session of the first key has ended while the second is waited for, and cannot say so: its runtime has
/// one thread, which is busy.
#[test]
fn a_set_is_not_looked_at_after_its_time() {
    const WITHIN: Duration = Duration::from_secs(3);
    const BUSY_FOR: Duration = Duration::from_secs(12);
    let runtime = || Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (sessions, tasks) = (runtime(), runtime());
    let mut stage = Stage::new();
    let keys = [1, 2].map(|object| Key::pair(7_107, object));
    let alice = stage.manager("alice");
    let first = sessions.block_on(alice.lock(keys[0])).unwrap();
    let bob = tasks.block_on(stage.manager("bob").lock(keys[1])).unwrap();
    let second = sessions.spawn({
        let (alice, key) = (alice.clone(), keys[1]);
        async move { alice.lock(key).await }
    });
    wait_until("Alice waits", PATIENCE, || stage.waits_for(keys[1]) == "1");
    drop(bob);
    let second = sessions.block_on(second).unwrap().unwrap();

    let waiting = tasks.spawn({
        let alice = alice.clone();
        async move {
            let begun = Instant::now();
            (alice.lock_all_timeout(keys, WITHIN).await.unwrap(), begun.elapsed())
        }
    });
    wait_until("the set waits for its first key", PATIENCE, || alice.stats().waiting == 1);
    drop(first);
    wait_until("the set waits for its second key", PATIENCE, || alice.stats().requests == 4);
    let (tell, is_busy) = mpsc::channel();
    sessions.spawn(async move {
        tell.send(()).unwrap();
        thread::sleep(BUSY_FOR);
    });
    is_busy.recv_timeout(PATIENCE).unwrap();
    let process = stage.holder(keys[0]);
    assert!(stage.end_process(process));
    wait_until("the first key is free", PATIENCE, || stage.holders_of(keys[0]) == "0");
    drop(second);
    let (set, waited) = tasks.block_on(waiting).unwrap();
    assert!(set.is_none());
    assert!(waited < BUSY_FOR / 2, "{waited:?}");
}

#[tokio::test]
async fn through_a_pooler_sets_do_not_block_each_other() {
    let mut stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 5);
    let url = bouncer.url_for(&role::TRUST);
    let alice = LockManager::builder(stage.config_by(&url, "alice")).max_sessions(4).build();
    // Each with its first key would have all sessions, and none would get its second.
    let mut tasks = JoinSet::new();
    for number in 0..8 {
        let alice = alice.clone();
        tasks.spawn(async move {
            let all = alice.lock_all([(7_104, number), (7_104, number + 100)]).await.unwrap();
            tokio::task::yield_now().await;
            all.unlock().await.unwrap();
        });
    }
    let count = tasks.len();
    while next_to_end(&mut tasks, || count).await.is_some() {}
    stage.until(&[]).await;
    let five = (0..5).map(|object| (7_104, object));
    let error = soon(alice.lock_all(five)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let all = soon(alice.try_lock_all([(7_104, 1), (7_104, 2)])).await.unwrap().unwrap();
    assert_eq!(stage.locks().len(), 2);
    soon(all.unlock()).await.unwrap();
    soon(alice.close()).await.unwrap();
}

#[tokio::test]
async fn a_set_goes_the_way_of_its_manager() {
    let stage = Stage::new();
    let alice = stage.manager("alice");
    let all = soon(alice.lock_all([stage.key()])).await.unwrap();
    soon(alice.close()).await.unwrap();
    assert_eq!(soon(all.lost()).await.kind(), ErrorKind::Closed);
    let error = soon(alice.try_lock_all([stage.key()])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    assert!(error.to_string().contains(&Mode::Exclusive.to_string()), "{error}");
}
