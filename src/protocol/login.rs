//! From the first message to the first `ReadyForQuery`.
//!
//! ```text
//!            ┌── Ok ───────────────────────────────────────────────────┐
//!            ├── CleartextPassword ──▶ PasswordSent ── Ok ─────────────┤
//! Greeted ───┼── MD5Password ──────▶ PasswordSent ── Ok ───────────────┼─▶ Accepted ── ReadyForQuery ──▶
//!            └── SASL ─▶ SaslBegun ── SASLContinue ─▶ Deriving         │
//!                                                        │ (computed)  │
//!                         Proven ◀── SASLFinal ── ProofSent            │
//!                            └── Ok ───────────────────────────────────┘
//! ```
//!
//! Each state owns what it needs and a step consumes it. Whatever is not drawn is an error, above all
//! an `Ok` in the middle of SASL: a server that skips its proof does not know the password.
//!
//! The server chooses the method, so whoever stands in for it can choose a weak one. What
//! [`Credentials`] demand is checked on every way out of `Greeted`, before an answer is written: a
//! refused server has seen nothing but the startup message.
use zeroize::{Zeroize, Zeroizing};

use super::scram::{
    ChannelBinding, ClientFinal, ClientFirst, Derivation, NONCE_BYTES, Progress, ScramKey, readable,
};
use super::{
    AuthMethod, AuthMethods, Authentication, BackendMessage, ChannelBindingPolicy, ProtocolError,
    TransactionStatus, Unbound, frontend,
};

const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Most of the server's version that is kept, in bytes: it begins with the number.
const VERSION_BYTES_MAX: usize = 64;

/// Rounds of the password's derivation in one step: about a third of a millisecond of one core.
const ROUNDS_PER_STEP: u32 = 4_096;

/// Who logs in, how they prove it, and what they demand of the login. The password is overwritten in
/// memory when this is dropped.
#[non_exhaustive]
pub struct Credentials {
    /// The role.
    pub user: String,
    /// Its password, if there is one.
    pub password: Option<String>,
    /// What an earlier login gave for the next: see [`ServerIdentity::scram_key`]. It is used if it fits.
    pub scram_key: Option<ScramKey>,
    /// Random bytes that were never used before.
    pub nonce: [u8; NONCE_BYTES],
    /// What the login runs over.
    pub transport: Transport,
    /// Whether the password may be sent as it is even where others may read along.
    pub cleartext_permitted: bool,
    /// The methods that the server may ask for.
    pub require_auth: AuthMethods,
    /// Whether the login is bound to the TLS connection.
    pub channel_binding: ChannelBindingPolicy,
}

impl Credentials {
    /// Logs in as libpq does by default, over a network where others may read along. The password is
    /// not sent as it is.
    #[must_use]
    pub fn new(user: String, password: Option<String>, nonce: [u8; NONCE_BYTES]) -> Self {
        Self {
            user,
            password,
            scram_key: None,
            nonce,
            transport: Transport::default(),
            cleartext_permitted: false,
            require_auth: AuthMethods::default(),
            channel_binding: ChannelBindingPolicy::default(),
        }
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.password.zeroize();
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What a login runs over, as far as it matters to what may be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// A network where others may read along.
    #[default]
    Clear,
    /// Nothing that leaves the machine: a Unix socket.
    Private,
    /// TLS.
    Tls {
        /// What the login can be tied to: [`tls_server_end_point`](super::tls_server_end_point) of
        /// the server's certificate.
        end_point: Option<Vec<u8>>,
    },
}

/// What names a session to `CancelRequest`.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    process_id: i32,
    secret: Zeroizing<Vec<u8>>,
}

impl CancelKey {
    /// The server process, as `BackendKeyData` named it. Behind a pooler it is not the process that
    /// runs the statements.
    #[must_use]
    pub fn process_id(&self) -> i32 {
        self.process_id
    }

    /// Writes the `CancelRequest` for this session.
    pub fn cancel_request(&self, out: &mut Vec<u8>) {
        frontend::cancel_request(self.process_id, &self.secret, out);
    }
}

/// Shows the process and not the secret.
impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelKey").field("process_id", &self.process_id).finish_non_exhaustive()
    }
}

/// What a server tells about itself while a client logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    /// How to cancel what this session does.
    pub cancel_key: CancelKey,
    /// For instance `15.4 (Debian 15.4-1)`.
    pub server_version: Option<String>,
    /// Whether the server is a standby; told by PostgreSQL 14 and later.
    pub in_hot_standby: Option<bool>,
    /// How the client was let in. [`AuthMethod::Md5`] is deprecated: a caller may want to say so.
    pub authentication: AuthMethod,
    /// Whether the login was bound to the TLS connection.
    pub channel_bound: bool,
    /// What makes the next login with the same password a quick one, if it was by SCRAM.
    pub scram_key: Option<ScramKey>,
}

/// The login, as far as it has come.
pub(super) struct Login {
    state: State,
    credentials: Credentials,
    authentication: AuthMethod,
    channel_bound: bool,
    scram_key: Option<ScramKey>,
    version_negotiated: bool,
    cancel_key: Option<CancelKey>,
    server_version: Option<String>,
    in_hot_standby: Option<bool>,
}

enum State {
    Greeted,
    PasswordSent,
    SaslBegun(ClientFirst),
    Deriving(Derivation),
    ProofSent(ClientFinal),
    Proven,
    Accepted,
    /// A step failed; no further one is taken.
    Failed,
}

/// How a message moved the login on.
pub(super) enum Step {
    /// The login goes on.
    More,
    /// The server knows who we are and we know what it proved: its later messages may be longer.
    Accepted,
    /// The login is complete.
    Complete(Box<ServerIdentity>),
}

impl Login {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            state: State::Greeted,
            credentials,
            authentication: AuthMethod::None,
            channel_bound: false,
            scram_key: None,
            version_negotiated: false,
            cancel_key: None,
            server_version: None,
            in_hot_standby: None,
        }
    }

    /// Goes on with the password's derivation, if that is where the login is. The result says
    /// whether it was.
    pub(super) fn derive(&mut self, out: &mut Vec<u8>) -> bool {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Deriving(derivation) => {
                self.state = match derivation.run(ROUNDS_PER_STEP) {
                    Progress::More(derivation) => State::Deriving(derivation),
                    Progress::Done(proof) => {
                        frontend::sasl_response(proof.message().as_bytes(), out);
                        State::ProofSent(proof)
                    }
                };
                true
            }
            other => {
                self.state = other;
                false
            }
        }
    }

    pub(super) fn handle(
        &mut self,
        message: BackendMessage<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        match message {
            BackendMessage::Authentication(request) => self.authenticate(request, out),
            BackendMessage::NegotiateProtocolVersion { version, .. } => self.negotiate(version),
            message if !matches!(self.state, State::Accepted) => Err(unexpected(&message)),
            BackendMessage::ParameterStatus { name, value } => {
                self.note_parameter(name, value);
                Ok(Step::More)
            }
            BackendMessage::BackendKeyData { process_id, secret_key } => {
                self.cancel_key =
                    Some(CancelKey { process_id, secret: secret_key.to_vec().into() });
                Ok(Step::More)
            }
            // A login trigger (PostgreSQL 17 and later) may have something to say.
            BackendMessage::NoticeResponse(_) | BackendMessage::NotificationResponse { .. } => {
                Ok(Step::More)
            }
            BackendMessage::ReadyForQuery(TransactionStatus::Idle) => self.complete(),
            message => Err(unexpected(&message)),
        }
    }

    fn authenticate(
        &mut self,
        request: Authentication<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        let state = std::mem::replace(&mut self.state, State::Failed);
        self.state = match (state, request) {
            (State::Greeted, Authentication::Ok) => {
                self.admit(AuthMethod::None)?;
                return Ok(self.accept());
            }
            (State::PasswordSent | State::Proven, Authentication::Ok) => return Ok(self.accept()),
            (State::Greeted, Authentication::CleartextPassword) => {
                self.admit(AuthMethod::Password)?;
                frontend::password_message(self.cleartext_password()?, out);
                State::PasswordSent
            }
            (State::Greeted, Authentication::Md5Password { salt }) => {
                self.admit(AuthMethod::Md5)?;
                frontend::password_message(&self.md5_password(salt)?, out);
                State::PasswordSent
            }
            (State::Greeted, Authentication::Sasl(mechanisms)) => {
                self.admit(AuthMethod::ScramSha256)?;
                let first = self.begin_scram(&mechanisms)?;
                let message = first.message();
                frontend::sasl_initial_response(first.mechanism(), message.as_bytes(), out);
                State::SaslBegun(first)
            }
            (State::SaslBegun(first), Authentication::SaslContinue(data)) => {
                let derivation = first.server_first(data, self.password()?)?;
                State::Deriving(match &self.credentials.scram_key {
                    Some(key) => derivation.resume(key),
                    None => derivation,
                })
            }
            (State::ProofSent(proof), Authentication::SaslFinal(data)) => {
                self.scram_key = Some(proof.server_final(data)?);
                State::Proven
            }
            (State::SaslBegun(_) | State::ProofSent(_), Authentication::Ok) => {
                return Err(ProtocolError::ServerNotAuthenticated);
            }
            (_, Authentication::Unsupported { method }) => {
                return Err(ProtocolError::UnsupportedAuthentication { method });
            }
            (_, request) => return Err(unexpected(&BackendMessage::Authentication(request))),
        };
        Ok(Step::More)
    }

    /// Goes on by this method, if nothing that the client demands rules it out.
    fn admit(&mut self, method: AuthMethod) -> Result<(), ProtocolError> {
        let Credentials { require_auth, channel_binding, .. } = self.credentials;
        if !require_auth.contains(method) {
            return Err(ProtocolError::MethodRefused { method, permitted: require_auth });
        }
        let can_be_bound = method == AuthMethod::ScramSha256;
        if channel_binding == ChannelBindingPolicy::Require && !can_be_bound {
            return Err(ProtocolError::ChannelBindingRequired(Unbound::Method(method)));
        }
        self.authentication = method;
        Ok(())
    }

    fn accept(&mut self) -> Step {
        self.state = State::Accepted;
        Step::Accepted
    }

    fn cleartext_password(&self) -> Result<&str, ProtocolError> {
        let Credentials { transport, cleartext_permitted, .. } = &self.credentials;
        if *transport == Transport::Clear && !cleartext_permitted {
            return Err(ProtocolError::CleartextRefused);
        }
        self.password()
    }

    #[cfg(feature = "md5")]
    fn md5_password(&self, salt: [u8; 4]) -> Result<Zeroizing<String>, ProtocolError> {
        let hash = super::md5_password(&self.credentials.user, self.password()?, salt);
        Ok(Zeroizing::new(hash))
    }

    #[cfg(not(feature = "md5"))]
    #[expect(clippy::unused_self, reason = "with the feature, it has the password")]
    fn md5_password(&self, _: [u8; 4]) -> Result<Zeroizing<String>, ProtocolError> {
        Err(ProtocolError::NeedsMd5)
    }

    fn begin_scram(&mut self, mechanisms: &[&[u8]]) -> Result<ClientFirst, ProtocolError> {
        let offered = |name: &str| mechanisms.contains(&name.as_bytes());
        let binding = bind(&self.credentials, offered(SCRAM_SHA_256_PLUS))?;
        self.channel_bound = matches!(binding, ChannelBinding::TlsServerEndPoint(_));
        let first = ClientFirst::new(self.credentials.nonce, binding);
        if !offered(first.mechanism()) {
            return Err(ProtocolError::NoCommonMechanism { offered: listed(mechanisms) });
        }
        self.password()?;
        Ok(first)
    }

    fn password(&self) -> Result<&str, ProtocolError> {
        self.credentials.password.as_deref().ok_or(ProtocolError::PasswordNeeded)
    }

    /// The server may offer an older minor version, once. There is none below the 3.0 asked for.
    fn negotiate(&mut self, version: u32) -> Result<Step, ProtocolError> {
        let repeated = std::mem::replace(&mut self.version_negotiated, true);
        if repeated || matches!(self.state, State::Proven | State::Accepted) {
            return Err(ProtocolError::UnexpectedMessage {
                message: "NegotiateProtocolVersion",
                during: "the login",
            });
        }
        if version != frontend::PROTOCOL_VERSION {
            return Err(ProtocolError::UnsupportedVersion {
                major: version >> 16,
                minor: version & 0xffff,
            });
        }
        Ok(Step::More)
    }

    fn note_parameter(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"server_version" => {
                let value = value.get(..VERSION_BYTES_MAX).unwrap_or(value);
                self.server_version = Some(String::from_utf8_lossy(value).into_owned());
            }
            b"in_hot_standby" => self.in_hot_standby = Some(value == b"on"),
            _ => {}
        }
    }

    fn complete(&mut self) -> Result<Step, ProtocolError> {
        let cancel_key = self.cancel_key.take().ok_or(ProtocolError::NoCancelKey)?;
        Ok(Step::Complete(Box::new(ServerIdentity {
            cancel_key,
            server_version: self.server_version.take(),
            in_hot_standby: self.in_hot_standby,
            authentication: self.authentication,
            channel_bound: self.channel_bound,
            scram_key: self.scram_key.take(),
        })))
    }
}

/// Decides what the client says about binding the login to the TLS connection.
fn bind(credentials: &Credentials, plus_offered: bool) -> Result<ChannelBinding, ProtocolError> {
    use ChannelBindingPolicy::{Disable, Prefer, Require};
    let unbound = |why| Err(ProtocolError::ChannelBindingRequired(why));
    match (&credentials.transport, credentials.channel_binding) {
        (Transport::Clear | Transport::Private, Require) => unbound(Unbound::NotEncrypted),
        // There is nothing to bind the login to. A server that offers it sees TLS where we see none:
        // somebody stands in between.
        (Transport::Clear | Transport::Private, _) if plus_offered => {
            Err(ProtocolError::ChannelBindingWithoutTls)
        }
        (Transport::Clear | Transport::Private, _) | (Transport::Tls { .. }, Disable) => {
            Ok(ChannelBinding::Unsupported)
        }
        (Transport::Tls { end_point: None }, Require) => unbound(Unbound::NoEndPoint),
        (Transport::Tls { end_point: None }, Prefer) => Ok(ChannelBinding::Unsupported),
        (Transport::Tls { end_point: Some(hash) }, _) if plus_offered => {
            Ok(ChannelBinding::TlsServerEndPoint(hash.clone()))
        }
        (Transport::Tls { end_point: Some(_) }, Require) => unbound(Unbound::NotOffered),
        (Transport::Tls { end_point: Some(_) }, Prefer) => Ok(ChannelBinding::NotOffered),
    }
}

/// Makes the mechanisms that a server offers fit to be shown.
fn listed(mechanisms: &[&[u8]]) -> String {
    readable(&mechanisms.join(&b", "[..]))
}

fn unexpected(message: &BackendMessage<'_>) -> ProtocolError {
    ProtocolError::UnexpectedMessage { message: message.name(), during: "the login" }
}

#[cfg(test)]
#[cfg(feature = "md5")]
mod tests;
