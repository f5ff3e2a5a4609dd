//! Whoever drives the machine: rightly, or with a defect that was planted.

use std::time::{Duration, Instant};

use super::server::{ADMIN_SHUTDOWN, Command, ELSEWHERE, HOME, Process, QUERY_CANCELED, TIMEOUT};
use crate::protocol::NotReady;
use crate::session::advisory::Means;
use crate::session::lease::Lease;
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
    /// Whichever process answers is taken for the one that holds the locks.
    BelievesAnyProcess,
    /// A lease runs from the answer instead of from the sending of what was answered.
    CountsFromAnswer,
    /// A lease lasts for the holder as long as for the server.
    LeavesNoMargin,
    /// An answered heartbeat does not renew the lease.
    ForgetsHeartbeat,
    /// An outcome that took longer than the pause between heartbeats is told as it is.
    TellsUnconfirmed,
    /// While the machine sleeps, a lease does not run.
    CountsNoSleep,
}

impl Defect {
    /// Each, with what the simulation has to say of it.
    pub(super) const ALL: [(Self, &str); 14] = [
        (Self::TrustsCanceled, "believed held: false"),
        (Self::TrustsFailedUnlock, "believed held: false"),
        (Self::LeavesCancelOpen, "a signal hit a later request"),
        (Self::CancelsOnce, "Unsettled(10s) after 10."),
        (Self::ForgetsLateGrant, "believed held: false, on the server: 1"),
        (Self::KeepsForTheGone, "acquired for nobody"),
        // The session is over, but for another reason than the server gave, or too late.
        (Self::MissesLastWords, " after "),
        (Self::Oversleeps, " after "),
        (Self::BelievesAnyProcess, "believed an answer from another process"),
        (Self::CountsFromAnswer, "the lease ended before its holder knew"),
        (Self::LeavesNoMargin, "the lease ended before its holder knew"),
        // A session is lost that stands.
        (Self::ForgetsHeartbeat, "Expired(12ms) after "),
        // Before the lock was told of, or soon after that.
        (Self::TellsUnconfirmed, "the lease ended before"),
        (Self::CountsNoSleep, "the lease ended before its holder knew"),
    ];

    /// Whether it shows by these means.
    pub(super) fn shows_by(self, means: &Means) -> bool {
        self != Self::BelievesAnyProcess || matches!(means, Means::Queries { .. })
    }

    pub(super) fn is_about_leases(self) -> bool {
        matches!(
            self,
            Self::CountsFromAnswer
                | Self::LeavesNoMargin
                | Self::ForgetsHeartbeat
                | Self::TellsUnconfirmed
                | Self::CountsNoSleep
        )
    }
}

pub(super) struct Driver {
    machine: Machine,
    defect: Option<Defect>,
    request: Request,
    polled_at: Instant,
    /// When something was sent last.
    sent_at: Instant,
}

/// What a defect may need to know of the request that is under way.
#[derive(Default)]
struct Request {
    asked: Option<Ask>,
    cancelled: bool,
    cancels: u32,
    sent: bool,
    received: Vec<u8>,
}

impl Driver {
    pub(super) fn new(mut machine: Machine, defect: Option<Defect>, now: Instant) -> Self {
        if defect == Some(Defect::LeavesNoMargin) {
            // A tenth less is what the server counts.
            let longer = |lease: &Lease| Lease::new(lease.ttl() * 10 / 9, now);
            *machine.lease() = machine.lease().as_ref().map(longer);
        }
        Self { machine, defect, request: Request::default(), polled_at: now, sent_at: now }
    }

    pub(super) fn holds_one_lock(&self) -> bool {
        self.machine.holds_one_lock()
    }

    pub(super) fn heartbeat_due(&self) -> Option<Instant> {
        self.machine.heartbeat_due()
    }

    /// Between requests, as the wire does it.
    pub(super) fn look(&mut self, now: Instant) -> Result<(), Loss> {
        if !self.machine.is_drained() {
            self.machine.poll(now)?;
        }
        self.machine.check_lease(|| now)
    }

    /// The machine that this runs on slept.
    pub(super) fn slept(&mut self, time: Duration) {
        if self.defect != Some(Defect::CountsNoSleep) {
            self.machine.slept(time);
        }
    }

    pub(super) fn ask(&mut self, ask: Ask, now: Instant) -> Result<(), NotReady> {
        self.request = Request { asked: Some(ask.clone()), ..Request::default() };
        self.machine.ask(ask, now).map(|_| ())
    }

    /// As the wire does it.
    pub(super) fn poll(&mut self, now: Instant) -> Result<Action, Loss> {
        self.polled_at = now;
        let lease = *self.machine.lease();
        let confirms_nothing = self.defect == Some(Defect::TellsUnconfirmed)
            && self.request.asked != Some(Ask::Heartbeat);
        if confirms_nothing {
            *self.machine.lease() = None;
        }
        let action = match self.machine.take_outcome() {
            Some(outcome) => Action::Done(outcome),
            None => self.machine.poll(now).map_err(|loss| match (loss, lease) {
                // It knows of its time, but not that it is a lease's.
                (Loss::Unsettled(_) | Loss::Silent(_) | Loss::Stuck(_), Some(lease))
                    if confirms_nothing =>
                {
                    Loss::Expired(lease.ttl())
                }
                (loss, _) => loss,
            })?,
        };
        if confirms_nothing {
            *self.machine.lease() = lease;
        }
        if let (Some(lease), Action::Done(outcome)) = (lease, &action) {
            self.miscount(lease, outcome, now);
        }
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

    /// Renews a lease at the wrong time, or not at all.
    fn miscount(&mut self, mut lease: Lease, outcome: &Outcome, now: Instant) {
        match self.defect {
            Some(Defect::CountsFromAnswer) => lease.renew(now.into()),
            Some(Defect::TellsUnconfirmed) => {
                // As if it had taken no longer.
                let timely = now.checked_sub(lease.ttl() / 3).unwrap();
                let is_grant = *outcome == Outcome::Acquired;
                let sent = if is_grant { self.sent_at.max(timely) } else { self.sent_at };
                lease.renew(sent.into());
            }
            Some(Defect::ForgetsHeartbeat) if *outcome == Outcome::Alive => {}
            _ => return,
        }
        *self.machine.lease() = Some(lease);
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
        if !bytes.is_empty() {
            self.sent_at = self.polled_at;
        }
        if !bytes.is_empty() && std::mem::replace(&mut self.request.sent, true) {
            self.omit_settling(&mut bytes);
        }
        bytes
    }

    /// Answers what would make the books true as a server does that holds nothing, instead of sending it.
    fn omit_settling(&mut self, bytes: &mut Vec<u8>) {
        let omits = match self.defect {
            Some(Defect::TrustsCanceled) => self.has_heard(QUERY_CANCELED),
            Some(Defect::TrustsFailedUnlock) => {
                matches!(self.request.asked, Some(Ask::Unlock(_))) && self.has_heard(TIMEOUT)
            }
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
        if self.defect == Some(Defect::BelievesAnyProcess) {
            self.forge_process();
        }
    }

    /// Makes it the right process that answers. What is incomplete stays to be seen again.
    fn forge_process(&mut self) {
        let (elsewhere, home) = (ELSEWHERE.to_string(), HOME.to_string());
        let received = self.machine.connection().received();
        let is_elsewhere = |bytes: &[u8]| bytes == elsewhere.as_bytes();
        while let Some(at) = received.windows(elsewhere.len()).position(is_elsewhere) {
            received[at..][..home.len()].copy_from_slice(home.as_bytes());
        }
    }

    /// Whether an answer to the request has this in it.
    fn has_heard(&self, sqlstate: &str) -> bool {
        self.request.received.windows(sqlstate.len()).any(|part| part == sqlstate.as_bytes())
    }
}
