//! A server lasts as long as what started it, and does what it is told meanwhile.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pglock_test_cluster::{PgBouncer, PoolMode, Settings, Shutdown, role, signal, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_killed_test_process_leaves_nothing() {
    let folder = fresh_folder("killed");
    let (mut process, server) = start_with_cluster(&folder, "cat >&2");
    process.kill().unwrap();
    process.wait().unwrap();
    wait_until("the server has ended", PATIENCE, || !is_listening(&server));
    wait_until("its directory is gone", PATIENCE, || fs::remove_dir(&folder).is_ok());
}

#[test]
fn an_interrupt_reaches_the_command_and_ends_the_server() {
    let folder = fresh_folder("interrupted");
    let (mut process, server) = start_with_cluster(&folder, "exec cat >&2");
    // Waiting for a process closes its standard input, and `cat` would end by itself.
    let input = process.stdin.take();
    signal(process.id(), "INT");
    // 128 and SIGINT's number: what ended `cat`.
    assert_eq!(process.wait().unwrap().code(), Some(130));
    drop(input);
    assert!(!is_listening(&server), "the server still runs");
    fs::remove_dir(&folder).expect("the cluster's directory is gone");
}

#[test]
fn the_status_of_the_command_is_passed_on() {
    let status = Command::new(env!("CARGO_BIN_EXE_with-cluster"))
        .args(["sh", "-c", "exit 7"])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
}

#[test]
fn a_dropped_cluster_is_gone_at_once() {
    let cluster = Settings::new().start();
    let (server, directory) = (address(&cluster.url_for(&role::TRUST)), cluster.socket_dir());
    assert!(is_listening(&server));
    let directory = directory.to_owned();
    drop(cluster);
    assert!(!is_listening(&server), "the server still runs");
    assert!(!directory.exists(), "{} is still there", directory.display());
}

#[test]
fn a_cluster_restarts_in_every_way_with_its_data() {
    let mut cluster = Settings::new().set("fsync", "on").start();
    let port = cluster.port();
    cluster.raw().rows("CREATE TABLE kept (way text)");
    for way in [Shutdown::Smart, Shutdown::Fast, Shutdown::Immediate, Shutdown::Kill] {
        cluster.raw().rows(&format!("INSERT INTO kept VALUES ('{way:?}')"));
        let before = cluster.process_id();
        cluster.restart(way);
        assert_ne!(cluster.process_id(), before, "after {way:?}");
    }
    assert_eq!(cluster.port(), port);
    let mut look = cluster.raw();
    assert_eq!(look.value("SELECT string_agg(way, ' ') FROM kept"), "Smart Fast Immediate Kill");
    assert_eq!(look.value("SHOW fsync"), "on");
}

#[test]
fn a_standby_is_in_recovery_until_it_is_promoted() {
    let mut cluster = Settings::new().start();
    assert_eq!(cluster.raw().value("SELECT pg_is_in_recovery()"), "f");
    cluster.become_standby();
    assert_eq!(cluster.raw().value("SELECT pg_is_in_recovery()"), "t");
    cluster.promote();
    assert_eq!(cluster.raw().value("SELECT pg_is_in_recovery()"), "f");
}

#[test]
fn a_frozen_server_does_not_outlive_its_test() {
    let cluster = Settings::new().start();
    let backend = cluster.raw();
    signal(backend.process_id(), "STOP");
    signal(cluster.process_id(), "STOP");
    let directory = cluster.socket_dir().to_owned();
    drop(cluster);
    assert!(!directory.exists(), "{} is still there", directory.display());
}

#[test]
fn a_pooler_lets_every_role_through_that_needs_no_password_and_is_gone_at_once() {
    let cluster = Settings::new().start();
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pooler = PgBouncer::start(&cluster, mode, 1);
        for role in [role::SUPERUSER, role::TRUST, role::HURRIED] {
            assert_eq!(pooler.raw(&role, "app").value("SELECT current_user"), role.name);
        }
        let address = address(&pooler.url_for(&role::TRUST));
        assert!(is_listening(&address));
        let begun = Instant::now();
        drop(pooler);
        assert!(!is_listening(&address), "the pooler still runs");
        // When a pooler is killed that has not ended before.
        assert!(begun.elapsed() < Duration::from_secs(10), "it had to be killed");
    }
}

/// Starts the program in a folder of its own; gives it and the server's address once its command
/// runs. The command reads from a pipe that ends with this process, so it never outlives it.
fn start_with_cluster(folder: &Path, command: &str) -> (Child, String) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_with-cluster"))
        .args(["sh", "-c", &format!("echo \"$DATABASE_URL\"; {command}")])
        .env("PGLOCK_TEST_TMP", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let server = address(url.trim_end());
    assert!(is_listening(&server), "no server at {server}");
    (process, server)
}

/// Any user can make and remove directories in it, like the server's.
fn fresh_folder(name: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let folder = Path::new("/tmp").join(format!("pglock-test-{name}-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
    folder
}

/// `host:port` out of a URL.
fn address(url: &str) -> String {
    let (_, rest) = url.rsplit_once('@').unwrap();
    rest.split_once('/').unwrap().0.to_owned()
}

fn is_listening(address: &str) -> bool {
    TcpStream::connect(address).is_ok()
}

#[test]
fn a_standby_has_what_the_primary_has_and_takes_its_place() {
    let mut first = Settings::new().start();
    let mut second = Settings::new().start_standby_of(&first);
    first.raw().rows("CREATE TABLE told (word text)");
    first.raw().rows("INSERT INTO told VALUES ('once')");
    let mut look = second.raw();
    let read = "SELECT string_agg(word, ' ') FROM told";
    wait_until("the row has arrived", PATIENCE, || {
        look.try_rows(read).is_ok_and(|rows| rows == [[Some(String::from("once"))]])
    });
    assert_eq!(look.value("SELECT pg_is_in_recovery()"), "t");

    first.stop(Shutdown::Immediate);
    second.promote();
    second.raw().rows("INSERT INTO told VALUES ('again')");
    first.follow(&second);
    let mut look = first.raw();
    wait_until("the row has arrived", PATIENCE, || look.value(read) == "once again");
    assert_eq!(look.value("SELECT pg_is_in_recovery()"), "t");
}
