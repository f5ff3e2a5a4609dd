//! The subcommands that look at a server, and `kill`.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use pglock_test_cluster::{Cluster, PgBouncer, PoolMode, Raw, Settings, role, wait_until};

/// How long a test waits for what has to happen sooner or later, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

/// The command, which knows of a server only what it is told, as this role.
fn pglock_as(url: &str, arguments: &[&str]) -> Command {
    bare(&["--db", url], arguments, env!("CARGO_BIN_EXE_pglock"))
}

fn bare(before: &[&str], arguments: &[&str], program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let is_known = name.to_str().is_some_and(|name| name.starts_with("PG"));
        if is_known || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.args(before).args(arguments).stdin(Stdio::null());
    command
}

fn admin(cluster: &Cluster) -> String {
    cluster.socket_url_for(&role::SUPERUSER)
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A session called so, which holds what this locks.
fn holder(cluster: &Cluster, name: &str, sql: &str) -> Raw {
    let mut holder = cluster.raw();
    holder.rows(&format!("SET application_name = '{name}'"));
    holder.rows(&format!("SELECT {sql}"));
    holder
}

/// A session that waits for a key, until this is killed.
fn waiter(cluster: &Cluster, key: i64) {
    let mut waiter = cluster.raw();
    std::thread::spawn(move || waiter.try_rows(&format!("SELECT pg_advisory_lock({key})")));
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    let mut look = cluster.raw();
    wait_until("somebody waits", PATIENCE, || look.value(waits) == "1");
}

#[test]
fn ls_shows_who_holds_and_who_waits() {
    let cluster = Settings::new().start();
    let nightly = pglock::Key::from_name("nightly");
    let first = holder(&cluster, "nightly", &format!("pg_advisory_lock({nightly})"));
    let second = holder(&cluster, "a \"b\"", "pg_advisory_lock_shared(-1, 7)");
    waiter(&cluster, nightly.to_string().parse().unwrap());

    let (code, out, err) = run(&mut pglock_as(&admin(&cluster), &["ls"]));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let lines: Vec<Vec<_>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    let [first_line, held, waits, shared] = &lines[..] else { panic!("{out}") };
    assert_eq!(
        first_line[..],
        ["KEY", "NAME", "MODE", "STATE", "PROCESS", "ROLE", "APPLICATION", "CLIENT", "SINCE"]
    );
    let pid = first.process_id().to_string();
    let key = nightly.to_string();
    assert_eq!(
        held[..8],
        [&key, "nightly", "exclusive", "held", &pid, "postgres", "nightly", "-"],
        "its application tells its name"
    );
    assert!(held[8].starts_with("20") && held[8].ends_with('Z'), "{out}");
    assert_eq!(waits[..4], [&key, "nightly", "exclusive", "waits"]);
    let pid = second.process_id().to_string();
    assert_eq!(shared[..7], ["-1,7", "-", "shared", "held", &pid, "postgres", "a"]);

    // Before the last column, where a process may have such digits, two blanks come last.
    let since = |line: &str| line.rfind("  20").unwrap();
    let columns: Vec<_> = out.lines().skip(1).map(since).collect();
    assert!(columns.windows(2).all(|two| two[0] == two[1]), "the columns are straight: {out}");

    let (code, out, _) = run(&mut pglock_as(&admin(&cluster), &["ls", "--json"]));
    assert_eq!(code, 0);
    let begin = format!(
        "{{\"count\":3,\"locks\":[{{\"key\":\"{key}\",\"name\":\"nightly\",\"mode\":\"exclusive\",\
         \"state\":\"held\",\"process_id\":{},\"role\":\"postgres\",\"application_name\":\"nightly\",\
         \"client_address\":null,\"since\":\"20",
        first.process_id()
    );
    assert!(out.starts_with(&begin) && out.ends_with("Z\"}]}\n"), "{out}");
    assert!(out.contains(r#""application_name":"a \"b\"""#), "{out}");
}

#[test]
fn ls_knows_the_names_that_it_is_told() {
    let cluster = Settings::new().start();
    let [one, two] = ["one", "two"].map(pglock::Key::from_name);
    let sql = format!("pg_advisory_lock({one}), pg_advisory_lock({two})");
    let _holder = holder(&cluster, "psql", &sql);
    let (_, out, _) = run(&mut pglock_as(&admin(&cluster), &["ls"]));
    assert!(!out.contains("one") && !out.contains("two"), "{out}");
    let mut command = pglock_as(&admin(&cluster), &["ls", "--name", "one", "--name", "three"]);
    let (_, out, _) = run(command.env("PGLOCK_NAMES", "two, four"));
    assert!(out.contains(&format!("{one}  one")) || out.contains(" one "), "{out}");
    assert!(out.contains(" two ") && !out.contains("three") && !out.contains("four"), "{out}");
}

#[test]
fn a_long_name_is_a_key_and_no_part_of_it_is_taken_for_one() {
    let cluster = Settings::new().start();
    let name = "n".repeat(20_000);
    let arguments = [&name, "sh", "-c", "echo $PGLOCK_KEY; exec sleep 1000"];
    let child = pglock_as(&admin(&cluster), &arguments).stdout(Stdio::piped()).spawn();
    let mut holder = Running(child.unwrap());
    let mut out = BufReader::new(holder.0.stdout.take().unwrap());
    let mut key = String::new();
    out.read_line(&mut key).unwrap();
    assert_eq!(key.trim(), pglock::Key::from_name(&name).to_string());
    let listed = |arguments: &[&str]| {
        let (_, out, _) = run(&mut pglock_as(&admin(&cluster), arguments));
        let line = out.lines().nth(1).unwrap().split_whitespace().map(String::from);
        line.collect::<Vec<_>>()
    };
    let of = |listed: Vec<String>| [listed[0].clone(), listed[1].clone()];
    let key = key.trim().to_owned();
    assert_eq!(of(listed(&["ls"])), [key.clone(), String::from("-")]);
    assert_eq!(of(listed(&["ls", "--name", &name])), [key, name.clone()]);
    assert_eq!(run(&mut pglock_as(&admin(&cluster), &["who", &name])).0, 0);
}

#[test]
fn ls_prints_nothing_but_its_head_where_nothing_is_locked() {
    let cluster = Settings::new().start();
    let (code, out, _) = run(&mut pglock_as(&admin(&cluster), &["ls"]));
    assert_eq!((code, out.lines().count()), (0, 1));
    let (_, out, _) = run(&mut pglock_as(&admin(&cluster), &["ls", "--json"]));
    assert_eq!(out, "{\"count\":0,\"locks\":[]}\n");
}

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ls_watches_and_ends_when_nobody_reads_any_more() {
    let cluster = Settings::new().start();
    let mut command = pglock_as(&admin(&cluster), &["ls", "--json", "--watch", "0.05"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Running(child);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "{\"count\":0,\"locks\":[]}");
    let _holder = holder(&cluster, "psql", "pg_advisory_lock(1)");
    while next() == "{\"count\":0,\"locks\":[]}" {}
    assert!(next().starts_with("{\"count\":1,\"locks\":[{\"key\":\"1\""));
    drop(lines);
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn who_tells_by_its_exit_code_whether_a_key_is_held() {
    let cluster = Settings::new().start();
    let who = |key| run(&mut pglock_as(&admin(&cluster), &["who", key]));
    assert_eq!(who("-42"), (1, String::new(), String::new()));
    let holder = holder(&cluster, "nightly", "pg_advisory_lock(-42)");
    waiter(&cluster, -42);
    let (code, out, err) = who("-42");
    assert_eq!((code, err.as_str()), (0, ""));
    let [holds, waits] = out.lines().collect::<Vec<_>>()[..] else { panic!("{out}") };
    let pid = holder.process_id();
    let begin = format!(
        "process {pid} of app \"nightly\" by role \"postgres\" holds it exclusively since "
    );
    assert!(holds.starts_with(&begin) && holds.ends_with("Z or earlier"), "{out}");
    assert!(waits.contains("waits for it exclusively"), "{out}");
    assert_eq!(who("42").0, 1);
    assert_eq!(who("0,-42").0, 1);
    let (code, _, err) = who("9223372036854775808");
    assert!(code == 64 && err.contains("--key-as"), "{err}");
}

#[test]
fn kill_ends_the_holders_and_returns_when_the_key_is_free() {
    let cluster = Settings::new().start();
    let mut one = holder(&cluster, "one", "pg_advisory_lock_shared(7)");
    let mut two = holder(&cluster, "two", "pg_advisory_lock_shared(7)");
    let mut other = holder(&cluster, "other", "pg_advisory_lock(8)");
    let (code, out, err) = run(&mut pglock_as(&admin(&cluster), &["kill", "7", "--yes"]));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("\"one\"") && out.contains("\"two\""), "{out}");
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7";
    assert_eq!(cluster.raw().value(held), "0");
    one.try_rows("SELECT 1").unwrap_err();
    two.try_rows("SELECT 1").unwrap_err();
    assert_eq!(other.value("SELECT 1"), "1");
    let (code, out, err) = run(&mut pglock_as(&admin(&cluster), &["kill", "7", "--yes"]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err, "pglock: key 7: nobody holds it\n");
}

/// Has `pglock` run a command with one of two permits of `sem`, in a session called so.
fn with_permit(cluster: &Cluster, name: &str) -> (Running, BufReader<ChildStdout>) {
    let arguments = ["--permits", "2", "sem", "sh", "-c", "echo $PGLOCK_SLOT; exec sleep 1000"];
    let mut command = pglock_as(&admin(cluster), &arguments);
    let child = command.env("PGAPPNAME", name).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Running(child.unwrap());
    let out = BufReader::new(child.0.stdout.take().unwrap());
    (child, out)
}

#[test]
fn permits_can_be_looked_at_and_taken_away() {
    let cluster = Settings::new().start();
    let run = |arguments: &[&str]| run(&mut pglock_as(&admin(&cluster), arguments));
    let named = |arguments: &[&str]| {
        let (_, out, _) = run(&[&["ls"], arguments].concat());
        out.lines().filter(|line| line.contains("  sem  ")).count()
    };
    let begun = |out: &mut BufReader<ChildStdout>| {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line
    };
    let nobody = String::from("pglock: a permit of \"sem\": nobody holds it\n");
    assert_eq!(run(&["who", "--permits", "sem"]), (1, String::new(), String::new()));
    assert_eq!(run(&["kill", "-y", "--permits", "sem"]), (1, String::new(), nobody));

    let (mut first, mut out) = with_permit(&cluster, "first");
    let slot = begun(&mut out);
    // Its permit, and how many there are.
    assert_eq!((named(&[]), named(&["--name", "sem"])), (0, 2));
    let (mut second, mut out) = with_permit(&cluster, "pglock sem");
    let mut slots = [slot, begun(&mut out)];
    slots.sort();
    assert_eq!(slots, ["0\n", "1\n"]);
    let _third = with_permit(&cluster, "third");
    let mut look = cluster.raw();
    let turnstile = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid::int = -1";
    wait_until("the third waits", PATIENCE, || look.value(turnstile) == "1");
    assert_eq!(named(&[]), 6, "the second tells the name of the others too");

    let (code, out, err) = run(&["who", "--permits", "sem"]);
    assert_eq!((code, err.as_str(), out.lines().count()), (0, "", 3), "{out}");
    for what in [
        "holds permit 0 since 2",
        "holds permit 1 since 2",
        "of app \"third\" by role \"postgres\" waits for a permit, as the next\n",
    ] {
        assert!(out.contains(what), "{out}");
    }
    // The plain key is another lock.
    assert_eq!(run(&["who", "sem"]).0, 1);
    assert_eq!(run(&["-n", "sem", "true"]).0, 0);

    let (code, out, _) = run(&["kill", "--yes", "--permits", "sem"]);
    assert_eq!((code, out.lines().count()), (0, 2), "{out}");
    for holder in [&mut first, &mut second] {
        assert_eq!(holder.0.wait().unwrap().code(), Some(75));
    }
}

#[test]
fn permits_that_the_server_may_not_have_told_of_are_hinted_at() {
    let cluster = Settings::new().start();
    let _many =
        holder(&cluster, "many", "count(pg_advisory_lock(n)) FROM generate_series(1, 2000) n");
    let (code, out, err) = run(&mut pglock_as(&admin(&cluster), &["who", "--permits", "sem"]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("there may be more than said") && err.contains("of 2000 "), "{err}");
}

#[test]
fn kill_without_a_terminal_has_to_be_told_that_it_is_meant() {
    let cluster = Settings::new().start();
    let mut one = holder(&cluster, "one", "pg_advisory_lock(7)");
    let url = admin(&cluster);
    let program = env!("CARGO_BIN_EXE_pglock");
    let alone = ["--wait", program, "--db", &url, "kill", "7"];
    let (code, _, err) = run(&mut bare(&alone, &[], "setsid"));
    assert_eq!(code, 64);
    assert!(err.contains("no terminal") && err.contains("--yes"), "{err}");
    assert_eq!(one.value("SELECT 1"), "1");
}

#[test]
fn kill_asks_on_the_terminal() {
    let cluster = Settings::new().start();
    for (answer, code) in [("n", 1), ("", 1), ("y", 0)] {
        let mut one = holder(&cluster, "one", "pg_advisory_lock(7)");
        let line = format!("{} --db '{}' kill 7", env!("CARGO_BIN_EXE_pglock"), admin(&cluster));
        let mut command = bare(&["-qec", &line, "/dev/null"], &[], "script");
        let mut child =
            Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let (mut typed, mut reader) =
            (child.0.stdin.take().unwrap(), child.0.stdout.take().unwrap());
        let mut shown = Vec::new();
        while !shown.ends_with(b"? [y/N] ") {
            let mut byte = [0];
            assert_eq!(reader.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&shown));
            shown.push(byte[0]);
        }
        let question = format!("end the session of process {} of app \"one\"", one.process_id());
        assert!(String::from_utf8(shown).unwrap().contains(&question));
        writeln!(typed, "{answer}").unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(code), "{answer:?}");
        assert_eq!(one.try_rows("SELECT 1").is_ok(), code == 1);
    }
}

#[test]
fn kill_says_what_the_role_lacks() {
    let cluster = Settings::new().start();
    let mut one = holder(&cluster, "one", "pg_advisory_lock(7)");
    let url = cluster.url_for(&role::TRUST);
    let (code, _, err) = run(&mut pglock_as(&url, &["kill", "--yes", "7"]));
    assert_eq!(code, 77);
    assert!(err.contains("which has key 7: the role may not: it has to"), "{err}");
    assert!(err.contains("pg_signal_backend"), "{err}");
    assert_eq!(one.value("SELECT 1"), "1");
}

#[test]
fn kill_cannot_end_a_prepared_transaction() {
    let cluster = Settings::new().set("max_prepared_transactions", "1").start();
    let mut psql = cluster.raw();
    psql.rows("BEGIN");
    psql.rows("SELECT pg_advisory_xact_lock(7)");
    psql.rows("PREPARE TRANSACTION 'prepared'");
    let (code, out, err) = run(&mut pglock_as(&admin(&cluster), &["kill", "--yes", "7"]));
    assert_eq!((code, out.as_str()), (69, "a prepared transaction holds it exclusively\n"));
    assert!(err.contains("ROLLBACK PREPARED"), "{err}");
}

#[test]
fn doctor_finds_nothing_amiss_where_nothing_is() {
    let cluster = Settings::new().set("tcp_keepalives_idle", "60").start();
    let (code, out, err) = run(&mut pglock_as(&admin(&cluster), &["doctor"]));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for topic in ["server", "primary", "tls", "pooler", "lock table", "connections", "timeouts"] {
        let line = format!("ok       {topic:14} ");
        assert!(out.lines().any(|found| found.starts_with(&line)), "{topic}: {out}");
    }
    assert!(!out.contains("PROBLEM") && !out.contains("warning"), "{out}");
    assert!(out.contains("is the median of"), "{out}");
}

#[test]
fn doctor_tells_what_will_not_do_by_its_exit_code() {
    let cluster = Settings::new().set("max_connections", "6").start();
    let mut connections: Vec<_> = (0..4).map(|_| cluster.raw()).collect();
    let url = cluster.socket_url_for(&role::SUPERUSER);
    let (code, out, _) = run(&mut pglock_as(&url, &["doctor"]));
    assert_eq!(code, 1, "{out}");
    let line = out.lines().find(|line| line.starts_with("PROBLEM")).unwrap();
    assert!(line.contains("connections") && line.contains("5 of 3"), "{out}");
    assert!(out.contains("-> raise max_connections"), "{out}");
    assert_eq!(connections[0].value("SELECT 1"), "1");
}

#[test]
fn doctor_tells_of_timeouts_poolers_and_missing_rights() {
    let cluster = Cluster::default_cluster();
    let url = cluster.url_for(&role::HURRIED);
    let (code, out, _) = run(&mut pglock_as(&url, &["doctor"]));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("statement_timeout = 2s"), "{out}");
    assert!(out.contains("GRANT pg_signal_backend"), "{out}");
    assert!(out.contains("GRANT pg_read_all_stats"), "{out}");

    let bouncer = PgBouncer::start(cluster, PoolMode::Transaction, 2);
    let (code, out, _) = run(&mut pglock_as(&bouncer.url_for(&role::TRUST), &["doctor"]));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("warning  pooler "), "{out}");
}

#[test]
fn doctor_says_at_which_step_it_failed() {
    let cluster = Cluster::default_cluster();
    let wrong = cluster.url_for(&role::SCRAM).replace("p%40ss", "wrong");
    assert_ne!(wrong, cluster.url_for(&role::SCRAM));
    for (url, step) in [
        (String::from("postgres://nobody@host.invalid/db"), "name resolution"),
        (String::from("postgres://nobody@127.0.0.1:1/db"), "opening a connection"),
        (wrong, "the login"),
        (cluster.url_for(&role::REJECTED), "the login"),
        (cluster.url_for(&role::TRUST) + "?sslmode=verify-full&sslrootcert=/dev/null", "TLS"),
    ] {
        let (code, out, err) = run(&mut pglock_as(&url, &["doctor"]));
        assert_eq!((code, out.as_str()), (69, ""), "{err}");
        assert!(err.starts_with(&format!("pglock: failed at {step}: ")), "{err}");
        assert!(err.contains("pglock: what to do: "), "{err}");
    }
    let (code, _, err) = run(&mut pglock_as("postgres://x/?sslmode=odd", &["doctor"]));
    assert!(code == 64 || code == 78, "{code}: {err}");
}
