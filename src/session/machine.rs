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
//! Under a [lease](super::lease), an outcome that may be too old goes through `Asked` once more, to be
//! confirmed by a heartbeat; which is a request like others, otherwise.
//!
//! Where locks are held in transactions, `Opening` stands between `Idle` and `Asked`: a transaction is
//! opened for the lock, which may have to wait for a pooler. Settling then ends that transaction.
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

#[cfg(feature = "manager")]
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::advisory::{Function, LockId, Means};
#[cfg(feature = "manager")]
use super::choice::{Choice, Unreadable};
use super::lease::{Lease, Since};
use crate::error::ServerError;
use crate::fence::Fence;
use crate::protocol::{CallResult, Connection, Event, NotReady, ProtocolError, TransactionStatus};

/// How long the server may take to answer anything but a wait.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How long a withdrawn request may take until the books are true again.
pub(crate) const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// How long the server may take to go on after an error that it reported.
pub(super) const GO_ON_WITHIN: Duration = Duration::from_secs(10);

/// How long a transaction may take to open for a lock that is not to be waited for: a pooler may have to lend
/// what it has to others first.
pub(crate) const TRY_WITHIN: Duration = Duration::from_secs(5);

/// How long a transaction that nobody waits for any more may take to open.
pub(crate) const OPEN_WITHIN: Duration = Duration::from_secs(1);

/// Pause between the first two `CancelRequest`s. Each is twice as long as the one before, up to a limit.
const CANCEL_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// How often the pause doubles.
const CANCEL_PAUSE_DOUBLINGS_MAX: u32 = 7;

/// How often an unlock that fails is tried again before the session is given up.
const UNLOCKS_MAX: u32 = 5;

const QUERY_CANCELED: &str = "57014";
/// What a server says that does not know the message or the function by which a lock is taken: a
/// violation of the protocol, a feature that is not supported, an undefined function. PostgreSQL says
/// none of them once it has begun to lock.
const CANNOT_LOCK: [&str; 3] = ["08P01", "0A000", "42883"];
/// What the codes of this kind begin with: shutdowns, crashes, timeouts of idle sessions.
pub(super) const OPERATOR_INTERVENTION: &str = "57P";

/// What a caller wants of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Waits for the lock: until a time, if there is one, and for no longer than a slice.
    Lock {
        lock: LockId,
        until: Option<Instant>,
        /// Begins when the server is asked for the lock. In a pooler's queue it keeps nobody from work.
        slice: Option<Duration>,
    },
    /// Takes the lock if it is free.
    TryLock(LockId),
    /// Takes one of the locks, of which there has to be one, by a query that has one row. It begins with the
    /// process that answers.
    #[cfg(feature = "manager")]
    TryAny(Arc<Choice>),
    /// Releases the lock.
    Unlock(LockId),
    /// Releases the lock if the server holds it, which is not known.
    #[cfg(feature = "manager")]
    Settle(LockId),
    /// Takes a fencing token for the lock, by a query that has one row. It begins with the process that
    /// answers, and may wait for standbys.
    Fence { lock: LockId, held: Held },
    /// Gives a sign of life, and wants one.
    Heartbeat,
    /// Asks something that is about no lock that is in question, by statements that have one row. Unless
    /// nothing can stand between, it begins with the process that answers.
    ///
    /// Whoever asks brings the statements: a program that never does so need not carry them.
    Look(Box<str>),
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
    /// This one of several locks is held.
    #[cfg(feature = "manager")]
    AcquiredOne(LockId),
    /// The lock is not held: it was not free, not in time, or the wait was withdrawn.
    NotAcquired,
    /// The lock is not held any more.
    Released,
    /// The row that the query has.
    Row(Row),
    /// The server reported an error. The lock that was asked for is not held.
    Failed(ServerError),
    /// The session stands.
    Alive,
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
    /// The server reported an error and did not go on to the next request in time.
    Stuck(ServerError),
    /// A request could not be withdrawn and settled in time.
    Unsettled(Duration),
    /// A pooler did not find a server process for the session in time.
    NotServed,
    /// Another process answered than the one that holds the locks.
    Moved,
    /// An error ended the transaction that held the lock.
    RolledBack(ServerError),
    /// The server refused to release a lock that it may have granted.
    Unreleased(ServerError),
    /// The server does not hold a lock that the books say it holds.
    NotHeld(LockId),
    /// Too long a silence for a lease of this length.
    Expired(Duration),
}

/// The state machine of the requests of one session.
#[derive(Debug)]
pub(crate) struct Machine {
    connection: Connection,
    means: Means,
    lease: Option<Lease>,
    /// When the last request was sent.
    sent: Since,
    /// What a heartbeat is to confirm.
    unconfirmed: Option<Box<Unconfirmed>>,
    /// When whoever made the request has to be told of something, if he does not wait for ever.
    tell_by: Option<Instant>,
    /// See [`TRY_WITHIN`].
    try_within: Duration,
    state: State,
    last_words: Option<ServerError>,
}

/// An outcome that took too long to be certain.
#[derive(Debug)]
struct Unconfirmed {
    outcome: Outcome,
    /// What must not be held in the end, unless somebody still wants it.
    lock: Option<LockId>,
}

#[derive(Debug)]
enum State {
    Idle,
    /// A transaction is being opened, for the lock that is asked for next.
    Opening(Asked),
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
    /// When the server has to have answered, unless the request is a wait; and once there is an answer,
    /// when it has to be ready for the next request.
    answer_by: Instant,
    /// Whether anybody waits for the outcome.
    wanted: bool,
}

/// A wait, for a lock or for the standbys of a token, is being withdrawn.
#[derive(Debug)]
struct Withdrawing {
    ask: Ask,
    answer: Option<Answer>,
    cancel: Cancel,
    cancels_ended: u32,
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
    Returned(CallResult),
    Row(Row),
    Failed(ServerError),
}

impl Machine {
    /// Takes over a connection whose login is complete, and holds locks by these means; for as long as a
    /// lease lasts, if there is one.
    pub(crate) fn new(
        mut connection: Connection,
        means: Means,
        lease: Option<Lease>,
        now: Instant,
    ) -> Self {
        if let Means::Transaction { .. } = means {
            connection.expect_transactions();
        }
        Self {
            connection,
            means,
            lease,
            sent: now.into(),
            unconfirmed: None,
            tell_by: None,
            try_within: TRY_WITHIN,
            state: State::Idle,
            last_words: None,
        }
    }

    /// Leaves it to the caller how long a pooler may take: he withdraws what he does not want any more.
    #[cfg(feature = "manager")]
    pub(crate) fn wait_for_pooler(&mut self) {
        self.try_within = ANSWER_WITHIN;
    }

    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    #[cfg(test)]
    pub(super) fn lease(&mut self) -> &mut Option<Lease> {
        &mut self.lease
    }

    /// Whether nothing is outgoing.
    pub(crate) fn is_all_sent(&self) -> bool {
        self.connection.outgoing().is_empty()
    }

    /// Whether nothing has come that [`poll`](Self::poll) has not seen.
    pub(crate) fn is_drained(&self) -> bool {
        self.connection.is_drained()
    }

    /// Whether locks are held in a transaction, one at a time.
    pub(crate) fn holds_one_lock(&self) -> bool {
        matches!(self.means, Means::Transaction { .. })
    }

    /// Whether a pooler may stand before the server.
    pub(crate) fn may_be_pooled(&self) -> bool {
        self.means != Means::Calls
    }

    /// When to give a sign of life, where that is wanted.
    pub(crate) fn heartbeat_due(&self) -> Option<Instant> {
        self.running_lease().map(Lease::heartbeat_due)
    }

    /// Until when the locks are certain, where a lease says so.
    #[cfg(feature = "manager")]
    pub(crate) fn certain_until(&self) -> Option<Instant> {
        self.running_lease().map(Lease::ends_at)
    }

    /// The machine that this runs on has slept for this long.
    pub(crate) fn slept(&mut self, time: Duration) {
        self.sent.slept(time);
        if let Some(lease) = &mut self.lease {
            lease.slept(time);
        }
        if let State::Withdrawing(Withdrawing { give_up_at, .. })
        | State::Settling(Settling { give_up_at, .. }) = &mut self.state
        {
            *give_up_at = give_up_at.checked_sub(time).unwrap_or(*give_up_at);
        }
    }

    /// Whether nothing was heard for too long. Only between requests: while one is under way, the server
    /// does not count.
    pub(crate) fn check_lease(&self, now: impl FnOnce() -> Instant) -> Result<(), Loss> {
        match self.running_lease() {
            Some(lease) if self.is_idle() && lease.ends_at() <= now() => {
                Err(Loss::Expired(lease.ttl()))
            }
            _ => Ok(()),
        }
    }

    /// The lease, unless locks are held in transactions and none is open.
    fn running_lease(&self) -> Option<&Lease> {
        self.lease
            .as_ref()
            .filter(|_| !self.holds_one_lock() || self.means.is_open(&self.connection))
    }

    /// The last warning that the session may be about to end. A server that restarts because one of its
    /// processes crashed says no more than that.
    pub(crate) fn last_words(&mut self) -> Option<ServerError> {
        self.last_words.take()
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Sends a request, and says when to poll at the latest, as [`Action::Wait`] does. The machine has to
    /// be idle.
    pub(crate) fn ask(&mut self, mut ask: Ask, now: Instant) -> Result<Option<Instant>, NotReady> {
        if !self.is_idle() {
            return Err(NotReady);
        }
        self.sent = now.into();
        // A heartbeat that confirms an outcome is part of the request that has it.
        if self.unconfirmed.is_none() {
            self.tell_by = ask.tell_by();
        }
        #[cfg(feature = "manager")]
        if let Ask::Settle(lock) = ask {
            let mut settling = Settling::unwanted(lock, Outcome::Released, now);
            settling.give_up_at = self.settle_by(now);
            let until = settling.give_up_at;
            return self.send_settling(settling).map(|()| Some(until));
        }
        let answer_by = self.answer_by(&ask, now);
        let until;
        let state = match &self.means {
            Means::Transaction { begin, .. } if ask.takes() => {
                self.connection.script(begin)?;
                let answer_by = answer_by.min(now + self.try_within);
                until = ask.until(answer_by);
                State::Opening(Asked::new(ask, answer_by))
            }
            _ => {
                self.send(&ask)?;
                ask.begin_slice(now);
                until = ask.until(answer_by);
                State::Asked(Asked::new(ask, answer_by))
            }
        };
        // There is nothing in an idle state to drop: the compiler need not look.
        std::mem::forget(std::mem::replace(&mut self.state, state));
        Ok(until)
    }

    /// When the server has to have answered.
    fn answer_by(&self, ask: &Ask, now: Instant) -> Instant {
        let latest = now + ANSWER_WITHIN;
        match (ask, self.running_lease()) {
            (ask, Some(lease)) if self.has_to_renew(ask) => {
                earliest(latest.min(self.renewable_until(lease)), self.tell_by)
            }
            _ => latest,
        }
    }

    /// Whether the answer is to come while the lease lasts: nobody else has to be waited for. In a
    /// transaction that was opened just now, nothing is held yet.
    fn has_to_renew(&self, ask: &Ask) -> bool {
        match ask {
            Ask::Lock { .. } | Ask::Fence { .. } => false,
            ask => !(ask.takes() && self.holds_one_lock()),
        }
    }

    /// Until when the request that was sent last may renew the lease.
    fn renewable_until(&self, lease: &Lease) -> Instant {
        match self.unconfirmed {
            Some(_) => self.sent.plus(lease.certain_for()),
            None => lease.ends_at(),
        }
    }

    /// Whether it still can. Half an answer is none.
    fn check_renewable(&self, now: Instant) -> Result<(), Loss> {
        match self.running_lease() {
            Some(lease) if self.renewable_until(lease) <= now => Err(Loss::Expired(lease.ttl())),
            _ => Ok(()),
        }
    }

    /// Until when a request that is withdrawn, or a step of settling that is sent now, has to be over. What
    /// else is held is in somebody's hands meanwhile, who counts on its lease.
    fn settle_by(&self, now: Instant) -> Instant {
        let certain_for = self.running_lease().map(Lease::certain_for);
        now + certain_for.map_or(SETTLE_WITHIN, |certain_for| certain_for.min(SETTLE_WITHIN))
    }

    fn unsettled(&self) -> Loss {
        match self.running_lease() {
            Some(lease) if lease.certain_for() < SETTLE_WITHIN => Loss::Expired(lease.ttl()),
            _ => Loss::Unsettled(SETTLE_WITHIN),
        }
    }

    fn send(&mut self, ask: &Ask) -> Result<(), NotReady> {
        let (function, lock) = match ask {
            Ask::Lock { lock, .. } => (Function::Lock, *lock),
            Ask::TryLock(lock) => (Function::TryLock, *lock),
            Ask::Unlock(lock) => (Function::Unlock, *lock),
            #[cfg(feature = "manager")]
            Ask::Settle(lock) => (Function::Settle, *lock),
            Ask::Fence { lock, .. } => return self.connection.query(&Fence::query(lock.key)),
            Ask::Heartbeat => return self.means.heartbeat(&mut self.connection),
            Ask::Look(statements) => return self.connection.script(statements),
            #[cfg(feature = "manager")]
            Ask::TryAny(choice) => {
                return self.connection.query(&choice.query(self.means.scope()));
            }
        };
        self.means.ask(function, lock, &mut self.connection)
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
            let doublings = withdrawing.cancels_ended.min(CANCEL_PAUSE_DOUBLINGS_MAX);
            withdrawing.cancel = Cancel::Due(now + CANCEL_AGAIN_AFTER * (1 << doublings));
            withdrawing.cancels_ended += 1;
        }
    }

    /// The outcome of a request that was answered as it nearly always is: at once, and with nothing to do
    /// after it. For everything else there is [`poll`](Self::poll), which needs to know the time.
    pub(crate) fn take_outcome(&mut self) -> Option<Outcome> {
        let State::Asked(asked @ Asked { answer: None, .. }) = &mut self.state else { return None };
        if self.lease.is_some() {
            return None;
        }
        let result = self.connection.take_call_result()?;
        match asked.ask.plain_outcome(result) {
            Some(outcome) if asked.wanted => {
                self.state = State::Idle;
                Some(outcome)
            }
            _ => {
                asked.answer = Some(Answer::Returned(result));
                None
            }
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
        let before = self.connection.transaction_status();
        self.receive(now)?;
        if self.connection.is_idle() {
            let state = std::mem::replace(&mut self.state, State::Over);
            match state.answered(&self.means, now)? {
                Next::Stay(state) => self.state = state,
                Next::Begun(asked, process_id) => self.go_on(asked, process_id, now)?,
                Next::Settle(settling) => self.settle(settling, now)?,
                Next::Done(Some(lock), outcome) if self.leaves_transaction(&outcome) => {
                    self.settle(Settling::unwanted(lock, outcome, now), now)?;
                }
                Next::Done(lock, outcome) => {
                    self.check_transaction(lock, &outcome, before)?;
                    if let Some(outcome) = self.confirm(lock, outcome, now)? {
                        return Ok(Action::Done(outcome));
                    }
                }
                Next::Alive { wanted } => {
                    self.renew_lease();
                    let known = self.unconfirmed.take().map(|known| *known);
                    let known =
                        known.unwrap_or(Unconfirmed { outcome: Outcome::Alive, lock: None });
                    match known {
                        Unconfirmed { outcome, lock: Some(lock) } if !wanted && outcome.holds() => {
                            let outcome = Outcome::NotAcquired;
                            self.settle(Settling::unwanted(lock, outcome, now), now)?;
                        }
                        Unconfirmed { outcome, lock } => {
                            self.check_transaction(lock, &outcome, before)?;
                            self.state = State::Idle;
                            self.check_lease(|| now)?;
                            return Ok(Action::Done(outcome));
                        }
                    }
                }
            }
        }
        self.act(now)
    }

    /// Ends a request for a lock: with a sign of life, if its outcome may be too old for the lease.
    fn confirm(
        &mut self,
        lock: Option<LockId>,
        outcome: Outcome,
        now: Instant,
    ) -> Result<Option<Outcome>, Loss> {
        let is_timely = |lease: &Lease| lease.is_timely(self.sent, now);
        if self.running_lease().is_none_or(is_timely) {
            self.renew_lease();
            self.state = State::Idle;
            return Ok(Some(outcome));
        }
        self.state = State::Idle;
        let lock = match outcome {
            #[cfg(feature = "manager")]
            Outcome::AcquiredOne(acquired) => Some(acquired),
            _ => lock,
        };
        self.unconfirmed = Some(Box::new(Unconfirmed { outcome, lock }));
        self.ask(Ask::Heartbeat, now).map_err(|NotReady| unexpected_answer())?;
        Ok(None)
    }

    fn renew_lease(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.renew(self.sent);
        }
    }

    /// Asks for the lock in the transaction that was opened for it, if somebody still wants it.
    fn go_on(&mut self, mut asked: Asked, begun_in: i32, now: Instant) -> Result<(), Loss> {
        let lock = asked.ask.lock().ok_or_else(unexpected_answer)?;
        if let Means::Transaction { process_id, .. } = &mut self.means {
            *process_id = Some(begun_in);
        }
        if !asked.wanted {
            return self.settle(Settling::unwanted(lock, Outcome::NotAcquired, now), now);
        }
        self.send(&asked.ask).map_err(|NotReady| unexpected_answer())?;
        self.sent = now.into();
        asked.ask.begin_slice(now);
        // The time in the pooler's queue was not the server's.
        asked.answer_by = now + ANSWER_WITHIN;
        self.state = State::Asked(asked);
        Ok(())
    }

    /// Whether a transaction is still open that holds nothing.
    fn leaves_transaction(&self, outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::NotAcquired | Outcome::Failed(_))
            && self.means.is_open(&self.connection)
    }

    /// A lock is held as long as its transaction is open, and no longer. What is about no lock leaves the
    /// transaction as it was before; unless it fails, which ends the one that holds a lock.
    fn check_transaction(
        &self,
        lock: Option<LockId>,
        outcome: &Outcome,
        before: TransactionStatus,
    ) -> Result<(), Loss> {
        let expected = match (lock, &self.means) {
            (None, _) => before,
            (_, Means::Transaction { .. }) if outcome.holds() => TransactionStatus::InTransaction,
            _ => TransactionStatus::Idle,
        };
        match outcome {
            _ if self.connection.transaction_status() == expected => Ok(()),
            Outcome::Failed(error) => Err(Loss::RolledBack(error.clone())),
            _ => Err(unexpected_answer()),
        }
    }

    /// Takes the answer out of the received bytes. It is complete once the connection is idle again.
    fn receive(&mut self, now: Instant) -> Result<(), Loss> {
        while let Some(event) = self.connection.poll_event().map_err(Loss::Protocol)? {
            let answer = match event {
                Event::Returned(value) => returned(value).map_err(Loss::Protocol)?,
                Event::Row(values) => Answer::Row(values.into_iter().map(text).collect()),
                Event::Failed(error) => Answer::Failed(error),
                Event::Ended(error) => return Err(Loss::Ended(error)),
                Event::Noticed(notice) => {
                    self.note(notice);
                    continue;
                }
                Event::Progress | Event::Deriving | Event::LoggedIn(_) | Event::Ready => continue,
            };
            let place = match &mut self.state {
                State::Opening(asked) | State::Asked(asked) => {
                    asked.expect_the_end(&answer, self.tell_by, now);
                    &mut asked.answer
                }
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

    /// What the server says besides its answers.
    fn note(&mut self, notice: ServerError) {
        if notice.sqlstate().starts_with(OPERATOR_INTERVENTION) {
            self.last_words = Some(notice);
            return;
        }
        let State::Asked(Asked { ask: Ask::Fence { .. }, answer: Some(token), .. }) =
            &mut self.state
        else {
            return;
        };
        // All that a server can warn of between a token and the end of its commit is that the standbys
        // may not have it: somebody ended the wait for them.
        if matches!(token, Answer::Row(_)) && notice.severity() == "WARNING" {
            *token = Answer::Failed(notice);
        }
    }

    /// Goes on with settling.
    fn settle(&mut self, mut settling: Settling, now: Instant) -> Result<(), Loss> {
        settling.give_up_at = earliest(settling.give_up_at, self.tell_by).min(self.settle_by(now));
        self.sent = now.into();
        self.send_settling(settling).map_err(|NotReady| unexpected_answer())
    }

    /// Sends the next step of settling.
    fn send_settling(&mut self, settling: Settling) -> Result<(), NotReady> {
        let function = match settling.step {
            Settle::Unlock => Function::Settle,
            Settle::TryAgain => Function::TryLock,
        };
        self.means.ask(function, settling.lock, &mut self.connection)?;
        self.state = State::Settling(settling);
        Ok(())
    }

    /// Looks at the clock.
    fn act(&mut self, now: Instant) -> Result<Action, Loss> {
        let is_lent = !self.holds_one_lock() || self.means.is_open(&self.connection);
        match self.state {
            State::Asked(Asked { ref ask, .. }) if self.has_to_renew(ask) => {
                self.check_renewable(now)?;
            }
            State::Asked(Asked {
                ask: Ask::Lock { until: Some(until), .. }, answer: None, ..
            })
            | State::Opening(Asked {
                ask: Ask::Lock { until: Some(until), .. },
                answer: None,
                wanted: true,
                ..
            }) if until <= now => {
                self.withdraw(Reason::OutOfTime, now);
            }
            State::Asked(Asked { ask: Ask::Fence { .. }, answer_by, .. }) if answer_by <= now => {
                self.withdraw(Reason::Unwanted, now);
            }
            _ => {}
        }
        match &mut self.state {
            State::Idle => Ok(Action::Wait { until: None }),
            State::Asked(asked @ Asked { ask: Ask::Lock { .. }, answer: None, .. })
            | State::Opening(
                asked @ Asked { ask: Ask::Lock { .. }, answer: None, wanted: true, .. },
            ) => Ok(Action::Wait { until: asked.ask.until(asked.answer_by) }),
            State::Opening(Asked { answer_by, answer, .. }) if *answer_by <= now => {
                Err(stuck_or(answer.take(), Loss::NotServed))
            }
            State::Asked(Asked { ask: Ask::Look(_), answer_by, answer, .. })
                if !is_lent && *answer_by <= now =>
            {
                Err(stuck_or(answer.take(), Loss::NotServed))
            }
            State::Asked(Asked { answer_by, answer, wanted, .. }) if *answer_by <= now => {
                let is_bounded = !*wanted || self.tell_by.is_some_and(|by| by <= *answer_by);
                let patience = if is_bounded { SETTLE_WITHIN } else { ANSWER_WITHIN };
                Err(stuck_or(answer.take(), Loss::Silent(patience)))
            }
            State::Opening(Asked { answer_by, .. }) | State::Asked(Asked { answer_by, .. }) => {
                Ok(Action::Wait { until: Some(*answer_by) })
            }
            State::Withdrawing(Withdrawing { give_up_at, answer, .. })
            | State::Settling(Settling { give_up_at, answer, .. })
                if *give_up_at <= now =>
            {
                let answer = answer.take();
                Err(match self.unsettled() {
                    // A server that did go on has left a CancelRequest open.
                    Loss::Unsettled(patience) if !self.connection.is_idle() => {
                        stuck_or(answer, Loss::Unsettled(patience))
                    }
                    unsettled => unsettled,
                })
            }
            State::Withdrawing(withdrawing) => Ok(withdrawing.act(now)),
            State::Settling(settling) => Ok(Action::Wait { until: Some(settling.give_up_at) }),
            State::Over => Err(unexpected_answer()),
        }
    }

    fn withdraw(&mut self, reason: Reason, now: Instant) {
        let tell_by = earliest(now + SETTLE_WITHIN, self.tell_by);
        self.tell_by = Some(tell_by);
        let give_up_at = self.settle_by(now).min(tell_by);
        match &mut self.state {
            State::Asked(Asked {
                ask: ask @ (Ask::Lock { .. } | Ask::Fence { .. }),
                answer,
                ..
            }) => {
                self.state = State::Withdrawing(Withdrawing {
                    ask: ask.clone(),
                    answer: answer.take(),
                    cancel: Cancel::Due(now),
                    cancels_ended: 0,
                    give_up_at,
                    reason,
                });
            }
            // Nothing is withdrawn from a pooler's queue: that would end the connection.
            State::Opening(asked) if asked.wanted => {
                asked.wanted = false;
                asked.answer_by = now + OPEN_WITHIN;
            }
            State::Asked(asked) if reason == Reason::Unwanted || self.unconfirmed.is_some() => {
                asked.wanted &= reason != Reason::Unwanted;
                asked.answer_by = earliest(asked.answer_by, self.tell_by);
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
    /// A transaction has begun in this process.
    Begun(Asked, i32),
    Settle(Settling),
    /// The request is over. Unless the outcome is wanted and says so, this lock must not be held.
    Done(Option<LockId>, Outcome),
    /// The session gave a sign of life; and whether anybody waited for it.
    Alive {
        wanted: bool,
    },
}

impl Ask {
    /// The lock that must not be held in the end, unless the outcome says so and is wanted.
    fn lock(&self) -> Option<LockId> {
        match self {
            Self::Lock { lock, .. }
            | Self::TryLock(lock)
            | Self::Unlock(lock)
            | Self::Fence { lock, held: Held::Newly } => Some(*lock),
            #[cfg(feature = "manager")]
            Self::Settle(lock) => Some(*lock),
            // Where it counts, any of them stands for the transaction that holds it.
            #[cfg(feature = "manager")]
            Self::TryAny(choice) => choice.locks().next(),
            Self::Fence { held: Held::Before, .. } | Self::Look(_) | Self::Heartbeat => None,
        }
    }

    /// Whether it takes a lock, and with it whatever holds the lock.
    fn takes(&self) -> bool {
        match self {
            Self::Lock { .. } | Self::TryLock(_) => true,
            #[cfg(feature = "manager")]
            Self::TryAny(_) => true,
            _ => false,
        }
    }

    /// When the caller has to be told of something: of a wait without a slice, where there is one.
    fn tell_by(&self) -> Option<Instant> {
        match self {
            Self::Lock { until: Some(until), .. } => until.checked_add(SETTLE_WITHIN),
            _ => None,
        }
    }

    /// Has a wait end with the slice that begins now.
    fn begin_slice(&mut self, now: Instant) {
        if let Self::Lock { until, slice, .. } = self {
            let ends = slice.take().and_then(|slice| now.checked_add(slice));
            *until = [*until, ends].into_iter().flatten().min();
        }
    }

    /// When something is due if there is no answer.
    fn until(&self, answer_by: Instant) -> Option<Instant> {
        match self {
            Self::Lock { until, .. } => *until,
            _ => Some(answer_by),
        }
    }

    /// What follows from what the function returned, if nothing is to be done about it.
    fn plain_outcome(&self, result: CallResult) -> Option<Outcome> {
        match (self, result) {
            (Self::Lock { .. }, CallResult::Void) | (Self::TryLock(_), CallResult::True) => {
                Some(Outcome::Acquired)
            }
            (Self::TryLock(_), CallResult::False) => Some(Outcome::NotAcquired),
            (Self::Unlock(_), CallResult::True) => Some(Outcome::Released),
            _ => None,
        }
    }
}

impl State {
    /// Weighs the answer, if there is one, now that the server waits for the next request.
    fn answered(self, means: &Means, now: Instant) -> Result<Next, Loss> {
        match self {
            Self::Opening(asked) => asked.begun(now),
            Self::Asked(asked) => asked.answered(means, now),
            Self::Withdrawing(withdrawing) if withdrawing.cancel == Cancel::Open => {
                Ok(Next::Stay(Self::Withdrawing(withdrawing)))
            }
            Self::Withdrawing(withdrawing) => withdrawing.answered(means),
            Self::Settling(settling) => settling.answered(means),
            Self::Idle | Self::Over => Ok(Next::Stay(self)),
        }
    }
}

fn earliest(time: Instant, other: Option<Instant>) -> Instant {
    other.map_or(time, |other| time.min(other))
}

impl Asked {
    fn new(ask: Ask, answer_by: Instant) -> Self {
        Self { ask, answer: None, answer_by, wanted: true }
    }

    /// A wait takes as long as it takes, and so may its answer come at any time: what ends the answer
    /// follows it at once.
    fn expect_the_end(&mut self, answer: &Answer, tell_by: Option<Instant>, now: Instant) {
        let patience = match answer {
            Answer::Failed(_) => GO_ON_WITHIN,
            Answer::Returned(_) | Answer::Row(_) => ANSWER_WITHIN,
        };
        let latest = earliest(now + patience, tell_by);
        self.answer_by = match self.ask {
            Ask::Lock { .. } if self.wanted => latest,
            _ => self.answer_by.min(latest),
        };
    }

    fn begun(mut self, now: Instant) -> Result<Next, Loss> {
        match self.answer.take() {
            Some(Answer::Row(row)) => {
                let process_id = row.into_iter().next().flatten();
                let process_id = process_id.and_then(|process_id| process_id.parse().ok());
                Ok(Next::Begun(self, process_id.ok_or_else(unexpected_answer)?))
            }
            Some(Answer::Failed(error)) => {
                let lock = self.ask.lock().ok_or_else(unexpected_answer)?;
                Ok(Next::Settle(Settling::unwanted(lock, Outcome::Failed(error), now)))
            }
            _ => Err(unexpected_answer()),
        }
    }

    fn answered(self, means: &Means, now: Instant) -> Result<Next, Loss> {
        let answer = self.answer.ok_or_else(unexpected_answer)?;
        let lock = self.ask.lock();
        let done = |outcome| Ok(Next::Done(lock, outcome));
        let settle = |lock, outcome| Ok(Next::Settle(Settling::unwanted(lock, outcome, now)));
        match (self.ask, answer) {
            (Ask::Heartbeat, answer) => {
                answer.check_sign_of_life(means)?;
                Ok(Next::Alive { wanted: self.wanted })
            }
            (_, Answer::Row(row)) if means.is_elsewhere(&row) => Err(Loss::Moved),
            (Ask::Fence { .. } | Ask::Look(_), Answer::Row(row)) => done(Outcome::Row(row)),
            #[cfg(feature = "manager")]
            (Ask::TryAny(choice), Answer::Row(row)) => {
                match choice.acquired(&row).map_err(|Unreadable| unexpected_answer())? {
                    Some(lock) if !self.wanted => settle(lock, Outcome::NotAcquired),
                    Some(lock) => done(Outcome::AcquiredOne(lock)),
                    None => done(Outcome::NotAcquired),
                }
            }
            // It is not known which of them may be held, and nobody is there to settle each.
            #[cfg(feature = "manager")]
            (Ask::TryAny(_), Answer::Failed(error))
                if !self.wanted && !matches!(means, Means::Transaction { .. }) =>
            {
                Err(Loss::Unreleased(error))
            }
            // A server that cannot call the function has not locked, and could not unlock.
            (Ask::Lock { .. } | Ask::TryLock(_), Answer::Failed(error)) if cannot_lock(&error) => {
                done(Outcome::Failed(error))
            }
            (
                Ask::Lock { lock, .. }
                | Ask::TryLock(lock)
                | Ask::Fence { lock, held: Held::Newly, .. },
                Answer::Failed(error),
            ) => settle(lock, Outcome::Failed(error)),
            (Ask::Unlock(lock), Answer::Failed(_)) => settle(lock, Outcome::Released),
            (_, Answer::Failed(error)) => done(Outcome::Failed(error)),
            (ask, answer) => match (ask, answer.of(means)?) {
                (Ask::TryLock(lock), CallResult::True) if !self.wanted => {
                    settle(lock, Outcome::NotAcquired)
                }
                (Ask::Unlock(lock), CallResult::False) => Err(Loss::NotHeld(lock)),
                (ask, result) => done(ask.plain_outcome(result).ok_or_else(unexpected_answer)?),
            },
        }
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

    fn answered(self, means: &Means) -> Result<Next, Loss> {
        let outcome = match (&self.ask, self.answer.ok_or_else(unexpected_answer)?) {
            (_, Answer::Failed(error)) if error.sqlstate() != QUERY_CANCELED => {
                Outcome::Failed(error)
            }
            // A token that was cancelled may have come without what it waited for.
            (_, Answer::Failed(_)) | (Ask::Fence { .. }, Answer::Row(_)) => Outcome::NotAcquired,
            (Ask::Lock { lock, .. }, answer) => match (answer.of(means)?, self.reason) {
                (CallResult::Void, Reason::Unwanted) => Outcome::NotAcquired,
                (CallResult::Void, _) => return Ok(Next::Done(Some(*lock), Outcome::Acquired)),
                _ => return Err(unexpected_answer()),
            },
            _ => return Err(unexpected_answer()),
        };
        let (lock, reason) = match self.ask {
            Ask::Lock { lock, .. } => (lock, self.reason),
            Ask::Fence { lock, held: Held::Newly, .. } => (lock, Reason::Unwanted),
            ask => return Ok(Next::Done(ask.lock(), outcome)),
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

    fn unwanted(lock: LockId, outcome: Outcome, now: Instant) -> Self {
        Self::new(lock, outcome, Reason::Unwanted, now + SETTLE_WITHIN)
    }

    fn answered(self, means: &Means) -> Result<Next, Loss> {
        let missed = self.reason == Reason::OutOfTime && self.outcome == Outcome::NotAcquired;
        let verdict = match (&self.answer, means) {
            (Some(Answer::Failed(_)), _) => return self.unlock_again(),
            (Some(answer), _) => answer.of(means)?,
            // The end of a transaction has no row, and whatever it held is released.
            (None, Means::Transaction { .. }) => CallResult::False,
            (None, _) => return Err(unexpected_answer()),
        };
        match (self.step, verdict) {
            (Settle::Unlock, CallResult::True) if missed => {
                Ok(Next::Settle(Self { step: Settle::TryAgain, answer: None, ..self }))
            }
            (Settle::Unlock, CallResult::True | CallResult::False)
            | (Settle::TryAgain, CallResult::False) => {
                Ok(Next::Done(Some(self.lock), self.outcome))
            }
            (Settle::TryAgain, CallResult::True) if missed => {
                Ok(Next::Done(Some(self.lock), Outcome::Acquired))
            }
            (Settle::TryAgain, CallResult::True) => self.unlock_again(),
            (_, CallResult::Void) => Err(unexpected_answer()),
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

impl Outcome {
    /// Whether the lock that was asked for is held.
    fn holds(&self) -> bool {
        match self {
            Self::Acquired | Self::Row(_) => true,
            #[cfg(feature = "manager")]
            Self::AcquiredOne(_) => true,
            _ => false,
        }
    }
}

impl Answer {
    /// Whether it shows that the session stands: an error does too, unless it ended the transaction that
    /// holds the lock.
    fn check_sign_of_life(self, means: &Means) -> Result<(), Loss> {
        match (self, means) {
            (Self::Failed(error), Means::Transaction { .. }) => Err(Loss::RolledBack(error)),
            (Self::Failed(_), _) => Ok(()),
            (answer, _) => match answer.of(means)? {
                CallResult::False => Ok(()),
                CallResult::True | CallResult::Void => Err(unexpected_answer()),
            },
        }
    }

    /// What this says of a lock that was asked for by these means.
    fn of(&self, means: &Means) -> Result<CallResult, Loss> {
        match (self, means.process_id()) {
            (Self::Returned(result), None) => Ok(*result),
            (Self::Row(row), Some(expected)) => {
                let [Some(process_id), Some(value)] = row.as_slice() else {
                    return Err(unexpected_answer());
                };
                if process_id.parse() != Ok(expected) {
                    return Err(Loss::Moved);
                }
                match value.as_str() {
                    "" => Ok(CallResult::Void),
                    "t" => Ok(CallResult::True),
                    "f" => Ok(CallResult::False),
                    _ => Err(unexpected_answer()),
                }
            }
            _ => Err(unexpected_answer()),
        }
    }
}

/// Whether the server has no advisory locks, or not in the way in which they are asked for.
pub(super) fn cannot_lock(error: &ServerError) -> bool {
    CANNOT_LOCK.contains(&error.sqlstate())
}

/// Why there is no going on: an error that the server reported says more than that it fell silent.
fn stuck_or(answer: Option<Answer>, loss: Loss) -> Loss {
    match answer {
        Some(Answer::Failed(error)) => Loss::Stuck(error),
        _ => loss,
    }
}

fn returned(value: Option<&[u8]>) -> Result<Answer, ProtocolError> {
    match value {
        Some([]) => Ok(Answer::Returned(CallResult::Void)),
        Some([0]) => Ok(Answer::Returned(CallResult::False)),
        Some([1]) => Ok(Answer::Returned(CallResult::True)),
        _ => Err(ProtocolError::InvalidField { tag: b'V', field: "function result" }),
    }
}

/// A field of a row. What is not a text is not what was asked for, and is refused as that.
pub(super) fn text(value: Option<&[u8]>) -> Option<String> {
    value.map(|value| String::from_utf8_lossy(value).into_owned())
}

fn unexpected_answer() -> Loss {
    Loss::Protocol(ProtocolError::UnexpectedMessage {
        message: "an answer",
        during: "a request that cannot have it",
    })
}
