//! The line on a terminal that says who keeps one waiting.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime};

use pglock::{Config, Holders, Session};
use tokio::time::sleep;

use crate::key::NamedKey;

/// A wait that is shorter is not worth a word.
const SILENCE: Duration = Duration::from_millis(500);

/// How often the line is written anew.
const REFRESH: Duration = Duration::from_secs(1);

/// How long there is none to ask before another session is connected.
const RECONNECT: Duration = Duration::from_secs(10);

/// Clears what stands on the line, and puts the cursor at its beginning.
const CLEAR: &str = "\r\x1b[K";

/// Has the terminal cut off what is too long for a line, and break it again.
const CUT: &str = "\x1b[?7l";
const BREAK: &str = "\x1b[?7h";

/// Shows the line for as long as it is awaited, if standard error is a terminal. Dropping this future takes
/// the line away.
pub(crate) async fn show(key: &NamedKey, permits: Option<u32>, config: &Config) -> Infallible {
    if !io::stderr().is_terminal() {
        return pending().await;
    }
    sleep(SILENCE).await;
    let began = Instant::now();
    let _line = Line;
    let mut onlooker = Onlooker { key, config, session: None, connect_at: began };
    loop {
        let holders = match permits {
            None => onlooker.holders().await,
            Some(_) => None,
        };
        Line::write(&text(key, permits, holders.as_ref(), SILENCE + began.elapsed()));
        sleep(REFRESH).await;
    }
}

/// The session that waits cannot be asked: this takes another one, for the time of the wait.
struct Onlooker<'a> {
    key: &'a NamedKey,
    config: &'a Config,
    session: Option<Session>,
    /// Not earlier: the server may be busy with coming back.
    connect_at: Instant,
}

impl Onlooker<'_> {
    async fn holders(&mut self) -> Option<Holders> {
        if self.session.is_none() && Instant::now() >= self.connect_at {
            self.connect_at = Instant::now() + RECONNECT;
            self.session = Session::connect(self.config).await.ok();
        }
        let holders = self.session.as_mut()?.holders(self.key.key).await;
        if holders.is_err() {
            self.session = None;
        }
        holders.ok()
    }
}

fn text(
    key: &NamedKey,
    permits: Option<u32>,
    holders: Option<&Holders>,
    waited: Duration,
) -> String {
    let waited = waited.as_secs();
    match (permits, holders) {
        (Some(permits), _) => {
            format!("waiting for one of {permits} permits of {key} for {waited} s")
        }
        (None, Some(holders)) => match held(holders) {
            Some(held) => format!(
                "waiting for {key} for {waited} s, held for {} s: {holders}",
                held.as_secs()
            ),
            None => format!("waiting for {key} for {waited} s: {holders}"),
        },
        (None, None) => format!("waiting for {key} for {waited} s"),
    }
}

/// For how long the key has been held at least, if the clocks of the server and of this machine agree.
fn held(holders: &Holders) -> Option<Duration> {
    let first = holders.holders().first()?;
    SystemTime::now().duration_since(first.since()?).ok()
}

/// A line on standard error that is taken away in the end.
struct Line;

impl Line {
    fn write(text: &str) {
        let mut err = io::stderr().lock();
        let _ = write!(err, "{CLEAR}{CUT}pglock: {text}{BREAK}").and_then(|()| err.flush());
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = write!(io::stderr(), "{CLEAR}");
    }
}
