use pglock::protocol::{
    BODY_BYTES_MAX, BackendMessage, Connection, Credentials, Event, ProtocolError,
    RESULT_BODY_BYTES_MAX,
};

/// The decoder: the first byte is a message's type and the rest its body. Then the same bytes as a
/// stream of messages, which a session that waits for nothing has to take as a plain reading of
/// PostgreSQL's manual takes it.
pub fn backend(data: &[u8]) {
    let Some((&tag, body)) = data.split_first() else { return };
    decode(tag, body);
    stream(data);
}

fn decode(tag: u8, body: &[u8]) {
    let decoded = BackendMessage::decode(tag, body);
    assert_eq!(decoded, BackendMessage::decode(tag, body));
    match decoded {
        Ok(message) => {
            assert!(!message.name().is_empty());
            assert!(!format!("{message:?}").is_empty());
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{text}");
        }
    }
}

fn stream(mut bytes: &[u8]) {
    let mut connection = logged_in();
    connection.received().extend_from_slice(bytes);
    loop {
        if let [b'R' | b'v', ..] = bytes {
            // They belong to the login and are refused, some of them before they are complete.
            return assert!(!matches!(connection.poll_event(), Ok(Some(_))));
        }
        let expected = expected_event(&mut bytes);
        assert_eq!(connection.poll_event(), expected);
        if !matches!(expected, Ok(Some(Event::Progress | Event::Noticed(_)))) {
            return;
        }
    }
}

/// A session right after its login, of which nothing was asked.
fn logged_in() -> Connection {
    let credentials = Credentials::new(String::from("alice"), None, [0; 18]);
    let mut connection = Connection::new(credentials, &[]);
    connection
        .received()
        .extend_from_slice(b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I");
    while let Ok(Some(_)) = connection.poll_event() {}
    assert!(connection.is_idle());
    connection
}

/// Takes the first message off the stream.
fn expected_event<'a>(stream: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
    let Some((&[tag, a, b, c, d], rest)) = stream.split_first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    let body_bytes = usize::try_from(length).ok().and_then(|length| length.checked_sub(4));
    let most =
        if matches!(tag, b'A' | b'E' | b'N') { BODY_BYTES_MAX } else { RESULT_BODY_BYTES_MAX };
    let Some(body_bytes) = body_bytes.filter(|&bytes| bytes <= most) else {
        return Err(ProtocolError::BadLength { tag, length });
    };
    let Some((body, rest)) = rest.split_at_checked(body_bytes) else { return Ok(None) };
    *stream = rest;
    match BackendMessage::decode(tag, body)? {
        BackendMessage::NoticeResponse(notice) => Ok(Some(Event::Noticed(notice))),
        BackendMessage::ParameterStatus { .. } | BackendMessage::NotificationResponse { .. } => {
            Ok(Some(Event::Progress))
        }
        BackendMessage::ErrorResponse(error) => Ok(Some(Event::Ended(error))),
        other => Err(ProtocolError::UnexpectedMessage {
            message: other.name(),
            during: "a pause between requests",
        }),
    }
}
