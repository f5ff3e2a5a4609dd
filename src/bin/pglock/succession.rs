//! When a keeper follows another one that has failed.

use std::time::Duration;

use tokio::time::Instant;

/// How many that fail soon may follow each other. With the pauses, that takes twelve seconds.
const ATTEMPTS_MAX: u32 = 8;

/// The unit of the pauses. They are 0, 1, 3, 7, ... of it: one that was killed has a successor at once.
const PAUSE: Duration = Duration::from_millis(50);

/// One that has stood by for so long did not fail for the reason that those before it had.
const STEADY: Duration = Duration::from_secs(1);

/// Of keepers that fail again and again, each is given more time than the one before: the system may be short
/// of something. In the end there are no more: it is better to know that nobody can stand by.
pub(crate) struct Succession {
    /// How many in a row have failed soon.
    failures: u32,
    /// When the last one was due.
    last: Instant,
    /// When the next one is, if one has failed.
    pub(crate) due: Option<Instant>,
}

impl Succession {
    pub(crate) fn new(now: Instant) -> Self {
        Self { failures: 0, last: now, due: None }
    }

    /// One has failed, or could not be started. Tells when the next one is due, if there is to be one.
    pub(crate) fn follow(&mut self, now: Instant) -> Option<Instant> {
        if now.duration_since(self.last) >= STEADY {
            self.failures = 0;
        }
        if self.failures == ATTEMPTS_MAX {
            return None;
        }
        self.last = now + PAUSE * ((1 << self.failures) - 1);
        self.failures += 1;
        self.due = Some(self.last);
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_come_to_an_end() {
        let mut now = Instant::now();
        let mut succession = Succession::new(now);
        let mut pauses = Vec::new();
        while let Some(due) = succession.follow(now) {
            pauses.push(due.duration_since(now).as_millis());
            now = due;
        }
        assert_eq!(pauses, [0, 50, 150, 350, 750, 1550, 3150, 6350]);
    }

    #[test]
    fn one_that_was_steady_has_a_successor_at_once() {
        let mut now = Instant::now();
        let mut succession = Succession::new(now);
        for _ in 0..100 {
            now += STEADY;
            assert_eq!(succession.follow(now), Some(now));
        }
    }
}
