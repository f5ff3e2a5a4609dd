//! The default cluster is what the other tests take it for.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use pglock_test_cluster::{Cluster, role};

/// Length 8, and the number that stands where a startup message has its protocol version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

#[test]
fn offers_tls_on_every_loopback_address() {
    let cluster = Cluster::default_cluster();
    for host in ["127.0.0.1", "::1"] {
        if host == "::1" && std::net::TcpListener::bind((host, 0)).is_err() {
            continue; // The machine has no IPv6.
        }
        let mut stream = TcpStream::connect((host, cluster.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&SSL_REQUEST).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"S", "on {host}");
    }
}

#[test]
fn asks_each_role_for_its_own_proof() {
    let mut look = Cluster::default_cluster().raw();
    for (role, method) in [
        (role::TRUST, "trust"),
        (role::CLEARTEXT, "password"),
        (role::MD5, "md5"),
        (role::SCRAM, "scram-sha-256"),
        (role::SCRAM_UNICODE, "scram-sha-256"),
        (role::REJECTED, "reject"),
        (role::HURRIED, "trust"),
    ] {
        let rules = look.rows(&format!(
            "SELECT DISTINCT auth_method FROM pg_hba_file_rules WHERE '{}' = ANY (user_name)",
            role.name
        ));
        assert_eq!(rules, [[Some(method.to_owned())]], "for {}", role.name);
    }
    let stored = look.rows(
        "SELECT rolname, left(rolpassword, 3) FROM pg_authid \
         WHERE rolpassword IS NOT NULL ORDER BY rolname",
    );
    let stored: Vec<_> = stored.into_iter().flatten().flatten().collect();
    assert_eq!(
        stored,
        ["clear_user", "SCR", "md5_user", "md5", "scram_user", "SCR", "unicode_user", "SCR"]
    );
}

#[test]
fn the_hurried_role_has_every_timeout_of_its_version() {
    let mut look = Cluster::default_cluster().raw();
    let unhurried = look.rows(
        "SELECT name FROM pg_settings \
         WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_session_timeout', \
                        'idle_in_transaction_session_timeout', 'transaction_timeout') \
         EXCEPT \
         SELECT split_part(unnest(rolconfig), '=', 1) FROM pg_roles WHERE rolname = 'hurried_user'",
    );
    assert_eq!(unhurried, Vec::<pglock_test_cluster::Row>::new());
}

#[test]
fn an_error_of_the_server_is_told() {
    let mut look = Cluster::default_cluster().raw();
    let error = look.try_rows("SELECT 1/0").unwrap_err();
    assert!(error.starts_with("22012: "), "{error}");
    assert_eq!(look.value("SELECT 1"), "1", "the connection goes on");
}
