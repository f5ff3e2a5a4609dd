//! Questions about keys: who holds one, and how many wait for it.
//!
//! They are asked where keys are tried, between what is ordered there. So they take no session that waits,
//! and they are not asked within a transaction that holds a lock.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::Instant;

use super::{Core, Order, Reply, RequestId, SessionId};
use crate::error::{Error, Result};
use crate::holders::Holders;
use crate::key::Key;

#[derive(Debug)]
pub(super) struct Inspections<R> {
    /// Those for which there is no session yet, in the order of their arrival.
    waiting: VecDeque<Inspection<R>>,
    /// Those that a session was asked.
    asked: BTreeMap<RequestId, (SessionId, Inspection<R>)>,
}

#[derive(Debug)]
struct Inspection<R> {
    id: RequestId,
    key: Key,
    /// Whether a session was lost over it.
    asked_again: bool,
    caller: R,
}

impl<R> Core<R> {
    /// Somebody wants to know who holds a key, and is replied to.
    pub(in crate::manager) fn inspect(&mut self, key: Key, caller: R, now: Instant) -> RequestId {
        self.last_request += 1;
        let id = self.last_request;
        if let Some(why) = self.why_closed() {
            self.reply(caller, Reply::NotDone(why));
            return id;
        }
        self.inspections.waiting.push_back(Inspection { id, key, asked_again: false, caller });
        self.ask_what_is_to_be_inspected(now);
        id
    }

    /// Whoever asked does not want to know any more. The answer to what was asked already goes to nobody.
    pub(in crate::manager) fn forget_inspection(&mut self, id: RequestId) {
        self.inspections.waiting.retain(|inspection| inspection.id != id);
    }

    /// A session has been answered.
    pub(in crate::manager) fn inspected(
        &mut self,
        session: SessionId,
        id: RequestId,
        holders: Result<Holders>,
        now: Instant,
    ) {
        let Some((_, inspection)) = self.inspections.asked.remove(&id) else { return };
        self.reply(inspection.caller, holders.map_or_else(Reply::NotDone, Reply::Inspected));
        self.vacate(session, now);
        self.fill(session, now);
    }

    /// Asks as far as there are sessions for it.
    pub(super) fn ask_what_is_to_be_inspected(&mut self, now: Instant) {
        while !self.inspections.waiting.is_empty() {
            let Some(session) = self.session_for_trying() else { break };
            let Some(inspection) = self.inspections.waiting.pop_front() else { break };
            self.occupy(session);
            self.order(session, Order::Inspect(inspection.id, inspection.key));
            self.inspections.asked.insert(inspection.id, (session, inspection));
        }
        if self.inspections.waiting.is_empty() {
            return;
        }
        self.open_for_trying(now);
        if let Some(why) = self.hindrance() {
            self.fail_inspections(&why);
        }
    }

    /// Nobody can be asked.
    pub(super) fn fail_inspections(&mut self, why: &Error) {
        for inspection in mem::take(&mut self.inspections.waiting) {
            self.reply(inspection.caller, Reply::NotDone(why.clone()));
        }
    }

    /// A session is over. Once, another one is asked instead.
    pub(super) fn lose_inspections(&mut self, session: SessionId, error: &Error) {
        for (id, (asked, mut inspection)) in mem::take(&mut self.inspections.asked) {
            if asked != session {
                self.inspections.asked.insert(id, (asked, inspection));
            } else if mem::replace(&mut inspection.asked_again, true) {
                self.reply(inspection.caller, Reply::NotDone(error.clone()));
            } else {
                self.inspections.waiting.push_back(inspection);
            }
        }
    }
}

impl<R> Inspections<R> {
    /// How many sessions are needed for those that wait, if each session does one thing only.
    pub(super) fn sessions_needed(&self) -> usize {
        self.waiting.len()
    }

    /// Takes all of them.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = R> {
        let asked = mem::take(&mut self.asked).into_values().map(|(_, inspection)| inspection);
        let all = mem::take(&mut self.waiting).into_iter().chain(asked);
        all.map(|inspection| inspection.caller)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.asked.is_empty()
    }
}

impl<R> Default for Inspections<R> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), asked: BTreeMap::new() }
    }
}
