//! The tests that need a PostgreSQL server: one binary, so that one server serves them all.
//!
//! Those in [`hostile`] need none, but one that no PostgreSQL is: see [`scripted`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what it expects, and ends where that does not hold"
)]

mod authentication;
mod behaviour;
#[cfg(feature = "blocking")]
mod blocking;
#[cfg(feature = "blocking")]
mod blocking_hostile;
mod calls;
mod cancel;
mod cluster;
mod drops;
#[cfg(feature = "manager")]
mod election;
// Some need one of these features, and some the other.
#[cfg(all(feature = "blocking", feature = "manager"))]
mod examples;
mod failover;
mod faults;
mod fences;
mod holders;
mod hostile;
mod inspection;
mod leases;
#[cfg(feature = "manager")]
mod manager;
#[cfg(feature = "manager")]
mod manager_drops;
#[cfg(target_os = "linux")]
mod packet_loss;
mod pooler;
mod processes;
mod psql;
mod races;
mod scripted;
#[cfg(feature = "manager")]
mod semaphores;
#[cfg(feature = "manager")]
mod sets;
#[cfg(feature = "manager")]
mod shutdown;
mod slices;
mod stage;
#[cfg(feature = "manager")]
mod stats;
#[cfg(feature = "tls")]
mod tls;
#[cfg(all(feature = "manager", feature = "tracing"))]
mod trace;
