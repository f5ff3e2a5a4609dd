//! The sessions: which of them does what, and when another one is opened.

use std::mem;
use std::time::Instant;

use super::entry::{Entry, State};
use super::places::Place;
use super::{Command, Core, OPEN_AGAIN_AFTER_MAX, Order, Reply, SessionId};
use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// A session.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) stage: Stage,
    /// How many keys are tried, waited for, held or released on it.
    pub(super) keys: usize,
    /// Since when it stands, if it does.
    pub(super) opened: Instant,
    pub(super) idle_since: Instant,
    /// While it waits.
    pub(super) place: Option<Place>,
    /// Whether what it does was withdrawn, and it has not said what came of it.
    pub(super) is_withdrawn: bool,
    /// A key that it is still releasing, as far as is known, while another session has it by now.
    pub(super) superseded: Option<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Opening(Purpose),
    Open,
    Closing,
}

/// What a session is opened for. What it then does may be something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    ToTry,
    /// For keys that turned out to be busy.
    ToWait,
}

impl<R> Core<R> {
    /// The shared session, where one can hold several keys: or, as long as that is lost or being opened, any
    /// other that does not wait.
    pub(super) fn session_for_trying(&self) -> Option<SessionId> {
        if self.one_key_each {
            return self.idle_sessions().next();
        }
        if self.has_shared() {
            return self.shared;
        }
        self.idle_sessions().next().or_else(|| self.stand_in())
    }

    pub(super) fn has_shared(&self) -> bool {
        self.shared.is_some_and(|shared| self.is_open(shared))
    }

    /// The sessions that are open, hold nothing, and do not wait: without the shared one.
    pub(super) fn idle_sessions(&self) -> impl Iterator<Item = SessionId> {
        let idle = self.sessions.iter().filter(|(_, seat)| seat.is_idle());
        idle.map(|(session, _)| *session).filter(|session| self.shared != Some(*session))
    }

    pub(super) fn is_open(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|seat| seat.stage == Stage::Open)
    }

    /// Opens the sessions that the keys which need one for being tried lack.
    pub(super) fn open_for_trying(&mut self, now: Instant) {
        let opening = self.opening_for_trying();
        let others = self.queued_attempts() + self.inspections.sessions_needed();
        let needed = if self.one_key_each { self.unasked.len() + others } else { 1 };
        for _ in opening..needed {
            if !self.may_open(now) {
                return;
            }
            let session = self.open(Purpose::ToTry, now);
            if !self.one_key_each {
                self.shared = Some(session);
            }
        }
    }

    /// Opens a session for the keys in line, if there are more of them than are being opened.
    pub(super) fn open_for_waiting(&mut self, now: Instant) {
        if self.opening(Purpose::ToWait) < self.line.len() && self.may_open(now) {
            self.open(Purpose::ToWait, now);
        }
    }

    /// How many sessions are being opened that will be there for trying: also those on which nobody wants to
    /// wait any more.
    pub(super) fn opening_for_trying(&self) -> usize {
        let not_for_waiting = self.opening(Purpose::ToWait).saturating_sub(self.line.len());
        self.opening(Purpose::ToTry) + not_for_waiting
    }

    fn opening(&self, purpose: Purpose) -> usize {
        self.sessions.values().filter(|seat| seat.stage == Stage::Opening(purpose)).count()
    }

    /// Why no session can be had before long, if so.
    pub(super) fn hindrance(&self) -> Option<Error> {
        // One that closes makes room for another, and so does one that is free soon.
        let makes_way =
            |seat: &Seat| seat.stage == Stage::Closing || (self.one_key_each && seat.is_withdrawn);
        if self.sessions.values().any(makes_way) || self.opening_for_trying() > 0 {
            return None;
        }
        self.unreachable.clone().or_else(|| self.one_key_each.then(crowded))
    }

    pub(super) fn may_open(&self, now: Instant) -> bool {
        self.sessions.len() < self.limits.sessions
            && self.open_again.due.is_none_or(|due| due <= now)
    }

    fn open(&mut self, purpose: Purpose, now: Instant) -> SessionId {
        self.last_session += 1;
        let session = self.last_session;
        let seat = Seat {
            stage: Stage::Opening(purpose),
            keys: 0,
            opened: now,
            idle_since: now,
            place: None,
            is_withdrawn: false,
            superseded: None,
        };
        self.sessions.insert(session, seat);
        self.commands.push(Command::Open(session));
        session
    }

    pub(super) fn occupy(&mut self, session: SessionId) {
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.keys += 1;
        }
    }

    pub(super) fn vacate(&mut self, session: SessionId, now: Instant) {
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.keys -= 1;
            seat.idle_since = now;
        }
    }

    /// Gives a session that may be idle to the next key that needs one.
    pub(super) fn fill(&mut self, session: SessionId, now: Instant) {
        if self.one_key_each || self.shared == Some(session) || !self.has_shared() {
            self.serve(now);
        }
        self.give_places(now);
    }

    /// Tries the keys that need a session for it, as far as there are any.
    pub(super) fn serve(&mut self, now: Instant) {
        while self.session_for_trying().is_some() {
            if let Some(key) = self.next_unasked() {
                self.advance(key, now);
            } else if let Some(attempt) = self.next_attempt() {
                self.try_any(attempt, now);
            } else {
                break;
            }
        }
        if let Some(key) = self.next_unasked() {
            self.unasked.push_front(key);
            self.open_for_trying(now);
        } else if self.next_attempt().is_some() {
            self.open_for_trying(now);
        }
        self.ask_what_is_to_be_inspected(now);
    }

    /// The next key that needs a session to be tried on.
    fn next_unasked(&mut self) -> Option<Key> {
        loop {
            let key = self.unasked.pop_front()?;
            if matches!(self.keys.get(&key), Some(Entry { state: State::Unasked, .. })) {
                return Some(key);
            }
        }
    }

    /// A session could not be opened.
    pub(super) fn unopened(&mut self, purpose: Purpose, error: Error, now: Instant) {
        self.open_again.put_off(now);
        if purpose == Purpose::ToWait {
            // Those who pause are tried again all the same.
            return;
        }
        self.fail_inspections(&error);
        self.fail_those_without_session(&error);
        if self.unasked.is_empty() {
            // Nobody waits for it, so whoever comes next may try at once.
            self.open_again.due = None;
        }
        self.unreachable = Some(error);
    }

    /// Whoever does not wait for a lock does not wait for a session either that will not come: the last one
    /// that was to come may have gone to somebody else.
    pub(super) fn turn_away(&mut self) {
        if self.unasked.is_empty() && self.next_attempt().is_none() {
            return;
        }
        if let Some(why) = self.hindrance() {
            self.fail_those_without_session(&why);
        }
    }

    /// Has a session give up what nobody wants of it any more.
    pub(super) fn order_to_withdraw(&mut self, session: SessionId) {
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.is_withdrawn = true;
        }
        self.order(session, Order::Withdraw);
    }

    /// A session has said what came of it. Says whether something was withdrawn.
    pub(super) fn note_answer(&mut self, session: SessionId) -> bool {
        self.is_doubtful = false;
        let seat = self.sessions.get_mut(&session);
        seat.is_some_and(|seat| mem::take(&mut seat.is_withdrawn))
    }

    /// A session is not expected to be free any more. Whoever counted on that is told, if it has gone to others.
    pub(super) fn serve_those_made_way_for(&mut self, now: Instant) {
        if self.one_key_each {
            self.serve(now);
            self.turn_away();
        }
    }

    /// No session can be had at the moment.
    fn fail_those_without_session(&mut self, error: &Error) {
        for key in self.unasked.drain() {
            let Some(entry) = self.keys.get_mut(&key) else { continue };
            if !matches!(entry.state, State::Unasked) {
                continue;
            }
            if error.may_pass() {
                entry.fail_the_impatient(error, &mut self.commands);
            } else {
                entry.fail(error, &mut self.commands);
            }
            if entry.queue.is_empty() {
                self.forget(key);
            } else {
                self.unasked.push_back(key);
            }
        }
        self.fail_queued_attempts(error);
    }

    /// A session is lost. If that was soon, and so with the one before, which did nothing either, the next one
    /// is not opened at once: whatever ends them may end it as well.
    pub(super) fn doubt(&mut self, opened: Instant, error: &Error, now: Instant) {
        let was_soon = now < opened + OPEN_AGAIN_AFTER_MAX;
        if mem::replace(&mut self.is_doubtful, was_soon) && was_soon {
            self.open_again.put_off(now);
            self.unreachable = Some(error.clone());
        }
    }

    /// A session is over, and with it all that it held.
    pub(super) fn lost(&mut self, session: SessionId, error: &Error, now: Instant) {
        self.lose_inspections(session, error);
        let of_session = |entry: &Entry<R>| entry.state.session() == Some(session);
        let keys = self.keys.iter().filter(|(_, entry)| of_session(entry)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            let Some(entry) = self.keys.get_mut(&key) else { continue };
            match mem::replace(&mut entry.state, State::Unasked) {
                State::Releasing(_, Some(caller)) => {
                    self.commands.push(Command::Reply(caller, Reply::NotDone(error.clone())));
                }
                State::Held(held) => self.stats.lost(held.guards),
                State::Trying(..) => entry.try_once_more(error, &mut self.commands),
                _ => {}
            }
            self.advance(key, now);
        }
        self.lose_attempts(session, error, now);
    }

    pub(super) fn order(&mut self, session: SessionId, order: Order) {
        self.commands.push(Command::Order(session, order));
    }

    pub(super) fn reply(&mut self, caller: R, reply: Reply) {
        self.commands.push(Command::Reply(caller, reply));
    }
}

impl Seat {
    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Open && self.keys == 0
    }

    /// Whether it is there for keys that it holds or tries.
    pub(super) fn holds(&self) -> bool {
        self.stage == Stage::Open && self.keys > 0 && self.place.is_none()
    }
}

fn crowded() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "all sessions of the manager have their hands full; allow it more, or hold fewer keys",
    )
}
