//! Instances of a service, of which one at a time leads and works, and somebody who watches who that is.

use std::error::Error;
use std::time::Duration;

use pglock::{Config, Election, Fence, LockManager, Observer};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut watch = instance("watcher")?.observe().every(Duration::from_millis(20));
    println!("at first: {}", leader(&mut watch).await?);

    let (terms, mut begun) = unbounded_channel();
    let ada = tokio::spawn(serve(instance("Ada")?, terms.clone()));
    println!("Ada is there: {}", leader(&mut watch).await?);
    let first = begun.recv().await;

    let ben = tokio::spawn(serve(instance("Ben")?, terms));
    // An instance ends, however that comes, and makes room for another.
    ada.abort();
    let second = begun.recv().await;
    println!("Ada is gone: Ben leads");
    // Storage remembers the highest token that it saw, and so turns away a leader of the past.
    println!("the token has risen: {}", first < second);

    ben.abort();
    let candidate = instance("Cleo")?;
    let leadership = candidate.campaign().await?;
    println!("Cleo leads: {}", leadership.is_leader());
    leadership.resign().await?;
    let elected = candidate.run(|_| sleep(Duration::from_millis(20))).await;
    println!("Cleo did what was to be done once, and resigned: {}", elected.is_ok());
    Ok(())
}

/// It stands for a process of its own, which has a name by which others know it.
fn instance(name: &str) -> pglock::Result<Election> {
    let mut config = Config::from_env()?;
    config.application_name(name);
    // One manager serves a whole process, for all that it locks.
    Ok(LockManager::new(config).election("example-manager-leader"))
}

/// Works while it leads, for as long as the process lives.
async fn serve(election: Election, terms: UnboundedSender<Fence>) -> pglock::Result<()> {
    election
        .run(|leadership| {
            let terms = terms.clone();
            async move {
                let _ = terms.send(leadership.fencing_token()?);
                loop {
                    // The work. It is dropped where it waits when the leadership is lost, and begun anew
                    // when this instance leads again.
                    sleep(Duration::from_millis(20)).await;
                }
            }
        })
        .await?
}

/// Who leads, once that has changed.
async fn leader(watch: &mut Observer) -> pglock::Result<String> {
    Ok(match watch.next().await? {
        Some(leader) => format!("{} leads", leader.application_name().unwrap_or("somebody")),
        None => "nobody leads".into(),
    })
}
