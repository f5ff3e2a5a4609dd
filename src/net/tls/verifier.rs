//! Which certificates are accepted.
//!
//! `rustls`' own verifier decides first. Three things that libpq accepts and it does not are looked at
//! again, none of which makes a mode that verifies accept a server that does not have a key that the
//! roots vouch for:
//!
//! - a certificate that is itself one of the roots (the usual self-signed one, marked as a CA);
//! - a certificate of version 1, directly signed by a root;
//! - a certificate whose common name is the host, without an alternative name of the host's kind, if
//!   its authorities may vouch for any name; or one that has the host's address in a place for names.
//!
//! And one thing that rustls accepts and libpq does not is refused: a certificate for which only a root
//! vouches that is out of date.
//!
//! Whatever the mode, the server has to prove that it has the certificate's key: channel binding
//! relies on that.

use std::fmt;
use std::iter;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, alg_id};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use super::x509::{Certificate, Names, PublicKey};

/// Accepts certificates as an `sslmode` wants them.
#[derive(Debug)]
pub(super) struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    trust: Trust,
}

#[derive(Debug)]
enum Trust {
    /// Any certificate: `require` without a root file, and weaker modes.
    Anyone,
    /// Certificates that the roots vouch for: `verify-ca`, and with names `verify-full`.
    Roots {
        /// Of which webpki takes one at least.
        roots: Vec<CertificateDer<'static>>,
        names: CheckNames,
    },
}

/// Whether the certificate has to be for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckNames {
    No,
    Yes,
}

/// What a server shows, and what is asked of it.
struct Shown<'a> {
    leaf: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    host: &'a ServerName<'a>,
    names: CheckNames,
    now: UnixTime,
}

impl Shown<'_> {
    /// Whether one of the authorities may vouch for some names only.
    fn is_constrained(&self, roots: &[&CertificateDer<'_>]) -> bool {
        let shown = iter::once(self.leaf).chain(self.intermediates);
        let issuers: Vec<_> =
            shown.filter_map(|der| Certificate::read(der)).map(|shown| shown.issuer).collect();
        let authorities = roots.iter().copied().chain(self.intermediates);
        authorities
            .filter_map(|der| Certificate::read(der))
            .any(|authority| authority.is_constrained && issuers.contains(&authority.subject))
    }
}

/// The signature algorithms of keys that can only be used with RSA-PSS. rustls has no names for them.
const RSA_PSS_KEY_SCHEMES: [(SignatureScheme, SignatureScheme); 3] = [
    (SignatureScheme::Unknown(0x0809), SignatureScheme::RSA_PSS_SHA256),
    (SignatureScheme::Unknown(0x080a), SignatureScheme::RSA_PSS_SHA384),
    (SignatureScheme::Unknown(0x080b), SignatureScheme::RSA_PSS_SHA512),
];

/// The object identifier id-RSASSA-PSS, with its header.
const ID_RSASSA_PSS: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];

impl Verifier {
    pub(super) fn anyone(provider: &CryptoProvider) -> Self {
        Self { algorithms: provider.signature_verification_algorithms, trust: Trust::Anyone }
    }

    /// Nothing comes of it if none of the roots can be used.
    pub(super) fn roots(
        provider: &CryptoProvider,
        roots: Vec<CertificateDer<'static>>,
        names: CheckNames,
    ) -> Option<Self> {
        let (usable, _) = RootCertStore::empty().add_parsable_certificates(roots.iter().cloned());
        (usable > 0).then_some(Self {
            algorithms: provider.signature_verification_algorithms,
            trust: Trust::Roots { roots, names },
        })
    }

    /// Whether these roots vouch for a server that shows these certificates.
    fn judge(&self, roots: &[&CertificateDer<'_>], shown: &Shown<'_>) -> Result<(), Error> {
        self.verify(roots, shown).or_else(|refusal| self.reconsider(refusal, roots, shown))
    }

    /// What rustls's own verifier does, less the revocation lists that it would look into if it had any: a
    /// program is 24 kB smaller without their code.
    fn verify(&self, roots: &[&CertificateDer<'_>], shown: &Shown<'_>) -> Result<(), Error> {
        let Shown { leaf, intermediates, now, .. } = *shown;
        let parsed = ParsedCertificate::try_from(leaf)?;
        let mut anchors = RootCertStore::empty();
        // What webpki does not take as a root is still compared as a whole.
        anchors.add_parsable_certificates(roots.iter().map(|&root| root.clone()));
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &anchors,
            intermediates,
            now,
            algorithms,
        )?;
        match shown.names {
            CheckNames::No => Ok(()),
            CheckNames::Yes => verify_server_name(&parsed, shown.host),
        }
    }

    /// Looks again at a certificate that rustls refused.
    fn reconsider(
        &self,
        refusal: Error,
        roots: &[&CertificateDer<'_>],
        shown: &Shown<'_>,
    ) -> Result<(), Error> {
        let Some(mut certificate) = Certificate::read(shown.leaf) else { return Err(refusal) };
        // webpki holds alternative names against what the authorities may vouch for, and this one not.
        if shown.is_constrained(roots) {
            certificate.names.common = None;
        }
        // rustls looks at names last: a certificate with the wrong one is otherwise good.
        let is_good = is_about_the_name(&refusal);
        if !is_good {
            if !self.is_rooted(shown.leaf, &certificate, roots) {
                // That it is of version 1 is all that rustls says, and not the reason.
                let is_old = certificate.version == 0;
                return Err(if is_old { CertificateError::UnknownIssuer.into() } else { refusal });
            }
            if let Some(problem) = problem_of_dates(&certificate, shown.now) {
                return Err(problem.into());
            }
            if !certificate.is_for_servers {
                return Err(CertificateError::InvalidPurpose.into());
            }
        }
        match shown.names {
            CheckNames::No => Ok(()),
            CheckNames::Yes if certificate.names.include(shown.host) => Ok(()),
            // rustls tells which names there are.
            CheckNames::Yes if is_good => Err(refusal),
            CheckNames::Yes => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn is_rooted(
        &self,
        leaf: &CertificateDer<'_>,
        certificate: &Certificate<'_>,
        roots: &[&CertificateDer<'_>],
    ) -> bool {
        roots.iter().any(|&root| {
            root == leaf
                || (certificate.version == 0
                    && Certificate::read(root).is_some_and(|root| {
                        root.is_authority
                            && root.subject == certificate.issuer
                            && self.is_signed_by(certificate, &root.key)
                    }))
        })
    }

    fn is_signed_by(&self, certificate: &Certificate<'_>, key: &PublicKey<'_>) -> bool {
        self.algorithms.all.iter().any(|algorithm| {
            algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
                && algorithm.public_key_alg_id().as_ref() == key.algorithm
                && algorithm
                    .verify_signature(key.bits, certificate.signed, certificate.signature)
                    .is_ok()
        })
    }

    /// Checks a signature of the handshake by a key that webpki does not take.
    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = Certificate::read(leaf).ok_or(CertificateError::BadEncoding)?;
        let key = &certificate.key;
        let pss_only = key.algorithm.starts_with(ID_RSASSA_PSS);
        let scheme = RSA_PSS_KEY_SCHEMES
            .iter()
            .find(|(of_pss_key, _)| pss_only && *of_pss_key == signature.scheme)
            .map_or(signature.scheme, |(_, scheme)| *scheme);
        let candidates = self.algorithms.mapping.iter().filter(|(mapped, _)| *mapped == scheme);
        let valid = candidates.flat_map(|(_, algorithms)| algorithms.iter()).any(|algorithm| {
            let key_algorithm = algorithm.public_key_alg_id();
            let fits = key_algorithm.as_ref() == key.algorithm
                || (pss_only && key_algorithm == alg_id::RSA_ENCRYPTION);
            fits && algorithm.verify_signature(key.bits, message, signature.signature()).is_ok()
        });
        if valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Roots { roots, names } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let shown = Shown { leaf, intermediates, host, names: *names, now };
        // rustls takes a root for what it is, whatever its dates are. Those of the server's own certificate are
        // looked at in any case.
        let (old, present): (Vec<_>, Vec<_>) =
            roots.iter().partition(|&root| root != leaf && is_out_of_date(root, now));
        match self.judge(&present, &shown) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(_) if !old.is_empty() && self.judge(&old, &shown).is_ok() => {
                Err(CertificateError::Other(OtherError(Arc::new(RootOutOfDate))).into())
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.algorithms)
            .or_else(|_| self.verify_signature(message, leaf, signature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms).or_else(
            |refusal| {
                // TLS 1.3 knows neither SHA-1 nor RSA with the old padding.
                if matches!(u16::from(signature.scheme) >> 8, 0x02 | 0x04 | 0x05 | 0x06)
                    && !is_ecdsa(signature.scheme)
                {
                    return Err(refusal);
                }
                self.verify_signature(message, leaf, signature)
            },
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let of_pss_keys = RSA_PSS_KEY_SCHEMES.iter().map(|(scheme, _)| *scheme);
        self.algorithms.supported_schemes().into_iter().chain(of_pss_keys).collect()
    }
}

/// The root that vouches for a server's certificate has expired, or is not valid yet.
#[derive(Debug)]
pub(super) struct RootOutOfDate;

impl std::error::Error for RootOutOfDate {}

impl fmt::Display for RootOutOfDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the root certificate that vouches for the server's has expired, or is not valid yet: get the \
             authority's present one for sslrootcert, or set this machine's clock",
        )
    }
}

fn is_out_of_date(root: &CertificateDer<'_>, now: UnixTime) -> bool {
    Certificate::read(root).is_some_and(|root| problem_of_dates(&root, now).is_some())
}

fn problem_of_dates(certificate: &Certificate<'_>, now: UnixTime) -> Option<CertificateError> {
    let (from, until) = certificate.validity;
    match now.as_secs() {
        now if now < from => Some(CertificateError::NotValidYet),
        now if now > until => Some(CertificateError::Expired),
        _ => None,
    }
}

fn is_ecdsa(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::ECDSA_NISTP256_SHA256
            | SignatureScheme::ECDSA_NISTP384_SHA384
            | SignatureScheme::ECDSA_NISTP521_SHA512
    )
}

fn is_about_the_name(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

impl Names<'_> {
    /// Whether the certificate is for this host, as libpq sees it: the common name counts if there is
    /// no alternative name of the host's kind, and an address may stand where a host name does.
    fn include(&self, host: &ServerName<'_>) -> bool {
        let name = host.to_str();
        let ServerName::IpAddress(_) = host else {
            return self.dns.iter().any(|pattern| is_for(pattern, &name))
                || (self.dns.is_empty()
                    && self.common.is_some_and(|common| is_for(common, &name)));
        };
        let address = match name.parse() {
            Ok(IpAddr::V4(address)) => address.octets().to_vec(),
            Ok(IpAddr::V6(address)) => address.octets().to_vec(),
            Err(_) => return false,
        };
        self.addresses.contains(&address.as_slice())
            || self.dns.contains(&name.as_bytes())
            || (self.addresses.is_empty() && self.common == Some(name.as_bytes()))
    }
}

/// Whether a name, which may begin with `*.` for any one label, is that of the host.
fn is_for(pattern: &[u8], host: &str) -> bool {
    let host = host.as_bytes();
    match pattern.strip_prefix(b"*") {
        Some(domain) if domain.starts_with(b".") && domain.len() > 1 => {
            let label = host.iter().position(|&byte| byte == b'.').unwrap_or(host.len());
            let (label, rest) = host.split_at_checked(label).unwrap_or_default();
            !label.is_empty() && rest.eq_ignore_ascii_case(domain)
        }
        _ => pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pglock_test_cluster::rcgen::{DnType, GeneralSubtree, NameConstraints};
    use pglock_test_cluster::{Authority, HOST, kept};
    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    /// One verifier and the certificate that it accepts, for each way to be accepted.
    fn accepted() -> [(&'static str, Verifier, CertificateDer<'static>); 5] {
        let authority = kept::AUTHORITY_PEM;
        let (ed25519, own_root) = (kept::ed25519().pem, kept::own_root_version_1().pem);
        [
            ("by webpki", kept::rsa().pem.as_str(), authority),
            ("by webpki, with RSA-PSS", &kept::rsa_pss().pem, authority),
            ("of version 1", &kept::version_1().pem, authority),
            ("itself a root", &ed25519, &ed25519),
            ("itself a root, of version 1", &own_root, &own_root),
        ]
        .map(|(name, leaf, root)| {
            let [leaf, root] =
                [leaf, root].map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
            let provider = Arc::new(ring::default_provider());
            (name, Verifier::roots(&provider, vec![root], CheckNames::No).unwrap(), leaf)
        })
    }

    fn accepts(verifier: &Verifier, leaf: &[u8]) -> bool {
        let host = ServerName::try_from("db.example").unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        verifier.verify_server_cert(&leaf.into(), &[], &host, &[], now).is_ok()
    }

    #[test]
    fn a_certificate_of_which_any_byte_is_changed_is_refused() {
        for (name, verifier, leaf) in accepted() {
            assert!(accepts(&verifier, &leaf), "{name}");
            let mut changed = leaf.to_vec();
            for at in 0..changed.len() {
                for change in [0x01, 0x80, 0xff] {
                    changed[at] ^= change;
                    assert!(!accepts(&verifier, &changed), "{name}, byte {at} by {change:#x}");
                    changed[at] ^= change;
                }
            }
        }
    }

    #[test]
    fn a_certificate_that_is_cut_or_has_more_to_it_is_refused() {
        for (name, verifier, leaf) in accepted() {
            for end in 0..leaf.len() {
                assert!(!accepts(&verifier, &leaf[..end]), "{name}, up to {end}");
            }
            assert!(!accepts(&verifier, &[&leaf, b"\x05\x00".as_slice()].concat()), "{name}");
            assert!(!accepts(&verifier, &with_one_more_part(&leaf)), "{name}");
        }
    }

    /// Another value behind the signature, inside the certificate.
    fn with_one_more_part(certificate: &[u8]) -> Vec<u8> {
        let [0x30, 0x82, a, b, parts @ ..] = certificate else { panic!("{certificate:x?}") };
        let length = u16::from_be_bytes([*a, *b]) + 2;
        [b"\x30\x82", length.to_be_bytes().as_slice(), parts, b"\x05\x00"].concat()
    }

    #[test]
    fn a_common_name_does_not_get_round_what_an_authority_is_for() {
        let only = |domain: &'static str| {
            Authority::spoiled("of one domain", |params| {
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_owned())],
                    excluded_subtrees: Vec::new(),
                });
            })
        };
        let common = |authority: &Authority| {
            authority.issue(&[], |params| params.distinguished_name.push(DnType::CommonName, HOST))
        };
        let (any, other) = (Authority::new("of any domain"), only("other.org"));
        let example = only("example");
        for (name, authority, leaf, expected) in [
            ("any, by common name", &any, common(&any), true),
            ("other, by common name", &other, common(&other), false),
            ("other, by alternative name", &other, other.issue(&[HOST], |_| {}), false),
            ("its own, by alternative name", &example, example.issue(&[HOST], |_| {}), true),
        ] {
            let [root, leaf] = [authority.pem(), &leaf.pem]
                .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
            let provider = ring::default_provider();
            let verifier = Verifier::roots(&provider, vec![root], CheckNames::Yes).unwrap();
            assert_eq!(accepts(&verifier, &leaf), expected, "{name}");
        }
    }

    #[test]
    fn a_star_stands_for_one_label() {
        for (pattern, host, matches) in [
            ("db.example", "DB.example", true),
            ("*.example", "db.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*", "db", false),
            ("*.", "db.", false),
            ("d*.example", "db.example", false),
            ("db.example\0.evil", "db.example", false),
        ] {
            assert_eq!(is_for(pattern.as_bytes(), host), matches, "{pattern} {host}");
        }
    }
}
