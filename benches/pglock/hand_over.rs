//! A busy lock, passed from one session to another.
//!
//! From the holder's call of `unlock`, with one waiter in the server's queue, until the waiter has
//! the lock and the holder its answer. Both sessions are on the same thread of this process. Each has
//! rested for some milliseconds before, as in a real wait.

use std::cell::Cell;

use divan::Bencher;
use pglock::Lock;

use crate::server::{Queue, Transport, runtime};

const KEY: i64 = 5;

#[divan::bench(args = Transport::ALL, sample_count = 200, sample_size = 1)]
fn unlock_to_waiter(bencher: Bencher, transport: Transport) {
    let runtime = runtime();
    let queue = Queue::new();
    let [mut first, second] = [(); 2].map(|()| runtime.block_on(transport.lock(KEY)));
    runtime.block_on(first.lock()).unwrap();
    // The lock goes to and fro: who got it is the next one to hand it over.
    let pair = Cell::new(Some((first, second)));
    bencher
        .with_inputs(|| {
            let (holder, waiter) = pair.take().unwrap();
            (holder, queue.enter(&runtime, KEY, wait(waiter)))
        })
        .bench_local_values(|(mut holder, waiting)| {
            let next = runtime.block_on(async {
                let (unlocked, next) = tokio::join!(holder.unlock(), waiting);
                unlocked.unwrap();
                next.unwrap()
            });
            pair.set(Some((next, holder)));
        });
}

async fn wait(mut waiter: Lock) -> Lock {
    waiter.lock().await.unwrap();
    waiter
}
