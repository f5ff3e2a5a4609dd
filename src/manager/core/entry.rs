//! One key: where it stands, and who has it.

use std::time::Instant;

use super::queue::{Queue, Request};
use super::{Command, Grant, Limits, Order, Reply, SessionId};
use crate::error::Error;
use crate::key::{Key, Mode};
use crate::session::LockId;

/// A hundred thousand of them may be held: see the test of its size.
#[derive(Debug)]
pub(super) struct Entry<R> {
    pub(super) state: State<R>,
    pub(super) queue: Queue<R>,
}

#[derive(Debug)]
pub(super) enum State<R> {
    Unasked,
    Trying(SessionId, Mode),
    Pausing,
    Waiting(SessionId, Mode),
    Withdrawing(SessionId, Mode),
    Held(Held),
    /// With whoever wants to be told.
    Releasing(SessionId, Option<R>),
}

/// A lock that the server has granted.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) session: SessionId,
    pub(super) mode: Mode,
    pub(super) guards: u32,
    /// How those who have guards hold it. Under an exclusive lock, either is possible.
    guarded: Mode,
    /// How often it went from guard to guard since others had their chance.
    hand_overs: u32,
    since: Instant,
    /// Whether the server has just granted it, or said that nobody waits for it.
    pub(super) fresh: bool,
    pub(super) others: Others,
}

/// What is known of other sessions that want a lock that is held, once its bounds are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    Unknown,
    BeingProbed,
    Waiting,
}

impl<R> Default for Entry<R> {
    fn default() -> Self {
        Self { state: State::Unasked, queue: Queue::default() }
    }
}

impl<R> Entry<R> {
    /// Gives guards to those at the head of the queue, as far as the lock goes.
    pub(super) fn grant(
        &mut self,
        key: Key,
        limits: &Limits,
        now: Instant,
        commands: &mut Vec<Command<R>>,
    ) {
        let State::Held(held) = &mut self.state else { return };
        while let Some(next) = self.queue.head() {
            let is_in_the_way = held.guards > 0 && next.is_impatient() && !held.goes_to(next.mode);
            if !is_in_the_way && !held.takes(next.mode, limits, now) {
                break;
            }
            let Some(next) = self.queue.pop() else { return };
            if is_in_the_way {
                commands.push(Command::Reply(next.caller, Reply::Busy));
                continue;
            }
            let handed_over = held.guards == 0 && !held.fresh;
            held.hand_overs += u32::from(handed_over);
            held.guards += 1;
            held.guarded = next.mode;
            let lock = LockId { key, mode: next.mode };
            let waited = now.saturating_duration_since(next.since);
            let (session, fresh) = (held.session, held.fresh);
            let grant = Grant { session, lock, waited, handed_over, fresh };
            commands.push(Command::Reply(next.caller, Reply::Granted(grant)));
        }
        if held.guards == 0 {
            return;
        }
        held.fresh = false;
        let joins = |mode| held.others != Others::Waiting && held.goes_to(mode);
        if !self.queue.head().is_some_and(|next| joins(next.mode)) {
            return self.refuse_the_impatient(commands);
        }
        if held.others == Others::Unknown {
            held.others = Others::BeingProbed;
            let lock = LockId { key, mode: held.mode };
            commands.push(Command::Order(held.session, Order::Probe(lock)));
        }
        self.refuse_where(|request| request.mode == Mode::Exclusive, || Reply::Busy, commands);
    }

    /// The lock is not free in this mode. Says whether it may be for the next one in the queue.
    pub(super) fn refuse_in(&mut self, mode: Mode, commands: &mut Vec<Command<R>>) -> bool {
        self.refuse_where(|request| request.mode == mode, || Reply::Busy, commands);
        let may_be_shared = mode == Mode::Exclusive
            && self.queue.head().is_some_and(|next| next.mode == Mode::Shared);
        if !may_be_shared {
            self.refuse_the_impatient(commands);
        }
        may_be_shared
    }

    /// The lock is not free.
    pub(super) fn refuse_the_impatient(&mut self, commands: &mut Vec<Command<R>>) {
        self.refuse_where(|_| true, || Reply::Busy, commands);
    }

    pub(super) fn fail_the_impatient(&mut self, error: &Error, commands: &mut Vec<Command<R>>) {
        self.refuse_where(|_| true, || Reply::Failed(error.clone()), commands);
    }

    pub(super) fn fail(&mut self, error: &Error, commands: &mut Vec<Command<R>>) {
        while let Some(request) = self.queue.pop() {
            commands.push(Command::Reply(request.caller, Reply::Failed(error.clone())));
        }
    }

    /// The session was lost on which the lock was tried, which may be all that the loss says: another one
    /// is worth a try.
    pub(super) fn try_once_more(&mut self, error: &Error, commands: &mut Vec<Command<R>>) {
        let failed = || Reply::Failed(error.clone());
        self.refuse_where(|request| request.tried_again, failed, commands);
        self.queue.mark_tried();
    }

    /// Replies to those of whom this is true and who do not wait.
    fn refuse_where(
        &mut self,
        condition: impl Fn(&Request<R>) -> bool,
        reply: impl Fn() -> Reply,
        commands: &mut Vec<Command<R>>,
    ) {
        self.queue.take_impatient(condition, |caller| {
            commands.push(Command::Reply(caller, reply()));
        });
    }
}

impl<R> State<R> {
    pub(super) fn session(&self) -> Option<SessionId> {
        match self {
            Self::Unasked | Self::Pausing => None,
            Self::Trying(session, _)
            | Self::Waiting(session, _)
            | Self::Withdrawing(session, _)
            | Self::Releasing(session, _) => Some(*session),
            Self::Held(held) => Some(held.session),
        }
    }
}

impl Held {
    pub(super) fn new(session: SessionId, mode: Mode, now: Instant) -> Self {
        Self {
            session,
            mode,
            guards: 0,
            guarded: mode,
            hand_overs: 0,
            since: now,
            fresh: true,
            others: Others::Unknown,
        }
    }

    /// Whether another guard may have the lock in this mode now, without asking the server.
    pub(super) fn takes(&self, mode: Mode, limits: &Limits, now: Instant) -> bool {
        let may_go_on = self.hand_overs < limits.hand_overs
            && now.saturating_duration_since(self.since) < limits.hand_overs_for;
        self.goes_to(mode) && (self.fresh || may_go_on)
    }

    /// Whether another guard could have it in this mode beside those that there are.
    fn goes_to(&self, mode: Mode) -> bool {
        let covers = self.mode == Mode::Exclusive || mode == Mode::Shared;
        let goes_along = self.guards == 0 || (mode, self.guarded) == (Mode::Shared, Mode::Shared);
        covers && goes_along
    }

    pub(super) fn probed(&mut self, awaited: bool, now: Instant) {
        if awaited {
            self.others = Others::Waiting;
        } else {
            self.others = Others::Unknown;
            self.fresh = true;
            self.hand_overs = 0;
            self.since = now;
        }
    }
}
