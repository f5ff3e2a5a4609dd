//! Numbers that only rise, for storage that has to turn away a holder from the past.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A fencing token: taken with a lock, and higher than every token taken before it on the same server,
/// on any key.
///
/// A process may be stopped for minutes between asking whether it still holds a lock and doing what
/// the lock guards; no lock can prevent that. Storage can: it remembers the highest token that it
/// saw, and refuses what comes with a lower one.
///
/// ```sql
/// UPDATE report SET body = $2, fence = $1 WHERE id = 1 AND fence < $1;
/// ```
///
/// That admits one write with each token. A holder that writes more often compares with `<=`. Of several
/// who hold a key shared, such storage admits only whoever took the last token: it is for what is
/// written under an exclusive lock.
///
/// The token is a place in the server's write-ahead log, on disk before it is given out, together with
/// the log's timeline. So it rises through a crash of the server and through the promotion of a
/// standby that has what the primary had; no table is needed.
///
/// It begins anew on another server, such as that of a restored dump or one that follows by logical
/// replication, and goes back where an old copy of a server's files is started as it is. `pg_upgrade`
/// keeps the position but sets the timeline to 1. After any of these, storage that remembers a higher
/// token refuses every holder: reset what it remembers once no holder from before is left.
///
/// As a text it has 24 characters, as bytes 12. Texts (compared character by character) and bytes sort
/// as the tokens do.
///
/// # Examples
///
/// ```
/// use pglock::Fence;
///
/// let earlier: Fence = "00000001000000000016B374".parse()?;
/// let later: Fence = "000000020000000000000028".parse()?;
/// assert!(earlier < later);
/// assert!(earlier.to_string() < later.to_string());
/// assert_eq!(Fence::from_bytes(later.to_bytes()), later);
/// # Ok::<(), pglock::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    timeline: u32,
    position: u64,
}

impl Fence {
    /// The timeline of the server's log: rises with each promotion.
    #[must_use]
    pub fn timeline(self) -> u32 {
        self.timeline
    }

    /// The place in the log, in bytes since its beginning.
    #[must_use]
    pub fn position(self) -> u64 {
        self.position
    }

    /// The token in bytes, which sort as the tokens do.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        let (timeline, position) = bytes.split_at_mut(4);
        timeline.copy_from_slice(&self.timeline.to_be_bytes());
        position.copy_from_slice(&self.position.to_be_bytes());
        bytes
    }

    /// The token of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        let [t0, t1, t2, t3, p0, p1, p2, p3, p4, p5, p6, p7] = bytes;
        Self {
            timeline: u32::from_be_bytes([t0, t1, t2, t3]),
            position: u64::from_be_bytes([p0, p1, p2, p3, p4, p5, p6, p7]),
        }
    }

    /// The query that writes to the log and waits until that is safe: the process that answers, and the
    /// token's parts.
    ///
    /// The commit has to be waited for, also by sessions that are set not to: a token that a crash
    /// takes back could be given out twice. If somebody ends the wait for standbys, the server warns of
    /// that and reports no error: so warnings have to come, also to sessions that are set not to get any.
    pub(crate) fn query(key: crate::Key) -> String {
        format!(
            "SELECT pg_catalog.pg_backend_pid(), \
             pg_catalog.set_config('synchronous_commit', 'on', true), \
             pg_catalog.set_config('client_min_messages', 'warning', true), \
             pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), \
             pg_catalog.pg_logical_emit_message(true, 'pglock', '{key}')"
        )
    }

    /// Reads what the query returned: last the name of a log file, which begins with its timeline, and a
    /// position, written as two hexadecimal numbers of 32 bits each.
    pub(crate) fn from_row(row: &[Option<String>]) -> Option<Self> {
        let [_, _, _, Some(file), Some(position)] = row else { return None };
        let timeline = u32::from_str_radix(file.get(..8)?, 16).ok()?;
        let (high, low) = position.split_once('/')?;
        let high = u32::from_str_radix(high, 16).ok()?;
        let low = u32::from_str_radix(low, 16).ok()?;
        Some(Self { timeline, position: (u64::from(high) << 32) | u64::from(low) })
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:016X}", self.timeline, self.position)
    }
}

impl FromStr for Fence {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            if text.len() != 24 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            let (timeline, position) = text.split_at_checked(8)?;
            Some(Self {
                timeline: u32::from_str_radix(timeline, 16).ok()?,
                position: u64::from_str_radix(position, 16).ok()?,
            })
        };
        parse().ok_or_else(|| Error::config("a fencing token is 24 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(file: &str, position: &str) -> Vec<Option<String>> {
        ["42", "on", "warning", file, position].map(|value| Some(value.to_owned())).to_vec()
    }

    #[test]
    fn a_token_is_read_from_what_the_server_returns() {
        let fence = Fence::from_row(&row("0000000A0000000100000016", "1/16B37480"));
        assert_eq!(fence, Some(Fence { timeline: 10, position: 0x1_16B3_7480 }));
        for (file, position) in
            [("", "0/1"), ("0000000A", "1"), ("0000000A", "/1"), ("x000000A", "0/1")]
        {
            assert_eq!(Fence::from_row(&row(file, position)), None, "{file} {position}");
        }
    }

    #[test]
    fn texts_and_bytes_sort_as_tokens_do() {
        let tokens = [(1, 2), (1, 1 << 40), (2, 0), (2, 9), (2, 10), (16, 1)]
            .map(|(timeline, position)| Fence { timeline, position });
        assert!(tokens.is_sorted());
        assert!(tokens.map(|token| token.to_string()).is_sorted());
        assert!(tokens.map(Fence::to_bytes).is_sorted());
        for token in tokens {
            assert_eq!(token.to_string().parse::<Fence>().ok(), Some(token));
            assert_eq!(Fence::from_bytes(token.to_bytes()), token);
        }
    }

    #[test]
    fn a_text_that_is_no_token_is_refused() {
        for text in [
            "",
            "1",
            "+0000001000000000016B374",
            "00000001000000000016B3744",
            "0000000é00000000016B374",
        ] {
            assert!(text.parse::<Fence>().is_err(), "{text}");
        }
    }
}
