//! libpq's verdict on a server, by way of psql, where that is installed.
//!
//! Server binaries may have a libpq of their own beside them, as those of `tests/run matrix` do: psql
//! then runs with that one, if it is no older than psql.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use pglock_test_cluster::find_binaries;

pub(crate) struct Psql {
    program: PathBuf,
    /// The directory of another libpq than psql's own.
    library: Option<PathBuf>,
    /// Of libpq.
    major_version: u32,
}

impl Psql {
    /// psql on this machine; without it, the test says so and has nothing to compare with.
    pub(crate) fn find() -> Option<&'static Self> {
        static FOUND: OnceLock<Option<Psql>> = OnceLock::new();
        let found = FOUND.get_or_init(|| programs().into_iter().find_map(Self::new)).as_ref();
        if found.is_none() {
            say("nothing was compared with libpq: psql is not installed");
        }
        found
    }

    fn new(program: PathBuf) -> Option<Self> {
        let shown = Command::new(&program).arg("--version").output().ok()?;
        // Such as `psql (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
        let shown = String::from_utf8(shown.stdout).ok()?;
        let version = shown.split(' ').nth(2)?;
        let own: u32 = version.split(|digit: char| !digit.is_ascii_digit()).next()?.parse().ok()?;
        let beside_server = find_binaries().ok().map(|folder| folder.join("../lib"));
        let library = beside_server
            .and_then(|folder| Some((library_version(&folder)?, folder)))
            .filter(|(version, _)| *version >= own);
        Some(match library {
            Some((major_version, folder)) => Self { program, library: Some(folder), major_version },
            None => Self { program, library: None, major_version: own },
        })
    }

    /// The major version of libpq, such as 15.
    pub(crate) fn major_version(&self) -> u32 {
        self.major_version
    }

    /// Whether libpq gets a session by this connection string, and whether that is encrypted as the
    /// server has it; libpq's complaint if not.
    pub(crate) fn connect(&self, conninfo: &str) -> Result<bool, String> {
        let output = self.run(conninfo, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
        match (output.status.success(), output.stdout.as_slice()) {
            (true, b"t\n") => Ok(true),
            (true, b"f\n") => Ok(false),
            _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn run(&self, conninfo: &str, sql: &str) -> Output {
        let mut psql = Command::new(&self.program);
        // No PG* variable may have a word, nor a password file.
        psql.env_clear().env("PGPASSFILE", "/dev/null").env("PGCONNECT_TIMEOUT", "20");
        for variable in ["HOME", "PATH"] {
            psql.envs(env::var_os(variable).map(|value| (variable, value)));
        }
        psql.envs(self.library.as_ref().map(|folder| ("LD_LIBRARY_PATH", folder)));
        psql.args(["-X", "-w", "-A", "-t", "-c", sql, conninfo]);
        psql.stdin(Stdio::null()).output().unwrap()
    }
}

/// Beside the server first: what lies in the PATH may be a wrapper that takes its time.
fn programs() -> Vec<PathBuf> {
    let installed = Command::new("pg_config").arg("--bindir").output().ok();
    let installed = installed.and_then(|output| String::from_utf8(output.stdout).ok());
    let folders = [find_binaries().ok(), installed.map(|folder| folder.trim_end().into())];
    let programs = folders.into_iter().flatten().map(|folder: PathBuf| folder.join("psql"));
    programs.chain([PathBuf::from("psql")]).collect()
}

/// The version of the libpq in a folder: `libpq.so.5.18` is that of PostgreSQL 18.
fn library_version(folder: &Path) -> Option<u32> {
    let names =
        fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("libpq.so.5.")?.parse().ok()).max()
}

/// Says what is to be seen also if the test passes: libtest does not capture this.
pub(crate) fn say(text: &str) {
    io::stdout().write_all(format!("{text}\n").as_bytes()).unwrap();
}
