//! A server that crashes again and again under load. Tokens are taken up to the last moment, and the
//! first one after a crash is higher than the last one before it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use pglock::{Config, Error, Fence, Lock};
use pglock_test_cluster::{Cluster, Settings, Shutdown, role};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::contender::{RETRY_INTERVAL, assert_caused_by_a_fault};
use crate::number;

const KEY: &str = "the one at work";
const SESSIONS: usize = 6;
/// How many tokens are taken before the server crashes again, at the least.
const TOKENS: usize = 2 * SESSIONS;
const WORK: Duration = Duration::from_millis(1);
/// How long the sessions may have nothing to tell, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a session tells. All of them run on one thread, and tell of a token while they have the lock:
/// so the order of the tokens is that of the holds.
enum Word {
    Connected(usize),
    Token(Fence),
    Lost(usize),
}

#[tokio::test]
async fn tokens_rise_over_crashes_under_load() {
    let crashes = number("PGLOCK_CRASHES").unwrap_or(5);
    let mut cluster = spawn_blocking(|| Settings::new().start()).await.unwrap();
    let config: Config = cluster.url_for(&role::TRUST).parse().unwrap();
    let (tell, words) = unbounded_channel();
    let mut sessions = JoinSet::new();
    for session in 0..SESSIONS {
        sessions.spawn(contend(session, config.clone(), tell.clone()));
    }
    let mut witness = Witness::new(words);
    for _ in 0..crashes {
        witness.hear_of_load().await;
        cluster = spawn_blocking(move || crash(cluster)).await.unwrap();
        witness.hear_of_losses().await;
    }
    witness.hear_of_load().await;
    println!("{} tokens rose over {crashes} crashes", witness.tokens);
}

/// Ends the server without goodbye, and starts it again.
fn crash(mut cluster: Cluster) -> Cluster {
    cluster.restart(Shutdown::Immediate);
    cluster
}

async fn contend(session: usize, config: Config, tell: UnboundedSender<Word>) {
    loop {
        match Lock::connect(&config, KEY).await {
            Ok(lock) => {
                tell.send(Word::Connected(session)).unwrap();
                let Err(error) = take_tokens(lock, &tell).await;
                assert!(error.is_lost(), "{error:?}");
                tell.send(Word::Lost(session)).unwrap();
            }
            Err(error) => assert_caused_by_a_fault(&error),
        }
        sleep(RETRY_INTERVAL).await;
    }
}

async fn take_tokens(mut lock: Lock, tell: &UnboundedSender<Word>) -> Result<Infallible, Error> {
    loop {
        let token = lock.lock_fenced().await?;
        tell.send(Word::Token(token)).unwrap();
        lock.hold(sleep(WORK)).await?;
        lock.unlock().await?;
    }
}

/// Listens to the sessions, and compares their tokens.
struct Witness {
    words: UnboundedReceiver<Word>,
    connected: BTreeSet<usize>,
    last: Option<Fence>,
    tokens: usize,
}

impl Witness {
    fn new(words: UnboundedReceiver<Word>) -> Self {
        Self { words, connected: BTreeSet::new(), last: None, tokens: 0 }
    }

    /// Until all sessions are there, and several tokens were taken.
    async fn hear_of_load(&mut self) {
        let before = self.tokens;
        while self.tokens < before + TOKENS || self.connected.len() < SESSIONS {
            self.hear().await;
        }
    }

    /// Until each session was told that it is lost.
    async fn hear_of_losses(&mut self) {
        let mut told = BTreeSet::new();
        while told.len() < SESSIONS {
            told.extend(self.hear().await);
        }
    }

    /// Returns the session that was lost, if the next word is of such a one.
    async fn hear(&mut self) -> Option<usize> {
        let word = timeout(PATIENCE, self.words.recv()).await.expect("the sessions go on");
        match word.expect("the sessions go on") {
            Word::Connected(session) => assert!(self.connected.insert(session)),
            Word::Token(token) => {
                assert!(self.last < Some(token), "{:?} was followed by {token}", self.last);
                self.last = Some(token);
                self.tokens += 1;
            }
            Word::Lost(session) => {
                assert!(self.connected.remove(&session));
                return Some(session);
            }
        }
        None
    }
}
