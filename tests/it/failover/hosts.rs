//! Servers that are not there, not ready, or not the primary give their turn to the next.

use std::io::ErrorKind::WouldBlock;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pglock::{Config, Error, ErrorKind, Lock};
use pglock_test_cluster::{Cluster, Settings, role, wait_until};

use super::{config_for, string_for};
use crate::scripted::Script;
use crate::scripted::messages::fatal;
use crate::stage::{PATIENCE, soon};

/// How long a server that says nothing is listened to.
const BRIEFLY: Duration = Duration::from_millis(200);

/// A place on 127.0.0.1 where connections are made, and nobody says a word.
fn silent_place() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A place on 127.0.0.1 where nobody is. It stays so: the port is bound, and not listened on.
fn empty_place() -> (socket2::Socket, u16) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket_ipv4().unwrap().port();
    (socket, port)
}

/// Whether anybody has come to this place.
fn was_visited(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    match listener.accept() {
        Ok(_) => true,
        Err(error) if error.kind() == WouldBlock => false,
        Err(error) => panic!("{error}"),
    }
}

async fn assert_locks(config: &Config) {
    let mut lock = soon(Lock::connect(config, "whoever is there")).await.unwrap();
    assert!(soon(lock.try_lock_shared()).await.unwrap());
    soon(lock.close()).await.unwrap();
}

async fn refusal(config: &Config) -> Error {
    let error = soon(Lock::connect(config, 1)).await.unwrap_err();
    assert!(!error.is_lost(), "{error:?}");
    error
}

#[track_caller]
fn assert_tells(error: &Error, words: &[&str]) {
    let told = error.to_string();
    for word in words {
        assert!(told.contains(word), "no \"{word}\" in: {told}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_passed_over() {
    let (_empty, empty) = empty_place();
    assert_locks(&config_for(&[empty, Cluster::default_cluster().port()])).await;
}

#[tokio::test]
async fn a_server_that_says_nothing_has_its_time_and_no_more() {
    let ((_first, first), (_second, second)) = (silent_place(), silent_place());
    let mut config = config_for(&[first, second]);
    let start = Instant::now();
    let error = refusal(config.connect_timeout(BRIEFLY)).await;
    assert!(start.elapsed() >= 2 * BRIEFLY, "each address has its own time");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_tells(&error, &[&format!("port {first}"), &format!("port {second}"), "200ms"]);

    // A server that is there needs more time, on a busy machine.
    config.hosts([("127.0.0.1", first), ("127.0.0.1", Cluster::default_cluster().port())]);
    assert_locks(config.connect_timeout(Duration::from_secs(5))).await;
}

#[tokio::test]
async fn a_server_that_starts_or_ends_is_passed_over() {
    for sqlstate in ["57P01", "57P02", "57P03"] {
        let not_now = fatal(sqlstate, "not now");
        for script in [
            Script::new().says(not_now.clone()).end_of_file().left(),
            Script::new().login().refuses_calls().says(not_now).end_of_file().left(),
        ] {
            let backend = script.play().await;
            let mut config = config_for(&[]);
            config.hosts([
                ("127.0.0.1", backend.port()),
                ("127.0.0.1", Cluster::default_cluster().port()),
            ]);
            assert_locks(&config).await;
            backend.done().await;
        }
    }
}

#[tokio::test]
async fn a_standby_gives_its_turn_to_the_primary_and_is_refused_alone() {
    let primary = Settings::new().start();
    let standby = Settings::new().start_standby_of(&primary);
    for servers in [[&standby, &primary], [&primary, &standby]] {
        let config: Config = string_for(&servers).parse().unwrap();
        let mut lock = soon(Lock::connect(&config, 1)).await.unwrap();
        assert!(soon(lock.try_lock()).await.unwrap());
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        assert_eq!([&standby, &primary].map(|server| server.raw().value(held)), ["0", "1"]);
        soon(lock.close()).await.unwrap();
    }
    let error = refusal(&string_for(&[&standby]).parse().unwrap()).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_tells(&error, &["is a standby", "connect to the primary"]);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pglock%'";
    wait_until("the standby is left", PATIENCE, || standby.raw().value(sessions) == "0");
}

#[tokio::test]
async fn a_refused_login_ends_the_search() {
    let cluster = Cluster::default_cluster();
    for (user, password) in [(role::SCRAM, "wrong"), (role::REJECTED, "none")] {
        for sslmode in ["disable", "prefer", "require"] {
            let (next, port) = silent_place();
            let mut config = config_for(&[cluster.port(), port]);
            config.user(user.name).password(password).set("sslmode", sslmode).unwrap();
            let error = refusal(&config).await;
            assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
            assert!(!was_visited(&next), "{} with sslmode={sslmode}", user.name);
        }
    }
}

#[tokio::test]
async fn a_missing_database_ends_the_search() {
    let (next, port) = silent_place();
    let mut config = config_for(&[Cluster::default_cluster().port(), port]);
    let error = refusal(config.dbname("nowhere")).await;
    assert_eq!(error.sqlstate(), Some("3D000"), "{error}");
    assert!(!was_visited(&next));
}

#[tokio::test]
async fn what_is_wrong_with_each_server_is_told() {
    let (_empty, empty) = empty_place();
    let (_silent, silent) = silent_place();
    let backend = Script::new().says(fatal("57P03", "still asleep")).end_of_file().left();
    let backend = backend.play().await;
    let mut config = config_for(&[empty, silent, backend.port()]);
    // The last one has to be heard in that time.
    let error = refusal(config.connect_timeout(Duration::from_secs(3))).await;
    let ports = [empty, silent, backend.port()].map(|port| format!("127.0.0.1 port {port}: "));
    assert_tells(&error, &ports.each_ref().map(String::as_str));
    assert_tells(&error, &["cannot reach", "not connected within 3s", "still asleep"]);
    backend.done().await;
}

#[tokio::test]
async fn each_of_several_servers_comes_first_at_random() {
    const CONNECTS: usize = 60;
    // Each closes the door at once, so that each is tried in turn.
    let visits = Arc::new(Mutex::new(Vec::new()));
    let ports: Vec<u16> = (0..3)
        .map(|name| {
            let (listener, port) = silent_place();
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let visits = Arc::clone(&visits);
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    visits.lock().unwrap().push(name);
                    drop(stream);
                }
            });
            port
        })
        .collect();
    let mut config = config_for(&ports);
    for (order, firsts) in [("random", vec![0, 1, 2]), ("disable", vec![0])] {
        config.set("load_balance_hosts", order).unwrap();
        let mut seen: Vec<usize> = Vec::new();
        for _ in 0..CONNECTS {
            assert_eq!(refusal(&config).await.kind(), ErrorKind::Connect);
            let mut tried = std::mem::take(&mut *visits.lock().unwrap());
            seen.extend(tried.first());
            tried.sort_unstable();
            assert_eq!(tried, [0, 1, 2], "each once");
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, firsts, "with load_balance_hosts={order}");
    }
}

#[tokio::test]
async fn each_address_of_a_name_is_tried() {
    let addresses: Vec<_> = ("localhost", 1).to_socket_addrs().unwrap().collect();
    for host in addresses.iter().map(SocketAddr::ip) {
        // A machine may have a name for an address, and not the address. Nobody is at the others.
        let Ok(listener) = TcpListener::bind((host, 0)) else { continue };
        let port = listener.local_addr().unwrap().port();
        let mut config = config_for(&[]);
        config.hosts([("localhost", port)]);
        let error = refusal(config.connect_timeout(BRIEFLY)).await;
        assert!(was_visited(&listener), "{host} of {addresses:?}");
        for address in addresses.iter().map(SocketAddr::ip) {
            assert_tells(&error, &[&SocketAddr::new(address, port).to_string()]);
        }
        assert_tells(&error, &[&format!("localhost port {port}"), "200ms"]);
    }
}

#[tokio::test]
async fn the_address_is_dialled_and_the_name_is_shown() {
    let cluster = Cluster::default_cluster();
    let mut config: Config = format!(
        "host=db.example.invalid hostaddr=127.0.0.1 port={} user={} dbname=app",
        cluster.port(),
        role::TRUST.name
    )
    .parse()
    .unwrap();
    assert_locks(&config).await;
    let error = refusal(config.clone().dbname("nowhere")).await;
    assert_tells(&error, &["db.example.invalid", &format!("port {}", cluster.port())]);

    let (_empty, empty) = empty_place();
    let error = refusal(config.clone().port(empty)).await;
    assert_tells(&error, &["db.example.invalid", &format!("127.0.0.1:{empty}")]);

    let root = cluster.root_certificate();
    config.set("sslrootcert", root.to_str().unwrap()).unwrap();
    config.set("sslmode", "verify-full").unwrap();
    let error = refusal(&config).await;
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    assert_tells(&error, &["db.example.invalid"]);
    assert_locks(config.set("host", "localhost").unwrap()).await;
}

#[tokio::test]
async fn an_address_is_dialled_for_each_name() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return; // The machine has no IPv6.
    }
    let config = format!(
        "host=a.invalid,b.invalid hostaddr=127.0.0.2,::1 port={} user={} dbname=app sslmode=disable",
        Cluster::default_cluster().port(),
        role::TRUST.name
    );
    assert_locks(&config.parse().unwrap()).await;
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_passed_over() {
    let mut config = config_for(&[]);
    let port = Cluster::default_cluster().port();
    config.hosts([("db.example.invalid", port)]);
    let error = refusal(&config).await;
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert_tells(&error, &["db.example.invalid", "cannot be resolved"]);
    config.hosts([("db.example.invalid", port), ("127.0.0.1", port)]);
    assert_locks(&config).await;
}
