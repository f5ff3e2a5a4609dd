use pglock::ServerError;
use pglock::protocol::{CallResult, Connection, Credentials, Event, ProtocolError, ServerIdentity};

use super::input::Input;
use super::scram::PASSWORD;

/// Most that a session may take for what the server sends, in bytes.
const MEMORY_BYTES_MAX: usize = 2 << 20;

/// Most bytes of the server in one script: enough for the longest message and a few more.
const SERVER_BYTES_MAX: usize = 3 << 19;

/// Most steps of a password's derivation, of 4,096 rounds each. A hostile server can ask for
/// thousands; what comes after them is the same.
const DERIVING_MAX: usize = 3;

/// The server's final messages for [`PASSWORD`] and this target's nonce that `corpus/` and the
/// dictionary have; they were computed with Python's `hashlib`. Nobody can come upon another one.
const SERVER_FINALS: [&[u8]; 2] = [
    b"v=qt+3iRBvxudpwBZdWH3Ic27HjAjQ5OL93AGEDLo5/XI=",
    b"v=tarVz1beIDAypJtxz7mvzCnWw9SS8yo0v9LF8t99EGc=",
];

/// A session: an arbitrary list of what the server sends and what the client wants, played three times
/// with the server's bytes split differently. Each has to give the same events and the same answers.
pub fn connection(data: &[u8]) {
    let script = Script::read(&mut Input::new(data));
    let as_a_whole = script.play(Split::None);
    assert_eq!(as_a_whole, script.play(Split::AsRead), "split as a socket splits");
    assert_eq!(as_a_whole, script.play(Split::Bytes), "split between any two bytes");
    let proof_needed = as_a_whole.seen.contains(&Seen::Deriving);
    let logged_in = as_a_whole.seen.iter().any(|seen| matches!(seen, Seen::LoggedIn(_)));
    assert!(!(proof_needed && logged_in) || script.has_proof(), "logged in without a proof");
    script.check_outgoing(&as_a_whole.outgoing);
}

/// What happens in a session.
struct Script {
    user: String,
    password: Option<String>,
    cleartext_permitted: bool,
    steps: Vec<Step>,
    /// How many bytes the server may still send.
    room: usize,
}

enum Step {
    /// The server sends this. Two of them never follow each other.
    Receive(Vec<u8>),
    Call {
        function: u32,
        arguments: [Vec<u8>; 2],
    },
    Query(String),
    Terminate,
    Sent(usize),
}

/// How the server's bytes come.
#[derive(Clone, Copy)]
enum Split {
    /// Each [`Step::Receive`] in one piece, or, if it is long, in few.
    None,
    /// As a socket gives them: whatever there is room for.
    AsRead,
    /// One by one, or, if there are many, in an odd number.
    Bytes,
}

/// What came of a script.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    seen: Vec<Seen>,
    outgoing: Vec<u8>,
}

/// An [`Event`] without its borrow, or an answer to what the client wanted.
#[derive(Debug, PartialEq)]
enum Seen {
    Progress,
    Deriving,
    LoggedIn(ServerIdentity),
    Row(Vec<Option<Vec<u8>>>),
    Returned(Option<Vec<u8>>),
    Failed(ServerError),
    Ready,
    Ended(ServerError),
    Violation(ProtocolError),
    Request { accepted: bool },
}

impl Script {
    fn read(input: &mut Input<'_>) -> Self {
        let choices = input.u8();
        let chosen = choices & 4 != 0;
        let mut script = Self {
            user: if chosen { input.text() } else { String::from("alice") },
            password: match (choices & 1 != 0, chosen) {
                (false, _) => None,
                (true, false) => Some(String::from(PASSWORD)),
                (true, true) => Some(input.text()),
            },
            cleartext_permitted: choices & 2 != 0,
            steps: Vec::new(),
            room: SERVER_BYTES_MAX,
        };
        while !input.is_empty() {
            let step = Step::read(input);
            script.push(step);
        }
        script
    }

    fn push(&mut self, step: Step) {
        let Step::Receive(mut bytes) = step else {
            return self.steps.push(step);
        };
        bytes.truncate(self.room);
        self.room = self.room.saturating_sub(bytes.len());
        match self.steps.last_mut() {
            Some(Step::Receive(earlier)) => earlier.extend(bytes),
            _ => self.steps.push(Step::Receive(bytes)),
        }
    }

    /// Whether the server at some time sends the proof that it knows the password.
    fn has_proof(&self) -> bool {
        let mut received = Vec::new();
        for step in &self.steps {
            if let Step::Receive(bytes) = step {
                received.extend_from_slice(bytes);
            }
        }
        let begins = |at| {
            SERVER_FINALS
                .iter()
                .any(|proof| received.get(at..).is_some_and(|rest| rest.starts_with(proof)))
        };
        received.iter().zip(0..).any(|(&byte, at)| byte == b'v' && begins(at))
    }

    fn play(&self, split: Split) -> Outcome {
        let mut session = Session::begin(self, split);
        for step in &self.steps {
            if !session.is_worth_going_on() {
                break;
            }
            session.step(step);
        }
        session.end()
    }

    /// Checks that what the client sent is a startup message that nothing was smuggled into, and then
    /// whole messages that a client may send.
    fn check_outgoing(&self, outgoing: &[u8]) {
        let (startup, mut rest) = split_at_length(outgoing);
        let user = self.user.split('\0').next().unwrap_or_default();
        let expected = format!("\0\x03\0\0user\0{user}\0database\0app\0\0");
        assert_eq!(startup, expected.as_bytes());
        while let Some((&tag, message)) = rest.split_first() {
            let (body, after) = split_at_length(message);
            assert!(b"pFQX".contains(&tag), "sent {}", char::from(tag));
            if tag == b'p' && !self.cleartext_permitted {
                assert_ne!(body.strip_suffix(b"\0"), self.password.as_deref().map(str::as_bytes));
            }
            rest = after;
        }
    }
}

/// Splits a body off that stands behind its length.
fn split_at_length(message: &[u8]) -> (&[u8], &[u8]) {
    let parts = message.split_first_chunk().and_then(|(length, rest)| {
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        rest.split_at_checked(length.checked_sub(4)?)
    });
    assert!(parts.is_some(), "sent an incomplete message: {message:?}");
    parts.unwrap_or_default()
}

impl Step {
    fn read(input: &mut Input<'_>) -> Self {
        match input.u8() % 9 {
            0 => Self::Receive(input.bytes().to_vec()),
            1 => Self::Receive(message(input.u8(), input.bytes())),
            2 => Self::Receive(trust_login()),
            3 => Self::Receive(message(b'V', b"\0\0\0\x01\x01")),
            4 => Self::Receive(flood(input)),
            5 => Self::Call {
                function: input.u32(),
                arguments: [input.bytes().to_vec(), input.bytes().to_vec()],
            },
            6 => Self::Query(input.text()),
            7 => Self::Terminate,
            _ => Self::Sent(input.u16().into()),
        }
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).saturating_add(4);
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

fn trust_login() -> Vec<u8> {
    b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I".to_vec()
}

/// One byte very often, to fill messages that are longer than the fuzzer's inputs. The fewer bytes the
/// more likely, because they take time.
fn flood(input: &mut Input<'_>) -> Vec<u8> {
    let byte = input.u8();
    let count = 1_usize.checked_shl(u32::from(input.u8() % 21)).unwrap_or(0);
    let less = usize::from(input.u16());
    vec![byte; count.saturating_sub(less)]
}

/// A script that is being played.
struct Session {
    connection: Connection,
    split: Split,
    phase: Phase,
    outcome: Outcome,
    derivings: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Login,
    LoggedIn,
    /// The server ended the session, or the client did. Words may still come.
    Over,
    /// The server broke the protocol, and the socket would be closed.
    Closed,
}

impl Session {
    fn begin(script: &Script, split: Split) -> Self {
        let nonce = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];
        let mut credentials = Credentials::new(script.user.clone(), script.password.clone(), nonce);
        credentials.cleartext_permitted = script.cleartext_permitted;
        Self {
            connection: Connection::new(credentials, &[("database", "app")]),
            split,
            phase: Phase::Login,
            outcome: Outcome::default(),
            derivings: 0,
        }
    }

    fn is_worth_going_on(&self) -> bool {
        self.derivings < DERIVING_MAX
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Receive(bytes) => self.receive(bytes),
            Step::Call { function, arguments: [first, second] } => {
                let idle = self.connection.is_idle();
                let accepted = self.connection.call(*function, [first, second]).is_ok();
                self.check_request(idle, accepted);
            }
            Step::Query(sql) => {
                let idle = self.connection.is_idle();
                let ask = if sql.contains(';') { Connection::script } else { Connection::query };
                let accepted = ask(&mut self.connection, sql).is_ok();
                self.check_request(idle, accepted);
            }
            Step::Terminate => {
                self.connection.terminate();
                self.phase = self.phase.max(Phase::Over);
            }
            Step::Sent(count) => {
                let sent = self.connection.outgoing().get(..*count);
                let sent = sent.unwrap_or(self.connection.outgoing()).to_vec();
                self.connection.sent(*count);
                self.outcome.outgoing.extend(sent);
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        match self.split {
            Split::None => bytes.chunks(256 << 10).for_each(|piece| self.receive_piece(piece)),
            Split::AsRead => self.receive_as_read(bytes),
            Split::Bytes => {
                let at_once = if bytes.len() > 4 << 10 { 509 } else { 1 };
                bytes.chunks(at_once).for_each(|piece| self.receive_piece(piece));
            }
        }
    }

    fn receive_as_read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.connection.received();
            let room = space.capacity().saturating_sub(space.len());
            assert!(room > 0, "no room for the next read");
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            self.receive_piece(piece);
            bytes = rest;
        }
    }

    fn receive_piece(&mut self, piece: &[u8]) {
        if self.phase == Phase::Closed || !self.is_worth_going_on() {
            return;
        }
        self.connection.received().extend_from_slice(piece);
        self.poll();
        // A piece that is longer than the room that was offered makes the buffer as long as it likes.
        if !matches!(self.split, Split::None) {
            let bytes = self.connection.received().capacity();
            assert!(bytes < MEMORY_BYTES_MAX, "a buffer of {bytes} bytes");
        }
    }

    fn poll(&mut self) {
        while self.is_worth_going_on() {
            self.take_short_cut();
            let seen = match self.connection.poll_event() {
                Ok(None) => return,
                Ok(Some(event)) => Seen::from(event),
                Err(error) => Seen::Violation(error),
            };
            let closed = matches!(seen, Seen::Violation(_));
            self.note(seen);
            if closed {
                return;
            }
        }
    }

    /// Takes the answer to a call as a whole where bytes come as they are read. That has to tell what the
    /// events tell where they come otherwise.
    fn take_short_cut(&mut self) {
        if !matches!(self.split, Split::AsRead) {
            return;
        }
        let Some(result) = self.connection.take_call_result() else { return };
        assert!(self.phase == Phase::LoggedIn && self.connection.is_idle());
        let value = match result {
            CallResult::Void => vec![],
            CallResult::False => vec![0],
            CallResult::True => vec![1],
        };
        self.outcome.seen.extend([Seen::Returned(Some(value)), Seen::Ready]);
    }

    /// Checks that the event may come now.
    fn note(&mut self, seen: Seen) {
        let expected = match &seen {
            Seen::Progress | Seen::Violation(_) | Seen::Ended(_) => true,
            Seen::Deriving | Seen::LoggedIn(_) => self.phase == Phase::Login,
            Seen::Row(_) | Seen::Returned(_) | Seen::Failed(_) | Seen::Ready => {
                self.phase == Phase::LoggedIn
            }
            Seen::Request { .. } => false,
        };
        assert!(expected, "{seen:?} after {:?}", self.outcome.seen);
        self.phase = match &seen {
            Seen::LoggedIn(_) => Phase::LoggedIn,
            Seen::Ended(_) => Phase::Over,
            Seen::Violation(_) => Phase::Closed,
            _ => self.phase,
        };
        self.derivings += usize::from(seen == Seen::Deriving);
        let idle = matches!(seen, Seen::LoggedIn(_) | Seen::Ready)
            || seen == Seen::Progress && self.connection.is_idle();
        assert_eq!(self.connection.is_idle(), idle, "after {seen:?}");
        self.outcome.seen.push(seen);
    }

    fn check_request(&mut self, idle: bool, accepted: bool) {
        assert_eq!(accepted, idle);
        assert!(!idle || self.phase == Phase::LoggedIn);
        assert!(!self.connection.is_idle());
        self.outcome.seen.push(Seen::Request { accepted });
    }

    fn end(mut self) -> Outcome {
        // What was refused stays refused, however often it is asked for.
        if self.phase == Phase::Closed {
            let known = self.outcome.seen.len();
            self.poll();
            self.outcome.seen.truncate(known);
            assert!(self.connection.call(2882, [b"12345678"]).is_err());
            assert!(self.connection.query("").is_err());
        }
        assert!(!format!("{:?}", self.connection).contains(PASSWORD));
        self.outcome.outgoing.extend(self.connection.outgoing());
        self.outcome
    }
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Progress | Event::Noticed(_) => Self::Progress,
            Event::Deriving => Self::Deriving,
            Event::LoggedIn(identity) => Self::LoggedIn(*identity),
            Event::Row(values) => {
                Self::Row(values.into_iter().map(|value| value.map(<[u8]>::to_vec)).collect())
            }
            Event::Returned(value) => Self::Returned(value.map(<[u8]>::to_vec)),
            Event::Failed(error) => Self::Failed(error),
            Event::Ready => Self::Ready,
            Event::Ended(error) => Self::Ended(error),
        }
    }
}
