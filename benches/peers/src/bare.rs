//! The yardstick: sockets that write prebuilt bytes and look at no answer but for its end.

use std::io::{Read, Write};
use std::net::TcpStream;

use pglock_test_cluster::Role;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::messages::{self, CancelKey, READY_FOR_QUERY};
use crate::server::Server;

const ANSWER_BYTES_MAX: usize = 1024;

/// A socket that blocks, logged in.
pub(crate) struct Bare<S> {
    stream: S,
    answer: [u8; ANSWER_BYTES_MAX],
    cancel_key: CancelKey,
}

impl<S: Read + Write> Bare<S> {
    pub(crate) fn log_in(mut stream: S, role: &Role) -> Self {
        let cancel_key = messages::log_in(&mut stream, role);
        Self { stream, answer: [0; ANSWER_BYTES_MAX], cancel_key }
    }

    pub(crate) fn ask(&mut self, request: &[u8]) {
        self.send(request);
        self.read_answer();
    }

    pub(crate) fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).expect("sent");
    }

    pub(crate) fn read_answer(&mut self) {
        let mut filled = 0;
        while !self.answer[..filled].ends_with(READY_FOR_QUERY) {
            let count = self.stream.read(&mut self.answer[filled..]).expect("an answer");
            assert!(count > 0, "the connection was closed, or more was said than was expected");
            filled += count;
        }
    }

    /// As it should be done: the server has signalled when it ends the connection.
    pub(crate) fn cancel(&mut self, server: &Server) {
        let mut stream = server.tcp();
        stream.write_all(&messages::cancel_request(self.cancel_key)).expect("sent");
        while stream.read(&mut self.answer).expect("end of file") > 0 {}
    }

    /// Says goodbye and reads to end of file.
    pub(crate) fn close(mut self) {
        self.send(&messages::terminate());
        while self.stream.read(&mut self.answer).expect("end of file") > 0 {}
    }
}

impl Bare<TcpStream> {
    pub(crate) fn tcp(server: &Server, role: &Role) -> Self {
        Self::log_in(server.tcp(), role)
    }
}

/// The same on tokio.
pub(crate) struct BareTokio<S> {
    stream: S,
    answer: [u8; ANSWER_BYTES_MAX],
}

impl BareTokio<tokio::net::TcpStream> {
    /// Called inside the runtime.
    pub(crate) fn tcp(server: &Server, role: &Role) -> Self {
        let mut stream = server.tcp();
        messages::log_in(&mut stream, role);
        stream.set_nonblocking(true).expect("a socket that does not block");
        Self::new(tokio::net::TcpStream::from_std(stream).expect("a socket of tokio's"))
    }
}

impl BareTokio<tokio::net::UnixStream> {
    /// Called inside the runtime.
    pub(crate) fn unix(server: &Server, role: &Role) -> Self {
        let mut stream = server.unix();
        messages::log_in(&mut stream, role);
        stream.set_nonblocking(true).expect("a socket that does not block");
        Self::new(tokio::net::UnixStream::from_std(stream).expect("a socket of tokio's"))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> BareTokio<S> {
    fn new(stream: S) -> Self {
        Self { stream, answer: [0; ANSWER_BYTES_MAX] }
    }

    pub(crate) async fn ask(&mut self, request: &[u8]) {
        self.send(request).await;
        self.read_answer().await;
    }

    pub(crate) async fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.expect("sent");
    }

    pub(crate) async fn read_answer(&mut self) {
        let mut filled = 0;
        while !self.answer[..filled].ends_with(READY_FOR_QUERY) {
            let count = self.stream.read(&mut self.answer[filled..]).await.expect("an answer");
            assert!(count > 0, "the connection was closed, or more was said than was expected");
            filled += count;
        }
    }
}
