//! Reads decisions from the fuzzer's bytes.

/// Bytes that are read from the front. Past their end there are zeros and nothing, so that every
/// input means something.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>().map_or(0, u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        self.array().map_or(0, u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.array().map_or(0, u32::from_be_bytes)
    }

    /// Bytes behind their length, of which the fuzzer may announce more than there are.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.u16()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    /// Text behind its length, where what is not UTF-8 is replaced.
    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = match self.0.split_first_chunk() {
            Some((array, rest)) => (Some(*array), rest),
            None => (None, &[][..]),
        };
        self.0 = rest;
        array
    }
}
