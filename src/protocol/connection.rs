//! One side of a session: bytes of the backend in, events out, bytes for the backend out.
//!
//! ```text
//!           ReadyForQuery            call, query
//!   Login ────────────────▶ Idle ────────────────▶ Busy
//!     │                      │ ▲  ReadyForQuery     │
//!     │                      │ └────────────────────┘
//!     └──────────────────────┴──▶ Over ◀── a violation, FATAL, terminate
//! ```
//!
//! A request is answered by results or an error, and then `ReadyForQuery`; only after that may the
//! next one be sent. Notices and changed parameters may come at any time after the login. A transaction
//! that is open between requests is an error, unless the caller opens some.

use zeroize::Zeroize;

use super::frames::Frames;
use super::login::{Credentials, Login, ServerIdentity, Step};
use super::{BackendMessage, ProtocolError, TransactionStatus, frontend};
use crate::error::ServerError;

/// The protocol's state machine of one session, without any input or output of its own.
pub struct Connection {
    frames: Frames,
    out: Outgoing,
    phase: Phase,
    transaction: Transaction,
}

/// What is known of transactions.
struct Transaction {
    status: TransactionStatus,
    expected: bool,
}

/// Most room for outgoing bytes that is kept when all are sent, in bytes: a lock is asked for in 29.
const KEPT_BYTES_MAX: usize = 256;

/// What is to be sent, and how much of it has been.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    fn clear(&mut self) {
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }
}

/// What was never sent may be the password.
impl Drop for Outgoing {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

enum Phase {
    Login(Box<Login>),
    Idle,
    Busy { request: Request, answer: Answer },
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Call,
    Query,
    /// A query of several statements.
    Script,
}

/// How far the server has come with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Pending,
    Given,
    Failed,
}

/// What a backend's message means for whoever drives the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Something that asks for nothing: a step of the login, a changed parameter.
    Progress,
    /// The server warns or informs.
    Noticed(ServerError),
    /// The password is being prepared. Polling again goes on with it; an asynchronous caller yields
    /// in between.
    Deriving,
    /// The login is complete and a request may be sent.
    LoggedIn(Box<ServerIdentity>),
    /// A row of the query's result, `None` for null.
    Row(Vec<Option<&'a [u8]>>),
    /// The called function returned this, `None` for null.
    Returned(Option<&'a [u8]>),
    /// The request failed; [`Event::Ready`] follows.
    Failed(ServerError),
    /// The request is over and the next one may be sent.
    Ready,
    /// The server ends the session and says why.
    Ended(ServerError),
}

/// What a function returns that has no more to say than yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// Nothing: it did what it does.
    Void,
    /// `false`.
    False,
    /// `true`.
    True,
}

/// A request was made while the connection could not take one: before the login was complete, before
/// the last request was over, or after the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotReady;

impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection cannot take a request now")
    }
}

impl std::error::Error for NotReady {}

impl Connection {
    /// Begins a session with this login and these startup parameters (`user` is added).
    #[must_use]
    pub fn new(credentials: Credentials, parameters: &[(&str, &str)]) -> Self {
        let mut out = Outgoing::default();
        let user = [("user", credentials.user.as_str())];
        frontend::startup_message(
            user.into_iter().chain(parameters.iter().copied()),
            &mut out.bytes,
        );
        Self {
            frames: Frames::default(),
            out,
            phase: Phase::Login(Box::new(Login::new(credentials))),
            transaction: Transaction { status: TransactionStatus::Idle, expected: false },
        }
    }

    /// Where bytes from the backend belong. Whoever puts some there polls for events next.
    pub fn received(&mut self) -> &mut Vec<u8> {
        self.frames.space()
    }

    /// Whether nothing has come that is still to be polled for.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.frames.is_empty()
    }

    /// The bytes that are to be sent, in this order.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        self.out.bytes.get(self.out.sent..).unwrap_or_default()
    }

    /// Says that the first bytes of [`outgoing`](Self::outgoing) were sent.
    pub fn sent(&mut self, count: usize) {
        self.out.sent += count;
        if self.out.sent >= self.out.bytes.len() {
            if let Phase::Login(_) = self.phase {
                // It may have been the password.
                self.out.bytes.zeroize();
            }
            self.out.clear();
        }
    }

    /// Whether a request may be sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Permits requests that open transactions and leave them open.
    pub fn expect_transactions(&mut self) {
        self.transaction.expected = true;
    }

    /// Whether a transaction is open, as the last `ReadyForQuery` had it.
    #[must_use]
    pub fn transaction_status(&self) -> TransactionStatus {
        self.transaction.status
    }

    /// Sends a `FunctionCall`.
    ///
    /// # Errors
    ///
    /// [`NotReady`] unless the connection is idle.
    pub fn call<const N: usize>(
        &mut self,
        function: u32,
        arguments: [&[u8]; N],
    ) -> Result<(), NotReady> {
        self.begin(Request::Call)?;
        frontend::function_call(function, arguments, &mut self.out.bytes);
        Ok(())
    }

    /// Sends a `Query` of one statement.
    ///
    /// # Errors
    ///
    /// [`NotReady`] unless the connection is idle.
    pub fn query(&mut self, sql: &str) -> Result<(), NotReady> {
        self.begin(Request::Query)?;
        frontend::query(sql, &mut self.out.bytes);
        Ok(())
    }

    /// Sends a `Query` of any number of statements, each with a result of its own.
    ///
    /// # Errors
    ///
    /// [`NotReady`] unless the connection is idle.
    pub fn script(&mut self, sql: &str) -> Result<(), NotReady> {
        self.begin(Request::Script)?;
        frontend::query(sql, &mut self.out.bytes);
        Ok(())
    }

    /// Sends a `Terminate`. Nothing can be asked after it.
    pub fn terminate(&mut self) {
        self.phase = Phase::Over;
        frontend::terminate(&mut self.out.bytes);
    }

    /// What the received bytes say next, or `None` if more of them are needed.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] when the backend broke the protocol or the login failed on our side. Nothing
    /// can be asked afterwards, and the socket should be closed.
    pub fn poll_event(&mut self) -> Result<Option<Event<'_>>, ProtocolError> {
        let Self { phase, frames, out, transaction } = self;
        if frames.is_empty() && !matches!(phase, Phase::Login(_)) {
            return Ok(None);
        }
        let event = next_event(phase, frames, &mut out.bytes, transaction);
        if matches!(event, Err(_) | Ok(Some(Event::Ended(_)))) {
            self.phase = Phase::Over;
        }
        event
    }

    /// What the called function returned, if the answer has come whole and nothing else has: a short cut
    /// for what nearly every answer is. [`poll_event`](Self::poll_event) would tell the same in two
    /// events, and tells everything else.
    pub fn take_call_result(&mut self) -> Option<CallResult> {
        let Phase::Busy { request: Request::Call, answer: Answer::Pending } = self.phase else {
            return None;
        };
        let result = self.frames.take_call_answer()?;
        self.phase = Phase::Idle;
        self.transaction.status = TransactionStatus::Idle;
        Some(result)
    }

    fn begin(&mut self, request: Request) -> Result<(), NotReady> {
        if !self.is_idle() {
            return Err(NotReady);
        }
        self.phase = Phase::Busy { request, answer: Answer::Pending };
        Ok(())
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("during", &self.phase.name())
            .field("outgoing_bytes", &self.outgoing().len())
            .finish_non_exhaustive()
    }
}

impl Request {
    /// Whether the result of a statement may come next.
    fn takes_result_after(self, answer: Answer) -> bool {
        match self {
            Self::Call => false,
            Self::Query => answer == Answer::Pending,
            Self::Script => answer != Answer::Failed,
        }
    }
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Login(_) => "the login",
            Self::Idle => "a pause between requests",
            Self::Busy { request: Request::Call, .. } => "a function call",
            Self::Busy { request: Request::Query | Request::Script, .. } => "a query",
            Self::Over => "the end of the session",
        }
    }
}

fn next_event<'a>(
    phase: &mut Phase,
    frames: &'a mut Frames,
    out: &mut Vec<u8>,
    transaction: &mut Transaction,
) -> Result<Option<Event<'a>>, ProtocolError> {
    if let Phase::Login(login) = phase {
        if login.derive(out) {
            return Ok(Some(Event::Deriving));
        }
        let step = match frames.next()? {
            None => return Ok(None),
            Some(BackendMessage::ErrorResponse(error)) => return Ok(Some(Event::Ended(error))),
            Some(message) => login.handle(message, out)?,
        };
        return Ok(Some(match step {
            Step::More => Event::Progress,
            Step::Accepted => {
                frames.authenticated();
                Event::Progress
            }
            Step::Complete(identity) => {
                *phase = Phase::Idle;
                Event::LoggedIn(identity)
            }
        }));
    }
    match frames.next()? {
        Some(message) => session_event(phase, transaction, message).map(Some),
        None => Ok(None),
    }
}

fn session_event<'a>(
    phase: &mut Phase,
    transaction: &mut Transaction,
    message: BackendMessage<'a>,
) -> Result<Event<'a>, ProtocolError> {
    match (&mut *phase, message) {
        (_, BackendMessage::NoticeResponse(notice)) => Ok(Event::Noticed(notice)),
        (
            _,
            BackendMessage::ParameterStatus { .. } | BackendMessage::NotificationResponse { .. },
        ) => Ok(Event::Progress),
        (Phase::Busy { answer, .. }, BackendMessage::ErrorResponse(error))
            if !error.ends_session() && *answer != Answer::Failed =>
        {
            *answer = Answer::Failed;
            Ok(Event::Failed(error))
        }
        // Nothing was asked, so this is the reason why the connection is about to be closed.
        (_, BackendMessage::ErrorResponse(error)) => Ok(Event::Ended(error)),
        (
            Phase::Busy { request: Request::Call, answer: answer @ Answer::Pending },
            BackendMessage::FunctionCallResponse(value),
        ) => {
            *answer = Answer::Given;
            Ok(Event::Returned(value))
        }
        (
            Phase::Busy { request: Request::Query | Request::Script, answer: Answer::Pending },
            BackendMessage::DataRow(values),
        ) => Ok(Event::Row(values)),
        (Phase::Busy { request, answer }, BackendMessage::RowDescription(_))
            if request.takes_result_after(*answer) =>
        {
            *answer = Answer::Pending;
            Ok(Event::Progress)
        }
        (
            Phase::Busy { request, answer },
            BackendMessage::CommandComplete { .. } | BackendMessage::EmptyQueryResponse,
        ) if request.takes_result_after(*answer) => {
            *answer = Answer::Given;
            Ok(Event::Progress)
        }
        (
            Phase::Busy { answer: Answer::Given | Answer::Failed, .. },
            BackendMessage::ReadyForQuery(status),
        ) if transaction.expected || status == TransactionStatus::Idle => {
            *phase = Phase::Idle;
            transaction.status = status;
            Ok(Event::Ready)
        }
        (phase, message) => {
            Err(ProtocolError::UnexpectedMessage { message: message.name(), during: phase.name() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that called a function, and to which these bytes have come.
    fn calling(received: &[u8]) -> Connection {
        let credentials = Credentials::new(String::from("u"), None, [0; 18]);
        let mut connection = Connection::new(credentials, &[]);
        let login = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";
        connection.received().extend_from_slice(login);
        while let Ok(Some(_)) = connection.poll_event() {}
        connection.call(2882, [&[0; 8]]).unwrap();
        connection.received().extend_from_slice(received);
        connection
    }

    const ANSWERS: [(&[u8], &[u8], CallResult); 3] = [
        (b"V\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", b"", CallResult::Void),
        (b"V\0\0\0\x09\0\0\0\x01\0Z\0\0\0\x05I", b"\0", CallResult::False),
        (b"V\0\0\0\x09\0\0\0\x01\x01Z\0\0\0\x05I", b"\x01", CallResult::True),
    ];

    #[test]
    fn the_short_cut_tells_what_the_events_tell() {
        for (answer, value, result) in ANSWERS {
            let mut connection = calling(answer);
            assert_eq!(connection.poll_event(), Ok(Some(Event::Returned(Some(value)))));
            assert_eq!(connection.poll_event(), Ok(Some(Event::Ready)));

            let mut connection = calling(answer);
            assert_eq!(connection.take_call_result(), Some(result));
            assert!(connection.is_idle() && connection.is_drained());
            assert_eq!(connection.poll_event(), Ok(None));
        }
    }

    #[test]
    fn the_short_cut_takes_nothing_but_a_whole_answer() {
        for (answer, value, _) in ANSWERS {
            let followed = [answer, b"N\0\0\0\x05\0"].concat();
            let led = [b"N\0\0\0\x05\0", answer].concat();
            let mut in_transaction = answer.to_vec();
            *in_transaction.last_mut().unwrap() = b'T';
            let cut = (0..answer.len()).map(|end| answer[..end].to_vec());
            for received in cut.chain([followed, led, in_transaction]) {
                let mut connection = calling(&received);
                assert_eq!(connection.take_call_result(), None, "{received:?}");
                let first = connection.poll_event().unwrap();
                let is_whole = received.len() >= 9 + value.len();
                assert_eq!(first.is_some(), is_whole, "{received:?}");
            }
        }
    }

    /// What becomes of these answers to a query of several statements, and of a single one.
    fn answers_to_queries(received: &[u8]) -> [bool; 2] {
        [Connection::script, Connection::query].map(|ask| {
            let mut connection = calling(b"V\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
            connection.take_call_result().unwrap();
            ask(&mut connection, "SELECT").unwrap();
            connection.received().extend_from_slice(received);
            while connection.poll_event().is_ok_and(|event| event.is_some()) {}
            connection.is_idle()
        })
    }

    #[test]
    fn each_statement_of_a_script_has_a_result_and_a_query_has_one() {
        const SET: &[u8] = b"C\0\0\0\x08SET\0";
        const ROWS: &[u8] = b"T\0\0\0\x06\0\0D\0\0\0\x06\0\0C\0\0\0\x08SET\0";
        const ERROR: &[u8] = b"E\0\0\0\x13SERROR\0CXX000\0\0";
        for (results, accepted) in [
            (&[SET][..], [true, true]),
            (&[ROWS], [true, true]),
            (&[ERROR], [true, true]),
            (&[SET, SET], [true, false]),
            (&[ROWS, SET, ROWS], [true, false]),
            (&[SET, ERROR], [true, true]),
            (&[], [false, false]),
            (&[ERROR, SET], [false, false]),
            (&[SET, b"D\0\0\0\x06\0\0"], [false, false]),
            (&[SET, b"T\0\0\0\x06\0\0"], [false, false]),
            (&[SET, b"V\0\0\0\x08\0\0\0\0"], [false, false]),
        ] {
            let received = [&results.concat()[..], b"Z\0\0\0\x05I"].concat();
            assert_eq!(answers_to_queries(&received), accepted, "{}", received.escape_ascii());
        }
    }

    #[test]
    fn the_short_cut_wants_a_call_to_be_under_way() {
        let (answer, ..) = ANSWERS[0];
        let mut connection = calling(answer);
        while let Ok(Some(_)) = connection.poll_event() {}
        connection.received().extend_from_slice(answer);
        assert_eq!(connection.take_call_result(), None);
        connection.received().clear();
        connection.query("SELECT").unwrap();
        connection.received().extend_from_slice(answer);
        assert_eq!(connection.take_call_result(), None);
    }
}
