//! Certificates that do more than to encrypt: the client's own, the system's roots, and those that a
//! login is bound to.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pglock::{Error, ErrorKind, Session};
use pglock_test_cluster::rcgen::{DnType, KeyPair, PKCS_ECDSA_P384_SHA384};
use pglock_test_cluster::{Authority, Certificate, Cluster, HOST, Settings, kept, role};

use crate::psql::Psql;

/// A server that knows `alice` by her certificate.
struct Server {
    cluster: Cluster,
    authority: Authority,
}

impl Server {
    fn start() -> Self {
        let cluster = Settings::new().start();
        let authority = Authority::new("authority of the clients");
        let file = cluster.socket_dir().join("clients.pem");
        fs::write(&file, authority.pem()).unwrap();
        let mut look = cluster.raw();
        look.rows("CREATE ROLE alice LOGIN");
        look.rows(&format!("ALTER SYSTEM SET ssl_ca_file = '{}'", file.display()));
        cluster.set_access_rules(&[String::from("hostssl all alice 127.0.0.1/32 cert")]);
        Self { cluster, authority }
    }

    fn conninfo(&self) -> String {
        let port = self.cluster.port();
        format!("host=127.0.0.1 port={port} user=alice dbname=app sslmode=require")
    }

    /// The conninfo of a client that has this certificate.
    fn conninfo_with(&self, name: &str, certificate: &Certificate) -> String {
        let (shown, key) = (self.file(&format!("{name}.crt")), self.file(&format!("{name}.key")));
        fs::write(&shown, &certificate.pem).unwrap();
        fs::write(&key, &certificate.key_pem).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        format!("{} sslcert='{}' sslkey='{}'", self.conninfo(), shown.display(), key.display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.socket_dir().join(name)
    }
}

fn client_certificate(authority: &Authority, role: &str) -> Certificate {
    authority.issue(&[], |params| {
        params.distinguished_name.push(DnType::CommonName, role);
    })
}

/// What the library makes of it, on which libpq agrees.
async fn connect(conninfo: &str) -> Result<Session, Error> {
    let ours = Session::connect(&conninfo.parse().unwrap()).await;
    if let Some(psql) = Psql::find() {
        let theirs = psql.connect(conninfo);
        assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?} {theirs:?}");
    }
    ours
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate() {
    let server = Server::start();
    let alice = client_certificate(&server.authority, "alice");
    connect(&server.conninfo_with("alice", &alice)).await.unwrap().close().await.unwrap();

    let bob = client_certificate(&server.authority, "bob");
    let forged = client_certificate(&Authority::new("another authority"), "alice");
    for (conninfo, kind, words) in [
        (server.conninfo(), ErrorKind::Authentication, "requires a valid client certificate"),
        (
            server.conninfo_with("bob", &bob),
            ErrorKind::Authentication,
            "certificate authentication failed for user \"alice\"",
        ),
        (
            server.conninfo_with("forged", &forged),
            ErrorKind::Connect,
            "does not trust the authority of the client's certificate",
        ),
        (
            server.conninfo_with("mixed", &Certificate { pem: bob.pem.clone(), ..alice.clone() }),
            ErrorKind::Tls,
            "sslkey does not fit",
        ),
    ] {
        assert_refused(&connect(&conninfo).await.unwrap_err(), kind, words);
    }
    let exposed = server.conninfo_with("exposed", &alice);
    fs::set_permissions(server.file("exposed.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = connect(&exposed).await.unwrap_err();
    assert_refused(&error, ErrorKind::Config, "make it 0600");
    let key = alice.key_pem.lines().nth(1).unwrap();
    assert!(!format!("{error} {error:?}").contains(key));
}

/// To open a pipe would block the whole thread, deadline and all.
#[cfg(unix)]
#[tokio::test]
async fn roots_are_read_from_a_plain_file_only() {
    let url = Cluster::default_cluster().url_for(&role::TRUST);
    for file in ["/dev/null", "/"] {
        let refused = connect(&format!("{url}?sslmode=verify-ca&sslrootcert={file}")).await;
        assert_refused(&refused.unwrap_err(), ErrorKind::Tls, "is not a plain file");
    }
}

#[track_caller]
fn assert_refused(error: &Error, kind: ErrorKind, words: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(words), "no \"{words}\" in: {error}");
}

/// The roots of the system are those that a variable names: it takes a process of its own to set it.
#[tokio::test]
async fn the_roots_of_the_system_are_asked() {
    const TEST: &str = "tls::certificates::the_roots_of_the_system_are_asked";
    const URL: &str = "PGLOCK_TEST_SYSTEM_ROOTS";
    if let Ok(url) = env::var(URL) {
        match Session::connect(&url.parse().unwrap()).await {
            Ok(session) => session.close().await.unwrap(),
            Err(error) => println!("refused: {error}"),
        }
        return;
    }
    let cluster = Cluster::default_cluster();
    let url = cluster.url_for(&role::SCRAM) + "?sslrootcert=system";
    let connect_with = |roots: &Path| {
        let run = Command::new(env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(URL, &url)
            .env("SSL_CERT_FILE", roots)
            .env_remove("SSL_CERT_DIR")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(run.status.success());
        let printed = String::from_utf8(run.stdout).unwrap();
        printed.lines().find(|line| line.starts_with("refused")).map(str::to_owned)
    };
    assert_eq!(connect_with(&cluster.root_certificate()), None);
    let refusal = connect_with(Path::new("/dev/null")).expect("nobody is trusted");
    assert!(refusal.contains("the system has no root certificates; install them"), "{refusal}");
    let another = Authority::new("another authority");
    let file = cluster.socket_dir().join("another.pem");
    fs::write(&file, another.pem()).unwrap();
    let refusal = connect_with(&file).expect("the server is not trusted");
    assert!(refusal.contains("no root certificate vouches for the server's"), "{refusal}");
}

#[tokio::test]
async fn a_login_is_bound_to_each_kind_of_certificate() {
    let cluster = Settings::new().start();
    let url = cluster.url_for(&role::SCRAM);
    let bound = |binding: &str| format!("{url}?sslmode=require&channel_binding={binding}");
    for (name, certificate) in [
        ("RSA", kept::rsa()),
        ("RSA-PSS", kept::rsa_pss()),
        ("version 1", kept::version_1()),
        ("P-384", p384()),
    ] {
        cluster.show_certificate(&certificate);
        for binding in ["disable", "prefer", "require"] {
            let session = connect(&bound(binding)).await;
            session.unwrap_or_else(|error| panic!("{name}, {binding}: {error}"));
        }
    }
    // Nothing can be bound to an Ed25519 certificate. libpq then fails although it need not bind.
    cluster.show_certificate(&kept::ed25519());
    connect(&bound("disable")).await.unwrap();
    Session::connect(&bound("prefer").parse().unwrap()).await.unwrap();
    if let Some(psql) = Psql::find() {
        psql.connect(&bound("prefer")).unwrap_err();
    }
    let error = connect(&bound("require")).await.unwrap_err();
    assert_refused(&error, ErrorKind::Authentication, "has no hash to bind to (Ed25519");
}

/// Signed by a P-384 key, so that SHA-384 is what the login is bound by.
fn p384() -> Certificate {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    Authority::with_key("P-384", key()).issue_for(&key(), &[HOST], |_| {})
}

/// An address in short, which no certificate can have for a name, and no one compares with one here.
#[tokio::test]
async fn a_host_that_is_no_name_is_encrypted_where_names_do_not_matter() {
    let port = Cluster::default_cluster().port();
    let user = role::TRUST.name;
    let conninfo = |mode| {
        format!(
            "host=127.1 port={port} user={user} dbname=app application_name=odd-host sslmode={mode}"
        )
    };
    for mode in ["prefer", "require"] {
        let session = connect(&conninfo(mode)).await.unwrap();
        let mut look = Cluster::default_cluster().raw();
        let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                         WHERE application_name = 'odd-host'";
        assert_eq!(look.value(encrypted), "t", "{mode}");
        session.close().await.unwrap();
    }
    let roots = Cluster::default_cluster().root_certificate();
    let full = format!("{} sslrootcert='{}'", conninfo("verify-full"), roots.display());
    // libpq knows it for an address, and finds that in the certificate.
    let error = Session::connect(&full.parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
}
