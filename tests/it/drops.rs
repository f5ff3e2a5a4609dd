//! Every call can be dropped at each point where it waits, and leaves nothing behind.
//!
//! A call is polled never, once, twice and so on until it completes before it is dropped. Each time the
//! server has the locks that the books say, no session too many, and the next call works.

use std::pin::Pin;
use std::time::Duration;

use pglock::Mode::{Exclusive, Shared};
use pglock::{Config, ErrorKind, Holders, Key, Lock, Mode, Pooler, Result, Session};
use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, Role, eventually, role};
use tokio::task::yield_now;

use self::Before::{Alice, Bob, Nobody};
use crate::leases::ENDS_SILENT_SESSIONS;
use crate::stage::{PATIENCE, Stage, poll_times, soon};

/// Long enough for a request to be queued, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(10);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);
/// More polls than any call needs.
const POLLS_MAX: usize = 1_000;
/// So long that a heartbeat which a busy machine holds up for more than a second is still in time.
const LEASE: Duration = Duration::from_secs(3);

/// Bob, by either of the types that have a session.
trait Caller {
    fn level(&self, mode: Mode) -> u64;
    async fn lock(&mut self, mode: Mode) -> Result<()>;
    async fn unlock(&mut self, mode: Mode) -> Result<()>;
    async fn holders(&mut self) -> Result<Holders>;
}

impl Caller for Lock {
    fn level(&self, mode: Mode) -> u64 {
        Lock::level(self, mode)
    }

    async fn lock(&mut self, mode: Mode) -> Result<()> {
        match mode {
            Exclusive => Lock::lock(self).await,
            Shared => self.lock_shared().await,
        }
    }

    async fn unlock(&mut self, mode: Mode) -> Result<()> {
        match mode {
            Exclusive => Lock::unlock(self).await,
            Shared => self.unlock_shared().await,
        }
    }

    async fn holders(&mut self) -> Result<Holders> {
        Lock::holders(self).await
    }
}

/// A session, and the stage's key.
struct Keyed {
    session: Session,
    key: Key,
}

impl Caller for Keyed {
    fn level(&self, mode: Mode) -> u64 {
        self.session.level(self.key, mode)
    }

    async fn lock(&mut self, mode: Mode) -> Result<()> {
        self.session.lock(self.key, mode).await
    }

    async fn unlock(&mut self, mode: Mode) -> Result<()> {
        self.session.unlock(self.key, mode).await
    }

    async fn holders(&mut self) -> Result<Holders> {
        self.session.holders(self.key).await
    }
}

/// A call of Bob's that is to be dropped.
struct Call<C: ?Sized> {
    name: &'static str,
    before: Before,
    begin: Begin<C>,
}

type Begin<C> = for<'a> fn(&'a mut C) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

const fn call<C>(name: &'static str, before: Before, begin: Begin<C>) -> Call<C> {
    Call { name, before, begin }
}

/// Who holds the key before the call.
#[derive(Clone, Copy, Debug)]
enum Before {
    Nobody,
    Alice,
    /// Bob, and at so many levels.
    Bob(Mode, u64),
}

/// Every method of `Lock` that waits for the server, but those that end the lock or never end.
const OF_LOCK: [Call<Lock>; 24] = [
    call("try_lock", Nobody, |bob| Box::pin(async { bob.try_lock().await.map(drop) })),
    call("try_lock", Alice, |bob| Box::pin(async { bob.try_lock().await.map(drop) })),
    call("try_lock", Bob(Exclusive, 1), |bob| Box::pin(async { bob.try_lock().await.map(drop) })),
    call("try_lock_shared", Nobody, |bob| {
        Box::pin(async { bob.try_lock_shared().await.map(drop) })
    }),
    call("lock", Nobody, |bob| Box::pin(bob.lock())),
    call("lock", Bob(Exclusive, 1), |bob| Box::pin(bob.lock())),
    call("lock_shared", Nobody, |bob| Box::pin(bob.lock_shared())),
    call("lock_timeout", Nobody, |bob| Box::pin(async { bob.lock_timeout(LONG).await.map(drop) })),
    call("lock_timeout", Alice, |bob| Box::pin(async { bob.lock_timeout(SHORT).await.map(drop) })),
    call("lock_shared_timeout", Nobody, |bob| {
        Box::pin(async { bob.lock_shared_timeout(LONG).await.map(drop) })
    }),
    call("lock_shared_timeout", Alice, |bob| {
        Box::pin(async { bob.lock_shared_timeout(SHORT).await.map(drop) })
    }),
    call("try_lock_fenced", Nobody, |bob| {
        Box::pin(async { bob.try_lock_fenced().await.map(drop) })
    }),
    call("try_lock_fenced", Bob(Exclusive, 1), |bob| {
        Box::pin(async { bob.try_lock_fenced().await.map(drop) })
    }),
    call("lock_fenced", Nobody, |bob| Box::pin(async { bob.lock_fenced().await.map(drop) })),
    call("lock_fenced", Bob(Exclusive, 1), |bob| {
        Box::pin(async { bob.lock_fenced().await.map(drop) })
    }),
    call("unlock", Bob(Exclusive, 1), |bob| Box::pin(bob.unlock())),
    call("unlock", Bob(Exclusive, 2), |bob| Box::pin(bob.unlock())),
    call("unlock_shared", Bob(Shared, 1), |bob| Box::pin(bob.unlock_shared())),
    call("holders", Nobody, |bob| Box::pin(async { bob.holders().await.map(drop) })),
    call("holders", Bob(Shared, 1), |bob| Box::pin(async { bob.holders().await.map(drop) })),
    call("hold", Bob(Exclusive, 1), |bob| Box::pin(bob.hold(several_turns()))),
    call("hold", Bob(Shared, 1), |bob| Box::pin(bob.hold(several_turns()))),
    // From here on Bob has a canceller.
    call("lock", Alice, |bob| {
        let canceller = bob.canceller();
        Box::pin(async move { cancelled(tokio::join!(bob.lock(), canceller.cancel()).0) })
    }),
    call("lock_timeout", Alice, |bob| Box::pin(async { bob.lock_timeout(SHORT).await.map(drop) })),
];

/// The same of `Session`.
const OF_SESSION: [Call<Keyed>; 15] = [
    call("try_lock", Nobody, |bob| {
        Box::pin(async { bob.session.try_lock(bob.key, Shared).await.map(drop) })
    }),
    call("lock", Nobody, |bob| Box::pin(bob.session.lock(bob.key, Shared))),
    call("lock_timeout", Nobody, |bob| {
        Box::pin(async { bob.session.lock_timeout(bob.key, Exclusive, LONG).await.map(drop) })
    }),
    call("lock_timeout", Alice, |bob| {
        Box::pin(async { bob.session.lock_timeout(bob.key, Shared, SHORT).await.map(drop) })
    }),
    call("try_lock_fenced", Nobody, |bob| {
        Box::pin(async { bob.session.try_lock_fenced(bob.key, Shared).await.map(drop) })
    }),
    call("lock_fenced", Nobody, |bob| {
        Box::pin(async { bob.session.lock_fenced(bob.key, Shared).await.map(drop) })
    }),
    call("unlock", Bob(Exclusive, 1), |bob| Box::pin(bob.session.unlock(bob.key, Exclusive))),
    call("unlock", Bob(Shared, 1), |bob| Box::pin(bob.session.unlock(bob.key, Shared))),
    call("holders", Alice, |bob| Box::pin(async { bob.session.holders(bob.key).await.map(drop) })),
    call("advisory_locks", Alice, |bob| {
        Box::pin(async { bob.session.advisory_locks().await.map(drop) })
    }),
    call("advisory_locks_on", Alice, |bob| {
        Box::pin(async { bob.session.advisory_locks_on(bob.key).await.map(drop) })
    }),
    call("terminate_holder", Alice, |bob| {
        Box::pin(async { bob.session.terminate_holder(bob.key, 0).await.map(drop) })
    }),
    call("diagnose", Alice, |bob| Box::pin(async { bob.session.diagnose().await.map(drop) })),
    call("ping", Alice, |bob| Box::pin(async { bob.session.ping().await.map(drop) })),
    call("hold", Bob(Shared, 1), |bob| Box::pin(bob.session.hold(several_turns()))),
];

/// Work that lets others have their turn in between.
async fn several_turns() {
    for _ in 0..3 {
        yield_now().await;
    }
}

fn cancelled(waited: Result<()>) -> Result<()> {
    match waited {
        Err(error) if error.kind() == ErrorKind::Cancelled => Ok(()),
        Err(error) => Err(error),
        Ok(()) => panic!("acquired what is held"),
    }
}

/// How Bob connects to the server.
struct Way {
    stage: Stage<'static>,
    pooler: Pooler,
    bouncer: Option<PgBouncer>,
    encrypted: bool,
}

impl Way {
    fn directly() -> Self {
        let stage = Stage::new();
        Self { stage, pooler: Pooler::Auto, bouncer: None, encrypted: false }
    }

    #[cfg(feature = "tls")]
    fn encrypted() -> Self {
        Self { encrypted: true, ..Self::directly() }
    }

    /// Directly, but as if a pooler were there.
    fn in_transactions() -> Self {
        Self { pooler: Pooler::Transaction, ..Self::directly() }
    }

    /// By a pooler that has so many connections to the server.
    fn pooled(connections: u32) -> Self {
        let cluster = Cluster::default_cluster();
        let bouncer = PgBouncer::start(cluster, PoolMode::Transaction, connections);
        Self { bouncer: Some(bouncer), ..Self::directly() }
    }

    fn all() -> Vec<Self> {
        vec![
            Self::directly(),
            #[cfg(feature = "tls")]
            Self::encrypted(),
            Self::in_transactions(),
            Self::pooled(2),
        ]
    }

    /// Whether the session holds locks itself.
    fn has_fences(&self) -> bool {
        self.bouncer.is_none() && self.pooler == Pooler::Auto
    }

    fn config(&self, role: &Role, actor: &str) -> Config {
        let url = match &self.bouncer {
            Some(bouncer) => bouncer.url_for(role),
            None => Cluster::default_cluster().url_for(role),
        };
        let mut config = self.stage.config_by(&url, actor);
        config.pooler(self.pooler);
        if self.encrypted {
            config.sslmode(pglock::SslMode::Require);
        }
        config
    }

    async fn lock(&self, actor: &str) -> Lock {
        Lock::connect(&self.config(&role::TRUST, actor), self.stage.key()).await.unwrap()
    }

    async fn session(&self, actor: &str) -> Keyed {
        let session = Session::connect(&self.config(&role::TRUST, actor)).await.unwrap();
        Keyed { session, key: self.stage.key() }
    }
}

#[tokio::test]
async fn a_call_of_a_lock_can_be_dropped_at_every_point() {
    for mut way in Way::all() {
        let bob = way.lock("bob").await;
        way.drop_each_at_every_point(bob, &OF_LOCK).await;
    }
}

#[tokio::test]
async fn a_call_of_a_session_can_be_dropped_at_every_point() {
    for mut way in Way::all() {
        let bob = way.session("bob").await;
        way.drop_each_at_every_point(bob, &OF_SESSION).await;
    }
}

impl Way {
    async fn drop_each_at_every_point<C: Caller>(&mut self, mut bob: C, calls: &[Call<C>]) {
        let mut alice = self.stage.lock("alice").await;
        for call in calls {
            if self.has_fences() || !call.name.ends_with("fenced") {
                call.drop_at_every_point(&mut self.stage, &mut alice, &mut bob).await;
            }
        }
    }
}

impl<C: Caller> Call<C> {
    async fn drop_at_every_point(&self, stage: &mut Stage<'_>, alice: &mut Lock, bob: &mut C) {
        for polls in 0.. {
            assert!(polls < POLLS_MAX, "{} is never done", self.name);
            self.before.begin(alice, bob).await;
            let done = soon(poll_times(polls, (self.begin)(bob))).await;

            let what = format!("{} with {:?} before, {polls} polls", self.name, self.before);
            if done.is_none() {
                let levels = [Exclusive, Shared].map(|mode| bob.level(mode));
                assert_eq!(levels, self.levels_if_dropped(polls), "{what}");
            }
            // The next call waits for what was dropped, and nothing hits it that was meant for that.
            bob.holders().await.unwrap();
            let expected = [locks("alice", alice), locks("bob", bob)].concat();
            assert_eq!(stage.locks(), expected, "{what}");
            assert!(stage.sessions() <= 2, "{what}: a session was left behind");
            if let Some(outcome) = done {
                outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
                // A further level costs no round trip.
                let stacks = matches!(self.before, Bob(..));
                assert!(polls > 1 || stacks, "{what}: it never waited");
                return;
            }
        }
    }

    /// At how many levels Bob then holds the key: a release is sent with the first poll and takes place.
    fn levels_if_dropped(&self, polls: usize) -> [u64; 2] {
        let releases = self.name.starts_with("unlock") && polls > 0;
        match self.before {
            Bob(_, 1) if releases => [0, 0],
            Bob(Exclusive, levels) => [levels, 0],
            Bob(Shared, levels) => [0, levels],
            Nobody | Alice => [0, 0],
        }
    }
}

impl Before {
    async fn begin(self, alice: &mut Lock, bob: &mut impl Caller) {
        release_all(alice).await;
        release_all(bob).await;
        match self {
            Nobody => {}
            Alice => alice.lock().await.unwrap(),
            Bob(mode, levels) => {
                for _ in 0..levels {
                    bob.lock(mode).await.unwrap();
                }
            }
        }
    }
}

async fn release_all(actor: &mut impl Caller) {
    for mode in [Exclusive, Shared] {
        while actor.level(mode) > 0 {
            actor.unlock(mode).await.unwrap();
        }
    }
}

/// What the books say that the actor holds.
fn locks(name: &str, actor: &impl Caller) -> Vec<String> {
    let held = [Exclusive, Shared].into_iter().filter(|&mode| actor.level(mode) > 0);
    held.map(|mode| format!("{name} holds {mode}")).collect()
}

#[tokio::test]
async fn a_connect_can_be_dropped_at_every_point() {
    let ways = [
        Way::directly(),
        #[cfg(feature = "tls")]
        Way::encrypted(),
        Way::in_transactions(),
    ];
    for mut way in ways {
        let (config, key) = (way.config(&role::SCRAM, "bob"), way.stage.key());
        for polls in 0.. {
            assert!(polls < POLLS_MAX, "it is never done");
            if let Some(lock) = soon(poll_times(polls, Lock::connect(&config, key))).await {
                assert!(lock.unwrap().try_lock().await.unwrap());
                assert!(polls > 1, "it never waited");
                break;
            }
            eventually("no session is left", PATIENCE, || way.stage.sessions() == 0).await;
        }
    }
}

/// The pooler has one connection for all of them.
#[tokio::test]
async fn a_connect_by_a_pooler_can_be_dropped_at_every_point() {
    let way = Way::pooled(1);
    let config = way.config(&role::SCRAM, "bob");
    for polls in 0.. {
        assert!(polls < POLLS_MAX, "it is never done");
        let session = soon(poll_times(polls, Session::connect(&config))).await;
        let mut next = soon(Lock::connect(&config, way.stage.key())).await.unwrap();
        assert!(soon(next.try_lock()).await.unwrap());
        next.close().await.unwrap();
        if let Some(session) = session {
            session.unwrap();
            assert!(polls > 1, "it never waited");
            return;
        }
    }
}

#[tokio::test]
async fn a_close_can_be_dropped_at_every_point() {
    for mut way in Way::all() {
        for polls in 0.. {
            assert!(polls < POLLS_MAX, "it is never done");
            let mut bob = way.lock("bob").await;
            bob.lock().await.unwrap();
            let done = soon(poll_times(polls, bob.close())).await;
            if done.is_some() {
                assert_eq!(way.stage.locks(), [""; 0]);
            }
            way.stage.until(&[]).await;

            let mut bob = way.session("bob").await;
            bob.lock(Shared).await.unwrap();
            let session_done = soon(poll_times(polls, bob.session.close())).await;
            way.stage.until(&[]).await;
            if let (Some(closed), Some(session_closed)) = (done, session_done) {
                closed.and(session_closed).unwrap();
                assert!(polls > 1, "it never waited");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_cancel_can_be_dropped_at_every_point() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock().await.unwrap();
    let canceller = bob.canceller();
    for polls in 0.. {
        assert!(polls < POLLS_MAX, "it is never done");
        let cancelling = async {
            stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
            poll_times(polls, canceller.cancel()).await
        };
        let done = if polls == 0 {
            tokio::select! {
                ended = bob.lock() => panic!("nobody cancelled: {ended:?}"),
                done = cancelling => done,
            }
        } else {
            // It cannot be taken back.
            let (waited, done) = soon(async { tokio::join!(bob.lock(), cancelling) }).await;
            cancelled(waited).unwrap();
            done
        };
        assert_eq!(bob.holders().await.unwrap().count(), 1, "after {polls} polls");
        assert_eq!(stage.locks(), ["alice holds exclusive"], "after {polls} polls");
        if done.is_some() {
            assert!(polls > 1, "it never waited");
            return;
        }
    }
}

/// While a holder waits for the loss of its lock, it gives signs of life.
#[tokio::test]
async fn waiting_for_the_loss_can_be_dropped_at_every_point() {
    let mut way = Way::directly();
    if way.stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let config = way.config(&role::TRUST, "bob").lease(LEASE).clone();
    let mut bob = Lock::connect(&config, way.stage.key()).await.unwrap();
    bob.lock().await.unwrap();
    // Until the second heartbeat has been answered.
    for polls in 0..6 {
        assert!(soon(poll_times(polls, bob.lost())).await.is_none());
        assert_eq!(bob.holders().await.unwrap().count(), 1, "after {polls} polls");
        assert_eq!(way.stage.locks(), ["bob holds exclusive"], "after {polls} polls");
    }
    way.stage.terminate("bob");
    assert!(soon(bob.lost()).await.is_lost());
}

/// Whether a call of a session or a lock is dropped here.
#[cfg(feature = "manager")]
pub(crate) fn drops(owner: &str, name: &str) -> bool {
    match owner {
        "pglock::Lock" => OF_LOCK.iter().any(|call| call.name == name),
        "pglock::Session" => OF_SESSION.iter().any(|call| call.name == name),
        _ => false,
    }
}
