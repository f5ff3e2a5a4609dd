//! A server's data, copied while the server runs: what `pg_basebackup` does, for installations that
//! come without it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use crate::raw::Raw;

/// The first version whose functions for backups have these names.
const RENAMED_IN: u32 = 15;

/// What the server makes anew at its start, or what belongs to the running one alone. The directories
/// have to be there, empty.
const NOT_COPIED: [&str; 9] = [
    "postmaster.pid",
    "postmaster.opts",
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// Copies the data of the server that `superuser` is connected to. The copy becomes consistent when a
/// server replays the log that was written meanwhile, of which it has the beginning.
pub(crate) fn copy_data(superuser: &mut Raw, major_version: u32, from: &Path, to: &Path) {
    let (start, stop) = if major_version < RENAMED_IN {
        ("pg_start_backup('copy', true, false)", "pg_stop_backup(false, false)")
    } else {
        ("pg_backup_start('copy', true)", "pg_backup_stop(false)")
    };
    superuser.value(&format!("SELECT {start}::text"));
    copy_directory(from, to).unwrap_or_else(|error| {
        panic!("copying {} to {} failed: {error}", from.display(), to.display())
    });
    let label = superuser.value(&format!("SELECT labelfile FROM {stop}"));
    let label_file = to.join("backup_label");
    fs::write(&label_file, label)
        .and_then(|()| take_after(&label_file, &fs::metadata(to)?))
        .expect("the label of the copy");
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let metadata = fs::metadata(from)?;
    fs::set_permissions(to, metadata.permissions())?;
    take_after(to, &metadata)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let skipped = NOT_COPIED.iter().any(|name| entry.file_name() == *name);
        match copy_entry(&entry.path(), &to.join(entry.file_name()), skipped) {
            // A running server takes files away; the log tells the copy of that.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

fn copy_entry(from: &Path, to: &Path, skipped: bool) -> io::Result<()> {
    let metadata = fs::metadata(from)?;
    match (metadata.is_dir(), skipped) {
        (true, false) => copy_directory(from, to),
        (true, true) => {
            fs::create_dir(to)?;
            fs::set_permissions(to, metadata.permissions())?;
            take_after(to, &metadata)
        }
        (false, false) => {
            fs::copy(from, to)?;
            take_after(to, &metadata)
        }
        (false, true) => Ok(()),
    }
}

/// Gives a file to the owner of another.
fn take_after(path: &Path, other: &Metadata) -> io::Result<()> {
    chown(path, Some(other.uid()), Some(other.gid()))
}
