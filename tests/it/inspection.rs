//! What a person asks a server: who has which lock, what the server is, and the end of who is in the way.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pglock::{
    AdvisoryLock, AdvisoryLocks, AuthMethod, Config, ConnectStep, ErrorKind, Holding, Key, Mode,
    Pooler, Session,
};
use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, Raw, Settings, eventually, role};

use crate::stage::{NOTICES_LOST_CLIENTS, PATIENCE, Stage, poll_times, soon};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The first major version that tells since when a session waits.
const TELLS_OF_WAITS: u32 = 14;

/// Those of this key.
fn of_key(locks: &AdvisoryLocks, key: Key) -> Vec<&AdvisoryLock> {
    locks.listed().iter().filter(|lock| lock.key() == key).collect()
}

/// The server's clock.
fn now(look: &mut Raw) -> SystemTime {
    let micros = look.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
    UNIX_EPOCH + Duration::from_micros(micros.parse().unwrap())
}

#[tokio::test]
async fn where_nothing_is_locked_nothing_is_listed() {
    let cluster = Settings::new().start();
    let locks = Stage::on(&cluster).session("alice").await.advisory_locks().await.unwrap();
    assert_eq!((locks.listed(), locks.count()), (&[][..], 0));
}

#[tokio::test]
async fn all_who_hold_and_wait_are_listed_by_key() {
    let cluster = Settings::new().start();
    let mut stage = Stage::on(&cluster);
    let (awaited, oldest, newest) = (stage.key(), Key::pair(-1, i32::MIN), Key::bigint(i64::MIN));
    // The same key in another database is another key.
    cluster.raw_to("postgres").rows("SELECT pg_advisory_lock(1)");
    let mut sessions = Vec::new();
    for (actor, key, mode) in [
        ("alice", oldest, Mode::Shared),
        ("bob", oldest, Mode::Shared),
        ("carol", newest, Mode::Exclusive),
        ("dave", awaited, Mode::Exclusive),
    ] {
        let mut session = stage.session(actor).await;
        session.lock(key, mode).await.unwrap();
        sessions.push(session);
    }
    let before = now(&mut cluster.raw());
    let mut eve = stage.session("eve").await;
    tokio::spawn(async move { eve.lock(awaited, Mode::Shared).await });
    stage.until_count(5).await;
    let after = now(&mut cluster.raw());

    let locks = stage.session("frank").await.advisory_locks().await.unwrap();
    assert_eq!(locks.count(), 5);
    let listed: Vec<_> = locks
        .listed()
        .iter()
        .map(|lock| {
            let name = lock.application_name().unwrap().rsplit('/').next().unwrap();
            (name, lock.key(), lock.mode(), lock.is_granted())
        })
        .collect();
    assert_eq!(
        listed,
        [
            ("dave", awaited, Mode::Exclusive, true),
            ("eve", awaited, Mode::Shared, false),
            ("alice", oldest, Mode::Shared, true),
            ("bob", oldest, Mode::Shared, true),
            ("carol", newest, Mode::Exclusive, true),
        ]
    );
    for (lock, actor) in locks.listed().iter().zip(["dave", "eve", "alice", "bob", "carol"]) {
        assert_eq!(lock.process_id(), Some(stage.pid(actor)));
        assert_eq!(lock.role(), Some(role::TRUST.name));
        assert_eq!(lock.client_address(), Some(LOOPBACK));
        let since = lock.since().unwrap();
        assert_eq!(since >= before, actor == "eve", "{actor}");
        assert!(since <= after);
        assert!(!lock.is_prepared());
    }
    let on_it = stage.session("grace").await.advisory_locks_on(awaited).await.unwrap();
    assert_eq!((on_it.listed(), on_it.count()), (&locks.listed()[..2], 2));
}

/// `psql` is another role's, and whoever asks is no superuser.
#[tokio::test]
async fn a_role_without_privileges_sees_who_has_it_and_since_when_it_is_awaited() {
    let mut stage = Stage::new();
    let mut psql = Cluster::default_cluster().raw();
    psql.rows("SET application_name = 'psql'");
    psql.rows(&format!("SELECT pg_advisory_lock({})", stage.key()));
    let (key, name) = (stage.key(), stage.application_name("waiter"));
    let waiter = std::thread::spawn(move || {
        let mut waiter = Cluster::default_cluster().raw();
        waiter.rows(&format!("SET application_name = '{name}'"));
        waiter.rows(&format!("SELECT pg_advisory_lock_shared({key})"));
    });
    stage.until(&["waiter awaits shared"]).await;
    if stage.major_version() >= TELLS_OF_WAITS {
        // The server notes when a wait begins just after it has begun.
        let sql = format!("SELECT count(waitstart) FROM pg_locks WHERE objid = {key}");
        eventually("the time is noted", PATIENCE, || psql.value(&sql) == "1").await;
    }

    let mut alice = stage.session("alice").await;
    let locks = alice.advisory_locks().await.unwrap();
    let [held, awaited] = of_key(&locks, stage.key())[..] else { panic!("{locks:?}") };
    assert_eq!(held.process_id(), Some(psql.process_id()));
    assert_eq!((held.role(), held.application_name()), (Some("postgres"), Some("psql")));
    assert_eq!((held.since(), held.client_address()), (None, None));
    assert!(!awaited.is_granted());
    assert_eq!(awaited.role(), Some("postgres"));
    assert_eq!(awaited.since().is_some(), stage.major_version() >= TELLS_OF_WAITS);
    drop(psql);
    waiter.join().unwrap();
}

#[tokio::test]
async fn a_name_may_be_anything() {
    let cluster = Settings::new().start();
    let name = "it's \"odd\"\t= \\ ü\n end ";
    cluster.raw().rows(&format!("CREATE ROLE \"{}\" LOGIN", name.replace('"', "\"\"")));
    let mut config: Config = cluster.socket_url_for(&role::TRUST).parse().unwrap();
    config.user(name).application_name("a b\t= 'c' \\\n ");
    let mut alice = Session::connect(&config).await.unwrap();
    for key in 1..=2 {
        alice.lock(key, Mode::Exclusive).await.unwrap();
    }
    let locks = alice.advisory_locks().await.unwrap();
    assert_eq!(locks.listed().len(), 2);
    for lock in locks.listed() {
        assert_eq!(lock.role(), Some("it's \"odd\"?= \\ ü? end "));
        let shown = lock.application_name().unwrap();
        assert!(shown.starts_with("a b") && shown.contains("= 'c' \\"), "{shown:?}");
    }
    assert_eq!(alice.diagnose().await.unwrap().role.name.as_deref(), Some(name));
}

#[tokio::test]
async fn no_more_are_listed_than_fit_into_an_answer_and_those_in_the_way_come_first() {
    let cluster = Settings::new().start();
    let mut stage = Stage::on(&cluster);
    // Of these, each takes as much room as it can.
    let name = "ü".repeat(31);
    let mut psql = cluster.raw();
    psql.rows(&format!("CREATE ROLE \"{name}\" LOGIN SUPERUSER"));
    let mut config: Config = cluster.socket_url_for(&role::TRUST).parse().unwrap();
    config.user(&name).application_name(&"\\".repeat(63));
    let mut crowd = Session::connect(&config).await.unwrap();
    for number in 0..1_000 {
        let key = Key::pair(i32::MIN + number, i32::MIN);
        assert!(crowd.try_lock(key, Mode::Exclusive).await.unwrap());
    }
    let last = stage.key();
    let mut alice = stage.session("alice").await;
    alice.lock(last, Mode::Exclusive).await.unwrap();
    let mut bob = stage.session("bob").await;
    tokio::spawn(async move { bob.lock(last, Mode::Exclusive).await });
    stage.until(&["alice holds exclusive", "bob awaits exclusive"]).await;

    let locks = alice.advisory_locks().await.unwrap();
    assert_eq!(locks.count(), 1_002);
    assert!((160..1_000).contains(&locks.listed().len()), "{}", locks.listed().len());
    let first: Vec<_> = locks.listed().iter().take(2).map(AdvisoryLock::key).collect();
    assert_eq!(first, [last, last]);
    assert_eq!(locks.listed()[2].role(), Some(name.as_str()));
}

#[tokio::test]
async fn a_prepared_transaction_is_listed_and_cannot_be_ended() {
    let cluster = Settings::new().set("max_prepared_transactions", "1").start();
    let stage = Stage::on(&cluster);
    let mut psql = cluster.raw();
    psql.rows("BEGIN");
    psql.rows(&format!("SELECT pg_advisory_xact_lock_shared({})", stage.key()));
    psql.rows("PREPARE TRANSACTION 'prepared'");
    let mut alice = stage.session("alice").await;
    let locks = alice.advisory_locks().await.unwrap();
    let [lock] = locks.listed() else { panic!("{locks:?}") };
    assert!(lock.is_prepared() && lock.is_granted());
    assert_eq!((lock.key(), lock.mode()), (stage.key(), Mode::Shared));
    assert_eq!((lock.process_id(), lock.role(), lock.since()), (None, None, None));
    assert!(!alice.terminate_holder(stage.key(), psql.process_id()).await.unwrap());
    assert_eq!(psql.value("SELECT 1"), "1", "it does not hold what it has prepared");
}

/// The session's `search_path` has relations, functions and operators of the same names, before the
/// server's own.
#[tokio::test]
async fn nothing_of_the_same_name_stands_in_for_the_servers_own() {
    let cluster = Settings::new().start();
    let mut admin = cluster.raw();
    admin.rows("CREATE SCHEMA impostor");
    admin.rows("GRANT USAGE ON SCHEMA impostor TO PUBLIC");
    for view in ["pg_locks", "pg_stat_activity", "pg_settings", "pg_stat_ssl", "pg_roles"] {
        admin.rows(&format!(
            "CREATE VIEW impostor.{view} AS SELECT * FROM pg_catalog.{view} WHERE false"
        ));
    }
    for (name, of) in [("=", "oid"), ("<>", "text"), ("+", "integer"), ("<=", "bigint")] {
        let returns = if name == "+" { of } else { "boolean" };
        admin.rows(&format!(
            "CREATE FUNCTION impostor.wrong({of}, {of}) RETURNS {returns} LANGUAGE sql \
             AS 'SELECT NULL::{returns}'"
        ));
        admin.rows(&format!(
            "CREATE OPERATOR impostor.{name} (leftarg = {of}, rightarg = {of}, \
             function = impostor.wrong)"
        ));
    }
    for function in ["octet_length(text)", "to_jsonb(anyelement)", "pg_terminate_backend(integer)"]
    {
        admin.rows(&format!(
            "CREATE FUNCTION impostor.{function} RETURNS integer LANGUAGE sql AS 'SELECT 0'"
        ));
    }
    admin.rows("GRANT SELECT ON ALL TABLES IN SCHEMA impostor TO PUBLIC");
    let mut stage = Stage::on(&cluster);
    let mut config = stage.config("alice");
    config.set("options", "-c search_path=impostor,pg_catalog").unwrap();
    let mut alice = Session::connect(&config).await.unwrap();
    let mut bob = stage.session("bob").await;
    bob.lock(stage.key(), Mode::Exclusive).await.unwrap();
    let bobs = stage.pid("bob");
    let locks = alice.advisory_locks().await.unwrap();
    let [lock] = locks.listed() else { panic!("{locks:?}") };
    assert_eq!((lock.key(), lock.process_id()), (stage.key(), Some(bobs)));
    let report = alice.diagnose().await.unwrap();
    assert_eq!((report.advisory_locks, report.connections), (Some(1), Some(4)));
    assert!(report.settings.lock_table_room().is_some());
    assert!(alice.terminate_holder(stage.key(), bobs).await.unwrap());
    assert!(soon(bob.lost()).await.is_lost());
}

#[tokio::test]
async fn who_holds_a_key_or_waits_for_it_can_be_ended_and_nobody_else() {
    let mut stage = Stage::new();
    let (key, other) = (stage.key(), Key::pair(7, i32::try_from(stage.number()).unwrap()));
    let mut alice = stage.session("alice").await;
    let mut bob = stage.session("bob").await;
    alice.lock(key, Mode::Shared).await.unwrap();
    alice.lock(key, Mode::Exclusive).await.unwrap();
    let mut carol = stage.session("carol").await;
    let waiting = tokio::spawn(async move { carol.lock(key, Mode::Exclusive).await });
    stage.until_count(3).await;
    let (alices, bobs, carols) = (stage.pid("alice"), stage.pid("bob"), stage.pid("carol"));

    let mut dave = stage.session("dave").await;
    for (key, process_id) in [(other, alices), (key, bobs), (key, i32::MAX), (key, 0), (key, -1)] {
        assert!(!dave.terminate_holder(key, process_id).await.unwrap(), "{key}, {process_id}");
    }
    alice.unlock(key, Mode::Shared).await.expect("it goes on");
    assert!(dave.terminate_holder(key, carols).await.unwrap());
    let error = soon(waiting).await.unwrap().unwrap_err();
    assert!(error.is_lost() && error.sqlstate() == Some("57P01"), "{error}");
    assert!(dave.terminate_holder(key, alices).await.unwrap());
    assert!(soon(alice.lost()).await.is_lost());
    stage.until(&[]).await;
    assert!(!dave.terminate_holder(key, alices).await.unwrap());
    bob.lock(other, Mode::Exclusive).await.expect("nobody touched it");
}

#[tokio::test]
async fn the_same_key_of_another_database_is_another_key() {
    let cluster = Settings::new().start();
    let mut elsewhere = cluster.raw_to("postgres");
    elsewhere.rows("SELECT pg_advisory_lock(1)");
    let config: Config = cluster.socket_url_for(&role::SUPERUSER).parse().unwrap();
    let mut admin = Session::connect(&config).await.unwrap();
    assert!(!admin.terminate_holder(1, elsewhere.process_id()).await.unwrap());
    assert_eq!(elsewhere.value("SELECT 1"), "1");
}

/// The holder is a superuser, and whoever wants to end it is nobody.
#[tokio::test]
async fn a_role_that_may_not_end_a_session_is_told_what_it_lacks() {
    let mut stage = Stage::new();
    let key = stage.key();
    let mut psql = Cluster::default_cluster().raw();
    psql.rows(&format!("SELECT pg_advisory_lock({key})"));
    let own = Key::bigint(-stage.number());
    for pooler in [Pooler::Auto, Pooler::Transaction] {
        let mut config = stage.config("alice");
        config.pooler(pooler);
        let mut alice = Session::connect(&config).await.unwrap();
        let error = alice.terminate_holder(key, psql.process_id()).await.unwrap_err();
        assert_eq!((error.kind(), error.sqlstate()), (ErrorKind::Server, Some("42501")));
        assert!(!error.is_lost());
        let begin = format!("ending process {}, which has key {key}", psql.process_id());
        let text = error.to_string();
        assert!(text.starts_with(&begin) && text.contains("pg_signal_backend"), "{text}");
        assert_eq!(psql.value("SELECT 1"), "1");

        // In a transaction, the error ends what is held.
        assert!(alice.try_lock(own, Mode::Exclusive).await.unwrap());
        let error = alice.terminate_holder(key, psql.process_id()).await.unwrap_err();
        assert_eq!(error.is_lost(), pooler == Pooler::Transaction, "{error}");
        assert_eq!(error.sqlstate(), Some("42501"));
        drop(alice);
        stage.until(&[]).await;
    }
}

#[tokio::test]
async fn a_report_tells_what_the_server_is_and_how_it_is_set() {
    let cluster = Settings::new()
        .set("max_connections", "37")
        .set("max_prepared_transactions", "5")
        .set("max_locks_per_transaction", "70")
        .set("superuser_reserved_connections", "4")
        .set("tcp_keepalives_idle", "61")
        .set("tcp_user_timeout", "7s")
        .set("deadlock_timeout", "1500ms")
        .start();
    let mut admin = cluster.raw();
    admin.rows(&format!("ALTER ROLE {} CONNECTION LIMIT 12", role::TRUST.name));
    let mut stage = Stage::on(&cluster);
    let mut alice = stage.session("alice").await;
    alice.lock(stage.key(), Mode::Exclusive).await.unwrap();

    let report = alice.diagnose().await.unwrap();
    let (host, port) = ("127.0.0.1", cluster.port());
    assert_eq!(report.server, format!("{host} port {port}"));
    assert_eq!(report.address, format!("{host}:{port}"));
    assert_eq!(report.process_id, stage.pid("alice"));
    assert_eq!(report.version.as_deref(), Some(admin.value("SHOW server_version").as_str()));
    assert_eq!(report.version_number.unwrap() / 10_000, cluster.major_version());
    assert_eq!(report.is_standby, Some(false));
    assert!(report.started_at.unwrap() <= now(&mut admin));
    assert_eq!((report.authentication, report.is_channel_bound), (AuthMethod::None, false));
    assert_eq!((report.is_pooled, report.holding), (false, Holding::SessionByCalls));
    assert_eq!(report.database, Some(admin.value("SELECT current_database()")));
    assert_eq!(report.database_connection_limit, None);
    assert_eq!(report.role.name.as_deref(), Some(role::TRUST.name));
    assert_eq!(report.role.is_superuser, Some(false));
    assert_eq!(report.role.reads_all_stats, Some(false));
    assert_eq!(report.role.signals_backends, Some(false));
    assert_eq!((report.role.connection_limit, report.role.connections), (Some(12), Some(1)));
    // Alice, the superuser, and the stage's look.
    assert_eq!((report.connections, report.advisory_locks), (Some(3), Some(1)));
    assert!((1..=20).contains(&report.lock_objects.unwrap()), "{report:?}");

    let settings = report.settings;
    assert_eq!((settings.max_connections, settings.max_prepared_transactions), (Some(37), Some(5)));
    assert_eq!(settings.max_locks_per_transaction, Some(70));
    assert_eq!(settings.lock_table_room(), Some(70 * 42));
    assert_eq!(settings.superuser_reserved_connections, Some(4));
    assert_eq!(settings.tcp_keepalives_idle, Some(Duration::from_secs(61)));
    assert_eq!(settings.tcp_keepalives_count, Some(0));
    assert_eq!(settings.tcp_user_timeout, Some(Duration::from_secs(7)));
    assert_eq!(settings.deadlock_timeout, Some(Duration::from_millis(1_500)));
    assert_eq!(settings.statement_timeout, Some(Duration::ZERO));
    let checks = settings.client_connection_check_interval;
    assert_eq!(checks.is_some(), cluster.major_version() >= NOTICES_LOST_CLIENTS);
    assert_eq!(settings.synchronous_commit.as_deref(), Some("on"));
    assert_eq!(settings.synchronous_standby_names.as_deref(), Some(""));
}

#[tokio::test]
async fn a_report_has_the_timeouts_of_the_role_and_not_those_of_the_session() {
    let config: Config = Cluster::default_cluster().url_for(&role::HURRIED).parse().unwrap();
    let settings = Session::connect(&config).await.unwrap().diagnose().await.unwrap().settings;
    let hurried = Some(Duration::from_secs(2));
    assert_eq!((settings.statement_timeout, settings.lock_timeout), (hurried, hurried));
    assert_eq!(settings.idle_in_transaction_session_timeout, hurried);
    let major_version = Cluster::default_cluster().major_version();
    assert_eq!(settings.idle_session_timeout, hurried.filter(|_| major_version >= 14));
    assert_eq!(settings.transaction_timeout, hurried.filter(|_| major_version >= 17));
}

#[tokio::test]
async fn a_report_tells_how_the_session_was_let_in() {
    let cluster = Cluster::default_cluster();
    for (role, method) in [
        (role::TRUST, AuthMethod::None),
        (role::SCRAM, AuthMethod::ScramSha256),
        #[cfg(feature = "md5")]
        (role::MD5, AuthMethod::Md5),
    ] {
        let config: Config = cluster.socket_url_for(&role).parse().unwrap();
        let report = Session::connect(&config).await.unwrap().diagnose().await.unwrap();
        assert_eq!(report.authentication, method);
        assert_eq!((report.tls, report.server_tls), (None, None));
        assert!(report.address.ends_with(&format!("/.s.PGSQL.{}", cluster.port())));
    }
    let config: Config = cluster.socket_url_for(&role::SUPERUSER).parse().unwrap();
    let role = Session::connect(&config).await.unwrap().diagnose().await.unwrap().role;
    let may = (role.is_superuser, role.reads_all_stats, role.signals_backends);
    assert_eq!(may, (Some(true), Some(true), Some(true)));
    assert_eq!(role.connection_limit, None);
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_report_tells_what_encrypts_the_connection_on_both_sides() {
    for (maximum, version) in [("TLSv1.2", "TLSv1.2"), ("TLSv1.3", "TLSv1.3")] {
        let mut config: Config = Cluster::default_cluster().url_for(&role::SCRAM).parse().unwrap();
        config.set("sslmode", "require").unwrap();
        config.set("ssl_max_protocol_version", maximum).unwrap();
        let report = Session::connect(&config).await.unwrap().diagnose().await.unwrap();
        let (here, there) = (report.tls.unwrap(), report.server_tls.unwrap());
        assert_eq!((here.version.as_str(), there.version.as_str()), (version, version));
        assert!(here.cipher.starts_with("TLS_") && here.cipher.contains("_GCM_"), "{here:?}");
        assert!(there.cipher.contains("GCM"), "{there:?}");
        assert!(report.is_channel_bound);
    }
}

#[tokio::test]
async fn a_report_tells_of_a_pooler() {
    for (mode, pooler, holding) in [
        (PoolMode::Transaction, Pooler::Auto, Holding::Transaction),
        (PoolMode::Session, Pooler::Session, Holding::SessionByQueries),
    ] {
        let bouncer = PgBouncer::start(Cluster::default_cluster(), mode, 1);
        let mut stage = Stage::new();
        let mut config = stage.config_by(&bouncer.url_for(&role::TRUST), "alice");
        config.pooler(pooler);
        let mut alice = Session::connect(&config).await.unwrap();
        let report = alice.diagnose().await.unwrap();
        assert_eq!((report.is_pooled, report.holding), (true, holding));
        assert_eq!(report.process_id, stage.pid("alice"), "it is the server's own number");
        alice.ping().await.unwrap();
        alice.lock(stage.key(), Mode::Exclusive).await.unwrap();
        let locks = alice.advisory_locks().await.unwrap();
        assert_eq!(of_key(&locks, stage.key()).len(), 1);
        alice.diagnose().await.unwrap();
        alice.ping().await.unwrap();
        assert_eq!(stage.locks(), ["alice holds exclusive"]);
    }
    let stage = Stage::new();
    let mut config = stage.config("alice");
    config.pooler(Pooler::Transaction);
    let report = Session::connect(&config).await.unwrap().diagnose().await.unwrap();
    assert_eq!((report.is_pooled, report.holding), (false, Holding::Transaction));
}

#[tokio::test]
async fn a_question_that_is_dropped_leaves_the_session_as_it_was() {
    let mut stage = Stage::new();
    let mut alice = stage.session("alice").await;
    alice.lock(stage.key(), Mode::Exclusive).await.unwrap();
    assert!(poll_times(1, alice.advisory_locks()).await.is_none());
    assert!(poll_times(1, alice.diagnose()).await.is_none());
    assert!(poll_times(1, alice.ping()).await.is_none());
    let locks = alice.advisory_locks().await.unwrap();
    assert_eq!(of_key(&locks, stage.key()).len(), 1);
    assert_eq!(stage.locks(), ["alice holds exclusive"]);
}

#[tokio::test]
async fn an_answer_takes_the_time_that_a_ping_says() {
    let mut stage = Stage::new();
    let mut alice = stage.session("alice").await;
    let asked = std::time::Instant::now();
    let took = alice.ping().await.unwrap();
    assert!(took > Duration::ZERO && took <= asked.elapsed());
    stage.terminate("alice");
    eventually("the session is over", PATIENCE, || stage.sessions() == 0).await;
    assert!(alice.ping().await.unwrap_err().is_lost());
    assert!(alice.diagnose().await.unwrap_err().is_lost());
}

#[tokio::test]
async fn a_failed_connect_tells_its_step() {
    let cluster = Cluster::default_cluster();
    let url = cluster.url_for(&role::TRUST);
    // One takes connections and says nothing, the other takes none.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent, closed) = (listener.local_addr().unwrap().port(), 1);
    let bouncer = PgBouncer::start(cluster, PoolMode::Transaction, 1);
    let at =
        |port| format!("postgres://nobody@127.0.0.1:{port}/db?sslmode=disable&connect_timeout=2");
    for (url, pooler, step, kind) in [
        (
            "postgres://x@host.invalid/db".into(),
            Pooler::Auto,
            ConnectStep::Resolve,
            ErrorKind::Connect,
        ),
        (at(closed), Pooler::Auto, ConnectStep::Reach, ErrorKind::Connect),
        (at(silent), Pooler::Auto, ConnectStep::LogIn, ErrorKind::Timeout),
        #[cfg(feature = "tls")]
        (
            url.clone() + "?sslmode=verify-full&sslrootcert=/dev/null",
            Pooler::Auto,
            ConnectStep::Reach,
            ErrorKind::Tls,
        ),
        (
            cluster.url_for(&role::REJECTED),
            Pooler::Auto,
            ConnectStep::LogIn,
            ErrorKind::Authentication,
        ),
        (bouncer.url_for(&role::TRUST), Pooler::Refuse, ConnectStep::SetUp, ErrorKind::Unsupported),
    ] {
        let mut config: Config = url.parse().unwrap();
        config.pooler(pooler);
        let error = Session::connect(&config).await.unwrap_err();
        assert_eq!((error.connect_step(), error.kind()), (Some(step), kind), "{error}");
    }
    let mut alice = Session::connect(&url.parse().unwrap()).await.unwrap();
    let error = alice.unlock(1, Mode::Exclusive).await.unwrap_err();
    assert_eq!(error.connect_step(), None);
}
