//! Runs a command with `DATABASE_URL`, and the `PG*` variables of the same meaning, set to a server that is
//! started for it.
//!
//! `with-cluster COMMAND [ARGUMENT...]` ends with the command's exit status, passes signals on to it,
//! and leaves nothing running. `with-cluster --binaries` prints where PostgreSQL's binaries are.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};

use pglock_test_cluster::{DATABASE, Settings, find_binaries, role, signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: with-cluster COMMAND [ARGUMENT...], or with-cluster --binaries");
        return ExitCode::from(2);
    };
    let binaries = match find_binaries() {
        Ok(folder) => folder,
        Err(problem) => {
            eprintln!("with-cluster: {problem}");
            return ExitCode::FAILURE;
        }
    };
    if program == "--binaries" {
        println!("{}", binaries.display());
        return ExitCode::SUCCESS;
    }
    // A signal while the server starts is kept for the command.
    let signals = Signals::watch();
    let cluster = Settings::new().start();
    let child = Command::new(&program)
        .args(arguments)
        .env("DATABASE_URL", cluster.url_for(&role::SCRAM))
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", cluster.port().to_string())
        .env("PGUSER", role::SCRAM.name)
        .env("PGPASSWORD", role::SCRAM.password.unwrap_or_default())
        .env("PGDATABASE", DATABASE)
        .spawn();
    match child {
        Ok(child) => signals.pass_on_until_end(child).await,
        Err(error) => {
            eprintln!("with-cluster: {} did not start: {error}", Path::new(&program).display());
            ExitCode::FAILURE
        }
    }
}

/// The signals that ask a program to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn watch() -> Self {
        let watch = |kind| tokio::signal::unix::signal(kind).expect("a signal handler");
        Self {
            interrupt: watch(SignalKind::interrupt()),
            terminate: watch(SignalKind::terminate()),
            hang_up: watch(SignalKind::hangup()),
        }
    }

    async fn pass_on_until_end(mut self, mut child: Child) -> ExitCode {
        loop {
            let name = tokio::select! {
                status = child.wait() => return exit_code(status.expect("the command's status")),
                _ = self.interrupt.recv() => "INT",
                _ = self.terminate.recv() => "TERM",
                _ = self.hang_up.recv() => "HUP",
            };
            if let Some(id) = child.id() {
                signal(id, name);
            }
        }
    }
}

/// As a shell has it: 128 and the signal's number, for a command that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
