//! By which methods the server may ask this side to prove who it is.

use super::Problem;

/// How the login has to be tied to the TLS connection that it goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    /// Where the server offers it.
    #[default]
    Prefer,
    /// Nothing but SCRAM-SHA-256-PLUS: any other method is refused before a secret is sent.
    Require,
}

impl ChannelBinding {
    pub(super) fn from_name(name: &str) -> Result<Self, Problem> {
        match name {
            "" | "prefer" => Ok(Self::Prefer),
            "disable" => Ok(Self::Disable),
            "require" => Ok(Self::Require),
            _ => Err("must be disable, prefer or require".into()),
        }
    }
}

/// What a server may ask for, as `require_auth` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthMethod {
    /// Nothing: the server lets the client in without a question, as with `trust` or `cert`.
    None,
    Password,
    Md5,
    ScramSha256,
    Gss,
    Sspi,
    OAuth,
}

impl AuthMethod {
    const ALL: [Self; 7] = [
        Self::None,
        Self::Password,
        Self::Md5,
        Self::ScramSha256,
        Self::Gss,
        Self::Sspi,
        Self::OAuth,
    ];

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::ScramSha256 => "scram-sha-256",
            Self::Gss => "gss",
            Self::Sspi => "sspi",
            Self::OAuth => "oauth",
        }
    }

    /// Whether a login by this method can succeed here.
    const fn is_supported(self) -> bool {
        match self {
            Self::None | Self::Password | Self::Md5 | Self::ScramSha256 => true,
            Self::Gss | Self::Sspi | Self::OAuth => false,
        }
    }
}

/// The methods that are permitted: libpq's `require_auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequireAuth {
    permitted: Vec<AuthMethod>,
}

impl Default for RequireAuth {
    fn default() -> Self {
        Self { permitted: AuthMethod::ALL.to_vec() }
    }
}

impl RequireAuth {
    /// Reads a list of methods, or of methods that are all excluded by a `!`.
    pub(super) fn parse(list: &str) -> Result<Self, Problem> {
        if list.is_empty() {
            return Ok(Self::default());
        }
        let excluding = list.starts_with('!');
        let mut named = Vec::new();
        for element in list.split(',') {
            let (negated, name) = match element.strip_prefix('!') {
                Some(name) => (true, name),
                None => (false, element),
            };
            if negated != excluding {
                return Err("must name methods either all with a `!` or all without".into());
            }
            let method = AuthMethod::from_name(name).ok_or(
                "must be a list of password, md5, scram-sha-256, gss, sspi, oauth and none, without \
                 spaces",
            )?;
            if named.contains(&method) {
                // Probably meant to be another one, in a setting where that matters.
                return Err(format!("names `{}` twice", method.name()).into());
            }
            named.push(method);
        }
        let permitted =
            AuthMethod::ALL.into_iter().filter(|method| named.contains(method) != excluding);
        Self { permitted: permitted.collect() }.check()
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "the login does not ask yet"))]
    pub(crate) fn permits(&self, method: AuthMethod) -> bool {
        self.permitted.contains(&method)
    }

    fn check(self) -> Result<Self, Problem> {
        if self.permitted.iter().any(|method| method.is_supported()) {
            return Ok(self);
        }
        Err("permits none of the methods that are supported here: password, md5, scram-sha-256 and \
             none"
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_listed_or_excluded() {
        use AuthMethod::{Gss, Md5, None, OAuth, Password, ScramSha256, Sspi};
        let all = [None, Password, Md5, ScramSha256, Gss, Sspi, OAuth];
        let cases: [(&str, &[AuthMethod]); 7] = [
            ("", &all),
            ("scram-sha-256", &[ScramSha256]),
            ("password,md5", &[Password, Md5]),
            ("none,gss", &[None, Gss]),
            ("!password", &[None, Md5, ScramSha256, Gss, Sspi, OAuth]),
            ("!password,!md5,!none", &[ScramSha256, Gss, Sspi, OAuth]),
            ("!oauth", &[None, Password, Md5, ScramSha256, Gss, Sspi]),
        ];
        for (list, permitted) in cases {
            let require_auth = RequireAuth::parse(list).unwrap();
            for method in all {
                let expected = permitted.contains(&method);
                assert_eq!(require_auth.permits(method), expected, "{list}: {method:?}");
            }
        }
    }

    #[test]
    fn a_list_that_is_probably_not_meant_is_refused() {
        for (list, expected) in [
            ("password,!md5", "all with a `!` or all without"),
            ("!password,md5", "all with a `!` or all without"),
            ("md5,md5", "names `md5` twice"),
            ("!none,!none", "names `none` twice"),
            ("md5,", "must be a list of"),
            ("md5, password", "must be a list of"),
            ("MD5", "must be a list of"),
            ("!", "must be a list of"),
            ("gss,sspi", "permits none of the methods"),
            ("!none,!password,!md5,!scram-sha-256", "permits none of the methods"),
        ] {
            let problem = RequireAuth::parse(list).unwrap_err();
            assert!(problem.contains(expected), "{list}: {problem}");
        }
    }
}
