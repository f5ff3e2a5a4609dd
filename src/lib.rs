//! Distributed locks on PostgreSQL's advisory locks, spoken directly over the wire.
//!
//! Programs that connect to the same database and use the same [`Key`] exclude each other, on however
//! many machines they run. No driver and no table is needed.
//!
//! ```no_run
//! use std::time::Duration;
//! # #[cfg(feature = "async")]
//! use pglock::{Config, Lock};
//!
//! # #[cfg(feature = "async")]
//! #[tokio::main]
//! async fn main() -> pglock::Result<()> {
//!     let mut lock = Lock::connect(&Config::from_env()?, "nightly-report").await?;
//!     if lock.lock_timeout(Duration::from_secs(10)).await? {
//!         lock.hold(report()).await?; // Dropped if the lock is lost.
//!         lock.unlock().await?;
//!     }
//!     lock.close().await
//! }
//!
//! async fn report() {}
//! # #[cfg(not(feature = "async"))]
//! # fn main() {}
//! ```
//!
//! # Where to begin
//!
//! - [`Config`] says where the server is: a connection string, the environment, or setters.
//! - [`Key`] says what is locked: a name, a number or two. [`Mode`] says how: alone or together.
//! - [`Lock`] is one key on a connection of its own. Most programs need nothing else.
//! - [`Session`] is one connection that holds any number of keys.
//! - [`LockManager`] is for a service: any number of keys for any number of tasks, on a handful of
//!   connections. A lock is a [`Guard`], released when it is dropped.
//!   Several at once are a [`GuardSet`].
//! - [`Semaphore`] lets in so many at a time, of all programs that use its name, on a manager.
//! - [`Election`] has one candidate of many lead, on a manager.
//! - [`Stats`] says what a manager has, and what it has done.
//! - [`blocking`] has a `Lock` and a `Session` for threads without a runtime.
//! - [`Canceller`] ends a wait from elsewhere. Dropping the waiting future does it too.
//! - [`Fence`] is a number that only rises, taken with a lock, by which storage tells the holder of now
//!   from one of the past.
//! - [`Holders`] says who has a lock that is not free, and how many wait for it; [`AdvisoryLocks`] says that of
//!   all keys of a database, and [`Session::terminate_holder`] ends who is in the way.
//! - [`ServerReport`] says what a server is and how it is set, as far as it matters to locks.
//! - [`Locker`] is [`Lock`] as a trait, for tests without a server.
//! - [`Error`] tells by its [`kind`](Error::kind) what failed, and by [`is_lost`](Error::is_lost) whether
//!   the locks are gone.
//! - [`protocol`] is the part that turns bytes into events, without input or output. Few need it.
//!
//! # What holds
//!
//! - A lock that was acquired is held until it is unlocked, its session is closed or dropped, or
//!   [`lost`] tells that the session is gone. It is never acquired again in secret.
//! - Whatever ends a wait, the session afterwards holds what it says it holds, and can be used further.
//! - When [`unlock`] has taken the last level, or [`close`] returns, the next session gets the lock at once.
//! - A standby and a server that is not PostgreSQL are refused: their locks may exclude nobody. Behind a
//!   connection pooler, locks are held in transactions: see [`Pooler`].
//!
//! # Features
//!
//! - `async` (on by default): [`Lock`] and [`Session`], for tasks on tokio's runtime.
//! - `blocking` (off by default): [the same for threads][`blocking`], without a runtime. One of these two
//!   features has to be on.
//! - `manager` (on by default): [`LockManager`], [`Semaphore`] and [`Election`], with what belongs to them.
//!   A program of [`Lock`]s alone builds faster without them.
//! - `md5` (on by default): logging in by MD5, which PostgreSQL has deprecated.
//! - `saslprep` (on by default): logging in by SCRAM with a password outside ASCII, which needs tables of
//!   Unicode. Without it, such a password is refused.
//! - `tls` (on by default): encrypted connections, with rustls. Without it, a connection string that
//!   demands TLS is refused.
//! - `tls12` (on by default): TLS 1.2 beside 1.3, for servers whose OpenSSL is older than 1.1.1, or that are set
//!   to it. Without it, such a server cannot be reached by TLS.
//! - `cli` (off by default): the command `pglock`, flock(1) across machines, for Unix systems.
//! - `tracing` (off by default): events of the crate `tracing`, with `pglock` as their target. WARN: `session
//!   lost`, `lease expired`, `no session could be connected` (by a manager, and when it tries again),
//!   `keys have no session to wait on` (once a minute at most), and logins by MD5. DEBUG: `session connected`, and `lock granted` by a manager, with the time that was
//!   waited and whether it was handed over within the process. Fields are those of OpenTelemetry's semantic
//!   conventions (`db.system.name`, `server.address`, `server.port`, `error.type`,
//!   `db.response.status_code`, ...) and `pglock.*`, times in seconds. They hold no text of an error.
//!
//! # Limits
//!
//! - Keys belong to a database: the same key in two databases is two locks.
//! - PostgreSQL 12 to 18. Before 14, a client that dies while it waits stays in the server's queue until
//!   its turn comes.
//! - A process that is frozen while its host lives keeps its locks, unless they have a
//!   [lease](Config::lease). Where it must not write after it wakes, take a [`Fence`].
//! - A session lives on the tokio runtime on which it was connected, with I/O and time enabled. What
//!   a dropped future leaves to do is done there: a runtime of one thread has to be kept running. What is
//!   [`blocking`] needs none.
//!

// Without the feature that brings what it names, a link leads to that feature, or to what threads have in its
// place: the first of two definitions counts.
#![cfg_attr(
    not(feature = "async"),
    doc = "
[`Lock`]: blocking::Lock
[`Session`]: blocking::Session
[`Session::terminate_holder`]: blocking::Session::terminate_holder
[`Canceller`]: blocking::Canceller
[`Locker`]: #features
[`lost`]: #features
[`unlock`]: blocking::Lock::unlock
[`close`]: blocking::Lock::close"
)]
#![cfg_attr(
    not(feature = "manager"),
    doc = "
[`LockManager`]: #features
[`Guard`]: #features
[`GuardSet`]: #features
[`Stats`]: #features
[`Semaphore`]: #features
[`Election`]: #features"
)]
#![cfg_attr(not(feature = "blocking"), doc = "[`blocking`]: #features")]
//! [`lost`]: Lock::lost
//! [`unlock`]: Lock::unlock
//! [`close`]: Lock::close

#![cfg_attr(
    not(all(feature = "manager", feature = "tls")),
    allow(rustdoc::broken_intra_doc_links, reason = "not every item has such definitions")
)]

#[cfg(not(any(feature = "async", feature = "blocking")))]
compile_error!("pglock needs its feature `async`, `blocking`, or both");

mod advisory_locks;
mod auth;
#[cfg(feature = "blocking")]
pub mod blocking;
mod config;
#[cfg(feature = "tls")]
mod der;
#[cfg(feature = "manager")]
mod election;
mod error;
mod fence;
mod holders;
mod key;
#[cfg(feature = "async")]
mod lock;
#[cfg(feature = "async")]
mod locker;
#[cfg(feature = "manager")]
mod manager;
mod net;
pub mod protocol;
mod report;
mod secret;
#[cfg(feature = "manager")]
mod semaphore;
#[cfg_attr(
    not(feature = "async"),
    allow(unreachable_pub, dead_code, reason = "without it, nobody sees this but `blocking`")
)]
mod session;
mod span;
mod trace;
mod wait;

pub use advisory_locks::{AdvisoryLock, AdvisoryLocks};
pub use auth::AuthMethod;
pub use config::{Config, Pooler, SslMode};
#[cfg(feature = "manager")]
pub use election::{Election, Leadership, Observer};
pub use error::{ConnectStep, Error, ErrorKind, Result, ServerError};
pub use fence::Fence;
pub use holders::{Holder, Holders};
pub use key::{Key, Mode};
#[cfg(feature = "async")]
pub use lock::Lock;
#[cfg(feature = "async")]
pub use locker::Locker;
#[cfg(feature = "manager")]
pub use manager::{Guard, GuardSet, LockManager, LockManagerBuilder, Stats, WaitTimes};
pub use report::{Holding, RoleReport, ServerReport, ServerSettings, TlsReport};
/// The version whose configuration [`Config::tls_client_config`] takes.
#[cfg(feature = "tls")]
pub use rustls;
#[cfg(feature = "manager")]
pub use semaphore::{Permit, Semaphore};
#[cfg(feature = "async")]
pub use session::{Canceller, Session};

/// Compiles the README's program with the tests of the documentation.
#[cfg(all(doctest, feature = "async"))]
#[doc = include_str!("../README.md")]
struct Readme;
