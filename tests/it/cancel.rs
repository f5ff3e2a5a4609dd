//! However a request ends early, the session afterwards holds what its books say, and goes on.

use std::pin::pin;
use std::thread;
use std::time::Duration;

use pglock::{Error, ErrorKind, Lock, Mode, SslMode};
use pglock_test_cluster::{Settings, eventually, signal};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::stage::{NOTICED_WITHIN, NOTICES_LOST_CLIENTS, PATIENCE, Stage, poll_times, soon};

/// Long enough for a request to be queued, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

const BOB_WAITS: [&str; 2] = ["alice holds exclusive", "bob awaits exclusive"];

/// A key that Alice holds and Bob will want.
struct Contest {
    stage: Stage<'static>,
    alice: Lock,
    bob: Lock,
}

impl Contest {
    async fn new() -> Self {
        let stage = Stage::new();
        let (mut alice, bob) = (stage.lock("alice").await, stage.lock("bob").await);
        alice.lock().await.unwrap();
        Self { stage, alice, bob }
    }

    /// Bob does not wait any more, holds nothing, and gets the lock when it is his turn.
    async fn assert_over(mut self) {
        self.stage.until(&["alice holds exclusive"]).await;
        assert_eq!(self.bob.level(Mode::Exclusive), 0);
        assert_eq!(self.bob.unlock().await.unwrap_err().kind(), ErrorKind::NotHeld);
        self.alice.unlock().await.unwrap();
        assert_eq!(self.stage.locks(), [""; 0]);
        soon(self.bob.lock()).await.unwrap();
        assert_eq!(self.stage.locks(), ["bob holds exclusive"]);
        self.bob.unlock().await.unwrap();
        assert_eq!(self.stage.locks(), [""; 0]);
        assert_eq!(self.stage.sessions(), 2, "a session was replaced or left behind");
    }

    /// Waits until only so many sessions are left, after one was lost with a request under way.
    async fn until_sessions(&mut self, count: usize) {
        // An old server writes to the closed socket, and notices, only when the wait is over.
        let must_release = self.stage.major_version() < NOTICES_LOST_CLIENTS;
        if must_release {
            self.alice.unlock().await.unwrap();
        }
        eventually("the session is gone", PATIENCE, || self.stage.sessions() == count).await;
        if must_release {
            self.alice.lock().await.unwrap();
        }
    }
}

/// Bob's wait as a task, which gives the lock back when it has ended.
fn wait(mut bob: Lock) -> JoinHandle<(pglock::Result<()>, Lock)> {
    tokio::spawn(async move { (bob.lock().await, bob) })
}

fn assert_cancelled(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(!error.is_lost());
}

#[tokio::test]
async fn a_wait_that_timed_out_is_over() {
    let mut contest = Contest::new().await;
    for _ in 0..3 {
        assert!(!soon(contest.bob.lock_timeout(SHORT)).await.unwrap());
        assert_eq!(contest.stage.locks(), ["alice holds exclusive"]);
        assert!(!soon(contest.bob.lock_shared_timeout(SHORT)).await.unwrap());
        assert_eq!(contest.stage.locks(), ["alice holds exclusive"]);
    }
    contest.assert_over().await;
}

#[tokio::test]
async fn a_wait_that_was_dropped_by_a_timeout_is_over() {
    let mut contest = Contest::new().await;
    for _ in 0..3 {
        assert!(timeout(SHORT, contest.bob.lock()).await.is_err());
        assert!(timeout(SHORT, contest.bob.lock_shared()).await.is_err());
        assert!(timeout(SHORT, contest.bob.lock_timeout(LONG)).await.is_err());
    }
    contest.assert_over().await;
}

#[tokio::test]
async fn a_wait_that_was_dropped_by_select_is_over() {
    let mut contest = Contest::new().await;
    tokio::select! {
        _ = contest.bob.lock() => panic!("acquired what is held"),
        () = contest.stage.until(&BOB_WAITS) => {}
    }
    contest.assert_over().await;
}

#[tokio::test]
async fn a_wait_that_was_cancelled_is_over() {
    let mut contest = Contest::new().await;
    let canceller = contest.bob.canceller();
    let waiting = wait(contest.bob);
    contest.stage.until(&BOB_WAITS).await;
    soon(canceller.cancel()).await;
    // When the cancel has returned, the wait has ended.
    assert_eq!(contest.stage.locks(), ["alice holds exclusive"]);
    let (waited, bob) = soon(waiting).await.unwrap();
    assert_cancelled(&waited.unwrap_err());
    Contest { bob, ..contest }.assert_over().await;
}

#[tokio::test]
async fn a_wait_with_a_timeout_can_be_cancelled_too() {
    let mut contest = Contest::new().await;
    let canceller = contest.bob.canceller();
    let cancelling = async {
        contest.stage.until(&["alice holds exclusive", "bob awaits shared"]).await;
        canceller.clone().cancel().await;
    };
    let (waited, ()) =
        soon(async { tokio::join!(contest.bob.lock_shared_timeout(LONG), cancelling) }).await;
    assert_cancelled(&waited.unwrap_err());
    contest.assert_over().await;
}

#[tokio::test]
async fn a_wait_that_the_server_ended_is_over() {
    let mut contest = Contest::new().await;
    let waiting = wait(contest.bob);
    contest.stage.until(&BOB_WAITS).await;
    contest.stage.cancel_request("bob");
    let (waited, bob) = soon(waiting).await.unwrap();
    let error = waited.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server, "{error}");
    assert_eq!(error.sqlstate(), Some("57014"), "{error}");
    assert!(!error.is_lost());
    Contest { bob, ..contest }.assert_over().await;
}

#[tokio::test]
async fn a_canceller_does_nothing_without_a_wait() {
    let mut contest = Contest::new().await;
    let canceller = contest.bob.canceller();
    soon(canceller.cancel()).await;
    assert!(!soon(contest.bob.lock_timeout(SHORT)).await.unwrap(), "it was not cancelled");
    soon(canceller.cancel()).await;
    contest.assert_over().await;
}

#[tokio::test]
async fn a_canceller_does_nothing_to_the_next_wait() {
    let mut contest = Contest::new().await;
    let canceller = contest.bob.canceller();
    // The cancel is asked for and not waited for.
    let cancelling = async {
        contest.stage.until(&BOB_WAITS).await;
        poll_times(1, canceller.cancel()).await;
    };
    let (waited, ()) = soon(async { tokio::join!(contest.bob.lock(), cancelling) }).await;
    assert_cancelled(&waited.unwrap_err());

    let waiting = wait(contest.bob);
    contest.stage.until(&BOB_WAITS).await;
    contest.alice.unlock().await.unwrap();
    let (waited, mut bob) = soon(waiting).await.unwrap();
    waited.unwrap();
    assert_eq!(contest.stage.locks(), ["bob holds exclusive"]);
    bob.unlock().await.unwrap();
    contest.alice.lock().await.unwrap();
    Contest { bob, ..contest }.assert_over().await;
}

#[tokio::test]
async fn a_canceller_returns_when_the_wait_is_dropped() {
    let mut contest = Contest::new().await;
    let canceller = contest.bob.canceller();
    let mut waiting = Box::pin(contest.bob.lock());
    assert!(poll_times(1, &mut waiting).await.is_none());
    let mut cancelling = pin!(canceller.cancel());
    assert!(poll_times(1, &mut cancelling).await.is_none());
    drop(waiting);
    soon(cancelling).await;
    contest.assert_over().await;
}

#[tokio::test]
async fn a_canceller_outlives_its_session() {
    let mut contest = Contest::new().await;
    let canceller = contest.bob.canceller();
    contest.bob.close().await.unwrap();
    soon(canceller.cancel()).await;
}

/// A stopped server process does not answer: what was dropped cannot be settled for the time being.
#[tokio::test]
async fn a_wait_can_end_while_the_one_before_is_being_settled() {
    let mut contest = Contest::new().await;
    let process = contest.stage.pid("bob");
    let canceller = contest.bob.canceller();
    let mut waiting = Box::pin(contest.bob.lock());
    assert!(poll_times(1, &mut waiting).await.is_none());
    contest.stage.until(&BOB_WAITS).await;
    signal(process, "STOP");
    drop(waiting);

    assert!(!soon(contest.bob.lock_timeout(SHORT)).await.unwrap());
    assert!(timeout(SHORT, contest.bob.lock()).await.is_err());
    let mut waiting = Box::pin(contest.bob.lock());
    assert!(poll_times(1, &mut waiting).await.is_none());
    assert!(poll_times(1, canceller.cancel()).await.is_none());
    signal(process, "CONT");
    assert_cancelled(&soon(waiting).await.unwrap_err());
    contest.assert_over().await;
}

/// The server ignores a cancel that comes before the request: here its process is woken to both.
#[tokio::test]
async fn a_cancel_that_overtakes_its_request_is_sent_again() {
    let mut contest = Contest::new().await;
    let process = contest.stage.pid("bob");
    signal(process, "STOP");
    assert!(poll_times(1, contest.bob.lock()).await.is_none());
    // The first cancel is sent meanwhile.
    assert!(!soon(contest.bob.lock_timeout(SHORT)).await.unwrap());
    signal(process, "CONT");
    contest.assert_over().await;
}

#[tokio::test]
async fn a_session_that_cannot_be_settled_is_lost() {
    let mut contest = Contest::new().await;
    let process = contest.stage.pid("bob");
    signal(process, "STOP");
    let error = soon(contest.bob.lock_timeout(SHORT)).await.unwrap_err();
    signal(process, "CONT");
    assert!(error.is_lost(), "{error}");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(contest.bob.lock().await.unwrap_err().is_lost());
    contest.until_sessions(1).await;
    assert_eq!(contest.stage.locks(), ["alice holds exclusive"]);
}

#[tokio::test]
async fn a_forgotten_wait_is_settled_by_the_next_call() {
    let mut contest = Contest::new().await;
    let mut waiting = Box::pin(contest.bob.lock());
    assert!(poll_times(1, &mut waiting).await.is_none());
    contest.stage.until(&BOB_WAITS).await;
    std::mem::forget(waiting);
    assert!(!soon(contest.bob.try_lock()).await.unwrap());
    assert_eq!(contest.stage.locks(), ["alice holds exclusive"]);
    contest.assert_over().await;
}

#[tokio::test]
async fn a_forgotten_wait_that_was_granted_is_settled_by_the_next_call() {
    let mut contest = Contest::new().await;
    let mut waiting = Box::pin(contest.bob.lock());
    assert!(poll_times(1, &mut waiting).await.is_none());
    contest.stage.until(&BOB_WAITS).await;
    std::mem::forget(waiting);
    contest.alice.unlock().await.unwrap();
    assert_eq!(contest.stage.locks(), ["bob holds exclusive"]);
    assert_eq!(contest.bob.unlock().await.unwrap_err().kind(), ErrorKind::NotHeld);
    assert_eq!(contest.stage.locks(), [""; 0]);
}

#[test]
fn a_wait_ends_with_its_runtime() {
    let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let mut contest = second.block_on(Contest::new());
    let mut carol = first.block_on(contest.stage.lock("carol"));
    let waiting = first.spawn(async move { carol.lock().await });
    second.block_on(contest.stage.until(&["alice holds exclusive", "carol awaits exclusive"]));
    drop(first);
    second.block_on(async {
        assert!(waiting.await.unwrap_err().is_cancelled());
        if contest.stage.major_version() >= NOTICES_LOST_CLIENTS {
            contest.stage.until_within(NOTICED_WITHIN, &["alice holds exclusive"]).await;
        }
        contest.until_sessions(2).await;
        contest.assert_over().await;
    });
}

#[test]
fn a_session_whose_runtime_ended_while_it_was_settled_is_lost() {
    let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let mut contest = second.block_on(Contest::new());
    let mut carol = first.block_on(contest.stage.lock("carol"));
    let process = contest.stage.pid("carol");
    // So that it cannot be settled before the runtime ends.
    signal(process, "STOP");
    assert!(first.block_on(poll_times(1, carol.lock())).is_none());
    drop(first);
    signal(process, "CONT");
    let error = second.block_on(soon(carol.lock())).unwrap_err();
    assert!(error.is_lost(), "{error}");
    assert!(error.to_string().contains("runtime"), "{error}");
    second.block_on(async {
        contest.until_sessions(2).await;
        contest.assert_over().await;
    });
}

/// Its timers end before its sockets do, all at once.
#[test]
fn a_wait_on_another_runtime_is_told_of_the_end_of_its_own() {
    const ROUNDS: u32 = 50;
    let stage = Stage::new();
    let second = Runtime::new().unwrap();
    let mut alice = second.block_on(stage.lock("alice"));
    second.block_on(alice.lock()).unwrap();
    for _ in 0..ROUNDS {
        let first = Runtime::new().unwrap();
        let mut bob = first.block_on(stage.lock("bob"));
        let waiting = second.spawn(async move { bob.lock_timeout(LONG).await });
        thread::sleep(SHORT / 5);
        drop(first);
        let ended = second.block_on(async { soon(waiting).await });
        assert!(ended.expect("no panic").unwrap_err().is_lost());
    }
}

/// Cancels a wait on a runtime that ends before the server has seen to that, and asks for more.
fn outlive_the_runtime_of_a_cancel(ssl_mode: SslMode) {
    /// Long enough for a signal to come, or for an answer.
    const A_WHILE: Duration = Duration::from_millis(200);
    let cluster = Settings::new().start();
    let stage = Stage::on(&cluster);
    let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let connect = async |actor: &str| {
        let mut config = stage.config(actor);
        config.sslmode(ssl_mode);
        Lock::connect(&config, stage.key()).await.unwrap()
    };
    let locks = async { (connect("alice").await, connect("bob").await, connect("carol").await) };
    let (mut alice, mut bob, mut carol) = first.block_on(locks);
    first.block_on(alice.lock()).unwrap();
    // Until it goes on, nobody sees to a CancelRequest.
    signal(cluster.process_id(), "STOP");
    second.block_on(async {
        let waiting = timeout(5 * A_WHILE, bob.lock_timeout(A_WHILE));
        let releasing = async {
            sleep(2 * A_WHILE).await;
            alice.unlock().await.unwrap();
        };
        let (waited, ()) = tokio::join!(waiting, releasing);
        waited.expect_err("it is not known whether the signal is still to come");
    });
    drop(second);
    let next = first.spawn(async move {
        bob.lock().await?;
        bob.unlock().await?;
        carol.lock().await?;
        timeout(5 * A_WHILE, bob.lock()).await.unwrap_or(Ok(()))
    });
    thread::sleep(2 * A_WHILE);
    signal(cluster.process_id(), "CONT");
    first.block_on(async { soon(next).await }).unwrap().unwrap();
}

#[test]
fn a_late_cancel_hits_no_later_request_though_the_runtime_has_ended_on_which_it_was_sent() {
    outlive_the_runtime_of_a_cancel(SslMode::Disable);
}

#[cfg(feature = "tls")]
#[test]
fn a_session_outlives_the_runtime_on_which_a_cancel_was_about_to_be_sent() {
    outlive_the_runtime_of_a_cancel(SslMode::Require);
}
