//! Waiting by a task of tokio's.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Waker};

use tokio::runtime::Handle;
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// See [`Alarm`](super::Alarm). Its timer is only set when it has to be earlier: most times never come,
/// because the answer does.
pub(crate) struct Alarm {
    timer: Option<Timer>,
    runtime: Handle,
}

/// A timer, and whom it wakes.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    wakes: Waker,
}

impl Alarm {
    pub(super) fn new(runtime: Handle) -> Self {
        Self { timer: None, runtime }
    }

    pub(super) fn poll(&mut self, until: std::time::Instant, cx: &mut Context<'_>) -> bool {
        let until = Instant::from(until);
        if self.timer.as_ref().is_some_and(|timer| timer.is_set(until, cx)) {
            return false;
        }
        if self.timer.as_ref().is_some_and(Timer::is_broken) {
            // The socket is about to tell.
            cx.waker().wake_by_ref();
            return false;
        }
        // Between the end of a runtime's timers and that of its sockets, tokio answers whoever sets a timer
        // with a panic; and it does not say of a runtime that it ends.
        catch_unwind(AssertUnwindSafe(|| self.set(until, cx))).unwrap_or_else(|_| {
            cx.waker().wake_by_ref();
            false
        })
    }

    /// Sets the timer, and says whether it rings at once.
    fn set(&mut self, until: Instant, cx: &mut Context<'_>) -> bool {
        // Whoever polls may be on another runtime, which ends before.
        let _here = self.runtime.enter();
        let timer = self.timer.get_or_insert_with(|| Timer {
            sleep: Box::pin(sleep_until(until)),
            wakes: cx.waker().clone(),
        });
        if timer.sleep.is_elapsed() || timer.sleep.deadline() > until {
            timer.sleep.as_mut().reset(until);
        }
        timer.wakes.clone_from(cx.waker());
        // Where tokio holds a busy task back, it would not set the timer: nobody would ever notice.
        pin!(unconstrained(timer.sleep.as_mut())).poll(cx).is_ready()
    }
}

impl Timer {
    /// Whether it is going to wake this task early enough.
    fn is_set(&self, until: Instant, cx: &Context<'_>) -> bool {
        self.sleep.deadline() <= until
            && !self.sleep.is_elapsed()
            && self.wakes.will_wake(cx.waker())
    }

    /// Whether it has rung too early: so all timers do when their runtime ends, where none may be set again.
    fn is_broken(&self) -> bool {
        self.sleep.is_elapsed() && self.sleep.deadline() > Instant::now()
    }
}
