//! The machine against a model of the server, in simulated time, from a seed.
//!
//! The model has one lock that somebody else takes and gives back, delays in both directions, cancel
//! signals that come early, late or never, and answers cut anywhere. Where a pooler stands before the
//! server, its pool may be empty for a while, or it lends the session another process than before. Under a
//! lease, which every other session has, the caller works between its requests, or its machine sleeps,
//! answers may be late, and the server ends a session from which it hears nothing: by then the holder has to know.
//! After each request, what the client believes is compared with what the server knows. A failing seed
//! prints what happened. For a million seeds of each kind:
//!
//! ```sh
//! PGLOCK_SEEDS=1000000 cargo test --release --lib simulation
//! ```
//!
//! [`server`] is one process of the server: commands in, answers out. [`pooler`] says which of them the
//! session has. [`world`] is everything that takes time: the machine, its caller, the wire, and whoever
//! else wants the lock. [`driver`] stands between the machine and the world, where defects are planted to
//! show that they are found.

mod driver;
mod pooler;
mod server;
mod world;

use std::collections::BTreeMap;
#[cfg(feature = "manager")]
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::Case::{
    Confirmed, Expired, HiddenGrant, Lapsed, LateGrant, LeftQueue, Lost, LostCancel, Moved,
    NotServed, Queued, Refused, Regained, RepeatedCancel,
};
use self::driver::Defect;
use self::world::World;
#[cfg(all(unix, feature = "async"))]
pub(super) use self::world::log_in;
#[cfg(feature = "manager")]
use super::advisory::Function;
use super::advisory::{LockId, Means};
#[cfg(feature = "manager")]
use super::choice::Choice;
use super::lease::Lease;
use super::machine::{ANSWER_WITHIN, Action, Ask, Loss, Machine, Outcome, SETTLE_WITHIN};
use crate::key::{Key, Mode};

const LOCK: LockId = LockId { key: Key::bigint(42), mode: Mode::Exclusive };
const SEEDS: u64 = 20_000;
/// In how many a defect has to show itself.
const SEEDS_FOR_DEFECT: u64 = 1_000;
const REQUESTS: u32 = 6;

/// What comes up whatever holds the lock.
const USUAL: [Case; 9] =
    [LostCancel, RepeatedCancel, LateGrant, Regained, Refused, Lost, Confirmed, Expired, Lapsed];

#[test]
fn books_and_server_agree_when_a_session_holds_the_lock() {
    simulate(&calls(), &[HiddenGrant]);
}

#[test]
fn books_and_server_agree_when_a_process_lent_for_the_session_holds_the_lock() {
    simulate(&queries(), &[HiddenGrant, Moved]);
}

#[test]
fn books_and_server_agree_when_a_transaction_holds_the_lock() {
    simulate(&transactions(), &[Queued, LeftQueue, NotServed]);
}

#[test]
fn each_planted_defect_is_found_and_its_script_replays_it() {
    for (defect, expected) in Defect::ALL {
        let all = [calls(), queries(), transactions()];
        for means in all.into_iter().filter(|means| defect.shows_by(means)) {
            let world = |seed| World::new(seed, means.clone(), Some(defect));
            let found =
                (0..SEEDS_FOR_DEFECT).find_map(|seed| Some((seed, world(seed).run().err()?)));
            let Some((seed, problem)) = found else {
                panic!("{defect:?}, {means:?}: not found in {SEEDS_FOR_DEFECT} seeds");
            };
            println!("{defect:?}, {means:?}: found by seed {seed}: {problem}");
            assert!(problem.contains(expected), "{problem}, not {expected}");
            let script = world(seed).script();
            assert!(script.trim_end().ends_with(&problem), "{problem}, but again:\n{script}");
        }
    }
}

#[test]
fn half_an_answer_does_not_renew_a_lease() {
    const TTL: Duration = Duration::from_secs(1);
    let start = Instant::now();
    let lease = Some(Lease::new(TTL, start));
    let mut machine = Machine::new(world::logged_in(), calls(), lease, start);
    machine.ask(Ask::Heartbeat, start).unwrap();
    machine.connection().received().extend_from_slice(b"V\0\0\0\x09\0\0\0\x01\0");
    let loss = machine.poll(start + TTL).unwrap_err();
    assert!(matches!(loss, Loss::Expired(TTL)), "{loss:?}");
}

#[test]
fn the_end_of_a_wait_is_confirmed_by_when_its_caller_has_to_be_told() {
    const TTL: Duration = Duration::from_secs(3_600);
    let start = Instant::now();
    let granted = start + TTL / 2;
    let until = granted + Duration::from_millis(1);
    let mut machine =
        Machine::new(world::logged_in(), calls(), Some(Lease::new(TTL, start)), start);
    machine.ask(Ask::Lock { lock: LOCK, until: Some(until), slice: None }, start).unwrap();
    // It is granted a moment before that, and the heartbeat that follows is not answered.
    machine.connection().received().extend_from_slice(b"V\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
    let tell_by = until + SETTLE_WITHIN;
    let waits = machine.poll(granted).unwrap();
    assert_eq!(waits, Action::Wait { until: Some(tell_by) });
    let loss = machine.poll(tell_by).unwrap_err();
    assert!(matches!(loss, Loss::Silent(SETTLE_WITHIN)), "{loss:?}");
}

#[test]
fn a_batch_has_its_own_time_whatever_the_request_before_had() {
    let start = Instant::now();
    let mut machine = Machine::new(world::logged_in(), calls(), None, start);
    machine.ask(Ask::Lock { lock: LOCK, until: Some(start), slice: None }, start).unwrap();
    machine.connection().received().extend_from_slice(b"V\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
    assert_eq!(machine.poll(start).unwrap(), Action::Done(Outcome::Acquired));

    let later = start + 2 * SETTLE_WITHIN;
    machine.ask(Ask::Look("SELECT ARRAY[true]".into()), later).unwrap();
    // All of the answer but its end.
    let row = b"T\0\0\0\x1a\0\x01?\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0D\0\0\0\x0d\0\x01\0\0\0\x03{t}";
    machine.connection().received().extend_from_slice(row);
    let waits = machine.poll(later).unwrap();
    assert_eq!(waits, Action::Wait { until: Some(later + ANSWER_WITHIN) });
}

/// Only a manager has one lock of several tried.
#[cfg(feature = "manager")]
#[test]
fn of_several_locks_the_one_that_was_acquired_is_released_if_nobody_wants_it_any_more() {
    const TTL: Duration = Duration::from_secs(3);
    let start = Instant::now();
    let choice = Choice { class: 7, objects: vec![1, 2, 3], unless_taken: None };
    let acquired = choice.locks().nth(1).unwrap();
    let mut machine =
        Machine::new(world::logged_in(), calls(), Some(Lease::new(TTL, start)), start);
    machine.ask(Ask::TryAny(Arc::new(choice)), start).unwrap();
    let answer = |machine: &mut Machine, bytes: &[u8], at| {
        let sent = machine.connection().outgoing().len();
        machine.connection().sent(sent);
        machine.connection().received().extend_from_slice(bytes);
        machine.poll(at).unwrap()
    };
    // It took so long that a heartbeat has to confirm it.
    let row = b"T\0\0\0\x2e\0\x02?\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
        ?\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
        D\0\0\0\x10\0\x02\0\0\0\x011\0\0\0\x012C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
    let late = start + TTL / 2;
    assert!(matches!(answer(&mut machine, row, late), Action::Wait { .. }));
    machine.abandon(late);
    let alive = b"V\0\0\0\x09\0\0\0\x01\0Z\0\0\0\x05I";
    assert!(matches!(answer(&mut machine, alive, late), Action::Wait { .. }));
    let settles = machine.connection().outgoing().to_vec();
    let mut other = world::logged_in();
    calls().ask(Function::Settle, acquired, &mut other).unwrap();
    assert_eq!(settles, other.outgoing());
}

fn calls() -> Means {
    Means::Calls
}

fn queries() -> Means {
    Means::Queries { process_id: server::HOME }
}

fn transactions() -> Means {
    Means::Transaction { begin: String::from(server::BEGIN), process_id: None }
}

fn simulate(means: &Means, unusual: &[Case]) {
    let seeds = std::env::var("PGLOCK_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let mut seen = BTreeMap::new();
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let mut world = World::new(seed, means.clone(), None);
        if let Err(problem) = world.run() {
            let script = World::new(seed, means.clone(), None).script();
            panic!("{means:?}, seed {seed}: {problem}\n{script}");
        }
        for case in world.seen() {
            *seen.entry(*case).or_insert(0) += 1;
        }
    }
    // Otherwise the simulation would show less than it seems to.
    for case in USUAL.iter().chain(unusual) {
        let count = seen.get(case).copied().unwrap_or(0);
        assert!(count > 20, "{case:?} hardly came up: {seen:?}");
    }
}

/// The cases for which the machine is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// The server ended a wait with an error, and had granted the lock.
    HiddenGrant,
    /// A signal found the process between two commands.
    LostCancel,
    /// A second `CancelRequest` was sent for a wait.
    RepeatedCancel,
    /// The lock was granted while a `CancelRequest` was under way.
    LateGrant,
    /// A caller out of time got the lock all the same.
    Regained,
    /// A command failed that nobody cancelled.
    Refused,
    /// The session was lost, for a reason that is none of those below.
    Lost,
    /// The session was lost because its lease was, as far as the holder can know.
    Expired,
    /// The server ended the session because its lease was over.
    Lapsed,
    /// A heartbeat confirmed an outcome that may have been too old.
    Confirmed,
    /// The session was lost because another process answered.
    Moved,
    /// The session was lost because the pooler had no process for it.
    NotServed,
    /// A transaction waited in the pooler's queue.
    Queued,
    /// Its caller gave up meanwhile.
    LeftQueue,
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn up_to(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.up_to(n) == 0
    }
}
