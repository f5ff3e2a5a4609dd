//! What the command has around it: its streams, its environment, signals, and an end.

use std::env;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;

use pglock_test_cluster::{signal, wait_until};

use crate::stage::{PATIENCE, Stage, WORK, code_of, end_of, keeper_of, runs, text};

#[test]
fn ten_megabytes_go_through_it() {
    const BYTES: usize = 10_000_000;
    let stage = Stage::new();
    let mut pglock = stage
        .pglock()
        .args([stage.key(), "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = pglock.stdin.take().unwrap();
    let sent: Vec<u8> = (0..BYTES).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let expected = sent.clone();
    let writer = thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut received = Vec::new();
    pglock.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == expected, "{} bytes of {BYTES} came back, or others", received.len());
    assert_eq!(end_of(pglock).0, 0);
}

#[test]
fn it_knows_what_it_runs_under() {
    let stage = Stage::new();
    let print = "env | grep ^PGLOCK_ | sort";
    let of = |options: &[&str], key: &str| {
        let output = stage.pglock().args(options).args([key, "-c", print]).output().unwrap();
        assert_eq!(text(&output.stderr), "");
        text(&output.stdout)
    };
    let name = stage.key();
    let key = pglock::Key::from_name(name);
    let by_name = format!("PGLOCK_HELD=1\nPGLOCK_KEY={key}\nPGLOCK_NAME={name}\n");
    assert_eq!(of(&[], name), by_name);
    assert_eq!(of(&[], "-7701"), "PGLOCK_HELD=1\nPGLOCK_KEY=-7701\n");
    assert_eq!(of(&[], "77,-2"), "PGLOCK_HELD=1\nPGLOCK_KEY=77,-2\n");
    let number = pglock::Key::from_name("7701");
    assert_eq!(
        of(&["--key-as", "name"], "7701"),
        format!("PGLOCK_HELD=1\nPGLOCK_KEY={number}\nPGLOCK_NAME=7701\n")
    );
    let with_permit = of(&["--permits", "2"], name);
    let slots = [0, 1].map(|slot| format!("{by_name}PGLOCK_SLOT={slot}\n"));
    assert!(slots.contains(&with_permit), "{with_permit}");
    let tokens = [(); 2].map(|()| {
        let fenced = of(&["--fence"], name);
        let token = fenced.strip_prefix("PGLOCK_FENCE=").unwrap().lines().next().unwrap();
        token.to_owned()
    });
    assert!(tokens[0] < tokens[1] && tokens[0].len() == 24, "{tokens:?} do not rise");
}

#[test]
fn it_has_no_socket_and_no_pipe_of_ours() {
    let stage = Stage::new();
    let files = ["/bin/sh", "-c", "ls /proc/$$/fd"];
    // Whoever runs the tests may have left some open.
    let without = stage.with_server(files[0]).args(&files[1..]).output().unwrap();
    let under = stage.pglock().arg(stage.key()).args(files).output().unwrap();
    assert!(text(&under.stdout).starts_with("0\n1\n"));
    assert_eq!(text(&under.stdout), text(&without.stdout));
}

#[test]
fn its_streams_may_be_closed() {
    let stage = Stage::new();
    let line = "exec <&- >&- 2>&-; exit 3";
    let output = stage.pglock().args([stage.key(), "-c", line]).output().unwrap();
    assert_eq!(code_of(&output), 3);
    // Ours too.
    let line = format!("exec {} {} true <&- >&- 2>&-", env!("CARGO_BIN_EXE_pglock"), stage.key());
    assert_eq!(stage.with_server("sh").args(["-c", &line]).status().unwrap().code(), Some(0));
    let pglock = env!("CARGO_BIN_EXE_pglock");
    let line = format!("exec {pglock} {} readlink /proc/self/fd/0 <&-", stage.key());
    let output = stage.with_server("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(text(&output.stdout), "/dev/null\n");
}

#[test]
fn signals_are_passed_on() {
    let stage = Stage::new();
    for name in ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"] {
        let line = format!(
            "trap 'echo {name} >>journal; exit 4' {name}; echo ready >>journal; \
             while :; do sleep 60 & wait $!; done"
        );
        let pglock = stage.pglock().args([stage.key(), "-c", &line]).spawn().unwrap();
        stage.until_journal(&["ready"]);
        signal(pglock.id(), name);
        assert_eq!(end_of(pglock).0, 4, "{name}");
        assert_eq!(stage.journal(), ["ready", name]);
        fs::remove_file(stage.file("journal")).unwrap();
    }
}

#[test]
fn a_signal_ends_all_that_a_shell_started() {
    let stage = Stage::new();
    let line = "sh -c 'echo $$ >>journal; exec sleep 1000'; :";
    let pglock = stage.pglock().args([stage.key(), "-c", line]).spawn().unwrap();
    let grandchild = only_number(&stage);
    signal(pglock.id(), "TERM");
    assert_eq!(end_of(pglock).0, 143);
    wait_until("the shell's child has ended", PATIENCE, || !runs(grandchild));
}

#[test]
fn what_is_ignored_stays_ignored() {
    let stage = Stage::new();
    let line = format!(
        "trap '' HUP; exec {} {} sh -c 'echo ready >>journal; until [ -e go ]; do sleep 0.05; done'",
        env!("CARGO_BIN_EXE_pglock"),
        stage.key()
    );
    let pglock = stage.with_server("sh").args(["-c", &line]).spawn().unwrap();
    stage.until_journal(&["ready"]);
    signal(pglock.id(), "HUP");
    fs::write(stage.file("go"), "").unwrap();
    assert_eq!(end_of(pglock).0, 0);
}

#[test]
fn a_signal_ends_the_wait() {
    let mut stage = Stage::new();
    let holder = stage.work(&[], "a");
    stage.until_journal(&["start a"]);
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129), ("QUIT", 131), ("USR1", 138)] {
        let waiter = stage.work(&[], "b");
        stage.until_waiting(1);
        signal(waiter.id(), name);
        assert_eq!(end_of(waiter), (code, String::new()), "{name}");
        stage.until_waiting(0);
    }
    signal(holder.id(), "TERM");
    assert_eq!(end_of(holder).0, 0);
    assert_eq!(stage.journal(), ["start a", "stop a"]);
}

#[test]
fn the_lock_is_free_when_it_returns() {
    let mut stage = Stage::new();
    for _ in 0..20 {
        assert!(stage.pglock().args([stage.key(), "true"]).status().unwrap().success());
        assert!(!stage.is_locked());
    }
}

#[test]
fn a_command_does_not_outlive_pglock_that_was_killed() {
    let stage = Stage::new();
    // It does not listen to anything, and neither does its child.
    let line = "trap '' TERM INT HUP; sh -c 'echo $$ >>journal; while :; do sleep 0.1; done'; :";
    let mut pglock = stage.pglock().args([stage.key(), "-c", line]).spawn().unwrap();
    let grandchild = only_number(&stage);
    let keeper = keeper_of(pglock.id());
    pglock.kill().unwrap();
    pglock.wait().unwrap();
    wait_until("the command has ended", PATIENCE, || !runs(grandchild));
    wait_until("the keeper has ended", PATIENCE, || !runs(keeper));
    // The lock is free for the next, whose command runs alone.
    assert_eq!(
        code_of(&stage.pglock().args(["-w", "60", stage.key(), "true"]).output().unwrap()),
        0
    );
}

#[test]
fn the_keeper_knows_no_secret_and_ends_with_the_command() {
    let stage = Stage::new();
    let pglock = stage.work(&[], "a");
    stage.until_journal(&["start a"]);
    let keeper = keeper_of(pglock.id());
    let of_keeper = |what: &str| fs::read(format!("/proc/{keeper}/{what}")).unwrap();
    let words = text(&of_keeper("cmdline"));
    assert_eq!(words.split('\0').collect::<Vec<_>>(), ["lock-keeper", "--keeper", "0", ""]);
    wait_until("it has a name of its own", PATIENCE, || of_keeper("comm") == b"lock-keeper\n");
    assert_eq!(text(&of_keeper("environ")), "");
    signal(pglock.id(), "TERM");
    assert_eq!(end_of(pglock).0, 0);
    assert!(!runs(keeper));
}

#[test]
fn what_cannot_run_says_why_and_leaves_no_lock() {
    let mut stage = Stage::new();
    fs::write(stage.file("no-program"), "").unwrap();
    fs::create_dir(stage.file("folder")).unwrap();
    fs::write(stage.file("folder/no-interpreter"), "#!/no/such\n").unwrap();
    let executable = Permissions::from_mode(0o755);
    fs::set_permissions(stage.file("folder/no-interpreter"), executable).unwrap();
    let path = format!("{}:{}", stage.file("folder").display(), env::var("PATH").unwrap());
    for (program, code, complaint) in [
        ("no-such-program", 127, "pglock: no-such-program: command not found\n"),
        (
            "./no-program",
            126,
            "pglock: ./no-program: cannot be executed: Permission denied (os error 13)\n",
        ),
        (
            "folder/no-interpreter",
            127,
            "pglock: folder/no-interpreter: the file is there, but the interpreter that it names is not\n",
        ),
        (
            "no-interpreter",
            127,
            "pglock: no-interpreter: the file is there, but the interpreter that it names is not\n",
        ),
    ] {
        let mut pglock = stage.pglock();
        let output = pglock.env("PATH", &path).args([stage.key(), program]).output().unwrap();
        assert_eq!((code_of(&output), text(&output.stderr).as_str()), (code, complaint));
        assert!(!stage.is_locked());
    }
}

#[test]
fn too_few_files_that_may_be_open_are_no_panic() {
    let mut stage = Stage::new();
    // Three are its streams, and the libraries are loaded by another. More may have been left open.
    let codes: Vec<_> = (4..24)
        .map(|files| {
            let line = format!(
                "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; ulimit -n {files}; exec {} {} true",
                env!("CARGO_BIN_EXE_pglock"),
                stage.key()
            );
            let output = stage.with_server("sh").args(["-c", &line]).output().unwrap();
            let complaint = text(&output.stderr);
            let is_told = complaint.starts_with("pglock: ") && complaint.lines().count() == 1;
            let code = code_of(&output);
            assert!(is_told || code == 0 && complaint.is_empty(), "{files}: {complaint}");
            assert!(!stage.is_locked());
            code
        })
        .collect();
    assert!(codes.starts_with(&[71]) && codes.ends_with(&[0]), "{codes:?}");
    assert!(codes.iter().all(|code| [0, 69, 71].contains(code)), "{codes:?}");
}

#[test]
fn a_bare_command_of_the_shell_works_as_it_does_in_one() {
    let stage = Stage::new();
    let output = stage
        .pglock()
        .env("SHELL", "/bin/no-such-shell")
        .args([stage.key(), "-c", "true"])
        .output()
        .unwrap();
    assert_eq!(code_of(&output), 127);
    // Somebody's work under a name of the journal's, told to end.
    let work = stage.pglock().args([stage.key(), "sh", "-c", WORK, "sh", "journal", "x"]).spawn();
    let work = work.unwrap();
    stage.until_journal(&["start x"]);
    signal(work.id(), "TERM");
    assert_eq!(end_of(work).0, 0);
    assert_eq!(stage.journal(), ["start x", "stop x"]);
}

/// The number that the command wrote to the journal.
fn only_number(stage: &Stage) -> u32 {
    wait_until("the command has begun", PATIENCE, || !stage.journal().is_empty());
    stage.journal()[0].parse().unwrap()
}
