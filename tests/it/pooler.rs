//! Locks behind a connection pooler, as the server has them: see [`Pool`].

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use pglock::{Config, Error, ErrorKind, Key, Lock, Mode, Pooler, Session};
use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, Raw, Role, eventually, role, signal};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::stage::{
    NOTICED_WITHIN, NOTICES_LOST_CLIENTS, PATIENCE, Stage, next_to_end, poll_times, soon,
};

/// Long enough for a request to reach the server's queue, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);
/// What a try has for that, and more on a busy machine.
const NOT_SERVED_WITHIN: Duration = Duration::from_secs(10);
/// Longer than the timeouts of [`role::HURRIED`].
const LONGER_THAN_ANY_TIMEOUT: Duration = Duration::from_secs(3);

const BOB_WAITS: [&str; 2] = ["alice holds exclusive", "bob awaits exclusive"];

/// Every way to hold a lock behind a pooler.
const WAYS: [(PoolMode, Pooler); 4] = [
    (PoolMode::Transaction, Pooler::Auto),
    (PoolMode::Transaction, Pooler::Transaction),
    (PoolMode::Session, Pooler::Auto),
    (PoolMode::Session, Pooler::Session),
];

/// A pooler of its own before the server that all tests share, and a stage whose actors connect
/// through it.
struct Pool {
    stage: Stage<'static>,
    bouncer: PgBouncer,
    pooler: Pooler,
}

impl Pool {
    /// A pooler in transaction mode, with clients that find it out for themselves.
    fn new(size: u32) -> Self {
        Self::of(PoolMode::Transaction, Pooler::Auto, size)
    }

    fn of(mode: PoolMode, pooler: Pooler, size: u32) -> Self {
        let bouncer = PgBouncer::start(Cluster::default_cluster(), mode, size);
        Self { stage: Stage::new(), bouncer, pooler }
    }

    fn set(size: u32, setting: &str, value: &str) -> Self {
        let cluster = Cluster::default_cluster();
        let settings = [(setting, value)];
        let bouncer = PgBouncer::start_with(cluster, PoolMode::Transaction, size, &settings);
        Self { stage: Stage::new(), bouncer, pooler: Pooler::Auto }
    }

    fn config(&self, role: &Role, actor: &str) -> Config {
        let mut config = self.stage.config_by(&self.bouncer.url_for(role), actor);
        config.pooler(self.pooler);
        config
    }

    async fn lock(&self, actor: &str) -> Lock {
        self.lock_as(&role::TRUST, actor).await
    }

    async fn lock_as(&self, role: &Role, actor: &str) -> Lock {
        Lock::connect(&self.config(role, actor), self.stage.key()).await.unwrap()
    }

    /// The actors whose server connections are in a transaction, in alphabetical order.
    fn in_transaction(&self) -> Vec<String> {
        let prefix = self.stage.application_name("");
        let sql = format!(
            "SELECT substr(application_name, length('{prefix}') + 1) FROM pg_stat_activity \
             WHERE application_name LIKE '{prefix}%' AND xact_start IS NOT NULL ORDER BY 1"
        );
        Cluster::default_cluster().raw().rows(&sql).into_iter().flatten().flatten().collect()
    }
}

#[tokio::test]
async fn a_pooler_is_found_and_refused_where_that_is_wished() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pool = Pool::of(mode, Pooler::Refuse, 1);
        let connected = Session::connect(&pool.config(&role::TRUST, "alice")).await;
        let error = connected.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{mode:?}: {error}");
        assert!(error.to_string().contains("pooler"), "{error}");
    }
    let stage = Stage::new();
    let mut config = stage.config("alice");
    config.pooler(Pooler::Refuse);
    Session::connect(&config).await.expect("there is no pooler");
}

#[tokio::test]
async fn a_lock_is_held_in_a_transaction_where_the_server_process_may_change() {
    for (mode, pooler, holders) in [
        (Some(PoolMode::Transaction), Pooler::Auto, &["alice"][..]),
        (Some(PoolMode::Transaction), Pooler::Transaction, &["alice"]),
        (Some(PoolMode::Session), Pooler::Auto, &["alice"]),
        (Some(PoolMode::Session), Pooler::Session, &[]),
        (None, Pooler::Auto, &[]),
        (None, Pooler::Session, &[]),
        (None, Pooler::Transaction, &["alice"]),
    ] {
        let mut pool = Pool::of(mode.unwrap_or(PoolMode::Transaction), pooler, 1);
        let mut config = pool.config(&role::TRUST, "alice");
        if mode.is_none() {
            config.port(Cluster::default_cluster().port());
        }
        let mut alice = Lock::connect(&config, pool.stage.key()).await.unwrap();
        for mode in [Mode::Exclusive, Mode::Shared] {
            acquire(&mut alice, mode).await;
            assert_eq!(pool.stage.locks(), [format!("alice holds {mode}")]);
            assert_eq!(pool.in_transaction(), holders, "{pooler:?}");
            release(&mut alice, mode).await;
            assert_eq!(pool.stage.locks(), [""; 0]);
            assert_eq!(pool.in_transaction(), [""; 0], "{pooler:?}");
        }
    }
}

async fn acquire(lock: &mut Lock, mode: Mode) {
    match mode {
        Mode::Exclusive => soon(lock.lock()).await.unwrap(),
        Mode::Shared => soon(lock.lock_shared()).await.unwrap(),
    }
}

async fn release(lock: &mut Lock, mode: Mode) {
    match mode {
        Mode::Exclusive => soon(lock.unlock()).await.unwrap(),
        Mode::Shared => soon(lock.unlock_shared()).await.unwrap(),
    }
}

#[tokio::test]
async fn a_lock_behind_a_pooler_excludes_others_until_it_is_released() {
    for (mode, pooler) in WAYS {
        let mut pool = Pool::of(mode, pooler, 2);
        let (mut alice, mut bob) = (pool.lock("alice").await, pool.lock("bob").await);
        let mut direct = pool.stage.lock("direct").await;
        assert!(alice.try_lock().await.unwrap());
        alice.lock().await.unwrap();
        assert_eq!(alice.level(Mode::Exclusive), 2);
        alice.unlock().await.unwrap();
        assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
        for other in [&mut bob, &mut direct] {
            assert!(!other.try_lock().await.unwrap());
            assert!(!other.try_lock_shared().await.unwrap());
            assert!(!other.lock_timeout(SHORT).await.unwrap());
            assert!(!other.lock_shared_timeout(SHORT).await.unwrap());
        }
        assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
        alice.unlock().await.unwrap();
        assert!(bob.try_lock().await.unwrap());
        assert_eq!(pool.stage.locks(), ["bob holds exclusive"]);
        bob.unlock().await.unwrap();
        assert_eq!(bob.unlock().await.unwrap_err().kind(), ErrorKind::NotHeld);
        assert!(direct.try_lock().await.unwrap());
        assert!(!bob.try_lock().await.unwrap());
    }
}

#[tokio::test]
async fn a_shared_lock_behind_a_pooler_is_shared() {
    for (mode, pooler) in WAYS {
        let mut pool = Pool::of(mode, pooler, 2);
        let (mut alice, mut bob) = (pool.lock("alice").await, pool.lock("bob").await);
        let mut direct = pool.stage.lock("direct").await;
        alice.lock_shared().await.unwrap();
        assert!(bob.try_lock_shared().await.unwrap());
        assert_eq!(pool.stage.locks(), ["alice holds shared", "bob holds shared"]);
        assert!(!direct.try_lock().await.unwrap());
        alice.unlock_shared().await.unwrap();
        assert!(!direct.try_lock().await.unwrap());
        bob.unlock_shared().await.unwrap();
        assert!(direct.try_lock().await.unwrap());
    }
}

#[tokio::test]
async fn the_next_client_gets_at_once_what_was_released_behind_a_pooler() {
    for (mode, pooler) in WAYS {
        let pool = Pool::of(mode, pooler, 2);
        let mut direct = pool.stage.lock("direct").await;
        let mut alice = pool.lock("alice").await;
        for round in 0..50 {
            assert!(alice.try_lock().await.unwrap(), "round {round}");
            alice.unlock().await.unwrap();
            assert!(direct.try_lock().await.unwrap(), "round {round}");
            direct.unlock().await.unwrap();
        }
        for round in 0..20 {
            let mut bob = pool.lock("bob").await;
            bob.lock().await.unwrap();
            bob.close().await.unwrap();
            assert!(direct.try_lock().await.unwrap(), "close {round}");
            direct.unlock().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_dropped_lock_behind_a_pooler_is_released() {
    for (mode, pooler) in WAYS {
        let mut pool = Pool::of(mode, pooler, 1);
        let mut alice = pool.lock("alice").await;
        alice.lock().await.unwrap();
        drop(alice);
        pool.stage.until(&[]).await;
        let mut bob = pool.lock("bob").await;
        assert!(bob.try_lock().await.unwrap());
    }
}

#[tokio::test]
async fn a_session_holds_one_lock_at_a_time_in_a_transaction() {
    let mut pool = Pool::new(1);
    let mut alice = Session::connect(&pool.config(&role::TRUST, "alice")).await.unwrap();
    let (key, other) = (pool.stage.key(), Key::from((7, 7)));
    assert!(alice.try_lock(key, Mode::Exclusive).await.unwrap());
    for (key, mode) in [(other, Mode::Exclusive), (other, Mode::Shared), (key, Mode::Shared)] {
        assert_unsupported(&alice.try_lock(key, mode).await.unwrap_err());
        assert_unsupported(&alice.lock(key, mode).await.unwrap_err());
        assert_unsupported(&alice.lock_timeout(key, mode, SHORT).await.unwrap_err());
    }
    assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
    assert!(alice.try_lock(key, Mode::Exclusive).await.unwrap());
    alice.unlock(key, Mode::Exclusive).await.unwrap();
    assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
    alice.unlock(key, Mode::Exclusive).await.unwrap();
    assert!(alice.try_lock(other, Mode::Shared).await.unwrap());
    assert_eq!(pool.stage.locks(), ["alice holds shared (7, 7)"]);
}

#[tokio::test]
async fn a_transaction_gives_no_fencing_tokens() {
    let mut pool = Pool::new(1);
    let mut alice = pool.lock("alice").await;
    assert_unsupported(&alice.try_lock_fenced().await.unwrap_err());
    assert_unsupported(&alice.lock_fenced().await.unwrap_err());
    assert_eq!(pool.stage.locks(), [""; 0]);
    assert!(alice.try_lock().await.unwrap());
    assert_unsupported(&alice.lock_fenced().await.unwrap_err());
    assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
}

fn assert_unsupported(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(!error.is_lost(), "{error}");
}

#[tokio::test]
async fn a_password_is_no_hindrance() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut pool = Pool::of(mode, Pooler::Auto, 1);
        for role in [role::SCRAM, role::MD5] {
            let mut alice = pool.lock_as(&role, "alice").await;
            assert!(alice.try_lock().await.unwrap());
            assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
            alice.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_holder_is_told_behind_a_pooler() {
    for way in WAYS {
        let Contest { pool, mut alice, mut bob } = Contest::new(way).await;
        let name = pool.stage.application_name("alice");
        // Alice asks in the transaction that holds the lock, Bob outside of any.
        for lock in [&mut alice, &mut bob] {
            let holders = soon(lock.holders()).await.unwrap();
            let [holder] = holders.holders() else { panic!("{holders:?}") };
            assert_eq!(holder.application_name(), Some(name.as_str()), "{way:?}");
            assert!(holder.process_id().is_some() && holder.since().is_some(), "{holders}");
        }
        Contest { pool, alice, bob }.assert_over().await;
    }
}

/// In a transaction, the server shows its sessions as they were when it was first asked for them.
#[tokio::test]
async fn who_came_later_is_told_in_the_same_transaction() {
    for way in WAYS {
        let pool = Pool::of(way.0, way.1, 1);
        let mut alice = pool.lock("alice").await;
        alice.lock_shared().await.unwrap();
        let mut others = Vec::new();
        for (number, actor) in (2..).zip(["bob", "carol"]) {
            let mut other = pool.stage.lock(actor).await;
            other.lock_shared().await.unwrap();
            let holders = alice.holders().await.unwrap();
            let name = pool.stage.application_name(actor);
            assert!(holders.to_string().contains(&name), "{way:?}: {holders}");
            assert_eq!(holders.count(), number);
            others.push(other);
        }
    }
}

/// A slice is for the server's sake, which has nothing to do with Bob as long as the pooler has.
#[tokio::test]
async fn a_wait_in_slices_waits_for_the_pooler_in_one_piece() {
    let mut pool = Pool::new(1);
    let slice = Duration::from_millis(100);
    let mut config = pool.config(&role::TRUST, "bob");
    config.wait_slice(slice);
    let (mut alice, mut bob) =
        (pool.lock("alice").await, Lock::connect(&config, pool.stage.key()).await.unwrap());
    alice.lock().await.unwrap();
    let mut waiting = tokio::spawn(async move { bob.lock().await.map(|()| bob) });
    assert!(timeout(20 * slice, &mut waiting).await.is_err(), "alice has the connection");
    alice.unlock().await.unwrap();
    let _bob = soon(waiting).await.unwrap().unwrap();
    assert_eq!(pool.stage.locks(), ["bob holds exclusive"]);
}

/// Alice has the only server connection of the pool. Bob, who gives up, loses no more than a session that
/// holds nothing.
#[tokio::test]
async fn who_asks_for_the_holder_and_is_not_served_is_told() {
    let mut pool = Pool::new(1);
    let (mut alice, mut bob) = (pool.lock("alice").await, pool.lock("bob").await);
    alice.lock().await.unwrap();
    assert!(timeout(SHORT, bob.holders()).await.is_err());
    let error = soon(bob.holders()).await.unwrap_err();
    assert_eq!((error.kind(), error.is_lost()), (ErrorKind::Timeout, true), "{error}");
    assert!(error.to_string().contains("the pooler had no free server connection"), "{error}");
    assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
    alice.unlock().await.unwrap();
}

#[tokio::test]
async fn asking_for_the_holder_behind_a_pooler_is_dropped_at_every_poll() {
    for way in WAYS {
        let mut contest = Contest::new(way).await;
        let asked = contest.drop_at_every_poll(async |bob| bob.holders().await).await;
        assert_eq!(asked.unwrap().count(), 1);
        contest.assert_over().await;
    }
}

/// A key that Alice holds and Bob will want, both behind a pooler with a server connection for each.
struct Contest {
    pool: Pool,
    alice: Lock,
    bob: Lock,
}

impl Contest {
    async fn new((mode, pooler): (PoolMode, Pooler)) -> Self {
        let pool = Pool::of(mode, pooler, 2);
        let (mut alice, bob) = (pool.lock("alice").await, pool.lock("bob").await);
        alice.lock().await.unwrap();
        Self { pool, alice, bob }
    }

    /// Bob does not wait any more, holds nothing, and gets the lock when it is his turn.
    async fn assert_over(mut self) {
        assert_eq!(self.bob.unlock().await.unwrap_err().kind(), ErrorKind::NotHeld);
        assert_eq!(self.pool.stage.locks(), ["alice holds exclusive"]);
        assert!(
            !self.pool.in_transaction().contains(&"bob".to_owned()),
            "Bob keeps his connection"
        );
        self.alice.unlock().await.unwrap();
        soon(self.bob.lock()).await.unwrap();
        assert_eq!(self.pool.stage.locks(), ["bob holds exclusive"]);
        self.bob.unlock().await.unwrap();
        assert_eq!(self.pool.stage.locks(), [""; 0]);
        assert_eq!(self.pool.in_transaction(), [""; 0]);
    }

    /// Drops a request of Bob's before its first poll, after one, after two, and so on until it is done
    /// before it is dropped. Each time, the server then has what Bob's books say.
    async fn drop_at_every_poll<T>(&mut self, request: impl AsyncFn(&mut Lock) -> T) -> T {
        for polls in 0..1_000 {
            let output = poll_times(polls, request(&mut self.bob)).await;
            // This mode is not held: the call only waits until what was dropped is settled.
            let unlocked = soon(self.bob.unlock_shared()).await;
            assert_eq!(unlocked.unwrap_err().kind(), ErrorKind::NotHeld, "after {polls} polls");
            let holds = |lock: &Lock, holds| (lock.level(Mode::Exclusive) > 0).then_some(holds);
            let of_alice = holds(&self.alice, "alice holds exclusive");
            let of_bob = holds(&self.bob, "bob holds exclusive");
            let expected: Vec<_> = of_alice.into_iter().chain(of_bob).collect();
            assert_eq!(self.pool.stage.locks(), expected, "after {polls} polls");
            if let Some(output) = output {
                assert!(polls > 1, "it never waited");
                return output;
            }
        }
        panic!("it is never done");
    }
}

fn wait(mut lock: Lock) -> JoinHandle<(pglock::Result<()>, Lock)> {
    tokio::spawn(async move { (lock.lock().await, lock) })
}

#[tokio::test]
async fn a_wait_behind_a_pooler_that_timed_out_is_over() {
    for way in WAYS {
        let mut contest = Contest::new(way).await;
        for _ in 0..3 {
            assert!(!soon(contest.bob.lock_timeout(SHORT)).await.unwrap());
            assert_eq!(contest.pool.stage.locks(), ["alice holds exclusive"]);
            assert!(!soon(contest.bob.lock_shared_timeout(SHORT)).await.unwrap());
            assert_eq!(contest.pool.stage.locks(), ["alice holds exclusive"]);
        }
        contest.assert_over().await;
    }
}

#[tokio::test]
async fn a_wait_behind_a_pooler_that_was_dropped_is_over() {
    for way in WAYS {
        let mut contest = Contest::new(way).await;
        for _ in 0..3 {
            assert!(timeout(SHORT, contest.bob.lock()).await.is_err());
            assert!(timeout(SHORT, contest.bob.lock_shared()).await.is_err());
        }
        contest.assert_over().await;
    }
}

#[tokio::test]
async fn a_wait_behind_a_pooler_that_was_cancelled_is_over() {
    for way in WAYS {
        let mut contest = Contest::new(way).await;
        let canceller = contest.bob.canceller();
        soon(canceller.cancel()).await;
        let cancelling = async {
            contest.pool.stage.until(&BOB_WAITS).await;
            canceller.cancel().await;
        };
        let (waited, ()) = soon(async { tokio::join!(contest.bob.lock(), cancelling) }).await;
        let error = waited.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert!(!error.is_lost(), "{error}");
        contest.assert_over().await;
    }
}

#[tokio::test]
async fn a_wait_behind_a_pooler_that_the_server_ended_is_over() {
    for way in WAYS {
        let mut contest = Contest::new(way).await;
        let waiting = wait(contest.bob);
        contest.pool.stage.until(&BOB_WAITS).await;
        let cancelled = Cluster::default_cluster().raw().value(&format!(
            "SELECT pg_cancel_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE NOT granted AND application_name = '{}'",
            contest.pool.stage.application_name("bob")
        ));
        assert_eq!(cancelled, "t");
        let (waited, bob) = soon(waiting).await.unwrap();
        let error = waited.unwrap_err();
        assert_eq!(error.sqlstate(), Some("57014"), "{error}");
        assert!(!error.is_lost(), "{error}");
        Contest { bob, ..contest }.assert_over().await;
    }
}

#[tokio::test]
async fn a_wait_behind_a_pooler_ends_with_the_lock() {
    for way in WAYS {
        let mut contest = Contest::new(way).await;
        let waiting = wait(contest.bob);
        contest.pool.stage.until(&BOB_WAITS).await;
        contest.alice.unlock().await.unwrap();
        let (waited, mut bob) = soon(waiting).await.unwrap();
        waited.unwrap();
        assert_eq!(contest.pool.stage.locks(), ["bob holds exclusive"]);
        bob.unlock().await.unwrap();
        contest.alice.lock().await.unwrap();
        Contest { bob, ..contest }.assert_over().await;
    }
}

#[tokio::test]
async fn a_request_behind_a_pooler_can_be_dropped_at_every_point() {
    for way in WAYS {
        let mut contest = Contest::new(way).await;
        let tried = contest.drop_at_every_poll(async |bob| bob.try_lock().await).await;
        assert!(!tried.unwrap());
        let waited = contest.drop_at_every_poll(async |bob| bob.lock_timeout(SHORT).await).await;
        assert!(!waited.unwrap());
        contest.alice.unlock().await.unwrap();
        contest.drop_at_every_poll(async |bob| bob.lock().await).await.unwrap();
        contest.drop_at_every_poll(async |bob| bob.unlock().await).await.unwrap_err();
    }
}

#[tokio::test]
async fn whoever_only_tries_does_not_wait_for_the_pooler() {
    let mut pool = Pool::new(1);
    let (mut alice, mut bob) = (pool.lock("alice").await, pool.lock("bob").await);
    alice.lock().await.unwrap();
    let tried = timeout(NOT_SERVED_WITHIN, bob.try_lock_shared()).await;
    assert_turned_away(&tried.expect("it does not wait").unwrap_err());
    assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
    alice.unlock().await.unwrap();
}

/// The pooler has nothing left for Bob: he is told so, and never that the lock is his.
#[tokio::test]
async fn two_clients_of_one_server_connection_never_both_hold() {
    let mut pool = Pool::new(1);
    let (mut alice, mut bob) = (pool.lock("alice").await, pool.lock("bob").await);
    let mut carol = pool.lock("carol").await;
    alice.lock().await.unwrap();
    assert_turned_away(&soon(bob.lock_timeout(SHORT)).await.unwrap_err());
    assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
    assert!(bob.lock().await.unwrap_err().is_lost());

    let waiting = wait(carol);
    let waited = timeout(SHORT, alice.lost()).await;
    assert!(waited.is_err() && !waiting.is_finished());
    alice.unlock().await.unwrap();
    let waited;
    (waited, carol) = soon(waiting).await.unwrap();
    waited.unwrap();
    assert_eq!(pool.stage.locks(), ["carol holds exclusive"]);
    carol.close().await.unwrap();
}

fn assert_turned_away(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.is_lost(), "{error}");
    let text = error.to_string();
    assert!(text.contains("pooler") && text.contains("server connection"), "{text}");
}

#[tokio::test]
async fn a_pooler_that_sends_a_waiting_client_away_gives_no_lock() {
    let mut pool = Pool::set(1, "query_wait_timeout", "1");
    let (mut alice, mut bob) = (pool.lock("alice").await, pool.lock("bob").await);
    alice.lock().await.unwrap();
    let error = soon(bob.lock()).await.unwrap_err();
    assert!(error.is_lost(), "{error}");
    assert!(error.to_string().contains("query_wait_timeout"), "{error}");
    assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
}

#[tokio::test]
async fn a_pooler_that_ends_idle_transactions_is_told_of() {
    let mut pool = Pool::set(1, "idle_transaction_timeout", "1");
    let mut alice = pool.lock("alice").await;
    alice.lock().await.unwrap();
    let error = soon(alice.lost()).await;
    assert!(error.is_lost(), "{error}");
    pool.stage.until(&[]).await;
}

/// A wish for session locks where the pooler keeps no session: the process that answers is another.
#[tokio::test]
async fn a_pooler_that_changes_the_server_process_is_found_out() {
    for asks_for_token in [false, true] {
        let mut pool = Pool::of(PoolMode::Transaction, Pooler::Session, 2);
        let mut alice = Session::connect(&pool.config(&role::TRUST, "alice")).await.unwrap();
        let (key, other) = (pool.stage.key(), Key::from((8, 8)));
        assert!(alice.try_lock(key, Mode::Exclusive).await.unwrap());
        let holder = pool.stage.pid("alice").to_string();
        let mut occupant = occupy(&pool);
        let taken = occupant.value("SELECT pg_backend_pid()");
        assert_eq!(taken, holder, "the pooler gives the connection that it used last");
        let error = if asks_for_token {
            soon(alice.try_lock_fenced(key, Mode::Exclusive)).await.unwrap_err()
        } else {
            soon(alice.try_lock(other, Mode::Exclusive)).await.unwrap_err()
        };
        assert!(error.is_lost(), "{error}");
        assert!(error.to_string().contains("process"), "{error}");
        assert!(alice.unlock(key, Mode::Exclusive).await.unwrap_err().is_lost());
    }
}

#[tokio::test]
async fn no_timeout_of_the_role_ends_a_holder_or_a_waiter_behind_a_pooler() {
    for way in WAYS {
        let (mode, pooler) = way;
        let mut pool = Pool::of(mode, pooler, 2);
        let mut alice = pool.lock_as(&role::HURRIED, "alice").await;
        alice.lock().await.unwrap();
        let bob = wait(pool.lock_as(&role::HURRIED, "bob").await);
        let lost = timeout(LONGER_THAN_ANY_TIMEOUT, alice.lost()).await;
        assert!(lost.is_err(), "{way:?}: {lost:?}");
        assert_eq!(pool.stage.locks(), BOB_WAITS);
        alice.unlock().await.unwrap();
        let (waited, mut bob) = soon(bob).await.unwrap();
        waited.unwrap();
        let lost = timeout(LONGER_THAN_ANY_TIMEOUT, bob.lost()).await;
        assert!(lost.is_err(), "{way:?}: {lost:?}");
        assert_eq!(pool.stage.locks(), ["bob holds exclusive"]);
        bob.unlock().await.unwrap();
    }
}

/// The next client of the server connection finds every setting as it was.
#[tokio::test]
async fn nothing_is_left_behind_in_a_pooled_server_connection() {
    const SETTINGS: &str = "SELECT pg_backend_pid()::text, name, setting FROM pg_settings \
                            WHERE name <> 'application_name' ORDER BY name";
    let mut pool = Pool::new(1);
    let database = format!("pooled_{}", pool.stage.key());
    create_database_with_timeouts(&database, pool.stage.major_version());
    let mut next = pool.bouncer.raw(&role::TRUST, &database);
    let before = next.rows(SETTINGS);

    let mut config = pool.config(&role::TRUST, "alice");
    config.dbname(&database);
    let mut alice = Lock::connect(&config, pool.stage.key()).await.unwrap();
    assert_eq!(next.rows(SETTINGS), before, "after connecting");
    alice.lock().await.unwrap();
    alice.unlock().await.unwrap();
    assert_eq!(next.rows(SETTINGS), before, "after a lock");
    assert!(alice.try_lock_shared().await.unwrap());
    alice.unlock_shared().await.unwrap();
    assert_eq!(next.rows(SETTINGS), before, "after a try");

    let mut config = pool.stage.config("direct");
    config.dbname(&database);
    let mut direct = Lock::connect(&config, pool.stage.key()).await.unwrap();
    direct.lock().await.unwrap();
    assert!(!alice.try_lock().await.unwrap());
    assert_eq!(next.rows(SETTINGS), before, "after a try in vain");
    assert!(!alice.lock_timeout(SHORT).await.unwrap());
    assert_eq!(next.rows(SETTINGS), before, "after a wait in vain");
    assert!(timeout(SHORT, alice.lock()).await.is_err());
    assert_eq!(alice.unlock().await.unwrap_err().kind(), ErrorKind::NotHeld);
    assert_eq!(next.rows(SETTINGS), before, "after a dropped wait");
    alice.close().await.unwrap();
    assert_eq!(next.rows(SETTINGS), before, "after the end");
    assert_eq!(pool.stage.locks(), ["direct holds exclusive"]);
}

/// Timeouts that are neither what a lock needs nor the server's defaults, nor ever reached.
fn create_database_with_timeouts(database: &str, major_version: u32) {
    let mut look = Cluster::default_cluster().raw();
    look.rows(&format!("CREATE DATABASE {database}"));
    for (setting, since) in [
        ("statement_timeout", 0),
        ("lock_timeout", 0),
        ("idle_in_transaction_session_timeout", 0),
        ("idle_session_timeout", 14),
        ("client_connection_check_interval", 14),
        ("transaction_timeout", 17),
    ] {
        if major_version >= since {
            look.rows(&format!("ALTER DATABASE {database} SET {setting} = '17min'"));
        }
    }
}

/// It would keep vacuum back, and an index that is created concurrently would wait for it: for ever, if the
/// holder of the lock creates it.
#[tokio::test]
async fn a_lock_in_a_transaction_keeps_no_snapshot() {
    let mut pool = Pool::new(1);
    let database = format!("snapshots_{}", pool.stage.key());
    let mut look = Cluster::default_cluster().raw();
    look.rows(&format!("CREATE DATABASE {database}"));
    look.rows(&format!(
        "ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'"
    ));
    let mut config = pool.config(&role::TRUST, "alice");
    config.dbname(&database);
    let mut alice = Lock::connect(&config, pool.stage.key()).await.unwrap();
    assert!(alice.try_lock().await.unwrap());
    assert_eq!(pool.stage.locks(), ["alice holds exclusive"]);
    let name = pool.stage.application_name("alice");
    let has_snapshot = look.value(&format!(
        "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE application_name = '{name}'"
    ));
    assert_eq!(has_snapshot, "f");
    alice.unlock().await.unwrap();
}

#[tokio::test]
async fn a_holder_behind_a_pooler_whose_server_process_ended_is_told() {
    for (mode, pooler) in WAYS {
        let mut pool = Pool::of(mode, pooler, 1);
        let mut alice = pool.lock("alice").await;
        alice.lock().await.unwrap();
        pool.stage.terminate("alice");
        let error = soon(alice.lost()).await;
        assert!(error.is_lost(), "{error}");
        assert!(alice.unlock().await.unwrap_err().is_lost());
        assert_eq!(alice.level(Mode::Exclusive), 0);
        pool.stage.until(&[]).await;
        assert!(soon(pool.lock("bob")).await.try_lock().await.unwrap());
    }
}

#[tokio::test]
async fn holder_and_waiter_are_told_when_the_pooler_is_gone() {
    for way in WAYS {
        let mut contest = Contest::new(way).await;
        let waiting = wait(contest.bob);
        contest.pool.stage.until(&BOB_WAITS).await;
        signal(contest.pool.bouncer.process_id(), "KILL");
        let error = soon(contest.alice.lost()).await;
        assert!(error.is_lost(), "{error}");
        let (waited, _bob) = soon(waiting).await.unwrap();
        assert!(waited.unwrap_err().is_lost());
        contest.pool.stage.until(&[]).await;
    }
}

/// Its socket is closed and nothing else: as when its process is killed.
#[test]
fn a_waiter_behind_a_pooler_that_is_gone_leaves_the_queue() {
    for way in WAYS {
        let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
        let mut contest = first.block_on(Contest::new(way));
        drop(contest.bob);
        let carol = second.block_on(contest.pool.lock("carol"));
        let waiting = second.spawn(async move { wait(carol).await });
        let carol_waits = ["alice holds exclusive", "carol awaits exclusive"];
        first.block_on(contest.pool.stage.until(&carol_waits));
        drop(second);
        first.block_on(async {
            assert!(waiting.await.unwrap_err().is_cancelled());
            if contest.pool.stage.major_version() >= NOTICES_LOST_CLIENTS {
                contest.pool.stage.until_within(NOTICED_WITHIN, &["alice holds exclusive"]).await;
            }
            contest.alice.unlock().await.unwrap();
            contest.pool.stage.until(&[]).await;
        });
    }
}

/// Waits that end in a moment, one after the other, beside another client of the same server
/// connections: no cancel goes astray, and the pooler survives them.
#[tokio::test]
async fn a_burst_of_cancels_harms_nobody() {
    const SHORTEST: Duration = Duration::from_millis(5);
    let mut pool = Pool::new(2);
    let mut holder = pool.stage.lock("holder").await;
    holder.lock().await.unwrap();
    let mut bob = pool.lock("bob").await;
    let mut bystander = pool.bouncer.raw(&role::TRUST, "app");
    let (end, ended) = mpsc::channel::<()>();
    let bystander = tokio::task::spawn_blocking(move || {
        let mut processes = HashSet::new();
        while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
            processes.insert(bystander.value("SELECT pg_backend_pid() FROM pg_sleep(0.002)"));
        }
        processes.len()
    });
    for _ in 0..200 {
        match soon(bob.lock_timeout(SHORTEST)).await {
            Ok(acquired) => assert!(!acquired),
            // Beginning took longer than that, on a busy machine.
            Err(error) => {
                assert_turned_away(&error);
                bob = pool.lock("bob").await;
            }
        }
    }
    drop(end);
    let processes = soon(bystander).await.expect("the other client was not disturbed");
    assert_eq!(processes, 2, "server connections that the other client had");
    assert!(!pool.bouncer.has_exited(), "{}", pool.bouncer.log());
    assert_eq!(pool.stage.locks(), ["holder holds exclusive"]);
    holder.unlock().await.unwrap();
    assert!(bob.try_lock().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contenders_behind_a_pooler_with_20_server_connections_count_right() {
    count_behind(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contenders_behind_a_pooler_with_5_server_connections_count_right() {
    count_behind(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contenders_behind_a_pooler_with_2_server_connections_count_right() {
    count_behind(2).await;
}

/// Most contenders wait in the pooler's queue, the others in the server's. They do not get the lock
/// until some have waited in vain in both.
async fn count_behind(pool_size: u32) {
    const CONTENDERS: u32 = 50;
    const TURNS: u32 = 10;
    let mut pool = Pool::new(pool_size);
    let key = pool.stage.key();
    let mut config = pool.config(&role::TRUST, "contender");
    config.connect_timeout(PATIENCE);
    let mut holder = pool.stage.lock("holder").await;
    holder.lock().await.unwrap();
    let mut locks = Vec::new();
    for _ in 0..CONTENDERS {
        locks.push(Lock::connect(&config, key).await.unwrap());
    }
    let occupants: Vec<_> = (0..pool_size).map(|_| occupy(&pool)).collect();
    let tally = Arc::new(Tally::default());
    let mut contenders = JoinSet::new();
    for lock in locks {
        contenders.spawn(contend(lock, key, config.clone(), TURNS, Arc::clone(&tally)));
    }
    tally.until("some waited in vain in the pooler", |tally| &tally.turned_away).await;
    drop(occupants);
    tally.until("some waited in vain in the server", |tally| &tally.missed).await;
    assert_eq!(tally.count.load(Ordering::Relaxed), 0);
    holder.unlock().await.unwrap();
    let counted = || tally.count.load(Ordering::Relaxed);
    while next_to_end(&mut contenders, counted).await.is_some() {}
    assert_eq!(tally.count.load(Ordering::Relaxed), CONTENDERS * TURNS);
    assert_eq!(pool.stage.locks(), [""; 0]);
    assert_eq!(pool.in_transaction(), [""; 0]);
    assert!(!pool.bouncer.has_exited(), "{}", pool.bouncer.log());
}

/// Another program's transaction, which keeps a server connection of the pool.
fn occupy(pool: &Pool) -> Raw {
    let mut occupant = pool.bouncer.raw(&role::TRUST, "app");
    occupant.rows("BEGIN");
    occupant
}

/// What contenders have counted, and how often they waited in vain.
#[derive(Default)]
struct Tally {
    /// Read and written in two steps, between which others run.
    count: AtomicU32,
    is_occupied: AtomicBool,
    missed: AtomicU32,
    turned_away: AtomicU32,
}

impl Tally {
    async fn until(&self, what: &str, counter: impl Fn(&Self) -> &AtomicU32) {
        eventually(what, PATIENCE, || counter(self).load(Ordering::Relaxed) > 0).await;
    }

    async fn turn(&self) {
        assert!(!self.is_occupied.swap(true, Ordering::Relaxed), "two hold the lock");
        let count = self.count.load(Ordering::Relaxed);
        tokio::task::yield_now().await;
        self.count.store(count + 1, Ordering::Relaxed);
        self.is_occupied.store(false, Ordering::Relaxed);
    }
}

async fn contend(mut lock: Lock, key: Key, config: Config, turns: u32, tally: Arc<Tally>) {
    const LIMIT: Duration = Duration::from_millis(500);
    let mut left = turns;
    while left > 0 {
        match lock.lock_timeout(LIMIT).await {
            Ok(true) => {
                tally.turn().await;
                lock.unlock().await.unwrap();
                left -= 1;
            }
            Ok(false) => _ = tally.missed.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                assert_turned_away(&error);
                tally.turned_away.fetch_add(1, Ordering::Relaxed);
                lock = Lock::connect(&config, key).await.unwrap();
            }
        }
    }
}
