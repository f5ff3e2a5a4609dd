//! Which connections come to be, and which of them encrypted: every `sslmode`, against servers with
//! every kind of certificate and every stance on encryption.
//!
//! There are three opinions on each combination, and they have to agree: that of a model of what the
//! modes mean, in [`Stance::verdict`]; the library's; and libpq's. Where the
//! library is meant to differ from libpq, there is an [`Exception`] with the reason.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use pglock::{Config, ErrorKind, Session};
use pglock_test_cluster::rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P384_SHA384, SanType, date_time_ymd,
};
use pglock_test_cluster::{Authority, Certificate, Cluster, HOST, Settings, kept, role};
use tokio::task::{JoinSet, spawn_blocking};

use super::DIRECT_TLS;
use crate::psql::{Psql, say};

const ADDRESS: &str = "127.0.0.1";

/// What comes of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Encrypted,
    Clear,
    Refused,
}

/// What a server makes of encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// It has no TLS.
    NoTls,
    /// `hostssl`: it lets nobody in without.
    TlsOnly,
    /// `hostnossl`: it has TLS, and lets nobody in who uses it.
    ClearOnly,
    /// `host`: as the client likes.
    Either,
}

impl Access {
    const WITH_TLS: [Self; 3] = [Self::TlsOnly, Self::ClearOnly, Self::Either];

    /// The role whose line in `pg_hba.conf` is of this type.
    fn role(self) -> &'static str {
        match self {
            Self::TlsOnly => "tls_only",
            Self::ClearOnly => "clear_only",
            Self::NoTls | Self::Either => "either",
        }
    }
}

/// How a client connects.
#[derive(Clone, Copy, Debug)]
struct Client {
    sslmode: &'static str,
    /// Whether it has root certificates.
    has_roots: bool,
    parameter: &'static str,
}

const CLIENTS: [Client; 10] = [
    client("disable"),
    client("allow"),
    client("prefer"),
    client("require"),
    client("no-verify"),
    client("verify-ca"),
    client("verify-full"),
    Client { has_roots: false, ..client("prefer") },
    Client { has_roots: false, ..client("require") },
    Client { parameter: TLS_1_2, ..client("verify-full") },
];

const TLS_1_2: &str = "ssl_max_protocol_version=TLSv1.2";
const DIRECT: &str = "sslnegotiation=direct";
const DIRECT_CLIENTS: [Client; 5] = [
    Client { parameter: DIRECT, ..client("require") },
    Client { parameter: DIRECT, ..client("no-verify") },
    Client { parameter: DIRECT, ..client("verify-ca") },
    Client { parameter: DIRECT, ..client("verify-full") },
    Client { parameter: DIRECT, has_roots: false, ..client("require") },
];

const fn client(sslmode: &'static str) -> Client {
    Client { sslmode, has_roots: true, parameter: "" }
}

/// Who believes a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The roots do not vouch for it, or not now, or not as a server's.
    Untrusted,
    /// They do; but it is for another host.
    Misnamed,
    Good,
}

impl Standing {
    /// What the modes mean.
    fn verdict(self, client: Client, access: Access) -> Verdict {
        let believed = match client.sslmode {
            "no-verify" => true,
            "verify-full" => self == Self::Good,
            // Also in the modes that could do without: whoever gave roots wants them to be used.
            _ => !client.has_roots || self != Self::Untrusted,
        };
        let can_encrypt = believed && matches!(access, Access::TlsOnly | Access::Either);
        let encrypted = if can_encrypt { Verdict::Encrypted } else { Verdict::Refused };
        let clear = if access == Access::TlsOnly { Verdict::Refused } else { Verdict::Clear };
        let first = |verdict, other| if verdict == Verdict::Refused { other } else { verdict };
        match client.sslmode {
            "disable" => clear,
            "allow" => first(clear, encrypted),
            "prefer" => first(encrypted, clear),
            _ => encrypted,
        }
    }
}

/// A server's certificate, and what is to be thought of it.
struct Shown {
    name: &'static str,
    certificate: Certificate,
    /// The client's root certificates, as PEM.
    roots: String,
    /// The host that the client wants.
    host: &'static str,
    /// In libpq's opinion.
    standing: Standing,
    /// Words that a refusal has to have.
    complaint: &'static str,
    exception: Option<Exception>,
}

/// What is meant to be otherwise than in libpq.
#[derive(Clone, Copy)]
struct Exception {
    standing: Standing,
    /// The only clients for which it is so, by their parameter; if there is one.
    parameter: Option<&'static str>,
    reason: &'static str,
}

#[tokio::test]
async fn each_mode_means_what_it_means_to_libpq() {
    let server = Server::start();
    let mut table = Table::default();
    let certificates = certificates();
    for shown in &certificates {
        server.show(shown);
        for access in Access::WITH_TLS {
            server.try_each_client(shown, access, &mut table).await;
        }
    }
    server.turn_tls_off();
    server.try_each_client(&certificates[0], Access::NoTls, &mut table).await;
    say(&table.summary(&server, certificates.len()));
    assert!(table.mistakes.is_empty(), "{}", table.mistakes.join("\n"));
}

#[tokio::test]
async fn a_server_that_does_not_know_direct_tls_is_told() {
    let cluster = Cluster::default_cluster();
    let url = format!("{}?sslmode=require&{DIRECT}", cluster.url_for(&role::TRUST));
    let connected = Session::connect(&url.parse().unwrap()).await;
    match connected {
        Ok(_) => assert!(cluster.major_version() >= DIRECT_TLS),
        Err(error) => {
            assert!(cluster.major_version() < DIRECT_TLS, "{error}");
            assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
            assert!(error.to_string().contains("direct needs PostgreSQL 17"), "{error}");
        }
    }
}

/// A server with a role for each kind of [`Access`], and the judge beside it.
struct Server {
    cluster: Cluster,
    psql: Option<&'static Psql>,
}

impl Server {
    fn start() -> Self {
        let cluster = Settings::new().start();
        let kinds = [
            ("hostssl", Access::TlsOnly),
            ("hostnossl", Access::ClearOnly),
            ("host", Access::Either),
        ];
        let rules = kinds.map(|(kind, access)| {
            let role = access.role();
            cluster.raw().rows(&format!("CREATE ROLE {role} LOGIN"));
            format!("{kind} all {role} {ADDRESS}/32 trust")
        });
        cluster.set_access_rules(&rules);
        Self { cluster, psql: Psql::find() }
    }

    fn show(&self, shown: &Shown) {
        self.cluster.show_certificate(&shown.certificate);
        fs::write(self.roots(), &shown.roots).unwrap();
    }

    fn turn_tls_off(&self) {
        self.cluster.raw().rows("ALTER SYSTEM SET ssl = off");
        self.cluster.reload();
    }

    fn roots(&self) -> PathBuf {
        self.cluster.socket_dir().join("roots.pem")
    }

    fn knows_direct_tls(&self) -> bool {
        self.cluster.major_version() >= DIRECT_TLS
    }

    /// Two connections for each client, by the library and by libpq, all at a time.
    async fn try_each_client(&self, shown: &Shown, access: Access, table: &mut Table) {
        let direct = if self.knows_direct_tls() { &DIRECT_CLIENTS[..] } else { &[] };
        let mut attempts = JoinSet::new();
        for &client in CLIENTS.iter().chain(direct) {
            let mut ours: Config = self.conninfo(shown, client, access).parse().unwrap();
            ours.application_name(&client.to_string());
            // The mode that libpq does not have is another one of its modes with no roots.
            let their_client = match client.sslmode {
                "no-verify" => Client { sslmode: "require", has_roots: false, ..client },
                _ => client,
            };
            let theirs = self.conninfo(shown, their_client, access);
            let psql = self
                .psql
                .filter(|psql| client.parameter != DIRECT || psql.major_version() >= DIRECT_TLS);
            attempts.spawn(async move {
                let theirs = psql.map(|psql| spawn_blocking(move || psql.connect(&theirs)));
                let ours = Session::connect(&ours).await;
                let theirs = match theirs {
                    Some(theirs) => Some(theirs.await.unwrap()),
                    None => None,
                };
                (client, ours, theirs)
            });
        }
        let attempts = attempts.join_all().await;
        let encrypted = self.encrypted_sessions();
        for (client, ours, theirs) in attempts {
            let ours = match ours {
                Ok(session) => {
                    session.close().await.unwrap();
                    Ok(encrypted[&client.to_string()])
                }
                Err(error) => Err(error.to_string()),
            };
            table.enter(shown, client, access, &ours, theirs.as_ref());
        }
    }

    fn conninfo(&self, shown: &Shown, client: Client, access: Access) -> String {
        let Client { sslmode, has_roots, parameter } = client;
        let roots = if has_roots {
            format!("sslrootcert='{}'", self.roots().display())
        } else {
            String::new()
        };
        let (host, port, role) = (shown.host, self.cluster.port(), access.role());
        format!(
            "host={host} hostaddr={ADDRESS} port={port} user={role} dbname=app sslmode={sslmode} \
             {roots} {parameter}"
        )
    }

    /// The sessions of clients as the server has them, by name: whether each is encrypted.
    fn encrypted_sessions(&self) -> BTreeMap<String, bool> {
        let sql = "SELECT application_name, ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                   WHERE backend_type = 'client backend' AND client_addr IS NOT NULL";
        let rows = self.cluster.raw().rows(sql).into_iter();
        rows.map(|row| (row[0].clone().unwrap(), row[1].as_deref() == Some("t"))).collect()
    }
}

/// What came of all attempts.
#[derive(Default)]
struct Table {
    tried: usize,
    compared: usize,
    /// How often libpq differed for each reason.
    differences: BTreeMap<&'static str, usize>,
    mistakes: Vec<String>,
}

/// Whether a session came to be encrypted, or why there is none.
type Attempt = Result<bool, String>;

impl Table {
    fn enter(
        &mut self,
        shown: &Shown,
        client: Client,
        access: Access,
        ours: &Attempt,
        theirs: Option<&Attempt>,
    ) {
        let exception = shown.exception_for(client);
        let standing = exception.map_or(shown.standing, |exception| exception.standing);
        let expected = standing.verdict(client, access);
        let row = format!("{}, {client}, {access:?}", shown.name);
        self.tried += 1;
        self.check(&format!("pglock: {row}"), ours, expected);
        if let Err(told) = ours {
            if !told.contains(reason(shown, client, access)) {
                self.mistakes.push(format!("{row}: gives another reason: {told}"));
            }
        }
        let Some(theirs) = theirs else { return };
        let expected_theirs = shown.standing.verdict(client, access);
        self.compared += 1;
        self.check(&format!("libpq: {row}"), theirs, expected_theirs);
        if let (true, Some(Exception { reason, .. })) = (expected != expected_theirs, exception) {
            *self.differences.entry(reason).or_default() += 1;
        }
    }

    fn check(&mut self, row: &str, attempt: &Attempt, expected: Verdict) {
        if Verdict::of(attempt) != expected {
            self.mistakes.push(format!("{row}: not {expected:?} but {attempt:?}"));
        }
    }

    fn summary(&self, server: &Server, certificates: usize) -> String {
        let Self { tried, compared, differences, .. } = self;
        let libpq = server.psql.map_or(0, Psql::major_version);
        let mut lines = vec![format!(
            "TLS: {certificates} certificates, {tried} connections, {compared} compared with libpq \
             {libpq}"
        )];
        let meant = |(reason, count)| format!("{count} differ as is meant: {reason}");
        lines.extend(differences.iter().map(meant));
        if !server.knows_direct_tls() {
            lines.push(String::from(
                "sslnegotiation=direct needs a server of version 17: not tried",
            ));
        } else if libpq < DIRECT_TLS {
            lines.push(String::from(
                "sslnegotiation=direct needs a libpq of version 17: not compared",
            ));
        }
        lines.join("\n     ")
    }
}

/// Words of the reason why the library is refused, or refuses.
fn reason(shown: &Shown, client: Client, access: Access) -> &'static str {
    match access {
        Access::NoTls if client.parameter == DIRECT => "sslnegotiation=direct needs PostgreSQL 17",
        Access::NoTls => "the server has no TLS, which sslmode demands",
        Access::ClearOnly if client.sslmode == "no-verify" => "no pg_hba.conf entry",
        Access::ClearOnly => "",
        Access::TlsOnly if client.sslmode == "disable" => "no pg_hba.conf entry",
        Access::TlsOnly | Access::Either => shown.complaint,
    }
}

impl Verdict {
    fn of(attempt: &Attempt) -> Self {
        match attempt {
            Ok(true) => Self::Encrypted,
            Ok(false) => Self::Clear,
            Err(_) => Self::Refused,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sslmode)?;
        if !self.parameter.is_empty() {
            write!(f, " {}", self.parameter)?;
        }
        if self.has_roots { Ok(()) } else { f.write_str(" without roots") }
    }
}

impl Shown {
    fn new(name: &'static str, standing: Standing, certificate: Certificate, roots: &str) -> Self {
        let roots = roots.to_owned();
        Self { name, certificate, roots, host: HOST, standing, complaint: "", exception: None }
    }

    fn to(self, host: &'static str) -> Self {
        Self { host, ..self }
    }

    fn told(self, complaint: &'static str) -> Self {
        Self { complaint, ..self }
    }

    fn except(self, exception: Exception) -> Self {
        Self { exception: Some(exception), ..self }
    }

    fn exception_for(&self, client: Client) -> Option<Exception> {
        self.exception
            .filter(|exception| exception.parameter.is_none_or(|only| only == client.parameter))
    }
}

const LISTED_AS_ROOT: Exception = Exception {
    standing: Standing::Good,
    parameter: None,
    reason: "what the file of roots lists is trusted; OpenSSL takes only what signed itself for a root",
};
const OF_AN_AUTHORITY: Exception = Exception {
    standing: Standing::Untrusted,
    parameter: None,
    reason: "an authority's certificate is not a server's, unless it is itself listed as a root",
};
const PSS_OVER_TLS_1_2: Exception = Exception {
    standing: Standing::Untrusted,
    parameter: Some(TLS_1_2),
    reason: "rustls knows keys of kind RSA-PSS only as far as TLS 1.3 goes",
};

fn certificates() -> Vec<Shown> {
    let authority = Authority::new("roots of the clients");
    let good = issued("good", Standing::Good, &authority, &[HOST], |_| {});
    let mut certificates = vec![good];
    certificates.extend(names(&authority));
    certificates.extend(vouched_for(&authority));
    certificates.extend(kinds(&authority));
    certificates
}

fn names(authority: &Authority) -> [Shown; 11] {
    use Standing::{Good, Misnamed};
    let issued = |name, standing, names: &[&str], spoil: fn(&mut CertificateParams)| {
        let complaint = "is for another host: connect by a name that it is for";
        issued(name, standing, authority, names, spoil).told(complaint)
    };
    [
        issued("any host of the domain", Good, &["*.example"], |_| {}),
        issued("another host", Misnamed, &["other.example"], |_| {}),
        issued("common name only", Good, &[], |params| common_name(params, HOST)),
        issued("another common name only", Misnamed, &[], |params| common_name(params, "other")),
        issued("common name beside another name", Misnamed, &["other.example"], |params| {
            common_name(params, HOST);
        }),
        issued("common name beside an address", Good, &["10.0.0.1"], |params| {
            common_name(params, HOST);
        }),
        issued("address", Good, &[ADDRESS], |_| {}).to(ADDRESS),
        issued("another address", Misnamed, &["127.0.0.2"], |_| {}).to(ADDRESS),
        issued("address as common name", Good, &[], |params| common_name(params, ADDRESS))
            .to(ADDRESS),
        issued("address as a host name", Good, &[], |params| {
            params.subject_alt_names = vec![SanType::DnsName(ADDRESS.try_into().unwrap())];
        })
        .to(ADDRESS),
        issued("host name for an address", Misnamed, &[HOST], |_| {}).to(ADDRESS),
    ]
}

fn vouched_for(authority: &Authority) -> [Shown; 17] {
    use Standing::{Good, Untrusted};
    let issued = |name, standing, spoil| issued(name, standing, authority, &[HOST], spoil);
    let near = authority.issue(&[HOST], |_| {});
    let intermediate = authority.authority("between roots and server");
    let far = intermediate.issue(&[HOST], |_| {});
    let expired = Authority::spoiled("roots of long ago", expire);
    let renewed = Authority::new("roots of long ago");
    let both = format!("{}{}", expired.pem(), renewed.pem());
    let old = expired.issue(&[HOST], |_| {});
    let old_and_near = Certificate { pem: format!("{}{}", old.pem, near.pem), ..old.clone() };
    let old_and_new = format!("{}{}", expired.pem(), authority.pem());
    let chain = Certificate { pem: format!("{}{}", far.pem, intermediate.pem()), ..far.clone() };
    [
        Shown::new("unknown authority", Untrusted, near.clone(), Authority::new("another").pem())
            .told(UNKNOWN),
        issued("expired", Untrusted, expire).told("has expired: renew it"),
        issued("not valid yet", Untrusted, |params| {
            params.not_before = date_time_ymd(2999, 1, 1);
        })
        .told("not valid yet: set the clock"),
        issued("for clients only", Untrusted, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
        .told("the extended key usage serverAuth"),
        issued("of an authority", Good, mark_as_authority)
            .told("is one of an authority: have one issued for the server")
            .except(OF_AN_AUTHORITY),
        Shown::new("through an intermediate", Good, chain, authority.pem()),
        Shown::new("intermediate not shown", Untrusted, far.clone(), authority.pem()).told(UNKNOWN),
        Shown::new("intermediate listed as a root", Untrusted, far, intermediate.pem())
            .except(LISTED_AS_ROOT),
        Shown::new("itself listed as a root", Untrusted, near.clone(), &near.pem)
            .except(LISTED_AS_ROOT),
        Shown::new("by an expired root", Untrusted, old.clone(), expired.pem()).told(OLD_ROOT),
        Shown::new("by a root before it was renewed", Untrusted, old, &both).told(OLD_ROOT),
        Shown::new("by an expired root, beside another's", Untrusted, old_and_near, &old_and_new)
            .told(OLD_ROOT),
        Shown::new("by a root renewed since", Good, renewed.issue(&[HOST], |_| {}), &both),
        own_root("its own root, for clients only", Untrusted, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
        .told("the extended key usage serverAuth"),
        own_root("its own root", Good, |_| {}),
        own_root("its own root, an authority", Good, mark_as_authority),
        own_root("its own root, expired", Untrusted, expire).told("has expired: renew it"),
    ]
}

fn kinds(authority: &Authority) -> [Shown; 7] {
    use Standing::{Good, Untrusted};
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = authority.issue_for(&p384, &[HOST], |_| {});
    let (ed25519, own_root) = (kept::ed25519(), kept::own_root_version_1());
    let known = kept::AUTHORITY_PEM;
    [
        Shown::new("P-384", Good, p384, authority.pem()),
        Shown::new("Ed25519", Good, ed25519.clone(), &ed25519.pem),
        Shown::new("RSA", Good, kept::rsa(), known),
        Shown::new("RSA-PSS", Good, kept::rsa_pss(), known)
            .told("RSA-PSS needs TLS 1.3 on both sides")
            .except(PSS_OVER_TLS_1_2),
        Shown::new("version 1", Good, kept::version_1(), known),
        Shown::new("version 1, unknown authority", Untrusted, kept::version_1(), authority.pem())
            .told(UNKNOWN),
        Shown::new("version 1, its own root", Good, own_root.clone(), &own_root.pem),
    ]
}

const OLD_ROOT: &str = "the root certificate that vouches for the server's has expired";
const UNKNOWN: &str = "name the file of the authority that issued it in sslrootcert";

/// A certificate of the authority that the client trusts.
fn issued(
    name: &'static str,
    standing: Standing,
    authority: &Authority,
    names: &[&str],
    spoil: fn(&mut CertificateParams),
) -> Shown {
    Shown::new(name, standing, authority.issue(names, spoil), authority.pem())
}

fn own_root(name: &'static str, standing: Standing, spoil: fn(&mut CertificateParams)) -> Shown {
    let certificate = Certificate::self_signed(&[HOST], spoil);
    let roots = certificate.pem.clone();
    Shown::new(name, standing, certificate, &roots)
}

fn expire(params: &mut CertificateParams) {
    params.not_after = date_time_ymd(2020, 1, 1);
}

fn common_name(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.push(DnType::CommonName, name);
}

fn mark_as_authority(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}
