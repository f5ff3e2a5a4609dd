//! Who has a lock, as far as the server tells.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::key::{Key, Kind, Mode};

/// Most holders that are listed, so that the answer stays well within what is accepted of a server.
const LISTED_MAX: u64 = 100;

/// Most holders that are told of in one line.
const SHOWN_MAX: usize = 3;

/// Who holds a key, and how many wait for it: the answer of [`Session::holders`] and
/// [`Lock::holders`].
///
/// It was true for a moment at the server: by now the lock may have changed hands. It is meant for a
/// person, or a log; to decide anything, ask for the lock.
///
/// `Display` says it in one line, such as `process 4711 of app "nightly" at 10.0.0.7 holds it
/// exclusively since 2026-11-25 02:10:03 UTC or earlier; 3 wait`.
///
/// # Examples
///
/// The repository's `cargo run --example holders` runs as it stands.
///
/// ```no_run
/// # use std::time::Duration;
/// # #[cfg(feature = "async")]
/// # async fn example(mut lock: pglock::Lock) -> pglock::Result<()> {
/// if !lock.lock_timeout(Duration::from_secs(10)).await? {
///     eprintln!("not in time: {}", lock.holders().await?);
/// }
/// # Ok(())
/// # }
/// ```
///
/// [`Session::holders`]: crate::Session::holders
/// [`Lock::holders`]: crate::Lock::holders
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holders {
    listed: Vec<Holder>,
    count: u64,
    waiting: u64,
}

impl Holders {
    /// Those who hold the key, whoever did so for longest first, as far as can be known: see
    /// [`Holder::since`]. No more than 100 are listed.
    #[must_use]
    pub fn holders(&self) -> &[Holder] {
        &self.listed
    }

    /// How many hold the key, those that are not listed included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many wait for the key, in either mode.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// The statements that ask for them. Only the second has a row.
    ///
    /// The comment shows in `pg_stat_activity` what the session is for, as that of the login did.
    pub(crate) fn query(key: Key) -> String {
        format!(
            "/* pglock holders of {key} */ {LOOK_AGAIN}; \
             SELECT pg_catalog.pg_backend_pid(), \
             pg_catalog.count(*) FILTER (WHERE NOT l.granted), \
             pg_catalog.count(*) FILTER (WHERE l.granted), \
             pg_catalog.array_to_string((pg_catalog.array_agg({} \
             ORDER BY a.state_change, l.pid) FILTER (WHERE l.granted))[1:{LISTED_MAX}], \
             pg_catalog.chr(10)) \
             FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a \
             ON a.pid OPERATOR(pg_catalog.=) l.pid \
             WHERE {}",
            Holder::line("a.state_change"),
            is_on(key)
        )
    }

    /// Reads the row: the process that answered, how many wait and hold, and a line for each holder.
    pub(crate) fn from_row(row: &[Option<String>]) -> Option<Self> {
        let [_, Some(waiting), Some(count), lines] = row else { return None };
        let lines = lines.iter().flat_map(|lines| lines.split('\n'));
        Some(Self {
            listed: lines.map(Holder::from_line).collect::<Option<_>>()?,
            count: count.parse().ok()?,
            waiting: waiting.parse().ok()?,
        })
    }
}

#[cfg(all(test, feature = "manager"))]
impl Holders {
    pub(crate) fn nobody() -> Self {
        Self { listed: Vec::new(), count: 0, waiting: 0 }
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.listed.is_empty() {
            f.write_str("nobody holds it")?;
        }
        let (mut others, mut separator) = (self.count, "");
        for holder in self.listed.iter().take(SHOWN_MAX) {
            write!(f, "{separator}{holder}")?;
            others = others.saturating_sub(1);
            separator = "; ";
        }
        match others {
            0 => {}
            1 => f.write_str("; so does 1 more")?,
            others => write!(f, "; so do {others} more")?,
        }
        match self.waiting {
            0 => Ok(()),
            1 => f.write_str("; 1 waits"),
            waiting => write!(f, "; {waiting} wait"),
        }
    }
}

/// A session that holds a key, or a prepared transaction.
///
/// What the server does not say is `None`. To a role that is neither a superuser nor a member of
/// `pg_read_all_stats` it says no more about the sessions of other roles than their process ids and
/// application names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    process_id: Option<i32>,
    mode: Mode,
    since: Option<SystemTime>,
    client_address: Option<IpAddr>,
    application_name: Option<String>,
}

impl Holder {
    /// The server process of the session: what `pg_terminate_backend` takes. `None` for a prepared
    /// transaction, which has none: `pg_prepared_xacts` lists those.
    #[must_use]
    pub fn process_id(&self) -> Option<i32> {
        self.process_id
    }

    /// How it holds the key. A session that holds it in both modes is listed twice.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the session calls itself: what a client sets as `application_name`, and nobody vouches
    /// for.
    #[must_use]
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// Where the session's client is: a pooler, if it came through one. `None` also if it came by a Unix
    /// socket.
    #[must_use]
    pub fn client_address(&self) -> Option<IpAddr> {
        self.client_address
    }

    /// When the session last began or ended a request, by the server's clock (`state_change` in
    /// `pg_stat_activity`).
    ///
    /// PostgreSQL does not keep the time at which a lock was granted. A session that has asked for nothing
    /// since got the lock at this time; one that went on got it earlier. (Only one that is still busy with
    /// the request that took the lock got it later.)
    #[must_use]
    pub fn since(&self) -> Option<SystemTime> {
        self.since
    }

    /// Writes a row of `pg_locks l`, joined to `pg_stat_activity a`, as a line whose fields have no space in
    /// them, but for the last: the name, after a sign that tells an empty one from none. Where a value is
    /// null, `format` writes nothing.
    pub(crate) fn line(since: &str) -> String {
        format!(
            "pg_catalog.format('%s %s %s %s %s', l.pid, l.mode, \
             (EXTRACT(epoch FROM {since}) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, \
             pg_catalog.host(a.client_addr), \
             pg_catalog.translate('=' OPERATOR(pg_catalog.||) a.application_name, \
             pg_catalog.chr(10), '?'))"
        )
    }

    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let mut fields = line.splitn(5, ' ');
        let mut field = || fields.next();
        Some(Self {
            process_id: given(field()?).ok()?,
            mode: match field()? {
                "ExclusiveLock" => Mode::Exclusive,
                "ShareLock" => Mode::Shared,
                _ => return None,
            },
            since: match given(field()?).ok()? {
                Some(micros) => Some(UNIX_EPOCH.checked_add(Duration::from_micros(micros))?),
                None => None,
            },
            client_address: given(field()?).ok()?,
            application_name: field()?.strip_prefix('=').map(String::from),
        })
    }
}

/// Says it in words that need no name of the key, and nothing that a terminal would act on.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process_id {
            Some(process_id) => write!(f, "process {process_id}")?,
            None => f.write_str("a prepared transaction")?,
        }
        if let Some(name) = self.application_name().filter(|name| !name.is_empty()) {
            write!(f, " of app {name:?}")?;
        }
        if let Some(address) = self.client_address {
            write!(f, " at {address}")?;
        }
        f.write_str(match self.mode {
            Mode::Exclusive => " holds it exclusively",
            Mode::Shared => " holds it shared",
        })?;
        match self.since.and_then(|since| since.duration_since(UNIX_EPOCH).ok()) {
            Some(since) => write!(f, " since {} or earlier", Utc(since.as_secs())),
            None => Ok(()),
        }
    }
}

/// In a transaction, the server would show the sessions as it did for the first time: this has it look
/// again. It has no row.
pub(crate) const LOOK_AGAIN: &str = "SELECT WHERE pg_catalog.pg_stat_clear_snapshot() IS NULL";

/// What a row of `pg_locks l` is if it is about an advisory lock of this database.
pub(crate) const IS_ADVISORY: &str = "l.locktype OPERATOR(pg_catalog.=) 'advisory' \
     AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d \
     WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())";

/// What a row of `pg_locks l` is if it is about this key.
pub(crate) fn is_on(key: Key) -> String {
    let (class, object, kind) = lock_tag(key);
    format!(
        "{IS_ADVISORY} AND l.classid OPERATOR(pg_catalog.=) '{class}' \
         AND l.objid OPERATOR(pg_catalog.=) '{object}' \
         AND l.objsubid OPERATOR(pg_catalog.=) {kind}"
    )
}

/// How `pg_locks` names a key: class, object, and what tells the two kinds apart.
fn lock_tag(key: Key) -> (u32, u32, u8) {
    match key.kind() {
        Kind::Bigint(key) => {
            let [c0, c1, c2, c3, o0, o1, o2, o3] = key.to_be_bytes();
            (u32::from_be_bytes([c0, c1, c2, c3]), u32::from_be_bytes([o0, o1, o2, o3]), 1)
        }
        Kind::Pair(class, object) => {
            let [class, object] =
                [class, object].map(|half| u32::from_ne_bytes(half.to_ne_bytes()));
            (class, object, 2)
        }
    }
}

/// The key that `pg_locks` names like this.
pub(crate) fn tagged(class: u32, object: u32, kind: u8) -> Option<Key> {
    let signed = |half: u32| i32::from_ne_bytes(half.to_ne_bytes());
    match kind {
        1 => {
            let key = u64::from(class) << 32 | u64::from(object);
            Some(Key::bigint(i64::from_ne_bytes(key.to_ne_bytes())))
        }
        2 => Some(Key::pair(signed(class), signed(object))),
        _ => None,
    }
}

/// A field's value, if it has one.
fn given<T: FromStr>(field: &str) -> Result<Option<T>, T::Err> {
    if field.is_empty() { Ok(None) } else { field.parse().map(Some) }
}

/// A time, in seconds since 1970.
struct Utc(u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.0 / 86_400);
        let [hours, minutes, seconds] = [self.0 / 3_600 % 24, self.0 / 60 % 60, self.0 % 60];
        write!(f, "{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02} UTC")
    }
}

/// The date of the Gregorian calendar this many days after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // Years begin with March, so that the leap day is a year's last; and they are counted from 0, so that
    // the calendar repeats with 400 of them.
    let days = days + 719_468;
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    // Without the leap days that lie before, each year has 365.
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on, five months have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(waiting: &str, count: &str, lines: Option<&str>) -> Vec<Option<String>> {
        let texts = [Some("99"), Some(waiting), Some(count), lines];
        texts.into_iter().map(|text| text.map(String::from)).collect()
    }

    fn shown(waiting: u64, count: u64, lines: &str) -> String {
        let row = row(&waiting.to_string(), &count.to_string(), Some(lines));
        Holders::from_row(&row).unwrap().to_string()
    }

    #[test]
    fn a_key_is_named_as_the_server_names_it() {
        for (key, tag) in [
            (Key::bigint(1), (0, 1, 1)),
            (Key::bigint(-1), (u32::MAX, u32::MAX, 1)),
            (Key::bigint(i64::MIN), (1 << 31, 0, 1)),
            (Key::bigint((7 << 32) + 5), (7, 5, 1)),
            (Key::pair(7, 5), (7, 5, 2)),
            (Key::pair(-1, i32::MIN), (u32::MAX, 1 << 31, 2)),
        ] {
            assert_eq!(lock_tag(key), tag, "{key}");
            let (class, object, kind) = tag;
            assert_eq!(tagged(class, object, kind), Some(key));
        }
    }

    #[test]
    fn one_line_tells_who_has_it() {
        let nightly = "4711 ExclusiveLock 1795572603123456 10.0.0.7 =nightly";
        let hidden = "12 ShareLock   =psql";
        for (waiting, count, lines, expected) in [
            (
                3,
                1,
                nightly,
                "process 4711 of app \"nightly\" at 10.0.0.7 holds it exclusively since 2026-11-25 \
                 02:10:03 UTC or earlier; 3 wait",
            ),
            (0, 1, hidden, "process 12 of app \"psql\" holds it shared"),
            (
                1,
                2,
                "12 ShareLock   \n13 ShareLock   ",
                "process 12 holds it shared; process 13 holds it shared; 1 waits",
            ),
            (0, 2, hidden, "process 12 of app \"psql\" holds it shared; so does 1 more"),
            (0, 9, hidden, "process 12 of app \"psql\" holds it shared; so do 8 more"),
            (0, 1, "12 ShareLock   =", "process 12 holds it shared"),
            (0, 1, "12 ShareLock  ::1 ", "process 12 at ::1 holds it shared"),
            (0, 1, " ExclusiveLock   ", "a prepared transaction holds it exclusively"),
        ] {
            assert_eq!(shown(waiting, count, lines), expected);
        }
        let nobody = Holders::from_row(&row("0", "0", None)).unwrap();
        assert_eq!(nobody.to_string(), "nobody holds it");
        assert_eq!(nobody.holders(), []);
    }

    #[test]
    fn a_name_may_be_anything_and_shows_as_nothing_that_a_terminal_acts_on() {
        let name = "it's \"a, b\" = \\ c\r\t\u{1b}[2J\u{202e} ü ";
        let lines = format!("1 ShareLock   ={name}\n2 ShareLock   =");
        let holders = Holders::from_row(&row("0", "2", Some(&lines))).unwrap();
        let names: Vec<_> = holders.holders().iter().map(Holder::application_name).collect();
        assert_eq!(names, [Some(name), Some("")]);
        assert_eq!(
            holders.to_string(),
            "process 1 of app \"it's \\\"a, b\\\" = \\\\ c\\r\\t\\u{1b}[2J\\u{202e} ü \" holds it \
             shared; process 2 holds it shared"
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let line = "1 ShareLock 1 ::1 =";
        assert!(Holders::from_row(&row("0", "1", Some(line))).is_some());
        for line in [
            "",
            "1 ShareLock 1 ::1",
            "x ShareLock 1 ::1 =",
            "1 AccessShareLock 1 ::1 =",
            "1 ShareLock -1 ::1 =",
            "1 ShareLock 1 here =",
            "1 ShareLock 1 ::1 =\n",
        ] {
            assert_eq!(Holders::from_row(&row("0", "1", Some(line))), None, "{line:?}");
        }
        assert_eq!(Holders::from_row(&row("-1", "1", Some(line))), None);
        assert_eq!(Holders::from_row(&row("0", "", Some(line))), None);
        assert_eq!(Holders::from_row(&row("0", "1", Some(line))[..3]), None);
    }

    #[test]
    fn a_time_has_its_date() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(Utc(seconds).to_string(), expected);
        }
        // Every day has a later date than the one before, for 800 years.
        assert!((0..300_000).map(date).is_sorted_by(|earlier, later| earlier < later));
    }
}
