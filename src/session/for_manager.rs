//! What only a manager asks of a session: many calls at once, one of many locks, and news of the session.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Instant;

use super::advisory::LockId;
use super::batch::{Batch, Call};
use super::choice::{Choice, Range};
use super::machine::{Ask, Held, Outcome, cannot_lock};
use super::{Place, Session, abandoned};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, ServerError};
use crate::fence::Fence;
use crate::net::TellTale;

impl Session {
    /// Connects for keys that are not known yet.
    pub(crate) async fn connect_for_manager(config: &Config) -> Result<Self> {
        let mut session = Self::connect_as(config, "pglock", "manager").await?;
        if let Place::Here(wire) = &mut session.place {
            wire.wait_for_pooler();
        }
        Ok(session)
    }

    /// Whether calls can be made [together](Session::make).
    pub(crate) fn takes_batches(&self) -> bool {
        matches!(&self.place, Place::Here(wire) if !wire.may_be_pooled())
    }

    /// Makes calls for locks of which each is named once, in one round trip, and says of each whether its lock
    /// is held. What failed is not held either.
    ///
    /// Dropping this future ends the session: nobody would know what it holds.
    pub(crate) async fn make(&mut self, calls: Vec<Call>) -> Result<Vec<(Call, Result<bool>)>> {
        self.settled().await?;
        let batch = Batch::new(calls);
        for call in batch.calls() {
            if let Call::Unlock(lock) = call {
                self.books.strike(lock);
            }
        }
        let whole = Whole { ask: Some(Ask::Look(batch.query().into())), session: self };
        let results = match whole.await? {
            Outcome::Row(row) => batch.results(&row),
            Outcome::Failed(error) => return self.make_singly(&batch, &error).await,
            _ => None,
        };
        let results = results.ok_or_else(|| self.gone(unreadable_batch()))?;
        let mut held = Vec::with_capacity(results.len());
        for (call, returned) in results {
            match call {
                Call::TryLock(lock) if returned => self.books.enter(lock),
                Call::TryLock(_) => {}
                Call::Unlock(_) if returned => {}
                Call::Unlock(lock) => return Err(self.gone_without(lock)),
            }
            held.push((call, Ok(returned && matches!(call, Call::TryLock(_)))));
        }
        Ok(held)
    }

    /// Makes the calls of a batch whose query failed. That says of none what became of it; what was locked
    /// before the failure stays locked.
    async fn make_singly(
        &mut self,
        batch: &Batch,
        error: &ServerError,
    ) -> Result<Vec<(Call, Result<bool>)>> {
        for call in batch.calls().filter(|_| !cannot_lock(error)) {
            self.perform(Ask::Settle(call.lock()), None).await?;
        }
        let mut held = Vec::new();
        for call in batch.calls() {
            let result = match call {
                Call::TryLock(lock) => self.try_lock(lock.key, lock.mode).await,
                Call::Unlock(_) => Ok(false),
            };
            match result {
                Err(error) if error.is_lost() => return Err(error),
                result => held.push((call, result)),
            }
        }
        Ok(held)
    }

    /// Takes the first of the locks that is free, if there is one. The session must not hold any of them.
    ///
    /// Dropping this future withdraws the request; after an error of the server, that ends the session.
    pub(crate) async fn try_any(&mut self, choice: &Arc<Choice>) -> Result<Option<LockId>> {
        let Some(first) = choice.locks().next() else { return Ok(None) };
        self.settled().await?;
        self.check_room(first)?;
        match self.perform(Ask::TryAny(Arc::clone(choice)), None).await? {
            Outcome::AcquiredOne(lock) => {
                self.books.enter(lock);
                Ok(Some(lock))
            }
            Outcome::Failed(error) => {
                // Which of them was taken before the error, if one was, is not known.
                if !cannot_lock(&error) && !self.holds_one_lock() {
                    for lock in choice.locks() {
                        self.perform(Ask::Settle(lock), None).await?;
                    }
                }
                Err(self.refused(&format!("a lock of class {}", choice.class), error))
            }
            _ => Ok(None),
        }
    }

    /// The second numbers of the keys that are locked by anybody.
    pub(crate) async fn locked(&mut self, range: Range) -> Result<Vec<i32>> {
        self.look(range.query(), &format!("keys of class {}", range.class), Range::locked).await
    }

    /// Takes a token for a lock that is held, without another level.
    pub(crate) async fn token_for_held(&mut self, lock: LockId) -> Result<Fence> {
        self.settled().await?;
        self.check_fences(lock)?;
        self.token(lock, Held::Before, None).await
    }

    /// Whether no request is being withdrawn elsewhere.
    pub(crate) fn is_here(&self) -> bool {
        matches!(&self.place, Place::Here(_))
    }

    /// Until when the locks are certain, if that is not for as long as nothing else is heard.
    pub(crate) fn certain_until(&self) -> Option<Instant> {
        match &self.place {
            Place::Here(wire) => wire.certain_until(),
            Place::Away(_) | Place::Gone(_) => None,
        }
    }

    /// Waits between requests, until it is time for a sign of life, or until the session is over.
    pub(crate) async fn rest(&mut self) -> Result<()> {
        self.rest_watchfully(&AtomicBool::new(false)).await
    }

    /// Gives a sign of life.
    pub(crate) async fn heartbeat(&mut self) -> Result<()> {
        self.perform(Ask::Heartbeat, None).await.map(|_| ())
    }

    /// What tells elsewhere whether something has come that this session has not read.
    pub(crate) fn tell_tale(&self) -> Option<TellTale> {
        match &self.place {
            Place::Here(wire) => wire.tell_tale(),
            Place::Away(_) | Place::Gone(_) => None,
        }
    }

    /// The server did not have a lock that was acquired here.
    fn gone_without(&mut self, lock: LockId) -> Error {
        let error = match &self.place {
            Place::Here(wire) => wire.not_held(lock),
            Place::Away(_) | Place::Gone(_) => abandoned(),
        };
        self.gone(error)
    }
}

/// A batch that is under way. Dropped before its outcome is known, it ends the session.
struct Whole<'a> {
    session: &'a mut Session,
    /// What is still to be sent.
    ask: Option<Ask>,
}

impl Future for Whole<'_> {
    type Output = Result<Outcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ask = self.ask.take();
        let Place::Here(wire) = &mut self.session.place else {
            return Poll::Ready(Err(abandoned()));
        };
        let outcome = match ask {
            Some(ask) => wire.poll_ask(ask, cx),
            None => wire.poll_outcome(cx),
        };
        outcome.map_err(|error| self.session.gone(error))
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if matches!(&self.session.place, Place::Here(wire) if wire.is_busy()) {
            self.session.gone(abandoned());
        }
    }
}

/// What is locked by now, nobody knows.
fn unreadable_batch() -> Error {
    Error::new(
        ErrorKind::Protocol,
        "the server gave an answer to several calls that cannot be read",
    )
    .lost()
}
