//! What a task does with a session while it asks for nothing: it watches over it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::task::unconstrained;

use super::machine::Ask;
use super::wire::Rest;
use super::{Attempt, Place, Session};
#[cfg(doc)]
use crate::config::Config;
use crate::error::{Error, Result};
use crate::key::Key;

impl Session {
    /// Completes when the session is gone, with the reason. Until then the session's locks are held.
    /// Meanwhile, heartbeats keep its [lease](Config::lease), if it has one.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    pub async fn lost(&mut self) -> Error {
        self.watch(&AtomicBool::new(false)).await
    }

    /// Runs the work for as long as the session lives: if it is lost first, the work is dropped and
    /// the reason returned. Meanwhile, heartbeats keep its [lease](Config::lease), if it has one.
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
    /// One of a lost session: [`Error::is_lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the work. The session keeps its locks.
    pub async fn hold<T>(&mut self, work: impl Future<Output = T>) -> Result<T> {
        self.catch_up().await?;
        let mut work = pin!(work);
        let done = {
            let unheard = AtomicBool::new(false);
            let mut lost = pin!(self.watch(&unheard));
            poll_fn(|cx| match lost.as_mut().poll(cx) {
                Poll::Ready(error) => Poll::Ready(Err(error)),
                // It may be that the session is over. The runtime is about to tell.
                Poll::Pending if unheard.load(Ordering::Relaxed) => Poll::Pending,
                Poll::Pending => work.as_mut().poll(cx).map(Ok),
            })
            .await?
        };
        // Work that kept the thread busy may have outlived the lock: that is no success.
        self.catch_up().await?;
        Ok(done)
    }

    /// As [`hold`](Session::hold), for work that one key guards.
    pub(crate) async fn hold_key<T>(
        &mut self,
        key: Key,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        self.holds(key).await?;
        self.hold(work).await
    }

    /// As [`lost`](Session::lost). Each time it is polled, it notes whether something has come that it cannot
    /// know yet.
    async fn watch(&mut self, unheard: &AtomicBool) -> Error {
        loop {
            if let Err(error) = self.rest_watchfully(unheard).await {
                return error;
            }
            let mut heartbeat = self.perform(Ask::Heartbeat, None);
            let alive = poll_fn(|cx| {
                // As at rest: what else the task does must not keep the answer from being read.
                let polled = pin!(unconstrained(&mut heartbeat)).poll(cx);
                let is_unheard = polled.is_pending() && heartbeat.has_unheard();
                unheard.store(is_unheard, Ordering::Relaxed);
                polled
            });
            if let Err(error) = alive.await {
                return error;
            }
        }
    }

    pub(super) async fn rest_watchfully(&mut self, unheard: &AtomicBool) -> Result<()> {
        let wire = self.ready().await?;
        match poll_fn(|cx| wire.poll_rest(cx, unheard)).await {
            Rest::Over(error) => Err(self.gone(error)),
            Rest::HeartbeatDue => Ok(()),
        }
    }
}

impl Attempt<'_> {
    fn has_unheard(&self) -> bool {
        matches!(&self.session.place, Place::Here(wire) if wire.has_unheard())
    }
}
