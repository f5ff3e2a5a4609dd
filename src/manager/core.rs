//! Who holds, who waits, and which session does what: without a socket, a task or a clock.
//!
//! The way of one key, from the first request to the moment when nobody of this process wants it:
//!
//! ```text
//!              a session             free
//!  Unasked ───────────────▶ Trying ────────────────────────────────▶ Held ──┐ to the next in
//!     ▲                      │  ▲                                    ▲  ▲   │ the queue, while
//!     │                 busy │  │ its turn to be tried again         │  └───┘ turns are left
//!     │                      ▼  │                                    │
//!     │                no session ──▶ Pausing ─┐ a session           │
//!     │                that may wait           │ has become free     │
//!     │                      │                 ▼                     │
//!     │                      └─ one that ─▶ Waiting ────── granted ──┤
//!     │                         holds nothing   │                    │
//!     │                         nobody waits so │ any more           │
//!     │                                         ▼                    │
//!     ├─────────── withdrawn ────────────── Withdrawing ── granted ──┘
//!     │
//!     └── released ── Releasing ◀── no guard is left, and nobody may have it next ── Held
//! ```
//!
//! One session is *shared*: it tries and holds any number of keys, and never waits. Each of the others
//! waits for one key while it holds nothing, and holds that key afterwards. So no session that holds
//! anything is ever in the server's queue, and the server never sees a circle of waits.
//!
//! Within its bounds, a lock that is held goes to further tasks without asking the server. Beyond them it is
//! released when the last guard is gone. Readers would have to wait for that although all others may be
//! readers too: so the server is asked whether anybody waits, and if not, the bounds begin anew.
//!
//! Through a pooler no session is shared: each tries, waits for and holds one key.
//!
//! [`keys`] is that way, [`entry`] what is known of a key on it, [`queue`] who wants it; [`sessions`] are
//! opened and given out, [`places`] says which keys they wait for, and [`backoff`] when what came to nothing is
//! tried again. A request may also be for any one of several keys: see [`any`]. [`inspection`] is about
//! questions, and [`count`] about numbers.
//!
//! The core is told of requests, releases, answers, ends of sessions and the time, and gives commands.
//! Whoever drives it carries them out in their order. It is generic over whom a reply is for, and runs in
//! simulated time as well.

mod any;
mod backoff;
mod count;
mod entry;
mod inspection;
mod key_queue;
mod keys;
mod places;
mod queue;
mod sessions;

use std::collections::BTreeMap;
use std::mem;
use std::time::{Duration, Instant};

use self::any::Attempt;
use self::backoff::Backoff;
#[cfg(test)]
use self::entry::Others;
use self::entry::{Entry, Held, State};
use self::inspection::Inspections;
use self::key_queue::KeyQueue;
use self::places::Line;
use self::queue::Request;
use self::sessions::{Purpose, Seat, Stage};
use super::stats::Stats;
use crate::error::{Error, ErrorKind};
use crate::holders::Holders;
use crate::key::Key;
use crate::session::LockId;

pub(super) type SessionId = u32;
pub(super) type RequestId = u64;

/// Pause before keys that found no session to wait on are tried again. Each is longer than the one before by
/// an eighth, up to a limit that is low: a key that others want as well may be free for a moment only, and all
/// that are tried together cost the server one query.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);
const TRY_AGAIN_AFTER_MAX: Duration = Duration::from_millis(20);
const TRY_AGAIN_LONGER_BY: u32 = 8;

/// The same, before another session is opened after one that could not be. Each is twice as long.
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(50);
const OPEN_AGAIN_AFTER_MAX: Duration = Duration::from_secs(1);
const OPEN_AGAIN_LONGER_BY: u32 = 1;

/// How long a session that does nothing is kept.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(30);

/// What the manager may use up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Sessions, at least one.
    pub(super) sessions: usize,
    /// How often a lock may go from guard to guard before other processes get their turn.
    pub(super) hand_overs: u32,
    /// For how long it may.
    pub(super) hand_overs_for: Duration,
    /// How long a key that is waited for has its place at the server, if others have none.
    pub(super) place_for: Duration,
}

/// What becomes of a request for a lock that is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    None,
    Waits,
}

#[derive(Debug)]
pub(super) enum Command<R> {
    /// Open a session of this number. [`Core::opened`] or [`Core::ended`] follows.
    Open(SessionId),
    /// Have a session do something.
    Order(SessionId, Order),
    Reply(R, Reply),
    /// Tell that so many keys are waited for without a session, for a while already.
    Crowded(usize),
}

/// What a session is to do. It does one thing after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// [`Core::answered`] follows, as it does for all that say nothing else.
    Try(LockId),
    Wait(LockId),
    /// Try the locks that [`Core::choose`] says by then. [`Core::answered_any`] follows if it says any.
    TryAny(RequestId),
    /// End the wait. Its answer is what follows.
    Withdraw,
    /// See whether another session waits for a lock that is held.
    Probe(LockId),
    Unlock(LockId),
    /// [`Core::inspected`] follows.
    Inspect(RequestId, Key),
    /// [`Core::ended`] follows.
    Close,
}

/// What a session says to an order.
#[derive(Debug)]
pub(super) enum Answer {
    Acquired,
    /// The lock is not held: it was not free, or the wait was withdrawn.
    NotAcquired,
    Released,
    /// Whether another session waits for the lock that is held.
    Probed {
        awaited: bool,
    },
    /// The lock is not held after an error, which left the session as it was.
    Failed(Error),
}

/// What a caller is told.
#[derive(Debug)]
pub(super) enum Reply {
    Granted(Grant),
    Busy,
    /// The lock could not be had.
    Failed(Error),
    /// What was to be released is, or all sessions are closed.
    Done,
    Inspected(Holders),
    /// What else was wanted came to nothing.
    NotDone(Error),
}

/// Who has got a lock, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) session: SessionId,
    pub(super) lock: LockId,
    pub(super) waited: Duration,
    /// Whether it comes from another guard, without the server being asked.
    pub(super) handed_over: bool,
    /// Whether the server has just told the session of it.
    pub(super) fresh: bool,
}

/// Whether a key is waited for, and how.
#[derive(Debug)]
pub(crate) enum Awaited {
    ByNobody,
    /// It could not be tried; for this reason, if it is known.
    Untried(Option<Error>),
    /// The server has it that the key is not free, or is being asked.
    AtServer,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Core<R> {
    limits: Limits,
    keys: BTreeMap<Key, Entry<R>>,
    /// Requests for one of several keys.
    attempts: BTreeMap<RequestId, Attempt<R>>,
    sessions: BTreeMap<SessionId, Seat>,
    /// The session for trying and holding any number of keys.
    shared: Option<SessionId>,
    /// Whether a session holds one key only.
    one_key_each: bool,
    /// Keys that need a session to be tried on. Some may have got one since.
    unasked: KeyQueue,
    /// Keys that need a session to wait on.
    line: Line,
    /// When places go from keys that have one to those that have none.
    pass_on: Option<Instant>,
    /// When that there are too few sessions was told last.
    told_of_crowd: Option<Instant>,
    inspections: Inspections<R>,
    try_again: Backoff,
    open_again: Backoff,
    /// Why the last session that was to be opened was not, or did not last.
    unreachable: Option<Error>,
    /// Whether the last session that was lost had just been opened, and nothing was answered since.
    is_doubtful: bool,
    last_session: SessionId,
    last_request: RequestId,
    commands: Vec<Command<R>>,
    closing: Option<Closing<R>>,
    stats: Stats,
}

/// Everything is being ended.
#[derive(Debug)]
struct Closing<R> {
    callers: Vec<R>,
    /// What those are told who want something.
    reason: Error,
    /// What went wrong with it.
    error: Option<Error>,
}

impl<R> Core<R> {
    /// The seed spreads the retries of several processes.
    pub(super) fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            keys: BTreeMap::new(),
            attempts: BTreeMap::new(),
            sessions: BTreeMap::new(),
            shared: None,
            one_key_each: false,
            unasked: KeyQueue::default(),
            line: Line::default(),
            pass_on: None,
            told_of_crowd: None,
            inspections: Inspections::default(),
            try_again: Backoff::new(
                TRY_AGAIN_AFTER,
                TRY_AGAIN_AFTER_MAX,
                TRY_AGAIN_LONGER_BY,
                seed,
            ),
            open_again: Backoff::new(
                OPEN_AGAIN_AFTER,
                OPEN_AGAIN_AFTER_MAX,
                OPEN_AGAIN_LONGER_BY,
                !seed,
            ),
            unreachable: None,
            is_doubtful: false,
            last_session: 0,
            last_request: 0,
            commands: Vec::new(),
            closing: None,
            stats: Stats::default(),
        }
    }

    /// What there is to do since this was asked last.
    pub(super) fn commands(&mut self) -> Vec<Command<R>> {
        for command in &self.commands {
            self.stats.note(command);
        }
        mem::take(&mut self.commands)
    }

    /// What was counted until [`commands`](Self::commands) was asked last.
    pub(super) fn stats(&self) -> Stats {
        let (sessions, crowded_out) = (self.sessions.len(), self.crowded_out());
        Stats { sessions, crowded_out, ..self.stats.clone() }
    }

    /// When to call [`tick`](Self::tick) at the latest.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let idle = self.sessions.values().filter(|seat| seat.is_idle());
        let idle = idle.map(|seat| seat.idle_since + IDLE_MAX).min();
        [idle, self.try_again.due, self.open_again.due, self.pass_on].into_iter().flatten().min()
    }

    /// For how long no session is opened, after one that could not be.
    pub(super) fn pause_before_opening(&self, now: Instant) -> Option<Duration> {
        self.open_again.due.map(|due| due.saturating_duration_since(now))
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// How many locks can be held at a time, if each takes a session.
    pub(super) fn locks_max(&self) -> Option<usize> {
        self.one_key_each.then_some(self.limits.sessions)
    }

    /// Whether it is known that no pooler stands before the server.
    pub(super) fn is_direct(&self) -> bool {
        self.stats.connects > 0 && !self.one_key_each
    }

    /// Somebody wants a lock, and is replied to.
    pub(super) fn request(
        &mut self,
        lock: LockId,
        patience: Patience,
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
        let entry = self.keys.entry(lock.key).or_default();
        entry.queue.push(Request {
            id,
            mode: lock.mode,
            patience,
            tried_again: false,
            since: now,
            caller,
        });
        match entry.state {
            State::Waiting(..) => entry.refuse_the_impatient(&mut self.commands),
            // It was busy a moment ago, and may be free by now.
            State::Pausing if patience == Patience::None => entry.state = State::Unasked,
            _ => {}
        }
        self.advance(lock.key, now);
        id
    }

    /// Whoever made a request does not want the lock any more. The result says why it could not be tried, if
    /// that is so. A request that was replied to stays as it is.
    pub(super) fn give_up(&mut self, key: Key, request: RequestId, now: Instant) -> Option<Error> {
        let entry = self.keys.get_mut(&key)?;
        entry.queue.remove(request)?;
        if !entry.queue.is_awaited() {
            self.line.leave(key);
        }
        self.stats.gave_up();
        let why = match entry.state {
            State::Unasked => self.unreachable.clone(),
            _ => None,
        };
        self.advance(key, now);
        // A session may have been kept for it.
        self.give_places(now);
        why
    }

    /// Whether this process waits for a key, and how.
    pub(super) fn awaited(&self, key: Key) -> Awaited {
        match self.keys.get(&key).filter(|entry| entry.queue.is_awaited()) {
            None => Awaited::ByNobody,
            Some(Entry { state: State::Unasked, .. }) => Awaited::Untried(self.unreachable.clone()),
            Some(_) => Awaited::AtServer,
        }
    }

    /// A guard is gone. Whoever wants to know is told when the lock is released, or has gone to the next
    /// guard.
    pub(super) fn release(
        &mut self,
        session: SessionId,
        key: Key,
        caller: Option<R>,
        now: Instant,
    ) {
        let held = match self.keys.get_mut(&key) {
            Some(Entry { state: State::Held(held), .. }) if held.session == session => Some(held),
            _ => None,
        };
        if let Some(held) = held {
            held.guards -= 1;
            self.stats.guards -= 1;
            self.advance(key, now);
        }
        let Some(caller) = caller else { return };
        match self.keys.get_mut(&key) {
            Some(Entry { state: State::Releasing(releasing, told), .. })
                if *releasing == session =>
            {
                *told = Some(caller);
            }
            _ => self.reply(caller, Reply::Done),
        }
    }

    /// A session stands. Through a pooler, it holds one key only.
    pub(super) fn opened(&mut self, session: SessionId, one_key_each: bool, now: Instant) {
        let Some(seat) = self.sessions.get_mut(&session) else { return };
        let Stage::Opening(purpose) = seat.stage else { return };
        seat.stage = Stage::Open;
        (seat.opened, seat.idle_since) = (now, now);
        if self.is_doubtful {
            // It has yet to last: the next pause is longer than the one before.
            self.open_again.due = None;
        } else {
            self.open_again.reset();
        }
        self.unreachable = None;
        self.stats.connects += 1;
        if one_key_each {
            self.one_key_each = true;
            self.shared = None;
        } else if !self.one_key_each && (purpose == Purpose::ToTry || self.line.is_empty()) {
            // It may have been meant for a key that nobody wants any more.
            self.shared.get_or_insert(session);
        }
        self.fill(session, now);
        // Those who need another one need not pause any more: the server can be reached.
        self.serve(now);
        self.turn_away();
    }

    /// A session has done what it was ordered to.
    pub(super) fn answered(&mut self, session: SessionId, key: Key, answer: Answer, now: Instant) {
        let was_withdrawn = self.note_answer(session);
        self.take_answer(session, key, answer, now);
        if was_withdrawn {
            self.serve_those_made_way_for(now);
        }
    }

    fn take_answer(&mut self, session: SessionId, key: Key, answer: Answer, now: Instant) {
        let seat = self.sessions.get_mut(&session);
        if seat.is_some_and(|seat| seat.superseded.take_if(|other| *other == key).is_some()) {
            self.vacate(session, now);
            return self.fill(session, now);
        }
        let Some(entry) = self.keys.get_mut(&key) else { return };
        if entry.state.session() != Some(session) {
            return;
        }
        if let Answer::Probed { awaited } = answer {
            if let State::Held(held) = &mut entry.state {
                held.probed(awaited, now);
                self.advance(key, now);
            }
            return;
        }
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.place = None;
        }
        match (mem::replace(&mut entry.state, State::Unasked), answer) {
            (
                State::Trying(_, mode) | State::Waiting(_, mode) | State::Withdrawing(_, mode),
                Answer::Acquired,
            ) => {
                entry.state = State::Held(Held::new(session, mode, now));
                entry.queue.forget_lost_places();
                self.stats.held += 1;
                if self.line.leave(key) {
                    self.try_again.hurry(now);
                }
                self.advance(key, now);
                if !self.one_key_each && !self.has_shared() {
                    // It does not wait any more.
                    self.serve(now);
                }
                self.give_places(now);
            }
            (State::Trying(_, mode), Answer::NotAcquired) => {
                if entry.refuse_in(mode, &mut self.commands) {
                    self.vacate(session, now);
                    self.advance(key, now);
                    return self.fill(session, now);
                }
                self.wait(session, key, now);
            }
            (State::Releasing(_, caller), _) => {
                if let Some(caller) = caller {
                    self.reply(caller, Reply::Done);
                }
                self.leave(session, key, now);
            }
            (_, Answer::Failed(error)) => {
                entry.fail(&error, &mut self.commands);
                self.leave(session, key, now);
            }
            (_, _) => self.leave(session, key, now),
        }
    }

    /// A session is over, or could not be opened; if it was not closed as ordered, for this reason.
    pub(super) fn ended(&mut self, session: SessionId, why: Option<Error>, now: Instant) {
        let Some(seat) = self.sessions.remove(&session) else { return };
        match (seat.stage, &why) {
            (Stage::Opening(_), Some(_)) => self.stats.connect_failures += 1,
            (Stage::Open, Some(error)) => {
                self.stats.lost_sessions += 1;
                self.doubt(seat.opened, error, now);
            }
            _ => {}
        }
        if self.shared == Some(session) {
            self.shared = None;
        }
        if let Some(closing) = &mut self.closing {
            closing.error = closing.error.take().or(why);
            return self.end(None, closed());
        }
        match (seat.stage, why) {
            (Stage::Opening(purpose), Some(error)) => self.unopened(purpose, error, now),
            (_, why) if seat.keys > 0 => self.lost(session, &why.unwrap_or_else(closed), now),
            _ => {}
        }
        // Room for another one.
        self.serve(now);
        self.give_places(now);
        self.turn_away();
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        let idle = |(_, seat): &(&SessionId, &mut Seat)| {
            seat.is_idle() && seat.idle_since + IDLE_MAX <= now
        };
        for (session, seat) in self.sessions.iter_mut().filter(idle) {
            seat.stage = Stage::Closing;
            self.shared.take_if(|shared| shared == session);
            self.commands.push(Command::Order(*session, Order::Close));
        }
        if self.open_again.is_due(now) {
            self.serve(now);
        }
        if self.try_again.is_due(now) {
            self.try_those_in_line(now);
        }
        if self.pass_on.take_if(|due| *due <= now).is_some() {
            self.pass_places_on(now);
        }
    }

    /// Ends everything. The caller is told when no session is left.
    pub(super) fn close(&mut self, caller: R) {
        self.end(Some(caller), closed());
    }

    /// Ends everything for this reason, without a chance to see what comes of it: whoever closes it later is
    /// told of this error.
    pub(super) fn abandon(&mut self, reason: Error, error: Error) {
        self.end(None, reason);
        if let Some(closing) = &mut self.closing {
            closing.error.get_or_insert(error);
        }
    }

    /// Why nothing can be had any more.
    fn why_closed(&self) -> Option<Error> {
        self.closing.as_ref().map(|closing| closing.reason.clone())
    }

    fn end(&mut self, caller: Option<R>, reason: Error) {
        let begun = self.closing.take();
        let mut closing =
            begun.unwrap_or_else(|| Closing { callers: Vec::new(), reason, error: None });
        closing.callers.extend(caller);
        for (_, mut entry) in mem::take(&mut self.keys) {
            entry.fail(&closing.reason, &mut self.commands);
            if let State::Releasing(_, caller) = entry.state {
                closing.callers.extend(caller);
            }
        }
        for caller in self.inspections.drain() {
            let reason = closing.reason.clone();
            self.commands.push(Command::Reply(caller, Reply::NotDone(reason)));
        }
        self.close_attempts(&closing.reason);
        self.line.clear();
        (self.stats.held, self.stats.guards) = (0, 0);
        for (session, seat) in &mut self.sessions {
            if mem::replace(&mut seat.stage, Stage::Closing) != Stage::Closing {
                self.commands.push(Command::Order(*session, Order::Close));
            }
        }
        if self.sessions.is_empty() {
            for caller in closing.callers.drain(..) {
                let error = closing.error.clone();
                self.commands
                    .push(Command::Reply(caller, error.map_or(Reply::Done, Reply::NotDone)));
            }
        }
        self.closing = Some(closing);
    }
}

#[cfg(test)]
impl<R> Core<R> {
    /// Whether nothing is held, awaited or being done.
    pub(super) fn is_at_rest(&self) -> bool {
        let asks_for_nothing =
            self.keys.is_empty() && self.attempts.is_empty() && self.inspections.is_empty();
        asks_for_nothing && self.sessions.values().all(|seat| seat.keys == 0)
    }

    /// A key for which there is something to do: a wake-up was lost. It could have a session that has nothing
    /// to do, or is waited for by nobody, or by somebody who would not wait.
    pub(super) fn overlooked(&self) -> Option<Key> {
        let could_go_on = |key: &Key, Entry { state, queue }: &Entry<R>| match state {
            State::Unasked => {
                let could_be_told = queue.has_impatient() && self.hindrance().is_some();
                (self.could_serve() || could_be_told) && !self.is_deferred(*key)
            }
            State::Pausing => {
                queue.has_impatient() || self.next_place().is_some_and(|(_, next)| next == *key)
            }
            State::Waiting(_, mode) => {
                queue.has_impatient() || queue.head().is_none_or(|head| head.mode != *mode)
            }
            State::Held(held) => queue.has_impatient() && held.others != Others::BeingProbed,
            _ => false,
        };
        self.keys.iter().find(|(key, entry)| could_go_on(key, entry)).map(|(key, _)| *key)
    }

    /// Whether something else could have a session that has nothing to do.
    pub(super) fn overlooks_others(&self) -> bool {
        let others = self.queued_attempts() + self.inspections.sessions_needed();
        others > 0 && (self.could_serve() || self.hindrance().is_some())
    }

    /// Whether there is a session for who needs one, or could be.
    fn could_serve(&self) -> bool {
        let could_open = self.opening_for_trying() == 0
            && self.sessions.len() < self.limits.sessions
            && self.open_again.due.is_none();
        self.session_for_trying().is_some() || could_open
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the manager was closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Mode;
    use crate::session::Choice;

    fn core(sessions: usize) -> Core<u32> {
        let limits = Limits {
            sessions,
            hand_overs: 64,
            hand_overs_for: Duration::from_millis(100),
            place_for: Duration::from_secs(1),
        };
        Core::new(limits, 7)
    }

    fn lock(number: i64) -> LockId {
        LockId { key: Key::bigint(number), mode: Mode::Exclusive }
    }

    #[test]
    fn a_key_is_in_the_queue_once_however_often_it_is_tried() {
        let now = Instant::now();
        let mut core = core(8);
        core.request(lock(1), Patience::Waits, 0, now);
        core.ended(1, Some(Error::new(ErrorKind::Connect, "nobody is there")), now);
        for caller in 1..100 {
            core.request(lock(1), Patience::None, caller, now);
        }
        assert_eq!(core.unasked.len(), 1);
    }

    #[test]
    fn a_session_that_is_direct_after_one_through_a_pooler_is_used() {
        let now = Instant::now();
        let mut core = core(1);
        core.request(lock(1), Patience::Waits, 0, now);
        core.opened(1, true, now);
        core.answered(1, lock(1).key, Answer::Acquired, now);
        // What was replied is counted when it is asked for.
        core.commands();
        core.ended(1, Some(Error::new(ErrorKind::Lost, "gone").lost()), now);
        core.request(lock(2), Patience::Waits, 1, now);
        core.opened(2, false, now);
        let is_try = |command: &Command<_>| matches!(command, Command::Order(2, Order::Try(tried)) if *tried == lock(2));
        assert!(core.commands().iter().any(is_try));
    }

    #[test]
    fn nobody_is_turned_away_while_a_session_makes_way() {
        let mut now = Instant::now();
        let mut core = core(1);
        core.request(lock(1), Patience::Waits, 0, now);
        core.opened(1, true, now);
        core.answered(1, lock(1).key, Answer::Acquired, now);
        // What was replied is counted when it is asked for.
        core.commands();
        core.release(1, lock(1).key, None, now);
        core.answered(1, lock(1).key, Answer::Released, now);
        now += IDLE_MAX;
        core.tick(now);
        core.request(lock(2), Patience::None, 1, now);
        let is_reply = |command: &Command<_>| matches!(command, Command::Reply(1, _));
        assert!(!core.commands().iter().any(is_reply));
        core.ended(1, None, now);
        assert!(core.commands().iter().any(|command| matches!(command, Command::Open(2))));
    }

    #[test]
    fn who_does_not_wait_is_turned_away_when_the_session_to_come_is_for_somebody_else() {
        let now = Instant::now();
        let mut core = core(1);
        core.request(lock(1), Patience::Waits, 0, now);
        core.request(lock(2), Patience::None, 1, now);
        core.request_any(Choice { class: 7, objects: vec![1], unless_taken: None }, 2, now);
        core.opened(1, true, now);
        let turned_away: Vec<_> = core
            .commands()
            .into_iter()
            .filter_map(|command| match command {
                Command::Reply(caller, Reply::Failed(error)) => Some((caller, error.kind())),
                _ => None,
            })
            .collect();
        assert_eq!(turned_away, [(1, ErrorKind::Timeout), (2, ErrorKind::Timeout)]);
    }

    /// Requests for a key by those who do not wait, each for himself alone or not, while it is being tried.
    fn core_with_impatient(modes: [Mode; 3]) -> Core<u32> {
        let mut core = core(1);
        let key = lock(1).key;
        for (caller, mode) in (0..).zip(modes) {
            core.request(LockId { key, mode }, Patience::None, caller, Instant::now());
        }
        core.opened(1, false, Instant::now());
        core.commands();
        core
    }

    /// What the callers were told.
    fn told(core: &mut Core<u32>) -> Vec<(u32, bool)> {
        let told = core.commands().into_iter().filter_map(|command| match command {
            Command::Reply(caller, Reply::Granted(_)) => Some((caller, true)),
            Command::Reply(caller, Reply::Busy) => Some((caller, false)),
            _ => None,
        });
        told.collect()
    }

    #[test]
    fn who_would_share_is_not_refused_for_somebody_who_would_not() {
        let mut core = core_with_impatient([Mode::Exclusive, Mode::Shared, Mode::Exclusive]);
        core.answered(1, lock(1).key, Answer::NotAcquired, Instant::now());
        assert_eq!(told(&mut core), [(2, false), (0, false)]);
        core.answered(1, lock(1).key, Answer::Acquired, Instant::now());
        assert_eq!(told(&mut core), [(1, true)]);

        let mut core = core_with_impatient([Mode::Shared, Mode::Exclusive, Mode::Shared]);
        core.answered(1, lock(1).key, Answer::Acquired, Instant::now());
        assert_eq!(told(&mut core), [(0, true), (1, false), (2, true)]);
    }

    #[test]
    fn where_sessions_do_not_last_they_are_opened_at_intervals() {
        let begun = Instant::now();
        let (mut core, mut now) = (core(8), begun);
        core.request(lock(1), Patience::Waits, 0, now);
        let mut opened = 0;
        while now < begun + Duration::from_secs(10) {
            let commands = core.commands();
            let open = commands.iter().find_map(|command| match command {
                Command::Open(session) => Some(*session),
                _ => None,
            });
            if let Some(session) = open {
                opened += 1;
                now += Duration::from_millis(1);
                core.opened(session, true, now);
                core.ended(session, Some(Error::new(ErrorKind::Lost, "not here").lost()), now);
            } else {
                now = core.next_tick().unwrap();
                core.tick(now);
            }
        }
        assert!((10..=30).contains(&opened), "{opened}");
        // Who would not wait is told why.
        core.request(lock(1), Patience::None, 1, now);
        let told = core.commands().into_iter().find_map(|command| match command {
            Command::Reply(1, Reply::Failed(error)) => Some(error),
            _ => None,
        });
        assert!(told.is_some_and(|error| error.is_lost()));
    }

    #[test]
    fn a_busy_key_is_tried_while_a_session_to_wait_on_is_opened() {
        let mut now = Instant::now();
        let mut core = core(3);
        core.request(lock(1), Patience::Waits, 0, now);
        core.opened(1, false, now);
        core.answered(1, lock(1).key, Answer::NotAcquired, now);
        let is_open = |command: &Command<_>| matches!(command, Command::Open(_));
        assert!(core.commands().iter().any(is_open));
        for round in 0..10 {
            now = core.next_tick().unwrap();
            core.tick(now);
            let tries = core.commands();
            assert!(matches!(tries[..], [Command::Order(1, Order::Try(_))]), "{round}: {tries:?}");
            core.answered(1, lock(1).key, Answer::NotAcquired, now);
        }
        core.opened(2, false, now);
        assert!(matches!(core.commands()[..], [Command::Order(2, Order::Wait(_))]));
    }

    /// A core with one session, on which so many keys were found busy, and the time.
    fn core_with_busy_keys(count: i64) -> (Core<u32>, Instant) {
        let now = Instant::now();
        let mut core = core(1);
        for number in 0..count {
            core.request(lock(number), Patience::Waits, 0, now);
        }
        core.opened(1, false, now);
        core.commands();
        for number in 0..count {
            core.answered(1, lock(number).key, Answer::NotAcquired, now);
        }
        assert!(core.commands().is_empty());
        (core, now)
    }

    /// Waits until keys are tried again, and says which.
    fn tried_next(core: &mut Core<u32>, now: &mut Instant) -> Vec<Key> {
        loop {
            *now = core.next_tick().unwrap();
            core.tick(*now);
            let tried = core.commands().into_iter().filter_map(|command| match command {
                Command::Order(1, Order::Try(lock)) => Some(lock.key),
                _ => None,
            });
            let tried: Vec<_> = tried.collect();
            if !tried.is_empty() {
                return tried;
            }
        }
    }

    #[test]
    fn all_keys_without_a_session_are_tried_within_a_pause() {
        let (mut core, begun) = core_with_busy_keys(200);
        let mut now = begun;
        let mut tried = Vec::new();
        while tried.len() < 200 {
            // None of them is answered: others are tried all the same.
            tried.extend(tried_next(&mut core, &mut now));
        }
        assert!(now - begun <= TRY_AGAIN_AFTER_MAX, "{:?}", now - begun);
        tried.sort();
        tried.dedup();
        assert_eq!(tried.len(), 200);
    }

    #[test]
    fn a_key_that_was_found_free_hurries_the_others() {
        let (mut core, mut now) = core_with_busy_keys(2);
        for _ in 0..30 {
            for key in tried_next(&mut core, &mut now) {
                core.answered(1, key, Answer::NotAcquired, now);
            }
        }
        let tried = tried_next(&mut core, &mut now);
        core.answered(1, tried[1], Answer::NotAcquired, now);
        assert!(core.next_tick().unwrap() > now + TRY_AGAIN_AFTER);
        core.answered(1, tried[0], Answer::Acquired, now);
        core.commands();
        assert_eq!(core.next_tick(), Some(now + TRY_AGAIN_AFTER));
    }

    #[test]
    fn keys_that_nobody_wants_any_more_leave_the_queue() {
        let now = Instant::now();
        let mut core = core(1);
        core.request(lock(0), Patience::Waits, 0, now);
        core.opened(1, true, now);
        core.answered(1, lock(0).key, Answer::Acquired, now);
        for number in 1..100 {
            core.request(lock(number), Patience::None, 1, now);
        }
        assert_eq!(core.unasked.len(), 0);
    }

    /// A core whose session 2 waits for a key, and whose shared session is lost.
    fn core_without_shared_session() -> (Core<u32>, Instant) {
        let now = Instant::now();
        let mut core = core(3);
        core.request(lock(1), Patience::Waits, 0, now);
        core.opened(1, false, now);
        core.answered(1, lock(1).key, Answer::NotAcquired, now);
        core.opened(2, false, now);
        assert!(matches!(core.commands().last(), Some(Command::Order(2, Order::Wait(_)))));
        core.ended(1, Some(Error::new(ErrorKind::Lost, "gone").lost()), now);
        (core, now)
    }

    fn tried_on(core: &mut Core<u32>, session: SessionId) -> Vec<i64> {
        let tried = core.commands().into_iter().filter_map(|command| match command {
            Command::Order(on, Order::Try(tried)) if on == session => Some(tried.key),
            _ => None,
        });
        let numbers = [1, 2, 3].map(|number| (lock(number).key, number));
        tried.filter_map(|key| numbers.iter().find(|of| of.0 == key).map(|of| of.1)).collect()
    }

    #[test]
    fn a_session_that_holds_something_stands_in_for_a_shared_one_that_is_lost() {
        let (mut core, now) = core_without_shared_session();
        core.request(lock(2), Patience::Waits, 0, now);
        assert!(tried_on(&mut core, 2).is_empty());
        // It gets what it has waited for.
        core.answered(2, lock(1).key, Answer::Acquired, now);
        assert_eq!(tried_on(&mut core, 2), [2]);
        core.request(lock(3), Patience::None, 0, now);
        assert_eq!(tried_on(&mut core, 2), [3]);
    }

    #[test]
    fn a_session_that_leaves_its_place_stands_in_for_a_shared_one_that_is_lost() {
        let (mut core, mut now) = core_without_shared_session();
        core.request(lock(2), Patience::Waits, 0, now);
        core.ended(3, Some(Error::new(ErrorKind::Connect, "nobody is there")), now);
        let is_withdrawn =
            |command: &Command<_>| matches!(command, Command::Order(2, Order::Withdraw));
        let at_last = now + Duration::from_secs(60);
        while !core.commands().iter().any(is_withdrawn) {
            assert!(now < at_last);
            now = core.next_tick().unwrap();
            core.tick(now);
            let opening: Vec<_> = core
                .sessions
                .iter()
                .filter(|(_, seat)| seat.stage != Stage::Open)
                .map(|(id, _)| *id)
                .collect();
            for session in opening {
                core.ended(session, Some(Error::new(ErrorKind::Connect, "nobody is there")), now);
            }
        }
        core.answered(2, lock(1).key, Answer::NotAcquired, now);
        assert_eq!(tried_on(&mut core, 2), [2, 1]);
    }

    #[test]
    fn a_key_takes_little_room() {
        // As large as the sender of an answer, which is never null either.
        type Caller = Box<()>;
        assert!(size_of::<(Key, Entry<Caller>)>() <= 56);
    }
}
