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
//! passed on to it, and what it does about them is its own affair. If something fails that looking after it
//! needs, it is killed.
//!
//! The group is gone when nobody is left in it, not even one that has ended and that nobody has waited for. So
//! this process waits for all whose parents have left them, where a process can have itself made their next one
//! (Linux), and where it is the first process of a container.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::future::pending;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{self, Command, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
#[cfg(target_os = "linux")]
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp};
use pglock::Error;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, Interval, interval, sleep, sleep_until};

use crate::args::CareArgs;
use crate::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND, say};
use crate::hold::Claim;
use crate::keeper::{Kept, id_of};
use crate::signals::{Signals, exit_code, number, stop_self};
use crate::succession::Succession;
use crate::terminal::Terminal;

/// How often one looks whether a group that was told to end has done so.
const LOOK: Duration = Duration::from_millis(10);

/// The first signal that is known by its number alone.
const FIRST_WITHOUT_NAME: i32 = 32;

/// A command that runs, the leader of a process group.
pub(crate) struct Child {
    process: process::Child,
    id: Pid,
    /// How the command itself ended.
    ended: Option<ExitStatus>,
    /// Whether the group was told to end in a way that cannot be ignored.
    is_killed: bool,
    is_told_of_other_user: bool,
    keeper: Kept,
    succession: Succession,
    lease: Option<Duration>,
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
    pub(crate) async fn start(
        command: &[OsString],
        variables: &[(&'static str, Option<String>)],
        lease: Option<Duration>,
    ) -> Result<Self, Failure> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(cannot_look_after(&io::ErrorKind::InvalidInput.into()));
        };
        // Where it is refused, the first process of the system waits for who is left, as a rule.
        #[cfg(target_os = "linux")]
        let _ = prctl::set_child_subreaper(true);
        // Listened to before there is anything to hear.
        let changes =
            unix::signal(SignalKind::child()).map_err(|error| cannot_look_after(&error))?;
        let keeper = Kept::start(lease).map_err(|error| cannot_look_after(&error))?;
        let mut command = Command::new(program);
        command.args(arguments).process_group(0);
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                // One of a lock outside of this one would mislead.
                None => command.env_remove(name),
            };
        }
        let process = command.spawn().map_err(|error| not_started(program, &error))?;
        let mut child = Self {
            id: id_of(&process),
            process,
            ended: None,
            is_killed: false,
            is_told_of_other_user: false,
            keeper,
            succession: Succession::new(Instant::now()),
            lease,
            signs_of_life: lease.map(|lease| interval((lease / 10).max(LOOK))),
            changes,
            terminal: Terminal::open(),
            has_terminal: false,
        };
        if child.keeper.guard(child.id).is_err() {
            // Somebody has killed it.
            if let Err(error) = child.replace_keeper() {
                child.kill().await;
                return Err(cannot_look_after(&error));
            }
        }
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
        match self.until_end(claim, signals, care).await {
            Ok(end) => Ok(self.conclude(end)),
            Err(error) => {
                self.kill().await;
                Err(cannot_look_after(&error))
            }
        }
    }

    async fn until_end(
        &mut self,
        claim: &mut Claim,
        signals: &mut Signals,
        care: &CareArgs,
    ) -> io::Result<End> {
        let mut lost = None;
        let mut kill_at = None;
        loop {
            tokio::select! {
                biased;
                _ = self.changes.recv() => {}
                signal = signals.next() => self.pass_on(signal),
                error = claim.lost(), if lost.is_none() => {
                    lost = Some(error);
                    self.terminate();
                    kill_at = Instant::now().checked_add(care.kill_after);
                }
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    self.is_killed = true;
                    self.signal_group(Signal::SIGKILL);
                    kill_at = Instant::now().checked_add(care.kill_after.max(LOOK));
                }
                () = sleep(LOOK), if lost.is_some() && self.ended.is_some() => {}
                () = sleep_until(self.succession.due.unwrap_or_else(Instant::now)),
                    if self.succession.due.is_some() => {}
                () = sign_of_life(&mut self.signs_of_life, &mut self.keeper) => {}
            }
            self.reap()?;
            match (self.ended, lost.take()) {
                (Some(end), None) => return Ok(End::Exited(code_of(end))),
                (Some(_), Some(error)) if self.group_is_gone() => return Ok(End::Lost(error)),
                (_, still) => lost = still,
            }
            if self.keeper.has_failed() {
                self.replace_keeper()?;
            }
        }
    }

    /// Takes note of what has happened to all that this process has to wait for.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            // First those of which it matters how they end: below, a signal that has no name, as the real-time
            // signals have none, cannot be told.
            if self.ended.is_none() {
                self.ended = match self.process.try_wait() {
                    // One of those, in the moment between.
                    Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                        Some(ExitStatus::from_raw(FIRST_WITHOUT_NAME))
                    }
                    end => end?,
                };
            }
            self.keeper.look();
            match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(WaitStatus::Exited(id, code)) => {
                    self.note_end(id, ExitStatus::from_raw(code << 8));
                }
                Ok(WaitStatus::Signaled(id, signal, _)) => {
                    self.note_end(id, ExitStatus::from_raw(number(signal)));
                }
                Ok(WaitStatus::Stopped(id, signal)) if id == self.id => self.was_stopped(signal),
                Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn note_end(&mut self, id: Pid, end: ExitStatus) {
        if id == self.id {
            self.ended = Some(end);
        } else {
            self.keeper.note_end(id, end);
        }
    }

    /// Has another keeper stand by in place of one that has failed, once that is due.
    fn replace_keeper(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let due = self.succession.due.or_else(|| self.succession.follow(now));
        let due = due.ok_or_else(|| self.keeper.failure())?;
        if due > now {
            return Ok(());
        }
        self.succession.due = None;
        match Kept::start_for(self.id, self.lease) {
            Ok(keeper) => self.keeper = keeper,
            // Perhaps there is room for it later.
            Err(error) => drop(self.succession.follow(now).ok_or(error)?),
        }
        Ok(())
    }

    /// Ends a command that cannot be looked after. Its lock must not be given up before.
    async fn kill(&mut self) {
        self.take_terminal_back();
        self.is_killed = true;
        self.signal_group(Signal::SIGKILL);
        loop {
            let _ = self.reap();
            if self.group_is_gone() {
                return;
            }
            sleep(LOOK).await;
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
            self.stop_with_command(stop_job);
        }
    }

    /// Stops this process, as the shell expects it of a job; and goes on, together with the command, when the
    /// shell says so.
    fn stop_with_command(&mut self, stop: fn()) {
        self.take_terminal_back();
        stop();
        // Here it goes on. In the background, the terminal is not ours to give.
        if self.terminal.as_ref().is_some_and(Terminal::is_for_command) {
            self.give_terminal();
        }
        self.signal_group(Signal::SIGCONT);
    }

    fn give_terminal(&mut self) {
        self.terminal.as_ref().inspect(|terminal| terminal.give_to(self.id));
        self.has_terminal = true;
    }

    fn take_terminal_back(&mut self) {
        if self.has_terminal {
            self.terminal.as_ref().inspect(|terminal| terminal.take_back());
        }
        self.has_terminal = false;
    }

    /// What a terminal or a service manager sends is for all that the command started, the rest for itself.
    fn pass_on(&mut self, signal: Signal) {
        match signal {
            // A terminal has sent it to all of the job.
            Signal::SIGTSTP => {
                self.signal_group(Signal::SIGTSTP);
                self.stop_with_command(stop_self);
            }
            // It may have ended, and not been looked at.
            Signal::SIGUSR1 | Signal::SIGUSR2 => drop(kill(self.id, signal)),
            _ => self.signal_group(signal),
        }
    }

    fn terminate(&mut self) {
        self.signal_group(Signal::SIGTERM);
        // What is stopped does not hear it.
        self.signal_group(Signal::SIGCONT);
    }

    fn signal_group(&mut self, signal: Signal) {
        // There may be nobody left in it.
        if killpg(self.id, signal) == Err(Errno::EPERM) && !self.is_told_of_other_user {
            self.is_told_of_other_user = true;
            say(format_args!(
                "{signal} cannot be sent to the command, which runs as another user; waiting for it to end"
            ));
        }
    }

    fn group_is_gone(&self) -> bool {
        // Who was killed may wait for ever for a parent outside of the group that takes note of it.
        killpg(self.id, None) == Err(Errno::ESRCH) || self.is_killed && has_only_zombies(self.id)
    }

    fn conclude(mut self, end: End) -> End {
        self.take_terminal_back();
        let ended_by_keeper = self.keeper.dismiss();
        match end {
            End::Exited(_) if ended_by_keeper => End::Frozen,
            end => end,
        }
    }
}

/// Waits, while there is no command, for what commands before have left to this process.
pub(crate) async fn reap_what_is_left() -> Infallible {
    let Ok(mut changes) = unix::signal(SignalKind::child()) else { return pending().await };
    loop {
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)
        ) {}
        changes.recv().await;
    }
}

/// Whether a group has processes that have ended, and no others, where the system tells (Linux).
fn has_only_zombies(group: Pid) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let group = group.to_string();
    let mut states = processes.flatten().filter_map(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // After the name, which can have anything in it: the state, the parent, the group.
        let mut fields = stat.rsplit(") ").next()?.split(' ');
        let state = fields.next()?.to_owned();
        (fields.nth(1)? == group).then_some(state)
    });
    let is_zombie = |state: String| state == "Z" || state == "X";
    states.next().is_some_and(is_zombie) && states.all(is_zombie)
}

async fn sign_of_life(due: &mut Option<Interval>, keeper: &mut Kept) {
    match due {
        Some(due) => {
            due.tick().await;
            keeper.sign_of_life();
        }
        None => pending().await,
    }
}

fn code_of(end: ExitStatus) -> u8 {
    match end.code() {
        Some(code) => u8::try_from(code).unwrap_or(u8::MAX),
        None => exit_code(end.signal().unwrap_or_default()),
    }
}

/// Stops all of the job that this process is of: the shell waits for each of a pipeline.
fn stop_job() {
    if killpg(getpgrp(), Signal::SIGSTOP).is_err() {
        stop_self();
    }
}

fn cannot_look_after(error: &io::Error) -> Failure {
    Failure::of_system("cannot look after a command", error)
}

fn not_started(program: &OsString, error: &io::Error) -> Failure {
    let name = program.to_string_lossy();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) if is_there(program) => Failure::new(
            NOT_FOUND,
            format!("{name}: the file is there, but the interpreter that it names is not"),
        ),
        Some(Errno::ENOENT) => Failure::new(NOT_FOUND, format!("{name}: command not found")),
        // It is not about the command.
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => {
            Failure::of_system(&format!("{name}: cannot be started"), error)
        }
        _ => Failure::new(NOT_EXECUTABLE, format!("{name}: cannot be executed: {error}")),
    }
}

/// Whether there is a file where a command of this name is looked for.
fn is_there(program: &OsString) -> bool {
    if program.as_bytes().contains(&b'/') {
        return Path::new(program).is_file();
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::SYSTEM;

    #[test]
    fn what_the_system_lacks_is_no_fault_of_the_command() {
        for (errno, code) in [
            (Errno::EAGAIN, SYSTEM),
            (Errno::ENOMEM, SYSTEM),
            (Errno::EMFILE, SYSTEM),
            (Errno::ENFILE, SYSTEM),
            (Errno::EACCES, NOT_EXECUTABLE),
            (Errno::ENOEXEC, NOT_EXECUTABLE),
            (Errno::E2BIG, NOT_EXECUTABLE),
            (Errno::ENOENT, NOT_FOUND),
        ] {
            let failure = not_started(&"no-such-program".into(), &errno.into());
            assert_eq!(failure.report(), code.into(), "{errno}");
        }
    }
}
