//! Where the server listens.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Problem;

/// A server's address, less the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A name or an address, to be looked up.
    Tcp(String),
    /// The directory of the socket `.s.PGSQL.<port>`. One that begins with `@` is no directory, but
    /// the beginning of a name in Linux's abstract namespace.
    Unix(PathBuf),
}

impl Host {
    pub(super) fn new(host: &str) -> Self {
        if host.starts_with(['/', '@']) {
            Self::Unix(PathBuf::from(host))
        } else {
            Self::Tcp(host.to_owned())
        }
    }

    /// The host that is meant where none is given.
    ///
    /// libpq has its socket directory compiled in: PostgreSQL's own default is `/tmp`, and the
    /// packages of most systems put `/var/run/postgresql` in its place. The latter does not exist
    /// unless such a package is installed.
    pub(super) fn default_for_platform() -> Self {
        if !cfg!(unix) {
            return Self::Tcp(String::from("localhost"));
        }
        let packaged = Path::new("/var/run/postgresql");
        let directory = if packaged.is_dir() { packaged } else { Path::new("/tmp") };
        Self::Unix(directory.to_path_buf())
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        let text = match self {
            Self::Tcp(name) => name.as_str(),
            Self::Unix(directory) => directory.to_str().unwrap_or_default(),
        };
        if text.is_empty() {
            return Err("is empty: leave it out for the default".into());
        }
        if text.contains('\0') {
            return Err("must not contain a NUL character".into());
        }
        if text.contains(',') {
            return Err("lists of hosts are not supported yet: give one".into());
        }
        match self {
            // A password that was not encoded ends up here, and would be shown in every error.
            Self::Tcp(name) if name.contains('@') => Err("no host name contains `@`".into()),
            Self::Unix(_) if !cfg!(unix) => {
                Err("Unix sockets are not supported on this system: give a name or address".into())
            }
            Self::Unix(_) if text.starts_with('@') && !cfg!(target_os = "linux") => {
                Err("only Linux has abstract sockets: give a directory, a name or an address"
                    .into())
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name) => f.write_str(name),
            Self::Unix(directory) => directory.display().fmt(f),
        }
    }
}
