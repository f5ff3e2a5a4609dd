//! Whoever drives the machine: rightly, or with a defect that was planted.

use std::time::{Duration, Instant};

use super::server::{ADMIN_SHUTDOWN, Command, HOME, Process, QUERY_CANCELED, TIMEOUT};
use crate::protocol::NotReady;
use crate::session::machine::{Action, Ask, Loss, Machine, Outcome};

/// What an implementation could do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// "Canceled" is taken to mean that the lock was not granted.
    TrustsCanceled,
    /// An unlock that failed is taken to have released the lock.
    TrustsFailedUnlock,
    /// The next request does not wait for the socket of a `CancelRequest` to end.
    LeavesCancelOpen,
    /// A `CancelRequest` that did nothing is not sent again.
    CancelsOnce,
    /// A lock granted while its wait was cancelled is forgotten.
    ForgetsLateGrant,
    /// A lock is kept for a caller who went away.
    KeepsForTheGone,
    /// What the server says before it ends the session is not read.
    MissesLastWords,
    /// Deadlines are noticed a minute late.
    Oversleeps,
}

impl Defect {
    /// Each, with what the simulation has to say of it.
    pub(super) const ALL: [(Self, &str); 8] = [
        (Self::TrustsCanceled, "believed held: false"),
        (Self::TrustsFailedUnlock, "believed held: false"),
        (Self::LeavesCancelOpen, "a signal hit a later request"),
        (Self::CancelsOnce, "Unsettled(10s) after 10."),
        (Self::ForgetsLateGrant, "believed held: false, on the server: 1"),
        (Self::KeepsForTheGone, "acquired for nobody"),
        // The session is over, but for another reason than the server gave, or too late.
        (Self::MissesLastWords, " after "),
        (Self::Oversleeps, " after "),
    ];
}

pub(super) struct Driver {
    machine: Machine,
    defect: Option<Defect>,
    request: Request,
}

/// What a defect may need to know of the request that is under way.
#[derive(Default)]
struct Request {
    unlocks: bool,
    cancelled: bool,
    cancels: u32,
    sent: bool,
    received: Vec<u8>,
}

impl Driver {
    pub(super) fn new(machine: Machine, defect: Option<Defect>) -> Self {
        Self { machine, defect, request: Request::default() }
    }

    pub(super) fn holds_one_lock(&self) -> bool {
        self.machine.holds_one_lock()
    }

    pub(super) fn wants_heartbeats(&self) -> bool {
        self.machine.heartbeat_due().is_some()
    }

    pub(super) fn ask(&mut self, ask: Ask, now: Instant) -> Result<(), NotReady> {
        let unlocks = matches!(ask, Ask::Unlock(_));
        self.request = Request { unlocks, ..Request::default() };
        self.machine.ask(ask, now).map(|_| ())
    }

    /// As the wire does it.
    pub(super) fn poll(&mut self, now: Instant) -> Result<Action, Loss> {
        let action = match self.machine.take_outcome() {
            Some(outcome) => Action::Done(outcome),
            None => self.machine.poll(now)?,
        };
        self.request.cancels += u32::from(action == Action::SendCancel);
        Ok(match (self.defect, action) {
            (Some(Defect::LeavesCancelOpen), Action::SendCancel) => {
                self.machine.cancel_ended(now);
                Action::SendCancel
            }
            (Some(Defect::CancelsOnce), Action::SendCancel) if self.request.cancels > 1 => {
                self.machine.cancel_ended(now);
                return self.poll(now);
            }
            (Some(Defect::ForgetsLateGrant), Action::Done(Outcome::Acquired))
                if self.request.cancelled =>
            {
                Action::Done(Outcome::NotAcquired)
            }
            (Some(Defect::Oversleeps), Action::Wait { until: Some(until) }) => {
                Action::Wait { until: Some(until + Duration::from_secs(60)) }
            }
            (_, action) => action,
        })
    }

    pub(super) fn cancel(&mut self, now: Instant) {
        self.request.cancelled = true;
        self.machine.cancel(now);
    }

    pub(super) fn abandon(&mut self, now: Instant) {
        if self.defect == Some(Defect::KeepsForTheGone) {
            self.machine.cancel(now);
        } else {
            self.machine.abandon(now);
        }
    }

    pub(super) fn cancel_ended(&mut self, now: Instant) {
        if self.defect != Some(Defect::LeavesCancelOpen) {
            self.machine.cancel_ended(now);
        }
    }

    /// Takes what is to be sent.
    pub(super) fn send(&mut self) -> Vec<u8> {
        let connection = self.machine.connection();
        let mut bytes = connection.outgoing().to_vec();
        connection.sent(bytes.len());
        if !bytes.is_empty() && std::mem::replace(&mut self.request.sent, true) {
            self.omit_settling(&mut bytes);
        }
        bytes
    }

    /// Answers what would make the books true as a server does that holds nothing, instead of sending it.
    fn omit_settling(&mut self, bytes: &mut Vec<u8>) {
        let omits = match self.defect {
            Some(Defect::TrustsCanceled) => self.has_heard(QUERY_CANCELED),
            Some(Defect::TrustsFailedUnlock) => self.request.unlocks && self.has_heard(TIMEOUT),
            _ => false,
        };
        if let Some(command) = omits.then(|| Command::read(bytes)).flatten() {
            let answer = Process::new(HOME).run(&command, false);
            self.machine.connection().received().extend_from_slice(&answer);
        }
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.request.received.extend(bytes);
        let misses = self.defect == Some(Defect::MissesLastWords);
        if !(misses && self.has_heard(ADMIN_SHUTDOWN)) {
            self.machine.connection().received().extend_from_slice(bytes);
        }
    }

    /// Whether an answer to the request has this in it.
    fn has_heard(&self, sqlstate: &str) -> bool {
        self.request.received.windows(sqlstate.len()).any(|part| part == sqlstate.as_bytes())
    }
}
