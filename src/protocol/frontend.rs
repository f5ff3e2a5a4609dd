//! The messages that a frontend sends, each written to the end of a buffer.

use bytes::BufMut;

/// Protocol 3.0: the major version in the upper half, the minor one in the lower.
pub(super) const PROTOCOL_VERSION: u32 = 3 << 16;
const CANCEL_REQUEST_CODE: u32 = 80_877_102;
const SSL_REQUEST_CODE: u32 = 80_877_103;

/// Room that is made at once for a message.
const SHORT_FRAME_BYTES: usize = 48;

/// What a call has before its arguments: type, length, function, their format, and how many they are.
const CALL_HEAD_BYTES: usize = 1 + 4 + 4 + 4 + 2;

/// Parameters and results in binary, not as text.
const BINARY: u16 = 1;
/// The same for all parameters.
const ONE_FORMAT_BINARY: [u8; 4] = [0, 1, 0, 1];

/// `StartupMessage`: the first message of a session.
///
/// Each text ends at its first NUL, if it has one: what follows could pose as another parameter.
pub fn startup_message<'a>(
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
    out: &mut Vec<u8>,
) {
    length_prefixed(out, |out| {
        out.put_u32(PROTOCOL_VERSION);
        for (name, value) in parameters {
            put_text(name, out);
            put_text(value, out);
        }
        out.put_u8(0);
    });
}

/// `SSLRequest`: asks, before anything else, to go on in TLS. The answer is one byte; see
/// [`SslReply`](super::SslReply).
pub fn ssl_request(out: &mut Vec<u8>) {
    length_prefixed(out, |out| out.put_u32(SSL_REQUEST_CODE));
}

/// `CancelRequest`: on a connection of its own, asks the server to interrupt what the session is
/// doing. There is no answer but the end of the connection.
pub fn cancel_request(process_id: i32, secret_key: &[u8], out: &mut Vec<u8>) {
    length_prefixed(out, |out| {
        out.put_u32(CANCEL_REQUEST_CODE);
        out.put_i32(process_id);
        out.put_slice(secret_key);
    });
}

/// `PasswordMessage`: a password in clear, or its MD5 hash.
pub fn password_message(password: &str, out: &mut Vec<u8>) {
    frame(b'p', out, |out| put_text(password, out));
}

/// `SASLInitialResponse`: the mechanism that the client picked, and its first message.
pub fn sasl_initial_response(mechanism: &str, response: &[u8], out: &mut Vec<u8>) {
    frame(b'p', out, |out| {
        put_text(mechanism, out);
        length_prefixed_field(response, out);
    });
}

/// `SASLResponse`: a further message of the mechanism.
pub fn sasl_response(response: &[u8], out: &mut Vec<u8>) {
    frame(b'p', out, |out| out.put_slice(response));
}

/// `Query`: runs the statements in `sql`, which ends at its first NUL, if it has one.
pub fn query(sql: &str, out: &mut Vec<u8>) {
    frame(b'Q', out, |out| put_text(sql, out));
}

/// `FunctionCall`: runs the function with this object identifier, without parsing or planning.
/// Arguments and result are binary.
pub fn function_call<const N: usize>(function: u32, arguments: [&[u8]; N], out: &mut Vec<u8>) {
    let arguments_bytes: usize = arguments.iter().map(|argument| 4 + argument.len()).sum();
    let length = CALL_HEAD_BYTES - 1 + arguments_bytes + 2;
    // In one piece, as it is nearly all of the message: a vector is asked for room but once.
    let mut head = [0; CALL_HEAD_BYTES];
    let mut rest = head.as_mut_slice();
    rest.put_u8(b'F');
    rest.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    rest.put_u32(function);
    rest.put_slice(&ONE_FORMAT_BINARY);
    rest.put_u16(u16::try_from(N).unwrap_or(u16::MAX));
    out.put_slice(&head);
    for argument in arguments {
        length_prefixed_field(argument, out);
    }
    out.put_u16(BINARY);
}

/// `Terminate`: ends the session; the server releases its locks and then closes the socket.
pub fn terminate(out: &mut Vec<u8>) {
    frame(b'X', out, |_| {});
}

/// A message: its type byte, its length, its body.
fn frame(tag: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    out.reserve(SHORT_FRAME_BYTES);
    out.put_u8(tag);
    length_prefixed(out, body);
}

/// A body behind its length, which counts itself.
fn length_prefixed(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len().saturating_sub(start)).unwrap_or(u32::MAX);
    if let Some(prefix) = out.get_mut(start..start.saturating_add(4)) {
        prefix.copy_from_slice(&length.to_be_bytes());
    }
}

/// A field behind its length, which does not count itself.
fn length_prefixed_field(field: &[u8], out: &mut Vec<u8>) {
    out.put_u32(u32::try_from(field.len()).unwrap_or(u32::MAX));
    out.put_slice(field);
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    let text = text.split('\0').next().unwrap_or_default();
    // Room for all of it: it may be a password, and what moved to make room for its end would leave a copy behind.
    out.reserve(text.len() + 1);
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    #[test]
    fn a_nul_cannot_smuggle_a_startup_parameter() {
        let honest = written(|out| startup_message([("user", "u")], out));
        let smuggling = written(|out| startup_message([("user", "u\0database\0other")], out));
        assert_eq!(honest, smuggling);
        assert_eq!(honest, b"\0\0\0\x10\0\x03\0\0user\0u\0\0");
    }

    #[test]
    fn requests_without_a_session_have_no_type_byte() {
        assert_eq!(written(ssl_request), [0, 0, 0, 8, 4, 210, 22, 47]);
        assert_eq!(
            written(|out| cancel_request(-2, &[1, 2, 3, 4], out)),
            [0, 0, 0, 16, 4, 210, 22, 46, 255, 255, 255, 254, 1, 2, 3, 4]
        );
    }

    #[test]
    fn password_messages_share_a_type_byte() {
        assert_eq!(written(|out| password_message("x", out)), b"p\0\0\0\x06x\0");
        assert_eq!(
            written(|out| sasl_initial_response("M", b"ab", out)),
            b"p\0\0\0\x0cM\0\0\0\0\x02ab"
        );
        assert_eq!(written(|out| sasl_response(b"ab", out)), b"p\0\0\0\x06ab");
    }

    #[test]
    fn a_function_call_is_binary_throughout() {
        let key = 7_i64.to_be_bytes();
        assert_eq!(
            written(|out| function_call(2882, [&key], out)),
            b"F\0\0\0\x1c\0\0\x0b\x42\0\x01\0\x01\0\x01\0\0\0\x08\0\0\0\0\0\0\0\x07\0\x01"
        );
        let [class, object] = [1_i32, -1].map(i32::to_be_bytes);
        assert_eq!(
            written(|out| function_call(2888, [&class, &object], out)),
            b"F\0\0\0\x20\0\0\x0b\x48\0\x01\0\x01\0\x02\
              \0\0\0\x04\0\0\0\x01\0\0\0\x04\xff\xff\xff\xff\0\x01"
        );
    }
}
