//! What is locked ([`Key`]) and how ([`Mode`]).

use std::fmt;

/// The number that stands for the thing to be locked.
///
/// PostgreSQL knows two kinds of advisory-lock keys, one `bigint` and two `integer`s, and keeps
/// them apart: [`Key::bigint(1)`](Key::bigint) and [`Key::pair(0, 1)`](Key::pair) never exclude
/// each other. Keys belong to one database of a server: the same key in two databases is two locks.
///
/// # Order
///
/// Keys are ordered: those of one `bigint` first, by their number, and then those of two `integer`s, by
/// the first and then by the second. Programs that take several keys in this order, as
/// [`LockManager::lock_all`](crate::LockManager::lock_all) does, never wait for each other in a circle.
///
/// # Names
///
/// A name is hashed to a `bigint` key. Every session that uses the same name, in this crate or in a
/// program that uses the same derivation (go-pglock's `hashToInt64`), means the same lock.
///
/// # Examples
///
/// ```
/// use pglock::Key;
///
/// assert_eq!(Key::from("hello"), Key::bigint(-6615550055289275125));
/// assert_eq!(Key::from((1, 2)), Key::pair(1, 2));
/// assert_eq!(Key::from(42).to_string(), "42");
/// assert_eq!(Key::pair(1, 2).to_string(), "(1, 2)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Kind);

/// The two key spaces of PostgreSQL's advisory locks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Bigint(i64),
    Pair(i32, i32),
}

impl Key {
    /// The key of one `bigint`, any of its values.
    #[must_use]
    pub const fn bigint(key: i64) -> Self {
        Self(Kind::Bigint(key))
    }

    /// The key of two `integer`s, for instance a kind of thing and the number of one of them.
    #[must_use]
    pub const fn pair(class: i32, object: i32) -> Self {
        Self(Kind::Pair(class, object))
    }

    /// The `bigint` key that stands for a name: the 64-bit FNV-1a hash of its bytes.
    ///
    /// The chance that any two of a million names share a key is about 1 in 37 million; such names
    /// exclude each other needlessly, and nothing worse.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pglock::Key;
    /// assert_eq!(Key::from_name("MyLockName"), Key::bigint(592534358865518967));
    /// assert_eq!(Key::from_name("日本"), Key::bigint(1305338235904577169));
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let hash = name
            .bytes()
            .fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        Self::bigint(i64::from_ne_bytes(hash.to_ne_bytes()))
    }

    pub(crate) const fn kind(self) -> Kind {
        self.0
    }

    /// A number for hashing, which a key of the other kind may have too.
    pub(crate) fn bits(self) -> u64 {
        match self.0 {
            Kind::Bigint(key) => u64::from_ne_bytes(key.to_ne_bytes()),
            Kind::Pair(class, object) => {
                let [class, object] = [class, object].map(|n| u32::from_ne_bytes(n.to_ne_bytes()));
                u64::from(class) << 32 | u64::from(object)
            }
        }
    }
}

impl From<i64> for Key {
    fn from(key: i64) -> Self {
        Self::bigint(key)
    }
}

impl From<(i32, i32)> for Key {
    fn from((class, object): (i32, i32)) -> Self {
        Self::pair(class, object)
    }
}

/// Hashes the text as a name, also when it consists of digits: see [`Key::from_name`].
impl From<&str> for Key {
    fn from(name: &str) -> Self {
        Self::from_name(name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Bigint(key) => write!(f, "{key}"),
            Kind::Pair(class, object) => write!(f, "({class}, {object})"),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Bigint(key) => write!(f, "Key::bigint({key})"),
            Kind::Pair(class, object) => write!(f, "Key::pair({class}, {object})"),
        }
    }
}

/// How a lock is held: alone, or together with others that hold it the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// No other session holds the key in either mode: for a writer.
    Exclusive,
    /// Others may hold the key in this mode, and none holds it exclusively: for a reader.
    Shared,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_name_hashes_to_the_offset_basis() {
        assert_eq!(Key::from_name(""), Key::bigint(-3_750_763_034_362_895_579));
    }

    #[test]
    fn keys_are_in_the_order_of_their_numbers() {
        let in_order = [
            Key::bigint(i64::MIN),
            Key::bigint(-1),
            Key::bigint(0),
            Key::bigint(i64::MAX),
            Key::pair(i32::MIN, 7),
            Key::pair(-1, 7),
            Key::pair(0, -1),
            Key::pair(0, 0),
            Key::pair(1, i32::MIN),
        ];
        assert!(in_order.is_sorted());
    }

    #[test]
    fn the_two_key_spaces_are_apart() {
        assert_ne!(Key::bigint(1), Key::pair(0, 1));
    }
}
