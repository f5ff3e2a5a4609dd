//! What becomes of a session, for all who have guards on it.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::error::{Error, ErrorKind};
use crate::session::now;

/// Whether a session lives: known to its guards without asking it.
#[derive(Debug, Default)]
pub(super) struct Fate {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Why the session is over. Once there, it stays.
    error: Option<Error>,
    /// Until when the session is certain of its locks, if it has a lease.
    certain_until: Option<Instant>,
}

impl Fate {
    /// The session has heard from the server.
    pub(super) fn renew(&self, certain_until: Option<Instant>) {
        self.state().certain_until = certain_until;
    }

    /// The session is over.
    pub(super) fn end(&self, why: Error) {
        self.state().error.get_or_insert(why);
        self.ended.notify_waiters();
    }

    /// Why the session is over, if it is. A lease that has run out counts, even if the session has not had
    /// the time to notice.
    pub(super) fn error(&self) -> Option<Error> {
        let mut state = self.state();
        if state.error.is_none() && state.certain_until.is_some_and(|until| until <= now()) {
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
            ended.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn expired() -> Error {
    Error::new(ErrorKind::Lost, "no answer of the server renewed the lease in time").lost()
}
