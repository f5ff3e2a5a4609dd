//! A lock that is lost while the command runs.

use std::fs;
use std::process::Stdio;

use pglock_test_cluster::{signal, wait_until};

use crate::stage::{PATIENCE, Stage, end_of, runs};

#[test]
fn the_next_command_starts_only_when_the_one_before_has_ended() {
    let mut stage = Stage::new();
    let mut expected = Vec::new();
    let mut holder = stage.work(&[], "0");
    expected.push("start 0".to_owned());
    for turn in 1..=10 {
        let name = turn.to_string();
        stage.until_journal(&expected.iter().map(String::as_str).collect::<Vec<_>>());
        let waiter = stage.work(&["-w", "60"], &name);
        stage.until_waiting(1);
        stage.terminate_holder();
        let (code, complaint) = end_of(holder);
        assert_eq!(code, 75);
        assert!(complaint.contains("the lock was lost: "), "{complaint}");
        expected.extend([format!("stop {}", turn - 1), format!("start {turn}")]);
        holder = waiter;
    }
    stage.until_journal(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    signal(holder.id(), "TERM");
    assert_eq!(end_of(holder).0, 0);
}

#[test]
fn a_command_that_ignores_term_is_killed_with_its_children() {
    let mut stage = Stage::new();
    // The shell's child outlives it, and has its own way with TERM.
    let line = "sh -c 'trap \"\" TERM; echo $$ >>journal; while :; do sleep 0.1; done' & wait";
    let pglock = stage
        .pglock()
        .args(["--kill-after", "0.2", "--lost-exit-code", "44", stage.key(), "-c", line])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the command has begun", PATIENCE, || !stage.journal().is_empty());
    let grandchild = stage.journal()[0].parse().unwrap();
    stage.terminate_holder();
    assert_eq!(end_of(pglock).0, 44);
    assert!(!runs(grandchild));
}

#[test]
fn a_stopped_command_ends_too() {
    let mut stage = Stage::new();
    let pglock =
        stage.pglock().args([stage.key(), "-c", "echo $$ >>journal; kill -STOP $$"]).spawn();
    let pglock = pglock.unwrap();
    wait_until("the command has begun", PATIENCE, || !stage.journal().is_empty());
    let child: u32 = stage.journal()[0].parse().unwrap();
    wait_until("it is stopped", PATIENCE, || {
        fs::read_to_string(format!("/proc/{child}/stat")).unwrap().contains(") T ")
    });
    stage.terminate_holder();
    assert_eq!(end_of(pglock).0, 75);
}

#[test]
fn under_a_lease_the_command_of_a_frozen_pglock_ends_before_the_next_starts() {
    let mut stage = Stage::new();
    let frozen = stage.work(&["--lease", "6"], "a");
    stage.until_journal(&["start a"]);
    let waiter = stage.work(&["--settle", "0"], "b");
    stage.until_waiting(1);
    signal(frozen.id(), "STOP");
    stage.until_journal(&["start a", "stop a", "start b"]);
    signal(frozen.id(), "CONT");
    let (code, complaint) = end_of(frozen);
    assert_eq!(code, 75, "{complaint}");
    signal(waiter.id(), "TERM");
    assert_eq!(end_of(waiter).0, 0);
    stage.until_journal(&["start a", "stop a", "start b", "stop b"]);
}

#[test]
fn a_lease_goes_on_for_as_long_as_pglock_does() {
    let stage = Stage::new();
    // Two leases and a third.
    let run = stage.pglock().args(["--lease", "3", stage.key(), "sleep", "7"]).status();
    assert_eq!(run.unwrap().code(), Some(0));
}

#[test]
fn a_lock_that_is_lost_while_nobody_looks_is_told_in_the_end() {
    let mut stage = Stage::new();
    // pglock is stopped, and its command ends by itself.
    let line = "echo ready >>journal; until [ -e go ]; do sleep 0.05; done; echo done >>journal";
    let pglock = stage.pglock().args([stage.key(), "-c", line]).stderr(Stdio::piped()).spawn();
    let pglock = pglock.unwrap();
    stage.until_journal(&["ready"]);
    signal(pglock.id(), "STOP");
    fs::write(stage.file("go"), "").unwrap();
    stage.until_journal(&["ready", "done"]);
    stage.terminate_holder();
    wait_until("the lock is free", PATIENCE, || !stage.is_locked());
    signal(pglock.id(), "CONT");
    let (code, complaint) = end_of(pglock);
    assert_eq!(code, 75);
    assert!(complaint.contains("the lock was lost: "), "{complaint}");
}
