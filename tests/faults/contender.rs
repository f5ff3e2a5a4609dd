//! What each of the processes does: a few contenders take the lock, work in steps and give it back,
//! over and over, and each writes down what it knew.

use std::env;
use std::fs::File;
use std::io::{Read, Write, stdin};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pglock::{Config, Error, ErrorKind, Fence, Lock};
use tokio::task::{JoinSet, yield_now};
use tokio::time::sleep;

use crate::history::{self, Time};
use crate::random::Random;

pub(crate) const URL: &str = "PGLOCK_FAULTS_PART_URL";
pub(crate) const NAME: &str = "PGLOCK_FAULTS_PART_NAME";
pub(crate) const LEASE_MS: &str = "PGLOCK_FAULTS_PART_LEASE_MS";
pub(crate) const JOURNALS: &str = "PGLOCK_FAULTS_PART_JOURNALS";
pub(crate) const SEED: &str = "PGLOCK_FAULTS_PART_SEED";

const KEY: &str = "the one at work";
const CONTENDERS: usize = 2;
const STEP: Duration = Duration::from_millis(3);
/// How long a contender pauses between two attempts to connect.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// What a process has to do it with. It contends until its standard input ends, as it does when the
/// process that started it ends, in whatever way.
pub(crate) struct Part {
    pub(crate) config: Config,
    pub(crate) name: String,
    pub(crate) journals: PathBuf,
    pub(crate) random: Random,
    pub(crate) is_over: Arc<AtomicBool>,
}

impl Part {
    /// None if this process is not such a one.
    pub(crate) fn assigned() -> Option<Self> {
        let mut config: Config = env::var(URL).ok()?.parse().unwrap();
        let name = env::var(NAME).unwrap();
        config.application_name(&name);
        if let Ok(lease) = env::var(LEASE_MS) {
            config.lease(Duration::from_millis(lease.parse().unwrap()));
        }
        let seed = env::var(SEED).unwrap().parse().unwrap();
        Some(Self {
            config,
            name,
            journals: env::var_os(JOURNALS).unwrap().into(),
            random: Random::new(seed),
            is_over: Arc::default(),
        })
    }

    /// Contends in this way.
    pub(crate) fn play<F: Future<Output = ()>>(self, contend: impl FnOnce(Self) -> F) {
        let over = Arc::clone(&self.is_over);
        thread::spawn(move || {
            // Whether its end or an error: nobody wants more of this.
            let _ = stdin().read_to_end(&mut Vec::new());
            over.store(true, Ordering::SeqCst);
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(contend(self));
    }

    /// A few contenders, each with a session of its own.
    pub(crate) async fn contend(mut self) {
        let mut contenders = JoinSet::new();
        for number in 0..CONTENDERS {
            let contender = Contender {
                config: self.config.clone(),
                journal: Journal::new(&self.journals, &format!("{}.{number}", self.name)),
                is_over: Arc::clone(&self.is_over),
                random: Random::new(self.random.next()),
            };
            contenders.spawn(contender.contend());
        }
        while let Some(ended) = contenders.join_next().await {
            ended.unwrap();
        }
    }
}

struct Contender {
    config: Config,
    journal: Journal,
    is_over: Arc<AtomicBool>,
    random: Random,
}

impl Contender {
    async fn contend(mut self) {
        while !self.is_over() {
            if let Err(error) = self.contend_in_a_session().await {
                assert_caused_by_a_fault(&error);
                sleep(RETRY_INTERVAL).await;
            }
        }
    }

    async fn contend_in_a_session(&mut self) -> Result<(), Error> {
        let mut lock = Lock::connect(&self.config, KEY).await?;
        while !self.is_over() {
            let token = lock.lock_fenced().await?;
            self.journal.taken(token, history::now());
            let steps = steps(&mut self.random);
            let last = lock.hold(work(&mut self.journal, steps)).await?;
            self.journal.certain(last);
            lock.unlock().await?;
            sleep(Duration::from_millis(self.random.within(0..10))).await;
        }
        lock.close().await
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }
}

/// How much work there is: for some more than their lease lasts without heartbeats.
pub(crate) fn steps(random: &mut Random) -> u64 {
    let steps = if random.below(6) == 0 { 100..1000 } else { 1..20 };
    random.within(steps)
}

/// Work in steps, before each of which `hold` looks after the lock: so that is certain at the time that
/// was read *before* the look. A time that is read after it would be that of a process which has been
/// frozen in between: no lease protects from that, and nothing could be told apart from it.
///
/// Returns such a time for the look at the end.
pub(crate) async fn work(journal: &mut Journal, steps: u64) -> Time {
    for _ in 0..steps {
        sleep(STEP).await;
        let before = history::now();
        yield_now().await;
        journal.certain(before);
    }
    history::now()
}

pub(crate) fn assert_caused_by_a_fault(error: &Error) {
    let expected = match error.kind() {
        ErrorKind::Connect | ErrorKind::Lost | ErrorKind::Timeout => true,
        // Without a primary, the server that is left is the standby.
        ErrorKind::Unsupported => error.to_string().contains("is a standby"),
        _ => false,
    };
    assert!(expected, "{error:?}");
}

/// What a contender knew, in a file that outlives its process. Each line is one write: it is there as
/// a whole or not at all.
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn new(journals: &Path, name: &str) -> Self {
        Self(File::create_new(journals.join(name)).unwrap())
    }

    pub(crate) fn taken(&mut self, token: Fence, now: Time) {
        self.write(&history::taken(token, now));
    }

    pub(crate) fn certain(&mut self, then: Time) {
        self.write(&history::certain(then));
    }

    fn write(&mut self, line: &str) {
        self.0.write_all(line.as_bytes()).unwrap();
    }
}
