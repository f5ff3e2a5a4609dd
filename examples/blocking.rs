//! Threads without a runtime, one at a time inside.

use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use pglock::Config;
use pglock::blocking::Lock;

const NAME: &str = "example-blocking";
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> pglock::Result<()> {
    let config = Config::from_env()?;
    let mut first = Lock::connect(&config, NAME)?;
    assert!(first.lock_timeout(PATIENCE)?);
    println!("the first one is inside");

    let second = thread::spawn(move || {
        let mut second = Lock::connect(&config, NAME)?;
        if !second.try_lock()? {
            println!("the second one waits: {} is inside", second.holders()?.holders().len());
            second.lock()?;
        }
        // Says afterwards whether the lock was held to the end.
        second.hold(|| println!("the second one is inside"))?;
        second.close()
    });
    // There is somebody who waits, before the lock is given up.
    while first.holders()?.waiting() == 0 {
        thread::sleep(Duration::from_millis(10));
    }
    println!("the first one leaves");
    first.unlock()?;
    second.join().unwrap_or_else(|panic| resume_unwind(panic))?;
    first.close()
}
