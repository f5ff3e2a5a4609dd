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

use bytes::BytesMut;

use super::scram::{ChannelBinding, ClientFinal, ClientFirst, Derivation, Progress};
use super::{
    Authentication, BackendMessage, ProtocolError, TransactionStatus, frontend, md5_password,
};

const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Rounds of the password's derivation in one step: about half a millisecond of one core.
const ROUNDS_PER_STEP: u32 = 4_096;

/// Who logs in, and how they prove it.
pub struct Credentials {
    /// The role.
    pub user: String,
    /// Its password, if there is one.
    pub password: Option<String>,
    /// Whether the password may be sent as it is, because nobody can read along or the caller
    /// accepts that somebody may.
    pub cleartext_permitted: bool,
    /// Random bytes that were never used before.
    pub nonce: [u8; 18],
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What names a session to `CancelRequest`.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    process_id: i32,
    secret: Vec<u8>,
}

impl CancelKey {
    /// The server process, as `BackendKeyData` named it. Behind a pooler it is not the process that
    /// runs the statements.
    #[must_use]
    pub fn process_id(&self) -> i32 {
        self.process_id
    }

    /// Writes the `CancelRequest` for this session.
    pub fn cancel_request(&self, out: &mut BytesMut) {
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
}

/// The login, as far as it has come.
pub(super) struct Login {
    state: State,
    credentials: Credentials,
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
    Complete(ServerIdentity),
}

impl Login {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            state: State::Greeted,
            credentials,
            version_negotiated: false,
            cancel_key: None,
            server_version: None,
            in_hot_standby: None,
        }
    }

    /// Goes on with the password's derivation, if that is where the login is. The result says
    /// whether it was.
    pub(super) fn derive(&mut self, out: &mut BytesMut) -> bool {
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
        out: &mut BytesMut,
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
                self.cancel_key = Some(CancelKey { process_id, secret: secret_key.to_vec() });
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
        out: &mut BytesMut,
    ) -> Result<Step, ProtocolError> {
        let state = std::mem::replace(&mut self.state, State::Failed);
        self.state = match (state, request) {
            (State::Greeted | State::PasswordSent | State::Proven, Authentication::Ok) => {
                self.state = State::Accepted;
                return Ok(Step::Accepted);
            }
            (State::Greeted, Authentication::CleartextPassword) => {
                if !self.credentials.cleartext_permitted {
                    return Err(ProtocolError::CleartextRefused);
                }
                frontend::password_message(self.password()?, out);
                State::PasswordSent
            }
            (State::Greeted, Authentication::Md5Password { salt }) => {
                let hash = md5_password(&self.credentials.user, self.password()?, salt);
                frontend::password_message(&hash, out);
                State::PasswordSent
            }
            (State::Greeted, Authentication::Sasl(mechanisms)) => {
                check_mechanisms(&mechanisms)?;
                self.password()?;
                let first = ClientFirst::new(self.credentials.nonce, ChannelBinding::Unsupported);
                let message = first.message();
                frontend::sasl_initial_response(first.mechanism(), message.as_bytes(), out);
                State::SaslBegun(first)
            }
            (State::SaslBegun(first), Authentication::SaslContinue(data)) => {
                State::Deriving(first.server_first(data, self.password()?)?)
            }
            (State::ProofSent(proof), Authentication::SaslFinal(data)) => {
                proof.server_final(data)?;
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
                self.server_version = Some(String::from_utf8_lossy(value).into_owned());
            }
            b"in_hot_standby" => self.in_hot_standby = Some(value == b"on"),
            _ => {}
        }
    }

    fn complete(&mut self) -> Result<Step, ProtocolError> {
        let cancel_key = self.cancel_key.take().ok_or(ProtocolError::NoCancelKey)?;
        Ok(Step::Complete(ServerIdentity {
            cancel_key,
            server_version: self.server_version.take(),
            in_hot_standby: self.in_hot_standby,
        }))
    }
}

/// Over an unencrypted connection, there is nothing that `-PLUS` could bind the login to. A server
/// that offers it sees TLS where we see none: somebody stands in between.
fn check_mechanisms(mechanisms: &[&[u8]]) -> Result<(), ProtocolError> {
    let offered = |name: &str| mechanisms.contains(&name.as_bytes());
    if offered(SCRAM_SHA_256_PLUS) {
        Err(ProtocolError::ChannelBindingWithoutTls)
    } else if offered(SCRAM_SHA_256) {
        Ok(())
    } else {
        Err(ProtocolError::NoCommonMechanism)
    }
}

fn unexpected(message: &BackendMessage<'_>) -> ProtocolError {
    ProtocolError::UnexpectedMessage { message: message.name(), during: "the login" }
}
