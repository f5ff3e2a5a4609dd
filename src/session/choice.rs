//! One of several locks, whichever is free, found in one round trip.

use super::advisory::LockId;
use crate::holders::IS_ADVISORY;
use crate::key::{Key, Mode};

/// Keys of one class, of which an exclusive lock on any is wanted.
///
/// The server tries one after the other and stops at the first that it gets, so it never takes two. None of
/// them may be held by the session that asks: the server would grant it once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The first number of each key.
    pub(crate) class: i32,
    /// The second numbers, in the order in which they are to be tried.
    pub(crate) objects: Vec<i32>,
    /// None is taken while another session has this key of the class exclusively, or waits to have it.
    pub(crate) unless_taken: Option<i32>,
}

impl Choice {
    /// The locks, in the order in which they are to be tried.
    pub(crate) fn locks(&self) -> impl Iterator<Item = LockId> {
        self.objects.iter().map(|object| self.lock(*object))
    }

    fn lock(&self, object: i32) -> LockId {
        LockId { key: Key::pair(self.class, object), mode: Mode::Exclusive }
    }

    /// The query that tries them. Its row says which process tried, and which of them it got, as a number
    /// from 1 on.
    ///
    /// The server works a recursive query off row by row, and the next row is there only if the last one got
    /// nothing. Numbers are written as texts: SQL cannot write the smallest otherwise.
    pub(super) fn query(&self, scope: &str) -> String {
        let (class, count) = (self.class, self.objects.len());
        let objects: Vec<_> = self.objects.iter().map(i32::to_string).collect();
        let objects = objects.join(",");
        let condition = match self.unless_taken {
            None => String::new(),
            Some(object) => format!(
                " WHERE CASE WHEN \
                 pg_catalog.pg_try_advisory_lock_shared('{class}'::integer, '{object}'::integer) THEN \
                 pg_catalog.pg_advisory_unlock_shared('{class}'::integer, '{object}'::integer) \
                 ELSE false END"
            ),
        };
        format!(
            "/* pglock slots of {class} */ \
             WITH RECURSIVE attempt(n, got) AS (SELECT 0, false{condition} \
             UNION ALL SELECT n OPERATOR(pg_catalog.+) 1, \
             pg_catalog.pg_try_advisory_{scope}lock('{class}'::integer, \
             ('{{{objects}}}'::integer[])[n OPERATOR(pg_catalog.+) 1]) \
             FROM attempt WHERE NOT got AND n OPERATOR(pg_catalog.<) {count}) \
             SELECT pg_catalog.pg_backend_pid(), (SELECT n FROM attempt WHERE got)"
        )
    }

    /// Reads the row: the lock that was acquired, if any was.
    pub(super) fn acquired(&self, row: &[Option<String>]) -> Result<Option<LockId>, Unreadable> {
        let [_, number] = row else { return Err(Unreadable) };
        let Some(number) = number else { return Ok(None) };
        let at = number.parse().ok().and_then(|number: usize| number.checked_sub(1));
        let object = at.and_then(|at| self.objects.get(at)).ok_or(Unreadable)?;
        Ok(Some(self.lock(*object)))
    }
}

/// The row is not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Keys of one class whose second numbers are in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) class: i32,
    pub(crate) first: i32,
    /// Not below the first one, and as it is negative or not.
    pub(crate) last: i32,
}

impl Range {
    /// The query that lists those that are locked by anybody. Its row says which process looked, and the
    /// second numbers as `pg_locks` has them, which knows no sign.
    pub(super) fn query(self) -> String {
        let [class, first, last] = [self.class, self.first, self.last]
            .map(|number| u32::from_ne_bytes(number.to_ne_bytes()));
        format!(
            "/* pglock keys of {} */ \
             SELECT pg_catalog.pg_backend_pid(), pg_catalog.array_to_string(\
             pg_catalog.array_agg(DISTINCT l.objid), ' ') \
             FROM pg_catalog.pg_locks l \
             WHERE {IS_ADVISORY} \
             AND l.classid OPERATOR(pg_catalog.=) '{class}' \
             AND l.objid OPERATOR(pg_catalog.>=) '{first}' \
             AND l.objid OPERATOR(pg_catalog.<=) '{last}' \
             AND l.objsubid OPERATOR(pg_catalog.=) 2",
            self.class
        )
    }

    /// Reads the row: the second numbers of the keys that are locked.
    pub(super) fn locked(row: &[Option<String>]) -> Option<Vec<i32>> {
        let [_, objects] = row else { return None };
        let objects = objects.iter().flat_map(|objects| objects.split(' '));
        let signed = |object: u32| i32::from_ne_bytes(object.to_ne_bytes());
        objects.map(|object| object.parse().ok().map(signed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: Option<&str>) -> [Option<String>; 2] {
        [Some("4711"), value].map(|text| text.map(String::from))
    }

    #[test]
    fn the_row_names_one_of_the_locks_or_none() {
        let choice = Choice { class: -7, objects: vec![3, 0, 2], unless_taken: None };
        let lock = |object| LockId { key: Key::pair(-7, object), mode: Mode::Exclusive };
        assert_eq!(choice.acquired(&row(None)), Ok(None));
        assert_eq!(choice.acquired(&row(Some("1"))), Ok(Some(lock(3))));
        assert_eq!(choice.acquired(&row(Some("3"))), Ok(Some(lock(2))));
        for nonsense in ["0", "4", "-1", "", "t"] {
            assert_eq!(choice.acquired(&row(Some(nonsense))), Err(Unreadable), "{nonsense}");
        }
        assert_eq!(choice.acquired(&row(None)[1..]), Err(Unreadable));
    }

    #[test]
    fn numbers_have_their_sign_again() {
        assert_eq!(Range::locked(&row(None)), Some(vec![]));
        assert_eq!(
            Range::locked(&row(Some("4294967295 7 2147483648"))),
            Some(vec![-1, 7, i32::MIN])
        );
        assert_eq!(Range::locked(&row(Some("-1"))), None);
        assert_eq!(Range::locked(&row(Some(""))), None);
        let range = Range { class: -1, first: -9, last: -2 };
        assert!(range.query().contains("'4294967287'"), "{}", range.query());
    }
}
