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
use pglock::{Config, Error, ErrorKind};
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
        signal = signals.any() => return Ok(interrupted(signal)),
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
        signal = signals.any() => return Ok(Some(interrupted(signal))),
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
            signal = signals.any() => Ok(Some(interrupted(signal))),
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
    let started = tokio::select! {
        started = start(&args.care, key, command, &mut claim) => started,
        signal = signals.any() => Err(NotStarted::Interrupted(signal)),
    };
    let end = match started {
        Ok(child) => child.attend(&mut claim, signals, &args.care).await,
        Err(NotStarted::Interrupted(signal)) => {
            claim.abandon().await;
            return Ok(interrupted(signal));
        }
        Err(NotStarted::Lost(error)) => Ok(End::Lost(error)),
        Err(NotStarted::Failed(failure)) => Err(failure),
    };
    match end {
        Ok(End::Exited(code)) => give_back(args, key, claim, signals, code).await,
        Ok(End::Lost(error)) => Ok(lost(key, &error, &args.care)),
        Ok(End::Frozen) => Ok(frozen(key, &args.care)),
        Err(failure) => {
            claim.abandon().await;
            Err(failure)
        }
    }
}

/// Gives the lock back when the command has done its work. What happens to the lock now is no matter of the
/// command's, unless it was lost before.
async fn give_back(
    args: &RunArgs,
    key: &NamedKey,
    claim: Claim,
    signals: &mut Signals,
    code: u8,
) -> Result<u8, Failure> {
    let released = tokio::select! {
        released = claim.release() => released,
        // The lock ends with this process.
        _ = signals.any() => return Ok(code),
    };
    match released {
        Ok(()) => Ok(code),
        // The server is silent, and so it has not said that it was lost.
        Err(error) if error.is_lost() && error.kind() != ErrorKind::Timeout => {
            Ok(lost(key, &error, &args.care))
        }
        Err(error) => {
            say(error);
            Ok(code)
        }
    }
}

/// Why a command does not run though the lock was acquired.
pub(crate) enum NotStarted {
    Interrupted(Signal),
    Lost(Error),
    Failed(Failure),
}

/// Starts the command under the lock. Dropped before it completes, this future has started nothing, or has
/// killed what could not be looked after.
pub(crate) async fn start(
    care: &CareArgs,
    key: &NamedKey,
    command: &[OsString],
    claim: &mut Claim,
) -> Result<Child, NotStarted> {
    let mut fence = None;
    if care.fence {
        fence = claim.fence().await.map_err(|error| {
            if error.is_lost() { NotStarted::Lost(error) } else { NotStarted::Failed(error.into()) }
        })?;
    }
    if care.verbose {
        let program = command.first().map(|program| program.to_string_lossy());
        say(format_args!("{key}: running {}", program.unwrap_or_default()));
    }
    let variables = [
        ("PGLOCK_HELD", Some("1".to_owned())),
        ("PGLOCK_KEY", Some(key.number())),
        ("PGLOCK_NAME", key.name().map(str::to_owned)),
        ("PGLOCK_SLOT", claim.slot().map(|slot| slot.to_string())),
        ("PGLOCK_FENCE", fence.map(|fence| fence.to_string())),
    ];
    Child::start(command, &variables, care.lease).await.map_err(NotStarted::Failed)
}

/// Says that the lock was lost, and why.
pub(crate) fn lost(key: &NamedKey, error: &Error, care: &CareArgs) -> u8 {
    say(format_args!("{key}: the lock was lost: {error}"));
    care.lost_exit_code
}

/// Says that the keeper had to end the command.
pub(crate) fn frozen(key: &NamedKey, care: &CareArgs) -> u8 {
    say(format_args!(
        "{key}: pglock was stopped for so long that the lease may have ended; the command was ended"
    ));
    care.lost_exit_code
}

pub(crate) fn interrupted(signal: Signal) -> u8 {
    exit_code(number(signal))
}
