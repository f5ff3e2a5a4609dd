//! A wait is withdrawn over the same kind of connection as it was asked for: never in clear after TLS.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pglock::{Config, ErrorKind, Lock};
use pglock_test_cluster::{Cluster, role};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use super::DIRECT_TLS;
use super::callers_config::trusting;
use crate::psql::say;
use crate::stage::{PATIENCE, Stage, soon};

/// Length 8, and the number that asks for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;

#[tokio::test]
async fn a_cancel_asks_for_tls_as_its_session_did() {
    let begun = [&SSL_REQUEST[..], &[HANDSHAKE]].concat();
    assert_cancels_begin_with(&begun, |config| set(config, "sslnegotiation", "postgres")).await;
}

#[tokio::test]
async fn a_cancel_begins_with_tls_if_its_session_did() {
    if Cluster::default_cluster().major_version() < DIRECT_TLS {
        return say("sslnegotiation=direct was not tried: PostgreSQL has it since version 17");
    }
    assert_cancels_begin_with(&[HANDSHAKE], |config| set(config, "sslnegotiation", "direct")).await;
}

#[tokio::test]
async fn a_cancel_of_a_session_that_was_offered_tls_insists_on_it() {
    let begun = [&SSL_REQUEST[..], &[HANDSHAKE]].concat();
    assert_cancels_begin_with(&begun, |config| set(config, "sslmode", "prefer")).await;
}

#[tokio::test]
async fn a_cancel_shakes_hands_by_the_callers_configuration() {
    let begun = [&SSL_REQUEST[..], &[HANDSHAKE]].concat();
    let roots = fs::read_to_string(Cluster::default_cluster().root_certificate()).unwrap();
    assert_cancels_begin_with(&begun, |config| {
        set(config, "sslrootcert", "");
        config.tls_client_config(trusting(&roots).into());
    })
    .await;
}

fn set(config: &mut Config, parameter: &str, value: &str) {
    config.set(parameter, value).unwrap();
}

async fn assert_cancels_begin_with(begun: &[u8], change: impl FnOnce(&mut Config)) {
    let cluster = Cluster::default_cluster();
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    let tap = Tap::open(cluster.port()).await;
    let mut config = stage.config_by(&cluster.url_for(&role::SCRAM), "bob");
    config.host("localhost").hostaddr([127, 0, 0, 1].into()).port(tap.port);
    set(&mut config, "sslmode", "verify-full");
    set(&mut config, "sslrootcert", cluster.root_certificate().to_str().unwrap());
    change(&mut config);
    let mut bob = Lock::connect(&config, stage.key()).await.unwrap();
    let pid = stage.pid("bob");
    // Another process may have had this number before.
    let mut position = 0;
    cluster.log_since(&mut position);

    // The server ends this wait, or nobody does.
    assert!(!soon(bob.lock_timeout(Duration::from_millis(50))).await.unwrap());
    let canceller = bob.canceller();
    let cancelling = async {
        stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
        canceller.cancel().await;
    };
    let (waited, ()) = soon(async { tokio::join!(bob.lock(), cancelling) }).await;
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::Cancelled);
    let logged = format!("[{pid}] ERROR:  canceling statement due to user request");
    assert_eq!(cluster.log_since(&mut position).matches(&logged).count(), 2);

    alice.unlock().await.unwrap();
    soon(bob.lock()).await.unwrap();
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
    let connections = tap.connections();
    assert!(connections.len() > 2, "a session and two cancels: {connections:?}");
    for connection in connections {
        assert!(connection.starts_with(begun), "{connection:?}");
    }
}

/// Stands between clients and a server, and notes how each connection begins.
struct Tap {
    port: u16,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    async fn open(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&noted)));
            }
        });
        Self { port, connections }
    }

    fn connections(&self) -> Vec<Vec<u8>> {
        self.connections.lock().unwrap().clone()
    }
}

async fn pass(client: TcpStream, server: TcpStream, noted: Arc<Mutex<Vec<Vec<u8>>>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
    let mut begun = Vec::new();
    let mut passed = 0;
    while begun.len() <= SSL_REQUEST.len() && from_client.read_buf(&mut begun).await.unwrap() > 0 {
        to_server.write_all(&begun[passed..]).await.unwrap();
        passed = begun.len();
    }
    noted.lock().unwrap().push(begun);
    let _ = copy(&mut from_client, &mut to_server).await;
    drop(to_server);
    let _ = tokio::time::timeout(PATIENCE, back).await;
}
