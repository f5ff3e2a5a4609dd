//! A private PostgreSQL server.

use std::env;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv6Addr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::backup;
use crate::binaries;
use crate::certificate::{Authority, Certificate};
use crate::raw::Raw;
use crate::role::{self, Role};
use crate::supervisor::Supervisor;
use crate::wait::wait_until;

/// The database of the tests, besides `postgres`.
pub const DATABASE: &str = "app";
/// Where clusters are made instead of in the directory for temporary files.
const FOLDER_VARIABLE: &str = "PGLOCK_TEST_TMP";
/// Longest path of a Unix socket on macOS; Linux allows a little more.
const SOCKET_PATH_BYTES_MAX: usize = 103;
/// Longest that creating, starting or stopping a server may take, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How many ports are tried before a cluster counts as unable to start.
pub(crate) const START_ATTEMPTS: usize = 5;
/// Below the ports that systems hand out to clients, which could take one while its server is down.
const PORTS: Range<u16> = 10_000..30_000;

/// What a cluster is started with, beyond the defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    parameters: Vec<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

impl Settings {
    /// Many connections, small buffers, and nothing flushed to disk.
    pub fn new() -> Self {
        Self { parameters: Vec::new() }
            .set("max_connections", "300")
            .set("shared_buffers", "16MB")
            .set("fsync", "off")
            .set("ssl", "on")
            .set("log_line_prefix", "%m [%p] ")
    }

    /// Sets a parameter of `postgresql.conf`; a later value wins.
    #[must_use]
    pub fn set(mut self, parameter: &str, value: &str) -> Self {
        self.parameters.push((parameter.to_owned(), value.to_owned()));
        self
    }

    /// Starts a cluster with these settings; it ends when it is dropped.
    pub fn start(self) -> Cluster {
        Cluster::create(&self)
    }

    /// Starts a standby with these settings, which follows `primary` by streaming replication. It has
    /// the primary's roles and data, and a port and certificates of its own.
    pub fn start_standby_of(self, primary: &Cluster) -> Cluster {
        Cluster::create_standby(&self, primary)
    }
}

/// How a server is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Waits until every client has left.
    Smart,
    /// Disconnects every client with an error (57P01).
    Fast,
    /// Ends every server process without goodbye; the next start recovers.
    Immediate,
    /// Kills the postmaster (SIGKILL); its children notice and follow.
    Kill,
}

impl Shutdown {
    fn signal(self) -> &'static str {
        match self {
            Self::Smart => "TERM",
            Self::Fast => "INT",
            Self::Immediate => "QUIT",
            Self::Kill => "KILL",
        }
    }
}

/// A private PostgreSQL server, which ends with this value or with this process.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    port: u16,
    server_version: u32,
    supervisor: Supervisor,
}

impl Cluster {
    /// The cluster that every test of this process may share; the first caller starts it.
    pub fn default_cluster() -> &'static Self {
        static DEFAULT: OnceLock<Cluster> = OnceLock::new();
        DEFAULT.get_or_init(|| Settings::new().start())
    }

    /// A URL to log in as `role` to the tests' database over TCP on 127.0.0.1.
    pub fn url_for(&self, role: &Role) -> String {
        self.url(role, "127.0.0.1")
    }

    /// A URL to log in as `role` to the tests' database over the Unix socket.
    pub fn socket_url_for(&self, role: &Role) -> String {
        self.url(role, &percent_encoded(&self.directory.display().to_string()))
    }

    fn url(&self, role: &Role, host: &str) -> String {
        url(role, host, self.port)
    }

    /// The port on 127.0.0.1 and, where the machine has it, `::1`. It stays over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.directory
    }

    /// The server's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The certificate that signed the server's, which is for `localhost`, 127.0.0.1 and `::1`.
    pub fn root_certificate(&self) -> PathBuf {
        self.directory.join("root.crt")
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The lines that the server has logged since this position in its log, in bytes, which moves on to
    /// their end.
    pub fn log_since(&self, position: &mut u64) -> String {
        let mut log = Vec::new();
        let mut file = File::open(self.directory.join("log")).expect("the server's log");
        file.seek(SeekFrom::Start(*position)).expect("a place in the server's log");
        file.read_to_end(&mut log).expect("the server's log");
        // The last line may not be complete yet.
        log.truncate(log.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
        *position += u64::try_from(log.len()).expect("a log of less than 2^64 bytes");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The server's major version, such as 15.
    pub fn major_version(&self) -> u32 {
        self.server_version / 10_000
    }

    /// The server's version as `server_version_num` has it, such as 150018.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// The superuser's connection to the tests' database.
    pub fn raw(&self) -> Raw {
        self.raw_to(DATABASE)
    }

    /// The superuser's connection to any database.
    pub fn raw_to(&self, database: &str) -> Raw {
        Raw::connect(&self.socket(), &role::SUPERUSER, database)
            .unwrap_or_else(|error| panic!("a look at the server failed: {error}"))
    }

    /// Whether the server takes in whoever comes now. Who was taken in has left.
    pub fn takes_clients(&self) -> bool {
        Raw::connect(&self.socket(), &role::SUPERUSER, "postgres").map(Raw::close).is_ok()
    }

    /// The postmaster's process id.
    pub fn process_id(&self) -> u32 {
        let id = fs::read_to_string(self.directory.join("pid")).expect("the postmaster's pid file");
        id.trim_end().parse().expect("a process id in the postmaster's pid file")
    }

    /// Stops the server and waits until it has ended.
    pub fn stop(&mut self, shutdown: Shutdown) {
        self.begin_to_stop(shutdown);
        self.wait_for_exit();
    }

    /// Has the server stop, and does not wait for it.
    pub fn begin_to_stop(&mut self, shutdown: Shutdown) {
        signal(self.process_id(), shutdown.signal());
    }

    /// Starts the server that [`Self::stop`] stopped, on the same port.
    pub fn start(&mut self) {
        // Where the postmaster was killed, its children may take a while to leave its memory.
        wait_until("PostgreSQL starts again", PATIENCE, || match self.launch() {
            Ok(()) => true,
            Err(log) if log.contains("is still in use") => {
                thread::sleep(Duration::from_millis(200));
                false
            }
            Err(log) => panic!("PostgreSQL did not start again:\n{}", tail(&log)),
        });
    }

    /// Stops the server and starts it again.
    pub fn restart(&mut self, shutdown: Shutdown) {
        self.stop(shutdown);
        self.start();
    }

    /// Restarts the server as a hot standby: in recovery, waiting for a primary that never speaks.
    pub fn become_standby(&mut self) {
        self.stop(Shutdown::Fast);
        let signal_file = self.data_dir().join("standby.signal");
        self.write(&signal_file, "");
        self.start();
    }

    /// Promotes a standby and waits until it is a primary.
    pub fn promote(&mut self) {
        assert_eq!(self.raw().value("SELECT pg_promote()"), "t", "the standby was not promoted");
    }

    /// Starts this server, which is stopped, as a standby of `primary`. A copy of the primary's data
    /// takes the place of its own, so that it does not matter how the two had parted.
    pub fn follow(&mut self, primary: &Self) {
        fs::remove_dir_all(self.data_dir()).expect("the data of the stopped server removed");
        self.copy_data_of(primary);
        self.start();
        self.wait_until_streaming();
    }

    /// Shows this certificate to whoever connects from now on.
    pub fn show_certificate(&self, certificate: &Certificate) {
        let logged_before = self.log().len();
        self.write_certificate(certificate);
        self.reload();
        let log = self.log().split_off(logged_before);
        assert!(!log.contains("SSL configuration was not reloaded"), "{log}");
    }

    /// Lets in who connects from now on by these lines of `pg_hba.conf`, and the superuser over the
    /// Unix socket.
    pub fn set_access_rules(&self, rules: &[String]) {
        self.write(&self.directory.join("pg_hba.conf"), &role::access_rules_with(rules));
        self.reload();
    }

    /// Lets the server read its files again, and waits until it has: `ALTER SYSTEM` is then in force
    /// for new connections.
    pub fn reload(&self) {
        let loaded = || self.raw().value("SELECT pg_conf_load_time()");
        let before = loaded();
        signal(self.process_id(), "HUP");
        // The postmaster reads all of its files before it serves the next client.
        wait_until("PostgreSQL has read its files again", PATIENCE, || loaded() != before);
    }

    /// Has commits wait for a standby that does not exist, and waits until they do. A commit that is to be
    /// safe here alone does not wait.
    pub fn wait_for_no_standby(&self) {
        let (mut admin, mut writer) = (self.raw(), self.raw());
        admin.rows("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        signal(self.process_id(), "HUP");
        let process_id = writer.process_id();
        // The process that has them wait may be the last to hear of it.
        let writing = thread::spawn(move || {
            writer.rows("SET synchronous_commit = on");
            while writer.try_rows("SELECT pg_logical_emit_message(true, '', '')").is_ok() {}
        });
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {process_id} AND wait_event = 'SyncRep'"
        );
        wait_until("commits wait", PATIENCE, || admin.value(&waits) == "1");
        admin.rows(&format!("SELECT pg_terminate_backend({process_id})"));
        writing.join().expect("commits until one waits");
    }

    /// Makes the directory, the files and the server.
    fn create(settings: &Settings) -> Self {
        let mut cluster = Self::prepare();
        cluster.create_data();
        cluster.start_on_free_port(settings);
        cluster.create_roles();
        cluster
    }

    /// As [`create`](Self::create), from the data of another server.
    fn create_standby(settings: &Settings, primary: &Self) -> Self {
        let mut cluster = Self::prepare();
        cluster.server_version = primary.server_version;
        cluster.copy_data_of(primary);
        cluster.start_on_free_port(settings);
        cluster.wait_until_streaming();
        cluster
    }

    /// Makes the directory and the files outside of the data.
    fn prepare() -> Self {
        let binaries = binaries::find().unwrap_or_else(|problem| panic!("{problem}"));
        let directory = new_directory();
        let user = ServerUser::needed(&directory);
        if let Some(ServerUser { uid, gid }) = user {
            chown(&directory, Some(uid), Some(gid)).expect("the cluster's directory given away");
        }
        let supervisor = Supervisor::spawn(&directory, &binaries, user);
        let cluster = Self { directory, port: 0, server_version: 0, supervisor };
        cluster.write_access_files();
        cluster
    }

    fn write_access_files(&self) {
        let authority = Authority::new("pglock test authority");
        let certificate = authority.issue(&["localhost", "127.0.0.1", "::1"], |_| {});
        self.write(&self.root_certificate(), authority.pem());
        self.write_certificate(&certificate);
        self.write(&self.directory.join("pg_hba.conf"), &role::access_rules());
    }

    fn write_certificate(&self, certificate: &Certificate) {
        self.write(&self.directory.join("server.crt"), &certificate.pem);
        self.write(&self.directory.join("server.key"), &certificate.key_pem);
    }

    fn create_data(&mut self) {
        self.supervisor.order("create");
        self.wait_for_exit();
        let status = fs::read_to_string(self.directory.join("exited")).unwrap_or_default();
        assert!(
            status.trim_end() == "0",
            "initdb failed; the user that PostgreSQL runs as must be able to execute it:\n{}",
            tail(&self.log())
        );
    }

    /// Copies the primary's data, and says in the copy whom it is to follow.
    fn copy_data_of(&self, primary: &Self) {
        let version = primary.major_version();
        let copy = self.data_dir();
        backup::copy_data(&mut primary.raw_to("postgres"), version, &primary.data_dir(), &copy);
        let connection = format!(
            "host={} port={} user={}",
            primary.directory.display(),
            primary.port,
            role::SUPERUSER.name
        );
        let settings = format!("primary_conninfo = '{connection}'\n");
        self.write(&copy.join("postgresql.auto.conf"), &settings);
        self.write(&copy.join("standby.signal"), "");
    }

    fn wait_until_streaming(&self) {
        let mut superuser = self.raw_to("postgres");
        wait_until("the standby follows its primary", PATIENCE, || {
            superuser.value("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'")
                == "1"
        });
    }

    fn start_on_free_port(&mut self, settings: &Settings) {
        for _ in 0..START_ATTEMPTS {
            self.port = free_port();
            self.write(&self.directory.join("postgresql.conf"), &self.configuration(settings));
            match self.launch() {
                Ok(()) => return,
                Err(log) if is_port_conflict(&log) => {}
                Err(log) => panic!("PostgreSQL did not start:\n{}", tail(&log)),
            }
        }
        panic!("PostgreSQL found no free port:\n{}", tail(&self.log()));
    }

    fn configuration(&self, settings: &Settings) -> String {
        let addresses = if has_ipv6() { "127.0.0.1,::1" } else { "127.0.0.1" };
        let directory = self.directory.display();
        let mut lines = vec![
            format!("listen_addresses = '{addresses}'"),
            format!("port = {}", self.port),
            format!("unix_socket_directories = '{directory}'"),
            format!("ssl_cert_file = '{directory}/server.crt'"),
            format!("ssl_key_file = '{directory}/server.key'"),
        ];
        for (parameter, value) in &settings.parameters {
            lines.push(format!("{parameter} = '{}'", value.replace('\'', "''")));
        }
        lines.join("\n") + "\n"
    }

    /// Starts the postmaster and waits until it answers; what it logged, if it does not.
    fn launch(&mut self) -> Result<(), String> {
        let logged_before = self.log().len();
        for name in ["exited", "pid"] {
            // Missing before the first start.
            let _ = fs::remove_file(self.directory.join(name));
        }
        self.supervisor.order("start");
        let mut answered = false;
        wait_until("PostgreSQL answers", PATIENCE, || {
            // It may do so before the shell that started it has noted its process id.
            answered = self.directory.join("pid").exists() && self.takes_clients();
            answered || self.has_exited()
        });
        let log = self.log().split_off(logged_before);
        if answered && is_port_conflict(&log) {
            // It listens on some of its addresses only.
            self.stop(Shutdown::Fast);
            answered = false;
        }
        if answered { Ok(()) } else { Err(log) }
    }

    fn create_roles(&mut self) {
        let mut superuser = self.raw_to("postgres");
        let version = superuser.value("SHOW server_version_num");
        self.server_version = version.parse().expect("a number for the server's version");
        for statement in role::creation(self.major_version()) {
            superuser.rows(&statement);
        }
        superuser.rows(&format!("CREATE DATABASE {DATABASE}"));
        // Since PostgreSQL 15 only a database's owner may make tables there.
        let mut owner = self.raw();
        owner.rows("GRANT CREATE ON SCHEMA public TO PUBLIC");
        // Else a test that counts sessions might count these.
        owner.close();
        superuser.close();
    }

    /// Waits until the server has ended.
    pub fn wait_for_exit(&self) {
        wait_until("PostgreSQL has ended", PATIENCE, || self.has_exited());
    }

    fn has_exited(&self) -> bool {
        self.directory.join("exited").exists()
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(format!(".s.PGSQL.{}", self.port))
    }

    /// Writes a file that belongs to the server's user and to nobody else.
    fn write(&self, path: &Path, text: &str) {
        write_for_owner_of(&self.directory, path, text);
    }
}

/// A URL to log in as `role` to the tests' database.
pub(crate) fn url(role: &Role, host: &str, port: u16) -> String {
    let password = role.password.map(|word| format!(":{}", percent_encoded(word)));
    let userinfo = format!("{}{}", role.name, password.unwrap_or_default());
    format!("postgresql://{userinfo}@{host}:{port}/{DATABASE}")
}

/// Writes a file that belongs to the directory's owner and is closed to everybody else.
pub(crate) fn write_for_owner_of(directory: &Path, path: &Path, text: &str) {
    let owner = fs::metadata(directory).expect("the directory of a server");
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .and_then(|()| chown(path, Some(owner.uid()), Some(owner.gid())))
        .unwrap_or_else(|error| panic!("writing {} failed: {error}", path.display()));
}

/// Sends a signal (`STOP`, `KILL`, ...) to a process of a cluster, such as one of its backends.
pub fn signal(process_id: impl Display, signal: &str) {
    let script = "kill -s \"$1\" \"$2\"";
    let process_id = process_id.to_string();
    let status = Command::new("sh").args(["-c", script, "sh", signal, &process_id]).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "SIG{signal} did not reach process {process_id}"
    );
}

/// The user that a server runs as, where this process may not run one itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl ServerUser {
    /// PostgreSQL refuses to run as root. The owner of what this process made tells who it is.
    pub(crate) fn needed(made_here: &Path) -> Option<Self> {
        let owner = fs::metadata(made_here).expect("the cluster's directory").uid();
        if owner != 0 {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        let user = ["postgres", "nobody"].iter().find_map(|name| Self::parse(&users, name));
        Some(user.expect("PostgreSQL cannot run as root, and there is no user postgres or nobody"))
    }

    fn parse(users: &str, name: &str) -> Option<Self> {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2);
        Some(Self { uid: ids.next()?.parse().ok()?, gid: ids.next()?.parse().ok()? })
    }
}

/// Makes a directory with a name of its own, short enough for a socket in it.
pub(crate) fn new_directory() -> PathBuf {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!(
        "pglock-{}-{}-{:x}",
        process::id(),
        MADE.fetch_add(1, Ordering::Relaxed),
        now.subsec_nanos()
    );
    let folder = env::var_os(FOLDER_VARIABLE).map_or_else(env::temp_dir, PathBuf::from);
    let mut directory = folder.join(&name);
    if directory.as_os_str().len() + "/.s.PGSQL.65535".len() > SOCKET_PATH_BYTES_MAX {
        directory = Path::new("/tmp").join(&name);
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&directory)
        .unwrap_or_else(|error| panic!("making {} failed: {error}", directory.display()));
    directory
}

/// A port that nobody listens on; different processes begin to look at different places.
pub(crate) fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    let start = process::id().wrapping_mul(37) % count;
    (0..count)
        .map(|_| {
            let place = (start + u32::from(TRIED.fetch_add(1, Ordering::Relaxed))) % count;
            PORTS.start + u16::try_from(place).expect("a place within the range of ports")
        })
        .find(|&port| is_free(port))
        .expect("a free port")
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
        && (!has_ipv6() || TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok())
}

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn is_port_conflict(log: &str) -> bool {
    // "could not bind IPv4 address ...: Address already in use"; before 14 "could not bind IPv4 socket".
    log.contains("could not bind IPv")
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The last lines of a log, for an error.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
