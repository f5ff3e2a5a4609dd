//! The password file and the service file.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::home::Home;
use super::{Config, describe, parse};

fn passwords(home: &Home, text: &str) -> Vec<Option<String>> {
    home.resolve(text)
        .unwrap()
        .servers
        .into_iter()
        .map(|server| server.password.map(|password| password.to_string()))
        .collect()
}

#[test]
fn the_password_file_gives_the_password() {
    let home = Home::new("passfile");
    let content = r"# a comment: *:*:*:*:never
h:5432:db:alice:first
h:5432:db:alice:second
h:*:*:alice:any port
localhost:5432:db:alice:by socket
\*:5432:db:alice:a host called star
::1:5432:db:alice:never
\:\:1:5432:db:alice:IPv6
10.0.0.1:5432:db:alice:by address
h2:5433:a\:b\\c:o\'k:wo\:rd\\:ignored
crlf:*:*:*:without return
short:5432:db
*:5432:db:bob:anywhere"
        .replace("without return", "without return\r");
    home.write(".pgpass", &content);
    for (text, expected) in [
        ("host=h dbname=db user=alice", Some("first")),
        ("host=h port=1 dbname=db user=alice", Some("any port")),
        ("host=h dbname=DB user=alice", Some("any port")),
        ("host=other dbname=db user=alice", None),
        ("dbname=db user=alice", Some("by socket")),
        ("host=localhost dbname=db user=alice", Some("by socket")),
        ("host=/elsewhere dbname=db user=alice", None),
        ("host=* dbname=db user=alice", Some("a host called star")),
        ("host=::1 dbname=db user=alice", Some("IPv6")),
        ("hostaddr=10.0.0.1 dbname=db user=alice", Some("by address")),
        ("host=h hostaddr=10.0.0.1 dbname=db user=alice", Some("first")),
        (r"host=h2 port=5433 dbname='a:b\\c' user='o\'k'", Some(r"wo:rd\")),
        ("host=crlf", Some("without return")),
        ("host=short dbname=db", None),
        ("host=new dbname=db user=bob", Some("anywhere")),
        ("host=h dbname=db user=alice password=given", Some("given")),
        ("host=h dbname=db user=alice password=''", Some("first")),
        ("host=h dbname=db user=alice passfile=/nonexistent", None),
    ] {
        let found = passwords(&home, text);
        assert_eq!(found, [expected.map(ToOwned::to_owned)], "{text}");
    }
    let each = passwords(&home, "host=h,h,new port=5432,1,5432 dbname=db user=alice");
    assert_eq!(each, [Some("first".into()), Some("any port".into()), None]);
    let path = home.write("other", "*:*:*:*:other");
    let text = format!("host=h dbname=db user=alice passfile={}", path.display());
    assert_eq!(passwords(&home, &text), [Some("other".into())]);
}

#[test]
fn a_password_file_that_is_open_to_others_is_ignored_with_a_warning() {
    let home = Home::new("open-passfile");
    home.write(".pgpass", "*:*:*:*:hush");
    let config = parse("host=h user=u");
    let warnings = |config: &Config| config.warnings_with(&|name| home.var(name));
    assert_eq!(warnings(&config), [""; 0]);
    for mode in [0o640, 0o604, 0o610] {
        home.permit(".pgpass", mode);
        let resolved = home.resolve("host=h user=u").unwrap();
        assert_eq!(resolved.servers[0].password, None);
        assert!(resolved.passfile_problem.unwrap().contains("chmod 0600"));
        assert!(matches!(warnings(&config).as_slice(), [one] if one.contains("chmod 0600")));
        assert_eq!(warnings(config.clone().password("p")), [""; 0]);
    }
    for (passfile, expected) in [
        (home.path("").as_path(), "not a plain file"),
        (Path::new("/dev/zero"), "not a plain file"),
    ] {
        let text = format!("host=h user=u passfile={}", passfile.display());
        let problem = home.resolve(&text).unwrap().passfile_problem.unwrap();
        assert!(problem.contains(expected), "{problem}");
    }
    home.write("long", &"x".repeat(1 << 21));
    let text = format!("host=h user=u passfile={}", home.path("long").display());
    assert!(home.resolve(&text).unwrap().passfile_problem.unwrap().contains("longer than 1 MiB"));
}

#[test]
fn a_password_that_is_not_utf_8_is_told_of() {
    let home = Home::new("latin-passfile");
    let content = b"h:*:*:alice:gar\xe7on\nh:*:*:bob:hush".as_slice();
    fs::write(home.write(".pgpass", ""), content).unwrap();
    for (user, password) in [("alice", None), ("bob", Some("hush"))] {
        let text = format!("host=h user={user}");
        assert_eq!(passwords(&home, &text), [password.map(ToOwned::to_owned)]);
        let problem = home.resolve(&text).unwrap().passfile_problem.unwrap();
        assert!(problem.contains("is not in UTF-8"), "{problem}");
        let warnings = parse(&text).warnings_with(&|name| home.var(name));
        assert_eq!(warnings, [problem]);
    }
}

const SERVICES: &str = "
# comment
[other]
host=never
nonsense
[jobs]
 host=service-host
port=5433
user=service-user
user=second
application_name = spaced
";

#[test]
fn a_service_gives_what_the_string_does_not() {
    let home = Home::new("service");
    let services =
        SERVICES.replace("application_name = spaced\n", "dbname= d b [x]=y \n[jobs]\nport=1\n");
    home.write(".pg_service.conf", &services);
    home.write("pg_service.conf", "[system]\nhost=system-host\n[jobs]\nhost=never\n");
    home.write("elsewhere", "[jobs]\nhost=other-file\n");
    let elsewhere = home.path("elsewhere").to_str().unwrap().to_owned();
    let parse = |text: &str| crate::config::parse(text, &|name| home.var(name));
    let of_service = "user='service-user' dbname=' d b [x]=y' host='service-host' port='5433'";
    for (text, expected) in [
        ("service=jobs", of_service),
        ("postgres:///?service=jobs", of_service),
        ("service=jobs host=mine user=''", "dbname=' d b [x]=y' host='mine' port='5433'"),
        ("service=system", "host='system-host'"),
        ("service=''", ""),
        (&format!("service=jobs servicefile={elsewhere}"), "host='other-file'"),
    ] {
        assert_eq!(describe(&parse(text).unwrap()), expected, "{text}");
    }
    let from_vars = |vars: &[(&str, &str)]| {
        let vars: HashMap<&str, &str> = vars.iter().copied().collect();
        Config::from_vars(|name| vars.get(name).map(ToString::to_string).or_else(|| home.var(name)))
    };
    for (vars, expected) in [
        (vec![("PGSERVICE", "jobs")], of_service),
        (vec![("PGSERVICE", "jobs"), ("PGHOST", "h"), ("PGUSER", "u")], of_service),
        (
            vec![("PGSERVICE", "system"), ("PGHOST", "h"), ("PGUSER", "u")],
            "user='u' host='system-host'",
        ),
        (vec![("PGSERVICE", "system"), ("DATABASE_URL", "service=jobs")], of_service),
        (vec![("PGSERVICE", "jobs"), ("PGSERVICEFILE", &elsewhere)], "host='other-file'"),
    ] {
        assert_eq!(describe(&from_vars(&vars).unwrap()), expected, "{vars:?}");
    }
    // Whatever of the file is wrong is told by its line.
    let problem = parse("user=u service=other").unwrap_err();
    assert_eq!(problem, "service (at byte 7): line 5 of the service file: expected name=value");
    for (line, expected) in [
        ("hush", "expected name=value"),
        ("hush=x", "unknown parameter"),
        ("host =x", "unknown parameter; there must be no spaces"),
        ("ldap://hush", "LDAP is not supported"),
        ("service=hush", "a service cannot refer to another one"),
        ("port=hush", "port: must be a number"),
    ] {
        home.write(".pg_service.conf", &format!("[s]\n{line}\n"));
        let problem = parse("service=s").unwrap_err();
        assert!(problem.contains(expected) && !problem.contains("hush"), "{problem}");
    }
    let error = from_vars(&[("PGSERVICE", "s"), ("PGHOST", "h")]).unwrap_err().to_string();
    assert!(error.starts_with("PGSERVICE: port: must be"), "{error}");
    assert!(parse("service=none").unwrap_err().contains("no file has a service of this name"));
    let problem = parse("service=x servicefile=/nonexistent").unwrap_err();
    assert!(problem.contains("the service file cannot be read"), "{problem}");
}
