//! Several processes contend for one lock, or the tasks of each share a manager and contend for many, while
//! their network, their servers and they themselves are struck by faults; afterwards their histories are
//! judged. And [crashes], one after another.
//!
//! - `PGLOCK_FAULTS_SECONDS`: how long they do; by default a minute for one lock, and half of it for many.
//! - `PGLOCK_FAULTS_SEED`: which faults strike in which order. The test prints the seed that it took.
//! - `PGLOCK_CRASHES`: how often the server crashes; a few times by default.
//!
//! A binary of its own, since its faults would disturb other tests, and their load its timing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what it expects, and ends where that does not hold"
)]

mod chaos;
mod contender;
mod crashes;
mod crowd;
mod history;
mod processes;
mod random;

use std::env;
use std::path::Path;
use std::time::{Duration, SystemTime};

use chaos::Chaos;
use contender::Part;
use processes::Folder;

#[test]
fn a_lock_has_one_holder_at_a_time_through_all_faults() {
    const TEST: &str = "a_lock_has_one_holder_at_a_time_through_all_faults";
    if let Some(part) = Part::assigned() {
        return part.play(Part::contend);
    }
    let journals = histories(TEST, 60);
    judge(journals.path());
}

#[test]
fn the_locks_of_managers_have_one_holder_at_a_time_through_all_faults() {
    const TEST: &str = "the_locks_of_managers_have_one_holder_at_a_time_through_all_faults";
    if let Some(part) = Part::assigned() {
        return part.play(crowd::contend);
    }
    let journals = histories(TEST, 30);
    for key in 0..crowd::KEYS {
        judge(&crowd::journals(journals.path(), key));
    }
}

/// What came of it when this test was started again in other processes, for its [`Part`]s.
fn histories(test: &'static str, seconds: u64) -> Folder {
    let duration = Duration::from_secs(number("PGLOCK_FAULTS_SECONDS").unwrap_or(seconds));
    let seed = number("PGLOCK_FAULTS_SEED").unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        u64::from(since.subsec_nanos())
    });
    println!("PGLOCK_FAULTS_SEED={seed}");
    Chaos::new(test, seed).reign(duration)
}

fn judge(journals: &Path) {
    match history::judge(journals) {
        Ok(verdict) => println!("{verdict}"),
        Err(complaints) => panic!("{}: {complaints}", journals.display()),
    }
}

/// What a variable of the environment says, if it is set.
fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a whole number"))
}
