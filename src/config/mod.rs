//! Where the server is, who logs in, and how patient to be.
//!
//! [`url`] and [`keyword_value`] turn the two kinds of connection string into a list of named
//! values, [`parameters`] knows which setting each name stands for, [`service`] and [`mod@env`] add
//! what a service file and the environment say, and [`resolve`] checks the whole and fills in what was
//! left out, when a connection is made.

mod auth;
mod env;
mod extras;
mod files;
mod host;
mod keyword_value;
#[cfg(test)]
mod libpq;
mod options;
mod parameters;
mod passfile;
mod pooler;
mod resolve;
mod scram_key;
mod service;
mod ssl_mode;
#[cfg(test)]
mod tests;
mod tls;
mod url;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{AuthMethods, ChannelBindingPolicy};
use crate::error::{Error, Result};
use crate::secret::Secret;

pub(crate) use self::host::{Host, LoadBalance};
pub use self::pooler::Pooler;
#[cfg(feature = "tls")]
pub(crate) use self::resolve::{Handshake, HandshakeOptions};
pub(crate) use self::resolve::{Resolved, Server};
pub use self::ssl_mode::SslMode;
#[cfg(feature = "tls")]
pub(crate) use self::tls::{Demand, Identity, Roots, SslNegotiation, Versions};

use self::host::List;
use self::options::Options;
use self::parameters::Parameters;
use self::scram_key::KeptKey;
#[cfg(feature = "tls")]
use self::tls::CallersConfig;
use self::tls::TlsWishes;

/// What is wrong with a setting or a string, in words that hold no piece of a value.
type Problem = Cow<'static, str>;

/// The name of a setting, and what is wrong with it.
type Misfit = (&'static str, Problem);

/// How to reach a server and log in to it.
///
/// Parse it from a connection string, read it from the environment ([`Config::from_env`]), or set
/// each part; a setter called later wins. Setters accept anything: what is impossible is an error of
/// kind [`Config`](crate::ErrorKind::Config) when a connection is made. `Debug` does not show the
/// password.
///
/// # Connection strings
///
/// Both kinds of connection string that libpq and psql know, with the same rules:
///
/// ```text
/// postgresql://user:password@host1:port1,host2:port2/dbname?parameter=value&...
/// host=localhost port=5432 user=alice password='it\'s secret'
/// ```
///
/// In a URL, every part may be left out, and `postgres://` means the same. A user name or password
/// with one of `/ : @ %` or a space in it is written percent-encoded, `@` as `%40`; `+` and `#` stand
/// for themselves. An IPv6 address stands in brackets, a socket directory is percent-encoded or given
/// as `?host=/path`. In a list of `keyword=value`, a value that is empty or has spaces is put in
/// single quotes, and a backslash takes the next character as it is. The last of several values for
/// the same parameter counts, and an empty value means that the parameter is not given
/// (`connect_timeout` and `sslmode` need a value).
///
/// | Parameter | Variable | Meaning | If not given |
/// |---|---|---|---|
/// | `host` | `PGHOST` | name, address, or directory of the Unix socket (begins with `/`); or a list | `/var/run/postgresql` if it exists, else `/tmp`; `localhost` where there are no Unix sockets |
/// | `hostaddr` | `PGHOSTADDR` | IP address to dial in place of `host`, which is then only compared with the certificate; or a list | `host` is looked up |
/// | `port` | `PGPORT` | 1 to 65535, names the Unix socket too; one for all hosts, or a list | 5432 |
/// | `user` | `PGUSER` | the role that logs in | the operating system's user (`USER`, `LOGNAME`) |
/// | `password` | `PGPASSWORD` | | the one in the password file, if any |
/// | `passfile` | `PGPASSFILE` | the password file | `~/.pgpass` |
/// | `dbname` | `PGDATABASE` | the database; locks of different databases are apart | the user's name |
/// | `application_name` | `PGAPPNAME` | shown in `pg_stat_activity` | `fallback_application_name`, else `pglock`, with the key of a [`Lock`](crate::Lock) |
/// | `options` | `PGOPTIONS` | settings for the session, as `-c name=value` or `--name=value` | none |
/// | `connect_timeout` | `PGCONNECT_TIMEOUT` | whole seconds, for each address; 0 or less: no limit | 30 |
/// | `keepalives_idle`, `keepalives_interval`, `keepalives_count`, `tcp_user_timeout` | | when this side counts a silent server as gone: seconds, seconds, a number, milliseconds; never later than the server frees the locks | before the [orphan timeout](Config::orphan_timeout) |
/// | `load_balance_hosts` | `PGLOADBALANCEHOSTS` | `disable`: in the order of the list; `random` | `disable` |
/// | `target_session_attrs` | `PGTARGETSESSIONATTRS` | `primary`; see below | `primary` |
/// | `service` | `PGSERVICE` | a group of parameters in a file | none |
/// | `servicefile` | `PGSERVICEFILE` | that file | `~/.pg_service.conf`, then `pg_service.conf` in `PGSYSCONFDIR`, else in `/etc/postgresql-common` |
/// | `sslmode` | `PGSSLMODE` | `disable`, `allow`, `prefer`, `require`, `verify-ca`, `verify-full`, `no-verify`: see [`SslMode`] | `prefer`; `verify-full` with `sslrootcert=system`; `require` with [a configuration of rustls](Config#method.tls_client_config) |
/// | `sslnegotiation` | `PGSSLNEGOTIATION` | `postgres`, or `direct`: TLS without asking first, which needs PostgreSQL 17 and an `sslmode` that demands TLS | `postgres` |
/// | `sslrootcert` | `PGSSLROOTCERT` | file of root certificates, or `system` for those that the operating system trusts | `~/.postgresql/root.crt` if it exists |
/// | `sslcert`, `sslkey` | `PGSSLCERT`, `PGSSLKEY` | files of the client's certificate and its key, of which the latter must not be open to others | `postgresql.crt` and `postgresql.key` in `~/.postgresql`, if they exist |
/// | `sslcertmode` | `PGSSLCERTMODE` | `allow`, or `disable`: show no certificate | `allow` |
/// | `sslsni` | `PGSSLSNI` | 1, or 0: do not tell the server which host is meant | 1 |
/// | `ssl_min_protocol_version`, `ssl_max_protocol_version` | `PGSSLMINPROTOCOLVERSION`, `PGSSLMAXPROTOCOLVERSION` | `TLSv1.2` (with the feature `tls12`) or `TLSv1.3` | both |
/// | `channel_binding` | `PGCHANNELBINDING` | `disable`, `prefer`, or `require`: log in by SCRAM-SHA-256-PLUS or not at all | `prefer` |
/// | `require_auth` | `PGREQUIREAUTH` | what the server may ask for: a list of `password`, `md5`, `scram-sha-256` and `none`, or of what it may not, each with a `!` | anything |
///
/// A list is separated by commas; its empty elements stand for the default. Several hosts are tried
/// until one answers that is a primary.
///
/// **A primary**, whatever `target_session_attrs` says. In libpq any server is good by default, but a
/// standby has locks of its own, which exclude nobody on the primary. So `any` means the same as
/// `primary` and `read-write` here, and `standby`, `read-only` and `prefer-standby` are errors.
///
/// **The password file** has lines of the form `host:port:database:user:password`. In each of the
/// first four, `*` fits anything; a backslash comes before a `:` or a backslash in a field; lines that
/// begin with `#` are comments. `localhost` stands for the default socket directory too. The first
/// line that fits counts. A file that is open to others is ignored ([`Config::warnings`]).
///
/// **A service** is a group of lines `name=value` after a line `[service]`. It is read when the string
/// is parsed or the environment read, and it gives what the string does not, before the environment.
///
/// **`options`** are applied after the login, because poolers refuse them before; the server refuses those that
/// can only be set while a connection starts, such as `log_connections`. What a lock needs
/// (no statement timeout, for instance) is set after them. Words without a hyphen, such as Neon's
/// `endpoint=...`, are sent with the login: it is a proxy that reads them, to find the server.
///
/// **Accepted without effect**: `client_encoding` if it is UTF-8, `sslcompression`,
/// `max_protocol_version`, `min_protocol_version=3.0`, `gssencmode` unless it is `require`, and
/// `replication` if it is off; with a [warning](Config::warnings) also `krbsrvname`, `gsslib`,
/// `gssdelegation`, `keepalives=0`, and a fixed list of parameters that are meant for other clients,
/// such as Prisma's `schema` and `connection_limit`.
///
/// **Not supported**, which is an error that names the parameter: `sslpassword`, `sslcrl`,
/// `sslcrldir`, `sslcertmode=require`, `sslkeylogfile`, `requirepeer`, `min_protocol_version` above
/// 3.0, `gssencmode=require`, `replication`, `scram_client_key`, `scram_server_key`, `oauth_issuer`,
/// `oauth_client_id`, `oauth_client_secret`, `oauth_scope`, and what is not known.
///
/// More differs from libpq on purpose. Connecting is limited to 30 seconds by default, because nothing
/// here may hang. A file that `sslrootcert` names has to exist if `sslmode` demands TLS, rather than to
/// be passed over. `prefer` and `allow` try the other kind of connection where TLS fails, or the server
/// has no entry for a connection of this kind (SQLSTATE 28000), and not after a wrong password: what is
/// refused over TLS is not said again in clear. Certificates and keys are read as PEM only. A URL with
/// a bare `@` after its host began is refused, because that is a password that was not encoded, and it
/// would show in every error; so are line breaks and tabs in a URL, which come from a file or a
/// terminal, and what is not UTF-8. Home directories are found by `HOME` alone (`APPDATA` on Windows),
/// and libpq's variables for settings of queries (`PGDATESTYLE`, `PGTZ`, `PGGEQO`) are ignored.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use pglock::Config;
///
/// let mut config: Config = "postgresql://alice:s%40cret@db.example.com/jobs".parse()?;
/// config.application_name("nightly-report").connect_timeout(Duration::from_secs(5));
/// assert!(!format!("{config:?}").contains("s@cret"));
///
/// let same: Config = "host=db.example.com user=alice password=s@cret dbname=jobs".parse()?;
/// assert_ne!(same, config);
/// assert_eq!(same, "postgres://alice:s%40cret@db.example.com/jobs".parse()?);
/// # Ok::<(), pglock::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    hosts: List<Host>,
    addresses: List<IpAddr>,
    ports: List<u16>,
    load_balance_hosts: LoadBalance,
    user: Option<String>,
    password: Option<Secret>,
    scram_key: KeptKey,
    passfile: Option<PathBuf>,
    dbname: Option<String>,
    application_name: Option<String>,
    fallback_application_name: Option<String>,
    options: Options,
    connect_timeout: Option<Duration>,
    orphan_timeout: Duration,
    lease: Option<Duration>,
    wait_slice: Option<Duration>,
    keepalive: KeepaliveWishes,
    sslmode: Option<SslMode>,
    tls: TlsWishes,
    channel_binding: ChannelBindingPolicy,
    require_auth: AuthMethods,
    pooler: Pooler,
    allow_cleartext_password: bool,
    warnings: Vec<String>,
}

/// When a silent server counts as gone, as far as the caller wants to decide that.
///
/// What is longer than it takes the server to give the session up must not be granted: the holder of
/// a lock has to know first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeepaliveWishes {
    /// Silence before the first probe.
    pub(crate) idle: Option<Duration>,
    /// Pause between two probes.
    pub(crate) interval: Option<Duration>,
    /// Probes that may go unanswered.
    pub(crate) probes: Option<u32>,
    /// How long what was sent may stay without acknowledgement.
    pub(crate) user_timeout: Option<Duration>,
}

impl Config {
    /// A place to start from: every setting at its default, nothing read from the environment.
    #[must_use]
    pub fn new() -> Self {
        Self {
            hosts: Vec::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
            load_balance_hosts: LoadBalance::default(),
            user: None,
            password: None,
            scram_key: KeptKey::default(),
            passfile: None,
            dbname: None,
            application_name: None,
            fallback_application_name: None,
            options: Options::default(),
            connect_timeout: Some(Duration::from_secs(30)),
            orphan_timeout: Duration::from_secs(30),
            lease: None,
            wait_slice: None,
            keepalive: KeepaliveWishes::default(),
            sslmode: None,
            tls: TlsWishes::default(),
            channel_binding: ChannelBindingPolicy::default(),
            require_auth: AuthMethods::default(),
            pooler: Pooler::default(),
            allow_cleartext_password: false,
            warnings: Vec::new(),
        }
    }

    /// The configuration that the environment gives: the connection string in `DATABASE_URL`, and
    /// for what it leaves out libpq's variables `PGHOST`, `PGPORT` and so on, as listed [above](Config).
    ///
    /// A variable that is set to nothing counts as not set. `PGREQUIRESSL=1` means
    /// `PGSSLMODE=require`, unless that is set.
    ///
    /// # Errors
    ///
    /// A variable has a value that cannot be used. The error names it and does not show the value.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let config = pglock::Config::from_env()?;
    /// # Ok::<(), pglock::Error>(())
    /// ```
    pub fn from_env() -> Result<Self> {
        env::from_env()
    }

    /// Like [`from_env`](Config::from_env), with the variables looked up by `var`.
    ///
    /// # Errors
    ///
    /// As for [`from_env`](Config::from_env).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use pglock::Config;
    ///
    /// let vars = HashMap::from([
    ///     ("DATABASE_URL", "postgres://db.example.com/jobs"),
    ///     ("PGUSER", "alice"),
    ///     ("PGDATABASE", "not used, because the URL has a database"),
    /// ]);
    /// let config = Config::from_vars(|name| vars.get(name).map(ToString::to_string))?;
    /// assert_eq!(config, "postgres://alice@db.example.com/jobs".parse()?);
    /// # Ok::<(), pglock::Error>(())
    /// ```
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        env::from_vars(&var)
    }

    /// Sets any parameter of a [connection string](Config#connection-strings) by its name, but
    /// `service`, which stands for other parameters.
    ///
    /// # Errors
    ///
    /// The parameter is unknown or not supported, or it cannot have this value. The error names it,
    /// and does not show the value.
    ///
    /// # Examples
    ///
    /// ```
    /// use pglock::{Config, SslMode};
    ///
    /// let mut config = Config::new();
    /// config.host("db.example.com").sslmode(SslMode::VerifyFull).set("sslrootcert", "system")?;
    /// # Ok::<(), pglock::Error>(())
    /// ```
    pub fn set(&mut self, parameter: &str, value: &str) -> Result<&mut Self> {
        let definition = parameters::definition(parameter)
            .filter(|definition| !matches!(definition.name, "service" | "servicefile"))
            .ok_or_else(|| Error::config("no such parameter can be set").context(parameter))?;
        definition
            .apply(self, value)
            .map_err(|problem| Error::config(problem).context(definition.name))?;
        Ok(self)
    }

    /// What was asked for and is ignored, in words for a log: parameters that are meant for other
    /// clients or have no effect here, and the password file if it is open to others.
    ///
    /// The password file is looked at in its present state, unless there is a password already.
    ///
    /// # Examples
    ///
    /// ```
    /// use pglock::Config;
    ///
    /// let config: Config = "postgresql://alice:secret@h/d?schema=public".parse()?;
    /// assert_eq!(config.warnings(), ["schema (at byte 30) is ignored: it is for Prisma"]);
    /// # Ok::<(), pglock::Error>(())
    /// ```
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.warnings_with(&files::process_variable)
    }

    fn warnings_with(&self, var: files::Variables<'_>) -> Vec<String> {
        self.warnings.iter().cloned().chain(self.password_file(var).problem).collect()
    }

    /// The server's host name or address, or the directory of its Unix socket: what begins with `/`,
    /// or on Linux with `@` for the abstract namespace.
    pub fn host(&mut self, host: &str) -> &mut Self {
        self.hosts = vec![Some(Host::new(host))];
        self
    }

    /// The server's port, which is part of a Unix socket's name too. 5432 by default. If there are
    /// several hosts, it is the port of each.
    pub fn port(&mut self, port: u16) -> &mut Self {
        self.ports = vec![Some(port)];
        self
    }

    /// Several servers, each with its port: the primary and its standbys. They are tried in this order
    /// until one answers that is the primary at the time. To give none is an error when a connection is
    /// made.
    ///
    /// # Examples
    ///
    /// ```
    /// use pglock::Config;
    ///
    /// let mut config = Config::new();
    /// config.hosts([("db1.example.com", 5432), ("db2.example.com", 5432)]);
    /// assert_eq!(config, "host=db1.example.com,db2.example.com port=5432,5432".parse()?);
    /// # Ok::<(), pglock::Error>(())
    /// ```
    pub fn hosts<'a>(&mut self, hosts: impl IntoIterator<Item = (&'a str, u16)>) -> &mut Self {
        let lists = hosts.into_iter().map(|(host, port)| (Some(Host::new(host)), Some(port)));
        (self.hosts, self.ports) = lists.unzip();
        if self.hosts.is_empty() {
            // No host at all must not come to mean the one on this machine.
            self.host("");
        }
        self
    }

    /// The IP address to dial, so that no name has to be looked up. The host is then only shown in
    /// errors and compared with the server's certificate. If there are several hosts, give a list of
    /// as many addresses in a connection string, or [set](Config::set) `hostaddr` to one.
    pub fn hostaddr(&mut self, address: IpAddr) -> &mut Self {
        self.addresses = vec![Some(address)];
        self
    }

    /// The role that logs in. By default, the operating system's user.
    pub fn user(&mut self, user: &str) -> &mut Self {
        self.user = Some(user.to_owned());
        self
    }

    /// The role's password, for servers that ask for one. By default, the one in the password file.
    pub fn password(&mut self, password: &str) -> &mut Self {
        self.password = Some(password.into());
        self.scram_key = KeptKey::default();
        self
    }

    /// The database to connect to; by default the one with the user's name.
    ///
    /// The same key in two databases is two locks: all who contend for it connect to the same one.
    pub fn dbname(&mut self, dbname: &str) -> &mut Self {
        self.dbname = Some(dbname.to_owned());
        self
    }

    /// The name that the server shows for the session, in `pg_stat_activity` and in its log. By default
    /// `pglock`, and for a [`Lock`](crate::Lock) its key as well, such as `pglock 42`.
    pub fn application_name(&mut self, name: &str) -> &mut Self {
        self.application_name = Some(name.to_owned());
        self
    }

    /// Whether the caller has a name for the session.
    pub(crate) fn names_application(&self) -> bool {
        self.application_name.is_some() || self.fallback_application_name.is_some()
    }

    /// How locks are held behind a connection pooler. [`Pooler::Auto`] by default.
    pub fn pooler(&mut self, pooler: Pooler) -> &mut Self {
        self.pooler = pooler;
        self
    }

    /// How long connecting to one address may take, from dialling until the session is ready to lock.
    /// 30 seconds by default; zero means no limit. Each address of each host has as long, and so has
    /// looking up a name.
    pub fn connect_timeout(&mut self, limit: Duration) -> &mut Self {
        self.connect_timeout = (!limit.is_zero()).then_some(limit);
        self
    }

    /// How soon the server gives up a session whose client has vanished from the network, and frees
    /// its locks. From 8 seconds to 24 hours in whole seconds; 30 seconds by default.
    ///
    /// A client that was only cut off knows sooner: it gives up the server before that gives up the
    /// session. Where packets are lost in one direction only, the two may be within milliseconds of each
    /// other, in either order: a [lease](Config::lease) keeps them apart then too.
    ///
    /// A shorter time frees the locks of a lost host sooner, and loses those of a host that was only
    /// cut off for a moment. If only the process dies, its host closes the connection, and the locks
    /// are free at once, whatever is set here.
    pub fn orphan_timeout(&mut self, timeout: Duration) -> &mut Self {
        self.orphan_timeout = timeout;
        self
    }

    /// For how long the server keeps a session, and its locks, from which nothing is heard: a *lease*,
    /// which answered requests renew. From 1 second to 24 hours in whole milliseconds; off by default.
    ///
    /// Without a lease, the locks of a process that is frozen (stopped, swapped out) are kept for as long
    /// as its host answers the network. With one, the server ends a session that has been silent for this
    /// long, and its holder knows before that: a session is lost, here, a tenth of the time earlier. The
    /// holder counts from the moment when it *sent* the last request that was answered, and the server
    /// from its answer, which is later. So the tenth is for the clocks, which differ by no more than a
    /// thousandth where they are kept by NTP, and for what the holder still has to do.
    ///
    /// - While [`hold`](crate::Lock::hold) or [`lost`](crate::Lock::lost) is awaited, a heartbeat is sent
    ///   every third of the time. Otherwise any other request does for one, and a session that makes
    ///   none ends, whether it holds anything or not.
    /// - A wait for a lock is not silent, however long it takes. Its end is confirmed by a heartbeat.
    /// - A process that is frozen between looking at its lock and acting on that acts too late all the
    ///   same. Fencing tokens are made for that: see [`Fence`](crate::Fence).
    /// - The time for which a machine sleeps, or its virtual machine is paused, counts as well, although
    ///   its clock stood still: as soon as its wall clock shows that. No step of the work that is
    ///   [held](crate::Lock::hold) begins then; whoever only waits is told when the next heartbeat is due,
    ///   at the latest. A wall clock that has not been set yet after a pause shows nothing: until it is, or
    ///   a heartbeat is answered, fencing tokens are for this too. One that is set ahead by 100 ms or more
    ///   looks the same, and shortens the lease by as much.
    ///
    /// # Errors
    ///
    /// Servers before PostgreSQL 14 are refused when connecting, with
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported), unless locks are held in transactions
    /// (see [`Pooler`]).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # #[cfg(feature = "async")]
    /// use pglock::{Config, Lock};
    ///
    /// # #[cfg(feature = "async")]
    /// # async fn example() -> pglock::Result<()> {
    /// let mut config = Config::from_env()?;
    /// config.lease(Duration::from_secs(10));
    /// let mut lock = Lock::connect(&config, "nightly-report").await?;
    /// lock.lock().await?;
    /// lock.hold(async { /* no longer than the lock is certain */ }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lease(&mut self, ttl: Duration) -> &mut Self {
        self.lease = Some(ttl);
        self
    }

    /// Waits for a lock in slices of this length: the server is asked anew each time, for as long as the
    /// wait goes on. From 100 milliseconds to 24 hours; off by default, which is one wait of any length.
    ///
    /// A session that waits keeps a snapshot of the database for as long as the server waits for it. That
    /// holds back vacuum; and `CREATE INDEX CONCURRENTLY`, `REINDEX CONCURRENTLY` and their like wait for
    /// it to end, which it never does if the waiter's turn comes after the very migration that builds the
    /// index: the server does not see that these two wait for each other. Between two slices there is no
    /// snapshot.
    ///
    /// The price is the place in the server's queue, which is given up with each slice: whoever asks at
    /// that moment may come first, and it costs a cancel of a few milliseconds of the server's time. A
    /// minute suits most waits, and a few seconds a migration.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let mut config = pglock::Config::new();
    /// config.wait_slice(Duration::from_secs(60));
    /// ```
    pub fn wait_slice(&mut self, slice: Duration) -> &mut Self {
        self.wait_slice = Some(slice);
        self
    }

    pub(crate) fn slice_of_a_wait(&self) -> Option<Duration> {
        self.wait_slice
    }

    /// Whether to encrypt the connection, and what to demand of the server's certificate.
    pub fn sslmode(&mut self, mode: SslMode) -> &mut Self {
        self.sslmode = Some(mode);
        self
    }

    /// The caller's own configuration of rustls, which decides about encrypted connections whatever it
    /// can: whom to trust and how to verify that, the client's certificate, versions and algorithms,
    /// whether to name the host to the server, resumption. [`pglock::rustls`](crate::rustls) is the
    /// version that fits.
    ///
    /// [`SslMode`] and `sslnegotiation` go on saying whether there is TLS and how it begins. Without an
    /// `sslmode`, `require` is meant rather than `prefer`. It demands nothing of the certificate
    /// itself: whether it says `require`, `verify-ca` or `verify-full`, what the configuration's
    /// verifier accepts is accepted, and what it refuses is refused. With `prefer`, a refused server is
    /// spoken to in clear.
    ///
    /// No file of certificates is looked for. To ask for what the configuration decides is an error of
    /// kind [`Config`](crate::ErrorKind::Config) that names the parameter: `sslmode=no-verify`,
    /// `sslrootcert`, `sslcert`, `sslkey`, `sslcertmode`, `sslsni`, `ssl_min_protocol_version` and
    /// `ssl_max_protocol_version`, also if it is an environment variable that asks. To be rid of one,
    /// [set](Config::set) it to nothing.
    ///
    /// Without a configuration of the caller's, ChaCha20-Poly1305 is not offered, since every server
    /// has AES-GCM: where a machine has no instructions for that, this is how to have the other.
    ///
    /// The application protocols of the configuration are replaced by PostgreSQL's, because servers
    /// refuse others. Channel binding relies on the verifier's checking that the server has its
    /// certificate's key. In comparisons, a configuration is equal to itself alone.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::sync::Arc;
    /// use pglock::Config;
    /// use pglock::rustls::pki_types::{CertificateDer, pem::PemObject};
    /// use pglock::rustls::{ClientConfig, RootCertStore};
    ///
    /// let mut roots = RootCertStore::empty();
    /// for certificate in CertificateDer::pem_file_iter("/etc/jobs/authority.pem")? {
    ///     roots.add(certificate?)?;
    /// }
    /// let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    ///
    /// let mut config: Config = "postgresql://alice@db.example.com/jobs".parse()?;
    /// config.tls_client_config(Arc::new(tls));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls_client_config(&mut self, config: Arc<rustls::ClientConfig>) -> &mut Self {
        self.tls.callers_config = Some(CallersConfig(config));
        self
    }

    /// Whether the password may be sent as it is, over TCP without TLS, to a server that asks for that.
    /// `false` by default: whoever sees the traffic, or stands in for the server, would have it.
    pub fn allow_cleartext_password(&mut self, allow: bool) -> &mut Self {
        self.allow_cleartext_password = allow;
        self
    }

    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a connection string of either kind, as described at [`Config`].
///
/// The error says where in the string the mistake is, in bytes from its beginning, and shows nothing
/// that could be a piece of a password.
impl FromStr for Config {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text, &files::process_variable)
            .map_err(|problem| Error::config(problem).context("invalid connection string"))
    }
}

/// Reads a connection string. The variables say where the files of services are.
fn parse(text: &str, var: files::Variables<'_>) -> Result<Config, Problem> {
    let mut config = Config::new();
    let given = Parameters::parse(text)?;
    given.apply(&mut config)?;
    given.apply_own_service(&mut config, var)?;
    config.check_together().map_err(|misfit| given.locate(misfit))?;
    Ok(config)
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("hosts", &self.hosts)
            .field("pooler", &self.pooler)
            .field("addresses", &self.addresses)
            .field("ports", &self.ports)
            .field("load_balance_hosts", &self.load_balance_hosts)
            .field("user", &self.user)
            .field("password", &self.password)
            .field("scram_key", &self.scram_key)
            .field("passfile", &self.passfile)
            .field("dbname", &self.dbname)
            .field("application_name", &self.application_name)
            .field("fallback_application_name", &self.fallback_application_name)
            .field("options", &self.options)
            .field("connect_timeout", &self.connect_timeout)
            .field("orphan_timeout", &self.orphan_timeout)
            .field("lease", &self.lease)
            .field("wait_slice", &self.wait_slice)
            .field("keepalive", &self.keepalive)
            .field("sslmode", &self.sslmode)
            .field("tls", &self.tls)
            .field("channel_binding", &self.channel_binding)
            .field("require_auth", &self.require_auth)
            .field("allow_cleartext_password", &self.allow_cleartext_password)
            .field("warnings", &self.warnings)
            .finish()
    }
}

/// What `isspace` says in C's locale, which is what libpq goes by.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}
