//! The advisory-lock functions of the server.

use crate::key::{Key, Kind, Mode};
use crate::protocol::{Connection, NotReady};

/// A lock as the server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LockId {
    pub(crate) key: Key,
    pub(crate) mode: Mode,
}

/// What can be done with a lock. Each has a function of its own for each mode and kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// `pg_advisory_lock`: waits, and returns nothing.
    Lock,
    /// `pg_try_advisory_lock`: says at once whether the lock was acquired.
    TryLock,
    /// `pg_advisory_unlock`: says whether the lock was held.
    Unlock,
}

impl Function {
    /// Sends the call.
    pub(super) fn call(self, lock: LockId, connection: &mut Connection) -> Result<(), NotReady> {
        let function = self.oid(lock);
        match lock.key.kind() {
            Kind::Bigint(key) => connection.call(function, [&key.to_be_bytes()]),
            Kind::Pair(class, object) => {
                connection.call(function, [&class.to_be_bytes(), &object.to_be_bytes()])
            }
        }
    }

    /// The function's object identifier, fixed since PostgreSQL 8.2 (`pg_proc.dat`).
    fn oid(self, lock: LockId) -> u32 {
        let of_lock_on_a_bigint = match self {
            Self::Lock => 2880,
            Self::TryLock => 2882,
            Self::Unlock => 2884,
        };
        let shared = match lock.mode {
            Mode::Exclusive => 0,
            Mode::Shared => 1,
        };
        let pair = match lock.key.kind() {
            Kind::Bigint(_) => 0,
            Kind::Pair(..) => 6,
        };
        of_lock_on_a_bigint + shared + pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_function_has_the_number_that_pg_proc_gives_it() {
        let lock = |key, mode| LockId { key, mode };
        let (bigint, pair) = (Key::bigint(1), Key::pair(0, 1));
        for (function, expected) in [
            (Function::Lock, [2880, 2881, 2886, 2887]),
            (Function::TryLock, [2882, 2883, 2888, 2889]),
            (Function::Unlock, [2884, 2885, 2890, 2891]),
        ] {
            let actual = [
                function.oid(lock(bigint, Mode::Exclusive)),
                function.oid(lock(bigint, Mode::Shared)),
                function.oid(lock(pair, Mode::Exclusive)),
                function.oid(lock(pair, Mode::Shared)),
            ];
            assert_eq!(actual, expected, "{function:?}");
        }
    }
}
