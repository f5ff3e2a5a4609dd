//! Pauses before something that came to nothing is tried again.

use std::time::{Duration, Instant};

/// When to do something again that came to nothing.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    pause: Duration,
    /// The next pause is longer by one part of so many.
    longer_by: u32,
    pub(super) due: Option<Instant>,
    random: u64,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration, longer_by: u32, seed: u64) -> Self {
        Self { first, longest, pause: first, longer_by, due: None, random: seed | 1 }
    }

    pub(super) fn reset(&mut self) {
        self.pause = self.first;
        self.due = None;
    }

    /// Takes a pause that is longer than the last one, and not the same for everybody. One that is being
    /// taken is not made longer.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.put_off_in(1, now);
    }

    /// The same, for one of so many parts of what is to be done within the pause.
    pub(super) fn put_off_in(&mut self, parts: u32, now: Instant) {
        if self.due.is_some_and(|due| due > now) {
            return;
        }
        // Xorshift (Marsaglia, 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let percent = 50 + u32::try_from(self.random % 51).unwrap_or(50);
        self.due = Some(now + self.pause * percent / 100 / parts);
        self.pause = (self.pause + self.pause / self.longer_by).min(self.longest);
    }

    /// Something has changed for the better.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.pause = self.first;
        self.due = self.due.map(|due| due.min(now + self.first));
    }

    /// Whether the pause is over, which ends it.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The pause that is taken now, in the least and the most time that it may be.
    fn assert_pause(backoff: &Backoff, now: Instant, most: Duration) {
        let pause = backoff.due.unwrap() - now;
        assert!(most / 2 <= pause && pause <= most, "{pause:?} instead of up to {most:?}");
    }

    #[test]
    fn pauses_grow_up_to_the_longest_and_begin_anew_after_news() {
        let mut now = Instant::now();
        let mut backoff = Backoff::new(10 * MS, 100 * MS, 1, 7);
        for most in [10, 20, 40, 80, 100, 100] {
            backoff.put_off(now);
            assert_pause(&backoff, now, most * MS);
            // One that is being taken is not made longer.
            let due = backoff.due;
            backoff.put_off(now + MS);
            assert_eq!(backoff.due, due);
            now = due.unwrap();
            assert!(backoff.is_due(now) && !backoff.is_due(now));
        }
        backoff.put_off(now);
        assert_pause(&backoff, now, 100 * MS);
        backoff.hurry(now);
        assert_eq!(backoff.due, Some(now + 10 * MS));
        backoff.is_due(now + 10 * MS);
        backoff.put_off(now);
        assert_pause(&backoff, now, 10 * MS);
        backoff.reset();
        assert_eq!(backoff.due, None);
        // News makes no pause where there is none.
        backoff.hurry(now);
        assert_eq!(backoff.due, None);
    }

    #[test]
    fn what_is_done_in_parts_is_done_within_the_pause() {
        let now = Instant::now();
        let mut backoff = Backoff::new(10 * MS, 100 * MS, 1, 7);
        for most in [10, 20, 40] {
            backoff.put_off_in(5, now);
            assert_pause(&backoff, now, most * MS / 5);
            backoff.is_due(now + most * MS);
        }
    }
}
