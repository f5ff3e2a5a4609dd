//! Who holds a key, as the server tells it, and as a person is told.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pglock::{Config, ErrorKind, Holder, Holders, Key, Lock, Mode, Pooler, Session};
use pglock_test_cluster::{Cluster, Raw, Settings, role};

use crate::stage::{Stage, soon};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::test]
async fn nobody_holds_what_is_free() {
    let stage = Stage::new();
    let holders = stage.lock("alice").await.holders().await.unwrap();
    assert_eq!((holders.holders(), holders.count(), holders.waiting()), (&[][..], 0, 0));
    assert_eq!(holders.to_string(), "nobody holds it");
}

#[tokio::test]
async fn a_busy_key_tells_its_holder() {
    let mut stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    let before = now(&mut Cluster::default_cluster().raw());
    alice.lock().await.unwrap();
    let after = now(&mut Cluster::default_cluster().raw());
    assert!(!bob.try_lock().await.unwrap());

    let holders = bob.holders().await.unwrap();
    let [holder] = holders.holders() else { panic!("{holders:?}") };
    assert_eq!(holder.process_id(), Some(stage.pid("alice")));
    assert_eq!(holder.mode(), Mode::Exclusive);
    assert_eq!(holder.application_name(), Some(stage.application_name("alice").as_str()));
    assert_eq!(holder.client_address(), Some(LOOPBACK));
    let since = holder.since().unwrap();
    assert!(before <= since && since <= after, "{before:?} {since:?} {after:?}");
    assert_eq!((holders.count(), holders.waiting()), (1, 0));

    let line = holders.to_string();
    let (pid, name) = (stage.pid("alice"), stage.application_name("alice"));
    let begin = format!("process {pid} of app \"{name}\" at 127.0.0.1 holds it exclusively since ");
    assert!(line.starts_with(&begin) && line.ends_with(" UTC or earlier"), "{line}");
    // The holder sees itself.
    assert_eq!(alice.holders().await.unwrap().count(), 1);
    alice.unlock().await.unwrap();
    assert_eq!(bob.holders().await.unwrap().count(), 0);
}

/// The server's clock.
fn now(look: &mut Raw) -> SystemTime {
    let micros = look.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
    UNIX_EPOCH + Duration::from_micros(micros.parse().unwrap())
}

#[tokio::test]
async fn those_who_share_are_listed_and_those_who_wait_counted() {
    let stage = Stage::new();
    let (mut alice, mut bob) = (stage.lock("alice").await, stage.lock("bob").await);
    alice.lock_shared().await.unwrap();
    bob.lock_shared().await.unwrap();
    for (waiter, waiting) in [("carol", 1), ("dave", 2)] {
        let mut lock = stage.lock(waiter).await;
        tokio::spawn(async move { lock.lock().await });
        let asking = async {
            loop {
                let holders = alice.holders().await.unwrap();
                if holders.waiting() >= waiting {
                    return holders;
                }
            }
        };
        let holders = soon(asking).await;
        assert_eq!((holders.count(), holders.waiting()), (2, waiting));
        // Alice has just asked, so Bob has been idle for longer.
        assert_eq!(names(&stage, &holders), ["bob", "alice"]);
        assert!(holders.holders().iter().all(|holder| holder.mode() == Mode::Shared));
        let end = ["; 1 waits", "; 2 wait"][usize::from(waiting > 1)];
        assert!(holders.to_string().ends_with(end), "{holders}");
    }
}

/// What the stage's sessions that hold the key are called there.
fn names(stage: &Stage<'_>, holders: &Holders) -> Vec<String> {
    let prefix = stage.application_name("");
    let name = |holder: &Holder| holder.application_name()?.strip_prefix(&prefix).map(String::from);
    holders.holders().iter().filter_map(name).collect()
}

#[tokio::test]
async fn every_key_is_told_from_every_other() {
    let cluster = Settings::new().start();
    let stage = Stage::on(&cluster);
    let (mut alice, mut bob) = (stage.session("alice").await, stage.session("bob").await);
    let halves = [0, 1, -1, i32::MIN, i32::MAX];
    let pairs = halves.into_iter().flat_map(|class| halves.map(|object| Key::pair(class, object)));
    let bigints = [0, 1, -1, i64::MIN, i64::MAX, 1 << 32, i64::from(i32::MIN)].map(Key::bigint);
    let keys: Vec<_> = pairs.chain(bigints).collect();
    // The same keys in another database are other keys.
    let mut elsewhere = cluster.raw_to("postgres");
    elsewhere.rows("SELECT pg_advisory_lock(1), pg_advisory_lock(-1), pg_advisory_lock(0, 1)");
    for &held in &keys {
        assert!(alice.try_lock(held, Mode::Exclusive).await.unwrap());
        for &key in &keys {
            let holders = bob.holders(key).await.unwrap();
            assert_eq!(holders.count(), u64::from(key == held), "{held} is held, not {key}");
        }
        alice.unlock(held, Mode::Exclusive).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_may_hold_a_key_in_both_modes() {
    let stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.lock().await.unwrap();
    alice.lock_shared().await.unwrap();
    let holders = alice.holders().await.unwrap();
    let mut modes: Vec<_> = holders.holders().iter().map(Holder::mode).collect();
    modes.sort();
    assert_eq!(modes, [Mode::Exclusive, Mode::Shared]);
    assert_eq!(holders.count(), 2);
}

/// `psql` is another role's, and whoever asks is no superuser.
#[tokio::test]
async fn a_role_without_privileges_sees_who_holds_it_and_no_more() {
    let stage = Stage::new();
    let mut psql = Cluster::default_cluster().raw();
    psql.rows("SET application_name = 'psql'");
    psql.rows(&format!("SELECT pg_advisory_lock({})", stage.key()));

    let holders = stage.lock("alice").await.holders().await.unwrap();
    let [holder] = holders.holders() else { panic!("{holders:?}") };
    assert_eq!(holder.process_id(), Some(psql.process_id()));
    assert_eq!(holder.application_name(), Some("psql"));
    assert_eq!((holder.since(), holder.client_address()), (None, None));
    let line = format!("process {} of app \"psql\" holds it exclusively", psql.process_id());
    assert_eq!(holders.to_string(), line);

    let url = Cluster::default_cluster().socket_url_for(&role::SUPERUSER);
    let config = stage.config_by(&url, "admin");
    let holders = Lock::connect(&config, stage.key()).await.unwrap().holders().await.unwrap();
    let [holder] = holders.holders() else { panic!("{holders:?}") };
    assert_eq!(holder.process_id(), Some(psql.process_id()));
    assert!(holder.since().is_some());
    assert_eq!(holder.client_address(), None, "it came by the Unix socket");
}

#[tokio::test]
async fn a_name_is_shown_on_one_line_whatever_it_is() {
    let stage = Stage::new();
    let name = "it's \"a, b\"; \\ = 'c'\n\t\u{1b}[31m  end ";
    let mut config = stage.config("alice");
    config.application_name(name);
    let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
    alice.lock().await.unwrap();
    let holders = stage.lock("bob").await.holders().await.unwrap();
    let [holder] = holders.holders() else { panic!("{holders:?}") };
    // The server lets no control character pass.
    let shown = holder.application_name().unwrap();
    assert!(shown.starts_with("it's \"a, b\"; \\ = 'c'"), "{shown:?}");
    assert!(shown.ends_with("[31m  end "), "{shown:?}");
    let line = holders.to_string();
    assert!(line.contains("of app \"it's \\\"a, b\\\"; "), "{line}");
    assert!(!line.contains(char::is_control), "{line:?}");
}

#[tokio::test]
async fn a_prepared_transaction_holds_what_no_session_does() {
    let cluster = Settings::new().set("max_prepared_transactions", "1").start();
    let stage = Stage::on(&cluster);
    let mut alice = stage.lock("alice").await;
    let mut psql = cluster.raw();
    psql.rows("BEGIN");
    psql.rows(&format!("SELECT pg_advisory_xact_lock({})", stage.key()));
    psql.rows("PREPARE TRANSACTION 'prepared'");
    let holders = alice.holders().await.unwrap();
    let [holder] = holders.holders() else { panic!("{holders:?}") };
    assert_eq!((holder.process_id(), holder.application_name()), (None, None));
    assert_eq!(holders.to_string(), "a prepared transaction holds it exclusively");
    psql.rows("ROLLBACK PREPARED 'prepared'");
    assert_eq!(alice.holders().await.unwrap().count(), 0);
}

#[tokio::test]
async fn no_more_are_listed_than_fit_into_an_answer() {
    let cluster = Settings::new().start();
    let stage = Stage::on(&cluster);
    // Of these, each takes as much room as it can.
    let name = "\\".repeat(63);
    let mut crowd: Vec<_> = (0..120).map(|_| cluster.raw()).collect();
    for one in &mut crowd {
        one.rows(&format!("SET application_name = '{name}'"));
        one.rows(&format!("SELECT pg_advisory_lock_shared({})", stage.key()));
    }
    let holders = stage.lock("alice").await.holders().await.unwrap();
    assert_eq!((holders.holders().len(), holders.count()), (100, 120));
    assert!(holders.to_string().ends_with("; so do 117 more"), "{holders}");
}

/// The session's `search_path` has relations and functions of the same names, before the server's own.
#[tokio::test]
async fn nothing_of_the_same_name_stands_in_for_the_servers_own() {
    let cluster = Settings::new().start();
    let mut admin = cluster.raw();
    for sql in [
        "CREATE SCHEMA impostor",
        "GRANT USAGE ON SCHEMA impostor TO PUBLIC",
        "CREATE VIEW impostor.pg_locks AS SELECT * FROM pg_catalog.pg_locks WHERE false",
        "CREATE VIEW impostor.pg_stat_activity AS SELECT 1 AS pid",
        "CREATE VIEW impostor.pg_database AS SELECT 1::oid AS oid, 'x'::name AS datname",
        "CREATE DOMAIN impostor.int8 AS text CHECK (value = 'nothing')",
        "CREATE FUNCTION impostor.host(inet) RETURNS text LANGUAGE sql AS 'SELECT ''?''::text'",
        "CREATE FUNCTION impostor.current_database() RETURNS name LANGUAGE sql \
         AS 'SELECT ''?''::name'",
        "CREATE FUNCTION impostor.differ(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT $1 <> $2'",
        "CREATE OPERATOR impostor.= (leftarg = oid, rightarg = oid, function = impostor.differ)",
        "GRANT SELECT ON ALL TABLES IN SCHEMA impostor TO PUBLIC",
    ] {
        admin.rows(sql);
    }
    let stage = Stage::on(&cluster);
    let mut config = stage.config("alice");
    config.set("options", "-c search_path=impostor,pg_catalog").unwrap();
    let mut alice = Lock::connect(&config, stage.key()).await.unwrap();
    alice.lock().await.unwrap();
    let holders = alice.holders().await.unwrap();
    assert_eq!(names(&stage, &holders), ["alice"]);
    assert_eq!(holders.holders()[0].client_address(), Some(LOOPBACK));
}

#[tokio::test]
async fn a_server_that_does_not_tell_costs_no_lock_but_one_in_a_transaction() {
    let cluster = Settings::new().start();
    cluster.raw().rows("REVOKE SELECT ON pg_catalog.pg_locks FROM PUBLIC");
    let mut stage = Stage::on(&cluster);
    for pooler in [Pooler::Auto, Pooler::Transaction] {
        let mut config: Config = stage.config("alice");
        config.pooler(pooler);
        let mut alice = Session::connect(&config).await.unwrap();
        let key = stage.key();
        let error = alice.holders(key).await.unwrap_err();
        assert_eq!((error.kind(), error.is_lost()), (ErrorKind::Server, false), "{error}");
        assert_eq!(error.sqlstate(), Some("42501"));
        assert!(error.to_string().starts_with(&format!("holders of key {key} at ")), "{error}");

        assert!(alice.try_lock(key, Mode::Exclusive).await.unwrap());
        let error = alice.holders(key).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("42501"));
        let is_lost = pooler == Pooler::Transaction;
        assert_eq!(error.is_lost(), is_lost, "{error}");
        let rolled_back = error.to_string().contains("ended the transaction that held the lock");
        assert_eq!(rolled_back, is_lost, "{error}");
        assert_eq!(alice.level(key, Mode::Exclusive), u64::from(!is_lost));
        let expected: &[_] = if is_lost { &[] } else { &["alice holds exclusive"] };
        assert_eq!(stage.locks(), expected);
        drop(alice);
        stage.until(&[]).await;
    }
}

#[tokio::test]
async fn the_server_still_shows_which_key_a_session_asked_for() {
    let mut stage = Stage::new();
    let mut alice = stage.lock("alice").await;
    alice.holders().await.unwrap();
    alice.lock().await.unwrap();
    let comment = format!("/* pglock holders of {} */", stage.key());
    assert!(stage.activity("alice", "query").starts_with(&comment));
}
