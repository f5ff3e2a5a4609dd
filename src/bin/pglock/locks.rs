//! What the subcommands say of a lock: names for its key, and who has it.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;

use pglock::{AdvisoryLock, Key, Mode};

use crate::output::{shown, utc};

/// What a session calls itself that holds a lock of this crate, before the key.
const APPLICATION_PREFIX: &str = "pglock ";

/// Names whose keys are known.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<Key, String>);

impl Names {
    /// The names given, and those that the variable `PGLOCK_NAMES` lists, with commas between.
    pub(crate) fn new(given: &[String]) -> Self {
        let listed = env::var("PGLOCK_NAMES").unwrap_or_default();
        let listed = listed.split(',').map(str::trim).filter(|name| !name.is_empty());
        let mut names = Self::default();
        for name in listed.chain(given.iter().map(String::as_str)) {
            names.0.insert(Key::from_name(name), name.to_owned());
        }
        names
    }

    /// The name of the lock's key, if it is known, or if the session that has it is called by it, as those
    /// of the command `pglock` are: its hash shows whether that is true.
    pub(crate) fn of<'a>(&'a self, lock: &'a AdvisoryLock) -> Option<&'a str> {
        let known = self.0.get(&lock.key()).map(String::as_str);
        known.or_else(|| told_by_application(lock.key(), lock.application_name()?))
    }

    /// Learns the names that sessions are called by.
    pub(crate) fn learn(&mut self, locks: &[AdvisoryLock]) {
        for lock in locks {
            if let Some(name) = self.of(lock).map(String::from) {
                self.0.entry(lock.key()).or_insert(name);
            }
        }
    }
}

fn told_by_application(key: Key, application: &str) -> Option<&str> {
    [application.strip_prefix(APPLICATION_PREFIX), Some(application)]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty() && Key::from_name(name) == key)
}

/// The session of a lock, such as `process 4711 of app "nightly" at 10.0.0.7`.
pub(crate) fn session(lock: &AdvisoryLock) -> String {
    let mut text = match lock.process_id() {
        Some(process_id) => format!("process {process_id}"),
        None => return String::from("a prepared transaction"),
    };
    if let Some(name) = lock.application_name().filter(|name| !name.is_empty()) {
        // Writing to a string does not fail.
        let _ = write!(text, " of app \"{}\"", shown(name));
    }
    if let Some(role) = lock.role() {
        let _ = write!(text, " by role \"{}\"", shown(role));
    }
    if let Some(address) = lock.client_address() {
        let _ = write!(text, " at {address}");
    }
    text
}

/// The session and what it does, as a line.
pub(crate) fn line(lock: &AdvisoryLock) -> String {
    let manner = match lock.mode() {
        Mode::Exclusive => "exclusively",
        Mode::Shared => "shared",
    };
    let since = lock.since().map(utc);
    match (lock.is_granted(), since) {
        (true, Some(since)) => {
            format!("{} holds it {manner} since {since} or earlier", session(lock))
        }
        (true, None) => format!("{} holds it {manner}", session(lock)),
        (false, Some(since)) => {
            format!("{} waits for it {manner} since {since}", session(lock))
        }
        (false, None) => format!("{} waits for it {manner}", session(lock)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_tells_a_name_only_if_it_is_the_keys() {
        let key = Key::from_name("nightly report");
        for application in ["pglock nightly report", "nightly report"] {
            assert_eq!(told_by_application(key, application), Some("nightly report"));
        }
        for application in ["pglock nightly", "nightly reports", "pglock ", ""] {
            assert_eq!(told_by_application(key, application), None);
        }
        assert_eq!(told_by_application(Key::from_name(""), ""), None);
    }
}
