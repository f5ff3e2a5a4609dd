//! Waits that are given up: by their time, by a canceller, by dropping the future.

use std::time::Duration;

use pglock::ErrorKind::{Cancelled, Deadlock, Lost};
use pglock::{Lock, Mode};

use super::{assert_error, assert_lost};
use crate::scripted::messages::{boolean, error, fatal, notice, returned, void};
use crate::scripted::{Backend, LOCK, Script, TRY_LOCK, UNLOCK, timely};

/// How long a wait lasts that is given up.
const BRIEFLY: Duration = Duration::from_millis(100);

/// Long enough to be sure that the client does not do what it must not.
const A_WHILE: Duration = Duration::from_millis(150);

fn canceled() -> Vec<u8> {
    error("57014", "canceling statement due to user request")
}

/// A session whose client waits.
fn waiting() -> Script {
    Script::new().session().hears(LOCK).cues()
}

/// A wait that was withdrawn: the server says so before it ends the `CancelRequest`.
fn withdrawn() -> Script {
    waiting().cancel_comes().says(canceled()).ready().cancel_ends()
}

/// The end of a play in which the lock is taken and released once more, to see that all is well.
fn goes_on(script: Script) -> Script {
    let script = script.hears(TRY_LOCK).says(boolean(true)).ready();
    script.hears(UNLOCK).says(boolean(true)).ready().terminated()
}

async fn assert_goes_on(mut lock: Lock, backend: Backend) {
    assert_eq!(lock.level(Mode::Exclusive), 0);
    assert!(timely(lock.try_lock()).await.unwrap());
    timely(lock.unlock()).await.unwrap();
    timely(lock.close()).await.unwrap();
    backend.done().await;
}

/// Waits until the server has the request, and gives it up.
async fn drop_a_wait(lock: &mut Lock, backend: &Backend) {
    tokio::select! {
        ended = lock.lock() => panic!("not given up: {ended:?}"),
        () = backend.cue() => {}
    }
}

/// Waits until the server has the request, and cancels it.
async fn cancel_a_wait(lock: &mut Lock, backend: &Backend) -> pglock::Result<()> {
    let canceller = lock.canceller();
    let cancel = async {
        backend.cue().await;
        canceller.cancel().await;
    };
    timely(async { tokio::join!(lock.lock(), cancel).0 }).await
}

#[tokio::test]
async fn a_wait_that_is_withdrawn_leaves_nothing() {
    let script = withdrawn().hears(UNLOCK).says(boolean(false)).ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(!timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn nothing_is_asked_while_a_cancel_request_is_open() {
    let script = waiting()
        .cancel_comes()
        .says(canceled())
        .ready()
        .hears_nothing_for(A_WHILE)
        .cancel_ends()
        .hears(UNLOCK)
        .says(boolean(false))
        .ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(!timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_lock_granted_in_the_race_belongs_to_a_caller_who_ran_out_of_time() {
    let script = waiting()
        .cancel_comes()
        .says(void())
        .ready()
        .hears_nothing_for(A_WHILE)
        .cancel_ends()
        .hears(UNLOCK)
        .says(boolean(true))
        .ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_eq!(lock.level(Mode::Exclusive), 1);
    timely(lock.unlock()).await.unwrap();
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_cancel_request_that_breaks_counts_as_done() {
    let script = waiting().cancel_comes().says(canceled()).ready().cancel_breaks();
    let backend = goes_on(script.hears(UNLOCK).says(boolean(false)).ready()).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(!timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_cancel_request_that_had_no_effect_is_repeated() {
    let script = waiting()
        .cancel_comes()
        .cancel_ends()
        .cancel_comes()
        .cancel_breaks()
        .cancel_comes()
        .says(canceled())
        .ready()
        .cancel_ends()
        .hears(UNLOCK)
        .says(boolean(false))
        .ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(!timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_cancel_request_names_the_session_exactly() {
    let longest = [0x5a; 256];
    for (process_id, secret) in [(-2, &b"\0\xff\0\n"[..]), (i32::MIN, b"key!"), (7, &longest)] {
        let script = Script::new().known_as(process_id, secret).session().hears(LOCK);
        let script = script.cancel_comes().says(canceled()).ready().cancel_ends();
        let backend = goes_on(script.hears(UNLOCK).says(boolean(false)).ready()).play().await;
        let mut lock = backend.connect().await.unwrap();
        assert!(!timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
        assert_goes_on(lock, backend).await;
    }
}

#[tokio::test]
async fn a_lock_granted_in_the_race_under_the_name_of_an_error_is_tried_for_again() {
    let held = || withdrawn().hears(UNLOCK).says(boolean(true)).ready().hears(TRY_LOCK);

    let script = held().says(boolean(true)).ready().hears(UNLOCK).says(boolean(true)).ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_eq!(lock.level(Mode::Exclusive), 1);
    timely(lock.unlock()).await.unwrap();
    assert_goes_on(lock, backend).await;

    let backend = goes_on(held().says(boolean(false)).ready()).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(!timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_second_try_that_fails_is_settled_too() {
    let script = withdrawn().hears(UNLOCK).says(boolean(true)).ready();
    let script = script.hears(TRY_LOCK).says(error("53200", "out of shared memory")).ready();
    let script = script.hears(UNLOCK).says(boolean(false)).ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(!timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn another_error_in_the_race_is_told_and_settled() {
    let script = waiting().cancel_comes().says(error("40P01", "deadlock detected")).ready();
    let script = script.cancel_ends().hears(UNLOCK).says(boolean(false)).ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    let error = timely(lock.lock_timeout(BRIEFLY)).await.unwrap_err();
    assert_error(&error, Deadlock, "deadlock detected (SQLSTATE 40P01)");
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_dropped_wait_is_settled_before_the_next_request() {
    for held in [true, false] {
        let script = withdrawn().hears(UNLOCK).says(boolean(held)).ready();
        let backend = goes_on(script).play().await;
        let mut lock = backend.connect().await.unwrap();
        drop_a_wait(&mut lock, &backend).await;
        assert_goes_on(lock, backend).await;
    }
}

#[tokio::test]
async fn a_lock_granted_to_a_dropped_wait_is_released() {
    let script = waiting().cancel_comes().says(void()).ready().cancel_ends();
    let backend = goes_on(script.hears(UNLOCK).says(boolean(true)).ready()).play().await;
    let mut lock = backend.connect().await.unwrap();
    drop_a_wait(&mut lock, &backend).await;
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_lock_granted_to_a_dropped_try_is_released() {
    let script = Script::new().session().hears(TRY_LOCK).cues().prompted();
    let script = script.says(boolean(true)).ready();
    let backend = goes_on(script.hears(UNLOCK).says(boolean(true)).ready()).play().await;
    let mut lock = backend.connect().await.unwrap();
    tokio::select! {
        ended = lock.try_lock() => panic!("not given up: {ended:?}"),
        () = backend.cue() => {}
    }
    backend.prompt();
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_wait_that_is_dropped_while_it_is_settled_ends_without_the_lock() {
    let script = withdrawn().hears(UNLOCK).cues().prompted().says(boolean(true)).ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    tokio::select! {
        ended = lock.lock_timeout(BRIEFLY) => panic!("not given up: {ended:?}"),
        () = async { backend.cue().await; backend.cue().await } => {}
    }
    backend.prompt();
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_cancelled_wait_is_settled() {
    for held in [true, false] {
        let script = withdrawn().hears(UNLOCK).says(boolean(held)).ready();
        let backend = goes_on(script).play().await;
        let mut lock = backend.connect().await.unwrap();
        let error = cancel_a_wait(&mut lock, &backend).await.unwrap_err();
        assert_error(&error, Cancelled, "exclusive lock on key 42");
        assert_goes_on(lock, backend).await;
    }
}

#[tokio::test]
async fn a_lock_granted_before_the_cancel_took_effect_is_kept() {
    let script = waiting().cancel_comes().says(void()).ready().cancel_ends();
    let backend = goes_on(script.hears(UNLOCK).says(boolean(true)).ready()).play().await;
    let mut lock = backend.connect().await.unwrap();
    cancel_a_wait(&mut lock, &backend).await.unwrap();
    assert_eq!(lock.level(Mode::Exclusive), 1);
    timely(lock.unlock()).await.unwrap();
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_release_that_is_interrupted_is_repeated() {
    let script = withdrawn().hears(UNLOCK).says(canceled()).ready();
    let script = script.hears(UNLOCK).says([notice(10), boolean(false)].concat()).ready();
    let backend = goes_on(script).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(!timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_release_that_fails_for_ever_ends_the_session() {
    let mut script = withdrawn();
    for _ in 0..6 {
        script = script.hears(UNLOCK).says(error("XX000", "oh")).ready();
    }
    let backend = script.left().play().await;
    let mut lock = backend.connect().await.unwrap();
    let error = timely(lock.lock_timeout(BRIEFLY)).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "could not be withdrawn").await;
}

#[tokio::test]
async fn a_session_that_ends_while_a_wait_is_withdrawn_is_lost() {
    let last_words = || fatal("57P01", "shutting down");
    for (script, words) in [
        (waiting().cancel_comes().says(last_words()).end_of_file(), "SQLSTATE 57P01"),
        (waiting().cancel_comes().end_of_file(), "closed the connection"),
        (waiting().cancel_comes().resets(), "connection"),
        (withdrawn().hears(UNLOCK).says(last_words()).end_of_file(), "SQLSTATE 57P01"),
        (withdrawn().hears(UNLOCK).end_of_file(), "closed the connection"),
        (withdrawn().hears(UNLOCK).resets(), "connection"),
    ] {
        let backend = script.clone().left().play().await;
        let mut lock = backend.connect().await.unwrap();
        let error = timely(lock.lock_timeout(BRIEFLY)).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Lost, words).await;

        // The next call tells it after a dropped wait.
        let backend = script.left().play().await;
        let mut lock = backend.connect().await.unwrap();
        drop_a_wait(&mut lock, &backend).await;
        let error = timely(lock.try_lock()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Lost, words).await;
    }
}

#[tokio::test]
async fn a_wrong_answer_to_a_withdrawn_wait_ends_the_session() {
    for answer in [boolean(true), boolean(false), returned(b"\0\0"), Vec::new()] {
        let script = waiting().cancel_comes().says(answer).ready().cancel_ends();
        let backend = script.left().play().await;
        let mut lock = backend.connect().await.unwrap();
        let error = timely(lock.lock_timeout(BRIEFLY)).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, pglock::ErrorKind::Protocol, "the server").await;
    }
}

#[tokio::test]
async fn a_wait_ends_as_the_server_ends_it_when_no_cancel_request_gets_through() {
    let script = Script::new().session().hears(LOCK).takes_no_cancels();
    let script = script.hears_nothing_for(A_WHILE).says(void()).ready();
    let backend = goes_on(script.hears(UNLOCK).says(boolean(true)).ready()).play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(timely(lock.lock_timeout(BRIEFLY)).await.unwrap());
    timely(lock.unlock()).await.unwrap();
    assert_goes_on(lock, backend).await;
}

#[tokio::test]
async fn a_lock_that_is_dropped_after_its_wait_is_withdrawn_and_its_socket_closed() {
    let backend = withdrawn().hears(UNLOCK).says(boolean(true)).ready().left().play().await;
    let mut lock = backend.connect().await.unwrap();
    drop_a_wait(&mut lock, &backend).await;
    drop(lock);
    backend.done().await;
}
