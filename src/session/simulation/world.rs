//! Everything that takes time.

mod lease;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::{Arguments, Debug, Formatter, Write};
use std::time::{Duration, Instant};

use self::lease::{LATE, LEASE, Leased, Sleep, TOO_LATE};
use super::driver::{Defect, Driver};
use super::pooler::Pooler;
use super::server::{Command, QUERY_CANCELED, TIMEOUT, Transaction};
use super::{Case, LOCK, REQUESTS, Random};
use crate::protocol::{Connection, Credentials, Event, ServerIdentity};
use crate::session::advisory::Means;
use crate::session::lease::Lease;
use crate::session::machine::{
    ANSWER_WITHIN, Action, Ask, Loss, Machine, OPEN_WITHIN, Outcome, SETTLE_WITHIN, TRY_WITHIN,
};

/// Something that happens at some time. Times are microseconds since the start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    ReachesServer(Bytes),
    ReachesClient(Bytes),
    /// The signal of a `CancelRequest` that was sent for this request.
    SignalReachesProcess(u32),
    CancelSocketEnds,
    CommandEnds,
    OtherTakes,
    OtherReleases,
    PoolEmpties,
    PoolFills,
    CallerCancels(u32),
    CallerGoes(u32),
    ServerShutsDown,
    ServerFallsSilent,
    NetworkIsCut,
    /// The lease ends, unless another command came since it began to run.
    LeaseEnds(u32),
    ClockReaches,
}

/// What is sent, in one piece.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Bytes(Vec<u8>);

impl Debug for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// What the session's process is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Doing {
    Reads,
    /// The command is in the pooler's queue since then.
    Queues(Command, u64),
    Runs(Command),
    Waits(Command),
    Gone,
}

/// What gets through between the client and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Works,
    LosesAnswers,
    LosesAll,
}

/// What is known of the request that is under way.
#[derive(Default)]
struct Request {
    number: u32,
    cancels: u32,
    /// When the first of them was sent.
    withdrawn_at: Option<u64>,
    /// When the caller stops waiting, as far as that is known.
    gives_up_at: Option<u64>,
    caller_gone: bool,
    asked: Option<Ask>,
    /// A command failed that nobody cancelled.
    failed: bool,
    /// Another process than the one that holds the locks gave an answer.
    answered_elsewhere: bool,
}

pub(super) struct World {
    random: Random,
    clock: u64,
    epoch: Instant,
    sleep: Sleep,
    agenda: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    planned: u64,

    means: Means,
    leased: Leased,
    driver: Driver,
    /// The last time at which the machine wanted to be polled.
    alarm: Option<Instant>,
    request: Request,
    /// Whether the caller believes that it holds the lock.
    believed: bool,

    doing: Doing,
    pooler: Pooler,
    pooler_moves: bool,
    other_holds: bool,
    network: Network,

    received: Vec<u8>,
    reaches_server_by: u64,
    reaches_client_by: u64,

    problem: Option<&'static str>,
    seen: Vec<Case>,
    script: Option<String>,
}

impl World {
    pub(super) fn new(seed: u64, means: Means, defect: Option<Defect>) -> Self {
        let epoch = Instant::now();
        // Every other session has one. It would find other defects out in its own way.
        let has_lease = defect.map_or(seed % 2 == 1, Defect::is_about_leases);
        let lease = has_lease.then(|| Lease::new(LEASE, epoch));
        let machine = Machine::new(logged_in(), means.clone(), lease, epoch);
        let mut world = Self {
            random: Random(seed),
            clock: 0,
            epoch,
            sleep: Sleep::default(),
            agenda: BinaryHeap::new(),
            planned: 0,
            means,
            leased: Leased::new(has_lease),
            driver: Driver::new(machine, defect, epoch),
            alarm: None,
            request: Request::default(),
            believed: false,
            doing: Doing::Reads,
            pooler: Pooler::new(),
            pooler_moves: false,
            other_holds: false,
            network: Network::Works,
            received: Vec::new(),
            reaches_server_by: 0,
            reaches_client_by: 0,
            problem: None,
            seen: Vec::new(),
            script: None,
        };
        world.plan_rest();
        world
    }

    /// Plans what nobody asks for.
    fn plan_rest(&mut self) {
        self.plan(0, Happening::OtherTakes);
        self.run_lease();
        if self.random.one_in(40) {
            let at = self.random.up_to(40_000);
            self.plan(at, Happening::ServerShutsDown);
        }
        if self.random.one_in(40) {
            let at = self.random.up_to(40_000);
            let is_cut = self.random.one_in(2);
            self.plan(
                at,
                if is_cut { Happening::NetworkIsCut } else { Happening::ServerFallsSilent },
            );
        }
        match self.means {
            Means::Calls => {}
            Means::Queries { .. } => self.pooler_moves = self.random.one_in(10),
            Means::Transaction { .. } => self.plan_pool(),
        }
    }

    /// What happens in a run, for whoever has to find out why.
    pub(super) fn script(mut self) -> String {
        self.script = Some(String::new());
        if let Err(problem) = self.run() {
            self.note(format_args!("{problem}"));
        }
        self.script.unwrap_or_default()
    }

    pub(super) fn seen(&self) -> &[Case] {
        &self.seen
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        for _ in 0..REQUESTS {
            let goes_on = self.pause()? && {
                let ask = self.choose();
                self.perform(&ask)?
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Sees a request through. The result says whether the session stands.
    fn perform(&mut self, ask: &Ask) -> Result<bool, String> {
        let asked_at = self.clock;
        self.request.asked = Some(ask.clone());
        let number = self.request.number;
        self.note(format_args!("request {number}: {ask:?}"));
        // From here on the lock cannot be taken back.
        self.believed &= *ask != Ask::Unlock(LOCK);
        self.driver.ask(ask.clone(), self.now()).map_err(|error| error.to_string())?;
        let outcome = match self.see_through() {
            Ok(outcome) => outcome,
            Err(loss) => {
                self.check_loss(&loss, asked_at)?;
                return self.check_patience().map(|()| false);
            }
        };
        self.check_patience()?;
        self.note(format_args!("{outcome:?}"));
        if self.request.caller_gone && outcome == Outcome::Acquired {
            return Err(String::from("acquired for nobody"));
        }
        self.believed = match (ask, &outcome) {
            (Ask::Lock { .. } | Ask::TryLock(_), Outcome::Acquired) => true,
            (Ask::Lock { .. } | Ask::TryLock(_), Outcome::NotAcquired)
            | (Ask::Unlock(_), Outcome::Released) => false,
            (Ask::Lock { .. } | Ask::TryLock(_), Outcome::Failed(_)) if self.request.failed => {
                false
            }
            (Ask::Heartbeat, Outcome::Alive) => self.believed,
            other => return Err(format!("{other:?} makes no sense")),
        };
        self.leased.renew(asked_at);
        self.check_books().map(|()| true)
    }

    /// Whoever waits no more is told of something soon.
    fn check_patience(&self) -> Result<(), String> {
        let late =
            self.request.gives_up_at.map(|at| Duration::from_micros(self.clock.saturating_sub(at)));
        match late {
            Some(late) if SETTLE_WITHIN < late => Err(format!("told {late:?} after the end")),
            _ => Ok(()),
        }
    }

    /// The books agree with the server's, and nothing happened on the way that must not.
    fn check_books(&self) -> Result<(), String> {
        if let Some(problem) = self.problem {
            return Err(String::from(problem));
        }
        if self.request.answered_elsewhere {
            return Err(String::from("believed an answer from another process"));
        }
        let believed = self.believed;
        if self.leased.has_ended && believed {
            return Err(String::from("the lease ended before the lock was told of"));
        }
        // The news that the session is over may still be under way.
        if self.doing == Doing::Gone {
            return Ok(());
        }
        let (held, transaction) = (self.pooler.home.held(), self.pooler.home.transaction());
        if held != u32::from(believed) {
            return Err(format!("believed held: {believed}, on the server: {held}"));
        }
        let in_transaction = believed && self.driver.holds_one_lock();
        let expected = if in_transaction { Transaction::Open } else { Transaction::None };
        if transaction != expected {
            return Err(format!("believed held: {believed}, the transaction: {transaction:?}"));
        }
        Ok(())
    }

    /// A session may be lost when the server says so or is silent, when another process answers, or when
    /// the pooler has none; and then soon.
    fn check_loss(&mut self, loss: &Loss, asked_at: u64) -> Result<(), String> {
        if let Some(problem) = self.problem {
            return Err(String::from(problem));
        }
        let queued_for = match &self.doing {
            Doing::Queues(_, since) => self.clock - since,
            _ => self.pooler.queued_for,
        };
        let silent = self.network != Network::Works;
        let delayed = self.leased.is_delayed();
        let under_way = 2_000 + if delayed { TOO_LATE } else { LATE };
        let unserved = |within| silent || microseconds(within) < queued_for + under_way;
        let since = |at| Duration::from_micros(self.clock - at);
        let taken = since(asked_at);
        let (case, is_due) = match loss {
            Loss::Ended(_) if self.leased.has_ended => {
                (Case::Lapsed, self.leased.is_neglected || delayed)
            }
            Loss::Ended(_) => (Case::Lost, self.doing == Doing::Gone),
            Loss::Silent(_) => (Case::Lost, silent && taken <= 2 * ANSWER_WITHIN),
            Loss::Expired(ttl) => {
                let is_over = LEASE * 9 / 10 <= since(self.leased.renewed_at);
                // The pause between two cancels, one of which may come to nothing, is nearly as long.
                let is_unsettled =
                    self.request.withdrawn_at.is_some_and(|at| LEASE * 9 / 10 <= since(at));
                let has_reason = silent || self.leased.is_neglected || delayed || is_unsettled;
                let is_due = is_over && has_reason && taken < 2 * ANSWER_WITHIN + *ttl;
                (Case::Expired, is_due)
            }
            Loss::Unsettled(_) => (Case::Lost, silent && taken < 4 * SETTLE_WITHIN),
            Loss::Moved => (Case::Moved, self.request.answered_elsewhere && taken < SETTLE_WITHIN),
            // Half an error may have come at the last moment.
            Loss::NotServed | Loss::Stuck(_) => match self.request.gives_up_at {
                Some(at) => (Case::NotServed, unserved(OPEN_WITHIN) && since(at) <= OPEN_WITHIN),
                None => (Case::NotServed, unserved(TRY_WITHIN) && taken == TRY_WITHIN),
            },
            _ => (Case::Lost, false),
        };
        self.seen.push(case);
        if is_due { Ok(()) } else { Err(format!("{loss:?} after {taken:?}")) }
    }

    /// Gives the next request a number, by which a caller that gives up finds it.
    fn begin_request(&mut self) -> u32 {
        let number = self.request.number + 1;
        self.request = Request { number, ..Request::default() };
        number
    }

    fn choose(&mut self) -> Ask {
        let request = self.begin_request();
        let soon = self.clock + self.random.up_to(8_000);
        let wants_heartbeat = self.driver.heartbeat_due().is_some() && self.random.one_in(4);
        let ask = match (self.believed, self.random.up_to(4)) {
            _ if wants_heartbeat => Ask::Heartbeat,
            (true, _) => Ask::Unlock(LOCK),
            (false, 0) => Ask::TryLock(LOCK),
            (false, 1) => {
                self.request.gives_up_at = Some(soon);
                self.wait_until(Some(self.at(soon)))
            }
            (false, 2) => {
                self.plan(soon, Happening::CallerCancels(request));
                self.wait_until(None)
            }
            (false, _) => {
                self.plan(soon, Happening::CallerGoes(request));
                self.wait_until(None)
            }
        };
        if self.random.one_in(6) {
            let at = self.clock + self.random.up_to(3_000);
            self.plan(at, Happening::CallerGoes(request));
        }
        ask
    }

    /// A wait, which is sometimes to end with a slice.
    fn wait_until(&mut self, until: Option<Instant>) -> Ask {
        let is_sliced = self.random.one_in(4);
        let slice = is_sliced.then(|| Duration::from_micros(self.random.up_to(6_000)));
        Ask::Lock { lock: LOCK, until, slice }
    }

    /// Drives the machine until the request is over.
    fn see_through(&mut self) -> Result<Outcome, Loss> {
        loop {
            match self.driver.poll(self.now())? {
                Action::Done(outcome) => {
                    let late = self.request.cancels > 0 && outcome == Outcome::Acquired;
                    self.see_if(late, Case::Regained);
                    return Ok(outcome);
                }
                Action::SendCancel => self.send_cancel(),
                Action::Wait { until } => {
                    self.send();
                    self.set_alarm(until);
                    self.happen();
                }
            }
        }
    }

    fn set_alarm(&mut self, until: Option<Instant>) {
        if self.alarm != until {
            self.alarm = until;
            if let Some(until) = until {
                // Not before that, by a clock that only counts microseconds.
                let awake = until.duration_since(self.epoch) + Duration::from_nanos(999);
                self.plan(microseconds(awake) + self.sleep.total, Happening::ClockReaches);
            }
        }
    }

    fn send(&mut self) {
        let bytes = self.driver.send();
        if !bytes.is_empty() {
            let delay = self.random.up_to(900);
            self.reaches_server_by = self.reaches_server_by.max(self.clock + delay);
            self.plan(self.reaches_server_by, Happening::ReachesServer(Bytes(bytes)));
        }
    }

    /// The server signals the process first and closes the socket after.
    fn send_cancel(&mut self) {
        self.note(format_args!("CancelRequest"));
        self.see_if(self.request.cancels == 1, Case::RepeatedCancel);
        self.request.cancels += 1;
        self.request.withdrawn_at.get_or_insert(self.clock);
        let signals_at = self.clock + self.random.up_to(1_200);
        let ends_at = signals_at + self.random.up_to(1_200);
        if !self.random.one_in(8) {
            self.plan(signals_at, Happening::SignalReachesProcess(self.request.number));
        }
        self.plan(ends_at, Happening::CancelSocketEnds);
    }

    /// Lets the next thing on the agenda happen.
    fn happen(&mut self) {
        let Reverse((at, _, happening)) = self.agenda.pop().expect("the machine waits for nothing");
        self.clock = at;
        if happening != Happening::ClockReaches {
            self.note(format_args!("{happening:?}"));
        }
        match happening {
            Happening::ReachesServer(Bytes(bytes)) => {
                if self.network != Network::LosesAll {
                    self.received.extend(bytes);
                    self.run_next_command();
                }
            }
            Happening::ReachesClient(Bytes(bytes)) => self.driver.receive(&bytes),
            Happening::SignalReachesProcess(request) => self.signal(request),
            Happening::CancelSocketEnds => self.driver.cancel_ended(self.now()),
            Happening::CommandEnds => self.end_command(),
            Happening::OtherTakes => self.other_takes(),
            Happening::OtherReleases => self.other_releases(),
            Happening::PoolEmpties => self.pool_empties(),
            Happening::PoolFills => self.pool_fills(),
            Happening::CallerCancels(of) if of == self.request.number => {
                self.gives_up();
                self.driver.cancel(self.now());
            }
            Happening::CallerGoes(of) if of == self.request.number => {
                self.gives_up();
                self.request.caller_gone = true;
                self.driver.abandon(self.now());
            }
            Happening::CallerCancels(_) | Happening::CallerGoes(_) | Happening::ClockReaches => {}
            Happening::ServerShutsDown => self.end_session(),
            Happening::ServerFallsSilent => self.network = Network::LosesAnswers,
            Happening::NetworkIsCut => self.network = Network::LosesAll,
            Happening::LeaseEnds(commands) => {
                if self.doing == Doing::Reads && self.leased.commands == commands {
                    self.end_lease();
                }
            }
        }
    }

    fn end_session(&mut self) {
        if self.doing != Doing::Gone {
            let last_words = self.pooler.process().shut_down();
            self.doing = Doing::Gone;
            self.reply(&last_words);
        }
    }

    fn gives_up(&mut self) {
        let at = self.request.gives_up_at.map_or(self.clock, |at| at.min(self.clock));
        self.request.gives_up_at = Some(at);
        self.see_if(matches!(self.doing, Doing::Queues(..)), Case::LeftQueue);
    }

    fn run_next_command(&mut self) {
        if self.doing != Doing::Reads {
            return;
        }
        let Some(command) = Command::read(&mut self.received) else { return };
        self.leased.commands += 1;
        let confirms = command.is_heartbeat() && self.request.asked != Some(Ask::Heartbeat);
        self.see_if(confirms, Case::Confirmed);
        if self.pooler_moves && self.random.one_in(4) {
            self.pooler.swap();
            let process = self.pooler.process().id();
            self.note(format_args!("the pooler lends process {process}"));
        }
        if command.begins() {
            self.queue(command);
        } else {
            if self.driver.holds_one_lock() && self.pooler.home.transaction() == Transaction::None {
                self.problem = Some("asked outside a transaction");
            }
            self.start(command);
        }
    }

    fn start(&mut self, command: Command) {
        self.doing = Doing::Runs(command);
        let ends_at = self.clock + self.random.up_to(200);
        self.plan(ends_at, Happening::CommandEnds);
    }

    /// The pooler lends a process for each transaction.
    fn queue(&mut self, command: Command) {
        self.pooler.queued_for = 0;
        if self.pooler.is_empty {
            self.seen.push(Case::Queued);
            self.doing = Doing::Queues(command, self.clock);
            // Now and then until the very moment at which the machine's patience ends.
            if self.random.one_in(8) {
                let patience = if self.random.one_in(2) { OPEN_WITHIN } else { TRY_WITHIN };
                let ends_at = self.clock + microseconds(patience) + self.random.up_to(12_000);
                self.plan_filling(ends_at - 4_000);
            }
        } else {
            self.pooler.lend();
            self.start(command);
        }
    }

    fn pool_empties(&mut self) {
        self.pooler.is_empty = true;
        let longest = match self.random.up_to(64) {
            0 => 60_000_000,
            1..4 => 2_000_000,
            _ => 4_000,
        };
        let at = self.clock + self.random.up_to(longest);
        self.plan_filling(at);
    }

    fn plan_filling(&mut self, at: u64) {
        self.pooler.fills_at = at;
        self.plan(at, Happening::PoolFills);
    }

    fn pool_fills(&mut self) {
        if self.clock != self.pooler.fills_at {
            return;
        }
        self.pooler.is_empty = false;
        if let Doing::Queues(command, since) = self.doing.clone() {
            self.queue(command);
            self.pooler.queued_for = self.clock - since;
        }
        self.plan_pool();
    }

    fn plan_pool(&mut self) {
        let at = self.clock + self.random.up_to(12_000);
        self.plan(at, Happening::PoolEmpties);
    }

    fn end_command(&mut self) {
        let Doing::Runs(command) = self.doing.clone() else { return };
        if command.can_fail() && self.random.one_in(100) {
            self.request.failed = true;
            self.seen.push(Case::Refused);
            self.fail(&command, TIMEOUT);
        } else if command.is_wait() && !self.is_free() {
            self.doing = Doing::Waits(command);
        } else {
            self.complete(&command);
        }
    }

    fn complete(&mut self, command: &Command) {
        let late = command.is_wait() && self.request.cancels > 0;
        self.see_if(late, Case::LateGrant);
        let is_free = self.is_free();
        self.request.answered_elsewhere |= self.pooler.is_elsewhere();
        let answer = self.pooler.process().run(command, is_free);
        self.answer(&answer);
    }

    /// Whether the session's process can have the lock.
    fn is_free(&self) -> bool {
        !self.other_holds && self.pooler.leaves_lock()
    }

    /// A signal does nothing to a process that waits for its next command. Otherwise it may only hit the
    /// wait that it was sent for.
    fn signal(&mut self, request: u32) {
        match self.doing.clone() {
            Doing::Reads | Doing::Gone => self.seen.push(Case::LostCancel),
            Doing::Queues(..) => self.problem = Some("a CancelRequest came while in the queue"),
            Doing::Runs(command) | Doing::Waits(command) => {
                if request != self.request.number || !command.is_wait() {
                    self.problem = Some("a signal hit a later request");
                }
                self.fail(&command, QUERY_CANCELED);
            }
        }
    }

    /// Whatever ends a wait, the lock may have been granted a moment before. A session then keeps it.
    fn fail(&mut self, command: &Command, sqlstate: &str) {
        let may_keep = command.is_wait() && !self.driver.holds_one_lock();
        if may_keep && self.random.one_in(4) {
            if std::mem::take(&mut self.other_holds) {
                self.plan_other();
            }
            if self.is_free() {
                self.seen.push(Case::HiddenGrant);
                self.pooler.process().grant();
            }
        }
        let failure = self.pooler.process().fail(command, sqlstate);
        self.answer(&failure);
    }

    fn other_takes(&mut self) {
        if self.pooler.holds_nothing() {
            self.other_holds = true;
            // Now and then so long that only a CancelRequest ends the wait.
            let longest = if self.random.one_in(4) { 60_000_000 } else { 12_000 };
            let at = self.clock + self.random.up_to(longest);
            self.plan(at, Happening::OtherReleases);
        } else {
            self.plan_other();
        }
    }

    fn other_releases(&mut self) {
        if std::mem::take(&mut self.other_holds) {
            if let Doing::Waits(command) = self.doing.clone() {
                if self.is_free() {
                    self.complete(&command);
                }
            }
            self.plan_other();
        }
    }

    fn plan_other(&mut self) {
        let at = self.clock + 1 + self.random.up_to(5_000);
        self.plan(at, Happening::OtherTakes);
    }

    /// Answers the command and reads the next.
    fn answer(&mut self, answer: &[u8]) {
        self.doing = Doing::Reads;
        self.reply(answer);
        self.run_lease();
        self.run_next_command();
    }

    /// Sends bytes to the client, cut in two anywhere.
    fn reply(&mut self, bytes: &[u8]) {
        if self.network != Network::Works {
            return;
        }
        let cut = usize::try_from(self.random.up_to(u64::try_from(bytes.len()).unwrap())).unwrap();
        let (head, tail) = bytes.split_at(cut);
        let longest = self.longest_delay();
        for piece in [head, tail] {
            let delay = self.random.up_to(longest);
            self.reaches_client_by = self.reaches_client_by.max(self.clock + delay);
            self.plan(self.reaches_client_by, Happening::ReachesClient(Bytes(piece.to_vec())));
        }
    }

    fn plan(&mut self, at: u64, happening: Happening) {
        self.planned += 1;
        self.agenda.push(Reverse((at.max(self.clock), self.planned, happening)));
    }

    fn see_if(&mut self, happened: bool, case: Case) {
        if happened {
            self.seen.push(case);
        }
    }

    fn note(&mut self, what: Arguments<'_>) {
        if let Some(script) = &mut self.script {
            writeln!(script, "{:>9} us  {what}", self.clock).unwrap();
        }
    }

    fn now(&self) -> Instant {
        self.at(self.sleep.since.unwrap_or(self.clock))
    }

    /// By the clock of the machine's machine, which stands still while that sleeps.
    fn at(&self, clock: u64) -> Instant {
        self.epoch + Duration::from_micros(clock - self.sleep.total)
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap()
}

pub(super) fn logged_in() -> Connection {
    log_in().0
}

pub(in super::super) fn log_in() -> (Connection, ServerIdentity) {
    let credentials = Credentials::new(String::from("u"), None, [0; 18]);
    let mut connection = Connection::new(credentials, &[]);
    connection.sent(connection.outgoing().len());
    let login = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";
    connection.received().extend_from_slice(login);
    loop {
        if let Some(Event::LoggedIn(identity)) = connection.poll_event().unwrap() {
            return (connection, *identity);
        }
    }
}
