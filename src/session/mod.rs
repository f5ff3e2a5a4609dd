//! One server process, and the locks that it holds for us.
//!
//! A [`Session`] owns a wire (a socket and the [machine](machine) of its requests) and the books of
//! what is held. Where the wire is says who may use it:
//!
//! ```text
//!          a future is dropped while its request is at the server
//!  Here ─────────────────────────────────────────────────────────▶ Away (a task settles it)
//!   │ ▲                 the next call awaits its return             │
//!   │ └─────────────────────────────────────────────────────────────┤
//!   └── lost ──▶ Gone ◀── lost ─────────────────────────────────────┘
//! ```
//!
//! The books change only when the server has said what they then say: a lock is entered when it was
//! granted, and struck out when its release is sent, from where it cannot be taken back.

mod advisory;
#[cfg(feature = "manager")]
mod batch;
mod books;
mod canceller;
#[cfg(feature = "manager")]
mod choice;
mod connect;
mod dialogue;
#[cfg(feature = "manager")]
mod for_manager;
mod inspection;
mod introduction;
mod lease;
mod login;
mod machine;
#[cfg(test)]
mod simulation;
#[cfg(feature = "async")]
mod watch;
mod wire;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

pub(crate) use self::advisory::LockId;
#[cfg(feature = "manager")]
pub(crate) use self::batch::Call;
use self::books::Books;
use self::canceller::{Cancellable, Signal};
#[cfg(feature = "manager")]
pub(crate) use self::choice::{Choice, Range};
#[cfg(feature = "manager")]
pub(crate) use self::lease::Clocks;
#[cfg(feature = "manager")]
pub(crate) use self::machine::TRY_WITHIN;
use self::machine::{Ask, Held, Outcome, cannot_lock};
#[cfg(feature = "manager")]
pub(crate) use self::wire::CLOSE_WITHIN;
use self::wire::Wire;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, ServerError};
use crate::fence::Fence;
use crate::holders::Holders;
use crate::key::{Key, Mode};
use crate::trace;
use crate::wait::{self, Errand, after, now};
pub use canceller::Canceller;

const DEADLOCK_DETECTED: &str = "40P01";
const OUT_OF_MEMORY: &str = "53200";

/// A connection of its own that holds any number of locks; through a pooler, one at a time (see
/// [`Pooler`](crate::Pooler)).
///
/// For a single key, [`Lock`](crate::Lock) is the same with less to type.
///
/// Locks stack: a lock that is held can be taken again in the same mode, without asking the server,
/// and is released when it was unlocked as often. Exclusive and shared count apart, and a session
/// never excludes itself: it may hold a key in both modes at once.
///
/// Dropping the session closes its socket, upon which the server releases everything; where a request is still
/// being withdrawn whose future was dropped, when that is done, within 10 s.
/// [`close`](Session::close) does the same and returns when it is done.
///
/// # Examples
///
/// ```no_run
/// # #[cfg(feature = "async")]
/// use pglock::{Config, Mode, Session};
///
/// # #[cfg(feature = "async")]
/// # async fn example() -> pglock::Result<()> {
/// let mut session = Session::connect(&Config::from_env()?).await?;
/// session.lock("accounts", Mode::Shared).await?;
/// if session.try_lock((1, 42), Mode::Exclusive).await? {
///     session.unlock((1, 42), Mode::Exclusive).await?;
/// }
/// session.close().await
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    place: Place,
    books: Books,
    /// Made when the first canceller is.
    signal: Option<Arc<Signal>>,
    /// How long the server is asked to wait for a lock at a time.
    wait_slice: Option<Duration>,
    /// Where a request is settled whose future was dropped.
    waits_at: wait::Place,
}

/// Where the session's wire is.
#[derive(Debug)]
enum Place {
    Here(Box<Wire>),
    /// With a task that gives it back when it is settled.
    Away(Errand<Result<Box<Wire>>>),
    Gone(Error),
}

impl Session {
    /// Connects, logs in, and makes the session fit to hold locks, within the configuration's
    /// `connect_timeout` for each address of the host.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Config`]: a setting is missing, out of range or not supported.
    /// - [`ErrorKind::Connect`], [`ErrorKind::Timeout`]: the server cannot be reached or does not
    ///   take the connection.
    /// - [`ErrorKind::Tls`]: TLS is needed and cannot be had.
    /// - [`ErrorKind::Authentication`]: the login is refused, on either side.
    /// - [`ErrorKind::Unsupported`]: a standby, not PostgreSQL, or a pooler that is not wanted; a
    ///   [lease](Config::lease) before PostgreSQL 14; or settings of the session that the server refuses.
    /// - [`ErrorKind::Protocol`]: the server does not keep to the protocol.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the socket. Nothing was locked.
    pub async fn connect(config: &Config) -> Result<Self> {
        Self::connect_as(config, "pglock", "session").await
    }

    /// Connects for one key.
    pub(crate) async fn connect_for(config: &Config, key: Key) -> Result<Self> {
        Self::connect_as(config, &format!("pglock {key}"), &format!("lock {key}")).await
    }

    /// Connects with a name and a comment that show in `pg_stat_activity` what the session is for.
    async fn connect_as(config: &Config, name: &str, comment: &str) -> Result<Self> {
        // Connecting takes far more room than what follows: callers' futures need not carry it.
        let wire = Box::pin(connect::connect(config, name, comment)).await?;
        Ok(Self {
            place: Place::Here(wire),
            books: Books::default(),
            signal: None,
            wait_slice: config.slice_of_a_wait(),
            waits_at: wait::Place::current(),
        })
    }

    /// Takes the lock if no other session is in its way, and says whether it did.
    ///
    /// Through a transaction pooler, it waits for a server connection of the pool: for 5 s at most, upon which
    /// the session is lost.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfLockMemory`] or another error of the server, or [`ErrorKind::Unsupported`] for a
    /// second lock through a pooler, after which the session can be used further; or one of a lost session:
    /// [`Error::is_lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; a lock granted meanwhile is released.
    pub async fn try_lock(&mut self, key: impl Into<Key>, mode: Mode) -> Result<bool> {
        let lock = LockId { key: key.into(), mode };
        self.settled().await?;
        if self.stack(lock).await? {
            return Ok(true);
        }
        self.check_room(lock)?;
        let outcome = self.perform(Ask::TryLock(lock), None).await?;
        let acquired = self.acquired(lock, outcome)?;
        if acquired {
            self.books.enter(lock);
        }
        Ok(acquired)
    }

    /// Waits for the lock, for as long as it takes.
    ///
    /// The server queues the waiters of a key in the order of their arrival.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], [`ErrorKind::Deadlock`], [`ErrorKind::OutOfLockMemory`] or another
    /// error of the server, or [`ErrorKind::Unsupported`] for a second lock through a pooler, after which
    /// the lock is not held and the session can be used further; or one of a lost session:
    /// [`Error::is_lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; a lock granted meanwhile is released. A task of
    /// its own does this, on the runtime on which the session was connected, and the session's next
    /// call waits for it. So that runtime has to go on running: one of a single thread that is left
    /// (`block_on` has returned) leaves the request in the server's queue until it is entered again;
    /// [`lock_timeout`](Session::lock_timeout) does not have that problem. If the runtime ends, the
    /// socket is closed, and the server notices within a second (PostgreSQL 14 and later) or at the
    /// end of the wait (earlier ones).
    pub async fn lock(&mut self, key: impl Into<Key>, mode: Mode) -> Result<()> {
        let lock = LockId { key: key.into(), mode };
        // Without a deadline, only a canceller ends a wait.
        if self.wait_and_enter(lock, None).await? { Ok(()) } else { Err(cancelled(lock)) }
    }

    /// Waits for the lock until this much time has passed, and says whether it was acquired.
    ///
    /// A little more time passes before the answer `false`: the request is withdrawn first. If the
    /// lock is granted at that moment, the answer is `true`.
    ///
    /// # Errors
    ///
    /// As [`lock`](Session::lock).
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](Session::lock).
    pub async fn lock_timeout(
        &mut self,
        key: impl Into<Key>,
        mode: Mode,
        timeout: Duration,
    ) -> Result<bool> {
        let lock = LockId { key: key.into(), mode };
        if timeout.is_zero() {
            return self.try_lock(lock.key, mode).await;
        }
        // A time too far for the clock is no limit.
        self.wait_and_enter(lock, after(timeout)).await
    }

    /// As [`try_lock`](Session::try_lock), with a fencing token taken after the lock: `None` if the
    /// lock is not free.
    ///
    /// The token costs a write to the server's log, and waits until that is on disk, and on the
    /// standbys that the server is set to wait for: for 30 s at most. A process that is killed during
    /// that last wait leaves its locks with the server until the standby is back, or until somebody
    /// ends its session there.
    ///
    /// # Errors
    ///
    /// As [`try_lock`](Session::try_lock), [`ErrorKind::Timeout`] if the token does not come in time, and
    /// [`ErrorKind::Unsupported`] through a pooler. Without a token, the lock is not taken; if it was held before,
    /// it is held as it was.
    ///
    /// # Cancel safety
    ///
    /// As [`try_lock`](Session::try_lock).
    pub async fn try_lock_fenced(
        &mut self,
        key: impl Into<Key>,
        mode: Mode,
    ) -> Result<Option<Fence>> {
        let lock = LockId { key: key.into(), mode };
        self.settled().await?;
        self.check_fences(lock)?;
        if self.books.level(lock) > 0 {
            return self.fence(lock, Held::Before, None).await.map(Some);
        }
        let outcome = self.perform(Ask::TryLock(lock), None).await?;
        if !self.acquired(lock, outcome)? {
            return Ok(None);
        }
        self.fence(lock, Held::Newly, None).await.map(Some)
    }

    /// As [`lock`](Session::lock), with a fencing token taken after the lock.
    ///
    /// The token costs a write to the server's log, and waits until that is on disk, and on the
    /// standbys that the server is set to wait for: for 30 s at most. A process that is killed during
    /// that last wait leaves its locks with the server until the standby is back, or until somebody
    /// ends its session there.
    ///
    /// # Errors
    ///
    /// As [`lock`](Session::lock), [`ErrorKind::Timeout`] if the token does not come in time, and
    /// [`ErrorKind::Unsupported`] through a pooler. Without a token, the lock is not taken; if it was held before,
    /// it is held as it was.
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](Session::lock).
    pub async fn lock_fenced(&mut self, key: impl Into<Key>, mode: Mode) -> Result<Fence> {
        let lock = LockId { key: key.into(), mode };
        let wait = self.signal.as_ref().map(Signal::wait);
        self.settled_within(lock, None, wait.as_ref()).await?;
        self.check_fences(lock)?;
        if self.books.level(lock) > 0 {
            return self.fence(lock, Held::Before, wait.as_ref()).await;
        }
        if !self.wait(lock, None, wait.as_ref()).await? {
            return Err(cancelled(lock));
        }
        self.fence(lock, Held::Newly, wait.as_ref()).await
    }

    /// Takes one level off the lock, and releases it with the last one. When this returns, the next
    /// session gets it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotHeld`] if the session does not hold the key in this mode; nothing is changed.
    /// Or an error of a lost session: [`Error::is_lost`].
    ///
    /// # Cancel safety
    ///
    /// A release that was sent takes place, also if this future is dropped before its answer; and it
    /// is sent at once, unless an earlier request is still being settled. [`level`](Session::level)
    /// tells.
    pub async fn unlock(&mut self, key: impl Into<Key>, mode: Mode) -> Result<()> {
        let lock = LockId { key: key.into(), mode };
        self.settled().await?;
        match self.books.level(lock) {
            0 => {
                self.ready().await?;
                Err(not_held(lock))
            }
            1 => self.perform(Ask::Unlock(lock), None).await.map(|_| ()),
            _ => {
                self.catch_up().await?;
                self.books.unstack(lock);
                Ok(())
            }
        }
    }

    /// Asks the server who holds the key, and how many wait for it. This session counts as well.
    ///
    /// Nothing is locked or released. It takes a round trip, in which the server goes through its lists of
    /// all locks and sessions: ask when something is amiss, not in a loop.
    ///
    /// Through a pooler, a session that holds a lock asks in the transaction that holds it, which an error
    /// of the server ends: the session is lost then. One that holds none needs a server connection of the
    /// pool for a moment, and is lost if none becomes free in 30 s.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Server`] if the server refuses, [`ErrorKind::OutOfLockMemory`] if it has no room to
    /// look, [`ErrorKind::Unsupported`] if it lacks what that takes, as servers other than PostgreSQL may,
    /// after which the session can be used further; or one of a lost session: [`Error::is_lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing. The session's next call waits for the answer.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use pglock::Mode;
    /// # #[cfg(feature = "async")]
    /// # async fn example(mut session: pglock::Session) -> pglock::Result<()> {
    /// if !session.try_lock("accounts", Mode::Exclusive).await? {
    ///     for holder in session.holders("accounts").await?.holders() {
    ///         eprintln!("{holder}");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn holders(&mut self, key: impl Into<Key>) -> Result<Holders> {
        let key = key.into();
        self.look(Holders::query(key), &format!("holders of key {key}"), Holders::from_row).await
    }

    /// How many levels of the lock the session holds, as far as it knows: see
    /// [`lost`](Session::lost).
    #[must_use]
    pub fn level(&self, key: impl Into<Key>, mode: Mode) -> u64 {
        self.books.level(LockId { key: key.into(), mode })
    }

    /// A handle that ends this session's waits from elsewhere.
    pub fn canceller(&mut self) -> Canceller {
        self.signal.get_or_insert_default().canceller()
    }

    /// Ends the session. When this returns, the server has released all of its locks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`] if the server does not end the session within 10 s, and an error of a
    /// lost session ([`Error::is_lost`]) if it was lost before: what its locks guarded was not
    /// guarded to the end.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the socket, upon which the server releases everything.
    pub async fn close(mut self) -> Result<()> {
        self.catch_up().await?;
        self.release_before_goodbye().await?;
        match self.place {
            Place::Here(wire) => wire.close().await,
            Place::Away(_) => Ok(()),
            Place::Gone(error) => Err(error),
        }
    }
}

impl Session {
    /// Makes sure that the key is held, in one mode or the other.
    pub(crate) async fn holds(&mut self, key: Key) -> Result<()> {
        self.ready().await?;
        let [exclusive, shared] = [Mode::Exclusive, Mode::Shared].map(|mode| LockId { key, mode });
        if self.books.level(exclusive) == 0 && self.books.level(shared) == 0 {
            return Err(unguarded(key));
        }
        Ok(())
    }

    /// Waits for the lock, and enters it into the books if it was granted in time.
    async fn wait_and_enter(&mut self, lock: LockId, until: Option<Instant>) -> Result<bool> {
        let wait = self.signal.as_ref().map(Signal::wait);
        if !self.settled_within(lock, until, wait.as_ref()).await? {
            return Ok(false);
        }
        if self.stack(lock).await? {
            return Ok(true);
        }
        self.check_room(lock)?;
        let acquired = self.wait(lock, until, wait.as_ref()).await?;
        if acquired {
            self.books.enter(lock);
        }
        Ok(acquired)
    }

    /// Waits for the lock, on a session that is ready.
    async fn wait(
        &mut self,
        lock: LockId,
        until: Option<Instant>,
        wait: Option<&Cancellable>,
    ) -> Result<bool> {
        loop {
            let ask = Ask::Lock { lock, until, slice: self.wait_slice };
            let outcome = self.perform(ask, wait).await?;
            let acquired = self.acquired(lock, outcome)?;
            if !acquired && wait.is_some_and(Cancellable::is_asked) {
                return Err(cancelled(lock));
            }
            let is_over = until.is_some_and(|until| until <= now());
            if acquired || is_over || self.wait_slice.is_none() {
                return Ok(acquired);
            }
        }
    }

    /// Waits until dropped requests are settled, unless time runs out or the wait is cancelled before. The
    /// result says whether there is time left.
    async fn settled_within(
        &mut self,
        lock: LockId,
        until: Option<Instant>,
        wait: Option<&Cancellable>,
    ) -> Result<bool> {
        let place = self.waits_at.clone();
        let mut settled = pin!(self.settled());
        let settled = poll_fn(|cx| {
            if wait.is_some_and(|wait| wait.poll_asked(cx)) {
                return Poll::Ready(Err(cancelled(lock)));
            }
            settled.as_mut().poll(cx)
        });
        match place.timeout_at(until, settled).await {
            Ok(settled) => settled.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Behind a pooler, a session holds one lock at a time: the transaction that holds it ends with it.
    fn check_room(&self, lock: LockId) -> Result<()> {
        if !self.holds_one_lock() || self.books.is_empty() {
            return Ok(());
        }
        Err(unsupported(
            lock,
            "in transactions, as through a pooler, a session holds one lock at a time; connect another \
             session, or to the server directly",
        ))
    }

    /// Behind a pooler, a token would not be safe before the lock is released.
    fn check_fences(&self, lock: LockId) -> Result<()> {
        if !self.holds_one_lock() {
            return Ok(());
        }
        Err(unsupported(
            lock,
            "in transactions, as through a pooler, there are no fencing tokens; connect to the server \
             directly, without Pooler::Transaction",
        ))
    }

    /// A pooler closes the socket when it hears the goodbye, and only then has the server release what
    /// was held. So end of file proves nothing there, and everything is released first.
    async fn release_before_goodbye(&mut self) -> Result<()> {
        if !matches!(&self.place, Place::Here(wire) if wire.may_be_pooled()) {
            return Ok(());
        }
        while let Some(lock) = self.books.any() {
            self.perform(Ask::Unlock(lock), None).await?;
        }
        Ok(())
    }

    pub(crate) fn holds_one_lock(&self) -> bool {
        matches!(&self.place, Place::Here(wire) if wire.holds_one_lock())
    }

    /// Takes a token for a lock. One that is held already gets another level; one that was acquired
    /// just now is entered into the books with the token, and released without.
    async fn fence(
        &mut self,
        lock: LockId,
        held: Held,
        wait: Option<&Cancellable>,
    ) -> Result<Fence> {
        let fence = self.token(lock, held, wait).await?;
        match held {
            Held::Newly => self.books.enter(lock),
            Held::Before => _ = self.books.stack(lock),
        }
        Ok(fence)
    }

    async fn token(
        &mut self,
        lock: LockId,
        held: Held,
        wait: Option<&Cancellable>,
    ) -> Result<Fence> {
        match self.perform(Ask::Fence { lock, held }, wait).await? {
            Outcome::Row(row) => Fence::from_row(&row).ok_or_else(|| self.gone(unreadable_fence())),
            Outcome::Failed(error) => Err(self.lock_refused(lock, error)),
            _ if wait.is_some_and(Cancellable::is_asked) => Err(cancelled(lock)),
            _ => Err(no_fence(lock, held)),
        }
    }

    fn acquired(&self, lock: LockId, outcome: Outcome) -> Result<bool> {
        match outcome {
            Outcome::Acquired => Ok(true),
            Outcome::Failed(error) => Err(self.lock_refused(lock, error)),
            _ => Ok(false),
        }
    }

    /// Waits for the wire, if a dropped request is still being settled on it. Whether the session is
    /// alive shows when the server is asked next.
    pub(crate) fn settled(&mut self) -> impl Future<Output = Result<()>> {
        poll_fn(|cx| match &self.place {
            Place::Here(wire) if !wire.is_busy() => Poll::Ready(Ok(())),
            _ => self.poll_settled(cx),
        })
    }

    #[cold]
    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        // A future that was forgotten instead of dropped leaves its request behind.
        self.settle_elsewhere();
        if let Place::Away(returning) = &mut self.place {
            let returned = ready!(returning.poll(cx));
            match returned.unwrap_or_else(|| Err(abandoned())) {
                Ok(wire) => self.place = Place::Here(wire),
                Err(error) => return Poll::Ready(Err(self.gone(error))),
            }
        }
        Poll::Ready(match &self.place {
            Place::Gone(error) => Err(error.clone()),
            Place::Here(_) | Place::Away(_) => Ok(()),
        })
    }

    /// As [`settled`](Self::settled), and looks whether the session is alive as far as can be seen without
    /// asking the server.
    async fn ready(&mut self) -> Result<&mut Wire> {
        self.settled().await?;
        if let Place::Here(wire) = &mut self.place {
            let seen = poll_fn(|cx| Poll::Ready(wire.poll_idle(cx))).await;
            if let Poll::Ready(error) = seen {
                return Err(self.gone(error));
            }
        }
        match &mut self.place {
            Place::Here(wire) => Ok(wire),
            Place::Away(_) => Err(abandoned()),
            Place::Gone(error) => Err(error.clone()),
        }
    }

    /// Adds a level to the lock, if it is held. The server is not asked, so the socket is: its last word
    /// may have come already.
    async fn stack(&mut self, lock: LockId) -> Result<bool> {
        if self.books.level(lock) == 0 {
            return Ok(false);
        }
        self.catch_up().await?;
        Ok(self.books.stack(lock))
    }

    /// Makes sure that the session is alive as far as this side can know. [`ready`](Session::ready)
    /// hears only what the runtime has heard, which may be less.
    pub(crate) async fn catch_up(&mut self) -> Result<()> {
        if let Err(error) = self.ready().await?.catch_up().await {
            return Err(self.gone(error));
        }
        self.ready().await.map(|_| ())
    }

    /// Asks the server for a sign of life.
    #[cfg(feature = "blocking")]
    pub(crate) async fn confirm(&mut self) -> Result<()> {
        self.settled().await?;
        self.perform(Ask::Heartbeat, None).await.map(drop)
    }

    /// Asks for a row about no lock of the session, and reads it. The second argument says what is asked for,
    /// in errors.
    async fn look<T>(
        &mut self,
        statements: String,
        what: &str,
        read: impl FnOnce(&[Option<String>]) -> Option<T>,
    ) -> Result<T> {
        self.settled().await?;
        let answer = match self.perform(Ask::Look(statements.into()), None).await? {
            Outcome::Failed(error) => return Err(self.refused(what, error)),
            Outcome::Row(row) => read(&row),
            _ => None,
        };
        answer.ok_or_else(|| self.gone(unreadable(what)))
    }

    /// Sends a request and sees it through.
    fn perform<'a>(&'a mut self, ask: Ask, wait: Option<&'a Cancellable>) -> Attempt<'a> {
        if let Ask::Unlock(lock) = &ask {
            self.books.strike(*lock);
        }
        Attempt { session: self, ask: Some(ask), wait }
    }

    /// Hands the wire to a task, if a request is under way on it that nobody waits for.
    fn settle_elsewhere(&mut self) {
        if matches!(&self.place, Place::Here(wire) if wire.is_busy()) {
            self.hand_over();
        }
    }

    #[cold]
    fn hand_over(&mut self) {
        // Nobody sees what stands there meanwhile.
        if let Place::Here(wire) = std::mem::replace(&mut self.place, Place::Gone(abandoned())) {
            // If the session is gone too by then, the wire is dropped, and its socket closed.
            self.place = Place::Away(self.waits_at.spawn(wire.settle()));
        }
    }

    /// Notes that the session is gone.
    fn gone(&mut self, error: Error) -> Error {
        let server = match &self.place {
            Place::Here(wire) => Some(wire.peer_name()),
            Place::Away(_) | Place::Gone(_) => None,
        };
        trace::lost(server, &error);
        self.books.clear();
        self.place = Place::Gone(error.clone());
        error
    }

    fn lock_refused(&self, lock: LockId, error: ServerError) -> Error {
        self.refused(&lock.to_string(), error)
    }

    /// The server refused what was asked for.
    fn refused(&self, what: &str, error: ServerError) -> Error {
        let (kind, message) = match error.sqlstate() {
            DEADLOCK_DETECTED => (
                ErrorKind::Deadlock,
                "sessions waited for each other; take keys in the same order everywhere",
            ),
            OUT_OF_MEMORY => (
                ErrorKind::OutOfLockMemory,
                "the server's lock table is full; raise max_locks_per_transaction there, or hold \
                 fewer locks",
            ),
            _ if cannot_lock(&error) => (
                ErrorKind::Unsupported,
                "the server, or what stands before it, does not lock as PostgreSQL does; connect to a \
                 PostgreSQL server directly",
            ),
            _ => (ErrorKind::Server, "the server refused"),
        };
        let peer = match &self.place {
            Place::Here(wire) => wire.peer_name(),
            Place::Away(_) | Place::Gone(_) => "the server",
        };
        Error::new(kind, message).context(format!("{what} at {peer}")).with_server(error)
    }
}

/// A request that is under way. Dropped before its outcome is known, it hands the wire to a task that
/// settles it.
struct Attempt<'a> {
    session: &'a mut Session,
    /// What is still to be asked for.
    ask: Option<Ask>,
    wait: Option<&'a Cancellable>,
}

impl Attempt<'_> {
    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome>> {
        let Place::Here(wire) = &mut self.session.place else {
            return Poll::Ready(Err(abandoned()));
        };
        let is_cancelled = self.wait.is_some_and(|wait| wait.poll_asked(cx));
        if let Some(ask) = self.ask.take() {
            let polled = wire.poll_ask(ask, cx);
            if polled.is_ready() || !is_cancelled {
                return polled;
            }
        }
        if is_cancelled {
            wire.cancel();
        }
        wire.poll_outcome(cx)
    }
}

impl Future for Attempt<'_> {
    type Output = Result<Outcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Outcome>> {
        let outcome = self.poll_outcome(cx);
        outcome.map_err(|error| self.session.gone(error))
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.session.settle_elsewhere();
    }
}

fn cancelled(lock: LockId) -> Error {
    Error::new(ErrorKind::Cancelled, "the wait was cancelled").context(lock.to_string())
}

fn no_fence(lock: LockId, held: Held) -> Error {
    let message = match held {
        Held::Newly => {
            "no fencing token within 30 s, so the lock is not taken; is the server waiting for a \
             synchronous standby?"
        }
        Held::Before => {
            "no fencing token within 30 s, so the lock is held as before; is the server waiting for a \
             synchronous standby?"
        }
    };
    Error::new(ErrorKind::Timeout, message).context(lock.to_string())
}

/// Whatever this server is, a lock without a token must not stay behind: the session ends.
fn unreadable_fence() -> Error {
    Error::new(ErrorKind::Protocol, "the server gave a position in its log that cannot be read")
        .lost()
}

/// A server that makes no sense is not to be trusted with locks.
fn unreadable(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, "the server gave an answer that cannot be read")
        .context(what)
        .lost()
}

fn unsupported(lock: LockId, message: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, message).context(lock.to_string())
}

fn not_held(lock: LockId) -> Error {
    Error::new(ErrorKind::NotHeld, "not held by this session, so there is nothing to release")
        .context(lock.to_string())
}

fn unguarded(key: Key) -> Error {
    Error::new(
        ErrorKind::NotHeld,
        "not held by this session, so nothing guards the work; lock it first",
    )
    .context(format!("key {key}"))
}

fn abandoned() -> Error {
    Error::new(
        ErrorKind::Lost,
        "the runtime of the session ended while a request was being withdrawn; its socket is closed",
    )
    .lost()
}
