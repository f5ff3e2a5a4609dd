//! From a [`Config`] to a session that can be trusted with locks.
//!
//! ```text
//! each server of the list
//!   └─ each address of its name          within connect_timeout:
//!        └─ each kind of encryption        open ─▶ log in ─▶ introduce ─▶ a wire
//! ```
//!
//! The first that is let in and is a primary is taken. What fails says who is tried next: a server that
//! cannot be reached or breaks off, is starting or ending, or is a standby gives its turn to the next
//! address; a server that wants the other kind of encryption is asked again with that, where `sslmode` permits;
//! any other failure ends the search.

use std::error::Error as _;
use std::fmt;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::introduction::{Introduction, Unfit, client_keepalive};
use super::lease::{Clocks, Lease};
use super::login::log_in;
use super::machine::Machine;
use super::wire::{Peer, Wire};
use crate::auth::AuthMethod;
use crate::config::{Config, LoadBalance, Resolved, Server};
use crate::error::{ConnectStep, Error, ErrorKind, Result};
use crate::net::{self, Address, Encryption, Route};
use crate::span::Span;
use crate::trace;
use crate::wait::{now, timeout};

/// The server is starting or shutting down, or was shut down or crashed while it was talked to.
const NOT_NOW: [&str; 3] = ["57P01", "57P02", "57P03"];
/// Among other things: no entry of `pg_hba.conf` is for a connection with, or without, TLS.
const INVALID_AUTHORIZATION: &str = "28000";

/// Why an attempt came to nothing, and where to go from there.
enum Failure {
    /// The other kind of encryption may do better at the same address.
    Encryption(Error),
    /// Another address or server may do better.
    Here(Error),
    /// None will.
    Everywhere(Error),
}

impl Failure {
    fn at(self, step: ConnectStep) -> Self {
        match self {
            Self::Encryption(error) => Self::Encryption(error.at(step)),
            Self::Here(error) => Self::Here(error.at(step)),
            Self::Everywhere(error) => Self::Everywhere(error.at(step)),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match (error.kind(), error.sqlstate()) {
            (ErrorKind::Tls, _) | (_, Some(INVALID_AUTHORIZATION)) => Self::Encryption(error),
            (ErrorKind::Connect, None) | (ErrorKind::Timeout, _) => Self::Here(error),
            (ErrorKind::Connect, Some(sqlstate)) if NOT_NOW.contains(&sqlstate) => {
                Self::Here(error)
            }
            _ => Self::Everywhere(error),
        }
    }
}

impl From<Unfit> for Failure {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Standby => Self::Here(Error::new(
                ErrorKind::Unsupported,
                "the server is a standby, whose locks exclude nobody on the primary; connect to the \
                 primary",
            )),
            Unfit::Always(error) => error.into(),
        }
    }
}

/// Connects to the first server of the configuration that can hold locks. The comment stays visible in
/// `pg_stat_activity` for as long as the session makes function calls only. So does the name, unless the
/// configuration has another.
pub(super) async fn connect(config: &Config, name: &str, comment: &str) -> Result<Box<Wire>> {
    let is_named = config.names_application();
    let mut config = config.resolve()?;
    if !is_named {
        config.application_name = name.to_owned();
    }
    if config.load_balance_hosts == LoadBalance::Random {
        shuffle(&mut config.servers)?;
    }
    let mut failures = Failures::default();
    for server in &config.servers {
        let name: Arc<str> = format!("{} port {}", server.host, server.port).into();
        let attempt = connect_to(&config, server, comment, &name);
        let context = |error: Error| error.context(format!("connecting to {name}"));
        match attempt.await {
            Ok(wire) => {
                trace::connected(&name, &config.dbname);
                return Ok(wire);
            }
            Err(Failure::Here(error)) => failures.add(context(error)),
            Err(Failure::Encryption(error) | Failure::Everywhere(error)) => {
                return Err(failures.and(context(error)));
            }
        }
    }
    Err(failures.all())
}

async fn connect_to(
    config: &Resolved,
    server: &Server,
    comment: &str,
    name: &Arc<str>,
) -> Result<Box<Wire>, Failure> {
    let resolving = within(config.connect_timeout, &"looking up the name", resolve(server));
    let mut addresses = resolving.await.map_err(|failure| failure.at(ConnectStep::Resolve))?;
    if config.load_balance_hosts == LoadBalance::Random {
        shuffle(&mut addresses)?;
    }
    let mut failures = Failures::default();
    for address in addresses {
        let mut progress = Progress { earlier: Failures::default(), step: ConnectStep::Reach };
        // By far the largest part: it need not be moved into what limits its time.
        let reaching = Box::pin(reach(config, server, comment, name, &address, &mut progress));
        let reached = within(config.connect_timeout, &address, reaching).await;
        let Progress { earlier, step } = progress;
        match reached.map_err(|failure| failure.at(step)) {
            Ok(wire) => return Ok(wire),
            Err(Failure::Here(error)) => failures.add(earlier.and(error)),
            Err(Failure::Encryption(error) | Failure::Everywhere(error)) => {
                return Err(Failure::Everywhere(failures.and(earlier.and(error))));
            }
        }
    }
    Err(Failure::Here(failures.all()))
}

async fn resolve(server: &Server) -> Result<Vec<Address>, Failure> {
    if let Some(address) = server.address {
        return Ok(vec![Address::Tcp(SocketAddr::new(address, server.port))]);
    }
    let addresses = net::resolve(&server.host, server.port).await.map_err(|error| {
        Error::new(ErrorKind::Connect, format!("the name cannot be resolved: {error}"))
    })?;
    Ok(addresses)
}

/// The error for what takes too long says what does.
async fn within<T>(
    limit: Option<Duration>,
    what: &(dyn fmt::Display + Sync),
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(limit) = limit else { return work.await };
    timeout(limit, work).await.unwrap_or_else(|_| Err(too_late(limit, what)))
}

fn too_late(limit: Duration, what: &(dyn fmt::Display + Sync)) -> Failure {
    let message = format!("not connected within {} ({what})", Span(limit));
    Error::new(ErrorKind::Timeout, message).into()
}

/// How far it has come with an address, also if the time is up.
struct Progress {
    /// What went wrong with the kinds of encryption before the last.
    earlier: Failures,
    step: ConnectStep,
}

/// Tries one address with each kind of encryption that the mode permits.
async fn reach(
    config: &Resolved,
    server: &Server,
    comment: &str,
    name: &Arc<str>,
    address: &Address,
    progress: &mut Progress,
) -> Result<Box<Wire>, Failure> {
    let keepalive = client_keepalive(config.orphan_timeout, &config.keepalive);
    for encryption in encryptions(config, server, address)? {
        let route = Route { address: address.clone(), keepalive, encryption };
        match open(config, server, comment, name, route, &mut progress.step).await {
            Err(Failure::Encryption(error)) => progress.earlier.add(error),
            decided => return decided,
        }
    }
    let error = mem::take(&mut progress.earlier).all();
    Err(if is_without_handshake(&error) {
        Failure::Here(error)
    } else {
        Failure::Everywhere(error)
    })
}

/// Whether the socket ended in the middle of a handshake, as it does when the server is being stopped,
/// or behind a proxy that has none.
fn is_without_handshake(error: &Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref());
    error.kind() == ErrorKind::Tls && source.is_some_and(net::is_broken_off)
}

/// The kinds of encryption to try, in this order. Unix sockets need none: nobody can read along.
#[cfg(feature = "tls")]
fn encryptions(
    config: &Resolved,
    server: &Server,
    address: &Address,
) -> Result<Vec<Encryption>, Failure> {
    use crate::config::{SslMode, SslNegotiation};

    if address.is_private() || config.tls.mode == SslMode::Disable {
        return Ok(vec![Encryption::None]);
    }
    let tls = match net::tls::Tls::new(&config.tls.handshake, &server.host.to_string(), address) {
        Ok(tls) => tls,
        Err(error) if config.tls.mode.demands_tls() => return Err(error.into()),
        Err(_) => return Ok(vec![Encryption::None]),
    };
    Ok(match (config.tls.mode, config.tls.negotiation) {
        (SslMode::Allow, _) => vec![Encryption::None, Encryption::IfOffered(tls)],
        (SslMode::Prefer, _) => vec![Encryption::IfOffered(tls), Encryption::None],
        (_, SslNegotiation::Postgres) => vec![Encryption::Negotiated(tls)],
        (_, SslNegotiation::Direct) => vec![Encryption::Direct(tls)],
    })
}

#[cfg(not(feature = "tls"))]
fn encryptions(
    config: &Resolved,
    _: &Server,
    address: &Address,
) -> Result<Vec<Encryption>, Failure> {
    if config.tls.mode.demands_tls() && !address.is_private() {
        let mode = config.tls.mode;
        return Err(Failure::Everywhere(Error::new(
            ErrorKind::Tls,
            format!("sslmode `{mode}` needs pglock's feature `tls`, which is switched off"),
        )));
    }
    Ok(vec![Encryption::None])
}

#[cfg(feature = "tls")]
fn leaves_tls_to_server(encryption: &Encryption) -> bool {
    matches!(encryption, Encryption::IfOffered(_))
}

#[cfg(not(feature = "tls"))]
fn leaves_tls_to_server(_: &Encryption) -> bool {
    false
}

async fn open(
    config: &Resolved,
    server: &Server,
    comment: &str,
    name: &Arc<str>,
    route: Route,
    step: &mut ConnectStep,
) -> Result<Box<Wire>, Failure> {
    // A pooler that ignores function calls answers queries, but only where nothing is under way.
    for by_calls in [true, false] {
        *step = ConnectStep::Reach;
        let stream = route.open().await?;
        *step = ConnectStep::LogIn;
        let has_no_other = leaves_tls_to_server(&route.encryption) && !stream.is_encrypted();
        let route = route.clone().taken_by(&stream);
        let (mut dialogue, identity) = match log_in(stream, config, server).await {
            Ok(logged_in) => logged_in,
            Err(error) => {
                return Err(match error.into() {
                    // The server has said that it has no TLS.
                    Failure::Encryption(error) if has_no_other => Failure::Everywhere(error),
                    failure => failure,
                });
            }
        };
        *step = ConnectStep::SetUp;
        if identity.authentication == AuthMethod::Md5 {
            trace::logged_in_by_md5(name);
        }
        let clocks = config.lease.map(|_| Clocks::look());
        let told = now();
        let introduction = Introduction { config, comment, server: &identity, by_calls };
        if let Some(means) = introduction.take_place(&mut dialogue).await? {
            let peer = Peer {
                name: Arc::clone(name),
                route,
                cancel_key: identity.cancel_key,
                authentication: identity.authentication,
                is_channel_bound: identity.channel_bound,
            };
            let lease = config.lease.map(|ttl| Lease::new(ttl, told));
            let machine = Machine::new(dialogue.connection, means, lease, told);
            return Ok(Box::new(Wire::new(dialogue.stream, machine, peer, clocks)));
        }
    }
    Err(Error::new(ErrorKind::Connect, "the server does not answer").into())
}

/// What went wrong before, so that the last error is not all that is told.
#[derive(Default)]
struct Failures(Vec<Error>);

impl Failures {
    fn add(&mut self, error: Error) {
        self.0.push(error);
    }

    /// This error, and those before it that say something else.
    fn and(self, error: Error) -> Error {
        let told = error.to_string();
        self.0.iter().filter(|earlier| earlier.to_string() != told).fold(error, Error::and)
    }

    fn all(mut self) -> Error {
        match self.0.pop() {
            Some(last) => self.and(last),
            None => Error::new(ErrorKind::Connect, "there is nothing to connect to"),
        }
    }
}

/// Puts the items in random order.
fn shuffle<T>(items: &mut [T]) -> Result<()> {
    for last in (1..items.len()).rev() {
        let random = getrandom::u64().map_err(|error| {
            Error::new(ErrorKind::Connect, format!("no random numbers: {error}"))
        })?;
        let place = random % u64::try_from(last + 1).unwrap_or(1);
        items.swap(last, usize::try_from(place).unwrap_or(last));
    }
    Ok(())
}
