//! The command `pglock`, as scripts and people meet it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what it expects, and ends where that does not hold"
)]

mod inspection;
