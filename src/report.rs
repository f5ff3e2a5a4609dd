//! What a server is and how it is set, for a diagnosis.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::auth::AuthMethod;

/// Most characters of a setting that are asked for.
const VALUE_CHARS_MAX: u32 = 1_000;

/// The settings that are asked for.
const SETTINGS: &str = "max_connections,superuser_reserved_connections,reserved_connections,\
    max_prepared_transactions,max_locks_per_transaction,statement_timeout,lock_timeout,\
    idle_in_transaction_session_timeout,idle_session_timeout,transaction_timeout,deadlock_timeout,\
    tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count,tcp_user_timeout,\
    client_connection_check_interval,synchronous_commit,synchronous_standby_names";

/// What a server is, how it is set, and how a session is connected to it: the answer of
/// [`Session::diagnose`](crate::Session::diagnose).
///
/// What is not known is `None`: the server does not have it, or does not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerReport {
    /// The server as the configuration names it, such as `db.example.org port 5432`.
    pub server: String,
    /// What was dialled: an address with its port, or the path of a socket.
    pub address: String,
    /// The TLS of the connection. `None` if it has none.
    pub tls: Option<TlsReport>,
    /// How the session was let in.
    pub authentication: AuthMethod,
    /// Whether the login was bound to the TLS connection, so that nobody can stand in between.
    pub is_channel_bound: bool,
    /// Whether a connection pooler stands before the server: its process ids are not the server's.
    pub is_pooled: bool,
    /// How the session holds locks there.
    pub holding: Holding,
    /// The server's version, such as `15.4 (Debian 15.4-1)`.
    pub version: Option<String>,
    /// The version as a number, such as 150004 for 15.4.
    pub version_number: Option<u32>,
    /// Whether it is a standby.
    pub is_standby: Option<bool>,
    /// When it was started, by its own clock.
    pub started_at: Option<SystemTime>,
    /// The server process that answered.
    pub process_id: i32,
    /// The TLS of that process's connection, as the server has it (`pg_stat_ssl`): through a pooler, it is
    /// the pooler's.
    pub server_tls: Option<TlsReport>,
    /// The database.
    pub database: Option<String>,
    /// Most sessions that the database may have (its `CONNECTION LIMIT`). `None` if there is no limit.
    pub database_connection_limit: Option<u64>,
    /// The role that the session acts as.
    pub role: RoleReport,
    /// How many sessions of clients the server has, of all databases.
    pub connections: Option<u64>,
    /// How many different things are locked in the table that all sessions share, in all databases,
    /// relations and advisory locks among them. See [`ServerSettings::lock_table_room`].
    pub lock_objects: Option<u64>,
    /// How many advisory locks of this database are held or waited for.
    pub advisory_locks: Option<u64>,
    /// The settings that matter to locks.
    pub settings: ServerSettings,
}

/// How a session holds locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Holding {
    /// The session holds them, and asks by function calls, which are neither parsed nor planned.
    SessionByCalls,
    /// The session holds them, and asks by queries: there is a pooler, or something that takes no function
    /// calls.
    SessionByQueries,
    /// Each is held in a transaction, one at a time: see [`Pooler`](crate::Pooler).
    Transaction,
}

/// What encrypts a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsReport {
    /// The protocol's version, such as `TLSv1.3`.
    pub version: String,
    /// The cipher suite, such as `TLS_AES_256_GCM_SHA384`.
    pub cipher: String,
}

/// A role, and what it may do that matters to locks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoleReport {
    /// Its name.
    pub name: Option<String>,
    /// Whether it may do anything.
    pub is_superuser: Option<bool>,
    /// Whether it sees what sessions of other roles do (`pg_read_all_stats`), above all since when they
    /// hold a lock.
    pub reads_all_stats: Option<bool>,
    /// Whether it may end sessions of other roles, superusers excepted (`pg_signal_backend`).
    pub signals_backends: Option<bool>,
    /// Most sessions that it may have (its `CONNECTION LIMIT`). `None` if there is no limit.
    pub connection_limit: Option<u64>,
    /// How many sessions it has.
    pub connections: Option<u64>,
}

/// Settings of a server that matter to locks, by PostgreSQL's names.
///
/// They are those that a session of this role in this database begins with (`reset_val` in `pg_settings`),
/// with what the connection string's `options` change. The sessions of this crate make settings of their own
/// on top of that: no timeout ends them, and the server looks for vanished clients sooner.
///
/// A time of zero means that the timeout, or the check, is off; of a keepalive setting, that it is the
/// operating system's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerSettings {
    /// Most sessions that the server has.
    pub max_connections: Option<u64>,
    /// How many of those are kept for superusers.
    pub superuser_reserved_connections: Option<u64>,
    /// How many of those are kept for members of `pg_use_reserved_connections` (PostgreSQL 16 and later).
    pub reserved_connections: Option<u64>,
    /// Most transactions that can be prepared.
    pub max_prepared_transactions: Option<u64>,
    /// Locks for which the server has room, per session and prepared transaction.
    pub max_locks_per_transaction: Option<u64>,
    /// How long a statement may take.
    pub statement_timeout: Option<Duration>,
    /// How long a statement may wait for a lock.
    pub lock_timeout: Option<Duration>,
    /// How long a session may be idle in a transaction.
    pub idle_in_transaction_session_timeout: Option<Duration>,
    /// How long a session may be idle outside of one (PostgreSQL 14 and later).
    pub idle_session_timeout: Option<Duration>,
    /// How long a transaction may take (PostgreSQL 17 and later).
    pub transaction_timeout: Option<Duration>,
    /// How long a wait lasts before the server looks for a deadlock.
    pub deadlock_timeout: Option<Duration>,
    /// Silence of a client before it is probed.
    pub tcp_keepalives_idle: Option<Duration>,
    /// Pause between two probes.
    pub tcp_keepalives_interval: Option<Duration>,
    /// Probes that may go unanswered.
    pub tcp_keepalives_count: Option<u64>,
    /// How long what was sent to a client may go unacknowledged.
    pub tcp_user_timeout: Option<Duration>,
    /// How often the server looks whether the client of a running statement is there (PostgreSQL 14 and
    /// later).
    pub client_connection_check_interval: Option<Duration>,
    /// What a commit waits for.
    pub synchronous_commit: Option<String>,
    /// The standbys that it waits for; empty if there are none. Only its first 1000 characters.
    pub synchronous_standby_names: Option<String>,
}

impl ServerSettings {
    /// For how many different locks the server has room at least, of all sessions together:
    /// `max_locks_per_transaction * (max_connections + max_prepared_transactions)`. It has some more, which
    /// nobody should count on.
    #[must_use]
    pub fn lock_table_room(&self) -> Option<u64> {
        let sessions = self.max_connections?.checked_add(self.max_prepared_transactions?)?;
        self.max_locks_per_transaction?.checked_mul(sessions)
    }

    /// Reads lines of a setting's name, an equals sign and its value, in the unit that `pg_settings` gives
    /// it.
    fn from_lines(lines: &str) -> Self {
        let values: HashMap<_, _> =
            lines.split('\n').filter_map(|line| line.split_once('=')).collect();
        let text = |name| values.get(name).copied().map(String::from);
        let number = |name| parsed(values.get(name).copied());
        let seconds = |name| number(name).map(Duration::from_secs);
        let millis = |name| number(name).map(Duration::from_millis);
        Self {
            max_connections: number("max_connections"),
            superuser_reserved_connections: number("superuser_reserved_connections"),
            reserved_connections: number("reserved_connections"),
            max_prepared_transactions: number("max_prepared_transactions"),
            max_locks_per_transaction: number("max_locks_per_transaction"),
            statement_timeout: millis("statement_timeout"),
            lock_timeout: millis("lock_timeout"),
            idle_in_transaction_session_timeout: millis("idle_in_transaction_session_timeout"),
            idle_session_timeout: millis("idle_session_timeout"),
            transaction_timeout: millis("transaction_timeout"),
            deadlock_timeout: millis("deadlock_timeout"),
            tcp_keepalives_idle: seconds("tcp_keepalives_idle"),
            tcp_keepalives_interval: seconds("tcp_keepalives_interval"),
            tcp_keepalives_count: number("tcp_keepalives_count"),
            tcp_user_timeout: millis("tcp_user_timeout"),
            client_connection_check_interval: millis("client_connection_check_interval"),
            synchronous_commit: text("synchronous_commit"),
            synchronous_standby_names: text("synchronous_standby_names"),
        }
    }
}

/// What this side knows of a session's connection.
pub(crate) struct Link {
    pub(crate) server: String,
    pub(crate) address: String,
    pub(crate) tls: Option<TlsReport>,
    pub(crate) authentication: AuthMethod,
    pub(crate) is_channel_bound: bool,
    pub(crate) holding: Holding,
    /// The server process that was logged in to.
    pub(crate) process_id: i32,
}

impl ServerReport {
    /// The statements that ask for it. Only the second has a row.
    pub(crate) fn query() -> String {
        let look_again = crate::holders::LOOK_AGAIN;
        let is_advisory = crate::holders::IS_ADVISORY;
        format!(
            "/* pglock report */ {look_again}; \
             SELECT pg_catalog.pg_backend_pid(), \
             pg_catalog.current_setting('server_version', true), \
             pg_catalog.current_setting('server_version_num', true), \
             pg_catalog.pg_is_in_recovery(), \
             (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) \
             OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, \
             (SELECT s.version FROM pg_catalog.pg_stat_ssl s \
             WHERE s.ssl AND s.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()), \
             (SELECT s.cipher FROM pg_catalog.pg_stat_ssl s \
             WHERE s.ssl AND s.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()), \
             pg_catalog.current_database(), \
             (SELECT d.datconnlimit FROM pg_catalog.pg_database d \
             WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()), \
             r.rolname, r.rolsuper, \
             pg_catalog.pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE'), \
             pg_catalog.pg_has_role(r.oid, 'pg_signal_backend', 'USAGE'), \
             r.rolconnlimit, sessions.of_role, sessions.of_all, \
             (SELECT pg_catalog.count(DISTINCT ROW(l.locktype, l.database, l.relation, l.page, l.tuple, \
             l.virtualxid, l.transactionid::pg_catalog.text, l.classid, l.objid, l.objsubid)) \
             FROM pg_catalog.pg_locks l \
             WHERE NOT l.fastpath AND l.mode OPERATOR(pg_catalog.<>) 'SIReadLock'), \
             (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks l WHERE {is_advisory}), \
             (SELECT pg_catalog.array_to_string(pg_catalog.array_agg(pg_catalog.format('%s=%s', s.name, \
             pg_catalog.translate(pg_catalog.left(s.reset_val, {VALUE_CHARS_MAX}), \
             pg_catalog.chr(10), ' '))), pg_catalog.chr(10)) \
             FROM pg_catalog.pg_settings s \
             WHERE s.name OPERATOR(pg_catalog.=) ANY ('{{{SETTINGS}}}'::pg_catalog.text[])) \
             FROM pg_catalog.pg_roles r, LATERAL (SELECT pg_catalog.count(*) AS of_all, \
             pg_catalog.count(*) FILTER (WHERE a.usesysid OPERATOR(pg_catalog.=) r.oid) AS of_role \
             FROM pg_catalog.pg_stat_activity a WHERE a.datid IS NOT NULL AND a.usesysid IS NOT NULL \
             AND COALESCE(a.backend_type, '') OPERATOR(pg_catalog.<>) 'parallel worker') sessions \
             WHERE r.rolname OPERATOR(pg_catalog.=) CURRENT_USER"
        )
    }

    /// Reads the row.
    pub(crate) fn from_row(link: Link, row: &[Option<String>]) -> Option<Self> {
        let [
            process_id,
            version,
            version_number,
            is_standby,
            started_at,
            tls_version,
            tls_cipher,
            database,
            database_connection_limit,
            role,
            is_superuser,
            reads_all_stats,
            signals_backends,
            connection_limit,
            role_connections,
            connections,
            lock_objects,
            advisory_locks,
            settings,
        ] = row
        else {
            return None;
        };
        let process_id = parsed(process_id.as_deref())?;
        let after_epoch = |micros| UNIX_EPOCH.checked_add(Duration::from_micros(micros));
        Some(Self {
            is_pooled: process_id != link.process_id,
            server: link.server,
            address: link.address,
            tls: link.tls,
            authentication: link.authentication,
            is_channel_bound: link.is_channel_bound,
            holding: link.holding,
            version: version.clone(),
            version_number: parsed(version_number.as_deref()),
            is_standby: truth(is_standby.as_deref()),
            started_at: parsed(started_at.as_deref()).and_then(after_epoch),
            process_id,
            server_tls: match (tls_version, tls_cipher) {
                (Some(version), Some(cipher)) => {
                    Some(TlsReport { version: version.clone(), cipher: cipher.clone() })
                }
                _ => None,
            },
            database: database.clone(),
            // Below zero, it is no limit.
            database_connection_limit: parsed(database_connection_limit.as_deref()),
            role: RoleReport {
                name: role.clone(),
                is_superuser: truth(is_superuser.as_deref()),
                reads_all_stats: truth(reads_all_stats.as_deref()),
                signals_backends: truth(signals_backends.as_deref()),
                connection_limit: parsed(connection_limit.as_deref()),
                connections: parsed(role_connections.as_deref()),
            },
            connections: parsed(connections.as_deref()),
            lock_objects: parsed(lock_objects.as_deref()),
            advisory_locks: parsed(advisory_locks.as_deref()),
            settings: ServerSettings::from_lines(settings.as_deref().unwrap_or_default()),
        })
    }
}

fn parsed<T: FromStr>(value: Option<&str>) -> Option<T> {
    value?.parse().ok()
}

/// A `boolean` as the server writes it.
fn truth(value: Option<&str>) -> Option<bool> {
    match value? {
        "t" => Some(true),
        "f" => Some(false),
        _ => None,
    }
}
