//! The messages of a backend, right ones and wrong ones, as bytes.

/// A message of this type, with whatever body.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    header(tag, u32::try_from(4 + body.len()).unwrap(), body)
}

/// A message that announces this length, whatever its body has.
pub(crate) fn header(tag: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// `AuthenticationXxx`, by its number.
pub(crate) fn authentication(number: u32, data: &[u8]) -> Vec<u8> {
    message(b'R', &[&number.to_be_bytes()[..], data].concat())
}

pub(crate) fn authentication_ok() -> Vec<u8> {
    authentication(0, b"")
}

/// `AuthenticationSASL`, with these mechanisms.
pub(crate) fn authentication_sasl(mechanisms: &[&str]) -> Vec<u8> {
    let ended = |text: &&str| format!("{text}\0");
    let list: Vec<_> = mechanisms.iter().chain([&""]).map(ended).collect();
    authentication(10, list.concat().as_bytes())
}

pub(crate) fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    message(b'S', format!("{name}\0{value}\0").as_bytes())
}

pub(crate) fn backend_key_data(process_id: i32, secret: &[u8]) -> Vec<u8> {
    message(b'K', &[&process_id.to_be_bytes()[..], secret].concat())
}

/// `NegotiateProtocolVersion`, with no unknown parameters.
pub(crate) fn negotiate_protocol_version(version: u32) -> Vec<u8> {
    message(b'v', &[version.to_be_bytes(), [0; 4]].concat())
}

/// `ReadyForQuery` outside of a transaction.
pub(crate) fn ready_for_query() -> Vec<u8> {
    message(b'Z', b"I")
}

/// `FunctionCallResponse` with this value.
pub(crate) fn returned(value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap();
    message(b'V', &[&length.to_be_bytes()[..], value].concat())
}

/// `FunctionCallResponse` with null.
pub(crate) fn returned_null() -> Vec<u8> {
    message(b'V', &[255; 4])
}

/// What `pg_advisory_lock` returns.
pub(crate) fn void() -> Vec<u8> {
    returned(b"")
}

/// What `pg_try_advisory_lock` and `pg_advisory_unlock` return.
pub(crate) fn boolean(value: bool) -> Vec<u8> {
    returned(&[u8::from(value)])
}

/// `ErrorResponse` of a request, after which the session goes on.
pub(crate) fn error(sqlstate: &str, text: &str) -> Vec<u8> {
    message(b'E', &report("ERROR", sqlstate, text))
}

/// `ErrorResponse` that ends the session.
pub(crate) fn fatal(sqlstate: &str, text: &str) -> Vec<u8> {
    message(b'E', &report("FATAL", sqlstate, text))
}

/// `NoticeResponse` whose body has this many bytes.
pub(crate) fn notice(body_bytes: usize) -> Vec<u8> {
    let frame = report("NOTICE", "00000", "").len();
    message(b'N', &report("NOTICE", "00000", &"x".repeat(body_bytes.saturating_sub(frame))))
}

/// A warning of the server.
pub(crate) fn warning(sqlstate: &str, text: &str) -> Vec<u8> {
    message(b'N', &report("WARNING", sqlstate, text))
}

fn report(severity: &str, sqlstate: &str, text: &str) -> Vec<u8> {
    format!("S{severity}\0V{severity}\0C{sqlstate}\0M{text}\0\0").into_bytes()
}

/// The result of a query that has one row.
pub(crate) fn one_row(values: &[Option<&str>]) -> Vec<u8> {
    [row_description(values.len()), data_row(values), command_complete()].concat()
}

pub(crate) fn row_description(columns: usize) -> Vec<u8> {
    // The name; then table, column, type (text), size, modifier and format.
    let column = b"column\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
    message(b'T', &[&count(columns)[..], &column.repeat(columns)].concat())
}

pub(crate) fn data_row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = count(values.len()).to_vec();
    for value in values {
        let length = value.map_or(u32::MAX, |value| u32::try_from(value.len()).unwrap());
        body.extend(length.to_be_bytes());
        body.extend(value.unwrap_or_default().bytes());
    }
    message(b'D', &body)
}

pub(crate) fn command_complete() -> Vec<u8> {
    message(b'C', b"SELECT 1\0")
}

/// The result of `SET`.
pub(crate) fn set() -> Vec<u8> {
    message(b'C', b"SET\0")
}

fn count(items: usize) -> [u8; 2] {
    u16::try_from(items).unwrap().to_be_bytes()
}
