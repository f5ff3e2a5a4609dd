//! One of many leads: [`Election`], on real servers.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use pglock::{Election, ErrorKind, Fence, Holder, Leadership, LockManager};
use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, Settings, Shutdown, role};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::fences::server_without_its_standby;
use crate::leases::ENDS_SILENT_SESSIONS;
use crate::stage::{PATIENCE, Stage, soon};

/// Long enough for a request to reach the server's queue, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);
/// How often observers look here.
const OFTEN: Duration = Duration::from_millis(20);

/// A candidate of `actor`, who stands for a process of its own.
fn candidate(stage: &Stage<'_>, actor: &str) -> Election {
    stage.manager(actor).election(stage.key())
}

#[tokio::test]
async fn one_leads_until_it_resigns_or_is_dropped() {
    let mut stage = Stage::new();
    let [alice, bob] = ["alice", "bob"].map(|actor| candidate(&stage, actor));
    assert_eq!(alice.key(), stage.key());
    let leadership = soon(alice.campaign()).await.unwrap();
    assert!(leadership.is_leader());
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
    assert!(soon(bob.try_campaign()).await.unwrap().is_none());
    assert!(soon(bob.campaign_timeout(SHORT)).await.unwrap().is_none());
    assert!(soon(bob.campaign_timeout(Duration::ZERO)).await.unwrap().is_none());
    // Another candidate of the same process does not lead along.
    assert!(soon(alice.try_campaign()).await.unwrap().is_none());

    soon(leadership.resign()).await.unwrap();
    let leadership = soon(bob.try_campaign()).await.unwrap().unwrap();
    assert_eq!(soon(leadership.hold(async { 7 })).await.unwrap(), 7);
    drop(leadership);
    let leadership = soon(alice.campaign_timeout(PATIENCE)).await.unwrap().unwrap();
    let process = stage.holder(stage.key());
    assert!(stage.end_process(process));
    assert!(soon(leadership.lost()).await.is_lost());
    assert!(!leadership.is_leader());
    assert!(soon(leadership.hold(pending::<()>())).await.unwrap_err().is_lost());
    assert!(soon(leadership.resign()).await.unwrap_err().is_lost());
    drop(soon(bob.campaign_timeout(Duration::MAX)).await.unwrap().unwrap());
}

/// A candidate that runs, and tells of each of its terms.
struct Running {
    task: JoinHandle<pglock::Result<()>>,
    /// Ends the work as it is meant to end.
    finish: Arc<Notify>,
}

/// What those who run have in common.
#[derive(Clone)]
struct Terms {
    /// Who lead now, by their own knowledge.
    leaders: Arc<AtomicUsize>,
    begun: UnboundedSender<(&'static str, Fence)>,
}

/// Counts a leader for as long as its work is not dropped.
struct Leads(Arc<AtomicUsize>);

impl Leads {
    fn begin(leaders: &Arc<AtomicUsize>) -> Self {
        assert_eq!(leaders.fetch_add(1, SeqCst), 0, "two lead at once");
        Self(Arc::clone(leaders))
    }
}

impl Drop for Leads {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Running {
    fn start(name: &'static str, election: Election, terms: &Terms) -> Self {
        let terms = terms.clone();
        let finish = Arc::new(Notify::new());
        let finished = Arc::clone(&finish);
        let task = tokio::spawn(async move {
            election
                .run(|leadership| work(name, leadership, terms.clone(), Arc::clone(&finished)))
                .await
        });
        Self { task, finish }
    }
}

async fn work(name: &'static str, leadership: Arc<Leadership>, terms: Terms, finish: Arc<Notify>) {
    let _leads = Leads::begin(&terms.leaders);
    terms.begun.send((name, leadership.fencing_token().unwrap())).unwrap();
    finish.notified().await;
}

/// Waits for the next term, whose token has to be higher than the last one.
async fn next_term(
    terms: &mut UnboundedReceiver<(&'static str, Fence)>,
    last: &mut Option<Fence>,
) -> &'static str {
    let (name, token) = soon(terms.recv()).await.unwrap();
    assert!(last.is_none_or(|last| last < token), "{token} after {last:?}");
    *last = Some(token);
    name
}

/// On one thread, which hears of an end before it hears of what follows from it.
#[tokio::test]
async fn candidates_lead_in_turn_whatever_ends_their_terms() {
    let mut stage = Stage::new();
    let (begun, mut terms) = unbounded_channel();
    let shared = Terms { leaders: Arc::default(), begun };
    let mut last = None;
    let mut running: Vec<_> = ["alice", "bob", "carol"]
        .map(|name| (name, Running::start(name, candidate(&stage, name), &shared)))
        .into();
    // The work is dropped with the session, and the candidate goes to the end of the queue.
    for _ in 0..6 {
        let leader = next_term(&mut terms, &mut last).await;
        stage.until_count(3).await;
        let [first, second] = ["holds", "awaits"]
            .map(|does| stage.locks().into_iter().filter(|line| line.contains(does)).count());
        assert_eq!((first, second), (1, 2));
        let holder = stage.locks().into_iter().find(|line| line.contains("holds")).unwrap();
        assert_eq!(holder, format!("{leader} holds exclusive"));
        let process = stage.holder(stage.key());
        assert!(stage.end_process(process));
    }
    // Each comes to its end.
    for left in (0..3).rev() {
        let leader = next_term(&mut terms, &mut last).await;
        let place = running.iter().position(|(name, _)| *name == leader).unwrap();
        let (_, leader) = running.remove(place);
        leader.finish.notify_one();
        soon(leader.task).await.unwrap().unwrap();
        stage.until_count(left).await;
    }
    assert_eq!(shared.leaders.load(SeqCst), 0);
}

#[tokio::test]
async fn whoever_runs_and_is_dropped_or_closed_makes_room() {
    let mut stage = Stage::new();
    let (begun, mut terms) = unbounded_channel();
    let shared = Terms { leaders: Arc::default(), begun };
    let mut last = None;
    let alice = Running::start("alice", candidate(&stage, "alice"), &shared);
    assert_eq!(next_term(&mut terms, &mut last).await, "alice");
    let manager = stage.manager("bob");
    let bob = Running::start("bob", manager.election(stage.key()), &shared);
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    alice.task.abort();
    assert_eq!(next_term(&mut terms, &mut last).await, "bob");
    soon(manager.close()).await.unwrap();
    let error = soon(bob.task).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    stage.until(&[]).await;
    assert_eq!(shared.leaders.load(SeqCst), 0);
}

#[tokio::test]
async fn work_that_ends_under_a_lost_leadership_is_done_again() {
    let mut stage = Stage::new();
    let election = candidate(&stage, "alice");
    let mut terms = 0;
    let ran = election.run(|leadership| {
        terms += 1;
        let term = terms;
        if term == 1 {
            stage.terminate("alice");
        }
        async move {
            if term == 1 {
                leadership.lost().await;
            }
            term
        }
    });
    assert_eq!(soon(ran).await.unwrap(), 2);
    stage.until(&[]).await;
}

fn name(leader: Option<&Holder>) -> Option<&str> {
    leader.and_then(Holder::application_name).and_then(|name| name.split('/').next_back())
}

#[tokio::test]
async fn an_observer_sees_every_leader() {
    let mut stage = Stage::new();
    let [alice, bob, eve] = ["alice", "bob", "eve"].map(|actor| candidate(&stage, actor));
    let mut observer = eve.observe().every(OFTEN);
    assert_eq!(soon(observer.next()).await.unwrap(), None);
    // And that is told once.
    timeout(10 * OFTEN, observer.next()).await.expect_err("nothing has changed");
    for round in 0..3 {
        let leadership = soon(alice.campaign()).await.unwrap();
        let leader = soon(observer.next()).await.unwrap();
        assert_eq!(name(leader.as_ref()), Some("alice"), "round {round}");
        assert_eq!(leader.unwrap().process_id(), Some(stage.holder(stage.key())));
        let next = tokio::spawn({
            let bob = bob.clone();
            async move { bob.campaign().await }
        });
        stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
        soon(leadership.resign()).await.unwrap();
        let leadership = soon(next).await.unwrap().unwrap();
        assert_eq!(name(soon(observer.next()).await.unwrap().as_ref()), Some("bob"));
        // One that begins now tells who leads, and then the same.
        let mut other = alice.observe().every(OFTEN);
        assert_eq!(name(soon(other.next()).await.unwrap().as_ref()), Some("bob"));
        // The observer's own session is replaced.
        stage.terminate("eve");
        soon(leadership.resign()).await.unwrap();
        for observer in [&mut observer, &mut other] {
            assert_eq!(soon(observer.next()).await.unwrap(), None);
        }
        assert_eq!(soon(eve.leader()).await.unwrap(), None);
    }
}

#[tokio::test]
async fn an_observer_outlasts_a_restart_and_ends_with_its_manager() {
    let mut cluster = Settings::new().start();
    let config: pglock::Config = cluster.url_for(&role::TRUST).parse().unwrap();
    let manager = LockManager::new(config.clone());
    let mut observer = manager.election("restart").observe().every(OFTEN);
    assert_eq!(soon(observer.next()).await.unwrap(), None);
    cluster.stop(Shutdown::Fast);
    timeout(10 * OFTEN, observer.next()).await.expect_err("nobody can tell");
    cluster.start();
    let other = LockManager::new(config);
    let leadership = soon(other.election("restart").campaign()).await.unwrap();
    assert!(soon(observer.next()).await.unwrap().is_some());
    drop(leadership);
    soon(manager.close()).await.unwrap();
    let error = soon(observer.next()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
}

#[tokio::test]
async fn through_a_pooler_there_are_leaders_without_tokens() {
    let mut stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 5);
    let url = bouncer.url_for(&role::TRUST);
    let [alice, bob] = ["alice", "bob"]
        .map(|actor| LockManager::new(stage.config_by(&url, actor)).election(stage.key()));
    let mut observer = bob.observe().every(OFTEN);
    assert_eq!(soon(observer.next()).await.unwrap(), None);
    let leadership = soon(alice.campaign()).await.unwrap();
    let error = leadership.fencing_token().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(name(soon(observer.next()).await.unwrap().as_ref()), Some("alice"));
    let next = tokio::spawn(async move { bob.campaign().await });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;
    assert_eq!(name(soon(alice.leader()).await.unwrap().as_ref()), Some("alice"));
    soon(leadership.resign()).await.unwrap();
    let leadership = soon(next).await.unwrap().unwrap();
    assert_eq!(name(soon(observer.next()).await.unwrap().as_ref()), Some("bob"));
    soon(leadership.resign()).await.unwrap();
    stage.until(&[]).await;
}

#[tokio::test]
async fn a_leader_behind_a_pooler_whose_server_process_ended_makes_room() {
    let mut stage = Stage::new();
    let bouncer = PgBouncer::start(Cluster::default_cluster(), PoolMode::Transaction, 5);
    let url = bouncer.url_for(&role::TRUST);
    let leaders = Arc::new(AtomicUsize::new(0));
    let (begun, mut terms) = unbounded_channel();
    let mut running = JoinSet::new();
    for name in ["alice", "bob"] {
        let election = LockManager::new(stage.config_by(&url, name)).election(stage.key());
        let (leaders, begun) = (Arc::clone(&leaders), begun.clone());
        running.spawn(async move {
            let lead = |_| {
                let (leads, begun) = (Leads::begin(&leaders), begun.clone());
                async move {
                    let _leads = leads;
                    begun.send(name).unwrap();
                    pending::<()>().await;
                }
            };
            election.run(lead).await
        });
    }
    for _ in 0..4 {
        let leader = soon(terms.recv()).await.unwrap();
        let other = if leader == "alice" { "bob" } else { "alice" };
        let mut locks = [format!("{leader} holds exclusive"), format!("{other} awaits exclusive")];
        locks.sort();
        stage.until(&[&locks[0], &locks[1]]).await;
        let process = stage.holder(stage.key());
        assert!(stage.end_process(process));
    }
    soon(running.shutdown()).await;
    stage.until(&[]).await;
    assert_eq!(leaders.load(SeqCst), 0);
}

#[tokio::test]
async fn an_observer_that_is_to_look_once_in_a_lifetime_does_not_look_all_the_time() {
    let stage = Stage::new();
    let mut observer = candidate(&stage, "alice").observe().every(Duration::MAX);
    assert!(soon(observer.next()).await.unwrap().is_none());
    let mut polls = 0;
    let mut next = pin!(observer.next());
    let next = poll_fn(|cx| {
        polls += 1;
        next.as_mut().poll(cx)
    });
    timeout(4 * SHORT, next).await.expect_err("nothing has changed");
    assert!(polls < 5, "it was woken {polls} times");
}

/// The token is not there when the lease is over, and with it the session.
#[tokio::test]
async fn a_candidate_is_told_that_another_one_leads_only_if_one_does() {
    let cluster = server_without_its_standby();
    let stage = Stage::on(&cluster);
    if stage.major_version() < ENDS_SILENT_SESSIONS {
        return;
    }
    let mut config = stage.config("alice");
    config.lease(Duration::from_secs(1));
    let election = LockManager::new(config).election(stage.key());
    let error = soon(election.try_campaign()).await.expect_err("nobody else is there");
    assert!(error.is_lost(), "{error}");
    // Each session ends with its lease, and none of them has its token.
    let error = timeout(PATIENCE * 3, election.campaign()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let words = "in which each session was lost that waited for one";
    assert!(error.to_string().contains(words), "{error}");
}
