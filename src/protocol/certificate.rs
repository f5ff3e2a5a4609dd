//! The hash of a server's certificate that a login can be bound to: `tls-server-end-point`, RFC 5929.
//!
//! The certificate is hashed with the digest of its own signature, so that signature's algorithm has
//! to be found in it. That is all that is read here: whether the certificate is to be trusted is a
//! question for the TLS library, and was answered before.
//!
//! ```text
//! Certificate         ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signature }
//! signatureAlgorithm  ::= SEQUENCE { OBJECT IDENTIFIER, parameters }
//! RSASSA-PSS's parameters ::= SEQUENCE { [0] SEQUENCE { OBJECT IDENTIFIER, … } DEFAULT sha1, … }
//! ```

use ring::digest::{SHA384, SHA512, digest};
use sha2::{Digest, Sha224, Sha256};

use crate::der::Reader;

/// The hash that a login over TLS is bound to, of the server's own certificate in DER.
///
/// The digest is that of the certificate's signature, where MD5 and SHA-1 give way to SHA-256, as
/// RFC 5929 asks. The server computes the same of the certificate that it knows it has sent, so a
/// login that somebody relays fails.
///
/// `None` if there is nothing to bind to: the signature has no digest of its own (Ed25519, Ed448) or
/// one that is not known here, or the bytes are not one certificate.
///
/// # Examples
///
/// ```
/// use pglock::protocol::tls_server_end_point;
///
/// assert_eq!(tls_server_end_point(b"not a certificate"), None);
/// ```
#[must_use]
pub fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_digest(certificate)? {
        // RFC 5929, section 4.1: "If the certificate's signatureAlgorithm uses a single hash function,
        // and that hash function is either MD5 or SHA-1, then use SHA-256".
        Hash::Md5 | Hash::Sha1 | Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha384 => digest(&SHA384, certificate).as_ref().to_vec(),
        Hash::Sha512 => digest(&SHA512, certificate).as_ref().to_vec(),
    })
}

#[derive(Clone, Copy)]
enum Hash {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn signature_digest(certificate: &[u8]) -> Option<Hash> {
    let mut certificate = Reader(Reader(certificate).only(SEQUENCE)?);
    certificate.value(SEQUENCE)?;
    let mut algorithm = Reader(certificate.value(SEQUENCE)?);
    certificate.only(BIT_STRING)?;

    let identifier = algorithm.value(OBJECT_IDENTIFIER)?;
    if identifier == RSASSA_PSS {
        return pss_digest(Reader(algorithm.value(SEQUENCE)?));
    }
    find(SIGNATURES, identifier)
}

/// RSASSA-PSS works with any hash, and names it in its parameters (RFC 4055, section 3.1).
fn pss_digest(mut parameters: Reader<'_>) -> Option<Hash> {
    if !parameters.begins_with(CONTEXT_0) {
        return Some(Hash::Sha1);
    }
    let mut algorithm = Reader(Reader(parameters.value(CONTEXT_0)?).value(SEQUENCE)?);
    find(HASHES, algorithm.value(OBJECT_IDENTIFIER)?)
}

fn find(known: &[(&[u8], Hash)], identifier: &[u8]) -> Option<Hash> {
    known.iter().find(|(bytes, _)| *bytes == identifier).map(|(_, hash)| *hash)
}

const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const CONTEXT_0: u8 = 0xa0;

/// 1.2.840.113549.1.1.10
const RSASSA_PSS: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";

/// Algorithms whose identifier says with which hash they sign.
const SIGNATURES: &[(&[u8], Hash)] = &[
    // 1.2.840.113549.1.1.*: with RSA, PKCS #1 v1.5.
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", Hash::Md5),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", Hash::Sha1),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", Hash::Sha256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", Hash::Sha384),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", Hash::Sha512),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e", Hash::Sha224),
    // 1.2.840.10045.4.*: with ECDSA.
    (b"\x2a\x86\x48\xce\x3d\x04\x01", Hash::Sha1),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x01", Hash::Sha224),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", Hash::Sha256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", Hash::Sha384),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x04", Hash::Sha512),
];

/// Hashes by themselves, as the parameters of RSASSA-PSS name them.
const HASHES: &[(&[u8], Hash)] = &[
    // 1.2.840.113549.2.5 and 1.3.14.3.2.26
    (b"\x2a\x86\x48\x86\xf7\x0d\x02\x05", Hash::Md5),
    (b"\x2b\x0e\x03\x02\x1a", Hash::Sha1),
    // 2.16.840.1.101.3.4.2.*
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x01", Hash::Sha256),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x02", Hash::Sha384),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x03", Hash::Sha512),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x04", Hash::Sha224),
];

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! certificate {
        ($name:literal) => {
            ($name, include_bytes!(concat!("certificates/", $name, ".der")).as_slice())
        };
    }

    type Certificate = (&'static str, &'static [u8]);

    /// Made with `openssl req -x509`, hashed with `openssl dgst`.
    const BOUND: &[(Certificate, &str)] = &[
        (
            certificate!("rsa-md5"),
            "e85f0041bed4c7b6cb0ebbfb0db5dfccfca465b7c834392911c41740ed32baa3",
        ),
        (
            certificate!("rsa-sha1"),
            "e8b29a2b25d7cf07c6ed833c3ff2a15590c3ef0f7b12c3520c10800f62b9ed02",
        ),
        (certificate!("rsa-sha224"), "83ba013c2f6f9a35fa84d77089b2b50485eba6aad95e86f89b221734"),
        (
            certificate!("rsa-sha256"),
            "94fda7f715b6152295599bb44b2fc2a3187cf88eb0163b47068be2e767d12f58",
        ),
        (
            certificate!("rsa-sha384"),
            "283178ccc373954c4bb3554808cdc264fd3e75ce11be01ba7e04c97816be5cfe\
             46d90a7c63828f5bffdc1ed06012602d",
        ),
        (
            certificate!("rsa-sha512"),
            "97b53301f696fec0982528702304a838c24236093b9b982a47b61ec74e94f5db\
             e40c407b0941f54100b5425dd0d152207bcc7d4c8d4513354406dc2d3f856e99",
        ),
        (
            certificate!("rsa-pss-sha1"),
            "8efeff6e7909bae5c7df7880a88adc21652bfedee61a313f172a80485bacf429",
        ),
        (
            certificate!("rsa-pss-sha256"),
            "0a3472e4b7f3c4c66c9b1ebec38e5a207b4c2e6497273fd8e47ee9d79bda0667",
        ),
        (
            certificate!("rsa-pss-sha384"),
            "7b5305778133fae542dbb62dcb579d3f7b9aa0968b4b6b31c91f2a2c8fd824d7\
             c5ab557530ebab8f3cb1874fa3689e36",
        ),
        (
            certificate!("ecdsa-p256-sha1"),
            "628bc3f26db73f44be26fa981bbaafd073ba9f96bef7f0ce850954ace0720367",
        ),
        (
            certificate!("ecdsa-p256-sha256"),
            "c3cff1aac308340e2b59cd826cc5072f9aab4234b8060d3653819395d2f9b672",
        ),
        (
            certificate!("ecdsa-p384-sha384"),
            "7c2e61a43092b9d949d94a98a787e11894fa0ee02bdbf728401e9f68fefc7144\
             70b36b99afcbaca511c389ce4a76bb53",
        ),
        (
            certificate!("ecdsa-p521-sha512"),
            "12ba09494d938db8551fcc51eb43fad312749260ecdcd3c235d2761506d84b26\
             173a5249759e999d932687aadc3939710253343dbda48731d57b9b10bf4c8c95",
        ),
        (
            certificate!("version-1"),
            "afaf035713ff33ba0423c48cbd3598aefec9688ea10ebc751411e5fe02ac7c9b",
        ),
    ];

    /// Signed without a digest of their own.
    const UNBOUND: &[Certificate] = &[certificate!("ed25519"), certificate!("ed448")];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }

    #[test]
    fn certificates_are_hashed_with_the_digest_of_their_signature() {
        for ((name, certificate), hash) in BOUND {
            let computed = tls_server_end_point(certificate).map(|hash| hex(&hash));
            assert_eq!(computed.as_deref(), Some(*hash), "{name}");
        }
        for (name, certificate) in UNBOUND {
            assert_eq!(tls_server_end_point(certificate), None, "{name}");
        }
    }

    /// RFC 4055 demands the parameters of RSASSA-PSS in a signature, and any may be left out of them.
    #[test]
    fn the_hash_of_rsassa_pss_is_in_its_parameters() {
        let hash = |algorithm: &[u8]| {
            let algorithm = tagged(SEQUENCE, algorithm);
            let body = [tagged(SEQUENCE, b""), algorithm, tagged(BIT_STRING, b"\0")].concat();
            let certificate = tagged(SEQUENCE, &body);
            tls_server_end_point(&certificate).map(|hash| hash.len())
        };
        let pss = |parameters: &[u8]| hash(&[b"\x06\x09", RSASSA_PSS, parameters].concat());
        assert_eq!(pss(b""), None);
        assert_eq!(pss(b"\x05\x00"), None);
        assert_eq!(pss(b"\x30\x00"), Some(32));
        assert_eq!(pss(b"\x30\x02\xa1\x00"), Some(32));
        assert_eq!(pss(b"\x30\x02\xa0\x00"), None);
        assert_eq!(pss(b"\x30\x0b\xa0\x09\x30\x07\x06\x05\x2b\x0e\x03\x02\x1a"), Some(32));
        // id-sha3-256
        let sha3 = b"\x30\x0f\xa0\x0d\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x08";
        assert_eq!(pss(sha3), None);
        let sha512 = b"\x30\x0f\xa0\x0d\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03";
        assert_eq!(pss(sha512), Some(64));
    }

    fn tagged(tag: u8, value: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(value.len()).unwrap()], value].concat()
    }

    #[test]
    fn no_part_of_a_certificate_and_nothing_more_than_one_is_hashed() {
        for ((name, certificate), _) in BOUND {
            for end in 0..certificate.len() {
                assert_eq!(tls_server_end_point(&certificate[..end]), None, "{name} up to {end}");
            }
            let longer = [certificate, b"\0".as_slice()].concat();
            assert_eq!(tls_server_end_point(&longer), None, "{name} and one byte");
        }
    }

    #[test]
    fn a_certificate_has_three_parts_of_the_right_kind() {
        let name = tagged(OBJECT_IDENTIFIER, SIGNATURES[2].0);
        let [signed, algorithm] = [b"", name.as_slice()].map(|value| tagged(SEQUENCE, value));
        let signature = tagged(BIT_STRING, b"\0");
        let is_hashed =
            |parts: &[&[u8]]| tls_server_end_point(&tagged(SEQUENCE, &parts.concat())).is_some();
        assert!(is_hashed(&[&signed, &algorithm, &signature]));
        assert!(!is_hashed(&[&signed, &algorithm]));
        assert!(!is_hashed(&[&signed, &signature, &algorithm]));
        assert!(!is_hashed(&[&signature, &algorithm, &signature]));
        assert!(!is_hashed(&[&signed, &name, &signature]));
        assert!(!is_hashed(&[&signed, &algorithm, &signature, &signature]));
    }

    #[test]
    fn whatever_one_byte_is_changed_to_nothing_panics() {
        for ((_, certificate), _) in BOUND {
            let mut changed = certificate.to_vec();
            for at in 0..changed.len() {
                for change in 1..=u8::MAX {
                    changed[at] ^= change;
                    let _ = signature_digest(&changed);
                    changed[at] ^= change;
                }
            }
        }
    }
}
