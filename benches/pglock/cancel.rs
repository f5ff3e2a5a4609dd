//! A wait for a busy lock, ended before the lock was granted.
//!
//! All three ways have the same work behind them: a `CancelRequest` on a connection of its own, which
//! the server forks a process for and which is read to its end, and then a round trip that settles
//! what the session holds.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use pglock::{ErrorKind, Lock};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::server::{Queue, Transport, runtime};

const KEY: i64 = 4;

/// The shortest time that tokio's timer tells from none.
const TIMEOUT: Duration = Duration::from_millis(1);

/// From the call of `lock_timeout` with 1 ms to its answer `false`. The timer alone is
/// `timeout_timer_alone`; the difference is what the withdrawal costs.
#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 1)]
fn timeout(bencher: Bencher, transport: Transport) {
    let runtime = runtime();
    let _holder = hold(&runtime, transport);
    let mut waiter = runtime.block_on(transport.lock(KEY));
    bencher.bench_local(|| {
        assert!(!runtime.block_on(waiter.lock_timeout(TIMEOUT)).unwrap());
    });
}

/// The yardstick of `timeout`: tokio's timer, which rounds up.
#[divan::bench(sample_count = 200, sample_size = 1)]
fn timeout_timer_alone(bencher: Bencher) {
    let runtime = runtime();
    bencher.bench_local(|| runtime.block_on(async { tokio::time::sleep(TIMEOUT).await }));
}

/// From the call of `Canceller::cancel`, with the waiter in the server's queue, until the waiter has
/// control back.
#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 1)]
fn canceller(bencher: Bencher, transport: Transport) {
    let runtime = runtime();
    let _holder = hold(&runtime, transport);
    let mut waiter = runtime.block_on(transport.lock(KEY));
    let canceller = waiter.canceller();
    let queue = Queue::new();
    let waiter = Cell::new(Some(waiter));
    bencher
        .with_inputs(|| queue.enter(&runtime, KEY, wait_until_cancelled(waiter.take().unwrap())))
        .bench_local_values(|waiting| {
            runtime.block_on(canceller.cancel());
            waiter.set(Some(runtime.block_on(waiting).unwrap()));
        });
}

async fn wait_until_cancelled(mut waiter: Lock) -> Lock {
    let error = waiter.lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    waiter
}

/// From the moment when the waiting future is dropped, with the waiter in the server's queue, until
/// the session's next call, a `try_lock`, has its answer.
#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 1)]
fn drop_then_next_call(bencher: Bencher, transport: Transport) {
    let runtime = runtime();
    let _holder = hold(&runtime, transport);
    let waiter = Cell::new(Some(runtime.block_on(transport.lock(KEY))));
    let queue = Queue::new();
    let give_up = Arc::new(Notify::new());
    bencher
        .with_inputs(|| {
            let wait = wait_until_dropped(waiter.take().unwrap(), Arc::clone(&give_up));
            queue.enter(&runtime, KEY, wait)
        })
        .bench_local_values(|waiting| {
            give_up.notify_one();
            waiter.set(Some(runtime.block_on(waiting).unwrap()));
        });
}

async fn wait_until_dropped(mut waiter: Lock, give_up: Arc<Notify>) -> Lock {
    tokio::select! {
        granted = waiter.lock() => panic!("the lock was busy, and yet: {granted:?}"),
        () = give_up.notified() => {}
    }
    assert!(!waiter.try_lock().await.unwrap());
    waiter
}

fn hold(runtime: &Runtime, transport: Transport) -> Lock {
    runtime.block_on(async {
        let mut holder = transport.lock(KEY).await;
        // The session that held the key in the benchmark before this one may still be ending.
        holder.lock().await.unwrap();
        holder
    })
}
