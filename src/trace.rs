//! What happens, told to whoever subscribes to events of the crate `tracing`; to nobody, without the feature
//! of that name.
//!
//! Fields are named by OpenTelemetry's semantic conventions for databases, where these have a name. Nothing
//! is formatted or allocated for an event that nobody wants. No event has an error's text, which may have
//! anything in it: its kind and its SQLSTATE say what it was.
//!
//! A subscriber may use this library: no event is told while a lock of ours is held.

#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, reason = "without the feature there is nobody to tell anything to")
)]

use std::time::Duration;

use crate::error::Error;
#[cfg(feature = "manager")]
use crate::session::LockId;

/// An event about a server, which has a name such as `db.example port 5432`.
#[cfg(feature = "tracing")]
macro_rules! tell {
    ($level:ident, $server:expr, { $($fields:tt)* }, $message:literal) => {
        if tracing::enabled!(target: "pglock", tracing::Level::$level) {
            let (address, port) = address_and_port($server);
            tracing::event!(
                target: "pglock",
                tracing::Level::$level,
                "db.system.name" = "postgresql",
                "server.address" = address,
                "server.port" = port,
                $($fields)*
                $message
            );
        }
    };
}

/// A session stands.
pub(crate) fn connected(server: &str, dbname: &str) {
    #[cfg(feature = "tracing")]
    tell!(DEBUG, Some(server), { "db.namespace" = dbname, }, "session connected");
}

/// No session could be had; another attempt may follow after a pause.
#[cfg(feature = "manager")]
pub(crate) fn not_connected(error: &Error, pause: Option<Duration>) {
    #[cfg(feature = "tracing")]
    tell!(
        WARN,
        None,
        {
            "error.type" = ?error.kind(),
            "db.response.status_code" = error.sqlstate(),
            "pglock.retry.delay" = pause.map(|pause| pause.as_secs_f64()),
        },
        "no session could be connected"
    );
}

/// A session is over that was to live on.
pub(crate) fn lost(server: Option<&str>, error: &Error) {
    #[cfg(feature = "tracing")]
    tell!(
        WARN,
        server,
        {
            "error.type" = ?error.kind(),
            "db.response.status_code" = error.sqlstate(),
        },
        "session lost"
    );
}

/// Nothing was heard from the server for too long.
pub(crate) fn lease_expired(server: &str, lease: Duration) {
    #[cfg(feature = "tracing")]
    tell!(WARN, Some(server), { "pglock.lease" = lease.as_secs_f64(), }, "lease expired");
}

/// The server asked for an MD5 hash.
pub(crate) fn logged_in_by_md5(server: &str) {
    #[cfg(feature = "tracing")]
    tell!(
        WARN,
        Some(server),
        {},
        "logged in by MD5, which PostgreSQL has deprecated: have pg_hba.conf ask for scram-sha-256"
    );
}

/// So many keys are waited for in vain, for want of a session.
#[cfg(feature = "manager")]
pub(crate) fn crowded(keys: usize, sessions_max: usize) {
    #[cfg(feature = "tracing")]
    tracing::event!(
        target: "pglock",
        tracing::Level::WARN,
        "db.system.name" = "postgresql",
        "pglock.keys" = keys,
        "pglock.sessions.max" = sessions_max,
        "keys have no session to wait on, and are served later than others: allow more by max_sessions"
    );
}

/// A manager has given somebody a lock.
#[cfg(feature = "manager")]
pub(crate) fn granted(lock: LockId, waited: Duration, handed_over: bool) {
    #[cfg(feature = "tracing")]
    tracing::event!(
        target: "pglock",
        tracing::Level::DEBUG,
        "db.system.name" = "postgresql",
        "pglock.key" = %lock.key,
        "pglock.mode" = %lock.mode,
        "pglock.wait.duration" = waited.as_secs_f64(),
        "pglock.handed_over" = handed_over,
        "lock granted"
    );
}

#[cfg(feature = "tracing")]
fn address_and_port(server: Option<&str>) -> (Option<&str>, Option<u16>) {
    match server.and_then(|server| server.rsplit_once(" port ")) {
        Some((address, port)) => (Some(address), port.parse().ok()),
        None => (server, None),
    }
}
