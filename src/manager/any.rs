//! One of several locks, for the recipes that are built on the manager.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::Timeout;

use super::core::{Awaited, RequestId};
use super::{Asked, Guard, LockManager, Shared, outcome, unserved};
use crate::error::Result;
use crate::key::Key;
use crate::session::Choice;

impl LockManager {
    /// Takes one of the locks if one is free that nobody of this process has to do with, in one round trip.
    ///
    /// Dropping this future withdraws the request; a lock granted meanwhile is released.
    pub(crate) async fn try_any(&self, choice: Choice) -> Result<Option<Guard>> {
        let what = format!("a lock of class {}", choice.class);
        let (caller, told) = oneshot::channel();
        let (id, asked) = self
            .shared
            .with(|core, now| (core.request_any(choice, caller, now), Asked::of(core, now)));
        let _request = Request { shared: &self.shared, id };
        match self.shared.unless_unserved(asked, told).await {
            Some(told) => outcome(told, what),
            None => Err(unserved().context(what)),
        }
    }

    /// Whether a key is waited for, and how.
    pub(crate) fn awaited(&self, key: Key) -> Awaited {
        self.shared.state().core.awaited(key)
    }

    /// Polls the future until then, also where no runtime is.
    pub(crate) fn timeout_at<F: Future>(&self, until: Instant, future: F) -> Timeout<F> {
        self.shared.timeout_at(until, future)
    }

    /// How often, and for how long, something may go from task to task within this process.
    pub(crate) fn hand_over_limits(&self) -> (u32, Duration) {
        let limits = self.shared.with(|core, _| core.limits());
        (limits.hand_overs, limits.hand_overs_for)
    }
}

/// A request for one of several locks. It is given up when this is dropped, unless it was answered.
struct Request<'a> {
    shared: &'a Arc<Shared>,
    id: RequestId,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.shared.with(|core, _| core.give_up_any(self.id));
    }
}
