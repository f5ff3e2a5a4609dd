//! For how long a holder may be certain of its locks without a word from the server.
//!
//! ```text
//!              sent                          heartbeat                     ends    the server ends
//!               │                                 │                          │       the session
//! holder  ──────┼────────── a third ──────────────┼── two thirds, less ──────┤              │
//!                ╲                                     a tenth of the whole                 │
//! server  ────────┼ answered ├──────────────── ttl of silence ─────────────────────────────┤
//! ```
//!
//! The server counts from its answer, and the holder from when it sent what was answered, which is
//! earlier: so the holder's time is over first, however long anything was under way. The tenth makes up
//! for clocks that differ (by less than a thousandth where NTP keeps them), for a timer that rings late,
//! and for what the holder still has to do.
//!
//! The holder's clock is the system's monotonic one, which stands still while a machine sleeps: that is an
//! exception which [`Config::lease`](crate::Config::lease) names.
//!
//! While a request is under way, the server does not count. Where its answer took longer than the pause
//! between heartbeats, as that of a wait may, nobody knows how long ago the server gave it: a heartbeat
//! has to be answered before the outcome is told.

use std::time::{Duration, Instant};

/// What is left of a session's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    ttl: Duration,
    /// When the last request was sent that has been answered.
    renewed: Instant,
}

impl Lease {
    /// A lease that the server was told of at this time.
    pub(crate) fn new(ttl: Duration, told: Instant) -> Self {
        Self { ttl, renewed: told }
    }

    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Counts from a request that was sent then, now that it has been answered.
    pub(super) fn renew(&mut self, sent: Instant) {
        self.renewed = sent;
    }

    /// Whether the answer to a request that was sent then came soon enough to tell how things are.
    pub(super) fn is_timely(&self, sent: Instant, now: Instant) -> bool {
        now.saturating_duration_since(sent) <= self.pause()
    }

    /// When to give the next sign of life.
    pub(super) fn heartbeat_due(&self) -> Instant {
        self.renewed + self.pause()
    }

    /// Until when the locks are certain.
    pub(super) fn ends_at(&self) -> Instant {
        self.renewed + self.certain_for()
    }

    /// How long the answer to a sign of life may take.
    pub(super) fn certain_for(&self) -> Duration {
        self.ttl.saturating_sub(self.ttl / 10)
    }

    fn pause(&self) -> Duration {
        self.ttl / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_holders_time_is_over_before_the_servers_by_any_clock() {
        let sent = Instant::now();
        for ms in [1_000, 1_001, 10_000, 86_400_000] {
            let lease = Lease::new(ms * MS, sent);
            let ends = lease.ends_at().duration_since(sent);
            // The server answers at once, and its clock runs ahead by a hundredth.
            assert!(ends * 101 < ms * MS * 100, "{ms} ms: {ends:?}");
            assert!(lease.heartbeat_due() < lease.ends_at());
        }
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_what_was_answered() {
        let told = Instant::now();
        let mut lease = Lease::new(3_000 * MS, told);
        assert_eq!(lease.heartbeat_due(), told + 1_000 * MS);
        assert_eq!(lease.ends_at(), told + 2_700 * MS);
        lease.renew(told + 1_000 * MS);
        assert_eq!(lease.ends_at(), told + 3_700 * MS);
    }

    #[test]
    fn an_answer_is_timely_if_it_comes_before_the_next_heartbeat() {
        let sent = Instant::now();
        let lease = Lease::new(3_000 * MS, sent);
        assert!(lease.is_timely(sent, sent));
        assert!(lease.is_timely(sent, sent + 1_000 * MS));
        assert!(!lease.is_timely(sent, sent + 1_001 * MS));
    }
}
