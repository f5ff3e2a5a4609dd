//! Which locks a session holds, and how many times over.

use std::collections::BTreeMap;

use super::advisory::LockId;

/// The levels of each lock. The server knows of one, from the first until the last is released.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// The lock that was entered last, if it is still held: most sessions never hold another.
    latest: Option<(LockId, u64)>,
    /// The locks that were entered before.
    earlier: BTreeMap<LockId, u64>,
}

impl Books {
    pub(super) fn level(&self, lock: LockId) -> u64 {
        match self.latest {
            Some((latest, level)) if latest == lock => level,
            _ => self.earlier.get(&lock).copied().unwrap_or(0),
        }
    }

    /// Whether no lock is held.
    pub(super) fn is_empty(&self) -> bool {
        self.latest.is_none() && self.earlier.is_empty()
    }

    /// One of the locks that are held.
    pub(super) fn any(&self) -> Option<LockId> {
        let latest = self.latest.map(|(lock, _)| lock);
        latest.or_else(|| self.earlier.keys().next().copied())
    }

    /// Adds a level to a lock that is held. The result says whether it is.
    pub(super) fn stack(&mut self, lock: LockId) -> bool {
        self.level_mut(lock).map(|level| *level += 1).is_some()
    }

    /// Enters a lock that the server granted.
    pub(super) fn enter(&mut self, lock: LockId) {
        if let Some((earlier, level)) = self.latest.replace((lock, 1)) {
            self.earlier.insert(earlier, level);
        }
    }

    /// Takes a level off that is not the last one.
    pub(super) fn unstack(&mut self, lock: LockId) {
        if let Some(level @ 2..) = self.level_mut(lock) {
            *level -= 1;
        }
    }

    /// Strikes out a lock that the server is told to release.
    pub(super) fn strike(&mut self, lock: LockId) {
        if self.latest.take_if(|(latest, _)| *latest == lock).is_none() {
            self.earlier.remove(&lock);
        }
    }

    /// Strikes out everything: the session is gone.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn level_mut(&mut self, lock: LockId) -> Option<&mut u64> {
        match &mut self.latest {
            Some((latest, level)) if *latest == lock => Some(level),
            _ => self.earlier.get_mut(&lock),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, Mode};

    #[test]
    fn each_lock_has_its_level_whichever_was_entered_last() {
        let [a, b, c] =
            [1, 2, 3].map(|key| LockId { key: Key::bigint(key), mode: Mode::Exclusive });
        let mut books = Books::default();
        assert!(books.is_empty() && !books.stack(a));
        for lock in [a, b, c] {
            books.enter(lock);
        }
        assert!(books.stack(a) && books.stack(c));
        assert_eq!([a, b, c].map(|lock| books.level(lock)), [2, 1, 2]);
        for lock in [a, b, c] {
            books.unstack(lock);
        }
        assert_eq!([a, b, c].map(|lock| books.level(lock)), [1, 1, 1]);
        books.strike(c);
        books.strike(a);
        assert_eq!([a, b, c].map(|lock| books.level(lock)), [0, 1, 0]);
        assert_eq!(books.any(), Some(b));
        books.enter(a);
        books.strike(b);
        assert_eq!(books.any(), Some(a));
        books.clear();
        assert!(books.is_empty() && books.any().is_none());
    }
}
