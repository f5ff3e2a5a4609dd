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
//! The holder's clock is the system's monotonic one, which stands still while a machine sleeps, or while
//! its virtual machine is paused. The wall clock goes on, or is set when the machine wakes: so
//! [`Clocks`] compares the two, and what the one stood still for counts as well.
//!
//! While a request is under way, the server does not count. Where its answer took longer than the pause
//! between heartbeats, as that of a wait may, nobody knows how long ago the server gave it: a heartbeat
//! has to be answered before the outcome is told.
//!
//! Only waits, for a lock or for a token's standbys, may take as long as they like: their caller waits with
//! them. What has nobody to wait for is answered while the lease lasts, or the session is lost; and so it is
//! where a wait has not been withdrawn for as long as a lease is certain, counted from when that began: whoever
//! gave up works on with what else is held.

use std::time::{Duration, Instant, SystemTime};

/// How far the wall clock has to go ahead of the monotonic one to count as a sleep. It is set by this much
/// and more while a machine keeps time by NTP.
const SLEEP_MIN: Duration = Duration::from_millis(100);

/// What is left of a session's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    ttl: Duration,
    /// When the last request was sent that has been answered.
    renewed: Since,
}

/// A moment, and for how long the machine has slept since, which the moment's clock does not count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    at: Instant,
    slept: Duration,
}

/// The two clocks of a machine, as they stood when they were last looked at.
#[derive(Debug)]
pub(crate) struct Clocks {
    monotonic: Instant,
    wall: SystemTime,
}

impl Lease {
    /// A lease that the server was told of at this time.
    pub(crate) fn new(ttl: Duration, told: Instant) -> Self {
        Self { ttl, renewed: told.into() }
    }

    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Counts from a request that was sent then, now that it has been answered.
    pub(super) fn renew(&mut self, sent: Since) {
        self.renewed = sent;
    }

    /// The machine slept for this long.
    pub(super) fn slept(&mut self, time: Duration) {
        self.renewed.slept(time);
    }

    /// Whether the answer to a request that was sent then came soon enough to tell how things are.
    pub(super) fn is_timely(&self, sent: Since, now: Instant) -> bool {
        now <= sent.plus(self.pause())
    }

    /// When to give the next sign of life.
    pub(super) fn heartbeat_due(&self) -> Instant {
        self.renewed.plus(self.pause())
    }

    /// Until when the locks are certain.
    pub(super) fn ends_at(&self) -> Instant {
        self.renewed.plus(self.certain_for())
    }

    /// How long the answer to a sign of life may take.
    pub(super) fn certain_for(&self) -> Duration {
        self.ttl.saturating_sub(self.ttl / 10)
    }

    fn pause(&self) -> Duration {
        self.ttl / 3
    }
}

impl Since {
    /// When this much time has passed, slept or not.
    pub(super) fn plus(self, time: Duration) -> Instant {
        self.at + time.saturating_sub(self.slept)
    }

    pub(super) fn slept(&mut self, time: Duration) {
        self.slept = self.slept.saturating_add(time);
    }
}

impl From<Instant> for Since {
    fn from(at: Instant) -> Self {
        Self { at, slept: Duration::ZERO }
    }
}

impl Clocks {
    pub(crate) fn look() -> Self {
        Self::at(Instant::now(), SystemTime::now())
    }

    fn at(monotonic: Instant, wall: SystemTime) -> Self {
        Self { monotonic, wall }
    }

    /// As if the machine had slept for this long.
    #[cfg(test)]
    pub(super) fn behind_by(self, time: Duration) -> Self {
        Self { wall: self.wall - time, ..self }
    }

    /// For how long the machine has slept since they were last looked at.
    pub(crate) fn slept(&mut self) -> Duration {
        let Self { monotonic, wall } = Self::look();
        // The monotonic clock is read first and last: however long this thread was kept from going on in
        // between, that is no sleep.
        self.go_on(Self::at(monotonic, wall), Instant::now())
    }

    /// The monotonic clock showed the second time when the wall clock had been read.
    fn go_on(&mut self, next: Self, monotonic: Instant) -> Duration {
        let awake = monotonic.saturating_duration_since(self.monotonic);
        // One that was set back has nothing to say.
        let passed = next.wall.duration_since(self.wall).unwrap_or_default();
        *self = next;
        let slept = passed.saturating_sub(awake);
        if slept < SLEEP_MIN { Duration::ZERO } else { slept }
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
        lease.renew((told + 1_000 * MS).into());
        assert_eq!(lease.ends_at(), told + 3_700 * MS);
    }

    #[test]
    fn an_answer_is_timely_if_it_comes_before_the_next_heartbeat() {
        let sent = Instant::now();
        let lease = Lease::new(3_000 * MS, sent);
        assert!(lease.is_timely(sent.into(), sent));
        assert!(lease.is_timely(sent.into(), sent + 1_000 * MS));
        assert!(!lease.is_timely(sent.into(), sent + 1_001 * MS));
    }

    #[test]
    fn sleep_counts_from_what_was_sent_before_it_and_not_after() {
        let told = Instant::now();
        let mut lease = Lease::new(3_000 * MS, told);
        lease.slept(500 * MS);
        assert_eq!(lease.heartbeat_due(), told + 500 * MS);
        assert_eq!(lease.ends_at(), told + 2_200 * MS);
        lease.slept(1_000 * MS);
        assert_eq!(lease.ends_at(), told + 1_200 * MS);
        // However long it was, the lease has ended by when it began.
        lease.slept(Duration::MAX);
        assert_eq!(lease.ends_at(), told);

        let mut sent = Since::from(told + 1_000 * MS);
        sent.slept(200 * MS);
        assert!(lease.is_timely(sent, told + 1_800 * MS));
        assert!(!lease.is_timely(sent, told + 1_801 * MS));
        lease.renew(sent);
        assert_eq!(lease.ends_at(), told + 3_500 * MS);
    }

    #[test]
    fn a_sleep_is_what_the_wall_clock_is_ahead_by() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let mut clocks = Clocks::at(start, wall);
        // By the monotonic clock before and after, and by the wall clock: what passed.
        let mut slept = |before: u32, wall_ms: i64, after: u32| {
            let passed = u32::try_from(wall_ms.unsigned_abs()).unwrap() * MS;
            let wall = if wall_ms < 0 { wall - passed } else { wall + passed };
            clocks.go_on(Clocks::at(start + before * MS, wall), start + after * MS)
        };
        assert_eq!(slept(1_000, 1_000, 1_000), Duration::ZERO);
        // It is adjusted now and then.
        assert_eq!(slept(2_000, 2_099, 2_000), Duration::ZERO);
        assert_eq!(slept(3_000, 8_099, 3_000), 5_000 * MS);
        // Each sleep is told of once.
        assert_eq!(slept(4_000, 9_099, 4_000), Duration::ZERO);
        // Somebody set it back, by an hour.
        assert_eq!(slept(5_000, -3_590_000, 5_000), Duration::ZERO);
        assert_eq!(slept(6_000, -3_589_000, 6_000), Duration::ZERO);
        // The thread was stopped between two readings: before that of the wall clock, or after it.
        assert_eq!(slept(7_000, -3_578_000, 17_000), Duration::ZERO);
        assert_eq!(slept(18_000, -3_577_000, 28_000), Duration::ZERO);
        assert_eq!(slept(29_000, -3_566_000, 29_000), Duration::ZERO);
    }
}
