//! The yardstick: the least that a client can do, without a library.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use pglock::protocol::frontend;
use pglock_test_cluster::{Cluster, role};

use crate::server::Transport;

/// `ReadyForQuery` outside a transaction: the last bytes of every answer here.
const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05I";

/// A blocking socket, logged in without a password. It looks at no answer but for its end.
pub(crate) struct Bare {
    stream: Box<dyn Stream>,
    answer: [u8; 1024],
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Bare {
    pub(crate) fn connect(transport: Transport) -> Self {
        let mut startup = Vec::new();
        let parameters = [("user", role::TRUST.name), ("database", "app")];
        frontend::startup_message(parameters, &mut startup);
        let mut bare = Self { stream: open(transport), answer: [0; 1024] };
        bare.ask(&startup);
        bare
    }

    /// Writes a request and reads to the end of its answer.
    pub(crate) fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).unwrap();
        let mut filled = 0;
        while !self.answer[..filled].ends_with(READY_FOR_QUERY) {
            let count = self.stream.read(&mut self.answer[filled..]).unwrap();
            assert!(count > 0, "the server closed the connection, or said more than was expected");
            filled += count;
        }
    }

    /// Says goodbye and reads to end of file, as [`pglock::Lock::close`] does.
    pub(crate) fn close(mut self) {
        let mut terminate = Vec::new();
        frontend::terminate(&mut terminate);
        self.stream.write_all(&terminate).unwrap();
        while self.stream.read(&mut self.answer).unwrap() > 0 {}
    }
}

fn open(transport: Transport) -> Box<dyn Stream> {
    let cluster = Cluster::default_cluster();
    let port = cluster.port();
    match transport {
        Transport::Tcp => {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_nodelay(true).unwrap();
            Box::new(stream)
        }
        Transport::Unix => {
            let path = cluster.socket_dir().join(format!(".s.PGSQL.{port}"));
            Box::new(UnixStream::connect(path).unwrap())
        }
    }
}
