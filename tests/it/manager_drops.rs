//! Every call of a manager, of what it gives out and of what is built on it can be dropped at each point
//! where it waits, and leaves nothing behind.
//!
//! A call is polled never, once, twice and so on until it completes before it is dropped. Each time the
//! server soon has the locks that somebody has a guard for, and the next call works.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use pglock::{Key, LockManager, Result, Semaphore};
use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, eventually, role};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::drops;
use crate::stage::{PATIENCE, Stage, poll_times, soon};

/// Long enough for a request to be queued, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(20);
/// More polls than any call needs.
const POLLS_MAX: usize = 1_000;

/// Of which the one in the middle may be busy.
type Keys = [Key; 3];

/// A call of Bob's that is to be dropped.
struct Call {
    owner: &'static str,
    name: &'static str,
    begin: Begin,
}

type Begin = fn(LockManager, Keys) -> Pin<Box<dyn Future<Output = Result<()>>>>;

const fn call(owner: &'static str, name: &'static str, begin: Begin) -> Call {
    Call { owner, name, begin }
}

const MANAGER: &str = "pglock::LockManager";
const GUARD: &str = "pglock::Guard";
const SET: &str = "pglock::GuardSet";
const ELECTION: &str = "pglock::Election";
const LEADERSHIP: &str = "pglock::Leadership";
const OBSERVER: &str = "pglock::Observer";
const SEMAPHORE: &str = "pglock::Semaphore";
const PERMIT: &str = "pglock::Permit";

/// All that wait, but [`LockManager::close`].
const CALLS: [Call; 35] = [
    call(MANAGER, "try_lock", |bob, [_, key, _]| {
        Box::pin(async move { bob.try_lock(key).await.map(drop) })
    }),
    call(MANAGER, "try_lock_shared", |bob, [_, key, _]| {
        Box::pin(async move { bob.try_lock_shared(key).await.map(drop) })
    }),
    call(MANAGER, "lock", |bob, [_, key, _]| {
        Box::pin(async move { bob.lock(key).await.map(drop) })
    }),
    call(MANAGER, "lock_shared", |bob, [_, key, _]| {
        Box::pin(async move { bob.lock_shared(key).await.map(drop) })
    }),
    call(MANAGER, "lock_timeout", |bob, [_, key, _]| {
        Box::pin(async move { bob.lock_timeout(key, SHORT).await.map(drop) })
    }),
    call(MANAGER, "lock_shared_timeout", |bob, [_, key, _]| {
        Box::pin(async move { bob.lock_shared_timeout(key, SHORT).await.map(drop) })
    }),
    call(MANAGER, "inspect", |bob, [_, key, _]| {
        Box::pin(async move { bob.inspect(key).await.map(drop) })
    }),
    call(MANAGER, "lock_all", |bob, keys| {
        Box::pin(async move { bob.lock_all(keys).await.map(drop) })
    }),
    call(MANAGER, "try_lock_all", |bob, keys| {
        Box::pin(async move { bob.try_lock_all(keys).await.map(drop) })
    }),
    call(MANAGER, "lock_all_timeout", |bob, keys| {
        Box::pin(async move { bob.lock_all_timeout(keys, SHORT).await.map(drop) })
    }),
    call(GUARD, "unlock", |bob, [_, key, _]| {
        Box::pin(async move { bob.lock(key).await?.unlock().await })
    }),
    call(GUARD, "hold", |bob, [_, key, _]| {
        Box::pin(async move { bob.lock(key).await?.hold(several_turns()).await })
    }),
    call(GUARD, "fencing_token", |bob, [_, key, _]| {
        Box::pin(async move { bob.lock(key).await?.fencing_token().await.map(drop) })
    }),
    call(GUARD, "lost", |bob, [_, key, _]| {
        Box::pin(async move {
            let guard = bob.lock(key).await?;
            // It completes for whoever closes the manager.
            tokio::join!(guard.lost(), bob.close()).1
        })
    }),
    call(SET, "unlock", |bob, keys| {
        Box::pin(async move { bob.lock_all(keys).await?.unlock().await })
    }),
    call(SET, "hold", |bob, keys| {
        Box::pin(async move { bob.lock_all(keys).await?.hold(several_turns()).await })
    }),
    call(SET, "fencing_token", |bob, keys| {
        Box::pin(async move { bob.lock_all(keys).await?.fencing_token().await.map(drop) })
    }),
    call(SET, "lost", |bob, keys| {
        Box::pin(async move {
            let all = bob.lock_all(keys).await?;
            tokio::join!(all.lost(), bob.close()).1
        })
    }),
    call(ELECTION, "campaign", |bob, [_, key, _]| {
        Box::pin(async move { bob.election(key).campaign().await.map(drop) })
    }),
    call(ELECTION, "try_campaign", |bob, [_, key, _]| {
        Box::pin(async move { bob.election(key).try_campaign().await.map(drop) })
    }),
    call(ELECTION, "campaign_timeout", |bob, [_, key, _]| {
        Box::pin(async move { bob.election(key).campaign_timeout(SHORT).await.map(drop) })
    }),
    call(ELECTION, "run", |bob, [_, key, _]| {
        Box::pin(async move { bob.election(key).run(|_| several_turns()).await })
    }),
    call(ELECTION, "leader", |bob, [_, key, _]| {
        Box::pin(async move { bob.election(key).leader().await.map(drop) })
    }),
    call(OBSERVER, "next", |bob, [_, key, _]| {
        Box::pin(async move { bob.election(key).observe().next().await.map(drop) })
    }),
    call(LEADERSHIP, "hold", |bob, [_, key, _]| {
        Box::pin(async move { bob.election(key).campaign().await?.hold(several_turns()).await })
    }),
    call(LEADERSHIP, "resign", |bob, [_, key, _]| {
        Box::pin(async move { bob.election(key).campaign().await?.resign().await })
    }),
    call(LEADERSHIP, "lost", |bob, [_, key, _]| {
        Box::pin(async move {
            let leadership = bob.election(key).campaign().await?;
            tokio::join!(leadership.lost(), bob.close()).1
        })
    }),
    call(SEMAPHORE, "acquire", |bob, keys| {
        Box::pin(async move { semaphore(&bob, keys, 2).acquire().await.map(drop) })
    }),
    call(SEMAPHORE, "try_acquire", |bob, keys| {
        Box::pin(async move { semaphore(&bob, keys, 2).try_acquire().await.map(drop) })
    }),
    call(SEMAPHORE, "acquire_timeout", |bob, keys| {
        Box::pin(async move { semaphore(&bob, keys, 2).acquire_timeout(SHORT).await.map(drop) })
    }),
    // It waits at the turnstile, until it has the permit that is given back.
    call(SEMAPHORE, "acquire", |bob, keys| {
        Box::pin(async move {
            let semaphore = semaphore(&bob, keys, 1);
            let permit = semaphore.acquire().await?;
            let releasing = async {
                assert!(semaphore.acquire_timeout(SHORT).await?.is_none());
                permit.release().await
            };
            let (released, acquired) = tokio::join!(releasing, semaphore.acquire());
            released.and(acquired.map(drop))
        })
    }),
    call(PERMIT, "release", |bob, keys| {
        Box::pin(async move { semaphore(&bob, keys, 1).acquire().await?.release().await })
    }),
    call(PERMIT, "hold", |bob, keys| {
        Box::pin(
            async move { semaphore(&bob, keys, 1).acquire().await?.hold(several_turns()).await },
        )
    }),
    call(PERMIT, "fencing_token", |bob, keys| {
        Box::pin(async move {
            semaphore(&bob, keys, 1).acquire().await?.fencing_token().await.map(drop)
        })
    }),
    call(PERMIT, "lost", |bob, keys| {
        Box::pin(async move {
            let permit = semaphore(&bob, keys, 1).acquire().await?;
            tokio::join!(permit.lost(), bob.close()).1
        })
    }),
];

fn semaphore(bob: &LockManager, keys: Keys, permits: u32) -> Semaphore {
    bob.semaphore(&format!("drops of {:?}", keys[0]), permits)
}

/// Dropped in tests of their own.
const OTHERS: [&str; 4] = ["connect", "close", "lost", "cancel"];

/// Work that lets others have their turn in between.
async fn several_turns() {
    for _ in 0..3 {
        yield_now().await;
    }
}

/// Whether the call is dropped here.
fn drops(owner: &str, name: &str) -> bool {
    CALLS.iter().any(|call| (call.owner, call.name) == (owner, name))
}

#[tokio::test]
async fn a_call_of_a_manager_can_be_dropped_at_every_point() {
    Way::directly().drop_all_at_every_point(false).await;
}

#[tokio::test]
async fn a_call_of_a_manager_can_be_dropped_at_every_point_while_a_key_is_busy() {
    Way::directly().drop_all_at_every_point(true).await;
}

#[tokio::test]
async fn a_call_of_a_manager_can_be_dropped_at_every_point_through_a_pooler() {
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 10);
    Way::through(&bouncer).drop_all_at_every_point(false).await;
}

#[tokio::test]
async fn a_call_of_a_manager_can_be_dropped_at_every_point_through_a_pooler_while_a_key_is_busy() {
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 10);
    Way::through(&bouncer).drop_all_at_every_point(true).await;
}

/// Bob's way to the server.
struct Way {
    stage: Stage<'static>,
    url: String,
    through_a_pooler: bool,
}

impl Way {
    fn directly() -> Self {
        let url = Cluster::default_cluster().url_for(&role::TRUST);
        Self { stage: Stage::new(), url, through_a_pooler: false }
    }

    fn through(bouncer: &PgBouncer) -> Self {
        let url = bouncer.url_for(&role::TRUST);
        Self { stage: Stage::new(), url, through_a_pooler: true }
    }

    fn bob(&self) -> LockManager {
        let bob = LockManager::builder(self.stage.config_by(&self.url, "bob"));
        // Whoever waits for a permit does so at the turnstile.
        bob.hand_overs(0, Duration::ZERO).build()
    }

    async fn drop_all_at_every_point(mut self, is_busy: bool) {
        let alice = self.stage.manager("alice");
        let keys = [7, 8, 9].map(|object| Key::bigint(self.stage.number() * 10 + object));
        let guard = if is_busy { Some(soon(alice.lock(keys[1])).await.unwrap()) } else { None };
        let held = guard.iter().map(|guard| format!("alice holds exclusive {}", guard.key()));
        let held: Vec<_> = held.collect();
        let held: Vec<_> = held.iter().map(String::as_str).collect();
        // Through a pooler there are no tokens.
        let is_there = |call: &&Call| !self.through_a_pooler || call.name != "fencing_token";
        for call in CALLS.iter().filter(is_there).collect::<Vec<_>>() {
            for connected in if is_busy { &[true][..] } else { &[false, true] } {
                call.drop_at_every_point(keys, &held, *connected, &mut self).await;
            }
        }
    }
}

impl Call {
    /// What is held is in the way of all that wait for a key.
    async fn drop_at_every_point(&self, keys: Keys, held: &[&str], connected: bool, way: &mut Way) {
        for polls in 0.. {
            assert!(polls < POLLS_MAX, "{}::{} is never done", self.owner, self.name);
            let what = format!("{}::{} while {held:?}, {polls} polls", self.owner, self.name);
            let bob = way.bob();
            if connected {
                soon(soon(bob.lock(keys[2])).await.unwrap().unlock()).await.unwrap();
            }
            let called = poll_times(polls, (self.begin)(bob.clone(), keys));
            // What nobody wakes is not polled.
            let limit = if held.is_empty() { PATIENCE } else { SHORT * 10 };
            let called = timeout(limit, called).await;
            way.stage.until(held).await;
            // Nothing is in the way of the next call.
            match (soon(bob.try_lock_all([keys[0], keys[2]])).await, &called) {
                (Ok(Some(next)), _) => soon(next.unlock()).await.unwrap(),
                // Of the manager that was closed.
                (Err(_), Ok(_)) if self.name == "lost" => {}
                (next, _) => panic!("{what}: the next call comes to {next:?}"),
            }
            way.stage.until(held).await;
            match called {
                Ok(None) => {}
                Ok(Some(called)) => {
                    called.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert!(polls > 1, "{what}: it never waited");
                    break;
                }
                Err(late) => {
                    assert!(!held.is_empty(), "{what}: {late}");
                    // It waits for what nobody gives it.
                    break;
                }
            }
        }
        if !way.through_a_pooler {
            let left = || way.stage.sessions() == held.len();
            eventually("no session of Bob's is left", PATIENCE, left).await;
        }
    }
}

/// What is public and has to wait is dropped here or in [`drops`], and says what that does.
#[test]
fn every_call_that_waits_is_dropped_and_says_what_that_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let api = fs::read_to_string(root.join("benches/public-api.txt")).unwrap();
    for (owner, name) in api.lines().filter_map(async_function) {
        let is_dropped = drops(owner, name) || drops::drops(owner, name);
        assert!(is_dropped || OTHERS.contains(&name), "{owner}::{name}");
    }
    for file in [
        "src/election.rs",
        "src/lock.rs",
        "src/manager/guard.rs",
        "src/manager/mod.rs",
        "src/manager/set.rs",
        "src/semaphore.rs",
        "src/session/canceller.rs",
        "src/session/mod.rs",
    ] {
        let source = fs::read_to_string(root.join(file)).unwrap();
        let mut docs = String::new();
        for line in source.lines() {
            if line.contains("pub async fn") {
                assert!(docs.contains("# Cancel safety"), "{file}: {line}");
            }
            if line.trim_start().starts_with("///") { docs += line } else { docs.clear() }
        }
    }
}

/// The owner and the name of a line such as `pglock::Lock: pub async fn lock(&mut self)`.
fn async_function(line: &str) -> Option<(&str, &str)> {
    let (owner, signature) = line.split_once(": pub async fn ")?;
    signature.split(['(', '<']).next().map(|name| (owner, name))
}
