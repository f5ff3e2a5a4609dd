//! What a manager has done, in numbers.

use std::time::Duration;

/// The least bound of a wait's time is 2 to this power, in microseconds; each further one is twice the one
/// before.
const FIRST_BOUND_LOG2: u32 = 4;
/// How many bounds there are.
const BOUNDS: usize = 27;

/// What a [`LockManager`](crate::LockManager) has, and what it has done: the answer of
/// [`LockManager::stats`](crate::LockManager::stats).
///
/// The first five say how things are at the moment. The others have been counted since the manager was made,
/// and never go down.
///
/// Every request is waiting, or was granted, or was answered that the lock is busy, or failed, or was given
/// up: `requests` is the sum of these. A request is for one lock, or for any one of several: a call may make
/// more than one.
///
/// # Examples
///
/// ```no_run
/// # fn example(manager: pglock::LockManager) {
/// let stats = manager.stats();
/// println!("{} keys held, {} requests waiting", stats.held, stats.waiting);
/// for (bound, count) in stats.wait_times.buckets() {
///     println!("{count} waited for up to {bound:?}");
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Connections to the server: being made, there, or being ended.
    pub sessions: usize,
    /// Keys that are held at the server.
    pub held: usize,
    /// Guards on them. Those on a session that was lost do not count.
    pub guards: usize,
    /// Requests that have not been answered.
    pub waiting: u64,
    /// Keys that requests wait for without a session that could wait for them at the server: there are too
    /// few, or none can be had at the moment. If this stays above 0, allow more by
    /// [`max_sessions`](crate::LockManagerBuilder::max_sessions).
    pub crowded_out: usize,

    /// Requests for a lock.
    pub requests: u64,
    /// Those that got it.
    pub granted: u64,
    /// Those of the granted to which the lock went from a task of this process, without the server being
    /// asked. Readers who join others do not count.
    pub handed_over: u64,
    /// Requests that do not wait, for a lock that was not free.
    pub busy: u64,
    /// Requests that failed: for an error of the server, because no session could be had, or because the
    /// manager was closed.
    pub failed: u64,
    /// Requests that were taken back: their time was over, or their future was dropped.
    pub given_up: u64,
    /// Waits at the server that were ended: because nobody wanted them any more, or because their connection
    /// went to another key. Each is a cancel request. Through a pooler, tries that nobody wants any more count as
    /// well, and what is still in the pooler's queue is ended without one.
    pub cancels: u64,
    /// Connections that were made.
    pub connects: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Sessions that ended without being told to, and with them the locks that they held.
    pub lost_sessions: u64,
    /// For how long those that were granted had waited.
    pub wait_times: WaitTimes,
}

/// How many requests waited for how long before they were granted, in ranges that double: up to 16 µs, up to
/// 32 µs, and so on until 2^30 µs (about 18 minutes), and longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitTimes {
    within: [u64; BOUNDS],
    longer: u64,
    total: Duration,
}

impl WaitTimes {
    /// How many were granted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.within.iter().sum::<u64>() + self.longer
    }

    /// The sum of their times.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The longest time of each range, which is still in it, and how many times are in the range. The last
    /// range has no end.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = (FIRST_BOUND_LOG2..).map(|log2| Some(Duration::from_micros(1 << log2)));
        bounds.zip(self.within).chain([(None, self.longer)])
    }

    pub(super) fn add(&mut self, waited: Duration) {
        let micros = waited.as_nanos().div_ceil(1_000).max(1 << FIRST_BOUND_LOG2);
        let log2 = micros.checked_next_power_of_two().map(u128::trailing_zeros);
        let range = log2.and_then(|log2| usize::try_from(log2 - FIRST_BOUND_LOG2).ok());
        match range.and_then(|range| self.within.get_mut(range)) {
            Some(count) => *count += 1,
            None => self.longer += 1,
        }
        self.total = self.total.saturating_add(waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_range_whose_bound_it_does_not_exceed() {
        let (micro, nano) = (Duration::from_micros(1), Duration::from_nanos(1));
        let longest = Duration::from_micros(1 << 30);
        for (waited, bound) in [
            (Duration::ZERO, Some(16 * micro)),
            (16 * micro, Some(16 * micro)),
            (16 * micro + nano, Some(32 * micro)),
            (33 * micro, Some(64 * micro)),
            (Duration::from_millis(1), Some(1_024 * micro)),
            (longest, Some(longest)),
            (longest + nano, None),
            (Duration::MAX, None),
        ] {
            let mut times = WaitTimes::default();
            times.add(waited);
            let counted: Vec<_> = times.buckets().filter(|(_, count)| *count > 0).collect();
            assert_eq!(counted, [(bound, 1)], "{waited:?}");
            assert_eq!((times.count(), times.total()), (1, waited));
        }
    }

    #[test]
    fn there_is_a_range_for_every_time() {
        let bounds: Vec<_> = WaitTimes::default().buckets().map(|(bound, _)| bound).collect();
        assert_eq!(bounds.len(), BOUNDS + 1);
        assert_eq!(bounds.last(), Some(&None));
        assert_eq!(bounds[BOUNDS - 1], Some(Duration::from_micros(1 << 30)));
    }
}
