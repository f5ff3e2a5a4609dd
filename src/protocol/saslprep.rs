//! SASLprep, the canonical form of a password outside ASCII, as PostgreSQL computes it.
//!
//! A password typed on two machines may arrive as different bytes: an accented letter composed on
//! one and decomposed on the other. SCRAM hashes the password, so both sides first bring it to one
//! form. RFC 4013 defines that form as four steps: map, normalise to NFKC, refuse prohibited
//! characters, refuse mixed text directions.
//!
//! PostgreSQL means to follow it, and differs in ways that a client has to copy, because what
//! counts is the form that the server stored:
//!
//! - characters and directions are checked in the mapped text, *before* NFKC;
//! - a password that fails a check, or of which nothing is left, is used as it is, not refused;
//! - pure ASCII is used as it is, control characters included.
//!
//! All tables are those of Unicode 3.2, on which RFC 3454 is based: a character that is newer
//! counts as unassigned and fails the check.

use std::borrow::Cow;

use stringprep::tables;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

/// Brings a password to the form that PostgreSQL hashed when the password was set.
///
/// This cannot fail: a password that SASLprep would refuse is returned unchanged, because
/// PostgreSQL stored it unchanged.
///
/// # Examples
///
/// ```
/// use pglock::protocol::saslprep;
///
/// assert_eq!(saslprep("plain ASCII"), "plain ASCII");
/// assert_eq!(saslprep("caffe\u{300}"), "caff\u{e8}");
/// assert_eq!(saslprep("no\u{a0}break"), "no break");
/// assert_eq!(saslprep("\u{fb01}sh \u{1f41f}"), "\u{fb01}sh \u{1f41f}", "fish are newer than 3.2");
/// ```
#[must_use]
pub fn saslprep(password: &str) -> Cow<'_, str> {
    if password.is_ascii() {
        return Cow::Borrowed(password);
    }
    // No text in here grows beyond the room that it was given, so that none leaves pieces behind.
    let mut mapped = Zeroizing::new(String::with_capacity(password.len()));
    mapped.extend(password.chars().filter_map(map));
    if mapped.is_empty() || mapped.contains(is_refused) || mixes_directions(&mapped) {
        return Cow::Borrowed(password);
    }
    let mut prepared = String::with_capacity(mapped.nfkc().map(char::len_utf8).sum());
    prepared.extend(mapped.nfkc());
    Cow::Owned(prepared)
}

/// RFC 4013, section 2.1. U+200B is in both tables; PostgreSQL makes it a space.
fn map(c: char) -> Option<char> {
    if tables::non_ascii_space_character(c) {
        Some(' ')
    } else if tables::commonly_mapped_to_nothing(c) {
        None
    } else {
        Some(c)
    }
}

/// RFC 4013, sections 2.3 and 2.5: prohibited, or not assigned in Unicode 3.2.
fn is_refused(c: char) -> bool {
    tables::non_ascii_space_character(c)
        || tables::ascii_control_character(c)
        || tables::non_ascii_control_character(c)
        || tables::private_use(c)
        || tables::non_character_code_point(c)
        || tables::inappropriate_for_plain_text(c)
        || tables::inappropriate_for_canonical_representation(c)
        || tables::change_display_properties_or_deprecated(c)
        || tables::tagging_character(c)
        || tables::unassigned_code_point(c)
}

/// RFC 3454, section 6: text with a right-to-left character has no left-to-right one, and begins
/// and ends with a right-to-left character.
fn mixes_directions(text: &str) -> bool {
    text.contains(tables::bidi_r_or_al)
        && (text.contains(is_left_to_right)
            || !text.starts_with(tables::bidi_r_or_al)
            || !text.ends_with(tables::bidi_r_or_al))
}

/// RFC 3454, table D.2.
///
/// The crate answers from the newest Unicode instead, in which these characters have another
/// direction than in 3.2. For right-to-left characters there is no such difference.
fn is_left_to_right(c: char) -> bool {
    match c {
        '\u{0cbf}'
        | '\u{0cc6}'
        | '\u{1734}'
        | '\u{2132}'
        | '\u{2800}'..='\u{28ff}'
        | '\u{302e}'
        | '\u{302f}' => false,
        '\u{17b4}' | '\u{17b5}' | '\u{1885}' | '\u{1886}' | '\u{1d6c1}' | '\u{1d6db}'
        | '\u{1d6fb}' | '\u{1d715}' | '\u{1d735}' | '\u{1d74f}' | '\u{1d76f}' | '\u{1d789}'
        | '\u{1d7a9}' | '\u{1d7c3}' => true,
        _ => tables::bidi_l(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_is_left_alone() {
        for password in ["", "pencil", "tab\tand\u{7f}", " "] {
            assert!(matches!(saslprep(password), Cow::Borrowed(same) if same == password));
        }
    }

    #[test]
    fn rfc_4013_examples_outside_ascii() {
        assert_eq!(saslprep("I\u{ad}X"), "IX");
        assert_eq!(saslprep("\u{aa}"), "a");
        assert_eq!(saslprep("\u{2168}"), "IX");
    }

    #[test]
    fn spaces_are_mapped_before_what_maps_to_nothing() {
        assert_eq!(saslprep("a\u{a0}b\u{3000}c\u{200b}d"), "a b c d");
        assert_eq!(saslprep("a\u{200c}b\u{feff}c"), "abc");
    }

    #[test]
    fn what_is_refused_is_used_as_it_is() {
        // Each has a ligature as well, which would change if the text were normalised.
        for password in [
            "\u{fb01}\t",
            "\u{fb01}\u{80}",
            "\u{fb01}\u{e000}",
            "\u{fb01}\u{fdd0}",
            "\u{fb01}\u{fffd}",
            "\u{fb01}\u{2ff0}",
            "\u{fb01}\u{200e}",
            "\u{fb01}\u{e0001}",
            "\u{fb01}\u{221}",
            "\u{fb01}\u{1f600}",
        ] {
            assert_eq!(saslprep(password), password);
        }
    }

    #[test]
    fn a_password_of_which_nothing_is_left_is_used_as_it_is() {
        assert_eq!(saslprep("\u{ad}\u{200c}"), "\u{ad}\u{200c}");
    }

    #[test]
    fn right_to_left_text_stands_alone() {
        // U+FB21 is a wide alef; normalised, it is U+05D0.
        assert_eq!(saslprep("\u{fb21}"), "\u{5d0}");
        assert_eq!(saslprep("\u{fb21}1\u{fb21}"), "\u{5d0}1\u{5d0}");
        for password in ["\u{fb21}1", "1\u{fb21}", "\u{fb21}a\u{fb21}"] {
            assert_eq!(saslprep(password), password);
        }
    }

    #[test]
    fn directions_are_those_of_unicode_3_2() {
        assert_eq!(saslprep("\u{fb21}\u{2801}\u{fb21}"), "\u{5d0}\u{2801}\u{5d0}");
        assert_eq!(saslprep("\u{fb21}\u{17b4}\u{fb21}"), "\u{fb21}\u{17b4}\u{fb21}");
    }

    /// The RFC checks the text after NFKC; checked before it, other passwords pass.
    #[test]
    fn the_order_is_that_of_postgresql() {
        for (password, prepared) in [
            // Prohibited, but NFKC would make it U+0300, which is not.
            ("\u{340}", "\u{340}"),
            // Unassigned in 3.2, but NFKC would make it two ideographs.
            ("\u{32ff}", "\u{32ff}"),
            // Unassigned in 3.2, but NFKC would make it a comma.
            ("\u{fe10}", "\u{fe10}"),
            // The alef symbol is left-to-right; NFKC makes it a letter that is right-to-left.
            ("a\u{2135}", "a\u{5d0}"),
        ] {
            assert_eq!(saslprep(password), prepared);
            let by_the_rfc = stringprep::saslprep(password).ok();
            assert_ne!(by_the_rfc.as_deref(), Some(prepared), "{password:?} tells nothing apart");
        }
    }
}
