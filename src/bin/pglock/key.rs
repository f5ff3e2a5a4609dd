//! What a KEY on the command line means.

use std::fmt;

use clap::ValueEnum;
use pglock::Key;

use crate::exit::{Failure, USAGE};

/// How to read a KEY that could be read in several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyAs {
    /// A name of any kind, hashed to a bigint
    Name,
    /// One number of 64 bits
    Bigint,
    /// Two numbers of 32 bits, with a comma between them
    Pair,
}

/// A key, and the name that it was given by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedKey {
    pub(crate) key: Key,
    /// As it was typed.
    pub(crate) text: String,
    /// Whether the key is the hash of that text.
    pub(crate) is_name: bool,
}

impl NamedKey {
    /// Reads what was typed: a number is a bigint, two are a pair, and anything else is a name.
    pub(crate) fn parse(text: &str, key_as: Option<KeyAs>) -> Result<Self, Failure> {
        let (key, is_name) = match key_as {
            Some(KeyAs::Name) => (Key::from_name(text), true),
            Some(KeyAs::Bigint) => (bigint(text).ok_or_else(|| no_bigint(text))?, false),
            Some(KeyAs::Pair) => (pair(text).ok_or_else(|| no_pair(text))?, false),
            None => match bigint(text).or_else(|| pair(text)) {
                Some(key) => (key, false),
                None if looks_like_numbers(text) => return Err(doubtful(text)),
                None => (Key::from_name(text), true),
            },
        };
        if text.is_empty() {
            return Err(Failure::new(USAGE, "the KEY is empty: give the lock a name"));
        }
        Ok(Self { key, text: text.to_owned(), is_name })
    }

    /// The key's number or numbers, such as they can be given as a KEY again.
    pub(crate) fn number(&self) -> String {
        number(self.key)
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.is_name.then_some(self.text.as_str())
    }
}

/// In a diagnostic: with nothing in it that a terminal would act on.
impl fmt::Display for NamedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_name { write!(f, "{:?}", self.text) } else { write!(f, "key {}", self.number()) }
    }
}

/// The first number of the keys of a semaphore of this name: [`pglock::Semaphore`] has the table.
pub(crate) fn class_of(name: &str) -> Option<i32> {
    let hash: i64 = number(Key::from_name(name)).parse().ok()?;
    let [u0, u1, u2, u3, l0, l1, l2, l3] = hash.to_be_bytes();
    Some(i32::from_be_bytes([u0, u1, u2, u3]) ^ i32::from_be_bytes([l0, l1, l2, l3]))
}

/// The two numbers of a pair.
pub(crate) fn numbers(key: Key) -> Option<(i32, i32)> {
    let written = number(key);
    let (class, object) = written.split_once(',')?;
    Some((class.parse().ok()?, object.parse().ok()?))
}

/// A key as it is written on the command line: the parentheses of a pair would be the shell's.
pub(crate) fn number(key: Key) -> String {
    key.to_string().replace(['(', ')', ' '], "")
}

fn bigint(text: &str) -> Option<Key> {
    text.trim().parse().ok().map(Key::bigint)
}

fn pair(text: &str) -> Option<Key> {
    let (class, object) = text.split_once(',')?;
    Some(Key::pair(class.trim().parse().ok()?, object.trim().parse().ok()?))
}

/// Whether it is a pair that begins as options do.
pub(crate) fn is_negative_pair(word: &str) -> bool {
    word.starts_with('-') && word.contains(',') && looks_like_numbers(word)
}

/// Whether it is no name that anybody would choose, but a number that is out of range.
fn looks_like_numbers(text: &str) -> bool {
    let is_number = |text: &str| {
        let text = text.trim();
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    text.split_once(',').map_or_else(|| is_number(text), |(a, b)| is_number(a) && is_number(b))
}

fn no_bigint(text: &str) -> Failure {
    Failure::new(
        USAGE,
        format!("{text:?} is no bigint: a whole number from {} to {}", i64::MIN, i64::MAX),
    )
}

fn no_pair(text: &str) -> Failure {
    let (min, max) = (i32::MIN, i32::MAX);
    Failure::new(
        USAGE,
        format!("{text:?} is no pair: two whole numbers from {min} to {max} with a comma between"),
    )
}

fn doubtful(text: &str) -> Failure {
    Failure::new(
        USAGE,
        format!(
            "{text:?} is a number out of range: a KEY is a bigint, or A,B with numbers of 32 bits; if it \
             is meant as a name, say --key-as name"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        NamedKey::parse(text, None).unwrap().key
    }

    #[test]
    fn numbers_are_keys_and_anything_else_is_a_name() {
        assert_eq!(key("42"), Key::bigint(42));
        assert_eq!(key("-9223372036854775808"), Key::bigint(i64::MIN));
        assert_eq!(key(" 5 "), Key::bigint(5));
        assert_eq!(key("1,-2"), Key::pair(1, -2));
        assert_eq!(key("1, 2"), Key::pair(1, 2));
        for name in ["nightly-report", "1,2,3", "4 2", "0x10", "1,x", "-", "日本", " "] {
            assert_eq!(key(name), Key::from_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_in_doubt_can_be_said() {
        let read = |text, key_as| NamedKey::parse(text, Some(key_as)).map(|named| named.key);
        assert_eq!(read("42", KeyAs::Name).unwrap(), Key::from_name("42"));
        assert_eq!(read("42", KeyAs::Bigint).unwrap(), Key::bigint(42));
        assert_eq!(read("4,2", KeyAs::Pair).unwrap(), Key::pair(4, 2));
        assert_eq!(read("4,2", KeyAs::Name).unwrap(), Key::from_name("4,2"));
        for (text, key_as) in [("x", KeyAs::Bigint), ("4,2", KeyAs::Bigint), ("42", KeyAs::Pair)] {
            read(text, key_as).unwrap_err();
        }
    }

    #[test]
    fn a_number_out_of_range_is_no_name() {
        for text in ["9223372036854775808", "2147483648,1", "1,-2147483649", ""] {
            NamedKey::parse(text, None).unwrap_err();
        }
        assert_eq!(
            NamedKey::parse("9223372036854775808", Some(KeyAs::Name)).unwrap().key,
            Key::from_name("9223372036854775808")
        );
    }

    #[test]
    fn a_key_is_written_as_it_is_read() {
        for written in ["42", "-1", "1,-2"] {
            assert_eq!(number(key(written)), written);
        }
    }
}
