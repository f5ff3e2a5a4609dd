//! Ends a wait from elsewhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

#[cfg(feature = "async")]
use tokio::sync::Notify;

/// Ends the wait of the lock or session that it was made from.
///
/// It can be cloned, sent to other tasks, and kept for longer than the session lives. It never does
/// anything to a wait that begins later.
///
/// # Examples
///
/// ```no_run
/// # #[cfg(feature = "async")]
/// use pglock::{Config, ErrorKind, Lock};
///
/// # #[cfg(feature = "async")]
/// # async fn example() -> pglock::Result<()> {
/// let mut lock = Lock::connect(&Config::from_env()?, "nightly-report").await?;
/// let canceller = lock.canceller();
/// tokio::spawn(async move {
///     tokio::signal::ctrl_c().await.ok();
///     canceller.cancel().await;
/// });
/// match lock.lock().await {
///     Err(error) if error.kind() == ErrorKind::Cancelled => println!("gave up"),
///     other => other?,
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Canceller(Arc<Signal>);

#[cfg(feature = "async")]
impl Canceller {
    /// Ends the wait that is going on, and returns when it has ended. Does nothing if there is none.
    ///
    /// The waiter gets [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), and may wait again. A
    /// lock that was granted before the server heard of the cancel stays granted: the waiter then
    /// gets it, as if this had come too late.
    ///
    /// It is the waiting future that talks to the server, so this completes only while that future is
    /// polled, or when it is dropped.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future does not take the cancel back; it only stops waiting for its effect.
    pub async fn cancel(&self) {
        let Some(wait) = self.0.ask() else { return };
        loop {
            let mut changed = std::pin::pin!(self.0.ended.notified());
            changed.as_mut().enable();
            if !self.0.is_asked(wait) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(feature = "blocking")]
impl Canceller {
    /// Asks the wait that is going on to end.
    pub(crate) fn ask(&self) {
        self.0.ask();
    }
}

/// What a waiter and its cancellers share.
#[derive(Debug, Default)]
pub(super) struct Signal {
    state: Mutex<State>,
    /// A thread that asks for the end does not wait for it.
    #[cfg(feature = "async")]
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the waits, so that a canceller knows the one that it ended from the next.
    wait: u64,
    phase: Phase,
    waiter: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    NoWait,
    Waiting,
    Asked,
}

impl Signal {
    pub(super) fn canceller(self: &Arc<Self>) -> Canceller {
        Canceller(Arc::clone(self))
    }

    /// Begins a wait that can be cancelled until the result is dropped.
    pub(super) fn wait(self: &Arc<Self>) -> Cancellable {
        let mut state = self.state();
        state.wait = state.wait.wrapping_add(1);
        state.phase = Phase::Waiting;
        Cancellable(Arc::clone(self))
    }

    fn ask(&self) -> Option<u64> {
        let mut state = self.state();
        if state.phase == Phase::NoWait {
            return None;
        }
        state.phase = Phase::Asked;
        let (wait, waiter) = (state.wait, state.waiter.take());
        // Waking runs code that is not ours, which may come back here.
        drop(state);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
        Some(wait)
    }

    #[cfg(feature = "async")]
    fn is_asked(&self, wait: u64) -> bool {
        let state = self.state();
        state.phase == Phase::Asked && state.wait == wait
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait that is going on.
pub(super) struct Cancellable(Arc<Signal>);

impl Cancellable {
    /// Whether the wait is to end. If not, the task is woken when it is.
    pub(super) fn poll_asked(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.state();
        if state.phase == Phase::Asked {
            return true;
        }
        match &mut state.waiter {
            Some(waiter) => waiter.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        false
    }

    pub(super) fn is_asked(&self) -> bool {
        self.0.state().phase == Phase::Asked
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.phase = Phase::NoWait;
        let waiter = state.waiter.take();
        drop(state);
        drop(waiter);
        #[cfg(feature = "async")]
        self.0.ended.notify_waiters();
    }
}
