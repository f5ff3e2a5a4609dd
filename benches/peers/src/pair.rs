//! A lock that nobody else wants, taken and given back: two round trips.

use std::io::{Read, Write};

use pglock_test_cluster::{Role, role};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::SimpleQueryMessage;

use crate::bare::{Bare, BareTokio};
use crate::drivers;
use crate::messages::{TRY_LOCK, UNLOCK, function_call};
use crate::rounds::{Candidate, Group};
use crate::server::{Server, Transport};

/// So few at a time that what slows the machine for a moment slows every candidate.
const PAIRS: usize = 200;
const TURNS: usize = 12;

pub(crate) fn group(server: &Server, transport: Transport) -> Group {
    let mut candidates = match transport {
        Transport::Tcp => vec![bare(server.tcp()), bare_tokio(server, BareTokio::tcp)],
        Transport::Unix => vec![bare(server.unix()), bare_tokio(server, BareTokio::unix)],
        Transport::Tls => vec![bare(server.tls())],
    };
    candidates.push(pglock(server, transport));
    candidates.push(pglock_blocking(server, transport));
    candidates.push(tokio_postgres_prepared(server, transport));
    candidates.push(tokio_postgres_simple(server, transport));
    candidates.push(sqlx_prepared(server, transport));
    if transport != Transport::Tls {
        candidates.extend(redis(server, transport));
    }
    let title = match transport {
        Transport::Tcp => "Pair, TCP",
        Transport::Unix => "Pair, Unix socket",
        Transport::Tls => "Pair, TLS",
    };
    Group { title, turns: TURNS, candidates }
}

fn bare(stream: impl Read + Write + 'static) -> Candidate {
    let mut bare = Bare::log_in(stream, &role::TRUST);
    let [try_lock, unlock] = [TRY_LOCK, UNLOCK].map(|function| function_call(function, 1));
    Candidate::blocking("bare socket", PAIRS, move || {
        bare.ask(&try_lock);
        bare.ask(&unlock);
    })
}

fn bare_tokio<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    server: &Server,
    log_in: impl FnOnce(&Server, &Role) -> BareTokio<S>,
) -> Candidate {
    let _inside = server.runtime().enter();
    let mut bare = log_in(server, &role::TRUST);
    let [try_lock, unlock] = [TRY_LOCK, UNLOCK].map(|function| function_call(function, 2));
    Candidate::on(server.runtime(), "bare tokio socket", PAIRS, async move || {
        bare.ask(&try_lock).await;
        bare.ask(&unlock).await;
    })
}

fn pglock(server: &Server, transport: Transport) -> Candidate {
    let mut lock = server.lock(transport, 3);
    Candidate::on(server.runtime(), "pglock", PAIRS, async move || {
        assert!(lock.try_lock().await.expect("an answer"));
        lock.unlock().await.expect("an answer");
    })
}

fn pglock_blocking(server: &Server, transport: Transport) -> Candidate {
    let mut lock = server.blocking_lock(transport, 7);
    Candidate::blocking("pglock, blocking", PAIRS, move || {
        assert!(lock.try_lock().expect("an answer"));
        lock.unlock().expect("an answer");
    })
}

fn tokio_postgres_prepared(server: &Server, transport: Transport) -> Candidate {
    let (client, try_lock, unlock) = server.runtime().block_on(async {
        let client = drivers::tokio_postgres(server, transport, &role::TRUST).await;
        let try_lock = client.prepare("SELECT pg_try_advisory_lock($1)").await.expect("prepared");
        let unlock = client.prepare("SELECT pg_advisory_unlock($1)").await.expect("prepared");
        (client, try_lock, unlock)
    });
    Candidate::on(server.runtime(), "tokio-postgres, prepared", PAIRS, async move || {
        for statement in [&try_lock, &unlock] {
            let row = client.query_one(statement, &[&4_i64]).await.expect("an answer");
            assert!(row.get::<_, bool>(0));
        }
    })
}

fn tokio_postgres_simple(server: &Server, transport: Transport) -> Candidate {
    let client = drivers::tokio_postgres(server, transport, &role::TRUST);
    let client = server.runtime().block_on(client);
    Candidate::on(server.runtime(), "tokio-postgres, simple query", PAIRS, async move || {
        for query in ["SELECT pg_try_advisory_lock(5)", "SELECT pg_advisory_unlock(5)"] {
            let answer = client.simple_query(query).await.expect("an answer");
            let is_true = |part: &SimpleQueryMessage| matches!(part, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"));
            assert!(answer.iter().any(is_true));
        }
    })
}

/// sqlx prepares what it is given, and keeps it for the next time.
fn sqlx_prepared(server: &Server, transport: Transport) -> Candidate {
    let connection = drivers::sqlx(server, transport, &role::TRUST);
    let mut connection = server.runtime().block_on(connection);
    Candidate::on(server.runtime(), "sqlx, prepared", PAIRS, async move || {
        for query in ["SELECT pg_try_advisory_lock($1)", "SELECT pg_advisory_unlock($1)"] {
            let answer = sqlx::query_scalar(query).bind(6_i64).fetch_one(&mut connection).await;
            let granted: bool = answer.expect("an answer");
            assert!(granted);
        }
    })
}

fn redis(server: &Server, transport: Transport) -> Option<Candidate> {
    let mut lock = server.runtime().block_on(server.redis()?.lock(transport, "pair"));
    Some(Candidate::on(server.runtime(), "Redis, SET NX PX", PAIRS, async move || {
        assert!(lock.try_lock().await);
        assert!(lock.unlock().await);
    }))
}
