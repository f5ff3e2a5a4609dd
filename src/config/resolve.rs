//! What a [`Config`] comes to when a connection is made.

use std::net::IpAddr;
use std::time::Duration;

use crate::auth::{AuthMethods, ChannelBindingPolicy};
use crate::error::{Error, Result};
use crate::secret::Secret;
use crate::span::Span;

use super::files::{self, Variables};
use super::host::{Host, LoadBalance};
use super::passfile::PasswordFile;
use super::scram_key::KeptKey;
use super::tls::{CallersConfig, Demand, Identity, SslNegotiation, Versions};
use super::{Config, KeepaliveWishes, Misfit, Pooler, Problem, SslMode};

/// A configuration that is checked and complete: all that connecting needs to know.
///
/// No `Debug`: it holds passwords.
#[derive(Clone)]
pub(crate) struct Resolved {
    /// In the order in which they are listed, at least one.
    pub(crate) servers: Vec<Server>,
    pub(crate) load_balance_hosts: LoadBalance,
    pub(crate) user: String,
    pub(crate) scram_key: KeptKey,
    /// Why the password file was ignored, if it was: the reason why a password is missing.
    pub(crate) passfile_problem: Option<String>,
    pub(crate) dbname: String,
    /// May be empty, if the caller wants the session to have no name.
    pub(crate) application_name: String,
    /// Names and values of settings to make after the login, before those that a lock needs. The names
    /// are of ASCII letters, digits, `_`, `.` and `$`; the values are arbitrary, and need quoting.
    pub(crate) settings: Vec<(String, String)>,
    /// The startup parameter `options`, for proxies that find the server by it. No poolers take it.
    pub(crate) startup_options: Option<String>,
    /// From looking up the host to the end of the login, of each address; `None` is no limit.
    pub(crate) connect_timeout: Option<Duration>,
    /// Whole seconds, from [`ORPHAN_TIMEOUT_MIN`] to [`ORPHAN_TIMEOUT_MAX`].
    pub(crate) orphan_timeout: Duration,
    pub(crate) lease: Option<Duration>,
    pub(crate) keepalive: KeepaliveWishes,
    pub(crate) tls: TlsOptions,
    pub(crate) channel_binding: ChannelBindingPolicy,
    pub(crate) require_auth: AuthMethods,
    pub(crate) allow_cleartext_password: bool,
    pub(crate) pooler: Pooler,
}

/// One of the servers to try.
///
/// No `Debug`: it holds the password.
#[derive(Clone)]
pub(crate) struct Server {
    /// What errors show and certificates are compared with. It is dialled too, unless there is an
    /// `address`; then it is never a Unix socket.
    pub(crate) host: Host,
    /// What is dialled in place of the host.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) password: Option<Secret>,
}

/// Whether and how to encrypt connections over TCP. Unix sockets are never encrypted, in any mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    pub(crate) mode: SslMode,
    pub(crate) negotiation: SslNegotiation,
    pub(crate) handshake: Handshake,
}

/// Who decides what the two sides of a handshake have to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// The parameters, with the mode and the files that they name.
    Parameters(HandshakeOptions),
    Caller(CallersConfig),
}

#[cfg(feature = "tls")]
impl Handshake {
    /// Whether the server's certificate may have to be for the host.
    pub(crate) fn compares_names(&self) -> bool {
        match self {
            Self::Parameters(options) => matches!(options.demand, Demand::Host(_)),
            Self::Caller(_) => true,
        }
    }
}

/// What the parameters say about a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandshakeOptions {
    /// Also in the modes that can do without TLS: a certificate that is not good enough is then a
    /// reason to go on in clear.
    pub(crate) demand: Demand,
    pub(crate) identity: Option<Identity>,
    /// Whether to tell the server, and whoever reads along, which host is meant.
    pub(crate) send_name: bool,
    pub(crate) versions: Versions,
}

/// Shorter, the keepalive probes of this end, counted in whole seconds, have no time to be repeated
/// before the other end gives up.
const ORPHAN_TIMEOUT_MIN: Duration = Duration::from_secs(8);
/// Systems give up by themselves after about two hours: more than a day is a mistake in the unit.
const ORPHAN_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// A heartbeat every third of it has to have its time, and so has what a holder does in its last tenth.
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Each slice ends with a cancel, for which the server forks a process.
const WAIT_SLICE_MIN: Duration = Duration::from_millis(100);
const WAIT_SLICE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Config {
    /// Checks the settings and fills in what was left out. The operating system's user, the password
    /// file and the files of certificates are looked up here, because here is the first time that they
    /// matter.
    pub(crate) fn resolve(&self) -> Result<Resolved> {
        self.resolve_with(&files::process_variable)
    }

    pub(super) fn resolve_with(&self, var: Variables<'_>) -> Result<Resolved> {
        self.check().and_then(|()| self.check_together()).map_err(misfit_error)?;
        let user = self.user.clone().or_else(|| os_user(var)).ok_or_else(|| {
            Error::config("no user: give one, for instance as `user=...` or in PGUSER")
        })?;
        let dbname = self.dbname.clone().unwrap_or_else(|| user.clone());
        let passfile = self.password_file(var);
        let servers = self.servers(&passfile, &dbname, &user).map_err(misfit_error)?;
        let tls = self.tls(&servers, var).map_err(misfit_error)?;
        let application_name =
            self.application_name.as_ref().or(self.fallback_application_name.as_ref());
        Ok(Resolved {
            servers,
            load_balance_hosts: self.load_balance_hosts,
            user,
            scram_key: self.scram_key.clone(),
            passfile_problem: passfile.problem,
            dbname,
            application_name: application_name.map_or("pglock", String::as_str).to_owned(),
            settings: self.options.settings.clone(),
            startup_options: self.options.startup.clone(),
            connect_timeout: self.connect_timeout,
            orphan_timeout: self.orphan_timeout,
            lease: self.lease,
            keepalive: self.keepalive,
            tls,
            channel_binding: self.channel_binding,
            require_auth: self.require_auth,
            allow_cleartext_password: self.allow_cleartext_password,
            pooler: self.pooler,
        })
    }

    /// Each setting by itself.
    fn check(&self) -> Result<(), Misfit> {
        let text = |text: &Option<String>| text.as_deref().map_or(Ok(()), check_text);
        let name = |name: &Option<String>| name.as_deref().map_or(Ok(()), check_name);
        let hosts = || self.hosts.iter().flatten().try_for_each(Host::check);
        let ports =
            || if self.ports.contains(&Some(0)) { Err("must not be 0".into()) } else { Ok(()) };
        let checks: [(&str, Result<(), Problem>); 11] = [
            ("host", hosts()),
            ("port", ports()),
            ("user", name(&self.user)),
            ("password", self.password.as_deref().map_or(Ok(()), check_text)),
            ("dbname", name(&self.dbname)),
            ("application_name", text(&self.application_name)),
            ("fallback_application_name", text(&self.fallback_application_name)),
            ("orphan_timeout", check_orphan_timeout(self.orphan_timeout)),
            ("lease", self.lease.map_or(Ok(()), check_lease)),
            ("wait_slice", self.wait_slice.map_or(Ok(()), check_wait_slice)),
            ("sslmode", self.mode().check()),
        ];
        checks
            .into_iter()
            .try_for_each(|(setting, outcome)| outcome.map_err(|problem| (setting, problem)))
    }

    /// Whether settings that may come from different places go together.
    pub(super) fn check_together(&self) -> Result<(), Misfit> {
        let mode = self.mode();
        let places = self.aligned()?;
        if mode == SslMode::VerifyFull && places.iter().any(Place::is_nameless) {
            let problem = "must be given beside hostaddr: sslmode `verify-full` compares it with the \
                           certificate";
            return Err(("host", problem.into()));
        }
        mode.check().map_err(|problem| ("sslmode", problem))?;
        self.tls.check(mode)?;
        if self.channel_binding == ChannelBindingPolicy::Require && mode == SslMode::Disable {
            let problem = "`require` ties the login to TLS, which sslmode `disable` rules out";
            return Err(("channel_binding", problem.into()));
        }
        Ok(())
    }

    fn mode(&self) -> SslMode {
        self.sslmode.unwrap_or_else(|| self.tls.default_mode())
    }

    /// The lists of hosts, addresses and ports side by side.
    fn aligned(&self) -> Result<Vec<Place<'_>>, Misfit> {
        let (hosts, addresses, ports) = (&self.hosts, &self.addresses, &self.ports);
        let count = if addresses.is_empty() { hosts.len().max(1) } else { addresses.len() };
        if !hosts.is_empty() && hosts.len() != count {
            let problem = format!(
                "{} for {} in hostaddr: give as many of each",
                counted(hosts.len(), "host", "hosts"),
                counted(count, "address", "addresses"),
            );
            return Err(("host", problem.into()));
        }
        if ports.len() > 1 && ports.len() != count {
            let problem = format!(
                "{} for {}: give one for each, or one for all",
                counted(ports.len(), "port", "ports"),
                counted(count, "host", "hosts"),
            );
            return Err(("port", problem.into()));
        }
        let place = |index: usize| Place {
            host: hosts.get(index).and_then(Option::as_ref),
            address: addresses.get(index).copied().flatten(),
            port: ports.get(if ports.len() > 1 { index } else { 0 }).copied().flatten(),
        };
        Ok((0..count).map(place).collect())
    }

    fn servers(
        &self,
        passfile: &PasswordFile,
        dbname: &str,
        user: &str,
    ) -> Result<Vec<Server>, Misfit> {
        let given = self.password.as_ref().filter(|password| !password.is_empty());
        let server = |place: Place<'_>| {
            let host = place.resolved_host();
            let port = place.port.unwrap_or(5432);
            let password = match given {
                Some(password) => Some(password.clone()),
                None => passfile.password(&host, port, dbname, user),
            };
            Server { host, address: place.address, port, password }
        };
        Ok(self.aligned()?.into_iter().map(server).collect())
    }

    /// The password file as it is now. It is not looked at if there is a password already.
    pub(super) fn password_file(&self, var: Variables<'_>) -> PasswordFile {
        if self.password.as_ref().is_some_and(|password| !password.is_empty()) {
            return PasswordFile::default();
        }
        let path = self.passfile.clone().or_else(|| files::of_user(var, ".pgpass", "pgpass.conf"));
        path.map_or_else(PasswordFile::default, |path| PasswordFile::read(&path))
    }

    fn tls(&self, servers: &[Server], var: Variables<'_>) -> Result<TlsOptions, Misfit> {
        let handshake = match self.tls.callers_config.clone().map(Handshake::Caller) {
            Some(by_caller) => by_caller,
            None => Handshake::Parameters(self.handshake_options(servers, var)?),
        };
        Ok(TlsOptions { mode: self.mode(), negotiation: self.tls.negotiation, handshake })
    }

    fn handshake_options(
        &self,
        servers: &[Server],
        var: Variables<'_>,
    ) -> Result<HandshakeOptions, Misfit> {
        let mode = self.mode();
        let is_tcp = |server: &Server| matches!(server.host, Host::Tcp(_));
        let may_encrypt = cfg!(feature = "tls") && mode != SslMode::Disable;
        // As in libpq, files that no connection would read may be missing.
        let (demand, identity) = if may_encrypt && servers.iter().any(is_tcp) {
            (self.tls.demand(mode, var)?, self.tls.identity(mode, var)?)
        } else {
            (Demand::Nothing, None)
        };
        Ok(HandshakeOptions {
            demand,
            identity,
            send_name: self.tls.send_name.unwrap_or(true),
            versions: self
                .tls
                .versions()
                .map_err(|problem| ("ssl_max_protocol_version", problem))?,
        })
    }
}

/// One element of each list.
struct Place<'a> {
    host: Option<&'a Host>,
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl Place<'_> {
    fn resolved_host(&self) -> Host {
        match (self.host, self.address) {
            (Some(host), None) => host.clone(),
            (Some(host), Some(_)) => Host::Tcp(host.to_string()),
            (None, Some(address)) => Host::Tcp(address.to_string()),
            (None, None) => Host::default_for_platform(),
        }
    }

    /// Whether there is an address alone, which libpq compares with no certificate.
    fn is_nameless(&self) -> bool {
        self.host.is_none() && self.address.is_some()
    }
}

fn counted(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

fn misfit_error((setting, problem): Misfit) -> Error {
    Error::config(problem).context(setting)
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
    Err(format!("must be from 8 seconds to 24 hours in whole seconds, and is {}", Span(timeout))
        .into())
}

fn check_lease(ttl: Duration) -> Result<(), Problem> {
    let in_range = (LEASE_MIN..=LEASE_MAX).contains(&ttl);
    // The server counts in milliseconds.
    if in_range && ttl.subsec_nanos() % 1_000_000 == 0 {
        return Ok(());
    }
    Err(format!("must be from 1 second to 24 hours in whole milliseconds, and is {}", Span(ttl))
        .into())
}

fn check_wait_slice(slice: Duration) -> Result<(), Problem> {
    if (WAIT_SLICE_MIN..=WAIT_SLICE_MAX).contains(&slice) {
        return Ok(());
    }
    Err(format!("must be from 100 milliseconds to 24 hours, and is {}", Span(slice)).into())
}

/// The user's name as a login leaves it in the environment.
fn os_user(var: Variables<'_>) -> Option<String> {
    let variables: &[&str] = if cfg!(windows) { &["USERNAME"] } else { &["USER", "LOGNAME"] };
    variables.iter().filter_map(|name| var(name)).find(|user| !user.is_empty())
}
