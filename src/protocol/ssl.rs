//! The answer to an `SSLRequest`.

use super::ProtocolError;

/// What a server says to an `SSLRequest`, in one byte.
///
/// Read exactly that byte: what comes behind it belongs to the encrypted stream, and whoever put
/// bytes there in clear is an attacker (CVE-2021-23222).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslReply {
    /// TLS begins now.
    Accepted,
    /// The connection goes on in clear, if the client wants that.
    Refused,
}

impl SslReply {
    /// Understands the byte.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::BadSslReply`] for anything else. An `E` begins an error message, whose text is
    /// not to be read: nobody vouches for it (CVE-2024-10977).
    pub fn decode(byte: u8) -> Result<Self, ProtocolError> {
        match byte {
            b'S' => Ok(Self::Accepted),
            b'N' => Ok(Self::Refused),
            _ => Err(ProtocolError::BadSslReply { byte }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_answers_are_understood_and_an_error_is_not_read() {
        assert_eq!(SslReply::decode(b'S'), Ok(SslReply::Accepted));
        assert_eq!(SslReply::decode(b'N'), Ok(SslReply::Refused));
        for byte in (0..=u8::MAX).filter(|byte| !b"SN".contains(byte)) {
            assert_eq!(SslReply::decode(byte), Err(ProtocolError::BadSslReply { byte }));
        }
    }
}
