//! A lock that is held, for as long as its guard lives.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};

use tokio::sync::oneshot;

use super::core::SessionId;
use super::driver::Message;
use super::fate::Fate;
use super::{Shared, Told, no_answer};
use crate::error::{Error, Result};
use crate::fence::Fence;
use crate::key::{Key, Mode};
use crate::session::LockId;

/// A lock that a [`LockManager`](crate::LockManager) holds for whoever has this.
///
/// Dropping it releases the lock at once: the next task of this process gets it, or the server is told. The
/// server hears of it while the runtime runs. [`unlock`](Guard::unlock) does the same and returns when it
/// is done.
///
/// It borrows nothing and can be sent to other tasks and threads. It keeps its manager's sessions alive.
#[must_use = "the lock is released when the guard is dropped"]
pub struct Guard {
    shared: Arc<Shared>,
    session: SessionId,
    lock: LockId,
    fate: Arc<Fate>,
    /// Whether the lock was given back already.
    released: bool,
}

impl Guard {
    pub(super) fn new(
        shared: Arc<Shared>,
        session: SessionId,
        lock: LockId,
        fate: Arc<Fate>,
    ) -> Self {
        Self { shared, session, lock, fate, released: false }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Key {
        self.lock.key
    }

    /// How this guard has the key.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.lock.mode
    }

    /// Whether the lock is held, as far as this side knows: a moment ago, the session that holds it was
    /// there, and its [lease](crate::Config::lease), if it has one, had not run out.
    ///
    /// This does not wait, so it is true while the network is silent and nobody has noticed.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.fate.error().is_none()
    }

    /// Completes when the session that holds the lock is gone, with the reason. Until then the lock is
    /// held.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(manager: pglock::LockManager) -> pglock::Result<()> {
    /// let guard = manager.lock("leader").await?;
    /// let reason = guard.lost().await;
    /// eprintln!("not the leader any more: {reason}");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn lost(&self) -> Error {
        self.about(self.fate.ended().await)
    }

    /// Runs the work for as long as the lock is held: if it is lost first, the work is dropped and the
    /// reason returned.
    ///
    /// Before each step of the work, the session's socket is looked at: a system call that does not wait. If
    /// something has come, the session reads it first. So no step begins after the server's word that the
    /// session is over has come.
    ///
    /// # Errors
    ///
    /// One of a lost session: [`Error::is_lost`]; or [`ErrorKind::Closed`](crate::ErrorKind::Closed) if
    /// the manager was closed meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the work. The lock stays held.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn work() {}
    /// # async fn example(manager: pglock::LockManager) -> pglock::Result<()> {
    /// let guard = manager.lock("nightly-report").await?;
    /// guard.hold(work()).await?;
    /// guard.unlock().await
    /// # }
    /// ```
    pub async fn hold<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        self.look().await?;
        let mut work = pin!(work);
        let done = {
            let mut lost = pin!(self.lost());
            let mut look = None;
            poll_fn(|cx| {
                // The work may be woken before the task that would notice the loss.
                if look.is_none() && self.fate.may_have_news() {
                    look = Some(self.ask_for_a_look());
                }
                if let Some(looked) = &mut look {
                    // A session that cannot say so is over.
                    let _ = ready!(Pin::new(looked).poll(cx));
                    look = None;
                }
                if let Some(error) = self.fate.error() {
                    return Poll::Ready(Err(self.about(error)));
                }
                match lost.as_mut().poll(cx) {
                    Poll::Ready(error) => Poll::Ready(Err(error)),
                    Poll::Pending => work.as_mut().poll(cx).map(Ok),
                }
            })
            .await?
        };
        // Work that kept the thread busy may have outlived the lock: that is no success.
        self.look().await?;
        Ok(done)
    }

    /// Takes a fencing token, by which storage can tell this holder from one of the past.
    ///
    /// The token costs a write to the server's log, and waits until that is on disk, and on the standbys
    /// that the server is set to wait for: for 30 s at most. Meanwhile the session that holds the lock
    /// does nothing else: other keys that are tried or released on it wait as well, and a
    /// [lease](crate::Config::lease) that is over before the token is there ends the session.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) if it does not come in time, and
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) through a pooler: the lock stays held.
    /// Or an error of a lost session: [`Error::is_lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing: the token is withdrawn, or taken and forgotten.
    pub async fn fencing_token(&self) -> Result<Fence> {
        let (done, fence) = oneshot::channel();
        self.shared.tell(self.session, Message::Fence(self.lock, done));
        match fence.await {
            Ok(fence) => fence,
            Err(_) => Err(self.lost().await),
        }
    }

    /// Releases the lock. When this returns, the next one has it: a task of this process that waited for
    /// it, or another session.
    ///
    /// # Errors
    ///
    /// One of a lost session ([`Error::is_lost`]) if it was lost before: what the lock guarded was not
    /// guarded to the end.
    ///
    /// # Cancel safety
    ///
    /// The lock is released, also if this future is dropped before it is done.
    pub async fn unlock(mut self) -> Result<()> {
        let (caller, told) = oneshot::channel();
        self.released = true;
        self.give_back(Some(caller));
        let told = told.await.unwrap_or_else(|_| Told::Failed(no_answer()));
        match (self.fate.error(), told) {
            (Some(error), _) | (None, Told::Failed(error)) => Err(self.about(error)),
            (None, _) => Ok(()),
        }
    }

    /// Makes sure that the session is alive as far as this side can know.
    async fn look(&self) -> Result<()> {
        let looked = self.ask_for_a_look().await;
        match (self.fate.error(), looked) {
            (Some(error), _) => Err(self.about(error)),
            (None, Ok(())) => Ok(()),
            // The session has just ended.
            (None, Err(_)) => Err(self.lost().await),
        }
    }

    fn ask_for_a_look(&self) -> oneshot::Receiver<()> {
        let (done, looked) = oneshot::channel();
        self.shared.tell(self.session, Message::Look(done));
        looked
    }

    fn give_back(&self, caller: Option<oneshot::Sender<Told>>) {
        let (session, key) = (self.session, self.lock.key);
        self.shared.with(|core, now| core.release(session, key, caller, now));
    }

    fn about(&self, error: Error) -> Error {
        error.context(format!("{} lock on key {}", self.lock.mode, self.lock.key))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.released {
            self.give_back(None);
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("key", &self.lock.key)
            .field("mode", &self.lock.mode)
            .field("is_held", &self.is_held())
            .finish_non_exhaustive()
    }
}
