//! What is told, and how often a server is asked, where a mode leaves more than one way to connect.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pglock::{Config, Error, ErrorKind, Lock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::scripted::messages::fatal;
use crate::scripted::timely;

/// The code of an `SSLRequest`, behind its length.
const SSL_REQUEST: [u8; 4] = [0x04, 0xd2, 0x16, 0x2f];

/// What comes after the answer to an `SSLRequest`, or without one.
#[derive(Clone, Copy)]
enum Then {
    /// Nobody is let in.
    Refuses,
    /// Nothing is said in TLS or in clear.
    FallsSilent,
    /// The connection ends with the first word of TLS.
    BreaksOff,
    /// A record of TLS comes one byte at a time, and never to its end.
    Drips,
}

/// A server that gives each connection the same answers.
struct Server {
    port: u16,
    connections: Arc<AtomicU32>,
}

impl Server {
    async fn start(answer: &'static [u8], then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(socket, answer, then));
            }
        });
        Self { port, connections }
    }

    async fn refusal(&self, sslmode: &str) -> Error {
        refusal(&[self], &format!("sslmode={sslmode}")).await
    }

    fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Why none of these servers is connected to.
async fn refusal(servers: &[&Server], parameters: &str) -> Error {
    let mut config: Config = format!("user=bob {parameters}").parse().unwrap();
    config.hosts(servers.iter().map(|server| ("127.0.0.1", server.port)));
    config.connect_timeout(Duration::from_secs(2));
    timely(Lock::connect(&config, 1)).await.unwrap_err()
}

async fn serve(mut socket: TcpStream, answer: &[u8], then: Then) -> Option<()> {
    if let (Then::BreaksOff, b"") = (then, answer) {
        return None;
    }
    let mut message = read_message(&mut socket).await?;
    if message == SSL_REQUEST {
        socket.write_all(answer).await.ok()?;
        if answer == b"N" {
            message = read_message(&mut socket).await?;
        }
        if let Then::BreaksOff = then {
            return socket.read_u8().await.ok().map(drop);
        }
        if let Then::Drips = then {
            return drip(&mut socket).await;
        }
    }
    if let (Then::Refuses, false) = (then, message == SSL_REQUEST) {
        socket.write_all(&fatal("28000", "bob must not log in")).await.ok()?;
    }
    socket.read_to_end(&mut Vec::new()).await.ok().map(drop)
}

/// A handshake's longest record.
async fn drip(socket: &mut TcpStream) -> Option<()> {
    for byte in [0x16, 3, 3, 0x40, 0].into_iter().chain(std::iter::repeat_n(0, 0x3fff)) {
        socket.write_u8(byte).await.ok()?;
        sleep(Duration::from_millis(1)).await;
    }
    None
}

async fn read_message(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let length = socket.read_u32().await.ok()?;
    let mut message = vec![0; usize::try_from(length).unwrap() - 4];
    socket.read_exact(&mut message).await.ok().map(|_| message)
}

#[tokio::test]
async fn a_login_that_is_refused_without_tls_is_told_once_and_as_that() {
    for (sslmode, connections) in [("disable", 1), ("prefer", 1), ("allow", 2)] {
        let server = Server::start(b"N", Then::Refuses).await;
        let error = server.refusal(sslmode).await;
        assert_eq!(error.kind(), ErrorKind::Authentication, "{sslmode}: {error}");
        assert_eq!(error.to_string().matches("bob must").count(), 1, "{sslmode}: {error}");
        assert_eq!(server.connections(), connections, "{sslmode}");
    }
}

#[tokio::test]
async fn what_was_wrong_with_tls_is_told_also_if_the_time_is_up_in_clear() {
    let server = Server::start(b"Snot TLS", Then::FallsSilent).await;
    let error = server.refusal("prefer").await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("before that: the TLS handshake failed"), "{error}");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_handshake_byte_by_byte_ends_with_the_time_to_connect() {
    let server = Server::start(b"S", Then::Drips).await;
    let error = server.refusal("require").await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("not connected within 2s"), "{error}");
}

#[tokio::test]
async fn a_server_that_breaks_off_in_the_handshake_gives_its_turn_to_the_next() {
    for (answer, parameters, told) in [
        (&b"S"[..], "sslmode=require", "closed the connection during the TLS handshake"),
        (b"", "sslmode=require sslnegotiation=direct", "direct needs PostgreSQL 17"),
    ] {
        let first = Server::start(answer, Then::BreaksOff).await;
        let next = Server::start(b"S", Then::FallsSilent).await;
        let error = refusal(&[&first, &next], parameters).await;
        assert_eq!([first.connections(), next.connections()], [1, 1], "{parameters}: {error}");
        assert_eq!(error.kind(), ErrorKind::Timeout, "{parameters}: {error}");
        assert!(error.to_string().contains(told), "{parameters}: {error}");
        let alone = refusal(&[&first], parameters).await;
        assert_eq!(alone.kind(), ErrorKind::Tls, "{parameters}: {alone}");
    }
}

#[tokio::test]
async fn a_server_that_can_only_answer_with_an_error_gives_its_turn_to_the_next() {
    for sslmode in ["prefer", "require"] {
        let parameters = format!("sslmode={sslmode}");
        let first = Server::start(b"Ecould not fork new process\n\0", Then::BreaksOff).await;
        let next = Server::start(b"S", Then::FallsSilent).await;
        refusal(&[&first, &next], &parameters).await;
        assert_eq!(first.connections(), 1, "{sslmode}");
        assert_ne!(next.connections(), 0, "{sslmode}");
        let alone = refusal(&[&first], &parameters).await;
        assert_eq!(alone.kind(), ErrorKind::Connect, "{sslmode}: {alone}");
        assert!(alone.to_string().contains("look into the server's log"), "{sslmode}: {alone}");
        assert!(!alone.to_string().contains("could not fork"), "{sslmode}: {alone}");
    }
}
