//! The parameters that a connection string or the environment may give, and what each one sets.

use std::time::Duration;

use super::{Config, Host, Problem, SslMode, is_space, keyword_value, url};

/// What a connection string says: each parameter once, since the last value counts.
pub(super) struct Parameters(Vec<Parameter>);

/// One parameter of a connection string, quoting and encoding undone.
///
/// No `Debug`: it may be the password.
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) value: String,
    /// Where in the string it begins, in bytes.
    pub(super) at: usize,
    /// Whether an error may show its name. A password with a delimiter in it that was not quoted looks
    /// like a password and further parameters, whose names are then pieces of the password.
    pub(super) nameable: bool,
}

/// A parameter that this version knows.
pub(super) struct Definition {
    pub(super) name: &'static str,
    /// The environment variable that gives it where the connection string does not.
    pub(super) variable: &'static str,
    pub(super) set: fn(&mut Config, &str) -> Result<(), Problem>,
}

pub(super) const DEFINITIONS: [Definition; 8] = [
    Definition { name: "host", variable: "PGHOST", set: host },
    Definition { name: "port", variable: "PGPORT", set: port },
    Definition {
        name: "user",
        variable: "PGUSER",
        set: |config, value| {
            config.user = given(value);
            Ok(())
        },
    },
    Definition {
        name: "password",
        variable: "PGPASSWORD",
        set: |config, value| {
            config.password = given(value);
            Ok(())
        },
    },
    Definition {
        name: "dbname",
        variable: "PGDATABASE",
        set: |config, value| {
            config.dbname = given(value);
            Ok(())
        },
    },
    Definition {
        name: "application_name",
        variable: "PGAPPNAME",
        set: |config, value| {
            config.application_name = given(value).unwrap_or(Config::new().application_name);
            Ok(())
        },
    },
    Definition { name: "connect_timeout", variable: "PGCONNECT_TIMEOUT", set: connect_timeout },
    Definition { name: "sslmode", variable: "PGSSLMODE", set: sslmode },
];

/// What libpq knows besides. Naming them tells a user that the name is right and the version is not.
const NOT_YET: &[&str] = &[
    "channel_binding",
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "options",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslkeylogfile",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
];

impl Parameters {
    pub(super) const fn none() -> Self {
        Self(Vec::new())
    }

    /// Reads a connection string of either kind.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        if let Some(at) = text.find('\0') {
            return Err(format!("NUL character at byte {at}").into());
        }
        let given = match text.strip_prefix("postgresql://").or(text.strip_prefix("postgres://")) {
            Some(rest) => url::parse(text, rest),
            None => keyword_value::parse(text),
        }?;
        Ok(Self::last_of_each(given))
    }

    /// A value takes the place of the earlier one, so that the order stays the string's: the first
    /// unknown name is reported, and what comes after it may be a piece of its value.
    fn last_of_each(given: Vec<Parameter>) -> Self {
        let mut kept: Vec<Parameter> = Vec::new();
        for parameter in given {
            match kept.iter_mut().find(|earlier| earlier.name == parameter.name) {
                Some(earlier) => *earlier = parameter,
                None => kept.push(parameter),
            }
        }
        Self(kept)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|parameter| parameter.name == name)
    }

    pub(super) fn apply(&self, config: &mut Config) -> Result<(), Problem> {
        self.0.iter().try_for_each(|parameter| parameter.apply(config))
    }
}

impl Parameter {
    fn apply(&self, config: &mut Config) -> Result<(), Problem> {
        let Self { name, value, at, .. } = self;
        match DEFINITIONS.iter().find(|definition| definition.name == name) {
            Some(definition) => (definition.set)(config, value)
                .map_err(|problem| format!("{name} (at byte {at}): {problem}").into()),
            None => Err(self.unknown()),
        }
    }

    fn unknown(&self) -> Problem {
        let Self { name, at, .. } = self;
        if NOT_YET.contains(&name.as_str()) {
            return format!("parameter `{name}` at byte {at} is not supported yet by this version")
                .into();
        }
        let known = DEFINITIONS.map(|definition| definition.name).join(", ");
        if self.nameable {
            format!("unknown parameter `{name}` at byte {at}; this version knows {known}").into()
        } else {
            format!(
                "unknown parameter at byte {at}, not shown because it may be a piece of a password; \
                 this version knows {known}"
            )
            .into()
        }
    }
}

/// Whether the text can be meant as a parameter's name.
pub(super) fn looks_like_a_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

fn host(config: &mut Config, value: &str) -> Result<(), Problem> {
    config.host = given(value).map(|host| Host::new(&host));
    config.host.as_ref().map_or(Ok(()), Host::check)
}

fn port(config: &mut Config, value: &str) -> Result<(), Problem> {
    if value.contains(',') {
        return Err("lists of ports are not supported yet: give one".into());
    }
    config.port = match value.trim_matches(is_space) {
        "" => Config::new().port,
        digits => match digits.parse() {
            Ok(0) | Err(_) => return Err("must be a number from 1 to 65535".into()),
            Ok(port) => port,
        },
    };
    Ok(())
}

fn connect_timeout(config: &mut Config, value: &str) -> Result<(), Problem> {
    let seconds: i32 = value
        .trim_matches(is_space)
        .parse()
        .map_err(|_| "must be a whole number of seconds, 0 for no limit")?;
    config.connect_timeout(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    Ok(())
}

fn sslmode(config: &mut Config, value: &str) -> Result<(), Problem> {
    let mode = SslMode::from_name(value).ok_or(
        "must be one of disable, allow, prefer, require, verify-ca, verify-full (of which this \
         version, having no TLS yet, can do the first three)",
    )?;
    mode.check()?;
    config.sslmode = mode;
    Ok(())
}

/// An empty value in a string means, as in libpq, that the parameter is not given.
fn given(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}
