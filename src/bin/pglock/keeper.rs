//! A process that ends the command when pglock itself no longer can.
//!
//! If pglock is killed, the server frees its lock at once; if it is stopped, the server does so at the end of
//! its lease. The command knows nothing of either. So a second process stands by, which does nothing but
//! read a pipe from the first:
//!
//! ```text
//!   pglock ──── starts ──▶ command        a process group of its own
//!      │                      ▲
//!      │ pipe: the group,     │ TERM, KILL
//!      │ signs of life,       │
//!      │ "done"               │
//!      ▼                      │
//!   keeper ───────────────────┘
//!
//!   the pipe ends                     pglock is dead, and its lock is free: KILL
//!   no sign of life for 0.4 leases    pglock is frozen: TERM
//!   nor for 0.6 leases                KILL
//!   "done"                            the command has ended: so does the keeper
//! ```
//!
//! The server frees the lock of a frozen pglock no earlier than two thirds of a lease after it froze: it gives
//! a heartbeat each third. The keeper is done by then.
//!
//! The keeper is the same executable, and holds back every signal that can be held back: those that a terminal
//! or a service manager sends to all. It goes by another name, so that `pkill -9 -f pglock` leaves it to do its
//! work. If it dies, pglock starts another one; and if keepers die again and again, or cannot be started, it tries
//! at growing pauses, and after twelve seconds ends the command, which it could not answer for ([`succession`]).
//!
//! The group is that of the command. What left it, as daemons do, is not reached; nor is what another user owns.
//! And between the start of the command and the moment when its keeper is told of the group, nobody stands by.
//!
//! [`succession`]: crate::succession

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::unistd::{self, Pid};

/// What makes an executable of pglock a keeper.
const CALL: &str = "--keeper";

const SIGN_OF_LIFE: u8 = b'.';
const DONE: u8 = b'!';

/// With what a keeper exits that has ended the command.
const HAS_ENDED_IT: u8 = 3;

/// The keeper, as pglock has it. Dropped before the command has ended, it ends the command.
pub(crate) struct Kept {
    process: process::Child,
    /// Until the keeper is to go.
    pipe: Option<ChildStdin>,
    /// How it ended, if that is known.
    ended: Option<ExitStatus>,
}

impl Kept {
    /// Starts a keeper that ends nothing until it is told of a group.
    pub(crate) fn start(lease: Option<Duration>) -> io::Result<Self> {
        Self::start_with(lease, None)
    }

    /// Starts a keeper of a group that is there already.
    pub(crate) fn start_for(group: Pid, lease: Option<Duration>) -> io::Result<Self> {
        Self::start_with(lease, Some(group))
    }

    fn start_with(lease: Option<Duration>, group: Option<Pid>) -> io::Result<Self> {
        let mut keeper = Command::new(executable()?);
        keeper.arg0("lock-keeper").arg(CALL).env_clear().process_group(0);
        keeper.arg(lease.unwrap_or_default().as_millis().to_string());
        keeper.args(group.map(|group| group.to_string()));
        let mut process =
            keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pipe = process.stdin.take();
        Ok(Self { process, pipe, ended: None })
    }

    pub(crate) fn guard(&mut self, group: Pid) -> io::Result<()> {
        self.write(&group.as_raw().to_be_bytes())
    }

    pub(crate) fn sign_of_life(&mut self) {
        // If it has ended, that is noticed.
        let _ = self.write(&[SIGN_OF_LIFE]);
    }

    /// Looks whether it has ended.
    pub(crate) fn look(&mut self) {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().ok().flatten();
        }
    }

    /// Who waits for all children of this process has found the end of one.
    pub(crate) fn note_end(&mut self, id: Pid, end: ExitStatus) {
        if id == id_of(&self.process) {
            self.ended = Some(end);
        }
    }

    /// Whether it has ended for another reason than that it ended the command.
    pub(crate) fn has_failed(&self) -> bool {
        self.ended.is_some() && !self.has_ended_the_command()
    }

    /// What to say of one that has failed, when there is to be no other.
    pub(crate) fn failure(&self) -> io::Error {
        let end = self.ended.map(|end| format!(", at last with {end}")).unwrap_or_default();
        io::Error::other(format!("the keepers that stand by for it end again and again{end}"))
    }

    /// The command has ended. Tells whether the keeper ended it.
    pub(crate) fn dismiss(mut self) -> bool {
        let _ = self.write(&[DONE]);
        self.wait();
        self.has_ended_the_command()
    }

    fn has_ended_the_command(&self) -> bool {
        self.ended.is_some_and(|end| end.code() == Some(HAS_ENDED_IT.into()))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pipe.as_mut().map_or(Ok(()), |pipe| pipe.write_all(bytes))
    }

    /// Waits for its end, which that of the pipe brings about.
    fn wait(&mut self) {
        drop(self.pipe.take());
        if self.ended.is_none() {
            // Somebody may have stopped it.
            let _ = kill(id_of(&self.process), Signal::SIGCONT);
            self.ended = self.process.wait().ok();
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.wait();
    }
}

pub(crate) fn id_of(process: &process::Child) -> Pid {
    Pid::from_raw(i32::try_from(process.id()).unwrap_or_default())
}

/// What was started, even if there is another file by now.
fn executable() -> io::Result<PathBuf> {
    let link = PathBuf::from("/proc/self/exe");
    if link.exists() { Ok(link) } else { env::current_exe() }
}

/// The keeper, as it sees itself.
pub(crate) struct Keeper {
    lease: Option<Duration>,
    /// If it was there before the keeper.
    group: Option<Pid>,
}

impl Keeper {
    /// Whether this process was started to be one.
    pub(crate) fn called() -> Option<Self> {
        let mut arguments = env::args_os().skip(1);
        arguments.next().filter(|argument| argument == CALL)?;
        let mut number = || arguments.next()?.to_str()?.parse::<u64>().ok();
        let lease = number().filter(|lease| *lease > 0).map(Duration::from_millis);
        let group = number().and_then(|group| i32::try_from(group).ok()).map(Pid::from_raw);
        Some(Self { lease, group })
    }

    /// Stands by until the command has ended, or has to.
    pub(crate) fn keep(&self) -> ExitCode {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
        // Where a process may name itself (Linux).
        let _ = fs::write("/proc/self/comm", "lock-keeper");
        let Some(group) = self.group.or_else(read_group) else {
            // There is no command.
            return ExitCode::SUCCESS;
        };
        if group.as_raw() <= 1 {
            // Those numbers mean this process's own group, and everybody.
            return ExitCode::FAILURE;
        }
        match self.watch() {
            Outcome::Done => ExitCode::SUCCESS,
            Outcome::Dead => {
                let _ = killpg(group, Signal::SIGKILL);
                HAS_ENDED_IT.into()
            }
            Outcome::Silent(kill_at) => {
                let _ = killpg(group, Signal::SIGTERM);
                // What is stopped does not hear TERM.
                let _ = killpg(group, Signal::SIGCONT);
                while Instant::now() < kill_at && killpg(group, None) != Err(Errno::ESRCH) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                match killpg(group, Signal::SIGKILL) {
                    // It runs as another user.
                    Err(Errno::EPERM) => ExitCode::FAILURE,
                    _ => HAS_ENDED_IT.into(),
                }
            }
        }
    }

    fn watch(&self) -> Outcome {
        let pipe = io::stdin();
        let mut heard = Instant::now();
        loop {
            let silence = self.lease.map(|lease| (heard + lease * 4 / 10, heard + lease * 6 / 10));
            let timeout = silence.map(|(term_at, _)| term_at.duration_since(Instant::now()));
            // The one that is not reached is rounded up: it is looked at again.
            let timeout = timeout.map_or(PollTimeout::NONE, |time| {
                PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, timeout) == Ok(0) {
                match silence {
                    Some((term_at, kill_at)) if Instant::now() >= term_at => {
                        return Outcome::Silent(kill_at);
                    }
                    _ => continue,
                }
            }
            let mut bytes = [0; 64];
            // Not through the standard library's buffer, in which something could wait unseen.
            match unistd::read(&pipe, &mut bytes) {
                Ok(0) => return Outcome::Dead,
                Ok(_) if bytes.contains(&DONE) => return Outcome::Done,
                Ok(_) => heard = Instant::now(),
                Err(Errno::EINTR) => {}
                Err(_) => return Outcome::Dead,
            }
        }
    }
}

/// Written at once, it is read at once.
fn read_group() -> Option<Pid> {
    let mut group = [0; 4];
    let read = unistd::read(io::stdin(), &mut group);
    (read == Ok(group.len())).then(|| Pid::from_raw(i32::from_be_bytes(group)))
}

enum Outcome {
    Done,
    Dead,
    /// And when the command has to have ended.
    Silent(Instant),
}
