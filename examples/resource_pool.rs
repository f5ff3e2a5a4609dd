//! A pool of three resources that any number of clients share: one key for each slot.

use pglock::{Config, Key, Mode, Session};

/// The first half of every key of the pool, so that its slots are nobody else's keys.
const POOL: i32 = 0x706f_6f6c;
const SLOTS: i32 = 3;

#[tokio::main]
async fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    let ann = Client::connect("Ann", &config).await?;
    let bert = Client::connect("Bert", &config).await?;
    let carl = Client::connect("Carl", &config).await?;
    let mut dora = Client::connect("Dora", &config).await?;

    bert.leave().await?;
    dora.take_slot().await?;

    for client in [ann, carl, dora] {
        client.leave().await?;
    }
    Ok(())
}

struct Client {
    name: &'static str,
    session: Session,
}

impl Client {
    async fn connect(name: &'static str, config: &Config) -> pglock::Result<Self> {
        let mut client = Self { name, session: Session::connect(config).await? };
        client.take_slot().await?;
        Ok(client)
    }

    /// Takes the first slot that is free. Clients that look at the same time get different ones.
    async fn take_slot(&mut self) -> pglock::Result<Option<i32>> {
        for slot in 0..SLOTS {
            if self.session.try_lock(Key::pair(POOL, slot), Mode::Exclusive).await? {
                println!("{} takes slot {slot}", self.name);
                return Ok(Some(slot));
            }
        }
        println!("{} finds every slot taken", self.name);
        Ok(None)
    }

    /// Releases what the client holds, if anything.
    async fn leave(self) -> pglock::Result<()> {
        println!("{} leaves", self.name);
        self.session.close().await
    }
}
