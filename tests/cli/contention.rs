//! Many at a time, of whom one may act.

use std::fs;
use std::process::Child;

use crate::stage::{PATIENCE, Stage, end_of};
use pglock_test_cluster::wait_until;

/// The number is read and written in two steps, between which others run.
const ADD_ONE: &str = "read number <number; echo $((number + 1)) >number";

#[test]
fn twenty_processes_count_to_two_thousand() {
    const PROCESSES: usize = 20;
    const TURNS: usize = 100;
    let stage = Stage::new();
    fs::write(stage.file("number"), "0\n").unwrap();
    // Each is a script, as somebody would write it.
    let script = format!(
        "for turn in $(seq {TURNS}); do \"$0\" -w 60 --settle 0 \"$1\" -- sh -c '{ADD_ONE}' || exit; done"
    );
    let scripts: Vec<Child> = (0..PROCESSES)
        .map(|_| {
            let pglock = env!("CARGO_BIN_EXE_pglock");
            stage.with_server("sh").args(["-c", &script, pglock, stage.key()]).spawn().unwrap()
        })
        .collect();
    for mut script in scripts {
        // However long all of them take, somebody's turn comes.
        let mut number = String::new();
        while script.try_wait().unwrap().is_none() {
            wait_until("the number rises", PATIENCE, || {
                let now = fs::read_to_string(stage.file("number")).unwrap();
                let rises = now != number || script.try_wait().unwrap().is_some();
                number = now;
                rises
            });
        }
        assert_eq!(end_of(script), (0, String::new()));
    }
    let number = fs::read_to_string(stage.file("number")).unwrap();
    assert_eq!(number, format!("{}\n", PROCESSES * TURNS));
}

#[test]
fn as_many_as_there_are_permits_run_at_a_time() {
    let stage = Stage::new();
    let run = |options: &[&str], line: &str| {
        let mut pglock = stage.pglock();
        pglock.args(["--permits", "2", "--settle", "0"]).args(options);
        pglock.args([stage.key(), "-c", line]);
        pglock
    };
    let hold = "echo start $PGLOCK_SLOT >>journal; until [ -e go ]; do sleep 0.05; done";
    let holders: Vec<Child> = (0..2).map(|_| run(&[], hold).spawn().unwrap()).collect();
    wait_until("both run", PATIENCE, || stage.journal().len() == 2);
    let mut slots = stage.journal();
    slots.sort();
    assert_eq!(slots, ["start 0", "start 1"]);
    let third = run(&["-n", "-E", "9"], "echo third >>journal").output().unwrap();
    assert_eq!(third.status.code(), Some(9));
    let waiter = run(&["-w", "60"], "echo waited >>journal").spawn().unwrap();
    fs::write(stage.file("go"), "").unwrap();
    for process in holders.into_iter().chain([waiter]) {
        assert_eq!(end_of(process).0, 0);
    }
    assert_eq!(stage.journal().last().unwrap(), "waited");
}
