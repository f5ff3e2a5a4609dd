//! A password does not outlive what it was given to: afterwards, the memory of this process is searched
//! for it.
//!
//! Nothing in here may hold the password itself for longer than that, so it is written down with its
//! letters exchanged, and the server makes it of that.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where what it expects does not hold"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use pglock::{Config, Lock};
use pglock_test_cluster::{Cluster, Settings};
use zeroize::{Zeroize, Zeroizing};

/// The password, each letter 13 places from its own.
const EXCHANGED: &[u8] = b"xrrcguvfbhgbsnyyzrzbel";
/// How often it stands in each password.
const LENGTHS: [(&str, usize); 3] = [
    ("short", 1),
    // Longer than the block of a hash, which such a password is hashed into first.
    ("long", 4),
    // As the tokens are that clouds give out for passwords.
    ("token", 40),
];

const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";
const EXCHANGED_LETTERS: &str = "nopqrstuvwxyzabcdefghijklm";

type Give = fn(&Cluster, &str, usize, &Path) -> Config;

/// The ways in which a configuration comes by a password.
const WAYS: [(&str, Give); 5] = [
    ("a setter", by_setter),
    ("a URL", by_url),
    ("keyword=value", by_words),
    ("a password file", by_password_file),
    ("a service", by_service),
];

#[tokio::test]
async fn a_password_is_wiped_from_memory() {
    let cluster = Settings::new().start();
    create_roles(&cluster);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let held = with_password("", 1, "");
    assert_eq!(copies(), 1, "the search does not find what is there");
    drop(held);
    for method in ["scram-sha-256", "md5", "password"] {
        let of_length = |(length, _)| format!("local all {length}_{} {method}", encryption(method));
        let mut rules: Vec<_> = LENGTHS.into_iter().map(of_length).collect();
        rules.push(String::from("local all all trust"));
        cluster.set_access_rules(&rules);
        for (length, times) in LENGTHS {
            let user = format!("{length}_{}", encryption(method));
            for (given, give) in WAYS {
                let config = give(&cluster, &user, times, directory);
                lock_and_release(&config).await;
                drop(config);
                assert_eq!(copies(), 0, "left after {method}, {user}, {given}");
            }
        }
    }
    ask_and_take_no_answer(directory).await;
    assert_eq!(copies(), 0, "left after an answer that nobody took");
}

/// A server that asks for the password in clear text, and has stopped listening by then.
async fn ask_and_take_no_answer(directory: &Path) {
    let socket = directory.join(".s.PGSQL.5432");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        client.read_exact(&mut length).unwrap();
        let rest = usize::try_from(u32::from_be_bytes(length)).unwrap() - length.len();
        client.read_exact(&mut vec![0; rest]).unwrap();
        client.shutdown(Shutdown::Read).unwrap();
        client.write_all(b"R\0\0\0\x08\0\0\0\x03").unwrap();
    });
    let mut config = Config::new();
    config.host(directory.to_str().unwrap()).user("it").password(&with_password("", 4, ""));
    let error = Lock::connect(&config, "secrets").await.unwrap_err();
    assert!(error.to_string().contains("the connection broke"), "{error}");
    server.join().unwrap();
    fs::remove_file(&socket).unwrap();
}

fn encryption(method: &str) -> &str {
    if method == "md5" { "md5" } else { "scram" }
}

fn create_roles(cluster: &Cluster) {
    let exchanged = std::str::from_utf8(EXCHANGED).unwrap();
    for (encryption, setting) in [("scram", "scram-sha-256"), ("md5", "md5")] {
        for (length, times) in LENGTHS {
            cluster.raw().rows(&format!(
                "DO $$ BEGIN SET password_encryption = '{setting}'; EXECUTE format(
                     'CREATE ROLE {length}_{encryption} LOGIN PASSWORD %L',
                     translate(repeat('{exchanged}', {times}), '{EXCHANGED_LETTERS}', '{LETTERS}'));
                 END $$"
            ));
        }
    }
}

async fn lock_and_release(config: &Config) {
    let mut lock = Lock::connect(config, "secrets").await.unwrap();
    assert!(lock.try_lock().await.unwrap());
    lock.close().await.unwrap();
}

/// A text with the password in it, in a place that is wiped.
fn with_password(before: &str, times: usize, after: &str) -> Zeroizing<String> {
    let room = before.len() + times * EXCHANGED.len() + after.len();
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str(before);
    for _ in 0..times {
        text.extend(EXCHANGED.iter().map(|&letter| char::from(exchange(letter))));
    }
    text.push_str(after);
    text
}

/// Everything but the password.
fn place(cluster: &Cluster, user: &str) -> String {
    let host = cluster.socket_dir().display().to_string();
    format!("host={host} port={} user={user} dbname=app", cluster.port())
}

fn by_setter(cluster: &Cluster, user: &str, times: usize, _: &Path) -> Config {
    let mut config: Config = place(cluster, user).parse().unwrap();
    config.password(&with_password("", times, ""));
    config
}

fn by_words(cluster: &Cluster, user: &str, times: usize, _: &Path) -> Config {
    let place = place(cluster, user);
    with_password("password='", times, &format!("' {place}")).parse().unwrap()
}

fn by_url(cluster: &Cluster, user: &str, times: usize, _: &Path) -> Config {
    let host = cluster.socket_dir().display().to_string().replace('/', "%2F");
    let after = format!("@{host}:{}/app", cluster.port());
    with_password(&format!("postgresql://{user}:"), times, &after).parse().unwrap()
}

fn by_password_file(cluster: &Cluster, user: &str, times: usize, directory: &Path) -> Config {
    let path = directory.join("pgpass");
    write(&path, &with_password("*:*:*:*:", times, "\n"));
    let text = format!("{} passfile={}", place(cluster, user), path.display());
    text.parse().unwrap()
}

fn by_service(cluster: &Cluster, user: &str, times: usize, directory: &Path) -> Config {
    let path = directory.join("services");
    write(&path, &with_password("[it]\npassword=", times, "\n"));
    let text = format!("{} service=it servicefile={}", place(cluster, user), path.display());
    text.parse().unwrap()
}

fn write(path: &Path, content: &str) {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all_at(content.as_bytes(), 0).unwrap();
}

fn exchange(letter: u8) -> u8 {
    match letter {
        b'a'..=b'm' => letter + 13,
        b'n'..=b'z' => letter - 13,
        other => other,
    }
}

/// How often the password stands in this process's memory.
fn copies() -> usize {
    const CHUNK: usize = 1 << 16;
    let memory = File::open("/proc/self/mem").unwrap();
    let mut buffer = Zeroizing::new(vec![0; CHUNK + EXCHANGED.len()]);
    let own = buffer.as_ptr().addr()..buffer.as_ptr().addr() + buffer.len();
    let first = exchange(EXCHANGED[0]);
    let mut found = 0;
    for (start, end) in writable_regions() {
        for at in (start..end).step_by(CHUNK) {
            let wanted = buffer.len().min(end - at);
            let Ok(count) = memory.read_at(&mut buffer[..wanted], at.try_into().unwrap()) else {
                continue; // Memory that nothing was ever written to.
            };
            let begins = (0..count.min(CHUNK)).filter(|&offset| buffer[offset] == first);
            found += begins
                .filter(|offset| !own.contains(&(at + offset)))
                .filter(|&offset| is_password(&buffer[offset..count]))
                .count();
        }
    }
    buffer.zeroize();
    found
}

fn is_password(text: &[u8]) -> bool {
    text.len() >= EXCHANGED.len()
        && text.iter().zip(EXCHANGED).all(|(&letter, &exchanged)| exchange(letter) == exchanged)
}

fn writable_regions() -> Vec<(usize, usize)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let writable = maps.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with("rw"));
    let address = |text| usize::from_str_radix(text, 16).unwrap();
    writable
        .map(|line| line.split(' ').next().unwrap().split_once('-').unwrap())
        .map(|(start, end)| (address(start), address(end)))
        .collect()
}
