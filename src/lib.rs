//! Distributed locks on PostgreSQL's advisory locks, spoken directly over the wire.

mod config;
mod error;
mod key;

pub use config::{Config, SslMode};
pub use error::{Error, ErrorKind, Result, ServerError};
pub use key::{Key, Mode};
