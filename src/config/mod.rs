//! Where the server is, who logs in, and how patient to be.
//!
//! [`url`] and [`keyword_value`] turn the two kinds of connection string into a list of named
//! values, [`parameters`] knows which setting each name stands for, [`mod@env`] adds the environment,
//! and [`resolve`] checks the whole and fills in what was left out, when a connection is made.

mod env;
mod host;
mod keyword_value;
mod parameters;
mod resolve;
mod ssl_mode;
#[cfg(test)]
mod tests;
mod url;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};

pub(crate) use self::host::Host;
pub(crate) use self::resolve::Resolved;
pub use self::ssl_mode::SslMode;

use self::parameters::Parameters;

/// What is wrong with a setting or a string, in words that hold no piece of a value.
type Problem = Cow<'static, str>;

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
/// postgresql://user:password@host:port/dbname?parameter=value&...
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
/// | `host` | `PGHOST` | name, address, or directory of the Unix socket (begins with `/`) | `/var/run/postgresql` if it exists, else `/tmp`; `localhost` where there are no Unix sockets |
/// | `port` | `PGPORT` | 1 to 65535, names the Unix socket too | 5432 |
/// | `user` | `PGUSER` | the role that logs in | the operating system's user (`USER`, `LOGNAME`) |
/// | `password` | `PGPASSWORD` | | none |
/// | `dbname` | `PGDATABASE` | the database; locks of different databases are apart | the user's name |
/// | `application_name` | `PGAPPNAME` | shown in `pg_stat_activity` | `pglock` |
/// | `connect_timeout` | `PGCONNECT_TIMEOUT` | whole seconds; 0 or less: no limit | 30 |
/// | `sslmode` | `PGSSLMODE` | `disable`, `allow` or `prefer`: this version has no TLS | `prefer` |
///
/// Three things differ from libpq: connecting is limited to 30 seconds by default, because nothing
/// here may hang; lists of hosts and libpq's other parameters are not supported yet, which is an
/// error that names them; and a URL with a bare `@` after its host began is refused, because that is
/// a password that was not encoded, and it would show in every error.
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
    host: Option<Host>,
    port: u16,
    user: Option<String>,
    password: Option<String>,
    dbname: Option<String>,
    application_name: String,
    connect_timeout: Option<Duration>,
    orphan_timeout: Duration,
    sslmode: SslMode,
    allow_cleartext_password: bool,
}

impl Config {
    /// A place to start from: every setting at its default, nothing read from the environment.
    #[must_use]
    pub fn new() -> Self {
        Self {
            host: None,
            port: 5432,
            user: None,
            password: None,
            dbname: None,
            application_name: String::from("pglock"),
            connect_timeout: Some(Duration::from_secs(30)),
            orphan_timeout: Duration::from_secs(30),
            sslmode: SslMode::default(),
            allow_cleartext_password: false,
        }
    }

    /// The configuration that the environment gives: the connection string in `DATABASE_URL`, and
    /// for what it leaves out libpq's variables `PGHOST`, `PGPORT` and so on, as listed [above](Config).
    ///
    /// A variable that is set to nothing counts as not set. Variables of libpq that would change where
    /// or how to connect, and that this version does not know (`PGHOSTADDR`, `PGSERVICE`, `PGOPTIONS`,
    /// `PGREQUIREAUTH`, and `PGCHANNELBINDING`, `PGGSSENCMODE` and `PGREQUIRESSL` where they demand
    /// something), are an error rather than ignored; all others are ignored.
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
        env::from_vars(var)
    }

    /// The server's host name or address, or the directory of its Unix socket: what begins with `/`,
    /// or on Linux with `@` for the abstract namespace.
    pub fn host(&mut self, host: &str) -> &mut Self {
        self.host = Some(Host::new(host));
        self
    }

    /// The server's port, which is part of a Unix socket's name too. 5432 by default.
    pub fn port(&mut self, port: u16) -> &mut Self {
        self.port = port;
        self
    }

    /// The role that logs in. By default, the operating system's user.
    pub fn user(&mut self, user: &str) -> &mut Self {
        self.user = Some(user.to_owned());
        self
    }

    /// The role's password, for servers that ask for one.
    pub fn password(&mut self, password: &str) -> &mut Self {
        self.password = Some(password.to_owned());
        self
    }

    /// The database to connect to; by default the one with the user's name.
    ///
    /// The same key in two databases is two locks: all who contend for it connect to the same one.
    pub fn dbname(&mut self, dbname: &str) -> &mut Self {
        self.dbname = Some(dbname.to_owned());
        self
    }

    /// The name that the server shows for the session, in `pg_stat_activity` and in its log. `pglock`
    /// by default.
    pub fn application_name(&mut self, name: &str) -> &mut Self {
        name.clone_into(&mut self.application_name);
        self
    }

    /// How long connecting may take, from looking up the name to the end of the login. 30 seconds by
    /// default; zero means no limit.
    pub fn connect_timeout(&mut self, limit: Duration) -> &mut Self {
        self.connect_timeout = (!limit.is_zero()).then_some(limit);
        self
    }

    /// How soon the server gives up a session whose client has vanished from the network, and frees
    /// its locks. From 4 seconds to 24 hours in whole seconds; 30 seconds by default.
    ///
    /// A shorter time frees the locks of a lost host sooner, and loses those of a host that was only
    /// cut off for a moment. If only the process dies, its host closes the connection, and the locks
    /// are free at once, whatever is set here.
    pub fn orphan_timeout(&mut self, timeout: Duration) -> &mut Self {
        self.orphan_timeout = timeout;
        self
    }

    /// Whether to encrypt the connection. This version has no TLS and refuses a mode that demands it.
    pub fn sslmode(&mut self, mode: SslMode) -> &mut Self {
        self.sslmode = mode;
        self
    }

    /// Whether the password may be sent as it is, over TCP without TLS, to a server that asks for that.
    /// `false` by default: whoever sees the traffic, or stands in for the server, would have it.
    pub fn allow_cleartext_password(&mut self, allow: bool) -> &mut Self {
        self.allow_cleartext_password = allow;
        self
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
        let mut config = Self::new();
        Parameters::parse(text)
            .and_then(|parameters| parameters.apply(&mut config))
            .map_err(|problem| Error::config(problem).context("invalid connection string"))?;
        Ok(config)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| format_args!("(not shown)")))
            .field("dbname", &self.dbname)
            .field("application_name", &self.application_name)
            .field("connect_timeout", &self.connect_timeout)
            .field("orphan_timeout", &self.orphan_timeout)
            .field("sslmode", &self.sslmode)
            .field("allow_cleartext_password", &self.allow_cleartext_password)
            .finish()
    }
}

/// What `isspace` says in C's locale, which is what libpq goes by.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}
