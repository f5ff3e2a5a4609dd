//! The processes that contend, and the folder of their journals.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pglock_test_cluster::{signal, wait_until};

use crate::contender::{JOURNALS, LEASE_MS, NAME, SEED, URL};
use crate::history;

/// How long a process may take to end once it was told to, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a process connects.
pub(crate) struct Terms {
    /// The test that it is a part of.
    pub(crate) test: &'static str,
    pub(crate) url: String,
    pub(crate) lease: Option<Duration>,
}

/// A process that contends. It is killed with this value.
pub(crate) struct Process {
    number: usize,
    terms: Terms,
    child: Child,
}

impl Process {
    pub(crate) fn start(number: usize, terms: Terms, journals: &Folder, seed: u64) -> Self {
        let child = spawn(number, &terms, journals, seed);
        Self { number, terms, child }
    }

    /// Kills it, and starts another one in its place.
    pub(crate) fn replace(&mut self, journals: &Folder, seed: u64) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.number, &self.terms, journals, seed);
    }

    pub(crate) fn freeze(&self) {
        signal(self.child.id(), "STOP");
    }

    pub(crate) fn thaw(&self) {
        signal(self.child.id(), "CONT");
    }

    /// Tells it to end.
    pub(crate) fn dismiss(&mut self) {
        drop(self.child.stdin.take());
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("a contender has ended", PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(number: usize, terms: &Terms, journals: &Folder, seed: u64) -> Child {
    // No two processes have the same name, and the first letters say which one it is.
    let name = format!("{number}.{}", history::now().as_nanos());
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", terms.test, "--nocapture"])
        .env(URL, &terms.url)
        .env(NAME, name)
        .env(JOURNALS, journals.path())
        .env(SEED, seed.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    if let Some(lease) = terms.lease {
        command.env(LEASE_MS, lease.as_millis().to_string());
    }
    command.spawn().unwrap()
}

/// A folder of this process that goes with this value, unless the test fails.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("pglock-faults-{}-{}", id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Of a process that had the same id.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("The journals are in {}.", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
