//! What happens at the same moment, a thousand times.
//!
//! A wait ends while the holder unlocks. Whoever wins, the server and the books must agree, and
//! nobody may be left with a lock that he does not know of. The moment of the unlock is spread over
//! the time that the end takes, so that the server grants the lock before it hears of the end, after
//! it, and in between, where it says "canceled" and has granted the lock all the same.
//!
//! After each race both sessions go on: a cancel that came late would end one of their calls, the next
//! race's wait among them, or leave one more line in the server's log. For a hundred thousand races in all:
//!
//! ```sh
//! PGLOCK_RACES=34000 cargo test --release --test it races -- --nocapture
//! ```

use std::env;
use std::ops::Add;
use std::thread;
use std::time::{Duration, Instant};

use pglock::{ErrorKind, Lock, Mode};
use pglock_test_cluster::{Cluster, role};
use tokio::runtime::{Builder, Handle};
use tokio::task::spawn_blocking;
use tokio::time::{sleep_until, timeout_at};

use crate::stage::{Stage, soon};

/// Races between two sessions and two others. `PGLOCK_RACES` asks for more than one round of them.
const ROUND: usize = 1_000;
/// How many pairs race at the same time, which adds noise to each of them.
const PAIRS: usize = 4;
/// Before a wait ends, it has to begin.
const WAIT: Duration = Duration::from_millis(3);

#[test]
fn a_wait_that_times_out_races_with_the_unlock() {
    race(End::Timeout);
}

#[test]
fn a_wait_that_is_dropped_races_with_the_unlock() {
    race(End::Drop);
}

#[test]
fn a_wait_that_is_cancelled_races_with_the_unlock() {
    race(End::Cancel);
}

/// Races as often as was asked for, and until every outcome was seen, which takes one round, or a few on
/// a machine that is busy with something else.
fn race(end: End) {
    let wanted = env::var("PGLOCK_RACES").ok().and_then(|races| races.parse().ok());
    let wanted = wanted.unwrap_or(ROUND).max(ROUND);
    let mut tally = Tally::default();
    while tally.races() < wanted || !tally.is_complete() {
        assert!(
            tally.races() < 5 * wanted,
            "some outcome was never or rarely seen, so it was no race: {end:?}, {tally:?}"
        );
        tally = tally + race_in_pairs(end);
    }
    println!("{end:?}: {tally:?}");
}

fn race_in_pairs(end: End) -> Tally {
    let pairs = thread::scope(|scope| {
        [(); PAIRS]
            .map(|()| scope.spawn(|| in_a_runtime(Pair::race(end, ROUND / PAIRS))))
            .map(|pair| pair.join().unwrap())
    });
    pairs.into_iter().fold(Tally::default(), Tally::add)
}

fn in_a_runtime<T>(work: impl Future<Output = T>) -> T {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// How the waiter's wait ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Timeout,
    Drop,
    Cancel,
}

impl End {
    /// Waits for the lock until this time, and says whether it was acquired.
    async fn wait(self, lock: &mut Lock, until: Instant) -> bool {
        match self {
            Self::Timeout => {
                let timeout = until.saturating_duration_since(Instant::now());
                lock.lock_timeout(timeout).await.unwrap()
            }
            Self::Drop => match timeout_at(until.into(), lock.lock()).await {
                Ok(locked) => locked.map(|()| true).unwrap(),
                Err(_) => false,
            },
            Self::Cancel => {
                let canceller = lock.canceller();
                let cancelling = async {
                    sleep_until(until.into()).await;
                    canceller.cancel().await;
                };
                match tokio::join!(lock.lock(), cancelling).0 {
                    Ok(()) => true,
                    Err(error) if error.kind() == ErrorKind::Cancelled => false,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

/// How the races ended, as the server sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// The lock was granted, and no cancel came.
    granted: usize,
    /// The request was cancelled, and the lock not granted.
    cancelled: usize,
    /// The server granted the lock, and answered "canceled".
    both: usize,
}

impl Tally {
    fn races(self) -> usize {
        self.granted + self.cancelled + self.both
    }

    fn is_complete(self) -> bool {
        let often = self.races() / 10;
        self.granted > often && self.cancelled > often && self.both > 0
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            granted: self.granted + other.granted,
            cancelled: self.cancelled + other.cancelled,
            both: self.both + other.both,
        }
    }
}

/// Alice holds the key, and Bob waits for it.
struct Pair {
    stage: Stage<'static>,
    alice: Lock,
    bob: Lock,
    log: Log,
}

impl Pair {
    async fn race(end: End, races: usize) -> Tally {
        let mut stage = Stage::new();
        let (alice, bob) = (stage.lock("alice").await, stage.lock("bob").await);
        let log = Log::of(stage.pid("bob"));
        let mut pair = Self { stage, alice, bob, log };
        pair.alice.lock().await.unwrap();

        let latency = pair.latency(end).await;
        pair.log.withdrawn();
        let mut tally = Tally::default();
        for place in 0..races {
            pair = soon(pair.race_once(end, spread(place, races, latency))).await;
            tally = tally + pair.log.withdrawn().of_one_race();
        }
        tally
    }

    /// How long it takes to end a wait.
    async fn latency(&mut self, end: End) -> Duration {
        let mut latencies = Vec::new();
        for _ in 0..11 {
            let until = Instant::now() + WAIT;
            assert!(!end.wait(&mut self.bob, until).await, "acquired what is held");
            self.settled().await;
            latencies.push(until.elapsed());
        }
        latencies.sort();
        latencies[latencies.len() / 2]
    }

    /// Alice unlocks after this delay, while Bob's wait ends.
    async fn race_once(mut self, end: End, delay: Duration) -> Self {
        let begun = Instant::now();
        let releasing = spawn_blocking({
            let runtime = Handle::current();
            move || {
                // Tokio's timers count in milliseconds, which is too coarse here.
                thread::sleep((begun + delay).saturating_duration_since(Instant::now()));
                runtime.block_on(self.alice.unlock()).unwrap();
                self.alice
            }
        });
        let (acquired, alice) = tokio::join!(end.wait(&mut self.bob, begun + WAIT), releasing);
        let mut pair = Self { alice: alice.unwrap(), ..self };
        pair.settled().await;
        pair.assert_agreement(acquired);
        pair.begin_again(acquired).await;
        pair
    }

    /// This mode is not held: the call only waits until a dropped request is settled.
    async fn settled(&mut self) {
        let unlocked = self.bob.unlock_shared().await;
        assert_eq!(unlocked.unwrap_err().kind(), ErrorKind::NotHeld);
    }

    fn assert_agreement(&mut self, acquired: bool) {
        assert_eq!(self.alice.level(Mode::Exclusive), 0);
        assert_eq!(self.bob.level(Mode::Exclusive), u64::from(acquired));
        let expected: &[&str] = if acquired { &["bob holds exclusive"] } else { &[] };
        assert_eq!(self.stage.locks(), expected);
    }

    /// Both take their next lock, Alice the last.
    async fn begin_again(&mut self, acquired: bool) {
        if acquired {
            self.bob.unlock().await.unwrap();
        }
        for lock in [&mut self.alice, &mut self.bob] {
            assert!(lock.try_lock().await.unwrap());
            lock.unlock().await.unwrap();
        }
        assert!(self.alice.try_lock().await.unwrap());
    }
}

/// When the holder unlocks, in time since the wait began: from just before its end until the end has
/// had its effect.
fn spread(place: usize, places: usize, latency: Duration) -> Duration {
    let share = |part: usize, whole: usize| {
        latency * u32::try_from(part).unwrap() / u32::try_from(whole).unwrap()
    };
    WAIT.saturating_sub(share(1, 2)) + share(place * 3, places * 2)
}

/// What the server logs of a process.
struct Log {
    process: String,
    /// Up to where it was read.
    position: u64,
}

impl Log {
    fn of(process: i32) -> Self {
        Self { process: format!("[{process}]"), position: 0 }
    }

    /// What it says, since it was last asked, of requests that were withdrawn.
    fn withdrawn(&mut self) -> Withdrawn {
        let log = Cluster::default_cluster().log_since(&mut self.position);
        let mut withdrawn = Withdrawn::default();
        for line in log.lines().filter(|line| line.contains(&self.process)) {
            let says = |text| usize::from(line.contains(text));
            withdrawn.cancelled += says("canceling statement due to user request");
            withdrawn.nothing_to_release += says("you don't own a lock of type");
        }
        withdrawn
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Withdrawn {
    cancelled: usize,
    /// The unlock that settled the request had nothing to release.
    nothing_to_release: usize,
}

impl Withdrawn {
    /// A race has one wait, and nothing else may be hit by its cancel.
    fn of_one_race(self) -> Tally {
        match (self.cancelled, self.nothing_to_release) {
            (0, 0) => Tally { granted: 1, ..Tally::default() },
            (1, 1) => Tally { cancelled: 1, ..Tally::default() },
            (1, 0) => Tally { both: 1, ..Tally::default() },
            _ => panic!("a cancel hit another request than the wait: {self:?}"),
        }
    }
}

#[tokio::test]
async fn when_an_unlock_has_returned_the_lock_is_free() {
    let stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    for turn in 0..1_000 {
        assert!(alice.try_lock().await.unwrap(), "in turn {turn}");
        alice.unlock().await.unwrap();
        std::mem::swap(&mut alice, &mut bob);
    }
}

#[tokio::test]
async fn when_a_close_has_returned_the_lock_is_free() {
    let stage = Stage::new();
    let cluster = Cluster::default_cluster();
    let urls = [cluster.url_for(&role::TRUST), cluster.socket_url_for(&role::TRUST)];
    let configs = urls.map(|url| stage.config_by(&url, "alice"));
    let mut bob = stage.lock("bob").await;
    for turn in 0..1_000 {
        let mut alice = Lock::connect(&configs[turn % 2], stage.key()).await.unwrap();
        assert!(alice.try_lock().await.unwrap());
        alice.close().await.unwrap();
        assert!(bob.try_lock().await.unwrap(), "in turn {turn}");
        bob.unlock().await.unwrap();
    }
}
