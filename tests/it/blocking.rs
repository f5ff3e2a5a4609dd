//! Locks of threads that wait themselves, on a real server; [`blocking_hostile`](crate::blocking_hostile) has
//! others.
//!
//! What they have in common with the locks of tasks is tested there: these are about the waiting.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pglock::blocking::{Canceller, Lock, Session};
use pglock::{Config, Error, ErrorKind, Mode, Pooler, Result};
use pglock_test_cluster::{
    Cluster, PgBouncer, PoolMode, Role, Settings, Shutdown, role, wait_until,
};
use tokio::task::spawn_blocking;

use crate::leases::ENDS_SILENT_SESSIONS;
use crate::stage::{PATIENCE, Stage, soon};

/// Long enough for a request to be queued, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_secs(2);

const BOB_WAITS: [&str; 2] = ["alice holds exclusive", "bob awaits exclusive"];

fn connect(stage: &Stage<'_>, actor: &str) -> Lock {
    Lock::connect(&stage.config(actor), stage.key()).unwrap()
}

/// Alice, who has the lock, and Bob, who wants it.
fn contest() -> (Stage<'static>, Lock, Lock) {
    let stage = Stage::new();
    let (mut alice, bob) = (connect(&stage, "alice"), connect(&stage, "bob"));
    alice.lock().unwrap();
    (stage, alice, bob)
}

fn until(stage: &mut Stage<'_>, expected: &[&str]) {
    let what = format!("the locks are {expected:?}");
    wait_until(&what, PATIENCE, || stage.locks() == expected);
}

/// Bob's call on a thread of its own, which gives the lock back.
fn spawn<T: Send + 'static>(
    mut bob: Lock,
    call: impl FnOnce(&mut Lock) -> T + Send + 'static,
) -> JoinHandle<(T, Lock)> {
    thread::spawn(move || (call(&mut bob), bob))
}

/// What the thread returns, which must not take for ever.
fn join<T>(thread: JoinHandle<T>) -> T {
    wait_until("the thread is done", PATIENCE, || thread.is_finished());
    thread.join().unwrap()
}

fn assert_lost(error: &Error) {
    assert!(error.is_lost(), "{error}");
}

#[test]
fn a_lock_is_held_until_it_is_unlocked() {
    let (mut stage, mut alice, mut bob) = contest();
    assert_eq!((alice.key(), alice.level(Mode::Exclusive)), (stage.key(), 1));
    assert!(!bob.try_lock().unwrap());
    assert!(!bob.try_lock_shared().unwrap());
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    alice.unlock().unwrap();
    assert_eq!(stage.locks(), [""; 0]);
    assert_eq!(alice.unlock().unwrap_err().kind(), ErrorKind::NotHeld);
    assert!(bob.try_lock().unwrap());
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

#[test]
fn locks_stack_and_modes_stack_apart() {
    let (mut stage, mut alice, mut bob) = contest();
    assert!(alice.try_lock().unwrap());
    assert!(alice.lock_timeout(LONG).unwrap());
    alice.lock_shared().unwrap();
    assert!(alice.lock_shared_timeout(LONG).unwrap());
    assert_eq!([Mode::Exclusive, Mode::Shared].map(|mode| alice.level(mode)), [3, 2]);
    assert_eq!(stage.locks(), ["alice holds exclusive", "alice holds shared"]);
    for _ in 0..3 {
        assert!(!bob.try_lock_shared().unwrap());
        alice.unlock().unwrap();
    }
    assert!(bob.try_lock_shared().unwrap());
    assert_eq!(stage.locks(), ["alice holds shared", "bob holds shared"]);
    alice.unlock_shared().unwrap();
    alice.unlock_shared().unwrap();
    assert_eq!(stage.locks(), ["bob holds shared"]);
}

#[test]
fn one_session_holds_many_keys() {
    let mut stage = Stage::new();
    let mut alice = Session::connect(&stage.config("alice")).unwrap();
    let keys = [1, 2, 3].map(|part| (i32::try_from(stage.number()).unwrap(), part));
    for key in keys {
        alice.lock(key, Mode::Shared).unwrap();
        assert!(alice.try_lock(key, Mode::Exclusive).unwrap());
    }
    assert_eq!(stage.locks().len(), 6);
    for key in keys {
        alice.unlock(key, Mode::Exclusive).unwrap();
        assert_eq!(alice.level(key, Mode::Shared), 1);
    }
    assert_eq!(stage.locks().len(), 3);
    assert_eq!(alice.holders(keys[0]).unwrap().holders().len(), 1);
    assert_eq!(alice.advisory_locks_on(keys[1]).unwrap().count(), 1);
    assert!(alice.advisory_locks().unwrap().count() >= 3);
    alice.close().unwrap();
    assert_eq!(stage.locks(), [""; 0]);
}

#[tokio::test]
async fn threads_and_tasks_exclude_each_other() {
    let mut stage = Stage::new();
    let mut task = stage.lock("task").await;
    let (config, key) = (stage.config("thread"), stage.key());
    task.lock().await.unwrap();
    let waiting = spawn_blocking(move || {
        let mut thread = Lock::connect(&config, key)?;
        assert!(!thread.try_lock()?);
        thread.lock()?;
        Ok::<_, Error>(thread)
    });
    stage.until(&["task holds exclusive", "thread awaits exclusive"]).await;
    task.unlock().await.unwrap();
    let thread = soon(waiting).await.unwrap().unwrap();
    assert!(!task.try_lock().await.unwrap());
    // It is closed by the task's thread, which has a runtime.
    drop(thread);
    soon(task.lock()).await.unwrap();
}

#[test]
fn a_waiter_gets_the_lock_when_it_is_released() {
    let (mut stage, mut alice, bob) = contest();
    let waiting = spawn(bob, Lock::lock);
    until(&mut stage, &BOB_WAITS);
    alice.unlock().unwrap();
    let (locked, mut bob) = join(waiting);
    locked.unwrap();
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
    bob.unlock().unwrap();
}

#[test]
fn a_wait_goes_on_when_its_thread_has_looked_up() {
    let (mut stage, mut alice, bob) = contest();
    let waiting = spawn(bob, Lock::lock);
    until(&mut stage, &BOB_WAITS);
    // Longer than one system call waits.
    let looked_up = Instant::now() + Duration::from_millis(2500);
    wait_until("it has looked up twice", PATIENCE, || Instant::now() > looked_up);
    assert_eq!(stage.locks(), BOB_WAITS);
    alice.unlock().unwrap();
    join(waiting).0.unwrap();
}

#[test]
fn a_wait_ends_when_its_time_is_up() {
    let (mut stage, _alice, mut bob) = contest();
    for timeout in [1, 50, 1100].map(Duration::from_millis) {
        let begun = Instant::now();
        assert!(!bob.lock_timeout(timeout).unwrap());
        assert!(!bob.lock_shared_timeout(timeout).unwrap());
        assert!(begun.elapsed() >= timeout * 2, "{:?}", begun.elapsed());
        assert_eq!(stage.locks(), ["alice holds exclusive"]);
    }
    assert!(!bob.lock_timeout(Duration::ZERO).unwrap());
    assert_eq!(stage.sessions(), 2);
}

#[test]
fn a_lock_that_comes_in_time_is_acquired() {
    let (mut stage, mut alice, bob) = contest();
    let waiting = spawn(bob, |bob| bob.lock_timeout(LONG));
    until(&mut stage, &BOB_WAITS);
    alice.unlock().unwrap();
    let (acquired, _bob) = join(waiting);
    assert!(acquired.unwrap());
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

#[test]
fn a_time_too_far_for_the_clock_is_no_limit() {
    let (mut stage, mut alice, bob) = contest();
    let waiting = spawn(bob, |bob| bob.lock_timeout(Duration::MAX));
    until(&mut stage, &BOB_WAITS);
    alice.unlock().unwrap();
    assert!(join(waiting).0.unwrap());
}

#[test]
fn a_cancelled_wait_is_over_and_its_session_goes_on() {
    const ROUNDS: usize = 100;
    let (mut stage, mut alice, mut bob) = contest();
    let canceller = bob.canceller();
    for round in 0..ROUNDS {
        let waiting = spawn(bob, Lock::lock);
        until(&mut stage, &BOB_WAITS);
        let ended;
        canceller.cancel();
        (ended, bob) = join(waiting);
        let error = ended.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "in round {round}: {error}");
        assert!(!error.is_lost());
        assert_eq!(stage.locks(), ["alice holds exclusive"]);
        // A stray signal would end this.
        assert!(!bob.try_lock().unwrap(), "in round {round}");
    }
    assert_eq!(stage.sessions(), 2, "a session was replaced");
    alice.unlock().unwrap();
    bob.lock().unwrap();
}

#[test]
fn a_cancel_without_a_wait_does_nothing() {
    let (mut stage, mut alice, mut bob) = contest();
    let canceller: Canceller = bob.canceller();
    canceller.cancel();
    let waiting = spawn(bob, Lock::lock);
    until(&mut stage, &BOB_WAITS);
    alice.unlock().unwrap();
    let (locked, bob) = join(waiting);
    locked.unwrap();
    drop(bob);
    canceller.cancel();
}

#[test]
fn a_deadlock_is_told() {
    let stage = Stage::new();
    let [mut alice, mut bob] =
        ["alice", "bob"].map(|actor| Session::connect(&stage.config(actor)).unwrap());
    let first = stage.key();
    let second = (i32::try_from(stage.number()).unwrap(), 1);
    alice.lock(first, Mode::Exclusive).unwrap();
    bob.lock(second, Mode::Exclusive).unwrap();
    // Whose wait is ended lets the other go on: her session is closed with the thread's end.
    let waiting = thread::spawn(move || alice.lock(second, Mode::Exclusive));
    let other = bob.lock(first, Mode::Exclusive);
    let is_told = |ended: Result<()>| match ended {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Deadlock, "{error}");
            assert!(!error.is_lost());
            true
        }
    };
    let bob_was_told = is_told(other);
    drop(bob);
    assert!(is_told(join(waiting)) || bob_was_told);
}

#[test]
fn many_threads_take_turns() {
    const THREADS: u32 = 8;
    const TURNS: u32 = 25;
    let stage = Arc::new(Stage::new());
    let counter = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (config, key) = (stage.config("thread"), stage.key());
            let counter = Arc::clone(&counter);
            thread::spawn(move || {
                let mut lock = Lock::connect(&config, key).unwrap();
                for turn in 0..TURNS {
                    if turn % 3 == 0 {
                        while !lock.lock_timeout(Duration::from_millis(5)).unwrap() {}
                    } else {
                        lock.lock().unwrap();
                    }
                    // Whoever is here at the same time loses what the other one counts.
                    let seen = counter.load(Ordering::Relaxed);
                    thread::yield_now();
                    counter.store(seen + 1, Ordering::Relaxed);
                    lock.unlock().unwrap();
                }
                lock.close().unwrap();
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(counter.load(Ordering::Relaxed), THREADS * TURNS);
}

#[test]
fn a_session_that_was_ended_is_lost() {
    type Call = fn(&mut Lock) -> Result<()>;
    let calls: [Call; 6] = [
        |alice| alice.try_lock().map(drop),
        Lock::unlock,
        |alice| alice.lock_shared(),
        |alice| alice.ping().map(drop),
        |alice| alice.holders().map(drop),
        |alice| alice.hold(|| unreachable!("it is known to be lost")),
    ];
    for call in calls {
        let (mut stage, mut alice, mut bob) = contest();
        stage.terminate("alice");
        until(&mut stage, &[]);
        let error = call(&mut alice).unwrap_err();
        assert_lost(&error);
        assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
        assert_eq!(alice.level(Mode::Exclusive), 0);
        assert_lost(&alice.try_lock().unwrap_err());
        assert!(bob.try_lock().unwrap());
        assert_lost(&alice.close().unwrap_err());
    }
}

#[test]
fn a_wait_ends_with_its_session() {
    let (mut stage, _alice, bob) = contest();
    let waiting = spawn(bob, Lock::lock);
    until(&mut stage, &BOB_WAITS);
    stage.terminate("bob");
    let (ended, bob) = join(waiting);
    assert_lost(&ended.unwrap_err());
    assert_lost(&bob.close().unwrap_err());
}

#[test]
fn work_under_a_lock_is_told_afterwards_whether_it_was_alone() {
    let (mut stage, mut alice, mut bob) = contest();
    assert_eq!(alice.hold(|| 7).unwrap(), 7);
    let error = alice.hold(|| stage.terminate("alice")).unwrap_err();
    assert_lost(&error);
    let error = bob.hold(|| unreachable!("nothing is held")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotHeld);
    assert!(!error.is_lost());
    assert!(error.to_string().contains("nothing guards the work; lock it first"), "{error}");
    bob.lock().unwrap();
    bob.hold(|| ()).unwrap();
}

#[test]
fn a_dropped_lock_is_released() {
    let (mut stage, alice, mut bob) = contest();
    drop(alice);
    bob.lock().unwrap();
    until(&mut stage, &["bob holds exclusive"]);
}

#[test]
fn a_closed_lock_is_free_at_once() {
    let (_stage, mut alice, mut bob) = contest();
    alice.lock_shared().unwrap();
    alice.close().unwrap();
    assert!(bob.try_lock().unwrap());
}

#[test]
fn a_server_that_restarts_ends_its_sessions() {
    for shutdown in [Shutdown::Fast, Shutdown::Immediate] {
        let mut cluster = Settings::new().start();
        let (config, key) = {
            let stage = Stage::on(&cluster);
            (stage.config("alice"), stage.key())
        };
        let [mut alice, bob] = [(); 2].map(|()| Lock::connect(&config, key).unwrap());
        alice.lock().unwrap();
        let waiting = spawn(bob, Lock::lock);
        cluster.restart(shutdown);
        assert_lost(&alice.ping().unwrap_err());
        assert_lost(&join(waiting).0.unwrap_err());
        assert!(Lock::connect(&config, key).unwrap().try_lock().unwrap());
    }
}

#[test]
fn tokens_rise() {
    let (_stage, mut alice, mut bob) = contest();
    let first = alice.lock_fenced().unwrap();
    assert_eq!(bob.try_lock_fenced().unwrap(), None);
    alice.unlock().unwrap();
    alice.unlock().unwrap();
    let second = bob.lock_fenced().unwrap();
    let third = bob.try_lock_fenced().unwrap().unwrap();
    assert!(first < second && second < third, "{first} {second} {third}");
}

#[test]
fn signs_of_life_renew_a_lease_and_nothing_else_does() {
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut config = stage.config("alice");
    config.lease(LEASE);
    let mut alice = Lock::connect(&config, stage.key()).unwrap();
    alice.lock().unwrap();
    let held_for = Instant::now();
    while held_for.elapsed() < LEASE * 2 {
        thread::sleep(LEASE / 8);
        alice.ping().unwrap();
    }
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    let error = alice.hold(|| until(&mut stage, &[])).unwrap_err();
    assert_lost(&error);
}

#[test]
fn every_login_works_over_every_socket() {
    let cluster = Cluster::default_cluster();
    let stage = Stage::new();
    let log_in = |url: &str, role: &Role| {
        let mut lock = Lock::connect(&stage.config_by(url, "alice"), stage.key()).unwrap();
        assert!(lock.try_lock().unwrap(), "{} by {url}", role.name);
        lock.ping().unwrap();
        lock.unlock().unwrap();
        lock.close().unwrap();
    };
    for role in [&role::TRUST, &role::SCRAM, &role::MD5] {
        log_in(&format!("{}?sslmode=disable", cluster.url_for(role)), role);
        #[cfg(feature = "tls")]
        log_in(&format!("{}?sslmode=require", cluster.url_for(role)), role);
        log_in(&cluster.socket_url_for(role), role);
    }
}

#[test]
fn a_refused_login_is_told() {
    let stage = Stage::new();
    let url = Cluster::default_cluster().url_for(&role::SCRAM);
    let mut config = stage.config_by(&url, "alice");
    config.password("wrong");
    let error = Session::connect(&config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    assert_eq!(error.sqlstate(), Some("28P01"));
}

#[test]
fn long_answers_are_read_to_their_end() {
    const KEYS: i32 = 300;
    let cluster = Cluster::default_cluster();
    for sslmode in ["disable", if cfg!(feature = "tls") { "require" } else { "disable" }] {
        let stage = Stage::new();
        let url = format!("{}?sslmode={sslmode}", cluster.url_for(&role::TRUST));
        let mut alice = Session::connect(&stage.config_by(&url, "alice")).unwrap();
        let part = i32::try_from(stage.number()).unwrap();
        for key in 0..KEYS {
            alice.lock((part, key), Mode::Exclusive).unwrap();
        }
        // Each of them is some hundred bytes.
        let locks = alice.advisory_locks().unwrap();
        assert!(locks.count() >= 300, "{}", locks.count());
        assert!(alice.diagnose().unwrap().version.is_some());
        alice.close().unwrap();
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for sslmode in ["disable", if cfg!(feature = "tls") { "require" } else { "disable" }] {
        let url = format!("postgresql://alice@127.0.0.1:{port}/app?sslmode={sslmode}");
        let mut config: Config = url.parse().unwrap();
        config.connect_timeout(Duration::from_millis(300));
        let begun = Instant::now();
        let error = Session::connect(&config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.to_string().contains("not connected within 300ms"), "{error}");
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[test]
fn a_server_that_is_not_there_is_told() {
    // Bound and not listened on, so that nobody comes to be there.
    let empty = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    empty.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let port = empty.local_addr().unwrap().as_socket().unwrap().port();
    for host in ["127.0.0.1", "%2Fnowhere%2Fat%2Fall"] {
        let config: Config = format!("postgresql://alice@{host}:{port}/app").parse().unwrap();
        let error = Session::connect(&config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    }
    let config: Config = "postgresql://alice@no-such-host.invalid/app".parse().unwrap();
    let error = Session::connect(&config).unwrap_err();
    assert!(error.to_string().contains("the name cannot be resolved"), "{error}");
}

#[test]
fn locks_are_held_through_a_pooler() {
    for (mode, pooler) in [
        (PoolMode::Transaction, Pooler::Auto),
        (PoolMode::Session, Pooler::Auto),
        (PoolMode::Session, Pooler::Session),
    ] {
        let bouncer = PgBouncer::start(Cluster::default_cluster(), mode, 3);
        let mut stage = Stage::new();
        let connect = |actor: &str| {
            let mut config = stage.config_by(&bouncer.url_for(&role::TRUST), actor);
            config.pooler(pooler);
            Lock::connect(&config, stage.key()).unwrap()
        };
        let [mut alice, mut bob] = ["alice", "bob"].map(connect);
        alice.lock().unwrap();
        alice.hold(|| ()).unwrap();
        assert!(!bob.try_lock().unwrap());
        assert!(!bob.lock_timeout(SHORT).unwrap());
        let canceller = bob.canceller();
        let waiting = spawn(bob, Lock::lock);
        until(&mut stage, &BOB_WAITS);
        canceller.cancel();
        let (ended, bob) = join(waiting);
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
        let waiting = spawn(bob, Lock::lock);
        until(&mut stage, &BOB_WAITS);
        alice.unlock().unwrap();
        let (locked, bob) = join(waiting);
        locked.unwrap();
        alice.close().unwrap();
        bob.close().unwrap();
        until(&mut stage, &[]);
    }
}
