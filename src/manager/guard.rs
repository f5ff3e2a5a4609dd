//! A lock that is held, for as long as its guard lives.

use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::oneshot;

use super::core::{Grant, SessionId};
use super::driver::Message;
use super::fate::Fate;
use super::{Shared, Told, no_answer};
use crate::error::{Error, Result};
use crate::fence::Fence;
use crate::key::{Key, Mode};
use crate::session::{LockId, Range};

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
    /// Whether the server had just told of the lock.
    fresh: bool,
    /// Whether the lock was given back already.
    released: bool,
}

impl Guard {
    pub(super) fn new(shared: Arc<Shared>, grant: &Grant, fate: Arc<Fate>) -> Self {
        let Grant { session, lock, fresh, .. } = *grant;
        Self { shared, session, lock, fate, fresh, released: false }
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
    /// held. If the manager was closed, the reason is [`ErrorKind::Closed`](crate::ErrorKind::Closed).
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
    /// session is over has come. A session that waits for a [token](Guard::fencing_token) keeps no work waiting
    /// unless something comes meanwhile.
    ///
    /// # Errors
    ///
    /// One of a lost session ([`Error::is_lost`]), which is [`ErrorKind::Closed`](crate::ErrorKind::Closed) if
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
        let done = unless_lost(work, self.lost(), &[self]).await?;
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
    /// One of a lost session ([`Error::is_lost`]) if it was lost before, also because the manager was closed:
    /// what the lock guarded was not guarded to the end.
    ///
    /// # Cancel safety
    ///
    /// The lock is released, also if this future is dropped before it is done.
    pub async fn unlock(mut self) -> Result<()> {
        let (caller, told) = oneshot::channel();
        self.released = true;
        self.give_back(Some(caller));
        self.confirmed(told).await
    }

    async fn confirmed(&self, told: oneshot::Receiver<Told>) -> Result<()> {
        let told = told.await.unwrap_or_else(|_| Told::Failed(no_answer()));
        match (self.fate.error(), told) {
            (Some(error), _) | (None, Told::Failed(error)) => Err(self.about(error)),
            (None, _) => Ok(()),
        }
    }

    /// Asks the session that holds the lock which keys are locked by anybody: their second numbers.
    pub(crate) async fn locked(&self, range: Range) -> Result<Vec<i32>> {
        let (done, locked) = oneshot::channel();
        self.shared.tell(self.session, Message::Locked(range, done));
        match locked.await {
            Ok(locked) => locked,
            Err(_) => Err(self.lost().await),
        }
    }

    /// Another guard for what this one has, which then has nothing left to release.
    pub(crate) fn transfer(&mut self) -> Self {
        let released = mem::replace(&mut self.released, true);
        let (shared, fate) = (Arc::clone(&self.shared), Arc::clone(&self.fate));
        Self { shared, session: self.session, lock: self.lock, fate, fresh: false, released }
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released
    }

    /// The session that holds the lock.
    pub(super) fn session(&self) -> SessionId {
        self.session
    }

    /// Why the lock is lost, if it is: as [`is_held`](Guard::is_held) knows.
    pub(super) fn error(&self) -> Option<Error> {
        self.fate.error().map(|error| self.about(error))
    }

    /// Whether the server had just told of the lock when it was granted.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether the session is alive as far as this side can know. It is asked only if it may be over without
    /// having said so: a lock goes from task to task without the server being asked, whose last word may have
    /// come already.
    pub(crate) async fn is_there(&self) -> bool {
        self.look().await.is_ok()
    }

    /// Makes sure of the same, and says why it is not so.
    pub(super) async fn look(&self) -> Result<()> {
        // A session that is busy, as with a token that waits for standbys, has no time to look.
        let looked = if self.fate.may_have_news() { self.ask_for_a_look().await } else { Ok(()) };
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

    /// Why the session is gone, as whoever had the lock is to hear it. It is gone as well where the manager was
    /// closed.
    fn about(&self, error: Error) -> Error {
        error.context(self.lock.to_string()).lost()
    }
}

/// What the work comes to, unless one of these guards, which share no session, is lost before.
pub(super) async fn unless_lost<T>(
    work: impl Future<Output = T>,
    lost: impl Future<Output = Error>,
    guards: &[&Guard],
) -> Result<T> {
    let (mut work, mut lost) = (pin!(work), pin!(lost));
    let mut looks = Vec::new();
    poll_fn(|cx| {
        // The work may be woken before the task that would notice the loss.
        if looks.is_empty() {
            let may_have_news = guards.iter().filter(|guard| guard.fate.may_have_news());
            looks.extend(may_have_news.map(|guard| guard.ask_for_a_look()));
        }
        // A session that cannot say so is over.
        looks.retain_mut(|looked| Pin::new(looked).poll(cx).is_pending());
        if !looks.is_empty() {
            return Poll::Pending;
        }
        if let Some(error) = guards.iter().find_map(|guard| guard.error()) {
            return Poll::Ready(Err(error));
        }
        match lost.as_mut().poll(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => work.as_mut().poll(cx).map(Ok),
        }
    })
    .await
}

/// Releases the locks of one manager together. If one was lost before, this says why.
pub(super) async fn unlock_all(mut guards: Vec<Guard>) -> Result<()> {
    let Some(shared) = guards.first().map(|guard| Arc::clone(&guard.shared)) else {
        return Ok(());
    };
    let told: Vec<_> = shared.with(|core, now| {
        let release = |guard: &mut Guard| {
            let (caller, told) = oneshot::channel();
            guard.released = true;
            core.release(guard.session, guard.lock.key, Some(caller), now);
            told
        };
        guards.iter_mut().map(release).collect()
    });
    let mut result = Ok(());
    for (guard, told) in guards.iter().zip(told) {
        result = result.and(guard.confirmed(told).await);
    }
    result
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
