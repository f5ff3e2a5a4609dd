//! What the backend sends, understood: the sans-IO protocol on prepared bytes, without any socket.

use std::fmt;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use pglock::protocol::{BackendMessage, Connection, Credentials, Event};

/// `pg_try_advisory_lock(bigint)`, as `pg_proc` numbers it.
const TRY_LOCK: u32 = 2882;

/// A message of the backend: its name, its type byte and its body.
struct Sample(&'static str, u8, &'static [u8]);

/// True, the end of an answer, a row of the server's introduction, a cancelled wait.
const SAMPLES: [Sample; 4] = [
    Sample("FunctionCallResponse", b'V', b"\0\0\0\x01\x01"),
    Sample("ReadyForQuery", b'Z', b"I"),
    Sample("DataRow", b'D', b"\0\x03\0\0\0\x0dPostgreSQL 15\0\0\0\x05false\0\0\0\x0512345"),
    Sample(
        "ErrorResponse",
        b'E',
        b"SERROR\0VERROR\0C57014\0Mcanceling statement due to user request\0\
          Fpostgres.c\0L3413\0RProcessInterrupts\0\0",
    ),
];

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// From the body of one message to the message.
#[divan::bench(args = &SAMPLES)]
fn message(bencher: Bencher, Sample(_, tag, body): &Sample) {
    bencher
        .counter(BytesCount::of_slice(*body))
        .bench_local(|| BackendMessage::decode(*tag, black_box(body)).is_ok());
}

/// A whole `try_lock` but for the socket: from writing the call to the last event of its answer,
/// which comes in one piece.
#[divan::bench(sample_size = 1_000)]
fn call_and_answer(bencher: Bencher) {
    let mut connection = logged_in();
    let [Sample(_, v, result), Sample(_, z, idle), ..] = &SAMPLES;
    let answer = [frame(*v, result), frame(*z, idle)].concat();
    bencher.counter(BytesCount::of_slice(&answer)).bench_local(|| {
        connection.call(TRY_LOCK, [&42_i64.to_be_bytes()]).unwrap();
        connection.sent(connection.outgoing().len());
        connection.received().extend_from_slice(black_box(&answer));
        assert_eq!(connection.poll_event(), Ok(Some(Event::Returned(Some(&[1])))));
        assert_eq!(connection.poll_event(), Ok(Some(Event::Ready)));
    });
}

/// A query's answer of 1,000 rows, from its first byte to the last event. It comes in pieces of this
/// many bytes: the smaller ones cut through almost every message, which must not make it much slower.
#[divan::bench(args = [1, 16, 1_448, 65_536])]
fn rows_in_pieces(bencher: Bencher, piece_bytes: usize) {
    const ROWS: usize = 1_000;
    let mut connection = logged_in();
    let [_, Sample(_, z, idle), Sample(_, d, row), _] = &SAMPLES;
    let answer =
        [frame(*d, row).repeat(ROWS), frame(b'C', b"SELECT 1000\0"), frame(*z, idle)].concat();
    bencher.counter(BytesCount::of_slice(&answer)).bench_local(|| {
        connection.query("SELECT").unwrap();
        connection.sent(connection.outgoing().len());
        let mut rows = 0;
        for piece in black_box(&answer).chunks(piece_bytes) {
            connection.received().extend_from_slice(piece);
            while let Some(event) = connection.poll_event().unwrap() {
                rows += usize::from(matches!(event, Event::Row(_)));
            }
        }
        assert!(connection.is_idle() && rows == ROWS);
    });
}

fn logged_in() -> Connection {
    let credentials = Credentials::new(String::from("alice"), None, [0; 18]);
    let mut connection = Connection::new(credentials, &[]);
    connection.sent(connection.outgoing().len());
    for (tag, body) in [(b'R', &[0; 4][..]), (b'K', &[0; 8]), (b'Z', b"I")] {
        connection.received().extend_from_slice(&frame(tag, body));
        assert!(connection.poll_event().unwrap().is_some());
    }
    assert!(connection.is_idle());
    connection
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}
