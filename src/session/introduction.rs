//! What is said once after the login: the server shows what it is, and settings are made.

use std::fmt::Write;
use std::time::Duration;

use super::advisory::{Means, PG_BACKEND_PID, PG_IS_IN_RECOVERY};
use super::dialogue::{Dialogue, Reply};
use super::machine::{OPERATOR_INTERVENTION, Row};
use crate::config::{KeepaliveWishes, Pooler, Resolved};
use crate::error::{Error, ErrorKind, Result, ServerError};
use crate::net::Keepalive;
use crate::protocol::ServerIdentity;
use crate::span::milliseconds;
use crate::wait::timeout;

/// How often the server looks whether the client of a waiting request is still there, so that the
/// request of a process that died leaves the queue.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a server is not fit to hold locks.
pub(super) enum Unfit {
    /// It is a standby: another server of the list may be the primary.
    Standby,
    /// For a reason that another server will not mend.
    Always(Error),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Always(error)
    }
}

/// What is said once after the login.
///
/// ```text
///                       its own process id     the settings are made
/// pg_backend_pid() ─────────────────────────▶ by SET ───────────────────────▶ locks by calls
///  called     │
///             ├─ another id, or an error ──▶ asked by a query ──▶ locks by queries,
///             │                              what it is            or in transactions
///             └─ no answer, or ──────────▶ a new connection,
///                the connection's end       which is asked by a query
/// ```
///
/// A server that runs a function by its number, in the process that was logged in to, has PostgreSQL's
/// own insides, and no pooler before it. To find that out, nothing is parsed, planned or set: a query
/// costs a new server process ten times as much, and a setting might stay with a pooler's next client.
pub(super) struct Introduction<'a> {
    pub(super) config: &'a Resolved,
    pub(super) comment: &'a str,
    pub(super) server: &'a ServerIdentity,
    /// Whether to try function calls.
    pub(super) by_calls: bool,
}

impl Introduction<'_> {
    /// Makes the session safe to hold locks, and says by which means it can. Nothing comes of it if a
    /// function call is ignored, or ends the connection.
    pub(super) async fn take_place(&self, dialogue: &mut Dialogue) -> Result<Option<Means>, Unfit> {
        if self.server.in_hot_standby == Some(true) {
            return Err(Unfit::Standby);
        }
        if !self.by_calls || !self.may_be_called() {
            return self.by_query(dialogue).await.map(Some);
        }
        match timeout(self.call_patience(), dialogue.call(PG_BACKEND_PID)).await {
            Ok(Ok(answer)) if int4(&answer) == Some(self.process_id()) => {
                self.directly(dialogue).await?;
                Ok(Some(Means::Calls))
            }
            Ok(Ok(_)) => self.by_query(dialogue).await.map(Some),
            Ok(Err(error)) if error.kind() != ErrorKind::Connect || is_shutdown(&error) => {
                Err(error.into())
            }
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Whether the server is what it seems if it takes a call.
    fn may_be_called(&self) -> bool {
        let version = self.server.server_version.as_deref().unwrap_or_default();
        self.config.pooler != Pooler::Transaction
            && self.version() >= CALLED_SINCE
            && stranger(version).is_none()
    }

    /// What is not answered by then is ignored, so that there is time left for another connection.
    fn call_patience(&self) -> Duration {
        let third = self.config.connect_timeout.map(|limit| limit / 3);
        third.map_or(CALL_WITHIN, |third| third.min(CALL_WITHIN))
    }

    fn version(&self) -> u32 {
        self.server.server_version.as_deref().and_then(major_version).unwrap_or(0)
    }

    fn settings(&self) -> Vec<Setting> {
        settings(self.version(), self.config.orphan_timeout, self.config.lease)
    }

    /// Where the session holds the locks, a server before 14 does not mind its silence.
    fn check_lease(&self) -> Result<()> {
        if self.config.lease.is_none() || self.version() >= LEASES_SINCE {
            return Ok(());
        }
        let version = self.server.server_version.as_deref().unwrap_or("unknown");
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "a lease needs PostgreSQL 14 or later, and the server's version is {version}; leave \
                 Config::lease off, or have locks held in transactions by Config::pooler"
            ),
        ))
    }

    fn process_id(&self) -> i32 {
        self.server.cancel_key.process_id()
    }

    /// Makes the settings, where nothing stands between.
    async fn directly(&self, dialogue: &mut Dialogue) -> Result<(), Unfit> {
        // From 14 on, the login says so. Whatever is not a clear no counts as a yes.
        if self.server.in_hot_standby.is_none()
            && !matches!(dialogue.call(PG_IS_IN_RECOVERY).await?, Ok(Some(value)) if value == [0])
        {
            return Err(Unfit::Standby);
        }
        let sql = |settings: &[Setting]| direct_settings(self.config, settings, self.comment);
        self.check_lease()?;
        let mut settings = self.settings();
        let Err(error) = dialogue.script(&sql(&settings)).await? else { return Ok(()) };
        if !is_worth_another_try(&error, &mut settings) {
            return Err(unprepared(dialogue, error).await.into());
        }
        match dialogue.script(&sql(&settings)).await? {
            Ok(()) => Ok(()),
            Err(error) => Err(unprepared(dialogue, error).await.into()),
        }
    }

    /// Makes the settings and asks what the server is, in one query.
    async fn by_query(&self, dialogue: &mut Dialogue) -> Result<Means, Unfit> {
        let mut settings = self.settings();
        let row = match self.ask(dialogue, &settings, self.process_id()).await? {
            Err(error) if is_worth_another_try(&error, &mut settings) => {
                self.ask(dialogue, &settings, self.process_id()).await?
            }
            answer => answer,
        };
        let row = match row {
            Ok(row) => row,
            Err(error) => return Err(unprepared(dialogue, error).await.into()),
        };
        let mut values = row.iter().map(|value| value.as_deref().unwrap_or_default());
        refuse_strangers(values.next().unwrap_or_default())?;
        // Whatever is not a clear no counts as a yes.
        if values.next() != Some("false") {
            return Err(Unfit::Standby);
        }
        let answering = values.next().and_then(|answering| answering.parse().ok());
        let begin = begin(self.config, &settings);
        let means = means(self.config.pooler, self.process_id(), answering, begin)?;
        if let Means::Queries { process_id } = means {
            self.check_lease()?;
            if process_id != self.process_id() {
                if let Err(error) = self.ask(dialogue, &settings, process_id).await? {
                    return Err(unprepared(dialogue, error).await.into());
                }
            }
        }
        Ok(means)
    }

    async fn ask(
        &self,
        dialogue: &mut Dialogue,
        settings: &[Setting],
        process_id: i32,
    ) -> Result<Reply<Row>> {
        dialogue.query(&introduction(self.config, settings, self.comment, process_id)).await
    }
}

/// What a function returned, if it is an `integer`.
fn int4(answer: &Reply<Option<Vec<u8>>>) -> Option<i32> {
    let value = answer.as_ref().ok()?.as_deref()?;
    value.try_into().ok().map(i32::from_be_bytes)
}

/// Whether the server ended the session for reasons of its own.
fn is_shutdown(error: &Error) -> bool {
    error.sqlstate().is_some_and(|sqlstate| sqlstate.starts_with(OPERATOR_INTERVENTION))
}

/// Whether a refusal may not last: of the settings, or of those that are left then.
fn is_worth_another_try(error: &ServerError, settings: &mut Vec<Setting>) -> bool {
    match error.sqlstate() {
        // A server on a system that cannot watch its clients' sockets refuses this one setting.
        INVALID_PARAMETER_VALUE => {
            settings.retain(|(name, _)| *name != CLIENT_CHECK);
            true
        }
        // The very timeout that is being reset may end this, if it is a millisecond or so.
        QUERY_CANCELED => true,
        _ => false,
    }
}

/// How a session that was asked by a query can hold locks.
///
/// The process that answers is the one that was logged in to, unless a pooler stands between: poolers
/// make up process ids of their own, and may give the process, with the locks that it holds, to another
/// client. Nothing tells how long a pooler lends a process, but that it lasts for a transaction.
fn means(
    pooler: Pooler,
    logged_in_to: i32,
    answering: Option<i32>,
    begin: String,
) -> Result<Means> {
    let in_transactions = Means::Transaction { begin, process_id: None };
    match (pooler, answering) {
        (_, None) => Err(Error::new(
            ErrorKind::Unsupported,
            "the server did not say which of its processes answers; is it PostgreSQL?",
        )),
        (Pooler::Transaction, _) => Ok(in_transactions),
        (_, Some(process_id)) if process_id == logged_in_to => Ok(Means::Queries { process_id }),
        (Pooler::Auto, _) => Ok(in_transactions),
        (Pooler::Session, Some(process_id)) => Ok(Means::Queries { process_id }),
        (Pooler::Refuse, _) => Err(Error::new(
            ErrorKind::Unsupported,
            "a connection pooler stands before the server, and Config::pooler refuses that; connect to \
             the server directly",
        )),
    }
}

/// Why the settings could not be made. A server that is not PostgreSQL may lack any of what it was asked
/// for: its name says more than the first thing that it misses.
async fn unprepared(dialogue: &mut Dialogue, error: ServerError) -> Error {
    let name = dialogue.query("SELECT version()").await;
    if let Ok(Ok(row)) = name {
        let name = row.first().and_then(Option::as_deref).unwrap_or_default();
        if let Err(stranger) = refuse_strangers(name) {
            return stranger;
        }
    }
    let message = match error.sqlstate() {
        UNDEFINED_FUNCTION => "the server lacks a function that a session needs; is it PostgreSQL?",
        _ => "the server refused the settings of the session",
    };
    Error::new(ErrorKind::Unsupported, message).with_server(error)
}

/// The first major version of which it is known that all of this holds.
const CALLED_SINCE: u32 = 12;
/// The first major version that ends sessions for being silent outside of a transaction.
const LEASES_SINCE: u32 = 14;
/// How long a function call may take until it counts as ignored, where `connect_timeout` leaves that.
const CALL_WITHIN: Duration = Duration::from_secs(5);

const QUERY_CANCELED: &str = "57014";
const INVALID_PARAMETER_VALUE: &str = "22023";
const UNDEFINED_FUNCTION: &str = "42883";
const CLIENT_CHECK: &str = "client_connection_check_interval";

type Setting = (&'static str, String);

/// What a session that holds or waits for locks needs to be set, on a server of this major version.
///
/// A host that vanished keeps its lock until the server notices, by default for about two hours: the
/// server is told to look more often. The timeouts that may end a wait or a holder, by the defaults of a role
/// or a database, are reset, but for what a lease wants of them.
fn settings(version: u32, orphan_timeout: Duration, lease: Option<Duration>) -> Vec<Setting> {
    let keepalive = server_keepalive(orphan_timeout);
    let silence = milliseconds(lease.unwrap_or_default());
    let all: [(u32, &str, u64); 10] = [
        (0, "statement_timeout", 0),
        (0, "lock_timeout", 0),
        (0, "idle_in_transaction_session_timeout", silence),
        (LEASES_SINCE, "idle_session_timeout", silence),
        (17, "transaction_timeout", 0),
        (0, "tcp_keepalives_idle", keepalive.idle.as_secs()),
        (0, "tcp_keepalives_interval", keepalive.interval.as_secs()),
        (0, "tcp_keepalives_count", keepalive.probes.into()),
        (12, "tcp_user_timeout", milliseconds(keepalive.acknowledgement)),
        (14, CLIENT_CHECK, milliseconds(CLIENT_CHECK_INTERVAL)),
    ];
    let known = all.into_iter().filter(|(since, ..)| *since <= version);
    let mut settings: Vec<_> = known.map(|(_, name, value)| (name, value.to_string())).collect();
    // A server that crashes says why it ends a session in a warning.
    settings.push(("client_min_messages", String::from("warning")));
    settings
}

/// Makes the settings for the session.
///
/// The caller's own come first, and by a function: `SET` would read some values as lists of names.
fn direct_settings(config: &Resolved, settings: &[Setting], comment: &str) -> String {
    let mut sql = format!("/* pglock {comment} */");
    let mut verb = " SELECT";
    for (name, value) in &config.settings {
        // Writing to a String cannot fail. Names have nothing in them to quote.
        let _ = write!(sql, "{verb} pg_catalog.set_config('{name}', {}, false)", quoted(value));
        verb = ",";
    }
    let mut end = if config.settings.is_empty() { "" } else { ";" };
    for (name, value) in settings {
        let _ = write!(sql, "{end} SET {name} = {}", quoted(value));
        end = ";";
    }
    sql
}

/// The query that asks the server what it is, and makes the settings. They last if it is this process
/// that answers. Behind a pooler, another client would find them made: there they
/// end with the query, which only tells whether the server takes them.
///
/// The caller's own settings come first: those that a lock needs have the last word. Names are those of
/// `pg_catalog`, here as in every query: a `search_path` may put functions of others before them.
fn introduction(config: &Resolved, settings: &[Setting], comment: &str, process_id: i32) -> String {
    let mut sql = format!(
        "/* pglock {comment} */ SELECT pg_catalog.version(), \
         pg_catalog.pg_is_in_recovery()::pg_catalog.text, pg_catalog.pg_backend_pid()"
    );
    for (name, value) in all_settings(config, settings) {
        let _ = write!(
            sql,
            ", pg_catalog.set_config('{name}', {}, \
             pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.<>) {process_id})",
            quoted(value)
        );
    }
    sql
}

/// What opens a transaction that can hold a lock. Its settings end with it; those of the socket are left
/// out, which is the pooler's. Stricter isolation, which a role or a database may have as its default, would
/// keep a snapshot for as long as the lock is held.
fn begin(config: &Resolved, settings: &[Setting]) -> String {
    let mut sql =
        String::from("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_catalog.pg_backend_pid()");
    let settings: Vec<_> =
        settings.iter().filter(|(name, _)| !name.starts_with("tcp_")).cloned().collect();
    for (name, value) in all_settings(config, &settings) {
        let _ = write!(sql, ", pg_catalog.set_config('{name}', {}, true)", quoted(value));
    }
    sql
}

fn all_settings<'a>(
    config: &'a Resolved,
    settings: &'a [Setting],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let theirs = config.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    theirs.chain(settings.iter().map(|(name, value)| (*name, value.as_str())))
}

/// A text as a constant of SQL, however the server is set to read backslashes.
fn quoted(text: &str) -> String {
    let mut constant = String::from("E'");
    for c in text.chars() {
        if matches!(c, '\\' | '\'') {
            constant.push(c);
        }
        constant.push(c);
    }
    constant.push('\'');
    constant
}

/// When the server counts a silent client as gone: within `orphan_timeout`. It counts from when it last
/// heard of the client, which may be as long ago as it leaves it in peace: so it probes often.
fn server_keepalive(orphan_timeout: Duration) -> Keepalive {
    let seconds = orphan_timeout.as_secs();
    let pause = (seconds / 6).max(1);
    let probes = (seconds - pause) / pause;
    keepalive(pause, pause, u32::try_from(probes).unwrap_or(u32::MAX))
}

/// When this side counts a silent server as gone: sooner than the server does, so that the holder of a
/// lock knows first. What the caller wishes counts as far as it is no later.
///
/// A request (a heartbeat, say) that is sent when the last probe has nearly run out puts an end to
/// probing: the system waits for its acknowledgement instead, for the whole of its time. Together, the
/// two have to be over before the server's time is.
pub(super) fn client_keepalive(orphan_timeout: Duration, wishes: &KeepaliveWishes) -> Keepalive {
    let seconds = orphan_timeout.as_secs();
    let latest = keepalive((seconds / 6).max(1), (seconds / 12).max(1), 2);
    let asked_for = Keepalive {
        idle: wishes.idle.unwrap_or(latest.idle),
        interval: wishes.interval.unwrap_or(latest.interval),
        probes: wishes.probes.unwrap_or(latest.probes),
        acknowledgement: latest.acknowledgement,
    };
    let probing = if asked_for.patience() <= latest.patience() { asked_for } else { latest };
    // Linux goes by this rather than by the number of probes.
    let acknowledgement = wishes.user_timeout.unwrap_or(latest.acknowledgement);
    Keepalive { acknowledgement: acknowledgement.min(probing.patience()), ..probing }
}

fn keepalive(idle: u64, interval: u64, probes: u32) -> Keepalive {
    let [idle, interval] = [idle, interval].map(Duration::from_secs);
    Keepalive { idle, interval, probes, acknowledgement: idle + interval * probes }
}

fn major_version(server_version: &str) -> Option<u32> {
    let digits = server_version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// What in `version()` gives away a server that begins it as PostgreSQL does, and which server that is.
const STRANGERS: [(&str, &str); 5] = [
    ("-YB-", "YugabyteDB"),
    ("Materialize", "Materialize"),
    ("QuestDB", "QuestDB"),
    ("Redshift", "Redshift"),
    ("RisingWave", "RisingWave"),
];

fn stranger(version: &str) -> Option<&'static str> {
    // The standard library's search is made for longer texts, and a kilobyte longer itself.
    let has = |mark: &[u8]| version.as_bytes().windows(mark.len()).any(|part| part == mark);
    STRANGERS.iter().find(|(mark, _)| has(mark.as_bytes())).map(|(_, name)| *name)
}

/// Some servers speak the protocol and have the functions, but no locks behind them.
fn refuse_strangers(version: &str) -> Result<()> {
    let name = match stranger(version) {
        None if version.starts_with("PostgreSQL") => return Ok(()),
        Some(name) => format!("is {name}"),
        None => format!("calls itself {:?}", version.chars().take(40).collect::<String>()),
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "the server {name}; only PostgreSQL's own advisory locks are trusted: connect to a \
             PostgreSQL server"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_notices_a_silent_network_before_the_server_frees_the_lock() {
        // How long a packet goes without acknowledgement until the system begins to count.
        let retransmission = Duration::from_millis(500);
        for seconds in 8..=86_400 {
            let orphan_timeout = Duration::from_secs(seconds);
            let server = server_keepalive(orphan_timeout);
            let client = client_keepalive(orphan_timeout, &KeepaliveWishes::default());
            assert!(server.patience() <= orphan_timeout, "{seconds} s: {server:?}");
            // The server has heard nothing for as long as it may before it probes.
            let freed = server.interval * server.probes;
            // Linux lets a timer ring an eighth late.
            let told = client.patience() * 9 / 8 + retransmission + client.acknowledgement;
            assert!(told < freed, "{seconds} s: {client:?}, {server:?}");
        }
    }

    /// Where there is a limit to that, Linux looks at each probe for how long nothing was heard, and does
    /// not count the probes.
    #[test]
    fn a_vanished_host_is_given_up_within_the_orphan_timeout() {
        for seconds in 8..=86_400 {
            let settings = settings(12, Duration::from_secs(seconds), None);
            let set = |wanted| -> u64 {
                let (_, value) = settings.iter().find(|(name, _)| *name == wanted).unwrap();
                value.parse().unwrap()
            };
            let [idle, interval] = ["tcp_keepalives_idle", "tcp_keepalives_interval"].map(set);
            let silence = set("tcp_user_timeout") / 1_000;
            let given_up = idle + interval * silence.saturating_sub(idle).div_ceil(interval);
            assert!(given_up <= seconds, "{seconds} s: {given_up} s");
        }
    }

    #[test]
    fn a_callers_wishes_for_keepalive_count_as_far_as_they_are_no_later() {
        let wished = |idle, interval, probes, user_timeout| {
            let [idle, interval, user_timeout] =
                [idle, interval, user_timeout].map(Duration::from_secs);
            let wishes = KeepaliveWishes {
                idle: Some(idle),
                interval: Some(interval),
                probes: Some(probes),
                user_timeout: Some(user_timeout),
            };
            let client = client_keepalive(Duration::from_secs(30), &wishes);
            let [idle, interval, user_timeout] =
                [client.idle, client.interval, client.acknowledgement].map(|time| time.as_secs());
            (idle, interval, client.probes, user_timeout)
        };
        assert_eq!(wished(1, 1, 2, 2), (1, 1, 2, 2));
        assert_eq!(wished(1, 1, 2, 9), (1, 1, 2, 3), "Linux would probe for as long as that");
        assert_eq!(wished(7, 1, 2, 100), (7, 1, 2, 9));
        assert_eq!(wished(7, 1, 3, 4), (5, 2, 2, 4));
    }

    #[test]
    fn only_postgresql_is_trusted() {
        for (version, trusted) in [
            ("PostgreSQL 15.4 (Debian 15.4-1) on x86_64-pc-linux-gnu", true),
            ("PostgreSQL 16.2 (EnterpriseDB Advanced Server 16.2.0)", true),
            ("CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu)", false),
            ("CrateDB 5.4.0 (built 9f5e2b1/2023-07-24, Linux 5.15.0 amd64)", false),
            ("PostgreSQL 8.0.2 on i686-pc-linux-gnu, Redshift 1.0.12103", false),
            ("PostgreSQL 11.2-YB-2.18.0.0-b0 on x86_64-pc-linux-gnu", false),
            ("PostgreSQL 9.5.0 on x86_64-unknown-linux-gnu (Materialize v0.60.0)", false),
            ("PostgreSQL 12.3, compiled by Visual C++ build 1914, 64-bit, QuestDB", false),
            ("PostgreSQL 13.14.0-RisingWave-1.8.0 (e6e9ce0)", false),
            ("", false),
        ] {
            assert_eq!(refuse_strangers(version).is_ok(), trusted, "{version}");
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
            settings(version, Duration::from_secs(30), None)
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        assert!(!names(13).contains(&"idle_session_timeout"));
        assert!(names(14).contains(&"idle_session_timeout"));
        assert!(names(17).contains(&"transaction_timeout"));
    }
}
