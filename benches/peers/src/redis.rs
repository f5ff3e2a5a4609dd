//! The usual lock on Redis: a key that is set if it is not there, and deleted if it is still one's own.

use std::env;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, Command, Stdio};
use std::time::Duration;

use pglock_test_cluster::wait_until;
use redis::Script;
use redis::aio::MultiplexedConnection;

use crate::server::{HOST, Transport};

const PATIENCE: Duration = Duration::from_secs(10);

/// The time after which a lock whose holder has died is free.
const EXPIRY_MILLIS: u32 = 30_000;
/// Random in a client that means it, and another one for each lock.
const TOKEN: &str = "4d1f1b5e0c8a4f7e";
const DELETE_IF_OWN: &str = "if redis.call('get', KEYS[1]) == ARGV[1] \
                             then return redis.call('del', KEYS[1]) else return 0 end";

/// Ends the server when the pipe is closed: in whatever way this process ends.
const SUPERVISOR: &str = r#"redis-server "$@" >/dev/null & cat; kill $!; wait; rm -rf "$0""#;

/// A private Redis server, which keeps nothing on disk and ends with this value or this process.
pub(crate) struct Redis {
    supervisor: Child,
    port: u16,
    directory: PathBuf,
    version: String,
}

impl Redis {
    /// Where it is installed.
    pub(crate) fn start() -> Option<Self> {
        let version = Command::new("redis-server").arg("--version").output().ok()?.stdout;
        let version = String::from_utf8(version).ok()?;
        let version = version.split(' ').find_map(|word| word.strip_prefix("v="))?.to_owned();
        let directory = env::temp_dir().join(format!("pglock-peers-{}", process::id()));
        fs::create_dir(&directory).expect("a directory for Redis");
        let port = free_port();
        let supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR])
            .arg(&directory)
            .args(["--bind", HOST, "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .arg("--unixsocket")
            .arg(directory.join("socket"))
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("Redis, started");
        let redis = Self { supervisor, port, directory, version };
        let client = redis.client(Transport::Unix);
        wait_until("Redis answers", PATIENCE, || client.get_connection().is_ok());
        Some(redis)
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) async fn lock(&self, transport: Transport, key: &'static str) -> RedisLock {
        let client = self.client(transport);
        let connection = client.get_multiplexed_async_connection().await.expect("a connection");
        RedisLock { connection, key, release: Script::new(DELETE_IF_OWN) }
    }

    fn client(&self, transport: Transport) -> redis::Client {
        let url = match transport {
            Transport::Tcp => format!("redis://{HOST}:{}", self.port),
            Transport::Unix => format!("redis+unix://{}", self.directory.join("socket").display()),
            Transport::Tls => panic!("Redis is measured without TLS"),
        };
        redis::Client::open(url).expect("Redis's address")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // How it ended is of no interest any more.
        let _ = self.supervisor.wait();
    }
}

pub(crate) struct RedisLock {
    connection: MultiplexedConnection,
    key: &'static str,
    release: Script,
}

impl RedisLock {
    pub(crate) async fn try_lock(&mut self) -> bool {
        let answer: Option<String> = redis::cmd("SET")
            .arg(self.key)
            .arg(TOKEN)
            .arg("NX")
            .arg("PX")
            .arg(EXPIRY_MILLIS)
            .query_async(&mut self.connection)
            .await
            .expect("an answer");
        answer.is_some()
    }

    pub(crate) async fn unlock(&mut self) -> bool {
        let mut release = self.release.key(self.key);
        let deleted: u32 =
            release.arg(TOKEN).invoke_async(&mut self.connection).await.expect("an answer");
        deleted == 1
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((HOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}
