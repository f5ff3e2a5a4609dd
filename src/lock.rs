//! One key on a session of its own.

use std::future::Future;
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::fence::Fence;
use crate::holders::Holders;
use crate::key::{Key, Mode};
use crate::session::{Canceller, Session};

/// A lock on one key, with a connection of its own.
///
/// It asks the server once for each acquisition and release, and starts no task, unless a future is
/// dropped while its request is at the server. A program that needs many keys at a time puts them on
/// one [`Session`].
///
/// Locks stack: what was locked twice is released by the second unlock. Exclusive and shared count
/// apart.
///
/// Dropping the lock closes its connection, upon which the server releases it; where a request is still being
/// withdrawn whose future was dropped, when that is done, within 10 s.
/// [`close`](Lock::close) does the same and returns when it is done.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use pglock::{Config, Lock};
///
/// # async fn example() -> pglock::Result<()> {
/// let config: Config = "postgresql://app:secret@db.example/app".parse()?;
/// let mut lock = Lock::connect(&config, "nightly-report").await?;
/// if lock.lock_timeout(Duration::from_secs(10)).await? {
///     // No other process is here now.
///     lock.unlock().await?;
/// }
/// lock.close().await
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
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the socket. Nothing was locked.
    pub async fn connect(config: &Config, key: impl Into<Key>) -> Result<Self> {
        let key = key.into();
        let session = Session::connect_for(config, key).await?;
        Ok(Self { session, key })
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// How many levels of the lock are held in this mode, as far as is known: see
    /// [`lost`](Lock::lost).
    #[must_use]
    pub fn level(&self, mode: Mode) -> u64 {
        self.session.level(self.key, mode)
    }

    /// Takes the lock exclusively if no other session is in the way, and says whether it did.
    ///
    /// # Errors
    ///
    /// As [`Session::try_lock`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; a lock granted meanwhile is released.
    pub async fn try_lock(&mut self) -> Result<bool> {
        self.session.try_lock(self.key, Mode::Exclusive).await
    }

    /// Takes the lock shared if no other session is in the way, and says whether it did. A session
    /// that waits for it exclusively is in the way as well.
    ///
    /// # Errors
    ///
    /// As [`Session::try_lock`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; a lock granted meanwhile is released.
    pub async fn try_lock_shared(&mut self) -> Result<bool> {
        self.session.try_lock(self.key, Mode::Shared).await
    }

    /// Waits until the lock is held exclusively, for as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Session::lock`].
    ///
    /// # Cancel safety
    ///
    /// As [`Session::lock`]: a dropped wait leaves the server's queue, and a lock granted meanwhile
    /// is released.
    pub async fn lock(&mut self) -> Result<()> {
        self.session.lock(self.key, Mode::Exclusive).await
    }

    /// Waits until the lock is held shared, for as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Session::lock`].
    ///
    /// # Cancel safety
    ///
    /// As [`Session::lock`]: a dropped wait leaves the server's queue, and a lock granted meanwhile
    /// is released.
    pub async fn lock_shared(&mut self) -> Result<()> {
        self.session.lock(self.key, Mode::Shared).await
    }

    /// Waits for the lock, exclusively, until this much time has passed, and says whether it was
    /// acquired. No time at all means [`try_lock`](Lock::try_lock).
    ///
    /// # Errors
    ///
    /// As [`Session::lock`].
    ///
    /// # Cancel safety
    ///
    /// As [`Session::lock`]: a dropped wait leaves the server's queue, and a lock granted meanwhile
    /// is released.
    pub async fn lock_timeout(&mut self, timeout: Duration) -> Result<bool> {
        self.session.lock_timeout(self.key, Mode::Exclusive, timeout).await
    }

    /// Waits for the lock, shared, until this much time has passed, and says whether it was acquired.
    /// No time at all means [`try_lock_shared`](Lock::try_lock_shared).
    ///
    /// # Errors
    ///
    /// As [`Session::lock`].
    ///
    /// # Cancel safety
    ///
    /// As [`Session::lock`]: a dropped wait leaves the server's queue, and a lock granted meanwhile
    /// is released.
    pub async fn lock_shared_timeout(&mut self, timeout: Duration) -> Result<bool> {
        self.session.lock_timeout(self.key, Mode::Shared, timeout).await
    }

    /// As [`try_lock`](Lock::try_lock), with a fencing token: `None` if the lock is not free.
    ///
    /// # Errors
    ///
    /// As [`Session::try_lock_fenced`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; a lock granted meanwhile is released.
    pub async fn try_lock_fenced(&mut self) -> Result<Option<Fence>> {
        self.session.try_lock_fenced(self.key, Mode::Exclusive).await
    }

    /// As [`lock`](Lock::lock), with a fencing token.
    ///
    /// # Errors
    ///
    /// As [`Session::lock_fenced`].
    ///
    /// # Cancel safety
    ///
    /// As [`Session::lock`]: a dropped wait leaves the server's queue, and a lock granted meanwhile
    /// is released.
    pub async fn lock_fenced(&mut self) -> Result<Fence> {
        self.session.lock_fenced(self.key, Mode::Exclusive).await
    }

    /// Takes one level off the exclusive lock, and releases it with the last one. When this returns,
    /// the next session gets it.
    ///
    /// # Errors
    ///
    /// As [`Session::unlock`]: above all [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld).
    ///
    /// # Cancel safety
    ///
    /// As [`Session::unlock`]: a release that was sent takes place.
    pub async fn unlock(&mut self) -> Result<()> {
        self.session.unlock(self.key, Mode::Exclusive).await
    }

    /// Takes one level off the shared lock, and releases it with the last one. When this returns, the
    /// next session gets it.
    ///
    /// # Errors
    ///
    /// As [`Session::unlock`]: above all [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld).
    ///
    /// # Cancel safety
    ///
    /// As [`Session::unlock`]: a release that was sent takes place.
    pub async fn unlock_shared(&mut self) -> Result<()> {
        self.session.unlock(self.key, Mode::Shared).await
    }

    /// Asks the server who holds the key, and how many wait for it.
    ///
    /// # Errors
    ///
    /// As [`Session::holders`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(mut lock: pglock::Lock) -> pglock::Result<()> {
    /// if !lock.try_lock().await? {
    ///     // Such as: process 4711 of app "nightly" at 10.0.0.7 holds it exclusively since
    ///     // 2026-11-25 02:10:03 UTC or earlier; 3 wait
    ///     eprintln!("{}", lock.holders().await?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn holders(&mut self) -> Result<Holders> {
        self.session.holders(self.key).await
    }

    /// A handle that ends this lock's waits from elsewhere.
    pub fn canceller(&mut self) -> Canceller {
        self.session.canceller()
    }

    /// Completes when the session is gone, with the reason. Until then what is held stays held.
    /// Meanwhile, heartbeats keep its [lease](Config::lease), if it has one.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(mut lock: pglock::Lock) -> pglock::Result<()> {
    /// lock.lock().await?;
    /// let reason = lock.lost().await;
    /// eprintln!("not the leader any more: {reason}");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn lost(&mut self) -> Error {
        self.session.lost().await
    }

    /// Runs the work for as long as the lock's session lives: if it is lost first, the work is
    /// dropped and the reason returned. Meanwhile, heartbeats keep its [lease](Config::lease), if it has
    /// one.
    ///
    /// Before each step of the work, the session's socket is looked at: a system call that does not wait.
    /// So no step begins after the server's word that the session is over has come. What the work has
    /// started elsewhere (another task, a thread) is not ended with it.
    ///
    /// The session is looked at after the work as well: an error does not mean that the work did not come to
    /// its end, but that it may not have been alone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld) if the lock is held in neither mode: the
    /// work is then not begun. Or one of a lost session: [`Error::is_lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the work. The lock stays held.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn work() {}
    /// # async fn example(mut lock: pglock::Lock) -> pglock::Result<()> {
    /// lock.lock().await?;
    /// lock.hold(work()).await?;
    /// lock.unlock().await
    /// # }
    /// ```
    pub async fn hold<T>(&mut self, work: impl Future<Output = T>) -> Result<T> {
        self.session.hold_key(self.key, work).await
    }

    /// Ends the connection. When this returns, the server has released the lock.
    ///
    /// # Errors
    ///
    /// As [`Session::close`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future closes the socket, upon which the server releases the lock.
    pub async fn close(self) -> Result<()> {
        self.session.close().await
    }
}
