//! Waiting for a condition instead of sleeping for luck.

use std::thread;
use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Blocks until `condition` holds; panics, naming `what`, when it does not within `patience`.
pub fn wait_until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {patience:?} in vain until {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Like [`wait_until`], but lets the other tasks of this thread run between two looks.
pub async fn eventually(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {patience:?} in vain until {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
