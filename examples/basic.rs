//! The life of a lock: taken, taken again, given back as often, closed.

use pglock::{Config, ErrorKind, Lock, Mode};

const NAME: &str = "example-basic";

#[tokio::main]
async fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    let mut lock = Lock::connect(&config, NAME).await?;
    let mut other = Lock::connect(&config, NAME).await?;

    lock.lock().await?;
    println!("lock: level {}", lock.level(Mode::Exclusive));

    // Locks stack, so a function may lock what its caller has locked already.
    lock.lock().await?;
    println!("lock again: level {}", lock.level(Mode::Exclusive));

    lock.unlock().await?;
    println!("unlock: level {}", lock.level(Mode::Exclusive));
    println!("another session tries: {}", other.try_lock().await?);

    lock.unlock().await?;
    println!("unlock: level {}", lock.level(Mode::Exclusive));
    println!("another session tries: {}", other.try_lock().await?);

    // An unlock too many is a mistake in the program, and is told.
    match lock.unlock().await {
        Err(error) if error.kind() == ErrorKind::NotHeld => println!("unlock: {error}"),
        outcome => outcome?,
    }

    // Whatever is still held is released with the session.
    other.close().await?;
    println!("the other session closes; lock tries: {}", lock.try_lock().await?);
    lock.close().await
}
