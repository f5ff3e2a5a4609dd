//! Distributed locks on PostgreSQL's advisory locks, spoken directly over the wire.

mod config;
mod error;
mod fence;
mod key;
mod lock;
mod locker;
mod net;
pub mod protocol;
mod session;

pub use config::{Config, SslMode};
pub use error::{Error, ErrorKind, Result, ServerError};
pub use fence::Fence;
pub use key::{Key, Mode};
pub use lock::Lock;
pub use locker::Locker;
pub use session::{Canceller, Session};
