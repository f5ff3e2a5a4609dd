//! Whole connection strings and environments, and what becomes of them.

#[cfg(all(unix, feature = "tls"))]
mod callers_config;
#[cfg(unix)]
mod files;
#[cfg(unix)]
mod home;
#[cfg(all(unix, feature = "tls"))]
mod tls;

use std::collections::HashMap;
use std::time::Duration;

use super::host::LoadBalance;
use super::parameters::DEFINITIONS;
use super::resolve::{Handshake, HandshakeOptions};
use super::tls::Versions;
use super::{Config, Host, KeepaliveWishes, Resolved, Server, SslMode};
use crate::auth::{AuthMethod, ChannelBindingPolicy};
use crate::error::{ErrorKind, Result};

fn parse(text: &str) -> Config {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn parse_error(text: &str) -> String {
    let error = match text.parse::<Config>() {
        Err(error) => error,
        Ok(config) => panic!("{text} was accepted as {config:?}"),
    };
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

/// The settings that differ from the defaults, in the notation of libpq's own tests.
fn describe(config: &Config) -> String {
    let mut parts = Vec::new();
    let mut part = |name: &str, value: Option<String>| {
        parts.extend(value.map(|value| format!("{name}='{value}'")));
    };
    part("user", config.user.clone());
    part("password", config.password.as_ref().map(|password| password.to_string()));
    part("dbname", config.dbname.clone());
    part("host", list(&config.hosts));
    part("hostaddr", list(&config.addresses));
    part("port", list(&config.ports));
    part("sslmode", config.sslmode.map(|mode| mode.to_string()));
    part("application_name", config.application_name.clone());
    let setting = |(name, value): &(String, String)| format!("{name}={value}");
    let settings: Vec<_> = config.options.settings.iter().map(setting).collect();
    part("options", (!settings.is_empty()).then(|| settings.join(" ")));
    parts.join(" ")
}

fn list<T: ToString>(list: &[Option<T>]) -> Option<String> {
    let element = |element: &Option<T>| element.as_ref().map(T::to_string).unwrap_or_default();
    let elements: Vec<_> = list.iter().map(element).collect();
    (!elements.is_empty()).then(|| elements.join(","))
}

/// The accepted URLs of PostgreSQL's `src/interfaces/libpq/t/001_uri.pl`.
const LIBPQ_URLS: &[(&str, &str)] = &[
    (
        "postgresql://uri-user:secret@host:12345/db",
        "user='uri-user' password='secret' dbname='db' host='host' port='12345'",
    ),
    ("postgresql://uri-user@host:12345/db", "user='uri-user' dbname='db' host='host' port='12345'"),
    ("postgresql://uri-user@host/db", "user='uri-user' dbname='db' host='host'"),
    ("postgresql://host:12345/db", "dbname='db' host='host' port='12345'"),
    ("postgresql://host/db", "dbname='db' host='host'"),
    ("postgresql://uri-user@host:12345/", "user='uri-user' host='host' port='12345'"),
    ("postgresql://uri-user@host/", "user='uri-user' host='host'"),
    ("postgresql://uri-user@", "user='uri-user'"),
    ("postgresql://host:12345/", "host='host' port='12345'"),
    ("postgresql://host:12345", "host='host' port='12345'"),
    ("postgresql://host/", "host='host'"),
    ("postgresql://host", "host='host'"),
    ("postgresql://", ""),
    ("postgresql://%68ost/", "host='host'"),
    ("postgresql://host/db?user=uri-user", "user='uri-user' dbname='db' host='host'"),
    (
        "postgresql://host/db?user=uri-user&port=12345",
        "user='uri-user' dbname='db' host='host' port='12345'",
    ),
    (
        "postgresql://host/db?u%73er=someotheruser&port=12345",
        "user='someotheruser' dbname='db' host='host' port='12345'",
    ),
    ("postgresql://host:12345?user=uri-user", "user='uri-user' host='host' port='12345'"),
    ("postgresql://host?user=uri-user", "user='uri-user' host='host'"),
    // Leading and trailing spaces are dropped since PostgreSQL 18.
    (
        "postgresql://  host  ?  user = uri-user & port  = 12345 ",
        "user='uri-user' host='host' port='12345'",
    ),
    ("postgresql://host?", "host='host'"),
    ("postgresql://[::1]:12345/db", "dbname='db' host='::1' port='12345'"),
    ("postgresql://[::1]/db", "dbname='db' host='::1'"),
    ("postgresql://[2001:db8::1234]/", "host='2001:db8::1234'"),
    ("postgresql://[200z:db8::1234]/", "host='200z:db8::1234'"),
    ("postgresql://[::1]", "host='::1'"),
    ("postgres://", ""),
    ("postgres:///", ""),
    ("postgres:///db", "dbname='db'"),
    ("postgres://uri-user@/db", "user='uri-user' dbname='db'"),
    ("postgres://?host=/path/to/socket/dir", "host='/path/to/socket/dir'"),
    ("postgres://@host", "host='host'"),
    ("postgres://host:/", "host='host'"),
    ("postgres://:12345/", "port='12345'"),
    ("postgres://otheruser@?host=/no/such/directory", "user='otheruser' host='/no/such/directory'"),
    (
        "postgres://otheruser@/?host=/no/such/directory",
        "user='otheruser' host='/no/such/directory'",
    ),
    (
        "postgres://otheruser@:12345/db?host=/path/to/socket",
        "user='otheruser' dbname='db' host='/path/to/socket' port='12345'",
    ),
    ("postgres://:12345?host=/path/to/socket", "host='/path/to/socket' port='12345'"),
    ("postgres://%2Fvar%2Flib%2Fpostgresql/dbname", "dbname='dbname' host='/var/lib/postgresql'"),
    ("postgresql://host?sslmode=disable", "host='host' sslmode='disable'"),
    ("postgresql://?hostaddr=127.0.0.1", "hostaddr='127.0.0.1'"),
    ("postgresql://example.com?hostaddr=63.1.2.4", "host='example.com' hostaddr='63.1.2.4'"),
];

/// The examples of libpq's documentation, "Connection Strings", in their order.
const DOCUMENTED: &[(&str, &str)] = &[
    (
        "host=localhost port=5432 dbname=mydb connect_timeout=10",
        "dbname='mydb' host='localhost' port='5432'",
    ),
    ("postgresql://", ""),
    ("postgresql://localhost", "host='localhost'"),
    ("postgresql://localhost:5433", "host='localhost' port='5433'"),
    ("postgresql://localhost/mydb", "dbname='mydb' host='localhost'"),
    ("postgresql://user@localhost", "user='user' host='localhost'"),
    ("postgresql://user:secret@localhost", "user='user' password='secret' host='localhost'"),
    (
        "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
        "user='other' dbname='otherdb' host='localhost' application_name='myapp'",
    ),
    (
        "postgresql://host1:123,host2:456/somedb?target_session_attrs=any&application_name=myapp",
        "dbname='somedb' host='host1,host2' port='123,456' application_name='myapp'",
    ),
    (
        "postgresql://user@localhost:5433/mydb?options=-c%20synchronous_commit%3Doff",
        "user='user' dbname='mydb' host='localhost' port='5433' options='synchronous_commit=off'",
    ),
    ("postgresql:///mydb?host=localhost&port=5433", "dbname='mydb' host='localhost' port='5433'"),
    ("postgresql://[2001:db8::1234]/database", "dbname='database' host='2001:db8::1234'"),
    ("postgresql:///dbname?host=/var/lib/postgresql", "dbname='dbname' host='/var/lib/postgresql'"),
    ("postgresql://%2Fvar%2Flib%2Fpostgresql/dbname", "dbname='dbname' host='/var/lib/postgresql'"),
];

/// Traps beyond libpq's tests and documentation.
const URLS: &[(&str, &str)] = &[
    ("postgresql://a,b:1,c", "host='a,b,c' port=',1,'"),
    ("postgresql://a,b?hostaddr=10.0.0.1,::1", "host='a,b' hostaddr='10.0.0.1,::1' port=','"),
    ("postgresql://a,b,", "host='a,b,' port=',,'"),
    ("postgresql://,/d", "dbname='d' host=',' port=','"),
    ("postgresql:// a,b:1,2 /d", "dbname='d' host='a,b,2' port=',1,'"),
    ("postgresql://[::1]:5,[fe80::1%25eth0],h:6", "host='::1,fe80::1%eth0,h' port='5,,6'"),
    ("postgresql://%2Ftmp,h/d", "dbname='d' host='/tmp,h' port=','"),
    ("postgresql://a%2Cb:1", "host='a,b' port='1'"),
    ("postgresql://a,b:1?port=2", "host='a,b' port='2'"),
    ("postgres://h?requiressl=0", "host='h' sslmode='prefer'"),
    // The first `@` ends the password, whatever comes before it but a `/`.
    ("postgres://u:p:w?x#y&z=@h", "user='u' password='p:w?x#y&z=' host='h'"),
    ("postgres://u:a+b@h?user=me@home", "user='me@home' password='a+b' host='h'"),
    ("postgres://me%40home:%2f%3A%40%25@h", "user='me@home' password='/:@%' host='h'"),
    ("postgres://:only@h", "password='only' host='h'"),
    ("postgres://h/a/b#c", "dbname='a/b#c' host='h'"),
    ("postgres://h/?dbname=postgres://x/y", "dbname='postgres://x/y' host='h'"),
    ("postgres://[fe80::1%25eth0]", "host='fe80::1%eth0'"),
    (
        "postgres://%2Fcloudsql%2Fproject:region/db?port=1",
        "dbname='db' host='/cloudsql/project' port='1'",
    ),
    (
        "postgres://h/?host=/cloudsql/project:region:instance",
        "host='/cloudsql/project:region:instance'",
    ),
    ("postgres://%E6%97%A5%E6%9C%AC@h/日本", "user='日本' dbname='日本' host='h'"),
    ("postgres://h?user=a&user=b", "user='b' host='h'"),
    ("postgres://u@h/d?user=&dbname=&host=&port=", ""),
    ("postgres://h:nonsense/?port=1", "host='h' port='1'"),
    ("postgres://h?port=%201%20", "host='h' port='1'"),
];

const KEYWORD_VALUES: &[(&str, &str)] = &[
    ("", ""),
    (" \t\r\n\u{b}\u{c}", ""),
    (
        "host=localhost port=5433 dbname=mydb connect_timeout=10",
        "dbname='mydb' host='localhost' port='5433'",
    ),
    ("  user\t=\nalice  dbname = 'my db' ", "user='alice' dbname='my db'"),
    (r"user=a\ b\'c\\d\e", r"user='a b'c\de'"),
    (r"user='a b\'c\\d\e'", r"user='a b'c\de'"),
    ("user=it's", "user='it's'"),
    (r"user=a\", "user='a'"),
    ("user='a'dbname='b'", "user='a' dbname='b'"),
    ("user=a=b", "user='a=b'"),
    ("user= dbname=b", "user='dbname=b'"),
    ("user='' host='' dbname='' port='' password='' application_name=''", ""),
    ("user=a%20b", "user='a%20b'"),
    ("dbname=postgres://u:p@h/d", "dbname='postgres://u:p@h/d'"),
    ("host=::1 port=+1", "host='::1' port='1'"),
    ("host=@abstract", "host='@abstract'"),
    ("port=5433 port=5434", "port='5434'"),
    ("port=nonsense port=5434", "port='5434'"),
    ("user=日\\本", "user='日本'"),
    ("host=a,b,c port=1,,3", "host='a,b,c' port='1,,3'"),
    ("host=a,,c", "host='a,,c'"),
    ("host=a,b port=' 1 , 2 '", "host='a,b' port='1,2'"),
    ("host=a,b hostaddr=10.0.0.1,", "host='a,b' hostaddr='10.0.0.1,'"),
    ("hostaddr=::1", "hostaddr='::1'"),
    ("host=a hostaddr=''", "host='a'"),
];

#[test]
fn strings_are_read_as_libpq_reads_them() {
    for (text, expected) in LIBPQ_URLS.iter().chain(DOCUMENTED).chain(URLS).chain(KEYWORD_VALUES) {
        assert_eq!(describe(&parse(text)), *expected, "{text}");
    }
}

#[test]
fn connect_timeouts_are_in_seconds() {
    for (text, expected) in [
        ("", Some(30)),
        ("connect_timeout=5", Some(5)),
        ("connect_timeout=' +5 '", Some(5)),
        ("connect_timeout=0", None),
        ("connect_timeout=-1", None),
        ("postgres://?connect_timeout=2147483647", Some(2_147_483_647)),
    ] {
        assert_eq!(parse(text).connect_timeout, expected.map(Duration::from_secs), "{text}");
    }
    assert_eq!(Config::new().connect_timeout(Duration::ZERO).connect_timeout, None);
}

#[test]
fn a_mistake_is_named_with_its_place() {
    for (text, expected) in [
        // The refused URLs of libpq's tests.
        ("postgresql://host/db?u%7aer=x&port=12345", "unknown parameter `uzer` at byte 21"),
        ("postgresql://host?uzer=", "unknown parameter `uzer` at byte 18"),
        ("postgre://", "does not begin with `postgresql://` or `postgres://` at byte 0"),
        ("postgres://[::1", "no `]` for the `[` at byte 11"),
        ("postgres://[]", "no address in the brackets at byte 11"),
        ("postgres://[::1]z", "expected `:`, `/`, `?` or `,` after the `]`, at byte 16"),
        ("postgresql://host?zzz", "no `=` in the parameter at byte 18"),
        ("postgresql://host?value1&value2", "no `=` in the parameter at byte 18"),
        ("postgresql://host?key=key=value", "another `=` in a parameter at byte 25"),
        ("postgres://host?dbname=%XXfoo", "two hexadecimal digits at byte 23"),
        ("postgresql://a%00b", "%00 at byte 14"),
        ("postgresql://%zz", "two hexadecimal digits at byte 13"),
        ("postgresql://%1", "two hexadecimal digits at byte 13"),
        ("postgresql://%", "two hexadecimal digits at byte 13"),
        ("postgresql://host? user user = x & port = 1", "white space at byte 23"),
        // Those of other clients, and those that were copied with something before them.
        ("postgresql+psycopg2://u:p@h/d", "what names a driver, such as `+psycopg2`"),
        ("postgresql+asyncpg://u:p@h/d?ssl=require", "what names a driver"),
        ("jdbc:postgresql://h:5432/d?user=u&password=p", "such as `jdbc:`, a quote or a space"),
        ("Postgres://u:p@h/d?sslmode=require", "does not begin with `postgresql://`"),
        (" postgres://u:p@h/d?sslmode=require", "a quote or a space"),
        ("'postgres://u:p@h/d?sslmode=require'", "a quote or a space"),
        // And more.
        ("postgres://h/db\n", "white space at byte 15"),
        ("postgres://h?&user=x", "no `=` in the parameter at byte 13"),
        ("postgres://u@h/%ff", "part that begins at byte 15 is not UTF-8"),
        ("postgres://h?ssl=1", "unknown parameter `ssl` at byte 13"),
        ("postgres://h?Schema=x", "unknown parameter `Schema` at byte 13"),
        (
            "postgres://a,b:1,2:x",
            "port (at byte 15): number 3 of the list: must be a number from 1",
        ),
        ("postgres://a:1,b:%zz", "two hexadecimal digits at byte 17"),
        ("postgres://a , b", "white space at byte 12"),
        ("postgres://a, b", "white space at byte 13"),
        ("postgres://a,%ff", "part that begins at byte 13 is not UTF-8"),
        ("postgres://[::1],[", "no `]` for the `[` at byte 17"),
        ("postgres://a:1,b:2,c:3?port=1,2", "port (at byte 23): 2 ports for 3 hosts: give one"),
        ("postgres://h?port=1,2", "port (at byte 13): 2 ports for 1 host: give one"),
        ("host=a,b hostaddr=1.2.3.4", "host (at byte 0): 2 hosts for 1 address in hostaddr: give"),
        (
            "host=a hostaddr=1.2.3.4,::1",
            "host (at byte 0): 1 host for 2 addresses in hostaddr: give",
        ),
        ("hostaddr=h", "hostaddr (at byte 0): must be an IP address"),
        ("hostaddr=[::1]", "hostaddr (at byte 0): must be an IP address"),
        ("hostaddr=::1,fe80::1%eth0", "hostaddr (at byte 0): number 2 of the list: must be an IP"),
        ("postgres://h:1x", "port (at byte 13): must be a number from 1 to 65535"),
        ("host=b,a@b", "host (at byte 0): number 2 of the list: no host name contains `@`"),
        ("host=a@b", "host (at byte 0): no host name contains `@`"),
        ("user=x port=0", "port (at byte 7): must be a number from 1 to 65535"),
        ("port=65536", "port (at byte 0): must be a number from 1 to 65535"),
        ("connect_timeout=1.5", "connect_timeout (at byte 0): must be a whole number"),
        ("connect_timeout=''", "connect_timeout (at byte 0): must be a whole number"),
        ("connect_timeout=2147483648", "connect_timeout (at byte 0): must be a whole number"),
        ("sslmode=Prefer", "sslmode (at byte 0): must be one of disable,"),
        ("sslmode=''", "sslmode (at byte 0): must be one of disable,"),
        (
            "user=a HOST=b",
            "unknown parameter `HOST` at byte 7: it is neither one of libpq's, which",
        ),
        ("=x", "unknown parameter at byte 0"),
        ("user", "no `=` after the word at byte 0"),
        ("user=a b c=d", "no `=` after the word at byte 7"),
        ("user='a", "no closing quote for the one at byte 5"),
        (r"user='a\'", "no closing quote for the one at byte 5"),
        ("user=a\0password=b", "NUL character at byte 6"),
    ] {
        let error = parse_error(text);
        assert!(error.starts_with("invalid connection string: "), "{error}");
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn no_error_shows_a_piece_of_a_password() {
    // In each, HUSH1 and HUSH2 are what a careless user may have meant to be parts of a password.
    for text in [
        "postgres://u:HUSH1@HUSH2@h/db",
        "postgres://u:HUSH1/HUSH2@h/db",
        "postgres://u:/HUSH2@h/db",
        "postgres://u:1/HUSH2@h/db",
        "postgres://u:1/HUSH1?HUSH2=x@h/db",
        "postgres://u:1/?HUSH2=x@h/db",
        "postgres://u:1?/HUSH1&HUSH2=x@h/db",
        "postgres://u:HUSH1[HUSH2@[h/db",
        "postgres://u:HUSH1%HUSH2@h/db",
        "postgres://u:HUSH1 HUSH2@h/db",
        "postgres://h?password=HUSH1&HUSH2",
        "postgres://h?password=HUSH1&HUSH2=x",
        "postgres://h?p%61ssword=HUSH1&HUSH2=x",
        "postgres://h?password=HUSH1=HUSH2",
        "postgres://h?pasword=HUSH1&HUSH2=x",
        "postgres://h?pasword=HUSH1&HUSH2=x&pasword=y",
        "postgre://u:HUSH1@h/db?sslmode=disable",
        "jdbc:postgresql://u:HUSH1@h/db?HUSH2=x",
        "password=HUSH1 HUSH2",
        "password=HUSH1 HUSH2=x",
        "password='HUSH1'HUSH2=x",
        "password='HUSH1 HUSH2",
        "pwd=HUSH1 HUSH2=x",
        "PASSWORD=HUSH1 HUSH2=x",
        "sslpassword=HUSH1 HUSH2=x",
        "user=' PASSWORD='HUSH1=HUSH2'",
        "host=HUSH1@h",
        "host=h port=HUSH1",
        "u:HUSH1@h=x",
        "postgres://u:1,/HUSH1:HUSH2@h",
        "hostaddr=HUSH1",
        "options=HUSH1",
        "options='-c HUSH1'",
        "require_auth=HUSH1",
        "service=HUSH1",
        "service=HUSH1 servicefile=/HUSH2",
        "sslpassword=HUSH1",
        "oauth_client_secret=HUSH1",
        "scram_client_key=HUSH1",
        "client_encoding=HUSH1",
    ] {
        let error = parse_error(text);
        assert!(!error.contains("HUSH"), "{text}: {error}");
    }
}

#[test]
fn the_password_is_not_shown() {
    let config = parse("postgres://alice:hush@h/d");
    let shown = format!("{config:?} {config:#?}");
    assert!(shown.contains("alice") && shown.contains("(not shown)"), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");
}

fn from_vars(vars: &[(&str, &str)]) -> Result<Config> {
    let vars: HashMap<&str, &str> = vars.iter().copied().collect();
    Config::from_vars(|name| vars.get(name).map(ToString::to_string))
}

#[test]
fn variables_fill_in_what_the_url_leaves_out() {
    let pg = [
        ("PGHOST", "/run"),
        ("PGPORT", "1"),
        ("PGUSER", "u"),
        ("PGPASSWORD", "p"),
        ("PGDATABASE", "d"),
        ("PGAPPNAME", "a"),
        ("PGCONNECT_TIMEOUT", "7"),
        ("PGSSLMODE", "disable"),
    ];
    let all = "user='u' password='p' dbname='d' host='/run' port='1' sslmode='disable' application_name='a'";
    for (url, expected) in [
        (None, all),
        (Some(""), all),
        (Some("postgres://"), all),
        (
            Some("postgres://U:P@H:2/D?sslmode=allow&application_name=A"),
            "user='U' password='P' dbname='D' host='H' port='2' sslmode='allow' application_name='A'",
        ),
        (
            Some("host=H"),
            "user='u' password='p' dbname='d' host='H' port='1' sslmode='disable' application_name='a'",
        ),
        // Said to be the default, in so many words.
        (
            Some("host='' port='' user=''"),
            "password='p' dbname='d' sslmode='disable' application_name='a'",
        ),
    ] {
        let url = url.map(|url| ("DATABASE_URL", url));
        let vars: Vec<_> = pg.into_iter().chain(url).collect();
        let config = from_vars(&vars).unwrap();
        assert_eq!(describe(&config), expected, "{url:?}");
        assert_eq!(config.connect_timeout, Some(Duration::from_secs(7)));
    }
    assert_eq!(from_vars(&[]).unwrap(), Config::new());
    assert_eq!(from_vars(&pg.map(|(name, _)| (name, ""))).unwrap(), Config::new());
}

#[test]
fn a_variable_that_the_url_overrides_is_not_read() {
    assert!(from_vars(&[("PGPORT", "x"), ("DATABASE_URL", "postgres://h:1")]).is_ok());
    assert!(from_vars(&[("PGSSLMODE", "nonsense"), ("DATABASE_URL", "sslmode=disable")]).is_ok());
}

#[test]
fn a_wrong_variable_is_named_and_not_shown() {
    for (name, value) in [
        ("DATABASE_URL", "postgres://u:hush/@h"),
        ("DATABASE_URL", "port=hush"),
        ("PGHOST", "hush@hush"),
        ("PGPORT", "hush"),
        ("PGPORT", "1,2"),
        ("PGHOSTADDR", "hush"),
        ("PGCONNECT_TIMEOUT", "hush"),
        ("PGSSLMODE", "hush"),
        ("PGSSLNEGOTIATION", "hush"),
        ("PGSSLNEGOTIATION", "direct"),
        ("PGSSLCERTMODE", "hush"),
        ("PGSSLCRL", "hush"),
        ("PGSSLCRLDIR", "hush"),
        ("PGSSLSNI", "hush"),
        ("PGSSLMINPROTOCOLVERSION", "hush"),
        ("PGSSLMAXPROTOCOLVERSION", "TLSv1.1"),
        ("PGSERVICE", "hush"),
        ("PGOPTIONS", "hush"),
        ("PGCLIENTENCODING", "hush"),
        ("PGREQUIREAUTH", "hush"),
        ("PGREQUIREPEER", "hush"),
        ("PGCHANNELBINDING", "hush"),
        ("PGGSSENCMODE", "require"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGLOADBALANCEHOSTS", "hush"),
        ("PGMINPROTOCOLVERSION", "3.2"),
        ("PGMAXPROTOCOLVERSION", "hush"),
    ] {
        let error = from_vars(&[(name, value)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let error = error.to_string();
        assert!(error.starts_with(&format!("{name}: ")), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
    let harmless = [
        ("PGCHANNELBINDING", "prefer"),
        ("PGGSSENCMODE", "disable"),
        ("PGREQUIRESSL", "0"),
        ("PGTARGETSESSIONATTRS", "any"),
        ("PGSSLCOMPRESSION", "1"),
        ("PGGSSDELEGATION", "0"),
        ("PGTZ", "UTC"),
    ];
    assert_eq!(from_vars(&harmless).unwrap(), Config::new());
}

/// Runs itself in a process of its own, since a process cannot change its environment safely.
#[cfg(unix)]
#[test]
fn the_process_environment_is_read() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    const CHILD: &str = "PGLOCK_TEST_ENVIRONMENT_IS_SET";
    if std::env::var_os(CHILD).is_some() {
        match Config::from_env() {
            Ok(config) => println!("<{}>", describe(&config)),
            Err(error) => println!("<{error}>"),
        }
        return;
    }
    let output = |name: &str, value: &[u8]| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "config::tests::the_process_environment_is_read", "--nocapture"])
            .env_clear()
            .envs([(CHILD, OsStr::new("1")), (name, OsStr::from_bytes(value))])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let seen = output("DATABASE_URL", b"postgres://alice@h");
    assert!(seen.contains("<user='alice' host='h'>"), "{seen}");
    let seen = output("PGPASSWORD", b"hush\xff");
    assert!(seen.contains("<PGPASSWORD: the value is not UTF-8>"), "{seen}");
}

fn resolve(config: &Config) -> Result<Resolved> {
    config.resolve_with(&|name| (name == OS_USER).then(|| String::from("os-user")))
}

const OS_USER: &str = if cfg!(windows) { "USERNAME" } else { "USER" };

/// What is said about TLS by the parameters, as they alone can in a string.
fn handshake_options(resolved: &Resolved) -> &HandshakeOptions {
    match &resolved.tls.handshake {
        Handshake::Parameters(options) => options,
        Handshake::Caller(_) => panic!("no configuration of rustls was handed in"),
    }
}

/// The only server of a configuration.
fn only_server(config: &Config) -> Server {
    let servers = resolve(config).unwrap().servers;
    assert_eq!(servers.len(), 1);
    servers.into_iter().next().unwrap()
}

#[test]
fn what_is_left_out_gets_libpqs_defaults() {
    let resolved = resolve(&Config::new()).unwrap();
    assert_eq!(resolved.application_name, "pglock");
    assert_eq!((resolved.user.as_str(), resolved.dbname.as_str()), ("os-user", "os-user"));
    assert_eq!(resolved.connect_timeout, Some(Duration::from_secs(30)));
    assert_eq!(resolved.orphan_timeout, Duration::from_secs(30));
    assert!(!resolved.allow_cleartext_password);
    assert_eq!(resolved.tls.mode, SslMode::Prefer);
    let server = only_server(&Config::new());
    assert_eq!((server.port, server.address, server.password), (5432, None, None));
    match server.host {
        Host::Unix(directory) if cfg!(unix) => assert!(directory.is_dir(), "{directory:?}"),
        Host::Tcp(name) if !cfg!(unix) => assert_eq!(name, "localhost"),
        other => panic!("{other:?}"),
    }
    assert_eq!(resolve(&parse("user=alice")).unwrap().dbname, "alice");
    assert_eq!(resolve(&parse("dbname=jobs")).unwrap().dbname, "jobs");
}

/// Each server as `host/address:port`.
fn servers(config: &Config) -> Vec<String> {
    let shown = |server: &Server| {
        let address = server.address.map(|address| format!("/{address}")).unwrap_or_default();
        format!("{}{address}:{}", server.host, server.port)
    };
    resolve(config).unwrap().servers.iter().map(shown).collect()
}

#[test]
fn lists_align() {
    let default = Host::default_for_platform().to_string();
    for (text, expected) in [
        ("", "DEFAULT:5432"),
        ("port=1", "DEFAULT:1"),
        ("host=a,b,c", "a:5432 b:5432 c:5432"),
        ("host=a,b,c port=1", "a:1 b:1 c:1"),
        ("host=a,b,c port=1,,3", "a:1 b:5432 c:3"),
        ("host=a,,/c port=1,2,3", "a:1 DEFAULT:2 /c:3"),
        ("host=,", "DEFAULT:5432 DEFAULT:5432"),
        ("host=a,b hostaddr=10.0.0.1,::1", "a/10.0.0.1:5432 b/::1:5432"),
        ("host=a,b hostaddr=,::1 port=1,2", "a:1 b/::1:2"),
        ("hostaddr=10.0.0.1,::1 port=7", "10.0.0.1/10.0.0.1:7 ::1/::1:7"),
        ("hostaddr=,::1", "DEFAULT:5432 ::1/::1:5432"),
        ("host=/tmp hostaddr=::1", "/tmp/::1:5432"),
        ("postgres://a:1,b:2/d", "a:1 b:2"),
        ("postgres://a,b:2/d", "a:5432 b:2"),
        ("postgres://a,b/d?port=3", "a:3 b:3"),
    ] {
        assert_eq!(
            servers(&parse(text)).join(" "),
            expected.replace("DEFAULT", &default),
            "{text}"
        );
    }
    // What is dialled as an address is no socket, whatever its name looks like.
    let server = only_server(&parse("host=/tmp hostaddr=::1"));
    assert_eq!(server.host, Host::Tcp(String::from("/tmp")));
}

#[test]
fn setters_take_several_hosts() {
    let mut config = Config::new();
    config.hosts([("a", 1), ("/b", 2)]);
    assert_eq!(servers(&config), ["a:1", "/b:2"]);
    assert_eq!(servers(config.port(3)), ["a:3", "/b:3"]);
    assert_eq!(servers(config.host("c").hostaddr("::1".parse().unwrap())), ["c/::1:3"]);
    assert_eq!(servers(config.set("hostaddr", "").unwrap()), ["c:3"]);
}

#[test]
fn every_setter_reaches_the_connection() {
    let mut config = Config::new();
    config
        .host("h")
        .port(1)
        .user("u")
        .password("p")
        .dbname("d")
        .application_name("a")
        .connect_timeout(Duration::from_millis(1))
        .orphan_timeout(Duration::from_secs(8))
        .lease(Duration::from_millis(1001))
        .sslmode(SslMode::Disable)
        .allow_cleartext_password(true);
    let resolved = resolve(&config).unwrap();
    let server = only_server(&config);
    assert_eq!((server.host, server.port), (Host::Tcp(String::from("h")), 1));
    assert_eq!((resolved.user.as_str(), resolved.dbname.as_str()), ("u", "d"));
    assert_eq!(server.password.as_deref(), Some("p"));
    assert_eq!(resolved.application_name, "a");
    assert_eq!(resolved.connect_timeout, Some(Duration::from_millis(1)));
    assert_eq!(resolved.orphan_timeout, Duration::from_secs(8));
    assert_eq!(resolved.lease, Some(Duration::from_millis(1001)));
    assert!(resolved.allow_cleartext_password);
    assert_eq!(resolved.tls.mode, SslMode::Disable);
    assert_eq!(only_server(config.password("")).password, None);
    assert_eq!(resolve(config.application_name("")).unwrap().application_name, "");
}

#[test]
fn impossible_settings_are_refused_when_connecting() {
    type Change = fn(&mut Config) -> &mut Config;
    let cases: [(Change, &str); 24] = [
        (|config| config.host(""), "host: is empty"),
        (|config| config.host("a,b"), "host: is one host: give several to `hosts`"),
        (|config| config.hosts([("a", 1), ("", 2)]), "host: is empty"),
        (|config| config.hosts([]), "host: is empty"),
        (|config| config.hosts([("a", 1), ("b", 0)]), "port: must not be 0"),
        (|config| config.hosts([("a", 1), ("b", 2)]).host("c"), "port: 2 ports for 1 host"),
        (|config| config.host("/a\0b"), "host: must not contain a NUL"),
        (|config| config.host("a\0b"), "host: must not contain a NUL"),
        (|config| config.host("hush@h"), "host: no host name contains `@`"),
        (|config| config.port(0), "port: must not be 0"),
        (|config| config.user(""), "user: is empty"),
        (|config| config.user("u\0database\0d"), "user: must not contain a NUL"),
        (|config| config.password("hush\0"), "password: must not contain a NUL"),
        (|config| config.dbname(""), "dbname: is empty"),
        (|config| config.dbname("\0"), "dbname: must not contain a NUL"),
        (|config| config.application_name("\0"), "application_name: must not contain a NUL"),
        (
            |config| config.orphan_timeout(Duration::from_secs(7)),
            "orphan_timeout: must be from 8 seconds",
        ),
        (|config| config.orphan_timeout(Duration::from_millis(8500)), "orphan_timeout: must be"),
        (|config| config.orphan_timeout(Duration::from_secs(86_401)), "orphan_timeout: must be"),
        (|config| config.lease(Duration::from_millis(999)), "lease: must be from 1 second"),
        (|config| config.lease(Duration::from_micros(1_000_500)), "lease: must be from 1 second"),
        (|config| config.lease(Duration::from_secs(86_401)), "lease: must be from 1 second"),
        (|config| config.wait_slice(Duration::from_millis(99)), "wait_slice: must be from 100"),
        (|config| config.wait_slice(Duration::from_secs(86_401)), "wait_slice: must be from 100"),
    ];
    for (change, expected) in cases {
        let error = resolve(change(&mut Config::new())).err().expect(expected);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
    for limit in [8, 86_400] {
        assert!(resolve(Config::new().orphan_timeout(Duration::from_secs(limit))).is_ok());
    }
    for limit in [1, 86_400] {
        assert!(resolve(Config::new().lease(Duration::from_secs(limit))).is_ok());
    }
}

#[test]
fn a_login_without_a_user_is_refused() {
    let error = Config::new().resolve_with(&|_| None).err().unwrap();
    assert!(error.to_string().starts_with("no user: "), "{error}");
    assert_eq!(error.kind(), ErrorKind::Config);
}

/// Strings as platforms and other clients' documentation give them.
#[cfg(feature = "tls")]
#[test]
fn what_platforms_give_out_is_accepted() {
    for (text, expected) in [
        (
            "postgresql://alex:AbC123dEf@ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech/dbname?sslmode=require&channel_binding=require",
            "ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech:5432",
        ),
        (
            "postgresql://alex:AbC123dEf@ep-cool.neon.tech/db?sslmode=require&options=endpoint%3Dep-cool",
            "ep-cool.neon.tech:5432",
        ),
        (
            "postgres://postgres.abcdef:secret@aws-0-eu-central-1.pooler.supabase.com:6543/postgres?pgbouncer=true&supa=base-pooler.x",
            "aws-0-eu-central-1.pooler.supabase.com:6543",
        ),
        (
            "postgres://user:secret@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1?sslmode=no-verify",
            "ec2-1-2-3-4.compute-1.amazonaws.com:5432",
        ),
        (
            "postgresql://u:p@/db?host=/cloudsql/project:region:instance",
            "/cloudsql/project:region:instance:5432",
        ),
        (
            "postgresql://johndoe:pw@localhost:5432/mydb?schema=public&connection_limit=5&pool_timeout=2&socket_timeout=3",
            "localhost:5432",
        ),
        (
            "postgresql://app:!ChangeMe!@127.0.0.1:5432/app?serverVersion=16&charset=utf8",
            "127.0.0.1:5432",
        ),
        (
            "host=pg-1.postgres.database.azure.com port=5432 dbname=postgres user=me password=p sslmode=require",
            "pg-1.postgres.database.azure.com:5432",
        ),
    ] {
        assert_eq!(servers(&parse(text)), [expected]);
    }
}

#[test]
fn what_is_for_other_clients_is_ignored_with_a_warning() {
    let config = parse(
        "postgres://h/d?pgbouncer=true&connection_limit=1&prepareThreshold=0&statement-cache-capacity=9",
    );
    let warnings = config.warnings_with(&|_| None);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert_eq!(warnings[0], "pgbouncer (at byte 15) is ignored: it is for Prisma");
    let warnings = |text: &str| parse(text).warnings_with(&|_| None);
    assert_eq!(
        warnings("host=h user=u sslcompression=1 gssencmode=prefer replication=false"),
        [""; 0]
    );
    for (text, expected) in [
        ("schema=x", "schema (at byte 0)"),
        ("krbsrvname=x", "krbsrvname is ignored"),
        ("gsslib=x", "gsslib is ignored"),
        ("gssdelegation=1", "gssdelegation is ignored"),
        ("keepalives=0", "keepalives=0 is ignored"),
    ] {
        assert!(matches!(warnings(text).as_slice(), [one] if one.contains(expected)), "{text}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    for (text, expected) in [
        ("gssencmode=require", "gssencmode (at byte 0): `require` demands encryption by GSSAPI"),
        ("gssencmode=x", "gssencmode (at byte 0): must be disable, prefer or require"),
        ("replication=database", "replication (at byte 0): a connection for replication"),
        ("replication=ON", "replication (at byte 0): a connection for replication"),
        ("requirepeer=postgres", "requirepeer (at byte 0): "),
        ("sslpassword=x", "sslpassword (at byte 0): encrypted keys"),
        ("sslcrl=x", "sslcrl (at byte 0): revocation lists"),
        ("sslcrldir=x", "sslcrldir (at byte 0): revocation lists"),
        ("sslkeylogfile=x", "sslkeylogfile (at byte 0): "),
        ("sslcertmode=require", "sslcertmode (at byte 0): `require` is not supported"),
        ("sslcertmode=x", "sslcertmode (at byte 0): must be disable or allow"),
        ("sslsni=2", "sslsni (at byte 0): must be 0 or 1"),
        ("sslnegotiation=x", "sslnegotiation (at byte 0): must be postgres or direct"),
        ("sslnegotiation=direct", "sslnegotiation (at byte 0): `direct` is TLS from the first"),
        ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version (at byte 0): must be TLSv1.2"),
        ("ssl_max_protocol_version=TLSv1", "ssl_max_protocol_version (at byte 0): must be TLSv1.2"),
        (
            "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=tlsv1.2",
            "ssl_max_protocol_version (at byte 33): must not be older",
        ),
        ("min_protocol_version=3.2", "min_protocol_version (at byte 0): must be 3.0, the"),
        ("min_protocol_version=latest", "min_protocol_version (at byte 0): must be 3.0, the"),
        ("max_protocol_version=2.0", "max_protocol_version (at byte 0): must be 3.0, 3.2"),
        ("scram_client_key=x", "scram_client_key (at byte 0): "),
        ("scram_server_key=x", "scram_server_key (at byte 0): "),
        ("oauth_issuer=x", "oauth_issuer (at byte 0): "),
        ("oauth_client_id=x", "oauth_client_id (at byte 0): "),
        ("oauth_client_secret=x", "oauth_client_secret (at byte 0): "),
        ("oauth_scope=x", "oauth_scope (at byte 0): "),
        ("target_session_attrs=standby", "`standby` may lead to a standby"),
        ("target_session_attrs=read-only", "`read-only` may lead to a standby"),
        ("target_session_attrs=prefer-standby", "`prefer-standby` may lead to a standby"),
        ("target_session_attrs=x", "must be any, primary or read-write"),
        ("load_balance_hosts=x", "load_balance_hosts (at byte 0): must be disable or random"),
        ("channel_binding=x", "channel_binding (at byte 0): must be disable, prefer or require"),
        (
            "user=u channel_binding=require sslmode=disable",
            "channel_binding (at byte 7): `require` ties the login to TLS",
        ),
        ("client_encoding=LATIN1", "client_encoding (at byte 0): must be UTF8"),
        ("keepalives=x", "keepalives (at byte 0): must be a whole number"),
        ("keepalives_idle=1.5", "keepalives_idle (at byte 0): must be a whole number"),
    ] {
        let error = parse_error(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
    // Nothing is asked for by these.
    for name in DEFINITIONS.iter().map(|definition| definition.name) {
        if !matches!(name, "sslmode" | "connect_timeout") {
            assert_eq!(parse(&format!("{name}=''")), Config::new(), "{name}");
        }
    }
    for text in [
        "target_session_attrs=any",
        "target_session_attrs=primary",
        "target_session_attrs=read-write",
        "min_protocol_version=3.0 max_protocol_version=latest",
        "load_balance_hosts=disable keepalives=1",
    ] {
        assert_eq!(parse(text), Config::new(), "{text}");
    }
    // These are remembered as asked for, and change nothing.
    let nothing_asked = resolve(&Config::new()).unwrap().tls;
    for text in [
        "ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.3",
        "sslsni=1 sslcertmode=allow",
    ] {
        assert_eq!(resolve(&parse(text)).unwrap().tls, nothing_asked, "{text}");
    }
}

#[test]
fn the_rest_reaches_the_connection_too() {
    let resolved = resolve(&parse(
        "host=h keepalives_idle=3 keepalives_interval=2 keepalives_count=1 tcp_user_timeout=500 \
         load_balance_hosts=random channel_binding=disable require_auth=md5 sslsni=0 \
         options='-c a=b endpoint=c' fallback_application_name=f \
         ssl_min_protocol_version=tlsV1.3",
    ))
    .unwrap();
    let wishes = KeepaliveWishes {
        idle: Some(Duration::from_secs(3)),
        interval: Some(Duration::from_secs(2)),
        probes: Some(1),
        user_timeout: Some(Duration::from_millis(500)),
    };
    assert_eq!(resolved.keepalive, wishes);
    assert_eq!(resolved.load_balance_hosts, LoadBalance::Random);
    assert_eq!(resolved.channel_binding, ChannelBindingPolicy::Disable);
    assert!(!resolved.require_auth.contains(AuthMethod::Password));
    let options = handshake_options(&resolved);
    assert!(!options.send_name);
    assert_eq!(options.versions, Versions::OnlyTls13);
    assert_eq!(resolved.settings, [(String::from("a"), String::from("b"))]);
    assert_eq!(resolved.startup_options.as_deref(), Some("endpoint=c"));
    assert_eq!(resolved.application_name, "f");
    let resolved = resolve(&parse("application_name=a fallback_application_name=f")).unwrap();
    assert_eq!(resolved.application_name, "a");
    // Zero and less stand for the default, as in libpq.
    let zero = "keepalives_idle=0 keepalives_interval=-1 keepalives_count=0 tcp_user_timeout=0";
    assert_eq!(resolve(&parse(zero)).unwrap().keepalive, KeepaliveWishes::default());
    #[cfg(feature = "tls12")]
    {
        let tls12 = resolve(&parse("ssl_max_protocol_version=TLSv1.2")).unwrap();
        assert_eq!(handshake_options(&tls12).versions, Versions::OnlyTls12);
    }
}

#[test]
fn parameters_are_set_by_name() {
    let mut config = Config::new();
    config.set("host", "a,b").unwrap().set("port", "1,2").unwrap();
    assert_eq!(config, parse("host=a,b port=1,2"));
    for (name, value, expected) in [
        ("port", "hush", "port: must be a number"),
        ("options", "-c hush=a\0b", "options: must not contain a NUL"),
        ("service", "hush", "service: no such parameter can be set"),
        ("Port", "hush", "Port: no such parameter can be set"),
        ("schema", "hush", "schema: no such parameter can be set"),
    ] {
        let error = config.set(name, value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn without_the_feature_what_demands_tls_is_refused() {
    for mode in ["require", "no-verify", "verify-ca", "verify-full"] {
        let error = parse_error(&format!("user=u sslmode={mode}"));
        let expected = format!("sslmode (at byte 7): `{mode}` demands TLS, and pglock was built");
        assert!(error.contains(&expected), "{error}");
    }
    for text in ["sslrootcert=system", "postgres://h?ssl=true", "requiressl=1"] {
        assert!(parse_error(text).contains("demands TLS"), "{text}");
    }
    let error = resolve(Config::new().sslmode(SslMode::Require)).err().unwrap();
    assert!(error.to_string().starts_with("sslmode: `require` demands TLS"), "{error}");
    assert!(from_vars(&[("PGREQUIRESSL", "1")]).is_err());
}

#[cfg(all(feature = "tls", not(feature = "tls12")))]
#[test]
fn without_the_feature_what_demands_tls_1_2_is_refused() {
    let error = resolve(&parse("user=u ssl_min_protocol_version=TLSv1.2")).map(|_| ());
    assert!(error.is_ok(), "{error:?}");
    let error = parse_error("user=u ssl_max_protocol_version=TLSv1.2");
    assert!(error.contains("ssl_max_protocol_version (at byte 7): TLSv1.2 needs"), "{error}");
    assert!(error.contains("feature `tls12`"), "{error}");
}

/// Splitmix64: enough to vary strings, and the same on every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// Deletes, inserts and repeats characters, mostly those that mean something in either grammar.
pub(super) fn mutate(text: &str, random: &mut Random) -> String {
    const MEANINGFUL: &[char] = &[
        '@', ':', '/', '?', '&', '=', '%', '[', ']', ',', '\'', '\\', ' ', '\n', '#', '+', '0',
        '2', 'f', 'x', 'é', '本', '\0', '\u{b}',
    ];
    let mut characters: Vec<char> = text.chars().collect();
    for _ in 0..=random.below(4) {
        let at = random.below(characters.len() + 1);
        match random.below(3) {
            0 if at < characters.len() => drop(characters.remove(at)),
            1 => {
                let piece = characters[at..].to_vec();
                characters.splice(at..at, piece);
            }
            _ => characters.insert(at, MEANINGFUL[random.below(MEANINGFUL.len())]),
        }
    }
    characters.truncate(200);
    characters.into_iter().collect()
}

/// Strings that are accepted, of every kind.
pub(super) fn seeds() -> Vec<&'static str> {
    let tables = [LIBPQ_URLS, DOCUMENTED, URLS, KEYWORD_VALUES];
    tables.into_iter().flatten().map(|(text, _)| *text).collect()
}

#[test]
fn no_string_makes_it_panic() {
    let seeds = seeds();
    let mut random = Random(1);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..40_000 {
        let text = mutate(seeds[round % seeds.len()], &mut random);
        match text.parse::<Config>() {
            Ok(config) => {
                accepted += 1;
                // What the grammar lets through, connecting can use.
                assert!(resolve(&config).is_ok(), "{text:?}");
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::Config, "{text:?}");
            }
        }
    }
    assert!(accepted > 1_000 && refused > 1_000, "{accepted} accepted, {refused} refused");
}

#[test]
fn the_fuzzers_dictionary_has_every_parameter() {
    let dictionary = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/dictionary/config.dict");
    let dictionary = std::fs::read_to_string(dictionary).unwrap();
    for name in DEFINITIONS.iter().map(|definition| definition.name) {
        assert!(dictionary.lines().any(|line| line == format!("\"{name}\"")), "{name}");
    }
}
