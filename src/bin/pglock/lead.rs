//! A command that runs on the one machine that leads.
//!
//! ```text
//!   campaign ──▶ settle ──▶ run ──▶ resign ──▶ the command's exit code
//!      ▲            │      │  ▲ │
//!      │            │      │  └─┘ --restart
//!      └────────────┴──────┘
//!        leadership is lost, and the command ended
//! ```
//!
//! The server being away ends nothing but the leadership.

use std::ffi::OsString;
use std::time::Duration;

use pglock::{Config, Error, ErrorKind};
use tokio::time::{Instant, sleep};

use crate::args::{LeadArgs, Patience, Restart};
use crate::child::{End, reap_what_is_left};
use crate::exit::{Failure, say};
use crate::hold::{Asked, Claim};
use crate::key::NamedKey;
use crate::run::{NotStarted, frozen, interrupted, lost, start};
use crate::server::Server;
use crate::signals::Signals;
use crate::waiting;

/// The longest pause before the command is started anew, or the server asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The first pause when the server is away.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Campaigns, and runs the command while this machine leads: until the command ends by itself, or a signal
/// says that it is enough.
pub(crate) async fn lead(args: &LeadArgs, server: &Server) -> Result<u8, Failure> {
    let candidate = Candidate::new(args, server)?;
    let mut signals = Signals::listen()
        .map_err(|error| Failure::of_system("cannot listen to signals", &error))?;
    loop {
        let claim = tokio::select! {
            claim = candidate.campaign() => claim?,
            signal = signals.end() => return Ok(interrupted(signal)),
            never = waiting::show(&candidate.key, None, &candidate.config) => match never {},
            never = reap_what_is_left() => match never {},
        };
        if let Some(code) = candidate.lead(claim, &mut signals).await? {
            return Ok(code);
        }
    }
}

struct Candidate<'a> {
    args: &'a LeadArgs,
    key: NamedKey,
    command: Vec<OsString>,
    config: Config,
}

impl<'a> Candidate<'a> {
    fn new(args: &'a LeadArgs, server: &Server) -> Result<Self, Failure> {
        let key = args.key()?;
        let command = args.command()?;
        let mut config = server.config(&format!("pglock {}", key.text))?;
        if let Some(lease) = args.care.lease {
            config.lease(lease);
        }
        Ok(Self { args, key, command, config })
    }

    /// Waits until this machine leads. An error is one that does not pass.
    async fn campaign(&self) -> Result<Claim, Failure> {
        let mut pause = FIRST_PAUSE;
        loop {
            let mut claim = Claim::leadership(self.config.clone(), self.key.key);
            match self.elect(&mut claim).await {
                Ok(()) => return Ok(claim),
                Err(error) if !passes(&error) => return Err(error.into()),
                Err(error) => {
                    if pause == FIRST_PAUSE {
                        say(format_args!("{}: campaigning on: {error}", self.key));
                    }
                    sleep(pause).await;
                    pause = longer(pause);
                }
            }
        }
    }

    async fn elect(&self, claim: &mut Claim) -> Result<(), Error> {
        if claim.acquire(Patience::Endless).await? == Asked::Waited {
            tokio::select! {
                () = sleep(self.args.care.settle) => {}
                error = claim.lost() => return Err(error),
            }
        }
        if self.args.care.verbose {
            say(format_args!("{}: leading", self.key));
        }
        Ok(())
    }

    /// Runs the command as often as it is to run. The exit code; or `None` if the leadership was lost.
    async fn lead(&self, mut claim: Claim, signals: &mut Signals) -> Result<Option<u8>, Failure> {
        let care = &self.args.care;
        let mut pause = self.args.restart_delay;
        loop {
            let began = Instant::now();
            let started = tokio::select! {
                started = start(care, &self.key, &self.command, &mut claim) => started,
                signal = signals.end() => Err(NotStarted::Interrupted(signal)),
            };
            let end = match started {
                Ok(child) => child.attend(&mut claim, signals, care).await,
                Err(NotStarted::Interrupted(signal)) => {
                    claim.abandon().await;
                    return Ok(Some(interrupted(signal)));
                }
                Err(NotStarted::Lost(error)) => Ok(End::Lost(error)),
                Err(NotStarted::Failed(failure)) => Err(failure),
            };
            let code = match end {
                Ok(End::Exited(code)) => code,
                Ok(End::Lost(error)) => {
                    let code = lost(&self.key, &error, care);
                    return Ok(signals.told_to_end().then_some(code));
                }
                Ok(End::Frozen) => {
                    let code = frozen(&self.key, care);
                    return Ok(signals.told_to_end().then_some(code));
                }
                Err(failure) => {
                    claim.abandon().await;
                    return Err(failure);
                }
            };
            if signals.told_to_end() || !self.args.restart.follows(code) {
                claim.abandon().await;
                return Ok(Some(code));
            }
            if began.elapsed() > LONGEST_PAUSE {
                // It worked for a while: this is another failure.
                pause = self.args.restart_delay;
            }
            tokio::select! {
                () = sleep(pause) => pause = longer(pause),
                never = reap_what_is_left() => match never {},
                error = claim.lost() => {
                    lost(&self.key, &error, care);
                    return Ok(None);
                }
                signal = signals.end() => {
                    claim.abandon().await;
                    return Ok(Some(interrupted(signal)));
                }
            }
        }
    }
}

impl Restart {
    fn follows(self, code: u8) -> bool {
        match self {
            Self::Never => false,
            Self::OnFailure => code != 0,
            Self::Always => true,
        }
    }
}

fn longer(pause: Duration) -> Duration {
    pause.saturating_mul(2).min(LONGEST_PAUSE.max(pause))
}

/// Whether it may go as it came: what the user or an administrator has to put right does not.
fn passes(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Config | ErrorKind::Authentication)
}
