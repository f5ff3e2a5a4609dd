//! `pglock lead`: one of many runs the command, and another takes over.

use std::process::{Child, Command, Stdio};

use pglock_test_cluster::{Settings, Shutdown, role, signal, wait_until};

use crate::stage::{PATIENCE, Stage, WORK, code_of, end_of, text};

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

#[test]
fn what_ended_by_itself_is_always_started_anew_if_asked() {
    let mut stage = Stage::new();
    // Ends well twice.
    let script = format!("echo >>runs; test $(wc -l <runs) -ge 3 || exit 0; {WORK}");
    let options = ["lead", "--restart", "always", "--restart-delay", "0.01", stage.key()];
    let command = ["sh", "-c", &script, "sh", "journal", "a"];
    let leader = stage.pglock().args(options).args(command).spawn().unwrap();
    stage.until_journal(&["start a"]);
    // Who tells it to end means it, whatever the command does then.
    signal(leader.id(), "QUIT");
    assert_eq!(end_of(leader).0, 128 + 3);
    assert!(!stage.is_locked());
}

#[test]
fn a_candidate_does_not_take_signals_for_its_command() {
    let mut stage = Stage::new();
    let leader = stage.work(&["lead"], "a");
    stage.until_journal(&["start a"]);
    let candidate = stage.work(&["lead"], "b");
    stage.until_waiting(1);
    for name in ["HUP", "USR1", "USR2"] {
        signal(candidate.id(), name);
    }
    assert_eq!(end(leader), Some(0));
    stage.until_journal(&["start a", "stop a", "start b"]);
    assert_eq!(end(candidate), Some(0));
}

#[test]
fn another_leads_when_the_leader_is_killed() {
    let mut stage = Stage::new();
    let mut leader = stage.work(&["lead", "--fence"], "a");
    stage.until_journal(&["start a"]);
    let candidate = stage.work(&["lead", "--fence"], "b");
    stage.until_waiting(1);
    leader.kill().unwrap();
    leader.wait().unwrap();
    stage.until_journal(&["start a", "start b"]);
    assert_eq!(end(candidate), Some(0));
}

#[test]
fn a_command_that_ignores_the_loss_is_killed_before_the_next_campaign() {
    let mut stage = Stage::new();
    let script = "trap '' TERM; echo start >>journal; while :; do sleep 0.05; done";
    let leader = stage
        .pglock()
        .args(["lead", "--kill-after", "0.2", stage.key(), "-c", script])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    stage.until_journal(&["start"]);
    stage.terminate_holder();
    stage.until_journal(&["start", "start"]);
    signal(leader.id(), "QUIT");
    let (code, complaint) = end_of(leader);
    assert_eq!(code, 128 + 3);
    assert_eq!(complaint.matches("the lock was lost: ").count(), 1, "{complaint}");
}

#[test]
fn leadership_is_lost_in_the_pause_before_a_restart_too() {
    let mut stage = Stage::new();
    let first = stage
        .pglock()
        .args(["lead", "--restart", "on-failure", "--restart-delay", "1000", stage.key()])
        .args(["-c", "echo failed >>journal; exit 9"])
        .spawn()
        .unwrap();
    stage.until_journal(&["failed"]);
    let second = stage.work(&["lead"], "b");
    stage.until_waiting(1);
    stage.terminate_holder();
    stage.until_journal(&["failed", "start b"]);
    stage.until_waiting(1);
    assert_eq!(end(second), Some(0));
    // The first leads again, and starts its command anew without the pause.
    stage.until_journal(&["failed", "start b", "stop b", "failed"]);
    assert_eq!(end(first), Some(128 + 15));
}

#[test]
fn a_restart_of_the_server_makes_one_lead_again_with_a_higher_token() {
    let mut cluster = Settings::new().start();
    let stage = Stage::new();
    let script = "trap 'echo stop >>journal; exit 0' TERM; echo start $PGLOCK_FENCE >>journal; \
                  while :; do sleep 60 & wait $!; done";
    let candidates: Vec<Child> = (0..2)
        .map(|_| {
            stage
                .pglock()
                .env("DATABASE_URL", cluster.url_for(&role::SCRAM))
                // Longer than it takes a command to end on a machine that is busy.
                .args(["lead", "--fence", "--lease", "6", "--settle", "4", stage.key()])
                .args(["-c", script])
                .spawn()
                .unwrap()
        })
        .collect();
    let started = |times: usize| {
        wait_until(&format!("it was started {times} times"), PATIENCE, || {
            stage.journal().iter().filter(|line| line.starts_with("start ")).count() == times
        });
    };
    started(1);
    for (times, shutdown) in [(2, Shutdown::Fast), (3, Shutdown::Immediate)] {
        cluster.restart(shutdown);
        started(times);
    }
    for candidate in candidates {
        end(candidate);
    }
    // Never two at a time.
    let journal = stage.journal();
    assert!(journal.iter().skip(1).step_by(2).all(|line| line == "stop"), "{journal:?}");
    let tokens: Vec<&str> = journal.iter().filter_map(|line| line.strip_prefix("start ")).collect();
    // As texts of one length, they are in the order of their numbers.
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
}
