//! What a client sends in answer to each request of a server, under each demand, over each transport.

use super::*;
use crate::protocol::scram::READABLE_CHARS_MAX;
use crate::protocol::{Connection, Event};

const END_POINT: &[u8] = b"hash of a certificate, 32 bytes.";
const NONCE: [u8; 18] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];

const POLICIES: [ChannelBindingPolicy; 3] = {
    use ChannelBindingPolicy::{Disable, Prefer, Require};
    [Disable, Prefer, Require]
};

fn transports() -> [Transport; 4] {
    [
        Transport::Clear,
        Transport::Private,
        Transport::Tls { end_point: Some(END_POINT.to_vec()) },
        Transport::Tls { end_point: None },
    ]
}

fn credentials(transport: Transport, channel_binding: ChannelBindingPolicy) -> Credentials {
    let mut credentials =
        Credentials::new(String::from("alice"), Some(String::from("pencil")), NONCE);
    credentials.transport = transport;
    credentials.channel_binding = channel_binding;
    credentials
}

/// What a server asks for at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Nothing,
    Password,
    Md5,
    Scram,
    ScramOrPlus,
    PlusOnly,
}

impl Asks {
    const ALL: [Self; 6] =
        [Self::Nothing, Self::Password, Self::Md5, Self::Scram, Self::ScramOrPlus, Self::PlusOnly];

    fn message(self) -> &'static [u8] {
        match self {
            Self::Nothing => b"R\0\0\0\x08\0\0\0\0",
            Self::Password => b"R\0\0\0\x08\0\0\0\x03",
            Self::Md5 => b"R\0\0\0\x0c\0\0\0\x05\x93\x1c\x00\xa7",
            Self::Scram => b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0",
            Self::ScramOrPlus => b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
            Self::PlusOnly => b"R\0\0\0\x1c\0\0\0\x0aSCRAM-SHA-256-PLUS\0\0",
        }
    }

    fn method(self) -> AuthMethod {
        match self {
            Self::Nothing => AuthMethod::None,
            Self::Password => AuthMethod::Password,
            Self::Md5 => AuthMethod::Md5,
            Self::Scram | Self::ScramOrPlus | Self::PlusOnly => AuthMethod::ScramSha256,
        }
    }
}

/// The client's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// None: the client takes itself for logged in.
    In,
    /// The password as it is.
    Password,
    /// Its MD5 hash.
    Md5,
    /// The first message of SCRAM-SHA-256, which says that there is no channel binding.
    N,
    /// The same, which says that the server did not offer it.
    Y,
    /// The first message of SCRAM-SHA-256-PLUS.
    P,
    /// The connection is not encrypted and should be.
    RefusesClear,
    /// Somebody stands in between.
    RefusesTampering,
    /// No mechanism is left.
    RefusesMechanisms,
    /// The login cannot be bound, for this reason.
    RefusesUnbound(Unbound),
}

/// Has a server ask, and sorts what the client does. Whatever is refused was not answered at all.
fn answer(credentials: Credentials, asks: Asks) -> Result<Answer, ProtocolError> {
    let mut connection = Connection::new(credentials, &[]);
    connection.sent(connection.outgoing().len());
    connection.received().extend_from_slice(asks.message());
    let event = connection.poll_event().map(|event| assert_eq!(event, Some(Event::Progress)));
    let sent = connection.outgoing();
    let refused = match event {
        Ok(()) => None,
        Err(error) => {
            assert_eq!(sent, b"", "sent before {error:?}");
            Some(error)
        }
    };
    Ok(match refused {
        Some(ProtocolError::CleartextRefused) => Answer::RefusesClear,
        Some(ProtocolError::ChannelBindingWithoutTls) => Answer::RefusesTampering,
        Some(ProtocolError::NoCommonMechanism { .. }) => Answer::RefusesMechanisms,
        Some(ProtocolError::ChannelBindingRequired(why)) => Answer::RefusesUnbound(why),
        Some(other) => return Err(other),
        None => match sent {
            b"" => Answer::In,
            b"p\0\0\0\x0bpencil\0" => Answer::Password,
            b"p\0\0\0\x28md5a7e0132e05907410e7d8828f50df53ce\0" => Answer::Md5,
            b"p\0\0\0\x36SCRAM-SHA-256\0\0\0\0\x20n,,n=,r=AAECAwQFBgcICQoLDA0ODxAR" => Answer::N,
            b"p\0\0\0\x36SCRAM-SHA-256\0\0\0\0\x20y,,n=,r=AAECAwQFBgcICQoLDA0ODxAR" => Answer::Y,
            b"p\0\0\0\x50SCRAM-SHA-256-PLUS\0\0\0\0\x35\
              p=tls-server-end-point,,n=,r=AAECAwQFBgcICQoLDA0ODxAR" => Answer::P,
            other => panic!("sent {}", other.escape_ascii()),
        },
    })
}

/// Rows: what the server asks for, and what the client demands. Columns: in clear, over a Unix
/// socket, over TLS with a hash to bind to, over TLS without.
#[rustfmt::skip]
fn answers() -> Vec<(Asks, ChannelBindingPolicy, [Answer; 4])> {
    use Answer::{
        In, Md5, N, P, Password, RefusesClear as Clear, RefusesMechanisms as Mechanisms,
        RefusesTampering as Tampering, RefusesUnbound, Y,
    };
    use ChannelBindingPolicy::{Disable, Prefer, Require};
    use Unbound::{NoEndPoint, NotEncrypted, NotOffered};
    let method = |method| [RefusesUnbound(Unbound::Method(method)); 4];
    let [plain, no_hash, no_offer] = [NotEncrypted, NoEndPoint, NotOffered].map(RefusesUnbound);
    vec![
        (Asks::Nothing,     Disable, [In, In, In, In]),
        (Asks::Nothing,     Prefer,  [In, In, In, In]),
        (Asks::Nothing,     Require, method(AuthMethod::None)),
        (Asks::Password,    Disable, [Clear, Password, Password, Password]),
        (Asks::Password,    Prefer,  [Clear, Password, Password, Password]),
        (Asks::Password,    Require, method(AuthMethod::Password)),
        (Asks::Md5,         Disable, [Md5, Md5, Md5, Md5]),
        (Asks::Md5,         Prefer,  [Md5, Md5, Md5, Md5]),
        (Asks::Md5,         Require, method(AuthMethod::Md5)),
        (Asks::Scram,       Disable, [N, N, N, N]),
        (Asks::Scram,       Prefer,  [N, N, Y, N]),
        (Asks::Scram,       Require, [plain, plain, no_offer, no_hash]),
        (Asks::ScramOrPlus, Disable, [Tampering, Tampering, N, N]),
        (Asks::ScramOrPlus, Prefer,  [Tampering, Tampering, P, N]),
        (Asks::ScramOrPlus, Require, [plain, plain, P, no_hash]),
        (Asks::PlusOnly,    Disable, [Tampering, Tampering, Mechanisms, Mechanisms]),
        (Asks::PlusOnly,    Prefer,  [Tampering, Tampering, P, Mechanisms]),
        (Asks::PlusOnly,    Require, [plain, plain, P, no_hash]),
    ]
}

#[test]
fn every_request_is_answered_as_the_transport_and_channel_binding_allow() {
    let table = answers();
    assert_eq!(table.len(), Asks::ALL.len() * POLICIES.len());
    for (asks, policy, expected) in table {
        for (transport, expected) in transports().into_iter().zip(expected) {
            let what = format!("{asks:?}, {policy:?}, {transport:?}");
            assert_eq!(answer(credentials(transport, policy), asks), Ok(expected), "{what}");
        }
    }
}

/// `require_auth` comes before everything else, and changes nothing where it permits.
#[test]
fn require_auth_permits_or_refuses_whatever_else_is_demanded() {
    use AuthMethod::{Md5, None, Password, ScramSha256};
    for (list, permitted) in [
        ("", [None, Password, Md5, ScramSha256].as_slice()),
        ("none", &[None]),
        ("password", &[Password]),
        ("md5", &[Md5]),
        ("scram-sha-256", &[ScramSha256]),
        ("gss,sspi,oauth", &[]),
        ("none,scram-sha-256", &[None, ScramSha256]),
        ("!none", &[Password, Md5, ScramSha256]),
        ("!password,!md5", &[None, ScramSha256]),
        ("!scram-sha-256", &[None, Password, Md5]),
        ("!gss", &[None, Password, Md5, ScramSha256]),
    ] {
        let require_auth: AuthMethods = list.parse().unwrap();
        for (asks, policy, expected) in answers() {
            for (transport, expected) in transports().into_iter().zip(expected) {
                let what = format!("{list:?}, {asks:?}, {policy:?}, {transport:?}");
                let mut credentials = credentials(transport, policy);
                credentials.require_auth = require_auth;
                let method = asks.method();
                let expected = if permitted.contains(&method) {
                    Ok(expected)
                } else {
                    Err(ProtocolError::MethodRefused { method, permitted: require_auth })
                };
                assert_eq!(answer(credentials, asks), expected, "{what}");
            }
        }
    }
}

#[test]
fn a_caller_may_permit_the_password_in_clear() {
    let mut credentials = credentials(Transport::Clear, ChannelBindingPolicy::Prefer);
    credentials.cleartext_permitted = true;
    assert_eq!(answer(credentials, Asks::Password), Ok(Answer::Password));
}

#[test]
fn without_a_password_nothing_is_sent() {
    for asks in Asks::ALL.into_iter().filter(|asks| *asks != Asks::Nothing) {
        let transport = Transport::Tls { end_point: Some(END_POINT.to_vec()) };
        let mut credentials = credentials(transport, ChannelBindingPolicy::Prefer);
        credentials.password = None;
        assert_eq!(answer(credentials, asks), Err(ProtocolError::PasswordNeeded), "{asks:?}");
    }
}

/// The messages of whole exchanges were computed apart from this code, with Python's `hashlib`.
#[test]
fn the_identity_says_how_the_client_was_let_in() {
    const SERVER_FIRST: &[u8] = b"R\0\0\0\x54\0\0\0\x0b\
        r=AAECAwQFBgcICQoLDA0ODxARgQ2kT1bXo7cFZ5mY,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const FINAL: &[u8] = b"R\0\0\0\x36\0\0\0\x0c";
    let tls = Transport::Tls { end_point: Some(END_POINT.to_vec()) };
    for (transport, asks, exchange, expected) in [
        (&Transport::Clear, Asks::Nothing, None, (AuthMethod::None, false)),
        (&Transport::Private, Asks::Password, None, (AuthMethod::Password, false)),
        (&Transport::Clear, Asks::Md5, None, (AuthMethod::Md5, false)),
        (
            &Transport::Clear,
            Asks::Scram,
            Some((
                "c=biws,r=AAECAwQFBgcICQoLDA0ODxARgQ2kT1bXo7cFZ5mY,\
                 p=EAm2HLxZ25aVBMWmNheOhTNpXnSAgesD9h6cteX7JEU=",
                b"v=tarVz1beIDAypJtxz7mvzCnWw9SS8yo0v9LF8t99EGc=",
            )),
            (AuthMethod::ScramSha256, false),
        ),
        (
            &tls,
            Asks::Scram,
            Some((
                "c=eSws,r=AAECAwQFBgcICQoLDA0ODxARgQ2kT1bXo7cFZ5mY,\
                 p=a4Fkl8Vn41JBdbtdvC2sKDMXHZj1jdRa9/7X5A1dPrI=",
                b"v=Ze3jYuzxVxmH2c61L1zy/iZihhEOt4ivWqZuNH6J1zE=",
            )),
            (AuthMethod::ScramSha256, false),
        ),
        (
            &tls,
            Asks::ScramOrPlus,
            Some((
                "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsaGFzaCBvZiBhIGNlcnRpZmljYXRlLCAzMiBieXRlcy4=,\
                 r=AAECAwQFBgcICQoLDA0ODxARgQ2kT1bXo7cFZ5mY,\
                 p=9LEu8Y6djf0Pqae7UQRxO+LjIWZdkDBDfnfGA442BwY=",
                b"v=DOc5X+UettFSCDhLAiySEBo2B4NazzV/14YG4g9tMhk=",
            )),
            (AuthMethod::ScramSha256, true),
        ),
    ] {
        let what = format!("{asks:?}, {transport:?}");
        let credentials = credentials(transport.clone(), ChannelBindingPolicy::Prefer);
        let mut connection = Connection::new(credentials, &[]);
        connection.received().extend_from_slice(asks.message());
        assert_eq!(connection.poll_event(), Ok(Some(Event::Progress)), "{what}");
        if let Some((client_final, server_signature)) = exchange {
            connection.received().extend_from_slice(SERVER_FIRST);
            assert_eq!(connection.poll_event(), Ok(Some(Event::Progress)), "{what}");
            assert_eq!(connection.poll_event(), Ok(Some(Event::Deriving)), "{what}");
            assert!(connection.outgoing().ends_with(client_final.as_bytes()), "{what}");
            connection.received().extend_from_slice(&[FINAL, server_signature].concat());
            assert_eq!(connection.poll_event(), Ok(Some(Event::Progress)), "{what}");
        }
        if asks != Asks::Nothing {
            connection.received().extend_from_slice(Asks::Nothing.message());
            assert_eq!(connection.poll_event(), Ok(Some(Event::Progress)), "{what}");
        }
        connection.received().extend_from_slice(b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I");
        assert_eq!(connection.poll_event(), Ok(Some(Event::Progress)), "{what}");
        let Ok(Some(Event::LoggedIn(identity))) = connection.poll_event() else {
            panic!("{what}: not logged in")
        };
        assert_eq!((identity.authentication, identity.channel_bound), expected, "{what}");
    }
}

/// A server that knows no password asks, and then pretends that it was given.
#[test]
fn a_server_that_skips_its_proof_is_refused_whatever_is_permitted() {
    for list in ["", "none,scram-sha-256"] {
        let mut credentials = credentials(Transport::Clear, ChannelBindingPolicy::Prefer);
        credentials.require_auth = list.parse().unwrap();
        let mut connection = Connection::new(credentials, &[]);
        for message in [Asks::Scram, Asks::Nothing].map(Asks::message) {
            connection.received().extend_from_slice(message);
        }
        assert_eq!(connection.poll_event(), Ok(Some(Event::Progress)));
        assert_eq!(connection.poll_event(), Err(ProtocolError::ServerNotAuthenticated));
    }
}

#[test]
fn refusals_say_what_was_asked_what_was_offered_and_what_to_change() {
    let bound = ProtocolError::ChannelBindingRequired;
    for (error, words) in [
        (
            ProtocolError::MethodRefused {
                method: AuthMethod::Md5,
                permitted: AuthMethods::only([AuthMethod::None, AuthMethod::ScramSha256]),
            },
            "the server asks for md5 authentication, and require_auth permits only \
             none,scram-sha-256; let pg_hba.conf ask for a permitted method, or let require_auth \
             permit md5",
        ),
        (
            ProtocolError::MethodRefused {
                method: AuthMethod::None,
                permitted: AuthMethods::only([AuthMethod::ScramSha256]),
            },
            "the server lets this role in without asking for a password, and require_auth permits \
             only scram-sha-256; let pg_hba.conf ask for a permitted method, or let require_auth \
             permit none",
        ),
        (
            ProtocolError::MethodRefused {
                method: AuthMethod::ScramSha256,
                permitted: AuthMethods::only([]),
            },
            "the server asks for scram-sha-256 authentication, and require_auth permits no method \
             at all; let pg_hba.conf ask for a permitted method, or let require_auth permit \
             scram-sha-256",
        ),
        (
            bound(Unbound::NotEncrypted),
            "channel_binding=require cannot be met: the connection is not encrypted; connect over \
             TCP with sslmode=require or stronger",
        ),
        (
            bound(Unbound::NoEndPoint),
            "channel_binding=require cannot be met: the server's certificate is signed in a way \
             that has no hash to bind to (Ed25519, for instance); give the server one that is \
             signed with RSA or ECDSA, or set channel_binding=prefer",
        ),
        (
            bound(Unbound::NotOffered),
            "channel_binding=require cannot be met: the server does not offer SCRAM-SHA-256-PLUS; \
             a pooler in between would not, nor a server older than PostgreSQL 11: connect to the \
             server directly, or set channel_binding=prefer",
        ),
        (
            bound(Unbound::Method(AuthMethod::Md5)),
            "channel_binding=require cannot be met: the server asks for md5 authentication; let \
             pg_hba.conf ask for scram-sha-256, and set the role's password anew if an MD5 hash of \
             it is stored",
        ),
        (
            ProtocolError::NoCommonMechanism { offered: listed(&[b"OAUTHBEARER", b"\x1b[2J"]) },
            "the server offers no SASL mechanism that is supported here (it offers \
             \"OAUTHBEARER, ?[2J\"); let pg_hba.conf ask for scram-sha-256",
        ),
    ] {
        assert!(error.is_authentication(), "{error:?}");
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn the_offer_of_a_server_is_cut() {
    let shown = listed(&[&b"x".repeat(1000), b"y"]);
    assert_eq!(shown, "x".repeat(READABLE_CHARS_MAX));
}
