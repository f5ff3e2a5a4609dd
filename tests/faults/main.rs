//! Several processes contend for one lock while their network, their servers and they themselves are
//! struck by faults; afterwards their histories are judged. And [crashes], one after another.
//!
//! - `PGLOCK_FAULTS_SECONDS`: how long they do; a minute by default.
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
mod history;
mod processes;
mod random;

use std::env;
use std::time::{Duration, SystemTime};

use chaos::Chaos;
use contender::Part;

/// How this test is started again in other processes, for its [`Part`]s.
const TEST: &str = "a_lock_has_one_holder_at_a_time_through_all_faults";

#[test]
fn a_lock_has_one_holder_at_a_time_through_all_faults() {
    if let Some(part) = Part::assigned() {
        return part.play();
    }
    let duration = Duration::from_secs(number("PGLOCK_FAULTS_SECONDS").unwrap_or(60));
    let seed = number("PGLOCK_FAULTS_SEED").unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        u64::from(since.subsec_nanos())
    });
    println!("PGLOCK_FAULTS_SEED={seed}");
    let journals = Chaos::new(seed).reign(duration);
    match history::judge(journals.path()) {
        Ok(verdict) => println!("{verdict}"),
        Err(complaints) => panic!("{complaints}"),
    }
}

/// What a variable of the environment says, if it is set.
fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a whole number"))
}
