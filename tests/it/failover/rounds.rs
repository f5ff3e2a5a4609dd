//! The primary is stopped, its standby promoted, and what was the primary follows the new one: over
//! and over, with one connection string.

use std::time::{Duration, Instant};

use pglock::{Config, Error, ErrorKind, Fence, Lock};
use pglock_test_cluster::{Cluster, Settings, Shutdown, wait_until};
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::string_for;
use crate::stage::{PATIENCE, soon};

const ROUNDS: usize = 20;
const KEY: &str = "the one at work";

/// How long a client pauses between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// What a client believes, and since when.
struct Belief {
    lock: Lock,
    fence: Fence,
    since: Instant,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_goes_to_the_new_primary_and_is_never_held_twice() {
    let (mut primary, mut standby) = block_in_place(|| {
        let primary = Settings::new().start();
        let standby = Settings::new().start_standby_of(&primary);
        (primary, standby)
    });
    // The order stays, so that the standby comes first in every second round.
    let config: Config = string_for(&[&primary, &standby]).parse().unwrap();
    let mut holder = acquire(config.clone()).await;
    for round in 0..ROUNDS {
        let shutdown = if round % 2 == 0 { Shutdown::Immediate } else { Shutdown::Fast };
        let holding = tokio::spawn(hold(holder.lock));
        let successor = tokio::spawn(acquire(config.clone()));
        block_in_place(|| wait_until_queued(&primary));
        block_in_place(|| primary.stop(shutdown));
        assert!(!successor.is_finished(), "round {round}: a lock, and no primary");

        block_in_place(|| standby.promote());
        let heir = soon(successor).await.unwrap();
        let (reason, known_at) = soon(holding).await.unwrap();
        assert_told(&reason, &primary);
        let overlap = known_at.saturating_duration_since(heir.since);
        assert!(overlap.is_zero(), "round {round}: two held the lock for {overlap:?}");
        assert!(holder.fence < heir.fence, "round {round}: {}, {}", holder.fence, heir.fence);
        assert_eq!(count(&standby, "granted"), "1", "round {round}: the heir's lock is real");
        holder = heir;

        block_in_place(|| primary.follow(&standby));
        std::mem::swap(&mut primary, &mut standby);
    }
}

/// Believes in the lock until told otherwise.
async fn hold(mut lock: Lock) -> (Error, Instant) {
    (lock.lost().await, Instant::now())
}

/// Connects to whichever server is the primary and waits for the lock, again and again.
async fn acquire(config: Config) -> Belief {
    loop {
        match try_acquire(&config).await {
            Ok(belief) => return belief,
            Err(error) => assert_transient(&error),
        }
        sleep(RETRY_INTERVAL).await;
    }
}

async fn try_acquire(config: &Config) -> Result<Belief, Error> {
    let mut lock = Lock::connect(config, KEY).await?;
    let fence = lock.lock_fenced().await?;
    Ok(Belief { lock, fence, since: Instant::now() })
}

/// What a client may be told while no server is the primary.
fn assert_transient(error: &Error) {
    let expected = match error.kind() {
        ErrorKind::Connect => !error.is_lost(),
        // The server that is left is a standby.
        ErrorKind::Unsupported => error.to_string().contains("standby"),
        ErrorKind::Lost => error.is_lost(),
        _ => false,
    };
    assert!(expected, "{error:?}");
}

/// The holder learns that its session is lost, and on which server.
fn assert_told(reason: &Error, server: &Cluster) {
    assert!(reason.is_lost(), "{reason:?}");
    assert_eq!(reason.kind(), ErrorKind::Lost, "{reason:?}");
    assert!(reason.to_string().contains(&server.port().to_string()), "{reason}");
}

fn wait_until_queued(server: &Cluster) {
    wait_until("the successor waits", PATIENCE, || count(server, "NOT granted") == "1");
}

/// How many advisory locks there are of which this is true.
fn count(server: &Cluster, condition: &str) -> String {
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    server.raw().value(&format!("{sql} AND {condition}"))
}
