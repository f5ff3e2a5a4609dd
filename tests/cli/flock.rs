//! Where flock(1) has an option or an exit code, `pglock` has the same: each line is run under both.

use std::process::Command;

use crate::stage::{Holder, Stage, code_of, text};

/// Who else has the lock meanwhile.
#[derive(Clone, Copy, Debug)]
enum Other {
    Nobody,
    Reader,
    Writer,
}
use Other::{Nobody, Reader, Writer};

/// Somebody else, options before the key, what comes after it, and what both print and exit with.
type Line = (Other, &'static [&'static str], &'static [&'static str], &'static str, i32);

const SAME: &[Line] = &[
    // The command's own exit code and output; a signal is 128 and its number.
    (Nobody, &[], &["true"], "", 0),
    (Nobody, &[], &["sh", "-c", "echo out; exit 7"], "out\n", 7),
    (Nobody, &[], &["sh", "-c", "exit 255"], "", 255),
    (Nobody, &[], &["sh", "-c", "kill -TERM $$"], "", 143),
    (Nobody, &[], &["sh", "-c", "kill -KILL $$"], "", 137),
    // Options end at the key: these are the command's.
    (Nobody, &[], &["echo", "-n", "--", "-c", "x"], "-- -c x", 0),
    (Nobody, &[], &["printf", "%s|", "a b", "", "c"], "a b||c|", 0),
    // A line for the shell.
    (Nobody, &[], &["-c", "echo a; echo b | tr b c"], "a\nc\n", 0),
    (Nobody, &[], &["--command", "exit 9"], "", 9),
    (Nobody, &[], &["-c", "kill -HUP $$"], "", 129),
    (Nobody, &[], &["-c"], "", 64),
    (Nobody, &[], &["-c", "echo", "x"], "", 64),
    // Alone and together.
    (Nobody, &["-x"], &["echo", "x"], "x\n", 0),
    (Nobody, &["-e"], &["echo", "x"], "x\n", 0),
    (Nobody, &["--exclusive"], &["echo", "x"], "x\n", 0),
    (Nobody, &["-s"], &["echo", "x"], "x\n", 0),
    (Reader, &["-s", "-n"], &["echo", "x"], "x\n", 0),
    (Reader, &["--shared", "--nonblock"], &["echo", "x"], "x\n", 0),
    (Reader, &["-x", "-n"], &["echo", "x"], "", 1),
    (Reader, &["-n"], &["echo", "x"], "", 1),
    (Writer, &["-s", "-n"], &["echo", "x"], "", 1),
    // Of two that contradict each other, the last counts.
    (Reader, &["-x", "-s", "-n"], &["echo", "x"], "x\n", 0),
    (Reader, &["-s", "-x", "-n"], &["echo", "x"], "", 1),
    (Reader, &["-n", "-s", "-e"], &["echo", "x"], "", 1),
    // Not at any price.
    (Nobody, &["-n"], &["echo", "x"], "x\n", 0),
    (Writer, &["-n"], &["echo", "x"], "", 1),
    (Writer, &["--nb"], &["echo", "x"], "", 1),
    (Writer, &["--nonblock"], &["echo", "x"], "", 1),
    (Writer, &["-w", "0"], &["echo", "x"], "", 1),
    (Writer, &["-w", "0.2"], &["echo", "x"], "", 1),
    (Writer, &["--wait", "0.2"], &["echo", "x"], "", 1),
    (Writer, &["--wait=0.2"], &["echo", "x"], "", 1),
    (Writer, &["--timeout", "0.2"], &["echo", "x"], "", 1),
    (Writer, &["-w", "+2e-1"], &["echo", "x"], "", 1),
    (Nobody, &["-w", "9"], &["echo", "x"], "x\n", 0),
    (Writer, &["-n", "-w", "9"], &["echo", "x"], "", 1),
    // The exit code when giving up.
    (Writer, &["-n", "-E", "5"], &["echo", "x"], "", 5),
    (Writer, &["-nE5"], &["echo", "x"], "", 5),
    (Writer, &["-n", "-E", "0"], &["echo", "x"], "", 0),
    (Writer, &["-w0.2", "--conflict-exit-code", "255"], &["echo", "x"], "", 255),
    (Nobody, &["-E", "5"], &["sh", "-c", "exit 3"], "", 3),
    // What closes the file for flock's command is how it always is here.
    (Nobody, &["-o"], &["echo", "x"], "x\n", 0),
    (Nobody, &["--close"], &["echo", "x"], "x\n", 0),
    // Wrong words.
    (Nobody, &[], &[], "", 64),
    (Nobody, &["-w", "x"], &["true"], "", 64),
    (Nobody, &["-E", "256"], &["true"], "", 64),
    (Nobody, &["-E", "-1"], &["true"], "", 64),
    (Nobody, &["-Z"], &["true"], "", 64),
    (Nobody, &["--nonsense"], &["true"], "", 64),
    (Nobody, &["-c", "true"], &[], "", 64),
];

#[test]
fn the_same_words_do_the_same_under_both() {
    let mut differ = Vec::new();
    for &(other, options, rest, printed, code) in SAME {
        let stage = Stage::new();
        let flock = || (stage.with_server("flock"), "lock-file".to_owned());
        let pglock = || (stage.pglock(), stage.key().to_owned());
        let flock = outcome(other, options, rest, flock);
        let pglock = outcome(other, options, rest, pglock);
        let expected = (printed.to_owned(), code);
        if flock != expected || pglock != expected {
            differ.push(format!(
                "{other:?} {options:?} KEY {rest:?}: flock {flock:?}, pglock {pglock:?}, not {expected:?}"
            ));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// What is printed on standard output, and the exit code.
fn outcome(
    other: Other,
    options: &[&str],
    rest: &[&str],
    program: impl Fn() -> (Command, String),
) -> (String, i32) {
    let hold = |option: &str| {
        let (mut command, key) = program();
        Holder::start(command.args([option, &key]))
    };
    let _other = match other {
        Nobody => None,
        Reader => Some(hold("-s")),
        Writer => Some(hold("-x")),
    };
    let (mut command, key) = program();
    // Without a key, where there is no command either: flock takes a single word for a descriptor.
    let output = command.args(options).arg(key).args(rest).output().unwrap();
    (text(&output.stdout), code_of(&output))
}
