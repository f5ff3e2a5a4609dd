//! A socket to a server, of whatever kind.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(feature = "tls")]
use tokio_rustls::client::TlsStream;

use super::socket::Socket;
#[cfg(feature = "manager")]
use super::socket::has_news;
use crate::protocol::Transport;
#[cfg(feature = "tls")]
use crate::protocol::tls_server_end_point;
use crate::report::TlsReport;

/// A socket to a server.
#[derive(Debug)]
pub(crate) enum Stream {
    Clear(Socket),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream<Socket>>),
}

/// Does the same with whichever socket it is.
macro_rules! each {
    ($stream:expr, $socket:ident => $do:expr) => {
        match $stream {
            Stream::Clear($socket) => $do,
            #[cfg(feature = "tls")]
            Stream::Tls($socket) => $do,
        }
    };
}

impl Stream {
    /// Returns once the runtime knows of what has arrived by now. It looks at its sockets only between
    /// tasks: one that has computed for long may be the last to hear that its session is over.
    pub(crate) async fn catch_up(&self) -> io::Result<()> {
        if self.has_news()? { self.socket().catch_up().await } else { Ok(()) }
    }

    /// Whether reading waits, instead of saying that there is nothing.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        self.socket().waits()
    }

    /// Has the next read of a socket that waits ask the system, whatever the last one found.
    pub(crate) fn look_again(&mut self) {
        match self {
            Self::Clear(socket) => socket.look_again(),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.get_mut().0.look_again(),
        }
    }

    /// Whether something has come that was not read yet, whatever the runtime knows; if it is an end,
    /// reading tells. The system tells of an error once: where this does, reading would find an end.
    pub(crate) fn has_news(&self) -> io::Result<bool> {
        self.socket().has_news()
    }

    /// The same for somebody else. The connection does not end on this side before that is dropped too.
    #[cfg(feature = "manager")]
    pub(crate) fn tell_tale(&self) -> io::Result<TellTale> {
        self.socket().options().try_clone().map(TellTale)
    }

    #[inline]
    fn socket(&self) -> &Socket {
        match self {
            Self::Clear(socket) => socket,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether others on the network cannot read along.
    pub(crate) fn is_encrypted(&self) -> bool {
        match self {
            Self::Clear(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(_) => true,
        }
    }

    /// What encrypts it, if anything does.
    pub(crate) fn tls(&self) -> Option<TlsReport> {
        match self {
            Self::Clear(_) => None,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => super::tls::report(stream),
        }
    }

    /// What a login over this stream may send, and be tied to.
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Clear(socket) if socket.is_private() => Transport::Private,
            Self::Clear(_) => Transport::Clear,
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
pub(crate) struct TellTale(socket2::Socket);

#[cfg(feature = "manager")]
impl TellTale {
    /// See [`Stream::has_news`]. An error is news as well.
    pub(crate) fn has_news(&self) -> bool {
        has_news(&self.0).unwrap_or(true)
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
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(&mut *self, socket => Pin::new(socket).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}
