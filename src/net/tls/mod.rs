//! TLS, with rustls.
//!
//! The cryptography is ring's. Of the providers that are meant to be relied on it makes the smallest
//! program; it needs nothing but a C compiler to build, runs on any CPU, and takes every kind of
//! certificate that servers have but P-521. `benches/README.md` has the figures.

pub(crate) mod problems;
mod provider;
mod verifier;
mod x509;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, ProtocolVersion};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use self::verifier::{CheckNames, Verifier};
use crate::config::{Demand, Handshake, HandshakeOptions, Identity, Roots};
use crate::error::{Error, ErrorKind, Result};
use crate::net::Address;
use crate::net::Socket;
use crate::net::is_broken_off;
use crate::report::TlsReport;

/// The name of PostgreSQL's protocol within TLS. Servers since version 17 demand it of connections
/// that begin with TLS, and answer any other name with an alert in all.
const ALPN: &[u8] = b"postgresql";

/// How connections to one host are encrypted.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    words: Words,
}

/// In whose words to tell what is wrong with a handshake.
#[derive(Clone, Copy)]
enum Words {
    /// With advice on which parameter to change.
    Parameters,
    /// As they are: who made a configuration of rustls knows them.
    Rustls,
}

impl Tls {
    /// Reads the files that the parameters name, if it is they that decide.
    pub(crate) fn new(handshake: &Handshake, host: &str, address: &Address) -> Result<Self> {
        let server_name = match (ServerName::try_from(host.to_owned()), address) {
            (Ok(name), _) => name,
            // Nobody is going to compare it.
            (Err(_), Address::Tcp(address)) if !handshake.compares_names() => address.ip().into(),
            (Err(error), _) => {
                return Err(problem("the host's name is none that a certificate can have")
                    .with_source(error));
            }
        };
        let (mut config, words) = match handshake {
            Handshake::Parameters(options) => (client_config(options)?, Words::Parameters),
            // What it remembers of earlier sessions stays shared.
            Handshake::Caller(config) => (ClientConfig::clone(&config.0), Words::Rustls),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { config: Arc::new(config), server_name, words })
    }

    /// Shakes hands on a socket on which the server waits for that.
    pub(crate) async fn connect(&self, socket: Socket) -> Result<TlsStream<Socket>> {
        self.shake_hands(socket).await.map_err(|error| self.handshake_failed(error))
    }

    /// Shakes hands without having asked for TLS, which the server has to have understood: it selects
    /// the protocol.
    pub(crate) async fn connect_directly(&self, socket: Socket) -> Result<TlsStream<Socket>> {
        let stream = self.shake_hands(socket).await.map_err(|error| {
            if !is_broken_off(&error) {
                return self.handshake_failed(error);
            }
            problem(format!("the server closed the connection at the first word of TLS; {DIRECT}"))
                .with_source(error)
        })?;
        if stream.get_ref().1.alpn_protocol() == Some(ALPN) {
            return Ok(stream);
        }
        Err(problem(format!("the server did not select the protocol \"postgresql\"; {DIRECT}")))
    }

    async fn shake_hands(&self, socket: Socket) -> io::Result<TlsStream<Socket>> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(self.server_name.clone(), socket).await
    }

    fn handshake_failed(&self, error: io::Error) -> Error {
        if is_broken_off(&error) {
            return problem("the server closed the connection during the TLS handshake")
                .with_source(error);
        }
        let advice = match self.words {
            Words::Parameters => problems::of(&error),
            Words::Rustls => None,
        };
        let why = advice.unwrap_or_else(|| error.to_string().into());
        problem(format!("the TLS handshake failed: {why}"))
    }
}

/// What a server has to be that is not asked for TLS.
const DIRECT: &str = "sslnegotiation=direct needs PostgreSQL 17 or later, with `ssl` turned on";

/// The certificate that the server showed, in DER.
pub(crate) fn peer_certificate(stream: &TlsStream<Socket>) -> Option<&[u8]> {
    let (_, connection) = stream.get_ref();
    connection.peer_certificates()?.first().map(AsRef::as_ref)
}

/// What encrypts the connection, by the names that PostgreSQL has for it.
pub(crate) fn report(stream: &TlsStream<Socket>) -> Option<TlsReport> {
    let (_, connection) = stream.get_ref();
    let version = match connection.protocol_version()? {
        ProtocolVersion::TLSv1_2 => String::from("TLSv1.2"),
        ProtocolVersion::TLSv1_3 => String::from("TLSv1.3"),
        other => format!("{other:?}"),
    };
    let cipher = format!("{:?}", connection.negotiated_cipher_suite()?.suite());
    Some(TlsReport { version, cipher: cipher.replace("TLS13_", "TLS_") })
}

fn client_config(options: &HandshakeOptions) -> Result<ClientConfig> {
    let provider = Arc::new(provider::provider());
    let verifier = match &options.demand {
        Demand::Nothing => Verifier::anyone(&provider),
        Demand::Authority(roots) => verifier(roots, &provider, CheckNames::No)?,
        Demand::Host(roots) => verifier(roots, &provider, CheckNames::Yes)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&provider::versions(options.versions))
        .map_err(|error| problem("these versions of TLS cannot be had").with_source(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_cert_resolver(client_certificate(identity)?),
    };
    config.enable_sni = options.send_name;
    Ok(config)
}

fn verifier(roots: &Roots, provider: &CryptoProvider, names: CheckNames) -> Result<Verifier> {
    let (certificates, place) = match roots {
        Roots::File(path) => (certificates("sslrootcert", path)?, path.display().to_string()),
        Roots::System => (system_roots()?, String::from("the system's store")),
    };
    Verifier::roots(provider, certificates, names)
        .ok_or_else(|| problem(format!("no root certificate in {place} can be used")))
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(problem(
            "sslrootcert=system: the system has no root certificates; install them (on Debian, the \
             package ca-certificates) or name a file",
        ));
    }
    Ok(found.certs)
}

fn client_certificate(identity: &Identity) -> Result<Arc<SingleCertAndKey>> {
    let misfit = |error: rustls::Error| {
        let message = format!("sslkey does not fit {}", identity.certificate.display());
        problem(message).with_source(error)
    };
    let certificates = certificates("sslcert", &identity.certificate)?;
    let key = private_key(&identity.key)?;
    let certified = CertifiedKey::new(certificates, any_supported_type(&key).map_err(misfit)?);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
            Ok(Arc::new(certified.into()))
        }
        Err(error) => Err(misfit(error)),
    }
}

/// Reads a key. The file's content and the key are overwritten in memory when they are not needed any
/// more; what rustls makes of the key is not.
fn private_key(path: &Path) -> Result<Zeroizing<PrivateKeyDer<'static>>> {
    let unreadable = || unreadable("sslkey", path);
    let content =
        fs::read(path).map(Zeroizing::new).map_err(|error| unreadable().with_source(error))?;
    PrivateKeyDer::from_pem_slice(&content)
        .map(Zeroizing::new)
        .map_err(|error| unreadable().with_source(error))
}

/// Reads certificates from a plain file: a pipe may let nobody open it, and a device may never end.
fn certificates(parameter: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(problem(format!("{parameter}: {} is not a plain file", path.display())));
    }
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| unreadable(parameter, path).with_source(error))?;
    if certificates.is_empty() {
        return Err(unreadable(parameter, path));
    }
    Ok(certificates)
}

fn unreadable(parameter: &str, path: &Path) -> Error {
    problem(format!("{parameter}: {} has no PEM that can be read", path.display()))
}

fn problem(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Tls, message)
}
