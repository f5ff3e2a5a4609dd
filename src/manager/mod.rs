//! Any number of locks and of tasks that wait for them, on a handful of sessions.
//!
//! [`core`](self::core) decides, without a socket or a clock; a [`driver`] for each session carries out;
//! a [`Guard`] gives back, and knows by its session's [`fate`] whether the lock is held. What they share is in
//! [`Shared`], under one lock that is never held while anybody waits. A [`set`] is several locks at once, and
//! [`any`] is one of several, for the recipes.
//!
//! ```text
//! LockManager ──┐ requests                 orders ┌──▶ Driver ── Session
//! Guard ────────┼─ releases ──▶ Shared (Core) ────┼──▶ Driver ── Session
//! clock ────────┘ time              ▲             └──▶ ...
//!                                   └──── answers, ends ──┘
//! ```
//!
//! The manager, its guards and whoever waits for a lock keep `Shared` alive. Its sessions do not: without
//! it, they close.

mod any;
mod core;
mod driver;
mod fate;
mod guard;
mod set;
#[cfg(test)]
mod simulation;
mod stats;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Timeout, timeout_at};

pub(crate) use self::core::Awaited;
use self::core::{Command, Core, Grant, Limits, Patience, Reply, RequestId, SessionId};
use self::driver::{Driver, Message};
use self::fate::Fate;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::holders::Holders;
use crate::key::{Key, Mode};
use crate::session::{LockId, TRY_WITHIN};
use crate::trace;
use crate::wait::{after, now};
pub use guard::Guard;
pub use set::GuardSet;
pub use stats::{Stats, WaitTimes};

/// How many sessions a manager has at most, if nothing else is said.
const SESSIONS_MAX: usize = 8;
/// How often, and for how long, a lock goes from task to task within the process before others get their
/// turn, if nothing else is said.
const HAND_OVERS_MAX: u32 = 64;
const HAND_OVERS_FOR: Duration = Duration::from_millis(100);
/// For how long a key has its place at the server at first, if others have none.
const PLACE_FOR: Duration = Duration::from_millis(500);

/// Any number of locks, shared by any number of tasks, on a handful of connections.
///
/// It is a handle: clones share the same sessions. Nothing is connected before the first lock is wanted.
/// Each lock that is acquired is a [`Guard`], which releases it when it is dropped.
///
/// Any number of keys are held on one session. A key that is not free is waited for by one session,
/// however many tasks want it, and these get it in the order in which they asked, readers together. When a
/// guard is released, the next task of this process has the lock without the server being asked: 64 times
/// in a row or for 100 ms, until other processes get their turn (see
/// [`hand_overs`](LockManagerBuilder::hand_overs)).
///
/// When a session is lost, the guards on it are told, and nothing else: see [`Guard::lost`]. Another one
/// is opened for those who still wait.
///
/// Unlike the levels of a [`Lock`](crate::Lock), guards do not stack: a task that has a guard and locks the
/// same key again waits for itself.
///
/// Its sessions live on the runtime on which the first lock was asked for, from wherever they are used: that
/// has to go on running. While it does, the futures of the manager and of its guards may be polled anywhere,
/// also where there is no runtime (but not on one of tokio's that has no time enabled). When it ends, so does the
/// manager, as if it were closed. So a manager that outlives its first runtime, such as a static one in the tests
/// of a program, is one for each runtime instead.
///
/// Through a transaction pooler (see [`Pooler`](crate::Pooler)), each key that is held or waited for takes
/// a session of its own, and a server connection of the pool: allow it as many as it needs.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use pglock::{Config, LockManager};
///
/// # async fn example() -> pglock::Result<()> {
/// let manager = LockManager::new(Config::from_env()?);
/// let guard = manager.lock("accounts").await?;
/// if let Some(other) = manager.lock_timeout("reports", Duration::from_secs(5)).await? {
///     // Both are held.
///     other.unlock().await?;
/// }
/// drop(guard);
/// manager.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct LockManager {
    shared: Arc<Shared>,
}

/// What a [`LockManager`] may use up: made by [`LockManager::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is built before `build` is called"]
pub struct LockManagerBuilder {
    config: Config,
    limits: Limits,
}

impl LockManagerBuilder {
    /// How many connections the manager has at most: 8 if nothing is said, and never less than 1.
    ///
    /// One of them holds most of the locks. Each of the others waits for one key that is not free, and
    /// holds it afterwards, for as long as it is held. Keys for which no connection is left are tried every
    /// 10 ms to 20 ms, without a place in the server's queue: where other processes always stand in it, a
    /// key is never found free so. Therefore places go round: a connection that has only waited for 500 ms goes
    /// to the key that has been without one for the longest time. A key whose place is taken again and again
    /// has it for twice as long each time, up to 32 s, unless it is one of several of which all others are long
    /// already.
    ///
    /// A connection that holds a lock does not wait. So allow one more than the number of keys for which this
    /// process waits and which it then holds for long, such as leaderships: if each holds one, what else is
    /// not free is only tried, and two others that always want it leave it no turn. [`Stats::crowded_out`] says
    /// how many keys have no connection.
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.limits.sessions = sessions.max(1);
        self
    }

    /// How often a lock may go from task to task within this process, and for how long, before the server
    /// is asked again, so that other processes get their turn: 64 times and 100 ms if nothing is said.
    ///
    /// More of either makes a lock faster that many tasks of this process want, and those of other
    /// processes wait for longer. With 0, the server is asked each time.
    pub fn hand_overs(mut self, count: u32, within: Duration) -> Self {
        self.limits.hand_overs = count;
        self.limits.hand_overs_for = within;
        self
    }

    /// The manager. Nothing is connected yet.
    #[must_use]
    pub fn build(self) -> LockManager {
        LockManager { shared: Arc::new(Shared::new(self.config, self.limits)) }
    }
}

impl LockManager {
    /// A manager of locks on this server, with what is usual for the rest. Nothing is connected yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self::builder(config).build()
    }

    /// The same, with a say in what it may use up.
    pub fn builder(config: Config) -> LockManagerBuilder {
        let limits = Limits {
            sessions: SESSIONS_MAX,
            hand_overs: HAND_OVERS_MAX,
            hand_overs_for: HAND_OVERS_FOR,
            place_for: PLACE_FOR,
        };
        LockManagerBuilder { config, limits }
    }

    /// Takes the lock if it is free: `None` if a task of this process or somebody else has it, or waits
    /// for it.
    ///
    /// # Errors
    ///
    /// - Those of [`Session::connect`](crate::Session::connect), if there is no session and none can be
    ///   had.
    /// - [`ErrorKind::Timeout`] through a transaction pooler, if all sessions that the manager may have hold
    ///   or wait for a key, or if the pool has no server connection to lend within 5 s. Before its first session
    ///   stands, the manager does not know of the pooler: then it takes as long as connecting may.
    /// - [`ErrorKind::OutOfLockMemory`] or another error of the server.
    /// - [`ErrorKind::Closed`] after [`close`](LockManager::close).
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; a lock granted meanwhile is released.
    pub async fn try_lock(&self, key: impl Into<Key>) -> Result<Option<Guard>> {
        self.acquire(key.into(), Mode::Exclusive, Patience::None, None).await
    }

    /// As [`try_lock`](LockManager::try_lock), shared with others who take it so.
    ///
    /// # Errors
    ///
    /// As [`try_lock`](LockManager::try_lock).
    ///
    /// # Cancel safety
    ///
    /// As [`try_lock`](LockManager::try_lock).
    pub async fn try_lock_shared(&self, key: impl Into<Key>) -> Result<Option<Guard>> {
        self.acquire(key.into(), Mode::Shared, Patience::None, None).await
    }

    /// Waits for the lock, for as long as it takes: also for the server to come back, if it cannot be
    /// reached for a while.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Config`], [`ErrorKind::Authentication`], [`ErrorKind::Tls`],
    ///   [`ErrorKind::Unsupported`] or [`ErrorKind::Protocol`], if no session can be had and waiting will
    ///   not mend it.
    /// - [`ErrorKind::OutOfLockMemory`] or another error of the server.
    /// - [`ErrorKind::Closed`] if the manager is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; a lock granted meanwhile is released.
    pub async fn lock(&self, key: impl Into<Key>) -> Result<Guard> {
        self.wait(key.into(), Mode::Exclusive).await
    }

    /// As [`lock`](LockManager::lock), shared with others who take it so.
    ///
    /// # Errors
    ///
    /// As [`lock`](LockManager::lock).
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](LockManager::lock).
    pub async fn lock_shared(&self, key: impl Into<Key>) -> Result<Guard> {
        self.wait(key.into(), Mode::Shared).await
    }

    /// Waits for the lock until this much time has passed: `None` if it was not free by then.
    ///
    /// # Errors
    ///
    /// As [`lock`](LockManager::lock); and, if the time has passed and the server could not be reached,
    /// why not.
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](LockManager::lock).
    pub async fn lock_timeout(
        &self,
        key: impl Into<Key>,
        timeout: Duration,
    ) -> Result<Option<Guard>> {
        self.wait_for(key.into(), Mode::Exclusive, timeout).await
    }

    /// As [`lock_timeout`](LockManager::lock_timeout), shared with others who take it so.
    ///
    /// # Errors
    ///
    /// As [`lock_timeout`](LockManager::lock_timeout).
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](LockManager::lock).
    pub async fn lock_shared_timeout(
        &self,
        key: impl Into<Key>,
        timeout: Duration,
    ) -> Result<Option<Guard>> {
        self.wait_for(key.into(), Mode::Shared, timeout).await
    }

    /// Asks the server who holds the key, and how many wait for it: also those of this process, which count
    /// once however many tasks wait.
    ///
    /// Nothing is locked or released. It is asked on the session that tries keys and holds most of them,
    /// which is connected if it is not, and does nothing else meanwhile; it takes a round trip, in which the
    /// server goes through its lists of all locks and sessions. Ask when something is amiss, or once in a
    /// while.
    ///
    /// Through a transaction pooler, it takes a session that neither holds nor waits for anything, and a
    /// server connection of the pool for a moment: see [`Session::holders`](crate::Session::holders). If the pool
    /// has none, it asks once more on another session, which may take a minute in all.
    ///
    /// # Errors
    ///
    /// As [`try_lock`](LockManager::try_lock). Through a transaction pooler, [`ErrorKind::Timeout`] if all
    /// sessions that the manager may have hold or wait for a key.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(manager: pglock::LockManager) -> pglock::Result<()> {
    /// if manager.lock_timeout("nightly", Duration::from_secs(10)).await?.is_none() {
    ///     eprintln!("not in time: {}", manager.inspect("nightly").await?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn inspect(&self, key: impl Into<Key>) -> Result<Holders> {
        let key = key.into();
        let (caller, told) = oneshot::channel();
        let id = self.shared.with(|core, now| core.inspect(key, caller, now));
        let _inspection = Inspection { shared: &self.shared, id };
        match told.await {
            Ok(Told::Inspected(holders)) => Ok(holders),
            Ok(Told::Failed(error)) => Err(error.context(format!("holders of key {key}"))),
            _ => Err(no_answer()),
        }
    }

    /// What the manager has, and what it has done. The server is not asked.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.state().core.stats()
    }

    /// Ends all sessions. Whoever waits gets [`ErrorKind::Closed`], and so does whoever asks later; guards
    /// that are left are told that they are [lost](Guard::lost). When this returns, the server has
    /// released everything.
    ///
    /// Dropping the last handle and the last guard does the same in the background.
    ///
    /// # Errors
    ///
    /// As [`Session::close`](crate::Session::close): above all [`ErrorKind::Timeout`] if the server does
    /// not end a session within 10 s. Or [`ErrorKind::Lost`] if the runtime of the sessions ended before:
    /// their sockets are closed then, but nobody has seen that the server knows.
    ///
    /// # Cancel safety
    ///
    /// The sessions end, also if this future is dropped before they have.
    pub async fn close(&self) -> Result<()> {
        let (caller, told) = oneshot::channel();
        self.shared.close(caller);
        match told.await {
            Ok(Told::Failed(error)) => Err(error),
            _ => Ok(()),
        }
    }

    async fn wait(&self, key: Key, mode: Mode) -> Result<Guard> {
        // Without a limit, there is a lock or an error in the end.
        self.acquire(key, mode, Patience::Waits, None).await?.ok_or_else(no_answer)
    }

    async fn wait_for(&self, key: Key, mode: Mode, timeout: Duration) -> Result<Option<Guard>> {
        let patience = if timeout.is_zero() { Patience::None } else { Patience::Waits };
        // A time too far for the clock is no limit.
        self.acquire(key, mode, patience, after(timeout)).await
    }

    /// Asks for the lock until it comes from a session that [is there](Guard::is_there).
    async fn acquire(
        &self,
        key: Key,
        mode: Mode,
        patience: Patience,
        until: Option<Instant>,
    ) -> Result<Option<Guard>> {
        loop {
            let Some(guard) = self.request(key, mode, patience, until).await? else {
                return Ok(None);
            };
            if guard.is_fresh() {
                return Ok(Some(guard));
            }
            let until = until.filter(|_| patience == Patience::Waits);
            match self.shared.until(until, guard.is_there()).await {
                Some(true) => return Ok(Some(guard)),
                Some(false) => {}
                None => return Ok(None),
            }
        }
    }

    async fn request(
        &self,
        key: Key,
        mode: Mode,
        patience: Patience,
        until: Option<Instant>,
    ) -> Result<Option<Guard>> {
        let (caller, mut told) = oneshot::channel();
        let lock = LockId { key, mode };
        let (id, asked) = self
            .shared
            .with(|core, now| (core.request(lock, patience, caller, now), Asked::of(core, now)));
        let mut request = Request { shared: &self.shared, key, id: Some(id) };
        let answer = match patience {
            Patience::None => self.shared.unless_unserved(asked, &mut told).await,
            Patience::Waits => self.shared.until(until, &mut told).await,
        };
        let told = answer.unwrap_or_else(|| {
            let why = request.give_up();
            // It may have been granted at the last moment.
            Ok(told.try_recv().unwrap_or_else(|_| match (why, patience) {
                (Some(why), _) => Told::Failed(why),
                (None, Patience::None) => Told::Failed(unserved()),
                (None, Patience::Waits) => Told::Busy,
            }))
        });
        request.id = None;
        outcome(told, lock)
    }
}

impl fmt::Debug for LockManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockManager").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// What has come of a request for this.
fn outcome(
    told: std::result::Result<Told, oneshot::error::RecvError>,
    what: impl fmt::Display,
) -> Result<Option<Guard>> {
    match told {
        Ok(Told::Granted(guard, grant)) => {
            trace::granted(grant.lock, grant.waited, grant.handed_over);
            Ok(Some(guard))
        }
        Ok(Told::Busy | Told::Done | Told::Inspected(_)) => Ok(None),
        Ok(Told::Failed(error)) => Err(error.context(what.to_string())),
        Err(_) => Err(no_answer()),
    }
}

/// What a caller is told.
enum Told {
    Granted(Guard, Grant),
    Busy,
    Done,
    Inspected(Holders),
    Failed(Error),
}

/// When something was asked for, and whether it is known by then that there is no pooler.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    directly: bool,
}

impl Asked {
    fn of<R>(core: &Core<R>, at: Instant) -> Self {
        Self { at, directly: core.is_direct() }
    }
}

/// A question that has not been answered. It is taken back when this is dropped.
struct Inspection<'a> {
    shared: &'a Arc<Shared>,
    id: RequestId,
}

impl Drop for Inspection<'_> {
    fn drop(&mut self) {
        self.shared.with(|core, _| core.forget_inspection(self.id));
    }
}

/// A request that has not been answered. It is given up when this is dropped.
struct Request<'a> {
    shared: &'a Arc<Shared>,
    key: Key,
    id: Option<RequestId>,
}

impl Request<'_> {
    /// Says why the lock could not be tried, if that is so.
    fn give_up(&mut self) -> Option<Error> {
        let id = self.id.take()?;
        self.shared.with(|core, now| core.give_up(self.key, id, now))
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// What handles, guards and drivers have in common.
struct Shared {
    config: Config,
    state: Mutex<State>,
    runtime: OnceLock<Handle>,
    /// The clock's next time has changed.
    rescheduled: Arc<Notify>,
    /// Who collects a set of locks through a pooler.
    turn_of_sets: tokio::sync::Mutex<()>,
}

struct State {
    core: Core<oneshot::Sender<Told>>,
    sessions: BTreeMap<SessionId, Link>,
    next_tick: Option<Instant>,
}

/// How to reach a session's task.
struct Link {
    messages: mpsc::UnboundedSender<Message>,
    fate: Arc<Fate>,
}

/// What is left to do once the state is not locked any more.
#[derive(Default)]
struct Work {
    drivers: Vec<Driver>,
    replies: Vec<(oneshot::Sender<Told>, Told)>,
    /// How many keys have no session, if that is to be told.
    crowded_out: Option<usize>,
}

impl Shared {
    fn new(config: Config, limits: Limits) -> Self {
        // It only spreads retries.
        let seed = getrandom::u64().unwrap_or_default();
        Self {
            config,
            state: Mutex::new(State {
                core: Core::new(limits, seed),
                sessions: BTreeMap::new(),
                next_tick: None,
            }),
            runtime: OnceLock::new(),
            rescheduled: Arc::default(),
            turn_of_sets: tokio::sync::Mutex::default(),
        }
    }

    /// Tells the core something, and does what follows from it.
    fn with<T>(
        self: &Arc<Self>,
        tell: impl FnOnce(&mut Core<oneshot::Sender<Told>>, Instant) -> T,
    ) -> T {
        let mut state = self.state();
        let result = tell(&mut state.core, now());
        let Work { drivers, replies, crowded_out } = self.carry_out(&mut state);
        let sessions_max = state.core.limits().sessions;
        drop(state);
        if let Some(keys) = crowded_out {
            trace::crowded(keys, sessions_max);
        }
        for driver in drivers {
            self.runtime().spawn(driver.drive(self.config.clone()));
        }
        // Nobody may be there to be told, and then a guard is dropped, which needs the state.
        for (caller, told) in replies {
            let _ = caller.send(told);
        }
        result
    }

    /// Does what must be done in order. What may need the state again is left to do.
    fn carry_out(self: &Arc<Self>, state: &mut State) -> Work {
        let mut work = Work::default();
        for command in state.core.commands() {
            match command {
                Command::Open(session) => work.drivers.push(self.open(session, state)),
                Command::Order(session, order) => {
                    if let Some(link) = state.sessions.get(&session) {
                        // A session that is over says so.
                        let _ = link.messages.send(Message::Order(order));
                    }
                }
                Command::Reply(caller, reply) => {
                    work.replies.push((caller, self.told(reply, state)));
                }
                Command::Crowded(keys) => work.crowded_out = Some(keys),
            }
        }
        let next_tick = state.core.next_tick();
        // A tick that comes too early does nothing, but see when the next one is due.
        if next_tick.is_some_and(|next| state.next_tick.is_none_or(|set| next < set)) {
            state.next_tick = next_tick;
            self.rescheduled.notify_one();
        }
        work
    }

    fn told(self: &Arc<Self>, reply: Reply, state: &State) -> Told {
        match reply {
            Reply::Granted(grant) => match state.sessions.get(&grant.session) {
                Some(link) => {
                    let fate = Arc::clone(&link.fate);
                    let guard = Guard::new(Arc::clone(self), &grant, fate);
                    Told::Granted(guard, grant)
                }
                None => Told::Failed(no_answer()),
            },
            Reply::Busy => Told::Busy,
            Reply::Done => Told::Done,
            Reply::Inspected(holders) => Told::Inspected(holders),
            Reply::Failed(error) | Reply::NotDone(error) => Told::Failed(error),
        }
    }

    fn open(self: &Arc<Self>, id: SessionId, state: &mut State) -> Driver {
        let (sender, messages) = mpsc::unbounded_channel();
        let fate = Arc::new(Fate::default());
        state.sessions.insert(id, Link { messages: sender, fate: Arc::clone(&fate) });
        Driver { shared: Arc::downgrade(self), id, fate, messages, put_back: None }
    }

    /// Where the sessions run: where the first of them was needed.
    fn runtime(self: &Arc<Self>) -> &Handle {
        self.runtime.get_or_init(|| {
            let runtime = Handle::current();
            runtime.spawn(Clock(Arc::downgrade(self)).run(Arc::clone(&self.rescheduled)));
            runtime
        })
    }

    /// Polls the future until then. The clock is that of the caller's runtime; if there is none, that of the
    /// sessions'.
    fn timeout_at<F: Future>(&self, until: Instant, future: F) -> Timeout<F> {
        timeout_anywhere(until, future, self.runtime.get())
    }

    /// What the future comes to, if it does by then.
    async fn until<F: Future>(&self, until: Option<Instant>, future: F) -> Option<F::Output> {
        match until {
            None => Some(future.await),
            Some(until) => self.timeout_at(until, future).await.ok(),
        }
    }

    /// The answer to whoever does not wait: unless a pooler keeps it for too long.
    async fn unless_unserved<F: Future + Unpin>(
        &self,
        asked: Asked,
        mut answer: F,
    ) -> Option<F::Output> {
        if asked.directly {
            return Some(answer.await);
        }
        let mut until = asked.at + TRY_WITHIN;
        loop {
            match self.timeout_at(until, &mut answer).await {
                Ok(answer) => return Some(answer),
                Err(_) if self.state().core.locks_max().is_some() => return None,
                // The first session is being opened, or there is no pooler.
                Err(_) => until = now() + TRY_WITHIN,
            }
        }
    }

    /// A session is over. Says for how long none is opened, if so.
    fn ended(self: &Arc<Self>, id: SessionId, why: Option<Error>) -> Option<Duration> {
        let pause = self.with(|core, now| {
            core.ended(id, why, now);
            core.pause_before_opening(now)
        });
        // Not before: until the core knows, what the session held goes to others, who learn by their guards
        // that it is lost.
        self.state().sessions.remove(&id);
        pause
    }

    /// Tells a session something that the core need not know.
    fn tell(&self, session: SessionId, message: Message) {
        if let Some(link) = self.state().sessions.get(&session) {
            // A session that is over drops whom to answer to.
            let _ = link.messages.send(message);
        }
    }

    fn close(self: &Arc<Self>, caller: oneshot::Sender<Told>) {
        self.tell_of_the_close();
        self.with(|core, _| core.close(caller));
    }

    /// Tells those who have guards.
    fn tell_of_the_close(&self) {
        let fates: Vec<_> =
            self.state().sessions.values().map(|link| Arc::clone(&link.fate)).collect();
        for fate in fates {
            fate.end(core::closed());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tell_of_the_close();
        self.rescheduled.notify_one();
    }
}

/// Tells the core when its time has come, for as long as anybody has the manager.
struct Clock(Weak<Shared>);

impl Clock {
    async fn run(self, rescheduled: Arc<Notify>) {
        while let Some(shared) = self.0.upgrade() {
            let changed = rescheduled.notified();
            let next = shared.state().next_tick;
            drop(shared);
            match next {
                None => changed.await,
                Some(next) => {
                    if timeout_at(next.into(), changed).await.is_err() {
                        self.tick();
                    }
                }
            }
        }
    }

    fn tick(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.state().next_tick = None;
            shared.with(Core::tick);
        }
    }
}

/// The runtime ends, and all sessions with it: nobody is to wait for them.
impl Drop for Clock {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.with(|core, _| core.abandon(runtime_ended(), no_answer()));
        }
    }
}

/// As [`timeout_at`], also where no runtime is: by the clock of this one.
fn timeout_anywhere<F: Future>(until: Instant, future: F, runtime: Option<&Handle>) -> Timeout<F> {
    let is_elsewhere = Handle::try_current().is_err();
    let _entered = runtime.filter(|_| is_elsewhere).map(Handle::enter);
    timeout_at(until.into(), future)
}

fn unserved() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the pooler had no free server connection within 5 s; give it more, or hold fewer locks",
    )
}

fn runtime_ended() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the runtime has ended on which the manager was first used, and its sessions with it; make a manager \
         for each runtime, or one on a runtime that goes on",
    )
}

fn no_answer() -> Error {
    Error::new(ErrorKind::Lost, "the manager's task ended; is its runtime still there?").lost()
}
