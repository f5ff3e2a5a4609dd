//! The core against a model of the server, in simulated time, from a seed.
//!
//! Tasks of this process and somebody else's sessions want a few keys; sessions take their time, are lost,
//! and cannot be opened for a while. After each step, what those who have guards believe is compared with
//! what the server knows. In the end everybody has to have been served, and nothing may be left.
//!
//! ```sh
//! PGLOCK_SEEDS=1000000 cargo test --release --lib manager::simulation
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{
    Answer, Command, Core, Grant, Limits, Order, Patience, Reply, RequestId, SessionId,
};
use super::stats::Stats;
use crate::error::{Error, ErrorKind};
use crate::holders::Holders;
use crate::key::{Key, Mode};
use crate::session::{Choice, LockId};

const SEEDS: u64 = 2_000;
/// In how many a defect has to show itself.
const SEEDS_FOR_DEFECT: u64 = 1_000;
const TASKS: u64 = 12;
const TURNS: u32 = 4;
const STRANGERS: u64 = 3;
const INSPECTORS: u64 = 4;
const MS: Duration = Duration::from_millis(1);
/// For how long somebody keeps a key, in some worlds.
const LONG_MS: u64 = 4_000;
/// By when everybody has to be served. None of 20,000 seeds takes two thirds of it.
const LATEST: Duration = Duration::from_secs(60);
/// How often a key has its place for longer than the time before.
const PLACE_DOUBLES: u32 = 6;

#[test]
fn guards_and_server_agree_and_everybody_is_served() {
    let seeds = std::env::var("PGLOCK_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let mut seen = Seen::default();
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let mut world = World::new(seed, None);
        if let Err(problem) = world.run() {
            let script = World::new(seed, None).script();
            panic!("seed {seed}: {problem}\n{script}");
        }
        seen.add(&world.seen);
    }
    // Otherwise the simulation would show less than it seems to.
    println!("{seen:?}");
    for (what, count) in seen.0 {
        assert!(count > 20, "{what} hardly came up");
    }
}

#[test]
fn each_planted_defect_is_found_and_its_script_replays_it() {
    for defect in Defect::ALL {
        let world = |seed| World::new(seed, Some(defect));
        let found = (0..SEEDS_FOR_DEFECT).find_map(|seed| Some((seed, world(seed).run().err()?)));
        let Some((seed, problem)) = found else {
            panic!("{defect:?}: not found in {SEEDS_FOR_DEFECT} seeds");
        };
        println!("{defect:?}: found by seed {seed}");
        let script = world(seed).script();
        assert!(script.ends_with(&format!("{:?}", Err::<(), _>(problem))), "{script}");
    }
}

/// What whoever carries out the core's commands could do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    /// A lock is said to be released, and is not.
    KeepsReleased,
    /// A lock that is busy is said to be acquired.
    TakesBusyForAcquired,
    /// The loss of a session is kept from the core.
    HidesLoss,
    /// A wait is said to be withdrawn, and is not.
    KeepsWaiting,
    /// A guard that is dropped is not released.
    ForgetsRelease,
    /// The core is never told the time.
    Oversleeps,
    /// Of several locks, those are tried as well that the core does not name.
    TriesMore,
    /// Of several locks, two are taken.
    TakesTwo,
}

impl Defect {
    const ALL: [Self; 8] = [
        Self::KeepsReleased,
        Self::TakesBusyForAcquired,
        Self::HidesLoss,
        Self::KeepsWaiting,
        Self::ForgetsRelease,
        Self::Oversleeps,
        Self::TriesMore,
        Self::TakesTwo,
    ];
}

/// How often things happened for which the core is there.
#[derive(Debug)]
struct Seen(BTreeMap<&'static str, u64>);

impl Default for Seen {
    fn default() -> Self {
        let all = [
            "handed over",
            "granted",
            "busy",
            "failed",
            "given up",
            "waited",
            "withdrawn",
            "try withdrawn",
            "unserved",
            "granted after all",
            "lost",
            "not opened",
            "readers together",
            "paused",
            "crowded",
            "passed on",
            "shared one waits",
            "probed",
            "inspected",
            "not inspected",
            "inspection forgotten",
            "one of several",
            "none of several",
        ];
        Self(all.into_iter().map(|what| (what, 0)).collect())
    }
}

impl Seen {
    fn note(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }
}

/// Whoever holds or awaits a lock at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Party {
    Session(SessionId),
    Stranger(u64),
}

/// The locks of a server, as PostgreSQL grants them: in the order of the queue.
#[derive(Debug, Default)]
struct Server {
    holders: BTreeMap<Key, BTreeMap<Party, Mode>>,
    queues: BTreeMap<Key, VecDeque<(Party, Mode)>>,
}

impl Server {
    fn try_lock(&mut self, party: Party, lock: LockId) -> bool {
        let queue = self.queues.get(&lock.key);
        let is_behind =
            queue.is_some_and(|queue| queue.iter().any(|(_, mode)| conflict(*mode, lock.mode)));
        if is_behind || self.is_busy(lock) {
            return false;
        }
        self.holders.entry(lock.key).or_default().insert(party, lock.mode);
        true
    }

    fn holds(&self, party: Party, key: Key) -> bool {
        self.holders.get(&key).is_some_and(|holders| holders.contains_key(&party))
    }

    fn is_busy(&self, lock: LockId) -> bool {
        let holders = self.holders.get(&lock.key);
        holders.is_some_and(|holders| holders.values().any(|mode| conflict(*mode, lock.mode)))
    }

    /// Whether the lock is held at once.
    fn wait(&mut self, party: Party, lock: LockId) -> bool {
        let granted = self.try_lock(party, lock);
        if !granted {
            self.queues.entry(lock.key).or_default().push_back((party, lock.mode));
        }
        granted
    }

    /// Whether the party was in the queue.
    fn withdraw(&mut self, party: Party, key: Key) -> bool {
        let Some(queue) = self.queues.get_mut(&key) else { return false };
        let before = queue.len();
        queue.retain(|(waiter, _)| *waiter != party);
        before != queue.len()
    }

    fn unlock(&mut self, party: Party, key: Key) -> bool {
        self.holders.get_mut(&key).is_some_and(|holders| holders.remove(&party).is_some())
    }

    /// Grants what is free now.
    fn grant(&mut self) -> Vec<(Party, Key)> {
        let mut granted = Vec::new();
        let keys: Vec<_> = self.queues.keys().copied().collect();
        for key in keys {
            while let Some((party, mode)) = self.queues.get(&key).and_then(VecDeque::front).copied()
            {
                if self.is_busy(LockId { key, mode }) {
                    break;
                }
                self.queues.entry(key).or_default().pop_front();
                self.holders.entry(key).or_default().insert(party, mode);
                granted.push((party, key));
            }
        }
        granted
    }

    fn end(&mut self, party: Party) {
        self.holders.values_mut().for_each(|holders| _ = holders.remove(&party));
        self.queues.values_mut().for_each(|queue| queue.retain(|(waiter, _)| *waiter != party));
    }

    fn held_by(&self, party: Party) -> usize {
        self.holders.values().filter(|holders| holders.contains_key(&party)).count()
    }

    fn awaits(&self, party: Party) -> bool {
        self.queues.values().flatten().any(|(waiter, _)| *waiter == party)
    }
}

fn conflict(one: Mode, other: Mode) -> bool {
    (one, other) != (Mode::Shared, Mode::Shared)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A task goes on.
    Task(u64),
    /// A task runs out of time.
    TimeOut(u64, RequestId),
    /// Somebody else's session goes on.
    Stranger(u64),
    /// Somebody asks who holds a key, or does not want to know any more.
    Inspector(u64),
    Opened(SessionId),
    /// An order has reached the server.
    Begin(SessionId, u64),
    /// The answer has come back.
    Answer(SessionId, u64, Outcome),
    /// The server ends a session.
    Lose(SessionId),
    /// This side hears of it.
    Lost(SessionId),
    /// A wait that is to end is ended at the server.
    Withdrawn(SessionId, u64),
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Acquired,
    NotAcquired,
    Released,
    Failed,
    Probed(bool),
    Inspected(RequestId),
    One(LockId),
}

/// A session as its task drives it.
#[derive(Debug, Default)]
struct Session {
    is_open: bool,
    /// At the server.
    is_over: bool,
    orders: VecDeque<Order>,
    doing: Option<Order>,
    /// What it tries, if it is to try several locks.
    choice: Option<Arc<Choice>>,
    /// Which of its orders that is.
    done: u64,
    answering: bool,
}

#[derive(Debug)]
struct Task {
    turns_left: u32,
    /// This lock, or any one.
    wants: Option<(RequestId, Option<LockId>)>,
    waits: bool,
    guard: Option<(SessionId, LockId)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    waiting: u64,
    guards: usize,
    requests: u64,
    granted: u64,
    busy: u64,
    failed: u64,
    given_up: u64,
    cancels: u64,
    connects: u64,
    connect_failures: u64,
    lost_sessions: u64,
}

impl From<Stats> for Counted {
    fn from(stats: Stats) -> Self {
        Self {
            waiting: stats.waiting,
            guards: stats.guards,
            requests: stats.requests,
            granted: stats.granted,
            busy: stats.busy,
            failed: stats.failed,
            given_up: stats.given_up,
            cancels: stats.cancels,
            connects: stats.connects,
            connect_failures: stats.connect_failures,
            lost_sessions: stats.lost_sessions,
        }
    }
}

/// A lock since the server granted it, or last said that nobody else waits for it.
#[derive(Debug)]
struct Cohort {
    since: Instant,
    hand_overs: u32,
    /// In which step it was first granted to a task, and in which it was last.
    granted: Option<(u64, u64)>,
}

struct World {
    defect: Option<Defect>,
    core: Core<u64>,
    limits: Limits,
    random: Random,
    now: Instant,
    begun: Instant,
    events: BTreeMap<(Instant, u64), Event>,
    /// The next time of the core's clock among them.
    next_tick: Option<Instant>,
    scheduled: u64,
    server: Server,
    sessions: BTreeMap<SessionId, Session>,
    told_to_close: BTreeSet<SessionId>,
    /// Those on which a key was tried.
    tried_on: BTreeSet<SessionId>,
    sessions_max: usize,
    one_key_each: bool,
    tasks: Vec<Task>,
    strangers: Vec<(u32, Option<Key>)>,
    /// How long they keep a key at most.
    strangers_keep_ms: u64,
    /// Since when, and since which step, keys are known to be busy and wanted, and have no session.
    crowded_out: BTreeMap<Key, (Instant, u64)>,
    /// What each wants to know.
    inspectors: Vec<Option<RequestId>>,
    /// The last request that was granted of each key.
    granted: BTreeMap<Key, RequestId>,
    cohorts: BTreeMap<Key, Cohort>,
    /// What another session has by now, although nobody of this side has heard that this one is over.
    superseded: BTreeSet<(SessionId, Key)>,
    keys: i32,
    step: u64,
    seen: Seen,
    /// What the core should have counted.
    counted: Counted,
    happening: Option<Event>,
    script: Option<String>,
}

impl World {
    fn new(seed: u64, defect: Option<Defect>) -> Self {
        let mut random = Random(seed);
        let sessions_max = 1 + usize::try_from(random.up_to(4)).unwrap();
        let limits = Limits {
            sessions: sessions_max,
            hand_overs: u32::try_from(random.up_to(4)).unwrap(),
            hand_overs_for: MS * u32::try_from(random.up_to(100)).unwrap(),
            place_for: MS * u32::try_from(1 + random.up_to(10)).unwrap(),
        };
        let one_key_each = random.one_in(4);
        let strangers_keep_ms = if random.one_in(8) { LONG_MS } else { 100 };
        let now = Instant::now();
        let mut world = Self {
            defect,
            core: Core::new(limits, random.next()),
            limits,
            now,
            begun: now,
            events: BTreeMap::new(),
            next_tick: None,
            scheduled: 0,
            server: Server::default(),
            sessions: BTreeMap::new(),
            told_to_close: BTreeSet::new(),
            tried_on: BTreeSet::new(),
            sessions_max,
            one_key_each,
            tasks: Vec::new(),
            strangers: vec![(TURNS, None); usize::try_from(STRANGERS).unwrap()],
            strangers_keep_ms,
            crowded_out: BTreeMap::new(),
            inspectors: vec![None; usize::try_from(INSPECTORS).unwrap()],
            granted: BTreeMap::new(),
            cohorts: BTreeMap::new(),
            superseded: BTreeSet::new(),
            keys: 1 + i32::try_from(random.up_to(4)).unwrap(),
            step: 0,
            seen: Seen::default(),
            counted: Counted::default(),
            happening: None,
            script: None,
            random,
        };
        for task in 0..TASKS {
            world.tasks.push(Task { turns_left: TURNS, wants: None, waits: false, guard: None });
            world.after(200, Event::Task(task));
        }
        for stranger in 0..STRANGERS {
            world.after(200, Event::Stranger(stranger));
        }
        for inspector in 0..INSPECTORS {
            world.after(300, Event::Inspector(inspector));
        }
        world
    }

    /// What happened.
    fn script(mut self) -> String {
        self.script = Some(String::new());
        let end = self.run();
        format!("{}{end:?}", self.script.unwrap_or_default())
    }

    fn run(&mut self) -> Result<(), String> {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            if at - self.begun > LATEST {
                self.check_served()?;
            }
            self.tell(|| format!("{event:?}"));
            self.happening = Some(event);
            self.step += 1;
            self.happen(event)?;
            self.carry_out()?;
            for (party, key) in self.server.grant() {
                self.granted_at_server(party, key);
            }
            self.check()?;
            self.check_stats()?;
            self.set_the_clock();
        }
        self.check_end()
    }

    fn set_the_clock(&mut self) {
        if self.has(Defect::Oversleeps) {
            return;
        }
        let earlier = |next: &Instant| self.next_tick.is_none_or(|set| *next < set);
        if let Some(next) = self.core.next_tick().filter(earlier) {
            self.next_tick = Some(next);
            self.at(next, Event::Tick);
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Task(task) => self.go_on(task),
            Event::TimeOut(task, request) => self.time_out(task, request),
            Event::Stranger(stranger) => self.stranger_goes_on(stranger),
            Event::Inspector(inspector) => self.inspector_goes_on(inspector),
            Event::Opened(session) => self.open(session),
            Event::Begin(session, number) => self.begin(session, number)?,
            Event::Answer(session, number, outcome) => {
                let failed = self.answer(session, number, outcome);
                self.carry_out()?;
                let wants =
                    |task: &&Task| task.wants.is_some_and(|(request, _)| failed.contains(&request));
                if let Some(task) = self.tasks.iter().find(wants) {
                    return Err(format!("an error is not told to {task:?}"));
                }
            }
            Event::Lose(session) => self.lose(session),
            Event::Lost(session) => {
                self.seen.note("lost");
                let is_lost = self.sessions.remove(&session).is_some()
                    && !self.told_to_close.contains(&session);
                self.counted.lost_sessions += u64::from(is_lost);
                if !self.has(Defect::HidesLoss) {
                    self.core.ended(session, Some(lost()), self.now);
                }
            }
            Event::Withdrawn(session, number) => self.withdrawn(session, number),
            Event::Tick => {
                self.next_tick = None;
                self.core.tick(self.now);
            }
        }
        Ok(())
    }

    fn go_on(&mut self, number: u64) {
        let (now, forgets) = (self.now, self.has(Defect::ForgetsRelease));
        let key = self.any_key();
        let wants_any = self.random.one_in(3);
        let mode = if self.random.one_in(2) { Mode::Exclusive } else { Mode::Shared };
        let patience = if self.random.one_in(3) { Patience::None } else { Patience::Waits };
        let task = &mut self.tasks[usize::try_from(number).unwrap()];
        if let Some((session, lock)) = task.guard.take() {
            if !forgets {
                self.core.release(session, lock.key, None, now);
            }
            return self.after(50, Event::Task(number));
        }
        if task.turns_left == 0 {
            return;
        }
        task.turns_left -= 1;
        self.counted.requests += 1;
        if wants_any {
            let choice = all_of(self.keys);
            task.wants = Some((self.core.request_any(choice, number, now), None));
        } else {
            let lock = LockId { key, mode };
            let request = self.core.request(lock, patience, number, now);
            task.wants = Some((request, Some(lock)));
            task.waits = patience == Patience::Waits;
            if self.one_key_each {
                self.crowded_out.entry(key).or_insert((now, self.step));
            }
        }
        let Some((request, _)) = task.wants else { return };
        if self.random.one_in(4) {
            self.after(100, Event::TimeOut(number, request));
        }
    }

    fn time_out(&mut self, number: u64, request: RequestId) {
        let task = &mut self.tasks[usize::try_from(number).unwrap()];
        if let Some((_, lock)) = task.wants.take_if(|(wanted, _)| *wanted == request) {
            self.seen.note("given up");
            match lock {
                Some(lock) => _ = self.core.give_up(lock.key, request, self.now),
                None => self.core.give_up_any(request),
            }
            self.counted.given_up += 1;
            self.after(50, Event::Task(number));
        }
    }

    fn any_key(&mut self) -> Key {
        let keys = u64::try_from(self.keys).unwrap();
        Key::pair(0, i32::try_from(self.random.up_to(keys)).unwrap())
    }

    fn stranger_goes_on(&mut self, number: u64) {
        let party = Party::Stranger(number);
        let key = self.any_key();
        let mode = if self.random.one_in(2) { Mode::Exclusive } else { Mode::Shared };
        let (turns_left, wants) = &mut self.strangers[usize::try_from(number).unwrap()];
        if let Some(key) = wants.take() {
            self.server.unlock(party, key);
        } else if let Some(fewer) = turns_left.checked_sub(1) {
            *turns_left = fewer;
            *wants = Some(key);
            if !self.server.wait(party, LockId { key, mode }) {
                return;
            }
        } else {
            return;
        }
        self.after(self.strangers_keep_ms, Event::Stranger(number));
    }

    fn inspector_goes_on(&mut self, number: u64) {
        let key = self.any_key();
        let wants = &mut self.inspectors[usize::try_from(number).unwrap()];
        if let Some(id) = wants.take() {
            self.seen.note("inspection forgotten");
            self.core.forget_inspection(id);
            return;
        }
        let id = self.core.inspect(key, TASKS + number, self.now);
        *wants = Some(id);
        if self.random.one_in(2) {
            self.after(50, Event::Inspector(number));
        }
    }

    fn open(&mut self, id: SessionId) {
        let fails = self.random.one_in(8);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let closes = session.orders.contains(&Order::Close);
        if closes || fails {
            self.seen.note("not opened");
            self.sessions.remove(&id);
            self.core.ended(id, (!closes).then(unreachable), self.now);
            self.counted.connect_failures += u64::from(!closes);
            // Where nobody can connect, nobody can be given a session in time.
            self.crowded_out.values_mut().for_each(|(since, _)| *since = self.now);
            return;
        }
        self.counted.connects += 1;
        session.is_open = true;
        self.core.opened(id, self.one_key_each, self.now);
        if self.random.one_in(3) {
            self.after(1000, Event::Lose(id));
        }
        self.go_on_with(id);
    }

    /// Takes the next order, if the last one is done.
    fn go_on_with(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.is_over || !session.is_open {
            return;
        }
        match session.doing {
            Some(Order::Wait(_) | Order::Try(_) | Order::TryAny(_))
                if session.orders.front() == Some(&Order::Withdraw) =>
            {
                session.orders.pop_front();
                let number = session.done;
                self.after(20, Event::Withdrawn(id, number));
            }
            Some(_) => {}
            None => {
                session.doing = session.orders.pop_front();
                session.answering = false;
                session.done += 1;
                let number = session.done;
                match session.doing {
                    Some(Order::TryAny(attempt)) => self.choose(id, attempt),
                    Some(Order::Try(_)) => self.begin_try(id, number),
                    // The wait or the try was over before it came.
                    Some(Order::Withdraw) => {
                        session.doing = None;
                        self.go_on_with(id);
                    }
                    Some(_) => self.after(20, Event::Begin(id, number)),
                    None => {}
                }
            }
        }
    }

    /// Asks the core which of several locks to try.
    fn choose(&mut self, id: SessionId, attempt: RequestId) {
        let choice = self.core.choose(id, attempt, self.now);
        let tries_more = self.has(Defect::TriesMore);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(choice) = choice else {
            session.doing = None;
            return self.go_on_with(id);
        };
        session.choice = Some(if tries_more { Arc::new(all_of(self.keys)) } else { choice });
        let number = session.done;
        self.begin_try(id, number);
    }

    /// A pooler may have no server connection for a while.
    fn begin_try(&mut self, id: SessionId, number: u64) {
        let within = if self.one_key_each { 100 } else { 20 };
        self.after(within, Event::Begin(id, number));
    }

    /// Takes the first of them that is free.
    fn take_one(&mut self, party: Party, choice: &Choice) -> Result<Outcome, String> {
        let takes_two = self.has(Defect::TakesTwo);
        let mut taken = None;
        for lock in choice.locks() {
            if self.server.holds(party, lock.key) && taken.is_none() {
                return Err(format!("{party:?} tries what it holds: {lock:?}"));
            }
            if !self.server.try_lock(party, lock) {
                continue;
            }
            let is_second = taken.replace(lock).is_some();
            if is_second || !takes_two {
                break;
            }
        }
        Ok(taken.map_or(Outcome::NotAcquired, Outcome::One))
    }

    /// The session, if the server has it and it still does this.
    fn doing(&mut self, id: SessionId, number: u64) -> Option<&mut Session> {
        let session = self.sessions.get_mut(&id)?;
        (!session.is_over && session.done == number).then_some(session)
    }

    fn begin(&mut self, id: SessionId, number: u64) -> Result<(), String> {
        let fails = self.random.one_in(50);
        let one_key_each = self.one_key_each;
        let [takes_busy, keeps_released] =
            [Defect::TakesBusyForAcquired, Defect::KeepsReleased].map(|defect| self.has(defect));
        let Some(session) = self.doing(id, number).filter(|session| !session.answering) else {
            return Ok(());
        };
        let party = Party::Session(id);
        let choice = session.choice.take();
        let outcome = match session.doing {
            Some(Order::Try(_) | Order::Wait(_) | Order::TryAny(_)) if fails => Outcome::Failed,
            Some(Order::TryAny(_)) => {
                self.take_one(party, choice.as_deref().ok_or("nothing was chosen")?)?
            }
            Some(Order::Try(lock)) => {
                self.tried_on.insert(id);
                if self.server.holds(party, lock.key) {
                    return Err(format!("session {id} tries what it holds: {lock:?}"));
                }
                let acquired = self.server.try_lock(party, lock) || takes_busy;
                if acquired { Outcome::Acquired } else { Outcome::NotAcquired }
            }
            Some(Order::Unlock(lock)) => {
                if !keeps_released && !self.server.unlock(party, lock.key) {
                    return Err(format!("session {id} unlocks what it does not hold: {lock:?}"));
                }
                Outcome::Released
            }
            Some(Order::Wait(lock)) => {
                let was_shared = !one_key_each && self.tried_on.contains(&id);
                self.seen.note(if was_shared { "shared one waits" } else { "waited" });
                if self.server.held_by(party) > 0 {
                    return Err(format!("session {id} waits while it holds something"));
                }
                if !self.server.wait(party, lock) {
                    return Ok(());
                }
                Outcome::Acquired
            }
            Some(Order::Probe(lock)) => {
                self.seen.note("probed");
                let queue = self.server.queues.get(&lock.key);
                Outcome::Probed(queue.is_some_and(|queue| !queue.is_empty()))
            }
            Some(Order::Inspect(id, _)) => Outcome::Inspected(id),
            Some(Order::Close) => {
                self.server.end(party);
                self.sessions.remove(&id);
                self.core.ended(id, None, self.now);
                return Ok(());
            }
            Some(Order::Withdraw) | None => return Ok(()),
        };
        self.answer_later(id, outcome);
        Ok(())
    }

    fn answer_later(&mut self, id: SessionId, outcome: Outcome) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.answering = true;
            let number = session.done;
            self.after(20, Event::Answer(id, number, outcome));
        }
    }

    fn granted_at_server(&mut self, party: Party, _: Key) {
        match party {
            Party::Session(id) => self.answer_later(id, Outcome::Acquired),
            Party::Stranger(number) => self.after(self.strangers_keep_ms, Event::Stranger(number)),
        }
    }

    fn withdrawn(&mut self, id: SessionId, number: u64) {
        let is_served = self.random.one_in(2);
        let session = self.doing(id, number).filter(|session| !session.answering);
        match session.and_then(|session| session.doing) {
            Some(Order::Wait(lock)) => {
                self.seen.note("withdrawn");
                // It may not even have begun.
                if !self.has(Defect::KeepsWaiting) {
                    self.server.withdraw(Party::Session(id), lock.key);
                }
                self.answer_later(id, Outcome::NotAcquired);
            }
            // In a pooler's queue, it has not begun.
            Some(Order::Try(_) | Order::TryAny(_)) if is_served => {
                self.seen.note("try withdrawn");
                self.answer_later(id, Outcome::NotAcquired);
            }
            Some(Order::Try(_) | Order::TryAny(_)) => {
                self.seen.note("unserved");
                self.sessions.remove(&id);
                self.core.ended(id, None, self.now);
            }
            // It was granted, and the answer is under way.
            _ => self.seen.note("granted after all"),
        }
    }

    /// Those who are to be told of an error.
    fn answer(&mut self, id: SessionId, number: u64, outcome: Outcome) -> Vec<RequestId> {
        let Some(session) = self.doing(id, number) else { return Vec::new() };
        if let Outcome::Inspected(question) = outcome {
            session.doing = None;
            self.core.inspected(id, question, Ok(Holders::nobody()), self.now);
            self.go_on_with(id);
            return Vec::new();
        }
        if let Some(Order::TryAny(attempt)) = session.doing {
            session.doing = None;
            self.answer_any(id, attempt, outcome);
            self.go_on_with(id);
            return if outcome == Outcome::Failed { vec![attempt] } else { Vec::new() };
        }
        let order = session.doing.take();
        let Some(Order::Try(lock) | Order::Wait(lock) | Order::Unlock(lock) | Order::Probe(lock)) =
            order
        else {
            return Vec::new();
        };
        let answer = match outcome {
            Outcome::Acquired | Outcome::One(_) => Answer::Acquired,
            Outcome::NotAcquired => Answer::NotAcquired,
            Outcome::Released => Answer::Released,
            Outcome::Probed(awaited) => Answer::Probed { awaited },
            Outcome::Inspected(_) => return Vec::new(),
            Outcome::Failed => Answer::Failed(full()),
        };
        if matches!(outcome, Outcome::Acquired | Outcome::Probed(false)) {
            self.begin_cohort(lock.key);
        }
        let wanted = self.tasks.iter().filter_map(|task| task.wants);
        let of_key =
            wanted.filter(|(_, wanted)| wanted.is_some_and(|wanted| wanted.key == lock.key));
        let failed = of_key.filter(|_| outcome == Outcome::Failed).map(|(request, _)| request);
        let failed = failed.collect();
        // Who has given up a place is in line once it has been tried again.
        let was_tried = self.one_key_each || matches!(order, Some(Order::Try(_)));
        // Who would share the key is heard before it counts as busy.
        if was_tried && !(outcome == Outcome::NotAcquired && self.may_be_shared(lock)) {
            self.note_crowded_out(lock.key, outcome);
        }
        self.core.answered(id, lock.key, answer, self.now);
        self.go_on_with(id);
        failed
    }

    fn answer_any(&mut self, id: SessionId, attempt: RequestId, outcome: Outcome) {
        let answer = match outcome {
            Outcome::One(lock) => {
                self.begin_cohort(lock.key);
                let guards = self.tasks.iter().filter_map(|task| task.guard);
                let others = guards.filter(|(session, of)| *session != id && of.key == lock.key);
                self.superseded.extend(others.map(|(session, of)| (session, of.key)));
                Ok(Some(lock))
            }
            Outcome::Failed => Err(full()),
            _ => Ok(None),
        };
        self.core.answered_any(id, attempt, answer, self.now);
    }

    /// A key may need a session to wait on, from now on.
    fn note_crowded_out(&mut self, key: Key, outcome: Outcome) {
        match outcome {
            Outcome::NotAcquired if self.is_awaited(key) => {
                self.crowded_out.entry(key).or_insert((self.now, self.step));
            }
            Outcome::Probed(_) => {}
            _ => _ = self.crowded_out.remove(&key),
        }
    }

    fn is_awaited(&self, key: Key) -> bool {
        let waiting = self.tasks.iter().filter(|task| task.waits);
        let mut wanted = waiting.filter_map(|task| task.wants?.1);
        wanted.any(|wanted| wanted.key == key)
    }

    /// Whether the next one in the queue could have what nobody could have alone.
    fn may_be_shared(&self, lock: LockId) -> bool {
        let wants = |task: &Task| {
            let (request, wanted) = task.wants?;
            let wanted = wanted.filter(|wanted| wanted.key == lock.key)?;
            let is_refused = !task.waits && wanted.mode == lock.mode;
            (!is_refused).then_some((request, wanted.mode))
        };
        let next = self.tasks.iter().filter_map(wants).min_by_key(|(request, _)| *request);
        lock.mode == Mode::Exclusive && next.is_some_and(|(_, mode)| mode == Mode::Shared)
    }

    /// Whether a session has anything to do with a key.
    fn is_served(&self, key: Key) -> bool {
        let sessions = self.sessions.values();
        let mut orders = sessions.flat_map(|session| session.orders.iter().chain(&session.doing));
        let holders = self.server.holders.get(&key);
        let mut holders = holders.into_iter().flat_map(BTreeMap::keys);
        orders.any(|order| key_of(order) == Some(key))
            || holders.any(|holder| matches!(holder, Party::Session(_)))
    }

    /// A session waits for a key: for none that has to stand back behind others.
    fn check_turn(&mut self, id: SessionId, key: Key) -> Result<(), String> {
        let entered = self.crowded_out.remove(&key);
        if self.one_key_each {
            return Ok(());
        }
        let Some((_, entered)) = entered else {
            return Err(format!("session {id} waits for {key}, which is not known to be busy"));
        };
        let sessions = self.sessions.values();
        let orders = sessions.flat_map(|session| session.orders.iter().chain(&session.doing));
        let tried: Vec<_> = orders.filter_map(key_of).collect();
        let is_first = |(_, (_, other)): &(&Key, &(Instant, u64))| *other < entered;
        match self.crowded_out.iter().filter(is_first).find(|(other, _)| !tried.contains(other)) {
            Some((other, _)) => Err(format!("session {id} waits for {key} before {other}")),
            None => Ok(()),
        }
    }

    fn begin_cohort(&mut self, key: Key) {
        let cohort = Cohort { since: self.now, hand_overs: 0, granted: None };
        self.cohorts.insert(key, cohort);
    }

    fn lose(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.is_over = true;
            self.server.end(Party::Session(id));
            self.after(20, Event::Lost(id));
        }
    }

    fn carry_out(&mut self) -> Result<(), String> {
        loop {
            let commands = self.core.commands();
            if commands.is_empty() {
                return Ok(());
            }
            for command in commands {
                self.tell(|| format!("    {command:?}"));
                match command {
                    Command::Open(id) => {
                        self.sessions.insert(id, Session::default());
                        self.after(50, Event::Opened(id));
                    }
                    Command::Order(id, order) => {
                        if let (Some(Event::Tick), Order::Try(_)) = (&self.happening, order) {
                            self.seen.note("paused");
                        }
                        self.counted.cancels += u64::from(order == Order::Withdraw);
                        if let Order::Wait(lock) = order {
                            self.check_turn(id, lock.key)?;
                        }
                        if let (Some(Event::Tick), Order::Withdraw) = (&self.happening, order) {
                            self.seen.note("passed on");
                        }
                        if order == Order::Close {
                            self.told_to_close.insert(id);
                        }
                        if let Some(session) = self.sessions.get_mut(&id) {
                            let mut known = session.orders.iter().chain(&session.doing);
                            if known.any(|known| *known == order) {
                                return Err(format!(
                                    "session {id} has the order {order:?} already"
                                ));
                            }
                            session.orders.push_back(order);
                            self.go_on_with(id);
                        }
                    }
                    Command::Reply(number, reply) => self.reply(number, &reply)?,
                    Command::Crowded(_) => self.seen.note("crowded"),
                }
            }
        }
    }

    fn reply(&mut self, number: u64, reply: &Reply) -> Result<(), String> {
        if let Reply::Granted(Grant { lock, .. }) = reply {
            self.count_hand_over(lock.key)?;
        }
        if let Some(number) = number.checked_sub(TASKS) {
            let answered = self.inspectors[usize::try_from(number).unwrap()].take().is_some();
            match reply {
                Reply::Inspected(_) if answered => self.seen.note("inspected"),
                Reply::NotDone(_) if answered => self.seen.note("not inspected"),
                Reply::Inspected(_) | Reply::NotDone(_) => {}
                other => return Err(format!("who asks who holds a key is told {other:?}")),
            }
            return Ok(());
        }
        match reply {
            Reply::Granted(_) => self.counted.granted += 1,
            Reply::Busy => self.counted.busy += 1,
            _ => self.counted.failed += 1,
        }
        let task = &mut self.tasks[usize::try_from(number).unwrap()];
        let wanted = task.wants.take();
        match (reply, wanted) {
            (Reply::Granted(Grant { session, lock, .. }), None) => {
                // As a guard does that nobody takes.
                self.core.release(*session, lock.key, None, self.now);
            }
            (Reply::Granted(Grant { session, lock, .. }), Some((request, wanted))) => {
                if wanted.is_some_and(|wanted| wanted != *lock) {
                    return Err(format!("task {number} got {lock:?} instead of {wanted:?}"));
                }
                // Whoever wants any one is in no queue.
                let last = wanted.and_then(|wanted| self.granted.insert(wanted.key, request));
                if last.is_some_and(|last| last > request) {
                    return Err(format!("request {request} was granted after {last:?}"));
                }
                if wanted.is_none() {
                    self.seen.note("one of several");
                }
                task.guard = Some((*session, *lock));
                let others = |task: &&Task| task.guard.is_some_and(|(_, other)| other == *lock);
                if self.tasks.iter().filter(others).count() > 1 {
                    self.seen.note("readers together");
                }
                let by_release = matches!(self.happening, Some(Event::Task(_)));
                self.seen.note(if by_release { "handed over" } else { "granted" });
                self.after(30, Event::Task(number));
            }
            (Reply::Busy, wanted) => {
                let of_several = matches!(wanted, Some((_, None)));
                self.seen.note(if of_several { "none of several" } else { "busy" });
                self.after(50, Event::Task(number));
            }
            (Reply::Failed(_), _) => {
                self.seen.note("failed");
                self.after(50, Event::Task(number));
            }
            (Reply::Done | Reply::Inspected(_) | Reply::NotDone(_), _) => {
                return Err("nobody asked for that".into());
            }
        }
        Ok(())
    }

    /// Whether others have their turn when the bounds are reached. What is granted together counts once.
    fn count_hand_over(&mut self, key: Key) -> Result<(), String> {
        let is_shared =
            self.tasks.iter().any(|task| task.guard.is_some_and(|(_, lock)| lock.key == key));
        let (step, limits) = (self.step, self.limits);
        let cohort = self.cohorts.get_mut(&key).ok_or("the server has not granted it")?;
        let (first, last) = cohort.granted.unwrap_or((step, step));
        cohort.granted = Some((first, step));
        if first == step {
            return Ok(());
        }
        let lasts = self.now - cohort.since;
        if cohort.hand_overs >= limits.hand_overs + u32::from(last == step)
            || lasts >= limits.hand_overs_for
        {
            return Err(format!("key {key} goes on after {} in {lasts:?}", cohort.hand_overs));
        }
        cohort.hand_overs += u32::from(!is_shared && last != step);
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        self.check_crowded_out()?;
        if let Some(key) = self.core.overlooked() {
            return Err(format!("key {key} is overlooked"));
        }
        if self.core.overlooks_others() {
            return Err("somebody else is overlooked".into());
        }
        if self.sessions.len() > self.sessions_max {
            return Err(format!("{} sessions", self.sessions.len()));
        }
        for id in self.sessions.keys() {
            let party = Party::Session(*id);
            if self.server.awaits(party) && self.server.held_by(party) > 0 {
                return Err(format!("session {id} waits while it holds something"));
            }
        }
        let mut held: BTreeMap<Key, Vec<Mode>> = BTreeMap::new();
        let is_over = |id: &SessionId| self.sessions.get(id).is_none_or(|session| session.is_over);
        for (session, lock) in self.tasks.iter().filter_map(|task| task.guard) {
            if is_over(&session) {
                continue;
            }
            let holders = self.server.holders.get(&lock.key);
            let mode = holders.and_then(|holders| holders.get(&Party::Session(session)));
            if !mode.is_some_and(|mode| *mode == Mode::Exclusive || lock.mode == Mode::Shared) {
                return Err(format!("session {session} does not hold {lock:?}"));
            }
            held.entry(lock.key).or_default().push(lock.mode);
        }
        for (key, modes) in held {
            if modes.len() > 1 && modes.contains(&Mode::Exclusive) {
                return Err(format!("key {key} is held {modes:?}"));
            }
        }
        Ok(())
    }

    /// Whether those who have no session get one in time.
    fn check_crowded_out(&mut self) -> Result<(), String> {
        if self.crowded_out.is_empty() {
            return Ok(());
        }
        let mut crowded_out = mem::take(&mut self.crowded_out);
        crowded_out
            .retain(|key, _| self.is_awaited(*key) && !(self.one_key_each && self.is_served(*key)));
        self.crowded_out = crowded_out;
        if self.sessions_max == 1 && !self.one_key_each {
            return Ok(());
        }
        let turn = self.limits.place_for * ((1 << PLACE_DOUBLES) + 1);
        let latest = turn * u32::try_from(self.keys).unwrap() + MS * 2_000;
        let late = |(_, (since, _)): &(&Key, &(Instant, u64))| self.now - *since > latest;
        match self.crowded_out.iter().find(late) {
            Some((key, _)) => Err(format!("key {key} has no session for {latest:?}")),
            None => Ok(()),
        }
    }

    /// Whether the core counts what happens.
    fn check_stats(&mut self) -> Result<(), String> {
        // What the core does not hear of it cannot count.
        if self.defect.is_some() {
            return Ok(());
        }
        let is_there = |task: &&Task| {
            task.guard.is_some_and(|(session, lock)| {
                self.sessions.contains_key(&session)
                    && !self.superseded.contains(&(session, lock.key))
            })
        };
        self.counted.guards = self.tasks.iter().filter(is_there).count();
        let wants = self.tasks.iter().filter(|task| task.wants.is_some()).count();
        self.counted.waiting = u64::try_from(wants).unwrap();
        let stats = self.core.stats();
        let answered = stats.granted + stats.busy + stats.failed + stats.given_up;
        let guarded: BTreeSet<_> = self
            .tasks
            .iter()
            .filter(is_there)
            .filter_map(|task| task.guard)
            .map(|(_, lock)| lock.key)
            .collect();
        if stats.sessions != self.sessions.len()
            || stats.requests != answered + stats.waiting
            || stats.granted != stats.wait_times.count()
            || stats.held != guarded.len()
        {
            return Err(format!("the counts do not add up: {stats:?}"));
        }
        let counted = Counted::from(stats);
        if counted != self.counted {
            return Err(format!("{:?} happened, and the core says {counted:?}", self.counted));
        }
        Ok(())
    }

    fn check_end(&self) -> Result<(), String> {
        self.check_served()?;
        if self.server.holders.values().any(|holders| !holders.is_empty()) {
            return Err(format!("something is still held: {:?}", self.server));
        }
        let stats = self.core.stats();
        if self.defect.is_none() && (stats.held, stats.guards, stats.waiting) != (0, 0, 0) {
            return Err(format!("something still counts: {stats:?}"));
        }
        if !self.core.is_at_rest() {
            return Err("something is left in the core".into());
        }
        Ok(())
    }

    fn check_served(&self) -> Result<(), String> {
        for (number, task) in self.tasks.iter().enumerate() {
            if task.turns_left > 0 || task.wants.is_some() || task.guard.is_some() {
                return Err(format!("task {number} is not served: {task:?}"));
            }
        }
        if self.strangers.iter().any(|(turns, wants)| *turns > 0 || wants.is_some()) {
            return Err(format!("a stranger is not served: {:?}", self.strangers));
        }
        if self.inspectors.iter().any(Option::is_some) {
            return Err(format!("an inspector is not answered: {:?}", self.inspectors));
        }
        Ok(())
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn after(&mut self, ms: u64, event: Event) {
        let delay = Duration::from_micros(self.random.up_to(ms * 1000));
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.scheduled += 1;
        self.events.insert((at.max(self.now), self.scheduled), event);
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(script) = &mut self.script {
            let at = (self.now - self.begun).as_secs_f64() * 1000.0;
            let _ = writeln!(script, "{at:10.3} {}", line());
        }
    }
}

/// What a session is to try, to wait for or to unlock.
fn key_of(order: &Order) -> Option<Key> {
    match order {
        Order::Try(lock) | Order::Wait(lock) | Order::Unlock(lock) => Some(lock.key),
        _ => None,
    }
}

/// Any one of so many keys.
fn all_of(keys: i32) -> Choice {
    Choice { class: 0, objects: (0..keys).collect(), unless_taken: None }
}

fn full() -> Error {
    Error::new(ErrorKind::OutOfLockMemory, "full")
}

fn lost() -> Error {
    Error::new(ErrorKind::Lost, "lost").lost()
}

fn unreachable() -> Error {
    Error::new(ErrorKind::Connect, "unreachable")
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

/// A session that was opened to wait for a key, which nobody wants any more when it stands, is what those
/// who came meanwhile are tried on.
#[test]
fn a_session_whose_key_nobody_wants_any_more_is_there_for_others() {
    let now = Instant::now();
    let limits = Limits {
        sessions: 2,
        hand_overs: 0,
        hand_overs_for: Duration::ZERO,
        place_for: Duration::ZERO,
    };
    let mut core = Core::new(limits, 1);
    let lock = LockId { key: Key::bigint(1), mode: Mode::Exclusive };
    let request = core.request(lock, Patience::Waits, 1, now);
    core.opened(1, false, now);
    core.answered(1, lock.key, Answer::NotAcquired, now);
    core.give_up(lock.key, request, now);
    core.ended(1, Some(lost()), now);
    core.request(lock, Patience::Waits, 2, now);
    core.commands();
    core.opened(2, false, now);
    let commands = core.commands();
    assert!(
        matches!(commands[..], [Command::Order(2, Order::Try(tried))] if tried == lock),
        "{commands:?}"
    );
}
