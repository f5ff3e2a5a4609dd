//! `pglock`, the command: flock(1) across machines, on PostgreSQL's advisory locks.
//!
//! ```text
//! pglock [OPTIONS] KEY [--] COMMAND [ARGUMENT...]
//! ```
//!
//! takes the lock, runs the command, releases the lock, and exits with what the command did. It uses the
//! library by its public interface alone.
//!
//! # Where to read on
//!
//! - [`args`] has what can be said on the command line; [`key`] reads what a KEY means, [`server`] where
//!   the server is.
//! - [`run`] is the way from a lock to an exit code, on [`hold`] (what is held) and [`child`] (what runs
//!   meanwhile). [`signals`], [`terminal`] and [`waiting`] serve them.
//! - [`scheme`] has the keys of other programs.
//! - [`lead`] runs a command for as long as this machine leads.
//! - [`keeper`] is a process of its own that ends the command if this one cannot; [`succession`] says when another
//!   one takes its place.
//! - [`ls`], [`who`], [`kill`] and [`doctor`] look at the server; [`locks`] and [`output`] serve them.
//! - [`exit`] has the exit codes.

#[cfg(not(unix))]
compile_error!("the command pglock needs a Unix system: build without the feature `cli`");

mod args;
mod child;
mod doctor;
mod exit;
mod generate;
mod hold;
mod keeper;
mod key;
mod kill;
mod lead;
mod locks;
mod ls;
mod output;
mod run;
mod scheme;
mod server;
mod signals;
mod succession;
mod terminal;
mod waiting;
mod who;

use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::process::ExitCode;

use args::{Cli, Command};
use exit::Failure;

fn main() -> ExitCode {
    if let Some(keeper) = keeper::Keeper::called() {
        return keeper.keep();
    }
    match args::parse() {
        Ok(cli) => conclude(perform(&cli)),
        Err(usage) => usage,
    }
}

fn perform(cli: &Cli) -> Result<u8, Failure> {
    let server = &cli.server;
    in_runtime(match &cli.command {
        None => Box::pin(run::run(&cli.run, server)),
        Some(Command::Run(arguments)) => Box::pin(run::run(arguments, server)),
        Some(Command::Lead(arguments)) => Box::pin(lead::lead(arguments, server)),
        Some(Command::Ls(arguments)) => Box::pin(ls::ls(arguments, server)),
        Some(Command::Who(arguments)) => Box::pin(who::who(arguments, server)),
        Some(Command::Kill(arguments)) => Box::pin(kill::kill(arguments, server)),
        Some(Command::Doctor(arguments)) => Box::pin(doctor::doctor(arguments, server)),
        Some(Command::Key(arguments)) => return scheme::key(arguments),
        Some(Command::Completions { shell }) => return generate::completions(*shell),
        Some(Command::Man { directory }) => return generate::manual(directory.as_deref()),
    })
}

/// One thread does it all: it waits, most of the time. What goes on in others ends with this process.
///
/// The work's type is not to be known: the runtime would be there once more for each.
fn in_runtime(
    work: Pin<Box<dyn Future<Output = Result<u8, Failure>> + '_>>,
) -> Result<u8, Failure> {
    let of_system = |error| Failure::of_system("cannot start a runtime", &error);
    has_descriptors().map_err(of_system)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(of_system)?;
    let result = runtime.block_on(work);
    // The resolver may be at it still, on a thread that nobody can end.
    runtime.shutdown_background();
    result
}

/// Whether this process may open as many files as a runtime does: it panics where the two for its signals are
/// too many.
fn has_descriptors() -> io::Result<()> {
    let _pairs = [UnixStream::pair()?, UnixStream::pair()?, UnixStream::pair()?];
    Ok(())
}

fn conclude(result: Result<u8, Failure>) -> ExitCode {
    match result {
        Ok(code) => code.into(),
        Err(failure) => failure.report(),
    }
}
