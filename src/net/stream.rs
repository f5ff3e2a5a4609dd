//! A socket to a server, of whatever kind.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
#[cfg(feature = "tls")]
use tokio_rustls::client::TlsStream;

use crate::protocol::Transport;
#[cfg(feature = "tls")]
use crate::protocol::tls_server_end_point;
use crate::report::TlsReport;

/// A socket to a server.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream<TcpStream>>),
}

/// Does the same with whichever socket it is.
macro_rules! each {
    ($stream:expr, $socket:ident => $do:expr) => {
        match $stream {
            Stream::Tcp($socket) => $do,
            #[cfg(unix)]
            Stream::Unix($socket) => $do,
            #[cfg(feature = "tls")]
            Stream::Tls($socket) => $do,
        }
    };
}

impl Stream {
    /// Returns once the runtime knows of what has arrived by now. It looks at its sockets only between
    /// tasks: one that has computed for long may be the last to hear that its session is over.
    pub(crate) async fn catch_up(&self) -> io::Result<()> {
        if !self.has_news()? {
            return Ok(());
        }
        match self {
            Self::Tcp(socket) => socket.readable().await,
            #[cfg(unix)]
            Self::Unix(socket) => socket.readable().await,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.get_ref().0.readable().await,
        }
    }

    /// Whether something has come that was not read yet, whatever the runtime knows; if it is an end,
    /// reading tells. The system tells of an error once: where this does, reading would find an end.
    pub(crate) fn has_news(&self) -> io::Result<bool> {
        has_news(&self.socket())
    }

    /// The same for somebody else. The connection does not end on this side before that is dropped too.
    #[cfg(feature = "manager")]
    pub(crate) fn tell_tale(&self) -> io::Result<TellTale> {
        self.socket().try_clone().map(TellTale)
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(socket) => SockRef::from(socket),
            #[cfg(unix)]
            Self::Unix(socket) => SockRef::from(socket),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => SockRef::from(stream.get_ref().0),
        }
    }

    /// Whether others on the network cannot read along.
    pub(crate) fn is_encrypted(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            #[cfg(unix)]
            Self::Unix(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(_) => true,
        }
    }

    /// What encrypts it, if anything does.
    pub(crate) fn tls(&self) -> Option<TlsReport> {
        match self {
            Self::Tcp(_) => None,
            #[cfg(unix)]
            Self::Unix(_) => None,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => super::tls::report(stream),
        }
    }

    /// What a login over this stream may send, and be tied to.
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Tcp(_) => Transport::Clear,
            #[cfg(unix)]
            Self::Unix(_) => Transport::Private,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => {
                let certificate = super::tls::peer_certificate(stream);
                Transport::Tls { end_point: certificate.and_then(tls_server_end_point) }
            }
        }
    }
}

/// Says of a socket, which somebody else reads, whether something has come.
#[cfg(feature = "manager")]
#[derive(Debug)]
pub(crate) struct TellTale(Socket);

#[cfg(feature = "manager")]
impl TellTale {
    /// See [`Stream::has_news`]. An error is news as well.
    pub(crate) fn has_news(&self) -> bool {
        has_news(&self.0).unwrap_or(true)
    }
}

fn has_news(socket: &Socket) -> io::Result<bool> {
    match socket.peek(&mut [MaybeUninit::uninit()]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(&mut *self, socket => Pin::new(socket).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    /// Tries before it asks to be woken: a request always fits, unless the peer has stopped reading.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &*self {
            Self::Tcp(socket) => socket.try_write(buf),
            #[cfg(unix)]
            Self::Unix(socket) => socket.try_write(buf),
            #[cfg(feature = "tls")]
            Self::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                each!(&mut *self, socket => Pin::new(socket).poll_write(cx, buf))
            }
            written => Poll::Ready(written),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}
