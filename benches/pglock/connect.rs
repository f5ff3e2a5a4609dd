//! A session, made and ended.
//!
//! From the call of `Lock::connect` to the return of `close`: dialling, the login, the query that
//! makes the session fit to hold locks, and the wait until the server has ended the session. Most of
//! it is the server's: it forks a process for each session.

use divan::Bencher;
use pglock::Lock;
use pglock_test_cluster::{Role, role};

use crate::bare::Bare;
use crate::server::{Transport, runtime};

const KEY: i64 = 3;

#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 1)]
fn trust(bencher: Bencher, transport: Transport) {
    connect_and_close(bencher, transport, &role::TRUST);
}

/// Both sides prove that they know the password, which the client hashes 4,096 times for that.
#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 1)]
fn scram(bencher: Bencher, transport: Transport) {
    connect_and_close(bencher, transport, &role::SCRAM);
}

/// The yardstick of `trust`: a blocking socket that logs in, makes no settings, and leaves.
#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 1)]
fn bare_socket(bencher: Bencher, transport: Transport) {
    bencher.bench_local(|| Bare::connect(transport).close());
}

fn connect_and_close(bencher: Bencher, transport: Transport, role: &Role) {
    let runtime = runtime();
    let config = transport.config(role);
    bencher.bench_local(|| {
        runtime.block_on(async {
            let lock = Lock::connect(&config, KEY).await.unwrap();
            lock.close().await.unwrap();
        });
    });
}
