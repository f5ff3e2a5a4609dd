//! `pglock kill`: ends the sessions that hold a key.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use clap::Args;
use pglock::{AdvisoryLock, Key, Session};
use tokio::time::{Instant, sleep};

use crate::args::seconds;
use crate::exit::{Failure, REFUSED, UNAVAILABLE, USAGE, say};
use crate::locks::{Subject, SubjectArgs, session as name_of};
use crate::output::print;
use crate::server::Server;

/// What says that nothing was to be done, or that the answer was no.
const NOTHING_DONE: u8 = 1;

const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// How often the server is asked whether the key was let go.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// How long the sessions may take to let go
    #[arg(short, long, value_name = "SECS", value_parser = seconds, default_value = "30")]
    wait: Duration,
    #[command(flatten)]
    subject: SubjectArgs,
}

pub(crate) async fn kill(args: &KillArgs, server: &Server) -> Result<u8, Failure> {
    let subject = Subject::new(&args.subject)?;
    let mut session = Session::connect(&server.config("pglock kill")?).await?;
    let mut holders = subject.locks(&mut session).await?;
    holders.retain(|lock| subject.is_held_by(lock));
    if holders.is_empty() {
        say(format_args!("{subject}: nobody holds it"));
        return Ok(NOTHING_DONE);
    }
    let mut prepared = false;
    let (mut condemned, mut spared) = (Vec::new(), Vec::new());
    let terminal = if args.yes { None } else { Some(Terminal::open()?) };
    for holder in &holders {
        print(&(subject.line(holder) + "\n"))?;
        let Some(process_id) = holder.process_id() else {
            prepared = true;
            continue;
        };
        // One that holds the key in both modes, or several permits, is asked about once.
        if !condemned.iter().any(|(_, condemned)| *condemned == process_id)
            && !spared.contains(&process_id)
        {
            if is_meant(holder, terminal.as_ref())? {
                condemned.push((holder.key(), process_id));
            } else {
                spared.push(process_id);
            }
        }
    }
    for (key, process_id) in &condemned {
        end(&mut session, *key, *process_id).await?;
    }
    await_end(&mut session, &subject, &condemned, args.wait).await?;
    if prepared {
        return Err(Failure::new(
            UNAVAILABLE,
            format!(
                "{subject}: a prepared transaction has no session that could be ended; find it in \
                 pg_prepared_xacts, and end it by ROLLBACK PREPARED"
            ),
        ));
    }
    Ok(if condemned.is_empty() { NOTHING_DONE } else { 0 })
}

/// Where somebody is asked: the terminal, whatever standard input is.
struct Terminal(File);

impl Terminal {
    fn open() -> Result<Self, Failure> {
        File::options().read(true).write(true).open("/dev/tty").map(Self).map_err(|_| {
            Failure::new(USAGE, "there is no terminal to ask on; say --yes if it is meant")
        })
    }

    fn ask(&self, question: &str) -> Result<bool, Failure> {
        let failed = |error| Failure::of_system("the terminal", &error);
        let mut terminal = &self.0;
        write!(terminal, "{question} [y/N] ").and_then(|()| terminal.flush()).map_err(failed)?;
        let mut answer = String::new();
        BufReader::new(terminal).read_line(&mut answer).map_err(failed)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

fn is_meant(holder: &AdvisoryLock, terminal: Option<&Terminal>) -> Result<bool, Failure> {
    terminal.map_or(Ok(true), |terminal| {
        terminal.ask(&format!("end the session of {}?", name_of(holder)))
    })
}

async fn end(session: &mut Session, key: Key, process_id: i32) -> Result<(), Failure> {
    match session.terminate_holder(key, process_id).await {
        // One that does not hold it any more is as good as ended.
        Ok(_) => Ok(()),
        Err(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE) => {
            Err(Failure::new(REFUSED, error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Waits until none of these holds its key.
async fn await_end(
    session: &mut Session,
    subject: &Subject,
    condemned: &[(Key, i32)],
    patience: Duration,
) -> Result<(), Failure> {
    let asked = Instant::now();
    for (key, process_id) in condemned {
        loop {
            let locks = session.advisory_locks_on(*key).await?;
            let holds =
                |lock: &&AdvisoryLock| lock.is_granted() && lock.process_id() == Some(*process_id);
            let Some(left) = locks.listed().iter().find(holds) else { break };
            if asked.elapsed() >= patience {
                return Err(Failure::new(
                    UNAVAILABLE,
                    format!(
                        "{subject}: {} was told to end, and has not within {patience:?}",
                        name_of(left)
                    ),
                ));
            }
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}
