//! Faults of the network between a client and a server, and of the server itself: what a holder and a
//! waiter are told, and when the lock is free for others.

use std::time::{Duration, Instant};

use pglock::{Config, Error, ErrorKind, Lock, Mode, Session, SslMode};
use pglock_test_cluster::{
    Break, Cluster, Proxy, Settings, Shutdown, Traffic, Way, role, signal, wait_until,
};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::leases::ENDS_SILENT_SESSIONS;
use crate::stage::{NOTICES_LOST_CLIENTS, Stage, soon};

/// What is told at once may take this long on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How long the withdrawal of a request may take: documented with `Session`.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(2);

fn proxy() -> Proxy {
    Proxy::start(Cluster::default_cluster().port())
}

fn config(stage: &Stage<'_>, proxy: &Proxy, actor: &str) -> Config {
    let mut config = stage.config(actor);
    config.hosts([("127.0.0.1", proxy.port())]).sslmode(SslMode::Disable);
    config
}

async fn lock(stage: &Stage<'_>, proxy: &Proxy, actor: &str) -> Lock {
    Lock::connect(&config(stage, proxy, actor), stage.key()).await.unwrap()
}

/// Works under the lock until it is lost.
fn hold(mut lock: Lock) -> JoinHandle<Error> {
    tokio::spawn(async move { lock.hold(std::future::pending::<()>()).await.unwrap_err() })
}

/// Has the lock before long.
async fn assert_takes(lock: &mut Lock, within: Duration) {
    timeout(within, lock.lock()).await.expect("the lock is free in time").unwrap();
}

async fn told<T>(waiting: JoinHandle<T>, within: Duration) -> T {
    timeout(within, waiting).await.expect("it is told in time").unwrap()
}

fn assert_lost(error: &Error, reasons: &[&str]) {
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(error.is_lost(), "{error}");
    let text = error.to_string();
    assert!(reasons.iter().any(|reason| text.contains(reason)), "{error}");
}

/// Faults that both sides hear of.
#[derive(Clone, Copy, Debug)]
enum Told {
    Broken(Break),
    HalfClosed(Way),
}

impl Told {
    const ALL: [Self; 4] = [
        Self::Broken(Break::Cut),
        Self::Broken(Break::Reset),
        Self::HalfClosed(Way::ToClient),
        Self::HalfClosed(Way::ToServer),
    ];

    fn strike(self, proxy: &Proxy) {
        match self {
            Self::Broken(how) => proxy.break_all(how),
            Self::HalfClosed(way) => proxy.set(way, Traffic::Ended),
        }
    }

    /// What the client has to say of it.
    fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::Broken(Break::Reset) => &["the connection broke"],
            Self::Broken(Break::Cut) | Self::HalfClosed(_) => {
                &["the server closed the connection without a reason"]
            }
        }
    }
}

#[tokio::test]
async fn a_holder_hears_of_an_end_at_once_and_the_lock_is_free() {
    for fault in Told::ALL {
        let (mut stage, proxy) = (Stage::new(), proxy());
        let mut alice = lock(&stage, &proxy, "alice").await;
        alice.lock().await.unwrap();
        let holding = hold(alice);
        stage.until(&["alice holds exclusive"]).await;
        fault.strike(&proxy);
        assert_lost(&told(holding, AT_ONCE).await, fault.reasons());
        assert_takes(&mut stage.lock("bob").await, AT_ONCE).await;
    }
}

/// The runtime has had no time to hear of it: the system is asked, and tells of an error only once.
#[tokio::test]
async fn a_reset_is_told_as_such_to_a_holder_who_was_busy() {
    let (stage, proxy) = (Stage::new(), proxy());
    let mut alice = lock(&stage, &proxy, "alice").await;
    alice.lock().await.unwrap();
    proxy.break_all(Break::Reset);
    wait_until("the connection is broken", AT_ONCE, || proxy.connections() == 0);
    let error = alice.hold(std::future::pending::<()>()).await.unwrap_err();
    assert_lost(&error, &["the connection broke"]);
}

#[tokio::test]
async fn a_waiter_hears_of_an_end_at_once() {
    for fault in Told::ALL {
        let (mut stage, proxy) = (Stage::new(), proxy());
        let unseen = matches!(fault, Told::HalfClosed(Way::ToServer));
        if unseen && stage.major_version() < NOTICES_LOST_CLIENTS {
            // The server looks at its client when the wait is over, and closes nothing before.
            continue;
        }
        let mut alice = stage.lock("alice").await;
        alice.lock().await.unwrap();
        let mut bob = lock(&stage, &proxy, "bob").await;
        let bob = tokio::spawn(async move { bob.lock().await.unwrap_err() });
        let mut carol = lock(&stage, &proxy, "carol").await;
        let limit = 10 * AT_ONCE;
        let carol = tokio::spawn(async move { carol.lock_timeout(limit).await.unwrap_err() });
        let queue = ["alice holds exclusive", "bob awaits exclusive", "carol awaits exclusive"];
        stage.until(&queue).await;
        fault.strike(&proxy);
        assert_lost(&told(bob, AT_ONCE).await, fault.reasons());
        assert_lost(&told(carol, AT_ONCE).await, fault.reasons());
        // Before PostgreSQL 14, the server notices when it has the lock for them.
        alice.unlock().await.unwrap();
        assert_takes(&mut alice, AT_ONCE).await;
    }
}

/// The ways of a network that can fall silent.
const SILENCES: [&[Way]; 3] = [&[Way::ToServer], &[Way::ToClient], &[Way::ToServer, Way::ToClient]];

fn silence(proxy: &Proxy, ways: &[Way]) {
    for way in ways {
        proxy.set(*way, Traffic::Silent);
    }
}

#[tokio::test]
async fn a_holder_behind_a_silent_network_stops_with_its_lease_and_the_lock_is_free() {
    if Stage::new().major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    for ways in SILENCES {
        let (mut stage, proxy) = (Stage::new(), proxy());
        let mut config = config(&stage, &proxy, "alice");
        config.lease(LEASE);
        let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
        alice.lock().await.unwrap();
        let holding = hold(alice);
        stage.until(&["alice holds exclusive"]).await;
        silence(&proxy, ways);
        let mut bob = stage.lock("bob").await;
        assert_takes(&mut bob, LEASE + AT_ONCE).await;
        let reasons = ["renewed the lease of 2s in time", "the server ended the session"];
        assert_lost(&told(holding, LEASE + AT_ONCE).await, &reasons);
    }
}

#[tokio::test]
async fn waits_behind_a_silent_network_end_within_their_bounds() {
    const LIMIT: Duration = Duration::from_millis(500);
    let (mut stage, proxy) = (Stage::new(), proxy());
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    let mut bob = lock(&stage, &proxy, "bob").await;
    let canceller = bob.canceller();
    let bob = tokio::spawn(async move { bob.lock().await.unwrap_err() });
    let mut carol = lock(&stage, &proxy, "carol").await;
    let carol = tokio::spawn(async move { carol.lock_timeout(4 * LIMIT).await.unwrap_err() });
    let queue = ["alice holds exclusive", "bob awaits exclusive", "carol awaits exclusive"];
    stage.until(&queue).await;
    proxy.set_both(Traffic::Silent);
    let begun = Instant::now();
    canceller.cancel().await;
    let bound = 4 * LIMIT + SETTLED_WITHIN + AT_ONCE;
    for waiting in [bob, carol] {
        let error = told(waiting, bound.saturating_sub(begun.elapsed())).await;
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    }
    // Sessions that gave up have closed their sockets: the server hears of it once the network is back.
    proxy.set_both(Traffic::Flows);
    alice.unlock().await.unwrap();
    assert_takes(&mut stage.lock("dave").await, AT_ONCE).await;
}

#[tokio::test]
async fn a_network_that_was_silent_for_less_than_the_lease_takes_nothing() {
    if Stage::new().major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let (mut stage, proxy) = (Stage::new(), proxy());
    let mut config = config(&stage, &proxy, "alice");
    config.lease(5 * LEASE);
    let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
    alice.lock().await.unwrap();
    let work = async {
        for ways in SILENCES {
            silence(&proxy, ways);
            tokio::time::sleep(LEASE).await;
            proxy.set_both(Traffic::Flows);
            tokio::time::sleep(LEASE / 4).await;
        }
    };
    alice.hold(work).await.unwrap();
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    soon(alice.close()).await.unwrap();
}

#[tokio::test]
async fn slow_networks_change_nothing() {
    for traffic in [Traffic::Delayed(Duration::from_millis(20)), Traffic::ByteByByte] {
        let (mut stage, proxy) = (Stage::new(), proxy());
        // Sessions that are there already, and those that come.
        let mut alice = lock(&stage, &proxy, "alice").await;
        proxy.set_both(traffic);
        let mut config = config(&stage, &proxy, "bob");
        if stage.major_version() >= ENDS_SILENT_SESSIONS {
            // Longer than what others do meanwhile takes here.
            config.lease(5 * LEASE);
        }
        let mut bob = soon(Lock::connect(&config, stage.key())).await.unwrap();
        let token = soon(alice.lock_fenced()).await.unwrap();
        assert!(!soon(bob.try_lock()).await.unwrap());
        assert!(!soon(bob.lock_timeout(Duration::from_millis(100))).await.unwrap());
        assert_eq!(stage.locks(), ["alice holds exclusive"]);
        soon(alice.unlock()).await.unwrap();
        assert!(soon(bob.lock_fenced()).await.unwrap() > token);
        // Long enough for a heartbeat.
        soon(bob.hold(tokio::time::sleep(2 * LEASE))).await.unwrap();
        assert_eq!(stage.locks(), ["bob holds exclusive"]);
        soon(bob.close()).await.unwrap();
        soon(alice.close()).await.unwrap();
        assert_eq!(stage.locks(), [""; 0]);
    }
}

/// On a server of its own, since others of its processes may have to wait for the one that is frozen.
#[tokio::test]
async fn a_holder_whose_server_process_is_frozen_stops_with_its_lease_and_the_lock_stays() {
    let cluster = Settings::new().start();
    let mut stage = Stage::on(&cluster);
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut config = stage.config("alice");
    config.lease(LEASE);
    let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
    alice.lock().await.unwrap();
    let mut bob = stage.lock("bob").await;
    let process_id = stage.pid("alice");
    signal(process_id, "STOP");
    assert_lost(&told(hold(alice), LEASE + AT_ONCE).await, &["renewed the lease of 2s in time"]);
    assert!(!bob.try_lock().await.unwrap(), "the server has not heard of any end");
    signal(process_id, "CONT");
    assert_takes(&mut bob, AT_ONCE).await;
}

/// The request is withdrawn first, of which no answer tells here.
#[tokio::test]
async fn a_session_that_is_dropped_while_a_request_is_withdrawn_lets_go_within_bounds() {
    let mut stage = Stage::new();
    let proxy = proxy();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    let mut bob = Session::connect(&config(&stage, &proxy, "bob")).await.unwrap();
    let other = (i32::try_from(stage.number()).unwrap(), 1);
    bob.lock(other, Mode::Exclusive).await.unwrap();
    let waiting = timeout(Duration::from_millis(50), bob.lock(stage.key(), Mode::Exclusive));
    assert!(waiting.await.is_err());
    proxy.set(Way::ToClient, Traffic::Silent);
    drop(bob);
    stage.until_within(SETTLED_WITHIN + AT_ONCE, &["alice holds exclusive"]).await;
}

#[tokio::test]
async fn a_server_that_stops_smartly_takes_nobody_in_and_waits_for_its_sessions() {
    let mut cluster = Settings::new().start();
    let config: Config = cluster.url_for(&role::TRUST).parse().unwrap();
    let mut alice = Lock::connect(&config, 1).await.unwrap();
    let mut bob = Lock::connect(&config, 1).await.unwrap();
    alice.lock().await.unwrap();
    cluster.begin_to_stop(Shutdown::Smart);
    wait_until("the server takes nobody in", AT_ONCE, || !cluster.takes_clients());
    let error = Lock::connect(&config, 1).await.unwrap_err();
    assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::Connect, Some("57P03")), "{error}");

    alice.hold(async {}).await.unwrap();
    assert!(!bob.try_lock().await.unwrap());
    alice.unlock().await.unwrap();
    assert_takes(&mut bob, AT_ONCE).await;
    soon(alice.close()).await.unwrap();
    soon(bob.close()).await.unwrap();
    cluster.wait_for_exit();
}
