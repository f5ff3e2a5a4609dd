//! The words for what a client demands of a login.

use crate::auth::{AuthMethod, AuthMethods, AuthMethodsError, ChannelBindingPolicy};

use super::Problem;

/// Reads `channel_binding`.
pub(super) fn channel_binding(name: &str) -> Result<ChannelBindingPolicy, Problem> {
    match name {
        "" | "prefer" => Ok(ChannelBindingPolicy::Prefer),
        "disable" => Ok(ChannelBindingPolicy::Disable),
        "require" => Ok(ChannelBindingPolicy::Require),
        _ => Err("must be disable, prefer or require".into()),
    }
}

/// Reads `require_auth`, and refuses a list by which no login can succeed.
pub(super) fn require_auth(list: &str) -> Result<AuthMethods, Problem> {
    let permitted: AuthMethods = list.parse().map_err(|error| match error {
        AuthMethodsError::Unknown { .. } => {
            "must be a list of password, md5, scram-sha-256, gss, sspi, oauth and none, without spaces"
        }
        AuthMethodsError::Mixed { .. } => "must name methods either all with a `!` or all without",
        AuthMethodsError::Repeated { .. } => "names a method twice: was another one meant?",
    })?;
    let supported =
        [AuthMethod::None, AuthMethod::Password, AuthMethod::Md5, AuthMethod::ScramSha256];
    if !supported.into_iter().any(|method| permitted.contains(method)) {
        return Err("permits none of the methods that are supported here: password, md5, \
                    scram-sha-256 and none"
            .into());
    }
    Ok(permitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_probably_not_meant_is_refused() {
        for (list, expected) in [
            ("password,!md5", "all with a `!` or all without"),
            ("md5,md5", "names a method twice"),
            ("md5, password", "must be a list of"),
            ("gss,sspi", "permits none of the methods"),
            ("!none,!password,!md5,!scram-sha-256", "permits none of the methods"),
        ] {
            let problem = require_auth(list).unwrap_err();
            assert!(problem.contains(expected), "{list}: {problem}");
        }
    }
}
