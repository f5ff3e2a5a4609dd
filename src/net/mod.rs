//! The only sockets: dialling, reading and writing, and the `CancelRequest`.

#[cfg(feature = "blocking")]
mod blocking;
mod socket;
mod stream;
#[cfg(feature = "tls")]
pub(crate) mod tls;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use socket2::TcpKeepalive;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) use self::socket::Socket;
use crate::config::Host;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::CancelKey;
#[cfg(feature = "tls")]
use crate::protocol::{SslReply, frontend};
use crate::wait;
pub(crate) use stream::Stream;
#[cfg(feature = "manager")]
pub(crate) use stream::TellTale;

/// How long the socket of a `CancelRequest` may take to open before another is tried.
const OPEN_FOR_CANCEL_WITHIN: Duration = Duration::from_secs(3);

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
    /// How long what was sent may go unacknowledged.
    pub(crate) acknowledgement: Duration,
}

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
            // Which may be an address in itself, and needs no looking up then.
            let found = socket::look_up(name, port).await?;
            let addresses: Vec<_> = found.into_iter().map(Address::Tcp).collect();
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

/// How to get to a server: what a session and its `CancelRequest`s have in common.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) address: Address,
    pub(crate) keepalive: Keepalive,
    pub(crate) encryption: Encryption,
}

/// Whether a connection becomes one of TLS, and how.
#[derive(Clone)]
pub(crate) enum Encryption {
    /// It stays in clear.
    None,
    /// The server is asked for TLS; if it has none, the connection goes on in clear.
    #[cfg(feature = "tls")]
    IfOffered(tls::Tls),
    /// The server is asked for TLS, and has to have it.
    #[cfg(feature = "tls")]
    Negotiated(tls::Tls),
    /// TLS from the first byte.
    #[cfg(feature = "tls")]
    Direct(tls::Tls),
}

impl Route {
    /// Opens a socket, encrypted as the route wants it. In a box, so that sessions and cancels share
    /// one copy of all that this takes.
    pub(crate) fn open(&self) -> Pin<Box<dyn Future<Output = Result<Stream>> + Send + Sync + '_>> {
        Box::pin(async move {
            match &self.address {
                #[cfg(feature = "tls")]
                Address::Tcp(address) => self.encrypt(self.dial(*address).await?).await,
                #[cfg(not(feature = "tls"))]
                Address::Tcp(address) => self.dial(*address).await.map(Stream::Clear),
                #[cfg(unix)]
                Address::Unix(path) => {
                    let socket = Socket::connect_unix(path).await;
                    socket.map(Stream::Clear).map_err(|error| self.unreachable(&error))
                }
            }
        })
    }

    /// The route on which this stream was opened, left no choice: once in TLS, never in clear.
    pub(crate) fn taken_by(self, stream: &Stream) -> Self {
        let encryption = match self.encryption {
            #[cfg(feature = "tls")]
            Encryption::IfOffered(tls) if stream.is_encrypted() => Encryption::Negotiated(tls),
            _ if !stream.is_encrypted() => Encryption::None,
            taken => taken,
        };
        Self { encryption, ..self }
    }

    async fn dial(&self, address: SocketAddr) -> Result<Socket> {
        let dialling = async {
            let socket = Socket::connect_tcp(address).await?;
            socket.options().set_tcp_nodelay(true)?;
            watch(&socket, self.keepalive)?;
            Ok(socket)
        };
        dialling.await.map_err(|error| self.unreachable(&error))
    }

    #[cfg(feature = "tls")]
    async fn encrypt(&self, mut socket: Socket) -> Result<Stream> {
        let (tls, needed) = match &self.encryption {
            Encryption::None => return Ok(Stream::Clear(socket)),
            Encryption::IfOffered(tls) => (tls, false),
            Encryption::Negotiated(tls) => (tls, true),
            Encryption::Direct(tls) => {
                return tls.connect_directly(socket).await.map(|tls| Stream::Tls(Box::new(tls)));
            }
        };
        match ask_for_tls(&mut socket).await? {
            SslReply::Accepted => Ok(Stream::Tls(Box::new(tls.connect(socket).await?))),
            SslReply::Refused if needed => Err(Error::new(
                ErrorKind::Tls,
                "the server has no TLS, which sslmode demands: turn on `ssl` there, or, if the \
                     network can be trusted, say sslmode=prefer",
            )),
            SslReply::Refused => Ok(Stream::Clear(socket)),
        }
    }

    fn unreachable(&self, error: &io::Error) -> Error {
        Error::new(ErrorKind::Connect, format!("cannot reach {}: {error}", self.address))
    }
}

/// Asks for TLS, and reads nothing but the one byte of the answer.
#[cfg(feature = "tls")]
async fn ask_for_tls(socket: &mut Socket) -> Result<SslReply> {
    let broken = |error: io::Error| {
        Error::new(ErrorKind::Connect, "the server closed the connection when it was asked for TLS")
            .with_source(error)
    };
    let mut request = Vec::with_capacity(8);
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(broken)?;
    let reply = socket.read_u8().await.map_err(broken)?;
    SslReply::decode(reply).map_err(|error| {
        // It may be out of processes, for instance, which another server need not be.
        let kind = if reply == b'E' { ErrorKind::Connect } else { ErrorKind::Protocol };
        Error::new(kind, error.to_string()).with_source(error)
    })
}

/// Whether the other side ended the connection, rather than to say something wrong.
pub(crate) fn is_broken_off(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// What TLS had against a connection, if that is why it broke. With TLS 1.3, a client learns only after
/// the handshake that its certificate was refused.
pub(crate) fn problem_of_tls(error: &io::Error) -> Option<Cow<'static, str>> {
    #[cfg(feature = "tls")]
    return tls::problems::of(error);
    #[cfg(not(feature = "tls"))]
    {
        let _ = error;
        None
    }
}

/// Asks the server to interrupt what the session is doing, and returns when it has: PostgreSQL closes
/// this socket after it has sent the signal.
///
/// Whatever else ends the socket counts as done too. The caller finds out from the session whether the
/// signal had its effect, and asks again if not. Once the request is out, nothing but the end of the
/// socket says that no signal will come any more, so there is no limit to that: the caller's patience
/// is the limit.
pub(crate) async fn cancel(route: Route, key: CancelKey) {
    if let Ok(Ok(stream)) = wait::timeout(OPEN_FOR_CANCEL_WITHIN, route.open()).await {
        // Every outcome means the same to the caller.
        let _ = request_cancel(stream, &key).await;
    }
}

async fn request_cancel(mut stream: Stream, key: &CancelKey) -> io::Result<()> {
    let mut request = Vec::with_capacity(16);
    key.cancel_request(&mut request);
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut discarded = [0; 64];
    while stream.read(&mut discarded).await? > 0 {}
    Ok(())
}

/// Lets the system find out that a peer has vanished without a word, whether it owes us an answer
/// (keepalive) or an acknowledgement (`TCP_USER_TIMEOUT`).
fn watch(socket: &Socket, keepalive: Keepalive) -> io::Result<()> {
    let options = socket.options();
    options.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes),
    )?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    options.set_tcp_user_timeout(Some(keepalive.acknowledgement))?;
    Ok(())
}
