//! A socket in clear: one of tokio's, or one on which a thread waits.

#![cfg_attr(
    not(feature = "async"),
    allow(clippy::unused_async, reason = "what a thread waits for is there when it is asked for")
)]

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(feature = "blocking")]
use super::blocking::{self, Blocking};
use crate::wait::Waiter;

/// A socket in clear.
#[derive(Debug)]
pub(crate) enum Socket {
    #[cfg(feature = "async")]
    Tcp(tokio::net::TcpStream),
    #[cfg(all(feature = "async", unix))]
    Unix(tokio::net::UnixStream),
    #[cfg(feature = "blocking")]
    Blocking(Blocking),
}

/// Does the same with whichever socket it is.
macro_rules! each {
    ($stream:expr, $socket:ident => $do:expr) => {
        match $stream {
            #[cfg(feature = "async")]
            Socket::Tcp($socket) => $do,
            #[cfg(all(feature = "async", unix))]
            Socket::Unix($socket) => $do,
            #[cfg(feature = "blocking")]
            Socket::Blocking($socket) => $do,
        }
    };
}

/// The addresses of a name.
pub(super) async fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    match Waiter::current() {
        #[cfg(feature = "async")]
        Waiter::Task => Ok(tokio::net::lookup_host((name, port)).await?.collect()),
        #[cfg(feature = "blocking")]
        Waiter::Thread => blocking::look_up(name, port),
    }
}

impl Socket {
    pub(super) async fn connect_tcp(address: SocketAddr) -> io::Result<Self> {
        match Waiter::current() {
            #[cfg(feature = "async")]
            Waiter::Task => tokio::net::TcpStream::connect(address).await.map(Self::Tcp),
            #[cfg(feature = "blocking")]
            Waiter::Thread => Blocking::connect_tcp(address).await.map(Self::Blocking),
        }
    }

    #[cfg(unix)]
    pub(super) async fn connect_unix(path: &Path) -> io::Result<Self> {
        match Waiter::current() {
            #[cfg(feature = "async")]
            Waiter::Task => tokio::net::UnixStream::connect(path).await.map(Self::Unix),
            #[cfg(feature = "blocking")]
            Waiter::Thread => Blocking::connect_unix(path).await.map(Self::Blocking),
        }
    }

    /// Whether nobody can read along, because the bytes do not leave the machine.
    pub(super) fn is_private(&self) -> bool {
        match self {
            #[cfg(feature = "async")]
            Self::Tcp(_) => false,
            #[cfg(all(feature = "async", unix))]
            Self::Unix(_) => true,
            #[cfg(feature = "blocking")]
            Self::Blocking(socket) => socket.is_private(),
        }
    }

    /// Whether reading waits, instead of saying that there is nothing.
    #[inline]
    pub(super) fn waits(&self) -> bool {
        match self {
            #[cfg(feature = "blocking")]
            Self::Blocking(_) => true,
            #[cfg(feature = "async")]
            _ => false,
        }
    }

    /// See [`Stream::look_again`](super::Stream::look_again).
    pub(super) fn look_again(&mut self) {
        match self {
            #[cfg(feature = "blocking")]
            Self::Blocking(socket) => socket.look_again(),
            #[cfg(feature = "async")]
            _ => {}
        }
    }

    /// Returns when the runtime knows that something has come, which it has.
    pub(super) async fn catch_up(&self) -> io::Result<()> {
        match self {
            #[cfg(feature = "async")]
            Self::Tcp(socket) => socket.readable().await,
            #[cfg(all(feature = "async", unix))]
            Self::Unix(socket) => socket.readable().await,
            #[cfg(feature = "blocking")]
            Self::Blocking(_) => Ok(()),
        }
    }

    /// See [`Stream::has_news`](super::Stream::has_news).
    pub(super) fn has_news(&self) -> io::Result<bool> {
        match self {
            #[cfg(feature = "blocking")]
            Self::Blocking(socket) => socket.without_waiting(|| has_news(&self.options())),
            #[cfg(feature = "async")]
            _ => has_news(&self.options()),
        }
    }

    /// What can be set, and what any socket can do.
    pub(super) fn options(&self) -> SockRef<'_> {
        each!(self, socket => SockRef::from(socket))
    }
}

/// Whether something has come, of a socket that does not wait.
pub(super) fn has_news(socket: &socket2::Socket) -> io::Result<bool> {
    match socket.peek(&mut [MaybeUninit::uninit()]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(&mut *self, socket => Pin::new(socket).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    /// Tries before it asks to be woken: a request always fits, unless the peer has stopped reading.
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written: io::Result<usize> = match &*self {
            #[cfg(feature = "async")]
            Self::Tcp(socket) => socket.try_write(buf),
            #[cfg(all(feature = "async", unix))]
            Self::Unix(socket) => socket.try_write(buf),
            #[cfg(feature = "blocking")]
            Self::Blocking(_) => Err(io::ErrorKind::WouldBlock.into()),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                each!(&mut *self, socket => Pin::new(socket).poll_write(cx, buf))
            }
            written => Poll::Ready(written),
        }
    }

    /// Nothing is held back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}
