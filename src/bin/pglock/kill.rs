//! `pglock kill`: ends the sessions that hold a key.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use clap::Args;
use pglock::{AdvisoryLock, AdvisoryLocks, Key, Session};
use tokio::time::{Instant, sleep};

use crate::args::seconds;
use crate::exit::{Failure, REFUSED, UNAVAILABLE, USAGE, say};
use crate::key::{KeyAs, NamedKey};
use crate::locks::{line, session as name_of};
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
    /// What the KEY is, where it could be read in several ways
    #[arg(long, value_name = "KIND")]
    key_as: Option<KeyAs>,
    /// The key: a number, two with a comma between, or a name
    #[arg(allow_negative_numbers = true, allow_hyphen_values = true)]
    key: String,
}

pub(crate) async fn kill(args: &KillArgs, server: &Server) -> Result<u8, Failure> {
    let key = NamedKey::parse(&args.key, args.key_as)?;
    let mut session = Session::connect(&server.config("pglock kill")?).await?;
    let locks = session.advisory_locks_on(key.key).await?;
    let holders = holders(&locks);
    if holders.is_empty() {
        say(format_args!("{key}: nobody holds it"));
        return Ok(NOTHING_DONE);
    }
    let mut prepared = false;
    let (mut condemned, mut spared) = (Vec::new(), Vec::new());
    let terminal = if args.yes { None } else { Some(Terminal::open()?) };
    for holder in holders {
        print(&(line(holder) + "\n"))?;
        let Some(process_id) = holder.process_id() else {
            prepared = true;
            continue;
        };
        // One that holds the key in both modes is asked about once.
        if !condemned.contains(&process_id) && !spared.contains(&process_id) {
            let is_meant = is_meant(holder, terminal.as_ref())?;
            if is_meant { &mut condemned } else { &mut spared }.push(process_id);
        }
    }
    for process_id in &condemned {
        end(&mut session, key.key, *process_id).await?;
    }
    await_end(&mut session, &key, &condemned, args.wait).await?;
    if prepared {
        return Err(Failure::new(
            UNAVAILABLE,
            format!(
                "{key}: a prepared transaction has no session that could be ended; find it in \
                 pg_prepared_xacts, and end it by ROLLBACK PREPARED"
            ),
        ));
    }
    Ok(if condemned.is_empty() { NOTHING_DONE } else { 0 })
}

fn holders(locks: &AdvisoryLocks) -> Vec<&AdvisoryLock> {
    locks.listed().iter().filter(|lock| lock.is_granted()).collect()
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

/// Waits until none of these holds the key.
async fn await_end(
    session: &mut Session,
    key: &NamedKey,
    condemned: &[i32],
    patience: Duration,
) -> Result<(), Failure> {
    let asked = Instant::now();
    loop {
        let locks = session.advisory_locks_on(key.key).await?;
        let holds = |lock: &&AdvisoryLock| {
            lock.process_id().is_some_and(|process_id| condemned.contains(&process_id))
        };
        let Some(left) = holders(&locks).into_iter().find(holds) else { return Ok(()) };
        if asked.elapsed() >= patience {
            return Err(Failure::new(
                UNAVAILABLE,
                format!(
                    "{key}: {} was told to end, and has not within {patience:?}",
                    name_of(left)
                ),
            ));
        }
        sleep(LOOK_EVERY).await;
    }
}
