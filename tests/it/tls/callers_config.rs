//! Connections that the caller's own configuration of rustls decides about.

use std::fs;

use pglock::rustls::pki_types::pem::PemObject;
use pglock::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use pglock::rustls::version::TLS12;
use pglock::rustls::{ClientConfig, RootCertStore};
use pglock::{Config, Error, ErrorKind, Session};
use pglock_test_cluster::rcgen::DnType;
use pglock_test_cluster::{Authority, Cluster, Settings, role};

use super::DIRECT_TLS;
use crate::psql::say;
use crate::stage::Stage;

/// A configuration that trusts these roots and has nothing to show itself.
pub(super) fn trusting(roots: &str) -> ClientConfig {
    ClientConfig::builder().with_root_certificates(store(roots)).with_no_client_auth()
}

fn store(roots: &str) -> RootCertStore {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    store
}

/// The roots that vouch for the server that all tests share.
fn good_roots() -> String {
    fs::read_to_string(Cluster::default_cluster().root_certificate()).unwrap()
}

fn config(stage: &Stage<'_>, tls: ClientConfig, parameters: &str) -> Config {
    let url = Cluster::default_cluster().url_for(&role::SCRAM);
    let mut config = stage.config_by(&format!("{url}?{parameters}"), "alice");
    config.host("localhost").hostaddr([127, 0, 0, 1].into()).tls_client_config(tls.into());
    config
}

#[tokio::test]
async fn its_roots_are_the_ones_that_count() {
    let mut stage = Stage::new();
    for parameters in ["", "sslmode=require", "sslmode=verify-ca", "sslmode=verify-full"] {
        // The login is bound to the connection, so it is one of TLS.
        let mut config = config(&stage, trusting(&good_roots()), parameters);
        config.set("channel_binding", "require").unwrap();
        Session::connect(&config).await.unwrap().close().await.unwrap();
    }
    let another = Authority::new("another authority");
    for parameters in ["", "sslmode=require", "sslmode=verify-ca", "sslmode=verify-full"] {
        let error = refused(&config(&stage, trusting(another.pem()), parameters)).await;
        assert_eq!(error.kind(), ErrorKind::Tls, "{parameters}: {error}");
        let told = error.to_string();
        assert!(told.contains("invalid peer certificate: UnknownIssuer"), "{parameters}: {told}");
        assert!(!told.contains("sslrootcert"), "{parameters}: {told}");
    }
    let prefer = config(&stage, trusting(another.pem()), "sslmode=prefer");
    let in_clear = Session::connect(&prefer).await.unwrap();
    assert_eq!(tls_version(&mut stage), None);
    in_clear.close().await.unwrap();
}

#[tokio::test]
async fn its_verifier_looks_at_the_host_in_every_mode() {
    let stage = Stage::new();
    for mode in ["require", "verify-full"] {
        let mut config = config(&stage, trusting(&good_roots()), &format!("sslmode={mode}"));
        let told = refused(config.host("other.example")).await.to_string();
        assert!(told.contains("not valid for name"), "{mode}: {told}");
    }
}

#[tokio::test]
async fn its_versions_are_the_ones_that_are_offered() {
    let mut stage = Stage::new();
    let tls = ClientConfig::builder_with_protocol_versions(&[&TLS12])
        .with_root_certificates(store(&good_roots()))
        .with_no_client_auth();
    let session = Session::connect(&config(&stage, tls, "")).await.unwrap();
    assert_eq!(tls_version(&mut stage).as_deref(), Some("TLSv1.2"));
    session.close().await.unwrap();
}

/// Servers that know of application protocols refuse any but PostgreSQL's.
#[tokio::test]
async fn its_application_protocols_give_way_to_postgresqls() {
    let stage = Stage::new();
    let with_protocol = || {
        let mut tls = trusting(&good_roots());
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls
    };
    Session::connect(&config(&stage, with_protocol(), "")).await.unwrap();
    if Cluster::default_cluster().major_version() < DIRECT_TLS {
        return say("sslnegotiation=direct was not tried: PostgreSQL has it since version 17");
    }
    let direct = "sslmode=require&sslnegotiation=direct&channel_binding=require";
    Session::connect(&config(&stage, with_protocol(), direct)).await.unwrap();
}

#[tokio::test]
async fn its_client_certificate_is_shown() {
    let cluster = Settings::new().start();
    let authority = Authority::new("authority of the clients");
    let file = cluster.socket_dir().join("clients.pem");
    fs::write(&file, authority.pem()).unwrap();
    let mut look = cluster.raw();
    look.rows("CREATE ROLE alice LOGIN");
    look.rows(&format!("ALTER SYSTEM SET ssl_ca_file = '{}'", file.display()));
    cluster.set_access_rules(&[String::from("hostssl all alice 127.0.0.1/32 cert")]);

    let certificate = authority.issue(&[], |params| {
        params.distinguished_name.push(DnType::CommonName, "alice");
    });
    let shown = CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).unwrap();
    let roots = fs::read_to_string(cluster.root_certificate()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(store(&roots));
    let tls = builder.with_client_auth_cert(vec![shown], key).unwrap();
    let mut config = Config::new();
    config.host("localhost").hostaddr([127, 0, 0, 1].into()).port(cluster.port());
    config.user("alice").dbname("app").tls_client_config(tls.into());
    Session::connect(&config).await.unwrap().close().await.unwrap();

    config.tls_client_config(trusting(&roots).into());
    let error = refused(&config).await;
    assert!(error.to_string().contains("requires a valid client certificate"), "{error}");
}

async fn refused(config: &Config) -> Error {
    Session::connect(config).await.expect_err("a server to be refused, or one that refuses")
}

/// The version of TLS in which `alice` is connected, as the server has it.
fn tls_version(stage: &mut Stage<'_>) -> Option<String> {
    let pid = stage.pid("alice");
    let sql = format!("SELECT version FROM pg_stat_ssl WHERE pid = {pid}");
    Cluster::default_cluster().raw().rows(&sql).remove(0).remove(0)
}
