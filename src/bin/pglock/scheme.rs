//! The keys of other programs, so that a command can stand beside them or hold them off.
//!
//! Each derivation is as the project's source has it; the tests have keys that were computed elsewhere.

#![allow(
    clippy::doc_markdown,
    reason = "what documents an argument is its help, as a person reads it"
)]

use clap::{Args, ValueEnum};
use pglock::Key;

use crate::exit::{Failure, USAGE};
use crate::generate::print;
use crate::key::{NamedKey, number};

/// What to derive a key from, and how.
#[derive(Args, Debug)]
pub(crate) struct KeyArgs {
    /// The program whose key it is; without it, the NAME is read as a KEY is
    #[arg(long, value_name = "PROGRAM")]
    scheme: Option<Scheme>,
    /// What the key is derived from: one name, or as many as the program takes
    #[arg(value_name = "NAME", required = true, allow_negative_numbers = true)]
    names: Vec<String>,
}

/// A program that derives the numbers of advisory locks from names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scheme {
    /// go-pglock, and pglock itself: any NAME
    GoPglock,
    /// The migrations of SQLx: DATABASE
    Sqlx,
    /// The migrations of Rails: DATABASE
    Rails,
    /// Flyway: SCHEMA TABLE, as in: public flyway_schema_history
    Flyway,
    /// golang-migrate: SCHEMA TABLE DATABASE, as in: public schema_migrations shop
    GolangMigrate,
}

/// Prints a key such as it can be given as a KEY.
pub(crate) fn key(args: &KeyArgs) -> Result<u8, Failure> {
    let names: Vec<&str> = args.names.iter().map(String::as_str).collect();
    let key = match (args.scheme, names.as_slice()) {
        (Some(scheme), names) => scheme.key(names)?,
        (None, [name]) => NamedKey::parse(name, None)?.key,
        (None, _) => return Err(Failure::new(USAGE, "a KEY is one NAME: quote one with spaces")),
    };
    print(format!("{}\n", number(key)).as_bytes())
}

impl Scheme {
    fn key(self, names: &[&str]) -> Result<Key, Failure> {
        match (self, names) {
            (Self::GoPglock, [name]) => Ok(Key::from_name(name)),
            // sqlx-postgres, src/migrate.rs: `generate_lock_id`.
            (Self::Sqlx, [database]) => Ok(of_crc32(0x3d32_ad9e, database)),
            // Active Record, migration.rb: `generate_migrator_advisory_lock_id`.
            (Self::Rails, [database]) => Ok(of_crc32(2_053_462_845, database)),
            // Flyway, PostgreSQLAdvisoryLockTemplate, with `table.toString().hashCode()`.
            (Self::Flyway, [schema, table]) if !names.concat().contains('"') => {
                let table = java_hash(&format!("\"{schema}\".\"{table}\""));
                Ok(Key::bigint(77_431_708_279_161 + i64::from(table)))
            }
            (Self::Flyway, [_, _]) => {
                Err(Failure::new(USAGE, "flyway: a name with a quotation mark is not supported"))
            }
            // golang-migrate, database/util.go: `GenerateAdvisoryLockId`, in 32 bits.
            (Self::GolangMigrate, [_, _, _]) => {
                let key = crc32(names.join("\0").as_bytes()).wrapping_mul(1_486_364_155);
                Ok(Key::bigint(i64::from(key)))
            }
            (Self::GoPglock, _) => Err(takes("go-pglock", "one NAME")),
            (Self::Sqlx, _) => Err(takes("sqlx", "the name of the DATABASE")),
            (Self::Rails, _) => Err(takes("rails", "the name of the DATABASE")),
            (Self::Flyway, _) => Err(takes("flyway", "SCHEMA TABLE")),
            (Self::GolangMigrate, _) => Err(takes("golang-migrate", "SCHEMA TABLE DATABASE")),
        }
    }
}

fn takes(program: &str, names: &str) -> Failure {
    Failure::new(USAGE, format!("the scheme {program} takes {names}, no more and no less"))
}

/// Both factors are below 2^31 and 2^32: the product is a bigint.
fn of_crc32(salt: i64, text: &str) -> Key {
    Key::bigint(salt * i64::from(crc32(text.as_bytes())))
}

/// The checksum of IEEE 802.3, as of zlib.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let shift = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    let next = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc));
    !bytes.iter().fold(u32::MAX, next)
}

/// Java's `String.hashCode`, over the units of UTF-16.
fn java_hash(text: &str) -> i32 {
    text.encode_utf16()
        .fold(0, |hash: i32, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_key(scheme: Scheme, names: &[&str], key: i64) {
        assert_eq!(scheme.key(names).unwrap(), Key::bigint(key), "{scheme:?} {names:?}");
    }

    /// The numbers are of Python's zlib.crc32, and of a hash of each UTF-16 unit in Python.
    #[test]
    fn keys_are_those_of_the_programs() {
        assert_key(Scheme::GoPglock, &["hello"], -6_615_550_055_289_275_125);
        assert_key(Scheme::GoPglock, &["42"], 571_532_774_284_038_691);
        assert_key(Scheme::Sqlx, &["zone"], 2_771_974_297_191_923_538);
        assert_key(Scheme::Sqlx, &["日本"], 3_440_281_045_949_997_032);
        assert_key(Scheme::Rails, &["postgres"], 737_815_420_147_457_505);
        assert_key(Scheme::Rails, &["日本"], 6_880_562_095_250_705_820);
        assert_key(Scheme::Flyway, &["public", "flyway_schema_history"], 77_433_833_903_597);
        assert_key(Scheme::Flyway, &["𝕏", "t"], 77_430_254_282_145);
        let names = ["public", "schema_migrations", "postgres"];
        assert_key(Scheme::GolangMigrate, &names, 143_310_882);
    }

    #[test]
    fn each_takes_its_names_and_no_others() {
        let too_few: &[&str] = &[];
        let too_many: &[&str] = &["a", "b", "c", "d"];
        for scheme in Scheme::value_variants() {
            scheme.key(too_few).unwrap_err();
            scheme.key(too_many).unwrap_err();
        }
        Scheme::Flyway.key(&["public", "a\"b"]).unwrap_err();
    }
}
