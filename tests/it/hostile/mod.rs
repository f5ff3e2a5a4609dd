//! Servers that lie, stammer, flood or fall silent get an error and a closed socket, and nobody
//! believes in a lock that is not there.
//!
//! The file says what is wrong with the server: [`login`], [`introduction`], [`requests`],
//! [`cancels`]; [`splits`] is about a right one whose bytes come in pieces, and [`patience`] about
//! one that says nothing.

mod cancels;
mod introduction;
mod login;
mod patience;
mod requests;
mod splits;

use std::error::Error as _;
use std::fmt::Debug;
use std::time::Duration;

use pglock::{Error, ErrorKind, Lock, Mode};

use crate::scripted::{PASSWORD, SECRET, Script, timely};

/// The error with which connecting to this server ends. The client closes its socket without another
/// word.
async fn refusal(script: Script) -> Error {
    let backend = script.left().play().await;
    let error = backend.connect().await.unwrap_err();
    backend.done().await;
    assert!(!error.is_lost(), "nothing was locked that could be lost: {error}");
    assert_tells_no_secret(&error);
    error
}

/// As [`refusal`], with this `connect_timeout`, and whatever the client may have said.
async fn refusal_within(limit: Duration, script: Script) -> Error {
    let backend = script.left_at_last().play().await;
    let config = backend.config().connect_timeout(limit).clone();
    let error = timely(Lock::connect(&config, 1)).await.unwrap_err();
    backend.done().await;
    error
}

#[track_caller]
fn assert_error(error: &Error, kind: ErrorKind, words: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(words), "no \"{words}\" in: {error}");
}

/// The session is gone: whatever is called gives this reason, and nothing counts as held.
async fn assert_lost(mut lock: Lock, error: Error, kind: ErrorKind, words: &str) {
    assert_error(&error, kind, words);
    assert!(error.is_lost(), "{error}");
    assert_tells_no_secret(&error);
    assert_tells_no_secret(&lock);
    assert_eq!([Mode::Exclusive, Mode::Shared].map(|mode| lock.level(mode)), [0, 0]);
    let again = [
        timely(lock.try_lock()).await.unwrap_err(),
        timely(lock.lock()).await.unwrap_err(),
        timely(lock.lock_shared_timeout(Duration::from_millis(1))).await.unwrap_err(),
        timely(lock.unlock()).await.unwrap_err(),
        timely(lock.hold(async {})).await.unwrap_err(),
        timely(lock.lost()).await,
        timely(lock.close()).await.unwrap_err(),
    ];
    for again in again {
        assert_eq!(format!("{again:?}"), format!("{error:?}"));
    }
}

/// Neither the password nor the secret of the cancel key shows, in whatever notation.
#[track_caller]
fn assert_tells_no_secret(value: &impl Debug) {
    let told = format!("{value:?} {value:#?}");
    let bytes = SECRET.map(|byte| byte.to_string()).join(", ");
    let lines = SECRET.map(|byte| byte.to_string()).join(",\n");
    let number = u32::from_be_bytes(SECRET);
    let escaped = SECRET.escape_ascii().to_string();
    let without_space = |text: &str| text.split_whitespace().collect::<String>();
    for secret in [PASSWORD, &bytes, &lines, &format!("{number:x}"), &number.to_string(), &escaped]
    {
        assert!(!without_space(&told).contains(&without_space(secret)), "{told}");
    }
}

/// Everything that an error tells, down to its first cause.
fn told(error: &Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        told = format!("{told}; {error}; {error:?}");
        source = error.source();
    }
    told
}
