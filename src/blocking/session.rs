//! One connection that holds any number of keys.

use std::future::Future;
use std::time::Duration;

use crate::advisory_locks::AdvisoryLocks;
use crate::config::Config;
use crate::error::Result;
use crate::fence::Fence;
use crate::holders::Holders;
use crate::key::{Key, Mode};
use crate::report::ServerReport;
use crate::session;
use crate::wait::thread::{WAIT_MAX, block_on};

/// How often a wait that can be cancelled looks whether it was.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A connection of its own that holds any number of locks; through a pooler, one at a time (see
/// [`Pooler`](crate::Pooler)).
///
/// Locks stack: a lock that is held can be taken again in the same mode, without asking the server,
/// and is released when it was unlocked as often. Exclusive and shared count apart, and a session
/// never excludes itself: it may hold a key in both modes at once.
///
/// Dropping the session closes its socket, upon which the server releases everything.
/// [`close`](Session::close) does the same and returns when it is done.
///
/// # Examples
///
/// ```no_run
/// use pglock::{Config, Mode, blocking::Session};
///
/// # fn example() -> pglock::Result<()> {
/// let mut session = Session::connect(&Config::from_env()?)?;
/// session.lock("accounts", Mode::Shared)?;
/// if session.try_lock((1, 42), Mode::Exclusive)? {
///     session.unlock((1, 42), Mode::Exclusive)?;
/// }
/// session.close()
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    session: session::Session,
    /// Whether there is a canceller.
    is_cancellable: bool,
}

impl Session {
    /// Connects, logs in, and makes the session fit to hold locks, within the configuration's
    /// `connect_timeout` for each address of the host. The look-up of the host's name is beside that.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Config`](crate::ErrorKind::Config): a setting is missing, out of range or not
    ///   supported.
    /// - [`ErrorKind::Connect`](crate::ErrorKind::Connect), [`ErrorKind::Timeout`](crate::ErrorKind::Timeout):
    ///   the server cannot be reached or does not take the connection.
    /// - [`ErrorKind::Tls`](crate::ErrorKind::Tls): TLS is needed and cannot be had.
    /// - [`ErrorKind::Authentication`](crate::ErrorKind::Authentication): the login is refused, on either
    ///   side.
    /// - [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported): a standby, not PostgreSQL, or a pooler
    ///   that is not wanted; a [lease](Config::lease) before PostgreSQL 14; or settings of the session that the
    ///   server refuses.
    /// - [`ErrorKind::Protocol`](crate::ErrorKind::Protocol): the server does not keep to the protocol.
    pub fn connect(config: &Config) -> Result<Self> {
        Self::new(session::Session::connect(config))
    }

    /// Connects for one key.
    pub(super) fn connect_for(config: &Config, key: Key) -> Result<Self> {
        Self::new(session::Session::connect_for(config, key))
    }

    fn new(connecting: impl Future<Output = Result<session::Session>>) -> Result<Self> {
        let session = block_on(WAIT_MAX, connecting)?;
        Ok(Self { session, is_cancellable: false })
    }

    /// Takes the lock if no other session is in its way, and says whether it did.
    ///
    /// Through a transaction pooler, it waits for a server connection of the pool: for 5 s at most, upon which
    /// the session is lost.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfLockMemory`](crate::ErrorKind::OutOfLockMemory) or another error of the server,
    /// or [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a second lock through a pooler, after
    /// which the session can be used further; or one of a lost session:
    /// [`Error::is_lost`](crate::Error::is_lost).
    pub fn try_lock(&mut self, key: impl Into<Key>, mode: Mode) -> Result<bool> {
        block_on(WAIT_MAX, self.session.try_lock(key, mode))
    }

    /// Waits for the lock, for as long as it takes.
    ///
    /// The server queues the waiters of a key in the order of their arrival.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled),
    /// [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock),
    /// [`ErrorKind::OutOfLockMemory`](crate::ErrorKind::OutOfLockMemory) or another error of the server, or
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a second lock through a pooler, after
    /// which the lock is not held and the session can be used further; or one of a lost session:
    /// [`Error::is_lost`](crate::Error::is_lost).
    pub fn lock(&mut self, key: impl Into<Key>, mode: Mode) -> Result<()> {
        block_on(self.look_every(), self.session.lock(key, mode))
    }

    /// Waits for the lock until this much time has passed, and says whether it was acquired. No time at all
    /// means [`try_lock`](Session::try_lock).
    ///
    /// A little more time passes before the answer `false`: the request is withdrawn first. If the
    /// lock is granted at that moment, the answer is `true`.
    ///
    /// # Errors
    ///
    /// As [`lock`](Session::lock).
    pub fn lock_timeout(
        &mut self,
        key: impl Into<Key>,
        mode: Mode,
        timeout: Duration,
    ) -> Result<bool> {
        block_on(self.look_every(), self.session.lock_timeout(key, mode, timeout))
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
    /// As [`try_lock`](Session::try_lock), [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) if the token
    /// does not come in time, and [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) through a pooler.
    /// Without a token, the lock is not taken; if it was held before, it is held as it was.
    pub fn try_lock_fenced(&mut self, key: impl Into<Key>, mode: Mode) -> Result<Option<Fence>> {
        block_on(WAIT_MAX, self.session.try_lock_fenced(key, mode))
    }

    /// As [`lock`](Session::lock), with a fencing token taken after the lock, as
    /// [`try_lock_fenced`](Session::try_lock_fenced) has it.
    ///
    /// # Errors
    ///
    /// As [`lock`](Session::lock), [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) if the token does not
    /// come in time, and [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) through a pooler. Without a
    /// token, the lock is not taken; if it was held before, it is held as it was.
    pub fn lock_fenced(&mut self, key: impl Into<Key>, mode: Mode) -> Result<Fence> {
        block_on(self.look_every(), self.session.lock_fenced(key, mode))
    }

    /// Takes one level off the lock, and releases it with the last one. When this returns, the next
    /// session gets it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld) if the session does not hold the key in this mode;
    /// nothing is changed. Or an error of a lost session: [`Error::is_lost`](crate::Error::is_lost).
    pub fn unlock(&mut self, key: impl Into<Key>, mode: Mode) -> Result<()> {
        block_on(WAIT_MAX, self.session.unlock(key, mode))
    }

    /// How many levels of the lock the session holds, as far as it knows: it hears that it is lost when it
    /// asks the server next, at the latest by [`ping`](Session::ping).
    #[must_use]
    pub fn level(&self, key: impl Into<Key>, mode: Mode) -> u64 {
        self.session.level(key, mode)
    }

    /// Runs the work, and asks the server afterwards whether the session, and with it its locks, was there to
    /// the end. It is looked at before as well, without asking the server: nothing is begun on a session of
    /// which it is known that it is lost.
    ///
    /// An error does not mean that the work did not come to its end, but that it may not have been alone.
    ///
    /// # Errors
    ///
    /// One of a lost session: [`Error::is_lost`](crate::Error::is_lost).
    pub fn hold<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        block_on(WAIT_MAX, self.session.catch_up())?;
        let done = work();
        block_on(WAIT_MAX, self.session.confirm())?;
        Ok(done)
    }

    /// As [`hold`](Session::hold), for work that one key guards.
    pub(super) fn hold_key<T>(&mut self, key: Key, work: impl FnOnce() -> T) -> Result<T> {
        block_on(WAIT_MAX, self.session.holds(key))?;
        self.hold(work)
    }

    /// Asks the server for a sign of life, and says how long that took. It renews the
    /// [lease](Config::lease), if the session has one.
    ///
    /// # Errors
    ///
    /// One of a lost session: [`Error::is_lost`](crate::Error::is_lost). Or as
    /// [`holders`](Session::holders).
    pub fn ping(&mut self) -> Result<Duration> {
        block_on(WAIT_MAX, self.session.ping())
    }

    /// Asks the server who holds the key, and how many wait for it: see
    /// [`Session::holders`](crate::Session::holders).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Server`](crate::ErrorKind::Server) if the server refuses,
    /// [`ErrorKind::OutOfLockMemory`](crate::ErrorKind::OutOfLockMemory) if it has no room to look,
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if it lacks what that takes, as servers other
    /// than PostgreSQL may, after which the session can be used further; or one of a lost session:
    /// [`Error::is_lost`](crate::Error::is_lost).
    pub fn holders(&mut self, key: impl Into<Key>) -> Result<Holders> {
        block_on(WAIT_MAX, self.session.holders(key))
    }

    /// Asks the server for the advisory locks of the database: see
    /// [`Session::advisory_locks`](crate::Session::advisory_locks).
    ///
    /// # Errors
    ///
    /// As [`holders`](Session::holders).
    pub fn advisory_locks(&mut self) -> Result<AdvisoryLocks> {
        block_on(WAIT_MAX, self.session.advisory_locks())
    }

    /// As [`advisory_locks`](Session::advisory_locks), for those of one key.
    ///
    /// # Errors
    ///
    /// As [`holders`](Session::holders).
    pub fn advisory_locks_on(&mut self, key: impl Into<Key>) -> Result<AdvisoryLocks> {
        block_on(WAIT_MAX, self.session.advisory_locks_on(key))
    }

    /// Has the server end the session of this process, if it holds the key or waits for it, and says whether
    /// it does: see [`Session::terminate_holder`](crate::Session::terminate_holder).
    ///
    /// # Errors
    ///
    /// As [`Session::terminate_holder`](crate::Session::terminate_holder).
    pub fn terminate_holder(&mut self, key: impl Into<Key>, process_id: i32) -> Result<bool> {
        block_on(WAIT_MAX, self.session.terminate_holder(key, process_id))
    }

    /// Asks the server what it is and how it is set, as far as it matters to locks: see
    /// [`Session::diagnose`](crate::Session::diagnose).
    ///
    /// # Errors
    ///
    /// As [`holders`](Session::holders).
    pub fn diagnose(&mut self) -> Result<ServerReport> {
        block_on(WAIT_MAX, self.session.diagnose())
    }

    /// A handle that ends this session's waits from other threads.
    pub fn canceller(&mut self) -> Canceller {
        self.is_cancellable = true;
        Canceller(self.session.canceller())
    }

    /// Ends the session. When this returns, the server has released all of its locks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) if the server does not end the session within 10 s,
    /// and an error of a lost session ([`Error::is_lost`](crate::Error::is_lost)) if it was lost before: what
    /// its locks guarded was not guarded to the end.
    pub fn close(self) -> Result<()> {
        block_on(WAIT_MAX, self.session.close())
    }

    fn look_every(&self) -> Duration {
        if self.is_cancellable { LOOK_EVERY } else { WAIT_MAX }
    }
}

/// Ends the wait of the lock or session that it was made from.
///
/// It can be cloned, sent to other threads, and kept for longer than the session lives. It never does
/// anything to a wait that begins later.
///
/// # Examples
///
/// ```no_run
/// use pglock::{Config, ErrorKind, blocking::Lock};
///
/// # fn example() -> pglock::Result<()> {
/// let mut lock = Lock::connect(&Config::from_env()?, "nightly-report")?;
/// let canceller = lock.canceller();
/// std::thread::spawn(move || {
///     std::io::stdin().read_line(&mut String::new()).ok();
///     canceller.cancel();
/// });
/// match lock.lock() {
///     Err(error) if error.kind() == ErrorKind::Cancelled => println!("gave up"),
///     other => other?,
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Canceller(session::Canceller);

impl Canceller {
    /// Ends the wait that is going on, and returns at once. Does nothing if there is none.
    ///
    /// The waiter hears of it within 50 ms, has the server withdraw its request, and gets
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled); it may wait again. A lock that was granted before
    /// the server heard of the cancel stays granted: the waiter then gets it, as if this had come too late.
    pub fn cancel(&self) {
        self.0.ask();
    }
}
