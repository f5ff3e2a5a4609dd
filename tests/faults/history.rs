//! What the contenders knew, and whether it can have been true.
//!
//! All read one clock, that of the system: it is the only one whose readings mean the same in every
//! process without unsafe code. It may be set meanwhile, which [`Watch`] notices.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use pglock::Fence;

/// Few for as many seconds as the contenders have at the least, on a busy machine too.
const HOLDS_MIN: usize = 3;

/// Since the beginning of the system's clock.
pub(crate) type Time = Duration;

pub(crate) fn now() -> Time {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// The line of a journal that says that the lock was had, now.
pub(crate) fn taken(token: Fence, now: Time) -> String {
    format!("taken {} {token}\n", now.as_nanos())
}

/// The line of a journal that says that the lock was had then.
pub(crate) fn certain(then: Time) -> String {
    format!("certain {}\n", then.as_nanos())
}

/// Notices if the clock is set: nothing can be said about what is before and what after then.
pub(crate) struct Watch {
    looked: (Time, Instant),
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { looked: (now(), Instant::now()) }
    }

    /// To be called every few seconds: clocks that are kept right drift apart a little.
    pub(crate) fn look(&mut self) {
        let (time, instant) = (now(), Instant::now());
        let by_clock = time.saturating_sub(self.looked.0);
        let off = by_clock.abs_diff(instant - self.looked.1);
        assert!(off < Duration::from_millis(50), "the system's clock was set, by about {off:?}");
        self.looked = (time, instant);
    }
}

/// From when to when a contender was certain that it had the lock.
struct Hold {
    contender: String,
    token: Fence,
    begun: Time,
    last: Time,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { contender, token, begun, last } = self;
        write!(f, "{contender} with {token} from {begun:?} to {last:?}")
    }
}

/// Complains if two holds overlap, or if a token is not higher than that of the hold before; else says
/// how much there was to judge.
pub(crate) fn judge(journals: &Path) -> Result<String, String> {
    let mut holds = Vec::new();
    let mut tokens = BTreeSet::new();
    let mut unsure = 0;
    let mut complaints = String::new();
    for entry in fs::read_dir(journals).unwrap() {
        let path = entry.unwrap().path();
        let contender = path.file_name().unwrap().to_string_lossy().into_owned();
        for (token, begun, last) in read(&fs::read_to_string(&path).unwrap()) {
            if !tokens.insert(token) {
                writeln!(complaints, "{token} was given twice, also to {contender}").unwrap();
            }
            match last {
                Some(last) => holds.push(Hold { contender: contender.clone(), token, begun, last }),
                // It may have been frozen before it read the time at which it had the lock.
                None => unsure += 1,
            }
        }
    }
    holds.sort_by_key(|hold| hold.begun);
    for pair in holds.windows(2) {
        let [first, second] = pair else { continue };
        let overlap = first.last.saturating_sub(second.begun);
        if !overlap.is_zero() {
            writeln!(complaints, "two held the lock for {overlap:?}: {first}, {second}").unwrap();
        }
        if first.token >= second.token {
            writeln!(complaints, "the tokens do not rise: {first}, {second}").unwrap();
        }
    }
    let count = holds.len();
    // Else nothing was put to the test.
    if count < HOLDS_MIN {
        writeln!(complaints, "only {count} holds").unwrap();
    }
    if !complaints.is_empty() {
        return Err(complaints);
    }
    Ok(format!("{count} holds, none of which overlap, and {unsure} that were lost at once"))
}

/// The holds in a journal: token, beginning, and the last certain time.
fn read(journal: &str) -> Vec<(Fence, Time, Option<Time>)> {
    let mut holds: Vec<(Fence, Time, Option<Time>)> = Vec::new();
    for line in journal.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let time = |text: &str| Duration::from_nanos(text.parse().unwrap());
        match (words.as_slice(), holds.last_mut()) {
            (["taken", now, token], _) => holds.push((token.parse().unwrap(), time(now), None)),
            (["certain", then], Some(hold)) => hold.2 = Some(time(then)),
            _ => panic!("{line:?} in a journal"),
        }
    }
    holds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::Folder;

    /// The verdict on journals of holds: from when to when in milliseconds, and the token.
    fn judged(journals: &[&[(u64, u64, u64)]]) -> Result<String, String> {
        let folder = Folder::new();
        for (number, holds) in journals.iter().enumerate() {
            let mut text = String::new();
            for (begun, last, token) in *holds {
                let token: Fence = format!("{token:024X}").parse().unwrap();
                text += &taken(token, Duration::from_millis(*begun));
                text += &certain(Duration::from_millis(*last));
            }
            fs::write(folder.path().join(number.to_string()), text).unwrap();
        }
        judge(folder.path())
    }

    #[test]
    fn only_holds_that_do_not_overlap_and_tokens_that_rise_pass() {
        assert!(judged(&[&[(1, 2, 1), (5, 6, 3)], &[(3, 4, 2)]]).is_ok());
        for (journals, complaint) in [
            ([[(1, 4, 1), (5, 6, 3)], [(3, 4, 2), (7, 8, 4)]], "two held the lock for 1ms"),
            ([[(1, 2, 1), (5, 6, 2)], [(3, 4, 3), (7, 8, 4)]], "the tokens do not rise"),
            ([[(1, 2, 1), (5, 6, 2)], [(3, 4, 1), (7, 8, 4)]], "was given twice"),
        ] {
            let verdict = judged(&[&journals[0], &journals[1]]).unwrap_err();
            assert!(verdict.contains(complaint), "{verdict}");
        }
        assert_eq!(judged(&[&[(1, 2, 1)]]).unwrap_err(), "only 1 holds\n");
    }
}
