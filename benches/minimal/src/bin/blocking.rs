//! As `minimal`, without a runtime, and with a configuration made of setters: the smallest program of all.
//!
//! The server is where `PGHOST` and the like say. It is these that a program of one's own would have as
//! constants.

use std::env::{args, var};

use pglock::blocking::Lock;
use pglock::{Config, Result};

fn main() -> Result<()> {
    let pairs = args().nth(1).map_or(1, |count| count.parse().expect("a number of pairs"));
    let mut lock = Lock::connect(&config(), 42)?;
    for _ in 0..pairs {
        if lock.try_lock()? {
            lock.unlock()?;
        }
    }
    lock.close()
}

fn config() -> Config {
    let mut config = Config::new();
    let text = |name| var(name).unwrap_or_default();
    config.host(&text("PGHOST")).user(&text("PGUSER")).dbname(&text("PGDATABASE"));
    if let Ok(password) = var("PGPASSWORD") {
        config.password(&password);
    }
    if let Some(port) = var("PGPORT").ok().and_then(|port| port.parse().ok()) {
        config.port(port);
    }
    config
}
