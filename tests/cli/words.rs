//! What it says: help, mistakes, servers that are not there, completions and manual pages.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use crate::stage::{Stage, code_of, text};

fn pglock(arguments: &[&str]) -> Output {
    Stage::new().pglock().args(arguments).output().unwrap()
}

#[test]
fn a_mistake_is_told_with_what_to_do() {
    for (arguments, complaint) in [
        (&["k"][..], "there is no command after the KEY, as in: pglock nightly-report ./report.sh"),
        (&["-c", "true", "k"], "-c comes after the KEY"),
        (&["", "true"], "the KEY is empty"),
        (&["9223372036854775808", "true"], "if it is meant as a name, say --key-as name"),
        (&["--key-as", "pair", "7", "true"], "\"7\" is no pair"),
        (&["--permits", "0", "k", "true"], "--permits"),
        (&["--permits", "2", "-s", "k", "true"], "--permits"),
        (&["--lease", "0.5", "k", "true"], "from 1 to 86400 seconds"),
        (&["lead", "--lease", "1e9", "k", "true"], "from 1 to 86400 seconds"),
        (&["-n", "ls"], "there is no command after the KEY"),
        (&["--db", "postgresql://h/?sslmood=x", "k", "true"], "--db: unknown parameter `sslmood`"),
    ] {
        let output = pglock(arguments);
        assert_eq!(code_of(&output), 64, "{arguments:?}");
        assert!(text(&output.stderr).contains(complaint), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn a_subcommands_name_can_be_a_key() {
    assert_eq!(text(&pglock(&["run", "run", "echo", "x"]).stdout), "x\n");
    // Nor is it one after an option of the plain form.
    for name in ["key", "ls", "run"] {
        let output = pglock(&["-w", "60", name, "--", "sh", "-c", "echo $PGLOCK_NAME"]);
        assert_eq!(text(&output.stdout), format!("{name}\n"));
    }
    let stage = Stage::new();
    let output = stage.pglock().args(["--db", &stage.url(), "key", "x"]).output().unwrap();
    assert_eq!(text(&output.stdout), format!("{}\n", pglock::Key::from_name("x")));
}

#[test]
fn the_key_of_a_name_is_the_one_that_the_command_runs_under() {
    for arguments in
        [&["nightly-report"][..], &["7, -2"], &["-7,2"], &[" 7"], &["--scheme", "go-pglock", "42"]]
    {
        let printed = pglock(&[&["key"], arguments].concat());
        let number = text(&printed.stdout).trim().to_owned();
        assert_ne!(number, "", "{}", text(&printed.stderr));
        let script = "echo $PGLOCK_KEY";
        let output = match arguments {
            [name] => pglock(&[name, "sh", "-c", script]),
            _ => pglock(&["--key-as", "name", "42", "sh", "-c", script]),
        };
        assert_eq!(text(&output.stdout).trim(), number);
        let again = pglock(&["key", &number]);
        assert_eq!(text(&again.stdout).trim(), number);
    }
}

#[test]
fn a_pair_that_begins_like_an_option_is_a_key() {
    let line = ["sh", "-c", "echo $PGLOCK_KEY $*", "sh", "-3,4", "--", "-Z"];
    for before in [&[][..], &["-n"], &["-w", "-0"], &["run"], &["run", "-n"], &["lead"], &["--"]] {
        let output = pglock(&[before, &["-1,2"], &line].concat());
        let printed = (code_of(&output), text(&output.stdout), text(&output.stderr));
        assert_eq!(printed, (0, String::from("-1,2 -3,4 -- -Z\n"), String::new()), "{before:?}");
    }
    // What is no option is none with such a KEY either.
    for wrong in [&["-Z", "-1,2", "true"][..], &["-w", "-1,2", "-Z", "true"], &["-1,x", "true"]] {
        let output = pglock(wrong);
        assert_eq!(code_of(&output), 64, "{wrong:?}");
    }
    let complaint = text(&pglock(&["-Z", "-1,2", "true"]).stderr);
    assert!(complaint.contains("'-Z'"), "{complaint}");
    let complaint = text(&pglock(&["-1,2147483648", "true"]).stderr);
    assert!(complaint.contains("is a number out of range"), "{complaint}");
}

#[test]
fn servers_that_do_not_serve_have_exit_codes_of_their_own() {
    let stage = Stage::new();
    let wrong_password = stage.url().replacen('@', "wrong@", 1);
    let code = |url: &str| {
        let output = stage.pglock().args(["--db", url, "k", "true"]).output().unwrap();
        assert!(text(&output.stderr).starts_with("pglock: "), "{}", text(&output.stderr));
        code_of(&output)
    };
    // Port 1 of this machine serves nobody.
    assert_eq!(code("postgresql://nobody@127.0.0.1:1/x"), 69);
    assert_eq!(code(&wrong_password), 77);
    let output = stage.pglock().env("DATABASE_URL", "nonsense").args(["k", "true"]).output();
    assert_eq!(code_of(&output.unwrap()), 78);
    let mut pglock = stage.pglock();
    let output = pglock.env_remove("DATABASE_URL").env("PGPORT", "x").args(["k", "true"]).output();
    assert_eq!(code_of(&output.unwrap()), 78);
}

#[test]
fn how_long_connecting_may_take_is_said_apart_from_how_long_the_wait_may() {
    let stage = Stage::new();
    // Whoever connects is not answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgresql://nobody@127.0.0.1:{port}/x");
    for patience in [&["-n"][..], &["-w", "0.01"], &["-w", "60"], &["-n", "--permits", "2"]] {
        let mut pglock = stage.pglock();
        pglock.env("PGCONNECT_TIMEOUT", "1").args(["--db", &url]).args(patience);
        let output = pglock.args(["k", "true"]).output().unwrap();
        assert_eq!(code_of(&output), 69, "{patience:?}");
        assert!(text(&output.stderr).contains("not connected within 1s"), "{output:?}");
    }
}

#[test]
fn the_option_counts_before_the_url_and_that_before_the_variables() {
    let stage = Stage::new();
    let nowhere = "postgresql://nobody@127.0.0.1:1/x";
    let run = |command: &mut Command| code_of(&command.args(["k", "true"]).output().unwrap());
    let mut pglock = stage.pglock();
    assert_eq!(run(pglock.env("DATABASE_URL", nowhere).args(["--db", &stage.url()])), 0);
    assert_eq!(run(stage.pglock().env("PGHOST", "127.0.0.1").env("PGPORT", "1")), 0);
    assert_eq!(run(stage.pglock().env("DATABASE_URL", nowhere)), 69);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for arguments in [&["--help"][..], &["-h"], &["--version"], &["run", "--help"]] {
        let output = pglock(arguments);
        assert_eq!((code_of(&output), text(&output.stderr)), (0, String::new()));
        assert!(text(&output.stdout).contains("pglock"));
    }
    for code in ["64", "69", "71", "75", "77", "78", "126", "127"] {
        assert!(text(&pglock(&["--help"]).stdout).contains(&format!("\n  {code}")), "{code}");
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&pglock(&["completions", shell]).stdout).contains("conflict-exit-code"));
    }
    let script = text(&pglock(&["completions", "bash"]).stdout);
    let checked = Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    assert!(text(&pglock(&["man"]).stdout).contains(".TH pglock 1"));
    let stage = Stage::new();
    let pages = stage.file("pages");
    let output = stage.pglock().arg("man").arg(&pages).output().unwrap();
    assert_eq!(code_of(&output), 0, "{}", text(&output.stderr));
    for page in ["pglock.1", "pglock-run.1", "pglock-completions.1"] {
        assert!(fs::read_to_string(pages.join(page)).unwrap().contains(".TH"), "{page}");
    }
}
