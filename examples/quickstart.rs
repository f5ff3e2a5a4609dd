//! Two contenders for one lock: who gets it, who waits for it, and how it changes hands.
//!
//! Each has a session of its own, as two programs on two machines would.

use std::time::Duration;

use pglock::{Config, Lock, Mode};
use tokio::time::sleep;

const NAME: &str = "example-quickstart";

#[tokio::main]
async fn main() -> pglock::Result<()> {
    // DATABASE_URL, or libpq's variables PGHOST, PGUSER and so on.
    let config = Config::from_env()?;
    let mut alice = Lock::connect(&config, NAME).await?;
    let mut bob = Lock::connect(&config, NAME).await?;
    show("both are connected", &alice, &bob);

    let acquired = alice.try_lock().await?;
    show(&format!("Alice tries: {acquired}"), &alice, &bob);

    let acquired = bob.try_lock().await?;
    show(&format!("Bob tries: {acquired}"), &alice, &bob);

    let acquired = bob.lock_timeout(Duration::from_millis(100)).await?;
    show(&format!("Bob waits for 100 ms: {acquired}"), &alice, &bob);

    println!("Bob waits for as long as it takes, while Alice works");
    let wait = async {
        bob.lock().await?;
        println!("Bob has it");
        Ok(())
    };
    let work = async {
        sleep(Duration::from_millis(200)).await;
        println!("Alice is done and unlocks");
        alice.unlock().await
    };
    tokio::try_join!(wait, work)?;
    show("the lock has changed hands", &alice, &bob);

    let acquired = alice.try_lock().await?;
    show(&format!("Alice tries: {acquired}"), &alice, &bob);

    // When close returns, the server has released whatever the session held.
    bob.close().await?;
    println!("Bob closes his session; Alice tries: {}", alice.try_lock().await?);
    alice.close().await
}

fn show(step: &str, alice: &Lock, bob: &Lock) {
    let holder = match [alice, bob].map(|lock| lock.level(Mode::Exclusive)) {
        [0, 0] => "nobody",
        [_, 0] => "Alice",
        [0, _] => "Bob",
        _ => "both, which cannot be",
    };
    println!("{step:<28} held by {holder}");
}
