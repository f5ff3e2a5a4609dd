//! Places in the server's queues: each takes a session that holds nothing, and there may be more keys to wait
//! for than such sessions.
//!
//! Keys without a place are in line. They are tried every now and then, but where others queue at the server,
//! a key that is tried is never free. So places go round:
//!
//! - A session that has become free goes to the key that has been in line for the longest time. If that one is
//!   just being tried, the session is kept for it.
//! - A session that only waits gives up its place, once its time is over and others are in line. A key has its
//!   place for twice as long each time, up to a limit: where the queue is long, it would be served in no other
//!   way. One of several places is not kept for longer, for keys that are served soon.
//! - The shared session waits as well, if it holds nothing: then one that holds something, as after a wait, is
//!   the shared one.
//!
//! A session that holds something never waits, not even if no other is left: the server would see a circle of
//! waits where whoever holds a key would soon give it back, and fail somebody for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::entry::{Entry, State};
use super::sessions::{Seat, Stage};
use super::{Command, Core, Order, SessionId};
use crate::key::Key;
use crate::session::LockId;

/// How many keys in line are tried at a time.
const TRIED_AT_A_TIME: usize = 64;
/// How often the time doubles for which a key has a place.
const DOUBLED_AT_MOST: u32 = 6;
/// How often somebody is told that there are too few sessions.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Keys without a place, in the order in which they came to need one.
#[derive(Debug, Default)]
pub(super) struct Line {
    keys: BTreeMap<u64, Key>,
    numbers: BTreeMap<Key, u64>,
    last_number: u64,
    /// The number of the last key that was tried.
    tried: u64,
}

/// A key's place in the server's queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    key: Key,
    /// When its time is over.
    until: Instant,
    /// Whether that is later than at first.
    is_long: bool,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Has no effect on a key that is there. Says whether it was not.
    fn enter(&mut self, key: Key) -> bool {
        let number = self.last_number + 1;
        let is_new = *self.numbers.entry(key).or_insert(number) == number;
        if is_new {
            self.last_number = number;
            self.keys.insert(number, key);
        }
        is_new
    }

    /// Says whether it was there.
    pub(super) fn leave(&mut self, key: Key) -> bool {
        let number = self.numbers.remove(&key);
        number.is_some_and(|number| self.keys.remove(&number).is_some())
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.numbers.contains_key(&key)
    }

    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.numbers.clear();
    }

    /// The keys whose turn it is to be tried: those after the last one that was, and around.
    fn next_to_try(&mut self) -> Vec<Key> {
        let after = self.keys.range(self.tried + 1..).chain(self.keys.range(..=self.tried));
        let next: Vec<_> =
            after.take(TRIED_AT_A_TIME).map(|(number, key)| (*number, *key)).collect();
        if let Some((number, _)) = next.last() {
            self.tried = *number;
        }
        next.into_iter().map(|(_, key)| key).collect()
    }
}

impl<R> Core<R> {
    /// Waits for a key that turned out to be busy when it was tried on this session.
    pub(super) fn wait(&mut self, tried_on: SessionId, key: Key, now: Instant) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        if entry.queue.is_empty() {
            return self.leave(tried_on, key, now);
        }
        if self.one_key_each {
            return self.wait_on(tried_on, key, now);
        }
        entry.state = State::Pausing;
        self.vacate(tried_on, now);
        if self.line.enter(key) {
            self.try_again.hurry(now);
        }
        self.give_places(now);
        // Those who are left are tried again until there is a session, which may take a while to open.
        self.pause(now);
        self.open_for_waiting(now);
    }

    /// Gives sessions that may wait to the keys in line.
    pub(super) fn give_places(&mut self, now: Instant) {
        while let Some((session, key)) = self.next_place() {
            let Some(entry) = self.keys.get_mut(&key) else { return };
            entry.refuse_the_impatient(&mut self.commands);
            if self.shared == Some(session) {
                self.shared = self.stand_in();
            }
            self.occupy(session);
            self.wait_on(session, key, now);
        }
    }

    /// A session that may wait, and the key that it is for.
    pub(super) fn next_place(&self) -> Option<(SessionId, Key)> {
        if self.one_key_each || self.line.is_empty() {
            return None;
        }
        let mut sessions = self.sessions_for_waiting();
        let mut session = sessions.next()?;
        for key in self.line.keys.values() {
            let Some(entry) = self.keys.get(key).filter(|entry| entry.queue.is_awaited()) else {
                continue;
            };
            match entry.state {
                State::Pausing | State::Unasked => return Some((session, *key)),
                // It is the first to have it, as soon as it turns out to be busy.
                State::Trying(..) => session = sessions.next()?,
                _ => {}
            }
        }
        None
    }

    /// Sessions that hold nothing: also the shared one, if another one can be shared instead, and no further
    /// one can be opened or is being opened.
    fn sessions_for_waiting(&self) -> impl Iterator<Item = SessionId> {
        let is_opening = |seat: &Seat| matches!(seat.stage, Stage::Opening(_));
        let is_all = (self.is_full() || self.open_again.due.is_some())
            && !self.sessions.values().any(is_opening);
        let is_idle = |shared: &SessionId| self.sessions.get(shared).is_some_and(Seat::is_idle);
        let shared = self.shared.filter(|_| is_all).filter(is_idle);
        self.idle_sessions().chain(shared.filter(|_| self.stand_in().is_some()))
    }

    /// A session that can be the shared one instead: as it holds something, it does not wait.
    pub(super) fn stand_in(&self) -> Option<SessionId> {
        let mut others = self.sessions.iter().filter(|(other, _)| self.shared != Some(**other));
        others.find(|(_, seat)| seat.holds()).map(|(other, _)| *other)
    }

    /// Has a session wait for a key.
    fn wait_on(&mut self, session: SessionId, key: Key, now: Instant) {
        self.line.leave(key);
        let Some(entry) = self.keys.get_mut(&key) else { return };
        let Some(mode) = entry.queue.head().map(|head| head.mode) else { return };
        entry.state = State::Waiting(session, mode);
        let mut others = self.sessions.values().filter_map(|seat| seat.place).peekable();
        let may_be_long = others.peek().is_none() || others.any(|place| !place.is_long);
        let doubled = entry.queue.places_lost().min(DOUBLED_AT_MOST) * u32::from(may_be_long);
        let until = now + self.limits.place_for * (1 << doubled);
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.place = Some(Place { key, until, is_long: doubled > 0 });
        }
        self.order(session, Order::Wait(LockId { key, mode }));
    }

    /// Ends a wait that nobody wants, or not in this mode, or whose place is for others now; or a try that
    /// nobody wants.
    pub(super) fn withdraw(&mut self, session: SessionId, lock: LockId) {
        if !self.is_open(session) {
            return;
        }
        self.set(lock.key, State::Withdrawing(session, lock.mode));
        self.order_to_withdraw(session);
    }

    /// Tries keys in line again.
    pub(super) fn try_those_in_line(&mut self, now: Instant) {
        for key in self.line.next_to_try() {
            if matches!(self.keys.get(&key), Some(Entry { state: State::Pausing, .. })) {
                self.set(key, State::Unasked);
                self.advance(key, now);
            }
        }
        self.pause(now);
    }

    /// Sees to it that keys in line are tried again, all of them within one pause.
    fn pause(&mut self, now: Instant) {
        if self.line.is_empty() {
            self.try_again.reset();
            if self.crowded_out() == 0 {
                self.pass_on = None;
            }
            return;
        }
        let parts = self.line.len().div_ceil(TRIED_AT_A_TIME);
        self.try_again.put_off_in(u32::try_from(parts).unwrap_or(u32::MAX), now);
        self.keep_places_going(now);
    }

    /// Some key has no session.
    pub(super) fn keep_places_going(&mut self, now: Instant) {
        self.pass_on.get_or_insert(now + self.limits.place_for);
    }

    /// Has sessions that wait leave their places, once their time is over, as far as others need them.
    pub(super) fn pass_places_on(&mut self, now: Instant) {
        let crowded_out = self.crowded_out();
        let seats = self.sessions.values();
        let comes = |seat: &&Seat| seat.stage != Stage::Open || seat.is_withdrawn;
        let coming = seats.clone().filter(comes).count() + self.idle_sessions().count();
        let needed = self.sessions_needed().saturating_sub(coming);
        if crowded_out > 0 {
            self.pass_on = Some(now + self.limits.place_for);
        }
        if needed == 0 {
            return;
        }
        let over = |place: &Place| place.until <= now;
        // Each where it belongs: to sort them afterwards would be 6 kB of a small program.
        let mut in_order: Vec<Place> = Vec::new();
        let waiting = seats.filter(|seat| !seat.is_withdrawn);
        for place in waiting.filter_map(|seat| seat.place.filter(over)) {
            let at = in_order.partition_point(|before| before.until <= place.until);
            in_order.insert(at, place);
        }
        for place in in_order.into_iter().take(needed) {
            let Some(entry) = self.keys.get_mut(&place.key) else { continue };
            if let State::Waiting(session, mode) = entry.state {
                entry.queue.lose_place();
                self.withdraw(session, LockId { key: place.key, mode });
            }
        }
        if self.is_full() && self.told_of_crowd.is_none_or(|told| told + TOLD_EVERY <= now) {
            self.told_of_crowd = Some(now);
            self.commands.push(Command::Crowded(crowded_out));
        }
    }

    /// How many keys are waited for by nobody but this process, for want of a session.
    pub(super) fn crowded_out(&self) -> usize {
        let is_unasked = |key: &&Key| {
            let entry = self.keys.get(key);
            matches!(entry, Some(Entry { state: State::Unasked, .. })) && !self.line.contains(**key)
        };
        self.line.len() + self.unasked.iter().filter(is_unasked).count()
    }

    /// How many sessions would be enough for those keys: where one can hold several of them, it can try all
    /// that have not been tried.
    fn sessions_needed(&self) -> usize {
        let crowded_out = self.crowded_out();
        if self.one_key_each {
            return crowded_out;
        }
        crowded_out.min(self.line.len() + 1)
    }

    fn is_full(&self) -> bool {
        self.sessions.len() >= self.limits.sessions
    }
}
