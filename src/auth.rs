//! What a client demands of a login, in libpq's words: `require_auth` and `channel_binding`.

use std::fmt;
use std::str::FromStr;

/// A way in which a server lets a client in, as `require_auth` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// `none`: the server asks for nothing. It trusts the role, or knows the client by its
    /// certificate or its Unix user.
    None,
    /// `password`: the password as it is.
    Password,
    /// `md5`: the password hashed with MD5. PostgreSQL has deprecated it.
    Md5,
    /// `gss`: Kerberos. This client does not have it.
    Gss,
    /// `sspi`: Windows' own. This client does not have it.
    Sspi,
    /// `oauth`: a bearer token. This client does not have it.
    OAuth,
    /// `scram-sha-256`: a proof that the password is known, on both sides.
    ScramSha256,
}

impl AuthMethod {
    const ALL: [Self; 7] = [
        Self::None,
        Self::Password,
        Self::Md5,
        Self::Gss,
        Self::Sspi,
        Self::OAuth,
        Self::ScramSha256,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::Gss => "gss",
            Self::Sspi => "sspi",
            Self::OAuth => "oauth",
            Self::ScramSha256 => "scram-sha-256",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::None => 1,
            Self::Password => 1 << 1,
            Self::Md5 => 1 << 2,
            Self::Gss => 1 << 3,
            Self::Sspi => 1 << 4,
            Self::OAuth => 1 << 5,
            Self::ScramSha256 => 1 << 6,
        }
    }
}

impl fmt::Display for AuthMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The ways in which a server may let a client in: libpq's `require_auth`.
///
/// The server chooses the method, so without a word from the client an impostor can ask for the
/// password in clear, or for nothing at all. By default every method is permitted, as in libpq.
///
/// # Examples
///
/// ```
/// use pglock::protocol::{AuthMethod, AuthMethods};
///
/// let only: AuthMethods = "scram-sha-256,none".parse()?;
/// assert!(only.contains(AuthMethod::None) && !only.contains(AuthMethod::Md5));
///
/// let all_but: AuthMethods = "!password,!md5".parse()?;
/// assert!(all_but.contains(AuthMethod::None) && !all_but.contains(AuthMethod::Md5));
/// # Ok::<(), pglock::protocol::AuthMethodsError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthMethods(u8);

impl AuthMethods {
    /// Every method: no demand.
    #[must_use]
    pub fn all() -> Self {
        Self::only(AuthMethod::ALL)
    }

    /// These methods and no other.
    #[must_use]
    pub fn only(methods: impl IntoIterator<Item = AuthMethod>) -> Self {
        Self(methods.into_iter().fold(0, |bits, method| bits | method.bit()))
    }

    /// Every method but these.
    #[must_use]
    pub fn all_but(methods: impl IntoIterator<Item = AuthMethod>) -> Self {
        Self(Self::all().0 & !Self::only(methods).0)
    }

    /// Whether this method is permitted.
    #[must_use]
    pub fn contains(self, method: AuthMethod) -> bool {
        self.0 & method.bit() != 0
    }
}

impl Default for AuthMethods {
    fn default() -> Self {
        Self::all()
    }
}

/// Reads libpq's `require_auth`: methods separated by commas, either all of them or none behind a `!`.
/// An empty text demands nothing.
impl FromStr for AuthMethods {
    type Err = AuthMethodsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::all());
        }
        let negated = text.starts_with('!');
        let mut methods = Vec::new();
        for entry in text.split(',') {
            let bare = entry.strip_prefix('!');
            let name = bare.unwrap_or(entry);
            let method = AuthMethod::ALL
                .into_iter()
                .find(|method| method.name() == name)
                .ok_or_else(|| AuthMethodsError::Unknown { entry: entry.to_owned() })?;
            if bare.is_some() != negated {
                return Err(AuthMethodsError::Mixed { entry: entry.to_owned() });
            }
            if methods.contains(&method) {
                return Err(AuthMethodsError::Repeated { entry: entry.to_owned() });
            }
            methods.push(method);
        }
        Ok(if negated { Self::all_but(methods) } else { Self::only(methods) })
    }
}

/// Shows the permitted methods as `require_auth` would list them.
impl fmt::Display for AuthMethods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let permitted = AuthMethod::ALL.into_iter().filter(|method| self.contains(*method));
        for (position, method) in permitted.enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            method.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for AuthMethods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthMethods({self})")
    }
}

/// Why a text is not a `require_auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuthMethodsError {
    /// An entry names no method.
    Unknown {
        /// The entry.
        entry: String,
    },
    /// An entry is negated and the first is not, or the other way round.
    Mixed {
        /// The entry.
        entry: String,
    },
    /// An entry is there twice, which is probably a slip where another method was meant.
    Repeated {
        /// The entry.
        entry: String,
    },
}

impl fmt::Display for AuthMethodsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { entry } => write!(
                f,
                "`{entry}` is no authentication method: list some of `{}`, separated by commas \
                 without spaces",
                AuthMethods::all()
            ),
            Self::Mixed { entry } => write!(
                f,
                "`{entry}` stands in one list with the opposite: either every method has a `!` \
                 before it or none has"
            ),
            Self::Repeated { entry } => {
                write!(f, "`{entry}` is listed twice: was another method meant?")
            }
        }
    }
}

impl std::error::Error for AuthMethodsError {}

/// Whether a login is tied to the TLS connection that it runs over: libpq's `channel_binding`.
///
/// A login that is tied cannot be relayed by somebody in between, whatever certificate they show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ChannelBindingPolicy {
    /// Never.
    Disable,
    /// If there is TLS and the server offers it. The default, as in libpq.
    ///
    /// A certificate that nothing can be tied to (see
    /// [`tls_server_end_point`](crate::protocol::tls_server_end_point)) is no obstacle here; libpq fails on it.
    #[default]
    Prefer,
    /// Always: any other login is refused, before anything secret is sent.
    Require,
}

#[cfg(test)]
mod tests {
    use super::AuthMethod::{Gss, Md5, None, OAuth, Password, ScramSha256, Sspi};
    use super::*;

    #[test]
    fn lists_are_read_as_libpq_reads_them() {
        for (text, permitted) in [
            ("", AuthMethod::ALL.to_vec()),
            ("scram-sha-256", vec![ScramSha256]),
            ("none", vec![None]),
            ("md5,password", vec![Password, Md5]),
            ("gss,sspi,oauth", vec![Gss, Sspi, OAuth]),
            ("!none", vec![Password, Md5, Gss, Sspi, OAuth, ScramSha256]),
            ("!password,!md5", vec![None, Gss, Sspi, OAuth, ScramSha256]),
            ("!none,!password,!md5,!gss,!sspi,!oauth,!scram-sha-256", vec![]),
        ] {
            let methods: AuthMethods = text.parse().unwrap();
            for method in AuthMethod::ALL {
                assert_eq!(methods.contains(method), permitted.contains(&method), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let unknown = |entry: &str| AuthMethodsError::Unknown { entry: entry.into() };
        let mixed = |entry: &str| AuthMethodsError::Mixed { entry: entry.into() };
        let repeated = |entry: &str| AuthMethodsError::Repeated { entry: entry.into() };
        for (text, expected) in [
            ("SCRAM-SHA-256", unknown("SCRAM-SHA-256")),
            ("scram-sha-256-plus", unknown("scram-sha-256-plus")),
            ("md5, password", unknown(" password")),
            ("md5,", unknown("")),
            (",", unknown("")),
            ("!", unknown("!")),
            ("!!md5", unknown("!!md5")),
            ("scram-sha-256,!md5", mixed("!md5")),
            ("!password,!none,scram-sha-256", mixed("scram-sha-256")),
            ("password,md5,password", repeated("password")),
            ("!none,!md5,!none", repeated("!none")),
        ] {
            assert_eq!(text.parse::<AuthMethods>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let methods = AuthMethods::all_but([Gss, Sspi, OAuth]);
        assert_eq!(methods.to_string(), "none,password,md5,scram-sha-256");
        assert_eq!(methods.to_string().parse(), Ok(methods));
        assert_eq!(
            "kerberos".parse::<AuthMethods>().unwrap_err().to_string(),
            "`kerberos` is no authentication method: list some of \
             `none,password,md5,gss,sspi,oauth,scram-sha-256`, separated by commas without spaces"
        );
    }
}
