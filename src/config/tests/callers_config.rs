//! What a caller's own configuration of rustls means for the other settings.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::home::Home;
use super::{Config, ErrorKind, SslMode, parse, resolve};
use crate::config::resolve::Handshake;

fn trusting_nobody() -> Arc<ClientConfig> {
    let builder = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
    Arc::new(builder.with_no_client_auth())
}

fn with_config(text: &str) -> Config {
    let mut config = parse(text);
    config.tls_client_config(trusting_nobody());
    config
}

#[test]
fn tls_is_demanded_unless_the_mode_says_otherwise() {
    for (text, mode) in [
        ("", SslMode::Require),
        ("sslmode=disable", SslMode::Disable),
        ("sslmode=allow", SslMode::Allow),
        ("sslmode=prefer", SslMode::Prefer),
        ("sslmode=require sslnegotiation=direct", SslMode::Require),
    ] {
        assert_eq!(resolve(&with_config(text)).unwrap().tls.mode, mode, "{text}");
    }
}

#[test]
fn it_decides_whatever_files_there_are() {
    let home = Home::new("callers-config");
    home.write(".postgresql/postgresql.crt", "");
    home.write(".postgresql/root.crl", "");
    for mode in ["require", "verify-ca", "verify-full"] {
        let text = format!("host=h sslmode={mode}");
        let config = with_config(&text);
        let tls = config.resolve_with(&|name| home.var(name)).unwrap().tls;
        assert!(matches!(tls.handshake, Handshake::Caller(_)), "{mode}");
        assert!(home.resolve(&text).is_err(), "{mode}");
    }
}

#[test]
fn what_it_decides_is_not_asked_for_as_well() {
    for parameter in [
        "sslmode=no-verify",
        "sslrootcert=/nonexistent",
        "sslrootcert=system",
        "sslcert=c",
        "sslkey=k",
        "sslcertmode=disable",
        "sslcertmode=allow",
        "sslsni=0",
        "sslsni=1",
        "ssl_min_protocol_version=TLSv1.2",
        "ssl_max_protocol_version=TLSv1.3",
    ] {
        let mut config = with_config(parameter);
        let error = resolve(&config).err().expect(parameter);
        assert_eq!(error.kind(), ErrorKind::Config, "{parameter}");
        let (name, _) = parameter.split_once('=').unwrap();
        let error = error.to_string();
        assert!(error.starts_with(&format!("{name}: ")), "{parameter}: {error}");
        assert!(error.contains("the configuration of rustls that was handed in decides"));
        if name != "sslmode" {
            assert!(resolve(config.set(name, "").unwrap()).is_ok(), "{parameter}");
        }
    }
}

#[test]
fn it_is_equal_to_itself_alone_and_not_shown() {
    let mut config = Config::new();
    let without = config.clone();
    config.tls_client_config(trusting_nobody());
    assert_ne!(config, without);
    assert_eq!(config, config.clone());
    let mut other = Config::new();
    other.tls_client_config(trusting_nobody());
    assert_ne!(config, other);
    let shown = format!("{config:?}");
    assert!(shown.contains("callers_config: Some(ClientConfig { .. })"), "{shown}");
}
