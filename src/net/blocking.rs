//! A socket on which a thread waits.
//!
//! It waits in its system calls, for as long as [`patience`] lasts, and is as if there was nothing when that
//! is over: see [`wait::thread`](crate::wait::thread).
//!
//! Whoever reads from a socket may go on until it says that there is nothing more, as TLS does before it
//! answers or hands out what it has. So after something was read, it says so once before it waits again, unless
//! something is written before that.

use std::future::pending;
use std::io::{self, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
#[cfg(unix)]
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wait::thread::{WAIT_MAX, patience, time_left};

/// How often a socket is read without waiting, before it says that there is nothing. A peer that goes on and on
/// must not keep the thread from looking at the clock.
const LOOKS_MAX: u32 = 32;

/// How long the system may try to connect, where nobody has set a limit. It gives up far earlier.
const DIAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A socket in clear, in blocking mode.
#[derive(Debug)]
pub(crate) struct Blocking {
    stream: Stream,
    /// How long the system lets a read wait.
    read_timeout: Duration,
    next_read: NextRead,
}

/// What the next read does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextRead {
    Waits,
    /// It looks whether there is more, without waiting: the last one has filled its buffer.
    Looks {
        again: u32,
    },
    /// It knows that there is nothing: the last one has not filled its buffer.
    KnowsOfNothing,
}

/// What the standard library writes to without the risk of a signal where the peer is gone.
#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Does the same with whichever socket it is.
macro_rules! each {
    ($stream:expr, $socket:ident => $do:expr) => {
        match $stream {
            Stream::Tcp($socket) => $do,
            #[cfg(unix)]
            Stream::Unix($socket) => $do,
        }
    };
}

/// The addresses of a name. The system's own limits to that are the only ones.
pub(super) fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((name, port).to_socket_addrs()?.collect())
}

impl Blocking {
    pub(super) async fn connect_tcp(address: SocketAddr) -> io::Result<Self> {
        let time = time_left().unwrap_or(DIAL_MAX);
        let connected = TcpStream::connect_timeout(&address, time);
        Self::new(Stream::Tcp(in_time(connected).await?))
    }

    #[cfg(unix)]
    pub(super) async fn connect_unix(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let address = SockAddr::unix(path)?;
        loop {
            // Whoever does not wait is not let into the queue before a server that is busy, and this is the
            // system's limit for that.
            socket.set_write_timeout(time_left())?;
            match socket.connect(&address) {
                Ok(()) => return Self::new(Stream::Unix(socket.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => pending().await,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn new(stream: Stream) -> io::Result<Self> {
        // What is sent always fits, unless the peer has stopped reading.
        each!(&stream, socket => socket.set_write_timeout(Some(WAIT_MAX)))?;
        each!(&stream, socket => socket.set_read_timeout(Some(WAIT_MAX)))?;
        Ok(Self { stream, read_timeout: WAIT_MAX, next_read: NextRead::Waits })
    }

    pub(super) fn is_private(&self) -> bool {
        !matches!(self.stream, Stream::Tcp(_))
    }

    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::Tcp(socket) => (&mut &*socket).read(buf),
            #[cfg(unix)]
            Stream::Unix(socket) => (&mut &*socket).read(buf),
        }
    }

    /// Something has come since the last read.
    pub(super) fn look_again(&mut self) {
        self.next_read = NextRead::Waits;
    }

    /// Does something that must not wait.
    pub(super) fn without_waiting<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        each!(&self.stream, socket => socket.set_nonblocking(true))?;
        let done = work();
        each!(&self.stream, socket => socket.set_nonblocking(false))?;
        done
    }

    /// Most waits end early, so the system is told of another limit only where that is nearer, or where
    /// the one that it has would end a long wait again and again.
    fn limit_read(&mut self, limit: Duration) -> io::Result<()> {
        if limit < self.read_timeout || limit > self.read_timeout * 2 {
            each!(&self.stream, socket => socket.set_read_timeout(Some(limit)))?;
            self.read_timeout = limit;
        }
        Ok(())
    }
}

/// Whoever limits the time is told by a future that is not done in time. The system may give up before that,
/// which is an error like any other, and has a number.
async fn in_time<T>(connected: io::Result<T>) -> io::Result<T> {
    match connected {
        Err(error) if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() => {
            pending().await
        }
        connected => connected,
    }
}

/// Where the system has waited for long enough, it is as if the socket was asked without waiting.
fn unless_over<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    match result {
        Err(error) if matches!(error.kind(), Interrupted | WouldBlock) => Poll::Pending,
        // Elsewhere, it is a peer that keepalive has found to be gone.
        Err(error) if cfg!(windows) && error.kind() == TimedOut => Poll::Pending,
        result => Poll::Ready(result),
    }
}

impl<'a> From<&'a Blocking> for SockRef<'a> {
    fn from(socket: &'a Blocking) -> Self {
        each!(&socket.stream, socket => SockRef::from(socket))
    }
}

impl AsyncRead for Blocking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unfilled = buf.initialize_unfilled();
        let room = unfilled.len();
        let (read, again) = match mem::replace(&mut self.next_read, NextRead::Waits) {
            NextRead::KnowsOfNothing | NextRead::Looks { again: 0 } => return Poll::Pending,
            NextRead::Looks { again } => (self.without_waiting(|| self.read(unfilled)), again - 1),
            NextRead::Waits => {
                self.limit_read(patience())?;
                (self.read(unfilled), LOOKS_MAX)
            }
        };
        let count = ready!(unless_over(read))?;
        self.next_read =
            if count < room { NextRead::KnowsOfNothing } else { NextRead::Looks { again } };
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Blocking {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // The peer is going to answer; or it has said why it does not take any more.
        self.next_read = NextRead::Waits;
        unless_over(each!(&mut self.stream, socket => socket.write(buf)))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(each!(&self.stream, socket => socket.shutdown(Shutdown::Write)))
    }
}
