//! One key on a connection of its own.

use std::time::Duration;

use super::{Canceller, Session};
use crate::config::Config;
use crate::error::Result;
use crate::fence::Fence;
use crate::holders::Holders;
use crate::key::{Key, Mode};

/// A lock on one key, with a connection of its own.
///
/// It asks the server once for each acquisition and release. A program that needs many keys at a time puts
/// them on one [`Session`].
///
/// Locks stack: what was locked twice is released by the second unlock. Exclusive and shared count
/// apart.
///
/// Dropping the lock closes its connection, upon which the server releases it.
/// [`close`](Lock::close) does the same and returns when it is done.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use pglock::{Config, blocking::Lock};
///
/// # fn example() -> pglock::Result<()> {
/// let config: Config = "postgresql://app:secret@db.example/app".parse()?;
/// let mut lock = Lock::connect(&config, "nightly-report")?;
/// if lock.lock_timeout(Duration::from_secs(10))? {
///     // No other process is here now.
///     lock.unlock()?;
/// }
/// lock.close()
/// # }
/// ```
#[derive(Debug)]
pub struct Lock {
    session: Session,
    key: Key,
}

impl Lock {
    /// Connects a session for this key. Nothing is locked yet.
    ///
    /// # Errors
    ///
    /// As [`Session::connect`].
    pub fn connect(config: &Config, key: impl Into<Key>) -> Result<Self> {
        let key = key.into();
        let session = Session::connect_for(config, key)?;
        Ok(Self { session, key })
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// How many levels of the lock are held in this mode, as far as is known: see
    /// [`Session::level`].
    #[must_use]
    pub fn level(&self, mode: Mode) -> u64 {
        self.session.level(self.key, mode)
    }

    /// Takes the lock exclusively if no other session is in the way, and says whether it did.
    ///
    /// # Errors
    ///
    /// As [`Session::try_lock`].
    pub fn try_lock(&mut self) -> Result<bool> {
        self.session.try_lock(self.key, Mode::Exclusive)
    }

    /// Takes the lock shared if no other session is in the way, and says whether it did. A session
    /// that waits for it exclusively is in the way as well.
    ///
    /// # Errors
    ///
    /// As [`Session::try_lock`].
    pub fn try_lock_shared(&mut self) -> Result<bool> {
        self.session.try_lock(self.key, Mode::Shared)
    }

    /// Waits until the lock is held exclusively, for as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Session::lock`].
    pub fn lock(&mut self) -> Result<()> {
        self.session.lock(self.key, Mode::Exclusive)
    }

    /// Waits until the lock is held shared, for as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Session::lock`].
    pub fn lock_shared(&mut self) -> Result<()> {
        self.session.lock(self.key, Mode::Shared)
    }

    /// Waits for the lock, exclusively, until this much time has passed, and says whether it was
    /// acquired. No time at all means [`try_lock`](Lock::try_lock).
    ///
    /// # Errors
    ///
    /// As [`Session::lock`].
    pub fn lock_timeout(&mut self, timeout: Duration) -> Result<bool> {
        self.session.lock_timeout(self.key, Mode::Exclusive, timeout)
    }

    /// Waits for the lock, shared, until this much time has passed, and says whether it was acquired.
    /// No time at all means [`try_lock_shared`](Lock::try_lock_shared).
    ///
    /// # Errors
    ///
    /// As [`Session::lock`].
    pub fn lock_shared_timeout(&mut self, timeout: Duration) -> Result<bool> {
        self.session.lock_timeout(self.key, Mode::Shared, timeout)
    }

    /// As [`try_lock`](Lock::try_lock), with a fencing token: `None` if the lock is not free.
    ///
    /// # Errors
    ///
    /// As [`Session::try_lock_fenced`].
    pub fn try_lock_fenced(&mut self) -> Result<Option<Fence>> {
        self.session.try_lock_fenced(self.key, Mode::Exclusive)
    }

    /// As [`lock`](Lock::lock), with a fencing token.
    ///
    /// # Errors
    ///
    /// As [`Session::lock_fenced`].
    pub fn lock_fenced(&mut self) -> Result<Fence> {
        self.session.lock_fenced(self.key, Mode::Exclusive)
    }

    /// Takes one level off the exclusive lock, and releases it with the last one. When this returns,
    /// the next session gets it.
    ///
    /// # Errors
    ///
    /// As [`Session::unlock`]: above all [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld).
    pub fn unlock(&mut self) -> Result<()> {
        self.session.unlock(self.key, Mode::Exclusive)
    }

    /// Takes one level off the shared lock, and releases it with the last one. When this returns, the
    /// next session gets it.
    ///
    /// # Errors
    ///
    /// As [`Session::unlock`]: above all [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld).
    pub fn unlock_shared(&mut self) -> Result<()> {
        self.session.unlock(self.key, Mode::Shared)
    }

    /// Asks the server who holds the key, and how many wait for it.
    ///
    /// # Errors
    ///
    /// As [`Session::holders`].
    pub fn holders(&mut self) -> Result<Holders> {
        self.session.holders(self.key)
    }

    /// A handle that ends this lock's waits from other threads.
    pub fn canceller(&mut self) -> Canceller {
        self.session.canceller()
    }

    /// Runs the work while the lock is held, and asks the server afterwards whether it was to the end.
    ///
    /// An error does not mean that the work did not come to its end, but that it may not have been alone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld) if the lock is held in neither mode: the
    /// work is then not begun. Or one of a lost session: [`Error::is_lost`](crate::Error::is_lost).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn work() {}
    /// # fn example(mut lock: pglock::blocking::Lock) -> pglock::Result<()> {
    /// lock.lock()?;
    /// lock.hold(work)?;
    /// lock.unlock()
    /// # }
    /// ```
    pub fn hold<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        self.session.hold_key(self.key, work)
    }

    /// Asks the server for a sign of life, and says how long that took: see [`Session::ping`].
    ///
    /// # Errors
    ///
    /// As [`Session::ping`].
    pub fn ping(&mut self) -> Result<Duration> {
        self.session.ping()
    }

    /// Ends the connection. When this returns, the server has released the lock.
    ///
    /// # Errors
    ///
    /// As [`Session::close`].
    pub fn close(self) -> Result<()> {
        self.session.close()
    }
}
