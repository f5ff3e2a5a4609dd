//! Connection strings of the form `postgresql://user:password@host:port/dbname?parameter=value`.

use zeroize::Zeroizing;

use crate::secret::Secret;

use super::parameters::{Parameter, looks_like_a_name};
use super::{Problem, is_space};

/// Reads what libpq's `conninfo_uri_parse_options` accepts; `rest` is the end of `text` after the
/// scheme.
pub(super) fn parse(text: &str, rest: &str) -> Result<Vec<Parameter>, Problem> {
    let mut parameters = Vec::new();
    let url = Part { raw: rest, at: text.len() - rest.len() };
    let location = user_and_password(&mut parameters, url)?;
    refuse_bare_at_sign(location)?;
    let (delimiter, after) = hosts_and_ports(&mut parameters, location)?;
    let query = if delimiter == Some('/') {
        let (dbname, _, query) = after.cut(&['?']);
        push_part(&mut parameters, "dbname", dbname)?;
        query
    } else {
        after
    };
    push_query(&mut parameters, query)?;
    Ok(parameters)
}

/// A piece of the URL, still encoded, and where it begins, in bytes.
#[derive(Clone, Copy)]
struct Part<'a> {
    raw: &'a str,
    at: usize,
}

impl Part<'_> {
    /// What stands before the first of the delimiters, that delimiter, and what follows it.
    fn cut(self, delimiters: &[char]) -> (Self, Option<char>, Self) {
        let end = self.raw.find(delimiters).unwrap_or(self.raw.len());
        let (before, rest) = self.raw.split_at(end);
        let mut rest = rest.chars();
        let delimiter = rest.next();
        let after = rest.as_str();
        let after_at = self.at + (self.raw.len() - after.len());
        (Self { raw: before, at: self.at }, delimiter, Self { raw: after, at: after_at })
    }

    fn without_leading_spaces(self) -> Self {
        let raw = self.raw.trim_start_matches(' ');
        Self { raw, at: self.at + (self.raw.len() - raw.len()) }
    }

    fn without_trailing_spaces(self) -> Self {
        Self { raw: self.raw.trim_end_matches(' '), at: self.at }
    }

    /// Undoes the percent-encoding. Spaces around are dropped; inside they are an error, since
    /// PostgreSQL 18.
    fn decode(self) -> Result<Secret, Problem> {
        self.without_leading_spaces().without_trailing_spaces().unescape()
    }

    fn unescape(self) -> Result<Secret, Problem> {
        let mut unescaped = Zeroizing::new(Vec::with_capacity(self.raw.len()));
        let mut bytes = (self.at..).zip(self.raw.bytes());
        while let Some((at, byte)) = bytes.next() {
            unescaped.push(match byte {
                b'%' => escaped_byte(at, bytes.next(), bytes.next())?,
                space if is_space(char::from(space)) => {
                    return Err(format!("white space at byte {at}: write it as %20").into());
                }
                plain => plain,
            });
        }
        std::str::from_utf8(&unescaped)
            .map(Secret::from)
            .map_err(|_| format!("the part that begins at byte {} is not UTF-8", self.at).into())
    }
}

type Numbered = Option<(usize, u8)>;

fn escaped_byte(at: usize, high: Numbered, low: Numbered) -> Result<u8, Problem> {
    let digit = |digit: Numbered| digit.and_then(|(_, byte)| char::from(byte).to_digit(16));
    let byte = digit(high).zip(digit(low)).map(|(high, low)| 16 * high + low);
    match byte.and_then(|byte| u8::try_from(byte).ok()) {
        Some(0) => Err(format!("%00 at byte {at}: no value may contain it").into()),
        Some(byte) => Ok(byte),
        None => {
            Err(format!("`%` without two hexadecimal digits at byte {at}: write `%` as %25").into())
        }
    }
}

/// Takes user and password if there are any, and gives what follows. They end at the first `@`
/// unless a `/` comes before it, and a `?` does not end them.
fn user_and_password<'a>(
    parameters: &mut Vec<Parameter>,
    url: Part<'a>,
) -> Result<Part<'a>, Problem> {
    let (before, delimiter, after) = url.cut(&['@', '/']);
    if delimiter != Some('@') {
        return Ok(url);
    }
    let (user, _, password) = before.cut(&[':']);
    push_part(parameters, "user", user)?;
    push_part(parameters, "password", password)?;
    Ok(after)
}

/// libpq takes such a sign for a part of the host or database. It is hardly ever meant so: it is, or
/// it ends, a password that was not encoded, whose rest would be shown in errors as the host.
fn refuse_bare_at_sign(location: Part<'_>) -> Result<(), Problem> {
    let (before, delimiter, _) = location.cut(&['@', '?']);
    if delimiter != Some('@') {
        return Ok(());
    }
    let at = before.at + before.raw.len();
    Err(format!(
        "`@` at byte {at}, after the host began: write a `/`, `:` or `@` that belongs to a user name \
         or password as %2F, %3A or %40"
    )
    .into())
}

/// Takes the hosts and their ports, and gives the delimiter after them and what follows it.
fn hosts_and_ports<'a>(
    parameters: &mut Vec<Parameter>,
    location: Part<'a>,
) -> Result<(Option<char>, Part<'a>), Problem> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    let mut rest = location;
    loop {
        let (host, port, delimiter, after) = host_and_port(rest)?;
        hosts.push(host);
        ports.push(port);
        if delimiter != Some(',') {
            push_list(parameters, "host", hosts)?;
            push_list(parameters, "port", ports)?;
            return Ok((delimiter, after));
        }
        rest = after;
    }
}

type HostAndPort<'a> = (Part<'a>, Part<'a>, Option<char>, Part<'a>);

fn host_and_port(location: Part<'_>) -> Result<HostAndPort<'_>, Problem> {
    let (host, delimiter, after) = if location.raw.starts_with('[') {
        bracketed_host(location)?
    } else {
        location.cut(&[':', '/', '?', ','])
    };
    if delimiter != Some(':') {
        return Ok((host, Part { raw: "", at: after.at }, delimiter, after));
    }
    let (port, delimiter, after) = after.cut(&['/', '?', ',']);
    Ok((host, port, delimiter, after))
}

fn bracketed_host(location: Part<'_>) -> Result<(Part<'_>, Option<char>, Part<'_>), Problem> {
    let (_, _, inside) = location.cut(&['[']);
    let (host, bracket, after) = inside.cut(&[']']);
    if bracket.is_none() {
        return Err(format!("no `]` for the `[` at byte {}", location.at).into());
    }
    if host.raw.is_empty() {
        return Err(format!("no address in the brackets at byte {}", location.at).into());
    }
    let (excess, delimiter, after) = after.cut(&[':', '/', '?', ',']);
    if !excess.raw.is_empty() {
        let at = excess.at;
        return Err(format!("expected `:`, `/`, `?` or `,` after the `]`, at byte {at}").into());
    }
    Ok((host, delimiter, after))
}

fn push_query(parameters: &mut Vec<Parameter>, query: Part<'_>) -> Result<(), Problem> {
    let mut rest = query;
    let mut after_password = false;
    while !rest.raw.is_empty() {
        let (pair, _, after) = rest.cut(&['&']);
        let parameter = query_parameter(pair)?;
        let nameable = parameter.nameable && !after_password && !rest.raw.contains('@');
        after_password |= parameter.name == "password";
        parameters.push(Parameter { nameable, ..parameter });
        rest = after;
    }
    Ok(())
}

fn query_parameter(pair: Part<'_>) -> Result<Parameter, Problem> {
    let (name, equals, value) = pair.cut(&['=']);
    if equals.is_none() {
        return Err(format!("no `=` in the parameter at byte {}", pair.at).into());
    }
    if let Some(offset) = value.raw.find('=') {
        let at = value.at + offset;
        return Err(format!("another `=` in a parameter at byte {at}: write it as %3D").into());
    }
    let (name, value) = match (name.decode()?, value.decode()?) {
        // As libpq does for the sake of URLs that were made for JDBC.
        (name, value) if &*name == "ssl" && &*value == "true" => {
            (Secret::from("sslmode"), Secret::from("require"))
        }
        pair => pair,
    };
    let nameable = looks_like_a_name(&name);
    Ok(Parameter { name: name.to_string(), value, at: pair.at, nameable })
}

/// Adds a part that has its name from its place. An empty one counts as not given.
fn push_part(parameters: &mut Vec<Parameter>, name: &str, part: Part<'_>) -> Result<(), Problem> {
    if !part.raw.is_empty() {
        let value = part.decode()?;
        parameters.push(Parameter { name: name.to_owned(), value, at: part.at, nameable: true });
    }
    Ok(())
}

/// Adds a list that has its name from its place. libpq decodes the list as a whole, so spaces may
/// stand at its two ends only.
fn push_list(
    parameters: &mut Vec<Parameter>,
    name: &str,
    mut elements: Vec<Part<'_>>,
) -> Result<(), Problem> {
    if matches!(elements.as_slice(), [only] if only.raw.is_empty()) {
        return Ok(());
    }
    if let Some(first) = elements.first_mut() {
        *first = first.without_leading_spaces();
    }
    if let Some(last) = elements.last_mut() {
        *last = last.without_trailing_spaces();
    }
    let begins = elements.iter().find(|element| !element.raw.is_empty()).or(elements.first());
    let at = begins.map_or(0, |element| element.at);
    let values =
        elements.into_iter().map(|element| element.unescape().map(|value| value.to_string()));
    let value = values.collect::<Result<Vec<_>, _>>()?.join(",").into();
    parameters.push(Parameter { name: name.to_owned(), value, at, nameable: true });
    Ok(())
}
