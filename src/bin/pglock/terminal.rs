//! Who has the terminal: this process, or the command.
//!
//! The command has a process group of its own, so that it can be ended with everything that it started. A
//! terminal takes a process group that is not in its foreground for a background job: it may not read, and
//! the keys that interrupt do not reach it. So the command is put there, as a shell does, and taken away
//! again:
//!
//! ```text
//!              starts, resumes                  ends, is stopped
//!   pglock ───────────────────────▶ command ──────────────────────▶ pglock
//! ```
//!
//! In a pipeline, as in `pglock key make | less`, the terminal is the other command's as well, which stands in
//! the group of pglock: the terminal stays there, and changes hands only if the command wants to read.

use std::fs::File;
use std::io::{self, IsTerminal, stdin, stdout};
use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The terminal that controls this process.
#[derive(Debug)]
pub(crate) struct Terminal(File);

impl Terminal {
    /// `None` without one, as from cron.
    pub(crate) fn open() -> Option<Self> {
        File::options().read(true).write(true).open("/dev/tty").ok().map(Self)
    }

    /// Whether the command is to have it from the beginning.
    pub(crate) fn is_for_command(&self) -> bool {
        let pipe = |out: &io::Stdout| {
            fstat(out.as_fd()).is_ok_and(|stat| {
                SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO
            })
        };
        stdin().is_terminal() && !pipe(&stdout()) && self.is_ours()
    }

    /// Whether this process and its group are in the foreground.
    pub(crate) fn is_ours(&self) -> bool {
        tcgetpgrp(&self.0) == Ok(getpgrp())
    }

    /// Puts a process group into the foreground.
    pub(crate) fn give_to(&self, group: Pid) {
        // A group in the background is stopped when it does this, unless it holds the signal back.
        let mut before = SigSet::empty();
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTTOU);
        let blocked = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before));
        if blocked.is_ok() {
            // The group may have ended, and the terminal may be gone: then nobody needs it.
            let _ = tcsetpgrp(&self.0, group);
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        }
    }

    pub(crate) fn take_back(&self) {
        self.give_to(getpgrp());
    }
}
