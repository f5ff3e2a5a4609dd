//! A process, and what it does: its tasks take the key, work and give it back, over and over.

use std::env;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use pglock::{Config, LockManager};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

const PART: &str = "PGLOCK_FAIRNESS_PART";
const KEY: &str = "fairness";
const TASKS: usize = 100;

/// What the processes contend by.
pub(crate) struct Terms {
    /// How long a task keeps the key.
    pub(crate) work: Duration,
    /// How often the key goes from task to task, and for how long.
    pub(crate) count: u32,
    pub(crate) within: Duration,
    /// For how long they contend.
    pub(crate) lasts: Duration,
}

/// What the tasks of a process got.
#[derive(Clone, Copy, Default)]
pub(crate) struct Turns {
    pub(crate) count: u32,
    /// How long they waited for it, all together.
    pub(crate) waited: Duration,
    pub(crate) longest: Duration,
}

/// A process that contends. It ends when its standard input does.
pub(crate) struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(url: &str, terms: &Terms) -> Self {
        let Terms { work, count, within, lasts } = terms;
        let [work, within, lasts] = [work, within, lasts].map(Duration::as_micros);
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(PART, format!("{url} {work} {count} {within} {lasts}"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Waits until it has connected.
    pub(crate) fn await_ready(&mut self) {
        assert_eq!(self.line(), "ready\n");
    }

    pub(crate) fn begin(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"begin\n").unwrap();
    }

    /// Waits until it has ended, and says what it got.
    pub(crate) fn end(mut self) -> Turns {
        let line = self.line();
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert!(self.child.wait().unwrap().success());
        Turns {
            count: u32::try_from(numbers[0]).unwrap(),
            waited: Duration::from_micros(numbers[1]),
            longest: Duration::from_micros(numbers[2]),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }
}

/// What this process was started for.
pub(crate) struct Part {
    manager: LockManager,
    terms: Terms,
}

impl Part {
    /// None if it was started by somebody else.
    pub(crate) fn assigned() -> Option<Self> {
        let part = env::var(PART).ok()?;
        let [url, numbers @ ..] = &part.split(' ').collect::<Vec<_>>()[..] else { return None };
        let config: Config = url.parse().unwrap();
        let numbers: Vec<u64> = numbers.iter().map(|number| number.parse().unwrap()).collect();
        let [work, within, lasts] = [0, 2, 3].map(|at| Duration::from_micros(numbers[at]));
        let count = u32::try_from(numbers[1]).unwrap();
        let manager = LockManager::builder(config).hand_overs(count, within).build();
        Some(Self { manager, terms: Terms { work, count, within, lasts } })
    }

    pub(crate) fn play(self) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // The server is to hear of it before this thread waits for its input.
            self.manager.lock("something else").await.unwrap().unlock().await.unwrap();
            tell("ready");
            // The runtime has nothing else to do before it is told to begin.
            stdin().read_line(&mut String::new()).unwrap();
            let turns = self.contend().await;
            let [waited, longest] = [turns.waited, turns.longest].map(|time| time.as_micros());
            tell(&format!("{} {waited} {longest}", turns.count));
            self.manager.close().await.unwrap();
        });
    }

    async fn contend(&self) -> Turns {
        let end = Instant::now() + self.terms.lasts;
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            tasks.spawn(take_turns(self.manager.clone(), self.terms.work, end));
        }
        let mut total = Turns::default();
        for turns in tasks.join_all().await {
            total.count += turns.count;
            total.waited += turns.waited;
            total.longest = total.longest.max(turns.longest);
        }
        total
    }
}

/// A turn that is asked for in time is waited for, and counts.
async fn take_turns(manager: LockManager, work: Duration, end: Instant) -> Turns {
    let mut turns = Turns::default();
    loop {
        let asked = Instant::now();
        if asked >= end {
            return turns;
        }
        let guard = manager.lock(KEY).await.unwrap();
        let waited = asked.elapsed();
        turns.count += 1;
        turns.waited += waited;
        turns.longest = turns.longest.max(waited);
        keep(work).await;
        drop(guard);
    }
}

/// Works, or waits for as long as others could work.
async fn keep(work: Duration) {
    if work >= Duration::from_millis(1) {
        return tokio::time::sleep(work).await;
    }
    let begun = Instant::now();
    while begun.elapsed() < work {}
}

fn tell(line: &str) {
    let mut stdout = stdout();
    writeln!(stdout, "{line}").unwrap();
    stdout.flush().unwrap();
}
