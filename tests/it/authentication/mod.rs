//! Logging in to a real server in each way that it may ask for.

mod demands;
#[cfg(feature = "saslprep")]
mod passwords;

use pglock::{Config, Error, ErrorKind, Lock, Result, SslMode};
use pglock_test_cluster::{Cluster, Role, Settings, role};

const INVALID_PASSWORD: &str = "28P01";
const INVALID_AUTHORIZATION: &str = "28000";

#[tokio::test]
async fn every_method_leads_to_a_lock() {
    let cluster = Cluster::default_cluster();
    for role in [&role::TRUST, &role::MD5, &role::SCRAM, &role::SCRAM_UNICODE] {
        for url in [cluster.url_for(role), cluster.socket_url_for(role)] {
            assert_locks(&url.parse().unwrap()).await;
        }
    }
}

async fn assert_locks(config: &Config) {
    let mut lock = Lock::connect(config, "every method").await.unwrap();
    lock.lock().await.unwrap();
    lock.close().await.unwrap();
}

#[tokio::test]
async fn a_password_in_clear_text_goes_over_a_unix_socket() {
    assert_locks(&Cluster::default_cluster().socket_url_for(&role::CLEARTEXT).parse().unwrap())
        .await;
}

#[tokio::test]
async fn a_password_in_clear_text_goes_over_tls_or_where_that_is_allowed() {
    let mut config = config(&role::CLEARTEXT);
    assert_locks(config.sslmode(SslMode::Require)).await;
    config.sslmode(SslMode::Disable);
    let error = connect(&config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    // The server has not seen a password, or it would have let us in.
    assert_eq!(error.sqlstate(), None);
    assert_tells_no_password(&error, &role::CLEARTEXT);
    assert_locks(config.allow_cleartext_password(true)).await;
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    for role in [&role::CLEARTEXT, &role::MD5, &role::SCRAM, &role::SCRAM_UNICODE] {
        let mut config = config(role);
        config.allow_cleartext_password(true).password("not the password");
        let error = connect(&config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{}: {error}", role.name);
        assert_eq!(error.sqlstate(), Some(INVALID_PASSWORD), "{}", role.name);
        assert!(!error.is_lost());
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
        assert!(!format!("{error} {error:?}").contains("not the password"), "{error:?}");
    }
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_password_that_is_refused_over_tls_is_not_said_again_in_clear() {
    let cluster = Settings::new().start();
    for sslmode in [SslMode::Prefer, SslMode::Allow] {
        let mut config: Config = cluster.url_for(&role::SCRAM).parse().unwrap();
        config.sslmode(sslmode).password("not the password");
        connect(&config).await.unwrap_err();
    }
    assert_eq!(cluster.log().matches("password authentication failed").count(), 2);
}

#[tokio::test]
async fn a_missing_password_is_told() {
    for mut role in [role::CLEARTEXT, role::MD5, role::SCRAM] {
        role.password = None;
        let error = connect(config(&role).allow_cleartext_password(true)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{}: {error}", role.name);
        assert!(error.to_string().contains("password"), "{}: {error}", role.name);
        assert_eq!(error.sqlstate(), None, "{}", role.name);
    }
}

/// The key of the last login is kept for the next, and no longer than it fits.
#[tokio::test]
async fn a_login_after_another_follows_what_has_changed() {
    let cluster = Settings::new().start();
    cluster.set_access_rules(&[
        String::from("local all changing scram-sha-256"),
        String::from("local all all trust"),
    ]);
    let set = |password| {
        let sql = "SET password_encryption = 'scram-sha-256'";
        cluster.raw().rows(&format!("{sql}; ALTER ROLE changing PASSWORD '{password}'"));
    };
    cluster.raw().rows("CREATE ROLE changing LOGIN");
    let mut config = Config::new();
    config.host(cluster.socket_dir().to_str().unwrap()).port(cluster.port());
    config.dbname("app").user("changing").password("one");
    for (on_the_server, here) in
        [("one", "one"), ("one", "one"), ("two", "two"), ("one", "two"), ("two", "two")]
    {
        // Each time, the salt is another one.
        set(on_the_server);
        config.password(here);
        for config in [config.clone(), config.clone(), config.clone()] {
            let outcome = connect(&config).await.map(|_| ());
            assert_eq!(outcome.is_ok(), on_the_server == here, "{outcome:?}");
        }
    }
}

#[cfg(feature = "saslprep")]
#[tokio::test]
async fn a_password_outside_ascii_is_prepared_as_the_server_prepares_it() {
    // What SASLprep makes of the role's password is the same password.
    let mut config = config(&role::SCRAM_UNICODE);
    assert_locks(config.password("grün IX")).await;
    let error = connect(config.password("grun IX")).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(INVALID_PASSWORD), "{error}");
}

#[tokio::test]
async fn a_role_that_is_turned_away_is_told() {
    let error = connect(&config(&role::REJECTED)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    assert_eq!(error.sqlstate(), Some(INVALID_AUTHORIZATION), "{error}");
}

#[tokio::test]
async fn an_unknown_database_is_told() {
    let error = connect(config(&role::SCRAM).dbname("nowhere")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert_eq!(error.sqlstate(), Some("3D000"), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert_tells_no_password(&error, &role::SCRAM);
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_told() {
    let cluster = Settings::new()
        .set("max_connections", "4")
        .set("superuser_reserved_connections", "1")
        .set("max_wal_senders", "0")
        .start();
    let config: Config = cluster.url_for(&role::SCRAM).parse().unwrap();
    let mut locks = Vec::new();
    let error = loop {
        match Lock::connect(&config, 1).await {
            Ok(lock) => locks.push(lock),
            Err(error) => break error,
        }
        assert!(locks.len() < 4, "more sessions than the server allows");
    };
    assert_eq!(locks.len(), 3);
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert_eq!(error.sqlstate(), Some("53300"), "{error}");
    // A closed session makes room at once.
    locks.pop().unwrap().close().await.unwrap();
    Lock::connect(&config, 1).await.unwrap();
}

fn config(role: &Role) -> Config {
    Cluster::default_cluster().url_for(role).parse().unwrap()
}

async fn connect(config: &Config) -> Result<Lock> {
    Lock::connect(config, 1).await
}

fn assert_tells_no_password(error: &Error, role: &Role) {
    let password = role.password.unwrap();
    assert!(!format!("{error} {error:?}").contains(password), "{error:?}");
}
