//! What a backend can get wrong.

use std::fmt;

use super::scram::ScramError;
use super::{AuthMethod, AuthMethods};

/// Why the bytes of a backend were refused. The connection cannot go on after any of these.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A message ended before the field that was being read.
    UnexpectedEnd {
        /// The message's type byte.
        tag: u8,
    },
    /// A message went on after its last field.
    TrailingBytes {
        /// The message's type byte.
        tag: u8,
    },
    /// A field has a value that the protocol does not allow.
    InvalidField {
        /// The message's type byte.
        tag: u8,
        /// The field, in the words of PostgreSQL's manual.
        field: &'static str,
    },
    /// A message announced a length that is out of bounds.
    BadLength {
        /// The message's type byte.
        tag: u8,
        /// The announced length in bytes, which counts itself.
        length: u32,
    },
    /// An error in the form that servers older than protocol 3, and servers out of processes, use.
    Unframed {
        /// The server's text.
        text: String,
    },
    /// No message of this client's protocol begins with this byte.
    UnknownMessage {
        /// The type byte.
        tag: u8,
    },
    /// A message that is known but has no place here.
    UnexpectedMessage {
        /// The message's name in PostgreSQL's manual.
        message: &'static str,
        /// What was going on.
        during: &'static str,
    },
    /// The server asked for an authentication method that this client does not have.
    UnsupportedAuthentication {
        /// The method, in the words of PostgreSQL's manual.
        method: &'static str,
    },
    /// The server asks for an MD5 hash, and pglock's feature `md5` is switched off.
    NeedsMd5,
    /// The server offered no SASL mechanism that this client has and may use.
    NoCommonMechanism {
        /// What it offered, cut and cleaned.
        offered: String,
    },
    /// The server offered to bind the login to a TLS connection that does not exist.
    ChannelBindingWithoutTls,
    /// The login has to be bound to the TLS connection, and cannot be.
    ChannelBindingRequired(Unbound),
    /// The server asked for an authentication method that the client was told not to take.
    MethodRefused {
        /// What the server asked for.
        method: AuthMethod,
        /// What `require_auth` permits.
        permitted: AuthMethods,
    },
    /// The server wants a password, and there is none.
    PasswordNeeded,
    /// The server wants the password in clear, over a connection that others may read.
    CleartextRefused,
    /// The server said that the login is complete, before it proved that it knows the password.
    ServerNotAuthenticated,
    /// The SCRAM exchange failed.
    Scram(ScramError),
    /// The server answered with a protocol version that was not asked for.
    UnsupportedVersion {
        /// The major version that the server wants.
        major: u32,
        /// The minor version that the server wants.
        minor: u32,
    },
    /// The login is complete, and the server never said how to cancel what the session does.
    NoCancelKey,
    /// The answer to an `SSLRequest` is none of the two that there are.
    BadSslReply {
        /// The byte that came instead of `S` or `N`.
        byte: u8,
    },
}

/// Why a login could not be bound to the TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unbound {
    /// There is no TLS.
    NotEncrypted,
    /// The server's certificate has no hash to bind to.
    NoEndPoint,
    /// The server did not offer it.
    NotOffered,
    /// The server asked for a method that has no channel binding.
    Method(AuthMethod),
}

impl ProtocolError {
    /// Whether the login is what failed, rather than the form of a message.
    #[must_use]
    pub fn is_authentication(&self) -> bool {
        matches!(
            self,
            Self::UnsupportedAuthentication { .. }
                | Self::NeedsMd5
                | Self::NoCommonMechanism { .. }
                | Self::ChannelBindingWithoutTls
                | Self::ChannelBindingRequired(_)
                | Self::MethodRefused { .. }
                | Self::PasswordNeeded
                | Self::CleartextRefused
                | Self::ServerNotAuthenticated
                | Self::Scram(_)
        )
    }
}

/// In the words of its display: every program that prints an error's causes has both.
impl fmt::Debug for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProtocolError({self})")
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnexpectedEnd { tag } => {
                write!(f, "the server's message {} is cut short", Tag(*tag))
            }
            Self::TrailingBytes { tag } => {
                write!(f, "the server's message {} is longer than its fields", Tag(*tag))
            }
            Self::InvalidField { tag, field } => {
                write!(f, "the server's message {} has an invalid {field}", Tag(*tag))
            }
            Self::BadLength { tag, length } => {
                write!(
                    f,
                    "the server announced a message {} of {length} bytes; is it PostgreSQL?",
                    Tag(*tag)
                )
            }
            Self::Unframed { text } => write!(f, "the server refused the connection: {text}"),
            Self::UnknownMessage { tag } => {
                write!(f, "the server sent an unknown message {}; is it PostgreSQL?", Tag(*tag))
            }
            Self::UnexpectedMessage { message, during } => {
                write!(f, "the server sent {message} during {during}")
            }
            Self::UnsupportedAuthentication { method } => write!(
                f,
                "the server asks for {method} authentication, which is not supported; \
                 let pg_hba.conf ask for scram-sha-256"
            ),
            Self::NeedsMd5 => f.write_str(
                "the server asks for md5 authentication: let pg_hba.conf ask for scram-sha-256, or \
                 switch on pglock's feature `md5`",
            ),
            Self::NoCommonMechanism { offered } => write!(
                f,
                "the server offers no SASL mechanism that is supported here (it offers \
                 \"{offered}\"); let pg_hba.conf ask for scram-sha-256"
            ),
            Self::ChannelBindingWithoutTls => f.write_str(
                "the server offers channel binding over an unencrypted connection; somebody between \
                 here and the server may be decrypting it: set sslmode to require or stronger",
            ),
            Self::ChannelBindingRequired(unbound) => {
                write!(f, "channel_binding=require cannot be met: {unbound}")
            }
            Self::MethodRefused { method, permitted } => write!(
                f,
                "the server {}, and require_auth permits {}; let pg_hba.conf ask for a permitted \
                 method, or let require_auth permit {method}",
                Asked(*method),
                Permitted(*permitted)
            ),
            Self::PasswordNeeded => {
                f.write_str("the server asks for a password and none is set; set one in the Config")
            }
            Self::CleartextRefused => f.write_str(
                "the server asks for the password in clear over an unencrypted connection; set sslmode \
                 to require or stronger, let pg_hba.conf ask for scram-sha-256, or permit it with \
                 allow_cleartext_password",
            ),
            Self::ServerNotAuthenticated => f.write_str(
                "the server skipped the proof that it knows the password; it may be an impostor",
            ),
            Self::Scram(error) => error.fmt(f),
            Self::UnsupportedVersion { major, minor } => write!(
                f,
                "the server answered with protocol {major}.{minor} where 3.0 was asked for"
            ),
            Self::NoCancelKey => f.write_str(
                "the server gave no key to cancel requests with, so a wait could not be ended; \
                 is it PostgreSQL, or a pooler that hides the key?",
            ),
            Self::BadSslReply { byte: b'E' } => f.write_str(
                "the server answered the request for TLS with an error, which is not shown because \
                 nobody vouches for it; look into the server's log",
            ),
            Self::BadSslReply { byte } => write!(
                f,
                "the server answered the request for TLS with {}; is it PostgreSQL?",
                Tag(*byte)
            ),
        }
    }
}

impl std::error::Error for ProtocolError {}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEncrypted => f.write_str(
                "the connection is not encrypted; connect over TCP with sslmode=require or stronger",
            ),
            Self::NoEndPoint => f.write_str(
                "the server's certificate is signed in a way that has no hash to bind to (Ed25519, \
                 for instance); give the server one that is signed with RSA or ECDSA, or set \
                 channel_binding=prefer",
            ),
            Self::NotOffered => f.write_str(
                "the server does not offer SCRAM-SHA-256-PLUS; a pooler in between would not, nor a \
                 server older than PostgreSQL 11: connect to the server directly, or set \
                 channel_binding=prefer",
            ),
            Self::Method(method) => write!(
                f,
                "the server {}; let pg_hba.conf ask for scram-sha-256, and set the role's password \
                 anew if an MD5 hash of it is stored",
                Asked(*method)
            ),
        }
    }
}

/// What the server did, in words that follow "the server".
struct Asked(AuthMethod);

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            AuthMethod::None => f.write_str("lets this role in without asking for a password"),
            method => write!(f, "asks for {method} authentication"),
        }
    }
}

/// What is permitted, in words that follow "permits".
struct Permitted(AuthMethods);

impl fmt::Display for Permitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == AuthMethods::only([]) {
            f.write_str("no method at all")
        } else {
            write!(f, "only {}", self.0)
        }
    }
}

impl From<ScramError> for ProtocolError {
    fn from(error: ScramError) -> Self {
        Self::Scram(error)
    }
}

/// Shows a type byte as the letter that it is, if it is one.
struct Tag(u8);

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "'{}'", char::from(self.0))
        } else {
            write!(f, "0x{:02x}", self.0)
        }
    }
}
