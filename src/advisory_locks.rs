//! All that is locked in a database, as far as the server tells.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::holders::{Holder, LOOK_AGAIN, tagged};
use crate::key::{Key, Mode};

/// Most room that the list may take in the answer, in bytes: the answer has to stay below what is accepted
/// of a server ([`RESULT_BODY_BYTES_MAX`](crate::protocol::RESULT_BODY_BYTES_MAX)).
const LIST_BYTES_MAX: u32 = 60_000;

/// The advisory locks of a database, held and waited for: the answer of [`Session::advisory_locks`]
/// and [`Session::advisory_locks_on`].
///
/// It was true for a moment at the server. It is meant for a person, or a log; to decide anything, ask for
/// the lock.
///
/// # Examples
///
/// The entries of a key stand together:
///
/// ```no_run
/// # #[cfg(feature = "async")]
/// # async fn example(mut session: pglock::Session) -> pglock::Result<()> {
/// let locks = session.advisory_locks().await?;
/// for of_key in locks.listed().chunk_by(|one, next| one.key() == next.key()) {
///     let waiting = of_key.iter().filter(|lock| !lock.is_granted()).count();
///     println!("{}: {} hold it, {waiting} wait", of_key[0].key(), of_key.len() - waiting);
/// }
/// # Ok(())
/// # }
/// ```
///
/// [`Session::advisory_locks`]: crate::Session::advisory_locks
/// [`Session::advisory_locks_on`]: crate::Session::advisory_locks_on
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvisoryLocks {
    listed: Vec<AdvisoryLock>,
    count: u64,
}

impl AdvisoryLocks {
    /// As many as fit into an answer of 60 kB, which are several hundreds, and not less than 160.
    ///
    /// Keys that somebody waits for come first, and then those that are known to be held for longest. The
    /// entries of a key stand together, those that hold it before those that wait, each in the order of
    /// [`since`](AdvisoryLock::since).
    #[must_use]
    pub fn listed(&self) -> &[AdvisoryLock] {
        &self.listed
    }

    /// How many there are, those that are not listed included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The statements that ask for those of which this holds in a row of `pg_locks l`. Only the second has a row.
    ///
    /// Names are the only text that the server converts, to at most three times as many bytes.
    ///
    /// The time at which a wait began is known to PostgreSQL 14 and later: others lack the column, which may
    /// not be named there.
    pub(crate) fn query(condition: &str) -> String {
        let since = "CASE WHEN l.granted THEN a.state_change ELSE COALESCE((pg_catalog.to_jsonb(l) \
             OPERATOR(pg_catalog.->>) 'waitstart')::pg_catalog.timestamptz, a.state_change) END";
        let line = Holder::line(since);
        format!(
            "/* pglock advisory locks */ {LOOK_AGAIN}; \
             WITH entry AS (SELECT l.classid, l.objid, l.objsubid, l.granted, l.pid, {since} AS since, \
             pg_catalog.octet_length(a.usename::pg_catalog.text) AS name_bytes, \
             pg_catalog.format(E'%s %s %s %s %s\\t%s', l.classid, l.objid, l.objsubid, l.granted, \
             pg_catalog.translate('=' OPERATOR(pg_catalog.||) a.usename::pg_catalog.text, \
             E'\\t\\n', '??'), {line}) AS line \
             FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a \
             ON a.pid OPERATOR(pg_catalog.=) l.pid WHERE {condition}), \
             ranked AS (SELECT *, pg_catalog.bool_or(NOT granted) OVER of_key AS is_awaited, \
             pg_catalog.min(since) OVER of_key AS oldest \
             FROM entry WINDOW of_key AS (PARTITION BY classid, objid, objsubid)), \
             placed AS (SELECT line, pg_catalog.sum(pg_catalog.octet_length(line) \
             OPERATOR(pg_catalog.+) (2 OPERATOR(pg_catalog.*) COALESCE(name_bytes, 0)) \
             OPERATOR(pg_catalog.+) 1) OVER (ORDER BY is_awaited DESC, oldest, classid, objid, objsubid, \
             granted DESC, since, pid ROWS UNBOUNDED PRECEDING) AS bytes FROM ranked) \
             SELECT pg_catalog.pg_backend_pid(), (SELECT pg_catalog.count(*) FROM entry), \
             pg_catalog.array_to_string(pg_catalog.array_agg(line ORDER BY bytes) \
             FILTER (WHERE bytes OPERATOR(pg_catalog.<=) {LIST_BYTES_MAX}), pg_catalog.chr(10)) \
             FROM placed"
        )
    }

    /// Reads the row: the process that answered, how many locks there are, and a line for each.
    pub(crate) fn from_row(row: &[Option<String>]) -> Option<Self> {
        let [_, Some(count), lines] = row else { return None };
        let lines = lines.iter().flat_map(|lines| lines.split('\n'));
        Some(Self {
            listed: lines.map(AdvisoryLock::from_line).collect::<Option<_>>()?,
            count: count.parse().ok()?,
        })
    }
}

/// An advisory lock that a session, or a prepared transaction, holds or waits for.
///
/// What the server does not say is `None`. To a role that is neither a superuser nor a member of
/// `pg_read_all_stats` it says no more about the sessions of other roles than their process ids, roles,
/// application names, and since when they wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvisoryLock {
    key: Key,
    is_granted: bool,
    role: Option<String>,
    /// Who holds it, or wants to.
    holder: Holder,
}

impl AdvisoryLock {
    /// What is locked.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// How it is held, or waited for.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.holder.mode()
    }

    /// Whether it is held; otherwise it is waited for.
    #[must_use]
    pub fn is_granted(&self) -> bool {
        self.is_granted
    }

    /// Whether a prepared transaction holds it, which has no session: `pg_prepared_xacts` lists those, and
    /// `COMMIT PREPARED` or `ROLLBACK PREPARED` ends them.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        self.process_id().is_none()
    }

    /// The server process of the session: what [`Session::terminate_holder`] takes. `None` for a prepared
    /// transaction.
    ///
    /// [`Session::terminate_holder`]: crate::Session::terminate_holder
    #[must_use]
    pub fn process_id(&self) -> Option<i32> {
        self.holder.process_id()
    }

    /// The role of the session.
    #[must_use]
    pub fn role(&self) -> Option<&str> {
        self.role.as_deref()
    }

    /// What the session calls itself: what a client sets as `application_name`, and nobody vouches for.
    #[must_use]
    pub fn application_name(&self) -> Option<&str> {
        self.holder.application_name()
    }

    /// Where the session's client is: a pooler, if it came through one. `None` also if it came by a Unix
    /// socket.
    #[must_use]
    pub fn client_address(&self) -> Option<IpAddr> {
        self.holder.client_address()
    }

    /// Of a lock that is held, when the session last began or ended a request, as [`Holder::since`]: it was
    /// acquired then, or before. Of one that is waited for, when the wait began; before PostgreSQL 14, when
    /// the request began that waits.
    ///
    /// It is by the server's clock.
    #[must_use]
    pub fn since(&self) -> Option<SystemTime> {
        self.holder.since()
    }

    fn from_line(line: &str) -> Option<Self> {
        let (lock, holder) = line.split_once('\t')?;
        let mut fields = lock.splitn(5, ' ');
        let mut field = || fields.next();
        let [class, object] = [field()?.parse().ok()?, field()?.parse().ok()?];
        Some(Self {
            key: tagged(class, object, field()?.parse().ok()?)?,
            is_granted: match field()? {
                "t" => true,
                "f" => false,
                _ => return None,
            },
            role: field()?.strip_prefix('=').map(String::from),
            holder: Holder::from_line(holder)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: &str = "0 42 1 t =app\t4711 ExclusiveLock 1795572603123456 10.0.0.7 =nightly";

    fn read(count: &str, lines: Option<&str>) -> Option<AdvisoryLocks> {
        let texts = [Some("99"), Some(count), lines];
        AdvisoryLocks::from_row(&texts.map(|text| text.map(String::from)))
    }

    #[test]
    fn a_line_tells_who_holds_or_awaits_which_key() {
        let lines = format!(
            "{HELD}\n4294967295 5 2 f =odd name = \t12 ShareLock   =a\tb = c\n1 0 1 t \t ShareLock   "
        );
        let locks = read("7", Some(&lines)).unwrap();
        assert_eq!(locks.count(), 7);
        let [held, awaited, prepared] = locks.listed() else { panic!("{locks:?}") };
        assert_eq!(
            (held.key(), held.mode(), held.is_granted()),
            (42.into(), Mode::Exclusive, true)
        );
        assert_eq!((held.process_id(), held.role()), (Some(4711), Some("app")));
        assert_eq!(held.application_name(), Some("nightly"));
        assert_eq!(held.client_address(), Some([10, 0, 0, 7].into()));
        assert!(held.since().is_some() && !held.is_prepared());
        assert_eq!((awaited.key(), awaited.mode()), ((-1, 5).into(), Mode::Shared));
        assert!(!awaited.is_granted());
        assert_eq!((awaited.role(), awaited.since()), (Some("odd name = "), None));
        assert_eq!(awaited.application_name(), Some("a\tb = c"));
        assert_eq!(prepared.key(), Key::bigint(1 << 32));
        assert!(prepared.is_prepared());
        assert_eq!((prepared.role(), prepared.application_name()), (None, None));
    }

    #[test]
    fn where_nothing_is_locked_nothing_is_listed() {
        let locks = read("0", None).unwrap();
        assert_eq!((locks.listed(), locks.count()), (&[][..], 0));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert!(read("1", Some(HELD)).is_some());
        let holder = "1 ShareLock 1 ::1 =";
        for lock in ["", "0 1 1 t", "0 1 3 t =", "0 1 1 x =", "-1 1 1 t =", "0 4294967296 1 t ="] {
            assert_eq!(read("1", Some(&format!("{lock}\t{holder}"))), None, "{lock:?}");
        }
        assert_eq!(read("1", Some("0 1 1 t =")), None);
        assert_eq!(read("1", Some("0 1 1 t =\tx")), None);
        assert_eq!(read("", Some(HELD)), None);
        assert_eq!(AdvisoryLocks::from_row(&[None, None]), None);
    }
}
