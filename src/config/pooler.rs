//! What to do about connection poolers.

/// How locks are held where a connection pooler stands before the server.
///
/// A pooler such as PgBouncer may lend a server process to many clients in turn: for a whole session,
/// or for a transaction at a time. A lock that such a session seems to hold may then be held by nobody's
/// session, or be shared with the next client. So a pooler is looked for at every login: its process ids
/// are not the server's.
///
/// Without one, locks are taken by function calls, which the server neither parses nor plans. Where
/// something in between refuses or ignores those, queries take their place.
///
/// In a transaction a session holds one lock at a time, and keeps a server connection of the pooler for
/// as long as it holds or waits for it. A pool that has none left makes the next one wait: a second after
/// its time, such a wait ends with an error of kind [`Timeout`](crate::ErrorKind::Timeout), and so does
/// the session. A try does so after 5 s. There are no fencing tokens there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pooler {
    /// Without a pooler, the session holds the locks. Behind one, each is held in a transaction that is
    /// kept open around it, which excludes others whether the pooler's mode is session or transaction. In
    /// statement mode, the pooler ends the session when it asks for a lock. The default.
    #[default]
    Auto,
    /// The session holds the locks also behind a pooler, which has to be in session mode. Each answer
    /// names the process that gave it; another one than before means that the locks are lost.
    Session,
    /// Each lock is held in a transaction, with or without a pooler.
    Transaction,
    /// Behind a pooler, connecting is an error of kind
    /// [`Unsupported`](crate::ErrorKind::Unsupported).
    Refuse,
}
