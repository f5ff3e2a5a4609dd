//! A session, made: from dialling until it can be used. SCRAM-SHA-256 over TCP, without TLS.

use std::rc::Rc;
use std::time::{Duration, Instant};

use pglock::{Config, Lock, blocking};
use pglock_test_cluster::role::SCRAM;
use sqlx::Connection;

use crate::bare::Bare;
use crate::drivers;
use crate::rounds::{Candidate, Group, Turn};
use crate::server::{Observer, Server, Transport};

const KEY: i64 = 11;
const SESSIONS: usize = 10;
const TURNS: usize = 16;

pub(crate) fn group(server: &Server) -> Group {
    let candidates = vec![
        Candidate { name: "bare socket", turn: bare(server) },
        Candidate { name: "pglock, first connection of a Config", turn: pglock_first(server) },
        Candidate { name: "pglock, from the second on", turn: pglock_again(server) },
        Candidate { name: "pglock, blocking, first connection", turn: blocking_first(server) },
        Candidate { name: "pglock, blocking, from the second on", turn: blocking_again(server) },
        Candidate { name: "tokio-postgres", turn: tokio_postgres(server) },
        Candidate { name: "sqlx", turn: sqlx(server) },
    ];
    Group { title: "Connect, SCRAM over TCP", turns: TURNS, candidates }
}

/// Derives the password's key each time.
fn bare(server: &Server) -> Turn {
    let server = server.clone();
    sessions(&server.clone(), move || {
        let begin = Instant::now();
        let bare = Bare::tcp(&server, &SCRAM);
        let time = begin.elapsed();
        bare.close();
        time
    })
}

fn pglock_first(server: &Server) -> Turn {
    let url = server.cluster().url_for(&SCRAM) + "?sslmode=disable";
    let runtime = Rc::clone(server.runtime());
    sessions(server, move || {
        let config: Config = url.parse().expect("the cluster's URL");
        runtime.block_on(connect_and_close(&config))
    })
}

fn pglock_again(server: &Server) -> Turn {
    let config = server.config(Transport::Tcp, &SCRAM);
    let runtime = Rc::clone(server.runtime());
    sessions(server, move || runtime.block_on(connect_and_close(&config)))
}

fn blocking_first(server: &Server) -> Turn {
    let url = server.cluster().url_for(&SCRAM) + "?sslmode=disable";
    sessions(server, move || block_and_close(&url.parse().expect("the cluster's URL")))
}

fn blocking_again(server: &Server) -> Turn {
    let config = server.config(Transport::Tcp, &SCRAM);
    sessions(server, move || block_and_close(&config))
}

fn block_and_close(config: &Config) -> Duration {
    let begin = Instant::now();
    let lock = blocking::Lock::connect(config, KEY).expect("a session");
    let time = begin.elapsed();
    lock.close().expect("a goodbye");
    time
}

async fn connect_and_close(config: &Config) -> Duration {
    let begin = Instant::now();
    let lock = Lock::connect(config, KEY).await.expect("a session");
    let time = begin.elapsed();
    lock.close().await.expect("a goodbye");
    time
}

fn tokio_postgres(server: &Server) -> Turn {
    let server = server.clone();
    sessions(&server.clone(), move || {
        server.runtime().block_on(async {
            let begin = Instant::now();
            let client = drivers::tokio_postgres(&server, Transport::Tcp, &SCRAM).await;
            let time = begin.elapsed();
            drop(client);
            // The task that drives the connection closes it.
            tokio::task::yield_now().await;
            time
        })
    })
}

fn sqlx(server: &Server) -> Turn {
    let server = server.clone();
    sessions(&server.clone(), move || {
        server.runtime().block_on(async {
            let begin = Instant::now();
            let connection = drivers::sqlx(&server, Transport::Tcp, &SCRAM).await;
            let time = begin.elapsed();
            connection.close().await.expect("a goodbye");
            time
        })
    })
}

/// One after the other: the end of one does not burden the beginning of the next.
fn sessions(server: &Server, mut connect: impl FnMut() -> Duration + 'static) -> Turn {
    let mut observer = Observer::new(server);
    Box::new(move |times| {
        for _ in 0..SESSIONS {
            times.push(connect());
            observer.wait_until_gone(&SCRAM);
        }
    })
}
