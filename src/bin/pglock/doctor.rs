//! `pglock doctor`: what is there, what of it matters to locks, and what to do about it.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use pglock::{
    AuthMethod, ConnectStep, Error, ErrorKind, Holding, ServerReport, ServerSettings, Session,
};

use crate::exit::{Failure, UNAVAILABLE, say};
use crate::output::{print, shown};
use crate::server::Server;

/// What says that something will not do.
const PROBLEM: u8 = 1;

/// How often the round trip is timed; the first is not counted.
const PINGS: usize = 9;

/// From here on, each lock takes longer than a person would wait for a click.
const SLOW: Duration = Duration::from_millis(100);

/// The versions that pglock is tested with.
const OLDEST: u32 = 12;
const NEWEST: u32 = 18;
/// The first that notices that a client who waits is gone.
const NOTICES_LOST_CLIENTS: u32 = 14;

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Note,
    Warning,
    Problem,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "PROBLEM",
        }
    }
}

/// What was found, and what to do about it.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    topic: &'static str,
    found: String,
    advice: Option<&'static str>,
}

impl Finding {
    fn ok(topic: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, topic, found: found.into(), advice: None }
    }

    fn new(
        verdict: Verdict,
        topic: &'static str,
        found: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self { verdict, topic, found: found.into(), advice: Some(advice) }
    }
}

pub(crate) async fn doctor(_: &DoctorArgs, server: &Server) -> Result<u8, Failure> {
    let config = server.config("pglock doctor")?;
    let mut session = match Session::connect(&config).await {
        Ok(session) => session,
        Err(error) if error.kind() == ErrorKind::Config => return Err(error.into()),
        Err(error) => return Ok(unreachable(&error)),
    };
    let report = session.diagnose().await?;
    let findings = findings(&report, median_of_pings(&mut session).await?);
    print(&text(&findings))?;
    let has_problem = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
    Ok(if has_problem { PROBLEM } else { 0 })
}

/// Says at which step connecting failed.
fn unreachable(error: &Error) -> u8 {
    let (step, advice) = match (error.connect_step(), error.kind()) {
        (Some(ConnectStep::Resolve), _) => (
            "name resolution",
            "check the host in --db, DATABASE_URL or PGHOST, and this machine's DNS",
        ),
        (Some(ConnectStep::Reach), ErrorKind::Tls) => (
            "TLS",
            "check sslmode and sslrootcert here, and `ssl` and its certificate on the server",
        ),
        (Some(ConnectStep::Reach), _) => (
            "opening a connection",
            "check that the server runs, that it listens there (listen_addresses, port), and that no \
             firewall is in the way",
        ),
        (Some(ConnectStep::LogIn), ErrorKind::Authentication) => {
            ("the login", "check the role, its password, and pg_hba.conf on the server")
        }
        (Some(ConnectStep::LogIn), _) => {
            ("the login", "check that this is PostgreSQL's port, and look into the server's log")
        }
        (Some(_), ErrorKind::Unsupported) => {
            ("finding out whether it can be trusted with locks", "connect to a PostgreSQL primary")
        }
        _ => ("setting up the session", "look into the server's log"),
    };
    say(format_args!("failed at {step}: {error}"));
    say(format_args!("what to do: {advice}"));
    UNAVAILABLE
}

async fn median_of_pings(session: &mut Session) -> Result<Duration, Failure> {
    session.ping().await?;
    // Each where it belongs: to sort them afterwards would be 6 kB of a small program.
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let time = session.ping().await?;
        times.insert(times.partition_point(|shorter| *shorter < time), time);
    }
    Ok(times.get(PINGS / 2).copied().unwrap_or_default())
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { verdict, topic, found, advice } in findings {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:8} {topic:14} {found}", verdict.name());
        if let Some(advice) = advice {
            let _ = writeln!(text, "{:8} {:14} -> {advice}", "", "");
        }
    }
    text
}

fn findings(report: &ServerReport, round_trip: Duration) -> Vec<Finding> {
    let mut findings = vec![
        server(report),
        primary(report),
        tls(report),
        authentication(report),
        pooler(report),
        lock_table(report.lock_objects, report.settings.lock_table_room()),
        connections(report),
    ];
    findings.extend(role_connections(report));
    findings.push(timeouts(&report.settings));
    findings.extend(vanished_clients(report));
    findings.extend(standbys(&report.settings));
    findings.extend(privileges(report));
    findings.push(speed(round_trip));
    findings
}

fn server(report: &ServerReport) -> Finding {
    let version =
        report.version.as_deref().map_or_else(|| String::from("of unknown version"), shown);
    let database = report.database.as_deref().map(shown).unwrap_or_default();
    let found = format!("{}, database {database}: PostgreSQL {version}", report.server);
    match report.version_number.map(|number| number / 10_000) {
        Some(OLDEST..=NEWEST) => Finding::ok("server", found),
        _ => Finding::new(
            Verdict::Note,
            "server",
            found,
            "pglock is tested with PostgreSQL 12 to 18 only",
        ),
    }
}

fn primary(report: &ServerReport) -> Finding {
    match report.is_standby {
        Some(true) => Finding::new(
            Verdict::Problem,
            "primary",
            "it is a standby: its locks exclude nobody elsewhere",
            "connect to the primary",
        ),
        _ => Finding::ok("primary", "it is the primary"),
    }
}

fn tls(report: &ServerReport) -> Finding {
    if let Some(tls) = &report.tls {
        return Finding::ok("tls", format!("{}, {}", tls.version, tls.cipher));
    }
    let stays_here =
        report.address.parse().map_or(true, |address: SocketAddr| address.ip().is_loopback());
    if stays_here {
        return Finding::ok("tls", "none; the connection does not leave this machine");
    }
    Finding::new(
        Verdict::Warning,
        "tls",
        "none: whoever is on the network can read along, and stand in for the server",
        "turn on `ssl` on the server, and say sslmode=verify-full here",
    )
}

fn authentication(report: &ServerReport) -> Finding {
    let topic = "login";
    match report.authentication {
        AuthMethod::ScramSha256 if report.is_channel_bound => {
            Finding::ok(topic, "by SCRAM-SHA-256, bound to the TLS connection")
        }
        AuthMethod::ScramSha256 => Finding::ok(topic, "by SCRAM-SHA-256"),
        AuthMethod::Md5 => Finding::new(
            Verdict::Warning,
            topic,
            "by MD5, which PostgreSQL has deprecated",
            "set password_encryption = 'scram-sha-256' on the server, and the role's password again",
        ),
        AuthMethod::Password => Finding::new(
            if report.tls.is_some() { Verdict::Note } else { Verdict::Warning },
            topic,
            "by the password as it is",
            "have pg_hba.conf ask for scram-sha-256",
        ),
        AuthMethod::None => Finding::new(
            Verdict::Note,
            topic,
            "no password was asked for: by trust, peer or a certificate",
            "if pg_hba.conf says trust, everybody who reaches the server can take and end locks",
        ),
        other => Finding::ok(topic, format!("by {other}")),
    }
}

fn pooler(report: &ServerReport) -> Finding {
    let topic = "pooler";
    match (report.is_pooled, report.holding) {
        (false, Holding::SessionByCalls) => Finding::ok(topic, "none; sessions hold the locks"),
        (true, Holding::Transaction) => Finding::new(
            Verdict::Warning,
            topic,
            "there is one; each lock is held in a transaction, which keeps a server connection",
            "connect to the server directly for fencing tokens, leases that hold between locks, and more \
             than one lock on a connection",
        ),
        (true, _) => Finding::new(
            Verdict::Warning,
            topic,
            "there is one, and sessions hold the locks",
            "it has to be in session mode; a connection to the server directly is safer",
        ),
        (false, Holding::Transaction) => Finding::new(
            Verdict::Note,
            topic,
            "none; each lock is held in a transaction all the same, as configured",
            "without a pooler, that is not needed",
        ),
        (false, _) => Finding::new(
            Verdict::Note,
            topic,
            "none is seen, but something takes no function calls; locks are taken by queries",
            "a connection to the server directly is faster",
        ),
    }
}

fn lock_table(used: Option<u64>, room: Option<u64>) -> Finding {
    let topic = "lock table";
    let (Some(used), Some(room)) = (used, room) else {
        return Finding::ok(topic, "its room is not known");
    };
    let found = format!("{used} of {room} places are taken, by all databases");
    let advice =
        "raise max_locks_per_transaction on the server, which takes a restart, or hold fewer locks";
    match share(used, room) {
        0..50 => Finding::ok(topic, found),
        50..90 => Finding::new(Verdict::Warning, topic, found, advice),
        _ => Finding::new(Verdict::Problem, topic, found, advice),
    }
}

/// How many per cent that is.
fn share(used: u64, room: u64) -> u64 {
    used.saturating_mul(100).checked_div(room).unwrap_or(100)
}

fn connections(report: &ServerReport) -> Finding {
    let topic = "connections";
    let settings = &report.settings;
    let (Some(used), Some(max)) = (report.connections, settings.max_connections) else {
        return Finding::ok(topic, "their number is not known");
    };
    let reserved = settings.superuser_reserved_connections.unwrap_or(0)
        + settings.reserved_connections.unwrap_or(0);
    let room = max.saturating_sub(reserved);
    let found = format!("{used} of {room} are taken ({reserved} more are reserved)");
    let advice = "raise max_connections on the server, which takes a restart, or put a pooler before \
                  programs that need no locks";
    match share(used, room) {
        0..80 => Finding::ok(topic, found),
        80..100 => Finding::new(Verdict::Warning, topic, found, advice),
        _ => Finding::new(Verdict::Problem, topic, found, advice),
    }
}

/// The limit of the role, if it has one.
fn role_connections(report: &ServerReport) -> Option<Finding> {
    let (used, limit) = (report.role.connections?, report.role.connection_limit?);
    let found = format!("{used} of {limit} that the role may have are taken");
    let advice = "raise it by ALTER ROLE ... CONNECTION LIMIT";
    Some(match share(used, limit) {
        0..80 => Finding::ok("role's limit", found),
        80..100 => Finding::new(Verdict::Warning, "role's limit", found, advice),
        _ => Finding::new(Verdict::Problem, "role's limit", found, advice),
    })
}

/// The timeouts by which other programs may lose their locks.
fn timeouts(settings: &ServerSettings) -> Finding {
    let timeouts = [
        ("statement_timeout", settings.statement_timeout),
        ("lock_timeout", settings.lock_timeout),
        ("idle_in_transaction_session_timeout", settings.idle_in_transaction_session_timeout),
        ("idle_session_timeout", settings.idle_session_timeout),
        ("transaction_timeout", settings.transaction_timeout),
    ];
    let set: Vec<_> = timeouts
        .into_iter()
        .filter_map(|(name, timeout)| Some((name, timeout.filter(|timeout| !timeout.is_zero())?)))
        .map(|(name, timeout)| format!("{name} = {timeout:?}"))
        .collect();
    if set.is_empty() {
        return Finding::ok("timeouts", "none ends a session that waits or holds");
    }
    Finding::new(
        Verdict::Note,
        "timeouts",
        set.join(", "),
        "pglock turns them off for its sessions; other clients that lock may be ended by them",
    )
}

/// How soon the locks of a client are free whose host has vanished.
fn vanished_clients(report: &ServerReport) -> Vec<Finding> {
    let settings = &report.settings;
    let mut findings = Vec::new();
    if report.version_number.is_some_and(|number| number / 10_000 < NOTICES_LOST_CLIENTS) {
        findings.push(Finding::new(
            Verdict::Note,
            "lost waiters",
            "before PostgreSQL 14, a client that dies while it waits stays in the queue until its turn",
            "use PostgreSQL 14 or later",
        ));
    }
    let is_set = |time: Option<Duration>| time.is_some_and(|time| !time.is_zero());
    findings.push(if is_set(settings.tcp_keepalives_idle) {
        Finding::ok("lost holders", "the server probes silent clients by its own settings too")
    } else {
        Finding::new(
            Verdict::Note,
            "lost holders",
            "tcp_keepalives_idle is the system's: two hours, as a rule",
            "pglock sets it for its sessions; of other clients, a vanished host keeps its locks so long",
        )
    });
    findings
}

fn standbys(settings: &ServerSettings) -> Option<Finding> {
    let names = settings.synchronous_standby_names.as_deref()?;
    let commit = settings.synchronous_commit.as_deref()?;
    Some(if names.is_empty() {
        Finding::ok("standbys", "commits wait for none")
    } else {
        Finding::new(
            Verdict::Note,
            "standbys",
            format!("commits wait for {} (synchronous_commit = {})", shown(names), shown(commit)),
            "fencing tokens wait for them too, 30 s at most; locks do not, and are lost at a failover",
        )
    })
}

fn privileges(report: &ServerReport) -> Vec<Finding> {
    let role = &report.role;
    let name = role.name.as_deref().map(shown).unwrap_or_default();
    let lacks = |has: Option<bool>, found: &str, advice| {
        (has == Some(false)).then(|| {
            Finding::new(Verdict::Note, "privileges", format!("role {name} {found}"), advice)
        })
    };
    let lacking: Vec<_> = [
        lacks(
            role.reads_all_stats,
            "does not see since when other roles hold a lock, nor from where",
            "for `pglock ls` and `who`: GRANT pg_read_all_stats TO the role",
        ),
        lacks(
            role.signals_backends,
            "may not end sessions of other roles",
            "for `pglock kill`: GRANT pg_signal_backend TO the role",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    if lacking.is_empty() {
        return vec![Finding::ok("privileges", format!("role {name} sees and ends all sessions"))];
    }
    lacking
}

fn speed(round_trip: Duration) -> Finding {
    let found = format!("{round_trip:.1?} is the median of {PINGS}");
    if round_trip < SLOW {
        return Finding::ok("round trip", found);
    }
    Finding::new(
        Verdict::Warning,
        "round trip",
        found,
        "each lock and each unlock takes that long: use a server that is nearer",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_fills_up_is_told_of_in_time() {
        for (used, verdict) in [
            (0, Verdict::Ok),
            (49, Verdict::Ok),
            (50, Verdict::Warning),
            (90, Verdict::Problem),
            (200, Verdict::Problem),
        ] {
            assert_eq!(lock_table(Some(used), Some(100)).verdict, verdict, "{used}");
        }
        assert_eq!(lock_table(Some(0), Some(0)).verdict, Verdict::Problem);
        assert_eq!(lock_table(None, Some(1)).verdict, Verdict::Ok);
    }

    #[test]
    fn a_slow_network_is_told_of() {
        assert_eq!(speed(Duration::from_micros(300)).verdict, Verdict::Ok);
        let slow = text(&[speed(Duration::from_millis(150))]);
        assert!(slow.starts_with("warning  round trip     150.0ms is the median of 9\n"), "{slow}");
        assert_eq!(slow.lines().count(), 2);
    }
}
