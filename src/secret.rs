//! Texts that are not to be left behind.

use std::fmt;
use std::ops::Deref;

use zeroize::Zeroizing;

/// A text that is overwritten in memory when it is dropped, and that no `Debug` shows.
///
/// It is made from a text that is complete: one that grows may leave pieces of itself behind.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Zeroizing<String>);

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}
