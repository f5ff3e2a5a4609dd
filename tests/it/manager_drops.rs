//! Every call of a manager, of what it gives out and of what is built on it can be dropped at each point
//! where it waits, and leaves nothing behind.

use std::pin::Pin;

use pglock::{Key, LockManager, Result};
use pglock_test_cluster::eventually;
use tokio::task::yield_now;

use crate::stage::{PATIENCE, Stage, poll_times, soon};

/// More polls than any call needs.
const POLLS_MAX: usize = 1_000;

/// What Bob calls with a free key, up to where it waits no more.
type Begin = for<'a> fn(&'a LockManager, Key) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// All that wait, but those that never end and [`LockManager::close`].
const CALLS: [(&str, Begin); 18] = [
    ("try_lock", |bob, key| Box::pin(async move { bob.try_lock(key).await.map(drop) })),
    ("try_lock_shared", |bob, key| {
        Box::pin(async move { bob.try_lock_shared(key).await.map(drop) })
    }),
    ("lock", |bob, key| Box::pin(async move { bob.lock(key).await.map(drop) })),
    ("lock_shared", |bob, key| Box::pin(async move { bob.lock_shared(key).await.map(drop) })),
    ("lock_timeout", |bob, key| {
        Box::pin(async move { bob.lock_timeout(key, PATIENCE).await.map(drop) })
    }),
    ("lock_shared_timeout", |bob, key| {
        Box::pin(async move { bob.lock_shared_timeout(key, PATIENCE).await.map(drop) })
    }),
    ("inspect", |bob, key| Box::pin(async move { bob.inspect(key).await.map(drop) })),
    ("unlock", |bob, key| Box::pin(async move { bob.lock(key).await?.unlock().await })),
    ("hold", |bob, key| Box::pin(async move { bob.lock(key).await?.hold(yield_now()).await })),
    ("fencing_token", |bob, key| {
        Box::pin(async move { bob.lock(key).await?.fencing_token().await.map(drop) })
    }),
    ("campaign", |bob, key| Box::pin(async move { bob.election(key).campaign().await.map(drop) })),
    ("try_campaign", |bob, key| {
        Box::pin(async move { bob.election(key).try_campaign().await.map(drop) })
    }),
    ("campaign_timeout", |bob, key| {
        Box::pin(async move { bob.election(key).campaign_timeout(PATIENCE).await.map(drop) })
    }),
    ("run", |bob, key| Box::pin(async move { bob.election(key).run(|_| yield_now()).await })),
    ("leader", |bob, key| Box::pin(async move { bob.election(key).leader().await.map(drop) })),
    ("next", |bob, key| {
        Box::pin(async move { bob.election(key).observe().next().await.map(drop) })
    }),
    ("hold", |bob, key| {
        Box::pin(async move { bob.election(key).campaign().await?.hold(yield_now()).await })
    }),
    ("resign", |bob, key| {
        Box::pin(async move { bob.election(key).campaign().await?.resign().await })
    }),
];

/// The names of what is dropped here.
pub(crate) fn names() -> Vec<&'static str> {
    CALLS.iter().map(|(name, _)| *name).collect()
}

#[tokio::test]
async fn a_call_of_a_manager_can_be_dropped_at_every_point() {
    let mut stage = Stage::new();
    for (name, begin) in CALLS {
        for connected in [false, true] {
            drop_at_every_point(&mut stage, name, begin, connected).await;
        }
    }
}

async fn drop_at_every_point(stage: &mut Stage<'_>, name: &str, begin: Begin, connected: bool) {
    for polls in 0.. {
        assert!(polls < POLLS_MAX, "{name} is never done");
        let [alice, bob] = ["alice", "bob"].map(|actor| stage.manager(actor));
        if connected {
            drop(soon(bob.lock(stage.key())).await.unwrap());
        }
        let done = soon(poll_times(polls, begin(&bob, stage.key()))).await;
        // Nobody is in the next one's way, and nothing comes later.
        let next = soon(alice.lock(stage.key())).await.unwrap();
        assert_eq!(stage.locks(), ["alice holds exclusive"], "{name}, {polls} polls");
        soon(next.unlock()).await.unwrap();
        // The same manager goes on.
        soon(soon(bob.lock(stage.key())).await.unwrap().unlock()).await.unwrap();
        assert_eq!(stage.locks(), [""; 0], "{name}, {polls} polls");
        drop((alice, bob));
        eventually("no session is left", PATIENCE, || stage.sessions() == 0).await;
        if let Some(done) = done {
            done.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(polls > 1, "{name} never waited");
            return;
        }
    }
}
