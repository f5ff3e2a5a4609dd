//! What comes after the login: a call and the settings or, where calls are refused, one query. Whether
//! the server can be trusted with locks.

use pglock::ErrorKind::{Connect, Protocol, Unsupported};
use pglock::{Key, Lock, Mode, Pooler};

use super::{assert_error, refusal};
use crate::scripted::messages::{
    authentication_ok, backend_key_data, boolean, command_complete, data_row, error, fatal,
    message, notice, one_row, parameter_status, ready_for_query, returned, returned_null,
    row_description, set, void,
};
use crate::scripted::{
    PG_BACKEND_PID, PG_IS_IN_RECOVERY, PROCESS_ID, SECRET, Script, TRY_LOCK, VERSION,
    call_without_arguments, timely,
};

const PROCESS_ID_TEXT: &str = "4711";
const CLIENT_CHECK: &str = "client_connection_check_interval";

/// A server that takes no function calls, and answers the question with this.
fn introduces_itself(answer: Vec<u8>) -> Script {
    Script::new().login().refuses_calls().says(answer)
}

fn introduces_itself_as(row: &[Option<&str>]) -> Script {
    introduces_itself(one_row(row)).ready()
}

/// A server that refuses the question with this error.
fn refuses(sqlstate: &str, text: &str) -> Script {
    introduces_itself(error(sqlstate, text)).ready()
}

/// Hears the one question that any server with SQL may be expected to answer.
fn is_asked_for_its_name(script: Script) -> Script {
    script.hears_bytes(message(b'Q', b"SELECT version()\0"))
}

#[tokio::test]
async fn a_standby_that_says_so_at_login_is_asked_nothing() {
    let script = Script::new()
        .says(authentication_ok())
        .says(parameter_status("in_hot_standby", "on"))
        .says(backend_key_data(PROCESS_ID, &SECRET))
        .ready();
    assert_error(&refusal(script).await, Unsupported, "the server is a standby");
}

/// A server of this version, which does not say at login whether it is a standby.
fn of_version(version: &str) -> Script {
    Script::new()
        .says(authentication_ok())
        .says(parameter_status("server_version", version))
        .says(backend_key_data(PROCESS_ID, &SECRET))
        .ready()
}

fn is_asked_whether_it_is_a_standby(script: Script) -> Script {
    script.gives_its_process_id().hears_bytes(call_without_arguments(PG_IS_IN_RECOVERY))
}

#[tokio::test]
async fn a_primary_that_does_not_say_so_at_login_is_asked() {
    let script = is_asked_whether_it_is_a_standby(of_version("13.4"));
    let script = script.says(boolean(false)).ready().makes_settings();
    let backend = script.hears(TRY_LOCK).says(boolean(true)).ready().left().play().await;
    let mut lock = backend.connect().await.unwrap();
    assert!(timely(lock.try_lock()).await.unwrap());
    drop(lock);
    backend.done().await;
}

#[tokio::test]
async fn whatever_is_not_a_clear_no_is_a_standby() {
    for answer in [boolean(true), void(), returned(b"\0\0"), returned_null(), error("XX000", "oh")]
    {
        let script = is_asked_whether_it_is_a_standby(of_version("13.4"));
        let error = refusal(script.says(answer).ready()).await;
        assert_error(&error, Unsupported, "the server is a standby");
    }
}

#[tokio::test]
async fn a_server_that_is_known_to_be_something_else_is_not_called() {
    for version in ["9.6.24", "11.2-YB-2.18.0.0-b0", "15.2-YB-2025.1.0.0-b0", "unknown", ""] {
        let row = one_row(&[Some("CrateDB 5.4.0"), Some("false"), Some(PROCESS_ID_TEXT)]);
        let error = refusal(of_version(version).hears_type(b'Q').says(row).ready()).await;
        assert_error(&error, Unsupported, "calls itself \"CrateDB");
    }
}

#[tokio::test]
async fn an_answer_from_another_process_sets_nothing_and_is_asked_about() {
    for process_id in [&4712_i32.to_be_bytes()[..], &[0; 8], b"4711", b"", &[0x12]] {
        let asked_by =
            |heard: &[Vec<u8>]| String::from_utf8_lossy(heard.last().unwrap()).into_owned();
        let backend = Script::new()
            .login()
            .hears_bytes(call_without_arguments(PG_BACKEND_PID))
            .says(returned(process_id))
            .ready()
            .hears_type(b'Q')
            .answers(move |heard| {
                assert!(asked_by(heard).contains("set_config"));
                assert!(!asked_by(heard).contains("SET "));
                one_row(&[Some(VERSION), Some("false"), Some("4712")])
            })
            .ready()
            .left()
            .play()
            .await;
        let config = backend.config().pooler(Pooler::Refuse).clone();
        let error = timely(Lock::connect(&config, 1)).await.unwrap_err();
        backend.done().await;
        assert_error(&error, Unsupported, "connection pooler");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_function_result_is_refused() {
    for answer in [
        one_row(&[Some(PROCESS_ID_TEXT)]),
        command_complete(),
        Vec::new(),
        [returned(&PROCESS_ID.to_be_bytes()), returned(&PROCESS_ID.to_be_bytes())].concat(),
        message(b'V', b"\0\0\0\x04"),
        message(b'G', b"\0\0\0"),
        message(b'R', b"\0\0\0\0"),
    ] {
        let script = Script::new().login().hears_type(b'F').says(answer.clone()).ready();
        let error = refusal(script).await;
        assert_eq!(error.kind(), Protocol, "\"{}\": {error}", answer.escape_ascii());
    }
}

#[tokio::test]
async fn an_answer_that_is_no_result_of_settings_is_refused() {
    for answer in [
        Vec::new(),
        void(),
        [set(), void()].concat(),
        [set(), data_row(&[Some("0")])].concat(),
        [one_row(&[Some("0")]), row_description(1)].concat(),
        [one_row(&[Some("0")]), one_row(&[Some("0")])].concat(),
        message(b'G', b"\0\0\0"),
        message(b'K', b"\0\0\0\0key!"),
        [set(), message(b'Z', b"T")].concat(),
    ] {
        let script = Script::new().login().gives_its_process_id().hears_type(b'Q');
        let error = refusal(script.says(answer.clone()).ready()).await;
        assert_eq!(error.kind(), Protocol, "\"{}\": {error}", answer.escape_ascii());
    }
}

#[tokio::test]
async fn a_standby_that_says_so_when_asked_is_refused() {
    let row = [Some(VERSION), Some("true"), Some(PROCESS_ID_TEXT)];
    assert_error(
        &refusal(introduces_itself_as(&row)).await,
        Unsupported,
        "the server is a standby",
    );
}

#[tokio::test]
async fn a_server_that_does_not_say_whether_it_is_a_standby_is_refused() {
    for recovery in [None, Some(""), Some("t"), Some("perhaps")] {
        let row = [Some(VERSION), recovery, Some(PROCESS_ID_TEXT)];
        assert_error(&refusal(introduces_itself_as(&row)).await, Unsupported, "");
    }
}

#[tokio::test]
async fn a_server_that_is_not_postgresql_is_refused() {
    for (version, shown) in [
        (
            "CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu)",
            "calls itself \"CockroachDB CCL v23.1.11",
        ),
        ("PostgreSQL 8.0.2 on i686-pc-linux-gnu, Redshift 1.0.28422", "is Redshift"),
        ("PostgreSQL 11.2-YB-2.18.0.0-b0 on x86_64-pc-linux-gnu", "is YugabyteDB"),
        ("", "calls itself \"\""),
    ] {
        let row = [Some(version), Some("false"), Some(PROCESS_ID_TEXT)];
        let error = refusal(introduces_itself_as(&row)).await;
        assert_error(&error, Unsupported, "only PostgreSQL's own advisory locks are trusted");
        assert_error(&error, Unsupported, shown);
    }
}

#[tokio::test]
async fn a_version_of_any_length_is_shown_in_short() {
    let version = "\u{1F600}".repeat(10_000);
    let row = [Some(version.as_str()), Some("false"), Some(PROCESS_ID_TEXT)];
    let error = refusal(introduces_itself_as(&row)).await;
    assert_error(&error, Unsupported, "only PostgreSQL's own advisory locks are trusted");
    assert!(error.to_string().len() < 500, "{} bytes", error.to_string().len());
}

#[tokio::test]
async fn a_version_is_shown_without_what_a_terminal_acts_on() {
    let row = [Some("\u{1b}[2J\r\nAll is well"), Some("false"), Some(PROCESS_ID_TEXT)];
    let error = refusal(introduces_itself_as(&row)).await;
    assert!(!error.to_string().contains(char::is_control), "{error:?}");
}

#[tokio::test]
async fn a_session_in_another_process_than_the_one_logged_in_to_is_refused_if_wished() {
    for process_id in ["4712", "-4711"] {
        let row = [Some(VERSION), Some("false"), Some(process_id)];
        let backend = introduces_itself_as(&row).left().play().await;
        let config = backend.config().pooler(Pooler::Refuse).clone();
        let error = timely(Lock::connect(&config, 1)).await.unwrap_err();
        backend.done().await;
        assert_error(&error, Unsupported, "connection pooler");
    }
}

#[tokio::test]
async fn a_process_that_has_no_number_is_refused() {
    for process_id in [Some(""), Some("99999999999"), None] {
        let row = [Some(VERSION), Some("false"), process_id];
        let error = refusal(introduces_itself_as(&row)).await;
        assert_error(&error, Unsupported, "which of its processes");
    }
}

#[tokio::test]
async fn a_row_with_columns_missing_is_refused() {
    for row in [&[][..], &[Some(VERSION)], &[Some(VERSION), Some("false")]] {
        assert_error(&refusal(introduces_itself_as(row)).await, Unsupported, "");
    }
}

#[tokio::test]
async fn a_system_that_cannot_watch_its_clients_is_asked_without_that() {
    let row = [Some(VERSION), Some("false"), Some(PROCESS_ID_TEXT)];
    let called = Script::new().login().gives_its_process_id().hears_type(b'Q');
    let asked = Script::new().login().refuses_calls();
    for (script, answer) in [(called, set()), (asked, one_row(&row))] {
        let backend = is_asked_again_without_the_check(script).says(answer).ready();
        let backend = backend.left().play().await;
        drop(backend.connect().await.unwrap());
        backend.done().await;
    }
}

fn is_asked_again_without_the_check(script: Script) -> Script {
    let asks_for_it =
        |heard: &[Vec<u8>]| String::from_utf8_lossy(heard.last().unwrap()).contains(CLIENT_CHECK);
    script
        .answers(move |heard| {
            assert!(asks_for_it(heard), "asked for at first");
            error("22023", "client_connection_check_interval must be 0 on this platform")
        })
        .ready()
        .hears_type(b'Q')
        .answers(move |heard| {
            assert!(!asks_for_it(heard), "not asked for any more");
            notice(100)
        })
}

#[tokio::test]
async fn a_server_that_refuses_the_settings_is_refused() {
    let direct = || Script::new().login().gives_its_process_id().hears_type(b'Q');
    let no_such_luck = |sqlstate| error(sqlstate, "no such luck");
    let twice = |script: Script| {
        script.says(no_such_luck("22023")).ready().hears_type(b'Q').says(no_such_luck("22023"))
    };
    for script in [
        twice(Script::new().login().refuses_calls()).ready(),
        twice(direct()).ready(),
        direct().says([set(), no_such_luck("42501")].concat()).ready(),
        refuses("42501", "no such luck"),
    ] {
        let script = is_asked_for_its_name(script).says(one_row(&[Some(VERSION)])).ready();
        let error = refusal(script).await;
        assert_error(&error, Unsupported, "refused the settings of the session: no such luck");
    }
}

/// Each fails at something else of the question.
#[tokio::test]
async fn a_server_that_does_not_understand_the_question_is_told_by_its_name() {
    for (sqlstate, text, version, name) in [
        (
            "0A000",
            "unimplemented: the configuration setting \"tcp_keepalives_idle\" is not supported",
            "CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu, built 2023/09/27, go1.19.10)",
            "calls itself \"CockroachDB CCL v23.1.11",
        ),
        (
            "42883",
            "Unknown function: pg_is_in_recovery()",
            "CrateDB 5.4.0 (built 9f5e2b1/2023-07-24, Linux 5.15.0 amd64, OpenJDK 20.0.1)",
            "calls itself \"CrateDB 5.4.0",
        ),
        (
            "42883",
            "function \"set_config\" does not exist",
            "PostgreSQL 9.5.0 on x86_64-unknown-linux-gnu (Materialize v0.60.0)",
            "is Materialize",
        ),
        (
            "00000",
            "unknown function name: pg_is_in_recovery()",
            "PostgreSQL 12.3, compiled by Visual C++ build 1914, 64-bit, QuestDB",
            "is QuestDB",
        ),
        (
            "42883",
            "function pg_is_in_recovery() does not exist",
            "PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc (GCC) 3.4.2, Redshift 1.0.28422",
            "is Redshift",
        ),
        (
            "42704",
            "unrecognized configuration parameter \"idle_session_timeout\"",
            "PostgreSQL 11.2-YB-2.18.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 15.0.3",
            "is YugabyteDB",
        ),
    ] {
        let script = is_asked_for_its_name(refuses(sqlstate, text));
        let error = refusal(script.says(one_row(&[Some(version)])).ready()).await;
        assert_error(&error, Unsupported, &format!("the server {name}"));
        assert_error(&error, Unsupported, "advisory locks are trusted: connect to a PostgreSQL");
    }
}

#[tokio::test]
async fn a_server_without_a_name_of_its_own_is_told_by_what_it_lacks() {
    for (sqlstate, text, words) in [
        (
            "42883",
            "function set_config(text) does not exist",
            "lacks a function that a session needs",
        ),
        ("0A000", "not in this service", "refused the settings of the session"),
    ] {
        let script = is_asked_for_its_name(refuses(sqlstate, text));
        let error = refusal(script.says(one_row(&[Some(VERSION)])).ready()).await;
        assert_error(&error, Unsupported, words);
        assert_error(&error, Unsupported, &format!(": {text} (SQLSTATE {sqlstate})"));
    }
}

#[tokio::test]
async fn a_server_that_cannot_tell_its_name_is_refused_all_the_same() {
    let asked = || is_asked_for_its_name(refuses("42883", "no such function: set_config"));
    for script in [
        asked().says(error("42883", "no such function: version")).ready(),
        asked().says(fatal("57P01", "enough")).end_of_file(),
        asked().end_of_file(),
        asked().resets(),
        asked().says(command_complete()).ready(),
    ] {
        let error = refusal(script).await;
        assert_error(&error, Unsupported, "lacks a function that a session needs");
        assert_error(&error, Unsupported, "no such function: set_config (SQLSTATE 42883)");
    }
    for name in [&[None][..], &[]] {
        let error = refusal(asked().says(one_row(name)).ready()).await;
        assert_error(&error, Unsupported, "only PostgreSQL's own advisory locks are trusted");
    }
}

#[tokio::test]
async fn an_error_after_the_row_is_an_error() {
    let row = one_row(&[Some(VERSION), Some("false"), Some(PROCESS_ID_TEXT)]);
    let script = introduces_itself([row, error("XX000", "oh")].concat()).ready();
    let script = is_asked_for_its_name(script).says(one_row(&[Some(VERSION)])).ready();
    let error = refusal(script).await;
    assert_eq!(error.sqlstate(), Some("XX000"));
}

#[tokio::test]
async fn a_session_that_is_ended_while_it_is_set_up_was_never_held() {
    let error = refusal(introduces_itself(fatal("57P01", "shutting down")).end_of_file()).await;
    assert_error(&error, Connect, "shutting down (SQLSTATE 57P01)");
}

#[tokio::test]
async fn an_answer_that_is_not_one_row_is_refused() {
    let right = [Some(VERSION), Some("false"), Some(PROCESS_ID_TEXT)];
    let (columns, row, end) = (row_description(3), data_row(&right), command_complete());
    for answer in [
        [&columns[..], &row, &row, &end].concat(),
        [&columns[..], &end].concat(),
        end.clone(),
        message(b'I', b""),
        Vec::new(),
        [one_row(&right), row].concat(),
        [one_row(&right), end].concat(),
        void(),
        message(b'G', b"\0\0\0"),
        message(b'H', b"\0\0\0"),
        message(b'W', b"\0\0\0"),
        message(b'R', b"\0\0\0\0"),
        message(b'K', b"\0\0\0\0key!"),
        message(b'D', b"\xff\xff"),
        message(b'T', b"\xff\xff"),
        message(b'D', b"\0\x01\xff\xff\xff\xfe"),
        message(b'D', b"\0\x01\x7f\xff\xff\xff"),
    ] {
        // The client may have left before the last word.
        let script = introduces_itself(answer.clone()).ready();
        let error = refusal(script).await;
        assert_eq!(error.kind(), Protocol, "\"{}\": {error}", answer.escape_ascii());
    }
}

#[tokio::test]
async fn a_session_that_is_in_a_transaction_is_refused() {
    let right = [Some(VERSION), Some("false"), Some(PROCESS_ID_TEXT)];
    for status in [b"T", b"E", b"?"] {
        let script = introduces_itself(one_row(&right)).says(message(b'Z', status));
        assert_error(&refusal(script).await, Protocol, "");
    }
}

#[tokio::test]
async fn what_a_server_says_in_between_is_no_answer() {
    let right = [Some(VERSION), Some("false"), Some(PROCESS_ID_TEXT)];
    let aside = [
        notice(1 << 20),
        parameter_status("TimeZone", "UTC"),
        message(b'A', b"\0\0\0\x07channel\0payload\0"),
    ]
    .concat();
    let called = Script::new()
        .login()
        .says(aside.clone())
        .hears_type(b'F')
        .says([&aside[..], &returned(&PROCESS_ID.to_be_bytes()), &aside].concat())
        .ready()
        .hears_type(b'Q')
        .says([&aside[..], &set(), &aside, &set()].concat());
    let asked = Script::new()
        .login()
        .says(aside.clone())
        .refuses_calls()
        .says([&aside[..], &row_description(3), &aside, &data_row(&right), &aside].concat())
        .says(command_complete());
    for script in [called, asked] {
        let backend = script.says([aside.clone(), ready_for_query()].concat()).left().play().await;
        let session = backend.connect_session().await.unwrap();
        assert_eq!(session.level(Key::bigint(1), Mode::Exclusive), 0);
        drop(session);
        backend.done().await;
    }
}
