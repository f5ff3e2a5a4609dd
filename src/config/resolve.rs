//! What a [`Config`] comes to when a connection is made.

use std::env;
use std::time::Duration;

use crate::error::{Error, Result};

use super::{Config, Host, Problem};

/// A configuration that is checked and complete: all that connecting needs to know.
///
/// No `Debug`: it holds the password.
#[derive(Clone)]
pub(crate) struct Resolved {
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: Option<String>,
    pub(crate) dbname: String,
    /// May be empty, if the caller wants the session to have no name.
    pub(crate) application_name: String,
    /// From looking up the host to the end of the login; `None` is no limit.
    pub(crate) connect_timeout: Option<Duration>,
    /// Whole seconds, from [`ORPHAN_TIMEOUT_MIN`] to [`ORPHAN_TIMEOUT_MAX`].
    pub(crate) orphan_timeout: Duration,
    pub(crate) allow_cleartext_password: bool,
}

/// Shorter, the server's keepalive probes, counted in whole seconds, have no time to be repeated.
const ORPHAN_TIMEOUT_MIN: Duration = Duration::from_secs(4);
/// Systems give up by themselves after about two hours: more than a day is a mistake in the unit.
const ORPHAN_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Config {
    /// Checks the settings and fills in what was left out; the operating system's user is looked up
    /// here, because here is the first time that it matters.
    pub(crate) fn resolve(&self) -> Result<Resolved> {
        self.resolve_for(os_user)
    }

    pub(super) fn resolve_for(&self, os_user: impl Fn() -> Option<String>) -> Result<Resolved> {
        self.check()?;
        let user = self.user.clone().or_else(os_user).ok_or_else(|| {
            Error::config("no user: give one, for instance as `user=...` or in PGUSER")
        })?;
        Ok(Resolved {
            host: self.host.clone().unwrap_or_else(Host::default_for_platform),
            port: self.port,
            dbname: self.dbname.clone().unwrap_or_else(|| user.clone()),
            user,
            password: self.password.clone().filter(|password| !password.is_empty()),
            application_name: self.application_name.clone(),
            connect_timeout: self.connect_timeout,
            orphan_timeout: self.orphan_timeout,
            allow_cleartext_password: self.allow_cleartext_password,
        })
    }

    fn check(&self) -> Result<()> {
        let text = |text: &Option<String>| text.as_deref().map_or(Ok(()), check_text);
        let name = |name: &Option<String>| name.as_deref().map_or(Ok(()), check_name);
        let port = if self.port == 0 { Err("must not be 0".into()) } else { Ok(()) };
        let checks: [(&str, Result<(), Problem>); 8] = [
            ("host", self.host.as_ref().map_or(Ok(()), Host::check)),
            ("port", port),
            ("user", name(&self.user)),
            ("password", text(&self.password)),
            ("dbname", name(&self.dbname)),
            ("application_name", check_text(&self.application_name)),
            ("orphan_timeout", check_orphan_timeout(self.orphan_timeout)),
            ("sslmode", self.sslmode.check()),
        ];
        for (setting, outcome) in checks {
            outcome.map_err(|problem| Error::config(problem).context(setting))?;
        }
        Ok(())
    }
}

/// A NUL ends a parameter in the startup message, so what follows it would be the next parameter.
fn check_text(text: &str) -> Result<(), Problem> {
    if text.contains('\0') {
        return Err("must not contain a NUL character".into());
    }
    Ok(())
}

/// Nobody sets a name to nothing on purpose, and to connect as someone else is no answer to it.
fn check_name(name: &str) -> Result<(), Problem> {
    if name.is_empty() {
        return Err("is empty: leave it out for the default".into());
    }
    check_text(name)
}

fn check_orphan_timeout(timeout: Duration) -> Result<(), Problem> {
    let in_range = (ORPHAN_TIMEOUT_MIN..=ORPHAN_TIMEOUT_MAX).contains(&timeout);
    if in_range && timeout.subsec_nanos() == 0 {
        return Ok(());
    }
    Err(format!("must be from 4 seconds to 24 hours in whole seconds, and is {timeout:?}").into())
}

/// The user's name as a login leaves it in the environment.
fn os_user() -> Option<String> {
    let variables: &[&str] = if cfg!(windows) { &["USERNAME"] } else { &["USER", "LOGNAME"] };
    variables.iter().filter_map(|name| env::var(name).ok()).find(|user| !user.is_empty())
}
