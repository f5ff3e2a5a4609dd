//! What `examples/cli` shows does what it says: run with stand-ins for the programs of an example.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use pglock_test_cluster::{signal, wait_until};

use crate::stage::{PATIENCE, Stage, code_of, end_of, text};

const CRONTAB: &str = include_str!("../../examples/cli/crontab");
const SERVICE: &str = include_str!("../../examples/cli/scheduler.service");
const KUBERNETES: &str = include_str!("../../examples/cli/kubernetes.yaml");
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cli/deploy.sh");

#[test]
fn of_all_cron_daemons_one_makes_the_report() {
    let stage = Stage::new();
    stand_in(&stage, "nightly-report", "echo report >>journal");
    let line = CRONTAB.lines().find(|line| line.starts_with("0 2 * * *")).unwrap();
    let line = line.strip_prefix("0 2 * * *").unwrap().trim();
    let line = line.replace(" nightly-report -c", &format!(" {} -c", stage.key()));
    let cron = || {
        let mut cron = shell(&stage);
        cron.args(["-c", &format!("exec {line}")]).stderr(Stdio::piped()).env("LINGER", "1000");
        cron
    };
    let first = cron().spawn().unwrap();
    stage.until_journal(&["report"]);
    for _ in 0..3 {
        let late = cron().output().unwrap();
        assert_eq!((code_of(&late), text(&late.stderr)), (0, String::new()));
    }
    assert_eq!(stage.journal(), ["report"]);
    // The shell has become pglock.
    signal(first.id(), "TERM");
    assert_eq!(end_of(first).0, 143);
}

#[test]
fn the_service_works_on_one_machine_and_another_takes_over() {
    let mut stage = Stage::new();
    stand_in(
        &stage,
        "scheduler",
        "echo \"start $1\" >>journal; trap 'echo stop >>journal; exit 0' TERM; \
         while :; do sleep 60 & wait $!; done",
    );
    let start = SERVICE.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let line = start.replace("/usr/local/bin/", "").replacen(
        " scheduler --",
        &format!(" {} --", stage.key()),
        1,
    );
    let machine = || shell(&stage).args(["-c", &format!("exec {line}")]).spawn().unwrap();
    let first = machine();
    stage.until_journal(&["start --all"]);
    let second = machine();
    stage.until_waiting(1);
    signal(first.id(), "TERM");
    assert_eq!(end_of(first).0, 0);
    stage.until_journal(&["start --all", "stop", "start --all"]);
    signal(second.id(), "TERM");
    assert_eq!(end_of(second).0, 0);
}

#[test]
fn the_sidecar_shows_by_a_file_that_its_pod_leads() {
    let stage = Stage::new();
    let here = stage.file("here");
    let in_folder = |text: &str| {
        let folder = here.parent().unwrap().display();
        text.replace("/leader/", &format!("{folder}/")).replace("/etc/", &format!("{folder}/"))
    };
    let script = KUBERNETES.split("leader.sh: |\n").nth(1).unwrap();
    fs::write(stage.file("leader.sh"), in_folder(script)).unwrap();
    let command = KUBERNETES.lines().find_map(|line| line.trim().strip_prefix("command: [\"sh\""));
    let line = command.unwrap().strip_prefix(", \"-c\", \"").unwrap().strip_suffix("\"]").unwrap();
    let line = in_folder(line).replacen(" scheduler --", &format!(" {} --", stage.key()), 1);
    // What a container left that was killed.
    fs::write(&here, "").unwrap();
    let pod = || shell(&stage).args(["-c", &line]).spawn().unwrap();
    let mut rival = stage.pglock();
    let rival =
        rival.args(["lead", stage.key(), "--", "sh", "-c", "echo leads >>journal; sleep 1000"]);
    let rival = rival.spawn().unwrap();
    stage.until_journal(&["leads"]);
    let pod = pod();
    wait_until("the file is taken away", PATIENCE, || !here.exists());
    signal(rival.id(), "TERM");
    assert_eq!(end_of(rival).0, 143);
    wait_until("the pod leads", PATIENCE, || here.exists());
    signal(pod.id(), "TERM");
    assert_eq!(end_of(pod).0, 0);
    assert!(!here.exists());
}

#[test]
fn deployments_are_made_one_after_the_other() {
    let stage = Stage::new();
    for step in ["fetch", "migrate", "switch-to"] {
        stand_in(&stage, step, &format!("echo \"{step} $1\" >>journal; sleep 0.1"));
    }
    let deploy = |release: &str| {
        let mut deploy = shell(&stage);
        deploy.args([DEPLOY, release]).stdout(Stdio::null()).stderr(Stdio::piped());
        deploy.spawn().unwrap()
    };
    let deployments = ["1.0", "1.1", "1.2"].map(deploy);
    for deployment in deployments {
        let (code, complaint) = end_of(deployment);
        assert_eq!(code, 0, "{complaint}");
    }
    let journal = stage.journal();
    assert_eq!(journal.len(), 9);
    for steps in journal.chunks(3) {
        let release = steps[0].strip_prefix("fetch ").unwrap();
        assert_eq!(steps[1..], [format!("migrate {release}"), format!("switch-to {release}")]);
    }
    // One that fails says so.
    stand_in(&stage, "migrate", "exit 9");
    assert_eq!(end_of(deploy("1.3")).0, 9);
}

/// A shell that finds pglock and the test's own programs.
fn shell(stage: &Stage) -> Command {
    let pglock = Path::new(env!("CARGO_BIN_EXE_pglock")).parent().unwrap();
    let path = env::var("PATH").unwrap();
    let mut shell = stage.with_server("sh");
    shell.env("PATH", format!("{}:{}:{path}", stage.file("").display(), pglock.display()));
    shell
}

/// A program that takes the place of one that an example speaks of.
fn stand_in(stage: &Stage, name: &str, script: &str) {
    let file = stage.file(name);
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}
