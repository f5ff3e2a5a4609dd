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
//! A request may also be for any one of several keys: see [`any`].
//!
//! The core is told of requests, releases, answers, ends of sessions and the time, and gives commands.
//! Whoever drives it carries them out in their order. It is generic over whom a reply is for, and runs in
//! simulated time as well.

mod any;
mod inspection;
mod queue;

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use self::any::Attempt;
use self::inspection::Inspections;
use self::queue::{Queue, Request};
use super::stats::Stats;
use crate::error::{Error, ErrorKind};
use crate::holders::Holders;
use crate::key::{Key, Mode};
use crate::session::LockId;

pub(super) type SessionId = u32;
pub(super) type RequestId = u64;

/// Pause before a key that found no session to wait on is tried again. Each is twice as long as the one
/// before, up to a limit.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);
const TRY_AGAIN_AFTER_MAX: Duration = Duration::from_secs(1);
/// How many such keys are tried at a time.
const TRIED_AT_A_TIME: usize = 64;

/// The same, before another session is opened after one that could not be.
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(50);
const OPEN_AGAIN_AFTER_MAX: Duration = Duration::from_secs(1);

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
    unasked: VecDeque<Key>,
    /// Keys that need a session to wait on. Some may have got one since.
    pausing: VecDeque<Key>,
    inspections: Inspections<R>,
    try_again: Backoff,
    open_again: Backoff,
    /// Why the last session that was to be opened was not.
    unreachable: Option<Error>,
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
    /// What went wrong with it.
    error: Option<Error>,
}

/// A hundred thousand of them may be held: see the test of its size.
#[derive(Debug)]
struct Entry<R> {
    state: State<R>,
    queue: Queue<R>,
}

#[derive(Debug)]
enum State<R> {
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
struct Held {
    session: SessionId,
    mode: Mode,
    guards: u32,
    /// How those who have guards hold it. Under an exclusive lock, either is possible.
    guarded: Mode,
    /// How often it went from guard to guard since others had their chance.
    hand_overs: u32,
    since: Instant,
    /// Whether the server has just granted it, or said that nobody waits for it.
    fresh: bool,
    others: Others,
}

/// What is known of other sessions that want a lock that is held, once its bounds are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Unknown,
    BeingProbed,
    Waiting,
}

/// A session.
#[derive(Debug)]
struct Seat {
    stage: Stage,
    /// How many keys are tried, waited for, held or released on it.
    keys: usize,
    idle_since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is being opened, to wait for this key if there is one.
    Opening(Option<Key>),
    Open,
    Closing,
}

/// When to do something again that came to nothing.
#[derive(Debug)]
struct Backoff {
    first: Duration,
    longest: Duration,
    pause: Duration,
    due: Option<Instant>,
    random: u64,
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
            unasked: VecDeque::new(),
            pausing: VecDeque::new(),
            inspections: Inspections::default(),
            try_again: Backoff::new(TRY_AGAIN_AFTER, TRY_AGAIN_AFTER_MAX, seed),
            open_again: Backoff::new(OPEN_AGAIN_AFTER, OPEN_AGAIN_AFTER_MAX, !seed),
            unreachable: None,
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
        Stats { sessions: self.sessions.len(), ..self.stats.clone() }
    }

    /// When to call [`tick`](Self::tick) at the latest.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let idle = self.sessions.values().filter(|seat| seat.is_idle());
        let idle = idle.map(|seat| seat.idle_since + IDLE_MAX).min();
        [idle, self.try_again.due, self.open_again.due].into_iter().flatten().min()
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
        if self.closing.is_some() {
            self.reply(caller, Reply::Failed(closed()));
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
        self.stats.gave_up();
        let why = match entry.state {
            State::Unasked => self.unreachable.clone(),
            _ => None,
        };
        self.advance(key, now);
        why
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
        let Stage::Opening(key) = seat.stage else { return };
        seat.stage = Stage::Open;
        seat.idle_since = now;
        self.open_again.reset();
        self.unreachable = None;
        self.stats.connects += 1;
        if one_key_each {
            self.one_key_each = true;
            self.shared = None;
        } else if key.is_none() {
            // It may have been meant for a key that nobody wants any more.
            self.shared.get_or_insert(session);
        }
        if let Some(key) = key {
            if let Some(Entry { state: State::Waiting(waiting, mode), .. }) = self.keys.get(&key) {
                if *waiting == session {
                    let lock = LockId { key, mode: *mode };
                    self.order(session, Order::Wait(lock));
                }
            }
        }
        self.fill(session, now);
    }

    /// A session has done what it was ordered to.
    pub(super) fn answered(&mut self, session: SessionId, key: Key, answer: Answer, now: Instant) {
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
        match (mem::replace(&mut entry.state, State::Unasked), answer) {
            (
                State::Trying(_, mode) | State::Waiting(_, mode) | State::Withdrawing(_, mode),
                Answer::Acquired,
            ) => {
                entry.state = State::Held(Held::new(session, mode, now));
                self.stats.held += 1;
                self.try_again.hurry(now);
                self.advance(key, now);
            }
            (State::Trying(..), Answer::NotAcquired) => {
                entry.refuse_the_impatient(&mut self.commands);
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
            (Stage::Open, Some(_)) => self.stats.lost_sessions += 1,
            _ => {}
        }
        if self.shared == Some(session) {
            self.shared = None;
        }
        if let Some(closing) = &mut self.closing {
            closing.error = closing.error.take().or(why);
            return self.close(None);
        }
        match (seat.stage, why) {
            (Stage::Opening(for_key), Some(error)) => self.unopened(for_key, error, now),
            (_, why) if seat.keys > 0 => self.lost(session, &why.unwrap_or_else(closed), now),
            _ => {}
        }
        // Room for another one.
        self.serve(now);
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
            for _ in 0..self.pausing.len().min(TRIED_AT_A_TIME) {
                let Some(key) = self.next_pausing() else { break };
                self.set(key, State::Unasked);
                self.advance(key, now);
            }
            self.pause(now);
        }
    }

    /// Ends everything. The caller is told when no session is left.
    pub(super) fn close(&mut self, caller: Option<R>) {
        let mut closing =
            self.closing.take().unwrap_or(Closing { callers: Vec::new(), error: None });
        closing.callers.extend(caller);
        for (_, mut entry) in mem::take(&mut self.keys) {
            entry.fail(&closed(), &mut self.commands);
            if let State::Releasing(_, caller) = entry.state {
                closing.callers.extend(caller);
            }
        }
        for caller in self.inspections.drain() {
            self.commands.push(Command::Reply(caller, Reply::NotDone(closed())));
        }
        self.close_attempts();
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

    /// Ends everything, without a chance to see what comes of it: whoever closes it later is told why.
    pub(super) fn abandon(&mut self, why: Error) {
        self.close(None);
        if let Some(closing) = &mut self.closing {
            closing.error.get_or_insert(why);
        }
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
            State::Unasked => self.session_for_trying().is_some() && !self.is_deferred(*key),
            State::Pausing => self.idle_session().is_some() || queue.has_impatient(),
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
        others > 0 && self.session_for_trying().is_some()
    }
}

/// One key's way.
impl<R> Core<R> {
    /// Does what is next for a key.
    fn advance(&mut self, key: Key, now: Instant) {
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
                self.withdraw(session, LockId { key, mode }, now);
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
    fn wait(&mut self, tried_on: SessionId, key: Key, now: Instant) {
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
        match self.idle_session() {
            Some(session) => self.wait_on(session, key),
            None if self.may_open(now) => {
                let session = self.open(Some(key), now);
                self.occupy(session);
                self.set(key, State::Waiting(session, mode));
            }
            None => {
                self.pausing.push_back(key);
                self.pause(now);
            }
        }
    }

    /// Has an idle session wait for a key.
    fn wait_on(&mut self, session: SessionId, key: Key) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        let Some(mode) = entry.queue.head().map(|head| head.mode) else { return };
        entry.state = State::Waiting(session, mode);
        self.occupy(session);
        self.order(session, Order::Wait(LockId { key, mode }));
    }

    /// Ends a wait that nobody wants, or not in this mode.
    fn withdraw(&mut self, session: SessionId, lock: LockId, now: Instant) {
        match self.sessions.get_mut(&session).map(|seat| &mut seat.stage) {
            Some(Stage::Open) => {
                self.set(lock.key, State::Withdrawing(session, lock.mode));
                self.order(session, Order::Withdraw);
            }
            Some(Stage::Opening(for_key)) => {
                *for_key = None;
                self.set(lock.key, State::Unasked);
                self.leave(session, lock.key, now);
            }
            Some(Stage::Closing) | None => {}
        }
    }

    /// A session has nothing to do with a key any more.
    fn leave(&mut self, session: SessionId, key: Key, now: Instant) {
        self.vacate(session, now);
        // Others first: they have waited for longer.
        self.fill(session, now);
        self.advance(key, now);
    }

    fn set(&mut self, key: Key, state: State<R>) {
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.state = state;
        }
    }

    /// The next key that needs a session to wait on.
    fn next_pausing(&mut self) -> Option<Key> {
        loop {
            let key = self.pausing.pop_front()?;
            if matches!(self.keys.get(&key), Some(Entry { state: State::Pausing, .. })) {
                return Some(key);
            }
        }
    }

    /// Sees to it that keys that found no session to wait on are tried again.
    fn pause(&mut self, now: Instant) {
        if self.pausing.is_empty() {
            self.try_again.reset();
        } else {
            self.try_again.put_off(now);
        }
    }
}

/// The sessions.
impl<R> Core<R> {
    fn session_for_trying(&self) -> Option<SessionId> {
        if self.one_key_each {
            return self.idle_session();
        }
        self.shared.filter(|shared| self.is_open(*shared))
    }

    /// A session that may wait: it is open, and holds nothing.
    fn idle_session(&self) -> Option<SessionId> {
        let mut idle = self.sessions.iter().filter(|(_, seat)| seat.is_idle());
        idle.find(|(session, _)| self.shared != Some(**session)).map(|(session, _)| *session)
    }

    fn is_open(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|seat| seat.stage == Stage::Open)
    }

    /// Opens the sessions that the keys which need one for being tried lack.
    fn open_for_trying(&mut self, now: Instant) {
        let is_for_trying = |seat: &&Seat| seat.stage == Stage::Opening(None);
        let opening = self.sessions.values().filter(is_for_trying).count();
        let others = self.queued_attempts() + self.inspections.sessions_needed();
        let needed = if self.one_key_each { self.unasked.len() + others } else { 1 };
        for _ in opening..needed {
            if !self.may_open(now) {
                return;
            }
            let session = self.open(None, now);
            if !self.one_key_each {
                self.shared = Some(session);
            }
        }
    }

    /// Why no session can be had before long, if so.
    fn hindrance(&self) -> Option<Error> {
        let is_opening = |seat: &Seat| matches!(seat.stage, Stage::Opening(None));
        if self.sessions.values().any(is_opening) {
            return None;
        }
        self.unreachable.clone().or_else(|| self.one_key_each.then(crowded))
    }

    fn may_open(&self, now: Instant) -> bool {
        self.sessions.len() < self.limits.sessions
            && self.open_again.due.is_none_or(|due| due <= now)
    }

    fn open(&mut self, for_key: Option<Key>, now: Instant) -> SessionId {
        self.last_session += 1;
        let session = self.last_session;
        let seat = Seat { stage: Stage::Opening(for_key), keys: 0, idle_since: now };
        self.sessions.insert(session, seat);
        self.commands.push(Command::Open(session));
        session
    }

    fn occupy(&mut self, session: SessionId) {
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.keys += 1;
        }
    }

    fn vacate(&mut self, session: SessionId, now: Instant) {
        if let Some(seat) = self.sessions.get_mut(&session) {
            seat.keys -= 1;
            seat.idle_since = now;
        }
    }

    /// Gives a session that is idle to the next key that needs one.
    fn fill(&mut self, session: SessionId, now: Instant) {
        if self.one_key_each || self.shared == Some(session) {
            return self.serve(now);
        }
        if self.sessions.get(&session).is_some_and(Seat::is_idle) {
            if let Some(key) = self.next_pausing() {
                self.wait_on(session, key);
            }
        }
    }

    /// Tries the keys that need a session for it, as far as there are any.
    fn serve(&mut self, now: Instant) {
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
    fn unopened(&mut self, for_key: Option<Key>, error: Error, now: Instant) {
        self.open_again.put_off(now);
        if let Some(key) = for_key {
            // It is not the only way to the lock.
            self.set(key, State::Pausing);
            self.pausing.push_back(key);
            self.advance(key, now);
            // One that was busy when this one was to be opened may have nothing to do by now.
            if let Some(idle) = self.idle_session() {
                self.fill(idle, now);
            }
            return self.pause(now);
        }
        self.fail_inspections(&error);
        for key in mem::take(&mut self.unasked) {
            let Some(entry) = self.keys.get_mut(&key) else { continue };
            if !matches!(entry.state, State::Unasked) {
                continue;
            }
            if is_worth_another_try(&error) {
                entry.fail_the_impatient(&error, &mut self.commands);
            } else {
                entry.fail(&error, &mut self.commands);
            }
            if entry.queue.is_empty() {
                self.keys.remove(&key);
            } else {
                self.unasked.push_back(key);
            }
        }
        self.fail_queued_attempts(&error);
        if self.unasked.is_empty() {
            // Nobody waits for it, so whoever comes next may try at once.
            self.open_again.due = None;
        }
        self.unreachable = Some(error);
    }

    /// A session is over, and with it all that it held.
    fn lost(&mut self, session: SessionId, error: &Error, now: Instant) {
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

    fn order(&mut self, session: SessionId, order: Order) {
        self.commands.push(Command::Order(session, order));
    }

    fn reply(&mut self, caller: R, reply: Reply) {
        self.commands.push(Command::Reply(caller, reply));
    }
}

impl<R> Default for Entry<R> {
    fn default() -> Self {
        Self { state: State::Unasked, queue: Queue::default() }
    }
}

impl<R> Entry<R> {
    /// Gives guards to those at the head of the queue, as far as the lock goes.
    fn grant(&mut self, key: Key, limits: &Limits, now: Instant, commands: &mut Vec<Command<R>>) {
        let State::Held(held) = &mut self.state else { return };
        while self.queue.head().is_some_and(|next| held.takes(next.mode, limits, now)) {
            let Some(next) = self.queue.pop() else { return };
            let handed_over = held.guards == 0 && !held.fresh;
            held.hand_overs += u32::from(handed_over);
            held.guards += 1;
            held.guarded = next.mode;
            let lock = LockId { key, mode: next.mode };
            let waited = now.saturating_duration_since(next.since);
            let grant = Grant { session: held.session, lock, waited, handed_over };
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

    /// The lock is not free.
    fn refuse_the_impatient(&mut self, commands: &mut Vec<Command<R>>) {
        self.refuse_where(|_| true, || Reply::Busy, commands);
    }

    fn fail_the_impatient(&mut self, error: &Error, commands: &mut Vec<Command<R>>) {
        self.refuse_where(|_| true, || Reply::Failed(error.clone()), commands);
    }

    fn fail(&mut self, error: &Error, commands: &mut Vec<Command<R>>) {
        while let Some(request) = self.queue.pop() {
            commands.push(Command::Reply(request.caller, Reply::Failed(error.clone())));
        }
    }

    /// The session was lost on which the lock was tried, which may be all that the loss says: another one
    /// is worth a try.
    fn try_once_more(&mut self, error: &Error, commands: &mut Vec<Command<R>>) {
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
    fn session(&self) -> Option<SessionId> {
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
    fn new(session: SessionId, mode: Mode, now: Instant) -> Self {
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
    fn takes(&self, mode: Mode, limits: &Limits, now: Instant) -> bool {
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

    fn probed(&mut self, awaited: bool, now: Instant) {
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

impl Seat {
    fn is_idle(&self) -> bool {
        self.stage == Stage::Open && self.keys == 0
    }
}

impl Backoff {
    fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self { first, longest, pause: first, due: None, random: seed | 1 }
    }

    fn reset(&mut self) {
        self.pause = self.first;
        self.due = None;
    }

    /// Takes a pause that is longer than the last one, and not the same for everybody. One that is being
    /// taken is not made longer.
    fn put_off(&mut self, now: Instant) {
        if self.due.is_some_and(|due| due > now) {
            return;
        }
        // Xorshift (Marsaglia, 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let percent = 50 + u32::try_from(self.random % 51).unwrap_or(50);
        self.due = Some(now + self.pause * percent / 100);
        self.pause = (self.pause * 2).min(self.longest);
    }

    /// Something has changed for the better.
    fn hurry(&mut self, now: Instant) {
        self.pause = self.first;
        self.due = self.due.map(|due| due.min(now + self.first));
    }

    /// Whether the pause is over, which ends it.
    fn is_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

impl Stats {
    fn requested(&mut self) {
        self.requests += 1;
        self.waiting += 1;
    }

    fn gave_up(&mut self) {
        self.given_up += 1;
        self.waiting -= 1;
    }

    /// A key is not held any more, on which there are so many guards.
    fn lost(&mut self, guards: u32) {
        self.held -= 1;
        self.guards -= usize::try_from(guards).unwrap_or_default();
    }

    fn note<R>(&mut self, command: &Command<R>) {
        match command {
            Command::Reply(_, Reply::Granted(grant)) => {
                self.granted += 1;
                self.guards += 1;
                self.handed_over += u64::from(grant.handed_over);
                self.wait_times.add(grant.waited);
            }
            Command::Reply(_, Reply::Busy) => self.busy += 1,
            Command::Reply(_, Reply::Failed(_)) => self.failed += 1,
            Command::Order(_, Order::Withdraw) => self.cancels += 1,
            Command::Reply(_, Reply::Done | Reply::Inspected(_) | Reply::NotDone(_))
            | Command::Open(_)
            | Command::Order(..) => return,
        }
        if !matches!(command, Command::Order(..)) {
            self.waiting -= 1;
        }
    }
}

/// Whether the server may be there the next time.
fn is_worth_another_try(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Lost)
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the manager was closed")
}

fn crowded() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "all sessions of the manager have their hands full; allow it more, or hold fewer keys",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_takes_little_room() {
        // As large as the sender of an answer, which is never null either.
        type Caller = Box<()>;
        assert!(size_of::<(Key, Entry<Caller>)>() <= 56);
    }
}
