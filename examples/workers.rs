//! Many workers, of which one at a time is inside.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pglock::{Config, Lock};
use tokio::task::JoinSet;
use tokio::time::sleep;

const WORKERS: u32 = 8;
const TURNS: u32 = 5;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = Config::from_env()?;
    let room = Arc::new(Room::default());
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(config.clone(), Arc::clone(&room)));
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    println!("{WORKERS} workers took {TURNS} turns each");
    println!("turns counted: {}", room.turns.load(SeqCst));
    println!("most workers inside at a time: {}", room.most_inside.load(SeqCst));
    Ok(())
}

async fn work(config: Config, room: Arc<Room>) -> pglock::Result<()> {
    let mut lock = Lock::connect(&config, "example-workers").await?;
    for _ in 0..TURNS {
        lock.lock().await?;
        room.take_a_turn().await;
        lock.unlock().await?;
    }
    lock.close().await
}

#[derive(Default)]
struct Room {
    inside: AtomicU32,
    most_inside: AtomicU32,
    turns: AtomicU32,
}

impl Room {
    async fn take_a_turn(&self) {
        let inside = self.inside.fetch_add(1, SeqCst) + 1;
        self.most_inside.fetch_max(inside, SeqCst);
        // Read, work, write: turns that overlap would be counted as one.
        let turns = self.turns.load(SeqCst);
        sleep(Duration::from_millis(1)).await;
        self.turns.store(turns + 1, SeqCst);
        self.inside.fetch_sub(1, SeqCst);
    }
}
