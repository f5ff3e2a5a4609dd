//! Whether a connection is encrypted.

use std::fmt;

use super::Problem;

/// Whether to encrypt the connection, and what to demand of the server's certificate: libpq's
/// `sslmode`.
///
/// This version has no TLS: the first three modes connect without it, the others are refused.
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
    /// Always encrypt, and demand a certificate from a trusted authority.
    VerifyCa,
    /// Always encrypt, and demand a certificate from a trusted authority for this very host.
    VerifyFull,
}

impl SslMode {
    const ALL: [Self; 6] =
        [Self::Disable, Self::Allow, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Refuses what this version cannot keep.
    pub(super) fn check(self) -> Result<(), Problem> {
        match self {
            Self::Disable | Self::Allow | Self::Prefer => Ok(()),
            Self::Require | Self::VerifyCa | Self::VerifyFull => Err(format!(
                "`{self}` demands TLS, which this version does not have yet: if the network can be \
                 trusted without, say `disable`, `allow` or `prefer`"
            )
            .into()),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// The name that libpq has for the mode, such as `verify-full`.
impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
