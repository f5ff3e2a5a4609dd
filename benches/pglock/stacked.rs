//! A lock that this session holds already, taken and given back once more: no round trip.
//!
//! From the call that adds the level to the return of the one that takes it off. Neither may ask the
//! server: a future that is not done when it is first polled ends the benchmark.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use divan::Bencher;

use crate::server::{Transport, runtime};

const KEY: i64 = 2;

#[divan::bench(sample_size = 1_000)]
fn lock_unlock(bencher: Bencher) {
    let runtime = runtime();
    let mut lock = runtime.block_on(Transport::Tcp.lock(KEY));
    runtime.block_on(lock.lock()).unwrap();
    bencher.bench_local(|| {
        at_once(lock.lock()).unwrap();
        at_once(lock.unlock()).unwrap();
    });
}

fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a stacked lock asked the server"),
    }
}
