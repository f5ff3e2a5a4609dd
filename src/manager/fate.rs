//! What becomes of a session, for all who have guards on it.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::timeout_anywhere;
use crate::error::{Error, ErrorKind};
use crate::net::TellTale;
use crate::session::Clocks;
use crate::wait::now;

/// Whether a session lives: known to its guards without asking it.
#[derive(Debug, Default)]
pub(super) struct Fate {
    state: Mutex<State>,
    ended: Notify,
    /// Where the session lives: whoever has a guard may be elsewhere.
    runtime: OnceLock<Handle>,
}

#[derive(Debug, Default)]
struct State {
    /// Why the session is over. Once there, it stays.
    error: Option<Error>,
    /// While the session has a lease.
    certain: Option<Certain>,
    /// While it lives.
    tell_tale: Option<TellTale>,
}

/// Until when a session is certain of its locks.
#[derive(Debug)]
struct Certain {
    until: Instant,
    /// How long the machine slept since that was said.
    slept: Duration,
    clocks: Clocks,
}

impl Fate {
    /// The session stands.
    pub(super) fn begin(&self, tell_tale: Option<TellTale>, certain_until: Option<Instant>) {
        self.runtime.get_or_init(Handle::current);
        self.state().tell_tale = tell_tale;
        self.renew(certain_until);
    }

    /// The session has heard from the server.
    pub(super) fn renew(&self, certain_until: Option<Instant>) {
        self.state().certain = certain_until.map(Certain::new);
    }

    /// The session is over.
    pub(super) fn end(&self, why: Error) {
        let mut state = self.state();
        state.error.get_or_insert(why);
        state.tell_tale = None;
        drop(state);
        self.ended.notify_waiters();
    }

    /// Whether the session may have something to read that it has not told of.
    pub(super) fn may_have_news(&self) -> bool {
        self.state().tell_tale.as_ref().is_none_or(TellTale::has_news)
    }

    /// Why the session is over, if it is. A lease that has run out counts, even if the session has not had
    /// the time to notice.
    pub(super) fn error(&self) -> Option<Error> {
        let mut state = self.state();
        if state.error.is_none() && state.certain.as_mut().is_some_and(Certain::is_over) {
            state.error = Some(expired());
        }
        state.error.clone()
    }

    /// Completes when the session is over.
    pub(super) async fn ended(&self) -> Error {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            if let Some(error) = self.error() {
                return error;
            }
            match self.certain_until() {
                None => ended.await,
                // The session may be busy with a request that outlasts the lease: nobody else would tell.
                Some(until) => _ = timeout_anywhere(until, ended, self.runtime.get()).await,
            }
        }
    }

    /// Until when the session is certain of its locks, on a clock that stood still while the machine slept.
    fn certain_until(&self) -> Option<Instant> {
        let state = self.state();
        let certain = state.certain.as_ref()?;
        certain.until.checked_sub(certain.slept)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Certain {
    fn new(until: Instant) -> Self {
        Self { until, slept: Duration::ZERO, clocks: Clocks::look() }
    }

    fn is_over(&mut self) -> bool {
        self.slept = self.slept.saturating_add(self.clocks.slept());
        now().checked_add(self.slept).is_none_or(|now| self.until <= now)
    }
}

fn expired() -> Error {
    Error::new(ErrorKind::Lost, "no answer of the server renewed the lease in time").lost()
}
