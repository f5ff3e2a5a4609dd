//! What is counted.

use super::{Command, Order, Reply};
use crate::manager::stats::Stats;

impl Stats {
    pub(super) fn requested(&mut self) {
        self.requests += 1;
        self.waiting += 1;
    }

    pub(super) fn gave_up(&mut self) {
        self.given_up += 1;
        self.waiting -= 1;
    }

    /// A key is not held any more, on which there are so many guards.
    pub(super) fn lost(&mut self, guards: u32) {
        self.held -= 1;
        self.guards -= usize::try_from(guards).unwrap_or_default();
    }

    pub(super) fn note<R>(&mut self, command: &Command<R>) {
        match command {
            Command::Reply(_, Reply::Granted(grant)) => {
                self.granted += 1;
                self.guards += 1;
                self.handed_over += u64::from(grant.handed_over);
                self.wait_times.add(grant.waited);
            }
            Command::Reply(_, Reply::Busy) => self.busy += 1,
            Command::Reply(_, Reply::Failed(_)) => self.failed += 1,
            Command::Order(_, Order::Withdraw) => self.cancels += 1,
            Command::Reply(_, Reply::Done | Reply::Inspected(_) | Reply::NotDone(_))
            | Command::Open(_)
            | Command::Crowded(_)
            | Command::Order(..) => return,
        }
        if !matches!(command, Command::Order(..)) {
            self.waiting -= 1;
        }
    }
}
