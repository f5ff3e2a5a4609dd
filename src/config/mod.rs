//! Where the server is, who logs in, and how patient to be.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};

/// How to reach a server and log in to it.
///
/// Parse it from a URL or a list of `keyword=value` pairs, read it from the environment
/// ([`Config::from_env`]), or set each part; a setter called later wins.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: Option<String>,
    pub(crate) dbname: String,
    pub(crate) application_name: String,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) orphan_timeout: Duration,
    pub(crate) allow_cleartext_password: bool,
}

impl Config {
    /// A place to start from: libpq's defaults, nothing read from the environment.
    #[must_use]
    pub fn new() -> Self {
        Self {
            host: String::from("localhost"),
            port: 5432,
            user: String::from("postgres"),
            password: None,
            dbname: String::from("postgres"),
            application_name: String::from("pglock"),
            connect_timeout: Some(Duration::from_secs(30)),
            orphan_timeout: Duration::from_secs(30),
            allow_cleartext_password: false,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for Config {
    type Err = Error;

    fn from_str(_: &str) -> Result<Self> {
        Err(Error::config("to be written"))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}
