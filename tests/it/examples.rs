//! Every example runs as it stands, beside all the others, and prints what it is meant to.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use pglock_test_cluster::{Cluster, role};
use tokio::process::Command;
use tokio::time::timeout;

/// Longest that an example may take, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn each_prints_what_it_is_meant_to() {
    let url = Cluster::default_cluster().url_for(&role::SCRAM);
    // All at a time: none may be in another's way.
    let runs = EXPECTED.map(|(name, expected)| {
        (name, expected, tokio::spawn(run(name, binary(name), url.clone())))
    });
    for (name, expected, run) in runs {
        let output = run.await.unwrap();
        let [printed, complained] =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        assert_eq!(complained, "", "{name} complains");
        assert_eq!(printed, expected, "{name} prints this");
        assert!(output.status.success(), "{name}: {}", output.status);
    }
}

#[test]
fn none_is_left_out() {
    let mut names: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // A folder has those of the command, which tests/cli runs.
        .filter(|path| path.is_file())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, EXPECTED.map(|(name, _)| name));
}

#[test]
fn the_readme_lists_each() {
    let readme = include_str!("../../README.md");
    for (name, _) in EXPECTED {
        assert!(readme.contains(&format!("| [{name}](examples/{name}.rs) |")), "{name}");
    }
}

async fn run(name: &str, binary: PathBuf, url: String) -> Output {
    let run = Command::new(binary)
        // No PG* variable may send it elsewhere.
        .env_clear()
        .env("DATABASE_URL", url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    timeout(PATIENCE, run)
        .await
        .unwrap_or_else(|_| panic!("{name} has not ended after {PATIENCE:?}"))
        .unwrap_or_else(|error| panic!("{name} did not start: {error}"))
}

/// Cargo puts examples beside the folder of the test binaries, and builds them before it runs a package's
/// tests, unless it is told to build less: then an old one may be there, or none.
fn binary(name: &str) -> PathBuf {
    let this = env::current_exe().unwrap();
    let profile = this.ancestors().nth(2).expect("the folder of the build profile");
    let binary = profile.join("examples").join(name).with_extension(env::consts::EXE_EXTENSION);
    let source = folder().join(name).with_extension("rs");
    let written = |file: &Path| fs::metadata(file).and_then(|file| file.modified()).ok();
    assert!(
        written(&binary) >= written(&source),
        "{} is missing or older than its source: run `cargo build --examples`, for the same profile",
        binary.display()
    );
    binary
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// What each example prints.
const EXPECTED: [(&str, &str); 19] = [
    (
        "basic",
        "\
lock: level 1
lock again: level 2
unlock: level 1
another session tries: false
unlock: level 0
another session tries: true
unlock: exclusive lock on key 4165636264736693298: not held by this session, so there is nothing to release
the other session closes; lock tries: true
",
    ),
    (
        "blocking",
        "\
the first one is inside
the second one waits: 1 is inside
the first one leaves
the second one is inside
",
    ),
    (
        "holders",
        "\
holders: 0, waiting: 0
holders: 1, waiting: 0
  example-nightly (exclusive)
holders: 1, waiting: 1
  example-nightly (exclusive)
holders: 1, waiting: 0
  example-report (exclusive)
",
    ),
    (
        "leader_election",
        "\
Ada leads
Ben campaigns
Ada resigns
Ben leads
Cleo campaigns
Ben resigns
Cleo leads
Cleo resigns
",
    ),
    (
        "manager",
        "\
200 tasks posted 200 to 10 accounts
a transfer has both of its accounts
another process gets one of them: false
and now that the transfer is done with it: true
",
    ),
    (
        "manager_leader_election",
        "\
at first: nobody leads
Ada is there: Ada leads
Ada is gone: Ben leads
the token has risen: true
Cleo leads: true
Cleo did what was to be done once, and resigned: true
",
    ),
    (
        "manager_resource_pool",
        "\
Ann, Bert and Carl have the slots {0, 1, 2}
Dora gets one without waiting: false
Bert works on and leaves
Dora has waited and has Bert's slot: true
40 tasks of two processes used them, 3 at most at a time: true
",
    ),
    (
        "manager_scheduled_job",
        "\
tick 1: 1 of 3 instances ran example-manager-clean-up
tick 1: 1 of 3 instances ran example-manager-report
tick 2: 1 of 3 instances ran example-manager-clean-up
tick 2: 1 of 3 instances ran example-manager-report
connections of each: 1
",
    ),
    (
        "manager_task",
        "\
30 tasks were done, 30 of them once
10 workers had their locks on 1 connection(s)
",
    ),
    (
        "migration",
        "\
an instance migrates from version 1 to 2
an instance finds version 2
an instance finds version 2
an instance finds version 2
4 instances serve version 2
",
    ),
    (
        "quickstart",
        "\
both are connected           held by nobody
Alice tries: true            held by Alice
Bob tries: false             held by Alice
Bob waits for 100 ms: false  held by Alice
Bob waits for as long as it takes, while Alice works
Alice is done and unlocks
Bob has it
the lock has changed hands   held by Bob
Alice tries: false           held by Bob
Bob closes his session; Alice tries: true
",
    ),
    (
        "reader_writer",
        "\
a reader tries: true
another reader tries: true
a writer tries: false
the writer waits, and newcomers are refused
the writer writes
a reader tries: false
the writer is done
a reader tries: true
",
    ),
    (
        "resource_pool",
        "\
Ann takes slot 0
Bert takes slot 1
Carl takes slot 2
Dora finds every slot taken
Bert leaves
Dora takes slot 1
Ann leaves
Carl leaves
Dora leaves
",
    ),
    (
        "scheduled_job",
        "\
tick 1: the job runs
tick 1: 1 of 3 instances ran it
tick 2: the job runs
tick 2: 1 of 3 instances ran it
tick 3: the job runs
tick 3: 1 of 3 instances ran it
",
    ),
    (
        "task",
        "\
example-invoice-1: key 1076166711375539733, done 1 time(s)
example-invoice-2: key 1076163412840655100, done 1 time(s)
example-report: key -1120824567518307450, done 1 time(s)
日本: key 1305338235904577169, done 1 time(s)
",
    ),
    (
        "timeout",
        "\
lock_timeout: false
timeout: not in time
the holder unlocks
lock_timeout: true
",
    ),
    (
        "try_lock",
        "\
first: begins to refresh the cache
second: somebody else is at it
first: is done
second: refreshes the cache
",
    ),
    (
        "wait",
        "\
the holder has the lock
the program shuts down
the waiter gave up
the holder is done
the waiter has the lock
",
    ),
    (
        "workers",
        "\
8 workers took 5 turns each
turns counted: 40
most workers inside at a time: 1
",
    ),
];
