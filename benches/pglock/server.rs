//! The private server, and sessions on it.

use std::cell::RefCell;
use std::time::Duration;

use pglock::{Config, Lock, SslMode};
use pglock_test_cluster::{Cluster, Raw, Role, eventually, role};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Longest that a waiter may take to get into the server's queue.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the server is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    /// TCP on 127.0.0.1, in clear as the bare socket is.
    Tcp,
    /// The Unix socket.
    Unix,
}

impl Transport {
    pub(crate) const ALL: [Self; 2] = [Self::Tcp, Self::Unix];

    /// How to log in as this role.
    pub(crate) fn config(self, role: &Role) -> Config {
        let cluster = Cluster::default_cluster();
        let url = match self {
            Self::Tcp => cluster.url_for(role),
            Self::Unix => cluster.socket_url_for(role),
        };
        let mut config: Config = url.parse().expect("the cluster's URL");
        config.sslmode(SslMode::Disable);
        config
    }

    /// A lock on a session of its own.
    pub(crate) async fn lock(self, key: i64) -> Lock {
        Lock::connect(&self.config(&role::TRUST), key).await.expect("a session")
    }
}

/// The runtime of the client: one thread, so that no hand-over between threads is measured.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Sees, from a session of its own, who waits on the server.
pub(crate) struct Queue(RefCell<Raw>);

impl Queue {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(Cluster::default_cluster().raw()))
    }

    /// Starts a task that waits for this key, and returns once the server has it in its queue.
    pub(crate) fn enter<T: Send + 'static>(
        &self,
        runtime: &Runtime,
        key: i64,
        wait: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let waiting = runtime.spawn(wait);
        let waiters = format!(
            "SELECT count(*) FROM pg_locks \
             WHERE locktype = 'advisory' AND NOT granted AND (classid, objid) = (0, {key})"
        );
        let is_queued = || self.0.borrow_mut().value(&waiters) == "1";
        runtime.block_on(eventually("a session waits for the lock", PATIENCE, is_queued));
        waiting
    }
}
