//! Keys that queue for a session, each once.

use std::collections::{BTreeSet, VecDeque};

use crate::key::Key;

#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    order: VecDeque<Key>,
    members: BTreeSet<Key>,
}

impl KeyQueue {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.order.iter()
    }

    /// Has no effect on a key that is there.
    pub(super) fn push_back(&mut self, key: Key) {
        if self.members.insert(key) {
            self.order.push_back(key);
        }
    }

    /// As [`push_back`](Self::push_back), for one that was taken out too early.
    pub(super) fn push_front(&mut self, key: Key) {
        if self.members.insert(key) {
            self.order.push_front(key);
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Key> {
        let key = self.order.pop_front()?;
        self.members.remove(&key);
        Some(key)
    }

    /// Takes all of them.
    pub(super) fn drain(&mut self) -> VecDeque<Key> {
        self.members.clear();
        std::mem::take(&mut self.order)
    }
}
