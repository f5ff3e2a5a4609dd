//! What a configuration says about TLS, besides whether to use it.

#[cfg(feature = "tls")]
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(feature = "tls")]
use std::sync::Arc;

use super::files::{self, Variables};
use super::{Misfit, Problem, SslMode};

/// How a connection becomes an encrypted one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SslNegotiation {
    /// The server is asked for TLS, in clear.
    #[default]
    Postgres,
    /// The first byte is one of TLS, which servers understand since version 17.
    Direct,
}

/// Whose word counts when the server shows its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    /// The certificates in this file.
    File(PathBuf),
    /// Those that the operating system trusts.
    System,
}

/// What is demanded of the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing: anybody may be at the other end.
    Nothing,
    /// That one of the roots vouches for it.
    Authority(Roots),
    /// That one of the roots vouches for it, and that it is for the host.
    Host(Roots),
}

/// The files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Which versions of TLS to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    Tls12AndTls13,
    OnlyTls12,
    OnlyTls13,
}

/// The version that is a limit. What is older than 1.2 is not spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Tls12,
    Tls13,
}

/// The caller's own configuration of rustls. It is equal to itself alone.
#[cfg(feature = "tls")]
#[derive(Clone)]
pub(crate) struct CallersConfig(pub(crate) Arc<rustls::ClientConfig>);

#[cfg(feature = "tls")]
impl PartialEq for CallersConfig {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(feature = "tls")]
impl Eq for CallersConfig {}

#[cfg(feature = "tls")]
impl fmt::Debug for CallersConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig").finish_non_exhaustive()
    }
}

/// Without TLS, nobody can have one.
#[cfg(not(feature = "tls"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallersConfig {}

/// The wishes about TLS, as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsWishes {
    pub(super) negotiation: SslNegotiation,
    pub(super) callers_config: Option<CallersConfig>,
    pub(super) roots: Option<Roots>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) send_certificate: Option<bool>,
    pub(super) send_name: Option<bool>,
    pub(super) min_version: Option<Version>,
    pub(super) max_version: Option<Version>,
}

/// Whether of TLS there is 1.3 alone.
const LACKS_TLS12: bool = cfg!(all(feature = "tls", not(feature = "tls12")));

impl TlsWishes {
    /// The mode that is meant where none is given. Whoever says whom to trust does not want to go on
    /// in clear.
    pub(super) fn default_mode(&self) -> SslMode {
        match (&self.callers_config, &self.roots) {
            (Some(_), _) => SslMode::Require,
            (None, Some(Roots::System)) => SslMode::VerifyFull,
            (None, _) => SslMode::default(),
        }
    }

    /// Whether the wishes go together, before any file is looked at.
    pub(super) fn check(&self, mode: SslMode) -> Result<(), Misfit> {
        if self.negotiation == SslNegotiation::Direct && !mode.demands_tls() {
            let problem = format!(
                "`direct` is TLS from the first byte, and sslmode `{mode}` does not demand TLS: say \
                 `require`, `verify-ca` or `verify-full`"
            );
            return Err(("sslnegotiation", problem.into()));
        }
        if self.callers_config.is_some() {
            return self.check_beside_callers_config(mode);
        }
        if matches!(self.roots, Some(Roots::System)) && mode != SslMode::VerifyFull {
            let problem = format!(
                "the system trusts authorities that give anyone a certificate for a host of their \
                 own, and sslmode `{mode}` does not look at the host: say `verify-full`"
            );
            return Err(("sslrootcert", problem.into()));
        }
        self.versions().map(|_| ()).map_err(|problem| ("ssl_max_protocol_version", problem))
    }

    /// What the caller's configuration decides must not be asked for in other words as well: it would
    /// be passed over.
    fn check_beside_callers_config(&self, mode: SslMode) -> Result<(), Misfit> {
        if mode == SslMode::NoVerify {
            let problem = "`no-verify` looks at no certificate, and the configuration of rustls that \
                           was handed in decides about that: say `require`";
            return Err(("sslmode", problem.into()));
        }
        let parameters = [
            ("sslrootcert", self.roots.is_some()),
            ("sslcert", self.certificate.is_some()),
            ("sslkey", self.key.is_some()),
            ("sslcertmode", self.send_certificate.is_some()),
            ("sslsni", self.send_name.is_some()),
            ("ssl_min_protocol_version", self.min_version.is_some()),
            ("ssl_max_protocol_version", self.max_version.is_some()),
        ];
        match parameters.into_iter().find(|(_, is_given)| *is_given) {
            Some((parameter, _)) => Err((
                parameter,
                "the configuration of rustls that was handed in decides about that: leave it out, or \
                 set it to nothing"
                    .into(),
            )),
            None => Ok(()),
        }
    }

    pub(super) fn versions(&self) -> Result<Versions, Problem> {
        let min = self.min_version.unwrap_or(Version::Tls12);
        let max = self.max_version.unwrap_or(Version::Tls13);
        match (min, max) {
            (Version::Tls12, Version::Tls13) => Ok(Versions::Tls12AndTls13),
            (Version::Tls12, Version::Tls12) if LACKS_TLS12 => {
                Err("TLSv1.2 needs pglock's feature `tls12`, which is switched off".into())
            }
            (Version::Tls12, Version::Tls12) => Ok(Versions::OnlyTls12),
            (Version::Tls13, Version::Tls13) => Ok(Versions::OnlyTls13),
            (Version::Tls13, Version::Tls12) => {
                Err("must not be older than ssl_min_protocol_version".into())
            }
        }
    }

    /// What to demand of the server's certificate, given the files that exist.
    pub(super) fn demand(&self, mode: SslMode, var: Variables<'_>) -> Result<Demand, Misfit> {
        if matches!(mode, SslMode::Disable | SslMode::NoVerify) {
            return Ok(Demand::Nothing);
        }
        let Some(roots) = self.existing_roots(mode, var)? else {
            return Ok(Demand::Nothing);
        };
        if mode.demands_tls() && matches!(roots, Roots::File(_)) {
            refuse_default_revocations(var)?;
        }
        Ok(if mode == SslMode::VerifyFull { Demand::Host(roots) } else { Demand::Authority(roots) })
    }

    fn existing_roots(&self, mode: SslMode, var: Variables<'_>) -> Result<Option<Roots>, Misfit> {
        let file = match &self.roots {
            Some(Roots::System) => return Ok(Some(Roots::System)),
            Some(Roots::File(file)) => Some(file.clone()),
            None => files::of_user(var, ".postgresql/root.crt", "root.crt"),
        };
        match file {
            Some(file) if file.exists() => Ok(Some(Roots::File(file))),
            // To go on without would be to trust anyone, against the string's words.
            Some(file) if mode.demands_tls() && self.roots.is_some() => {
                let problem = format!("there is no file {}", file.display());
                Err(("sslrootcert", problem.into()))
            }
            _ if matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) => Err((
                "sslmode",
                format!(
                    "`{mode}` needs root certificates, and there is no ~/.postgresql/root.crt: give a \
                     file in sslrootcert, or say sslrootcert=system with `verify-full`"
                )
                .into(),
            )),
            _ => Ok(None),
        }
    }

    /// The client's certificate, if it has one to show.
    pub(super) fn identity(
        &self,
        mode: SslMode,
        var: Variables<'_>,
    ) -> Result<Option<Identity>, Misfit> {
        let of_user = |name| files::of_user(var, &format!(".postgresql/{name}"), name);
        let certificate = self.certificate.clone().or_else(|| of_user("postgresql.crt"));
        // As in libpq, a file that does not exist is a certificate that is not shown, even if named.
        let existing =
            certificate.filter(|file| self.send_certificate.unwrap_or(true) && file.exists());
        let Some(certificate) = existing else { return Ok(None) };
        let key = self.key.clone().or_else(|| of_user("postgresql.key")).ok_or_else(|| {
            ("sslkey", "must name the key of the certificate: there is no home directory".into())
        })?;
        match check_key(&key) {
            Ok(()) => Ok(Some(Identity { certificate, key })),
            Err(problem) if mode.demands_tls() => Err(("sslkey", problem)),
            // The connection may well be one without TLS.
            Err(_) => Ok(None),
        }
    }
}

/// libpq would look into this file for certificates that were withdrawn.
fn refuse_default_revocations(var: Variables<'_>) -> Result<(), Misfit> {
    match files::of_user(var, ".postgresql/root.crl", "root.crl") {
        Some(file) if file.exists() => Err((
            "sslcrl",
            "revocation lists are not supported, and there is one in ~/.postgresql/root.crl: move it \
             away to go without"
                .into(),
        )),
        _ => Ok(()),
    }
}

/// A key that others can read is a key that others have.
fn check_key(key: &Path) -> Result<(), Problem> {
    let shown = key.display();
    let metadata = fs::metadata(key)
        .map_err(|error| format!("the certificate's key {shown} cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("the certificate's key {shown} is not a plain file").into());
    }
    if is_key_open_to_others(&metadata) {
        return Err(format!(
            "others have access to the certificate's key {shown}: make it 0600, or 0640 if root owns \
             it"
        )
        .into());
    }
    Ok(())
}

/// A key of root's may be readable for a group, so that several services can share it.
#[cfg(unix)]
fn is_key_open_to_others(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    metadata.permissions().mode() & forbidden != 0
}

#[cfg(not(unix))]
fn is_key_open_to_others(metadata: &fs::Metadata) -> bool {
    files::is_open_to_others(metadata)
}
