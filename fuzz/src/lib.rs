//! What is fuzzed, as ordinary functions: each takes arbitrary bytes, reads from them what to do, and
//! panics if a promise does not hold.
//!
//! The targets in `fuzz_targets/` hand them to libFuzzer. The test `tests/corpus.rs` of the main
//! package includes this file and runs them on the kept corpus, with a stable compiler and without
//! libFuzzer; so nothing but `pglock` and the standard library is used here.

#![allow(clippy::missing_panics_doc, reason = "a body that finds a defect panics: so it says so")]

mod backend;
mod certificate;
mod config;
mod connection;
mod input;
mod scram;

pub use backend::backend;
pub use certificate::certificate;
pub use config::config;
pub use connection::connection;
pub use scram::scram;
