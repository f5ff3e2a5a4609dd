//! Packets that get lost between a client and a server, without a word to either: what is told then, the
//! kernels have to find out.
//!
//! The test runs this executable again in a network namespace of its own, which has the server, and there
//! once more for every client, with another namespace and a cable (veth) between the two. A namespace
//! ends with the last of its processes, and its network with it: nothing stays, however the test ends.
//!
//! Packets are lost by a wrong entry among the neighbours of their sender: they go to a network card that
//! is not there, and the one that is there takes no notice.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{Read, stdin};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pglock::{Config, Key, Lock};
use pglock_test_cluster::{Cluster, Settings, Way, eventually, role};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::leases::ENDS_SILENT_SESSIONS;
use crate::stage::PATIENCE;

const TEST: &str = "packet_loss::holders_stop_before_the_server_frees_their_locks";
const PART: &str = "PGLOCK_PACKET_LOSS_PART";
const URL: &str = "PGLOCK_PACKET_LOSS_URL";
const MAJOR_VERSION: &str = "PGLOCK_PACKET_LOSS_MAJOR_VERSION";

/// The shortest that there is.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(8);
/// So long that its last tenth is more than a busy machine may take to go on.
const LEASE: Duration = Duration::from_secs(12);
/// For which that lease is over first.
const LONG_ORPHAN_TIMEOUT: Duration = Duration::from_secs(30);
/// Over after the shortest orphan timeout. Its first heartbeat comes just before keepalive gives up.
const LATER_LEASE: Duration = Duration::from_millis(8700);
/// What is told or taken in time may take this much longer on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// The ways on which packets are lost, in one client's case each.
const LOSSES: [&[Way]; 3] = [&[Way::ToServer], &[Way::ToClient], &[Way::ToServer, Way::ToClient]];

#[tokio::test]
async fn holders_stop_before_the_server_frees_their_locks() {
    match env::var(PART).as_deref() {
        Err(_) => run_in_a_network_of_its_own(),
        Ok("server") => lose_packets_of_clients().await,
        Ok(client) => hold_until_told(client.parse().unwrap()).await,
    }
}

/// Since the beginning of the system's clock, which all of the processes read.
type Time = Duration;

fn now() -> Time {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// One who has a lock while packets are lost.
#[derive(Clone, Copy)]
struct Holder {
    name: &'static str,
    orphan_timeout: Duration,
    lease: Option<Duration>,
}

const HOLDERS: [Holder; 3] = [
    Holder { name: "no-lease", orphan_timeout: ORPHAN_TIMEOUT, lease: None },
    Holder { name: "lease", orphan_timeout: LONG_ORPHAN_TIMEOUT, lease: Some(LEASE) },
    Holder { name: "later-lease", orphan_timeout: ORPHAN_TIMEOUT, lease: Some(LATER_LEASE) },
];

impl Holder {
    /// Those that a server of this version allows.
    fn all(major_version: u32) -> impl Iterator<Item = Self> {
        let has_leases = major_version >= ENDS_SILENT_SESSIONS;
        HOLDERS.into_iter().filter(move |holder| has_leases || holder.lease.is_none())
    }

    /// The key of its lock.
    fn key(self, client: usize) -> Key {
        Key::from_name(&format!("{} of client {client}", self.name))
    }

    async fn connect(self, url: &str, client: usize) -> Lock {
        let mut config: Config = url.parse().unwrap();
        config.orphan_timeout(self.orphan_timeout);
        if let Some(lease) = self.lease {
            config.lease(lease);
        }
        Lock::connect(&config, self.key(client)).await.unwrap()
    }

    /// How long the server keeps the lock, at the most. If it hears the client, but not the other way
    /// round, it counts from the last heartbeat.
    fn freed_within(self, ways: &[Way]) -> Duration {
        let latest = self.lease.unwrap_or(Duration::MAX).min(self.orphan_timeout);
        match self.lease {
            Some(lease) if !ways.contains(&Way::ToServer) => latest + lease / 3,
            _ => latest,
        }
    }
}

fn run_in_a_network_of_its_own() {
    let probe = Command::new("unshare").args(["--net", "ip", "link", "set", "lo", "up"]).output();
    let obstacle = match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(obstacle) = obstacle {
        return println!("not run: it needs root, `unshare` and `ip` (iproute2): {obstacle}");
    }
    let output = part("server").output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(output.status.success(), "{told}");
    println!("{told}");
}

/// This executable, in another network.
fn part(part: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .arg("--net")
        .arg(env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(PART, part);
    command
}

async fn lose_packets_of_clients() {
    ip("link set lo up");
    let cluster = Settings::new().set("listen_addresses", "*").start();
    cluster.set_access_rules(&[format!("host all {} samenet trust", role::TRUST.name)]);
    let mut clients = JoinSet::new();
    for (number, ways) in LOSSES.into_iter().enumerate() {
        let client = Client::start(number, &cluster);
        let holders = Holder::all(cluster.major_version()).collect();
        clients.spawn(client.lose_packets(ways, holders, cluster.url_for(&role::TRUST)));
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

/// What a client's process does.
async fn hold_until_told(client: usize) {
    // The cable is there.
    stdin().read_exact(&mut [0]).unwrap();
    let url = env::var(URL).unwrap();
    let major_version = env::var(MAJOR_VERSION).unwrap().parse().unwrap();
    let mut holders = JoinSet::new();
    for holder in Holder::all(major_version) {
        let mut lock = holder.connect(&url, client).await;
        holders.spawn(async move {
            lock.lock().await.unwrap();
            // The line before may be libtest's, and not have ended.
            println!("\nholds {}", holder.name);
            let error = lock.hold(std::future::pending::<()>()).await.unwrap_err();
            let told = now();
            assert!(error.is_lost(), "{error}");
            println!("\ntold {} {} {error}", holder.name, told.as_nanos());
        });
    }
    while let Some(ended) = holders.join_next().await {
        ended.unwrap();
    }
}

/// A client's process, at the other end of a cable.
struct Client {
    number: usize,
    process: Child,
    words: Lines<BufReader<ChildStdout>>,
}

impl Client {
    fn start(number: usize, cluster: &Cluster) -> Self {
        let (user, host, port) = (role::TRUST.name, server_address(number), cluster.port());
        let mut command = part(&number.to_string());
        command
            .env(MAJOR_VERSION, cluster.major_version().to_string())
            .env(URL, format!("postgresql://{user}@{host}:{port}/app"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let words = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { number, process, words }
    }

    async fn lose_packets(mut self, ways: &[Way], holders: Vec<Holder>, url: String) {
        self.lay_cable().await;
        let mut waiters = JoinSet::new();
        for _ in &holders {
            self.hear("holds").await;
        }
        for holder in &holders {
            let (name, key, config) = (holder.name, holder.key(self.number), url.parse().unwrap());
            waiters.spawn(async move { (name, take(config, key).await) });
        }
        self.await_silence(holders.len()).await;
        let lost = now();
        for way in ways {
            self.lose(*way);
        }
        let told = self.hear_all_told(ways, holders.len()).await;
        let mut taken = HashMap::new();
        while let Some(ended) = timeout(PATIENCE, waiters.join_next()).await.unwrap() {
            let (name, time) = ended.unwrap();
            taken.insert(name, time);
        }
        for holder in holders {
            let [told, taken] = [told[holder.name], taken[holder.name]]
                .map(|time| time.checked_sub(lost).expect("nothing ends before packets are lost"));
            println!("{ways:?}, {}: told after {told:?}, freed after {taken:?}", holder.name);
            let in_time = holder.freed_within(ways) + AT_ONCE;
            assert!(told < in_time && taken < in_time);
            // Else the server hears of the end from the client, at the moment when that gives up.
            assert!(told < taken || !ways.contains(&Way::ToServer), "two held the lock");
        }
        assert!(timeout(PATIENCE, self.process.wait()).await.unwrap().unwrap().success());
    }

    /// When each holder was told, by its name.
    async fn hear_all_told(&mut self, ways: &[Way], holders: usize) -> HashMap<String, Time> {
        let mut told = HashMap::new();
        for _ in 0..holders {
            let words = self.hear("told").await;
            let [name, time, reason] = words.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{words}")
            };
            println!("{ways:?}, {name}: {reason}");
            told.insert(name.to_owned(), Duration::from_nanos(time.parse().unwrap()));
        }
        told
    }

    async fn lay_cable(&mut self) {
        let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        let (process, own) = (self.process.id().unwrap(), network("self"));
        eventually("the client has its own network", PATIENCE, || {
            network(&process.to_string()) != own
        })
        .await;
        let number = self.number;
        ip(&format!("link add cable{number} type veth peer name cable netns {process}"));
        ip(&format!("address add {}/30 dev cable{number}", server_address(number)));
        ip(&format!("link set cable{number} up"));
        self.ip_of_client(&format!("address add {}/30 dev cable", client_address(number)));
        self.ip_of_client("link set cable up");
        self.process.stdin.as_mut().unwrap().write_all(b".").await.unwrap();
    }

    /// Waits until all that the server has sent to the client's sessions is acknowledged. Else it would
    /// send that again, and be heard, where packets are lost on the other way alone.
    async fn await_silence(&self, sessions: usize) {
        let address: Ipv4Addr = client_address(self.number).parse().unwrap();
        let address = format!("{:08X}:", u32::from_ne_bytes(address.octets()));
        eventually("nothing is under way", PATIENCE, || {
            let connections = fs::read_to_string("/proc/net/tcp").unwrap();
            let connections = connections.lines().map(|line| {
                // The remote address, and which timer runs: 02 is that of keepalive.
                let fields: Vec<_> = line.split_ascii_whitespace().collect();
                (fields[2].starts_with(&address), fields[5].starts_with("02:"))
            });
            connections.filter(|fields| *fields == (true, true)).count() == sessions
        })
        .await;
    }

    /// What follows on the client's next word of this kind.
    async fn hear(&mut self, kind: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.words.next_line()).await.unwrap().unwrap();
            let line = line.expect("the client goes on");
            if let Some(words) = line.strip_prefix(kind) {
                return words.trim_start().to_owned();
            }
        }
    }

    fn lose(&self, way: Way) {
        let nobody = "lladdr 02:00:00:00:00:00 nud permanent";
        let (number, server) = (self.number, server_address(self.number));
        let client = client_address(number);
        match way {
            Way::ToClient => ip(&format!("neighbour replace {client} {nobody} dev cable{number}")),
            Way::ToServer => {
                self.ip_of_client(&format!("neighbour replace {server} {nobody} dev cable"));
            }
        }
    }

    fn ip_of_client(&self, arguments: &str) {
        run(&format!("nsenter --net=/proc/{}/ns/net ip {arguments}", self.process.id().unwrap()));
    }
}

/// Waits for a holder's lock, on the server's side of the cable. Returns when it was there.
async fn take(config: Config, key: Key) -> Time {
    let mut lock = Lock::connect(&config, key).await.unwrap();
    lock.lock().await.unwrap();
    now()
}

/// In a range that is for documentation.
fn server_address(number: usize) -> String {
    format!("198.51.100.{}", 4 * number + 1)
}

fn client_address(number: usize) -> String {
    format!("198.51.100.{}", 4 * number + 2)
}

fn ip(arguments: &str) {
    run(&format!("ip {arguments}"));
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}
