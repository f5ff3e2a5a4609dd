use pglock::protocol::tls_server_end_point;

use super::input::Input;

/// Signature algorithms, and how many bytes the hash has that a login is then bound to: SHA-256 stands
/// in for MD5 and SHA-1.
const SIGNATURES: &[(&str, usize)] = &[
    ("1.2.840.113549.1.1.4", 32),
    ("1.2.840.113549.1.1.5", 32),
    ("1.2.840.113549.1.1.11", 32),
    ("1.2.840.113549.1.1.12", 48),
    ("1.2.840.113549.1.1.13", 64),
    ("1.2.840.113549.1.1.14", 28),
    ("1.2.840.10045.4.1", 32),
    ("1.2.840.10045.4.3.1", 28),
    ("1.2.840.10045.4.3.2", 32),
    ("1.2.840.10045.4.3.3", 48),
    ("1.2.840.10045.4.3.4", 64),
];

/// The same for hashes, which RSASSA-PSS names in its parameters.
const HASHES: &[(&str, usize)] = &[
    ("1.2.840.113549.2.5", 32),
    ("1.3.14.3.2.26", 32),
    ("2.16.840.1.101.3.4.2.1", 32),
    ("2.16.840.1.101.3.4.2.2", 48),
    ("2.16.840.1.101.3.4.2.3", 64),
    ("2.16.840.1.101.3.4.2.4", 28),
];

const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";

const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const CONTEXT_0: u8 = 0xa0;

/// The hash of a server's certificate: of what begins like one, as it is; otherwise of one that is
/// written from its parts, of which it is known what has to be found in it.
pub fn certificate(data: &[u8]) {
    check(data);
    if !data.starts_with(&[SEQUENCE]) {
        let (certificate, hash_bytes) = written(&mut Input::new(data));
        check(&certificate);
        assert_eq!(tls_server_end_point(&certificate).map(|hash| hash.len()), hash_bytes);
    }
}

/// A plain reading of the RFCs agrees on whether it is one certificate, and the hash is one of its
/// bytes, all of them and no others.
fn check(data: &[u8]) {
    let hash = tls_server_end_point(data);
    assert_eq!(hash.as_ref().map(Vec::len), hash_bytes(data));
    assert_eq!(hash, tls_server_end_point(data));
    let Some(hash) = hash else { return };

    let surrounded = [b"\x30\x82", data, b"\x03\x00"].concat();
    let inside = surrounded.get(2..).and_then(|rest| rest.get(..data.len())).unwrap_or_default();
    assert_eq!(tls_server_end_point(inside), Some(hash.clone()));

    for end in 0..data.len() {
        let cut = data.get(..end).unwrap_or_default();
        assert_eq!(tls_server_end_point(cut), None, "up to {end}");
    }
    assert_eq!(tls_server_end_point(data.get(1..).unwrap_or_default()), None, "without its tag");
    assert_eq!(tls_server_end_point(&[data, b"\0"].concat()), None, "with one byte more");

    // Every byte matters. The hash says which one is tried, so that it is not always the same.
    let [a, b, ..] = *hash else { return };
    let at = usize::from(u16::from_be_bytes([a, b])) % data.len();
    let mut changed = data.to_vec();
    if let Some(byte) = changed.get_mut(at) {
        *byte ^= 1;
    }
    assert_ne!(tls_server_end_point(&changed), Some(hash), "byte {at} does not matter");
}

/// How long the hash has to be, if these bytes are a certificate that has one.
fn hash_bytes(certificate: &[u8]) -> Option<usize> {
    let (SEQUENCE, parts, []) = split(certificate)? else { return None };
    let (SEQUENCE, _, parts) = split(parts)? else { return None };
    let (SEQUENCE, algorithm, parts) = split(parts)? else { return None };
    let (BIT_STRING, _, []) = split(parts)? else { return None };
    algorithm_hash_bytes(algorithm)
}

fn algorithm_hash_bytes(algorithm: &[u8]) -> Option<usize> {
    let (OBJECT_IDENTIFIER, signature, parameters) = split(algorithm)? else { return None };
    if signature != identifier(RSASSA_PSS) {
        return find(SIGNATURES, signature);
    }
    let (SEQUENCE, parameters, _) = split(parameters)? else { return None };
    if !parameters.starts_with(&[CONTEXT_0]) {
        return find(HASHES, &identifier("1.3.14.3.2.26"));
    }
    let (_, algorithm, _) = split(parameters)?;
    let (SEQUENCE, algorithm, _) = split(algorithm)? else { return None };
    let (OBJECT_IDENTIFIER, hash, _) = split(algorithm)? else { return None };
    find(HASHES, hash)
}

/// The first value's tag and content, and what follows it.
fn split(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, length, rest) = match *der {
        [tag, length @ ..=0x7f, ref rest @ ..] => (tag, length.into(), rest),
        [tag, 0x81, a, ref rest @ ..] => (tag, u32::from(a), rest),
        [tag, 0x82, a, b, ref rest @ ..] => (tag, u32::from_be_bytes([0, 0, a, b]), rest),
        [tag, 0x83, a, b, c, ref rest @ ..] => (tag, u32::from_be_bytes([0, a, b, c]), rest),
        [tag, 0x84, a, b, c, d, ref rest @ ..] => (tag, u32::from_be_bytes([a, b, c, d]), rest),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((tag, content, rest))
}

fn find(known: &[(&str, usize)], bytes: &[u8]) -> Option<usize> {
    known.iter().find(|(name, _)| identifier(name) == bytes).map(|(_, hash_bytes)| *hash_bytes)
}

/// Writes a certificate, and says how long its hash has to be.
fn written(input: &mut Input<'_>) -> (Vec<u8>, Option<usize>) {
    let length_bytes = input.u8();
    let value = |tag, parts: &[&[u8]]| value(tag, &parts.concat(), length_bytes);
    let named = |name| value(OBJECT_IDENTIFIER, &[&identifier(name)]);

    let (algorithm, hash_bytes) = match input.u8() % 4 {
        0 => {
            let (name, hash_bytes) = choose(SIGNATURES, input.u8());
            ([named(name), input.bytes().to_vec()].concat(), hash_bytes)
        }
        1 => {
            let (name, hash_bytes) = choose(HASHES, input.u8());
            let hash = value(SEQUENCE, &[&named(name), input.bytes()]);
            let parameters = value(SEQUENCE, &[&value(CONTEXT_0, &[&hash]), input.bytes()]);
            ([named(RSASSA_PSS), parameters].concat(), hash_bytes)
        }
        2 => ([named(RSASSA_PSS), value(SEQUENCE, &[])].concat(), Some(32)),
        _ => {
            let algorithm = [&value(OBJECT_IDENTIFIER, &[input.bytes()]), input.bytes()].concat();
            let hash_bytes = algorithm_hash_bytes(&algorithm);
            (algorithm, hash_bytes)
        }
    };
    let signed = value(SEQUENCE, &[input.bytes()]);
    let algorithm = value(SEQUENCE, &[&algorithm]);
    let signature = value(BIT_STRING, &[input.bytes()]);
    (value(SEQUENCE, &[&signed, &algorithm, &signature]), hash_bytes)
}

fn choose(known: &[(&'static str, usize)], choice: u8) -> (&'static str, Option<usize>) {
    let chosen = known.iter().cycle().nth(choice.into());
    chosen.map_or((RSASSA_PSS, None), |(name, hash_bytes)| (*name, Some(*hash_bytes)))
}

/// A value whose length takes at least so many bytes behind their number, of up to 4.
fn value(tag: u8, content: &[u8], length_bytes: u8) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes();
    let needed = match length {
        [0, 0, 0, ..=0x7f] => 0,
        [0, 0, 0, _] => 1,
        [0, 0, ..] => 2,
        [0, ..] => 3,
        _ => 4,
    };
    let written = needed.max(length_bytes % 5);
    let short = length.last().copied().unwrap_or_default();
    let first = if written == 0 { short } else { 0x80 | written };
    let unwritten = length.len() - usize::from(written);
    [&[tag, first], length.get(unwritten..).unwrap_or_default(), content].concat()
}

/// The bytes of an object identifier: the first two numbers in one, and each other in as many groups of
/// seven bits as it needs, all but the last marked.
fn identifier(name: &str) -> Vec<u8> {
    let mut numbers = name.split('.').map(|number| number.parse().unwrap_or(0_u32));
    let first = numbers.next().unwrap_or(0) * 40 + numbers.next().unwrap_or(0);
    std::iter::once(first).chain(numbers).flat_map(groups).collect()
}

fn groups(number: u32) -> impl Iterator<Item = u8> {
    let needed = (1..5).find(|groups| number >> (groups * 7) == 0).unwrap_or(5);
    (0..needed).rev().map(move |group| {
        let bits = u8::try_from((number >> (group * 7)) & 0x7f).unwrap_or(0);
        if group == 0 { bits } else { bits | 0x80 }
    })
}
