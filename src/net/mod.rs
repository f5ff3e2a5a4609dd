//! The only sockets: dialling, reading and writing, and the `CancelRequest`.

mod stream;
#[cfg(feature = "tls")]
pub(crate) mod tls;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

use crate::config::Host;
use crate::protocol::CancelKey;
pub(crate) use stream::Stream;

/// How long a `CancelRequest` may take from dialling to the end of its socket.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);

/// One place where a server can be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl Address {
    /// Whether nobody can read along, because the bytes do not leave the machine.
    pub(crate) fn is_private(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            #[cfg(unix)]
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// When a silent peer counts as gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keepalive {
    /// Silence before the first probe.
    pub(crate) idle: Duration,
    /// Pause between two probes, and after the last.
    pub(crate) interval: Duration,
    /// Probes that may go unanswered.
    pub(crate) probes: u32,
}

#[cfg(any(test, target_os = "linux", target_os = "android"))]
impl Keepalive {
    /// Silence after which the peer counts as gone.
    pub(crate) fn patience(&self) -> Duration {
        self.idle + self.interval * self.probes
    }
}

/// The addresses that stand for a host, at least one.
pub(crate) async fn resolve(host: &Host, port: u16) -> io::Result<Vec<Address>> {
    match host {
        #[cfg(unix)]
        Host::Unix(directory) => Ok(vec![Address::Unix(socket_path(directory, port))]),
        #[cfg(not(unix))]
        Host::Unix(_) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this system has no Unix sockets; give a host name",
        )),
        Host::Tcp(name) => {
            if let Ok(address) = name.parse::<IpAddr>() {
                return Ok(vec![Address::Tcp(SocketAddr::new(address, port))]);
            }
            let found = tokio::net::lookup_host((name.as_str(), port)).await?;
            let addresses: Vec<_> = found.map(Address::Tcp).collect();
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
            }
            Ok(addresses)
        }
    }
}

/// The socket in a directory. A directory that begins with `@` stands for Linux's abstract namespace,
/// whose names begin with NUL.
#[cfg(unix)]
fn socket_path(directory: &Path, port: u16) -> PathBuf {
    let path = directory.join(format!(".s.PGSQL.{port}"));
    match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => PathBuf::from(format!("\0{name}")),
        None => path,
    }
}

/// Opens a socket to a server.
pub(crate) async fn dial(address: &Address, keepalive: Keepalive) -> io::Result<Stream> {
    match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            watch(&stream, keepalive)?;
            Ok(Stream::Tcp(stream))
        }
        #[cfg(unix)]
        Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
    }
}

/// Asks the server to interrupt what the session is doing, and returns when it has: PostgreSQL closes
/// this socket after it has sent the signal.
///
/// Whatever else ends the socket counts as done too. The caller finds out from the session whether the
/// signal had its effect, and asks again if not.
pub(crate) async fn cancel(address: Address, key: CancelKey, keepalive: Keepalive) {
    // Every outcome means the same to the caller.
    let _ = tokio::time::timeout(CANCEL_WITHIN, request_cancel(address, key, keepalive)).await;
}

async fn request_cancel(address: Address, key: CancelKey, keepalive: Keepalive) -> io::Result<()> {
    let mut stream = dial(&address, keepalive).await?;
    let mut request = BytesMut::with_capacity(16);
    key.cancel_request(&mut request);
    stream.write_all(&request).await?;
    let mut discarded = [0; 64];
    while stream.read(&mut discarded).await? > 0 {}
    Ok(())
}

/// Lets the system find out that a peer has vanished without a word, whether it owes us an answer
/// (keepalive) or an acknowledgement (`TCP_USER_TIMEOUT`).
fn watch(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes),
    )?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(keepalive.patience()))?;
    Ok(())
}
