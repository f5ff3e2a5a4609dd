//! Whole connection strings and environments, and what becomes of them.

use std::collections::HashMap;
use std::time::Duration;

use super::{Config, Host, Resolved, SslMode};
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
    let default = Config::new();
    let mut parts = Vec::new();
    let mut part = |name: &str, value: Option<String>| {
        parts.extend(value.map(|value| format!("{name}='{value}'")));
    };
    part("user", config.user.clone());
    part("password", config.password.clone());
    part("dbname", config.dbname.clone());
    part("host", config.host.as_ref().map(ToString::to_string));
    part("port", (config.port != default.port).then(|| config.port.to_string()));
    part("sslmode", (config.sslmode != default.sslmode).then(|| config.sslmode.to_string()));
    let name = &config.application_name;
    part("application_name", (*name != default.application_name).then(|| name.clone()));
    parts.join(" ")
}

/// The accepted URLs of PostgreSQL's `src/interfaces/libpq/t/001_uri.pl`, less those with `hostaddr`.
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
];

/// Traps beyond libpq's tests, and the examples of its documentation.
const URLS: &[(&str, &str)] = &[
    ("postgresql://localhost/mydb", "dbname='mydb' host='localhost'"),
    ("postgresql://user:secret@localhost", "user='user' password='secret' host='localhost'"),
    (
        "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
        "user='other' dbname='otherdb' host='localhost' application_name='myapp'",
    ),
    ("postgresql:///mydb?host=localhost&port=5433", "dbname='mydb' host='localhost' port='5433'"),
    (
        "postgresql://user@localhost:5433/mydb?application_name=a%20b%3d%26",
        "user='user' dbname='mydb' host='localhost' port='5433' application_name='a b=&'",
    ),
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
];

#[test]
fn strings_are_read_as_libpq_reads_them() {
    for (text, expected) in LIBPQ_URLS.iter().chain(URLS).chain(KEYWORD_VALUES) {
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
        ("postgre://", "no `=` after the word at byte 0"),
        ("postgres://[::1", "no `]` for the `[` at byte 11"),
        ("postgres://[]", "no address in the brackets at byte 11"),
        ("postgres://[::1]z", "expected `:`, `/` or `?` after the `]`, at byte 16"),
        ("postgresql://host?zzz", "no `=` in the parameter at byte 18"),
        ("postgresql://host?value1&value2", "no `=` in the parameter at byte 18"),
        ("postgresql://host?key=key=value", "another `=` in a parameter at byte 25"),
        ("postgres://host?dbname=%XXfoo", "two hexadecimal digits at byte 23"),
        ("postgresql://a%00b", "%00 at byte 14"),
        ("postgresql://%zz", "two hexadecimal digits at byte 13"),
        ("postgresql://%1", "two hexadecimal digits at byte 13"),
        ("postgresql://%", "two hexadecimal digits at byte 13"),
        ("postgresql://host? user user = x & port = 1", "white space at byte 23"),
        // And more.
        ("postgres://h/db\n", "white space at byte 15"),
        ("postgres://h?&user=x", "no `=` in the parameter at byte 13"),
        ("postgres://u@h/%ff", "part that begins at byte 15 is not UTF-8"),
        ("postgres://h?ssl=true", "sslmode (at byte 13): `require` demands TLS"),
        ("postgres://h?ssl=1", "unknown parameter `ssl` at byte 13"),
        ("postgres://a,b", "host (at byte 13): lists of hosts"),
        ("postgres://a:1,b:2", "host (at byte 15): lists of hosts"),
        ("postgres://a%2Cb", "host (at byte 11): lists of hosts"),
        ("postgres://h?port=1,2", "port (at byte 13): lists of ports"),
        ("postgres://h:1x", "port (at byte 13): must be a number from 1 to 65535"),
        ("host=a,b", "host (at byte 0): lists of hosts"),
        ("host=a@b", "host (at byte 0): no host name contains `@`"),
        ("user=x port=0", "port (at byte 7): must be a number from 1 to 65535"),
        ("port=65536", "port (at byte 0): must be a number from 1 to 65535"),
        ("connect_timeout=1.5", "connect_timeout (at byte 0): must be a whole number"),
        ("connect_timeout=''", "connect_timeout (at byte 0): must be a whole number"),
        ("connect_timeout=2147483648", "connect_timeout (at byte 0): must be a whole number"),
        ("sslmode=verify-full", "sslmode (at byte 0): `verify-full` demands TLS"),
        ("sslmode=Prefer", "sslmode (at byte 0): must be one of disable,"),
        ("hostaddr=127.0.0.1", "parameter `hostaddr` at byte 0 is not supported yet"),
        ("user=a HOST=b", "unknown parameter `HOST` at byte 7; this version knows host, port,"),
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
    assert!(from_vars(&[("PGSSLMODE", "require"), ("DATABASE_URL", "sslmode=disable")]).is_ok());
}

#[test]
fn a_wrong_variable_is_named_and_not_shown() {
    for (name, value) in [
        ("DATABASE_URL", "postgres://u:hush/@h"),
        ("DATABASE_URL", "port=hush"),
        ("PGHOST", "hush,hush"),
        ("PGPORT", "hush"),
        ("PGCONNECT_TIMEOUT", "hush"),
        ("PGSSLMODE", "hush"),
        ("PGSSLMODE", "verify-full"),
        ("PGHOSTADDR", "hush"),
        ("PGSERVICE", "hush"),
        ("PGOPTIONS", "hush"),
        ("PGREQUIREAUTH", "hush"),
        ("PGCHANNELBINDING", "require"),
        ("PGGSSENCMODE", "require"),
        ("PGREQUIRESSL", "1"),
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
    config.resolve_for(|| Some(String::from("os-user")))
}

#[test]
fn what_is_left_out_gets_libpqs_defaults() {
    let resolved = resolve(&Config::new()).unwrap();
    assert_eq!((resolved.port, resolved.application_name.as_str()), (5432, "pglock"));
    assert_eq!((resolved.user.as_str(), resolved.dbname.as_str()), ("os-user", "os-user"));
    assert_eq!(resolved.password, None);
    assert_eq!(resolved.connect_timeout, Some(Duration::from_secs(30)));
    assert_eq!(resolved.orphan_timeout, Duration::from_secs(30));
    assert!(!resolved.allow_cleartext_password);
    match resolved.host {
        Host::Unix(directory) if cfg!(unix) => assert!(directory.is_dir(), "{directory:?}"),
        Host::Tcp(name) if !cfg!(unix) => assert_eq!(name, "localhost"),
        other => panic!("{other:?}"),
    }
    assert_eq!(resolve(&parse("user=alice")).unwrap().dbname, "alice");
    assert_eq!(resolve(&parse("dbname=jobs")).unwrap().dbname, "jobs");
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
        .orphan_timeout(Duration::from_secs(4))
        .sslmode(SslMode::Disable)
        .allow_cleartext_password(true);
    let resolved = resolve(&config).unwrap();
    assert_eq!(resolved.host, Host::Tcp(String::from("h")));
    assert_eq!((resolved.port, resolved.user.as_str(), resolved.dbname.as_str()), (1, "u", "d"));
    assert_eq!(resolved.password.as_deref(), Some("p"));
    assert_eq!(resolved.application_name, "a");
    assert_eq!(resolved.connect_timeout, Some(Duration::from_millis(1)));
    assert_eq!(resolved.orphan_timeout, Duration::from_secs(4));
    assert!(resolved.allow_cleartext_password);
    assert_eq!(config.sslmode, SslMode::Disable);
    assert_eq!(resolve(config.password("")).unwrap().password, None);
}

#[test]
fn impossible_settings_are_refused_when_connecting() {
    type Change = fn(&mut Config) -> &mut Config;
    let cases: [(Change, &str); 18] = [
        (|config| config.host(""), "host: is empty"),
        (|config| config.host("a,b"), "host: lists of hosts"),
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
            |config| config.orphan_timeout(Duration::from_secs(3)),
            "orphan_timeout: must be from 4 seconds",
        ),
        (|config| config.orphan_timeout(Duration::from_millis(4500)), "orphan_timeout: must be"),
        (|config| config.orphan_timeout(Duration::from_secs(86_401)), "orphan_timeout: must be"),
        (|config| config.sslmode(SslMode::Require), "sslmode: `require` demands TLS"),
        (|config| config.sslmode(SslMode::VerifyCa), "sslmode: `verify-ca` demands TLS"),
        (|config| config.sslmode(SslMode::VerifyFull), "sslmode: `verify-full` demands TLS"),
    ];
    for (change, expected) in cases {
        let error = resolve(change(&mut Config::new())).err().expect(expected);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
    for limit in [4, 86_400] {
        assert!(resolve(Config::new().orphan_timeout(Duration::from_secs(limit))).is_ok());
    }
}

#[test]
fn a_login_without_a_user_is_refused() {
    let error = Config::new().resolve_for(|| None).err().unwrap();
    assert!(error.to_string().starts_with("no user: "), "{error}");
    assert_eq!(error.kind(), ErrorKind::Config);
}

/// Splitmix64: enough to vary strings, and the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// Deletes, inserts and repeats characters, mostly those that mean something in either grammar.
fn mutate(text: &str, random: &mut Random) -> String {
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

#[test]
fn no_string_makes_it_panic() {
    let seeds: Vec<&str> =
        LIBPQ_URLS.iter().chain(URLS).chain(KEYWORD_VALUES).map(|(text, _)| *text).collect();
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
