//! Locks of threads, on servers that are wrong, silent, or leave them no time to look at the clock.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use pglock::blocking::{Lock, Session};
use pglock::{Config, Error, ErrorKind, Mode};
use pglock_test_cluster::{Cluster, role, wait_until};
use tokio::task::spawn_blocking;

use crate::scripted::messages::{
    authentication_ok, authentication_sasl, backend_key_data, boolean, error, fatal, message,
    notice, one_row, parameter_status, ready_for_query, returned, set, void,
};
use crate::scripted::scram::sasl_continue;
use crate::scripted::{
    Backend, KEY, LOCK, PROCESS_ID, SECRET, Script, TRY_LOCK, UNLOCK, VERSION, timely,
};
use crate::stage::{PATIENCE, Stage};

/// Long enough for a request to be heard, and short enough not to be noticed.
const SHORT: Duration = Duration::from_millis(50);

fn assert_lost(error: &Error) {
    assert!(error.is_lost(), "{error}");
}

/// What the thread comes to within the time.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(limit).expect("it is done in time")
}

/// Says the same as fast as it is taken.
fn flood(mut stream: TcpStream) {
    let words = notice(1000).repeat(256);
    while stream.write_all(&words).is_ok() {}
}

fn read_packet(stream: &mut TcpStream, header: usize) -> Option<Vec<u8>> {
    let mut packet = vec![0; header + 4];
    stream.read_exact(&mut packet).ok()?;
    let length = u32::from_be_bytes(packet[header..].try_into().unwrap());
    let mut body = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut body).ok()?;
    packet.extend(body);
    Some(packet)
}

/// Lets a client in, and makes a session of it.
fn let_in(stream: &mut TcpStream) {
    let words = [
        authentication_ok(),
        parameter_status("server_version", "15.4"),
        parameter_status("in_hot_standby", "off"),
        backend_key_data(PROCESS_ID, &SECRET),
        ready_for_query(),
    ];
    stream.write_all(&words.concat()).unwrap();
    read_packet(stream, 1).unwrap();
    stream.write_all(&[returned(&PROCESS_ID.to_be_bytes()), ready_for_query()].concat()).unwrap();
    read_packet(stream, 1).unwrap();
    stream.write_all(&[set(), set(), ready_for_query()].concat()).unwrap();
}

fn config(port: u16) -> Config {
    format!("postgresql://alice@127.0.0.1:{port}/app?sslmode=disable").parse().unwrap()
}

#[test]
fn a_server_that_floods_a_login_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(listener.local_addr().unwrap().port());
    config.connect_timeout(Duration::from_millis(500));
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_packet(&mut stream, 0).unwrap();
        stream.write_all(&authentication_ok()).unwrap();
        flood(stream);
    });
    let error = within(Duration::from_secs(10), move || Session::connect(&config).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

/// How to connect to a server that lets its client in, and does this when it hears the next request.
fn on_request(then: impl FnOnce(&TcpListener, TcpStream) + Send + 'static) -> Config {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = config(listener.local_addr().unwrap().port());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_packet(&mut stream, 0).unwrap();
        let_in(&mut stream);
        read_packet(&mut stream, 1).unwrap();
        then(&listener, stream);
    });
    config
}

#[test]
fn a_server_that_floods_a_goodbye_is_given_up_in_time() {
    let config = on_request(|_, stream| flood(stream));
    let session = Session::connect(&config).unwrap();
    let error = within(Duration::from_secs(20), || session.close().unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[test]
fn a_server_that_floods_a_cancel_is_given_up_in_time() {
    let config = on_request(|listener, _stream| {
        let (mut cancel, _) = listener.accept().unwrap();
        read_packet(&mut cancel, 0).unwrap();
        flood(cancel);
    });
    let mut lock = Lock::connect(&config, KEY).unwrap();
    let error = within(Duration::from_secs(20), move || {
        lock.lock_timeout(Duration::from_millis(50)).unwrap_err()
    });
    assert!(error.is_lost(), "{error}");
    assert!(error.to_string().contains("could not be withdrawn within 10 s"), "{error}");
}

#[test]
fn a_cancel_that_ends_piece_by_piece_is_not_kept_waiting_for_another_answer() {
    // A thread waits for a second at a time. So may a busy machine have it wait, but not each time.
    assert!((0..5).any(|_| noticed_after_pieces() < Duration::from_millis(500)));
}

/// How long after the last piece of a cancel the thread asks for something else.
fn noticed_after_pieces() -> Duration {
    let (sender, receiver) = channel();
    let config = on_request(move |listener, mut stream| {
        let (mut cancel, _) = listener.accept().unwrap();
        read_packet(&mut cancel, 0).unwrap();
        stream.write_all(&[error("57014", "canceled"), ready_for_query()].concat()).unwrap();
        // At the first the answer is heard, and at the second that it is all.
        for _ in 0..3 {
            thread::sleep(SHORT);
            cancel.write_all(b".").unwrap();
        }
        thread::sleep(SHORT);
        drop(cancel);
        let ended = Instant::now();
        read_packet(&mut stream, 1).unwrap();
        sender.send(ended.elapsed()).unwrap();
        let warning = message(b'N', b"SWARNING\0C01000\0Mnot owned\0\0");
        stream.write_all(&[warning, boolean(false), ready_for_query()].concat()).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let mut lock = Lock::connect(&config, KEY).unwrap();
    assert!(!within(PATIENCE, move || lock.lock_timeout(SHORT).unwrap()));
    receiver.recv().unwrap()
}

#[tokio::test]
async fn a_password_that_takes_long_to_prepare_is_given_up_in_time() {
    let script = Script::new()
        .says(authentication_sasl(&["SCRAM-SHA-256"]))
        .hears_type(b'p')
        .answers(sasl_continue("10000000"))
        .left();
    let backend = script.play().await;
    let mut config = backend.config();
    config.connect_timeout(Duration::from_secs(1));
    let connecting = spawn_blocking(move || Session::connect(&config).unwrap_err());
    let error = connecting.await.unwrap();
    // Had it been prepared to the end, the backend would have heard the proof.
    backend.done().await;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[cfg(unix)]
#[test]
fn a_server_has_the_last_word_on_every_socket() {
    type Call = fn(&mut Lock) -> pglock::Result<()>;
    let cluster = Cluster::default_cluster();
    let mut urls = vec![
        cluster.socket_url_for(&role::TRUST),
        format!("{}?sslmode=disable", cluster.url_for(&role::TRUST)),
    ];
    if cfg!(feature = "tls") {
        urls.push(format!("{}?sslmode=require", cluster.url_for(&role::TRUST)));
    }
    let calls: [(&str, Call); 4] = [
        ("unlock", Lock::unlock),
        ("lock_shared", Lock::lock_shared),
        ("try_lock", |lock| lock.try_lock().map(drop)),
        ("ping", |lock| lock.ping().map(drop)),
    ];
    for url in urls {
        for (name, call) in calls {
            let mut stage = Stage::new();
            let mut alice = Lock::connect(&stage.config_by(&url, "alice"), stage.key()).unwrap();
            alice.lock().unwrap();
            stage.terminate("alice");
            wait_until("it is ended", PATIENCE, || stage.sessions() == 0);
            let error = call(&mut alice).unwrap_err();
            assert!(error.is_lost(), "{error}");
            assert_eq!(error.sqlstate(), Some("57P01"), "{name} by {url}: {error}");
        }
    }
}

/// A lock of a thread that has it.
async fn hold(backend: &Backend) -> Lock {
    let config = backend.config();
    let locking = spawn_blocking(move || {
        let mut lock = Lock::connect(&config, KEY).unwrap();
        assert!(lock.try_lock().unwrap());
        lock
    });
    timely(locking).await.unwrap()
}

#[tokio::test]
async fn a_connection_that_broke_between_two_requests_is_told_to_have_broken() {
    let script = Script::new()
        .session()
        .hears(TRY_LOCK)
        .says([boolean(true), ready_for_query()].concat())
        .prompted()
        .resets()
        .cues();
    let backend = script.play().await;
    let mut lock = hold(&backend).await;
    backend.prompt();
    backend.cue().await;
    let holding = spawn_blocking(move || lock.hold(|| unreachable!("it is lost")).unwrap_err());
    let error = holding.await.unwrap();
    assert!(error.to_string().contains("the connection broke (connection reset)"), "{error}");
    backend.done().await;
}

/// As a pooler would that mixes up its clients, in a session that is asked by queries.
#[tokio::test]
async fn an_answer_to_nothing_is_not_taken_for_that_of_the_next_request() {
    let tried = || [one_row(&[Some("4711"), Some("t")]), ready_for_query()].concat();
    let script = Script::new()
        .login()
        .refuses_calls()
        .says(one_row(&[Some(VERSION), Some("false"), Some("4711")]))
        .ready()
        .hears_type(b'Q')
        .says(tried())
        .prompted()
        .says(tried())
        .cues()
        .left();
    let backend = script.play().await;
    let mut lock = hold(&backend).await;
    backend.prompt();
    backend.cue().await;
    let unlocking = spawn_blocking(move || lock.unlock().unwrap_err());
    let error = timely(unlocking).await.unwrap();
    backend.done().await;
    assert!(error.is_lost(), "{error}");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[cfg(unix)]
#[test]
fn a_queue_before_a_unix_socket_is_waited_in() {
    let directory = std::env::temp_dir().join(format!("pglock-queue-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join(".s.PGSQL.5432");
    let listener = UnixListener::bind(&path).unwrap();
    // As short as it gets.
    socket2::SockRef::from(&listener).listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket =
            socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        if socket.connect(&socket2::SockAddr::unix(&path).unwrap()).is_err() {
            break;
        }
        waiting.push(socket);
    }
    let mut config = Config::new();
    config
        .host(directory.to_str().unwrap())
        .user("alice")
        .connect_timeout(Duration::from_millis(500));
    let begun = Instant::now();
    let error = Session::connect(&config).unwrap_err();
    let took = begun.elapsed();
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(took >= Duration::from_millis(500));
}

#[test]
fn the_next_server_is_tried_where_one_does_not_answer() {
    // A listener whose queue is full: the system takes no notice of whoever comes next.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queued.push(stream);
    }
    let stage = Stage::new();
    let good = Cluster::default_cluster().port();
    let url = format!(
        "postgresql://{}@127.0.0.1:{},127.0.0.1:{good}/app?sslmode=disable",
        role::TRUST.name,
        address.port()
    );
    let mut config: Config = url.parse().unwrap();
    config.connect_timeout(Duration::from_secs(5));
    // The system would go on for more than a minute.
    let mut session = within(PATIENCE, move || Session::connect(&config).unwrap());
    session.lock(stage.key(), Mode::Shared).unwrap();
}

/// Plays a script to a lock on a thread.
async fn play<T: Send + 'static>(
    script: Script,
    call: impl FnOnce(Lock) -> T + Send + 'static,
) -> T {
    let backend = script.play().await;
    let config = backend.config();
    let playing = spawn_blocking(move || call(Lock::connect(&config, KEY).unwrap()));
    let ended = timely(playing).await.unwrap();
    backend.done().await;
    ended
}

#[tokio::test]
async fn an_answer_may_come_byte_by_byte() {
    let script = Script::new()
        .session()
        .hears(TRY_LOCK)
        .says([notice(300), boolean(true), ready_for_query()].concat())
        .hears(UNLOCK)
        .says([boolean(true), ready_for_query()].concat())
        .terminated();
    play(script.byte_by_byte(), |mut lock| {
        assert!(lock.try_lock().unwrap());
        lock.unlock().unwrap();
        lock.close().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_lock_granted_in_the_race_belongs_to_a_caller_who_ran_out_of_time() {
    let script = Script::new()
        .session()
        .hears(LOCK)
        .cancel_comes()
        .says([void(), ready_for_query()].concat())
        .hears_nothing_for(SHORT)
        .cancel_ends()
        .hears(UNLOCK)
        .says([boolean(true), ready_for_query()].concat())
        .terminated();
    play(script, |mut lock| {
        assert!(lock.lock_timeout(SHORT).unwrap());
        lock.unlock().unwrap();
        lock.close().unwrap();
    })
    .await;
}

#[tokio::test]
async fn whatever_keeps_a_thread_waiting_is_given_up() {
    let waiting = || Script::new().session().hears(LOCK);
    let given_up = async |script: Script, words: &str| {
        let error = play(script, |mut lock| {
            let error = lock.lock_timeout(SHORT).unwrap_err();
            assert_lost(&lock.close().unwrap_err());
            error
        })
        .await;
        assert_lost(&error);
        assert!(error.to_string().contains(words), "no \"{words}\" in: {error}");
    };
    let unsettled = "a request could not be withdrawn within 10 s";
    tokio::join!(
        given_up(waiting().cancel_comes().left(), unsettled),
        given_up(waiting().ends_cancels(), unsettled),
        given_up(waiting().cancel_comes().drips(notice(100)).ends_cancels(), unsettled),
        given_up(waiting().cancel_comes().floods(notice(100)).ends_cancels(), unsettled),
        given_up(waiting().says(void()).left(), "the server did not answer within 10 s"),
        given_up(waiting().says(error("XX000", "what?")).left(), "after an error: what?"),
        given_up(waiting().says(fatal("57P01", "the end")).end_of_file().left(), "the end"),
        given_up(waiting().resets(), "the connection broke"),
        async {
            // An answer that never comes, though the server talks.
            let script = Script::new().session().hears(TRY_LOCK).drips(notice(100)).left_at_last();
            let error = play(script, |mut lock| lock.try_lock().unwrap_err()).await;
            assert_lost(&error);
            assert!(error.to_string().contains("did not answer within 30 s"), "{error}");
        },
        async {
            let script = Script::new().session().hears_bytes(b"X\0\0\0\x04".to_vec()).left();
            let error = play(script, |lock| lock.close().unwrap_err()).await;
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        },
    );
}
