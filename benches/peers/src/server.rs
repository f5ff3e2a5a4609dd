//! The servers, and how each is reached.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pglock::{Config, Lock, blocking};
use pglock_test_cluster::{Cluster, Raw, Role, eventually, role, wait_until};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio::runtime::{Builder, Runtime};

use crate::messages::SSL_REQUEST;
use crate::redis::Redis;

pub(crate) const DATABASE: &str = "app";
pub(crate) const HOST: &str = "127.0.0.1";

/// Longest that a session may take to queue or to end.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
    Tls,
}

impl Transport {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Unix, Self::Tls];
}

/// A private PostgreSQL server, a private Redis server where there is one to start, and the runtime of
/// all clients that do not block: one thread.
#[derive(Clone)]
pub(crate) struct Server {
    cluster: &'static Cluster,
    redis: Option<Rc<Redis>>,
    runtime: Rc<Runtime>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self {
            cluster: Cluster::default_cluster(),
            redis: Redis::start().map(Rc::new),
            runtime: Rc::new(runtime),
        }
    }

    pub(crate) fn description(&self) -> String {
        let postgres = self.cluster.raw().value("SHOW server_version");
        let redis = self.redis.as_ref().map_or("not installed, left out", |redis| redis.version());
        format!("PostgreSQL {postgres}; Redis: {redis}")
    }

    pub(crate) fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    pub(crate) fn redis(&self) -> Option<&Rc<Redis>> {
        self.redis.as_ref()
    }

    pub(crate) fn runtime(&self) -> &Rc<Runtime> {
        &self.runtime
    }

    /// How pglock is told of this server.
    pub(crate) fn config(&self, transport: Transport, role: &Role) -> Config {
        let url = match transport {
            Transport::Tcp => self.cluster.url_for(role) + "?sslmode=disable",
            Transport::Unix => self.cluster.socket_url_for(role),
            Transport::Tls => self.cluster.url_for(role) + "?sslmode=require",
        };
        url.parse().expect("the cluster's URL")
    }

    pub(crate) fn lock(&self, transport: Transport, key: i64) -> Lock {
        let config = self.config(transport, &role::TRUST);
        self.runtime.block_on(Lock::connect(&config, key)).expect("a session")
    }

    pub(crate) fn blocking_lock(&self, transport: Transport, key: i64) -> blocking::Lock {
        let config = self.config(transport, &role::TRUST);
        blocking::Lock::connect(&config, key).expect("a session")
    }

    pub(crate) fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect((HOST, self.cluster.port())).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        stream
    }

    pub(crate) fn unix(&self) -> UnixStream {
        let path = self.cluster.socket_dir().join(format!(".s.PGSQL.{}", self.cluster.port()));
        UnixStream::connect(path).expect("a connection")
    }

    pub(crate) fn tls(&self) -> StreamOwned<ClientConnection, TcpStream> {
        let mut stream = self.tcp();
        let mut reply = [0];
        stream.write_all(&SSL_REQUEST).and_then(|()| stream.read_exact(&mut reply)).expect("asked");
        assert_eq!(&reply, b"S", "the server has TLS");
        let host = HOST.try_into().expect("a name");
        let client = ClientConnection::new(Arc::new(self.tls_config()), host).expect("TLS");
        StreamOwned::new(client, stream)
    }

    /// For those whose TLS has to be told which authority to trust.
    pub(crate) fn tls_config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(self.cluster.root_certificate());
        roots.add(root.expect("the cluster's root certificate")).expect("a root certificate");
        ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
    }
}

/// Looks at the server from a session of its own, between what is timed.
pub(crate) struct Observer(Raw);

impl Observer {
    pub(crate) fn new(server: &Server) -> Self {
        Self(server.cluster.raw())
    }

    /// Waits until somebody waits for this key, while the runtime's tasks go on.
    pub(crate) async fn queued(&mut self, key: i64) {
        // The task that is going to wait asks now, as what blocks has done by now: otherwise the first
        // look would always come too soon, and only the tasks would rest until the next one.
        tokio::task::yield_now().await;
        eventually("a session waits for the lock", PATIENCE, || self.is_queued(key)).await;
    }

    /// The same for what blocks.
    pub(crate) fn wait_until_queued(&mut self, key: i64) {
        wait_until("a session waits for the lock", PATIENCE, || self.is_queued(key));
    }

    fn is_queued(&mut self, key: i64) -> bool {
        let waiters = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        self.0.value(&format!("{waiters} AND (classid, objid) = (0, {key})")) == "1"
    }

    /// Waits until this role has no session.
    pub(crate) fn wait_until_gone(&mut self, role: &Role) {
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename";
        let sessions = format!("{sessions} = '{}'", role.name);
        wait_until("the session has ended", PATIENCE, || self.0.value(&sessions) == "0");
    }
}
