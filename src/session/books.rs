//! Which locks a session holds, and how many times over.

use super::advisory::LockId;

/// How many locks a bucket has on average before there are twice as many buckets.
const LOCKS_PER_BUCKET: usize = 8;

/// The levels of each lock. The server knows of one, from the first until the last is released.
///
/// It is a hash table of its own: the standard library's would be a hundredth of a minimal program, and its
/// trees would allocate each time that the only lock is taken. What has been allocated is kept.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// None, or a power of two. A lock is in the one that its hash says.
    buckets: Vec<Vec<(LockId, u64)>>,
    locks: usize,
}

impl Books {
    pub(super) fn level(&self, lock: LockId) -> u64 {
        let bucket = self.buckets.get(self.place(lock)).map_or(&[][..], Vec::as_slice);
        bucket.iter().find(|(entered, _)| *entered == lock).map_or(0, |&(_, level)| level)
    }

    /// Whether no lock is held.
    pub(super) fn is_empty(&self) -> bool {
        self.locks == 0
    }

    /// One of the locks that are held.
    pub(super) fn any(&self) -> Option<LockId> {
        self.buckets.iter().find_map(|bucket| bucket.last()).map(|&(lock, _)| lock)
    }

    /// Adds a level to a lock that is held. The result says whether it is.
    pub(super) fn stack(&mut self, lock: LockId) -> bool {
        self.level_mut(lock).map(|level| *level += 1).is_some()
    }

    /// Enters a lock that the server granted.
    pub(super) fn enter(&mut self, lock: LockId) {
        if self.level(lock) > 0 {
            return;
        }
        if self.locks >= self.buckets.len() * LOCKS_PER_BUCKET {
            self.grow();
        }
        self.put(lock, 1);
        self.locks += 1;
    }

    /// Takes a level off that is not the last one.
    pub(super) fn unstack(&mut self, lock: LockId) {
        if let Some(level @ 2..) = self.level_mut(lock) {
            *level -= 1;
        }
    }

    /// Strikes out a lock that the server is told to release.
    pub(super) fn strike(&mut self, lock: LockId) {
        let place = self.place(lock);
        let Some(bucket) = self.buckets.get_mut(place) else { return };
        if let Some(at) = bucket.iter().position(|(entered, _)| *entered == lock) {
            bucket.swap_remove(at);
            self.locks -= 1;
        }
    }

    /// Strikes out everything: the session is gone.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn level_mut(&mut self, lock: LockId) -> Option<&mut u64> {
        let place = self.place(lock);
        let mut bucket = self.buckets.get_mut(place)?.iter_mut();
        bucket.find(|(entered, _)| *entered == lock).map(|(_, level)| level)
    }

    fn put(&mut self, lock: LockId, level: u64) {
        let place = self.place(lock);
        if let Some(bucket) = self.buckets.get_mut(place) {
            bucket.push((lock, level));
        }
    }

    #[cold]
    fn grow(&mut self) {
        let count = (self.buckets.len() * 2).max(1);
        let filled = std::mem::replace(&mut self.buckets, vec![Vec::new(); count]);
        for (lock, level) in filled.into_iter().flatten() {
            self.put(lock, level);
        }
    }

    /// In which bucket the lock is, or would be.
    fn place(&self, lock: LockId) -> usize {
        // The uppermost bits of the product depend on all of the key's (Knuth's multiplicative hashing).
        let product = lock.key.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let others = u64::BITS - self.buckets.len().trailing_zeros();
        product.checked_shr(others).map_or(0, |place| usize::try_from(place).unwrap_or(0))
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

    #[test]
    fn many_locks_are_all_found_again() {
        let mut books = Books::default();
        let locks = || {
            let keys =
                (-1_000..1_000).flat_map(|n| [Key::bigint(i64::from(n) << 40), Key::pair(n, 0)]);
            keys.flat_map(|key| [Mode::Exclusive, Mode::Shared].map(|mode| LockId { key, mode }))
        };
        locks().for_each(|lock| books.enter(lock));
        assert!(locks().all(|lock| books.level(lock) == 1 && books.stack(lock)));
        let fullest = books.buckets.iter().map(Vec::len).max();
        assert!(fullest < Some(10 * LOCKS_PER_BUCKET), "{fullest:?} locks in a bucket");
        locks().filter(|lock| lock.mode == Mode::Shared).for_each(|lock| books.strike(lock));
        assert!(
            locks().all(|lock| books.level(lock) == if lock.mode == Mode::Shared { 0 } else { 2 })
        );
        while let Some(lock) = books.any() {
            books.strike(lock);
        }
        assert!(books.is_empty());
    }
}
