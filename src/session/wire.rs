//! A socket and the machine that it feeds.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
#[cfg(feature = "async")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
#[cfg(feature = "async")]
use tokio::task::unconstrained;

#[cfg(feature = "manager")]
use super::advisory::LockId;
use super::lease::Clocks;
use super::machine::{Action, Ask, Loss, Machine, Outcome};
use crate::auth::AuthMethod;
use crate::error::{Error, ErrorKind, Result};
#[cfg(feature = "manager")]
use crate::net::TellTale;
use crate::net::{self, Route, Stream};
use crate::protocol::CancelKey;
use crate::report::{Holding, Link};
use crate::span::Span;
use crate::trace;
use crate::wait::{self, Alarm, after, now};

/// How long the server may take to end a session that was told to.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// Most that is read at a time, in bytes. What a lock asks for is answered in 16.
const READ_BYTES: usize = 256;
/// How often it is read at a time, before others get their turn. A server that goes on and on must not keep
/// the holder of a lock from its work.
const READS_MAX: usize = 32;

/// A session's socket, its machine, and whatever the machine has under way.
///
/// It is moved as a whole: whoever has it can go on where the last owner stopped.
pub(super) struct Wire {
    stream: Stream,
    machine: Machine,
    peer: Peer,
    /// Under a lease, they tell of a sleep.
    clocks: Option<Clocks>,
    /// The `CancelRequest` that is open. Dropping it early could let its signal hit a later request.
    cancel: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    /// What the machine waits for; nothing while there is news for it.
    waiting: Option<Waiting>,
    /// Rings at the machine's next time or before.
    alarm: Alarm,
    /// Where the socket is, the alarm, and the sockets of cancels.
    place: wait::Place,
    /// Whether TLS may hold back some of what was written.
    unflushed: bool,
    /// Why nothing more can be sent. What the server had to say may still be read.
    send_error: Option<io::Error>,
}

/// The machine has nothing to do until bytes have come, a `CancelRequest` has ended, or this time has.
#[derive(Clone, Copy)]
struct Waiting {
    until: Option<Instant>,
}

/// Who is at the other end.
#[derive(Clone)]
pub(super) struct Peer {
    /// As the user names it.
    pub(super) name: Arc<str>,
    pub(super) route: Route,
    pub(super) cancel_key: CancelKey,
    /// How the session was let in.
    pub(super) authentication: AuthMethod,
    /// Whether the login was bound to the TLS connection.
    pub(super) is_channel_bound: bool,
}

/// How long a thread waits for an answer at a time while a `CancelRequest` is open, whose end may come in several
/// pieces.
const TURN: Duration = Duration::from_millis(10);

impl Wire {
    /// Under a lease, with the clocks as they stood before the server was told of it.
    pub(super) fn new(
        stream: Stream,
        machine: Machine,
        peer: Peer,
        clocks: Option<Clocks>,
    ) -> Self {
        let place = wait::Place::current();
        Self {
            stream,
            machine,
            peer,
            clocks,
            cancel: None,
            waiting: None,
            alarm: Alarm::at(&place),
            place,
            unflushed: false,
            send_error: None,
        }
    }

    pub(super) fn peer_name(&self) -> &str {
        &self.peer.name
    }

    /// What this side knows of the connection.
    pub(super) fn link(&self) -> Link {
        Link {
            server: self.peer.name.to_string(),
            address: self.peer.route.address.to_string(),
            tls: self.stream.tls(),
            authentication: self.peer.authentication,
            is_channel_bound: self.peer.is_channel_bound,
            holding: match (self.machine.holds_one_lock(), self.machine.may_be_pooled()) {
                (true, _) => Holding::Transaction,
                (false, true) => Holding::SessionByQueries,
                (false, false) => Holding::SessionByCalls,
            },
            process_id: self.peer.cancel_key.process_id(),
        }
    }

    /// Whether locks are held in a transaction, one at a time.
    pub(super) fn holds_one_lock(&self) -> bool {
        self.machine.holds_one_lock()
    }

    /// See [`Machine::wait_for_pooler`].
    #[cfg(feature = "manager")]
    pub(super) fn wait_for_pooler(&mut self) {
        self.machine.wait_for_pooler();
    }

    /// Whether a pooler may stand before the server.
    pub(super) fn may_be_pooled(&self) -> bool {
        self.machine.may_be_pooled()
    }

    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.machine.is_idle()
    }

    /// Sends a request, unless the session turns out to be over; [`poll_outcome`](Self::poll_outcome)
    /// follows.
    pub(super) fn poll_ask(&mut self, ask: Ask, cx: &mut Context<'_>) -> Poll<Result<Outcome>> {
        let waits = self.stream.waits();
        // To look costs a thread system calls. A server of its own says nothing unasked but why it ends the
        // session, which is told before its answer; a pooler might send what it owes to somebody else.
        if !waits || self.may_be_pooled() {
            if let Poll::Ready(error) = self.poll_idle(cx) {
                return Poll::Ready(Err(error));
            }
        }
        let until = self.machine.ask(ask, now()).map_err(|error| {
            Error::new(ErrorKind::Lost, "the session was busy").with_source(error).lost()
        })?;
        self.waiting = Some(Waiting { until });
        self.poll_send(cx);
        let goes_on = waits
            || self.send_error.is_some()
            || until.is_some_and(|until| self.alarm.poll(until, cx));
        if goes_on {
            return self.poll_outcome(cx);
        }
        // There was nothing to read just now, and whatever comes wakes the task.
        Poll::Pending
    }

    /// Ends the wait that is under way, if there is one: see [`Machine::cancel`].
    pub(super) fn cancel(&mut self) {
        self.machine.cancel(now());
        self.waiting = None;
    }

    /// Drives the request that was asked to its outcome. Can be given up and taken up at any time.
    pub(super) fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome>> {
        // The time that it waits for may have stood still.
        self.count_sleep();
        let mut rounds = 0;
        loop {
            if let Some(Waiting { until }) = self.waiting {
                if self.has_to_send() {
                    self.poll_send(cx);
                }
                if rounds == READS_MAX {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                rounds += 1;
                let heard = wait::no_longer_than(until, || {
                    Ok(self.poll_cancel(cx) || self.poll_receive_in_turn(cx)?)
                })?;
                // The runtime rings late if a task that keeps waking itself is all that it looks at.
                let is_time = |until| until <= now() || self.alarm.poll(until, cx);
                if !heard && !until.is_some_and(is_time) {
                    return Poll::Pending;
                }
            }
            if let Some(outcome) = self.machine.take_outcome() {
                return Poll::Ready(Ok(outcome));
            }
            self.waiting = match self.machine.poll(now()).map_err(|loss| self.lost(loss))? {
                Action::Done(outcome) => return Poll::Ready(Ok(outcome)),
                Action::Wait { until } => Some(Waiting { until }),
                Action::SendCancel => {
                    let Peer { route, cancel_key, .. } = self.peer.clone();
                    self.cancel = Some(Box::pin(net::cancel(route, cancel_key)));
                    None
                }
            };
        }
    }

    /// Whether something has come that the runtime has not told of. An error is news as well, of which
    /// reading tells no more than that it is the end.
    pub(super) fn has_unheard(&self) -> bool {
        self.stream.has_news().unwrap_or(true)
    }

    /// Makes sure that [`poll_idle`](Self::poll_idle) sees what the server has sent by now.
    pub(super) async fn catch_up(&mut self) -> Result<()> {
        self.stream.catch_up().await.map_err(|error| self.ended(Some(error)))
    }

    /// Takes in what the server sent without being asked, which may be that the session is over.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        match self.take_in(cx) {
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    /// Says how often something was read.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Result<usize> {
        let mut reads = 0;
        loop {
            if !self.machine.is_drained() {
                self.count_sleep();
                self.machine.poll(now()).map_err(|loss| self.lost(loss))?;
            }
            if reads == READS_MAX {
                cx.waker().wake_by_ref();
                break;
            }
            if self.stream.waits() {
                match self.stream.has_news() {
                    Ok(true) => self.stream.look_again(),
                    Ok(false) => break,
                    Err(error) => return Err(self.ended(Some(error))),
                }
            }
            if !self.poll_receive(cx)? {
                break;
            }
            reads += 1;
        }
        self.count_sleep();
        self.machine.check_lease(now).map_err(|loss| self.lost(loss))?;
        Ok(reads)
    }

    /// Lets a lease run while the machine slept.
    #[inline]
    fn count_sleep(&mut self) {
        if self.clocks.is_some() {
            self.compare_clocks();
        }
    }

    /// Kept out of the way of sessions without a lease.
    #[cold]
    fn compare_clocks(&mut self) {
        let slept = self.clocks.as_mut().map(Clocks::slept).unwrap_or_default();
        if !slept.is_zero() {
            self.machine.slept(slept);
            // Timers stood still as well.
            self.waiting = None;
        }
    }

    /// Gives up what is under way and makes the books true: afterwards the lock that was asked for is
    /// not held.
    pub(super) async fn settle(mut self: Box<Self>) -> Result<Box<Self>> {
        self.machine.abandon(now());
        self.waiting = None;
        while !self.machine.is_idle() {
            poll_fn(|cx| self.poll_outcome(cx)).await?;
        }
        Ok(self)
    }

    /// Ends the session, and returns when the server has closed the socket: by then it has released
    /// the session's locks.
    pub(super) async fn close(mut self) -> Result<()> {
        self.machine.connection().terminate();
        let place = self.place.clone();
        let until = place.enter(|| after(CLOSE_WITHIN));
        match place.timeout_at(until, poll_fn(|cx| self.poll_end(cx))).await {
            Ok(ended) => ended,
            Err(_) => Err(self.error(
                ErrorKind::Timeout,
                "the server did not end the session within 10 s; its locks may still be held",
            )),
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            self.poll_send(cx);
            let received = self.machine.connection().received();
            received.clear();
            match ready!(pin!(self.stream.read_buf(received)).poll(cx)) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {}
                // A server that was killed, or a proxy, ends the socket without ending TLS.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
        }
    }

    fn has_to_send(&self) -> bool {
        self.unflushed || !self.machine.is_all_sent()
    }

    /// Sends what it can of what is outgoing. An error is kept until there is nothing more to read:
    /// the server's last words say more.
    fn poll_send(&mut self, cx: &mut Context<'_>) {
        while self.send_error.is_none() && !self.machine.connection().outgoing().is_empty() {
            let outgoing = self.machine.connection().outgoing();
            match Pin::new(&mut self.stream).poll_write(cx, outgoing) {
                Poll::Pending => return,
                Poll::Ready(Ok(0)) => self.send_error = Some(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.machine.connection().sent(count);
                    self.unflushed = self.stream.is_encrypted();
                }
                Poll::Ready(Err(error)) => self.send_error = Some(error),
            }
        }
        if self.unflushed && self.send_error.is_none() {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.send_error = Some(error),
            }
        }
    }

    /// Whether bytes have come.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        let mut bytes = [MaybeUninit::uninit(); READ_BYTES];
        let mut read = ReadBuf::uninit(&mut bytes);
        match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if read.filled().is_empty() => Err(self.ended(None)),
            Poll::Ready(Ok(())) => {
                self.machine.connection().received().extend_from_slice(read.filled());
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(self.ended(Some(error))),
            Poll::Pending if self.send_error.is_none() || self.is_about_to_hear() => Ok(false),
            Poll::Pending => Err(self.ended(None)),
        }
    }

    /// Whether bytes have come. A thread waits for an open `CancelRequest` by turns.
    fn poll_receive_in_turn(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        if self.cancel.is_none() {
            return self.poll_receive(cx);
        }
        wait::no_longer_than(after(TURN), || self.poll_receive(cx))
    }

    /// Whether something has come that the runtime has not told of, and wakes the task for.
    fn is_about_to_hear(&self) -> bool {
        !self.stream.waits() && self.stream.has_news().unwrap_or(false)
    }

    /// The connection is closed or broken, and there is nothing more to read. A server that crashes warns
    /// of that, and then ends neither TLS nor, if it has not read everything, the connection properly.
    fn ended(&mut self, error: Option<io::Error>) -> Error {
        match (self.machine.last_words(), error.or_else(|| self.send_error.take())) {
            (Some(warning), _) => self.lost(Loss::Ended(warning)),
            (None, Some(error)) => self.broken(error),
            (None, None) => {
                self.error(ErrorKind::Lost, "the server closed the connection without a reason")
            }
        }
    }

    /// Whether the `CancelRequest` has ended.
    fn poll_cancel(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(cancel) = &mut self.cancel else { return false };
        // If its socket ended with the runtime of whoever polls, its signal might still come.
        let ended = self.place.enter(|| cancel.as_mut().poll(cx).is_ready());
        if ended {
            self.cancel = None;
            self.machine.cancel_ended(now());
        }
        ended
    }

    #[cold]
    fn lost(&self, loss: Loss) -> Error {
        match loss {
            Loss::Ended(server) => {
                self.error(ErrorKind::Lost, "the server ended the session").with_server(server)
            }
            Loss::Protocol(error) => self.error(ErrorKind::Protocol, error.to_string()),
            Loss::Silent(patience) => self.error(
                ErrorKind::Lost,
                format!("the server did not answer within {} s", patience.as_secs()),
            ),
            Loss::Stuck(server) => self
                .error(ErrorKind::Lost, "the server did not go on in time after an error")
                .with_server(server),
            Loss::Unsettled(patience) => self.error(
                ErrorKind::Lost,
                format!("a request could not be withdrawn within {} s", patience.as_secs()),
            ),
            Loss::Expired(ttl) => {
                trace::lease_expired(self.peer_name(), ttl);
                self.error(
                    ErrorKind::Lost,
                    format!(
                        "no answer of the server renewed the lease of {} in time, which counts what \
                         this machine slept",
                        Span(ttl)
                    ),
                )
            }
            Loss::NotServed => self.error(
                ErrorKind::Timeout,
                "the pooler had no free server connection in time; give it more, or hold fewer locks",
            ),
            Loss::Moved => self.error(
                ErrorKind::Lost,
                "another server process answered than the one that holds the locks; the pooler shares \
                 its sessions: leave Config::pooler at Auto, or connect to the server directly",
            ),
            Loss::RolledBack(server) => self
                .error(ErrorKind::Lost, "an error ended the transaction that held the lock")
                .with_server(server),
            Loss::Unreleased(server) => self
                .error(
                    ErrorKind::Lost,
                    "a request could not be withdrawn: the server does not release its lock",
                )
                .with_server(server),
            Loss::NotHeld(lock) => self.error(
                ErrorKind::Lost,
                format!(
                    "the server no longer had the {} lock on key {} that was acquired here; does \
                     something between here and the server share its sessions?",
                    lock.mode, lock.key
                ),
            ),
        }
    }

    fn broken(&self, error: io::Error) -> Error {
        self.error(ErrorKind::Lost, format!("the connection broke ({})", error.kind()))
            .with_source(error)
    }

    /// An error after which the session is over.
    fn error(&self, kind: ErrorKind, message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(kind, message).context(format!("session with {}", self.peer.name)).lost()
    }
}

/// What only a task waits for.
#[cfg(feature = "async")]
impl Wire {
    /// Waits between requests, until the session is over or it is time for a sign of life. Notes whether
    /// something has come that the runtime has not told of: it looks at its sockets only between tasks.
    pub(super) fn poll_rest(&mut self, cx: &mut Context<'_>, unheard: &AtomicBool) -> Poll<Rest> {
        // What else the task does must not use up what tokio allows it: nobody would read.
        let taking_in = poll_fn(|cx| Poll::Ready(self.take_in(cx)));
        let taken_in = ready!(pin!(unconstrained(taking_in)).poll(cx));
        let news = match taken_in {
            // It would go on and on.
            Ok(READS_MAX) => Ok(false),
            Ok(_) => self.stream.has_news(),
            Err(error) => return Poll::Ready(Rest::Over(error)),
        };
        match news {
            Ok(news) => unheard.store(news, Ordering::Relaxed),
            Err(error) => return Poll::Ready(Rest::Over(self.ended(Some(error)))),
        }
        match self.machine.heartbeat_due() {
            Some(due) if due <= now() || self.alarm.poll(due, cx) => {
                Poll::Ready(Rest::HeartbeatDue)
            }
            _ => Poll::Pending,
        }
    }
}

/// What ends a session's rest.
#[cfg(feature = "async")]
pub(super) enum Rest {
    Over(Error),
    HeartbeatDue,
}

/// What only a manager asks for.
#[cfg(feature = "manager")]
impl Wire {
    /// The server does not hold a lock that the books say it holds, so the session is over.
    pub(super) fn not_held(&self, lock: LockId) -> Error {
        self.lost(Loss::NotHeld(lock))
    }

    /// Until when the locks are certain, where a lease says so.
    pub(super) fn certain_until(&self) -> Option<Instant> {
        self.machine.certain_until()
    }

    /// See [`TellTale`]. The system may not have another one to give.
    pub(super) fn tell_tale(&self) -> Option<TellTale> {
        self.stream.tell_tale().ok()
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("peer", &self.peer.name)
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, unix, feature = "async"))]
mod tests {
    use std::task::Waker;

    use tokio::net::UnixStream;

    use super::*;
    use crate::session::advisory::Means;
    use crate::session::lease::Lease;
    use crate::session::simulation::log_in;

    /// A session over this socket, under a lease if there is a time for that.
    fn wire(client: UnixStream, lease: Option<Duration>) -> Wire {
        const LONG: Duration = Duration::from_secs(60);
        let (connection, identity) = log_in();
        let clocks = lease.map(|_| Clocks::look());
        let lease = lease.map(|ttl| Lease::new(ttl, now()));
        let machine = Machine::new(connection, Means::Calls, lease, now());
        let keepalive =
            net::Keepalive { idle: LONG, interval: LONG, probes: 1, acknowledgement: LONG };
        let address = net::Address::Unix("/nowhere".into());
        let route = Route { address, keepalive, encryption: net::Encryption::None };
        let peer = Peer {
            name: "nowhere".into(),
            route,
            cancel_key: identity.cancel_key,
            authentication: AuthMethod::None,
            is_channel_bound: false,
        };
        Wire::new(Stream::Clear(net::Socket::Unix(client)), machine, peer, clocks)
    }

    #[tokio::test]
    async fn what_the_machine_slept_counts_at_rest_and_while_a_heartbeat_is_under_way() {
        const TTL: Duration = Duration::from_secs(60);
        for is_under_way in [false, true] {
            let (client, _server) = UnixStream::pair().unwrap();
            let mut wire = wire(client, Some(TTL));
            let mut cx = Context::from_waker(Waker::noop());
            if is_under_way {
                assert!(wire.poll_ask(Ask::Heartbeat, &mut cx).is_pending());
                assert!(wire.poll_outcome(&mut cx).is_pending());
            } else {
                assert!(wire.poll_idle(&mut cx).is_pending());
            }
            wire.clocks = Some(Clocks::look().behind_by(TTL));
            let told = if is_under_way {
                wire.poll_outcome(&mut cx).map(Result::unwrap_err)
            } else {
                wire.poll_idle(&mut cx)
            };
            let Poll::Ready(error) = told else { panic!("it goes on, under way: {is_under_way}") };
            assert!(error.is_lost());
            assert!(error.to_string().contains("which counts what this machine slept"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_has_the_last_word_before_the_runtime_has_heard_of_it() {
        let (client, server) = UnixStream::pair().unwrap();
        let mut wire = wire(client, None);
        let words = b"SFATAL\0C57P01\0Mterminating connection\0\0";
        let length = u32::try_from(4 + words.len()).unwrap().to_be_bytes();
        assert_eq!(
            server.try_write(&[b"E", &length[..], words].concat()).unwrap(),
            5 + words.len()
        );
        drop(server);

        // A socket of this machine says at once that the other end is gone.
        let asked = poll_fn(|cx| Poll::Ready(wire.poll_ask(Ask::Heartbeat, cx))).await;
        let outcome = match asked {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => poll_fn(|cx| wire.poll_outcome(cx)).await,
        };
        let error = outcome.unwrap_err();
        assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
    }
}
