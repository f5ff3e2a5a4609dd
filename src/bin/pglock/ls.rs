//! `pglock ls`: who holds which lock, and who waits.

#![allow(
    clippy::doc_markdown,
    reason = "what documents an argument is its help, as a person reads it"
)]

use std::fmt::Write;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

use clap::Args;
use pglock::{AdvisoryLock, AdvisoryLocks, Session};

use crate::args::seconds;
use crate::exit::Failure;
use crate::key::number;
use crate::locks::Names;
use crate::output::{Reader, json_or_null, json_string, print, shown, table, utc};
use crate::server::Server;

/// Clears a terminal, and goes to its first line.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// Print JSON: an object on one line, with the locks and how many there are
    #[arg(long)]
    json: bool,
    /// Look again every 2 s, or as often as this says, until interrupted
    #[arg(
        long, value_name = "SECS", value_parser = seconds, num_args = 0..=1, default_missing_value = "2"
    )]
    watch: Option<Duration>,
    /// Show this name where its key is locked; can be given several times. PGLOCK_NAMES lists more, with
    /// commas between
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) async fn ls(args: &LsArgs, server: &Server) -> Result<u8, Failure> {
    let mut session = Session::connect(&server.config("pglock ls")?).await?;
    let mut names = Names::new(&args.names);
    loop {
        let locks = session.advisory_locks().await?;
        names.learn(locks.listed());
        let text = if args.json { json(&locks, &names) } else { text(&locks, &names) };
        let redraws = args.watch.is_some() && !args.json && stdout().is_terminal();
        let reader = print(&if redraws { format!("{CLEAR}{text}") } else { text })?;
        match args.watch {
            Some(pause) if reader == Reader::Listens => tokio::time::sleep(pause).await,
            _ => break,
        }
    }
    // Nothing was locked, so nobody waits for the end of the session.
    Ok(0)
}

fn text(locks: &AdvisoryLocks, names: &Names) -> String {
    let head =
        ["KEY", "NAME", "MODE", "STATE", "PROCESS", "ROLE", "APPLICATION", "CLIENT", "SINCE"];
    let mut rows = vec![head.map(String::from)];
    rows.extend(locks.listed().iter().map(|lock| row(lock, names)));
    let mut text = table(&rows);
    let left = locks.count() - u64::try_from(locks.listed().len()).unwrap_or(locks.count());
    if left > 0 {
        // Writing to a string does not fail.
        let _ = writeln!(text, "... and {left} more, of {} in all", locks.count());
    }
    text
}

fn row(lock: &AdvisoryLock, names: &Names) -> [String; 9] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| String::from("-"));
    [
        number(lock.key()),
        or_dash(names.of(lock).map(shown)),
        lock.mode().to_string(),
        String::from(state(lock)),
        or_dash(lock.process_id().map(|process_id| process_id.to_string())),
        or_dash(lock.role().map(shown)),
        or_dash(lock.application_name().filter(|name| !name.is_empty()).map(shown)),
        or_dash(lock.client_address().map(|address| address.to_string())),
        or_dash(lock.since().map(utc)),
    ]
}

fn state(lock: &AdvisoryLock) -> &'static str {
    match (lock.is_granted(), lock.is_prepared()) {
        (false, _) => "waits",
        (true, false) => "held",
        (true, true) => "prepared",
    }
}

fn json(locks: &AdvisoryLocks, names: &Names) -> String {
    let listed: Vec<_> = locks.listed().iter().map(|lock| json_of(lock, names)).collect();
    format!("{{\"count\":{},\"locks\":[{}]}}\n", locks.count(), listed.join(","))
}

fn json_of(lock: &AdvisoryLock, names: &Names) -> String {
    format!(
        "{{\"key\":{},\"name\":{},\"mode\":{},\"state\":{},\"process_id\":{},\"role\":{},\
         \"application_name\":{},\"client_address\":{},\"since\":{}}}",
        json_string(&number(lock.key())),
        json_or_null(names.of(lock)),
        json_string(&lock.mode().to_string()),
        json_string(state(lock)),
        lock.process_id().map_or_else(|| String::from("null"), |process_id| process_id.to_string()),
        json_or_null(lock.role()),
        json_or_null(lock.application_name()),
        json_or_null(lock.client_address().map(|address| address.to_string()).as_deref()),
        json_or_null(lock.since().map(utc).as_deref()),
    )
}
