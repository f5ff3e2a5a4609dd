//! What the subcommands look at, and what they say of a lock: names for its key, and who has it.

use std::collections::BTreeMap;
use std::env;
use std::fmt::{self, Write};

use clap::Args;
use pglock::{AdvisoryLock, Key, Mode, Session};

use crate::exit::{Failure, say};
use crate::key::{KeyAs, NamedKey, class_of, numbers};
use crate::output::{shown, utc};

/// What a session calls itself that holds a lock of this crate, before the key.
const APPLICATION_PREFIX: &str = "pglock ";

/// The second number of the key on which one waits for a permit. Those of permits are from 0 on.
const TURNSTILE: i32 = -1;

/// What a subcommand is to look at.
#[derive(Args, Debug)]
pub(crate) struct SubjectArgs {
    /// Look at the permits of this name (see --permits of pglock run), and not at its key
    #[arg(long, conflicts_with = "key_as")]
    permits: bool,
    /// What the KEY is, where it could be read in several ways
    #[arg(long, value_name = "KIND")]
    key_as: Option<KeyAs>,
    /// The key: a number, two with a comma between, or a name
    #[arg(allow_negative_numbers = true, allow_hyphen_values = true)]
    key: String,
}

/// One key, or the permits of a name.
pub(crate) enum Subject {
    Key(NamedKey),
    Permits { name: NamedKey, class: Option<i32> },
}

impl Subject {
    pub(crate) fn new(args: &SubjectArgs) -> Result<Self, Failure> {
        if args.permits {
            let name = NamedKey::parse(&args.key, Some(KeyAs::Name))?;
            return Ok(Self::Permits { class: class_of(&name.text), name });
        }
        Ok(Self::Key(NamedKey::parse(&args.key, args.key_as)?))
    }

    /// Who holds it and who waits for it.
    pub(crate) async fn locks(&self, session: &mut Session) -> Result<Vec<AdvisoryLock>, Failure> {
        let class = match self {
            Self::Key(key) => {
                return Ok(session.advisory_locks_on(key.key).await?.listed().to_vec());
            }
            Self::Permits { class, .. } => *class,
        };
        let locks = session.advisory_locks().await?;
        let listed = locks.listed();
        if u64::try_from(listed.len()).is_ok_and(|listed| listed < locks.count()) {
            say(format_args!(
                "{self}: there may be more than said, for the server told of {} of {} advisory locks",
                listed.len(),
                locks.count()
            ));
        }
        let is_meant = |lock: &&AdvisoryLock| {
            numbers(lock.key()).is_some_and(|(of, object)| Some(of) == class && object >= TURNSTILE)
        };
        Ok(listed.iter().filter(is_meant).cloned().collect())
    }

    /// Whether this is held, and not only waited for.
    pub(crate) fn is_held_by(&self, lock: &AdvisoryLock) -> bool {
        lock.is_granted() && self.permit(lock) != Some(TURNSTILE)
    }

    /// The session and what it does, as a line.
    pub(crate) fn line(&self, lock: &AdvisoryLock) -> String {
        let manner = match lock.mode() {
            Mode::Exclusive => "exclusively",
            Mode::Shared => "shared",
        };
        let (what, since) = match (self.permit(lock), lock.is_granted()) {
            // Who is next asks again and again: its session does not tell since when.
            (Some(TURNSTILE), true) => (String::from("waits for a permit, as the next"), None),
            (Some(TURNSTILE), false) => (String::from("waits for a permit"), lock.since()),
            (Some(permit), true) => (format!("holds permit {permit}"), lock.since()),
            (Some(permit), false) => (format!("waits for permit {permit}"), lock.since()),
            (None, true) => (format!("holds it {manner}"), lock.since()),
            (None, false) => (format!("waits for it {manner}"), lock.since()),
        };
        let or_earlier = if lock.is_granted() { " or earlier" } else { "" };
        let since = since.map(|since| format!(" since {}{or_earlier}", utc(since)));
        format!("{} {what}{}", session(lock), since.unwrap_or_default())
    }

    /// The permit's number, or that of the wait for one.
    fn permit(&self, lock: &AdvisoryLock) -> Option<i32> {
        match self {
            Self::Key(_) => None,
            Self::Permits { .. } => numbers(lock.key()).map(|(_, object)| object),
        }
    }
}

/// In a diagnostic.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => key.fmt(f),
            Self::Permits { name, .. } => write!(f, "a permit of {:?}", name.text),
        }
    }
}

/// Names whose keys are known, and the classes of the keys of their permits.
#[derive(Debug, Default)]
pub(crate) struct Names {
    keys: BTreeMap<Key, String>,
    classes: BTreeMap<i32, String>,
}

impl Names {
    /// The names given, and those that the variable `PGLOCK_NAMES` lists, with commas between.
    pub(crate) fn new(given: &[String]) -> Self {
        let listed = env::var("PGLOCK_NAMES").unwrap_or_default();
        let listed = listed.split(',').map(str::trim).filter(|name| !name.is_empty());
        let mut names = Self::default();
        for name in listed.chain(given.iter().map(String::as_str)) {
            names.keys.insert(Key::from_name(name), name.to_owned());
            names.classes.extend(class_of(name).map(|class| (class, name.to_owned())));
        }
        names
    }

    /// The name of the lock's key, if it is known, or if the session that has it is called by it, as those
    /// of the command `pglock` are: its hash shows whether that is true.
    pub(crate) fn of<'a>(&'a self, lock: &'a AdvisoryLock) -> Option<&'a str> {
        let of_permits = || self.classes.get(&numbers(lock.key())?.0);
        let known = self.keys.get(&lock.key()).or_else(of_permits).map(String::as_str);
        known.or_else(|| told_by_application(lock.key(), lock.application_name()?))
    }

    /// Learns the names that sessions are called by.
    pub(crate) fn learn(&mut self, locks: &[AdvisoryLock]) {
        for lock in locks {
            if let Some(name) = self.of(lock).map(String::from) {
                if let Some((class, _)) = numbers(lock.key()) {
                    self.classes.entry(class).or_insert_with(|| name.clone());
                }
                self.keys.entry(lock.key()).or_insert(name);
            }
        }
    }
}

fn told_by_application(key: Key, application: &str) -> Option<&str> {
    let class = numbers(key).map(|(class, _)| class);
    let is_of = |name: &&str| {
        Key::from_name(name) == key || class.is_some_and(|class| class_of(name) == Some(class))
    };
    [application.strip_prefix(APPLICATION_PREFIX), Some(application)]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty() && is_of(name))
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
        let permit = Key::pair(class_of("nightly report").unwrap(), 0);
        assert_eq!(told_by_application(permit, "pglock nightly report"), Some("nightly report"));
        assert_eq!(told_by_application(Key::pair(0, 0), "pglock nightly report"), None);
    }
}
