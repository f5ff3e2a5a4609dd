//! The cryptography of TLS: ring's, less ChaCha20-Poly1305.
//!
//! Every server has AES-GCM too, because no OpenSSL comes without it, and ChaCha20-Poly1305 would make
//! each program about 55 kB larger. rustls's own list of what ring can do names it, and whatever a list
//! names is linked: so the lists are made here.

use std::sync::Arc;

use rustls::SignatureScheme::{
    ECDSA_NISTP256_SHA256, ECDSA_NISTP384_SHA384, ED25519, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::crypto::ring::{cipher_suite, kx_group};
use rustls::crypto::{
    CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
#[cfg(feature = "tls12")]
use rustls::version::TLS12;
use rustls::version::TLS13;
use rustls::{Error, SupportedCipherSuite, SupportedProtocolVersion};
use webpki::ring as verify;
use zeroize::Zeroizing;

use crate::config::Versions;

pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: CIPHER_SUITES.to_vec(),
        // First the one that PostgreSQL's default `ssl_ecdh_curve` takes: a wrong guess costs a round
        // trip.
        kx_groups: vec![kx_group::SECP256R1, kx_group::X25519, kx_group::SECP384R1],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &System,
        key_provider: &System,
    }
}

static CIPHER_SUITES: &[SupportedCipherSuite] = &[
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    #[cfg(feature = "tls12")]
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    #[cfg(feature = "tls12")]
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    #[cfg(feature = "tls12")]
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    #[cfg(feature = "tls12")]
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// What there is of these versions, the one that is preferred first.
pub(super) fn versions(wanted: Versions) -> Vec<&'static SupportedProtocolVersion> {
    let mut versions = Vec::new();
    if wanted != Versions::OnlyTls12 {
        versions.push(&TLS13);
    }
    #[cfg(feature = "tls12")]
    if wanted != Versions::OnlyTls13 {
        versions.push(&TLS12);
    }
    versions
}

/// Those of rustls's own provider.
static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        verify::ECDSA_P256_SHA256,
        verify::ECDSA_P256_SHA384,
        verify::ECDSA_P384_SHA256,
        verify::ECDSA_P384_SHA384,
        verify::ED25519,
        verify::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        verify::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        verify::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        verify::RSA_PKCS1_2048_8192_SHA256,
        verify::RSA_PKCS1_2048_8192_SHA384,
        verify::RSA_PKCS1_2048_8192_SHA512,
        verify::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
        verify::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
        verify::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    ],
    // TLS 1.2 leaves the curve open, so each hash goes with either.
    mapping: &[
        (ECDSA_NISTP384_SHA384, &[verify::ECDSA_P384_SHA384, verify::ECDSA_P256_SHA384]),
        (ECDSA_NISTP256_SHA256, &[verify::ECDSA_P256_SHA256, verify::ECDSA_P384_SHA256]),
        (ED25519, &[verify::ED25519]),
        (RSA_PSS_SHA512, &[verify::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
        (RSA_PSS_SHA384, &[verify::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (RSA_PSS_SHA256, &[verify::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (RSA_PKCS1_SHA512, &[verify::RSA_PKCS1_2048_8192_SHA512]),
        (RSA_PKCS1_SHA384, &[verify::RSA_PKCS1_2048_8192_SHA384]),
        (RSA_PKCS1_SHA256, &[verify::RSA_PKCS1_2048_8192_SHA256]),
    ],
};

/// Random bytes from the operating system, and keys that are in memory.
#[derive(Debug)]
struct System;

impl SecureRandom for System {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        getrandom::fill(bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for System {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        any_supported_type(&Zeroizing::new(key))
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring;

    use super::*;

    #[test]
    fn all_is_as_in_ring_but_chacha20_poly1305() {
        let (ours, theirs) = (provider(), ring::default_provider());
        let suites = theirs.cipher_suites.iter().map(SupportedCipherSuite::suite);
        let kept = suites.filter(|suite| !format!("{suite:?}").contains("CHACHA20"));
        assert!(kept.eq(ours.cipher_suites.iter().map(SupportedCipherSuite::suite)));
        assert_eq!(ours.kx_groups.len(), theirs.kx_groups.len());

        let (ours, theirs) =
            (ours.signature_verification_algorithms, theirs.signature_verification_algorithms);
        assert_eq!(format!("{:?}", ours.all), format!("{:?}", theirs.all));
        assert_eq!(format!("{:?}", ours.mapping), format!("{:?}", theirs.mapping));
    }
}
