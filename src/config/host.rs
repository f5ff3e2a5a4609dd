//! Where the servers listen.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Problem, is_space};

/// A server's address, less the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A name or an address, to be looked up.
    Tcp(String),
    /// The directory of the socket `.s.PGSQL.<port>`. One that begins with `@` is no directory, but
    /// the beginning of a name in Linux's abstract namespace.
    Unix(PathBuf),
}

/// In which order several servers are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LoadBalance {
    /// As they are listed.
    #[default]
    Disable,
    /// Shuffled, and the addresses of each name too.
    Random,
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
            return Err("is one host: give several to `hosts`, or in a connection string".into());
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

/// A comma-separated list of which each element may be left empty. A list that is empty as a whole is
/// one that is not given.
pub(super) type List<T> = Vec<Option<T>>;

pub(super) fn hosts(value: &str) -> Result<List<Host>, Problem> {
    list(value, |element| {
        let host = Host::new(element);
        host.check().map(|()| host)
    })
}

pub(super) fn addresses(value: &str) -> Result<List<IpAddr>, Problem> {
    list(value, |element| {
        element.parse().map_err(|_| {
            "must be an IP address, without brackets or zone; a name goes in host".into()
        })
    })
}

pub(super) fn ports(value: &str) -> Result<List<u16>, Problem> {
    list(value.trim_matches(is_space), |element| match element.trim_matches(is_space).parse() {
        Ok(0) | Err(_) => Err("must be a number from 1 to 65535".into()),
        Ok(port) => Ok(port),
    })
}

fn list<T>(value: &str, parse: impl Fn(&str) -> Result<T, Problem>) -> Result<List<T>, Problem> {
    let mut list = Vec::new();
    for_each_element(value, &mut |element| {
        list.push(element.map(&parse).transpose()?);
        Ok(())
    })?;
    Ok(list)
}

/// An element that is left empty is `None`.
fn for_each_element(
    value: &str,
    take: &mut dyn FnMut(Option<&str>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    if value.is_empty() {
        return Ok(());
    }
    for (index, element) in value.split(',').enumerate() {
        take(Some(element).filter(|element| !element.is_empty())).map_err(|problem| {
            if value.contains(',') {
                format!("number {} of the list: {problem}", index + 1).into()
            } else {
                problem
            }
        })?;
    }
    Ok(())
}
