//! From a [`Config`] to a session that can be trusted with locks.
//!
//! Each address of the host is dialled, logged in to and asked about itself within one deadline. The
//! first that answers decides: only an address that cannot be reached gives its turn to the next.

use std::borrow::Cow;
use std::fmt::Write;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::machine::{Ask, Outcome, Row};
use super::wire::{Peer, Wire};
use crate::config::{ChannelBinding, Config, Host, RequireAuth, Resolved, Server};
use crate::error::{Error, ErrorKind, Result, ServerError};
use crate::net::{self, Address, Keepalive, Stream};
use crate::protocol::{Connection, Credentials, Event, ProtocolError, ServerIdentity};

/// How often the server looks whether the client of a waiting request is still there, so that the
/// request of a process that died leaves the queue.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Connects to the server of the configuration. The comment stays visible in `pg_stat_activity` for
/// as long as the session makes function calls only.
pub(super) async fn connect(config: &Config, comment: &str) -> Result<Wire> {
    let config = &config.resolve()?;
    refuse_what_is_missing(config)?;
    let mut outcome = Err(Error::new(ErrorKind::Connect, "there is no server to connect to"));
    for server in &config.servers {
        let name: Arc<str> = format!("{} port {}", server.host, server.port).into();
        outcome = connect_first(config, server, comment, &name)
            .await
            .map_err(|error| error.context(format!("connecting to {name}")));
        if !outcome.as_ref().is_err_and(is_unreachable) {
            break;
        }
    }
    outcome
}

/// Refuses to connect in another way than was asked for.
fn refuse_what_is_missing(config: &Resolved) -> Result<()> {
    if !config.tls.mode.demands_tls()
        && config.channel_binding != ChannelBinding::Require
        && config.require_auth == RequireAuth::default()
        && config.settings.is_empty()
        && config.startup_options.is_none()
    {
        return Ok(());
    }
    Err(Error::config("TLS, channel_binding, require_auth and options are not supported yet"))
}

async fn connect_first(
    config: &Resolved,
    server: &Server,
    comment: &str,
    name: &Arc<str>,
) -> Result<Wire> {
    let resolving = async {
        let dialled = server.address.map(|address| Host::Tcp(address.to_string()));
        let host = dialled.as_ref().unwrap_or(&server.host);
        net::resolve(host, server.port).await.map_err(|error| {
            Error::new(ErrorKind::Connect, format!("the name cannot be resolved: {error}"))
        })
    };
    let mut unreachable = None;
    for address in within(config.connect_timeout, resolving).await? {
        let reaching = reach(config, server, comment, name, address);
        match within(config.connect_timeout, reaching).await {
            Err(error) if is_unreachable(&error) => {
                unreachable.get_or_insert(error);
            }
            decided => return decided,
        }
    }
    Err(unreachable.unwrap_or_else(|| Error::new(ErrorKind::Connect, "the name has no address")))
}

/// Whether another address of the same host may do better.
fn is_unreachable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Connect | ErrorKind::Timeout) && error.server().is_none()
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, format!("not connected within {limit:?}")))
    })
}

async fn reach(
    config: &Resolved,
    server: &Server,
    comment: &str,
    name: &Arc<str>,
    address: Address,
) -> Result<Wire> {
    let keepalive = client_keepalive(config.orphan_timeout);
    let mut stream = net::dial(&address, keepalive).await.map_err(|error| {
        Error::new(ErrorKind::Connect, format!("cannot reach {address}: {error}"))
    })?;
    let mut connection = begin(config, server, &address)?;
    let identity = log_in(&mut stream, &mut connection).await?;
    refuse_standby(identity.in_hot_standby.unwrap_or(false))?;

    let version = identity.server_version.as_deref().and_then(major_version);
    let process_id = identity.cancel_key.process_id();
    let peer = Peer { name: Arc::clone(name), address, keepalive, cancel_key: identity.cancel_key };
    let mut wire = Wire::new(stream, connection, peer);
    prepare(&mut wire, config, comment, version, process_id).await?;
    Ok(wire)
}

fn begin(config: &Resolved, server: &Server, address: &Address) -> Result<Connection> {
    let mut nonce = [0; 18];
    getrandom::fill(&mut nonce).map_err(|error| {
        Error::new(ErrorKind::Authentication, format!("no random bytes for the login: {error}"))
    })?;
    let credentials = Credentials {
        user: config.user.clone(),
        password: server.password.clone(),
        cleartext_permitted: config.allow_cleartext_password || address.is_private(),
        nonce,
    };
    let parameters = [
        ("database", config.dbname.as_str()),
        ("client_encoding", "UTF8"),
        ("application_name", config.application_name.as_str()),
    ];
    Ok(Connection::new(credentials, &parameters))
}

/// Passes bytes between the socket and the connection until the login is complete.
async fn log_in(stream: &mut Stream, connection: &mut Connection) -> Result<ServerIdentity> {
    loop {
        while !connection.outgoing().is_empty() {
            let sent = stream.write(connection.outgoing()).await.map_err(login_broken)?;
            connection.sent(sent);
        }
        match connection.poll_event().map_err(login_failed)? {
            Some(Event::LoggedIn(identity)) => return Ok(identity),
            Some(Event::Ended(error)) => return Err(login_refused(error)),
            // The derivation takes time: let other tasks run, and the deadline pass.
            Some(Event::Deriving) => tokio::task::yield_now().await,
            Some(_) => {}
            None => {
                if stream.read_buf(connection.received()).await.map_err(login_broken)? == 0 {
                    return Err(Error::new(
                        ErrorKind::Connect,
                        "the server closed the connection during the login",
                    ));
                }
            }
        }
    }
}

fn login_broken(error: io::Error) -> Error {
    Error::new(ErrorKind::Connect, "the connection broke during the login").with_source(error)
}

fn login_failed(error: ProtocolError) -> Error {
    let kind = match &error {
        ProtocolError::Unframed { .. } => ErrorKind::Connect,
        error if error.is_authentication() => ErrorKind::Authentication,
        _ => ErrorKind::Protocol,
    };
    Error::new(kind, error.to_string()).with_source(error)
}

fn login_refused(error: ServerError) -> Error {
    // Class 28: invalid authorization specification.
    let kind = match error.sqlstate() {
        sqlstate if sqlstate.starts_with("28") => ErrorKind::Authentication,
        _ => ErrorKind::Connect,
    };
    Error::new(kind, "the server refused the login").with_server(error)
}

/// Makes the session safe to hold locks, and finds out whether it can be.
async fn prepare(
    wire: &mut Wire,
    config: &Resolved,
    comment: &str,
    version: Option<u32>,
    process_id: i32,
) -> Result<()> {
    let settings = settings(version.unwrap_or(0), config.orphan_timeout);
    let row = match ask(wire, introduction(&settings, comment)).await? {
        Ok(row) => row,
        // A server on a system that cannot watch its clients' sockets refuses this one setting.
        Err(error) if error.sqlstate() == INVALID_PARAMETER_VALUE => {
            let settings: Vec<_> =
                settings.into_iter().filter(|(name, _)| *name != CLIENT_CHECK).collect();
            ask(wire, introduction(&settings, comment)).await?.map_err(unprepared)?
        }
        Err(error) => return Err(unprepared(error)),
    };
    let mut values = row.iter().map(|value| value.as_deref().unwrap_or_default());
    refuse_strangers(values.next().unwrap_or_default())?;
    // Whatever is not a clear no counts as a yes.
    refuse_standby(values.next() != Some("false"))?;
    refuse_poolers(values.next().unwrap_or_default(), process_id)
}

async fn ask(wire: &mut Wire, sql: String) -> Result<Result<Row, ServerError>> {
    wire.ask(Ask::Query(sql))?;
    let outcome = poll_fn(|cx| wire.poll_outcome(cx)).await;
    match outcome.map_err(Error::while_connecting)? {
        Outcome::Row(row) => Ok(Ok(row)),
        Outcome::Failed(error) => Ok(Err(error)),
        Outcome::Acquired | Outcome::NotAcquired | Outcome::Released => {
            Err(Error::new(ErrorKind::Protocol, "the server did not introduce itself"))
        }
    }
}

fn unprepared(error: ServerError) -> Error {
    Error::new(ErrorKind::Unsupported, "the server refused the settings that a lock needs")
        .with_server(error)
}

const INVALID_PARAMETER_VALUE: &str = "22023";
const CLIENT_CHECK: &str = "client_connection_check_interval";

type Setting = (&'static str, String);

/// What a session that holds or waits for locks needs to be set, on a server of this major version.
///
/// The defaults of a role or a database may end the session or its waits: such timeouts are reset. A
/// host that vanished keeps its lock until the server notices, by default for about two hours: the
/// server is told to look more often.
fn settings(version: u32, orphan_timeout: Duration) -> Vec<Setting> {
    let keepalive = server_keepalive(orphan_timeout);
    let off = || String::from("0");
    [
        (0, "statement_timeout", off()),
        (0, "lock_timeout", off()),
        (0, "idle_in_transaction_session_timeout", off()),
        (14, "idle_session_timeout", off()),
        (17, "transaction_timeout", off()),
        (0, "tcp_keepalives_idle", keepalive.idle.as_secs().to_string()),
        (0, "tcp_keepalives_interval", keepalive.interval.as_secs().to_string()),
        (0, "tcp_keepalives_count", keepalive.probes.to_string()),
        (12, "tcp_user_timeout", orphan_timeout.as_millis().to_string()),
        (14, CLIENT_CHECK, CLIENT_CHECK_INTERVAL.as_millis().to_string()),
    ]
    .into_iter()
    .filter(|(since, ..)| *since <= version)
    .map(|(_, name, value)| (name, value))
    .collect()
}

/// The query that is sent after the login: makes the settings, and asks the server what it is.
fn introduction(settings: &[Setting], comment: &str) -> String {
    let mut sql = format!(
        "/* pglock {comment} */ SELECT version(), pg_is_in_recovery()::text, pg_backend_pid()"
    );
    for (name, value) in settings {
        // Names and values are ours: there is nothing in them to quote.
        // Writing to a String cannot fail.
        let _ = write!(sql, ", set_config('{name}', '{value}', false)");
    }
    sql
}

/// When the server counts a silent client as gone: within `orphan_timeout`.
fn server_keepalive(orphan_timeout: Duration) -> Keepalive {
    let seconds = orphan_timeout.as_secs();
    Keepalive {
        idle: Duration::from_secs((seconds / 3).max(1)),
        interval: Duration::from_secs((seconds / 6).max(1)),
        probes: 3,
    }
}

/// When this side counts a silent server as gone: sooner than the server does, so that the holder of a
/// lock knows first.
fn client_keepalive(orphan_timeout: Duration) -> Keepalive {
    let seconds = orphan_timeout.as_secs();
    Keepalive {
        idle: Duration::from_secs((seconds / 6).max(1)),
        interval: Duration::from_secs((seconds / 12).max(1)),
        probes: 2,
    }
}

fn major_version(server_version: &str) -> Option<u32> {
    let digits = server_version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn refuse_standby(in_recovery: bool) -> Result<()> {
    if !in_recovery {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "the server is a standby, whose locks exclude nobody on the primary; connect to the primary",
    ))
}

/// Some servers speak the protocol and have the functions, but no locks behind them.
fn refuse_strangers(version: &str) -> Result<()> {
    if version.starts_with("PostgreSQL") && !version.contains("Redshift") {
        return Ok(());
    }
    let name: Cow<'_, str> = version.chars().take(40).collect();
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "the server calls itself {name:?}; only PostgreSQL's own advisory locks are trusted"
        ),
    ))
}

/// The process that answers must be the one that was logged in to. A pooler makes up process ids of
/// its own, and may give the process, with the locks that it holds, to another client.
fn refuse_poolers(backend_pid: &str, process_id: i32) -> Result<()> {
    if backend_pid.parse() == Ok(process_id) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "a connection pooler stands before the server, and may share one session's locks among its \
         clients; connect to the server directly",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_notices_a_silent_network_before_the_server_frees_the_lock() {
        for seconds in 4..=86_400 {
            let orphan_timeout = Duration::from_secs(seconds);
            let server = server_keepalive(orphan_timeout).patience();
            let client = client_keepalive(orphan_timeout).patience();
            assert!(server <= orphan_timeout, "{seconds} s: the server waits {server:?}");
            assert!(client < server, "{seconds} s: the client waits {client:?} of {server:?}");
        }
    }

    #[test]
    fn a_version_is_known_by_its_first_number() {
        for (text, version) in [
            ("15.4 (Debian 15.4-1)", Some(15)),
            ("9.6.24", Some(9)),
            ("18beta1", Some(18)),
            ("unknown", None),
        ] {
            assert_eq!(major_version(text), version, "{text}");
        }
    }

    #[test]
    fn only_settings_that_the_version_has_are_made() {
        let names = |version| -> Vec<_> {
            settings(version, Duration::from_secs(30)).into_iter().map(|(name, _)| name).collect()
        };
        assert!(!names(13).contains(&"idle_session_timeout"));
        assert!(names(14).contains(&"idle_session_timeout"));
        assert!(names(17).contains(&"transaction_timeout"));
    }
}
