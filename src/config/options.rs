//! The parameter `options`: settings for the session, written as for the command line of the server.

use super::{Problem, is_space};

/// What `options` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Names and values, in their order. Names are of ASCII letters, digits, `_`, `.` and `$`; values
    /// may be anything but NUL.
    pub(crate) settings: Vec<(String, String)>,
    /// Words like `endpoint=...`, by which a proxy in front of many servers is told which one is
    /// meant. PostgreSQL itself has no use for them, so they have to be in the startup message.
    pub(crate) startup: Option<String>,
}

impl Options {
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let mut options = Self::default();
        let mut words = words(text).into_iter();
        while let Some(word) = words.next() {
            if let Some(setting) = word.strip_prefix("--") {
                options.add_setting(setting)?;
            } else if word == "-c" {
                options.add_setting(&words.next().ok_or("has no name=value after `-c`")?)?;
            } else if let Some(setting) = word.strip_prefix("-c") {
                options.add_setting(setting)?;
            } else if !word.starts_with('-') && word.contains('=') {
                options.add_startup(&word);
            } else {
                return Err("must be made of `-c name=value` or `--name=value`, with a backslash \
                            before a space in a value"
                    .into());
            }
        }
        Ok(options)
    }

    fn add_setting(&mut self, setting: &str) -> Result<(), Problem> {
        let (name, value) =
            setting.split_once('=').ok_or("has a setting without `=` and a value")?;
        let is_in_names = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
        // As the server does it: its settings have no hyphens.
        let name = name.replace('-', "_");
        if name.is_empty() || !name.chars().all(is_in_names) {
            return Err("has a setting whose name is none".into());
        }
        if name.eq_ignore_ascii_case("client_encoding") {
            check_client_encoding(value)?;
        }
        self.settings.push((name, value.to_owned()));
        Ok(())
    }

    fn add_startup(&mut self, word: &str) {
        let startup = self.startup.get_or_insert_default();
        if !startup.is_empty() {
            startup.push(' ');
        }
        for character in word.chars() {
            if character == '\\' || is_space(character) {
                startup.push('\\');
            }
            startup.push(character);
        }
    }
}

/// Splits at spaces, unless a backslash comes before them; it takes the next character as it is.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let mut word = String::new();
        let mut characters = rest.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => word.extend(characters.next()),
                space if is_space(space) => break,
                plain => word.push(plain),
            }
        }
        words.push(word);
        rest = characters.as_str().trim_start_matches(is_space);
    }
    words
}

/// Accepts UTF-8 as PostgreSQL spells it, and `auto`, which may mean that.
pub(super) fn check_client_encoding(value: &str) -> Result<(), Problem> {
    let letters = value.chars().filter(char::is_ascii_alphanumeric);
    let name: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    if matches!(name.as_str(), "" | "utf8" | "unicode" | "auto") {
        return Ok(());
    }
    Err("must be UTF8, in which the session talks whatever the database is encoded in: leave \
         client_encoding out"
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_the_server_reads_them() {
        for (text, settings, startup) in [
            ("", "", None),
            (" \t", "", None),
            ("-c geqo=off", "geqo=off", None),
            ("--geqo=off", "geqo=off", None),
            ("-cgeqo=off", "geqo=off", None),
            ("--statement-timeout=1min -c  a.b=c=d", "statement_timeout=1min|a.b=c=d", None),
            (r"-c search_path=a,\ b\\c", r"search_path=a, b\c", None),
            (r"-c\ geqo=off", "", Some("fails")),
            ("-c a=", "a=", None),
            ("-c a=\\", "a=", None),
            ("-c client_encoding=utf-8", "client_encoding=utf-8", None),
            ("endpoint=ep-1", "", Some("endpoint=ep-1")),
            (r"project=a\ b -c x=y endpoint=c\\d", "x=y", Some(r"project=a\ b endpoint=c\\d")),
            ("-c", "", Some("fails")),
            ("-c x", "", Some("fails")),
            ("--x", "", Some("fails")),
            ("--=x", "", Some("fails")),
            ("-c x'=y", "", Some("fails")),
            ("-c client_encoding=latin1", "", Some("fails")),
            ("-B 5", "", Some("fails")),
            ("-d5", "", Some("fails")),
            ("x", "", Some("fails")),
        ] {
            let Ok(options) = Options::parse(text) else {
                assert_eq!(startup, Some("fails"), "{text}");
                continue;
            };
            let given: Vec<_> =
                options.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(given.join("|"), settings, "{text}");
            assert_eq!(options.startup.as_deref(), startup, "{text}");
        }
    }

    #[test]
    fn the_session_talks_utf8() {
        for (value, accepted) in [
            ("", true),
            ("UTF8", true),
            ("utf-8", true),
            ("Unicode", true),
            ("auto", true),
            ("LATIN1", false),
            ("SQL_ASCII", false),
        ] {
            assert_eq!(check_client_encoding(value).is_ok(), accepted, "{value}");
        }
    }
}
