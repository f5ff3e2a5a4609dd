//! Passwords outside ASCII, which each side brings into a form of its own making: only the same form
//! lets a client in.

use std::fmt::Write;

use pglock::{Config, Session};
use pglock_test_cluster::{Cluster, Settings};
use tokio::task::JoinSet;

const PASSWORDS: usize = 2_000;
/// Roles in one round trip, and logins at a time.
const BATCH: usize = 50;
/// The first major version whose derivation of a key can be made quick.
const SCRAM_ITERATIONS: u32 = 16;

/// Where characters come from: ranges in which the steps of `SASLprep` have something to do, and all
/// of Unicode besides.
const RANGES: [(u32, u32); 27] = [
    (0x21, 0x7e),       // ASCII.
    (0x80, 0x9f),       // Controls.
    (0xa0, 0xff),       // Latin, a space and the soft hyphen.
    (0x180, 0x24f),     // Latin, some of it newer than Unicode 3.2.
    (0x300, 0x36f),     // Combining marks.
    (0x3a0, 0x3ff),     // Greek.
    (0x590, 0x5ff),     // Hebrew.
    (0x600, 0x6ff),     // Arabic.
    (0x900, 0x97f),     // Devanagari, with exclusions from composition.
    (0x1100, 0x11ff),   // Hangul, to be composed.
    (0x1680, 0x1680),   // A space.
    (0x1806, 0x180e),   // Mapped to nothing, or a space.
    (0x1e00, 0x1fff),   // Composed Latin and Greek.
    (0x2000, 0x206f),   // Spaces, joiners, directions.
    (0x2100, 0x218f),   // Letter-like, and Roman numerals.
    (0x2460, 0x24ff),   // Numbers in circles.
    (0x2ff0, 0x2ffb),   // Not for plain text.
    (0x3000, 0x33ff),   // Kana, and squares of them.
    (0xac00, 0xd7a3),   // Hangul.
    (0xe000, 0xf8ff),   // For private use.
    (0xf900, 0xfaff),   // Compatible with another character.
    (0xfb1d, 0xfdff),   // Hebrew and Arabic forms; no characters.
    (0xfe00, 0xffff),   // Selectors, widths, no characters.
    (0x1d100, 0x1d7ff), // Music with combining signs, and mathematical letters.
    (0x1f300, 0x1f9ff), // Newer than Unicode 3.2.
    (0x2f800, 0x2fa1d), // Compatible with another character.
    (0xe0000, 0xe007f), // Tags.
];
const UNICODE: (u32, u32) = (0x80, 0x0010_ffff);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_password_that_the_server_took_lets_its_role_in() {
    let passwords = Generator(1).passwords();
    let cluster = Settings::new().start();
    cluster.set_access_rules(&[String::from("local all all scram-sha-256")]);
    let roles: Vec<_> = passwords.iter().enumerate().collect();
    let mut refused = Vec::new();
    for batch in roles.chunks(BATCH) {
        create(&cluster, batch);
        let mut logins = JoinSet::new();
        for (number, password) in batch {
            logins.spawn(log_in(config(&cluster, *number, password), (*password).clone()));
        }
        refused.extend(logins.join_all().await.into_iter().flatten());
    }
    assert!(refused.is_empty(), "{} of {PASSWORDS}:\n{}", refused.len(), refused.join("\n"));
}

fn create(cluster: &Cluster, roles: &[(usize, &String)]) {
    let mut sql = String::new();
    if cluster.major_version() >= SCRAM_ITERATIONS {
        sql += "SET scram_iterations = 1; ";
    }
    sql += "SET password_encryption = 'scram-sha-256'; SET standard_conforming_strings = on; ";
    for (number, password) in roles {
        let quoted = password.replace('\'', "''");
        write!(sql, "CREATE ROLE role_{number} LOGIN PASSWORD '{quoted}'; ").unwrap();
    }
    cluster.raw().rows(&sql);
}

fn config(cluster: &Cluster, number: usize, password: &str) -> Config {
    let mut config = Config::new();
    config
        .host(cluster.socket_dir().to_str().unwrap())
        .port(cluster.port())
        .dbname("app")
        .user(&format!("role_{number}"))
        .password(password);
    config
}

/// What kept the role out, if anything did.
async fn log_in(config: Config, password: String) -> Option<String> {
    match Session::connect(&config).await {
        Ok(session) => session.close().await.err().map(|error| error.to_string()),
        Err(error) => Some(format!("{}: {error}", password.escape_unicode())),
    }
}

/// Always the same numbers: `SplitMix64`.
struct Generator(u64);

impl Generator {
    /// Different ones, single characters and mixtures, none of them in ASCII.
    fn passwords(&mut self) -> Vec<String> {
        let mut passwords = Vec::new();
        while passwords.len() < PASSWORDS {
            let length = if passwords.len() < PASSWORDS / 2 { 1 } else { 2 + self.below(7) };
            let password: String = (0..length).map(|_| self.character()).collect();
            if !password.is_ascii() && !passwords.contains(&password) {
                passwords.push(password);
            }
        }
        passwords
    }

    fn character(&mut self) -> char {
        loop {
            let place = self.below(RANGES.len() + 3);
            let (first, last) = RANGES.get(place).copied().unwrap_or(UNICODE);
            let offset = self.next() % u64::from(last - first + 1);
            // Not a surrogate.
            if let Some(character) = char::from_u32(first + u32::try_from(offset).unwrap()) {
                return character;
            }
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap() % limit
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}
