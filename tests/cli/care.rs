//! How the command is looked after: by its keeper, by whoever waits for what it leaves behind, and between the
//! lock and the command.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use pglock_test_cluster::{Settings, role, signal, wait_until};

use crate::stage::{PATIENCE, Stage, WORK, children_of, end_of, keeper_of, keepers_of, runs, text};

#[test]
fn who_is_left_by_its_parent_is_waited_for() {
    let mut stage = Stage::new();
    // The inner shell leaves its child to whoever takes it.
    let line = format!("sh -c 'sleep 1000 & echo $! >>orphan'; {WORK}");
    let pglock = stage
        .pglock()
        .args([stage.key(), "sh", "-c", &line, "sh", "journal", "a"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    stage.until_journal(&["start a"]);
    let orphan: u32 = fs::read_to_string(stage.file("orphan")).unwrap().trim().parse().unwrap();
    assert!(children_of(pglock.id()).contains(&orphan));
    // With nobody to wait for it, its group would never be gone.
    stage.terminate_holder();
    let (code, complaint) = end_of(pglock);
    assert_eq!(code, 75, "{complaint}");
    assert!(!fs::exists(format!("/proc/{orphan}")).unwrap());
}

#[test]
fn a_keeper_that_is_killed_is_replaced() {
    let stage = Stage::new();
    let mut pglock = stage.work(&[], "a");
    stage.until_journal(&["start a"]);
    let keeper = keeper_of(pglock.id());
    let command = command_of(pglock.id());
    signal(keeper, "KILL");
    wait_until("there is another keeper", PATIENCE, || keeper_of(pglock.id()) != keeper);
    pglock.kill().unwrap();
    pglock.wait().unwrap();
    wait_until("the command has ended", PATIENCE, || !runs(command));
}

#[test]
fn keepers_that_are_killed_again_and_again_are_replaced_at_growing_pauses_and_not_for_ever() {
    let stage = Stage::new();
    let mut pglock = stage.work(&[], "a");
    stage.until_journal(&["start a"]);
    let command = command_of(pglock.id());
    let mut killed = BTreeSet::new();
    // Twelve seconds, and as much again after each that counts as steady.
    wait_until("pglock gives up", 3 * PATIENCE, || {
        for keeper in keepers_of(pglock.id()) {
            // One that was told is still there for a moment.
            if killed.insert(keeper) {
                signal(keeper, "KILL");
            }
        }
        pglock.try_wait().unwrap().is_some()
    });
    let (code, complaint) = end_of(pglock);
    assert_eq!(code, 71, "{complaint}");
    assert!(complaint.contains("cannot look after a command: the keepers"), "{complaint}");
    assert!(complaint.contains("SIGKILL"), "{complaint}");
    // The first and eight that followed it; on a busy machine one may live for long enough to count so.
    assert!((9..30).contains(&killed.len()), "{}", killed.len());
    assert!(!runs(command));
}

#[test]
fn a_keeper_that_cannot_be_started_is_started_later() {
    let stage = Stage::new();
    let pglock = stage.work(&[], "a");
    stage.until_journal(&["start a"]);
    let keeper = keeper_of(pglock.id());
    // Of the files that a process has open, none is left for the pipe to a keeper.
    let limit_files = |limit: &str| {
        let id = pglock.id().to_string();
        let limit = format!("--nofile={limit}:");
        let status = stage.with_server("prlimit").args(["--pid", &id, &limit]).status().unwrap();
        assert!(status.success());
    };
    limit_files("3");
    signal(keeper, "KILL");
    wait_until("it has no keeper", PATIENCE, || keepers_of(pglock.id()).is_empty());
    limit_files("1000");
    assert_ne!(keeper_of(pglock.id()), keeper);
    signal(pglock.id(), "TERM");
    let (code, complaint) = end_of(pglock);
    assert_eq!(code, 0, "{complaint}");
    // The shell in it may say there which signal its `sleep` ended by.
    assert!(!complaint.contains("pglock: "), "{complaint}");
}

#[test]
fn a_keeper_that_is_killed_or_stopped_changes_nothing_for_the_command() {
    for name in ["KILL", "STOP"] {
        let stage = Stage::new();
        let pglock = stage.work(&[], "a");
        stage.until_journal(&["start a"]);
        let keeper = keeper_of(pglock.id());
        signal(keeper, name);
        signal(pglock.id(), "TERM");
        assert_eq!(end_of(pglock).0, 0, "{name}");
        stage.until_journal(&["start a", "stop a"]);
    }
}

#[test]
fn signals_that_were_held_back_before_arrive() {
    let stage = Stage::new();
    let run = |line: &str| {
        stage
            .with_server("env")
            .args(["--block-signal=CHLD,TERM", env!("CARGO_BIN_EXE_pglock"), stage.key()])
            .args(["sh", "-c", line, "sh", "journal", "a"])
            .spawn()
            .unwrap()
    };
    assert_eq!(end_of(run("exit 3")).0, 3);
    let pglock = run(WORK);
    stage.until_journal(&["start a"]);
    signal(pglock.id(), "TERM");
    assert_eq!(end_of(pglock).0, 0);
}

#[test]
fn a_time_beyond_the_clock_is_no_limit() {
    let mut stage = Stage::new();
    let line = "echo start >>journal; exec sleep 1000";
    let pglock = stage
        .pglock()
        .args(["--kill-after", "1e19", "--settle", "0", stage.key(), "-c", line])
        .spawn()
        .unwrap();
    stage.until_journal(&["start"]);
    stage.terminate_holder();
    assert_eq!(end_of(pglock).0, 75);
}

#[test]
fn a_signal_without_a_name_ends_nobody_else() {
    let stage = Stage::new();
    let code =
        |line: &str| end_of(stage.pglock().args([stage.key(), "-c", line]).spawn().unwrap()).0;
    assert_eq!(code("kill -40 $$"), 128 + 40);
    // A child that was left, and one that was there before.
    let left = "(sleep 1000 & echo $! >left); kill -40 $(cat left); sleep 0.2; exit 6";
    assert_eq!(code(left), 6);
    let line = "sleep 1000 & exec \"$0\" \"$1\" -c \"kill -40 $!; sleep 0.2; exit 6\"";
    let before = stage
        .with_server("sh")
        .args(["-c", line, env!("CARGO_BIN_EXE_pglock"), stage.key()])
        .spawn()
        .unwrap();
    assert_eq!(end_of(before).0, 6);
}

#[test]
fn a_child_whose_parent_went_elsewhere_does_not_keep_the_group() {
    let mut stage = Stage::new();
    // It stays the parent of one in the group, and does not wait for it.
    let line = "sh -c 'sleep 1000 & echo $$ >>journal; exec setsid sleep 1000' & exec sleep 1000";
    let pglock =
        stage.pglock().args(["--kill-after", "0.2", stage.key(), "-c", line]).spawn().unwrap();
    wait_until("it has begun", PATIENCE, || !stage.journal().is_empty());
    let parent: u32 = stage.journal()[0].parse().unwrap();
    wait_until("it is elsewhere", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{parent}/stat")).unwrap();
        stat.contains(&format!(" {parent} {parent} "))
    });
    stage.terminate_holder();
    assert_eq!(end_of(pglock).0, 75);
    assert!(runs(parent));
    signal(parent, "KILL");
}

#[test]
fn a_lock_around_it_shows_the_command_nothing_of_its_own() {
    let stage = Stage::new();
    let output = stage
        .pglock()
        .args(["--permits", "3", stage.key(), env!("CARGO_BIN_EXE_pglock"), "42", "env"])
        .output()
        .unwrap();
    let variables = text(&output.stdout);
    let ours: Vec<_> = variables.lines().filter(|line| line.starts_with("PGLOCK_")).collect();
    assert_eq!(ours.len(), 2, "{variables}");
    assert!(ours.contains(&"PGLOCK_HELD=1") && ours.contains(&"PGLOCK_KEY=42"), "{variables}");
}

#[test]
fn a_signal_ends_the_wait_for_a_fencing_token() {
    let stage = Stage::new();
    let cluster = Settings::new().start();
    // A token is given out when it is safe on a standby, and there is none.
    cluster.wait_for_no_standby();
    let mut administrator = cluster.raw();
    for words in [&[][..], &["lead"]] {
        let pglock = stage
            .pglock()
            .env("DATABASE_URL", cluster.url_for(&role::SCRAM))
            .args(words)
            .args(["--fence", stage.key(), "-c", "echo ran >>journal"])
            .spawn()
            .unwrap();
        wait_until("it waits for a standby", PATIENCE, || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            administrator.value(sql) == "1"
        });
        signal(pglock.id(), "TERM");
        assert_eq!(end_of(pglock).0, 143);
        assert!(stage.journal().is_empty());
    }
}

#[test]
fn a_server_that_is_silent_in_the_end_does_not_change_what_the_command_did() {
    let mut stage = Stage::new();
    let line = "echo ready >>journal; until [ -e go ]; do sleep 0.05; done; exit 7";
    let pglock = stage.pglock().args([stage.key(), "-c", line]).stderr(Stdio::piped()).spawn();
    let pglock = pglock.unwrap();
    stage.until_journal(&["ready"]);
    let holder = stage.holder();
    signal(holder, "STOP");
    fs::write(stage.file("go"), "").unwrap();
    wait_until("the command has ended", PATIENCE, || children_of(pglock.id()).is_empty());
    signal(pglock.id(), "TERM");
    let end = end_of(pglock);
    signal(holder, "CONT");
    assert_eq!(end, (7, String::new()));
}

#[test]
fn the_stop_signal_for_pglock_alone_stops_nobody_around_it() {
    let stage = Stage::new();
    let line = "\"$0\" \"$1\" -c 'echo ready >>journal; read line <fifo; echo done >>journal' & \
                echo $! >pglock; wait $!";
    let made = stage.with_server("mkfifo").arg("fifo").status().unwrap();
    assert!(made.success());
    let around = stage
        .with_server("sh")
        .args(["-c", line, env!("CARGO_BIN_EXE_pglock"), stage.key()])
        .process_group(0)
        .spawn()
        .unwrap();
    stage.until_journal(&["ready"]);
    let pglock: u32 = fs::read_to_string(stage.file("pglock")).unwrap().trim().parse().unwrap();
    let is_stopped =
        |id: u32| fs::read_to_string(format!("/proc/{id}/stat")).unwrap().contains(") T ");
    signal(pglock, "TSTP");
    wait_until("it is stopped", PATIENCE, || is_stopped(pglock));
    assert!(!is_stopped(around.id()));
    signal(pglock, "CONT");
    fs::write(stage.file("fifo"), "\n").unwrap();
    assert_eq!(end_of(around).0, 0);
    stage.until_journal(&["ready", "done"]);
}

/// The one child of a `pglock` that is not its keeper.
fn command_of(pglock: u32) -> u32 {
    let keeper = keeper_of(pglock);
    let [command] =
        children_of(pglock).into_iter().filter(|child| *child != keeper).collect::<Vec<_>>()[..]
    else {
        panic!("not one command")
    };
    command
}
