//! The way of a key from one state to the next.

use std::time::Instant;

use super::entry::State;
use super::{Core, Order, SessionId};
use crate::key::Key;
use crate::session::LockId;

impl<R> Core<R> {
    /// Does what is next for a key.
    pub(super) fn advance(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        match &mut entry.state {
            State::Unasked | State::Pausing if entry.queue.is_empty() => {
                self.forget(key);
            }
            State::Unasked => self.ask(key, now),
            State::Waiting(session, mode) => {
                if entry.queue.head().is_some_and(|head| head.mode == *mode) {
                    return;
                }
                let (session, mode) = (*session, *mode);
                self.withdraw(session, LockId { key, mode });
            }
            // A pooler may not serve it for long.
            State::Trying(session, mode) if self.one_key_each && entry.queue.is_empty() => {
                let (session, mode) = (*session, *mode);
                self.withdraw(session, LockId { key, mode });
            }
            State::Held(held) => {
                let lock = LockId { key, mode: held.mode };
                let session = held.session;
                entry.grant(key, &self.limits, now, &mut self.commands);
                if matches!(&entry.state, State::Held(held) if held.guards == 0) {
                    entry.state = State::Releasing(session, None);
                    self.stats.held -= 1;
                    self.order(session, Order::Unlock(lock));
                }
            }
            State::Pausing | State::Trying(..) | State::Withdrawing(..) | State::Releasing(..) => {}
        }
    }

    /// Tries a key, or has it wait for a session on which to try.
    fn ask(&mut self, key: Key, now: Instant) {
        let Some(session) = self.session_for_trying() else {
            self.unasked.push_back(key);
            self.keep_places_going(now);
            self.open_for_trying(now);
            if let (Some(why), Some(entry)) = (self.hindrance(), self.keys.get_mut(&key)) {
                entry.fail_the_impatient(&why, &mut self.commands);
                if entry.queue.is_empty() {
                    self.forget(key);
                }
            }
            return;
        };
        if self.defers(key) {
            return;
        }
        let Some(entry) = self.keys.get_mut(&key) else { return };
        let Some(mode) = entry.queue.head().map(|head| head.mode) else { return };
        entry.state = State::Trying(session, mode);
        self.occupy(session);
        self.order(session, Order::Try(LockId { key, mode }));
    }

    /// A session has nothing to do with a key any more.
    pub(super) fn leave(&mut self, session: SessionId, key: Key, now: Instant) {
        self.vacate(session, now);
        // Others first: they have waited for longer.
        self.fill(session, now);
        self.advance(key, now);
    }

    /// Nobody wants a key.
    pub(super) fn forget(&mut self, key: Key) {
        self.keys.remove(&key);
        self.line.leave(key);
        self.unasked.remove(key);
    }

    pub(super) fn set(&mut self, key: Key, state: State<R>) {
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.state = state;
        }
    }
}
