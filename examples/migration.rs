//! Instances of a service that start together: one of them migrates the schema, the others wait for it.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pglock::{Config, Lock};
use tokio::task::JoinSet;
use tokio::time::sleep;

const INSTANCES: u32 = 4;
const WANTED: u32 = 2;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut config = Config::from_env()?;
    // A migration that builds an index concurrently waits for all who wait for the lock.
    config.wait_slice(Duration::from_secs(5));
    // Stands for the row in the database that says which version its schema has.
    let schema = Arc::new(AtomicU32::new(1));
    let mut instances = JoinSet::new();
    for _ in 0..INSTANCES {
        instances.spawn(start(config.clone(), Arc::clone(&schema)));
    }
    while let Some(instance) = instances.join_next().await {
        instance??;
    }
    println!("{INSTANCES} instances serve version {}", schema.load(SeqCst));
    Ok(())
}

async fn start(config: Config, schema: Arc<AtomicU32>) -> pglock::Result<()> {
    let mut lock = Lock::connect(&config, "example-migration").await?;
    lock.lock().await?;
    // Looked up only now: whoever had the lock before may have migrated.
    match schema.load(SeqCst) {
        WANTED => println!("an instance finds version {WANTED}"),
        older => {
            println!("an instance migrates from version {older} to {WANTED}");
            // If the session is lost, another instance may begin to migrate: this one then stops.
            lock.hold(migrate(&schema)).await?;
        }
    }
    lock.close().await
}

async fn migrate(schema: &AtomicU32) {
    sleep(Duration::from_millis(200)).await; // The work.
    schema.store(WANTED, SeqCst);
}
