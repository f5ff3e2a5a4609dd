//! The command: started, looked after, and ended.
//!
//! ```text
//!                     ┌──────────────┐  it ends   ┌───────┐
//!   start ───────────▶│   running    ├───────────▶│ ended │ its own exit code
//!                     └──────┬───────┘            └───────┘
//!              lock is lost: │ TERM
//!                     ┌──────▼───────┐  the group is gone    ┌──────┐
//!                     │  terminating ├──────────────────────▶│ lost │ --lost-exit-code
//!                     └──────┬───────┘                       └──▲───┘
//!             --kill-after:  │ KILL                             │
//!                            └──────────────────────────────────┘
//! ```
//!
//! [`Child::attend`] owns these states. Only the command itself leaves `running` by its own will: signals are
//! passed on to it, and what it does about them is its own affair.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Command, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp};
use pglock::Error;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, Interval, interval, sleep, sleep_until};

use crate::args::CareArgs;
use crate::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::hold::Claim;
use crate::keeper::Kept;
use crate::signals::{Signals, exit_code, number, stop_self};
use crate::terminal::Terminal;

/// How often one looks whether a group that was told to end has done so.
const LOOK: Duration = Duration::from_millis(10);

/// A command that runs, the leader of a process group.
pub(crate) struct Child {
    process: process::Child,
    id: Pid,
    keeper: Kept,
    /// Signs of life for the keeper, under a lease.
    signs_of_life: Option<Interval>,
    changes: unix::Signal,
    terminal: Option<Terminal>,
    has_terminal: bool,
}

/// How it went.
pub(crate) enum End {
    /// The command ended, with this exit code.
    Exited(u8),
    /// The lock was lost, and the command is no more.
    Lost(Error),
    /// This process was frozen under a lease, and its keeper ended the command.
    Frozen,
}

impl Child {
    /// Starts a command, which finds these variables in its environment.
    pub(crate) fn start(
        command: &[OsString],
        variables: Vec<(&'static str, String)>,
        lease: Option<Duration>,
    ) -> Result<Self, Failure> {
        let of_system =
            |error: io::Error| Failure::of_system("cannot look after a command", &error);
        let Some((program, arguments)) = command.split_first() else {
            return Err(of_system(io::ErrorKind::InvalidInput.into()));
        };
        // Listened to before there is anything to hear.
        let changes = unix::signal(SignalKind::child()).map_err(of_system)?;
        let mut keeper = Kept::start(lease).map_err(of_system)?;
        let process = Command::new(program)
            .args(arguments)
            .envs(variables)
            .process_group(0)
            .spawn()
            .map_err(|error| not_started(program, &error))?;
        let id = Pid::from_raw(i32::try_from(process.id()).unwrap_or_default());
        if let Err(error) = keeper.guard(id) {
            // A command that nobody looks after must not outlive the lock.
            let _ = killpg(id, Signal::SIGKILL);
            return Err(of_system(error));
        }
        let mut child = Self {
            process,
            id,
            keeper,
            signs_of_life: lease.map(|lease| interval((lease / 10).max(LOOK))),
            changes,
            terminal: Terminal::open(),
            has_terminal: false,
        };
        if child.terminal.as_ref().is_some_and(Terminal::is_for_command) {
            child.give_terminal();
        }
        Ok(child)
    }

    /// Stays with the command until it ends, or the lock is lost and the command has been ended.
    pub(crate) async fn attend(
        mut self,
        claim: &mut Claim,
        signals: &mut Signals,
        care: &CareArgs,
    ) -> Result<End, Failure> {
        let mut lost = None;
        let mut ended = None;
        loop {
            let kill_at = lost.as_ref().map(|(_, kill_at)| *kill_at);
            tokio::select! {
                biased;
                _ = self.changes.recv(), if ended.is_none() => {
                    ended = self.look().map_err(|error| Failure::of_system("wait", &error))?;
                }
                signal = signals.next() => self.pass_on(signal),
                error = claim.lost(), if lost.is_none() => {
                    lost = Some((error, Instant::now() + care.kill_after));
                    self.terminate();
                }
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    self.signal_group(Signal::SIGKILL);
                    lost = lost.map(|(error, _)| (error, Instant::now() + care.kill_after));
                }
                () = sleep(LOOK), if lost.is_some() && ended.is_some() => {}
                () = sign_of_life(&mut self.signs_of_life, &mut self.keeper) => {}
            }
            match (ended, lost.take()) {
                (Some(code), None) => return Ok(self.conclude(End::Exited(code))),
                (Some(_), Some((error, _))) if self.group_is_gone() => {
                    return Ok(self.conclude(End::Lost(error)));
                }
                (_, still) => lost = still,
            }
        }
    }

    /// What happened to the command, if anything: its exit code once it has ended.
    fn look(&mut self) -> io::Result<Option<u8>> {
        if let Some(status) = self.process.try_wait()? {
            return Ok(Some(code_of(status)));
        }
        // The standard library does not tell of a command that was stopped. One that ends just now is told
        // of here.
        match waitpid(self.id, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED))? {
            WaitStatus::Exited(_, code) => Ok(Some(u8::try_from(code).unwrap_or(u8::MAX))),
            WaitStatus::Signaled(_, signal, _) => Ok(Some(exit_code(number(signal)))),
            WaitStatus::Stopped(_, signal) => {
                self.was_stopped(signal);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The terminal stopped the command: because it wanted to use it, or because of the stop key.
    fn was_stopped(&mut self, signal: Signal) {
        let Some(terminal) = &self.terminal else { return };
        let wants_terminal = matches!(signal, Signal::SIGTTIN | Signal::SIGTTOU);
        // It may have been quicker than this process was to give it the terminal.
        if wants_terminal && (self.has_terminal || terminal.is_ours()) {
            self.give_terminal();
            self.signal_group(Signal::SIGCONT);
        } else if self.has_terminal || wants_terminal {
            self.stop_with_command();
        }
    }

    /// Stops what was started together with this process, as the shell expects it of a job; and goes on,
    /// together with the command, when the shell says so.
    fn stop_with_command(&mut self) {
        if self.has_terminal {
            self.terminal.as_ref().inspect(|terminal| terminal.take_back());
        }
        // All of the job: the shell waits for each of a pipeline.
        if killpg(getpgrp(), Signal::SIGSTOP).is_err() {
            stop_self();
        }
        // Here it goes on. In the background, the terminal is not ours to give.
        self.has_terminal = false;
        if self.terminal.as_ref().is_some_and(Terminal::is_for_command) {
            self.give_terminal();
        }
        self.signal_group(Signal::SIGCONT);
    }

    fn give_terminal(&mut self) {
        self.terminal.as_ref().inspect(|terminal| terminal.give_to(self.id));
        self.has_terminal = true;
    }

    /// What a terminal or a service manager sends is for all that the command started, the rest for itself.
    fn pass_on(&mut self, signal: Signal) {
        match signal {
            Signal::SIGTSTP => {
                self.signal_group(Signal::SIGTSTP);
                self.stop_with_command();
            }
            // It may have ended, and not been looked at.
            Signal::SIGUSR1 | Signal::SIGUSR2 => drop(kill(self.id, signal)),
            _ => self.signal_group(signal),
        }
    }

    fn terminate(&self) {
        self.signal_group(Signal::SIGTERM);
        // What is stopped does not hear it.
        self.signal_group(Signal::SIGCONT);
    }

    fn signal_group(&self, signal: Signal) {
        // There may be nobody left in it.
        let _ = killpg(self.id, signal);
    }

    fn group_is_gone(&self) -> bool {
        killpg(self.id, None) == Err(Errno::ESRCH)
    }

    fn conclude(self, end: End) -> End {
        if self.has_terminal {
            self.terminal.as_ref().inspect(|terminal| terminal.take_back());
        }
        let ended_by_keeper = self.keeper.dismiss();
        match end {
            End::Exited(_) if ended_by_keeper => End::Frozen,
            end => end,
        }
    }
}

async fn sign_of_life(due: &mut Option<Interval>, keeper: &mut Kept) {
    match due {
        Some(due) => {
            due.tick().await;
            keeper.sign_of_life();
        }
        None => std::future::pending().await,
    }
}

fn code_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => exit_code(signal.unwrap_or_default()),
    }
}

fn not_started(program: &OsString, error: &io::Error) -> Failure {
    let program = program.to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(NOT_FOUND, format!("{program}: command not found")),
        _ => Failure::new(NOT_EXECUTABLE, format!("{program}: cannot be executed: {error}")),
    }
}
