//! `pglock lead`: one of many runs the command, and another takes over.

use std::process::{Child, Command};

use crate::stage::{Stage, code_of, text};

/// Tells it to end, and waits: the exit code.
fn end(mut leader: Child) -> Option<i32> {
    Command::new("kill").arg(leader.id().to_string()).status().unwrap();
    leader.wait().unwrap().code()
}

#[test]
fn a_candidate_takes_over_when_the_leadership_is_lost_and_the_other_campaigns_again() {
    let mut stage = Stage::new();
    let first = stage.work(&["lead"], "a");
    stage.until_journal(&["start a"]);
    let second = stage.work(&["lead"], "b");
    stage.until_waiting(1);
    stage.terminate_holder();
    stage.until_journal(&["start a", "stop a", "start b"]);
    stage.until_waiting(1);
    assert_eq!(end(second), Some(0));
    stage.until_journal(&["start a", "stop a", "start b", "stop b", "start a"]);
    assert_eq!(end(first), Some(0));
    assert!(!stage.is_locked());
}

#[test]
fn who_campaigns_ends_by_a_signal() {
    let mut stage = Stage::new();
    let leader = stage.work(&["lead"], "a");
    stage.until_journal(&["start a"]);
    let candidate = stage.work(&["lead"], "b");
    stage.until_waiting(1);
    assert_eq!(end(candidate), Some(128 + 15));
    end(leader);
    stage.until_journal(&["start a", "stop a"]);
}

#[test]
fn a_command_is_started_anew_as_the_policy_says() {
    // Fails until it has run three times.
    let script = "echo >>runs; test $(wc -l <runs) -ge 3 || exit 9";
    for (policy, code, runs) in [("never", 9, 1), ("on-failure", 0, 3)] {
        let stage = Stage::new();
        let options = ["lead", "--restart", policy, "--restart-delay", "0.01", stage.key()];
        let output = stage.pglock().args(options).args(["sh", "-c", script]).output().unwrap();
        assert_eq!(code_of(&output), code, "{policy}: {}", text(&output.stderr));
        let lines = std::fs::read_to_string(stage.file("runs")).unwrap().lines().count();
        assert_eq!(lines, runs, "{policy}");
    }
}
