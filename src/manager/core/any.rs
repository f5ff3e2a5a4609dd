//! One of several keys, whichever is free: what a [`Choice`] is about.
//!
//! ```text
//!             a session           its turn has come
//!  Queued ───────────────▶ Ordered ────────────────▶ Asked ──┬─ one acquired ──▶ its key is Held
//!    ▲ │                      │                        │     └─ none, or an error
//!    │ └─ none can be had     └─ nobody wants it,      │
//!    │                           or none is left to    │ the session is lost
//!    │                           be tried              │ over it
//!    └─────────────────────────────────────────────────┘ for the first time
//! ```
//!
//! Which keys are tried is settled when the session's turn has come to try them: only those that nobody of
//! this process has anything to do with. A session would be granted a lock that it holds once more. For the
//! same reason, a key among them that somebody of this process comes to want meanwhile is not tried before
//! the answer is there: it is *deferred*.
//!
//! Nor is a key in the way for whose sake none is to be taken, if this process itself has it, on whichever
//! session.
//!
//! Whoever wants one of several keys does not wait for it, so nothing of this is in a queue for a key.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::entry::{Held, State};
use super::{Command, Core, Grant, Order, Reply, RequestId, SessionId};
use crate::error::{Error, Result};
use crate::key::{Key, Mode};
use crate::session::{Choice, LockId};

/// A request for one of several locks.
#[derive(Debug)]
pub(super) struct Attempt<R> {
    choice: Choice,
    /// Nobody, if the request was given up.
    caller: Option<R>,
    /// Whether a session was lost over it.
    tried_again: bool,
    since: Instant,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Queued,
    Ordered(SessionId),
    Asked { session: SessionId, choice: Arc<Choice>, deferred: Vec<Key> },
}

impl<R> Attempt<R> {
    fn session(&self) -> Option<SessionId> {
        match self.step {
            Step::Queued => None,
            Step::Ordered(session) | Step::Asked { session, .. } => Some(session),
        }
    }
}

impl<R> Core<R> {
    /// Somebody wants one of these locks if one is free, and is replied to.
    pub(in super::super) fn request_any(
        &mut self,
        choice: Choice,
        caller: R,
        now: Instant,
    ) -> RequestId {
        self.last_request += 1;
        let id = self.last_request;
        self.stats.requested();
        if let Some(why) = self.why_closed() {
            self.reply(caller, Reply::Failed(why));
            return id;
        }
        let attempt = Attempt {
            choice,
            caller: Some(caller),
            tried_again: false,
            since: now,
            step: Step::Queued,
        };
        self.attempts.insert(id, attempt);
        self.try_any(id, now);
        id
    }

    /// Whoever made such a request does not want a lock any more.
    pub(in super::super) fn give_up_any(&mut self, id: RequestId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.caller.take().is_some() {
            self.stats.gave_up();
        }
        match attempt.session() {
            None => _ = self.attempts.remove(&id),
            // A pooler may not serve it for long.
            Some(session) if self.one_key_each => self.order_to_withdraw(session),
            Some(_) => {}
        }
    }

    /// A session is about to do what it was ordered to: with these locks, or with none at all.
    pub(in super::super) fn choose(
        &mut self,
        session: SessionId,
        id: RequestId,
        now: Instant,
    ) -> Option<Arc<Choice>> {
        let attempt = self.attempts.get_mut(&id)?;
        if !matches!(attempt.step, Step::Ordered(ordered) if ordered == session) {
            return None;
        }
        let class = attempt.choice.class;
        let is_ours = |object: &i32| self.keys.contains_key(&Key::pair(class, *object));
        let mut choice = attempt.choice.clone();
        choice.objects.retain(|object| !is_ours(object));
        let stands_aside = |object: &i32| {
            let entry = self.keys.get(&Key::pair(class, *object));
            entry.is_none_or(|entry| !matches!(entry.state, State::Held(_) | State::Releasing(..)))
        };
        choice.unless_taken = choice.unless_taken.filter(stands_aside);
        if attempt.caller.is_none() || choice.objects.is_empty() {
            self.answered_any(session, id, Ok(None), now);
            return None;
        }
        let choice = Arc::new(choice);
        let deferred = Vec::new();
        attempt.step = Step::Asked { session, choice: Arc::clone(&choice), deferred };
        Some(choice)
    }

    /// A session has tried them, and has this one now, if any.
    pub(in super::super) fn answered_any(
        &mut self,
        session: SessionId,
        id: RequestId,
        answer: Result<Option<LockId>>,
        now: Instant,
    ) {
        if self.attempts.get(&id).is_none_or(|attempt| attempt.session() != Some(session)) {
            return;
        }
        let Some(attempt) = self.attempts.remove(&id) else { return };
        let was_withdrawn = self.note_answer(session);
        if let Ok(Some(lock)) = answer {
            let waited = now.saturating_duration_since(attempt.since);
            let grant = Grant { session, lock, waited, handed_over: false, fresh: true };
            self.hold_one(grant, attempt.caller, now);
        } else {
            if let Some(caller) = attempt.caller {
                self.reply(caller, answer.map_or_else(Reply::Failed, |_| Reply::Busy));
            }
            self.vacate(session, now);
            self.fill(session, now);
        }
        if let Step::Asked { deferred, .. } = attempt.step {
            for key in deferred {
                self.advance(key, now);
            }
        }
        if was_withdrawn {
            self.serve_those_made_way_for(now);
        }
    }

    /// The server has granted a lock; and that is for this caller, if there is one.
    fn hold_one(&mut self, grant: Grant, caller: Option<R>, now: Instant) {
        let Grant { session, lock, .. } = grant;
        let mut held = Held::new(session, Mode::Exclusive, now);
        self.stats.held += 1;
        if let Some(caller) = caller {
            held.guards = 1;
            held.fresh = false;
            self.reply(caller, Reply::Granted(grant));
        }
        // Others may want it by now.
        let entry = self.keys.entry(lock.key).or_default();
        let before = mem::replace(&mut entry.state, State::Held(held));
        // Through a pooler, another session may have had it meanwhile, whose word is still under way.
        match before {
            State::Releasing(other, caller) => {
                if let Some(caller) = caller {
                    self.reply(caller, Reply::Done);
                }
                // That session is not free before its own answer is there.
                if let Some(seat) = self.sessions.get_mut(&other) {
                    seat.superseded = Some(lock.key);
                }
            }
            // That session is lost, then.
            State::Held(before) => self.stats.lost(before.guards),
            _ => {}
        }
        self.advance(lock.key, now);
    }

    /// Has a session try them, as soon as there is one.
    pub(super) fn try_any(&mut self, id: RequestId, now: Instant) {
        let Some(session) = self.session_for_trying() else {
            self.open_for_trying(now);
            if let Some(why) = self.hindrance() {
                self.fail_attempt(id, why);
            }
            return;
        };
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.step = Step::Ordered(session);
        self.occupy(session);
        self.order(session, Order::TryAny(id));
    }

    /// The next request that needs a session.
    pub(super) fn next_attempt(&self) -> Option<RequestId> {
        let mut attempts = self.attempts.iter();
        attempts.find(|(_, attempt)| matches!(attempt.step, Step::Queued)).map(|(id, _)| *id)
    }

    /// How many of them need a session.
    pub(super) fn queued_attempts(&self) -> usize {
        self.attempts.values().filter(|attempt| matches!(attempt.step, Step::Queued)).count()
    }

    /// Whether a key is among those that are being tried. It is advanced later if so.
    pub(super) fn defers(&mut self, key: Key) -> bool {
        for attempt in self.attempts.values_mut() {
            if let Step::Asked { choice, deferred, .. } = &mut attempt.step {
                if choice.locks().any(|lock| lock.key == key) {
                    if !deferred.contains(&key) {
                        deferred.push(key);
                    }
                    return true;
                }
            }
        }
        false
    }

    #[cfg(test)]
    pub(super) fn is_deferred(&self, key: Key) -> bool {
        let mut steps = self.attempts.values().map(|attempt| &attempt.step);
        steps.any(|step| matches!(step, Step::Asked { deferred, .. } if deferred.contains(&key)))
    }

    /// No session could be opened.
    pub(super) fn fail_queued_attempts(&mut self, error: &Error) {
        while let Some(id) = self.next_attempt() {
            self.fail_attempt(id, error.clone());
        }
    }

    fn fail_attempt(&mut self, id: RequestId, error: Error) {
        if let Some(caller) = self.attempts.remove(&id).and_then(|attempt| attempt.caller) {
            self.reply(caller, Reply::Failed(error));
        }
    }

    /// The session is over: another one is worth a try.
    pub(super) fn lose_attempts(&mut self, session: SessionId, error: &Error, now: Instant) {
        let of_session = |attempt: &Attempt<R>| attempt.session() == Some(session);
        let attempts = self.attempts.iter().filter(|(_, attempt)| of_session(attempt));
        for id in attempts.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(attempt) = self.attempts.get_mut(&id) else { continue };
            let step = mem::replace(&mut attempt.step, Step::Queued);
            if attempt.caller.is_none() || mem::replace(&mut attempt.tried_again, true) {
                self.fail_attempt(id, error.clone());
            } else {
                self.try_any(id, now);
            }
            if let Step::Asked { deferred, .. } = step {
                for key in deferred {
                    self.advance(key, now);
                }
            }
        }
    }

    /// Everything is being ended.
    pub(super) fn close_attempts(&mut self, why: &Error) {
        for (_, attempt) in mem::take(&mut self.attempts) {
            if let Some(caller) = attempt.caller {
                self.commands.push(Command::Reply(caller, Reply::Failed(why.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::manager::core::Limits;

    /// Through a pooler, a lock is lost with its session, and granted to another one, before anybody of
    /// this process hears of the loss.
    #[test]
    fn a_lock_that_another_session_has_by_now_is_not_counted_twice() {
        let now = Instant::now();
        let limits = Limits {
            sessions: 2,
            hand_overs: 0,
            hand_overs_for: Duration::ZERO,
            place_for: Duration::ZERO,
        };
        let mut core = Core::new(limits, 1);
        let choice = Choice { class: 7, objects: vec![1], unless_taken: None };
        let (first, second) =
            (core.request_any(choice.clone(), 1, now), core.request_any(choice.clone(), 2, now));
        core.opened(1, true, now);
        core.opened(2, true, now);
        let lock = choice.locks().next();
        for (session, attempt) in [(1, first), (2, second)] {
            assert!(core.choose(session, attempt, now).is_some());
        }
        for (session, attempt) in [(1, first), (2, second)] {
            core.answered_any(session, attempt, Ok(lock), now);
            core.commands();
            let stats = core.stats();
            assert_eq!((stats.held, stats.guards), (1, 1));
        }
        core.ended(1, None, now);
        for session in [1, 2] {
            core.release(session, Key::pair(7, 1), None, now);
            core.commands();
            let guards = usize::from(session == 1);
            assert_eq!((core.stats().held, core.stats().guards), (guards, guards));
        }
    }
}
