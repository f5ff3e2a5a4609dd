//! The process that ends a server when its test process has ended.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::cluster::ServerUser;

/// A shell that runs a server's processes, and ends them when this value is dropped or when this
/// process ends, in whatever way.
#[derive(Debug)]
pub(crate) struct Supervisor {
    process: Child,
}

impl Supervisor {
    /// Starts the shell for the server in `directory`, as `user` where this process is root.
    pub(crate) fn spawn(directory: &Path, binaries: &Path, user: Option<ServerUser>) -> Self {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(include_str!("supervisor.sh"))
            .args([Path::new("pglock-test-supervisor"), directory, binaries])
            .current_dir(directory)
            .env_clear()
            .envs(kept_environment())
            .env("HOME", directory)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        if let Some(ServerUser { uid, gid }) = user {
            command.uid(uid).gid(gid);
        }
        Self { process: command.spawn().expect("sh, to supervise a PostgreSQL server") }
    }

    /// Has the shell carry out one of its orders.
    pub(crate) fn order(&mut self, order: &str) {
        let pipe = self.process.stdin.as_mut().expect("the supervisor's pipe is open until drop");
        writeln!(pipe, "{order}").expect("the supervisor of a PostgreSQL server is gone");
    }
}

impl Drop for Supervisor {
    /// Returns when the server has ended and its directory is gone.
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // It ends by killing itself, so its status says nothing.
        let _ = self.process.wait();
    }
}

/// No `PG*` variable of the caller may change the server; how to find programs and libraries stays.
fn kept_environment() -> impl Iterator<Item = (&'static str, OsString)> {
    ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
        .into_iter()
        .filter_map(|name| Some((name, env::var_os(name)?)))
}
