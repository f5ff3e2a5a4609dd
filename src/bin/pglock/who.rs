//! `pglock who`: who holds a key, and who waits for it.

use clap::Args;
use pglock::Session;

use crate::exit::Failure;
use crate::locks::{Subject, SubjectArgs};
use crate::output::print;
use crate::server::Server;

/// What says that the key is free, as fuser(1) says of a file that nobody uses.
const FREE: u8 = 1;

#[derive(Args, Debug)]
pub(crate) struct WhoArgs {
    #[command(flatten)]
    subject: SubjectArgs,
}

pub(crate) async fn who(args: &WhoArgs, server: &Server) -> Result<u8, Failure> {
    let subject = Subject::new(&args.subject)?;
    let mut session = Session::connect(&server.config("pglock who")?).await?;
    let locks = subject.locks(&mut session).await?;
    let lines: String = locks.iter().map(|lock| subject.line(lock) + "\n").collect();
    print(&lines)?;
    let is_held = locks.iter().any(|lock| subject.is_held_by(lock));
    Ok(if is_held { 0 } else { FREE })
}
