//! Who may log in to a cluster: one role for each way of authenticating.

/// A role that can log in, and its password.
#[derive(Debug, Clone, Copy)]
pub struct Role {
    /// The role's name.
    pub name: &'static str,
    /// Its password, if it has one.
    pub password: Option<&'static str>,
    /// The authentication method of its lines in `pg_hba.conf`.
    method: &'static str,
    /// How the server stores its password.
    password_encryption: &'static str,
}

/// The superuser. Logs in over the Unix socket only, whose directory keeps other users out.
pub const SUPERUSER: Role =
    Role { name: "postgres", password: None, method: "trust", password_encryption: SCRAM_SHA_256 };

/// Logs in without a password.
pub const TRUST: Role = Role { name: "trust_user", ..SUPERUSER };

/// Is asked for its password in clear text.
pub const CLEARTEXT: Role = Role {
    name: "clear_user",
    password: Some("in plain sight"),
    method: "password",
    password_encryption: SCRAM_SHA_256,
};

/// Is asked for an MD5 hash of its password.
pub const MD5: Role = Role {
    name: "md5_user",
    password: Some("salted once"),
    method: "md5",
    password_encryption: "md5",
};

/// Logs in with SCRAM-SHA-256.
pub const SCRAM: Role = Role {
    name: "scram_user",
    password: Some("p@ss:w/rd %41"),
    method: SCRAM_SHA_256,
    password_encryption: SCRAM_SHA_256,
};

/// Logs in with SCRAM-SHA-256 and a password that `SASLprep` changes: it drops the soft hyphen and
/// writes the Roman numeral out.
pub const SCRAM_UNICODE: Role =
    Role { name: "unicode_user", password: Some("gr\u{ad}ün \u{2168}"), ..SCRAM };

/// Is turned away by `pg_hba.conf`.
pub const REJECTED: Role = Role { name: "reject_user", method: "reject", ..SUPERUSER };

/// Logs in without a password, and has every timeout that a role can have at 2 s, which connecting
/// may take on a busy machine: a session that leaves them in force dies while it waits, or while it holds.
pub const HURRIED: Role = Role { name: "hurried_user", ..SUPERUSER };

const SCRAM_SHA_256: &str = "scram-sha-256";
const CREATED: [&Role; 7] = [&TRUST, &CLEARTEXT, &MD5, &SCRAM, &SCRAM_UNICODE, &REJECTED, &HURRIED];

/// The timeouts that can end a waiting or a holding session, and the version that brought each.
const TIMEOUTS: [(&str, u32); 5] = [
    ("statement_timeout", 0),
    ("lock_timeout", 0),
    ("idle_in_transaction_session_timeout", 0),
    ("idle_session_timeout", 14),
    ("transaction_timeout", 17),
];

/// `pg_hba.conf` for these roles.
pub(crate) fn access_rules() -> String {
    let mut rules = Vec::new();
    for Role { name, method, .. } in CREATED {
        rules.push(format!("local all {name} {method}"));
        rules.push(format!("host all {name} 127.0.0.1/32 {method}"));
        rules.push(format!("host all {name} ::1/128 {method}"));
    }
    rules.push("local all all trust".to_owned());
    access_rules_with(&rules)
}

/// `pg_hba.conf` with these lines; the superuser gets in over the Unix socket in any case.
pub(crate) fn access_rules_with(rules: &[String]) -> String {
    let superuser = SUPERUSER.name;
    let mut lines =
        vec![format!("local all {superuser} trust"), "local replication all trust".to_owned()];
    lines.extend_from_slice(rules);
    lines.join("\n") + "\n"
}

/// The roles and their passwords, as `PgBouncer` reads them.
pub(crate) fn user_list() -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let line = |role: &Role| {
        format!("{} {}\n", quoted(role.name), quoted(role.password.unwrap_or_default()))
    };
    [&SUPERUSER].into_iter().chain(CREATED).map(line).collect()
}

/// The statements that create these roles on a server of this major version.
pub(crate) fn creation(major_version: u32) -> Vec<String> {
    let mut statements = Vec::new();
    for Role { name, password, password_encryption, .. } in CREATED {
        statements.push(format!("SET password_encryption = '{password_encryption}'"));
        let password = password.map(|word| format!(" PASSWORD '{word}'")).unwrap_or_default();
        statements.push(format!("CREATE ROLE {name} LOGIN{password}"));
    }
    for (timeout, since) in TIMEOUTS {
        if major_version >= since {
            statements.push(format!("ALTER ROLE {} SET {timeout} = '2s'", HURRIED.name));
        }
    }
    statements
}
