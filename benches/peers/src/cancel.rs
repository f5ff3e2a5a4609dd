//! A wait for a busy lock, given up: until the caller has control back and the session holds nothing.
//! Over TCP. After each, the session must answer a further request: nothing stray may have hit it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pglock::{ErrorKind, Lock};
use pglock_test_cluster::role;
use tokio::sync::Notify;

use crate::bare::Bare;
use crate::messages::{LOCK, TRY_LOCK, UNLOCK, function_call};
use crate::rounds::{Candidate, Group, Turn};
use crate::server::{Observer, Server, Transport};

const CANCELS: usize = 10;
const TURNS: usize = 4;

pub(crate) fn group(server: &Server) -> Group {
    let candidates = vec![
        Candidate { name: "bare socket", turn: bare(server, 31) },
        Candidate { name: "pglock, Canceller", turn: canceller(server, 32) },
        Candidate { name: "pglock, dropped, and the next call", turn: dropped(server, 33) },
    ];
    Group { title: "Cancel, TCP", turns: TURNS, candidates }
}

/// Cancels, reads the answer, and unlocks, since the lock may have been granted just before.
fn bare(server: &Server, key: i64) -> Turn {
    let server = server.clone();
    let [lock, unlock, try_lock] =
        [LOCK, UNLOCK, TRY_LOCK].map(|function| function_call(function, key));
    let mut holder = Bare::tcp(&server, &role::TRUST);
    holder.ask(&lock);
    let mut waiter = Bare::tcp(&server, &role::TRUST);
    let mut observer = Observer::new(&server);
    Box::new(move |times| {
        // Without it the holder's session would end, and with it the wait.
        let _holder = &holder;
        for _ in 0..CANCELS {
            waiter.send(&lock);
            observer.wait_until_queued(key);
            let begin = Instant::now();
            waiter.cancel(&server);
            waiter.read_answer();
            waiter.ask(&unlock);
            times.push(begin.elapsed());
            waiter.ask(&try_lock);
        }
    })
}

/// From the call of `cancel` until the call that waited has returned.
fn canceller(server: &Server, key: i64) -> Turn {
    let (holder, mut waiter) = hold(server, key);
    let canceller = waiter.canceller();
    let mut waiter = Some(waiter);
    let runtime = Rc::clone(server.runtime());
    let mut observer = Observer::new(server);
    Box::new(move |times| {
        let _holder = &holder;
        runtime.block_on(async {
            for _ in 0..CANCELS {
                let mut session = waiter.take().expect("given back each time");
                let waiting = tokio::spawn(async move {
                    let error = session.lock().await.expect_err("the lock is busy");
                    assert_eq!(error.kind(), ErrorKind::Cancelled);
                    (Instant::now(), session)
                });
                observer.queued(key).await;
                let begin = Instant::now();
                canceller.cancel().await;
                let (returned, mut session) = waiting.await.expect("the waiter");
                times.push(returned - begin);
                assert!(!session.try_lock().await.expect("an answer"));
                waiter = Some(session);
            }
        });
    })
}

/// From dropping the future that waits until the session's next call, a `try_lock`, has its answer:
/// one round trip more than the others.
fn dropped(server: &Server, key: i64) -> Turn {
    let (holder, waiter) = hold(server, key);
    let mut waiter = Some(waiter);
    let runtime = Rc::clone(server.runtime());
    let mut observer = Observer::new(server);
    Box::new(move |times| {
        let _holder = &holder;
        runtime.block_on(async {
            for _ in 0..CANCELS {
                let session = waiter.take().expect("given back each time");
                let give_up = Arc::new(Notify::new());
                let waiting = tokio::spawn(wait_until_told(session, Arc::clone(&give_up)));
                observer.queued(key).await;
                let begin = Instant::now();
                give_up.notify_one();
                let (answered, session) = waiting.await.expect("the waiter");
                times.push(answered - begin);
                waiter = Some(session);
            }
        });
    })
}

async fn wait_until_told(mut waiter: Lock, give_up: Arc<Notify>) -> (Instant, Lock) {
    tokio::select! {
        granted = waiter.lock() => panic!("the lock was busy, and yet: {granted:?}"),
        () = give_up.notified() => {}
    }
    assert!(!waiter.try_lock().await.expect("an answer"));
    (Instant::now(), waiter)
}

/// A session that has the key, and one that is going to want it.
fn hold(server: &Server, key: i64) -> (Lock, Lock) {
    let [mut holder, waiter] = [(); 2].map(|()| server.lock(Transport::Tcp, key));
    server.runtime().block_on(holder.lock()).expect("the lock");
    (holder, waiter)
}
