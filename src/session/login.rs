//! From an open socket to a session that the server has let in.

use super::dialogue::Dialogue;
use crate::config::{Resolved, Server};
use crate::error::{Error, ErrorKind, Result, ServerError};
use crate::net::Stream;
use crate::protocol::{Connection, Credentials, Event, ServerIdentity};

/// Logs in over the stream.
pub(super) async fn log_in(
    stream: Stream,
    config: &Resolved,
    server: &Server,
) -> Result<(Dialogue, ServerIdentity)> {
    let connection = greet(config, server, &stream)?;
    let mut dialogue = Dialogue::new(stream, connection);
    let mut identity = identify(&mut dialogue).await.map_err(|error| {
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
    Ok((dialogue, identity))
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

/// Waits until the server has let us in, and says who it is.
async fn identify(dialogue: &mut Dialogue) -> Result<ServerIdentity> {
    let mut identity = None;
    let mut hear = |event: Event<'_>| match event {
        Event::LoggedIn(logged_in) => {
            identity = Some(*logged_in);
            Ok(true)
        }
        Event::Ended(error) => Err(refused(error)),
        _ => Ok(false),
    };
    dialogue.listen(&mut hear).await?;
    dialogue.logged_in();
    identity.ok_or_else(|| Error::new(ErrorKind::Protocol, "the server did not say who it is"))
}

fn refused(error: ServerError) -> Error {
    // Class 28: invalid authorization specification.
    let kind = match error.sqlstate() {
        sqlstate if sqlstate.starts_with("28") => ErrorKind::Authentication,
        _ => ErrorKind::Connect,
    };
    Error::new(kind, "the server refused the login").with_server(error)
}

#[cfg(all(test, unix, feature = "async"))]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::net::Socket;

    #[tokio::test]
    async fn a_server_that_is_gone_before_it_is_greeted_has_had_the_last_word() {
        let (client, mut server) = UnixStream::pair().unwrap();
        let words = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0";
        let length = u32::try_from(4 + words.len()).unwrap().to_be_bytes();
        server.write_all(&[b"E", &length[..], words].concat()).await.unwrap();
        drop(server);

        let credentials = Credentials::new(String::from("alice"), None, [0; 18]);
        let connection = Connection::new(credentials, &[]);
        let mut dialogue = Dialogue::new(Stream::Clear(Socket::Unix(client)), connection);
        let error = identify(&mut dialogue).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("57P03"), "{error}");
    }
}
