//! For threads, without a runtime.
//!
//! [`Lock`] and [`Session`] of this module do what [those of the crate's root](crate::Lock) do, and wait
//! in the system call that reads the answer: a free lock costs hardly more than its two round trips, and a
//! program needs neither a runtime nor what belongs to one. Both know a lock by the same [`Key`](crate::Key),
//! so one excludes the other.
//!
//! ```no_run
//! use std::time::Duration;
//! use pglock::{Config, blocking::Lock};
//!
//! fn main() -> pglock::Result<()> {
//!     let mut lock = Lock::connect(&Config::from_env()?, "nightly-report")?;
//!     if lock.lock_timeout(Duration::from_secs(10))? {
//!         lock.hold(report)?;
//!         lock.unlock()?;
//!     }
//!     lock.close()
//! }
//!
//! fn report() {}
//! ```
//!
//! # What is different
//!
//! - Nobody watches over the session while the program works. [`hold`](Lock::hold) tells afterwards whether the
//!   lock was held to the end, and [`ping`](Lock::ping) in between. What is to stop at once when a lock is
//!   lost needs a task: [`crate::Lock::hold`].
//! - A [lease](crate::Config::lease) is renewed by whatever asks the server, and by nothing else: call
//!   [`ping`](Lock::ping) every third of it, or oftener. A lease that has run out is told by the call that comes
//!   too late for it, unless the server still had the session: then nothing was lost.
//! - A call cannot be dropped halfway. [`Canceller`] ends a wait from another thread.
//! - The look-up of a host's name takes as long as the system lets it: `connect_timeout` begins after it.
//! - Do not call it from a task: it would keep the others of its thread from their work. Where there is a
//!   runtime, that is what its `spawn_blocking` is for.

mod lock;
mod session;

pub use lock::Lock;
pub use session::{Canceller, Session};
