//! The one error type of the public interface.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of an operation on a lock or a session.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what to do about it.
///
/// [`kind`](Error::kind) tells the cases apart for a program; `Display` tells a person, naming the
/// server and the key. When [`is_lost`](Error::is_lost) says so, the session is over and so is every
/// lock that it held.
///
/// An error is cheap to clone: a lost session gives the same reason to every later call.
///
/// # Examples
///
/// ```
/// use pglock::{Config, ErrorKind};
///
/// let error = "postgresql://localhost/?sslmood=disable".parse::<Config>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config);
/// assert!(error.to_string().contains("sslmood"));
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    lost: bool,
    context: Option<String>,
    message: Cow<'static, str>,
    server: Option<ServerError>,
    /// What had gone wrong before, in other attempts at the same.
    earlier: Vec<String>,
    /// How far connecting had come.
    step: Option<ConnectStep>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The kinds of failure that a caller may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A connection string, environment variable or setting is wrong or not supported; or programs go by
    /// different numbers of permits of a [`Semaphore`](crate::Semaphore).
    Config,
    /// The server could not be reached, or the connection ended before the login did.
    Connect,
    /// TLS is needed and could not be had.
    Tls,
    /// The server refused the login, asked for a method that is refused here, or could not prove
    /// that it knows the password.
    Authentication,
    /// The server sent something that the protocol does not allow. The session is closed.
    Protocol,
    /// The server reported an error; [`Error::server`] has its words.
    Server,
    /// Connecting, closing or a fencing token took longer than allowed; or a pooler had no server
    /// connection for a wait in its time. (Otherwise a lock that was not acquired in time is not an
    /// error: `lock_timeout` answers `false`.)
    Timeout,
    /// A [`Canceller`](crate::Canceller) ended the wait. The lock is not held.
    Cancelled,
    /// The lock to be released is not held in that mode by this session, or that which is to guard some work
    /// is held in neither. Nothing was changed.
    NotHeld,
    /// The server ended the wait because sessions waited for each other in a circle (SQLSTATE
    /// 40P01). The lock is not held; those acquired before are.
    Deadlock,
    /// The server's lock table is full (SQLSTATE 53200): raise its setting
    /// `max_locks_per_transaction`, or hold fewer locks. Locks acquired before are still held.
    OutOfLockMemory,
    /// The session ended, and with it every lock that it held.
    Lost,
    /// The [`LockManager`](crate::LockManager) was closed, and with it every lock that it held.
    Closed,
    /// This server, or what stands in front of it, cannot be trusted to exclude others: a standby, a
    /// pooler that is not wanted, a server that is not PostgreSQL. Or what was asked for cannot be had
    /// there: a second lock, or a fencing token, through a pooler.
    Unsupported,
}

/// A step on the way to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectStep {
    /// The host's name is looked up.
    Resolve,
    /// A socket is opened, and encrypted where that is wanted. What fails with
    /// [`ErrorKind::Tls`] has reached the server.
    Reach,
    /// The role logs in.
    LogIn,
    /// The server shows whether it can be trusted with locks, and the session is set up.
    SetUp,
}

impl Error {
    /// Which kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the session is gone. The lock may be held by someone else now: stop the work that it
    /// guards.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.lost
    }

    /// The SQLSTATE of the server's error, five characters, if the server reported one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.server().map(ServerError::sqlstate)
    }

    /// The server's own report, if it gave one.
    #[must_use]
    pub fn server(&self) -> Option<&ServerError> {
        self.0.server.as_ref()
    }

    /// At which step connecting failed, if that is what failed.
    #[must_use]
    pub fn connect_step(&self) -> Option<ConnectStep> {
        self.0.step
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            lost: false,
            context: None,
            message: message.into(),
            server: None,
            earlier: Vec::new(),
            step: None,
            source: None,
        }))
    }

    /// A mistake in a connection string, a setting or the environment.
    pub(crate) fn config(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Says what was being done, and to what: put before the message, and before what was said of that
    /// already. What that begins with need not be said again.
    pub(crate) fn context(self, context: impl Into<String>) -> Self {
        let context = context.into();
        self.with(|inner| {
            inner.context = Some(match inner.context.take() {
                None => context,
                Some(known) if known.starts_with(&context) => known,
                Some(known) => format!("{context}: {known}"),
            });
        })
    }

    /// Whether the server may be there, or have the time, when it is asked again.
    #[cfg(feature = "manager")]
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self.kind(), ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Lost)
    }

    /// Says how far connecting had come.
    pub(crate) fn at(self, step: ConnectStep) -> Self {
        self.with(|inner| inner.step = Some(step))
    }

    /// Marks the session as gone.
    pub(crate) fn lost(self) -> Self {
        self.with(|inner| inner.lost = true)
    }

    /// Tells of an earlier attempt as well.
    pub(crate) fn and(self, earlier: &Self) -> Self {
        self.with(|inner| inner.earlier.push(earlier.to_string()))
    }

    pub(crate) fn with_server(self, server: ServerError) -> Self {
        self.with(|inner| inner.server = Some(server))
    }

    pub(crate) fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.with(|inner| inner.source = Some(Arc::new(source)))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.0.context {
            write!(f, "{context}: ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(server) = &self.0.server {
            write!(f, ": {server}")?;
        }
        for earlier in &self.0.earlier {
            write!(f, "; before that: {earlier}")?;
        }
        Ok(())
    }
}

/// Begins with the sentence of `Display`: it is what a person sees when `main` returns the error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [{:?}", self.0.kind)?;
        if self.0.lost {
            f.write_str(", session lost")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ", caused by {source:?}")?;
        }
        f.write_str("]")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| -> &(dyn StdError + 'static) { source.as_ref() })
    }
}

/// An `ErrorResponse` in the server's own words, which may be in the server's own language.
///
/// Decide by [`sqlstate`](ServerError::sqlstate), never by the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError(Box<Report>);

/// The fields of an `ErrorResponse` that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) severity: String,
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl ServerError {
    /// How bad it is: `ERROR`, `FATAL` or `PANIC`. Not translated, where the server says it so.
    #[must_use]
    pub fn severity(&self) -> &str {
        &self.0.severity
    }

    /// The error's code, five characters: see the appendix "PostgreSQL Error Codes" of PostgreSQL's
    /// manual.
    #[must_use]
    pub fn sqlstate(&self) -> &str {
        &self.0.sqlstate
    }

    /// The primary message, one line.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// More about the problem, possibly several lines.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// What the server suggests to do.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether the server closes the connection after this error.
    pub(crate) fn ends_session(&self) -> bool {
        matches!(self.0.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl From<Report> for ServerError {
    fn from(report: Report) -> Self {
        Self(Box::new(report))
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", Readable(self.message()), Readable(self.sqlstate()))?;
        if let Some(detail) = self.detail() {
            write!(f, "; {}", Readable(detail))?;
        }
        if let Some(hint) = self.hint() {
            write!(f, "; hint: {}", Readable(hint))?;
        }
        Ok(())
    }
}

/// Text of a server, which may not have shown yet who it is, without what a terminal acts on. It may have several
/// lines.
struct Readable<'a>(&'a str);

impl fmt::Display for Readable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_acted_on = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
        for (index, shown) in self.0.split(is_acted_on).enumerate() {
            f.write_str(if index == 0 { "" } else { "?" })?;
            f.write_str(shown)?;
        }
        Ok(())
    }
}
