//! Settings, passwords and services reach the session from where the connection string says they are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use pglock::{Config, Error, ErrorKind, Lock, Pooler};
use pglock_test_cluster::{Cluster, role};

use crate::scripted::messages::error;
use crate::scripted::{LOCK, Script, TRY_LOCK, UNLOCK, timely};
use crate::stage::soon;

/// The shared server, and `parameters`.
fn config(parameters: &str) -> Config {
    let port = Cluster::default_cluster().port();
    format!("host=127.0.0.1 port={port} dbname=app {parameters}").parse().unwrap()
}

async fn assert_locks(config: &Config) {
    let mut lock = soon(Lock::connect(config, "as told")).await.unwrap();
    assert!(soon(lock.try_lock_shared()).await.unwrap());
    soon(lock.close()).await.unwrap();
}

async fn refusal(config: &Config) -> Error {
    soon(Lock::connect(config, 1)).await.unwrap_err()
}

/// What the server shows as the name of the session that this configuration makes.
async fn name_shown_for(config: &Config) -> String {
    static KEY: AtomicI64 = AtomicI64::new(77_000_000);
    let key = KEY.fetch_add(1, Ordering::Relaxed);
    let mut lock = soon(Lock::connect(config, key)).await.unwrap();
    assert!(soon(lock.try_lock()).await.unwrap());
    let shown = Cluster::default_cluster().raw().value(&format!(
        "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) \
         WHERE locktype = 'advisory' AND classid = 0 AND objid = {key} AND objsubid = 1"
    ));
    soon(lock.close()).await.unwrap();
    shown
}

/// A file that is removed with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &str, mode: u32) -> Self {
        let name = format!("pglock-{}-{name}", process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn set_mode(&self, mode: u32) {
        fs::set_permissions(&self.0, fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A backslash before every character that ends a field.
fn passfile_field(text: &str) -> String {
    text.replace('\\', r"\\").replace(':', r"\:")
}

#[tokio::test]
async fn options_set_what_the_session_is_to_have() {
    let mut config = config("user=trust_user");
    for (options, shown) in [
        ("-c application_name=x", "x"),
        ("--application-name=y", "y"),
        (r"-c application_name=two\ words", "two words"),
        ("-c application_name=", ""),
    ] {
        assert_eq!(name_shown_for(config.set("options", options).unwrap()).await, shown);
    }
}

#[tokio::test]
async fn a_setting_is_a_value_whatever_is_in_it() {
    let mut look = Cluster::default_cluster().raw();
    // Where a backslash in a constant without `E` takes nothing with it, and where it does.
    look.rows("CREATE DATABASE old_strings");
    look.rows("ALTER DATABASE old_strings SET standard_conforming_strings = off");
    look.rows("ALTER DATABASE old_strings SET backslash_quote = on");
    for database in ["app", "old_strings"] {
        for value in [
            "x', false), pg_sleep(3600) --",
            r"x\', false), pg_sleep(3600) --",
            r"x\\', false), pg_sleep(3600) --",
            r"\",
            "''",
            r"\''",
            "*/ $$ $1 ; SELECT 1/0",
        ] {
            let escaped = value.replace('\\', r"\\").replace(' ', r"\ ");
            let mut config = config("user=trust_user");
            config.set("options", &format!("-c application_name={escaped}")).unwrap();
            assert_eq!(name_shown_for(config.dbname(database)).await, value, "in {database}");
        }
    }
    look.rows("DROP DATABASE old_strings");
}

#[tokio::test]
async fn what_a_lock_needs_has_the_last_word() {
    const KEY: i64 = 77_002;
    let mut settings: Vec<_> = ["lock_timeout", "statement_timeout"].into();
    settings.push("idle_in_transaction_session_timeout");
    if Cluster::default_cluster().major_version() >= 14 {
        settings.push("idle_session_timeout");
    }
    let options: Vec<_> = settings.iter().map(|name| format!("-c {name}=500")).collect();
    let mut config = config("user=trust_user");
    config.set("options", &options.join(" ")).unwrap();
    let mut holder = soon(Lock::connect(&config, KEY)).await.unwrap();
    let mut waiter = soon(Lock::connect(&config, KEY)).await.unwrap();
    assert!(soon(holder.try_lock()).await.unwrap());
    assert!(!soon(waiter.lock_timeout(Duration::from_secs(1))).await.unwrap());
    soon(holder.close()).await.unwrap();
    assert!(soon(waiter.try_lock()).await.unwrap());
}

#[tokio::test]
async fn no_function_of_the_same_name_stands_in_for_a_lock() {
    let mut admin = Cluster::default_cluster().raw();
    admin.rows("CREATE SCHEMA IF NOT EXISTS impostor");
    admin.rows("GRANT USAGE ON SCHEMA impostor TO PUBLIC");
    for (declaration, body) in [
        ("pg_backend_pid() RETURNS integer", "SELECT 1"),
        ("pg_try_advisory_xact_lock(bigint) RETURNS boolean", "SELECT true"),
        ("set_config(text, text, boolean) RETURNS text", "SELECT ''::text"),
    ] {
        admin.rows(&format!(
            "CREATE OR REPLACE FUNCTION impostor.{declaration} LANGUAGE sql AS $$ {body} $$"
        ));
    }
    let mut config = config("user=trust_user");
    config.set("options", "-c search_path=impostor,pg_catalog").unwrap();
    config.pooler(Pooler::Transaction);
    let mut locks = Vec::new();
    for _ in 0..2 {
        locks.push(soon(Lock::connect(&config, "no impostor's")).await.unwrap());
    }
    let mut taken = Vec::new();
    for lock in &mut locks {
        taken.push(soon(lock.try_lock()).await.unwrap());
    }
    assert_eq!(taken, [true, false]);
}

#[tokio::test]
async fn a_setting_that_the_server_does_not_have_is_told() {
    let mut config = config("user=trust_user");
    let error = refusal(config.set("options", "-c no_such_thing=1").unwrap()).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("\"no_such_thing\""), "{error}");
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_for_a_lock_is_told() {
    for (sqlstate, text) in [
        ("08P01", "unrecognized client message type 'F'"),
        ("0A000", "advisory locks are not yet implemented"),
        ("42883", "function with OID 2880 does not exist"),
    ] {
        assert_cannot_lock(LOCK, sqlstate, text).await;
        assert_cannot_lock(TRY_LOCK, sqlstate, text).await;
    }
}

/// Nothing is released that was never taken, and the session goes on.
async fn assert_cannot_lock(function: u32, sqlstate: &str, text: &str) {
    let refusal = || error(sqlstate, text);
    let script = Script::new().session().hears(function).says(refusal()).ready();
    let backend = script.hears(function).says(refusal()).ready().left().play().await;
    let mut lock = backend.connect().await.unwrap();
    for _ in 0..2 {
        let outcome = match function {
            LOCK => timely(lock.lock()).await.map(|()| true),
            _ => timely(lock.try_lock()).await,
        };
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert_eq!(error.sqlstate(), Some(sqlstate), "{error:?}");
        for words in ["does not lock as PostgreSQL does; connect to a PostgreSQL server", text] {
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(!error.is_lost(), "the session is as it was: {error:?}");
    }
    drop(lock);
    backend.done().await;
}

#[tokio::test]
async fn a_server_that_fails_at_everything_is_given_up_with_its_own_words() {
    let mut script = Script::new().session().hears(TRY_LOCK).says(error("XX000", "oh no")).ready();
    for _ in 0..6 {
        script = script.hears(UNLOCK).says(error("XX000", "oh no")).ready();
    }
    let backend = script.left().play().await;
    let mut lock = backend.connect().await.unwrap();
    let error = timely(lock.try_lock()).await.unwrap_err();
    backend.done().await;
    assert!(error.is_lost(), "what is held is not known: {error:?}");
    assert_eq!(error.sqlstate(), Some("XX000"), "{error:?}");
    assert!(error.to_string().contains("oh no"), "{error}");
}

#[tokio::test]
async fn the_password_is_found_in_the_password_file() {
    let port = Cluster::default_cluster().port();
    let role = &role::SCRAM;
    let password = passfile_field(role.password.unwrap());
    let lines = format!(
        "# host:port:database:user:password\n\
         elsewhere:*:*:*:wrong\n\
         127.0.0.1:{port}:app:{user}:{password}\n\
         *:*:*:*:wrong\n",
        user = role.name
    );
    let file = Scratch::new("passfile", &lines, 0o600);
    let mut config = config(&format!("user={}", role.name));
    config.set("passfile", file.path()).unwrap();
    assert_locks(&config).await;

    file.set_mode(0o640);
    let error = refusal(&config).await;
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    for words in ["password file", file.path(), "chmod 0600"] {
        assert!(error.to_string().contains(words), "no \"{words}\" in: {error}");
    }
    assert!(config.warnings().iter().any(|warning| warning.contains(file.path())));

    // A password that is given counts more than any file.
    assert_locks(config.password(role.password.unwrap())).await;
}

#[tokio::test]
async fn each_server_has_its_own_line_of_the_password_file() {
    let port = Cluster::default_cluster().port();
    let role = &role::SCRAM;
    let password = passfile_field(role.password.unwrap());
    let name = role.name;
    let lines = format!("a.invalid:*:*:*:wrong\n127.0.0.1:{port}:app:{name}:{password}\n");
    let file = Scratch::new("passfile-of-two", &lines, 0o600);
    let mut config = config(&format!("user={name}"));
    config.hosts([("a.invalid", port), ("127.0.0.1", port)]);
    assert_locks(config.set("passfile", file.path()).unwrap()).await;
}

#[tokio::test]
async fn a_service_stands_for_a_whole_connection_string() {
    let port = Cluster::default_cluster().port();
    let role = &role::MD5;
    let password = passfile_field(role.password.unwrap());
    let passfile = format!("*:*:*:{}:{password}\n", role.name);
    let passfile = Scratch::new("passfile-of-service", &passfile, 0o600);
    let lines = format!(
        "[other]\nhost=elsewhere.invalid\n\n\
         # what is meant\n\
         [jobs]\nhost=127.0.0.1\nport={port}\ndbname=app\nuser={user}\npassfile={passfile}\n",
        user = role.name,
        passfile = passfile.path()
    );
    let services = Scratch::new("services", &lines, 0o644);
    let string = format!("service=jobs servicefile={}", services.path());
    assert_locks(&string.parse().unwrap()).await;

    // What the string says itself counts more.
    let error = refusal(&format!("{string} dbname=nowhere").parse().unwrap()).await;
    assert_eq!(error.sqlstate(), Some("3D000"), "{error}");

    let error = format!("service=nightly servicefile={}", services.path());
    let error = error.parse::<Config>().unwrap_err();
    assert!(error.to_string().contains("no file has a service of this name"), "{error}");
}
