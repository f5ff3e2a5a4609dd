//! On a terminal: the keys that interrupt and stop, who may read, and the line that says who keeps one
//! waiting. The terminal is that of script(1).

use std::fs::{self, File};
use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};

use pglock_test_cluster::{signal, wait_until};

use crate::stage::{PATIENCE, Stage, end_of};

/// The key that interrupts, and the one that stops.
const CTRL_C: &[u8] = b"\x03";
const CTRL_Z: &[u8] = b"\x1a";

/// A shell line that runs on a terminal, and the keyboard.
struct Screen<'a> {
    stage: &'a Stage,
    script: Child,
    keyboard: ChildStdin,
}

impl<'a> Screen<'a> {
    fn run(stage: &'a Stage, line: &str) -> Self {
        let screen = File::create(stage.file("screen")).unwrap();
        let mut script = stage
            .with_server("script")
            .env("SHELL", "/bin/sh")
            .env("PGLOCK", env!("CARGO_BIN_EXE_pglock"))
            .env("KEY", stage.key())
            .args(["--quiet", "--flush", "--return", "--command", line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(screen)
            .spawn()
            .unwrap();
        let keyboard = script.stdin.take().unwrap();
        Self { stage, script, keyboard }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn shows(&self, text: &str) {
        wait_until(&format!("the screen shows {text:?}"), PATIENCE, || {
            fs::read_to_string(self.stage.file("screen")).unwrap().contains(text)
        });
    }

    fn exit_code(self) -> i32 {
        end_of(self.script).0
    }
}

/// The key is pressed once the terminal is the command's: before, it would reach the script's shell as well.
#[test]
fn the_interrupting_key_reaches_the_command_once() {
    let stage = Stage::new();
    let mut screen = Screen::run(
        &stage,
        "$PGLOCK $KEY -c 'trap \"echo INT >>journal; got=1\" INT; \
         until set -- $(sed \"s/.*) //\" /proc/$$/stat) && [ $3 = $6 ]; do sleep 0.01; done; \
         echo ready >>journal; until [ \"$got\" ]; do sleep 0.05; done; exit 5'",
    );
    stage.until_journal(&["ready"]);
    screen.press(CTRL_C);
    assert_eq!(screen.exit_code(), 5);
    assert_eq!(stage.journal(), ["ready", "INT"]);
}

#[test]
fn the_interrupting_key_ends_a_wait() {
    let mut stage = Stage::new();
    let holder = stage.work(&[], "a");
    stage.until_journal(&["start a"]);
    let key = stage.key().to_owned();
    let mut screen = Screen::run(&stage, "trap : INT; $PGLOCK $KEY true; echo exit $?");
    screen.shows(&format!("pglock: waiting for \"{key}\" for "));
    screen.shows(" s, held for ");
    screen.shows(" s: process ");
    screen.shows(" holds it exclusively since ");
    screen.press(CTRL_C);
    screen.shows("exit 130");
    assert_eq!(screen.exit_code(), 0);
    stage.until_waiting(0);
    signal(holder.id(), "TERM");
    assert_eq!(end_of(holder).0, 0);
}

#[test]
fn the_command_can_read_from_the_terminal() {
    let stage = Stage::new();
    let mut screen = Screen::run(
        &stage,
        "$PGLOCK $KEY -c 'read line; echo got $line'; read line; echo then $line",
    );
    screen.press(b"one\n");
    screen.shows("got one");
    // And so can whoever comes after it.
    screen.press(b"two\n");
    screen.shows("then two");
    assert_eq!(screen.exit_code(), 0);
}

#[test]
fn in_a_pipeline_both_can_read_from_the_terminal() {
    let stage = Stage::new();
    let mut screen = Screen::run(
        &stage,
        "$PGLOCK $KEY -c 'read line; echo got $line' | { read line; echo then $line; cat; read x </dev/tty; echo and $x; }",
    );
    screen.press(b"one\n");
    screen.shows("then got one");
    screen.press(b"two\n");
    screen.shows("and two");
    assert_eq!(screen.exit_code(), 0);
}

#[test]
fn the_stopping_key_stops_both_and_the_shell_resumes_both() {
    let stage = Stage::new();
    // A shell with job control says when a job has stopped.
    let mut screen = Screen::run(
        &stage,
        "set -m; $PGLOCK $KEY -c 'until set -- $(sed \"s/.*) //\" /proc/$$/stat) && [ $3 = $6 ]; do sleep 0.01; done; echo ready >>journal; read line; echo got $line'; echo stopped $?; fg >/dev/null",
    );
    stage.until_journal(&["ready"]);
    screen.press(CTRL_Z);
    screen.shows("stopped 14");
    screen.press(b"one\n");
    screen.shows("got one");
    assert_eq!(screen.exit_code(), 0);
}
