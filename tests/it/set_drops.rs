//! Calls for several locks and for permits can be dropped at each point where they wait, and leave nothing behind.
//!
//! A call is polled never, once, twice and so on until it completes before it is dropped. Each time the
//! server soon has the locks that somebody has a guard for, and the next call works.

use std::pin::Pin;
use std::time::Duration;

use pglock::{Guard, Key, LockManager, Result, Semaphore};
use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, role};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::stage::{Stage, poll_times, soon};

/// Long enough for a request to be queued, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(20);
/// More polls than any call needs.
const POLLS_MAX: usize = 100;

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
const SET: &str = "pglock::GuardSet";
const SEMAPHORE: &str = "pglock::Semaphore";
const PERMIT: &str = "pglock::Permit";

const CALLS: [Call; 15] = [
    call(MANAGER, "lock_all", |bob, keys| {
        Box::pin(async move { bob.lock_all(keys).await.map(drop) })
    }),
    call(MANAGER, "try_lock_all", |bob, keys| {
        Box::pin(async move { bob.try_lock_all(keys).await.map(drop) })
    }),
    call(MANAGER, "lock_all_timeout", |bob, keys| {
        Box::pin(async move { bob.lock_all_timeout(keys, SHORT).await.map(drop) })
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
            // It completes for whoever closes the manager.
            let (_, closed) = tokio::join!(all.lost(), bob.close());
            closed
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
            let (_, closed) = tokio::join!(permit.lost(), bob.close());
            closed
        })
    }),
];

fn semaphore(bob: &LockManager, keys: Keys, permits: u32) -> Semaphore {
    bob.semaphore(&format!("drops of {:?}", keys[0]), permits)
}

/// Whether the call is dropped here.
pub(crate) fn drops(owner: &str, name: &str) -> bool {
    CALLS.iter().any(|call| (call.owner, call.name) == (owner, name))
}

/// Work that lets others have their turn in between.
async fn several_turns() {
    for _ in 0..3 {
        yield_now().await;
    }
}

#[tokio::test]
async fn each_call_can_be_dropped_at_every_point() {
    let mut stage = Stage::new();
    let url = Cluster::default_cluster().url_for(&role::TRUST);
    drop_all_at_every_point(&mut stage, &url, |_| true).await;
}

#[tokio::test]
async fn each_call_can_be_dropped_at_every_point_through_a_pooler() {
    let mut stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 10);
    let url = bouncer.url_for(&role::TRUST);
    // There are no tokens.
    drop_all_at_every_point(&mut stage, &url, |call| call.name != "fencing_token").await;
}

async fn drop_all_at_every_point(
    stage: &mut Stage<'_>,
    url: &str,
    is_there: impl Fn(&Call) -> bool,
) {
    let alice = stage.manager("alice");
    let keys = [7, 8, 9].map(|object| Key::bigint(stage.number() * 10 + object));
    for is_busy in [false, true] {
        let guard = if is_busy { Some(soon(alice.lock(keys[1])).await.unwrap()) } else { None };
        for call in CALLS.iter().filter(|call| is_there(call)) {
            call.drop_at_every_point(keys, guard.as_ref(), stage, url).await;
        }
    }
}

impl Call {
    async fn drop_at_every_point(
        &self,
        keys: Keys,
        guard: Option<&Guard>,
        stage: &mut Stage<'_>,
        url: &str,
    ) {
        let before = guard.map(|guard| format!("alice holds exclusive {}", guard.key()));
        let expected: Vec<_> = before.iter().map(String::as_str).collect();
        for polls in 0.. {
            assert!(polls < POLLS_MAX, "{} is never done", self.name);
            let what = format!("{} of {} while {before:?}, {polls} polls", self.name, self.owner);
            let bob = LockManager::builder(stage.config_by(url, "bob"));
            // Whoever waits for a permit does so at the turnstile.
            let bob = bob.hand_overs(0, Duration::ZERO).build();
            let called = poll_times(polls, (self.begin)(bob.clone(), keys));
            // What nobody wakes is not polled.
            let called = timeout(SHORT * 10, called).await;
            stage.until(&expected).await;
            // Nothing is in the way of the next call.
            let next = soon(bob.try_lock_all(keys[2..].iter().copied())).await;
            match (called, next) {
                (Ok(Some(called)), _) => {
                    called.unwrap_or_else(|error| panic!("{what}: {error}"));
                    return assert!(polls > 1, "{what}: it never waited");
                }
                // It waits for what nobody gives it.
                (Err(_), next) if guard.is_some() => {
                    return assert!(next.unwrap().is_some(), "{what}");
                }
                (Err(_), _) => panic!("{what}: it is not done after {:?}", SHORT * 10),
                (Ok(None), Ok(Some(next))) => soon(next.unlock()).await.unwrap(),
                // Of the manager that was closed.
                (Ok(None), Err(_)) if self.name == "lost" => {}
                (Ok(None), next) => panic!("{what}: the next call comes to {next:?}"),
            }
            stage.until(&expected).await;
        }
    }
}
