//! Waiting by the thread itself.
//!
//! A socket of such a thread waits in its system call for as long as its [`patience`] lasts. When that is
//! over, it says [`Poll::Pending`]; so, of all that is polled, nothing goes on but by time, and whoever has a
//! time to watch looks at the clock. [`block_on`] polls anew, until there is a result.
//!
//! What is polled here must wait for nothing else: nobody would wake it, and the thread would spin.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::{Elapsed, now};

/// Longest wait in one system call, if nothing else ends it.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(1);
/// Shortest one: the system takes no time at all for all time.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// For how long sockets wait.
#[derive(Clone, Copy)]
struct Patience {
    until: Option<Instant>,
    /// In one system call.
    at_most: Duration,
}

thread_local! {
    /// Nothing unless the thread waits.
    static PATIENCE: Cell<Option<Patience>> = const { Cell::new(None) };
}

/// Waits for the result. There is a look at what else may end the wait as often as this.
pub(crate) fn block_on<T>(look_every: Duration, work: impl Future<Output = T>) -> T {
    let _restore = be_patient(Patience { until: None, at_most: look_every });
    let mut work = pin!(work);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = work.as_mut().poll(&mut cx) {
            return result;
        }
    }
}

#[cfg(feature = "async")]
pub(super) fn is_waiting() -> bool {
    PATIENCE.get().is_some()
}

/// Is not done at first, so that whoever has a time to watch looks at the clock.
pub(super) async fn look_up() {
    let mut has_looked = false;
    poll_fn(|_| if mem::replace(&mut has_looked, true) { Poll::Ready(()) } else { Poll::Pending })
        .await;
}

/// Drops the work if it is not done by then.
pub(super) async fn timeout_at<T>(
    until: Instant,
    work: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let _restore = no_longer_than(until);
        match work.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Ok(result)),
            Poll::Pending if until <= now() => Poll::Ready(Err(Elapsed)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Has sockets wait until this time at most, until what it returns is dropped.
pub(super) fn no_longer_than(until: Instant) -> Restore {
    let Some(patience) = PATIENCE.get() else { return Restore(None) };
    let until = patience.until.map_or(until, |outer| outer.min(until));
    be_patient(Patience { until: Some(until), ..patience })
}

/// How long a socket may wait in one system call, here and now.
pub(crate) fn patience() -> Duration {
    let Some(Patience { until, at_most }) = PATIENCE.get() else { return WAIT_MIN };
    let left = until.map(|until| until.saturating_duration_since(now()));
    left.map_or(at_most, |left| left.min(at_most)).max(WAIT_MIN)
}

/// How much time there is until the work is given up, if it ever is.
pub(crate) fn time_left() -> Option<Duration> {
    let until = PATIENCE.get().and_then(|patience| patience.until);
    until.map(|until| until.saturating_duration_since(now()).max(WAIT_MIN))
}

fn be_patient(patience: Patience) -> Restore {
    Restore(PATIENCE.replace(Some(patience)))
}

/// Brings back the patience that was, also if the work panics.
#[must_use]
pub(super) struct Restore(Option<Patience>);

impl Drop for Restore {
    fn drop(&mut self) {
        PATIENCE.set(self.0);
    }
}
