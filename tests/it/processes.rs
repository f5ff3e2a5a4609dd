//! Locks between processes, some of which are killed.
//!
//! A test that needs other processes runs this executable again, for itself alone and with the
//! variables of a [`Part`], and then takes that part instead of the test's.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use pglock::{Config, Lock};
use pglock_test_cluster::{Cluster, role, signal};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::leases::ENDS_SILENT_SESSIONS;
use crate::stage::{NOTICED_WITHIN, NOTICES_LOST_CLIENTS, Stage, next_to_end, soon};

#[tokio::test]
async fn a_killed_waiter_leaves_the_queue() {
    const TEST: &str = "processes::a_killed_waiter_leaves_the_queue";
    if let Some(part) = Part::assigned() {
        return part.lock().await.lock().await.unwrap();
    }
    let mut stage = Stage::new();
    let (mut alice, mut carol) = (stage.lock("alice").await, stage.lock("carol").await);
    alice.lock_shared().await.unwrap();
    let mut bob = Process::start(TEST, &stage, "bob", None);
    stage.until(&["alice holds shared", "bob awaits exclusive"]).await;
    assert!(!carol.try_lock_shared().await.unwrap(), "the writer in the queue keeps nobody out");

    bob.kill().await;
    if stage.major_version() < NOTICES_LOST_CLIENTS {
        // Only when the wait is over does the server write to the closed socket.
        alice.unlock_shared().await.unwrap();
        stage.until(&[]).await;
    } else {
        stage.until_within(NOTICED_WITHIN, &["alice holds shared"]).await;
    }
    assert!(carol.try_lock_shared().await.unwrap());
}

#[tokio::test]
async fn the_lock_of_a_killed_holder_goes_to_the_next_waiter() {
    const TEST: &str = "processes::the_lock_of_a_killed_holder_goes_to_the_next_waiter";
    if let Some(part) = Part::assigned() {
        let mut lock = part.lock().await;
        lock.lock().await.unwrap();
        return drop(lock.lost().await);
    }
    let mut stage = Stage::new();
    let mut alice = Process::start(TEST, &stage, "alice", None);
    stage.until(&["alice holds exclusive"]).await;
    let mut bob = stage.lock("bob").await;
    let waiting = tokio::spawn(async move { bob.lock().await.map(|()| bob) });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    alice.kill().await;
    let _bob = soon(waiting).await.unwrap().unwrap();
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
}

#[tokio::test]
async fn a_frozen_holder_loses_its_lock_with_its_lease_and_knows_when_it_thaws() {
    const TEST: &str =
        "processes::a_frozen_holder_loses_its_lock_with_its_lease_and_knows_when_it_thaws";
    const LEASE: Duration = Duration::from_secs(2);
    if let Some(mut part) = Part::assigned() {
        part.config.lease(LEASE);
        let mut lock = part.lock().await;
        lock.lock().await.unwrap();
        // The work goes on in small steps; the first after the thaw would come too late.
        let work = async {
            loop {
                fs::write(&part.counter, "at work").unwrap();
                tokio::time::sleep(LEASE / 50).await;
            }
        };
        let error = lock.hold::<()>(work).await.unwrap_err();
        assert!(error.is_lost(), "{error}");
        return fs::write(&part.counter, "knows").unwrap();
    }
    let mut stage = Stage::new();
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let journal = format!("pglock-journal-{}-{}", std::process::id(), stage.key());
    let journal = Path::new(env!("CARGO_TARGET_TMPDIR")).join(journal);
    let alice = Process::start(TEST, &stage, "alice", Some(&journal));
    stage.until(&["alice holds exclusive"]).await;
    signal(alice.id(), "STOP");
    let mut bob = stage.lock("bob").await;
    soon(bob.lock()).await.unwrap();
    fs::write(&journal, "bob's turn").unwrap();
    signal(alice.id(), "CONT");
    assert!(soon(alice.wait()).await.success());
    assert_eq!(fs::read_to_string(&journal).unwrap(), "knows");
    assert_eq!(stage.locks(), ["bob holds exclusive"]);
    fs::remove_file(&journal).unwrap();
}

/// The counter is read and written in two steps, between which others run: only if one contender at a
/// time is at it is every turn counted.
#[tokio::test]
async fn contenders_in_several_processes_count_right() {
    const TEST: &str = "processes::contenders_in_several_processes_count_right";
    const PROCESSES: u32 = 5;
    const CONTENDERS: u32 = 10;
    const TURNS: u32 = 40;
    if let Some(part) = Part::assigned() {
        let mut contenders = JoinSet::new();
        for _ in 0..CONTENDERS {
            let (lock, counter) = (part.lock().await, part.counter.clone());
            contenders.spawn(count(lock, counter, TURNS));
        }
        while let Some(contender) = contenders.join_next().await {
            contender.unwrap();
        }
        return;
    }
    let stage = Stage::new();
    let counter = format!("pglock-counter-{}-{}", std::process::id(), stage.key());
    let counter = Path::new(env!("CARGO_TARGET_TMPDIR")).join(counter);
    fs::write(&counter, "0").unwrap();
    let start = || Process::start(TEST, &stage, "contender", Some(&counter));
    let mut processes = JoinSet::new();
    for _ in 0..PROCESSES {
        processes.spawn(start().wait());
    }
    let progress = || fs::read_to_string(&counter).unwrap();
    while let Some(status) = next_to_end(&mut processes, progress).await {
        assert!(status.success(), "a contender failed");
    }
    assert_eq!(fs::read_to_string(&counter).unwrap(), (PROCESSES * CONTENDERS * TURNS).to_string());
    fs::remove_file(&counter).unwrap();
}

async fn count(mut lock: Lock, counter: String, turns: u32) {
    for _ in 0..turns {
        lock.lock().await.unwrap();
        let turns: u32 = fs::read_to_string(&counter).unwrap().parse().unwrap();
        tokio::task::yield_now().await;
        fs::write(&counter, (turns + 1).to_string()).unwrap();
        lock.unlock().await.unwrap();
    }
}

const URL: &str = "PGLOCK_TEST_PART_URL";
const NAME: &str = "PGLOCK_TEST_PART_NAME";
const KEY: &str = "PGLOCK_TEST_PART_KEY";
const COUNTER: &str = "PGLOCK_TEST_PART_COUNTER";

/// What a process that a test has started is to do it with.
pub(crate) struct Part {
    pub(crate) config: Config,
    pub(crate) key: i64,
    counter: String,
}

impl Part {
    /// None if this process is not such a one.
    pub(crate) fn assigned() -> Option<Self> {
        let mut config: Config = env::var(URL).ok()?.parse().unwrap();
        config.application_name(&env::var(NAME).unwrap());
        let key = env::var(KEY).unwrap().parse().unwrap();
        Some(Self { config, key, counter: env::var(COUNTER).unwrap_or_default() })
    }

    async fn lock(&self) -> Lock {
        Lock::connect(&self.config, self.key).await.unwrap()
    }
}

/// A process with a part in a test. It ends with this value.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(
        test: &str,
        stage: &Stage<'_>,
        actor: &str,
        counter: Option<&Path>,
    ) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", test, "--nocapture"])
            .env(URL, Cluster::default_cluster().url_for(&role::TRUST))
            .env(NAME, stage.application_name(actor))
            .env(KEY, stage.key().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        if let Some(counter) = counter {
            command.env(COUNTER, counter);
        }
        Self(command.spawn().unwrap())
    }

    fn id(&self) -> u32 {
        self.0.id().unwrap()
    }

    async fn wait(mut self) -> ExitStatus {
        self.0.wait().await.unwrap()
    }

    /// With SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.0.kill().await.unwrap();
    }
}
