//! Until the user is accepted, and the first `ReadyForQuery`.

use std::time::Duration;

use pglock::ErrorKind::{Authentication, Connect, Protocol, Timeout};
use pglock::Lock;
#[cfg(feature = "md5")]
use pglock::protocol::md5_password;

use tokio::task::JoinSet;

use super::{assert_error, refusal, refusal_within};
use crate::scripted::messages::{
    authentication, authentication_ok, authentication_sasl, backend_key_data, boolean,
    command_complete, data_row, fatal, header, message, negotiate_protocol_version, notice,
    parameter_status, ready_for_query, row_description,
};
use crate::scripted::scram::{client_nonce, sasl_continue, sasl_final};
use crate::scripted::{KEY, PASSWORD, PROCESS_ID, SECRET, Script, timely};

/// Long enough for a client to come to the point at which it waits, on a busy machine too.
const SOON: Duration = Duration::from_secs(2);

/// Offers SCRAM, and hears the client's first message.
fn scram() -> Script {
    Script::new().says(authentication_sasl(&["SCRAM-SHA-256"])).hears_type(b'p')
}

/// SCRAM up to the client's proof.
fn proven() -> Script {
    scram().answers(sasl_continue("1")).hears_type(b'p')
}

/// `AuthenticationSASLContinue` with this text.
fn server_first(text: &str) -> Vec<u8> {
    authentication(11, text.as_bytes())
}

/// A login with SCRAM.
fn proven_login() -> Script {
    proven().answers(sasl_final(PASSWORD)).says(authentication_ok()).welcome()
}

/// A login with SCRAM, and all that follows until there is a session.
fn whole_login() -> Script {
    proven_login().introduction()
}

#[tokio::test]
async fn a_server_that_knows_the_password_is_believed() {
    let backend = whole_login().terminated().play().await;
    let lock = backend.connect().await.unwrap();
    timely(lock.close()).await.unwrap();
    backend.done().await;
}

#[tokio::test]
async fn a_length_out_of_bounds_is_refused() {
    for (tag, length) in [
        (b'R', 0),
        (b'R', 3),
        (b'R', 2005),
        (b'R', 1 << 31),
        (b'R', u32::MAX),
        (b'v', 2005),
        (b'E', 0),
        (b'E', 3),
        (b'E', 30_005),
        (b'E', 1 << 24),
    ] {
        let error = refusal(Script::new().says(header(tag, length, b""))).await;
        assert_error(&error, Protocol, &format!("of {length} bytes; is it PostgreSQL?"));
    }
}

#[tokio::test]
async fn a_message_shorter_or_longer_than_its_fields_is_refused() {
    for (body, words) in [
        (&b""[..], "'R' is cut short"),
        (b"\0\0\0", "'R' is cut short"),
        (b"\0\0\0\x05abc", "'R' is cut short"),
        (b"\0\0\0\0\0", "'R' is longer than its fields"),
    ] {
        assert_error(&refusal(Script::new().says(message(b'R', body))).await, Protocol, words);
    }
}

#[tokio::test]
async fn an_unknown_message_is_refused() {
    for tag in [b'?', b'H' + 128, 0] {
        let error = refusal(Script::new().says(message(tag, b""))).await;
        assert_error(&error, Protocol, "unknown message");
    }
}

#[tokio::test]
async fn a_web_server_is_not_mistaken_for_a_database() {
    let error = refusal(Script::new().says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await;
    assert_error(&error, Protocol, "is it PostgreSQL?");
}

#[tokio::test]
async fn only_a_server_that_has_accepted_the_user_may_say_anything_else() {
    for (said, name) in [
        (parameter_status("server_version", "15.4"), "ParameterStatus"),
        (backend_key_data(PROCESS_ID, &SECRET), "BackendKeyData"),
        (ready_for_query(), "ReadyForQuery"),
        (notice(100), "NoticeResponse"),
        (message(b'A', b"\0\0\0\x07channel\0payload\0"), "NotificationResponse"),
        (row_description(1), "RowDescription"),
        (data_row(&[None]), "DataRow"),
        (command_complete(), "CommandComplete"),
        (message(b'I', b""), "EmptyQueryResponse"),
        (boolean(true), "FunctionCallResponse"),
        (message(b'G', b"\0\0\0"), "CopyInResponse"),
        (message(b'H', b"\0\0\0"), "CopyOutResponse"),
        (message(b'W', b"\0\0\0"), "CopyBothResponse"),
    ] {
        let words = format!("the server sent {name} during the login");
        assert_error(&refusal(Script::new().says(said.clone())).await, Protocol, &words);
        assert_error(&refusal(scram().says(said.clone())).await, Protocol, &words);
        assert_error(&refusal(proven().says(said)).await, Protocol, &words);
    }
}

#[tokio::test]
async fn a_user_is_accepted_once() {
    for said in [authentication_ok(), authentication(3, b""), authentication_sasl(&["X"])] {
        let error = refusal(Script::new().says(authentication_ok()).says(said)).await;
        assert_error(&error, Protocol, "sent Authentication during the login");
    }
}

#[tokio::test]
async fn accepting_the_user_does_not_replace_the_servers_proof() {
    let words = "skipped the proof that it knows the password";
    let early = scram().says(authentication_ok());
    assert_error(&refusal(early).await, Authentication, words);
    let late = proven().says(authentication_ok());
    assert_error(&refusal(late).await, Authentication, words);
    let at_once = scram()
        .answers(|heard| [sasl_continue("1")(heard), authentication_ok()].concat())
        .left_at_last();
    assert_error(&refusal(at_once).await, Authentication, words);
}

#[tokio::test]
async fn a_proof_for_another_password_is_refused() {
    let error = refusal(proven().answers(sasl_final("correct-horse-batterie"))).await;
    assert_error(&error, Authentication, "the server could not prove that it knows the password");
}

#[tokio::test]
async fn a_proof_before_the_clients_is_refused() {
    let proof = || authentication(12, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    for script in [Script::new().says(proof()), scram().says(proof())] {
        assert_error(&refusal(script).await, Protocol, "Authentication");
    }
}

#[tokio::test]
async fn a_nonce_that_does_not_go_on_from_the_clients_is_refused() {
    let foreign = scram().says(server_first("r=AAAAAAAAAAAAAAAAAAAAAAAAscripted,s=c2FsdA==,i=1"));
    let bare =
        scram().answers(|heard| server_first(&format!("r={},s=c2FsdA==,i=1", client_nonce(heard))));
    for script in [foreign, bare] {
        assert_error(&refusal(script).await, Authentication, "nonce");
    }
}

#[tokio::test]
async fn a_number_of_iterations_out_of_bounds_is_refused() {
    for iterations in ["0", "10000001", "2147483648", "99999999999999999999999", "-1", "x", ""] {
        let error = refusal(scram().answers(sasl_continue(iterations))).await;
        assert_error(&error, Authentication, "iterations");
    }
}

#[tokio::test]
async fn a_derivation_of_minutes_ends_with_the_time_to_connect() {
    let error = refusal_within(SOON, scram().answers(sasl_continue("10000000"))).await;
    assert_error(&error, Timeout, "not connected within 2s");
}

#[tokio::test]
async fn what_this_client_cannot_do_is_refused_by_name() {
    for (number, name) in [
        (2, "Kerberos V5"),
        (6, "SCM credential"),
        (7, "GSSAPI"),
        (8, "GSSAPI"),
        (9, "SSPI"),
        (99, "an unknown kind of"),
    ] {
        let error = refusal(Script::new().says(authentication(number, b""))).await;
        assert_error(&error, Authentication, name);
    }
    for mechanisms in [&["SCRAM-SHA-1", "OAUTHBEARER"][..], &["scram-sha-256"], &[]] {
        let error = refusal(Script::new().says(authentication_sasl(mechanisms))).await;
        assert_error(&error, Authentication, "no SASL mechanism that is supported");
    }
}

#[tokio::test]
async fn channel_binding_offered_without_tls_gives_away_who_stands_between() {
    let offer = authentication_sasl(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    let error = refusal(Script::new().says(offer)).await;
    assert_error(&error, Authentication, "offers channel binding over an unencrypted connection");
}

#[tokio::test]
async fn a_password_in_clear_is_not_sent_over_tcp() {
    let error = refusal(Script::new().says(authentication(3, b""))).await;
    assert_error(&error, Authentication, "allow_cleartext_password");
}

#[tokio::test]
async fn a_password_in_clear_is_sent_where_that_is_permitted() {
    let password = message(b'p', format!("{PASSWORD}\0").as_bytes());
    let script = Script::new().says(authentication(3, b"")).hears_bytes(password).session();
    let backend = script.left().play().await;
    let config = backend.config().allow_cleartext_password(true).clone();
    drop(timely(Lock::connect(&config, KEY)).await.unwrap());
    backend.done().await;
}

#[cfg(feature = "md5")]
#[tokio::test]
async fn a_password_is_hashed_with_md5_where_the_server_asks_for_that() {
    let hash = md5_password(crate::scripted::USER, PASSWORD, *b"salt");
    let script = Script::new()
        .says(authentication(5, b"salt"))
        .hears_bytes(message(b'p', format!("{hash}\0").as_bytes()))
        .session();
    let backend = script.left().play().await;
    drop(backend.connect().await.unwrap());
    backend.done().await;
}

#[tokio::test]
async fn no_second_proof_of_identity_is_given() {
    let script = Script::new().says(authentication(5, b"salt")).hears_type(b'p');
    let error = refusal(script.says(authentication(5, b"slat"))).await;
    assert_error(&error, Protocol, "sent Authentication during the login");
}

#[tokio::test]
async fn without_a_password_there_is_no_login() {
    for asks in [authentication(5, b"salt"), authentication_sasl(&["SCRAM-SHA-256"])] {
        let backend = Script::new().says(asks).left().play().await;
        let config = backend.config().password("").clone();
        let error = timely(Lock::connect(&config, KEY)).await.unwrap_err();
        assert_error(&error, Authentication, "asks for a password and none is set");
        backend.done().await;
    }
}

#[tokio::test]
async fn a_server_without_a_cancel_key_is_refused() {
    let error = refusal(Script::new().says(authentication_ok()).ready()).await;
    assert_error(&error, Protocol, "no key to cancel requests with");
}

#[tokio::test]
async fn a_cancel_key_has_4_to_256_bytes() {
    for length in [0, 3, 257] {
        let key = backend_key_data(PROCESS_ID, &vec![1; length]);
        let error = refusal(Script::new().says(authentication_ok()).says(key)).await;
        assert_error(&error, Protocol, "secret key");
    }
}

#[tokio::test]
async fn the_version_is_negotiated_once_and_before_the_user_is_accepted() {
    let version = || negotiate_protocol_version(3 << 16);
    let backend = Script::new().says(version()).session().left().play().await;
    drop(backend.connect().await.unwrap());
    backend.done().await;

    for script in [
        Script::new().says(version()).says(version()),
        Script::new().says(authentication_ok()).says(version()),
    ] {
        assert_error(&refusal(script).await, Protocol, "NegotiateProtocolVersion");
    }
}

#[tokio::test]
async fn no_version_but_ours_is_accepted() {
    for (version, name) in [(3 << 16 | 2, "3.2"), (2 << 16, "2.0"), (4 << 16, "4.0")] {
        let error = refusal(Script::new().says(negotiate_protocol_version(version))).await;
        assert_error(&error, Protocol, &format!("protocol {name} where 3.0 was asked for"));
    }
}

#[tokio::test]
async fn an_error_without_framing_is_shown_wherever_it_is_split() {
    let wire = b"Ecould not fork new process\n\0";
    for at in 1..wire.len() {
        let (head, tail) = wire.split_at(at);
        let script = Script::new().says(head.to_vec()).says(tail.to_vec());
        let error = refusal(script).await;
        assert_error(&error, Connect, "refused the connection: could not fork new process");
    }
    let error = refusal(Script::new().says(wire.to_vec()).byte_by_byte()).await;
    assert_error(&error, Connect, "refused the connection: could not fork new process");
}

#[tokio::test]
async fn an_error_without_framing_is_shown_without_what_a_terminal_acts_on() {
    let error = refusal(Script::new().says(b"Eno \x1b[2J\r\nway\n\0".to_vec())).await;
    assert_error(&error, Connect, "refused the connection: no ");
    assert!(!error.to_string().contains(char::is_control), "{error:?}");
}

#[tokio::test]
async fn an_error_without_framing_or_end_is_refused() {
    let endless = [&b"E"[..], &b"x".repeat(30_001)].concat();
    let error = refusal(Script::new().says(endless)).await;
    assert_error(&error, Protocol, "is it PostgreSQL?");
}

#[tokio::test]
async fn the_servers_refusal_is_told_with_its_code() {
    for (sqlstate, kind) in [
        ("28P01", Authentication),
        ("28000", Authentication),
        ("53300", Connect),
        ("57P03", Connect),
        ("3D000", Connect),
    ] {
        for script in [Script::new(), scram(), Script::new().says(authentication_ok())] {
            let error = refusal(script.says(fatal(sqlstate, "not today")).end_of_file()).await;
            assert_error(&error, kind, &format!("not today (SQLSTATE {sqlstate})"));
            assert_eq!(error.sqlstate(), Some(sqlstate));
        }
    }
}

#[tokio::test]
async fn a_refusal_is_shown_without_what_a_terminal_acts_on() {
    let report = b"SFATAL\0C\x1b[2J\0Mno \x1b]0;way\x07\0Dto\r\nday\0H\xc2\x9b2J\0\0";
    let error = refusal(Script::new().says(message(b'E', report)).end_of_file()).await;
    assert_error(&error, Connect, "no ?]0;way? (SQLSTATE ?[2J); to?\nday; hint: ?2J");
    assert_eq!(error.server().unwrap().message(), "no \x1b]0;way\x07");
}

#[tokio::test]
async fn a_login_that_breaks_off_anywhere_is_an_error() {
    for beginning in proven_login().without_the_last().beginnings() {
        for script in [beginning.clone().end_of_file(), beginning.resets()] {
            let error = refusal_within(Duration::from_secs(15), script).await;
            assert_error(&error, Connect, "connection");
        }
    }
}

#[tokio::test]
async fn a_session_that_breaks_off_while_it_is_set_up_is_an_error() {
    let logged_in = || Script::new().login();
    let called = || logged_in().gives_its_process_id();
    // It may be the call that the server does not bear.
    let unanswered =
        [logged_in(), called().without_the_last()].map(|script| script.resets().client_returns());
    let settings = Script::new().makes_settings().without_the_last().beginnings();
    let unset = settings.map(|part| called().followed_by(part));
    for script in unanswered.into_iter().chain(unset) {
        for script in [script.clone().end_of_file(), script.resets()] {
            let error = refusal_within(Duration::from_secs(15), script).await;
            assert_error(&error, Connect, "connection");
        }
    }
}

#[tokio::test]
async fn a_login_that_breaks_off_within_a_message_is_an_error() {
    let backend = Script::new().says(b"R\0\0\0\x08\0\0\0".to_vec()).end_of_file();
    assert_error(&refusal(backend).await, Connect, "closed the connection during the login");
}

#[tokio::test]
async fn a_login_that_falls_silent_anywhere_ends_with_the_time_to_connect() {
    let logged_in = || Script::new().login();
    let called = || logged_in().gives_its_process_id();
    let settings = || Script::new().makes_settings();
    // Where a call is not answered, it may not have been understood.
    let unanswered = [logged_in(), called().without_the_last()].map(Script::client_returns);
    let unset = settings().without_the_last().beginnings().map(|part| called().followed_by(part));
    let scripts = proven_login().without_the_last().beginnings().chain(unanswered).chain(unset);
    // Side by side, since each takes its time.
    let refusals: JoinSet<_> = scripts.map(|script| refusal_within(SOON, script)).collect();
    for error in refusals.join_all().await {
        assert_error(&error, Timeout, "not connected within 2s");
    }
}

#[tokio::test]
async fn a_server_that_keeps_talking_cannot_hold_the_client_past_its_time() {
    let accepted = || Script::new().says(authentication_ok());
    for script in [
        Script::new().drips(header(b'R', 2004, b"\0\0\0\x0b")),
        accepted().drips(notice(1000)),
        accepted().drips(parameter_status("server_version", "15.4")),
        accepted().floods(notice(1000)),
        accepted().floods(parameter_status("server_version", "15.4")),
        accepted().floods(backend_key_data(PROCESS_ID, &SECRET)),
        Script::new().login().refuses_calls().floods(notice(1000)),
        Script::new().login().refuses_calls().drips(notice(1000)),
    ] {
        let error = refusal_within(SOON, script).await;
        assert_error(&error, Timeout, "not connected within 2s");
    }
}
