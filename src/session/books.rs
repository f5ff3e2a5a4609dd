//! Which locks a session holds, and how many times over.

use std::collections::BTreeMap;

use super::advisory::LockId;

/// The levels of each lock. The server knows of one, from the first until the last is released.
#[derive(Debug, Default)]
pub(super) struct Books {
    levels: BTreeMap<LockId, u64>,
}

impl Books {
    pub(super) fn level(&self, lock: LockId) -> u64 {
        self.levels.get(&lock).copied().unwrap_or(0)
    }

    /// Whether no lock is held.
    pub(super) fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// One of the locks that are held.
    pub(super) fn any(&self) -> Option<LockId> {
        self.levels.keys().next().copied()
    }

    /// Adds a level to a lock that is held. The result says whether it is.
    pub(super) fn stack(&mut self, lock: LockId) -> bool {
        self.levels.get_mut(&lock).map(|level| *level += 1).is_some()
    }

    /// Enters a lock that the server granted.
    pub(super) fn enter(&mut self, lock: LockId) {
        self.levels.insert(lock, 1);
    }

    /// Takes a level off that is not the last one.
    pub(super) fn unstack(&mut self, lock: LockId) {
        if let Some(level @ 2..) = self.levels.get_mut(&lock) {
            *level -= 1;
        }
    }

    /// Strikes out a lock that the server is told to release.
    pub(super) fn strike(&mut self, lock: LockId) {
        self.levels.remove(&lock);
    }

    /// Strikes out everything: the session is gone.
    pub(super) fn clear(&mut self) {
        self.levels.clear();
    }
}
