//! The answer to `AuthenticationMD5Password`.
//!
//! MD5 is broken as a hash, what the server stores is as good as the password to whoever steals
//! it, and PostgreSQL has deprecated the method. It is here for servers that still ask for it.

use md5::{Digest, Md5};
use zeroize::Zeroizing;

/// Computes what `PasswordMessage` carries: `md5`, then
/// `hex(md5(hex(md5(password ‖ user)) ‖ salt))`.
///
/// # Examples
///
/// ```
/// use pglock::protocol::md5_password;
///
/// let answer = md5_password("alice", "pencil", [0x93, 0x1c, 0x00, 0xa7]);
/// assert_eq!(answer, "md5a7e0132e05907410e7d8828f50df53ce");
/// ```
#[must_use]
pub fn md5_password(user: &str, password: &str, salt: [u8; 4]) -> String {
    // As good as the password, to a server that asks for this.
    let stored = Zeroizing::new(hex("", &digest([password.as_bytes(), user.as_bytes()])));
    hex("md5", &digest([stored.as_bytes(), &salt]))
}

/// Hashes the two without moving what has absorbed them: that would leave copies behind.
fn digest(texts: [&[u8]; 2]) -> [u8; 16] {
    let mut hash = Md5::new();
    for text in texts {
        hash.update(text);
    }
    hash.finalize_reset().into()
}

fn hex(prefix: &str, bytes: &[u8]) -> String {
    // Room for all of it: a text that grew would leave pieces behind.
    let mut text = String::with_capacity(prefix.len() + 2 * bytes.len());
    text.push_str(prefix);
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]);
    text.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed apart from this code, with Python's `hashlib`.
    #[test]
    fn known_answers() {
        for (user, password, salt, answer) in [
            ("postgres", "secret", [1, 2, 3, 4], "md5bb41a296aab6baccb36ff243a562abff"),
            ("", "", [0, 0, 0, 0], "md591b86670dcd47857d222fa05653500aa"),
            ("zoë", "naïve pässword", [255, 0, 128, 10], "md5702b9e4da8071700611da3e0fb4a9162"),
        ] {
            assert_eq!(md5_password(user, password, salt), answer);
        }
    }
}
