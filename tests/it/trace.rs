//! What subscribers to the crate `tracing` are told.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use pglock::{Config, Key, Lock, LockManager};
use pglock_test_cluster::{Cluster, Proxy, Settings, Shutdown, Traffic, eventually, role};
use tokio::task::JoinSet;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, NoSubscriber, Subscriber, set_default};
use tracing::{Dispatch, Event, Level, Metadata};

use crate::leases::ENDS_SILENT_SESSIONS;
use crate::stage::{PATIENCE, Stage, soon};

type Fields = BTreeMap<&'static str, String>;

/// Makes sure that there are at least two subscribers. Of only one, tracing takes it for the one of whichever
/// thread comes first to an event; and if that is the thread of another test, nobody is told of it any more.
static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

/// What was told on this thread, for as long as this lives.
struct Told {
    events: Arc<Mutex<Vec<(Level, Fields)>>>,
    _subscribed: DefaultGuard,
}

impl Told {
    fn listen() -> Self {
        Self::listen_and_ask(None)
    }

    fn listen_and_ask(manager: Option<LockManager>) -> Self {
        LazyLock::force(&ANOTHER);
        let events = Arc::default();
        let subscribed = set_default(Listener { events: Arc::clone(&events), manager });
        Self { events, _subscribed: subscribed }
    }

    /// The events with this message.
    fn of(&self, message: &str) -> Vec<(Level, Fields)> {
        let events = self.events.lock().unwrap();
        let is_meant = |fields: &Fields| fields["message"].starts_with(message);
        events.iter().filter(|(_, fields)| is_meant(fields)).cloned().collect()
    }

    /// The one event with this message.
    fn one(&self, message: &str) -> (Level, Fields) {
        let [event] = self.of(message).try_into().unwrap_or_else(|events| {
            panic!("not one {message:?} but {events:?}");
        });
        event
    }
}

struct Listener {
    events: Arc<Mutex<Vec<(Level, Fields)>>>,
    /// What it asks itself when it is told something.
    manager: Option<LockManager>,
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "pglock"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if let Some(manager) = &self.manager {
            assert!(manager.stats().requests > 0);
        }
        let mut fields = Collected::default();
        event.record(&mut fields);
        self.events.lock().unwrap().push((*event.metadata().level(), fields.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Collected(Fields);

impl Visit for Collected {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

/// Without the message, and without what varies.
fn fields(fields: &Fields) -> Vec<(&str, &str)> {
    let varies = |name: &str| name == "message" || name.ends_with("duration");
    let fields = fields.iter().filter(|(name, _)| !varies(name));
    fields.map(|(name, value)| (*name, value.as_str())).collect()
}

#[tokio::test]
async fn sessions_and_locks_are_told_of() {
    let mut stage = Stage::new();
    let port = Cluster::default_cluster().port().to_string();
    let told = Told::listen();
    // However long its turn takes.
    let alice = LockManager::builder(stage.config("alice")).hand_overs(64, PATIENCE).build();
    let guard = soon(alice.lock(stage.key())).await.unwrap();
    let server = [
        ("db.system.name", "postgresql"),
        ("server.address", "127.0.0.1"),
        ("server.port", port.as_str()),
    ];
    let (level, connected) = told.one("session connected");
    assert_eq!(level, Level::DEBUG);
    assert_eq!(fields(&connected), [&[("db.namespace", "app")], &server[..]].concat());

    let next = tokio::spawn({
        let (alice, key) = (alice.clone(), stage.key());
        async move { alice.lock(key).await }
    });
    eventually("somebody waits", PATIENCE, || alice.stats().waiting == 1).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(guard);
    let guard = soon(next).await.unwrap().unwrap();
    let [(_, first), (level, second)] = told.of("lock granted").try_into().unwrap();
    assert_eq!(level, Level::DEBUG);
    let key = stage.key().to_string();
    for (granted, handed_over) in [(&first, "false"), (&second, "true")] {
        assert_eq!(
            fields(granted),
            [
                ("db.system.name", "postgresql"),
                ("pglock.handed_over", handed_over),
                ("pglock.key", key.as_str()),
                ("pglock.mode", "exclusive"),
            ]
        );
    }
    let waited: f64 = second["pglock.wait.duration"].parse().unwrap();
    assert!(waited >= 0.02, "{waited}");

    stage.terminate("alice");
    assert!(soon(guard.lost()).await.is_lost());
    let (level, lost) = told.one("session lost");
    assert_eq!(level, Level::WARN);
    let reason = [("db.response.status_code", "57P01")];
    let kind = [("error.type", "Lost")];
    assert_eq!(fields(&lost), [&reason, &server[..1], &kind, &server[1..]].concat());
    // What is meant to end is not lost.
    drop(soon(alice.lock(stage.key())).await.unwrap());
    soon(alice.close()).await.unwrap();
    assert_eq!(told.of("session lost").len(), 1);
}

#[tokio::test]
async fn a_login_by_md5_is_warned_of_and_no_secret_is_told() {
    let stage = Stage::new();
    let told = Told::listen();
    let cluster = Cluster::default_cluster();
    for role in [&role::SCRAM, &role::MD5] {
        let config = stage.config_by(&cluster.url_for(role), "alice");
        Lock::connect(&config, stage.key()).await.unwrap().close().await.unwrap();
    }
    let (level, _) = told.one("logged in by MD5");
    assert_eq!(level, Level::WARN);
    let mut config = stage.config_by(&cluster.url_for(&role::MD5), "alice");
    config.password("not this one");
    soon(LockManager::new(config).lock(stage.key())).await.unwrap_err();
    let (level, refused) = told.one("no session could be connected");
    assert_eq!(level, Level::WARN);
    assert_eq!(refused["error.type"], "Authentication");
    assert_eq!(refused["db.response.status_code"], "28P01");
    let everything = format!("{:?}", told.events.lock().unwrap());
    for secret in ["not this one", role::MD5.password.unwrap(), role::MD5.name] {
        assert!(!everything.contains(secret), "{everything}");
    }
}

#[tokio::test]
async fn attempts_to_connect_again_are_told_of() {
    let mut cluster = Settings::new().start();
    let config: Config = cluster.url_for(&role::TRUST).parse().unwrap();
    cluster.stop(Shutdown::Fast);
    let manager = LockManager::new(config);
    let told = Told::listen();
    let waiting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.lock("key").await }
    });
    let again = "no session could be connected";
    eventually("it is tried again", PATIENCE, || told.of(again).len() >= 2).await;
    for (level, failed) in told.of(again) {
        assert_eq!((level, failed["error.type"].as_str()), (Level::WARN, "Connect"));
        let delay: f64 = failed["pglock.retry.delay"].parse().unwrap();
        assert!((0.0..=1.0).contains(&delay), "{delay}");
    }
    cluster.start();
    drop(soon(waiting).await.unwrap().unwrap());
}

#[tokio::test]
async fn too_few_sessions_are_told_of_once() {
    let stage = Stage::new();
    let told = Told::listen();
    let bob = stage.manager("bob");
    let alice = LockManager::builder(stage.config("alice")).max_sessions(2).build();
    let keys = [0, 1, 2, 3].map(|object| Key::pair(7_020, object));
    let guards = soon(bob.lock_all(keys)).await.unwrap();
    let mut waits = JoinSet::new();
    // All at once: it is told of those that are there when the first has had its place for long enough.
    for key in keys {
        let alice = alice.clone();
        waits.spawn(async move { alice.lock(key).await.map(drop) });
    }
    let message = "keys have no session";
    eventually("it is told", PATIENCE, || !told.of(message).is_empty()).await;
    // Each time that a key leaves its place, one of the others has it.
    eventually("places go round", PATIENCE, || alice.stats().cancels >= 3).await;
    let (level, crowded) = told.one(message);
    assert_eq!(level, Level::WARN);
    let system = ("db.system.name", "postgresql");
    assert_eq!(fields(&crowded), [system, ("pglock.keys", "3"), ("pglock.sessions.max", "2")]);
    drop(guards);
    while let Some(got) = soon(waits.join_next()).await {
        got.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_lease_that_is_over_is_told_of() {
    let stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let told = Told::listen();
    let cluster = Cluster::default_cluster();
    let proxy = Proxy::start(cluster.port());
    let url = cluster.url_for(&role::TRUST);
    let url = url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", proxy.port()));
    let mut config = stage.config_by(&url, "alice");
    config.lease(Duration::from_secs(3));
    let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
    alice.lock().await.unwrap();
    proxy.set_both(Traffic::Silent);
    assert!(soon(alice.lost()).await.is_lost());
    let (level, expired) = told.one("lease expired");
    assert_eq!((level, expired["pglock.lease"].as_str()), (Level::WARN, "3.0"));
    assert_eq!(told.one("session lost").1["error.type"], "Lost");
    proxy.set_both(Traffic::Flows);
}

/// Whoever is told something may look at what tells it.
#[tokio::test]
async fn a_subscriber_may_use_the_manager() {
    let stage = Stage::new();
    let alice = stage.manager("alice");
    let told = Told::listen_and_ask(Some(alice.clone()));
    drop(soon(alice.lock(stage.key())).await.unwrap());
    assert_eq!(told.events.lock().unwrap().len(), 2);
    soon(alice.close()).await.unwrap();
}
