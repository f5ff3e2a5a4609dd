//! A lock that nobody else wants, taken and given back: two round trips.
//!
//! From the call that takes the lock to the return of `unlock`, on a session that is connected
//! already. Each pair enters and leaves the runtime once, which a program inside its runtime does not
//! do; that is a fraction of a microsecond.

use divan::Bencher;
use pglock::protocol::frontend;

use crate::bare::Bare;
use crate::server::{Transport, runtime};

const KEY: i64 = 1;

/// `pg_try_advisory_lock(bigint)` and `pg_advisory_unlock(bigint)`, as `pg_proc` numbers them.
const TRY_LOCK: u32 = 2882;
const UNLOCK: u32 = 2884;

#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 50)]
fn try_lock_unlock(bencher: Bencher, transport: Transport) {
    let runtime = runtime();
    let mut lock = runtime.block_on(transport.lock(KEY));
    bencher.bench_local(|| {
        runtime.block_on(async {
            assert!(lock.try_lock().await.unwrap());
            lock.unlock().await.unwrap();
        });
    });
}

#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 50)]
fn lock_unlock(bencher: Bencher, transport: Transport) {
    let runtime = runtime();
    let mut lock = runtime.block_on(transport.lock(KEY));
    bencher.bench_local(|| {
        runtime.block_on(async {
            lock.lock().await.unwrap();
            lock.unlock().await.unwrap();
        });
    });
}

/// The yardstick of `try_lock_unlock`: the same bytes, written to a blocking socket.
#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 50)]
fn bare_socket(bencher: Bencher, transport: Transport) {
    let mut bare = Bare::connect(transport);
    let [try_lock, unlock] = [TRY_LOCK, UNLOCK].map(|function| {
        let mut call = Vec::new();
        frontend::function_call(function, [&KEY.to_be_bytes()], &mut call);
        call
    });
    bencher.bench_local(|| {
        bare.ask(&try_lock);
        bare.ask(&unlock);
    });
}
