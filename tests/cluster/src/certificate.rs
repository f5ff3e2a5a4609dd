//! Certificates made on the spot, good ones and bad ones.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A certificate authority of its own.
#[derive(Debug)]
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key.
#[derive(Clone)]
pub struct Certificate {
    /// The certificate, as PEM.
    pub pem: String,
    /// Its private key, as PEM.
    pub key_pem: String,
}

impl Authority {
    /// An authority with a fresh key, valid for centuries.
    pub fn new(common_name: &str) -> Self {
        let key = KeyPair::generate().expect("a key for the certificate authority");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("the authority's own certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// The authority's certificate, as PEM: what a client is given as its root.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server certificate for `names` (host names or addresses), after `spoil` has had its way
    /// with it: other names, other dates, other uses.
    pub fn issue(&self, names: &[&str], spoil: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names fit for a certificate");
        spoil(&mut params);
        let key = KeyPair::generate().expect("a key for the certificate");
        let pem = params.signed_by(&key, &self.issuer).expect("a signed certificate").pem();
        Certificate { pem, key_pem: key.serialize_pem() }
    }
}
