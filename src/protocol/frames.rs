//! Cuts the bytes of a backend into messages.

use std::ffi::CStr;

use super::{BackendMessage, CallResult, ProtocolError};

/// Longest backend message body accepted, in bytes: for what a server says in its own words.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Longest body accepted of what this client asks for, in bytes. All of it is far smaller; decoded, it
/// takes several times as much memory.
pub const RESULT_BODY_BYTES_MAX: usize = 64 << 10;

/// Longest body accepted before the login is complete, in bytes, but for errors.
const LOGIN_BODY_BYTES_MAX: usize = 2_000;

/// Longest body of an error accepted before the login is complete, in bytes.
const LOGIN_ERROR_BODY_BYTES_MAX: usize = 30_000;

/// What a message has before its body: the type and a length, which counts itself.
const HEADER_BYTES: usize = 5;
const LENGTH_BYTES: usize = 4;

/// Room that is kept for the next read, in bytes: what a lock asks for is answered in 20.
const READ_BYTES: usize = 512;

/// A buffer of more bytes than this is given back once it is empty.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// What nearly every call is answered with: `FunctionCallResponse`, and `ReadyForQuery` outside a
/// transaction.
const VOID_AND_READY: &[u8] = b"V\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
const FALSE_AND_READY: &[u8] = b"V\0\0\0\x09\0\0\0\x01\0Z\0\0\0\x05I";
const TRUE_AND_READY: &[u8] = b"V\0\0\0\x09\0\0\0\x01\x01Z\0\0\0\x05I";

/// The bytes received and not yet taken as messages.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// How many bytes at the front of the buffer belong to messages that are done with.
    start: usize,
    /// Length of the message that was handed out last, still the first in the buffer.
    taken: usize,
    /// Whether a message made the buffer larger than what is kept.
    enlarged: bool,
    /// Whether the stricter limits for a server that has not shown who it is are off.
    authenticated: bool,
}

impl Frames {
    /// Accepts messages up to [`BODY_BYTES_MAX`] from now on.
    pub(super) fn authenticated(&mut self) {
        self.authenticated = true;
    }

    /// Where received bytes belong, with room for some.
    pub(super) fn space(&mut self) -> &mut Vec<u8> {
        self.discard_taken();
        self.move_to_front();
        self.buffer.reserve_exact(READ_BYTES);
        &mut self.buffer
    }

    /// Whether nothing is here, not even a message that was handed out.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next message, if it has come whole. It is checked once its length has come, so that a
    /// length out of bounds costs no memory.
    pub(super) fn next(&mut self) -> Result<Option<BackendMessage<'_>>, ProtocolError> {
        self.discard_taken();
        let Some((&tag, rest)) = self.pending().split_first() else { return Ok(None) };
        let Some(length) = rest.first_chunk().copied().map(u32::from_be_bytes) else {
            return Ok(None);
        };
        let body_bytes = match self.body_bytes(tag, length) {
            Ok(body_bytes) => body_bytes,
            Err(error) => return self.unframed_error(length, error).map(|()| None),
        };
        let frame_bytes = HEADER_BYTES + body_bytes;
        self.enlarged |= frame_bytes > KEPT_BYTES_MAX;
        if self.pending().len() < frame_bytes {
            self.make_room(frame_bytes + READ_BYTES);
            return Ok(None);
        }
        self.taken = frame_bytes;
        let body = self.pending().get(HEADER_BYTES..frame_bytes).unwrap_or_default();
        BackendMessage::decode(tag, body).map(Some)
    }

    /// The bytes that are not yet done with.
    fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Takes the answer to a call if it is whole and all that has come: its result, which is void or a
    /// boolean, and `ReadyForQuery` outside a transaction.
    pub(super) fn take_call_answer(&mut self) -> Option<CallResult> {
        self.discard_taken();
        let answer = self.pending();
        let result = if answer == TRUE_AND_READY {
            CallResult::True
        } else if answer == VOID_AND_READY {
            CallResult::Void
        } else if answer == FALSE_AND_READY {
            CallResult::False
        } else {
            return None;
        };
        self.taken = answer.len();
        self.discard_taken();
        Some(result)
    }

    /// Lets the buffer hold so many bytes and no more. Left to itself it would double, past any limit
    /// that the length of a message sets.
    fn make_room(&mut self, bytes: usize) {
        self.move_to_front();
        self.buffer.reserve_exact(bytes.saturating_sub(self.buffer.len()));
    }

    fn move_to_front(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
    }

    /// Drops the message that was handed out last, and what it needed of memory beyond the usual.
    fn discard_taken(&mut self) {
        self.start += std::mem::take(&mut self.taken);
        if self.start < self.buffer.len() {
            return;
        }
        self.start = 0;
        self.buffer.clear();
        if std::mem::take(&mut self.enlarged) {
            self.buffer = Vec::new();
        }
    }

    /// A server that failed to fork a process for the session says so without any framing: an `E`,
    /// a line of text, a NUL. Its text then poses as a length, an enormous one, because no text begins
    /// with a byte smaller than a space. The length is the error all the same unless the NUL comes soon
    /// enough. How the bytes were split must not matter, so what lies past the limit is not looked at.
    fn unframed_error(&self, length: u32, error: ProtocolError) -> Result<(), ProtocolError> {
        let is_text = length >= u32::from_be_bytes([b' ', 0, 0, 0]);
        let text = match self.pending().strip_prefix(b"E") {
            Some(text) if is_text && !self.authenticated => text,
            _ => return Err(error),
        };
        let text = text.get(..LOGIN_ERROR_BODY_BYTES_MAX).unwrap_or(text);
        match CStr::from_bytes_until_nul(text) {
            Ok(line) => Err(ProtocolError::Unframed { text: readable(&line.to_string_lossy()) }),
            Err(_) if text.len() < LOGIN_ERROR_BODY_BYTES_MAX => Ok(()),
            Err(_) => Err(error),
        }
    }

    fn body_bytes(&self, tag: u8, length: u32) -> Result<usize, ProtocolError> {
        let limit = match (self.authenticated, tag) {
            (false, b'E') => LOGIN_ERROR_BODY_BYTES_MAX,
            // The last two are lists that belong to the login, whenever they come.
            (false, _) | (true, b'R' | b'v') => LOGIN_BODY_BYTES_MAX,
            (true, b'E' | b'N' | b'A') => BODY_BYTES_MAX,
            (true, _) => RESULT_BODY_BYTES_MAX,
        };
        usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(LENGTH_BYTES))
            .filter(|&body| body <= limit)
            .ok_or(ProtocolError::BadLength { tag, length })
    }
}

/// Makes text of a server that has not shown who it is fit to be shown: without anything that a
/// terminal acts on.
fn readable(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Frames {
        let mut frames = Frames::default();
        frames.authenticated();
        frames.space().extend_from_slice(bytes);
        frames
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_the_body_comes() {
        for (length, valid) in [
            (0_u32, false),
            (3, false),
            (4, true),
            (4 + (1 << 20), true),
            (5 + (1 << 20), false),
            (u32::MAX, false),
        ] {
            let mut frames = frames(&[&b"N"[..], &length.to_be_bytes()].concat());
            assert_eq!(
                !matches!(frames.next(), Err(ProtocolError::BadLength { .. })),
                valid,
                "{length}"
            );
        }
    }

    #[test]
    fn before_the_login_the_limits_are_stricter() {
        let length = 4 + 2_001_u32;
        let header = |tag| [&[tag][..], &length.to_be_bytes()].concat();
        let mut frames = Frames::default();
        frames.space().extend_from_slice(&header(b'R'));
        assert_eq!(frames.next(), Err(ProtocolError::BadLength { tag: b'R', length }));
        let mut frames = Frames::default();
        frames.space().extend_from_slice(&header(b'E'));
        assert_eq!(frames.next(), Ok(None));
    }

    #[test]
    fn an_error_without_framing_is_understood_once_it_is_whole() {
        let wire = b"Ecould not fork new process\n\0";
        for end in 0..wire.len() {
            let mut frames = Frames::default();
            frames.space().extend_from_slice(&wire[..end]);
            assert_eq!(frames.next(), Ok(None), "{end} bytes");
            frames.space().extend_from_slice(&wire[end..]);
            let text = String::from("could not fork new process");
            assert_eq!(frames.next(), Err(ProtocolError::Unframed { text }));
        }
    }

    #[test]
    fn a_large_message_leaves_no_large_buffer() {
        let notice =
            [&b"N"[..], &(4 + 100_001_u32).to_be_bytes(), b"M", &vec![b'x'; 99_998], b"\0\0"]
                .concat();
        let mut frames = frames(&notice);
        assert!(matches!(frames.next(), Ok(Some(BackendMessage::NoticeResponse(_)))));
        assert_eq!(frames.next(), Ok(None));
        assert!(frames.space().capacity() < 2 * READ_BYTES);
    }
}
