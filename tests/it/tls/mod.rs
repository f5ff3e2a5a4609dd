//! Encrypted connections to real servers.

mod callers_config;
mod cancels;
mod certificates;
mod fallback;
mod modes;

use pglock::{Lock, SslMode};
use pglock_test_cluster::{Settings, signal};

use crate::stage::{Stage, soon};

/// The first major version that understands TLS without being asked for it, and whose libpq does.
const DIRECT_TLS: u32 = 17;

/// Processes of a server that crashes end without ending TLS.
#[tokio::test]
async fn a_crash_of_the_server_is_told_as_such() {
    let cluster = Settings::new().start();
    let mut stage = Stage::on(&cluster);
    let mut config = stage.config("alice");
    config.sslmode(SslMode::Require);
    // The warning is what tells it.
    config.set("options", "-c client_min_messages=error").unwrap();
    let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
    let mut bob = Lock::connect(&config, stage.key()).await.unwrap();
    alice.lock().await.unwrap();
    let holding = tokio::spawn(async move { alice.hold(std::future::pending::<()>()).await });
    let waiting = tokio::spawn(async move { bob.lock().await });
    stage.until(&["alice awaits exclusive", "alice holds exclusive"]).await;
    signal(cluster.raw().process_id(), "KILL");
    for ended in [soon(holding).await, soon(waiting).await] {
        let error = ended.unwrap().unwrap_err();
        assert!(error.is_lost(), "{error}");
        assert_eq!(error.sqlstate(), Some("57P02"), "{error}");
    }
}
