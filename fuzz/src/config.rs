use std::fmt::Write as _;
use std::time::Duration;

use pglock::{Config, SslMode};

use super::input::Input;

/// Part of every password here, and of nothing else: it must not be shown.
const SECRET: &str = "Xyzzy";

/// Connection strings: arbitrary ones, ones that were written properly, and ones in which somebody
/// forgot to encode or quote the password.
pub fn config(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 3 {
        0 => arbitrary(&String::from_utf8_lossy(input.rest())),
        1 => Settings::read(&mut input).check_written_properly(),
        _ => Settings::read(&mut input).check_written_badly(input),
    }
}

fn arbitrary(text: &str) {
    let parsed = text.parse::<Config>();
    let from_vars = Config::from_vars(|name| (name == "DATABASE_URL").then(|| text.to_owned()));
    match (parsed, from_vars) {
        (Ok(config), Ok(same)) => {
            assert_eq!(config, same);
            assert!(!format!("{config:?}").is_empty());
        }
        (Err(error), Err(_)) => assert!(!error.to_string().is_empty()),
        (parsed, from_vars) => panic!("{text}: {parsed:?}, and in the environment {from_vars:?}"),
    }
}

/// What somebody wants to configure. Empty texts are settings that are left out.
struct Settings {
    host: String,
    port: u16,
    user: String,
    password: String,
    dbname: String,
    application_name: String,
    connect_timeout_s: u16,
    sslmode: SslMode,
}

impl Settings {
    fn read(input: &mut Input<'_>) -> Self {
        Self {
            host: public_text(input).replace([',', '@'], "."),
            port: input.u16().max(1),
            user: public_text(input),
            password: [text(input), text(input)].join(SECRET),
            dbname: public_text(input),
            application_name: public_text(input),
            connect_timeout_s: input.u16(),
            sslmode: match input.u8() % 3 {
                0 => SslMode::Disable,
                1 => SslMode::Allow,
                _ => SslMode::Prefer,
            },
        }
    }

    /// Both kinds of string, quoted and encoded as they should be, and the environment mean the same
    /// as the setters, and nothing shows the password.
    fn check_written_properly(&self) {
        let expected = self.by_setters();
        assert!(!format!("{expected:?}").contains(SECRET));
        for string in [self.url(&percent_encoded), self.keyword_values(&quoted)] {
            let parsed = string.parse::<Config>();
            assert!(matches!(&parsed, Ok(config) if *config == expected), "{string}: {parsed:?}");
        }
        let vars = [
            ("PGHOST", self.host.clone()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGPASSWORD", self.password.clone()),
            ("PGDATABASE", self.dbname.clone()),
            ("PGAPPNAME", self.application_name.clone()),
            ("PGCONNECT_TIMEOUT", self.connect_timeout_s.to_string()),
            ("PGSSLMODE", self.sslmode.to_string()),
        ];
        let find = |name: &str| vars.iter().find(|var| var.0 == name).map(|var| var.1.clone());
        let from_vars = Config::from_vars(find);
        assert!(matches!(&from_vars, Ok(config) if *config == expected), "{from_vars:?}");
    }

    /// The password stands in the string as it is, and after the string comes what the fuzzer likes.
    /// There may be a mistake that is reported, but the password is not.
    fn check_written_badly(&self, input: Input<'_>) {
        let rest = without_secret(&String::from_utf8_lossy(input.rest()));
        for string in [self.url(&Self::untouched), self.keyword_values(&Self::untouched)] {
            for string in [format!("{string}{rest}"), string] {
                if let Err(error) = string.parse::<Config>() {
                    let shown = format!("{error} {error:?}");
                    assert!(!shown.contains(SECRET), "{string}: {shown}");
                }
            }
        }
    }

    fn by_setters(&self) -> Config {
        let mut config = Config::new();
        let Self { host, user, password, dbname, application_name, .. } = self;
        if !host.is_empty() {
            config.host(host);
        }
        if !user.is_empty() {
            config.user(user);
        }
        if !dbname.is_empty() {
            config.dbname(dbname);
        }
        if !application_name.is_empty() {
            config.application_name(application_name);
        }
        config
            .password(password)
            .port(self.port)
            .connect_timeout(Duration::from_secs(self.connect_timeout_s.into()))
            .sslmode(self.sslmode)
            .clone()
    }

    fn url(&self, write_password: &dyn Fn(&str) -> String) -> String {
        format!(
            "postgresql://{}:{}@{}:{}/{}?application_name={}&connect_timeout={}&sslmode={}",
            percent_encoded(&self.user),
            write_password(&self.password),
            percent_encoded(&self.host),
            self.port,
            percent_encoded(&self.dbname),
            percent_encoded(&self.application_name),
            self.connect_timeout_s,
            self.sslmode,
        )
    }

    fn keyword_values(&self, write_password: &dyn Fn(&str) -> String) -> String {
        format!(
            "host={} port={} user={} password={} dbname={} application_name={} connect_timeout={} \
             sslmode={}",
            quoted(&self.host),
            self.port,
            quoted(&self.user),
            write_password(&self.password),
            quoted(&self.dbname),
            quoted(&self.application_name),
            self.connect_timeout_s,
            self.sslmode,
        )
    }

    fn untouched(value: &str) -> String {
        value.to_owned()
    }
}

/// No value can have a NUL.
fn text(input: &mut Input<'_>) -> String {
    input.text().replace('\0', "")
}

fn public_text(input: &mut Input<'_>) -> String {
    without_secret(&text(input))
}

/// Takes the secret's first letter away, and what could stand for it in a URL.
fn without_secret(text: &str) -> String {
    text.replace(['X', '%'], "x")
}

fn percent_encoded(value: &str) -> String {
    let mut encoded = String::new();
    for byte in value.bytes() {
        let _ = match byte {
            b'a'..=b'z' | b'0'..=b'9' => write!(encoded, "{}", char::from(byte)),
            _ => write!(encoded, "%{byte:02X}"),
        };
    }
    encoded
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
