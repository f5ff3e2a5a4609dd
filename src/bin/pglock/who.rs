//! `pglock who`: who holds a key, and who waits for it.

use clap::Args;
use pglock::Session;

use crate::exit::Failure;
use crate::key::{KeyAs, NamedKey};
use crate::locks::line;
use crate::output::print;
use crate::server::Server;

/// What says that the key is free, as fuser(1) says of a file that nobody uses.
const FREE: u8 = 1;

#[derive(Args, Debug)]
pub(crate) struct WhoArgs {
    /// What the KEY is, where it could be read in several ways
    #[arg(long, value_name = "KIND")]
    key_as: Option<KeyAs>,
    /// The key: a number, two with a comma between, or a name
    #[arg(allow_negative_numbers = true, allow_hyphen_values = true)]
    key: String,
}

pub(crate) async fn who(args: &WhoArgs, server: &Server) -> Result<u8, Failure> {
    let key = NamedKey::parse(&args.key, args.key_as)?.key;
    let mut session = Session::connect(&server.config("pglock who")?).await?;
    let locks = session.advisory_locks_on(key).await?;
    let lines: String = locks.listed().iter().map(|lock| line(lock) + "\n").collect();
    print(&lines)?;
    let is_held = locks.listed().iter().any(pglock::AdvisoryLock::is_granted);
    Ok(if is_held { 0 } else { FREE })
}
