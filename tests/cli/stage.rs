//! What the tests share: a key of its own for each, processes, and a journal that they write.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pglock_test_cluster::{Cluster, Raw, role, wait_until};

/// How long a test waits for what has to happen sooner or later, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs until it is told to end, and says in the journal when it began and that it was told: `$1` is the
/// journal and `$2` its name there.
pub(crate) const WORK: &str = "trap 'echo stop $2 >>$1; exit 0' TERM; echo start $2 >>$1; \
    while :; do sleep 60 & wait $!; done";

/// One test's key, and a folder for its files.
pub(crate) struct Stage {
    cluster: &'static Cluster,
    key: String,
    folder: PathBuf,
    look: Raw,
}

impl Stage {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let key = format!("cli-{}-{number}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&key);
        fs::create_dir_all(&folder).unwrap();
        let cluster = Cluster::default_cluster();
        Self { cluster, key, folder, look: cluster.raw() }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn url(&self) -> String {
        self.cluster.url_for(&role::SCRAM)
    }

    /// A file of this test's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `pglock`, with the server in its environment and nothing else that it might go by.
    pub(crate) fn pglock(&self) -> Command {
        self.with_server(env!("CARGO_BIN_EXE_pglock"))
    }

    pub(crate) fn with_server(&self, program: &str) -> Command {
        // The tests may run in the background of a script, where a shell has these ignored.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,QUIT", program]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("DATABASE_URL", self.url());
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// `pglock` with these options, and then the key and [`WORK`] by this name.
    pub(crate) fn work(&self, options: &[&str], name: &str) -> Child {
        self.pglock()
            .args(options)
            .args([&self.key, "sh", "-c", WORK, "sh", "journal", name])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// What was written to the journal, line by line.
    pub(crate) fn journal(&self) -> Vec<String> {
        let journal = fs::read_to_string(self.file("journal")).unwrap_or_default();
        journal.lines().map(String::from).collect()
    }

    pub(crate) fn until_journal(&self, expected: &[&str]) {
        let what = format!("the journal is {expected:?}");
        wait_until(&what, PATIENCE, || self.journal() == expected);
    }

    /// Waits until so many sessions wait for the key.
    pub(crate) fn until_waiting(&mut self, count: usize) {
        let sql = self.sql("count(*)", "NOT l.granted");
        wait_until(&format!("{count} wait"), PATIENCE, || {
            self.look.value(&sql) == count.to_string()
        });
    }

    /// The server process that holds the key.
    pub(crate) fn holder(&mut self) -> i32 {
        let sql = self.sql("min(l.pid)", "l.granted");
        self.look.value(&sql).parse().unwrap()
    }

    /// Ends the session of whoever holds the key.
    pub(crate) fn terminate_holder(&mut self) {
        let holder = self.holder();
        self.look.value(&format!("SELECT pg_terminate_backend({holder})"));
    }

    pub(crate) fn is_locked(&mut self) -> bool {
        let sql = self.sql("count(*)", "l.granted");
        self.look.value(&sql) != "0"
    }

    fn sql(&self, what: &str, which: &str) -> String {
        format!(
            "SELECT {what} FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
             WHERE l.locktype = 'advisory' AND a.application_name = 'pglock {}' AND {which}",
            self.key
        )
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A process that holds a lock until it is told to end.
pub(crate) struct Holder {
    process: Child,
    stdin: Option<ChildStdin>,
}

impl Holder {
    /// Has a command that takes `COMMAND ARGUMENT...` hold its lock. Returns when it does.
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command.args(["sh", "-c", "echo held; read line"]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        let stdin = process.stdin.take();
        Self { process, stdin }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.process.wait().unwrap();
    }
}

/// Waits for a process to end, and gives its exit code and what it complained about.
pub(crate) fn end_of(mut process: Child) -> (i32, String) {
    wait_until("the process ends", PATIENCE, || process.try_wait().unwrap().is_some());
    let code = process.wait().unwrap().code().unwrap();
    let mut complaint = String::new();
    if let Some(mut stderr) = process.stderr.take() {
        stderr.read_to_string(&mut complaint).unwrap();
    }
    (code, complaint)
}

pub(crate) fn code_of(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether a process of this number runs; one that has ended and was not waited for does not.
pub(crate) fn runs(process_id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
}

pub(crate) fn children_of(process_id: u32) -> Vec<u32> {
    let path = format!("/proc/{process_id}/task/{process_id}/children");
    let children = fs::read_to_string(path).unwrap();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// The one keeper of a `pglock` whose command runs.
pub(crate) fn keeper_of(pglock: u32) -> u32 {
    let mut keepers = Vec::new();
    wait_until("it has one keeper", PATIENCE, || {
        keepers = keepers_of(pglock);
        keepers.len() == 1
    });
    keepers[0]
}

pub(crate) fn keepers_of(pglock: u32) -> Vec<u32> {
    let is_keeper = |child: &u32| {
        let called = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        called.starts_with(b"lock-keeper")
    };
    children_of(pglock).into_iter().filter(is_keeper).collect()
}
