//! Pauses before something that came to nothing is tried again.

use std::time::{Duration, Instant};

/// When to do something again that came to nothing.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    pause: Duration,
    pub(super) due: Option<Instant>,
    random: u64,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self { first, longest, pause: first, due: None, random: seed | 1 }
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
        self.pause = (self.pause * 2).min(self.longest);
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
