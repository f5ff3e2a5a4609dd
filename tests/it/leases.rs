//! Leases: the server ends a silent session, and its holder knows before that.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use pglock::{Config, Error, ErrorKind, Key, Lock, Mode, Result, Session, SslMode};
use pglock_test_cluster::{
    Cluster, PgBouncer, PoolMode, Proxy, Traffic, eventually, role, signal, wait_until,
};
use tokio::time::sleep;

use crate::stage::{PATIENCE, Stage, soon};

/// The first major version whose servers end sessions that are silent outside of a transaction.
pub(crate) const ENDS_SILENT_SESSIONS: u32 = 14;

/// So long that a heartbeat which a busy machine holds up for more than a second is still in time.
const LEASE: Duration = Duration::from_secs(3);
/// So long that its last tenth is more than a busy machine may take to go on.
pub(crate) const LONGER_LEASE: Duration = Duration::from_secs(5);
/// Long enough for a session to end that gives no sign of life.
const TWO_LEASES: Duration = Duration::from_secs(6);

async fn lock(stage: &Stage<'_>, actor: &str) -> Lock {
    let mut config = stage.config(actor);
    config.lease(LEASE);
    Lock::connect(&config, stage.key()).await.unwrap()
}

fn assert_ended(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(error.is_lost());
    // Whichever is noticed first.
    let ended_by_server = error.sqlstate() == Some("57P05");
    assert!(ended_by_server || error.to_string().contains("the lease of 3s"), "{error}");
}

#[tokio::test]
async fn an_old_server_is_told_to_lack_leases() {
    let stage = Stage::new();
    let mut config = stage.config("alice");
    config.lease(LEASE);
    let connected = Session::connect(&config).await;
    if stage.major_version() >= ENDS_SILENT_SESSIONS {
        connected.unwrap();
    } else {
        let error = connected.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("a lease needs PostgreSQL 14 or later"), "{error}");
    }
}

#[tokio::test]
async fn work_under_a_lock_keeps_its_lease() {
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut alice = lock(&stage, "alice").await;
    alice.lock().await.unwrap();
    alice.hold(sleep(TWO_LEASES)).await.unwrap();
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    // Whoever waits for the loss gives signs of life as well.
    let mut lost = Box::pin(alice.lost());
    tokio::time::timeout(TWO_LEASES, lost.as_mut()).await.expect_err("nothing was lost");
    drop(lost);
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    alice.unlock().await.unwrap();
    alice.close().await.unwrap();
}

#[tokio::test]
async fn a_silent_session_ends_with_its_lease() {
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut alice = lock(&stage, "alice").await;
    alice.lock().await.unwrap();
    stage.until(&[]).await;
    assert_ended(&alice.unlock().await.unwrap_err());
    assert_ended(&alice.try_lock().await.unwrap_err());
    assert_ended(&alice.hold(async {}).await.unwrap_err());
    assert_ended(&alice.close().await.unwrap_err());
}

#[tokio::test]
async fn requests_renew_a_lease() {
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut config = stage.config("alice");
    config.lease(LEASE);
    let mut alice = Session::connect(&config).await.unwrap();
    alice.lock(stage.key(), Mode::Exclusive).await.unwrap();
    for round in 0..10 {
        sleep(LEASE / 4).await;
        assert!(alice.try_lock((7_033, round), Mode::Shared).await.unwrap());
        alice.unlock((7_033, round), Mode::Shared).await.unwrap();
    }
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
}

/// Has alice hold work of so many steps on a runtime that has no time for its timers and sockets: the work,
/// which never waits, is all that it sees. Returns what came of it, and after how many steps.
fn hold_busily(
    config: Config,
    key: Key,
    steps: u32,
    mut step: impl FnMut(u32) + Send + 'static,
) -> (Result<()>, u32) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().event_interval(u32::MAX).build().unwrap();
    let holding = runtime.spawn(async move {
        let mut alice = Lock::connect(&config, key).await.unwrap();
        alice.lock().await.unwrap();
        let mut done = 0;
        let work = poll_fn(|cx| {
            done += 1;
            step(done);
            cx.waker().wake_by_ref();
            if done < steps { Poll::Pending } else { Poll::Ready(()) }
        });
        (alice.hold(work).await, done)
    });
    runtime.block_on(holding).unwrap()
}

#[test]
fn work_that_leaves_the_runtime_no_time_keeps_its_lease() {
    const STEPS: u32 = 20;
    let stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut config = stage.config("alice");
    config.lease(LEASE);
    let (ended, done) = hold_busily(config, stage.key(), STEPS, |_| thread::sleep(LEASE / 10));
    ended.unwrap();
    assert_eq!(done, STEPS);
}

#[test]
fn work_that_leaves_the_runtime_no_time_stops_with_its_lease() {
    let stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let proxy = Proxy::start(Cluster::default_cluster().port());
    let url = format!("postgresql://{}@127.0.0.1:{}/app", role::TRUST.name, proxy.port());
    let mut config = stage.config_by(&url, "alice");
    config.lease(LEASE);
    let (ended, done) = hold_busily(config, stage.key(), 20, move |step| {
        if step == 1 {
            proxy.set_both(Traffic::Silent);
        }
        thread::sleep(LEASE / 10);
    });
    assert_ended(&ended.unwrap_err());
    // The last of them began before the end of the lease.
    assert!(done < 10, "{done} steps");
}

/// Its process is stopped, so that the heartbeat is not answered, and ends as soon as it goes on.
#[test]
fn a_session_that_is_ended_while_a_heartbeat_is_under_way_is_lost_before_the_next_step() {
    const LEASE: Duration = Duration::from_secs(9);
    const STEPS: u32 = 40;
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut config = stage.config("alice");
    config.lease(LEASE);
    let (key, mut begun, mut last) = (stage.key(), None, 0);
    let (last_step, ended_in) = mpsc::channel();
    let (ended, done) = hold_busily(config, key, STEPS, move |step| {
        let begun = *begun.get_or_insert_with(|| {
            signal(stage.pid("alice"), "STOP");
            Instant::now()
        });
        thread::sleep(Duration::from_millis(100));
        // The heartbeat was sent before this step or the one before.
        if last == 0 && begun.elapsed() > LEASE / 3 + Duration::from_millis(200) {
            let pid = stage.pid("alice");
            stage.terminate("alice");
            signal(pid, "CONT");
            wait_until("the session is gone", PATIENCE, || stage.sessions() == 0);
            last = step;
            last_step.send(step).unwrap();
        }
    });
    assert_eq!(ended.unwrap_err().sqlstate(), Some("57P01"));
    assert_eq!(done, ended_in.try_recv().unwrap());
}

#[tokio::test]
async fn a_wait_of_any_length_is_not_silent() {
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let (mut alice, mut bob) = (stage.lock("alice").await, lock(&stage, "bob").await);
    alice.lock().await.unwrap();
    let waiting = tokio::spawn(async move {
        bob.lock().await.unwrap();
        bob
    });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    sleep(TWO_LEASES).await;
    alice.unlock().await.unwrap();
    let mut bob = soon(waiting).await.unwrap();
    bob.hold(async {}).await.unwrap();
    assert_eq!(stage.locks(), ["bob holds exclusive"]);

    // A wait that ends without the lock leaves a session that stands, and so does one that is dropped.
    bob.close().await.unwrap();
    alice.lock().await.unwrap();
    let mut carol = lock(&stage, "carol").await;
    assert!(!carol.lock_timeout(TWO_LEASES).await.unwrap());
    tokio::time::timeout(TWO_LEASES, carol.lock()).await.expect_err("alice has it");
    alice.unlock().await.unwrap();
    assert!(carol.try_lock().await.unwrap());
    assert_eq!(stage.locks(), ["carol holds exclusive"]);
}

#[tokio::test]
async fn a_holder_behind_a_silent_network_stops_before_the_next_one_starts() {
    const ROUNDS: u32 = 3;
    if Stage::new().major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    for _ in 0..ROUNDS {
        let (stopped, started) = undisturbed(stop_and_start).await;
        assert!(stopped < started, "the next one was {:?} early", stopped - started);
    }
}

/// What this comes to when the process is not held up meanwhile. It is begun anew if it is.
pub(crate) async fn undisturbed<T>(work: impl AsyncFn() -> T) -> T {
    loop {
        tokio::select! {
            // Both may be over.
            biased;
            () = held_up() => {}
            done = work() => return done,
        }
    }
}

/// Ends if this process is held up for so long that what it sees says nothing about the order of events.
async fn held_up() {
    let mut last = Instant::now();
    while last.elapsed() < LONGER_LEASE / 20 {
        last = Instant::now();
        sleep(LONGER_LEASE / 500).await;
    }
}

/// Cuts a holder off. Returns when it stopped, and when the next one started.
async fn stop_and_start() -> (Instant, Instant) {
    let mut stage = Stage::new();
    let proxy = Proxy::start(Cluster::default_cluster().port());
    let mut config = stage.config("alice");
    config.hosts([("127.0.0.1", proxy.port())]).sslmode(SslMode::Disable).lease(LONGER_LEASE);
    let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
    alice.lock().await.unwrap();
    let holding = tokio::spawn(async move {
        let ended = alice.hold(std::future::pending::<()>()).await;
        (Instant::now(), ended)
    });
    let mut bob = stage.lock("bob").await;
    let waiting = tokio::spawn(async move {
        bob.lock().await.unwrap();
        (Instant::now(), bob)
    });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    proxy.set_both(Traffic::Silent);
    let (stopped, ended) = soon(holding).await.unwrap();
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("renewed the lease of 5s in time"), "{error}");
    let (started, _bob) = soon(waiting).await.unwrap();
    (stopped, started)
}

#[tokio::test]
async fn a_lease_of_a_lock_in_a_transaction_ends_that() {
    for mode in [PoolMode::Transaction, PoolMode::Session] {
        let mut stage = Stage::new();
        let bouncer = PgBouncer::start(Cluster::default_cluster(), mode, 2);
        let mut config = stage.config_by(&bouncer.url_for(&role::TRUST), "alice");
        config.lease(LEASE);
        let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
        sleep(TWO_LEASES).await;
        alice.lock().await.expect("without a lock, the pooler's connection has no lease");
        alice.hold(sleep(TWO_LEASES)).await.unwrap();
        assert_eq!(stage.locks(), ["alice holds exclusive"]);
        alice.unlock().await.unwrap();
        alice.lock().await.unwrap();
        eventually("the silent session has lost its lock", PATIENCE, || stage.locks().is_empty())
            .await;
        let error = alice.unlock().await.unwrap_err();
        assert!(error.is_lost(), "{error}");
    }
}

/// What is withdrawn does not keep its holder from hearing that nothing was heard for too long.
#[tokio::test]
async fn a_session_is_said_to_be_lost_with_its_lease_while_a_request_is_being_withdrawn() {
    assert_stops_in_time(async |alice| {
        let trying = alice.try_lock((7_031, 1), Mode::Exclusive);
        tokio::time::timeout(Duration::from_millis(200), trying).await.expect_err("no answer");
        alice.lost().await
    })
    .await;
}

/// Nobody else has to be waited for, so the silence is the server's.
#[tokio::test]
async fn a_call_that_is_not_answered_ends_with_the_lease() {
    assert_stops_in_time(async |alice| {
        alice.try_lock((7_032, 1), Mode::Exclusive).await.unwrap_err()
    })
    .await;
}

/// Alice has a lock under a lease when the network falls silent. She learns it by this before Bob gets the
/// lock.
async fn assert_stops_in_time(learn: impl AsyncFn(&mut Session) -> Error) {
    if Stage::new().major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let (stopped, started) = undisturbed(async || learn_and_start(&learn).await).await;
    assert!(stopped < started, "the next one was {:?} early", stopped - started);
}

/// Returns when Alice learned it, and when Bob started.
async fn learn_and_start(learn: impl AsyncFn(&mut Session) -> Error) -> (Instant, Instant) {
    let stage = Stage::new();
    let proxy = Proxy::start(Cluster::default_cluster().port());
    let mut config = stage.config("alice");
    config.hosts([("127.0.0.1", proxy.port())]).sslmode(SslMode::Disable).lease(LONGER_LEASE);
    let mut alice = Session::connect(&config).await.unwrap();
    alice.lock(stage.key(), Mode::Exclusive).await.unwrap();
    let mut bob = stage.lock("bob").await;
    proxy.set_both(Traffic::Silent);
    let started = async {
        bob.lock().await.unwrap();
        Instant::now()
    };
    let stopped = async {
        let error = learn(&mut alice).await;
        assert!(error.is_lost(), "{error}");
        Instant::now()
    };
    soon(async { tokio::join!(stopped, started) }).await
}

/// What else the task does uses up what tokio allows it, each time.
#[tokio::test]
async fn a_lease_is_kept_in_a_task_that_has_much_to_do() {
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut alice = lock(&stage, "alice").await;
    alice.lock().await.unwrap();
    let mut busy = pin!(async {
        loop {
            tokio::task::consume_budget().await;
        }
    });
    let mut lost = pin!(alice.lost());
    let lost = poll_fn(|cx| {
        let _: Poll<()> = busy.as_mut().poll(cx);
        lost.as_mut().poll(cx)
    });
    tokio::time::timeout(TWO_LEASES, lost).await.expect_err("nothing was lost");
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
}
