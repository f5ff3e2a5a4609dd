//! The subset of PostgreSQL's frontend/backend protocol that a lock needs, without input or output.
//!
//! Nothing in here opens a socket, asks for the time or draws a random number: bytes, time and
//! randomness are arguments, so that a login or a request can be fuzzed, replayed and simulated. Names
//! are those of the chapter "Frontend/Backend Protocol" of PostgreSQL's manual.
//!
//! This module is public so that the crate's fuzz targets and benchmarks reach it, and for those who
//! want to read or reuse it. Its interface may change in any release.
//!
//! # A login and a lock, byte by byte
//!
//! ```
//! use pglock::protocol::{Connection, Credentials, Event};
//!
//! // A nonce is to be random; this server is going to ask for nothing that needs one.
//! let credentials = Credentials::new(String::from("alice"), None, [0; 18]);
//! let mut connection = Connection::new(credentials, &[("database", "app")]);
//!
//! // StartupMessage: length, version 3.0, parameters, each text ended by a NUL.
//! assert_eq!(
//!     connection.outgoing(),
//!     b"\0\0\0\x21\0\x03\0\0user\0alice\0database\0app\0\0"
//! );
//! connection.sent(33);
//!
//! // AuthenticationOk: this role is trusted. BackendKeyData: process 77 and its secret.
//! // ReadyForQuery: idle, not in a transaction.
//! connection.received().extend_from_slice(b"R\0\0\0\x08\0\0\0\0");
//! connection.received().extend_from_slice(b"K\0\0\0\x0c\0\0\0\x4d\xca\xfe\xba\xbe");
//! connection.received().extend_from_slice(b"Z\0\0\0\x05I");
//! assert_eq!(connection.poll_event()?, Some(Event::Progress));
//! assert_eq!(connection.poll_event()?, Some(Event::Progress));
//! let Some(Event::LoggedIn(identity)) = connection.poll_event()? else { panic!() };
//! assert_eq!(identity.cancel_key.process_id(), 77);
//!
//! // FunctionCall: pg_try_advisory_lock(bigint) is function 2882. One argument format, binary; one
//! // argument, 8 bytes long, the key 42; the result in binary.
//! connection.call(2882, [&42_i64.to_be_bytes()])?;
//! assert_eq!(
//!     connection.outgoing(),
//!     b"F\0\0\0\x1c\0\0\x0b\x42\0\x01\0\x01\0\x01\0\0\0\x08\0\0\0\0\0\0\0\x2a\0\x01"
//! );
//! connection.sent(29);
//!
//! // FunctionCallResponse: one byte, true. ReadyForQuery again.
//! connection.received().extend_from_slice(b"V\0\0\0\x09\0\0\0\x01\x01");
//! connection.received().extend_from_slice(b"Z\0\0\0\x05I");
//! assert_eq!(connection.poll_event()?, Some(Event::Returned(Some(&[1]))));
//! assert_eq!(connection.poll_event()?, Some(Event::Ready));
//! assert_eq!(connection.poll_event()?, None);
//!
//! // Terminate. The server releases the session's locks, and then closes the socket.
//! connection.terminate();
//! assert_eq!(connection.outgoing(), b"X\0\0\0\x04");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backend;
#[cfg(feature = "tls")]
mod certificate;
mod connection;
mod error;
mod frames;
pub mod frontend;
mod login;
#[cfg(feature = "md5")]
mod md5;
mod pbkdf2;
#[cfg(feature = "saslprep")]
mod saslprep;
pub mod scram;
mod ssl;

pub use crate::auth::{AuthMethod, AuthMethods, AuthMethodsError, ChannelBindingPolicy};
pub use backend::{Authentication, BackendMessage, TransactionStatus};
#[cfg(feature = "tls")]
pub use certificate::tls_server_end_point;
pub use connection::{CallResult, Connection, Event, NotReady};
pub use error::{ProtocolError, Unbound};
pub use frames::{BODY_BYTES_MAX, RESULT_BODY_BYTES_MAX};
pub use login::{CancelKey, Credentials, ServerIdentity, Transport};
#[cfg(feature = "md5")]
pub use md5::md5_password;
#[cfg(feature = "saslprep")]
pub use saslprep::saslprep;
pub use ssl::SslReply;
