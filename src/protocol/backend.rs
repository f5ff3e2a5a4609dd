//! The messages that a backend sends, decoded without copying.
//!
//! Decoding is total: every sequence of bytes gives a message or an error. Text is kept as bytes,
//! because before the login is complete a server may speak in any encoding.

use super::ProtocolError;
use crate::error::{Report, ServerError};

/// A message of the backend, named as in PostgreSQL's manual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendMessage<'a> {
    /// The server asks for a proof of identity, or is content.
    Authentication(Authentication<'a>),
    /// What a `CancelRequest` for this session has to carry.
    BackendKeyData {
        /// Identifies the server process. Poolers send negative ones.
        process_id: i32,
        /// 4 bytes in protocol 3.0, up to 256 in later ones.
        secret_key: &'a [u8],
    },
    /// A setting of the server that clients care for, at login and whenever it changes.
    ParameterStatus {
        /// The setting.
        name: &'a [u8],
        /// Its value now.
        value: &'a [u8],
    },
    /// The server waits for the next request.
    ReadyForQuery(TransactionStatus),
    /// The names of the columns that follow.
    RowDescription(Vec<&'a [u8]>),
    /// The values of a row, `None` for null.
    DataRow(Vec<Option<&'a [u8]>>),
    /// A statement is done; the tag says which kind.
    CommandComplete {
        /// For instance `SELECT 1`.
        tag: &'a [u8],
    },
    /// The query had no statement in it.
    EmptyQueryResponse,
    /// What the called function returned, `None` for null.
    FunctionCallResponse(Option<&'a [u8]>),
    /// The request failed, or the session ends.
    ErrorResponse(ServerError),
    /// A warning or a piece of information.
    NoticeResponse(ServerError),
    /// Somebody used NOTIFY.
    NotificationResponse {
        /// The process that notified.
        process_id: i32,
        /// The channel.
        channel: &'a [u8],
        /// The payload.
        payload: &'a [u8],
    },
    /// The server does not speak the version, or does not know parameters, that were asked for.
    NegotiateProtocolVersion {
        /// The newest version that the server speaks, major in the upper half.
        version: u32,
        /// The names of the parameters that it does not know.
        unrecognized: Vec<&'a [u8]>,
    },
    /// The server wants data for a COPY.
    CopyInResponse,
    /// The server is about to send data of a COPY.
    CopyOutResponse,
    /// The server streams in both directions.
    CopyBothResponse,
}

/// What an `AuthenticationXxx` message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// The login is accepted.
    Ok,
    /// The password, in clear.
    CleartextPassword,
    /// The password, hashed with MD5.
    Md5Password {
        /// Goes into the hash.
        salt: [u8; 4],
    },
    /// A SASL exchange by one of these mechanisms.
    Sasl(Vec<&'a [u8]>),
    /// The next message of the SASL exchange.
    SaslContinue(&'a [u8]),
    /// The last message of the SASL exchange.
    SaslFinal(&'a [u8]),
    /// A method that this client does not have.
    Unsupported {
        /// Its name in PostgreSQL's manual.
        method: &'static str,
    },
}

/// Whether the session is inside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// No transaction is open.
    Idle,
    /// A transaction is open.
    InTransaction,
    /// A transaction is open that can only be rolled back.
    Failed,
}

impl<'a> BackendMessage<'a> {
    /// Decodes the message with this type byte and body.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] when the type is unknown, a field is missing or invalid, or bytes are left.
    pub fn decode(tag: u8, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields { tag, rest: body };
        let message = match tag {
            b'R' => Self::Authentication(Authentication::decode(&mut fields)?),
            b'K' => Self::BackendKeyData {
                process_id: fields.i32()?,
                secret_key: secret_key(&mut fields)?,
            },
            b'S' => Self::ParameterStatus { name: fields.text()?, value: fields.text()? },
            b'Z' => Self::ReadyForQuery(transaction_status(&mut fields)?),
            b'T' => Self::RowDescription(column_names(&mut fields)?),
            b'D' => Self::DataRow(column_values(&mut fields)?),
            b'C' => Self::CommandComplete { tag: fields.text()? },
            b'I' => Self::EmptyQueryResponse,
            b'V' => Self::FunctionCallResponse(fields.value()?),
            b'E' => Self::ErrorResponse(server_error(&mut fields)?),
            b'N' => Self::NoticeResponse(server_error(&mut fields)?),
            b'A' => Self::NotificationResponse {
                process_id: fields.i32()?,
                channel: fields.text()?,
                payload: fields.text()?,
            },
            b'v' => Self::NegotiateProtocolVersion {
                version: fields.u32()?,
                unrecognized: parameter_names(&mut fields)?,
            },
            b'G' => fields.ignored(Self::CopyInResponse),
            b'H' => fields.ignored(Self::CopyOutResponse),
            b'W' => fields.ignored(Self::CopyBothResponse),
            _ => return Err(ProtocolError::UnknownMessage { tag }),
        };
        fields.end()?;
        Ok(message)
    }

    /// The message's name in PostgreSQL's manual.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Authentication(_) => "Authentication",
            Self::BackendKeyData { .. } => "BackendKeyData",
            Self::ParameterStatus { .. } => "ParameterStatus",
            Self::ReadyForQuery(_) => "ReadyForQuery",
            Self::RowDescription(_) => "RowDescription",
            Self::DataRow(_) => "DataRow",
            Self::CommandComplete { .. } => "CommandComplete",
            Self::EmptyQueryResponse => "EmptyQueryResponse",
            Self::FunctionCallResponse(_) => "FunctionCallResponse",
            Self::ErrorResponse(_) => "ErrorResponse",
            Self::NoticeResponse(_) => "NoticeResponse",
            Self::NotificationResponse { .. } => "NotificationResponse",
            Self::NegotiateProtocolVersion { .. } => "NegotiateProtocolVersion",
            Self::CopyInResponse => "CopyInResponse",
            Self::CopyOutResponse => "CopyOutResponse",
            Self::CopyBothResponse => "CopyBothResponse",
        }
    }
}

impl<'a> Authentication<'a> {
    fn decode(fields: &mut Fields<'a>) -> Result<Self, ProtocolError> {
        Ok(match fields.u32()? {
            0 => Self::Ok,
            2 => fields.ignored(Self::Unsupported { method: "Kerberos V5" }),
            3 => Self::CleartextPassword,
            5 => Self::Md5Password { salt: fields.array()? },
            6 => fields.ignored(Self::Unsupported { method: "SCM credential" }),
            7 | 8 => fields.ignored(Self::Unsupported { method: "GSSAPI" }),
            9 => fields.ignored(Self::Unsupported { method: "SSPI" }),
            10 => Self::Sasl(texts_up_to_an_empty_one(fields)?),
            11 => Self::SaslContinue(fields.remainder()),
            12 => Self::SaslFinal(fields.remainder()),
            _ => fields.ignored(Self::Unsupported { method: "an unknown kind of" }),
        })
    }
}

fn secret_key<'a>(fields: &mut Fields<'a>) -> Result<&'a [u8], ProtocolError> {
    let key = fields.remainder();
    if (4..=256).contains(&key.len()) { Ok(key) } else { Err(fields.invalid("secret key")) }
}

fn transaction_status(fields: &mut Fields<'_>) -> Result<TransactionStatus, ProtocolError> {
    match fields.u8()? {
        b'I' => Ok(TransactionStatus::Idle),
        b'T' => Ok(TransactionStatus::InTransaction),
        b'E' => Ok(TransactionStatus::Failed),
        _ => Err(fields.invalid("transaction status")),
    }
}

/// Most columns that a result of PostgreSQL can have.
const COLUMNS_MAX: usize = 1_664;

/// What follows a column's name in a `RowDescription`: table, column number, type, size, modifier
/// and format.
const COLUMN_DETAIL_BYTES: usize = 4 + 2 + 4 + 2 + 4 + 2;

fn column_names<'a>(fields: &mut Fields<'a>) -> Result<Vec<&'a [u8]>, ProtocolError> {
    let count = fields.count(COLUMN_DETAIL_BYTES + 1)?;
    (0..count)
        .map(|_| {
            let name = fields.text()?;
            fields.bytes(COLUMN_DETAIL_BYTES)?;
            Ok(name)
        })
        .collect()
}

fn column_values<'a>(fields: &mut Fields<'a>) -> Result<Vec<Option<&'a [u8]>>, ProtocolError> {
    let count = fields.count(4)?;
    (0..count).map(|_| fields.value()).collect()
}

fn parameter_names<'a>(fields: &mut Fields<'a>) -> Result<Vec<&'a [u8]>, ProtocolError> {
    let count = fields.u32()?;
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(fields.text()?);
    }
    Ok(names)
}

fn texts_up_to_an_empty_one<'a>(fields: &mut Fields<'a>) -> Result<Vec<&'a [u8]>, ProtocolError> {
    let mut texts = Vec::new();
    loop {
        match fields.text()? {
            b"" => return Ok(texts),
            text => texts.push(text),
        }
    }
}

/// Most of each text of an error that is kept, in bytes.
const ERROR_TEXT_BYTES_MAX: usize = 8 << 10;

/// The fields of an `ErrorResponse` or `NoticeResponse`. Fields that are not needed are passed over,
/// as the manual asks for unknown ones.
fn server_error(fields: &mut Fields<'_>) -> Result<ServerError, ProtocolError> {
    let mut severity = None;
    let mut translated_severity = None;
    let mut sqlstate = None;
    let mut message = None;
    let mut detail = None;
    let mut hint = None;
    loop {
        let field = match fields.u8()? {
            0 => break,
            field => field,
        };
        let value = fields.text()?;
        let wanted = match field {
            b'V' => &mut severity,
            b'S' => &mut translated_severity,
            b'C' => &mut sqlstate,
            b'M' => &mut message,
            b'D' => &mut detail,
            b'H' => &mut hint,
            _ => continue,
        };
        let value = value.get(..ERROR_TEXT_BYTES_MAX).unwrap_or(value);
        *wanted = Some(String::from_utf8_lossy(value).into_owned());
    }
    Ok(ServerError::from(Report {
        // PgBouncer sends no `V`, and does not translate `S`.
        severity: severity.or(translated_severity).unwrap_or_default(),
        sqlstate: sqlstate.unwrap_or_default(),
        message: message.unwrap_or_default(),
        detail,
        hint,
    }))
}

/// A message body that is read from the front.
struct Fields<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        let (head, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(ProtocolError::UnexpectedEnd { tag: self.tag })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or(ProtocolError::UnexpectedEnd { tag: self.tag })?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.array().map(u8::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, ProtocolError> {
        self.array().map(i32::from_be_bytes)
    }

    /// The number of columns that follow, refused if the body is too short for so many.
    fn count(&mut self, item_bytes_min: usize) -> Result<usize, ProtocolError> {
        let count = usize::from(self.array().map(u16::from_be_bytes)?);
        if count > COLUMNS_MAX {
            return Err(self.invalid("number of columns"));
        }
        if self.rest.len() / item_bytes_min < count {
            return Err(ProtocolError::UnexpectedEnd { tag: self.tag });
        }
        Ok(count)
    }

    /// A text up to its NUL.
    fn text(&mut self) -> Result<&'a [u8], ProtocolError> {
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(ProtocolError::UnexpectedEnd { tag: self.tag })?;
        let text = self.bytes(end)?;
        self.u8()?;
        Ok(text)
    }

    /// A value behind its length, where -1 stands for null.
    fn value(&mut self) -> Result<Option<&'a [u8]>, ProtocolError> {
        match self.i32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| self.invalid("value length"))?;
                self.bytes(length).map(Some)
            }
        }
    }

    fn remainder(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// For messages whose fields do not matter, because receiving them is an error.
    fn ignored<T>(&mut self, message: T) -> T {
        self.rest = &[];
        message
    }

    fn invalid(&self, field: &'static str) -> ProtocolError {
        ProtocolError::InvalidField { tag: self.tag, field }
    }

    fn end(&self) -> Result<(), ProtocolError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ProtocolError::TrailingBytes { tag: self.tag })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sqlstate: &str) -> ServerError {
        ServerError::from(Report {
            severity: String::from("FATAL"),
            sqlstate: String::from(sqlstate),
            message: String::from("m"),
            detail: None,
            hint: Some(String::from("h")),
        })
    }

    /// One well-formed message of each kind, and what it means.
    fn samples() -> Vec<(u8, &'static [u8], BackendMessage<'static>)> {
        use BackendMessage as M;
        vec![
            (b'R', b"\0\0\0\0", M::Authentication(Authentication::Ok)),
            (b'R', b"\0\0\0\x03", M::Authentication(Authentication::CleartextPassword)),
            (
                b'R',
                b"\0\0\0\x05abcd",
                M::Authentication(Authentication::Md5Password { salt: *b"abcd" }),
            ),
            (
                b'R',
                b"\0\0\0\x0aA\0B\0\0",
                M::Authentication(Authentication::Sasl(vec![b"A", b"B"])),
            ),
            (
                b'K',
                b"\xff\xff\xff\xfekey!",
                M::BackendKeyData { process_id: -2, secret_key: b"key!" },
            ),
            (b'S', b"a\0b\0", M::ParameterStatus { name: b"a", value: b"b" }),
            (b'Z', b"I", M::ReadyForQuery(TransactionStatus::Idle)),
            (
                b'T',
                b"\0\x01n\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
                M::RowDescription(vec![b"n"]),
            ),
            (b'D', b"\0\x02\0\0\0\x01x\xff\xff\xff\xff", M::DataRow(vec![Some(b"x"), None])),
            (b'C', b"SELECT 1\0", M::CommandComplete { tag: b"SELECT 1" }),
            (b'V', b"\0\0\0\x01\x01", M::FunctionCallResponse(Some(b"\x01"))),
            (b'E', b"SFATALE\0VFATAL\0C57P01\0Mm\0Hh\0Xx\0\0", M::ErrorResponse(error("57P01"))),
            (b'N', b"SFATAL\0C00000\0Mm\0Hh\0\0", M::NoticeResponse(error("00000"))),
            (
                b'A',
                b"\0\0\0\x07c\0p\0",
                M::NotificationResponse { process_id: 7, channel: b"c", payload: b"p" },
            ),
            (
                b'v',
                b"\0\x03\0\0\0\0\0\x01_pq_.x\0",
                M::NegotiateProtocolVersion { version: 3 << 16, unrecognized: vec![b"_pq_.x"] },
            ),
        ]
    }

    #[test]
    fn each_message_is_understood_and_nothing_shorter_or_longer() {
        for (tag, body, message) in samples() {
            assert_eq!(BackendMessage::decode(tag, body).as_ref(), Ok(&message));
            for end in 0..body.len() {
                let cut = BackendMessage::decode(tag, &body[..end]);
                assert!(cut.is_err(), "{} cut to {end} bytes: {cut:?}", message.name());
            }
            if tag != b'K' {
                let longer = [body, b"\0"].concat();
                let error = BackendMessage::decode(tag, &longer);
                assert_eq!(error, Err(ProtocolError::TrailingBytes { tag }), "{}", message.name());
            }
        }
    }

    #[test]
    fn a_cancel_key_has_4_to_256_bytes() {
        for (length, valid) in [(3, false), (4, true), (256, true), (257, false)] {
            let body = vec![1; 4 + length];
            assert_eq!(BackendMessage::decode(b'K', &body).is_ok(), valid, "{length} bytes");
        }
    }

    #[test]
    fn announced_counts_allocate_nothing_that_is_not_there() {
        for (tag, body) in
            [(b'D', &b"\x06\x80"[..]), (b'T', b"\x06\x80"), (b'v', b"\0\x03\0\0\xff\xff\xff\xff")]
        {
            let refused = BackendMessage::decode(tag, body);
            assert_eq!(refused, Err(ProtocolError::UnexpectedEnd { tag }));
        }
    }

    #[test]
    fn a_result_has_no_more_columns_than_postgresql_can_give() {
        let row = |columns: u16| {
            [&columns.to_be_bytes()[..], &vec![0xff; 4 * usize::from(columns)]].concat()
        };
        assert!(BackendMessage::decode(b'D', &row(1_664)).is_ok());
        let refused = BackendMessage::decode(b'D', &row(1_665)).unwrap_err();
        assert_eq!(refused, ProtocolError::InvalidField { tag: b'D', field: "number of columns" });
    }

    #[test]
    fn a_negative_length_other_than_null_is_refused() {
        let refused = BackendMessage::decode(b'V', b"\xff\xff\xff\xfe");
        assert_eq!(refused, Err(ProtocolError::InvalidField { tag: b'V', field: "value length" }));
    }

    #[test]
    fn text_in_another_encoding_is_shown_as_well_as_it_can_be() {
        let decoded = BackendMessage::decode(b'E', b"C28000\0M\xe9chec\0\0");
        let Ok(BackendMessage::ErrorResponse(error)) = decoded else { panic!("{decoded:?}") };
        assert_eq!(error.message(), "\u{fffd}chec");
    }
}
