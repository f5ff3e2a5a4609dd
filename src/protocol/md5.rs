//! The answer to `AuthenticationMD5Password`.
//!
//! MD5 is broken as a hash, what the server stores is as good as the password to whoever steals
//! it, and PostgreSQL has deprecated the method. It is here for servers that still ask for it.

use md5::{Digest, Md5};

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
    let stored = hex(&Md5::new().chain_update(password).chain_update(user).finalize());
    let answer = hex(&Md5::new().chain_update(stored).chain_update(salt).finalize());
    format!("md5{answer}")
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0x0f])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
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
