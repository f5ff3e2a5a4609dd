//! A command under a lock: from connecting to the exit code.
//!
//! ```text
//!   connect ──▶ ask ──▶ wait ──▶ settle ──▶ run ──▶ give back ──▶ the command's exit code
//!      │         │       │          │        │
//!      │         └───┬───┘          └───┬────┘
//!   error          busy               lost
//!   69, 77      -E, or 1      --lost-exit-code, or 75
//! ```
//!
//! Until the command runs, a signal ends it all; from then on, only the command's end does.

use std::ffi::OsString;
use std::time::Instant;

use nix::sys::signal::Signal;
use pglock::{Config, Error};
use tokio::time::sleep;

use crate::args::{CareArgs, RunArgs};
use crate::child::{Child, End};
use crate::exit::{Failure, say};
use crate::hold::{Asked, Claim};
use crate::key::NamedKey;
use crate::server::Server;
use crate::signals::{Signals, exit_code, number};
use crate::waiting;

/// Gets the lock, runs the command, and gives the lock back.
pub(crate) async fn run(args: &RunArgs, server: &Server) -> Result<u8, Failure> {
    let command = args.command()?;
    let key = args.key()?;
    let mut config = server.config(&format!("pglock {}", key.text))?;
    if let Some(lease) = args.care.lease {
        config.lease(lease);
    }
    let mut signals = Signals::listen()
        .map_err(|error| Failure::of_system("cannot listen to signals", &error))?;
    let connecting = connect(args, &key, &config);
    let mut claim = tokio::select! {
        claim = connecting => claim?,
        signal = signals.end() => return Ok(interrupted(signal)),
    };
    match claim_it(args, &key, &config, &mut claim, &mut signals).await {
        Ok(None) => under_lock(args, &key, &command, claim, &mut signals).await,
        Ok(Some(code)) => {
            claim.abandon().await;
            Ok(code)
        }
        Err(failure) => {
            claim.abandon().await;
            Err(failure)
        }
    }
}

async fn connect(args: &RunArgs, key: &NamedKey, config: &Config) -> Result<Claim, Error> {
    match args.permits {
        Some(permits) => Ok(Claim::permit(config.clone(), &key.text, permits)),
        None => Claim::key(config, key.key, args.mode()).await,
    }
}

/// Gets the lock. If not, says with which code to exit.
async fn claim_it(
    args: &RunArgs,
    key: &NamedKey,
    config: &Config,
    claim: &mut Claim,
    signals: &mut Signals,
) -> Result<Option<u8>, Failure> {
    let began = Instant::now();
    let asked = tokio::select! {
        asked = claim.acquire(args.patience()) => asked?,
        signal = signals.end() => return Ok(Some(interrupted(signal))),
        never = waiting::show(key, args.permits, config) => match never {},
    };
    if args.care.verbose {
        let outcome = if asked == Asked::Busy { "not acquired" } else { "acquired" };
        let time = began.elapsed();
        say(format_args!(
            "{key}: {outcome} after {}.{:03} s",
            time.as_secs(),
            time.subsec_millis()
        ));
    }
    match asked {
        Asked::Busy => Ok(Some(args.conflict_exit_code)),
        Asked::Free => Ok(None),
        Asked::Waited => tokio::select! {
            () = sleep(args.care.settle) => Ok(None),
            error = claim.lost() => Ok(Some(lost(key, &error, &args.care))),
            signal = signals.end() => Ok(Some(interrupted(signal))),
        },
    }
}

/// Runs the command, now that the lock is held.
async fn under_lock(
    args: &RunArgs,
    key: &NamedKey,
    command: &[OsString],
    mut claim: Claim,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let end = match start(&args.care, key, command, &mut claim).await {
        Ok(child) => child.attend(&mut claim, signals, &args.care).await,
        Err(failure) => Err(failure),
    };
    match end {
        Ok(End::Exited(code)) => match claim.release().await {
            Ok(()) => Ok(code),
            Err(error) if error.is_lost() => Ok(lost(key, &error, &args.care)),
            // The command has done its work, and the lock ends with this process.
            Err(error) => {
                say(error);
                Ok(code)
            }
        },
        Ok(End::Lost(error)) => Ok(lost(key, &error, &args.care)),
        Ok(End::Frozen) => {
            say(format_args!(
                "{key}: pglock was stopped for so long that the lease may have ended; the command was ended"
            ));
            Ok(args.care.lost_exit_code)
        }
        Err(failure) => {
            claim.abandon().await;
            Err(failure)
        }
    }
}

pub(crate) async fn start(
    care: &CareArgs,
    key: &NamedKey,
    command: &[OsString],
    claim: &mut Claim,
) -> Result<Child, Failure> {
    let mut variables = vec![("PGLOCK_HELD", "1".to_owned()), ("PGLOCK_KEY", key.number())];
    variables.extend(key.name().map(|name| ("PGLOCK_NAME", name.to_owned())));
    variables.extend(claim.slot().map(|slot| ("PGLOCK_SLOT", slot.to_string())));
    if care.fence {
        variables.extend(claim.fence().await?.map(|fence| ("PGLOCK_FENCE", fence.to_string())));
    }
    if care.verbose {
        let program = command.first().map(|program| program.to_string_lossy());
        say(format_args!("{key}: running {}", program.unwrap_or_default()));
    }
    Child::start(command, variables, care.lease)
}

/// Says that the lock was lost, and why.
pub(crate) fn lost(key: &NamedKey, error: &Error, care: &CareArgs) -> u8 {
    say(format_args!("{key}: the lock was lost: {error}"));
    care.lost_exit_code
}

pub(crate) fn interrupted(signal: Signal) -> u8 {
    exit_code(number(signal))
}
