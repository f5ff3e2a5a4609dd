//! A busy lock, passed from one session to another: from the holder's `unlock`, with one waiter in the
//! server's queue, until the waiter has it. Both sessions are on one thread, over TCP; those of
//! `pglock::blocking` are on a thread each, and so is a second pair of bare sockets.

use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use pglock_test_cluster::role;

use crate::bare::{Bare, BareTokio};
use crate::messages::{LOCK, UNLOCK, function_call};
use crate::rounds::{Candidate, Group, Turn};
use crate::server::{Observer, Server, Transport};

const HAND_OVERS: usize = 20;
const TURNS: usize = 30;

pub(crate) fn group(server: &Server) -> Group {
    let candidates = vec![
        Candidate { name: "bare sockets", turn: bare(server, 21) },
        Candidate { name: "bare tokio sockets", turn: bare_tokio(server, 22) },
        Candidate { name: "bare sockets, a thread each", turn: bare_on_threads(server, 23) },
        Candidate { name: "pglock", turn: pglock(server, 24) },
        Candidate { name: "pglock, blocking", turn: pglock_blocking(server, 25) },
    ];
    Group { title: "Hand-over, TCP", turns: TURNS, candidates }
}

fn bare(server: &Server, key: i64) -> Turn {
    let [lock, unlock] = [LOCK, UNLOCK].map(|function| function_call(function, key));
    let mut holder = Bare::tcp(server, &role::TRUST);
    let mut waiter = Bare::tcp(server, &role::TRUST);
    let mut observer = Observer::new(server);
    holder.ask(&lock);
    Box::new(move |times| {
        for _ in 0..HAND_OVERS {
            waiter.send(&lock);
            observer.wait_until_queued(key);
            let begin = Instant::now();
            holder.send(&unlock);
            waiter.read_answer();
            times.push(begin.elapsed());
            holder.read_answer();
            std::mem::swap(&mut holder, &mut waiter);
        }
    })
}

/// Both answers are awaited at once, as two tasks of a program would.
fn bare_tokio(server: &Server, key: i64) -> Turn {
    let [lock, unlock] = [LOCK, UNLOCK].map(|function| function_call(function, key));
    let runtime = Rc::clone(server.runtime());
    let _inside = runtime.enter();
    let [mut first, second] = [(); 2].map(|()| BareTokio::tcp(server, &role::TRUST));
    runtime.block_on(first.ask(&lock));
    let mut observer = Observer::new(server);
    let mut pair = Some((first, second));
    let runtime = Rc::clone(server.runtime());
    Box::new(move |times| {
        runtime.block_on(async {
            for _ in 0..HAND_OVERS {
                let (mut holder, mut waiter) = pair.take().expect("given back each time");
                waiter.send(&lock).await;
                let waiting = tokio::spawn(async move {
                    waiter.read_answer().await;
                    (Instant::now(), waiter)
                });
                observer.queued(key).await;
                let begin = Instant::now();
                holder.ask(&unlock).await;
                let (granted, waiter) = waiting.await.expect("the waiter");
                times.push(granted - begin);
                pair = Some((waiter, holder));
            }
        });
    })
}

fn pglock(server: &Server, key: i64) -> Turn {
    let runtime = Rc::clone(server.runtime());
    let [mut first, second] = [(); 2].map(|()| server.lock(Transport::Tcp, key));
    runtime.block_on(first.lock()).expect("the lock");
    let mut observer = Observer::new(server);
    let mut pair = Some((first, second));
    Box::new(move |times| {
        runtime.block_on(async {
            for _ in 0..HAND_OVERS {
                let (mut holder, mut waiter) = pair.take().expect("given back each time");
                let waiting = tokio::spawn(async move {
                    waiter.lock().await.expect("the lock");
                    (Instant::now(), waiter)
                });
                observer.queued(key).await;
                let begin = Instant::now();
                holder.unlock().await.expect("an answer");
                let (granted, waiter) = waiting.await.expect("the waiter");
                times.push(granted - begin);
                pair = Some((waiter, holder));
            }
        });
    })
}

fn pglock_blocking(server: &Server, key: i64) -> Turn {
    let [mut first, second] = [(); 2].map(|()| server.blocking_lock(Transport::Tcp, key));
    first.lock().expect("the lock");
    on_threads(
        (first, second),
        (Observer::new(server), key),
        |waiter| waiter.lock().expect("the lock"),
        |holder| holder.unlock().expect("an answer"),
    )
}

fn bare_on_threads(server: &Server, key: i64) -> Turn {
    let [lock, unlock] = [LOCK, UNLOCK].map(|function| function_call(function, key));
    let [mut first, second] = [(); 2].map(|()| Bare::tcp(server, &role::TRUST));
    first.ask(&lock);
    on_threads(
        (first, second),
        (Observer::new(server), key),
        move |waiter| waiter.ask(&lock),
        move |holder| holder.ask(&unlock),
    )
}

/// The first of the pair has the lock.
fn on_threads<S: Send + 'static>(
    pair: (S, S),
    (mut observer, key): (Observer, i64),
    lock: impl Fn(&mut S) + Send + 'static,
    unlock: impl Fn(&mut S) + 'static,
) -> Turn {
    // A thread that waits again and again: to start one is no part of a hand-over.
    let (give, given) = mpsc::channel::<S>();
    let (grant, granted) = mpsc::channel();
    thread::spawn(move || {
        for mut waiter in given {
            lock(&mut waiter);
            grant.send((Instant::now(), waiter)).expect("somebody who listens");
        }
    });
    let mut pair = Some(pair);
    Box::new(move |times| {
        for _ in 0..HAND_OVERS {
            let (mut holder, waiter) = pair.take().expect("given back each time");
            give.send(waiter).expect("the waiter's thread");
            observer.wait_until_queued(key);
            let begin = Instant::now();
            unlock(&mut holder);
            let (granted, waiter) = granted.recv().expect("the waiter");
            times.push(granted - begin);
            pair = Some((waiter, holder));
        }
    })
}
