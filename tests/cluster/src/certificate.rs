//! Certificates made on the spot, good ones and bad ones, and some that cannot be made here.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The host that the kept certificates are for.
pub const HOST: &str = "db.example";

/// A certificate authority of its own.
#[derive(Debug)]
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key.
#[derive(Clone)]
pub struct Certificate {
    /// The certificate, as PEM. Those between it and the authority may follow.
    pub pem: String,
    /// Its private key, as PEM.
    pub key_pem: String,
}

impl Authority {
    /// An authority with a fresh key, valid for centuries.
    pub fn new(common_name: &str) -> Self {
        Self::with_key(common_name, KeyPair::generate().expect("a key for the authority"))
    }

    /// As [`Self::new`], after `spoil` has had its way with its certificate.
    pub fn spoiled(common_name: &str, spoil: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority_params(common_name);
        spoil(&mut params);
        Self::self_signed(params, KeyPair::generate().expect("a key for the authority"))
    }

    /// As [`Self::new`], with a key of one's own.
    pub fn with_key(common_name: &str, key: KeyPair) -> Self {
        Self::self_signed(authority_params(common_name), key)
    }

    fn self_signed(params: CertificateParams, key: KeyPair) -> Self {
        let pem = params.self_signed(&key).expect("the authority's own certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// An authority that this one vouches for.
    #[must_use]
    pub fn authority(&self, common_name: &str) -> Self {
        let key = KeyPair::generate().expect("a key for the certificate authority");
        let params = authority_params(common_name);
        let pem = params.signed_by(&key, &self.issuer).expect("a signed certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// The authority's certificate, as PEM: what a client is given as its root.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server certificate for `names` (host names or addresses), after `spoil` has had its way
    /// with it: other names, other dates, other uses.
    pub fn issue(&self, names: &[&str], spoil: impl FnOnce(&mut CertificateParams)) -> Certificate {
        self.issue_for(&KeyPair::generate().expect("a key for the certificate"), names, spoil)
    }

    /// As [`Self::issue`], for a key of one's own.
    pub fn issue_for(
        &self,
        key: &KeyPair,
        names: &[&str],
        spoil: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let params = server_params(names, spoil);
        let pem = params.signed_by(key, &self.issuer).expect("a signed certificate").pem();
        Certificate { pem, key_pem: key.serialize_pem() }
    }
}

impl Certificate {
    /// A server certificate that nobody but itself vouches for.
    pub fn self_signed(names: &[&str], spoil: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().expect("a key for the certificate");
        let pem = server_params(names, spoil).self_signed(&key).expect("a certificate").pem();
        Self { pem, key_pem: key.serialize_pem() }
    }
}

fn authority_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn server_params(names: &[&str], spoil: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).expect("names fit for a certificate");
    spoil(&mut params);
    params
}

/// Certificates for [`HOST`] that rcgen cannot make, valid from 2020 to 2119; `openssl ca` made them.
/// Their keys protect nothing.
pub mod kept {
    use super::Certificate;

    /// The authority behind those of them that have one, with an RSA key; its own key is not kept.
    pub const AUTHORITY_PEM: &str = include_str!("certificates/authority.pem");

    macro_rules! certificate {
        ($name:literal) => {
            Certificate {
                pem: include_str!(concat!("certificates/", $name, ".pem")).to_owned(),
                key_pem: include_str!(concat!("certificates/", $name, ".key")).to_owned(),
            }
        };
    }

    /// An RSA key, signed with RSA.
    pub fn rsa() -> Certificate {
        certificate!("rsa")
    }

    /// A key that only does RSA-PSS, signed with RSA-PSS.
    pub fn rsa_pss() -> Certificate {
        certificate!("rsa-pss")
    }

    /// An Ed25519 key, signed with itself.
    pub fn ed25519() -> Certificate {
        certificate!("ed25519")
    }

    /// Version 1, which has no place for alternative names: the common name is the host.
    pub fn version_1() -> Certificate {
        certificate!("version-1")
    }

    /// Version 1, signed with its own key.
    pub fn own_root_version_1() -> Certificate {
        certificate!("own-root-version-1")
    }
}
