//! What a future waits on: tokio's runtime, or the thread that polls it.
//!
//! Everything that talks to a server is written once, as futures. Who polls them decides how they wait:
//!
//! ```text
//! feature    polled by             a socket that has nothing        a time that has not come
//! async      a task of tokio's     says so, and wakes the task      is a timer, which wakes the task
//! blocking   thread::block_on      waits in its system call         is the limit of that system call
//! ```
//!
//! Where both features are on, the thread knows who polls; as it knows which of tokio's runtimes it is on.

#[cfg(feature = "async")]
mod task;
#[cfg(feature = "blocking")]
pub(crate) mod thread;

use std::future::Future;
#[cfg(feature = "blocking")]
use std::marker::PhantomData;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// The task that polls, on tokio's runtime.
    #[cfg(feature = "async")]
    Task,
    /// The thread that polls, in system calls.
    #[cfg(feature = "blocking")]
    Thread,
}

impl Waiter {
    /// Who waits for what is polled here and now.
    pub(crate) fn current() -> Self {
        #[cfg(all(feature = "async", feature = "blocking"))]
        if thread::is_waiting() {
            return Self::Thread;
        }
        #[cfg(feature = "async")]
        return Self::Task;
        #[cfg(not(feature = "async"))]
        return Self::Thread;
    }
}

/// The time is up.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// The time; on tokio's clock, which tests can stop, unless a thread waits: sockets do not wait by that.
pub(crate) fn now() -> Instant {
    match Waiter::current() {
        #[cfg(feature = "async")]
        Waiter::Task => tokio::time::Instant::now().into_std(),
        #[cfg(feature = "blocking")]
        Waiter::Thread => Instant::now(),
    }
}

/// The time after this much of it; nothing if that is too far for the clock.
pub(crate) fn after(time: Duration) -> Option<Instant> {
    now().checked_add(time)
}

/// Drops the work if it takes longer.
pub(crate) async fn timeout<T>(
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    Place::current().timeout_at(after(limit), work).await
}

/// Lets others have their turn, and whoever watches the time look at the clock.
pub(crate) async fn yield_now() {
    match Waiter::current() {
        #[cfg(feature = "async")]
        Waiter::Task => tokio::task::yield_now().await,
        #[cfg(feature = "blocking")]
        Waiter::Thread => thread::look_up().await,
    }
}

/// Has what is polled meanwhile wait until this time at most, if there is one.
#[inline]
pub(crate) fn no_longer_than<T>(until: Option<Instant>, poll: impl FnOnce() -> T) -> T {
    #[cfg(feature = "blocking")]
    let _restore = match (until, Waiter::current()) {
        (Some(until), Waiter::Thread) => Some(thread::no_longer_than(until)),
        _ => None,
    };
    #[cfg(not(feature = "blocking"))]
    let _ = until;
    poll()
}

/// Where something waits: the runtime that it began on.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    #[cfg(feature = "async")]
    Runtime(tokio::runtime::Handle),
    #[cfg(feature = "blocking")]
    Thread,
}

impl Place {
    /// Where what is polled here and now waits.
    pub(crate) fn current() -> Self {
        match Waiter::current() {
            #[cfg(feature = "async")]
            Waiter::Task => Self::Runtime(tokio::runtime::Handle::current()),
            #[cfg(feature = "blocking")]
            Waiter::Thread => Self::Thread,
        }
    }

    /// Polls something that lives here, whoever polls it.
    pub(crate) fn enter<T>(&self, poll: impl FnOnce() -> T) -> T {
        match self {
            #[cfg(feature = "async")]
            Self::Runtime(runtime) => {
                let _here = runtime.enter();
                poll()
            }
            #[cfg(feature = "blocking")]
            Self::Thread => poll(),
        }
    }

    /// As [`timeout`], until this time, with a timer that lives here. No time is no limit.
    pub(crate) async fn timeout_at<T>(
        &self,
        until: Option<Instant>,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let Some(until) = until else { return Ok(work.await) };
        match self {
            #[cfg(feature = "async")]
            Self::Runtime(_) => {
                let timeout = self.enter(|| tokio::time::timeout_at(until.into(), work));
                timeout.await.map_err(|_| Elapsed)
            }
            #[cfg(feature = "blocking")]
            Self::Thread => thread::timeout_at(until, work).await,
        }
    }

    /// Has a task of its own do the work; a thread that waits drops it.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Errand<T> {
        match self {
            #[cfg(feature = "async")]
            Self::Runtime(runtime) => Errand::Task(runtime.spawn(work)),
            #[cfg(feature = "blocking")]
            Self::Thread => {
                drop(work);
                Errand::Dropped(PhantomData)
            }
        }
    }
}

/// Work that is done elsewhere, whether or not somebody waits for its result.
#[derive(Debug)]
pub(crate) enum Errand<T> {
    #[cfg(feature = "async")]
    Task(tokio::task::JoinHandle<T>),
    #[cfg(feature = "blocking")]
    Dropped(PhantomData<T>),
}

impl<T> Errand<T> {
    /// The result; nothing if the work was given up, as it is at the end of a runtime. Not to be called again
    /// after that.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self {
            #[cfg(feature = "async")]
            Self::Task(task) => std::pin::Pin::new(task).poll(cx).map(Result::ok),
            #[cfg(feature = "blocking")]
            Self::Dropped(_) => {
                let _ = cx;
                Poll::Ready(None)
            }
        }
    }
}

/// Wakes a future when a time has come.
pub(crate) enum Alarm {
    #[cfg(feature = "async")]
    Task(task::Alarm),
    /// Nobody is woken. Sockets wait no longer than they are told: see [`no_longer_than`].
    #[cfg(feature = "blocking")]
    Thread,
}

impl Alarm {
    /// One that lives here.
    pub(crate) fn at(place: &Place) -> Self {
        match place {
            #[cfg(feature = "async")]
            Place::Runtime(runtime) => Self::Task(task::Alarm::new(runtime.clone())),
            #[cfg(feature = "blocking")]
            Place::Thread => Self::Thread,
        }
    }

    /// Whether it rang, at this time or before. If not, it is going to wake the caller.
    pub(crate) fn poll(&mut self, until: Instant, cx: &mut Context<'_>) -> bool {
        match self {
            #[cfg(feature = "async")]
            Self::Task(alarm) => alarm.poll(until, cx),
            #[cfg(feature = "blocking")]
            Self::Thread => {
                let _ = cx;
                until <= now()
            }
        }
    }
}
