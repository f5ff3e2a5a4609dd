//! Where a message is cut makes no difference.

use pglock::protocol::{Connection, Credentials, Event};

use crate::scripted::messages::{
    authentication_ok, authentication_sasl, backend_key_data, boolean, error, notice, one_row,
    parameter_status, ready_for_query, void,
};
use crate::scripted::scram::{sasl_continue, sasl_final};
use crate::scripted::{
    KEY, LOCK, PASSWORD, PROCESS_ID, SECRET, Script, TRY_LOCK, UNLOCK, USER, VERSION, timely,
};

/// The client's nonce, for once not random.
const NONCE: [u8; 18] = [7; 18];

fn connection() -> Connection {
    let credentials = Credentials::new(String::from(USER), Some(String::from(PASSWORD)), NONCE);
    Connection::new(credentials, &[])
}

/// What a server says from its first byte to the answers of a query and three calls.
fn wire() -> Vec<u8> {
    let (first, last) = scram();
    let process_id = PROCESS_ID.to_string();
    [
        authentication_sasl(&["SCRAM-SHA-1", "SCRAM-SHA-256"]),
        first,
        last,
        authentication_ok(),
        parameter_status("server_version", "15.4"),
        backend_key_data(PROCESS_ID, &SECRET),
        ready_for_query(),
        one_row(&[Some(VERSION), Some("false"), Some(&process_id), None]),
        ready_for_query(),
        boolean(true),
        ready_for_query(),
        notice(100),
        error("57014", "canceling statement due to user request"),
        ready_for_query(),
        void(),
        ready_for_query(),
    ]
    .concat()
}

/// The server's two messages of a SCRAM login, which answer the client's.
fn scram() -> (Vec<u8>, Vec<u8>) {
    let mut connection = connection();
    let mut heard = Vec::new();
    let first = [authentication_sasl(&["SCRAM-SHA-256"])];
    for say in first {
        talk(&mut connection, &say, &mut heard);
    }
    let first = sasl_continue("1")(&heard);
    talk(&mut connection, &first, &mut heard);
    let last = sasl_final(PASSWORD)(&heard);
    (first, last)
}

fn talk(connection: &mut Connection, say: &[u8], heard: &mut Vec<Vec<u8>>) {
    let startup = connection.outgoing().len();
    connection.sent(startup);
    connection.received().extend_from_slice(say);
    while connection.poll_event().unwrap().is_some() {}
    heard.push(connection.outgoing().to_vec());
    let length = connection.outgoing().len();
    connection.sent(length);
}

/// What a session makes of the pieces: its events, and the bytes that it sends.
fn session(pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
    let mut connection = connection();
    let mut events = Vec::new();
    let mut requests = [TRY_LOCK, LOCK, UNLOCK].into_iter();
    for piece in pieces {
        connection.received().extend_from_slice(piece);
        while let Some(event) = connection.poll_event().unwrap() {
            let logged_in = matches!(event, Event::LoggedIn(_));
            let ready = matches!(event, Event::Ready);
            events.push(format!("{event:?}"));
            if logged_in {
                connection.query("SELECT version()").unwrap();
            }
            if ready {
                if let Some(function) = requests.next() {
                    connection.call(function, [&KEY.to_be_bytes()]).unwrap();
                }
            }
        }
    }
    (events, connection.outgoing().to_vec())
}

#[test]
fn every_split_of_a_session_gives_the_same_events_and_requests() {
    let wire = wire();
    let whole = session(&[&wire]);
    assert_eq!(whole.0.iter().filter(|event| *event == "Ready").count(), 4, "{:?}", whole.0);
    for at in 0..=wire.len() {
        let (head, tail) = wire.split_at(at);
        assert_eq!(session(&[head, tail]), whole, "split at {at}");
    }
    let bytes: Vec<_> = wire.chunks(1).collect();
    assert_eq!(session(&bytes), whole, "byte by byte");
}

#[tokio::test]
async fn a_server_may_say_everything_byte_by_byte() {
    let script = Script::new()
        .session()
        .hears(TRY_LOCK)
        .says(boolean(true))
        .ready()
        .hears(UNLOCK)
        .says(boolean(true))
        .ready()
        .byte_by_byte()
        .terminated();
    let backend = script.play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(timely(lock.try_lock()).await.unwrap());
    timely(lock.unlock()).await.unwrap();
    timely(lock.close()).await.unwrap();
    backend.done().await;
}

#[test]
fn a_message_of_a_mebibyte_needs_less_than_two() {
    let mut connection = connection();
    let login = [authentication_ok(), backend_key_data(1, &SECRET), ready_for_query()].concat();
    let sizes = [1 << 20, 1 << 20, 1 << 10, 900_000, (1 << 20) - 1, 1 << 20];
    let wire: Vec<_> = login.into_iter().chain(sizes.into_iter().flat_map(notice)).collect();
    let mut rest = &wire[..];
    let mut most = 0;
    while !rest.is_empty() {
        // As a socket does it: what has room, and no more.
        let received = connection.received();
        let room = received.capacity() - received.len();
        let (now, later) = rest.split_at(room.clamp(1, 100).min(rest.len()));
        received.extend_from_slice(now);
        most = most.max(received.capacity());
        while connection.poll_event().unwrap().is_some() {}
        rest = later;
    }
    assert!((1 << 20..2 << 20).contains(&most), "{most} bytes");
}
