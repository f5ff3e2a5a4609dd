//! SCRAM-SHA-256 (RFC 5802, RFC 7677): client and server prove to each other that they know the
//! password, and neither sends it.
//!
//! Each state owns what it knows, and the transition to the next consumes it:
//!
//! ```text
//! ClientFirst ──server-first-message──> Derivation ──run──> ClientFinal ──server-final-message──> ScramKey
//! ```
//!
//! - [`ClientFirst`] has the first message, with a nonce that the caller drew at random.
//! - [`Derivation`] turns the password into keys. That is slow on purpose, so it is done in steps as
//!   long as the caller likes; it can be dropped between any two.
//! - [`ClientFinal`] has the second message, with the client's proof, and checks the server's.
//!
//! The login is over only when [`ClientFinal::server_final`] has returned `Ok`: a server that goes
//! on without its proof does not know the password. What that returns makes the next login with the same
//! password a quick one: [`Derivation::resume`].
//!
//! # Examples
//!
//! ```
//! use pglock::protocol::scram::{ChannelBinding, ClientFirst, Progress};
//!
//! # fn main() -> Result<(), pglock::protocol::scram::ScramError> {
//! // From a random source; fixed here, so that every byte of the exchange is known.
//! let nonce = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];
//! let client = ClientFirst::new(nonce, ChannelBinding::Unsupported);
//! assert_eq!(client.mechanism(), "SCRAM-SHA-256");
//! assert_eq!(client.message(), "n,,n=,r=AAECAwQFBgcICQoLDA0ODxAR");
//!
//! let mut derivation = client.server_first(
//!     b"r=AAECAwQFBgcICQoLDA0ODxARgQ2kT1bXo7cFZ5mY,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
//!     "pencil",
//! )?;
//! let client = loop {
//!     match derivation.run(1000) {
//!         Progress::More(rest) => derivation = rest, // Let other tasks have a turn here.
//!         Progress::Done(client) => break client,
//!     }
//! };
//! assert_eq!(
//!     client.message(),
//!     "c=biws,r=AAECAwQFBgcICQoLDA0ODxARgQ2kT1bXo7cFZ5mY,\
//!      p=EAm2HLxZ25aVBMWmNheOhTNpXnSAgesD9h6cteX7JEU=",
//! );
//!
//! client.server_final(b"v=tarVz1beIDAypJtxz7mvzCnWw9SS8yo0v9LF8t99EGc=")?;
//! # Ok(())
//! # }
//! ```

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::pbkdf2::{HASH_BYTES, HmacSha256, Pbkdf2, padded, xor};
#[cfg(feature = "saslprep")]
use super::saslprep::saslprep;

/// Length of the client's random nonce, in bytes. As long as libpq's.
pub const NONCE_BYTES: usize = 18;

/// Most iterations of the key derivation that a server may ask for.
///
/// PostgreSQL's default is 4,096. The number comes from a server that has proved nothing yet, and
/// each iteration costs the client time: without a limit, a hostile one could ask for billions.
pub const ITERATIONS_MAX: u32 = 10_000_000;

/// Most characters of what a server says that an error repeats.
pub(super) const READABLE_CHARS_MAX: usize = 100;

/// What the client says about tying the login to the TLS connection that it runs over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// The client cannot: there is no TLS, or it was not asked to.
    Unsupported,
    /// The client could, but the server did not offer it. A server that did offer it will refuse
    /// this login: someone in between removed the offer.
    NotOffered,
    /// The login is tied to the server's certificate, of which this is the hash that RFC 5929
    /// defines. The mechanism is `SCRAM-SHA-256-PLUS`.
    TlsServerEndPoint(Vec<u8>),
}

impl ChannelBinding {
    /// The start of the first message, called GS2 header in RFC 5801.
    fn header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::NotOffered => "y,,",
            Self::TlsServerEndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    /// What the second message repeats, protected by the proof: the header, then the hash if any.
    fn encode(&self) -> String {
        let mut input = self.header().as_bytes().to_vec();
        if let Self::TlsServerEndPoint(hash) = self {
            input.extend_from_slice(hash);
        }
        STANDARD.encode(input)
    }
}

/// The first state: the client-first-message is to be sent, in a `SASLInitialResponse`.
#[derive(Debug)]
pub struct ClientFirst {
    channel_binding: ChannelBinding,
    /// The message without its GS2 header: `client-first-message-bare`.
    bare: String,
    nonce: String,
}

impl ClientFirst {
    /// Begins a login.
    ///
    /// The nonce has to be fresh for each login, from a random source that nobody can predict.
    ///
    /// The user's name stays empty, as libpq leaves it: PostgreSQL takes it from the startup
    /// message.
    #[must_use]
    pub fn new(nonce: [u8; NONCE_BYTES], channel_binding: ChannelBinding) -> Self {
        let nonce = STANDARD.encode(nonce);
        Self { channel_binding, bare: format!("n=,r={nonce}"), nonce }
    }

    /// The mechanism's name for the `SASLInitialResponse`.
    #[must_use]
    pub fn mechanism(&self) -> &'static str {
        match self.channel_binding {
            ChannelBinding::Unsupported | ChannelBinding::NotOffered => "SCRAM-SHA-256",
            ChannelBinding::TlsServerEndPoint(_) => "SCRAM-SHA-256-PLUS",
        }
    }

    /// The client-first-message.
    #[must_use]
    pub fn message(&self) -> String {
        format!("{}{}", self.channel_binding.header(), self.bare)
    }

    /// Takes the server-first-message, the data of an `AuthenticationSASLContinue`.
    ///
    /// The password is brought to its canonical form here: see `protocol::saslprep`, which a password
    /// outside ASCII needs.
    ///
    /// # Errors
    ///
    /// The message is malformed, its nonce does not begin with this client's, or it asks for too
    /// many iterations. Without the feature `saslprep`, also if the password is not ASCII.
    pub fn server_first(self, data: &[u8], password: &str) -> Result<Derivation, ScramError> {
        let message = text(data, ServerMessage::First)?;
        let server = ServerFirst::parse(message, &self.nonce)?;
        let without_proof = format!("c={},r={}", self.channel_binding.encode(), server.nonce);
        let transcript = Transcript {
            auth_message: format!("{},{message},{without_proof}", self.bare),
            without_proof,
        };
        let prepared = prepare(password)?;
        Ok(Derivation {
            pbkdf2: Box::new(Pbkdf2::new(prepared.as_bytes(), &server.salt, server.iterations)),
            password: Zeroizing::new(password.to_owned()),
            salt: server.salt,
            iterations: server.iterations,
            transcript,
        })
    }
}

/// What both proofs are made over.
struct Transcript {
    /// The whole conversation up to the proofs: `AuthMessage`.
    auth_message: String,
    /// The second message up to the proof: `client-final-message-without-proof`.
    without_proof: String,
}

/// The second state: the password is being turned into keys.
///
/// Dropping it between two steps abandons the login.
#[must_use = "the login goes on when the derivation has run to its end"]
pub struct Derivation {
    /// In a place of its own: what is moved leaves a copy behind.
    pbkdf2: Box<Pbkdf2>,
    password: Zeroizing<String>,
    salt: Vec<u8>,
    iterations: u32,
    transcript: Transcript,
}

impl Derivation {
    /// Takes the key of an earlier login for the result, if it was of the same password, salt and number
    /// of iterations: then there is nothing left to run. Otherwise this changes nothing.
    pub fn resume(mut self, key: &ScramKey) -> Self {
        let known = &*key.0;
        if *known.password == *self.password
            && known.salt == self.salt
            && known.iterations == self.iterations
        {
            self.pbkdf2.resume(&known.salted_password);
        }
        self
    }

    /// Runs at most so many iterations.
    ///
    /// A processor does some millions of them in a second, so a thousand at a time do not hold up
    /// the other tasks of a thread.
    pub fn run(mut self, iterations: u32) -> Progress {
        if !self.pbkdf2.run(iterations) {
            return Progress::More(self);
        }
        let key = ScramKey(Arc::new(Known {
            password: self.password,
            salt: self.salt,
            iterations: self.iterations,
            salted_password: self.pbkdf2.sum().clone(),
        }));
        Progress::Done(ClientFinal::new(key, &self.transcript))
    }
}

/// What a password is worth with one salt and number of iterations, for the next login: see
/// [`Derivation::resume`]. Overwritten in memory when the last clone is dropped.
///
/// It is as good as the password, and contains it.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKey(Arc<Known>);

#[derive(PartialEq, Eq)]
struct Known {
    password: Zeroizing<String>,
    salt: Vec<u8>,
    iterations: u32,
    salted_password: Zeroizing<[u8; HASH_BYTES]>,
}

/// Shows nothing.
impl fmt::Debug for ScramKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramKey").finish_non_exhaustive()
    }
}

/// Shows how far it is, and no key.
impl fmt::Debug for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Derivation")
            .field("iterations_left", &self.pbkdf2.iterations_left())
            .finish_non_exhaustive()
    }
}

/// How far a [`Derivation`] has come.
#[derive(Debug)]
#[must_use = "the login goes on with what is in here"]
pub enum Progress {
    /// There are iterations left.
    More(Derivation),
    /// The keys are there.
    Done(ClientFinal),
}

/// The third state: the client-final-message is to be sent, in a `SASLResponse`.
pub struct ClientFinal {
    message: String,
    key: ScramKey,
    /// Has absorbed everything that the server signs.
    server_signature: HmacSha256,
}

impl ClientFinal {
    /// RFC 5802, section 3.
    fn new(key: ScramKey, transcript: &Transcript) -> Self {
        let auth_message = transcript.auth_message.as_bytes();
        let password = keyed(&*key.0.salted_password);

        let client_key = Zeroizing::new(mac(&password, b"Client Key"));
        let stored_key = Sha256::digest(*client_key);
        let mut proof = mac(&keyed(&stored_key), auth_message);
        xor(&mut proof, &*client_key);

        let server_key = Zeroizing::new(mac(&password, b"Server Key"));
        Self {
            message: format!("{},p={}", transcript.without_proof, STANDARD.encode(proof)),
            key,
            server_signature: keyed(&*server_key).chain_update(auth_message),
        }
    }

    /// The client-final-message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Takes the server-final-message, the data of an `AuthenticationSASLFinal`, and gives what makes the
    /// next login a quick one.
    ///
    /// # Errors
    ///
    /// The message is malformed, says that the server refused, or has a signature that only a
    /// server which does not know the password would send.
    pub fn server_final(self, data: &[u8]) -> Result<ScramKey, ScramError> {
        if let Some(reason) = data.strip_prefix(b"e=") {
            return Err(ScramError::Refused(readable(reason)));
        }
        let malformed = malformed(ServerMessage::Final);
        let message = text(data, ServerMessage::Final)?;
        let signature = message.strip_prefix("v=").ok_or(malformed("does not begin with v="))?;
        let signature = STANDARD
            .decode(signature)
            .map_err(|_| malformed("has a signature that is not exactly one base64 text"))?;
        if signature.len() != HASH_BYTES {
            return Err(malformed("has a signature that is not 32 bytes long"));
        }
        // Compares in constant time.
        self.server_signature.verify_slice(&signature).map_err(|_| ScramError::WrongSignature)?;
        Ok(self.key)
    }
}

/// Shows nothing: the proof in the message is good for guessing the password offline.
impl fmt::Debug for ClientFinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFinal").finish_non_exhaustive()
    }
}

/// Why a SCRAM login failed, and on whose side.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScramError {
    /// The server's message breaks the rules of RFC 5802.
    Malformed {
        /// Which message.
        message: ServerMessage,
        /// What is wrong with it, in words that follow "it".
        problem: &'static str,
    },
    /// The server demands an extension of SCRAM; none is defined so far.
    MandatoryExtension,
    /// The server's nonce does not begin with the client's, or adds nothing to it: the message
    /// belongs to another login, perhaps an old one played again.
    WrongNonce,
    /// The server asks for no iterations, or for more than [`ITERATIONS_MAX`].
    Iterations {
        /// How many it asks for.
        asked: u64,
    },
    /// The server refused the login; these are its words, cut and cleaned.
    ///
    /// PostgreSQL reports a wrong password by an `ErrorResponse` instead.
    Refused(String),
    /// The password is not ASCII, and pglock's feature `saslprep` is switched off.
    NeedsSaslprep,
    /// The server's signature is wrong: it does not know the password.
    WrongSignature,
}

/// A message of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// server-first-message: nonce, salt, iterations.
    First,
    /// server-final-message: the server's signature.
    Final,
}

impl Error for ScramError {}

impl fmt::Display for ScramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { message, problem } => {
                write!(f, "the server's SCRAM {message} is malformed: it {problem}")
            }
            Self::MandatoryExtension => {
                f.write_str("the server demands a SCRAM extension (m=) that is not known here")
            }
            Self::WrongNonce => f.write_str(
                "the server's SCRAM nonce does not continue this client's: its message belongs to \
                 another login",
            ),
            Self::Iterations { asked } => write!(
                f,
                "the server asks for {asked} SCRAM iterations, and 1 to {ITERATIONS_MAX} are \
                 accepted here: set its parameter scram_iterations, then the password anew",
            ),
            Self::Refused(reason) => write!(f, "the server refused the SCRAM login: {reason}"),
            Self::NeedsSaslprep => f.write_str(
                "the password is not ASCII: to log in by SCRAM with it, switch on pglock's feature \
                 `saslprep`",
            ),
            Self::WrongSignature => f.write_str(
                "the server could not prove that it knows the password: this may not be the \
                 server that was meant",
            ),
        }
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "server-first-message",
            Self::Final => "server-final-message",
        })
    }
}

/// A server-first-message, checked.
struct ServerFirst<'a> {
    /// The client's nonce and the server's after it.
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> ServerFirst<'a> {
    /// Accepts exactly `r=nonce,s=salt,i=iterations`.
    ///
    /// RFC 5802 lets extensions follow. PostgreSQL's client accepts none, and no server sends any.
    fn parse(message: &'a str, client_nonce: &str) -> Result<Self, ScramError> {
        let malformed = malformed(ServerMessage::First);
        if message.starts_with("m=") {
            return Err(ScramError::MandatoryExtension);
        }
        let mut fields = message.split(',');
        let mut field = |name| fields.next().and_then(|field| field.strip_prefix(name));
        let nonce = field("r=").ok_or(malformed("does not begin with a nonce (r=)"))?;
        let salt = field("s=").ok_or(malformed("has no salt (s=) after the nonce"))?;
        let iterations = field("i=").ok_or(malformed("has no iterations (i=) after the salt"))?;
        if fields.next().is_some() {
            return Err(malformed("goes on after the iterations"));
        }
        Ok(Self {
            nonce: check_nonce(nonce, client_nonce)?,
            salt: parse_salt(salt)?,
            iterations: parse_iterations(iterations)?,
        })
    }
}

/// "The client MUST verify that the initial part of the nonce used in subsequent messages is the
/// same as the nonce it initially specified" (RFC 5802, section 5.1).
fn check_nonce<'a>(nonce: &'a str, client_nonce: &str) -> Result<&'a str, ScramError> {
    let printable = nonce.bytes().all(|byte| byte.is_ascii_graphic());
    if !printable {
        return Err(malformed(ServerMessage::First)("has a nonce that is not printable ASCII"));
    }
    match nonce.strip_prefix(client_nonce) {
        Some("") | None => Err(ScramError::WrongNonce),
        Some(_) => Ok(nonce),
    }
}

fn parse_salt(salt: &str) -> Result<Vec<u8>, ScramError> {
    match STANDARD.decode(salt) {
        Ok(salt) if !salt.is_empty() => Ok(salt),
        Ok(_) => Err(malformed(ServerMessage::First)("has an empty salt")),
        Err(_) => Err(malformed(ServerMessage::First)("has a salt that is not base64")),
    }
}

/// Stricter than `str::parse`, which takes a plus sign and leading zeros.
fn parse_iterations(text: &str) -> Result<u32, ScramError> {
    let malformed = malformed(ServerMessage::First);
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit())
        && !text.is_empty()
        && (text == "0" || !text.starts_with('0'));
    if !canonical {
        return Err(malformed("has iterations that are not a plain decimal number"));
    }
    let asked: u64 =
        text.parse().map_err(|_| malformed("has more iterations than 64 bits can count"))?;
    match u32::try_from(asked) {
        Ok(iterations @ 1..=ITERATIONS_MAX) => Ok(iterations),
        _ => Err(ScramError::Iterations { asked }),
    }
}

fn text(data: &[u8], message: ServerMessage) -> Result<&str, ScramError> {
    std::str::from_utf8(data).map_err(|_| malformed(message)("is not UTF-8"))
}

/// Names the message once, for all that can be wrong with it.
fn malformed(message: ServerMessage) -> impl Fn(&'static str) -> ScramError + Copy {
    move |problem| ScramError::Malformed { message, problem }
}

/// Makes text of a server that has proved nothing fit to be shown: short, and without anything
/// that a terminal acts on. What SASL defines (mechanisms, reasons) are short words in ASCII.
pub(super) fn readable(words: &[u8]) -> String {
    let readable = |&byte: &u8| match char::from(byte) {
        shown @ ' '..='~' => shown,
        _ => '?',
    };
    words.iter().take(READABLE_CHARS_MAX).map(readable).collect()
}

/// Brings the password to the form that the server hashed when it was set.
#[cfg(feature = "saslprep")]
#[expect(clippy::unnecessary_wraps, reason = "without the feature, there is an error")]
fn prepare(password: &str) -> Result<Zeroizing<String>, ScramError> {
    Ok(Zeroizing::new(saslprep(password).into_owned()))
}

/// What is ASCII is hashed as it is.
#[cfg(not(feature = "saslprep"))]
fn prepare(password: &str) -> Result<Zeroizing<String>, ScramError> {
    if password.is_ascii() {
        Ok(Zeroizing::new(password.to_owned()))
    } else {
        Err(ScramError::NeedsSaslprep)
    }
}

/// An HMAC with a key of any length.
///
/// The crate's constructor for such keys returns a `Result` that is never an error. The one for
/// keys of a whole block does not.
fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new((&*padded(key)).into())
}

fn mac(keyed: &HmacSha256, data: &[u8]) -> [u8; HASH_BYTES] {
    keyed.clone().chain_update(data).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    /// The client of RFC 7677, section 3. It names its user, which [`ClientFirst::new`] never does.
    fn rfc_7677() -> ClientFirst {
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        let bare = format!("n=user,r={nonce}");
        ClientFirst { channel_binding: ChannelBinding::Unsupported, bare, nonce }
    }

    fn finish(derivation: Derivation) -> ClientFinal {
        match derivation.run(u32::MAX) {
            Progress::Done(client) => client,
            Progress::More(rest) => panic!("all iterations were to run: {rest:?}"),
        }
    }

    fn client_final() -> ClientFinal {
        finish(rfc_7677().server_first(SERVER_FIRST.as_bytes(), "pencil").unwrap())
    }

    /// What the client makes of a server-final-message. Each takes a state of its own, and deriving
    /// the keys anew for each would make the tests slow.
    fn answer(client: &ClientFinal, server_final: &[u8]) -> Result<ScramKey, ScramError> {
        let server_signature = client.server_signature.clone();
        let key = client.key.clone();
        ClientFinal { message: String::new(), key, server_signature }.server_final(server_final)
    }

    #[test]
    fn rfc_7677_vector() {
        assert_eq!(rfc_7677().message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let client = client_final();
        assert_eq!(
            client.message(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(client.server_final(SERVER_FINAL.as_bytes()).is_ok());
    }

    #[test]
    fn channel_binding_is_in_the_first_message_and_repeated_in_the_second() {
        for (channel_binding, mechanism, first, repeated) in [
            (ChannelBinding::Unsupported, "SCRAM-SHA-256", "n,,", "c=biws,"),
            (ChannelBinding::NotOffered, "SCRAM-SHA-256", "y,,", "c=eSws,"),
            (
                ChannelBinding::TlsServerEndPoint(b"hash".to_vec()),
                "SCRAM-SHA-256-PLUS",
                "p=tls-server-end-point,,",
                "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsaGFzaA==,",
            ),
        ] {
            let client = ClientFirst::new([0; NONCE_BYTES], channel_binding);
            assert_eq!(client.mechanism(), mechanism);
            assert_eq!(client.message(), format!("{first}n=,r=AAAAAAAAAAAAAAAAAAAAAAAA"));
            let client = client
                .server_first(b"r=AAAAAAAAAAAAAAAAAAAAAAAAserver,s=c2FsdA==,i=1", "pencil")
                .unwrap();
            assert!(finish(client).message().starts_with(repeated));
        }
    }

    /// Computed apart from this code, with Python's `hashlib`, around HMAC's block of 64 bytes.
    #[test]
    fn long_passwords_are_hashed_before_they_are_keys() {
        let server_first = SERVER_FIRST.replace("i=4096", "i=7");
        for (length, proof) in [
            (64, "Ki+k3Yl5WYOr3O0A4VvTnkVgGB9BHCGUfTp6QeY9+ds="),
            (65, "tX/OZNQPdFb3VaVKGzSjnNoYM1i9D6/5h/TuUuk7oGk="),
            (200, "PbbzbdyTce74pxqP7MPKmq7vFUWjyK0snSKJ8N/fq1k="),
        ] {
            let password = "x".repeat(length);
            let derivation = rfc_7677().server_first(server_first.as_bytes(), &password).unwrap();
            let message = finish(derivation).message;
            assert_eq!(message.rsplit_once(",p=").unwrap().1, proof, "{length} bytes");
        }
    }

    #[cfg(feature = "saslprep")]
    #[test]
    fn the_password_is_prepared() {
        let message = |password| {
            finish(rfc_7677().server_first(SERVER_FIRST.as_bytes(), password).unwrap()).message
        };
        assert_eq!(message("caffe\u{300}"), message("caff\u{e8}"));
    }

    #[cfg(not(feature = "saslprep"))]
    #[test]
    fn a_password_that_cannot_be_prepared_is_refused() {
        let answer = rfc_7677().server_first(SERVER_FIRST.as_bytes(), "caff\u{e8}");
        assert_eq!(answer.unwrap_err(), ScramError::NeedsSaslprep);
    }

    #[test]
    fn a_key_is_good_for_the_same_password_salt_and_iterations_only() {
        let begin =
            |first: &str, password| rfc_7677().server_first(first.as_bytes(), password).unwrap();
        let key = client_final().server_final(SERVER_FINAL.as_bytes()).unwrap();
        let resumed = begin(SERVER_FIRST, "pencil").resume(&key);
        assert_eq!(resumed.pbkdf2.iterations_left(), 0);
        let resumed = finish(resumed);
        assert_eq!(resumed.message, client_final().message);
        assert_eq!(resumed.server_final(SERVER_FINAL.as_bytes()), Ok(key.clone()));
        for (first, password) in [
            (SERVER_FIRST, "pencils"),
            (&*SERVER_FIRST.replace("4096", "4095"), "pencil"),
            (&*SERVER_FIRST.replace("s=W22", "s=W21"), "pencil"),
        ] {
            let other = begin(first, password).resume(&key);
            assert!(other.pbkdf2.iterations_left() > 0, "{first}");
            assert_eq!(finish(other).message, finish(begin(first, password)).message);
        }
    }

    #[test]
    fn steps_of_any_length_derive_the_same() {
        const ITERATIONS: u32 = 50;
        let server_first = SERVER_FIRST.replace("i=4096", "i=50");
        let begin = || rfc_7677().server_first(server_first.as_bytes(), "pencil").unwrap();
        let whole = finish(begin()).message;
        for step in 1..=ITERATIONS {
            let mut derivation = begin();
            let mut steps = 1;
            let client = loop {
                match derivation.run(step) {
                    Progress::More(rest) => derivation = rest,
                    Progress::Done(client) => break client,
                }
                steps += 1;
            };
            assert_eq!(client.message, whole, "in steps of {step}");
            // The first iteration was done when the derivation began.
            assert_eq!(steps, (ITERATIONS - 1).div_ceil(step), "in steps of {step}");
        }
    }

    #[test]
    fn a_step_of_nothing_loses_nothing() {
        let derivation = rfc_7677().server_first(SERVER_FIRST.as_bytes(), "pencil").unwrap();
        let Progress::More(derivation) = derivation.run(0) else { panic!("nothing was run") };
        assert_eq!(finish(derivation).message, client_final().message);
    }

    #[test]
    fn server_first_messages_that_are_refused() {
        let malformed = malformed(ServerMessage::First);
        let no_nonce = malformed("does not begin with a nonce (r=)");
        let no_salt = malformed("has no salt (s=) after the nonce");
        let no_iterations = malformed("has no iterations (i=) after the salt");
        let not_ascii = malformed("has a nonce that is not printable ASCII");
        let not_base64 = malformed("has a salt that is not base64");
        let not_a_number = malformed("has iterations that are not a plain decimal number");
        let trailing = malformed("goes on after the iterations");
        let wrong_nonce = ScramError::WrongNonce;
        let asked = |asked| ScramError::Iterations { asked };
        let ours = "r=rOprNGfwEbeRWgbNEkqO";
        for (message, expected) in [
            (String::new(), &no_nonce),
            ("e=other-error".into(), &no_nonce),
            ("s=c2FsdA==,r=abc,i=1".into(), &no_nonce),
            (format!(",{ours}x,s=c2FsdA==,i=1"), &no_nonce),
            (format!("R{ours}x,s=c2FsdA==,i=1"), &no_nonce),
            (format!("m=ext,{ours}x,s=c2FsdA==,i=1"), &ScramError::MandatoryExtension),
            (format!("{ours},s=c2FsdA==,i=1"), &wrong_nonce),
            ("r=,s=c2FsdA==,i=1".into(), &wrong_nonce),
            ("r=rOprNGfwEbeRWgbNEkq,s=c2FsdA==,i=1".into(), &wrong_nonce),
            ("r=xrOprNGfwEbeRWgbNEkqO,s=c2FsdA==,i=1".into(), &wrong_nonce),
            ("r=roprngfwebergwgbnekqo!,s=c2FsdA==,i=1".into(), &wrong_nonce),
            (format!("{ours} x,s=c2FsdA==,i=1"), &not_ascii),
            (format!("{ours}\u{e9},s=c2FsdA==,i=1"), &not_ascii),
            (format!("{ours}\0,s=c2FsdA==,i=1"), &not_ascii),
            (format!("{ours}x"), &no_salt),
            (format!("{ours}x,i=1,s=c2FsdA=="), &no_salt),
            (format!("{ours}x,x=1,s=c2FsdA==,i=1"), &no_salt),
            (format!("{ours}x,s=,i=1"), &malformed("has an empty salt")),
            (format!("{ours}x,s=c2FsdA,i=1"), &not_base64),
            (format!("{ours}x,s=c2FsdB==,i=1"), &not_base64),
            (format!("{ours}x,s=c2FsdA== ,i=1"), &not_base64),
            (format!("{ours}x,s=c2-_dA==,i=1"), &not_base64),
            (format!("{ours}x,s=c2FsdA=="), &no_iterations),
            (format!("{ours}x,s=c2FsdA==,"), &no_iterations),
            (format!("{ours}x,s=c2FsdA==,I=1"), &no_iterations),
            (format!("{ours}x,s=c2FsdA==,i="), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=+1"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=-1"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i= 1"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=1\n"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=1\0"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=0x10"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=04096"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=00"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=\u{661}"), &not_a_number),
            (format!("{ours}x,s=c2FsdA==,i=0"), &asked(0)),
            (format!("{ours}x,s=c2FsdA==,i=10000001"), &asked(10_000_001)),
            (format!("{ours}x,s=c2FsdA==,i=4294967297"), &asked(4_294_967_297)),
            (
                format!("{ours}x,s=c2FsdA==,i=18446744073709551616"),
                &malformed("has more iterations than 64 bits can count"),
            ),
            (format!("{ours}x,s=c2FsdA==,i=1,"), &trailing),
            (format!("{ours}x,s=c2FsdA==,i=1,x=extension"), &trailing),
        ] {
            let answer = rfc_7677().server_first(message.as_bytes(), "pencil");
            assert_eq!(&answer.unwrap_err(), expected, "{message:?}");
        }
        let answer = rfc_7677().server_first(b"r=\xff", "pencil");
        assert_eq!(answer.unwrap_err(), malformed("is not UTF-8"));
    }

    #[test]
    fn iterations_from_one_to_the_most_are_accepted() {
        for iterations in [1, 2, 4096, ITERATIONS_MAX] {
            let message = SERVER_FIRST.replace("4096", &iterations.to_string());
            let derivation = rfc_7677().server_first(message.as_bytes(), "pencil").unwrap();
            assert_eq!(derivation.pbkdf2.iterations_left(), iterations - 1);
        }
    }

    #[test]
    fn a_server_first_message_cut_short_never_yields_the_proof() {
        let proof = client_final().message;
        for end in 0..SERVER_FIRST.len() {
            // Cut within the number of iterations, the message is well-formed: the derivation is
            // a shorter one, and the server refuses its proof.
            let cut = &SERVER_FIRST.as_bytes()[..end];
            if let Ok(derivation) = rfc_7677().server_first(cut, "pencil") {
                assert!(SERVER_FIRST[..end].contains(",i=4"), "{end}");
                assert_ne!(finish(derivation).message, proof, "{end}");
            }
        }
    }

    #[test]
    fn server_final_messages_that_are_refused() {
        let client = client_final();
        let malformed = malformed(ServerMessage::Final);
        let no_signature = malformed("does not begin with v=");
        let not_base64 = malformed("has a signature that is not exactly one base64 text");
        let wrong_length = malformed("has a signature that is not 32 bytes long");
        for (message, expected) in [
            (String::new(), &no_signature),
            (SERVER_FINAL.replace("v=", "V="), &no_signature),
            (format!(" {SERVER_FINAL}"), &no_signature),
            (format!("{SERVER_FINAL}\0"), &not_base64),
            (format!("{SERVER_FINAL},x=extension"), &not_base64),
            (SERVER_FINAL.replace("G4=", "G4"), &not_base64),
            (SERVER_FINAL.replace("G4=", "G5="), &not_base64),
            ("v=".into(), &wrong_length),
            ("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95A==".into(), &wrong_length),
            (SERVER_FINAL.replace("G4=", "G4A"), &wrong_length),
            (SERVER_FINAL.replace("v=6", "v=7"), &ScramError::WrongSignature),
            (SERVER_FINAL.replace("G4=", "G8="), &ScramError::WrongSignature),
            ("e=other-error".into(), &ScramError::Refused("other-error".into())),
        ] {
            assert_eq!(answer(&client, message.as_bytes()).as_ref(), Err(expected), "{message:?}");
        }
        assert_eq!(answer(&client, b"v=\xff"), Err(malformed("is not UTF-8")));
    }

    #[test]
    fn a_server_final_message_cut_short_is_refused() {
        let client = client_final();
        assert!(answer(&client, SERVER_FINAL.as_bytes()).is_ok());
        for end in 0..SERVER_FINAL.len() {
            assert!(answer(&client, &SERVER_FINAL.as_bytes()[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_signature_for_another_password_is_refused() {
        let derivation = rfc_7677().server_first(SERVER_FIRST.as_bytes(), "pencils").unwrap();
        let answer = finish(derivation).server_final(SERVER_FINAL.as_bytes());
        assert_eq!(answer, Err(ScramError::WrongSignature));
    }

    #[test]
    fn the_reason_of_a_refusal_is_cut_and_cleaned() {
        let mut message = b"e=\x1b[2J\xe2\x80\xae\n".to_vec();
        message.resize(1000, b'x');
        let Err(ScramError::Refused(reason)) = client_final().server_final(&message) else {
            panic!("a refusal has a reason")
        };
        assert_eq!(reason.strip_prefix("?[2J????").unwrap(), "x".repeat(92));
    }

    #[test]
    fn errors_say_what_and_where() {
        for (error, words) in [
            (
                malformed(ServerMessage::First)("has an empty salt"),
                "the server's SCRAM server-first-message is malformed: it has an empty salt",
            ),
            (
                ScramError::Iterations { asked: 4_294_967_297 },
                "the server asks for 4294967297 SCRAM iterations, and 1 to 10000000 are accepted \
                 here: set its parameter scram_iterations, then the password anew",
            ),
        ] {
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let derivation = rfc_7677().server_first(SERVER_FIRST.as_bytes(), "pencil").unwrap();
        assert_eq!(format!("{derivation:?}"), "Derivation { iterations_left: 4095, .. }");
        assert_eq!(format!("{:?}", derivation.run(u32::MAX)), "Done(ClientFinal { .. })");
    }
}
