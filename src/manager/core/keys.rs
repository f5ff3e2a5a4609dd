//! The way of a key from one state to the next.

use std::time::Instant;

use super::entry::{Entry, State};
use super::{Core, Order, SessionId};
use crate::key::Key;
use crate::session::LockId;

impl<R> Core<R> {
    /// Does what is next for a key.
    pub(super) fn advance(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        match &mut entry.state {
            State::Unasked | State::Pausing if entry.queue.is_empty() => {
                self.keys.remove(&key);
            }
            State::Unasked => self.ask(key, now),
            State::Waiting(session, mode) => {
                if entry.queue.head().is_some_and(|head| head.mode == *mode) {
                    return;
                }
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
            self.open_for_trying(now);
            if let (Some(why), Some(entry)) = (self.hindrance(), self.keys.get_mut(&key)) {
                entry.fail_the_impatient(&why, &mut self.commands);
                if entry.queue.is_empty() {
                    self.keys.remove(&key);
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

    /// Waits for a key that turned out to be busy when it was tried on this session.
    pub(super) fn wait(&mut self, tried_on: SessionId, key: Key, now: Instant) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        let Some(mode) = entry.queue.head().map(|head| head.mode) else {
            return self.leave(tried_on, key, now);
        };
        if self.one_key_each {
            entry.state = State::Waiting(tried_on, mode);
            return self.order(tried_on, Order::Wait(LockId { key, mode }));
        }
        entry.state = State::Pausing;
        self.vacate(tried_on, now);
        if let Some(session) = self.idle_session() {
            return self.wait_on(session, key);
        }
        // It is tried again until there is a session, which may take a while to open.
        self.pausing.push_back(key);
        self.pause(now);
        self.open_for_waiting(now);
    }

    /// Has an idle session wait for a key.
    pub(super) fn wait_on(&mut self, session: SessionId, key: Key) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        let Some(mode) = entry.queue.head().map(|head| head.mode) else { return };
        entry.state = State::Waiting(session, mode);
        self.occupy(session);
        self.order(session, Order::Wait(LockId { key, mode }));
    }

    /// Ends a wait that nobody wants, or not in this mode.
    fn withdraw(&mut self, session: SessionId, lock: LockId) {
        if self.is_open(session) {
            self.set(lock.key, State::Withdrawing(session, lock.mode));
            self.order(session, Order::Withdraw);
        }
    }

    /// A session has nothing to do with a key any more.
    pub(super) fn leave(&mut self, session: SessionId, key: Key, now: Instant) {
        self.vacate(session, now);
        // Others first: they have waited for longer.
        self.fill(session, now);
        self.advance(key, now);
    }

    pub(super) fn set(&mut self, key: Key, state: State<R>) {
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.state = state;
        }
    }

    /// The next key that needs a session to wait on.
    pub(super) fn next_pausing(&mut self) -> Option<Key> {
        loop {
            let key = self.pausing.pop_front()?;
            if matches!(self.keys.get(&key), Some(Entry { state: State::Pausing, .. })) {
                return Some(key);
            }
        }
    }

    /// Sees to it that keys that found no session to wait on are tried again.
    pub(super) fn pause(&mut self, now: Instant) {
        if self.pausing.is_empty() {
            self.try_again.reset();
        } else {
            self.try_again.put_off(now);
        }
    }
}
