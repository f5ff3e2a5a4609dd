//! What is said to a server before any lock depends on it: the login, and a few questions after it.
//!
//! A session's [wire](super::wire) can be given up and taken up again at any moment. None of that is
//! needed here: whoever stops listening closes the socket, and nothing was locked.

use std::borrow::Cow;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::machine::{ANSWER_WITHIN, GO_ON_WITHIN, Row, text};
use crate::error::{Error, ErrorKind, Result, ServerError};
use crate::net::{self, Stream};
use crate::protocol::{Connection, Event, NotReady, ProtocolError};
use crate::wait::{timeout, yield_now};

/// A connection, and the socket that it goes over.
pub(super) struct Dialogue {
    pub(super) stream: Stream,
    pub(super) connection: Connection,
    /// What it is about, for errors.
    topic: &'static str,
}

/// What a server answers to a question: this, or that it cannot.
pub(super) type Reply<T> = Result<T, ServerError>;

/// The answer so far.
#[derive(Default)]
struct Said {
    row: Option<Row>,
    value: Option<Vec<u8>>,
    error: Option<ServerError>,
}

impl Dialogue {
    /// A login that is to take place.
    pub(super) fn new(stream: Stream, connection: Connection) -> Self {
        Self { stream, connection, topic: "the login" }
    }

    /// Goes over to questions, when the login is complete.
    pub(super) fn logged_in(&mut self) {
        self.topic = "the setting up of the session";
    }

    /// Calls a function without arguments.
    pub(super) async fn call(&mut self, function: u32) -> Result<Reply<Option<Vec<u8>>>> {
        self.connection.call(function, []).map_err(not_ready)?;
        Ok(self.reply().await?.map(|said| said.value))
    }

    /// Asks for one row.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Reply<Row>> {
        self.connection.query(sql).map_err(not_ready)?;
        match self.reply().await? {
            Ok(said) => said.row.map(Ok).ok_or_else(not_an_answer),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Has statements run whose results do not matter.
    pub(super) async fn script(&mut self, sql: &str) -> Result<Reply<()>> {
        self.connection.script(sql).map_err(not_ready)?;
        Ok(self.reply().await?.map(|_| ()))
    }

    async fn reply(&mut self) -> Result<Reply<Said>> {
        let mut said = Said::default();
        let mut hear = |event: Event<'_>| said.hear(event);
        timeout(ANSWER_WITHIN, self.listen(&mut hear)).await.map_err(|_| {
            let seconds = ANSWER_WITHIN.as_secs();
            Error::new(ErrorKind::Connect, format!("the server did not answer within {seconds} s"))
        })??;
        let Some(error) = said.error else { return Ok(Ok(said)) };
        let mut hear = |event: Event<'_>| match event {
            Event::Ended(error) => Err(ended(error)),
            event => Ok(event == Event::Ready),
        };
        match timeout(GO_ON_WITHIN, self.listen(&mut hear)).await {
            Ok(went_on) => went_on.map(|()| Err(error)),
            Err(_) => Err(stuck(error)),
        }
    }

    /// Sends what is outgoing, and passes on what the server says until that is enough. What cannot be sent
    /// is told when there is nothing more to read: the server's last words say more.
    pub(super) async fn listen(
        &mut self,
        hear: &mut (dyn FnMut(Event<'_>) -> Result<bool> + Send),
    ) -> Result<()> {
        let mut unsent = None;
        loop {
            if unsent.is_none() {
                unsent = self.send().await.err();
            }
            match self.connection.poll_event().map_err(violated)? {
                // It takes time: let other tasks run, and the deadline pass.
                Some(Event::Deriving) => yield_now().await,
                Some(event) => {
                    if hear(event)? {
                        return Ok(());
                    }
                }
                None => {
                    match (self.stream.read_buf(self.connection.received()).await, unsent.take()) {
                        (Ok(0), None) => return Err(self.closed()),
                        (Ok(0), Some(error)) | (Err(error), _) => return Err(self.broken(error)),
                        (Ok(_), error) => unsent = error,
                    }
                }
            }
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        while !self.connection.outgoing().is_empty() {
            let sent = self.stream.write(self.connection.outgoing()).await?;
            self.connection.sent(sent);
        }
        self.stream.flush().await
    }

    fn closed(&self) -> Error {
        let message = format!("the server closed the connection during {}", self.topic);
        Error::new(ErrorKind::Connect, message)
    }

    fn broken(&self, error: io::Error) -> Error {
        let topic = self.topic;
        let message = match net::problem_of_tls(&error) {
            Some(why) => format!("the connection broke during {topic}: {why}"),
            None => format!("the connection broke during {topic}"),
        };
        Error::new(ErrorKind::Connect, message).with_source(error)
    }
}

impl Said {
    /// Takes in the next event, and says whether that is all: the end of the answer, or an error.
    fn hear(&mut self, event: Event<'_>) -> Result<bool> {
        match event {
            Event::Ready => return Ok(true),
            Event::Failed(error) => {
                self.error = Some(error);
                return Ok(true);
            }
            Event::Ended(error) => return Err(ended(error)),
            Event::Row(_) if self.row.is_some() => return Err(not_an_answer()),
            Event::Row(values) => self.row = Some(values.into_iter().map(text).collect()),
            Event::Returned(value) => self.value = value.map(<[u8]>::to_vec),
            Event::Progress | Event::Noticed(_) | Event::Deriving | Event::LoggedIn(_) => {}
        }
        Ok(false)
    }
}

fn ended(error: ServerError) -> Error {
    Error::new(ErrorKind::Connect, "the server ended the session").with_server(error)
}

fn stuck(error: ServerError) -> Error {
    let seconds = GO_ON_WITHIN.as_secs();
    let message = format!("the server did not go on within {seconds} s after an error");
    Error::new(ErrorKind::Connect, message).with_server(error)
}

fn violated(error: ProtocolError) -> Error {
    let kind = match &error {
        ProtocolError::Unframed { .. } => ErrorKind::Connect,
        error if error.is_authentication() => ErrorKind::Authentication,
        _ => ErrorKind::Protocol,
    };
    Error::new(kind, error.to_string()).with_source(error)
}

fn not_an_answer() -> Error {
    Error::new(ErrorKind::Protocol, "the server did not introduce itself")
}

fn not_ready(error: NotReady) -> Error {
    Error::new(ErrorKind::Protocol, Cow::Borrowed("the session was busy")).with_source(error)
}
