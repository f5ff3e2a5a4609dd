//! Whether a connection is encrypted.

use std::fmt;

use super::Problem;

/// Whether to encrypt the connection, and what to demand of the server's certificate: libpq's
/// `sslmode`.
///
/// Where there is a file of root certificates (the parameter `sslrootcert`, or
/// `~/.postgresql/root.crt`), [`Require`](SslMode::Require) demands a certificate that one of them
/// vouches for, like [`VerifyCa`](SslMode::VerifyCa). Where the caller hands in a configuration of
/// rustls, its verifier alone decides which certificates are good.
///
/// Without the crate's feature `tls`, the first three modes connect without TLS, and the others are
/// refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SslMode {
    /// Never encrypt.
    Disable,
    /// Encrypt if the server insists.
    Allow,
    /// Encrypt if the server can. The default, as in libpq.
    #[default]
    Prefer,
    /// Always encrypt, whoever the server is.
    Require,
    /// Always encrypt, and look at no certificate, whatever root certificates there are. Not libpq's,
    /// but in connection strings that were made for node-postgres.
    NoVerify,
    /// Always encrypt, and demand a certificate from a trusted authority.
    VerifyCa,
    /// Always encrypt, and demand a certificate from a trusted authority for this very host.
    VerifyFull,
}

impl SslMode {
    const ALL: [Self; 7] = [
        Self::Disable,
        Self::Allow,
        Self::Prefer,
        Self::Require,
        Self::NoVerify,
        Self::VerifyCa,
        Self::VerifyFull,
    ];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Whether a connection without TLS is out of the question.
    pub(crate) const fn demands_tls(self) -> bool {
        match self {
            Self::Disable | Self::Allow | Self::Prefer => false,
            Self::Require | Self::NoVerify | Self::VerifyCa | Self::VerifyFull => true,
        }
    }

    /// Refuses what this build cannot keep.
    pub(super) fn check(self) -> Result<(), Problem> {
        if cfg!(feature = "tls") || !self.demands_tls() {
            return Ok(());
        }
        Err(format!(
            "`{self}` demands TLS, and pglock was built without its feature `tls`: build it with, or, \
             if the network can be trusted, say `disable`, `allow` or `prefer`"
        )
        .into())
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::NoVerify => "no-verify",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// The name that connection strings have for the mode, such as `verify-full`.
impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
