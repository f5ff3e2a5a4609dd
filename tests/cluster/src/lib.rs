//! Private PostgreSQL servers for tests, benchmarks and examples.
//!
//! [`Cluster::default_cluster`] is one server for a whole test process; [`Settings::start`] starts
//! others, which a test may stop, crash, turn into a standby and promote;
//! [`Settings::start_standby_of`] starts one that follows another. Each lives in a directory
//! of its own, listens on loopback and on a Unix socket, has TLS on and the roles of [`role`], and
//! is gone when the process that started it is gone, however that ended. [`PgBouncer`] stands before
//! one, and ends in the same way; [`Proxy`] is a network with faults before one.
//!
//! ```
//! use pglock_test_cluster::{Cluster, role};
//!
//! let cluster = Cluster::default_cluster();
//! let url = cluster.url_for(&role::SCRAM); // for the library under test
//! let mut look = cluster.raw(); // sees the server without the library under test
//! assert_eq!(look.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), "0");
//! ```

mod backup;
mod binaries;
mod certificate;
mod cluster;
mod pgbouncer;
mod proxy;
mod raw;
pub mod role;
mod supervisor;
mod wait;

pub use binaries::find as find_binaries;
pub use certificate::{Authority, Certificate, HOST, kept};
pub use cluster::{Cluster, DATABASE, Settings, Shutdown, signal};
pub use pgbouncer::{PgBouncer, PoolMode};
pub use proxy::{Break, Proxy, Traffic, Way};
pub use raw::{Raw, Row};
// What a test that spoils certificates needs of it.
pub use rcgen;
pub use role::Role;
pub use wait::{eventually, wait_until};
