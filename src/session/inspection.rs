//! What a person wants to know of a server and its locks, and the end of a session that is in the way.
//!
//! None of it is about the locks of the session that asks. It is apart from the rest so that a program that
//! does not look into servers need not carry it.

use std::time::Duration;

use super::{Place, Session, abandoned};
use crate::advisory_locks::AdvisoryLocks;
use crate::error::{Error, ErrorKind, Result};
use crate::holders::{IS_ADVISORY, is_on};
use crate::key::Key;
use crate::report::{Link, ServerReport};
use crate::wait::now;

const INSUFFICIENT_PRIVILEGE: &str = "42501";

impl Session {
    /// Asks the server for the advisory locks of the database, of all sessions, and who waits for them.
    ///
    /// Nothing is locked or released. It takes a round trip, in which the server goes through its lists of
    /// all locks and sessions: ask when something is amiss, or at leisure.
    ///
    /// Through a pooler, it is as with [`holders`](Session::holders).
    ///
    /// # Errors
    ///
    /// As [`holders`](Session::holders).
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing. The session's next call waits for the answer.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "async")]
    /// # use pglock::{Config, Session};
    /// # #[cfg(feature = "async")]
    /// # async fn example() -> pglock::Result<()> {
    /// let mut session = Session::connect(&Config::from_env()?).await?;
    /// let locks = session.advisory_locks().await?;
    /// for lock in locks.listed().iter().filter(|lock| !lock.is_granted()) {
    ///     println!("process {:?} waits for {}", lock.process_id(), lock.key());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn advisory_locks(&mut self) -> Result<AdvisoryLocks> {
        let query = AdvisoryLocks::query(IS_ADVISORY);
        self.look(query, "the advisory locks", AdvisoryLocks::from_row).await
    }

    /// As [`advisory_locks`](Session::advisory_locks), for those of one key: who holds it, and who waits for
    /// it.
    ///
    /// # Errors
    ///
    /// As [`holders`](Session::holders).
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing. The session's next call waits for the answer.
    pub async fn advisory_locks_on(&mut self, key: impl Into<Key>) -> Result<AdvisoryLocks> {
        let key = key.into();
        let query = AdvisoryLocks::query(&is_on(key));
        self.look(query, &format!("the locks on key {key}"), AdvisoryLocks::from_row).await
    }

    /// Has the server end the session of this process, if it holds the key or waits for it, in this
    /// database; and says whether it does. Everything that the session holds is released, not this key
    /// alone, and its work fails.
    ///
    /// The process is looked for among those of the key in the statement that ends it: where its session is
    /// over, and its number belongs to another, that one is left alone.
    ///
    /// When this returns, the process was told. It lets go as soon as it has heard, at once as a rule:
    /// [`holders`](Session::holders) tells. A prepared transaction has no process; `ROLLBACK PREPARED` ends
    /// one.
    ///
    /// Through a pooler, it is the pooler's connection to the server that ends. A session that holds a lock
    /// in a transaction is lost if the server refuses.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Server`] with SQLSTATE 42501 if the role may not do this: it has to be a member of
    /// `pg_signal_backend` or of the other session's role, or, where that is a superuser, one as well. The
    /// session can be used further. Or as [`holders`](Session::holders).
    ///
    /// # Cancel safety
    ///
    /// Once the request is sent, which it is at once unless an earlier one is still being settled, dropping
    /// this future does not take it back.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "async")]
    /// # async fn example(mut session: pglock::Session) -> pglock::Result<()> {
    /// for holder in session.holders("nightly").await?.holders() {
    ///     if let Some(process_id) = holder.process_id() {
    ///         session.terminate_holder("nightly", process_id).await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn terminate_holder(&mut self, key: impl Into<Key>, process_id: i32) -> Result<bool> {
        let key = key.into();
        let what = format!("ending process {process_id}, which has key {key},");
        match self.look(termination(key, process_id), &what, was_told).await {
            Err(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE) && !error.is_lost() => {
                Err(unpermitted(&what, error))
            }
            told => told,
        }
    }

    /// Asks the server what it is and how it is set, as far as it matters to locks; and tells how this
    /// session is connected to it.
    ///
    /// Nothing is locked or released. It takes a round trip, in which the server goes through its lists of
    /// all locks, sessions and settings. Through a pooler, it is as with [`holders`](Session::holders).
    ///
    /// # Errors
    ///
    /// As [`holders`](Session::holders).
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing. The session's next call waits for the answer.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "async")]
    /// # use pglock::{Config, Session};
    /// # #[cfg(feature = "async")]
    /// # async fn example() -> pglock::Result<()> {
    /// let mut session = Session::connect(&Config::from_env()?).await?;
    /// let report = session.diagnose().await?;
    /// println!("{} is PostgreSQL {:?}", report.server, report.version);
    /// if let (Some(used), Some(room)) = (report.lock_objects, report.settings.lock_table_room()) {
    ///     println!("{used} of {room} places in its lock table are taken");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn diagnose(&mut self) -> Result<ServerReport> {
        self.settled().await?;
        let link = self.link()?;
        self.look(ServerReport::query(), "a report of the server", |row| {
            ServerReport::from_row(link, row)
        })
        .await
    }

    /// Asks the server for no more than an answer, by a query of which the answer is one row, and says how
    /// long that took.
    ///
    /// # Errors
    ///
    /// As [`holders`](Session::holders).
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing. The session's next call waits for the answer.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(feature = "async")]
    /// # async fn example(mut session: pglock::Session) -> pglock::Result<()> {
    /// println!("the server answers in {:?}", session.ping().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ping(&mut self) -> Result<Duration> {
        self.settled().await?;
        let asked = now();
        let any = |_: &[Option<String>]| Some(());
        self.look(String::from("SELECT pg_catalog.pg_backend_pid()"), "a sign of life", any)
            .await?;
        Ok(now().duration_since(asked))
    }

    fn link(&self) -> Result<Link> {
        match &self.place {
            Place::Here(wire) => Ok(wire.link()),
            Place::Away(_) => Err(abandoned()),
            Place::Gone(error) => Err(error.clone()),
        }
    }
}

/// The statement that ends a process if it has this key: a row with the process that answers, and whether
/// the other one was told, or null.
fn termination(key: Key, process_id: i32) -> String {
    format!(
        "/* pglock end of {process_id} */ SELECT pg_catalog.pg_backend_pid(), \
         (SELECT pg_catalog.pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks l \
         WHERE {} AND l.pid OPERATOR(pg_catalog.=) '{process_id}' LIMIT 1)",
        is_on(key)
    )
}

fn was_told(row: &[Option<String>]) -> Option<bool> {
    let [_, told] = row else { return None };
    match told.as_deref() {
        Some("t") => Some(true),
        Some("f") | None => Some(false),
        Some(_) => None,
    }
}

fn unpermitted(what: &str, error: Error) -> Error {
    let message = "the role may not: it has to be a member of pg_signal_backend or of that session's \
                   role, or, where that is a superuser, one as well";
    let error = match error.server() {
        Some(server) => Error::new(ErrorKind::Server, message).with_server(server.clone()),
        None => error,
    };
    // The comma is there for what comes after it elsewhere.
    error.context(what.trim_end_matches(','))
}
