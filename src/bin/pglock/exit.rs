//! Exit codes: those of flock(1) where it has one, of sysexits.h for the rest.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use pglock::{Error, ErrorKind};

/// The command line is wrong (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// The server cannot be reached, or refuses to serve (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// The operating system refused something (`EX_OSERR`).
pub(crate) const SYSTEM: u8 = 71;
/// The login was refused (`EX_NOPERM`).
pub(crate) const REFUSED: u8 = 77;
/// The environment says where the server is, and says it wrong (`EX_CONFIG`).
pub(crate) const CONFIGURATION: u8 = 78;
/// The command is there and cannot be executed, as in a shell.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// There is no such command, as in a shell.
pub(crate) const NOT_FOUND: u8 = 127;
/// What a shell adds to the number of the signal that ended a command.
pub(crate) const SIGNALLED: u8 = 128;

/// Why it cannot be done, for a person; and the exit code, for a script.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What the operating system refused.
    pub(crate) fn of_system(what: &str, error: &dyn Display) -> Self {
        Self::new(SYSTEM, format!("{what}: {error}"))
    }

    pub(crate) fn report(&self) -> ExitCode {
        say(&self.message);
        self.code.into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Config => CONFIGURATION,
            ErrorKind::Authentication => REFUSED,
            _ => UNAVAILABLE,
        };
        Self::new(code, error.to_string())
    }
}

/// A diagnostic, on standard error: standard output is the command's.
pub(crate) fn say(message: impl Display) {
    // Whoever closed standard error does not want to hear it.
    let _ = writeln!(io::stderr(), "pglock: {message}");
}
