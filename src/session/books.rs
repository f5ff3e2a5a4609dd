//! Which locks a session holds, and how many times over.

use super::advisory::LockId;

/// The levels of each lock. The server knows of one, from the first until the last is released.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// In the order of the locks. There are few: the server has room for thousands at most.
    entries: Vec<(LockId, u64)>,
}

impl Books {
    pub(super) fn level(&self, lock: LockId) -> u64 {
        self.find(lock).ok().and_then(|at| self.entries.get(at)).map_or(0, |&(_, level)| level)
    }

    /// Whether no lock is held.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One of the locks that are held.
    pub(super) fn any(&self) -> Option<LockId> {
        self.entries.first().map(|&(lock, _)| lock)
    }

    /// Adds a level to a lock that is held. The result says whether it is.
    pub(super) fn stack(&mut self, lock: LockId) -> bool {
        self.level_mut(lock).map(|level| *level += 1).is_some()
    }

    /// Enters a lock that the server granted.
    pub(super) fn enter(&mut self, lock: LockId) {
        if let Err(at) = self.find(lock) {
            self.entries.insert(at, (lock, 1));
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
        if let Ok(at) = self.find(lock) {
            self.entries.remove(at);
        }
    }

    /// Strikes out everything: the session is gone.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Where the lock is entered, or where it would have to be.
    fn find(&self, lock: LockId) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&lock, |&(entered, _)| entered)
    }

    fn level_mut(&mut self, lock: LockId) -> Option<&mut u64> {
        let at = self.find(lock).ok()?;
        self.entries.get_mut(at).map(|(_, level)| level)
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
