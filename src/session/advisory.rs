//! The advisory-lock functions of the server.

use std::fmt;

use crate::key::{Key, Kind, Mode};
use crate::protocol::{Connection, NotReady, TransactionStatus};

/// A lock as the server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LockId {
    pub(crate) key: Key,
    pub(crate) mode: Mode,
}

impl fmt::Display for LockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lock on key {}", self.mode, self.key)
    }
}

/// How a session asks for locks, and what holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// The session itself holds them, in a server process of its own. It is asked by function calls,
    /// which are neither parsed nor planned.
    Calls,
    /// The session holds them, in a process that a pooler lends it for as long as it lasts. It is asked
    /// by queries that name the process, so that another one is noticed.
    Queries { process_id: i32 },
    /// A transaction holds them, one at a time: a pooler lends its process until the transaction ends.
    Transaction {
        /// Opens it, makes the settings that it needs, and says which process it is in.
        begin: String,
        /// The process that the open one is in.
        process_id: Option<i32>,
    },
}

impl Means {
    /// Asks for something to be done with a lock.
    pub(super) fn ask(
        &self,
        function: Function,
        lock: LockId,
        connection: &mut Connection,
    ) -> Result<(), NotReady> {
        match (self, function) {
            (Self::Calls, _) => function.call(lock, connection),
            (Self::Queries { .. }, _) => connection.query(&function.query("", lock)),
            // Whatever state the transaction is in, this ends it.
            (Self::Transaction { .. }, Function::Settle) => connection.query("ROLLBACK"),
            (Self::Transaction { .. }, Function::Unlock) => {
                connection.script("SELECT pg_catalog.pg_backend_pid(), true; ROLLBACK")
            }
            (Self::Transaction { .. }, _) => connection.query(&function.query(self.scope(), lock)),
        }
    }

    /// What the names of the functions say of who holds the locks.
    pub(super) fn scope(&self) -> &'static str {
        match self {
            Self::Calls | Self::Queries { .. } => "",
            Self::Transaction { .. } => "xact_",
        }
    }

    /// Asks for no more than an answer, which is `false`.
    pub(super) fn heartbeat(&self, connection: &mut Connection) -> Result<(), NotReady> {
        match self {
            Self::Calls => connection.call(PG_IS_IN_RECOVERY, []),
            Self::Queries { .. } | Self::Transaction { .. } => connection
                .query("SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery()"),
        }
    }

    /// The process that has to answer, where the answer says which does.
    pub(super) fn process_id(&self) -> Option<i32> {
        match self {
            Self::Calls => None,
            Self::Queries { process_id } => Some(*process_id),
            Self::Transaction { process_id, .. } => *process_id,
        }
    }

    /// Whether another process answered than the one that holds the locks, by a row that begins with its
    /// number. A transaction stays where it is, and where none is open, any process may answer.
    pub(super) fn is_elsewhere(&self, row: &[Option<String>]) -> bool {
        match (self, row) {
            (Self::Queries { process_id }, [Some(answering), ..]) => {
                answering.parse() != Ok(*process_id)
            }
            _ => false,
        }
    }

    /// Whether a transaction is open in which the lock is, or may be, held.
    pub(super) fn is_open(&self, connection: &Connection) -> bool {
        matches!(self, Self::Transaction { .. })
            && connection.transaction_status() != TransactionStatus::Idle
    }
}

/// The functions that say what a server process is, by their object identifiers (`pg_proc.dat`).
pub(super) const PG_BACKEND_PID: u32 = 2026;
pub(super) const PG_IS_IN_RECOVERY: u32 = 3810;

/// What can be done with a lock. Each has a function of its own for each mode and kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// `pg_advisory_lock`: waits, and returns nothing.
    Lock,
    /// `pg_try_advisory_lock`: says at once whether the lock was acquired.
    TryLock,
    /// `pg_advisory_unlock`: says whether the lock was held.
    Unlock,
    /// The same, for a lock that may not be held.
    Settle,
}

impl Function {
    /// Sends the call.
    fn call(self, lock: LockId, connection: &mut Connection) -> Result<(), NotReady> {
        let function = self.oid(lock);
        match lock.key.kind() {
            Kind::Bigint(key) => connection.call(function, [&key.to_be_bytes()]),
            Kind::Pair(class, object) => {
                connection.call(function, [&class.to_be_bytes(), &object.to_be_bytes()])
            }
        }
    }

    /// The query that calls the function, and names the process that does.
    fn query(self, scope: &str, lock: LockId) -> String {
        let name = self.name(scope, lock.mode);
        let arguments = match lock.key.kind() {
            // As texts: SQL cannot write the smallest numbers otherwise.
            Kind::Bigint(key) => format!("'{key}'::bigint"),
            Kind::Pair(class, object) => format!("'{class}'::integer, '{object}'::integer"),
        };
        format!("SELECT pg_catalog.pg_backend_pid(), {name}({arguments})")
    }

    /// The function's name.
    pub(super) fn name(self, scope: &str, mode: Mode) -> String {
        let (attempt, action) = match self {
            Self::Lock => ("", "lock"),
            Self::TryLock => ("try_", "lock"),
            Self::Unlock | Self::Settle => ("", "unlock"),
        };
        let shared = match mode {
            Mode::Exclusive => "",
            Mode::Shared => "_shared",
        };
        format!("pg_catalog.pg_{attempt}advisory_{scope}{action}{shared}")
    }

    /// The function's object identifier, fixed since PostgreSQL 8.2 (`pg_proc.dat`).
    pub(super) fn oid(self, lock: LockId) -> u32 {
        let of_lock_on_a_bigint = match self {
            Self::Lock => 2880,
            Self::TryLock => 2882,
            Self::Unlock | Self::Settle => 2884,
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
