//! Several locks at once: all of them, or none.
//!
//! [`lock_all`](LockManager::lock_all) takes one lock after the other, in the order of the keys. A session
//! that waits holds nothing, so the server never sees a circle of waits and could not end one either. It is
//! the order that excludes circles: whoever waits for a key has locks on smaller keys only. Of all who wait
//! for each other, whoever holds the greatest key of all waits for nobody.
//!
//! [`try_lock_all`](LockManager::try_lock_all) asks for all at once, which no order has to make safe: nobody
//! waits.
//!
//! Through a pooler each lock takes a session as well, and sessions have no order. So sets are collected
//! one at a time there, by whoever has the turn; who waits for the turn holds nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{MutexGuard, oneshot};

use super::core::Patience;
use super::guard::{self, Guard};
use super::{Asked, LockManager, Request, no_answer, outcome, unserved};
use crate::error::{Error, ErrorKind, Result};
use crate::fence::Fence;
use crate::key::{Key, Mode};
use crate::session::LockId;
use crate::wait::after;

impl LockManager {
    /// Waits until it has all of these locks, for as long as it takes: also for the server to come back, if
    /// it cannot be reached for a while.
    ///
    /// They are taken exclusively, one after the other in the [order of the keys](Key#order), whatever the
    /// order in which they are named; a key that is named twice counts once. So programs that take several
    /// keys by `lock_all` never wait for each other in a circle; unless one of them holds other locks
    /// meanwhile. Each lock that is free takes a round trip. If one is lost while the next is waited for, all
    /// are taken anew. Of no keys, there is nothing to wait for.
    ///
    /// Through a transaction pooler, one set at a time is collected.
    ///
    /// # Errors
    ///
    /// As [`lock`](LockManager::lock), after which none of them is held; and [`ErrorKind::Unsupported`] if
    /// there are more keys than sessions, through a transaction pooler.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future withdraws the request; what was locked meanwhile is released.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn transfer() {}
    /// # async fn example(manager: pglock::LockManager) -> pglock::Result<()> {
    /// let accounts = manager.lock_all([(7, 42), (7, 11)]).await?;
    /// accounts.hold(transfer()).await?;
    /// accounts.unlock().await
    /// # }
    /// ```
    pub async fn lock_all<K: Into<Key>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<GuardSet> {
        // Without a limit, there are locks or an error in the end.
        self.collect(in_order(keys), None).await?.ok_or_else(no_answer)
    }

    /// As [`lock_all`](LockManager::lock_all) until this much time has passed: `None` if not all of them
    /// were free by then.
    ///
    /// # Errors
    ///
    /// As [`lock_all`](LockManager::lock_all); and, if the time has passed and the server could not be
    /// reached, why not.
    ///
    /// # Cancel safety
    ///
    /// As [`lock_all`](LockManager::lock_all).
    pub async fn lock_all_timeout<K: Into<Key>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        timeout: Duration,
    ) -> Result<Option<GuardSet>> {
        let keys = in_order(keys);
        if timeout.is_zero() {
            return self.try_all(keys).await;
        }
        // A time too far for the clock is no limit.
        self.collect(keys, after(timeout)).await
    }

    /// Takes all of these locks if all of them are free: `None` if a task of this process or somebody else
    /// has one of them, or waits for one.
    ///
    /// The requests go out together, a thousand at a time, so they take no longer than one. For that
    /// moment, those that are free are taken, also if others are not: of two who try the same keys at the
    /// same time, neither may get them. A key that is named twice counts once. Of no keys, all are free.
    ///
    /// # Errors
    ///
    /// As [`try_lock`](LockManager::try_lock), after which none of them is held.
    ///
    /// # Cancel safety
    ///
    /// As [`lock_all`](LockManager::lock_all).
    pub async fn try_lock_all<K: Into<Key>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Option<GuardSet>> {
        self.try_all(in_order(keys)).await
    }

    async fn try_all(&self, keys: BTreeSet<Key>) -> Result<Option<GuardSet>> {
        loop {
            match self.ask_for_all(&keys).await? {
                Some(set) if !set.is_there().await => {}
                tried => return Ok(tried),
            }
        }
    }

    async fn ask_for_all(&self, keys: &BTreeSet<Key>) -> Result<Option<GuardSet>> {
        let (requests, asked): (Vec<_>, _) = self.shared.with(|core, now| {
            let ask = |&key: &Key| {
                let (caller, told) = oneshot::channel();
                let lock = LockId { key, mode: Mode::Exclusive };
                let id = core.request(lock, Patience::None, caller, now);
                (Request { shared: &self.shared, key, id: Some(id) }, told)
            };
            (keys.iter().map(ask).collect(), Asked::of(core, now))
        });
        let mut guards = Vec::with_capacity(requests.len());
        for (mut request, told) in requests {
            let lock = LockId { key: request.key, mode: Mode::Exclusive };
            let Some(told) = self.shared.unless_unserved(asked, told).await else {
                return Err(unserved().context(lock.to_string()));
            };
            request.id = None;
            let Some(guard) = outcome(told, lock)? else { return Ok(None) };
            guards.push(guard);
        }
        Ok(Some(GuardSet { guards }))
    }

    async fn collect(
        &self,
        keys: BTreeSet<Key>,
        until: Option<Instant>,
    ) -> Result<Option<GuardSet>> {
        let mut turn = None;
        loop {
            let mut guards: Vec<Guard> = Vec::with_capacity(keys.len());
            for key in &keys {
                let room = self.room_for(keys.len())?;
                if room == Room::ForOneSet && turn.is_none() {
                    break;
                }
                match self.acquire(*key, Mode::Exclusive, Patience::Waits, until).await? {
                    Some(guard) => guards.push(guard),
                    None => return Ok(None),
                }
            }
            if guards.len() == keys.len() {
                let set = GuardSet { guards };
                match self.shared.until(until, set.is_there()).await {
                    Some(true) => return Ok(Some(set)),
                    // One was lost while the next was waited for.
                    Some(false) => continue,
                    None => return Ok(None),
                }
            }
            drop(guards);
            turn = self.turn(until).await;
            if turn.is_none() {
                return Ok(None);
            }
        }
    }

    /// The right to collect a set where sessions may be short, if it can be had in time.
    async fn turn(&self, until: Option<Instant>) -> Option<MutexGuard<'_, ()>> {
        self.shared.until(until, self.shared.turn_of_sets.lock()).await
    }

    fn room_for(&self, keys: usize) -> Result<Room> {
        let locks_max = self.shared.with(|core, _| core.locks_max());
        match locks_max {
            Some(max) if keys > max => Err(Error::new(
                ErrorKind::Unsupported,
                "in transactions, as through a pooler, each lock takes a session; allow the manager more",
            )
            .context(format!("{keys} locks on {max} sessions"))),
            Some(_) if keys > 1 => Ok(Room::ForOneSet),
            _ => Ok(Room::ForAny),
        }
    }
}

/// How many sets can be collected at a time, with no fear that each has what the other lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    ForOneSet,
    ForAny,
}

fn in_order<K: Into<Key>>(keys: impl IntoIterator<Item = K>) -> BTreeSet<Key> {
    keys.into_iter().map(Into::into).collect()
}

/// Several locks that a [`LockManager`] holds for whoever has this.
///
/// Dropping it releases all of them at once, as dropping a [`Guard`] does. [`unlock`](GuardSet::unlock) does
/// the same and returns when it is done.
#[must_use = "the locks are released when the set is dropped"]
pub struct GuardSet {
    /// In the order of their keys.
    guards: Vec<Guard>,
}

impl GuardSet {
    /// The keys, in their [order](Key#order), each once.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.guards.iter().map(Guard::key)
    }

    /// Whether all of them are held, as far as this side knows: see [`Guard::is_held`].
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.guards.iter().all(Guard::is_held)
    }

    /// Completes when one of them is lost, with the reason. Until then all are held.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    pub async fn lost(&self) -> Error {
        let mut lost: Vec<Pin<Box<dyn Future<Output = Error> + Send + '_>>> = Vec::new();
        for guard in self.one_on_each_session() {
            lost.push(Box::pin(guard.lost()));
        }
        poll_fn(|cx| {
            let over = lost.iter_mut().find_map(|lost| match lost.as_mut().poll(cx) {
                Poll::Ready(error) => Some(error),
                Poll::Pending => None,
            });
            over.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Runs the work for as long as all of them are held: if one is lost first, the work is dropped and the
    /// reason returned.
    ///
    /// # Errors
    ///
    /// As [`Guard::hold`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the work. The locks stay held.
    pub async fn hold<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let guards: Vec<_> = self.one_on_each_session().collect();
        let done = guard::unless_lost(work, self.lost(), &guards).await?;
        self.look().await?;
        Ok(done)
    }

    /// Takes a fencing token, by which storage can tell this holder from those of the past, of any of the
    /// keys: see [`Guard::fencing_token`].
    ///
    /// # Errors
    ///
    /// As [`Guard::fencing_token`], and [`ErrorKind::NotHeld`] if this is a set of no locks.
    ///
    /// # Cancel safety
    ///
    /// As [`Guard::fencing_token`].
    pub async fn fencing_token(&self) -> Result<Fence> {
        let mut lowest = None;
        // A token says that the session which took it held its locks by then. With the lowest, all did: had
        // one of the locks gone to somebody else before, that one's token would be higher.
        for guard in self.one_on_each_session() {
            let fence = guard.fencing_token().await?;
            lowest = Some(lowest.map_or(fence, |lowest| fence.min(lowest)));
        }
        lowest.ok_or_else(|| Error::new(ErrorKind::NotHeld, "a set of no locks has no token"))
    }

    /// Releases all of them. When this returns, the next ones have them.
    ///
    /// # Errors
    ///
    /// As [`Guard::unlock`], for the first that was lost before. All others are released.
    ///
    /// # Cancel safety
    ///
    /// The locks are released, also if this future is dropped before it is done.
    pub async fn unlock(self) -> Result<()> {
        guard::unlock_all(self.guards).await
    }

    /// See [`Guard::is_there`].
    async fn is_there(&self) -> bool {
        for guard in self.one_on_each_session() {
            if !guard.is_there().await {
                return false;
            }
        }
        true
    }

    async fn look(&self) -> Result<()> {
        for guard in self.one_on_each_session() {
            guard.look().await?;
        }
        Ok(())
    }

    /// The guards, but for those that share their fate with another one.
    fn one_on_each_session(&self) -> impl Iterator<Item = &Guard> {
        let mut sessions = BTreeSet::new();
        self.guards.iter().filter(move |guard| sessions.insert(guard.session()))
    }
}

impl fmt::Debug for GuardSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.guards).finish()
    }
}
