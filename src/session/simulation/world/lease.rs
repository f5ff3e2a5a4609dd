//! A lease, and what a caller is at while it runs.

use std::time::Duration;

use super::{Happening, World, microseconds};
use crate::session::machine::Ask;
use crate::session::simulation::server::Transaction;

/// So short that many a wait takes longer than the pause between its heartbeats, and other requests hardly
/// ever do.
pub(super) const LEASE: Duration = Duration::from_millis(12);

/// The longest that a caller works between two requests, in microseconds.
const WORK: u64 = 40_000;

/// How long an answer is under way at most, in microseconds.
const PROMPT: u64 = 700;
/// The same for one after which the lease can still be kept.
pub(super) const LATE: u64 = 4_000;
/// And for one that may be later than the end of the lease.
pub(super) const TOO_LATE: u64 = 40_000;

/// How it stands with the lease.
pub(super) struct Leased {
    is_given: bool,
    caller: Caller,
    /// Whether the caller neglected the session since the last outcome.
    pub(super) is_neglected: bool,
    /// When the last request was made that had an outcome.
    pub(super) renewed_at: u64,
    /// When the last answer was sent that may arrive later than the lease ends.
    delayed_at: Option<u64>,
    /// How many commands have come to the server.
    pub(super) commands: u32,
    /// Whether the server ended the session with it.
    pub(super) has_ended: bool,
}

impl Leased {
    pub(super) fn new(is_given: bool) -> Self {
        Self {
            is_given,
            caller: Caller::Asks,
            is_neglected: false,
            renewed_at: 0,
            delayed_at: None,
            commands: 0,
            has_ended: false,
        }
    }

    pub(super) fn renew(&mut self, asked_at: u64) {
        self.renewed_at = asked_at;
        self.is_neglected = false;
    }

    pub(super) fn is_delayed(&self) -> bool {
        self.delayed_at.is_some_and(|at| self.renewed_at <= at)
    }
}

/// What the caller is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// It waits for an outcome.
    Asks,
    /// It works, has signs of life given meanwhile, and is told at once when the session is lost.
    Holds,
    /// It works, and looks after the session later.
    Neglects,
    /// So does its machine.
    Sleeps,
}

/// How long the caller's machine slept. Its clock stood still.
#[derive(Default)]
pub(super) struct Sleep {
    pub(super) total: u64,
    /// Since when it sleeps, as far as that was not counted yet.
    pub(super) since: Option<u64>,
}

impl World {
    /// Between two requests under a lease, the caller may work for a while. The result says whether the
    /// session stands.
    pub(super) fn pause(&mut self) -> Result<bool, String> {
        if !self.leased.is_given {
            return Ok(true);
        }
        if self.random.one_in(2) {
            let caller = match self.random.up_to(4) {
                0 => Caller::Sleeps,
                1 => Caller::Neglects,
                _ => Caller::Holds,
            };
            self.note(format_args!("the caller {caller:?}"));
            self.leased.caller = caller;
            self.leased.is_neglected |= caller != Caller::Holds;
            self.sleep.since = (caller == Caller::Sleeps).then_some(self.clock);
            let ends_at = self.clock + self.random.up_to(WORK);
            self.plan(ends_at, Happening::ClockReaches);
            let stands = self.work(ends_at)?;
            self.leased.caller = Caller::Asks;
            self.count_sleep();
            self.sleep.since = None;
            if !stands {
                return Ok(false);
            }
        }
        self.look()
    }

    fn work(&mut self, ends_at: u64) -> Result<bool, String> {
        while self.clock < ends_at {
            if self.leased.caller == Caller::Holds {
                if !self.look()? {
                    return Ok(false);
                }
                let due = self.driver.heartbeat_due();
                if due.is_some_and(|due| due <= self.now()) {
                    self.begin_request();
                    if !self.perform(&Ask::Heartbeat)? {
                        return Ok(false);
                    }
                    continue;
                }
                self.set_alarm(due);
            }
            self.happen();
        }
        Ok(true)
    }

    /// The machine is told what it slept for until now.
    fn count_sleep(&mut self) {
        if let Some(since) = &mut self.sleep.since {
            let time = self.clock - std::mem::replace(since, self.clock);
            self.sleep.total += time;
            self.driver.slept(Duration::from_micros(time));
            // Its clock does not reach the time for which it was set.
            self.alarm = None;
        }
    }

    fn look(&mut self) -> Result<bool, String> {
        match self.driver.look(self.now()) {
            Ok(()) => Ok(true),
            Err(loss) => self.check_loss(&loss, self.clock).map(|()| false),
        }
    }

    /// The server begins to wait for the next command. A twentieth of the time is lost to clocks that differ
    /// and to timers that ring late.
    pub(super) fn run_lease(&mut self) {
        let is_open = self.pooler.home.transaction() != Transaction::None;
        if self.leased.is_given && (is_open || !self.driver.holds_one_lock()) {
            let ends_at = self.clock + microseconds(LEASE * 19 / 20);
            self.plan(ends_at, Happening::LeaseEnds(self.leased.commands));
        }
    }

    /// The server ends the session. Whoever believes that it holds the lock has to know better by now, or
    /// as soon as it looks.
    pub(super) fn end_lease(&mut self) {
        self.count_sleep();
        let looks_later = matches!(self.leased.caller, Caller::Neglects | Caller::Sleeps);
        let sees = looks_later && self.driver.look(self.now()).is_err();
        if self.believed && !sees {
            self.problem = Some("the lease ended before its holder knew");
        }
        self.leased.has_ended = true;
        self.end_session();
    }

    /// How long an answer may be under way.
    pub(super) fn longest_delay(&mut self) -> u64 {
        if !self.leased.is_given {
            return PROMPT;
        }
        match self.random.up_to(64) {
            0 => {
                self.leased.delayed_at = Some(self.clock);
                TOO_LATE
            }
            1..8 => LATE,
            _ => PROMPT,
        }
    }
}
