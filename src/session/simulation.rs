//! The machine against a model of the server, in simulated time, from a seed.
//!
//! The model has one lock that somebody else takes and gives back, delays in both directions, cancel
//! signals that come early, late or never, and answers cut anywhere. After each request, what the
//! client believes is compared with what the server knows. A failing seed prints what happened.

use std::collections::BinaryHeap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use super::advisory::LockId;
use super::machine::{Action, Ask, Loss, Machine, Outcome, SETTLE_WITHIN};
use crate::key::{Key, Mode};
use crate::protocol::{Connection, Credentials, Event};

const LOCK: LockId = LockId { key: Key::bigint(42), mode: Mode::Exclusive };
const SEEDS: u64 = 20_000;
const REQUESTS: u32 = 6;

#[test]
fn books_and_server_agree_whatever_the_timing() {
    let seeds = std::env::var("PGLOCK_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let mut seen = Seen::default();
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let mut world = World::new(seed);
        if let Err(problem) = world.run() {
            panic!("seed {seed}: {problem}\n{}", world.script);
        }
        seen.add(&world.seen);
    }
    // Otherwise the simulation would show less than it seems to.
    let Seen { hidden_grants, lost_cancels, repeated_cancels, late_grants, regained, losses } =
        seen;
    for count in [hidden_grants, lost_cancels, repeated_cancels, late_grants, regained, losses] {
        assert!(count > 20, "a case hardly came up: {seen:?}");
    }
}

/// How often the cases came up for which the machine is there.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// The server said "canceled" and had granted the lock.
    hidden_grants: u32,
    /// A signal found the process between two commands.
    lost_cancels: u32,
    /// A second `CancelRequest` was sent for a wait.
    repeated_cancels: u32,
    /// The lock was granted while a `CancelRequest` was under way.
    late_grants: u32,
    /// A caller out of time got the lock all the same.
    regained: u32,
    /// The session was lost.
    losses: u32,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.hidden_grants += other.hidden_grants;
        self.lost_cancels += other.lost_cancels;
        self.repeated_cancels += other.repeated_cancels;
        self.late_grants += other.late_grants;
        self.regained += other.regained;
        self.losses += other.losses;
    }
}

/// What happens at some time. Times are microseconds since the start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    ReachesServer(Vec<u8>),
    ReachesClient(Vec<u8>),
    SignalReachesProcess,
    CancelSocketEnds,
    CommandEnds,
    OtherTakes,
    OtherReleases,
    CallerCancels(u32),
    CallerGoes(u32),
    ServerShutsDown,
    ServerFallsSilent,
    ClockReaches,
}

/// What the session's process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    ReadsCommand,
    Runs(Command),
    Waits,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Lock,
    TryLock,
    Unlock,
}

struct World {
    random: Random,
    clock: u64,
    epoch: Instant,
    agenda: BinaryHeap<std::cmp::Reverse<(u64, u64, Happening)>>,
    planned: u64,
    machine: Machine,
    process: Process,
    /// How often the session's process holds the lock.
    held: u32,
    other_holds: bool,
    silent: bool,
    received: Vec<u8>,
    reaches_server_by: u64,
    reaches_client_by: u64,
    cancels_of_this_wait: u32,
    caller_gone: bool,
    stray_signals: u32,
    seen: Seen,
    script: String,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random(seed),
            clock: 0,
            epoch: Instant::now(),
            agenda: BinaryHeap::new(),
            planned: 0,
            machine: Machine::new(logged_in()),
            process: Process::ReadsCommand,
            held: 0,
            other_holds: false,
            silent: false,
            received: Vec::new(),
            reaches_server_by: 0,
            reaches_client_by: 0,
            cancels_of_this_wait: 0,
            caller_gone: false,
            stray_signals: 0,
            seen: Seen::default(),
            script: String::new(),
        };
        world.plan(0, Happening::OtherTakes);
        if world.random.one_in(40) {
            let at = world.random.up_to(40_000);
            world.plan(at, Happening::ServerShutsDown);
        }
        if world.random.one_in(40) {
            let at = world.random.up_to(40_000);
            world.plan(at, Happening::ServerFallsSilent);
        }
        world
    }

    fn run(&mut self) -> Result<(), String> {
        let mut believed = false;
        for request in 0..REQUESTS {
            let asked_at = self.clock;
            let ask = self.ask(request, believed);
            self.machine.ask(ask.clone(), self.now()).map_err(|error| error.to_string())?;
            let outcome = match self.see_through(request) {
                Ok(outcome) => outcome,
                Err(loss) => return self.check_loss(&loss, asked_at),
            };
            self.note(&format!("{outcome:?}"));
            if self.caller_gone && outcome == Outcome::Acquired {
                return Err(String::from("acquired for nobody"));
            }
            believed = match (&ask, &outcome) {
                (Ask::Lock(..) | Ask::TryLock(_), Outcome::Acquired) => true,
                (Ask::Lock(..) | Ask::TryLock(_), Outcome::NotAcquired)
                | (Ask::Unlock(_), Outcome::Released) => false,
                other => return Err(format!("{other:?} makes no sense")),
            };
            // The news that the session is over may still be under way.
            if self.process != Process::Gone && self.held != u32::from(believed) {
                return Err(format!("believed held: {believed}, on the server: {}", self.held));
            }
            if self.stray_signals > 0 {
                return Err(String::from("a signal hit a later request"));
            }
        }
        Ok(())
    }

    /// A session may be lost when the server says so or is silent; and then soon.
    fn check_loss(&mut self, loss: &Loss, asked_at: u64) -> Result<(), String> {
        self.seen.losses += 1;
        let taken = Duration::from_micros(self.clock - asked_at);
        match loss {
            Loss::Ended(_) if self.process == Process::Gone => Ok(()),
            Loss::Silent(_) if self.silent => Ok(()),
            Loss::Unsettled(_) if self.silent && taken < 4 * SETTLE_WITHIN => Ok(()),
            loss => Err(format!("{loss:?} after {taken:?}")),
        }
    }

    fn ask(&mut self, request: u32, held: bool) -> Ask {
        self.cancels_of_this_wait = 0;
        self.caller_gone = false;
        let soon = self.clock + self.random.up_to(8_000);
        let ask = match (held, self.random.up_to(4)) {
            (true, _) => Ask::Unlock(LOCK),
            (false, 0) => Ask::TryLock(LOCK),
            (false, 1) => Ask::Lock(LOCK, Some(self.at(soon))),
            (false, 2) => {
                self.plan(soon, Happening::CallerCancels(request));
                Ask::Lock(LOCK, None)
            }
            (false, _) => {
                self.plan(soon, Happening::CallerGoes(request));
                Ask::Lock(LOCK, None)
            }
        };
        if self.random.one_in(6) {
            let at = self.clock + self.random.up_to(3_000);
            self.plan(at, Happening::CallerGoes(request));
        }
        self.note(&format!("request {request}: {ask:?}"));
        ask
    }

    /// Drives the machine until the request is over.
    fn see_through(&mut self, request: u32) -> Result<Outcome, Loss> {
        loop {
            match self.machine.poll(self.now())? {
                Action::Done(outcome) => {
                    let late = self.cancels_of_this_wait > 0 && outcome == Outcome::Acquired;
                    self.seen.regained += u32::from(late);
                    return Ok(outcome);
                }
                Action::SendCancel => self.send_cancel(),
                Action::Wait { until } => {
                    self.send();
                    if let Some(until) = until {
                        let until = until.duration_since(self.epoch).as_micros();
                        self.plan(u64::try_from(until).unwrap(), Happening::ClockReaches);
                    }
                    self.happen(request);
                }
            }
        }
    }

    fn send(&mut self) {
        let bytes = self.machine.connection().outgoing().to_vec();
        if !bytes.is_empty() {
            self.machine.connection().sent(bytes.len());
            let delay = self.random.up_to(900);
            self.reaches_server_by = self.reaches_server_by.max(self.clock + delay);
            self.plan(self.reaches_server_by, Happening::ReachesServer(bytes));
        }
    }

    /// The server signals the process first and closes the socket after.
    fn send_cancel(&mut self) {
        self.note("CancelRequest");
        self.seen.repeated_cancels += u32::from(self.cancels_of_this_wait == 1);
        self.cancels_of_this_wait += 1;
        let signals_at = self.clock + self.random.up_to(1_200);
        let ends_at = signals_at + self.random.up_to(1_200);
        if !self.random.one_in(8) {
            self.plan(signals_at, Happening::SignalReachesProcess);
        }
        self.plan(ends_at, Happening::CancelSocketEnds);
    }

    /// Lets the next thing on the agenda happen.
    fn happen(&mut self, request: u32) {
        let std::cmp::Reverse((at, _, happening)) =
            self.agenda.pop().expect("the machine waits for nothing");
        self.clock = at;
        if happening != Happening::ClockReaches {
            self.note(&format!("{happening:?}"));
        }
        match happening {
            Happening::ReachesServer(bytes) => {
                self.received.extend(bytes);
                self.run_next_command();
            }
            Happening::ReachesClient(bytes) => {
                self.machine.connection().received().extend_from_slice(&bytes);
            }
            Happening::SignalReachesProcess => self.signal(),
            Happening::CancelSocketEnds => self.machine.cancel_ended(self.now()),
            Happening::CommandEnds => self.end_command(),
            Happening::OtherTakes => self.other_takes(),
            Happening::OtherReleases => self.other_releases(),
            Happening::CallerCancels(of) if of == request => self.machine.cancel(self.now()),
            Happening::CallerGoes(of) if of == request => {
                self.caller_gone = true;
                self.machine.abandon(self.now());
            }
            Happening::CallerCancels(_) | Happening::CallerGoes(_) | Happening::ClockReaches => {}
            Happening::ServerShutsDown => {
                self.process = Process::Gone;
                self.held = 0;
                self.reply(b"E\0\0\0\x1cSFATAL\0VFATAL\0C57P01\0M\0\0");
            }
            Happening::ServerFallsSilent => self.silent = true,
        }
    }

    fn run_next_command(&mut self) {
        if self.process != Process::ReadsCommand || self.received.len() < 29 {
            return;
        }
        let message: Vec<u8> = self.received.drain(..29).collect();
        let command = match &message[5..9] {
            [0, 0, 0x0b, 0x40] => Command::Lock,
            [0, 0, 0x0b, 0x42] => Command::TryLock,
            [0, 0, 0x0b, 0x44] => Command::Unlock,
            other => panic!("function {other:?}"),
        };
        self.process = Process::Runs(command);
        let ends_at = self.clock + self.random.up_to(200);
        self.plan(ends_at, Happening::CommandEnds);
    }

    fn end_command(&mut self) {
        let Process::Runs(command) = self.process else { return };
        match command {
            Command::Lock if self.other_holds => self.process = Process::Waits,
            Command::Lock => self.grant(),
            Command::TryLock => {
                let free = !self.other_holds;
                self.held += u32::from(free);
                self.answer(if free { TRUE } else { FALSE });
            }
            Command::Unlock => {
                let held = self.held > 0;
                self.held = self.held.saturating_sub(1);
                self.answer(if held { TRUE } else { FALSE });
            }
        }
    }

    fn grant(&mut self) {
        self.seen.late_grants += u32::from(self.cancels_of_this_wait > 0);
        self.held += 1;
        self.answer(VOID);
    }

    fn signal(&mut self) {
        match self.process {
            Process::ReadsCommand | Process::Gone => self.seen.lost_cancels += 1,
            Process::Waits | Process::Runs(Command::Lock) => {
                if self.random.one_in(4) {
                    self.seen.hidden_grants += 1;
                    self.held += 1;
                    self.other_holds = false;
                    self.plan_other();
                }
                self.answer(CANCELED);
            }
            Process::Runs(_) => {
                self.stray_signals += 1;
                self.answer(CANCELED);
            }
        }
    }

    fn other_takes(&mut self) {
        if self.held == 0 {
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
            if self.process == Process::Waits {
                self.grant();
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
        self.process = Process::ReadsCommand;
        self.reply(&[answer, READY].concat());
        self.run_next_command();
    }

    /// Sends bytes to the client, cut in two anywhere.
    fn reply(&mut self, bytes: &[u8]) {
        if self.silent {
            return;
        }
        let cut = usize::try_from(self.random.up_to(u64::try_from(bytes.len()).unwrap())).unwrap();
        let (head, tail) = bytes.split_at(cut);
        for piece in [head, tail] {
            let delay = self.random.up_to(700);
            self.reaches_client_by = self.reaches_client_by.max(self.clock + delay);
            self.plan(self.reaches_client_by, Happening::ReachesClient(piece.to_vec()));
        }
    }

    fn plan(&mut self, at: u64, happening: Happening) {
        self.planned += 1;
        self.agenda.push(std::cmp::Reverse((at.max(self.clock), self.planned, happening)));
    }

    fn note(&mut self, what: &str) {
        writeln!(self.script, "{:>9} us  {what}", self.clock).unwrap();
    }

    fn now(&self) -> Instant {
        self.at(self.clock)
    }

    fn at(&self, clock: u64) -> Instant {
        self.epoch + Duration::from_micros(clock)
    }
}

const READY: &[u8] = b"Z\0\0\0\x05I";
const VOID: &[u8] = b"V\0\0\0\x08\0\0\0\0";
const TRUE: &[u8] = b"V\0\0\0\x09\0\0\0\x01\x01";
const FALSE: &[u8] = b"V\0\0\0\x09\0\0\0\x01\0";
const CANCELED: &[u8] = b"E\0\0\0\x1cSERROR\0VERROR\0C57014\0M\0\0";

fn logged_in() -> Connection {
    let credentials = Credentials::new(String::from("u"), None, [0; 18]);
    let mut connection = Connection::new(credentials, &[]);
    connection.sent(connection.outgoing().len());
    let login = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";
    connection.received().extend_from_slice(login);
    while !matches!(connection.poll_event(), Ok(Some(Event::LoggedIn(_)))) {}
    connection
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn up_to(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.up_to(n) == 0
    }
}
