//! How soon a holder knows that it has lost its lock.
//!
//! From what ends its session until `lost` returns, over TCP without TLS. The session is on the only
//! thread of the runtime; what ends it is done by another one, or from outside.

use std::cell::RefCell;
use std::thread;

use divan::Bencher;
use pglock::{Config, ErrorKind, Lock, SslMode};
use pglock_test_cluster::{Break, Cluster, Proxy, Settings, role, signal};
use tokio::runtime::Runtime;

use crate::server::{Transport, runtime};

const KEY: i64 = 8;

/// `pg_terminate_backend`, called on another session.
#[divan::bench(sample_count = 50, sample_size = 1)]
fn terminated(bencher: Bencher) {
    let (runtime, superuser) = (runtime(), RefCell::new(Cluster::default_cluster().raw()));
    let holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' \
                  AND (classid, objid) = (0, 8)";
    bencher
        .with_inputs(|| {
            let lock = held(&runtime, &Transport::Tcp.config(&role::TRUST));
            let other = Cluster::default_cluster().raw();
            (lock, other, superuser.borrow_mut().value(holder))
        })
        .bench_local_values(|(lock, mut other, pid)| {
            thread::scope(|scope| {
                scope.spawn(move || other.rows(&format!("SELECT pg_terminate_backend({pid})")));
                lost(&runtime, lock);
            });
        });
}

/// SIGQUIT to the server, as `pg_ctl stop -m immediate` sends it.
#[divan::bench(sample_count = 50, sample_size = 1)]
fn server_stopped(bencher: Bencher) {
    let (runtime, cluster) = (runtime(), RefCell::new(Settings::new().start()));
    let is_stopped = RefCell::new(false);
    bencher
        .with_inputs(|| {
            if is_stopped.replace(true) {
                cluster.borrow().wait_for_exit();
                cluster.borrow_mut().start();
            }
            held(&runtime, &cluster.borrow().url_for(&role::TRUST).parse().unwrap())
        })
        .bench_local_values(|lock| {
            let postmaster = cluster.borrow().process_id();
            thread::scope(|scope| {
                scope.spawn(move || signal(postmaster, "QUIT"));
                lost(&runtime, lock);
            });
        });
}

/// A reset (RST) of the connection.
#[divan::bench(sample_count = 50, sample_size = 1)]
fn reset(bencher: Bencher) {
    let (runtime, proxy) = (runtime(), Proxy::start(Cluster::default_cluster().port()));
    let mut config = Transport::Tcp.config(&role::TRUST);
    config.hosts([("127.0.0.1", proxy.port())]).sslmode(SslMode::Disable);
    bencher.with_inputs(|| held(&runtime, &config)).bench_local_values(|lock| {
        proxy.break_all(Break::Reset);
        lost(&runtime, lock);
    });
}

fn held(runtime: &Runtime, config: &Config) -> Lock {
    runtime.block_on(async {
        let mut lock = Lock::connect(config, KEY).await.unwrap();
        lock.lock().await.unwrap();
        lock
    })
}

fn lost(runtime: &Runtime, mut lock: Lock) {
    assert_eq!(runtime.block_on(lock.lost()).kind(), ErrorKind::Lost);
}
