//! Keys that queue for a session, each once.

use std::collections::BTreeMap;
use std::collections::btree_map::IntoValues;
use std::mem;

use crate::key::Key;

#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    /// In order, by numbers that rise.
    order: BTreeMap<i64, Key>,
    numbers: BTreeMap<Key, i64>,
}

impl KeyQueue {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.order.values()
    }

    /// Has no effect on a key that is there.
    pub(super) fn push_back(&mut self, key: Key) {
        let last = self.order.last_key_value().map_or(0, |(number, _)| *number);
        self.insert(last + 1, key);
    }

    /// As [`push_back`](Self::push_back), for one that was taken out too early.
    pub(super) fn push_front(&mut self, key: Key) {
        let first = self.order.first_key_value().map_or(0, |(number, _)| *number);
        self.insert(first - 1, key);
    }

    fn insert(&mut self, number: i64, key: Key) {
        if *self.numbers.entry(key).or_insert(number) == number {
            self.order.insert(number, key);
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Key> {
        let (_, key) = self.order.pop_first()?;
        self.numbers.remove(&key);
        Some(key)
    }

    pub(super) fn remove(&mut self, key: Key) {
        if let Some(number) = self.numbers.remove(&key) {
            self.order.remove(&number);
        }
    }

    /// Takes all of them.
    pub(super) fn drain(&mut self) -> IntoValues<i64, Key> {
        self.numbers.clear();
        mem::take(&mut self.order).into_values()
    }
}
