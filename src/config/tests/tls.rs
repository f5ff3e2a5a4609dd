//! What becomes of the wishes about TLS, and of the files of certificates.

use super::home::Home;
use super::{ErrorKind, SslMode, from_vars, handshake_options, parse, parse_error, resolve};
use crate::config::tls::{Demand, Identity, Roots, SslNegotiation};

fn resolve_error(home: &Home, text: &str) -> String {
    let error = home.resolve(text).err().expect(text);
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

#[test]
fn modes_are_named_as_in_libpq_and_node_postgres() {
    for (text, mode) in [
        ("", SslMode::Prefer),
        ("sslmode=allow", SslMode::Allow),
        ("sslmode=require", SslMode::Require),
        ("sslmode=no-verify", SslMode::NoVerify),
        ("postgres://?ssl=true", SslMode::Require),
        ("sslmode=disable requiressl=1", SslMode::Require),
        ("requiressl=1 sslmode=disable", SslMode::Disable),
        ("requiressl=0", SslMode::Prefer),
        ("sslrootcert=system", SslMode::VerifyFull),
        ("sslrootcert=system sslmode=verify-full", SslMode::VerifyFull),
    ] {
        assert_eq!(resolve(&parse(text)).unwrap().tls.mode, mode, "{text}");
    }
    let mode = |vars: &[(&str, &str)]| from_vars(vars).unwrap().sslmode;
    assert_eq!(mode(&[("PGREQUIRESSL", "1")]), Some(SslMode::Require));
    assert_eq!(mode(&[("PGREQUIRESSL", "1"), ("PGSSLMODE", "disable")]), Some(SslMode::Disable));
    let direct = parse("sslnegotiation=direct sslmode=require");
    assert_eq!(resolve(&direct).unwrap().tls.negotiation, SslNegotiation::Direct);
}

#[test]
fn wishes_that_do_not_go_together_are_refused() {
    for (text, expected) in [
        ("sslrootcert=system sslmode=require", "sslrootcert (at byte 0): the system trusts"),
        ("sslrootcert=system sslmode=no-verify", "sslrootcert (at byte 0): the system trusts"),
        ("sslmode=prefer sslnegotiation=direct", "sslnegotiation (at byte 15): `direct` is TLS"),
        (
            "sslmode=verify-full hostaddr=::1",
            "host: must be given beside hostaddr: sslmode `verify-full` compares",
        ),
    ] {
        let error = parse_error(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn root_certificates_decide_what_is_demanded() {
    let home = Home::new("roots");
    let demand = |text: &str| {
        let resolved = home.resolve(&format!("host=h {text}")).unwrap();
        handshake_options(&resolved).demand.clone()
    };
    for mode in ["disable", "allow", "prefer", "require", "no-verify"] {
        assert_eq!(demand(&format!("sslmode={mode}")), Demand::Nothing, "{mode}");
    }
    for mode in ["verify-ca", "verify-full"] {
        let error = resolve_error(&home, &format!("host=h sslmode={mode}"));
        assert!(
            error.starts_with(&format!("sslmode: `{mode}` needs root certificates")),
            "{error}"
        );
        // No certificate is shown on a Unix socket.
        assert!(home.resolve(&format!("host=/tmp sslmode={mode}")).is_ok());
        assert!(home.resolve(&format!("host=/tmp,h sslmode={mode}")).is_err());
    }
    assert_eq!(demand("sslrootcert=system"), Demand::Host(Roots::System));
    let error = resolve_error(&home, "host=h sslmode=require sslrootcert=/nonexistent");
    assert_eq!(error, "sslrootcert: there is no file /nonexistent");
    assert_eq!(demand("sslmode=prefer sslrootcert=/nonexistent"), Demand::Nothing);

    let root = Roots::File(home.write(".postgresql/root.crt", ""));
    for (mode, expected) in [
        ("disable", Demand::Nothing),
        ("no-verify", Demand::Nothing),
        ("allow", Demand::Authority(root.clone())),
        ("prefer", Demand::Authority(root.clone())),
        ("require", Demand::Authority(root.clone())),
        ("verify-ca", Demand::Authority(root.clone())),
        ("verify-full", Demand::Host(root)),
    ] {
        assert_eq!(demand(&format!("sslmode={mode}")), expected, "{mode}");
    }
    let other = home.write("other.crt", "");
    assert_eq!(
        demand(&format!("sslmode=verify-ca sslrootcert={}", other.display())),
        Demand::Authority(Roots::File(other))
    );
    home.write(".postgresql/root.crl", "");
    let error = resolve_error(&home, "host=h sslmode=verify-full");
    assert!(error.starts_with("sslcrl: revocation lists are not supported"), "{error}");
    assert!(home.resolve("host=h sslmode=prefer").is_ok());
    assert_eq!(demand("sslrootcert=system"), Demand::Host(Roots::System));
}

#[test]
fn a_client_certificate_is_shown_if_there_is_one() {
    let home = Home::new("identity");
    let identity = |text: &str| {
        let resolved = home.resolve(&format!("host=h {text}")).unwrap();
        handshake_options(&resolved).identity.clone()
    };
    assert_eq!(identity(""), None);
    assert_eq!(identity("sslcert=/nonexistent sslkey=/nonexistent"), None);
    let certificate = home.write(".postgresql/postgresql.crt", "");
    let error = resolve_error(&home, "host=h sslmode=require");
    assert!(error.starts_with("sslkey: the certificate's key"), "{error}");
    assert_eq!(identity(""), None);
    assert_eq!(identity("sslcertmode=disable"), None);
    assert_eq!(identity("sslmode=disable"), None);
    let key = home.write(".postgresql/postgresql.key", "");
    let both = Identity { certificate, key };
    assert_eq!(identity(""), Some(both.clone()));
    let (certificate, key) = (home.write("c", ""), home.write("k", ""));
    let text = format!("sslcert={} sslkey={}", certificate.display(), key.display());
    assert_eq!(identity(&text), Some(Identity { certificate, key }));
    home.permit(".postgresql/postgresql.key", 0o604);
    let error = resolve_error(&home, "host=h sslmode=require");
    assert!(error.contains("others have access to the certificate's key"), "{error}");
    assert_eq!(identity(""), None);
    assert!(home.resolve("host=/tmp sslmode=require").is_ok());
}
