//! The password file, `~/.pgpass`.

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use crate::secret::Secret;

use super::{Host, files};

/// The content of a password file, and why it may give no password. A file that does not exist is an empty
/// one.
///
/// No `Debug`: it holds passwords.
#[derive(Default)]
pub(super) struct PasswordFile {
    content: Zeroizing<Vec<u8>>,
    pub(super) problem: Option<String>,
}

impl PasswordFile {
    pub(super) fn read(path: &Path) -> Self {
        match files::read(path) {
            Ok((_, metadata)) if files::is_open_to_others(&metadata) => Self::ignored(
                path,
                "its group or others have access to it; make it yours alone with `chmod 0600`",
            ),
            Ok((content, _)) if std::str::from_utf8(&content).is_err() => {
                let problem = format!(
                    "the password file {} is not in UTF-8, and passwords that are not are passed over: \
                     write it anew in UTF-8",
                    path.display()
                );
                Self { content, problem: Some(problem) }
            }
            Ok((content, _)) => Self { content, problem: None },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => Self::ignored(path, &error.to_string()),
        }
    }

    fn ignored(path: &Path, why: &str) -> Self {
        let problem = format!("the password file {} is ignored: {why}", path.display());
        Self { problem: Some(problem), ..Self::default() }
    }

    /// The password of the first line that fits.
    pub(super) fn password(
        &self,
        host: &Host,
        port: u16,
        dbname: &str,
        user: &str,
    ) -> Option<Secret> {
        let host = match host {
            default if *default == Host::default_for_platform() => String::from("localhost"),
            other => other.to_string(),
        };
        let port = port.to_string();
        let wanted = [host.as_str(), &port, dbname, user];
        let mut lines = self.content.split(|&byte| byte == b'\n');
        let password = lines.find_map(|line| password_in(line, wanted))?;
        std::str::from_utf8(&password).ok().map(Secret::from)
    }
}

/// The last field of `host:port:dbname:user:password`, if the others fit.
fn password_in(line: &[u8], wanted: [&str; 4]) -> Option<Zeroizing<Vec<u8>>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let mut rest = line;
    for value in wanted {
        rest = after_field(rest, value.as_bytes())?;
    }
    Some(first_field(rest).0)
}

/// What follows the first field, if that is `value` or a single `*`.
fn after_field<'a>(line: &'a [u8], value: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let (field, rest) = first_field(line);
    if field.as_slice() == value { rest } else { None }
}

/// The first field, and what follows its colon if it has one. A backslash takes the next byte as it is.
fn first_field(line: &[u8]) -> (Zeroizing<Vec<u8>>, Option<&[u8]>) {
    let mut field = Zeroizing::new(Vec::with_capacity(line.len()));
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after.split_first()) {
            (b':', _) => return (field, Some(after)),
            (b'\\', Some((&escaped, after))) => {
                field.push(escaped);
                rest = after;
            }
            (plain, _) => field.push(plain),
        }
    }
    (field, None)
}
