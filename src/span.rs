//! A length of time, as a message tells it.

use std::fmt;
use std::time::Duration;

/// In seconds or, where there is a fraction, in milliseconds: all that a limit of ours can have. The standard
/// library has the same and more, for 2 kB.
pub(crate) struct Span(pub(crate) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_nanos() {
            0 => write!(f, "{}s", self.0.as_secs()),
            _ => write!(f, "{}ms", milliseconds(self.0)),
        }
    }
}

/// Half a billion years are the most.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_in_seconds_or_milliseconds() {
        for (milliseconds, told) in
            [(0, "0s"), (1, "1ms"), (1_000, "1s"), (2_500, "2500ms"), (86_400_000, "86400s")]
        {
            assert_eq!(Span(Duration::from_millis(milliseconds)).to_string(), told);
        }
        assert_eq!(Span(Duration::from_nanos(1)).to_string(), "0ms");
    }
}
