//! A server behind something that does not pass on function calls: locks are taken by queries there.

use std::sync::Arc;
use std::time::Duration;

use pglock::{Config, Lock, Pooler, SslMode};
use pglock_test_cluster::{Cluster, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::scripted::messages::{error, ready_for_query};
use crate::stage::{PATIENCE, Stage, soon};

/// What becomes of a `FunctionCall`.
#[derive(Clone, Copy, Debug)]
enum Calls {
    Ignored,
    Refused,
    /// It ends the connection.
    Fatal,
}

/// Passes on everything between a client and the server that all tests share, but function calls.
/// Returns its port.
async fn relay(calls: Calls) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = ("127.0.0.1", Cluster::default_cluster().port());
            let server = TcpStream::connect(server).await.unwrap();
            tokio::spawn(pass_on(client, server, calls));
        }
    });
    port
}

async fn pass_on(client: TcpStream, server: TcpStream, calls: Calls) {
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let to_client = Arc::new(Mutex::new(to_client));
    let answers = tokio::spawn(pass_answers_on(from_server, Arc::clone(&to_client)));
    // The first message has no type.
    let mut has_type = false;
    while let Some(message) = next_message(&mut from_client, has_type).await {
        match calls {
            _ if !has_type || message[0] != b'F' => to_server.write_all(&message).await.unwrap(),
            Calls::Ignored => {}
            Calls::Fatal => {
                answers.abort();
                return;
            }
            Calls::Refused => {
                let refusal = [error("0A000", "no calls here"), ready_for_query()].concat();
                to_client.lock().await.write_all(&refusal).await.unwrap();
            }
        }
        has_type = true;
    }
}

async fn pass_answers_on(mut from_server: OwnedReadHalf, to_client: Arc<Mutex<OwnedWriteHalf>>) {
    let mut bytes = [0; 1024];
    while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
        // A client may have left without waiting for the rest.
        let _ = to_client.lock().await.write_all(&bytes[..count]).await;
    }
    let _ = to_client.lock().await.shutdown().await;
}

async fn next_message(from: &mut OwnedReadHalf, has_type: bool) -> Option<Vec<u8>> {
    let mut message = vec![0; if has_type { 5 } else { 4 }];
    from.read_exact(&mut message).await.ok()?;
    let length = *message.last_chunk::<4>()?;
    let body = usize::try_from(u32::from_be_bytes(length)).unwrap() - 4;
    let start = message.len();
    message.resize(start + body, 0);
    from.read_exact(&mut message[start..]).await.ok()?;
    Some(message)
}

async fn assert_locks_by_queries(calls: Calls, pooler: Pooler) {
    let mut stage = Stage::new();
    let port = relay(calls).await;
    let config = |actor: &str| -> Config {
        let mut config = stage.config(actor);
        config.hosts([("127.0.0.1", port)]).sslmode(SslMode::Disable).pooler(pooler);
        // A third of it is for calls.
        config.connect_timeout(Duration::from_secs(12)).clone()
    };
    let (alice, bob) = (config("alice"), config("bob"));
    let mut alice = soon(Lock::connect(&alice, stage.key())).await.unwrap();
    let mut bob = soon(Lock::connect(&bob, stage.key())).await.unwrap();
    eventually("connections of no use are gone", PATIENCE, || stage.sessions() == 2).await;

    soon(alice.lock()).await.unwrap();
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    assert!(!soon(bob.try_lock()).await.unwrap());
    assert!(!soon(bob.lock_timeout(Duration::from_millis(50))).await.unwrap());
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    assert!(soon(alice.try_lock_fenced()).await.unwrap().is_some(), "the session holds the lock");
    assert_eq!(soon(bob.holders()).await.unwrap().count(), 1);
    soon(alice.unlock()).await.unwrap();
    soon(alice.unlock()).await.unwrap();
    assert!(soon(bob.try_lock()).await.unwrap());
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
    let begun = stage.activity("bob", "query");
    assert!(begun.starts_with("SELECT pg_catalog.pg_backend_pid()"), "{begun}");
    soon(bob.close()).await.unwrap();
    assert_eq!(stage.locks(), [""; 0]);
}

#[tokio::test]
async fn where_calls_are_refused_queries_take_the_locks() {
    assert_locks_by_queries(Calls::Refused, Pooler::Auto).await;
    assert_locks_by_queries(Calls::Refused, Pooler::Refuse).await;
}

#[tokio::test]
async fn where_a_call_ends_the_connection_queries_take_the_locks() {
    assert_locks_by_queries(Calls::Fatal, Pooler::Auto).await;
}

#[tokio::test]
async fn where_calls_are_ignored_queries_take_the_locks() {
    assert_locks_by_queries(Calls::Ignored, Pooler::Auto).await;
}
