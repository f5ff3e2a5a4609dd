//! The parameters that a connection string, a service or the environment may give, and what each one
//! sets.

use std::path::PathBuf;
use std::time::Duration;

use super::auth;
use super::files::Variables;
use super::host::{self, LoadBalance};
use super::options::{self, Options};
use super::tls::{Roots, SslNegotiation, Version};
use crate::secret::Secret;

use super::{Config, Misfit, Problem, SslMode, extras, is_space, keyword_value, service, url};

/// What a connection string says: each parameter once, since the last value counts.
pub(super) struct Parameters(Vec<Parameter>);

/// One parameter of a connection string, quoting and encoding undone.
///
/// No `Debug`: it may be the password.
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) value: Secret,
    /// Where in the string it begins, in bytes.
    pub(super) at: usize,
    /// Whether an error may show its name. A password with a delimiter in it that was not quoted looks
    /// like a password and further parameters, whose names are then pieces of the password.
    pub(super) nameable: bool,
}

/// A parameter that is known here.
pub(super) struct Definition {
    pub(super) name: &'static str,
    /// The environment variable that gives it where neither string nor service does.
    pub(super) variable: Option<&'static str>,
    /// Takes a value, of which an empty one stands for the default.
    set: Set,
}

type Set = fn(&mut Config, &str) -> Result<(), Problem>;

/// Every parameter of libpq 18, and `servicefile` of its successor.
pub(super) const DEFINITIONS: &[Definition] = &[
    // Read by whoever reads the string or the environment, since it stands for other parameters.
    define("service", Some("PGSERVICE"), |_, _| Ok(())),
    define("servicefile", Some("PGSERVICEFILE"), |_, _| Ok(())),
    define("user", Some("PGUSER"), |config, value| set(&mut config.user, given(value))),
    define("password", Some("PGPASSWORD"), |config, value| {
        set(&mut config.password, given(value).map(Secret::from))
    }),
    define("passfile", Some("PGPASSFILE"), |config, value| {
        set(&mut config.passfile, given(value).map(PathBuf::from))
    }),
    define("channel_binding", Some("PGCHANNELBINDING"), |config, value| {
        set(&mut config.channel_binding, auth::channel_binding(value)?)
    }),
    define("connect_timeout", Some("PGCONNECT_TIMEOUT"), connect_timeout),
    define("dbname", Some("PGDATABASE"), |config, value| set(&mut config.dbname, given(value))),
    define("host", Some("PGHOST"), |config, value| set(&mut config.hosts, host::hosts(value)?)),
    define("hostaddr", Some("PGHOSTADDR"), |config, value| {
        set(&mut config.addresses, host::addresses(value)?)
    }),
    define("port", Some("PGPORT"), |config, value| set(&mut config.ports, host::ports(value)?)),
    define("client_encoding", Some("PGCLIENTENCODING"), |_, value| {
        options::check_client_encoding(value)
    }),
    define("options", Some("PGOPTIONS"), |config, value| {
        set(&mut config.options, Options::parse(value)?)
    }),
    define("application_name", Some("PGAPPNAME"), |config, value| {
        set(&mut config.application_name, given(value))
    }),
    define("fallback_application_name", None, |config, value| {
        set(&mut config.fallback_application_name, given(value))
    }),
    define("keepalives", None, keepalives),
    define("keepalives_idle", None, |config, value| {
        set(&mut config.keepalive.idle, positive(value)?.map(seconds))
    }),
    define("keepalives_interval", None, |config, value| {
        set(&mut config.keepalive.interval, positive(value)?.map(seconds))
    }),
    define("keepalives_count", None, |config, value| {
        set(&mut config.keepalive.probes, positive(value)?)
    }),
    define("tcp_user_timeout", None, |config, value| {
        let milliseconds = positive(value)?.map(u64::from);
        set(&mut config.keepalive.user_timeout, milliseconds.map(Duration::from_millis))
    }),
    define("sslmode", Some("PGSSLMODE"), sslmode),
    define("sslnegotiation", Some("PGSSLNEGOTIATION"), sslnegotiation),
    // Ignored by libpq too, which remembers the name only.
    define("sslcompression", Some("PGSSLCOMPRESSION"), |_, _| Ok(())),
    define("sslcert", Some("PGSSLCERT"), |config, value| {
        set(&mut config.tls.certificate, given(value).map(PathBuf::from))
    }),
    define("sslkey", Some("PGSSLKEY"), |config, value| {
        set(&mut config.tls.key, given(value).map(PathBuf::from))
    }),
    define("sslcertmode", Some("PGSSLCERTMODE"), sslcertmode),
    define("sslpassword", None, |_, value| {
        refuse(
            value,
            "encrypted keys are not supported: decrypt it, for instance with openssl pkey",
        )
    }),
    define("sslrootcert", Some("PGSSLROOTCERT"), |config, value| {
        let file_or_system = |value: String| match value.as_str() {
            "system" => Roots::System,
            file => Roots::File(PathBuf::from(file)),
        };
        set(&mut config.tls.roots, given(value).map(file_or_system))
    }),
    define("sslcrl", Some("PGSSLCRL"), |_, value| refuse(value, REVOCATION)),
    define("sslcrldir", Some("PGSSLCRLDIR"), |_, value| refuse(value, REVOCATION)),
    define("sslsni", Some("PGSSLSNI"), |config, value| {
        set(&mut config.tls.send_name, flag(value)?)
    }),
    define("sslkeylogfile", None, |_, value| {
        refuse(value, "logging the keys of connections is not supported")
    }),
    define("requirepeer", Some("PGREQUIREPEER"), |_, value| {
        refuse(value, "finding out who owns the server's process is not supported")
    }),
    define("require_auth", Some("PGREQUIREAUTH"), |config, value| {
        set(&mut config.require_auth, auth::require_auth(value)?)
    }),
    define("min_protocol_version", Some("PGMINPROTOCOLVERSION"), |_, value| match value {
        "" | "3.0" => Ok(()),
        "3.2" | "latest" => Err("must be 3.0, the protocol that is spoken here".into()),
        _ => Err("must be 3.0, 3.2 or latest".into()),
    }),
    define("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), |_, value| match value {
        "" | "3.0" | "3.2" | "latest" => Ok(()),
        _ => Err("must be 3.0, 3.2 or latest".into()),
    }),
    define("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION"), |config, value| {
        set(&mut config.tls.min_version, min_version(value)?)
    }),
    define("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION"), |config, value| {
        set(&mut config.tls.max_version, max_version(value)?)
    }),
    define("gssencmode", Some("PGGSSENCMODE"), |_, value| match value {
        "" | "disable" | "prefer" => Ok(()),
        "require" => Err("`require` demands encryption by GSSAPI, which is not supported: say \
                          `disable`, and protect the connection with sslmode"
            .into()),
        _ => Err("must be disable, prefer or require".into()),
    }),
    define("krbsrvname", Some("PGKRBSRVNAME"), |config, value| {
        ignore(config, value, "krbsrvname", GSSAPI)
    }),
    define("gsslib", Some("PGGSSLIB"), |config, value| ignore(config, value, "gsslib", GSSAPI)),
    define("gssdelegation", Some("PGGSSDELEGATION"), |config, value| {
        ignore(config, value.trim_start_matches('0'), "gssdelegation", GSSAPI)
    }),
    define("replication", None, |_, value| match value.to_ascii_lowercase().as_str() {
        "" | "0" | "false" | "off" | "no" => Ok(()),
        _ => Err("a connection for replication can take no locks: leave it out".into()),
    }),
    define("target_session_attrs", Some("PGTARGETSESSIONATTRS"), target_session_attrs),
    define("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), |config, value| {
        let order = match value {
            "" | "disable" => LoadBalance::Disable,
            "random" => LoadBalance::Random,
            _ => return Err("must be disable or random".into()),
        };
        set(&mut config.load_balance_hosts, order)
    }),
    define("scram_client_key", None, |_, value| refuse(value, SCRAM_KEY)),
    define("scram_server_key", None, |_, value| refuse(value, SCRAM_KEY)),
    define("oauth_issuer", None, |_, value| refuse(value, OAUTH)),
    define("oauth_client_id", None, |_, value| refuse(value, OAUTH)),
    define("oauth_client_secret", None, |_, value| refuse(value, OAUTH)),
    define("oauth_scope", None, |_, value| refuse(value, OAUTH)),
];

const REVOCATION: &str = "revocation lists are not supported: leave it out to go without";
const SCRAM_KEY: &str = "logging in with a SCRAM key is not supported: give the password";
const OAUTH: &str = "logging in with OAuth is not supported: give a role that has a password";
const GSSAPI: &str = "it matters for GSSAPI only, which is not supported";

const fn define(name: &'static str, variable: Option<&'static str>, set: Set) -> Definition {
    Definition { name, variable, set }
}

impl Definition {
    pub(super) fn apply(&self, config: &mut Config, value: &str) -> Result<(), Problem> {
        // Wherever the value comes from: behind a NUL, another parameter could be smuggled in.
        if value.contains('\0') {
            return Err("must not contain a NUL character".into());
        }
        (self.set)(config, value)
    }
}

pub(super) fn definition(name: &str) -> Option<&'static Definition> {
    DEFINITIONS.iter().find(|definition| definition.name == name)
}

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
            None if is_url_of_another_kind(text) => Err(OTHER_URL.into()),
            None => keyword_value::parse(text),
        }?;
        Ok(Self::last_of_each(given))
    }

    /// A value takes the place of the earlier one, so that the order stays the string's: the first
    /// unknown name is reported, and what comes after it may be a piece of its value.
    fn last_of_each(given: Vec<Parameter>) -> Self {
        let mut kept: Vec<Parameter> = Vec::new();
        for parameter in given.into_iter().map(Parameter::modernise) {
            match kept.iter_mut().find(|earlier| earlier.name == parameter.name) {
                Some(earlier) => *earlier = parameter,
                None => kept.push(parameter),
            }
        }
        Self(kept)
    }

    fn find(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|parameter| parameter.name == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The value of a parameter that is given and not empty.
    fn value(&self, name: &str) -> Option<&str> {
        let value: &str = &self.find(name)?.value;
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn apply(&self, config: &mut Config) -> Result<(), Problem> {
        self.0.iter().try_for_each(|parameter| parameter.apply(config))
    }

    /// Adds what the service gives that the string names, if it names one.
    pub(super) fn apply_own_service(
        &self,
        config: &mut Config,
        var: Variables<'_>,
    ) -> Result<Vec<String>, Problem> {
        let Some(service) = self.value("service") else { return Ok(Vec::new()) };
        self.apply_service(service, config, var)
            .map_err(|problem| format!("{}: {problem}", self.place("service")).into())
    }

    /// Adds what a service gives and the string does not, and tells which parameters those are.
    pub(super) fn apply_service(
        &self,
        service: &str,
        config: &mut Config,
        var: Variables<'_>,
    ) -> Result<Vec<String>, Problem> {
        let found = service::find(service, self.value("servicefile"), var)?;
        let mut added = Vec::new();
        for (name, value) in found.into_iter().filter(|(name, _)| !self.has(name)) {
            if let Some(definition) = definition(&name) {
                definition.apply(config, &value).map_err(|problem| format!("{name}: {problem}"))?;
            }
            added.push(name);
        }
        Ok(added)
    }

    /// Says where the string gives one of the settings that do not go together.
    pub(super) fn locate(&self, (name, problem): Misfit) -> Problem {
        format!("{}: {problem}", self.place(name)).into()
    }

    fn place(&self, name: &str) -> String {
        match self.find(name) {
            Some(Parameter { at, .. }) => format!("{name} (at byte {at})"),
            None => name.to_owned(),
        }
    }

    /// For comparing with libpq: what is given, if each of the names is known.
    #[cfg(test)]
    pub(super) fn into_known(self) -> Option<Vec<(String, String)>> {
        self.0.iter().all(Parameter::is_known).then_some(())?;
        Some(self.0.into_iter().map(|given| (given.name, given.value.to_string())).collect())
    }
}

impl Parameter {
    /// As libpq does it, for the sake of strings that are older than `sslmode`.
    fn modernise(self) -> Self {
        if self.name != "requiressl" {
            return self;
        }
        let mode = if self.value.starts_with('1') { "require" } else { "prefer" };
        Self { name: "sslmode".into(), value: mode.into(), ..self }
    }

    fn apply(&self, config: &mut Config) -> Result<(), Problem> {
        let Self { name, value, at, .. } = self;
        if let Some(definition) = definition(name) {
            return definition
                .apply(config, value)
                .map_err(|problem| format!("{name} (at byte {at}): {problem}").into());
        }
        let owner = extras::owner(name).ok_or_else(|| self.unknown())?;
        config.warn(format!("{name} (at byte {at}) is ignored: it is for {owner}"));
        Ok(())
    }

    #[cfg(test)]
    fn is_known(&self) -> bool {
        definition(&self.name).is_some() || extras::owner(&self.name).is_some()
    }

    fn unknown(&self) -> Problem {
        let Self { name, at, .. } = self;
        if name == "ssl" {
            format!(
                "unknown parameter `ssl` at byte {at}: say `sslmode`, for instance sslmode=require"
            )
            .into()
        } else if self.nameable {
            format!(
                "unknown parameter `{name}` at byte {at}: it is neither one of libpq's, which are in \
                 lower case, nor one that is known to be for another client"
            )
            .into()
        } else {
            format!(
                "unknown parameter at byte {at}, not shown because it may be a piece of a password"
            )
            .into()
        }
    }
}

const OTHER_URL: &str = "the URL does not begin with `postgresql://` or `postgres://` at byte 0: leave out \
                         what stands before that, such as `jdbc:`, a quote or a space, and in the \
                         scheme what names a driver, such as `+psycopg2`";

/// Whether the text is a URL that other clients read, or one with something before it. Read as
/// keyword=value, it would be a parameter with a strange name.
fn is_url_of_another_kind(text: &str) -> bool {
    let before = text.split_once("://").map(|(before, _)| before);
    let is_in_schemes = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | ':');
    before.is_some_and(|before| {
        before
            .trim_start_matches(|c| is_space(c) || matches!(c, '"' | '\''))
            .chars()
            .all(is_in_schemes)
    })
}

/// Whether the text can be meant as a parameter's name.
pub(super) fn looks_like_a_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

// The signature of the table's functions.
#[expect(clippy::unnecessary_wraps)]
fn set<T>(setting: &mut T, value: T) -> Result<(), Problem> {
    *setting = value;
    Ok(())
}

fn refuse(value: &str, why: &'static str) -> Result<(), Problem> {
    if value.is_empty() { Ok(()) } else { Err(why.into()) }
}

#[expect(clippy::unnecessary_wraps)]
fn ignore(config: &mut Config, value: &str, name: &str, why: &str) -> Result<(), Problem> {
    if !value.is_empty() {
        config.warn(format!("{name} is ignored: {why}"));
    }
    Ok(())
}

fn connect_timeout(config: &mut Config, value: &str) -> Result<(), Problem> {
    let seconds =
        integer(value).map_err(|_| "must be a whole number of seconds, 0 for no limit")?;
    config.connect_timeout(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    Ok(())
}

fn keepalives(config: &mut Config, value: &str) -> Result<(), Problem> {
    if !value.is_empty() && integer(value)? == 0 {
        config.warn(String::from(
            "keepalives=0 is ignored: without, the holder of a lock would not learn that the network \
             has gone silent",
        ));
    }
    Ok(())
}

fn sslmode(config: &mut Config, value: &str) -> Result<(), Problem> {
    let mode = SslMode::from_name(value).ok_or(
        "must be one of disable, allow, prefer, require, verify-ca, verify-full and no-verify",
    )?;
    mode.check()?;
    config.sslmode = Some(mode);
    Ok(())
}

fn sslnegotiation(config: &mut Config, value: &str) -> Result<(), Problem> {
    config.tls.negotiation = match value {
        "" | "postgres" => SslNegotiation::Postgres,
        "direct" => SslNegotiation::Direct,
        _ => return Err("must be postgres or direct".into()),
    };
    Ok(())
}

fn sslcertmode(config: &mut Config, value: &str) -> Result<(), Problem> {
    config.tls.send_certificate = match value {
        "" => None,
        "allow" => Some(true),
        "disable" => Some(false),
        "require" => {
            return Err(
                "`require` is not supported: the server decides, with `clientcert` in its \
                        pg_hba.conf, whether it wants a certificate"
                    .into(),
            );
        }
        _ => return Err("must be disable or allow".into()),
    };
    Ok(())
}

/// What is asked of the server, of which there is only one thing that a lock can use.
fn target_session_attrs(_: &mut Config, value: &str) -> Result<(), Problem> {
    match value {
        "" | "any" | "primary" | "read-write" => Ok(()),
        "read-only" | "standby" | "prefer-standby" => Err(format!(
            "`{value}` may lead to a standby, whose locks exclude nobody on the primary: say \
             `primary`, which is the default here"
        )
        .into()),
        _ => Err("must be any, primary or read-write".into()),
    }
}

fn min_version(value: &str) -> Result<Option<Version>, Problem> {
    match value.to_ascii_lowercase().as_str() {
        "" => Ok(None),
        // Whoever is content with less is content with 1.2, the least that is spoken here.
        "tlsv1" | "tlsv1.1" | "tlsv1.2" => Ok(Some(Version::Tls12)),
        "tlsv1.3" => Ok(Some(Version::Tls13)),
        _ => Err("must be TLSv1.2 or TLSv1.3".into()),
    }
}

fn max_version(value: &str) -> Result<Option<Version>, Problem> {
    match value.to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "tlsv1.2" => Ok(Some(Version::Tls12)),
        "tlsv1.3" => Ok(Some(Version::Tls13)),
        _ => Err("must be TLSv1.2 or TLSv1.3".into()),
    }
}

/// An empty value in a string means, as in libpq, that the parameter is not given.
fn given(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn flag(value: &str) -> Result<Option<bool>, Problem> {
    match value {
        "" => Ok(None),
        "0" => Ok(Some(false)),
        "1" => Ok(Some(true)),
        _ => Err("must be 0 or 1".into()),
    }
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

/// A number of which 0 and less stand for the default.
fn positive(value: &str) -> Result<Option<u32>, Problem> {
    if value.is_empty() {
        return Ok(None);
    }
    Ok(u32::try_from(integer(value)?).ok().filter(|&number| number > 0))
}

fn integer(value: &str) -> Result<i32, Problem> {
    value.trim_matches(is_space).parse().map_err(|_| "must be a whole number".into())
}
