//! Connection strings of the form `keyword=value keyword='other value'`.

use crate::secret::Secret;

use super::parameters::{Parameter, looks_like_a_name};
use super::{Problem, is_space};

/// Reads what libpq's `conninfo_parse` accepts.
pub(super) fn parse(text: &str) -> Result<Vec<Parameter>, Problem> {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let (parameter, after) = parse_one(text, rest)?;
        parameters.push(parameter);
        rest = after.trim_start_matches(is_space);
    }
    Ok(parameters)
}

/// Reads one parameter at the beginning of `rest`, the end of `text`.
fn parse_one<'a>(text: &str, rest: &'a str) -> Result<(Parameter, &'a str), Problem> {
    let at = text.len() - rest.len();
    let (name, after) = split_name(rest).ok_or_else(|| {
        format!(
            "no `=` after the word at byte {at}: expected a URL that begins with `postgresql://`, or \
             keyword=value with quotes around a value that has spaces"
        )
    })?;
    let after = after.trim_start_matches(is_space);
    let (value, after) = if let Some(quoted) = after.strip_prefix('\'') {
        let quote_at = text.len() - after.len();
        let (value, end) = unescape_until(quoted, |character| character == '\'');
        (value, end.ok_or_else(|| format!("no closing quote for the one at byte {quote_at}"))?)
    } else {
        let (value, end) = unescape_until(after, is_space);
        (value, end.unwrap_or_default())
    };
    let nameable = looks_like_a_name(name) && !follows_a_password(text, at);
    Ok((Parameter { name: name.to_owned(), value, at, nameable }, after))
}

/// Splits at the first `=`, which nothing but spaces may separate from the name.
fn split_name(rest: &str) -> Option<(&str, &str)> {
    let (name, after) = rest.split_once('=')?;
    let name = name.trim_end_matches(is_space);
    (!name.contains(is_space)).then_some((name, after))
}

/// Takes a value up to the character that `ends` it, and gives the text after that, if it came.
///
/// A backslash takes the next character as it is; at the very end it stands for nothing.
fn unescape_until(text: &str, ends: impl Fn(char) -> bool) -> (Secret, Option<&str>) {
    let mut value = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => value.extend(characters.next()),
            end if ends(end) => return (value.into(), Some(characters.as_str())),
            other => value.push(other),
        }
    }
    (value.into(), None)
}

/// Whether a password may begin before this place: with a quote forgotten or one too many, what is
/// meant to be the password can look like a name. So the text decides, not what it was read as.
fn follows_a_password(text: &str, at: usize) -> bool {
    let is_pass = |window: &[u8]| window.eq_ignore_ascii_case(b"pass");
    text.as_bytes().get(..at).is_none_or(|before| before.windows(4).any(is_pass))
}
