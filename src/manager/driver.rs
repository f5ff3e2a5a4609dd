//! The task of one session: it does what the core orders, one thing after another, and says what came of
//! it.
//!
//! ```text
//! connecting ──▶ resting ◀──▶ doing what was ordered
//!     │             │               │
//!     └─────────────┴───────────────┴──▶ over, when it is told to close, nobody has the manager
//!                                        or a guard any more, or the session is lost
//! ```

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::core::{Answer, Core, Order, RequestId, SessionId};
use super::fate::Fate;
use super::{Shared, Told, no_answer};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::fence::Fence;
use crate::session::{CLOSE_WITHIN, Call, LockId, Range, Session};
use crate::trace;

/// How many calls are made together, so that none waits for long for the answer to all of them.
const CALLS_MAX: usize = 1_024;

/// What a session is told: by the core, or by somebody who has a guard on it.
pub(super) enum Message {
    Order(Order),
    /// Take a token for a lock that is held.
    Fence(LockId, oneshot::Sender<Result<Fence>>),
    /// See which keys are locked by anybody.
    Locked(Range, oneshot::Sender<Result<Vec<i32>>>),
    /// Look whether the session is alive, without asking the server.
    Look(oneshot::Sender<()>),
}

/// What ends a session.
enum End {
    /// It was told to close, or nobody is left to tell it anything.
    Ordered,
    /// What it asked for was given up in the queue of a pooler: the server has nothing of it that could end.
    Unserved,
    Lost(Error),
}

/// What keeps a request from being seen through.
enum Halt {
    /// Nobody wants what it is for.
    Withdrawn,
    /// The session is to end.
    Closed,
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Lost(error)
    }
}

pub(super) struct Driver {
    /// Whoever has the manager or a guard keeps it, not its sessions.
    pub(super) shared: Weak<Shared>,
    pub(super) id: SessionId,
    pub(super) fate: Arc<Fate>,
    pub(super) messages: UnboundedReceiver<Message>,
    /// A message that was taken too early.
    pub(super) put_back: Option<Message>,
}

impl Driver {
    /// Opens a session, and drives it to its end.
    pub(super) async fn drive(mut self, config: Config) {
        let opened = self.open(&config).await;
        let is_opened = opened.is_ok();
        let why = match opened {
            Ok(session) => self.work(session).await,
            Err(End::Lost(error)) => Some(error),
            Err(End::Ordered | End::Unserved) => None,
        };
        if let Some(error) = &why {
            self.fate.end(error.clone());
        }
        if let Some(shared) = self.shared.upgrade() {
            let pause = shared.ended(self.id, why.clone());
            if let (false, Some(error)) = (is_opened, &why) {
                trace::not_connected(error, pause);
            }
        }
        // Everybody knows.
        self.shared = Weak::new();
    }

    async fn open(&mut self, config: &Config) -> Result<Session, End> {
        match self.unless_halted(Session::connect_for_manager(config)).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(End::Ordered),
        }
    }

    /// Does what it is told until the session is over. Says why, if it was not to be.
    async fn work(&mut self, mut session: Session) -> Option<Error> {
        self.fate.begin(session.tell_tale(), session.certain_until());
        let one_key_each = session.holds_one_lock();
        if let Some(shared) = self.shared.upgrade() {
            shared.with(|core, now| core.opened(self.id, one_key_each, now));
        }
        let fate = Arc::clone(&self.fate);
        loop {
            match unless_over(&fate, self.step(&mut session)).await {
                Ok(()) => {
                    self.renew_fate(&session);
                    if let Some(error) = self.said_to_be_lost() {
                        trace::lost(None, &error);
                        return Some(error);
                    }
                }
                Err(End::Ordered) => return session.close().await.err(),
                Err(End::Unserved) => return None,
                Err(End::Lost(error)) => return Some(error),
            }
        }
    }

    async fn step(&mut self, session: &mut Session) -> Result<(), End> {
        match self.next(session).await? {
            Some(Message::Look(done)) => {
                session.catch_up().await?;
                // Whoever asked may have gone.
                let _ = done.send(());
            }
            Some(Message::Fence(lock, mut done)) => {
                // A token may take as long as a standby that is not there.
                let is_in_vain = |cx: &mut Context<'_>| done.poll_closed(cx).is_ready();
                let token = self.unless_ended(session.token_for_held(lock), is_in_vain).await;
                if let Some(fence) = token.map(still_there).transpose()? {
                    let _ = done.send(fence);
                }
            }
            Some(Message::Locked(range, done)) => {
                let asked = self.unless_ended(session.locked(range), |_| false).await;
                if let Some(locked) = asked.map(still_there).transpose()? {
                    let _ = done.send(locked);
                }
            }
            Some(Message::Order(Order::TryAny(attempt))) => self.try_any(attempt, session).await?,
            Some(Message::Order(Order::Try(lock))) if session.holds_one_lock() => {
                let tried = self.unless_halted(session.try_lock(lock.key, lock.mode)).await;
                let answer = match tried {
                    Ok(tried) => still_there(tried)?.map_or_else(Answer::Failed, Answer::of),
                    Err(halt) => given_up(session, halt).await?,
                };
                self.answer([(lock, answer)], session);
            }
            Some(Message::Order(Order::Try(lock))) => {
                self.make(Call::TryLock(lock), session).await?;
            }
            Some(Message::Order(Order::Unlock(lock))) => {
                self.make(Call::Unlock(lock), session).await?;
            }
            Some(Message::Order(Order::Wait(lock))) => {
                // A wait is not silent, and there is nothing yet that could be lost with a lease.
                self.fate.renew(None);
                self.wait(lock, session).await?;
            }
            Some(Message::Order(Order::Probe(lock))) => {
                let asked = self.unless_ended(session.holders(lock.key), |_| false).await;
                let Some(holders) = asked.map(still_there).transpose()? else { return Ok(()) };
                // Who cannot know lets others have their turn.
                let awaited = holders.map_or(true, |holders| holders.waiting() > 0);
                self.answer([(lock, Answer::Probed { awaited })], session);
            }
            Some(Message::Order(Order::Inspect(id, key))) => {
                let asked = self.unless_ended(session.holders(key), |_| false).await;
                let holders = asked.map(still_there).transpose()?;
                if let (Some(holders), Some(shared)) = (holders, self.shared.upgrade()) {
                    shared.with(|core, now| core.inspected(self.id, id, holders, now));
                }
            }
            // A wait was over before this came.
            Some(Message::Order(Order::Withdraw)) => {}
            // It is seen through: whoever reads the session is the one who tells of its end.
            None => session.heartbeat().await?,
            Some(Message::Order(Order::Close)) => return Err(End::Ordered),
        }
        Ok(())
    }

    /// Makes this call, together with those that are ordered behind it: so what many tasks want takes no
    /// more round trips than what one wants.
    async fn make(&mut self, first: Call, session: &mut Session) -> Result<(), End> {
        let mut calls = vec![first];
        if let Some(shared) = self.shared.upgrade() {
            // Whoever orders several things at once has done so by then.
            drop(shared.state());
        }
        while calls.len() < CALLS_MAX && session.takes_batches() {
            match self.messages.try_recv() {
                Ok(Message::Order(Order::Try(lock))) => calls.push(Call::TryLock(lock)),
                Ok(Message::Order(Order::Unlock(lock))) => calls.push(Call::Unlock(lock)),
                Ok(other) => {
                    self.put_back = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let results = match calls.as_slice() {
            [Call::TryLock(lock)] => {
                vec![(first, still_there(session.try_lock(lock.key, lock.mode).await)?)]
            }
            [Call::Unlock(lock)] => {
                let unlocked = still_there(session.unlock(lock.key, lock.mode).await)?;
                vec![(first, unlocked.map(|()| false))]
            }
            _ => session.make(calls).await?,
        };
        let answers = results.into_iter().map(|(call, result)| {
            let answer = match (call, result) {
                (_, Err(error)) => Answer::Failed(error),
                (Call::TryLock(_), Ok(acquired)) => Answer::of(acquired),
                (Call::Unlock(_), Ok(_)) => Answer::Released,
            };
            (call.lock(), answer)
        });
        self.answer(answers, session);
        Ok(())
    }

    async fn try_any(&mut self, attempt: RequestId, session: &mut Session) -> Result<(), End> {
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        let choice = shared.with(|core, now| core.choose(self.id, attempt, now));
        drop(shared);
        let Some(choice) = choice else { return Ok(()) };
        let tried = if session.holds_one_lock() {
            self.unless_halted(session.try_any(&choice)).await
        } else {
            Ok(session.try_any(&choice).await)
        };
        let acquired = match tried {
            Ok(tried) => still_there(tried)?,
            Err(halt) => given_up(session, halt).await.map(|_| Ok(None))?,
        };
        self.tell(session, |core, now| core.answered_any(self.id, attempt, acquired, now));
        Ok(())
    }

    /// The next message; or nothing, when it is time for a sign of life.
    async fn next(&mut self, session: &mut Session) -> Result<Option<Message>, End> {
        if let Some(message) = self.put_back.take() {
            return Ok(Some(message));
        }
        let mut rest = pin!(session.rest());
        poll_fn(|cx| match rest.as_mut().poll(cx) {
            Poll::Ready(rested) => Poll::Ready(rested.map(|()| None).map_err(End::Lost)),
            Poll::Pending => self.messages.poll_recv(cx).map(|message| match message {
                Some(message) => Ok(Some(message)),
                None => Err(End::Ordered),
            }),
        })
        .await
    }

    async fn wait(&mut self, lock: LockId, session: &mut Session) -> Result<(), End> {
        let waited = self.unless_halted(session.lock(lock.key, lock.mode)).await;
        let answer = match waited {
            Ok(waited) => still_there(waited)?.map_or_else(Answer::Failed, |()| Answer::Acquired),
            Err(halt) => given_up(session, halt).await?,
        };
        self.answer([(lock, answer)], session);
        Ok(())
    }

    /// What the future comes to, unless it is withdrawn before, or the session is told to close.
    async fn unless_halted<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Halt> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_halt(cx).map(Err),
        })
        .await
    }

    fn poll_halt(&mut self, cx: &mut Context<'_>) -> Poll<Halt> {
        loop {
            match self.messages.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Message::Order(Order::Withdraw))) => {
                    return Poll::Ready(Halt::Withdrawn);
                }
                Poll::Ready(Some(Message::Order(Order::Close)) | None) => {
                    return Poll::Ready(Halt::Closed);
                }
                // A session that wants a lock holds nothing that anybody could ask about.
                Poll::Ready(Some(_)) => {}
            }
        }
    }

    /// What the future comes to, unless the session is to end, or it is in vain.
    async fn unless_ended<T>(
        &self,
        future: impl Future<Output = T>,
        mut is_in_vain: impl FnMut(&mut Context<'_>) -> bool,
    ) -> Option<T> {
        let (mut future, mut ended) = (pin!(future), pin!(self.fate.ended()));
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if is_in_vain(cx) => Poll::Ready(None),
            Poll::Pending => ended.as_mut().poll(cx).map(|_| None),
        })
        .await
    }

    /// Why those who have guards were told that the session is lost, if they were. It may have lived on: a
    /// lease can run out while a request is under way, which the server takes for a sign of life.
    fn said_to_be_lost(&self) -> Option<Error> {
        self.fate.error().filter(Error::is_lost)
    }

    /// What was certain before a request is withdrawn stays so, and no longer: the server has not been heard
    /// since.
    fn renew_fate(&self, session: &Session) {
        if session.is_here() {
            self.fate.renew(session.certain_until());
        }
    }

    fn answer(&self, answers: impl IntoIterator<Item = (LockId, Answer)>, session: &Session) {
        self.tell(session, |core, now| {
            for (lock, answer) in answers {
                core.answered(self.id, lock.key, answer, now);
            }
        });
    }

    /// Tells the core what has come of an order, unless the session is over.
    fn tell(
        &self,
        session: &Session,
        tell: impl FnOnce(&mut Core<oneshot::Sender<Told>>, Instant),
    ) {
        // Before somebody gets a guard that relies on it.
        self.renew_fate(session);
        if self.said_to_be_lost().is_some() {
            return;
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.with(tell);
        }
    }
}

/// If the runtime drops the task, the session ends with it, before anybody can say why.
impl Drop for Driver {
    fn drop(&mut self) {
        self.fate.end(no_answer());
        if let Some(shared) = self.shared.upgrade() {
            shared.ended(self.id, Some(no_answer()));
        }
    }
}

impl Answer {
    fn of(acquired: bool) -> Self {
        if acquired { Self::Acquired } else { Self::NotAcquired }
    }
}

/// What a step comes to, unless those who have guards know before that the session is over: a lease may run
/// out while a request is under way, whose answer nobody needs then. If they were told because all sessions are
/// to close, the step may take as long as closing may.
async fn unless_over(fate: &Fate, step: impl Future<Output = Result<(), End>>) -> Result<(), End> {
    let over = async {
        let error = fate.ended().await;
        if error.is_lost() {
            return error;
        }
        sleep(CLOSE_WITHIN).await;
        not_closed()
    };
    let (mut step, mut over) = (pin!(step), pin!(over));
    poll_fn(|cx| match step.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(done),
        Poll::Pending => over.as_mut().poll(cx).map(|error| Err(End::Lost(error))),
    })
    .await
}

/// What comes of a request for a lock that was halted, and so dropped, once that is settled.
async fn given_up(session: &mut Session, halt: Halt) -> Result<Answer, End> {
    match (session.settled().await, halt) {
        (Ok(()), Halt::Withdrawn) => Ok(Answer::NotAcquired),
        (Ok(()), Halt::Closed) => Err(End::Ordered),
        // No other settling ends so.
        (Err(error), _) if error.kind() == ErrorKind::Timeout => Err(End::Unserved),
        (Err(error), _) => Err(End::Lost(error)),
    }
}

fn not_closed() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the server did not answer a request within 10 s, so that its session could not be closed; its locks \
         may still be held",
    )
    .lost()
}

/// Tells errors that leave the session as it was from those that end it.
fn still_there<T>(result: Result<T>) -> Result<Result<T>, End> {
    match result {
        Err(error) if error.is_lost() => Err(End::Lost(error)),
        other => Ok(other),
    }
}
