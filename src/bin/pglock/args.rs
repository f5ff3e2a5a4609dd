//! What can be said on the command line.
//!
//! The words are flock(1)'s where it has them, and so is the grammar of the plain form: options end at the
//! KEY, and whatever follows is the command's.

#![allow(
    clippy::doc_markdown,
    reason = "what documents an argument is its help, as a person reads it"
)]

use std::env;
use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::doctor::DoctorArgs;
use crate::exit::{Failure, SYSTEM, USAGE};
use crate::key::{KeyAs, NamedKey, is_negative_pair};
use crate::kill::KillArgs;
use crate::ls::LsArgs;
use crate::scheme::KeyArgs;
use crate::server::Server;
use crate::who::WhoArgs;

/// What a lease can be.
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Run a command under a lock that excludes all machines which use the same PostgreSQL database
#[derive(Parser, Debug)]
#[command(
    name = "pglock",
    version,
    override_usage = "pglock [OPTIONS] KEY [--] COMMAND [ARGUMENT]...\n       \
        pglock [OPTIONS] KEY -c 'SHELL LINE'\n       \
        pglock SUBCOMMAND ...",
    after_help = EXAMPLES,
    after_long_help = LONG_HELP,
    subcommand_negates_reqs = true,
    subcommand_help_heading = "Subcommands",
    subcommand_value_name = "SUBCOMMAND",
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) server: Server,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a command under a lock: the same as without a subcommand, for a KEY that is called like one
    #[command(override_usage = "pglock run [OPTIONS] KEY [--] COMMAND [ARGUMENT]...")]
    Run(RunArgs),
    /// Run a command on one machine, the leader, and on another when that is lost
    #[command(override_usage = "pglock lead [OPTIONS] KEY [--] COMMAND [ARGUMENT]...")]
    Lead(LeadArgs),
    /// Print the number of a key, also as other programs derive it from names
    Key(KeyArgs),
    /// Show who holds which lock, and who waits
    ///
    /// Of the keys with --permits, which are pairs A,B, those with a B from 0 on are the permits; who waits for
    /// one is at -1, and what is below says how many permits there are.
    Ls(LsArgs),
    /// Show who holds a key, and who waits for it; exit with 1 if it is free
    Who(WhoArgs),
    /// End the sessions that hold a key, and wait until they have let go
    Kill(KillArgs),
    /// Look at the server, the way there and its settings, and say what to do
    Doctor(DoctorArgs),
    /// Print the completions for a shell
    Completions {
        /// The shell that is to complete
        shell: Shell,
    },
    /// Print the manual page, or write the pages of all subcommands to a directory
    Man {
        /// Where to write pglock.1, pglock-run.1 and so on
        directory: Option<PathBuf>,
    },
}

/// A lock, and what to run under it.
#[derive(Args, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct RunArgs {
    /// Hold the key together with others that hold it shared: a reader
    #[arg(short, long, overrides_with = "exclusive")]
    shared: bool,
    /// Hold the key alone: this is the default
    #[arg(short = 'x', long, visible_short_alias = 'e', overrides_with = "shared")]
    exclusive: bool,
    /// As of flock(1); the command never has the lock's connection
    #[arg(short = 'o', long, hide = true)]
    close: bool,
    /// Give up at once if the lock is not free
    ///
    /// This does not bound connecting: see --wait.
    #[arg(short, long, visible_alias = "nb")]
    nonblock: bool,
    /// Give up if the lock is not free within this time; 0 is --nonblock
    ///
    /// It counts from when the server is connected to. Before, each host has 30 s to be connected to, or as many
    /// as PGCONNECT_TIMEOUT says, or connect_timeout in the URL; the exit code is 69 if none was in time.
    #[arg(
        short, long, visible_alias = "timeout", value_name = "SECS", value_parser = seconds,
        allow_negative_numbers = true
    )]
    wait: Option<Duration>,
    /// Exit with this code when giving up
    #[arg(short = 'E', long, value_name = "N", default_value_t = 1)]
    pub(crate) conflict_exit_code: u8,
    /// Let in as many at a time as this: a semaphore. All have to say the same number
    ///
    /// From 1 to 1000; with another number than others have, the exit code is 78. A permit and the KEY without
    /// this option are different locks: neither keeps the other out. To look at permits, say --permits to
    /// `pglock who` and `pglock kill` as well, without a number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "shared")]
    pub(crate) permits: Option<u32>,
    #[command(flatten)]
    pub(crate) care: CareArgs,
    /// Comes after the KEY, before a line for the shell
    #[arg(short = 'c', long = "command", hide = true)]
    misplaced: bool,
    #[command(flatten)]
    words: Words,
}

/// An election, and what to run while leading.
#[derive(Args, Debug)]
pub(crate) struct LeadArgs {
    /// Whether to start the command anew when it has ended by itself, and not to resign
    #[arg(long, value_name = "WHEN", default_value = "never")]
    pub(crate) restart: Restart,
    /// The pause before the first restart; it doubles, up to a minute
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "1")]
    pub(crate) restart_delay: Duration,
    #[command(flatten)]
    pub(crate) care: CareArgs,
    #[command(flatten)]
    words: Words,
}

/// A key, and what to run while this process has it.
#[derive(Args, Debug)]
struct Words {
    /// What the KEY is, where it could be read in several ways
    #[arg(long, value_name = "KIND")]
    key_as: Option<KeyAs>,
    /// The lock or the election; and the command that runs while this machine has it
    ///
    /// A number is a bigint key, two with a comma between are a pair, anything else is a name, which is hashed
    /// to a bigint.
    #[arg(
        value_name = "KEY COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_negative_numbers = true
    )]
    words: Vec<OsString>,
}

/// When a command is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Restart {
    Never,
    OnFailure,
    Always,
}

/// How the command is looked after.
#[derive(Args, Debug)]
pub(crate) struct CareArgs {
    /// Have the server end this lock if it has not heard of this machine for so long
    ///
    /// From 1 to 86400 seconds. Needs PostgreSQL 14, and no pooler. The command is ended before: also if pglock
    /// itself is stopped.
    #[arg(long, value_name = "SECS", value_parser = lease, help_heading = "Command")]
    pub(crate) lease: Option<Duration>,
    /// Give the command a fencing token, in PGLOCK_FENCE
    #[arg(long, help_heading = "Command")]
    pub(crate) fence: bool,
    /// When the lock is lost, how long the command has between TERM and KILL
    #[arg(
        long, value_name = "SECS", value_parser = seconds, default_value = "5", help_heading = "Command"
    )]
    pub(crate) kill_after: Duration,
    /// Exit with this code when the lock was lost
    #[arg(long, value_name = "N", default_value_t = 75, help_heading = "Command")]
    pub(crate) lost_exit_code: u8,
    /// After a wait, let so much time pass before the command starts
    ///
    /// A holder whose session the server has ended ends its command within milliseconds; its lock is free
    /// before. 0 lets the command start at once.
    #[arg(
        long, value_name = "SECS", value_parser = seconds, default_value = "0.05", help_heading = "Command"
    )]
    pub(crate) settle: Duration,
    /// Say on standard error what is going on
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// How long to wait for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    For(Duration),
    Endless,
}

impl RunArgs {
    pub(crate) fn mode(&self) -> pglock::Mode {
        if self.shared { pglock::Mode::Shared } else { pglock::Mode::Exclusive }
    }

    pub(crate) fn patience(&self) -> Patience {
        match self.wait {
            _ if self.nonblock => Patience::None,
            None => Patience::Endless,
            Some(Duration::ZERO) => Patience::None,
            Some(time) => Patience::For(time),
        }
    }

    pub(crate) fn key(&self) -> Result<NamedKey, Failure> {
        self.words.key()
    }

    /// The command and its arguments.
    pub(crate) fn command(&self) -> Result<Vec<OsString>, Failure> {
        if self.misplaced {
            return Err(Failure::new(
                USAGE,
                "-c comes after the KEY, as in: pglock nightly-report -c 'make report | mail ops'",
            ));
        }
        self.words.command()
    }
}

impl LeadArgs {
    pub(crate) fn key(&self) -> Result<NamedKey, Failure> {
        self.words.key()
    }

    /// The command and its arguments.
    pub(crate) fn command(&self) -> Result<Vec<OsString>, Failure> {
        self.words.command()
    }
}

impl Words {
    fn key(&self) -> Result<NamedKey, Failure> {
        let key = self.words.first().and_then(|key| key.to_str());
        let key = key.ok_or_else(|| Failure::new(USAGE, "the KEY is not UTF-8"))?;
        NamedKey::parse(key, self.key_as)
    }

    fn command(&self) -> Result<Vec<OsString>, Failure> {
        command_line(self.words.get(1..).unwrap_or_default())
    }
}

/// What comes after a KEY: a command, or `-c` and a line for the shell.
pub(crate) fn command_line(words: &[OsString]) -> Result<Vec<OsString>, Failure> {
    let command = match words {
        [dash_c, line] if is_dash_c(dash_c) => {
            let shell = env::var_os("SHELL").filter(|shell| !shell.is_empty());
            vec![shell.unwrap_or_else(|| "/bin/sh".into()), "-c".into(), line.clone()]
        }
        [dash_c, ..] if is_dash_c(dash_c) => {
            return Err(Failure::new(
                USAGE,
                "-c takes exactly one argument, the line for the shell",
            ));
        }
        [dashes, command @ ..] if dashes == "--" => command.to_vec(),
        command => command.to_vec(),
    };
    if command.is_empty() {
        return Err(Failure::new(
            USAGE,
            "there is no command after the KEY, as in: pglock nightly-report ./report.sh (pglock --help \
             has more)",
        ));
    }
    Ok(command)
}

fn is_dash_c(word: &OsString) -> bool {
    word == "-c" || word == "--command"
}

/// Reads the command line. Where that ends it, as `--help` does, the exit code.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    read().map_err(|error| {
        // Whoever closed the stream does not want to read it.
        let printed = error.print();
        match (error.use_stderr(), printed) {
            (true, _) => USAGE.into(),
            (false, Ok(())) => ExitCode::SUCCESS,
            (false, Err(_)) => SYSTEM.into(),
        }
    })
}

/// After an option of the plain form comes its KEY, though it may be called like a subcommand. What says where
/// the server is can be said before either.
fn read() -> Result<Cli, clap::Error> {
    let matches = matches_of(definition().args_conflicts_with_subcommands(true))?;
    if has_only_server(&matches) {
        return Cli::from_arg_matches(&matches_of(definition())?);
    }
    Cli::from_arg_matches(&matches)
}

/// A KEY such as `-1,2` is no option. Negative numbers are told from options without this, pairs are not.
fn matches_of(mut definition: clap::Command) -> Result<ArgMatches, clap::Error> {
    let mut words: Vec<OsString> = env::args_os().collect();
    let matches = definition.try_get_matches_from_mut(&words);
    let is_pair = |word: &OsString| word.to_str().is_some_and(is_negative_pair);
    match (matches, words.iter().position(is_pair)) {
        (Err(error), Some(place)) if error.kind() == ErrorKind::UnknownArgument => {
            words.insert(place, "--".into());
            // A complaint is about what was typed.
            definition.try_get_matches_from_mut(&words).map_err(|_| error)
        }
        (matches, _) => matches,
    }
}

/// Whether nothing is given before the first word but where the server is.
fn has_only_server(matches: &ArgMatches) -> bool {
    let given = |argument: &clap::Arg| {
        let id = argument.get_id().as_str();
        !matches!(id, "db" | "words") && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    !definition().get_arguments().any(given)
}

/// The command line's definition: what it is read by, and what completions and manual pages say.
pub(crate) fn definition() -> clap::Command {
    Cli::command()
}

/// A time in seconds, with a fraction if need be.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "give a number of seconds, such as 10 or 0.5".to_owned())
}

/// A time that the server can count, as of [`pglock::Config::lease`].
fn lease(text: &str) -> Result<Duration, String> {
    let allowed = |time: &Duration| {
        (LEASE_MIN..=LEASE_MAX).contains(time) && time.subsec_nanos() % 1_000_000 == 0
    };
    duration(text).filter(allowed).ok_or_else(|| {
        let (min, max) = (LEASE_MIN.as_secs(), LEASE_MAX.as_secs());
        format!("give from {min} to {max} seconds, with three digits of a fraction at most")
    })
}

/// Reads decimal numbers as flock(1) does, such as `1.5`, `.5`, `+2.` and `1e-3`. Digit by digit: what reads
/// and writes floating-point numbers is 35 kB of a small program, and nothing else needs it.
fn duration(text: &str) -> Option<Duration> {
    let (is_negative, number) = match text.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (number, exponent) = match number.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i16>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = [whole, fraction].concat();
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let digit = |place: i32| {
        let digit = usize::try_from(place).ok().and_then(|place| digits.as_bytes().get(place));
        u64::from(digit.map_or(0, |digit| digit - b'0'))
    };
    let read = |mut places: Range<i32>| {
        places.try_fold(0, |number: u64, place| number.checked_mul(10)?.checked_add(digit(place)))
    };
    let point = i32::try_from(whole.len()).ok()? + i32::from(exponent);
    let time = Duration::from_secs(read(0..point)?) + Duration::from_nanos(read(point..point + 9)?);
    (!is_negative || time.is_zero()).then_some(time)
}

const EXAMPLES: &str = "\
Examples:
  pglock nightly-report ./report.sh          on one machine at a time; the others wait
  pglock -n nightly-report ./report.sh       the others give up, with exit code 1
  pglock -w 60 deploy -c 'make && make install'
  pglock --permits 3 resize ./resize.sh      three at a time, on all machines

The server is where DATABASE_URL or the PG* variables say. pglock --help tells more.";

const LONG_HELP: &str = "\
Examples:
  From cron, on every machine; the report is made once. Who comes late gives up:
      0 2 * * *  pglock -n nightly-report /usr/local/bin/report
  A deployment that waits for the one before, for ten minutes at most:
      pglock -w 600 deploy ./deploy.sh
  Readers together, writers alone:
      pglock -s catalogue ./export.sh
      pglock -x catalogue ./rebuild.sh
  Three at a time, of all machines:
      pglock --permits 3 resize ./resize.sh

What the command finds in its environment:
  PGLOCK_HELD=1    it runs under a lock
  PGLOCK_KEY       the key: a number, or two with a comma between; with --permits, it is the
                   number of the name, and not what is locked
  PGLOCK_NAME      the name that the key was given by, if it was
  PGLOCK_FENCE     the fencing token, with --fence
  PGLOCK_SLOT      which of the permits it has, with --permits: from 0

What becomes of the command:
  Standard input, output and error are its own; one that is closed when pglock starts is /dev/null. It has a
  process group of its own. INT, TERM, HUP and QUIT are passed on to the group, USR1 and USR2 to the
  command. When the lock is lost, the group gets TERM, and KILL after --kill-after. If pglock is killed, the
  group is killed at once. What leaves the group, as a daemon does, is not reached, nor what runs as another user.

Signals to pglock itself:
  While there is no command, each of them ends it. `pglock lead` is ended by INT, TERM and QUIT, and by HUP where
  it was started on a terminal: with one of them the command's end is the end. The others leave a candidate in
  peace.

Exit codes:
  the command's own, or 128 and the number of the signal that ended it
  1    the lock was not free (-n) or not in time (-w): see -E; of who, the key is free; of kill, nothing was
       ended; of doctor, there is a problem
  64   the command line is wrong
  69   the server cannot be reached, or refuses to serve
  71   the operating system refused something
  75   the lock was lost while the command ran: see --lost-exit-code
  77   the login was refused; of kill, the role may not end a session
  78   DATABASE_URL or a PG* variable is wrong, or others say another number of --permits
  126  the command cannot be executed
  127  the command, or the interpreter that it names, was not found";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_exactly() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("-0", 0),
            ("007", 7_000_000_000),
            ("0.1", 100_000_000),
            ("+.5", 500_000_000),
            ("5.", 5_000_000_000),
            ("1.0000000019", 1_000_000_001),
            ("1.5e1", 15_000_000_000),
            ("12E-1", 1_200_000_000),
            ("12e-3", 12_000_000),
            ("1e-99", 0),
            ("0e99", 0),
        ] {
            assert_eq!(seconds(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
        let longest = format!("{}.999999999", u64::MAX);
        assert_eq!(seconds(&longest), Ok(Duration::MAX));
    }

    #[test]
    fn a_lease_is_what_the_server_can_count() {
        for (text, milliseconds) in [("1", 1_000), ("1.001", 1_001), ("86400", 86_400_000)] {
            assert_eq!(lease(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["0", "0.999", "1.0005", "86400.001", "-1", "x"] {
            lease(text).unwrap_err();
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            ".",
            "-",
            "+",
            "e3",
            ".e3",
            "1e",
            "1e+",
            "1.2.3",
            "1,5",
            " 1",
            "1s",
            "--1",
            "+-1",
            "-1",
            "-.1",
            "inf",
            "NaN",
            "0x10",
            "18446744073709551616",
            "1e20",
            "1e99999",
        ] {
            seconds(text).unwrap_err();
        }
    }
}
