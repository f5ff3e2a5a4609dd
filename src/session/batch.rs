//! Calls that are made together: as one query, which has one row.
//!
//! A call by itself costs the server a transaction and a message of its own, most of which is the kernel's
//! time for the message. In a query a further lock costs a twentieth of that. So calls of the same function
//! are written as one array, and answered by another.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::advisory::{Function, LockId};
use super::machine::Row;
use crate::key::Kind;

/// A call that is answered without waiting for anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    TryLock(LockId),
    Unlock(LockId),
}

/// Calls for locks of which each is named once.
pub(super) struct Batch {
    /// By the object identifier of their function: any order will do, as long as the answer has the same.
    runs: BTreeMap<u32, Vec<Call>>,
}

impl Batch {
    pub(super) fn new(calls: Vec<Call>) -> Self {
        let mut runs: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for call in calls {
            runs.entry(call.function().oid(call.lock())).or_default().push(call);
        }
        Self { runs }
    }

    /// The calls, in the order in which they are made.
    pub(super) fn calls(&self) -> impl Iterator<Item = Call> {
        self.runs.values().flatten().copied()
    }

    /// The query, with a column for each function. Its arrays keep their order: rows that are numbered come
    /// in the order of their numbers.
    pub(super) fn query(&self) -> String {
        let mut sql = String::from("/* pglock manager */ SELECT ");
        for (number, run) in self.runs.values().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            sql.push_str(comma);
            push_run(run, &mut sql);
        }
        sql
    }

    /// What the functions returned, for each of the calls; nothing if this is no answer to them.
    pub(super) fn results(&self, row: &Row) -> Option<Vec<(Call, bool)>> {
        if row.len() != self.runs.len() {
            return None;
        }
        let mut results = Vec::with_capacity(self.runs.values().map(Vec::len).sum());
        for (run, column) in self.runs.values().zip(row) {
            let array = column.as_ref()?.strip_prefix('{')?.strip_suffix('}')?;
            let mut elements = array.split(',');
            for call in run {
                let returned = match elements.next()? {
                    "t" => true,
                    "f" => false,
                    _ => return None,
                };
                results.push((*call, returned));
            }
            if elements.next().is_some() {
                return None;
            }
        }
        Some(results)
    }
}

impl Call {
    pub(crate) fn lock(self) -> LockId {
        let (Self::TryLock(lock) | Self::Unlock(lock)) = self;
        lock
    }

    fn function(self) -> Function {
        match self {
            Self::TryLock(_) => Function::TryLock,
            Self::Unlock(_) => Function::Unlock,
        }
    }
}

/// An array of what a function returns for each of these.
fn push_run(run: &[Call], sql: &mut String) {
    let Some(first) = run.first() else { return };
    let name = first.function().name("", first.lock().mode);
    let kinds = run.iter().map(|call| call.lock().key.kind());
    let (mut keys, mut objects) = (String::new(), String::new());
    for kind in kinds {
        // Writing to a string does not fail.
        let _ = match kind {
            Kind::Bigint(key) => write!(keys, "{key},"),
            Kind::Pair(class, object) => {
                write!(keys, "{class},").and_then(|()| write!(objects, "{object},"))
            }
        };
    }
    let keys = keys.trim_end_matches(',');
    let _ = match first.lock().key.kind() {
        Kind::Bigint(_) => write!(
            sql,
            "ARRAY(SELECT {name}(k) FROM pg_catalog.unnest('{{{keys}}}'::bigint[]) \
             WITH ORDINALITY AS keys(k, n) ORDER BY n)"
        ),
        Kind::Pair(..) => write!(
            sql,
            "ARRAY(SELECT {name}(k, l) FROM ROWS FROM (pg_catalog.unnest('{{{keys}}}'::integer[]), \
             pg_catalog.unnest('{{{}}}'::integer[])) WITH ORDINALITY AS keys(k, l, n) ORDER BY n)",
            objects.trim_end_matches(',')
        ),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, Mode};

    fn batch() -> Batch {
        let lock = |key, mode| LockId { key, mode };
        Batch::new(vec![
            Call::Unlock(lock(Key::pair(-1, i32::MIN), Mode::Shared)),
            Call::TryLock(lock(Key::bigint(7), Mode::Exclusive)),
            Call::Unlock(lock(Key::pair(2, 3), Mode::Shared)),
            Call::TryLock(lock(Key::bigint(i64::MIN), Mode::Exclusive)),
        ])
    }

    #[test]
    fn calls_of_one_function_go_into_one_array() {
        assert_eq!(
            batch().query(),
            "/* pglock manager */ SELECT \
             ARRAY(SELECT pg_catalog.pg_try_advisory_lock(k) \
             FROM pg_catalog.unnest('{7,-9223372036854775808}'::bigint[]) \
             WITH ORDINALITY AS keys(k, n) ORDER BY n), \
             ARRAY(SELECT pg_catalog.pg_advisory_unlock_shared(k, l) \
             FROM ROWS FROM (pg_catalog.unnest('{-1,2}'::integer[]), \
             pg_catalog.unnest('{-2147483648,3}'::integer[])) \
             WITH ORDINALITY AS keys(k, l, n) ORDER BY n)"
        );
    }

    #[test]
    fn each_call_gets_what_its_function_returned() {
        let row = vec![Some("{t,f}".to_owned()), Some("{f,t}".to_owned())];
        let results = batch().results(&row).unwrap();
        assert!(results.iter().map(|(call, _)| *call).eq(batch().calls()));
        let returned = results.iter().map(|(call, returned)| (call.lock().key, *returned));
        assert!(returned.eq([
            (Key::bigint(7), true),
            (Key::bigint(i64::MIN), false),
            (Key::pair(-1, i32::MIN), false),
            (Key::pair(2, 3), true),
        ]));
    }

    #[test]
    fn what_is_no_answer_to_the_calls_is_refused() {
        let row = |columns: &[Option<&str>]| -> Row {
            columns.iter().map(|column| column.map(str::to_owned)).collect()
        };
        for columns in [
            &[][..],
            &[Some("{t,f}")],
            &[Some("{t,f}"), None],
            &[Some("{t,f}"), Some("")],
            &[Some("{t,f}"), Some("{}")],
            &[Some("{t,f}"), Some("{t}")],
            &[Some("{t,f}"), Some("{t,f,t}")],
            &[Some("{t,f}"), Some("{t,NULL}")],
            &[Some("{t,f}"), Some("{t,f}"), Some("{t,f}")],
        ] {
            assert!(batch().results(&row(columns)).is_none(), "{columns:?}");
        }
    }
}
