//! One request at a time, and what becomes of it when the caller gives up.
//!
//! ```text
//!                     answer
//!          ┌─────────────────────────────────────────────────────────────┐
//!          │                                                             ▼
//! Idle ─▶ Asked ── error, or a lock that nobody wants any more ──▶ Settling ──▶ Idle
//!          │                                                             ▲
//!          └─ a wait is given up ─▶ Withdrawing ── answer, and no ───────┘
//!                                                  CancelRequest open
//!
//! any ── FATAL, end of file, a violation, or too long a silence ──▶ Over
//! ```
//!
//! The machine belongs to the session's wire and is moved with it: to the caller's future while that
//! lives, to a task of its own when the future was dropped. It has no clock and no socket. Whoever
//! drives it passes bytes and the time in, sends what is outgoing, and does what [`Machine::poll`]
//! asks for; so the whole of it runs in simulated time as well.
//!
//! **Withdrawing.** A `CancelRequest` goes out at once, and again while the server has not answered:
//! one that overtakes the request is ignored by the server. The server closes the socket of a
//! `CancelRequest` after it has signalled the session's process, and a process drops a signal that
//! finds it between two commands. So nothing is asked of the session until no such socket is open:
//! then no signal can hit a later request.
//!
//! **Settling.** After an error the server may hold the lock all the same: a lock granted a moment
//! before the cancel is kept, although the answer is "canceled" (SQLSTATE 57014). A session asks the
//! server for a lock only when it does not have it (further levels are counted by the client), so one
//! unlock makes the books true, whatever its answer. If that answer shows that a lock was granted in
//! time after all, to a caller who only ran out of time, it is tried for once more.

use std::time::{Duration, Instant};

use super::advisory::{Function, LockId};
use crate::error::ServerError;
use crate::protocol::{Connection, Event, NotReady, ProtocolError};

/// How long the server may take to answer anything but a wait.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How long a withdrawn request may take until the books are true again.
pub(crate) const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// Pause between two `CancelRequest`s: doubled from the first of these to the last.
const CANCEL_AGAIN_AFTER: Duration = Duration::from_millis(10);
const CANCEL_AGAIN_AFTER_MAX: Duration = Duration::from_secs(1);

/// How often an unlock that fails is tried again before the session is given up.
const UNLOCKS_MAX: u32 = 5;

const QUERY_CANCELED: &str = "57014";
pub(super) const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// What the codes of this kind begin with: shutdowns, crashes, timeouts of idle sessions.
const OPERATOR_INTERVENTION: &str = "57P";

/// What a caller wants of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Waits for the lock, until this time if there is one.
    Lock(LockId, Option<Instant>),
    /// Takes the lock if it is free.
    TryLock(LockId),
    /// Releases the lock.
    Unlock(LockId),
    /// Runs a query that has one row.
    Query(String),
    /// Takes a fencing token for the lock, by a query that has one row. It may wait for standbys.
    Fence { lock: LockId, held: Held, sql: String },
}

/// Whether a lock is in the books already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// It was acquired just now, and without a token it is of no use: it is released.
    Newly,
    /// Whatever becomes of the token, it stays held.
    Before,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The lock is held.
    Acquired,
    /// The lock is not held: it was not free, not in time, or the wait was withdrawn.
    NotAcquired,
    /// The lock is not held any more.
    Released,
    /// The query's row.
    Row(Row),
    /// The server reported an error. The lock that was asked for is not held.
    Failed(ServerError),
}

/// A row of texts, `None` for null.
pub(crate) type Row = Vec<Option<String>>;

/// What whoever drives the machine is to do next, besides sending what is outgoing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Poll again when bytes have come, a `CancelRequest` has ended, or this time has come.
    Wait { until: Option<Instant> },
    /// Send a `CancelRequest`, and report [`Machine::cancel_ended`] when its socket has ended.
    SendCancel,
    /// The request is over and the machine idle.
    Done(Outcome),
}

/// Why the session is over.
#[derive(Debug)]
pub(crate) enum Loss {
    /// The server said so.
    Ended(ServerError),
    /// The server broke the protocol.
    Protocol(ProtocolError),
    /// The server did not answer in time.
    Silent(Duration),
    /// A request could not be withdrawn and settled in time.
    Unsettled(Duration),
    /// The server refused to release a lock that it may have granted.
    Unreleased(ServerError),
    /// The server does not hold a lock that the books say it holds.
    NotHeld(LockId),
}

/// The state machine of the requests of one session.
#[derive(Debug)]
pub(crate) struct Machine {
    connection: Connection,
    state: State,
    last_words: Option<ServerError>,
}

#[derive(Debug)]
enum State {
    Idle,
    Asked(Asked),
    Withdrawing(Withdrawing),
    Settling(Settling),
    Over,
}

/// A request is at the server.
#[derive(Debug)]
struct Asked {
    ask: Ask,
    answer: Option<Answer>,
    /// When the server has to have answered, unless the request is a wait.
    answer_by: Instant,
    /// How long that is.
    patience: Duration,
    /// Whether anybody waits for the outcome.
    wanted: bool,
}

/// A wait, for a lock or for the standbys of a token, is being withdrawn.
#[derive(Debug)]
struct Withdrawing {
    ask: Ask,
    answer: Option<Answer>,
    cancel: Cancel,
    cancel_again_after: Duration,
    give_up_at: Instant,
    reason: Reason,
}

/// The books are being made true.
#[derive(Debug)]
struct Settling {
    lock: LockId,
    step: Settle,
    answer: Option<Answer>,
    unlocks_left: u32,
    give_up_at: Instant,
    /// The outcome if the lock turns out not to be held.
    outcome: Outcome,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settle {
    Unlock,
    TryAgain,
}

/// Why a lock that was asked for may have to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// The caller ran out of time, and would still be glad of the lock.
    OutOfTime,
    /// The caller wants the wait to end; a lock granted before is welcome.
    Cancelled,
    /// Nobody waits for the outcome any more, or the request has failed.
    Unwanted,
}

/// The `CancelRequest` of a withdrawn wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    Due(Instant),
    Open,
}

/// What the server said to a request, before `ReadyForQuery`.
#[derive(Debug)]
enum Answer {
    Void,
    Bool(bool),
    Row(Row),
    Failed(ServerError),
}

impl Machine {
    /// Takes over a connection whose login is complete.
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection, state: State::Idle, last_words: None }
    }

    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The last warning that the session may be about to end. A server that restarts because one of its
    /// processes crashed says no more than that.
    pub(crate) fn last_words(&mut self) -> Option<ServerError> {
        self.last_words.take()
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Sends a request. The machine has to be idle.
    pub(crate) fn ask(&mut self, ask: Ask, now: Instant) -> Result<(), NotReady> {
        if !self.is_idle() {
            return Err(NotReady);
        }
        match &ask {
            Ask::Lock(lock, _) => Function::Lock.call(*lock, &mut self.connection),
            Ask::TryLock(lock) => Function::TryLock.call(*lock, &mut self.connection),
            Ask::Unlock(lock) => Function::Unlock.call(*lock, &mut self.connection),
            Ask::Query(sql) | Ask::Fence { sql, .. } => self.connection.query(sql),
        }?;
        self.state = State::Asked(Asked {
            ask,
            answer: None,
            answer_by: now + ANSWER_WITHIN,
            patience: ANSWER_WITHIN,
            wanted: true,
        });
        Ok(())
    }

    /// Ends a wait. What was granted until then is kept.
    pub(crate) fn cancel(&mut self, now: Instant) {
        self.withdraw(Reason::Cancelled, now);
    }

    /// Says that nobody waits for the outcome. A lock that was asked for will not be held.
    pub(crate) fn abandon(&mut self, now: Instant) {
        self.withdraw(Reason::Unwanted, now);
    }

    /// Reports that the socket of the last `CancelRequest` has ended, in whatever way.
    pub(crate) fn cancel_ended(&mut self, now: Instant) {
        if let State::Withdrawing(withdrawing) = &mut self.state {
            withdrawing.cancel = Cancel::Due(now + withdrawing.cancel_again_after);
            withdrawing.cancel_again_after =
                (withdrawing.cancel_again_after * 2).min(CANCEL_AGAIN_AFTER_MAX);
        }
    }

    /// Takes in what has been received, and says what to do next.
    ///
    /// # Errors
    ///
    /// The session is over, and so is every lock that it held.
    pub(crate) fn poll(&mut self, now: Instant) -> Result<Action, Loss> {
        let action = self.advance(now);
        if action.is_err() {
            self.state = State::Over;
        }
        action
    }

    fn advance(&mut self, now: Instant) -> Result<Action, Loss> {
        self.receive()?;
        if self.connection.is_idle() {
            let state = std::mem::replace(&mut self.state, State::Over);
            match state.answered(now)? {
                Next::Stay(state) => self.state = state,
                Next::Settle(settling) => self.settle(settling)?,
                Next::Done(outcome) => {
                    self.state = State::Idle;
                    return Ok(Action::Done(outcome));
                }
            }
        }
        self.act(now)
    }

    /// Takes the answer out of the received bytes. It is complete once the connection is idle again.
    fn receive(&mut self) -> Result<(), Loss> {
        while let Some(event) = self.connection.poll_event().map_err(Loss::Protocol)? {
            let answer = match event {
                Event::Returned(value) => returned(value).map_err(Loss::Protocol)?,
                Event::Row(values) => Answer::Row(values.into_iter().map(text).collect()),
                Event::Failed(error) => Answer::Failed(error),
                Event::Ended(error) => return Err(Loss::Ended(error)),
                Event::Noticed(notice) => {
                    if notice.sqlstate().starts_with(OPERATOR_INTERVENTION) {
                        self.last_words = Some(notice);
                    }
                    continue;
                }
                Event::Progress | Event::Deriving | Event::LoggedIn(_) | Event::Ready => continue,
            };
            let place = match &mut self.state {
                State::Asked(asked) => &mut asked.answer,
                State::Withdrawing(withdrawing) => &mut withdrawing.answer,
                State::Settling(settling) => &mut settling.answer,
                State::Idle | State::Over => return Err(unexpected_answer()),
            };
            if place.is_some() && matches!(answer, Answer::Row(_)) {
                return Err(unexpected_answer());
            }
            *place = Some(answer);
        }
        Ok(())
    }

    /// Sends the next step of settling.
    fn settle(&mut self, settling: Settling) -> Result<(), Loss> {
        let function = match settling.step {
            Settle::Unlock => Function::Unlock,
            Settle::TryAgain => Function::TryLock,
        };
        function
            .call(settling.lock, &mut self.connection)
            .map_err(|NotReady| unexpected_answer())?;
        self.state = State::Settling(settling);
        Ok(())
    }

    /// Looks at the clock.
    fn act(&mut self, now: Instant) -> Result<Action, Loss> {
        match self.state {
            State::Asked(Asked { ask: Ask::Lock(_, Some(until)), .. }) if until <= now => {
                self.withdraw(Reason::OutOfTime, now);
            }
            State::Asked(Asked { ask: Ask::Fence { .. }, answer_by, .. }) if answer_by <= now => {
                self.withdraw(Reason::Unwanted, now);
            }
            _ => {}
        }
        match &mut self.state {
            State::Idle => Ok(Action::Wait { until: None }),
            State::Asked(Asked { ask: Ask::Lock(_, until), .. }) => {
                Ok(Action::Wait { until: *until })
            }
            State::Asked(Asked { answer_by, patience, .. }) if *answer_by <= now => {
                Err(Loss::Silent(*patience))
            }
            State::Asked(Asked { answer_by, .. }) => Ok(Action::Wait { until: Some(*answer_by) }),
            State::Withdrawing(Withdrawing { give_up_at, .. })
            | State::Settling(Settling { give_up_at, .. })
                if *give_up_at <= now =>
            {
                Err(Loss::Unsettled(SETTLE_WITHIN))
            }
            State::Withdrawing(withdrawing) => Ok(withdrawing.act(now)),
            State::Settling(settling) => Ok(Action::Wait { until: Some(settling.give_up_at) }),
            State::Over => Err(unexpected_answer()),
        }
    }

    fn withdraw(&mut self, reason: Reason, now: Instant) {
        let give_up_at = now + SETTLE_WITHIN;
        match &mut self.state {
            State::Asked(Asked {
                ask: ask @ (Ask::Lock(..) | Ask::Fence { .. }), answer, ..
            }) => {
                self.state = State::Withdrawing(Withdrawing {
                    ask: ask.clone(),
                    answer: answer.take(),
                    cancel: Cancel::Due(now),
                    cancel_again_after: CANCEL_AGAIN_AFTER,
                    give_up_at,
                    reason,
                });
            }
            State::Asked(asked) if reason == Reason::Unwanted && asked.wanted => {
                asked.wanted = false;
                asked.answer_by = asked.answer_by.min(give_up_at);
                asked.patience = asked.patience.min(SETTLE_WITHIN);
            }
            State::Withdrawing(Withdrawing { reason: known, .. })
            | State::Settling(Settling { reason: known, .. })
                if reason == Reason::Unwanted =>
            {
                *known = reason;
            }
            _ => {}
        }
    }
}

/// What follows from an answer.
enum Next {
    Stay(State),
    Settle(Settling),
    Done(Outcome),
}

impl State {
    /// Weighs the answer, if there is one, now that the server waits for the next request.
    fn answered(self, now: Instant) -> Result<Next, Loss> {
        match self {
            Self::Asked(asked) => asked.answered(now),
            Self::Withdrawing(withdrawing) if withdrawing.cancel == Cancel::Open => {
                Ok(Next::Stay(Self::Withdrawing(withdrawing)))
            }
            Self::Withdrawing(withdrawing) => withdrawing.answered(),
            Self::Settling(settling) => settling.answered(),
            Self::Idle | Self::Over => Ok(Next::Stay(self)),
        }
    }
}

impl Asked {
    fn answered(self, now: Instant) -> Result<Next, Loss> {
        let answer = self.answer.ok_or_else(unexpected_answer)?;
        let settle = |lock, outcome| {
            let give_up_at = now + SETTLE_WITHIN;
            Next::Settle(Settling::new(lock, outcome, Reason::Unwanted, give_up_at))
        };
        Ok(match (self.ask, answer) {
            (Ask::Lock(..), Answer::Void) => Next::Done(Outcome::Acquired),
            (Ask::TryLock(_), Answer::Bool(true)) if self.wanted => Next::Done(Outcome::Acquired),
            (Ask::TryLock(lock), Answer::Bool(true)) => settle(lock, Outcome::NotAcquired),
            (Ask::TryLock(_), Answer::Bool(false)) => Next::Done(Outcome::NotAcquired),
            // A server that cannot call the function has not locked, and could not unlock.
            (Ask::Lock(..) | Ask::TryLock(_), Answer::Failed(error))
                if error.sqlstate() == FEATURE_NOT_SUPPORTED =>
            {
                Next::Done(Outcome::Failed(error))
            }
            (
                Ask::Lock(lock, _)
                | Ask::TryLock(lock)
                | Ask::Fence { lock, held: Held::Newly, .. },
                Answer::Failed(error),
            ) => settle(lock, Outcome::Failed(error)),
            (Ask::Unlock(_), Answer::Bool(true)) => Next::Done(Outcome::Released),
            (Ask::Unlock(lock), Answer::Bool(false)) => return Err(Loss::NotHeld(lock)),
            (Ask::Unlock(lock), Answer::Failed(_)) => settle(lock, Outcome::Released),
            (Ask::Query(_) | Ask::Fence { .. }, Answer::Row(row)) => Next::Done(Outcome::Row(row)),
            (Ask::Query(_) | Ask::Fence { .. }, Answer::Failed(error)) => {
                Next::Done(Outcome::Failed(error))
            }
            _ => return Err(unexpected_answer()),
        })
    }
}

impl Withdrawing {
    fn act(&mut self, now: Instant) -> Action {
        match self.cancel {
            Cancel::Due(at) if self.answer.is_none() && at <= now => {
                self.cancel = Cancel::Open;
                Action::SendCancel
            }
            Cancel::Due(at) if self.answer.is_none() => {
                Action::Wait { until: Some(at.min(self.give_up_at)) }
            }
            Cancel::Due(_) | Cancel::Open => Action::Wait { until: Some(self.give_up_at) },
        }
    }

    fn answered(self) -> Result<Next, Loss> {
        let outcome = match (&self.ask, self.answer.ok_or_else(unexpected_answer)?) {
            (Ask::Lock(..), Answer::Void) if self.reason != Reason::Unwanted => {
                return Ok(Next::Done(Outcome::Acquired));
            }
            (_, Answer::Failed(error)) if error.sqlstate() != QUERY_CANCELED => {
                Outcome::Failed(error)
            }
            // A token that was cancelled may have come without what it waited for.
            (Ask::Lock(..), Answer::Void)
            | (Ask::Fence { .. }, Answer::Row(_))
            | (_, Answer::Failed(_)) => Outcome::NotAcquired,
            _ => return Err(unexpected_answer()),
        };
        let (lock, reason) = match self.ask {
            Ask::Lock(lock, _) => (lock, self.reason),
            Ask::Fence { lock, held: Held::Newly, .. } => (lock, Reason::Unwanted),
            _ => return Ok(Next::Done(outcome)),
        };
        Ok(Next::Settle(Settling::new(lock, outcome, reason, self.give_up_at)))
    }
}

impl Settling {
    fn new(lock: LockId, outcome: Outcome, reason: Reason, give_up_at: Instant) -> Self {
        Self {
            lock,
            step: Settle::Unlock,
            answer: None,
            unlocks_left: UNLOCKS_MAX,
            give_up_at,
            outcome,
            reason,
        }
    }

    fn answered(self) -> Result<Next, Loss> {
        let missed = self.reason == Reason::OutOfTime && self.outcome == Outcome::NotAcquired;
        match (self.step, self.answer.as_ref()) {
            (Settle::Unlock, Some(Answer::Bool(true))) if missed => {
                Ok(Next::Settle(Self { step: Settle::TryAgain, answer: None, ..self }))
            }
            (Settle::Unlock, Some(Answer::Bool(_)))
            | (Settle::TryAgain, Some(Answer::Bool(false))) => Ok(Next::Done(self.outcome)),
            (Settle::TryAgain, Some(Answer::Bool(true))) if missed => {
                Ok(Next::Done(Outcome::Acquired))
            }
            (Settle::Unlock, Some(Answer::Failed(_)))
            | (Settle::TryAgain, Some(Answer::Bool(true) | Answer::Failed(_))) => {
                self.unlock_again()
            }
            _ => Err(unexpected_answer()),
        }
    }

    fn unlock_again(self) -> Result<Next, Loss> {
        match (self.unlocks_left.checked_sub(1), self.answer) {
            (Some(unlocks_left), _) => {
                Ok(Next::Settle(Self { step: Settle::Unlock, answer: None, unlocks_left, ..self }))
            }
            (None, Some(Answer::Failed(error))) => Err(Loss::Unreleased(error)),
            (None, _) => Err(Loss::Unsettled(SETTLE_WITHIN)),
        }
    }
}

fn returned(value: Option<&[u8]>) -> Result<Answer, ProtocolError> {
    match value {
        Some([]) => Ok(Answer::Void),
        Some([0]) => Ok(Answer::Bool(false)),
        Some([1]) => Ok(Answer::Bool(true)),
        _ => Err(ProtocolError::InvalidField { tag: b'V', field: "function result" }),
    }
}

fn text(value: Option<&[u8]>) -> Option<String> {
    value.map(|value| String::from_utf8_lossy(value).into_owned())
}

fn unexpected_answer() -> Loss {
    Loss::Protocol(ProtocolError::UnexpectedMessage {
        message: "an answer",
        during: "a request that cannot have it",
    })
}
