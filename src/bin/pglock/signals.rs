//! The signals that are passed on to the command.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use nix::libc;
use nix::sys::signal::{self, SigSet, SigmaskHow, Signal, sigprocmask};
use tokio::signal::unix::{self, SignalKind};

use crate::exit::SIGNALLED;
use crate::terminal::Terminal;

/// Those that somebody sends who means the command: a terminal, a service manager, an administrator.
const PASSED_ON: [i32; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
];

/// Listens to the signals that are passed on, from when it is made.
pub(crate) struct Signals {
    heard: Vec<(Signal, unix::Signal)>,
    /// Whether HUP means that the terminal is gone: to a service, it means something else.
    is_on_terminal: bool,
    told_to_end: bool,
}

impl Signals {
    /// Those that this process was told to ignore stay ignored, and so the command ignores them too: HUP
    /// under nohup(1), INT and QUIT in the background of a script.
    pub(crate) fn listen() -> io::Result<Self> {
        unblock()?;
        let ignored = ignored();
        let listen =
            |number| Ok((Signal::try_from(number)?, unix::signal(SignalKind::from_raw(number))?));
        let heard = PASSED_ON.into_iter().filter(|number| ignored >> (number - 1) & 1 == 0);
        let heard = heard.map(listen).collect::<io::Result<_>>()?;
        Ok(Self { heard, is_on_terminal: Terminal::open().is_some(), told_to_end: false })
    }

    /// The next one that arrives. One that arrives while nobody asks is not lost.
    pub(crate) async fn next(&mut self) -> Signal {
        let signal = poll_fn(|context| {
            for (signal, stream) in &mut self.heard {
                if let Poll::Ready(Some(())) = stream.poll_recv(context) {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await;
        self.told_to_end |= self.means_end(signal);
        signal
    }

    /// Whether who sends it wants this to end, and not only to tell the command something.
    fn means_end(&self, signal: Signal) -> bool {
        match signal {
            Signal::SIGINT | Signal::SIGTERM | Signal::SIGQUIT => true,
            Signal::SIGHUP => self.is_on_terminal,
            _ => false,
        }
    }

    /// Whether one has arrived that asks for an end.
    pub(crate) fn told_to_end(&self) -> bool {
        self.told_to_end
    }

    /// The next one while there is no command yet: it ends a process that has its own way with none of them.
    pub(crate) async fn any(&mut self) -> Signal {
        loop {
            match self.next().await {
                // The wait goes on when this process does.
                Signal::SIGTSTP => stop_self(),
                signal => return signal,
            }
        }
    }

    /// The next one that asks for an end. What is meant for a command that does not run is for nobody.
    pub(crate) async fn end(&mut self) -> Signal {
        loop {
            let signal = self.any().await;
            if self.means_end(signal) {
                return signal;
            }
        }
    }
}

/// A process inherits which signals are held back: then they would never arrive.
fn unblock() -> io::Result<()> {
    let mut heard = SigSet::empty();
    for number in PASSED_ON.into_iter().chain([libc::SIGCHLD]) {
        heard.add(Signal::try_from(number)?);
    }
    Ok(sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&heard), None)?)
}

/// What the terminal's stop key would have done, had nobody listened to it.
pub(crate) fn stop_self() {
    // It cannot fail: the signal exists, and it is this process that it goes to.
    let _ = signal::raise(Signal::SIGSTOP);
}

/// The exit code for a process that this signal ended, as a shell tells it.
pub(crate) fn exit_code(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or_default().saturating_add(SIGNALLED)
}

pub(crate) fn number(signal: Signal) -> i32 {
    (1..=64).find(|number| Signal::try_from(*number) == Ok(signal)).unwrap_or_default()
}

/// A bit for each signal that this process ignores, where the system tells (Linux).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
