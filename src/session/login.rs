//! From an open socket to a session that the server has let in.

use std::borrow::Cow;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::{Resolved, Server};
use crate::error::{Error, ErrorKind, Result, ServerError};
use crate::net::{self, Stream};
use crate::protocol::{Connection, Credentials, Event, ProtocolError, ServerIdentity};

/// Logs in over the stream.
pub(super) async fn log_in(
    stream: &mut Stream,
    config: &Resolved,
    server: &Server,
) -> Result<(Connection, ServerIdentity)> {
    let mut connection = greet(config, server, stream)?;
    let mut identity = pass_messages(stream, &mut connection).await.map_err(|error| {
        match (&server.password, &config.passfile_problem) {
            (None, Some(problem)) if error.kind() == ErrorKind::Authentication => {
                error.and(&Error::new(ErrorKind::Config, problem.clone()))
            }
            _ => error,
        }
    })?;
    if let Some(key) = identity.scram_key.take() {
        config.scram_key.keep(key);
    }
    Ok((connection, identity))
}

fn greet(config: &Resolved, server: &Server, stream: &Stream) -> Result<Connection> {
    let mut nonce = [0; 18];
    getrandom::fill(&mut nonce).map_err(|error| {
        Error::new(ErrorKind::Authentication, format!("no random bytes for the login: {error}"))
    })?;
    let password = server.password.as_ref().map(|password| password.to_string());
    let mut credentials = Credentials::new(config.user.clone(), password, nonce);
    credentials.scram_key = config.scram_key.get();
    credentials.cleartext_permitted = config.allow_cleartext_password;
    credentials.transport = stream.transport();
    credentials.require_auth = config.require_auth;
    credentials.channel_binding = config.channel_binding;
    let mut parameters = vec![
        ("database", config.dbname.as_str()),
        ("client_encoding", "UTF8"),
        ("application_name", config.application_name.as_str()),
    ];
    parameters.extend(config.startup_options.as_deref().map(|options| ("options", options)));
    Ok(Connection::new(credentials, &parameters))
}

/// Passes bytes between the socket and the connection until the login is complete.
async fn pass_messages(stream: &mut Stream, connection: &mut Connection) -> Result<ServerIdentity> {
    loop {
        while !connection.outgoing().is_empty() {
            let sent = stream.write(connection.outgoing()).await.map_err(login_broken)?;
            connection.sent(sent);
        }
        stream.flush().await.map_err(login_broken)?;
        match connection.poll_event().map_err(login_failed)? {
            Some(Event::LoggedIn(identity)) => return Ok(*identity),
            Some(Event::Ended(error)) => return Err(login_refused(error)),
            // The derivation takes time: let other tasks run, and the deadline pass.
            Some(Event::Deriving) => tokio::task::yield_now().await,
            Some(_) => {}
            None => {
                if stream.read_buf(connection.received()).await.map_err(login_broken)? == 0 {
                    return Err(Error::new(
                        ErrorKind::Connect,
                        "the server closed the connection during the login",
                    ));
                }
            }
        }
    }
}

fn login_broken(error: io::Error) -> Error {
    let message = match net::problem_of_tls(&error) {
        Some(why) => format!("the connection broke during the login: {why}").into(),
        None => Cow::Borrowed("the connection broke during the login"),
    };
    Error::new(ErrorKind::Connect, message).with_source(error)
}

fn login_failed(error: ProtocolError) -> Error {
    let kind = match &error {
        ProtocolError::Unframed { .. } => ErrorKind::Connect,
        error if error.is_authentication() => ErrorKind::Authentication,
        _ => ErrorKind::Protocol,
    };
    Error::new(kind, error.to_string()).with_source(error)
}

fn login_refused(error: ServerError) -> Error {
    // Class 28: invalid authorization specification.
    let kind = match error.sqlstate() {
        sqlstate if sqlstate.starts_with("28") => ErrorKind::Authentication,
        _ => ErrorKind::Connect,
    };
    Error::new(kind, "the server refused the login").with_server(error)
}
