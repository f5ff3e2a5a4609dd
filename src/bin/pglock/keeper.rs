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
//! or a service manager sends to all. It goes by another name, so that `killall -9 pglock` leaves it to do its
//! work.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, sigprocmask};
use nix::unistd::Pid;

/// What makes an executable of pglock a keeper.
const CALL: &str = "--keeper";

const SIGN_OF_LIFE: u8 = b'.';
const DONE: u8 = b'!';

/// The keeper, as pglock has it.
pub(crate) struct Kept {
    keeper: process::Child,
    pipe: ChildStdin,
}

impl Kept {
    /// Starts a keeper that ends nothing until it is told of a group.
    pub(crate) fn start(lease: Option<Duration>) -> io::Result<Self> {
        let mut keeper = Command::new(executable()?);
        keeper.arg0("pglock-keeper").arg(CALL).env_clear().process_group(0);
        if let Some(lease) = lease {
            keeper.arg(lease.as_millis().to_string());
        }
        let mut keeper =
            keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pipe = keeper.stdin.take().ok_or_else(|| io::Error::other("no pipe"))?;
        Ok(Self { keeper, pipe })
    }

    pub(crate) fn guard(&mut self, group: Pid) -> io::Result<()> {
        self.pipe.write_all(&group.as_raw().to_be_bytes())
    }

    pub(crate) fn sign_of_life(&mut self) {
        // A keeper that has ended has ended the command, which is noticed.
        let _ = self.pipe.write_all(&[SIGN_OF_LIFE]);
    }

    /// The command has ended. Tells whether the keeper ended it.
    pub(crate) fn dismiss(mut self) -> bool {
        let done = self.pipe.write_all(&[DONE]);
        drop(self.pipe);
        let ended = self.keeper.wait();
        done.is_err() || ended.is_ok_and(|status| !status.success())
    }
}

/// What was started, even if there is another file by now.
fn executable() -> io::Result<PathBuf> {
    let link = PathBuf::from("/proc/self/exe");
    if link.exists() { Ok(link) } else { env::current_exe() }
}

/// The keeper, as it sees itself.
pub(crate) struct Keeper {
    lease: Option<Duration>,
}

impl Keeper {
    /// Whether this process was started to be one.
    pub(crate) fn called() -> Option<Self> {
        let mut arguments = env::args_os().skip(1);
        arguments.next().filter(|argument| argument == CALL)?;
        let lease = arguments.next().as_deref().and_then(OsStr::to_str).map(str::parse);
        let lease = lease.and_then(Result::ok).map(Duration::from_millis);
        Some(Self { lease })
    }

    /// Stands by until the command has ended, or has to.
    pub(crate) fn keep(&self) -> ExitCode {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
        // Where a process may name itself (Linux).
        let _ = fs::write("/proc/self/comm", "lock-keeper");
        // Without a buffer, in which something could wait unseen.
        let Ok(pipe) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
        let mut pipe = File::from(pipe);
        let mut group = [0; 4];
        if pipe.read_exact(&mut group).is_err() {
            // There is no command.
            return ExitCode::SUCCESS;
        }
        let group = Pid::from_raw(i32::from_be_bytes(group));
        match self.watch(&mut pipe) {
            Outcome::Done => ExitCode::SUCCESS,
            Outcome::Dead => {
                let _ = killpg(group, Signal::SIGKILL);
                ExitCode::FAILURE
            }
            Outcome::Silent(kill_at) => {
                let _ = killpg(group, Signal::SIGTERM);
                // What is stopped does not hear TERM.
                let _ = killpg(group, Signal::SIGCONT);
                while Instant::now() < kill_at && killpg(group, None) != Err(Errno::ESRCH) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                let _ = killpg(group, Signal::SIGKILL);
                ExitCode::FAILURE
            }
        }
    }

    fn watch(&self, pipe: &mut File) -> Outcome {
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
            match pipe.read(&mut bytes) {
                Ok(0) => return Outcome::Dead,
                Ok(_) if bytes.contains(&DONE) => return Outcome::Done,
                Ok(_) => heard = Instant::now(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Outcome::Dead,
            }
        }
    }
}

enum Outcome {
    Done,
    Dead,
    /// And when the command has to have ended.
    Silent(Instant),
}
