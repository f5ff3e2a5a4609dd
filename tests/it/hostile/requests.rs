//! Taking and releasing locks, without a wait that is given up.

use pglock::ErrorKind::{Deadlock, Lost, OutOfLockMemory, Protocol, Server};
use pglock::{Lock, Mode};
use tokio::sync::mpsc;
use tokio::task::yield_now;

use super::{assert_error, assert_lost, assert_tells_no_secret, told};
use crate::scripted::messages::{
    boolean, command_complete, error, fatal, header, message, notice, one_row, parameter_status,
    ready_for_query, returned, returned_null, row_description, void, warning,
};
use crate::scripted::{Backend, LOCK, PASSWORD, Script, TRY_LOCK, UNLOCK, VERSION, timely};

/// A session whose client has the lock.
fn holder() -> Script {
    Script::new().session().hears(LOCK).says(void()).ready()
}

/// A client that has the lock.
async fn hold(backend: &Backend) -> Lock {
    let mut lock = backend.connect().await.unwrap();
    timely(lock.lock()).await.unwrap();
    assert_eq!(lock.level(Mode::Exclusive), 1);
    lock
}

fn released(script: Script) -> Script {
    script.hears(UNLOCK).says(boolean(true)).ready()
}

fn shutting_down() -> Vec<u8> {
    fatal("57P01", "terminating connection due to administrator command")
}

#[tokio::test]
async fn a_session_that_is_ended_during_a_wait_says_why() {
    for end in [Script::end_of_file, Script::resets, |script| script] {
        let script = Script::new().session().hears(LOCK).says(shutting_down());
        let backend = end(script).left().play().await;
        let mut lock = backend.connect().await.unwrap();
        let error = timely(lock.lock()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Lost, "SQLSTATE 57P01").await;
    }
}

/// A server that restarts after a crash says no more than that.
#[tokio::test]
async fn a_warning_of_the_end_is_the_reason_however_the_connection_ends() {
    for end in [Script::end_of_file, Script::resets] {
        let warning = warning("57P02", "terminating connection because of a crash");
        let script = Script::new().session().hears(LOCK).says(warning);
        let backend = end(script).left().play().await;
        let mut lock = backend.connect().await.unwrap();
        let error = timely(lock.lock()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Lost, "SQLSTATE 57P02").await;
    }
}

#[tokio::test]
async fn a_session_that_was_ended_in_a_pause_says_so_at_the_next_call() {
    let backend = holder().prompted().says(shutting_down()).end_of_file().cues();
    let backend = backend.left().play().await;
    let mut lock = hold(&backend).await;
    backend.prompt();
    backend.cue().await;
    let error = timely(lock.unlock()).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"));
    backend.done().await;
    assert_lost(lock, error, Lost, "ended the session: terminating connection due to").await;
}

#[tokio::test]
async fn a_level_is_not_counted_on_a_session_that_is_gone() {
    let backend = holder().prompted().says(shutting_down()).end_of_file().cues();
    let backend = backend.left().play().await;
    let mut lock = hold(&backend).await;
    backend.prompt();
    backend.cue().await;
    let error = timely(lock.try_lock()).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "SQLSTATE 57P01").await;
}

#[tokio::test]
async fn a_holder_learns_of_the_end_while_it_works() {
    let backend = holder().prompted().says(shutting_down()).end_of_file().left();
    let backend = backend.play().await;
    let mut lock = hold(&backend).await;
    backend.prompt();
    let error = timely(lock.hold(std::future::pending::<()>())).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "SQLSTATE 57P01").await;
}

/// What the holder does takes up its share of what tokio allows a task at a time, as reading does.
#[tokio::test]
async fn a_server_that_never_stops_talking_does_not_keep_a_holder_from_its_work() {
    let backend = holder().prompted().floods(notice(1_000)).play().await;
    let mut lock = hold(&backend).await;
    let (orders, mut work) = mpsc::unbounded_channel();
    for order in 0..1_000 {
        orders.send(order).unwrap();
    }
    backend.prompt();
    let done = lock.hold(async {
        while work.recv().await.unwrap() < 999 {
            yield_now().await;
        }
    });
    timely(done).await.unwrap();
    drop(lock);
    backend.done().await;
}

#[tokio::test]
async fn an_unlock_that_is_answered_by_the_end_of_the_session_is_an_error() {
    let backend = holder().hears(UNLOCK).says(shutting_down()).end_of_file().left();
    let backend = backend.play().await;
    let mut lock = hold(&backend).await;
    let error = timely(lock.unlock()).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "SQLSTATE 57P01").await;
}

#[tokio::test]
async fn a_pooler_that_names_the_severity_in_the_old_way_ends_the_session_too() {
    for severity in ["FATAL", "PANIC"] {
        let last_words = format!("S{severity}\0C08P01\0Mserver conn crashed?\0\0");
        let script = Script::new().session().hears(TRY_LOCK);
        let script = script.says(message(b'E', last_words.as_bytes())).end_of_file();
        let backend = script.left().play().await;
        let mut lock = backend.connect().await.unwrap();
        let error = timely(lock.try_lock()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Lost, "ended the session: server conn crashed?").await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_off_in_a_request_is_lost() {
    let half = boolean(true)[..4].to_vec();
    for beginning in [
        Script::new(),
        Script::new().says(half),
        Script::new().says(boolean(true)),
        Script::new().says(notice(10)),
        Script::new().says(error("XX000", "oh")),
    ] {
        for breaks in [Script::end_of_file, Script::resets] {
            let script = Script::new().session().hears(TRY_LOCK).followed_by(beginning.clone());
            let backend = breaks(script).left().play().await;
            let mut lock = backend.connect().await.unwrap();
            let error = timely(lock.try_lock()).await.unwrap_err();
            backend.done().await;
            assert_lost(lock, error, Lost, "connection").await;
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_off_in_an_unlock_is_lost() {
    for breaks in [Script::end_of_file, Script::resets] {
        let backend = breaks(holder().hears(UNLOCK)).left().play().await;
        let mut lock = hold(&backend).await;
        let error = timely(lock.unlock()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Lost, "connection").await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_off_in_a_pause_is_lost() {
    for breaks in [Script::end_of_file, Script::resets] {
        let backend = breaks(holder().prompted()).cues().left().play().await;
        let mut lock = hold(&backend).await;
        backend.prompt();
        backend.cue().await;
        let error = timely(lock.lost()).await;
        backend.done().await;
        assert_lost(lock, error, Lost, "connection").await;
    }
}

#[tokio::test]
async fn an_answer_of_another_kind_than_asked_for_is_no_lock() {
    let answers = || {
        [
            returned(b"\x02"),
            returned(b"\xff"),
            returned(b"\0\x01"),
            returned(b"t"),
            returned(&[1; 8]),
            returned_null(),
            message(b'V', b""),
            message(b'V', b"\0\0\0\x01"),
            message(b'V', b"\0\0\0\0\x01"),
            message(b'V', b"\x7f\xff\xff\xff\x01"),
            message(b'V', b"\xff\xff\xff\xfe"),
            Vec::new(),
            message(b'C', b"SELECT 1\0"),
            message(b'T', b"\0\0"),
            message(b'D', b"\0\0"),
            message(b'I', b""),
            message(b'W', b"\0\0\0"),
            message(b'G', b"\0\0\0"),
            message(b'H', b"\0\0\0"),
            message(b'R', b"\0\0\0\0"),
            message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]),
            message(b'K', b"\0\0\x12\x67key!"),
            message(b'?', b""),
            header(b'V', 3, b""),
            header(b'V', u32::MAX, b""),
            header(b'N', 5 + (1 << 20), b""),
            b"\0\0\0\0\0".to_vec(),
        ]
    };
    for answer in answers().into_iter().chain([void()]) {
        assert_no_lock(TRY_LOCK, &answer).await;
    }
    for answer in answers().into_iter().chain([boolean(true), boolean(false)]) {
        assert_no_lock(LOCK, &answer).await;
    }
    for answer in answers().into_iter().chain([void()]) {
        assert_no_lock(UNLOCK, &answer).await;
    }
}

async fn assert_no_lock(function: u32, answer: &[u8]) {
    let before = if function == UNLOCK { holder() } else { Script::new().session() };
    let script = before.hears(function).says([answer, &ready_for_query()].concat());
    let backend = script.left().play().await;
    let mut lock = backend.connect().await.unwrap();
    let error = match function {
        LOCK => timely(lock.lock()).await.unwrap_err(),
        TRY_LOCK => timely(lock.try_lock()).await.unwrap_err(),
        _ => {
            timely(lock.lock()).await.unwrap();
            timely(lock.unlock()).await.unwrap_err()
        }
    };
    assert_eq!(error.kind(), Protocol, "\"{}\": {error}", answer.escape_ascii());
    backend.done().await;
    assert_lost(lock, error, Protocol, "the server").await;
}

#[tokio::test]
async fn a_second_answer_ends_the_session() {
    for second in [boolean(true), error("57014", "canceled")] {
        let script = Script::new().session().hears(TRY_LOCK);
        let script = script.says([boolean(true), second, boolean(true)].concat());
        let backend = script.left().play().await;
        let mut lock = backend.connect().await.unwrap();
        let error = timely(lock.try_lock()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Protocol, "FunctionCallResponse").await;
    }
}

#[tokio::test]
async fn a_second_error_is_the_reason_of_the_end() {
    let script = Script::new().session().hears(TRY_LOCK);
    let script = script.says([error("XX000", "first"), error("XX001", "second")].concat());
    let backend = script.left().play().await;
    let mut lock = backend.connect().await.unwrap();
    let error = timely(lock.try_lock()).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "second (SQLSTATE XX001)").await;
}

#[tokio::test]
async fn an_answer_to_nothing_ends_the_session() {
    for answer in [
        boolean(true),
        void(),
        ready_for_query(),
        message(b'C', b"SELECT 1\0"),
        message(b'D', b"\0\0"),
        message(b'W', b"\0\0\0"),
        header(b'N', 5 + (1 << 20), b""),
        message(b'?', b""),
    ] {
        let backend = holder().prompted().says(answer).cues().left().play().await;
        let mut lock = hold(&backend).await;
        backend.prompt();
        backend.cue().await;
        let error = timely(lock.try_lock()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Protocol, "the server").await;
    }
}

#[tokio::test]
async fn an_error_that_answers_nothing_is_the_reason_of_the_end() {
    let backend = holder().prompted().says(error("57P05", "idle-session timeout")).cues();
    let backend = backend.left().play().await;
    let mut lock = hold(&backend).await;
    backend.prompt();
    backend.cue().await;
    let error = timely(lock.try_lock()).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "idle-session timeout (SQLSTATE 57P05)").await;
}

#[tokio::test]
async fn a_session_that_is_in_a_transaction_is_not_trusted() {
    for status in [b"T", b"E", b"?"] {
        let script = Script::new().session().hears(TRY_LOCK).says(boolean(true));
        let backend = script.says(message(b'Z', status)).left().play().await;
        let mut lock = backend.connect().await.unwrap();
        let error = timely(lock.try_lock()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Protocol, "the server").await;
    }
}

#[tokio::test]
async fn what_a_server_says_in_between_is_no_answer() {
    let aside = [
        notice(1 << 20),
        parameter_status("TimeZone", "UTC"),
        message(b'A', b"\0\0\0\x07channel\0payload\0"),
    ]
    .concat();
    let says = |answer: Vec<u8>| [&aside[..], &answer, &aside, &ready_for_query()].concat();
    let backend = Script::new()
        .session()
        .says(aside.clone())
        .hears(LOCK)
        .says(says(void()))
        .says(aside.clone())
        .hears(UNLOCK)
        .says(says(boolean(true)))
        .hears(TRY_LOCK)
        .says(says(error("XX000", "oh")))
        .hears(UNLOCK)
        .says(says(boolean(false)))
        .terminated()
        .play()
        .await;
    let mut lock = hold(&backend).await;
    timely(lock.unlock()).await.unwrap();
    assert_eq!(timely(lock.try_lock()).await.unwrap_err().sqlstate(), Some("XX000"));
    timely(lock.close()).await.unwrap();
    backend.done().await;
}

#[tokio::test]
async fn a_lock_that_the_server_does_not_have_was_lost() {
    let backend = holder().hears(UNLOCK).says(boolean(false)).ready().left().play().await;
    let mut lock = hold(&backend).await;
    let error = timely(lock.unlock()).await.unwrap_err();
    backend.done().await;
    let words = "the server no longer had the exclusive lock on key 42";
    assert_lost(lock, error, Lost, words).await;
}

#[tokio::test]
async fn an_unlock_that_fails_is_tried_again() {
    for last in [true, false] {
        let failing = holder().hears(UNLOCK).says(error("57014", "canceled")).ready();
        let failing = failing.hears(UNLOCK).says(error("57014", "canceled")).ready();
        let script = failing.hears(UNLOCK).says(boolean(last)).ready();
        let backend = script.terminated().play().await;
        let mut lock = hold(&backend).await;
        timely(lock.unlock()).await.unwrap();
        assert_eq!(lock.level(Mode::Exclusive), 0);
        timely(lock.close()).await.unwrap();
        backend.done().await;
    }
}

#[tokio::test]
async fn an_unlock_that_fails_for_ever_ends_the_session() {
    let mut script = holder();
    for _ in 0..7 {
        script = script.hears(UNLOCK).says(error("XX000", "oh")).ready();
    }
    let backend = script.left().play().await;
    let mut lock = hold(&backend).await;
    let error = timely(lock.unlock()).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "could not be withdrawn").await;
}

#[tokio::test]
async fn after_an_error_the_session_settles_and_goes_on() {
    for (sqlstate, kind) in
        [("53200", OutOfLockMemory), ("40P01", Deadlock), ("XX000", Server), ("57014", Server)]
    {
        // The server may have granted the lock all the same.
        for held in [true, false] {
            let script = Script::new()
                .session()
                .hears(LOCK)
                .says(error(sqlstate, "oh"))
                .ready()
                .hears(UNLOCK)
                .says(boolean(held))
                .ready()
                .hears(TRY_LOCK)
                .says(boolean(true))
                .ready();
            let backend = released(script).terminated().play().await;
            let mut lock = backend.connect().await.unwrap();
            let error = timely(lock.lock()).await.unwrap_err();
            assert_error(&error, kind, &format!("oh (SQLSTATE {sqlstate})"));
            assert!(!error.is_lost());
            assert_eq!(lock.level(Mode::Exclusive), 0);
            assert!(timely(lock.try_lock()).await.unwrap());
            timely(lock.unlock()).await.unwrap();
            timely(lock.close()).await.unwrap();
            backend.done().await;
        }
    }
}

#[tokio::test]
async fn closing_releases_what_is_left_to_release() {
    let backend =
        holder().hears_bytes(b"X\0\0\0\x04".to_vec()).says_again_and_again(notice(1 << 20), 3);
    let backend = backend.says(shutting_down()).end_of_file().left().play().await;
    let lock = hold(&backend).await;
    timely(lock.close()).await.unwrap();
    backend.done().await;
}

#[tokio::test]
async fn dropping_a_lock_closes_its_socket() {
    let backend = holder().left().play().await;
    drop(hold(&backend).await);
    backend.done().await;
}

#[tokio::test]
async fn no_secret_shows_anywhere() {
    let backend = holder().hears(UNLOCK).resets().play().await;
    let mut session = backend.connect_session().await.unwrap();
    assert_tells_no_secret(&backend.config());
    assert_tells_no_secret(&session);
    timely(session.lock(42, Mode::Exclusive)).await.unwrap();
    assert_tells_no_secret(&session);
    let canceller = session.canceller();
    let error = timely(session.unlock(42, Mode::Exclusive)).await.unwrap_err();
    assert_tells_no_secret(&(&session, &canceller, &error, told(&error)));
    assert!(!error.to_string().contains(PASSWORD));
    backend.done().await;
}

/// Is asked who holds the key, and answers with this row.
fn tells_holders(script: Script, row: &[Option<&str>]) -> Script {
    let nothing = [row_description(0), command_complete()].concat();
    script.hears_type(b'Q').says([nothing, one_row(row)].concat()).ready()
}

#[tokio::test]
async fn holders_that_cannot_be_read_end_the_session() {
    for row in [
        &[Some("4711")][..],
        &[Some("4711"), None, Some("0"), None],
        &[Some("4711"), Some("0"), Some("many"), None],
        &[Some("4711"), Some("0"), Some("1"), Some("somebody")],
    ] {
        let backend = tells_holders(holder(), row).left().play().await;
        let mut lock = hold(&backend).await;
        let error = timely(lock.holders()).await.unwrap_err();
        backend.done().await;
        assert_lost(lock, error, Protocol, "an answer that cannot be read").await;
    }
    let rows = [one_row(&[Some("4711"), Some("0"), Some("0"), None]), one_row(&[])].concat();
    let backend = holder().hears_type(b'Q').says(rows).ready().left().play().await;
    let mut lock = hold(&backend).await;
    let error = timely(lock.holders()).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Protocol, "during a request that cannot have it").await;
}

#[tokio::test]
async fn holders_told_by_another_process_end_the_session() {
    let introduction = one_row(&[Some(VERSION), Some("false"), Some("4711")]);
    let script = Script::new().login().refuses_calls().says(introduction).ready();
    let script = tells_holders(script, &[Some("4711"), Some("2"), Some("0"), None]);
    let script = tells_holders(script, &[Some("4712"), Some("0"), Some("0"), None]).left();
    let backend = script.play().await;
    let mut lock = backend.connect().await.unwrap();
    assert_eq!(timely(lock.holders()).await.unwrap().waiting(), 2);
    let error = timely(lock.holders()).await.unwrap_err();
    backend.done().await;
    assert_lost(lock, error, Lost, "another server process answered").await;
}
