//! Servers that say nothing, or nothing to the point, are given up in bounded time.
//!
//! The library waits ten seconds for a request to be withdrawn, and as long for the end of a session, and
//! half a minute for an answer, so the tests in here go on side by side in a few.

use std::time::Duration;

use pglock::ErrorKind::{Connect, Lost, Timeout};
use pglock::{Lock, Result};
use tokio::time::{Instant, timeout};

use super::{assert_error, assert_lost, refusal};
use crate::scripted::messages::{boolean, error, notice, ready_for_query, void};
use crate::scripted::{LOCK, Script, TRY_LOCK, UNLOCK, timely};

/// How long a wait lasts that is given up.
const BRIEFLY: Duration = Duration::from_millis(20);

/// When a request that cannot be withdrawn is given up, and then some for a busy machine.
const GIVEN_UP: std::ops::Range<Duration> = Duration::from_secs(9)..Duration::from_secs(20);

#[tokio::test]
async fn a_request_that_cannot_be_withdrawn_ends_the_session() {
    let waiting = || Script::new().session().hears(LOCK).cues();
    tokio::join!(
        // The CancelRequest stays open, and the wait too. Its signal may still come, so that no other
        // request may be sent.
        assert_given_up(waiting().cancel_comes().left()),
        // The same where the wait has ended by itself.
        assert_given_up(waiting().cancel_comes().says(error("40P01", "a deadlock")).ready().left()),
        // Each CancelRequest ends, and the wait does not.
        assert_given_up(waiting().ends_cancels()),
        // The server talks all the time, and not to the point.
        assert_given_up(waiting().cancel_comes().drips(notice(100)).ends_cancels()),
        assert_given_up(waiting().cancel_comes().floods(notice(100)).ends_cancels()),
        // The wait is withdrawn, and the lock never released.
        assert_given_up(
            waiting()
                .cancel_comes()
                .says(error("57014", "canceled"))
                .ready()
                .cancel_ends()
                .hears(UNLOCK)
                .left()
        ),
        assert_given_up_after_a_drop(waiting().ends_cancels()),
    );
}

#[tokio::test]
async fn a_lock_that_is_granted_by_half_keeps_nobody_past_his_time() {
    let backend = Script::new().session().hears(LOCK).says(void()).left().play().await;
    let mut lock = backend.connect().await.unwrap();
    let start = Instant::now();
    let error = timely(lock.lock_timeout(BRIEFLY)).await.unwrap_err();
    assert!(GIVEN_UP.contains(&start.elapsed()), "{:?}", start.elapsed());
    backend.done().await;
    assert_lost(lock, error, Lost, "the server did not answer within 10 s").await;
}

async fn assert_given_up(script: Script) {
    let backend = script.play().await;
    let mut lock = backend.connect().await.unwrap();
    let start = Instant::now();
    let error = timely(lock.lock_timeout(BRIEFLY)).await.unwrap_err();
    assert!(GIVEN_UP.contains(&start.elapsed()), "{:?}", start.elapsed());
    backend.done().await;
    assert_lost(lock, error, Lost, "a request could not be withdrawn within 10 s").await;
}

async fn assert_given_up_after_a_drop(script: Script) {
    let backend = script.play().await;
    let mut lock = backend.connect().await.unwrap();
    tokio::select! {
        ended = lock.lock() => panic!("not given up: {ended:?}"),
        () = backend.cue() => {}
    }
    let error = timely(lock.try_lock()).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "a request could not be withdrawn within 10 s").await;
}

#[tokio::test]
async fn a_server_that_does_not_go_on_after_an_error_is_given_up_with_its_words() {
    let fails = |script: Script| script.says(error("XX000", "what is an F?"));
    tokio::join!(
        assert_stuck(fails(Script::new().session().hears(LOCK)), async |lock| lock.lock().await),
        assert_stuck(fails(Script::new().session().hears(TRY_LOCK)), async |lock| {
            lock.try_lock().await.map(drop)
        }),
        // There is nothing to withdraw once the server has answered.
        assert_stuck(fails(Script::new().session().hears(LOCK)), async |lock| {
            lock.lock_timeout(Duration::from_secs(5)).await.map(drop)
        }),
        assert_stuck(fails(Script::new().session().hears(LOCK).cancel_comes()), async |lock| {
            lock.lock_timeout(BRIEFLY).await.map(drop)
        }),
        assert_stuck_while_connecting(fails(Script::new().login().refuses_calls())),
    );
}

async fn assert_stuck(script: Script, work: impl AsyncFnOnce(&mut Lock) -> Result<()>) {
    let backend = script.left().play().await;
    let mut lock = backend.connect().await.unwrap();
    let start = Instant::now();
    let error = timely(work(&mut lock)).await.unwrap_err();
    assert!(GIVEN_UP.contains(&start.elapsed()), "{:?}", start.elapsed());
    backend.done().await;
    assert_lost(lock, error, Lost, "after an error: what is an F? (SQLSTATE XX000)").await;
}

async fn assert_stuck_while_connecting(script: Script) {
    let error = refusal(script).await;
    assert_error(&error, Connect, "after an error: what is an F? (SQLSTATE XX000)");
}

#[tokio::test]
async fn a_server_that_keeps_talking_instead_of_answering_is_given_up() {
    let silent = "did not answer within 30 s";
    let session = || Script::new().session();
    let held = || session().hears(TRY_LOCK).says([boolean(true), ready_for_query()].concat());
    let fenced = || session().hears(LOCK).says([void(), ready_for_query()].concat());
    tokio::join!(
        assert_silent(session().hears(TRY_LOCK), silent, async |lock| {
            lock.try_lock().await.map(drop)
        }),
        assert_silent(session().hears_type(b'Q'), silent, async |lock| {
            lock.holders().await.map(drop)
        }),
        assert_silent(held().hears(UNLOCK), silent, async |lock| {
            assert!(lock.try_lock().await?);
            lock.unlock().await
        }),
        // Nobody waits for it any more.
        assert_silent(held().hears(UNLOCK), "did not answer within 10 s", async |lock| {
            assert!(lock.try_lock().await?);
            timeout(BRIEFLY, lock.unlock()).await.unwrap_err();
            Err(lock.lost().await)
        }),
        // A token is withdrawn first, as a wait is.
        assert_silent(fenced().hears_type(b'Q'), "withdrawn within 10 s", async |lock| {
            lock.lock_fenced().await.map(drop)
        }),
    );
}

/// The answer does not come, but something does at every moment.
async fn assert_silent(
    script: Script,
    words: &str,
    work: impl AsyncFnOnce(&mut Lock) -> Result<()>,
) {
    let backend = script.drips(notice(100)).ends_cancels().play().await;
    let mut lock = backend.connect().await.unwrap();
    let error = timely(work(&mut lock)).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, words).await;
}

#[tokio::test]
async fn a_session_that_the_server_does_not_end_is_not_waited_for_for_ever() {
    let terminated = || Script::new().session().hears_bytes(b"X\0\0\0\x04".to_vec());
    tokio::join!(
        assert_not_ended(terminated().left()),
        assert_not_ended(terminated().drips(notice(100))),
        assert_not_ended(terminated().floods(notice(100))),
    );
}

async fn assert_not_ended(script: Script) {
    let backend = script.play().await;
    let lock = backend.connect().await.unwrap();
    let error = timely(lock.close()).await.unwrap_err();
    assert_error(&error, Timeout, "its locks may still be held");
    backend.done().await;
}
