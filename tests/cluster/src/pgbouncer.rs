//! A private connection pooler in front of a cluster.

use std::env;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use crate::cluster::{
    Cluster, DATABASE, PATIENCE, START_ATTEMPTS, ServerUser, free_port, new_directory, tail, url,
    write_for_owner_of,
};
use crate::raw::Raw;
use crate::role::{self, Role};
use crate::supervisor::Supervisor;
use crate::wait::wait_until;

/// Names a directory with the program `pgbouncer`; nothing else is looked at then.
const BINARIES_VARIABLE: &str = "PGLOCK_TEST_PGBOUNCER_BIN";

/// Where packages put it, besides the folders of `PATH`: only root has `sbin` in there.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/bin"];

/// When a client's server connection goes back to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// After each transaction.
    Transaction,
}

impl PoolMode {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
        }
    }
}

/// A private `PgBouncer` before a cluster, which ends with this value or with this process.
///
/// Every role of [`role`] logs in here as it does at the server.
#[derive(Debug)]
pub struct PgBouncer {
    directory: PathBuf,
    port: u16,
    supervisor: Supervisor,
}

impl PgBouncer {
    /// Starts a pooler with so many server connections for each role and database.
    pub fn start(cluster: &Cluster, mode: PoolMode, pool_size: u32) -> Self {
        Self::start_with(cluster, mode, pool_size, &[])
    }

    /// As [`start`](Self::start), with more settings of `pgbouncer.ini`, such as
    /// `("query_wait_timeout", "1")`.
    pub fn start_with(
        cluster: &Cluster,
        mode: PoolMode,
        pool_size: u32,
        settings: &[(&str, &str)],
    ) -> Self {
        let binaries = find().unwrap_or_else(|problem| panic!("{problem}"));
        let directory = new_directory();
        let user = ServerUser::needed(&directory);
        if let Some(ServerUser { uid, gid }) = user {
            chown(&directory, Some(uid), Some(gid)).expect("the pooler's directory given away");
        }
        let supervisor = Supervisor::spawn(&directory, &binaries, user);
        let mut pooler = Self { directory, port: 0, supervisor };
        pooler.write("users.txt", &role::user_list());
        pooler.write("hba.conf", &role::access_rules());
        for _ in 0..START_ATTEMPTS {
            pooler.port = free_port();
            let configuration = pooler.configuration(cluster, mode, pool_size, settings);
            pooler.write("pgbouncer.ini", &configuration);
            if pooler.launch() {
                return pooler;
            }
        }
        panic!("PgBouncer found no free port:\n{}", tail(&pooler.log()));
    }

    /// A URL to log in as `role` to the tests' database over TCP on 127.0.0.1.
    pub fn url_for(&self, role: &Role) -> String {
        url(role, "127.0.0.1", self.port)
    }

    /// A connection through the pooler, for a role that has no password.
    pub fn raw(&self, role: &Role, database: &str) -> Raw {
        Raw::connect(&self.socket(), role, database)
            .unwrap_or_else(|error| panic!("a look through the pooler failed: {error}"))
    }

    /// The pooler's process id.
    pub fn process_id(&self) -> u32 {
        let id = fs::read_to_string(self.directory.join("pid")).expect("the pooler's pid file");
        id.trim_end().parse().expect("a process id in the pooler's pid file")
    }

    /// Whether the pooler has ended, in whatever way.
    pub fn has_exited(&self) -> bool {
        self.directory.join("exited").exists()
    }

    /// What the pooler has logged so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// It reaches the server over the Unix socket, where the superuser is let in too.
    fn configuration(
        &self,
        cluster: &Cluster,
        mode: PoolMode,
        pool_size: u32,
        settings: &[(&str, &str)],
    ) -> String {
        let directory = self.directory.display();
        let mut lines = vec![
            "[databases]".to_owned(),
            format!("* = host={} port={}", cluster.socket_dir().display(), cluster.port()),
            "[pgbouncer]".to_owned(),
            "listen_addr = 127.0.0.1".to_owned(),
            format!("listen_port = {}", self.port),
            format!("unix_socket_dir = {directory}"),
            "auth_type = hba".to_owned(),
            format!("auth_hba_file = {directory}/hba.conf"),
            format!("auth_file = {directory}/users.txt"),
            format!("pool_mode = {}", mode.name()),
            format!("default_pool_size = {pool_size}"),
            "max_client_conn = 500".to_owned(),
        ];
        lines.extend(settings.iter().map(|(name, value)| format!("{name} = {value}")));
        lines.join("\n") + "\n"
    }

    /// Starts the pooler and waits until it lets a client through to the server; whether its port
    /// was free.
    fn launch(&mut self) -> bool {
        for name in ["exited", "pid", "log"] {
            // Missing before the first start.
            let _ = fs::remove_file(self.directory.join(name));
        }
        self.supervisor.order("pool");
        let mut answered = false;
        wait_until("PgBouncer answers", PATIENCE, || {
            // It may do so before the shell that started it has noted its process id.
            answered = self.directory.join("pid").exists()
                && Raw::connect(&self.socket(), &role::SUPERUSER, DATABASE).is_ok();
            answered || self.has_exited()
        });
        let log = self.log();
        let has_port = !log.contains("Address already in use");
        assert!(answered || !has_port, "PgBouncer did not start:\n{}", tail(&log));
        if !has_port && !self.has_exited() {
            crate::signal(self.process_id(), "KILL");
            wait_until("PgBouncer has ended", PATIENCE, || self.has_exited());
        }
        has_port
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(format!(".s.PGSQL.{}", self.port))
    }

    fn write(&self, name: &str, text: &str) {
        write_for_owner_of(&self.directory, &self.directory.join(name), text);
    }
}

/// Finds the directory that holds `pgbouncer`, or says how to get it.
fn find() -> Result<PathBuf, String> {
    let has_pooler = |folder: &Path| folder.join("pgbouncer").is_file();
    if let Some(chosen) = env::var_os(BINARIES_VARIABLE) {
        let chosen = PathBuf::from(chosen);
        return if has_pooler(&chosen) {
            Ok(chosen)
        } else {
            Err(format!(
                "{BINARIES_VARIABLE} is {}, which does not hold pgbouncer",
                chosen.display()
            ))
        };
    }
    let from_path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&from_path)
        .chain(FOLDERS.map(PathBuf::from))
        .find(|folder| has_pooler(folder))
        .ok_or_else(|| {
            format!(
                "PgBouncer was not found: install it (Debian, Ubuntu: apt-get install pgbouncer; \
                 Fedora: dnf install pgbouncer; macOS: brew install pgbouncer), or set \
                 {BINARIES_VARIABLE} to the directory of its program"
            )
        })
}
