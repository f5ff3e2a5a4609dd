//! What the tests share: sessions with names, and a look at their locks from outside.

#![cfg_attr(
    not(feature = "manager"),
    allow(dead_code, reason = "some of it is for the tests of the manager alone")
)]

use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "manager")]
use pglock::LockManager;
use pglock::{Config, Key, Lock, Session};
use pglock_test_cluster::{Cluster, Raw, eventually, role};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a test waits for what has to happen sooner or later, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The first major version whose servers notice that the client of a waiting request is gone.
pub(crate) const NOTICES_LOST_CLIENTS: u32 = 14;

/// How soon they do. They look every second, and may have to wait for their turn on a busy machine.
pub(crate) const NOTICED_WITHIN: Duration = Duration::from_secs(10);

/// The key of a row of `pg_locks`, as [`Key`] writes it. Shifting to and fro extends the sign.
const KEY: &str = "CASE objsubid \
    WHEN 2 THEN format('(%s, %s)', classid::bigint << 32 >> 32, objid::bigint << 32 >> 32) \
    ELSE (classid::bigint << 32 | objid::bigint)::text END";

/// One test's key and sessions on a server that others use at the same time.
pub(crate) struct Stage<'a> {
    cluster: &'a Cluster,
    key: i64,
    look: Raw,
}

impl Stage<'static> {
    /// A stage on the server that all tests share.
    pub(crate) fn new() -> Self {
        Self::on(Cluster::default_cluster())
    }
}

impl<'a> Stage<'a> {
    pub(crate) fn on(cluster: &'a Cluster) -> Self {
        static KEY: AtomicI64 = AtomicI64::new(1_000_000);
        Self { cluster, key: KEY.fetch_add(1, Ordering::Relaxed), look: cluster.raw() }
    }

    /// A key that no other stage uses.
    pub(crate) fn key(&self) -> Key {
        Key::bigint(self.key)
    }

    /// The number of that key, for keys that no other stage has either.
    pub(crate) fn number(&self) -> i64 {
        self.key
    }

    /// How `actor` connects: over TCP, without a password.
    pub(crate) fn config(&self, actor: &str) -> Config {
        self.config_by(&self.cluster.url_for(&role::TRUST), actor)
    }

    pub(crate) fn config_by(&self, url: &str, actor: &str) -> Config {
        let mut config: Config = url.parse().unwrap();
        config.application_name(&self.application_name(actor));
        config
    }

    pub(crate) fn application_name(&self, actor: &str) -> String {
        format!("{}/{actor}", self.key)
    }

    /// Connects `actor` for the stage's key.
    pub(crate) async fn lock(&self, actor: &str) -> Lock {
        Lock::connect(&self.config(actor), self.key()).await.unwrap()
    }

    /// Connects `actor` for any keys.
    pub(crate) async fn session(&self, actor: &str) -> Session {
        Session::connect(&self.config(actor)).await.unwrap()
    }

    /// A manager for `actor`, which has not connected yet.
    #[cfg(feature = "manager")]
    pub(crate) fn manager(&self, actor: &str) -> LockManager {
        LockManager::new(self.config(actor))
    }

    /// What the stage's sessions hold and wait for, as the server has it, in alphabetical order: such
    /// as `alice holds exclusive` for the stage's key, `alice awaits shared (1, 2)` for another.
    pub(crate) fn locks(&mut self) -> Vec<String> {
        let sql = format!(
            "SELECT substr(application_name, strpos(application_name, '/') + 1) \
                 || CASE WHEN granted THEN ' holds ' ELSE ' awaits ' END \
                 || CASE mode WHEN 'ExclusiveLock' THEN 'exclusive' WHEN 'ShareLock' THEN 'shared' END \
                 || CASE {KEY} WHEN '{0}' THEN '' ELSE ' ' || {KEY} END \
             FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE locktype = 'advisory' AND application_name LIKE '{0}/%' ORDER BY 1",
            self.key
        );
        self.look.rows(&sql).into_iter().flatten().flatten().collect()
    }

    /// Waits until [`locks`](Self::locks) are these, while other tasks go on.
    pub(crate) async fn until(&mut self, expected: &[&str]) {
        self.until_within(PATIENCE, expected).await;
    }

    /// As [`until`](Self::until), for what must not take longer than this.
    pub(crate) async fn until_within(&mut self, patience: Duration, expected: &[&str]) {
        let what = format!("the locks are {expected:?}");
        eventually(&what, patience, || self.locks() == expected).await;
    }

    /// Waits until there are this many [`locks`](Self::locks), while other tasks go on.
    pub(crate) async fn until_count(&mut self, count: usize) {
        eventually(&format!("there are {count} locks"), PATIENCE, || self.locks().len() == count)
            .await;
    }

    /// The number of the stage's sessions that the server has.
    pub(crate) fn sessions(&mut self) -> usize {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '{}/%'",
            self.key
        );
        self.look.value(&sql).parse().unwrap()
    }

    /// The process that serves `actor`.
    pub(crate) fn pid(&mut self, actor: &str) -> i32 {
        self.activity(actor, "pid").parse().unwrap()
    }

    /// The process in which `actor` waits for a lock.
    pub(crate) fn waiter(&mut self, actor: &str) -> i32 {
        let name = self.application_name(actor);
        let sql = format!(
            "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE locktype = 'advisory' AND NOT granted AND application_name = '{name}'"
        );
        self.look.value(&sql).parse().unwrap()
    }

    /// The process that holds a key.
    pub(crate) fn holder(&mut self, key: Key) -> i32 {
        self.of_key("min(pid)", key, true).parse().unwrap()
    }

    /// How many sessions hold a key.
    pub(crate) fn holders_of(&mut self, key: Key) -> String {
        self.of_key("count(*)", key, true)
    }

    /// How many sessions wait for a key.
    pub(crate) fn waits_for(&mut self, key: Key) -> String {
        self.of_key("count(*)", key, false)
    }

    fn of_key(&mut self, what: &str, key: Key, granted: bool) -> String {
        self.look.value(&format!(
            "SELECT {what} FROM pg_locks \
             WHERE locktype = 'advisory' AND granted = {granted} AND {KEY} = '{key}'"
        ))
    }

    /// A column of `pg_stat_activity` for `actor`.
    pub(crate) fn activity(&mut self, actor: &str, column: &str) -> String {
        let name = self.application_name(actor);
        self.look.value(&format!(
            "SELECT {column} FROM pg_stat_activity WHERE application_name = '{name}'"
        ))
    }

    /// Whether a session of `actor` waits for this. It may compute just before, or be replaced.
    pub(crate) fn waits_in(&mut self, actor: &str, event: &str) -> bool {
        let name = self.application_name(actor);
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE application_name = '{name}' AND wait_event = '{event}'"
        );
        self.look.value(&sql) != "0"
    }

    /// Ends the session of `actor` from outside.
    pub(crate) fn terminate(&mut self, actor: &str) {
        let pid = self.pid(actor);
        assert_eq!(self.look.value(&format!("SELECT pg_terminate_backend({pid})")), "t");
    }

    /// Ends this session from outside.
    pub(crate) fn end_process(&mut self, pid: i32) -> bool {
        self.look.value(&format!("SELECT pg_terminate_backend({pid})")) == "t"
    }

    /// Ends the request of `actor` from outside.
    pub(crate) fn cancel_request(&mut self, actor: &str) {
        let pid = self.pid(actor);
        assert_eq!(self.look.value(&format!("SELECT pg_cancel_backend({pid})")), "t");
    }

    pub(crate) fn major_version(&self) -> u32 {
        self.cluster.major_version()
    }
}

/// Polls a future this often, and drops it if it is not done by then.
pub(crate) async fn poll_times<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|cx| {
        let Some(fewer) = left.checked_sub(1) else { return Poll::Ready(None) };
        left = fewer;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// What a future comes to that is polled on this thread, without a runtime.
pub(crate) fn poll_here<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let latest = Instant::now() + PATIENCE;
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => assert!(Instant::now() < latest, "still pending"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// As [`tokio::time::timeout`], for what must not take for ever: the test fails if it does.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("what was waited for came in time")
}

/// As [`soon`], for what may have more to do than fits into [`PATIENCE`] on a busy machine: the test fails if
/// for so long nothing comes of it.
pub(crate) async fn sometime<F: Future, P: Debug + PartialEq>(
    work: F,
    progress: impl Fn() -> P,
) -> F::Output {
    let mut work = pin!(work);
    loop {
        let before = progress();
        if let Ok(done) = timeout(PATIENCE, work.as_mut()).await {
            return done;
        }
        assert_ne!(progress(), before, "nothing goes on");
    }
}

/// Waits for the next of the tasks to end, as [`sometime`] does.
pub(crate) async fn next_to_end<T: 'static, P: Debug + PartialEq>(
    tasks: &mut JoinSet<T>,
    progress: impl Fn() -> P,
) -> Option<T> {
    sometime(tasks.join_next(), progress).await.map(Result::unwrap)
}
