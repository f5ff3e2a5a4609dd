//! Where PostgreSQL's server binaries are on this machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names a directory with PostgreSQL's server binaries; nothing else is looked at then.
const BINARIES_VARIABLE: &str = "PGLOCK_TEST_PG_BIN";

/// Directories that hold one folder for each version, what precedes the version in its name.
const VERSIONED_FOLDERS: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", ""),                          // Debian, Ubuntu
    ("/usr", "pgsql-"),                                   // Red Hat, Fedora, SUSE
    ("/opt/homebrew/opt", "postgresql@"),                 // Homebrew on Apple silicon
    ("/usr/local/opt", "postgresql@"),                    // Homebrew on Intel
    ("/Applications/Postgres.app/Contents/Versions", ""), // Postgres.app
];

/// Where an installation from source puts its binaries.
const SOURCE_FOLDER: &str = "/usr/local/pgsql/bin";

/// Finds a directory that holds `initdb` and `postgres`.
///
/// # Errors
///
/// A sentence for the person at the terminal: what was not found, and how to get it.
pub fn find() -> Result<PathBuf, String> {
    if let Some(chosen) = env::var_os(BINARIES_VARIABLE) {
        let chosen = PathBuf::from(chosen);
        return if has_server(&chosen) {
            Ok(chosen)
        } else {
            Err(format!(
                "{BINARIES_VARIABLE} is {}, which does not hold initdb and postgres",
                chosen.display()
            ))
        };
    }
    candidates().find(|folder| has_server(folder)).ok_or_else(|| {
        format!(
            "PostgreSQL's server binaries (initdb, postgres) were not found: install them \
             (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; \
             macOS: brew install postgresql), or set {BINARIES_VARIABLE} to their directory"
        )
    })
}

/// Lazy, so that nothing is searched once a server is found.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let from_path = env::var_os("PATH").unwrap_or_default();
    let from_path: Vec<PathBuf> = env::split_paths(&from_path).collect();
    from_pg_config()
        .into_iter()
        .chain(from_path)
        .chain(VERSIONED_FOLDERS.iter().flat_map(|(folder, prefix)| newest_first(folder, prefix)))
        .chain([PathBuf::from(SOURCE_FOLDER)])
}

fn from_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end()))
}

fn newest_first(folder: &str, prefix: &str) -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by(|(older, _), (newer, _)| newer.cmp(older));
    versions.into_iter().map(|(_, folder)| folder).collect()
}

fn has_server(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file())
}
