//! Fencing tokens: they rise, and a lock is not held without the token that was asked for.

use std::time::Duration;

use pglock::{ErrorKind, Lock, Mode};
use pglock_test_cluster::{Cluster, Settings, eventually};
use tokio::time::timeout;

use crate::stage::{PATIENCE, Stage, soon};

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn tokens_rise_from_holder_to_holder() {
    let stage = Stage::new();
    let mut sessions = [stage.lock("alice").await, stage.lock("bob").await];
    let mut tokens = Vec::new();
    for turn in 0..20 {
        let lock = &mut sessions[turn % 2];
        tokens.push(lock.lock_fenced().await.unwrap());
        lock.unlock().await.unwrap();
    }
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "{tokens:?}");
}

#[tokio::test]
async fn a_busy_lock_gives_no_token() {
    let stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    let mut bob = stage.lock("bob").await;
    let first = alice.try_lock_fenced().await.unwrap().unwrap();
    assert_eq!(bob.try_lock_fenced().await.unwrap(), None);
    // A further level gets a token of its own.
    assert!(first < alice.try_lock_fenced().await.unwrap().unwrap());
    assert_eq!(alice.level(Mode::Exclusive), 2);
}

#[tokio::test]
async fn a_token_rises_over_a_promotion() {
    let mut cluster = Settings::new().start();
    let before = {
        let stage = Stage::on(&cluster);
        stage.lock("alice").await.lock_fenced().await.unwrap()
    };
    cluster.become_standby();
    cluster.promote();
    let stage = Stage::on(&cluster);
    let after = stage.lock("alice").await.lock_fenced().await.unwrap();
    assert!(before < after, "{before} {after}");
    assert!(before.timeline() < after.timeline(), "{before} {after}");
}

/// A server whose commits wait for a standby that does not exist.
pub(crate) fn server_without_its_standby() -> Cluster {
    let cluster = Settings::new().start();
    let mut admin = cluster.raw();
    // Sessions are not to hear of what is no error, as far as that is for roles to say.
    admin.rows("ALTER ROLE ALL SET client_min_messages = 'error'");
    admin.rows("ALTER ROLE ALL SET synchronous_commit = 'local'");
    cluster.wait_for_no_standby();
    cluster
}

/// It goes on after its standby has become the primary, as one does that was cut off.
#[tokio::test]
async fn a_primary_of_the_past_gives_no_token_and_no_lock() {
    let primary = Settings::new().start();
    let mut standby = Settings::new().start_standby_of(&primary);
    let mut admin = primary.raw();
    admin.rows("ALTER SYSTEM SET synchronous_standby_names = '*'");
    admin.rows("SELECT pg_reload_conf()");
    eventually("commits wait for the standby", PATIENCE, || {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        admin.value(sql) == "1"
    })
    .await;
    let mut before = Stage::on(&primary);
    let mut alice = before.lock("alice").await;
    let first = soon(alice.lock_fenced()).await.unwrap();
    soon(alice.unlock()).await.unwrap();
    standby.promote();

    let after = Stage::on(&standby);
    let mut bob = Lock::connect(&after.config("bob"), before.key()).await.unwrap();
    let second = soon(bob.lock_fenced()).await.unwrap();
    assert!(first < second, "{first} {second}");
    assert!(timeout(SHORT, alice.lock_fenced()).await.is_err());
    // The next call waits until that is settled.
    soon(alice.holders()).await.unwrap();
    assert_eq!(before.locks(), [""; 0]);
    soon(bob.hold(async {})).await.unwrap();
}

pub(crate) async fn alice_waits_for_a_standby(stage: &mut Stage<'_>) {
    eventually("the token is waited for", PATIENCE, || stage.waits_in("alice", "SyncRep")).await;
}

#[tokio::test]
async fn a_token_that_does_not_come_takes_no_lock() {
    let cluster = server_without_its_standby();
    let mut stage = Stage::on(&cluster);
    let mut alice = stage.lock("alice").await;
    alice.lock_shared().await.unwrap();

    assert!(timeout(SHORT, alice.lock_fenced()).await.is_err());
    soon(alice.lock_shared()).await.unwrap();
    assert_eq!(alice.level(Mode::Exclusive), 0);
    assert_eq!(stage.locks(), ["alice holds shared"]);

    let canceller = alice.canceller();
    let cancelling = async {
        alice_waits_for_a_standby(&mut stage).await;
        canceller.cancel().await;
    };
    let (fenced, ()) = soon(async { tokio::join!(alice.lock_fenced(), cancelling) }).await;
    assert_eq!(fenced.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(stage.locks(), ["alice holds shared"]);
}

/// The server then warns, and gives the token all the same.
#[tokio::test]
async fn a_token_that_somebody_else_keeps_from_the_standbys_is_none() {
    let cluster = server_without_its_standby();
    for level in [0, 1] {
        let mut stage = Stage::on(&cluster);
        let mut alice = stage.lock("alice").await;
        if level > 0 {
            alice.lock().await.unwrap();
        }
        let cancelling = async {
            alice_waits_for_a_standby(&mut stage).await;
            stage.cancel_request("alice");
        };
        let (fenced, ()) = soon(async { tokio::join!(alice.lock_fenced(), cancelling) }).await;
        let error = fenced.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server, "{error}");
        assert!(error.to_string().contains("synchronous replication"), "{error}");
        assert_eq!(alice.level(Mode::Exclusive), level);
        let held = ["alice holds exclusive"];
        assert_eq!(stage.locks(), held.get(..usize::from(level > 0)).unwrap());
        // The session can be used further.
        alice.lock().await.unwrap();
        assert_eq!(stage.locks(), held);
    }
}
