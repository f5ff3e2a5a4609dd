//! Where the server is: `--db`, then `DATABASE_URL`, then the `PG*` variables.

#![allow(
    clippy::doc_markdown,
    reason = "what documents an argument is its help, as a person reads it"
)]

use std::env;

use clap::Args;
use nix::unistd::{Uid, User};
use pglock::Config;

use crate::exit::{Failure, USAGE, say};

/// What the server keeps of the name of a session; and a login with a name of any length may be refused.
const APPLICATION_NAME_BYTES_MAX: usize = 63;

/// The options that every subcommand has.
#[derive(Args, Debug)]
pub(crate) struct Server {
    /// Where the server is: a URL or key=value pairs, as of libpq
    ///
    /// What it does not say is taken from the variables PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD and so
    /// on. Without this option, DATABASE_URL is used. Everybody on this machine can read it in the list of
    /// processes: give a password by PGPASSWORD, PGPASSFILE or ~/.pgpass instead.
    #[arg(long, value_name = "URL", global = true, help_heading = "Server")]
    db: Option<String>,
}

impl Server {
    /// How to connect, under this name unless the user gave another.
    pub(crate) fn config(&self, application_name: &str) -> Result<Config, Failure> {
        // What is no text would be taken for not set.
        if let Some(name) = self.variables_that_are_no_text().next() {
            return Err(Failure::new(USAGE, format!("{name}: the value is not UTF-8")));
        }
        let config = Config::from_vars(|name| match (name, &self.db) {
            ("DATABASE_URL", Some(url)) => Some(url.clone()),
            _ => env::var(name).ok().or_else(|| match name {
                "PGAPPNAME" => Some(cut(application_name).to_owned()),
                "PGUSER" => user_of_system(),
                _ => None,
            }),
        });
        let config = config.map_err(|error| self.name_source(error))?;
        for warning in config.warnings() {
            say(warning);
        }
        Ok(config)
    }

    fn variables_that_are_no_text(&self) -> impl Iterator<Item = String> {
        let needed = |name: &str| {
            name.starts_with("PG") || name == "DATABASE_URL" && self.db.is_none() || name == "HOME"
        };
        env::vars_os()
            .filter(|(_, value)| value.to_str().is_none())
            .filter_map(move |(name, _)| name.into_string().ok().filter(|name| needed(name)))
    }

    /// The library has the string from a variable; the user gave it by an option.
    fn name_source(&self, error: pglock::Error) -> Failure {
        match (&self.db, error.to_string().strip_prefix("DATABASE_URL")) {
            (Some(_), Some(problem)) => Failure::new(USAGE, format!("--db{problem}")),
            _ => error.into(),
        }
    }
}

/// As much of a name as the server keeps.
fn cut(name: &str) -> &str {
    let ends = name.char_indices().map(|(at, char)| at + char.len_utf8());
    let end = ends.take_while(|end| *end <= APPLICATION_NAME_BYTES_MAX).last();
    end.and_then(|end| name.get(..end)).unwrap_or_default()
}

/// The name that libpq takes too, where nobody gives one.
fn user_of_system() -> Option<String> {
    User::from_uid(Uid::effective()).ok().flatten().map(|user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cut_between_characters() {
        let of = |letter: &str, times| letter.repeat(times);
        for (name, kept) in [
            (String::new(), 0),
            (of("x", 63), 63),
            (of("x", 64), 63),
            (of("é", 20_000), 62),
            (of("x", 62) + "é", 62),
            (of("x", 61) + "é", 63),
        ] {
            assert_eq!(cut(&name), &name[..kept]);
        }
    }
}
