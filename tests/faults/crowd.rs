//! What each of the processes does where its tasks share a manager: each takes one of a few locks, in any
//! way, works in steps and gives it back, over and over.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use pglock::{Guard, LockManager, Result};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::contender::{self, Journal, Part, RETRY_INTERVAL, assert_caused_by_a_fault};
use crate::history;
use crate::random::Random;

pub(crate) const KEYS: usize = 20;
/// In each process.
const TASKS: usize = 50;

/// Where the tasks of all processes say when they had this key.
pub(crate) fn journals(folder: &Path, key: usize) -> PathBuf {
    folder.join(format!("key-{key}"))
}

pub(crate) async fn contend(mut part: Part) {
    for key in 0..KEYS {
        fs::create_dir_all(journals(&part.journals, key)).unwrap();
    }
    let manager = LockManager::new(part.config.clone());
    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        let journal =
            |key| Journal::new(&journals(&part.journals, key), &format!("{}.{number}", part.name));
        let task = Task {
            manager: manager.clone(),
            journals: (0..KEYS).map(journal).collect(),
            random: Random::new(part.random.next()),
        };
        let is_over = part.is_over.clone();
        tasks.spawn(async move {
            let mut task = task;
            while !is_over.load(Ordering::SeqCst) {
                task.take_turns().await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    if let Err(error) = manager.close().await {
        assert_caused_by_a_fault(&error);
    }
}

struct Task {
    manager: LockManager,
    /// For each key.
    journals: Vec<Journal>,
    random: Random,
}

impl Task {
    async fn take_turns(&mut self) {
        if let Err(error) = self.take_turn().await {
            assert_caused_by_a_fault(&error);
            sleep(RETRY_INTERVAL).await;
        }
        sleep(self.up_to_ms(10)).await;
    }

    async fn take_turn(&mut self) -> Result<()> {
        let key = self.random.below(KEYS);
        let Some(guard) = self.acquire(&format!("the one at work {key}")).await? else {
            return Ok(());
        };
        let token = guard.fencing_token().await?;
        let journal = &mut self.journals[key];
        journal.taken(token, history::now());
        let steps = contender::steps(&mut self.random);
        let last = guard.hold(contender::work(journal, steps)).await?;
        journal.certain(last);
        if self.random.below(2) == 0 {
            return guard.unlock().await;
        }
        drop(guard);
        Ok(())
    }

    /// In any of the ways that there are; of which the last is to change one's mind.
    async fn acquire(&mut self, key: &str) -> Result<Option<Guard>> {
        let patience = self.up_to_ms(300);
        match self.random.below(4) {
            0 => self.manager.try_lock(key).await,
            1 => self.manager.lock(key).await.map(Some),
            2 => self.manager.lock_timeout(key, patience).await,
            _ => match timeout(patience, self.manager.lock(key)).await {
                Ok(locked) => locked.map(Some),
                Err(_) => Ok(None),
            },
        }
    }

    fn up_to_ms(&mut self, ms: u64) -> Duration {
        Duration::from_millis(self.random.within(0..ms))
    }
}
