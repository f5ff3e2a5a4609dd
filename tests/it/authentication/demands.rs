//! Which logins come about: every method that a server may ask for, under every demand of the client,
//! over every transport.
//!
//! As for [TLS](crate::tls), a model, the library and libpq have to agree.

use pglock::Session;
use pglock_test_cluster::{Cluster, Role, role};
use tokio::task::{JoinSet, spawn_blocking};

use crate::psql::{Psql, say};

/// The first major version of libpq that has `require_auth`.
const REQUIRE_AUTH: u32 = 16;

const METHODS: [(&str, Role); 4] = [
    ("none", role::TRUST),
    ("password", role::CLEARTEXT),
    ("md5", role::MD5),
    ("scram-sha-256", role::SCRAM),
];

/// Empty for no demand.
const REQUIRE_AUTHS: [&str; 10] = [
    "",
    "none",
    "password",
    "md5",
    "scram-sha-256",
    "md5,scram-sha-256",
    "!none",
    "!password",
    "!md5,!password",
    "!scram-sha-256",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    UnixSocket,
    Clear,
    Tls,
}

#[derive(Clone, Copy, Debug)]
struct Login {
    method: &'static str,
    role: Role,
    transport: Transport,
    channel_binding: &'static str,
    require_auth: &'static str,
}

impl Login {
    fn all() -> impl Iterator<Item = Self> {
        let transports = [Transport::UnixSocket, Transport::Clear, Transport::Tls];
        let bindings = ["disable", "prefer", "require"];
        METHODS.into_iter().flat_map(move |(method, role)| {
            transports.into_iter().flat_map(move |transport| {
                bindings.into_iter().flat_map(move |channel_binding| {
                    REQUIRE_AUTHS.into_iter().map(move |require_auth| Self {
                        method,
                        role,
                        transport,
                        channel_binding,
                        require_auth,
                    })
                })
            })
        })
    }

    fn url(self) -> String {
        let cluster = Cluster::default_cluster();
        let (url, sslmode) = match self.transport {
            Transport::UnixSocket => (cluster.socket_url_for(&self.role), "prefer"),
            Transport::Clear => (cluster.url_for(&self.role), "disable"),
            Transport::Tls => (cluster.url_for(&self.role), "require"),
        };
        let Self { channel_binding, require_auth, .. } = self;
        let url = format!("{url}?sslmode={sslmode}&channel_binding={channel_binding}");
        if require_auth.is_empty() { url } else { format!("{url}&require_auth={require_auth}") }
    }

    /// What the demands mean.
    fn succeeds_in_libpq(self) -> bool {
        let lists = |list: &str| list.split(',').any(|method| method == self.method);
        let is_permitted = if self.require_auth.starts_with('!') {
            !lists(&self.require_auth.replace('!', ""))
        } else {
            self.require_auth.is_empty() || lists(self.require_auth)
        };
        let is_bound = self.method == "scram-sha-256" && self.transport == Transport::Tls;
        is_permitted && (is_bound || self.channel_binding != "require")
    }

    /// Where the library is meant to differ: libpq would let everybody on the way read the password.
    fn shows_password(self) -> bool {
        self.method == "password" && self.transport == Transport::Clear
    }
}

#[tokio::test]
async fn each_demand_means_what_it_means_to_libpq() {
    let psql = Psql::find();
    let knows_require_auth = psql.is_some_and(|psql| psql.major_version() >= REQUIRE_AUTH);
    let (mut mistakes, mut tried, mut compared, mut differences) = (Vec::new(), 0, 0, 0);
    let logins: Vec<_> = Login::all().collect();
    for logins in logins.chunks(REQUIRE_AUTHS.len()) {
        let mut attempts = JoinSet::new();
        for &login in logins {
            let psql = psql.filter(|_| knows_require_auth || login.require_auth.is_empty());
            attempts.spawn(attempt(login, psql));
        }
        for (login, ours, theirs) in attempts.join_all().await {
            tried += 1;
            let expected = login.succeeds_in_libpq();
            if ours.is_ok() != (expected && !login.shows_password()) {
                mistakes.push(format!("pglock: {login:?}: {ours:?}"));
            }
            let Some(theirs) = theirs else { continue };
            compared += 1;
            differences += usize::from(ours.is_ok() != theirs.is_ok());
            if theirs.is_ok() != expected {
                mistakes.push(format!("libpq: {login:?}: {theirs:?}"));
            }
        }
    }
    let libpq = psql.map_or(0, Psql::major_version);
    say(&format!("authentication: {tried} logins, {compared} compared with libpq {libpq}"));
    say(&format!(
        "     {differences} differ as is meant: no password is sent in clear over a network"
    ));
    if !knows_require_auth {
        say("     require_auth, which 16 brought, was not compared");
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

type Attempt = Result<(), String>;

async fn attempt(login: Login, psql: Option<&'static Psql>) -> (Login, Attempt, Option<Attempt>) {
    let theirs = psql.map(|psql| spawn_blocking(move || psql.connect(&login.url())));
    let ours = match login.url().parse() {
        Ok(config) => Session::connect(&config).await,
        Err(error) => Err(error),
    };
    let ours = ours.map(|_| ()).map_err(|error| {
        let shown = format!("{error} {error:?}");
        assert!(login.role.password.is_none_or(|password| !shown.contains(password)), "{shown}");
        error.to_string()
    });
    let theirs = match theirs {
        Some(theirs) => Some(theirs.await.unwrap().map(|_| ())),
        None => None,
    };
    (login, ours, theirs)
}
