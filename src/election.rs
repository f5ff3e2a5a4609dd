//! One of many leads: a recipe on [`LockManager`], in the words of etcd's elections.

use std::fmt;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::fence::Fence;
use crate::holders::Holder;
use crate::key::{Key, Mode};
use crate::manager::{Guard, LockManager};
use crate::wait::{after, now};

/// For how long a candidate waits for tokens while it loses one session after the other.
const TOKEN_WITHIN: Duration = Duration::from_secs(30);
/// How often an [`Observer`] looks who leads, if nothing else is said.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// How often it looks at least: more than a year is too far for some clocks.
const LOOKS_EVERY_MAX: Duration = Duration::from_secs(365 * 86_400);

impl LockManager {
    /// An election by this name: of all candidates for it, in all processes that use the same database, one
    /// at a time leads.
    ///
    /// Nothing is connected yet. The leader has the [exclusive](Mode::Exclusive) lock on the key: nobody is
    /// to lock that for anything else.
    ///
    /// # Examples
    ///
    /// The repository's `cargo run --example manager_leader_election` runs as it stands.
    ///
    /// ```no_run
    /// use pglock::{Config, LockManager};
    ///
    /// # async fn example() -> pglock::Result<()> {
    /// let manager = LockManager::new(Config::from_env()?);
    /// let leadership = manager.election("reports").campaign().await?;
    /// // This process leads.
    /// leadership.resign().await
    /// # }
    /// ```
    #[must_use]
    pub fn election(&self, name: impl Into<Key>) -> Election {
        Election { manager: self.clone(), key: name.into() }
    }
}

/// An election, of which one candidate at a time leads: made by [`LockManager::election`].
///
/// It is a handle, which can be cloned. Every campaign is a candidate of its own: also two of the same
/// process, or of the same task. Those of one process have their turns in the order in which they began;
/// among processes, see [`LockManager`].
///
/// A leader whose process or network fails is found out, and makes room, as the configuration of the
/// manager says: [`Config::orphan_timeout`](crate::Config::orphan_timeout), and
/// [`Config::lease`](crate::Config::lease) for one that may freeze.
///
/// Whoever leads has a [fencing token](Leadership::fencing_token), which the server gives once its synchronous
/// standbys have it. While one that it waits for is not there, each campaign waits for its token for 30 s, in
/// which the manager's other locks on the same session cannot be taken or released; and where they have a
/// lease that is shorter, they are lost. A manager of its own for elections keeps that from them.
///
/// Through a transaction pooler, each candidate takes a session of the manager, and a server connection of
/// the pool for as long as it campaigns or leads; and a leader has no [fencing
/// token](Leadership::fencing_token).
#[derive(Clone)]
pub struct Election {
    manager: LockManager,
    key: Key,
}

impl Election {
    /// The key that the leader has locked.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// Waits until this candidate leads, for as long as it takes: also for the server to come back, if it
    /// cannot be reached for a while.
    ///
    /// With the leadership comes a [fencing token](Leadership::fencing_token).
    ///
    /// # Errors
    ///
    /// - As [`LockManager::lock`].
    /// - [`ErrorKind::Timeout`] if the token does not come within 30 s, as it may be if the server waits for
    ///   a synchronous standby. The candidate does not lead then.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future ends the campaign. If the candidate was elected meanwhile, it resigns.
    pub async fn campaign(&self) -> Result<Leadership> {
        let mut tokens = Tokens::default();
        loop {
            let guard = self.manager.lock(self.key).await?;
            if let Some(leadership) = tokens.begin(guard).await? {
                return Ok(leadership);
            }
        }
    }

    /// Leads if nobody does: `None` if another candidate leads, or waits for it.
    ///
    /// # Errors
    ///
    /// As [`LockManager::try_lock`]; [`ErrorKind::Timeout`] as [`campaign`](Election::campaign); and one of a
    /// lost session ([`Error::is_lost`]) if this candidate was elected, and lost that before it had its token.
    ///
    /// # Cancel safety
    ///
    /// As [`campaign`](Election::campaign).
    pub async fn try_campaign(&self) -> Result<Option<Leadership>> {
        match self.manager.try_lock(self.key).await? {
            Some(guard) => Leadership::begin(guard).await.map(Some),
            None => Ok(None),
        }
    }

    /// Waits until this candidate leads or this much time has passed: `None` if it was not elected by then.
    ///
    /// The fencing token is taken afterwards. That is a write to the server's log, in which the time may
    /// pass a little; up to 30 s if the server waits for a synchronous standby.
    ///
    /// # Errors
    ///
    /// As [`LockManager::lock_timeout`]; and [`ErrorKind::Timeout`] as [`campaign`](Election::campaign).
    ///
    /// # Cancel safety
    ///
    /// As [`campaign`](Election::campaign).
    pub async fn campaign_timeout(&self, timeout: Duration) -> Result<Option<Leadership>> {
        // A time too far for the clock is no limit.
        let until = after(timeout);
        let mut left = timeout;
        let mut tokens = Tokens::default();
        loop {
            let Some(guard) = self.manager.lock_timeout(self.key, left).await? else {
                return Ok(None);
            };
            if let Some(leadership) = tokens.begin(guard).await? {
                return Ok(Some(leadership));
            }
            left = until.map_or(left, |until| until.saturating_duration_since(now()));
        }
    }

    /// Campaigns, and does the work while this candidate leads: until the work is done, whose outcome is
    /// returned after the candidate has resigned. (If the work keeps its leadership somewhere, the candidate
    /// leads on until that is dropped.)
    ///
    /// If the leadership is lost first, the work is dropped, and the candidate campaigns again; elected again,
    /// it begins the work anew. That is so too where the loss shows only when the work is done: then its
    /// outcome is dropped. A loss is not an error here, nor is a token that did not come in time.
    ///
    /// Work that never ends is what a service wants: it leads whenever it can, until this future is dropped
    /// or the manager is closed.
    ///
    /// # Errors
    ///
    /// As [`campaign`](Election::campaign), but for [`ErrorKind::Timeout`]; and [`ErrorKind::Closed`] if the
    /// manager is closed while this candidate leads.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the work, and the candidate resigns.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn clean_up(_: pglock::Fence) {}
    /// # async fn example(election: pglock::Election) -> pglock::Result<()> {
    /// election
    ///     .run(|leadership| async move {
    ///         let token = leadership.fencing_token()?;
    ///         loop {
    ///             clean_up(token).await;
    ///             tokio::time::sleep(Duration::from_secs(60)).await;
    ///         }
    ///     })
    ///     .await?
    /// # }
    /// ```
    pub async fn run<W: Future>(
        &self,
        mut work: impl FnMut(Arc<Leadership>) -> W,
    ) -> Result<W::Output> {
        loop {
            let leadership = match self.campaign().await {
                Ok(leadership) => Arc::new(leadership),
                Err(error) if error.kind() == ErrorKind::Timeout => continue,
                Err(error) => return Err(error),
            };
            match leadership.hold(work(Arc::clone(&leadership))).await {
                Ok(done) => {
                    if let Some(leadership) = Arc::into_inner(leadership) {
                        // Also if it was lost since then, it guarded the work to its end.
                        let _ = leadership.resign().await;
                    }
                    return Ok(done);
                }
                Err(error) if error.kind() == ErrorKind::Closed => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Asks the server who leads: `None` if nobody does.
    ///
    /// By now somebody else may. The leader is a session of the server: its application name says who that
    /// is, if each process has [one of its own](crate::Config::application_name).
    ///
    /// # Errors
    ///
    /// As [`LockManager::inspect`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    pub async fn leader(&self) -> Result<Option<Holder>> {
        let holders = self.manager.inspect(self.key).await?;
        let leads = |holder: &&Holder| holder.mode() == Mode::Exclusive;
        Ok(holders.holders().iter().find(leads).cloned())
    }

    /// Watches who leads. The server is asked [every](Observer::every) second, if nothing else is said.
    #[must_use]
    pub fn observe(&self) -> Observer {
        Observer {
            election: self.clone(),
            every: LOOKS_EVERY,
            told: Told::Nothing,
            next_look: None,
        }
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("key", &self.key).finish_non_exhaustive()
    }
}

/// That this candidate leads, for as long as it has this: won in an [`Election`].
///
/// Dropping it resigns at once, and does not wait for the server to know. [`resign`](Leadership::resign)
/// does.
#[derive(Debug)]
#[must_use = "the candidate resigns when the leadership is dropped"]
pub struct Leadership {
    guard: Guard,
    fence: Result<Fence>,
}

/// The tokens of one campaign, of which only the last one comes.
#[derive(Default)]
struct Tokens {
    waited: Duration,
}

impl Tokens {
    /// As [`Leadership::begin`]; `None` if the lock was lost before that, and it is worth another try. It is
    /// not where a lease is shorter than the server waits for its standbys: each session ends with its lease.
    async fn begin(&mut self, guard: Guard) -> Result<Option<Leadership>> {
        let begun = now();
        match Leadership::begin(guard).await {
            Err(error) if error.is_lost() && error.kind() != ErrorKind::Closed => {
                self.waited += now().duration_since(begun);
                if self.waited < TOKEN_WITHIN { Ok(None) } else { Err(no_token(error)) }
            }
            begun => begun.map(Some),
        }
    }
}

fn no_token(error: Error) -> Error {
    Error::new(
        ErrorKind::Timeout,
        "no fencing token within 30 s, in which each session was lost that waited for one, so the candidate \
         does not lead; is the server waiting for a synchronous standby, for longer than a lease?",
    )
    .with_source(error)
}

impl Leadership {
    /// Takes the token that a leader needs.
    async fn begin(guard: Guard) -> Result<Self> {
        match guard.fencing_token().await {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                Ok(Self { guard, fence: Err(error) })
            }
            fence => Ok(Self { guard, fence: Ok(fence?) }),
        }
    }

    /// The token that was taken when this candidate was elected: higher than those of all who led before, by
    /// which storage can turn away a leader of the past.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] through a transaction pooler, where there are none.
    pub fn fencing_token(&self) -> Result<Fence> {
        self.fence.clone()
    }

    /// Whether this candidate leads, as far as this side knows: see [`Guard::is_held`].
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.guard.is_held()
    }

    /// Completes when this candidate does not lead any more, because its session is gone, with the reason.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    pub async fn lost(&self) -> Error {
        self.guard.lost().await
    }

    /// Runs the work for as long as this candidate leads: if the leadership is lost first, the work is
    /// dropped and the reason returned.
    ///
    /// # Errors
    ///
    /// As [`Guard::hold`].
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the work. The candidate still leads.
    pub async fn hold<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        self.guard.hold(work).await
    }

    /// Makes room. When this returns, the next candidate leads.
    ///
    /// # Errors
    ///
    /// As [`Guard::unlock`]: one of a lost session ([`Error::is_lost`]) if this candidate had ceased to lead
    /// before.
    ///
    /// # Cancel safety
    ///
    /// The candidate resigns, also if this future is dropped before it is done.
    pub async fn resign(self) -> Result<()> {
        self.guard.unlock().await
    }
}

/// Tells who leads, and of every change that it sees: made by [`Election::observe`].
///
/// It asks the server, which takes a round trip each time. Whoever leads for less than the time between
/// two looks may be missed. A leader is a session of the server, and told by its process id, application
/// name and address: one that resigns and is elected again between two looks is the same, and so are
/// candidates of one process that lead one after another on the same session.
///
/// # Examples
///
/// ```no_run
/// # async fn example(election: pglock::Election) -> pglock::Result<()> {
/// let mut observer = election.observe();
/// loop {
///     match observer.next().await? {
///         Some(leader) => println!("{:?} leads", leader.application_name()),
///         None => println!("nobody leads"),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Observer {
    election: Election,
    every: Duration,
    told: Told,
    next_look: Option<Instant>,
}

/// What an observer has told last.
#[derive(Debug)]
enum Told {
    Nothing,
    NobodyLeads,
    Leads(Holder),
}

impl Observer {
    /// How much time passes between two looks: 1 s if nothing is said, never less than 10 ms, and never more
    /// than a year.
    #[must_use]
    pub fn every(mut self, pause: Duration) -> Self {
        self.every = pause.clamp(Duration::from_millis(10), LOOKS_EVERY_MAX);
        self
    }

    /// Who leads: at first at once, and then when that has changed. `None` is that nobody does.
    ///
    /// A session that is lost is replaced, and a server that cannot be reached is tried again at each look:
    /// until then nothing is told.
    ///
    /// # Errors
    ///
    /// As [`LockManager::inspect`], where trying again will not mend it: [`ErrorKind::Closed`] if the manager
    /// is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing: what it would have told is told by the next one.
    pub async fn next(&mut self) -> Result<Option<Holder>> {
        loop {
            if let Some(next_look) = self.next_look {
                let _ = self.election.manager.timeout_at(next_look, pending::<()>()).await;
            }
            let looked = self.election.leader().await;
            self.next_look = after(self.every);
            match looked {
                Ok(leader) if self.is_told(leader.as_ref()) => {}
                Ok(leader) => {
                    self.told = leader.clone().map_or(Told::NobodyLeads, Told::Leads);
                    return Ok(leader);
                }
                Err(error) if error.may_pass() || error.kind() == ErrorKind::OutOfLockMemory => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn is_told(&self, leader: Option<&Holder>) -> bool {
        match (&self.told, leader) {
            (Told::Leads(told), Some(leader)) => is_same(told, leader),
            (Told::NobodyLeads, None) => true,
            _ => false,
        }
    }
}

/// Whether it is the same session, whatever it has done since.
fn is_same(one: &Holder, other: &Holder) -> bool {
    one.process_id() == other.process_id()
        && one.client_address() == other.client_address()
        && one.application_name() == other.application_name()
}
