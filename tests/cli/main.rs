//! The command `pglock`, as scripts and people meet it: real processes on a real server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what it expects, and ends where that does not hold"
)]

mod care;
mod command;
mod contention;
mod examples;
mod flock;
mod inspection;
mod lead;
mod loss;
mod stage;
mod terminal;
mod words;
