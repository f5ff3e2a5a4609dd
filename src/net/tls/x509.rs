//! What has to be read from a certificate that webpki does not take.
//!
//! Only that: version 1 certificates and certificates that are their own root are common on database
//! servers, and refused by webpki before it looks at anything else.

use crate::der::Reader;

/// The parts of a certificate.
pub(super) struct Certificate<'a> {
    /// What the issuer signed, with its header.
    pub(super) signed: &'a [u8],
    /// 0 for version 1, 2 for version 3.
    pub(super) version: u8,
    /// The issuer's name, without its header.
    pub(super) issuer: &'a [u8],
    /// The name of the key's owner, without its header.
    pub(super) subject: &'a [u8],
    /// Whether the owner may sign certificates, by a basic constraint.
    pub(super) is_authority: bool,
    /// Whether the owner may sign certificates for some names only.
    pub(super) is_constrained: bool,
    /// Whether the key may be a server's, by an extended key usage or for want of one.
    pub(super) is_for_servers: bool,
    /// Seconds since 1970, both ends included.
    pub(super) validity: (u64, u64),
    pub(super) key: PublicKey<'a>,
    /// The algorithm of the issuer's signature, without its header.
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    pub(super) names: Names<'a>,
}

/// A key and what it is for.
pub(super) struct PublicKey<'a> {
    /// Without its header, as webpki compares it.
    pub(super) algorithm: &'a [u8],
    pub(super) bits: &'a [u8],
}

/// What a certificate says it is for.
#[derive(Default)]
pub(super) struct Names<'a> {
    pub(super) dns: Vec<&'a [u8]>,
    pub(super) addresses: Vec<&'a [u8]>,
    /// The subject's common name, which counts only where there is no other name.
    pub(super) common: Option<&'a [u8]>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// Versions are counted from 0.
const VERSION_3: u8 = 2;

const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const ANY_EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

impl<'a> Certificate<'a> {
    /// Reads a certificate; `None` if it is not one.
    pub(super) fn read(der: &'a [u8]) -> Option<Self> {
        let mut certificate = Reader(Reader(der).only(SEQUENCE)?);
        let signed = certificate.whole(SEQUENCE)?;
        let signature_algorithm = certificate.value(SEQUENCE)?;
        let signature = bits(certificate.only(BIT_STRING)?)?;

        let mut fields = Reader(Reader(signed).only(SEQUENCE)?);
        let version = match fields.optional(VERSION) {
            Some(version) => *Reader(version).only(INTEGER)?.first()?,
            None => 0,
        };
        fields.value(INTEGER)?;
        fields.value(SEQUENCE)?;
        let issuer = fields.value(SEQUENCE)?;
        let mut validity = Reader(fields.value(SEQUENCE)?);
        let validity = (time(&mut validity)?, time(&mut validity)?);
        let subject = fields.value(SEQUENCE)?;
        let mut key = Reader(fields.value(SEQUENCE)?);
        let key =
            PublicKey { algorithm: key.value(SEQUENCE)?, bits: bits(key.value(BIT_STRING)?)? };

        let mut certificate = Self {
            signed,
            version,
            issuer,
            subject,
            // Before version 3, there was no way to say who is one: a root is.
            is_authority: version < VERSION_3 && issuer == subject,
            is_constrained: false,
            is_for_servers: true,
            validity,
            key,
            signature_algorithm,
            signature,
            names: Names { common: common_name(subject), ..Names::default() },
        };
        while let Some((tag, value, _)) = fields.next() {
            if tag == EXTENSIONS {
                certificate.read_extensions(Reader(value).only(SEQUENCE)?)?;
            }
        }
        Some(certificate)
    }

    fn read_extensions(&mut self, extensions: &'a [u8]) -> Option<()> {
        let mut extensions = Reader(extensions);
        while !extensions.0.is_empty() {
            let mut extension = Reader(extensions.value(SEQUENCE)?);
            let kind = extension.value(OBJECT_IDENTIFIER)?;
            // Those that are read are understood: it does not matter whether they are critical.
            extension.optional(BOOLEAN);
            let value = Reader(extension.value(OCTET_STRING)?);
            match kind {
                SUBJECT_ALT_NAME => self.names.read(value.only(SEQUENCE)?)?,
                EXTENDED_KEY_USAGE => {
                    self.is_for_servers = includes_servers(Reader(value.only(SEQUENCE)?))?;
                }
                BASIC_CONSTRAINTS => {
                    let mut constraints = Reader(value.only(SEQUENCE)?);
                    self.is_authority = constraints.optional(BOOLEAN) == Some(&[0xff]);
                }
                NAME_CONSTRAINTS => self.is_constrained = true,
                _ => {}
            }
        }
        Some(())
    }
}

/// Whether one of the usages is a server's.
fn includes_servers(mut usages: Reader<'_>) -> Option<bool> {
    let mut found = false;
    while !usages.0.is_empty() {
        found |= matches!(usages.value(OBJECT_IDENTIFIER)?, SERVER_AUTH | ANY_EXTENDED_KEY_USAGE);
    }
    Some(found)
}

impl<'a> Names<'a> {
    fn read(&mut self, names: &'a [u8]) -> Option<()> {
        let mut names = Reader(names);
        while !names.0.is_empty() {
            match names.next()? {
                (DNS_NAME, name, _) => self.dns.push(name),
                (IP_ADDRESS, address, _) => self.addresses.push(address),
                _ => {}
            }
        }
        Some(())
    }
}

/// The first common name of a subject.
fn common_name(subject: &[u8]) -> Option<&[u8]> {
    let mut parts = Reader(subject);
    while let Some(part) = parts.optional(SET) {
        let mut attributes = Reader(part);
        while let Some(attribute) = attributes.optional(SEQUENCE) {
            let mut attribute = Reader(attribute);
            if attribute.optional(OBJECT_IDENTIFIER) == Some(COMMON_NAME) {
                return attribute.next().map(|(_, name, _)| name);
            }
        }
    }
    None
}

/// The bits of a bit string that has whole bytes.
fn bits(value: &[u8]) -> Option<&[u8]> {
    match value.split_first()? {
        (0, bits) => Some(bits),
        _ => None,
    }
}

/// A time, in seconds since 1970.
fn time(fields: &mut Reader<'_>) -> Option<u64> {
    let (tag, text, _) = fields.next()?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits(text, 2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => digits(text, 4)?,
        _ => return None,
    };
    let (month, rest) = digits(rest, 2)?;
    let (day, rest) = digits(rest, 2)?;
    let (hour, rest) = digits(rest, 2)?;
    let (minute, rest) = digits(rest, 2)?;
    let (second, rest) = digits(rest, 2)?;
    if rest != b"Z" || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = days_since_1970(year, month, day)? * 86_400 + hour * 3_600 + minute * 60;
    Some(seconds + second)
}

fn digits(text: &[u8], count: usize) -> Option<(u64, &[u8])> {
    let (digits, rest) = text.split_at_checked(count)?;
    let number = std::str::from_utf8(digits).ok()?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((number.parse().ok()?, rest))
}

/// Days from 1970 to a date of the Gregorian calendar; `None` before.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years begin with March, so that the leap day is a year's last.
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let month = (month + 9) % 12;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    days.checked_sub(719_469)
}

#[cfg(test)]
mod tests {
    use pglock_test_cluster::kept;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    /// One of version 1, and one of version 3 with alternative names.
    fn certificates() -> [CertificateDer<'static>; 2] {
        [kept::version_1(), kept::rsa()]
            .map(|kept| CertificateDer::from_pem_slice(kept.pem.as_bytes()).unwrap())
    }

    #[test]
    fn what_is_read_is_what_the_certificate_says() {
        let [old, new] = certificates();
        let (old, new) = (Certificate::read(&old).unwrap(), Certificate::read(&new).unwrap());
        assert_eq!((old.version, new.version), (0, 2));
        assert_eq!((old.issuer, old.subject), (new.issuer, new.subject));
        assert!(!old.is_authority && !new.is_authority);
        // From 2020 to the first second of 2120.
        assert_eq!((old.validity, new.validity), ((1_577_836_800, 4_733_510_400), old.validity));
        assert_eq!(old.signature_algorithm, new.signature_algorithm);
        assert_eq!((old.signature.len(), new.signature.len()), (256, 256));
        assert_eq!(old.names.common, Some(&b"db.example"[..]));
        assert_eq!((old.names.dns.len(), new.names.dns), (0, vec![&b"db.example"[..]]));
    }

    #[test]
    fn no_part_of_a_certificate_and_nothing_more_than_one_is_read() {
        for certificate in certificates() {
            for end in 0..certificate.len() {
                assert!(Certificate::read(&certificate[..end]).is_none(), "up to {end}");
            }
            let longer = [&certificate, b"\0".as_slice()].concat();
            assert!(Certificate::read(&longer).is_none());
        }
    }

    #[test]
    fn whichever_bit_is_changed_nothing_panics() {
        for certificate in certificates() {
            let mut changed = certificate.to_vec();
            for at in 0..changed.len() {
                for change in (0..8).map(|bit| 1 << bit) {
                    changed[at] ^= change;
                    let _ = Certificate::read(&changed);
                    changed[at] ^= change;
                }
            }
        }
    }

    #[test]
    fn dates_are_counted_from_1970() {
        assert_eq!(days_since_1970(1970, 1, 1), Some(0));
        assert_eq!(days_since_1970(1969, 12, 31), None);
        assert_eq!(days_since_1970(2000, 3, 1), Some(11_017));
        assert_eq!(days_since_1970(2026, 11, 23), Some(20_780));
    }

    #[test]
    fn times_have_two_forms() {
        assert_eq!(time(&mut Reader(b"\x17\x0d700101000001Z")), Some(1));
        assert_eq!(time(&mut Reader(b"\x18\x0f20000301000000Z")), Some(11_017 * 86_400));
        assert_eq!(time(&mut Reader(b"\x17\x0d700101000001+")), None);
        assert_eq!(time(&mut Reader(b"\x17\x0d7001010000+1Z")), None);
    }
}
