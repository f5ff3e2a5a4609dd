//! What a lock costs. `benches/README.md` says how to run this and how to read the figures.
//!
//! One binary, so that one private server serves all groups. It is started by the first benchmark
//! that asks for it, and ends with the process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark ends where what it times did not happen"
)]

mod bare;
mod cancel;
mod connect;
mod decoder;
mod hand_over;
mod loss;
#[cfg(feature = "manager")]
mod manager;
mod round_trip;
#[cfg(feature = "manager")]
mod semaphore;
mod server;
mod stacked;

fn main() {
    divan::main();
}
