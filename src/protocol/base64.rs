//! Base64 as SCRAM's messages have it: RFC 4648, section 4, with padding and without line breaks.

pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |place| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            text.push(if place <= group.len() { digit(bits >> (18 - 6 * place)) } else { '=' });
        }
    }
    text
}

/// The bytes that are encoded as this very text. Some decoders take other texts for the same bytes.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0, 0);
    for digit in text.bytes().filter(|&byte| byte != b'=') {
        bits = bits << 6 | value(digit)?;
        count += 6;
        if count >= 8 {
            count -= 8;
            let [.., byte] = (bits >> count).to_be_bytes();
            bytes.push(byte);
        }
    }
    (encode(&bytes) == text).then_some(bytes)
}

/// The digit for the lowest six bits.
fn digit(bits: u32) -> char {
    let [.., value] = (bits & 63).to_be_bytes();
    char::from(match value {
        0..26 => b'A' + value,
        26..52 => b'a' + (value - 26),
        52..62 => b'0' + (value - 52),
        62 => b'+',
        _ => b'/',
    })
}

fn value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use ::base64::Engine;
    use ::base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn bytes_are_encoded_as_another_encoder_encodes_them() {
        let mut bytes = Vec::new();
        for next in (0..=u8::MAX).chain((0..=u8::MAX).rev()) {
            let text = encode(&bytes);
            assert_eq!(text, STANDARD.encode(&bytes));
            assert_eq!(decode(&text).as_deref(), Some(bytes.as_slice()));
            bytes.push(next.wrapping_mul(151));
        }
    }

    #[test]
    fn texts_are_decoded_as_another_decoder_decodes_them() {
        let alphabet = b"A4Q/+z9=-_ \n\xff";
        let mut state = 1_u32;
        let mut random = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            usize::try_from(state >> 16).unwrap() % below
        };
        let mut accepted = 0;
        for _ in 0..100_000 {
            let length = random(9);
            let narrow = if random(2) == 0 { 8 } else { alphabet.len() };
            let text: String = (0..length).map(|_| char::from(alphabet[random(narrow)])).collect();
            let decoded = decode(&text);
            accepted += usize::from(decoded.is_some());
            assert_eq!(decoded, STANDARD.decode(&text).ok(), "{text:?}");
        }
        assert!(accepted > 1_000, "{accepted} of these texts are base64");
    }
}
