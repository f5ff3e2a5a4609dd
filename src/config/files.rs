//! Reading the files that libpq reads.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Longest file read, in bytes. What people write by hand is far shorter.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How environment variables are looked up.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own variables. One that is not UTF-8 counts as not set.
pub(super) fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A file that belongs to the user: in the home directory, or in a directory of PostgreSQL's own
/// where systems have one for such data.
pub(super) fn of_user(var: Variables<'_>, on_unix: &str, on_windows: &str) -> Option<PathBuf> {
    if cfg!(windows) {
        return Some(PathBuf::from(var("APPDATA")?).join("postgresql").join(on_windows));
    }
    Some(PathBuf::from(var("HOME")?).join(on_unix))
}

/// Reads a whole file, and gives what the system knows about it. Anything but a plain file of moderate
/// length is refused: a pipe or a device might never end. There may be passwords in it.
pub(super) fn read(path: &Path) -> io::Result<(Zeroizing<Vec<u8>>, Metadata)> {
    check_plain(&fs::metadata(path)?)?;
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    check_plain(&metadata)?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 1 MiB"));
    }
    // Room for all of it: a buffer that grew would leave pieces behind.
    let room = usize::try_from(metadata.len()).unwrap_or(0) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.take(FILE_BYTES_MAX).read_to_end(&mut content)?;
    Ok((content, metadata))
}

fn check_plain(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a plain file"))
}

/// Whether others than the owner may do something with the file.
#[cfg(unix)]
pub(super) fn is_open_to_others(metadata: &Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o077 != 0
}

/// Systems without Unix's permissions protect the directory.
#[cfg(not(unix))]
pub(super) fn is_open_to_others(_: &Metadata) -> bool {
    false
}
