//! Candidates, of which one at a time leads: it resigns or is lost, and the next takes over.

use std::error::Error;
use std::time::Duration;

use pglock::{Config, Lock};
use tokio::sync::oneshot::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = Config::from_env()?;
    let ada = Candidate::stand("Ada", &config).await?;
    ada.leads.await?;
    println!("Ada leads");

    let ben = Candidate::stand("Ben", &config).await?;
    println!("Ben campaigns");
    let _ = ada.end_of_term.send(());
    ben.leads.await?;
    println!("Ben leads");
    ada.task.await??;

    let cleo = Candidate::stand("Cleo", &config).await?;
    println!("Cleo campaigns");
    let _ = ben.end_of_term.send(());
    cleo.leads.await?;
    println!("Cleo leads");
    ben.task.await??;

    let _ = cleo.end_of_term.send(());
    cleo.task.await??;
    Ok(())
}

/// A task that stands for a process of its own.
struct Candidate {
    leads: Receiver<()>,
    end_of_term: Sender<()>,
    task: JoinHandle<pglock::Result<()>>,
}

impl Candidate {
    async fn stand(name: &'static str, config: &Config) -> pglock::Result<Self> {
        let lock = Lock::connect(config, "example-leader").await?;
        let (elected, leads) = oneshot::channel();
        let (end_of_term, term) = oneshot::channel();
        let task = tokio::spawn(campaign(name, lock, elected, term));
        Ok(Self { leads, end_of_term, task })
    }
}

async fn campaign(
    name: &'static str,
    mut lock: Lock,
    elected: Sender<()>,
    term: Receiver<()>,
) -> pglock::Result<()> {
    lock.lock().await?;
    let _ = elected.send(());
    let outcome = lead(&mut lock, term).await;
    match &outcome {
        Ok(()) => println!("{name} resigns"),
        // Somebody else may lead already. The candidate may stand again, with a new lock.
        Err(reason) => println!("{name} does not lead any more: {reason}"),
    }
    // Releases the lock, or repeats why it was lost.
    lock.close().await
}

async fn lead(lock: &mut Lock, term: Receiver<()>) -> pglock::Result<()> {
    // The leader's work is dropped as soon as the lock is known to be lost.
    lock.hold(sleep(Duration::from_millis(20))).await?;
    // Between two pieces of work, the same by hand.
    tokio::select! {
        reason = lock.lost() => Err(reason),
        _ = term => Ok(()),
    }
}
