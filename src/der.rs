//! The encoding of certificates, as far as it is read here.

/// Reads DER values one after the other. Lengths are definite, and no longer than what is there.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The tag of the next value, its content, and all of it.
    pub(crate) fn next(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (length, rest) = length(rest)?;
        let (value, rest) = rest.split_at_checked(length)?;
        let whole = self.0.get(..self.0.len().checked_sub(rest.len())?)?;
        self.0 = rest;
        Some((tag, value, whole))
    }

    pub(crate) fn value(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, ..)| *found == tag).map(|(_, value, _)| value)
    }

    pub(crate) fn whole(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, ..)| *found == tag).map(|(.., whole)| whole)
    }

    pub(crate) fn begins_with(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The next value, if it has this tag; otherwise it stays the next.
    pub(crate) fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.begins_with(tag) { self.value(tag) } else { None }
    }

    /// The content of the one value that there is.
    pub(crate) fn only(mut self, tag: u8) -> Option<&'a [u8]> {
        let value = self.value(tag)?;
        self.0.is_empty().then_some(value)
    }
}

/// A length in one byte, or in up to four behind their number. The indefinite length of BER, which
/// has no bytes behind it, and lengths past 32 bits are none.
fn length(input: &[u8]) -> Option<(usize, &[u8])> {
    let (&first, rest) = input.split_first()?;
    if first < 0x80 {
        return Some((first.into(), rest));
    }
    let (bytes, rest) = rest.split_at_checked((first & 0x7f).into())?;
    if !(1..=4).contains(&bytes.len()) {
        return None;
    }
    let length = bytes.iter().fold(0_u32, |length, &byte| (length << 8) | u32::from(byte));
    Some((usize::try_from(length).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_definite_and_within_bounds() {
        assert!(Reader(b"\x30\x80\x00\x00").next().is_none());
        assert!(Reader(b"\x30\x02\x00").next().is_none());
        assert!(Reader(b"\x30\x84\xff\xff\xff\xff").next().is_none());
        assert!(Reader(b"\x30\x85\x00\x00\x00\x00\x00").next().is_none());
        assert_eq!(Reader(b"\x04\x81\x01a").only(0x04), Some(&b"a"[..]));
    }

    #[test]
    fn only_definite_lengths_of_at_most_32_bits_are_lengths() {
        for (bytes, expected) in [
            (b"".as_slice(), None),
            (b"\x00", Some(0)),
            (b"\x7f", Some(127)),
            (b"\x80", None),
            (b"\x81", None),
            (b"\x81\xff", Some(255)),
            (b"\x82\x01\x00", Some(256)),
            (b"\x84\xff\xff\xff\xff", usize::try_from(u32::MAX).ok()),
            (b"\x84\xff\xff\xff", None),
            (b"\x85\x00\x00\x00\x00\x01", None),
            (b"\xff", None),
        ] {
            assert_eq!(length(bytes).map(|(length, _)| length), expected, "{bytes:x?}");
        }
    }
}
