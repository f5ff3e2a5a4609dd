//! A backend that plays a script, for what no real server does.
//!
//! A script is read like a play: what the backend hears, what it says, when it leaves.
//!
//! ```text
//! let backend = Script::new().session().hears(LOCK).says(void()).ready().play().await;
//! let mut lock = backend.connect().await.unwrap();
//! lock.lock().await.unwrap();
//! backend.done().await;
//! ```
//!
//! It plays to one session, and to that session's `CancelRequest`s. A client that does something else
//! than the script says fails the test, with the line of the script that it did not keep to.

pub(crate) mod messages;
pub(crate) mod scram;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pglock::{Config, Lock, Result, Session, SslMode};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use self::messages::{
    authentication_ok, backend_key_data, error, message, parameter_status, ready_for_query,
    returned, set,
};

/// How long anything may take before the test fails: more than any deadline of the library's own that
/// a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The process that the backend says it is, and the secret that cancels what it does.
pub(crate) const PROCESS_ID: i32 = 4711;
pub(crate) const SECRET: [u8; 4] = [0xd3, 0xad, 0xbe, 0xa7];

pub(crate) const USER: &str = "alice";
pub(crate) const PASSWORD: &str = "correct-horse-battery";

/// What the backend calls itself.
pub(crate) const VERSION: &str = "PostgreSQL 15.4 (scripted)";

/// The key that is locked, and the functions that are called with it.
pub(crate) const KEY: i64 = 42;
pub(crate) const LOCK: u32 = 2880;
pub(crate) const TRY_LOCK: u32 = 2882;
pub(crate) const UNLOCK: u32 = 2884;

/// The functions that tell what a server is.
pub(crate) const PG_BACKEND_PID: u32 = 2026;
pub(crate) const PG_IS_IN_RECOVERY: u32 = 3810;

/// Fails the test if this takes too long.
pub(crate) async fn timely<T>(work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let done = timeout(PATIENCE, work).await.expect("the client hangs");
    // A client that keeps the thread to itself keeps the timer from ringing.
    assert!(start.elapsed() < PATIENCE, "the client hung for {:?}", start.elapsed());
    done
}

/// What a backend does, in this order.
#[derive(Clone, Default)]
pub(crate) struct Script {
    steps: Vec<Step>,
    process_id: i32,
    secret: Vec<u8>,
}

#[derive(Clone)]
enum Step {
    HearsType(u8),
    Hears(Vec<u8>),
    HearsNothing(Duration),
    Says(Vec<u8>),
    SaysByteByByte(Vec<u8>),
    Answers(Arc<Answer>),
    Drips(Vec<u8>),
    Floods(Vec<u8>),
    SaysAgain(Vec<u8>, usize),
    IsPrompted,
    Cues,
    CancelComes,
    CancelEnds,
    CancelBreaks,
    EndsCancels,
    NoMoreCancels,
    EndOfFile,
    Resets,
    IsLeft,
    IsLeftAtLast,
    ClientReturns,
}

/// Makes a message out of those heard so far.
type Answer = dyn Fn(&[Vec<u8>]) -> Vec<u8> + Send + Sync;

/// The words of the play.
impl Script {
    pub(crate) fn new() -> Self {
        Self { steps: Vec::new(), process_id: PROCESS_ID, secret: SECRET.to_vec() }
    }

    /// Has this key for `CancelRequest`s, and tells it in [`login`](Self::login).
    pub(crate) fn known_as(mut self, process_id: i32, secret: &[u8]) -> Self {
        self.process_id = process_id;
        self.secret = secret.to_vec();
        self
    }

    /// A login that needs no password, and a server that is fit for locks.
    pub(crate) fn session(self) -> Self {
        self.login().introduction()
    }

    /// Accepts the user without a password.
    pub(crate) fn login(self) -> Self {
        self.says(authentication_ok()).welcome()
    }

    /// What follows when the user is accepted, by a primary.
    pub(crate) fn welcome(self) -> Self {
        let key = backend_key_data(self.process_id, &self.secret);
        self.says(parameter_status("server_version", "15.4"))
            .says(parameter_status("in_hot_standby", "off"))
            .says(key)
            .ready()
    }

    /// Shows that it is PostgreSQL, with nothing before it, and makes the settings.
    pub(crate) fn introduction(self) -> Self {
        self.gives_its_process_id().makes_settings()
    }

    /// Answers a call of [`PG_BACKEND_PID`].
    pub(crate) fn gives_its_process_id(self) -> Self {
        let process_id = self.process_id.to_be_bytes();
        self.hears_bytes(call_without_arguments(PG_BACKEND_PID)).says(returned(&process_id)).ready()
    }

    /// Runs a query of several statements.
    pub(crate) fn makes_settings(self) -> Self {
        self.hears_type(b'Q').says(set()).says(set()).ready()
    }

    /// Refuses function calls, and hears the question that is asked instead.
    pub(crate) fn refuses_calls(self) -> Self {
        self.hears_type(b'F')
            .says(error("0A000", "no function calls here"))
            .ready()
            .hears_type(b'Q')
    }

    pub(crate) fn ready(self) -> Self {
        self.says(ready_for_query())
    }

    /// Hears a message of this type.
    pub(crate) fn hears_type(self, tag: u8) -> Self {
        self.then(Step::HearsType(tag))
    }

    /// Hears a call of this function with [`KEY`], and nothing but that.
    pub(crate) fn hears(self, function: u32) -> Self {
        self.then(Step::Hears(function_call(function)))
    }

    /// Hears exactly this message.
    pub(crate) fn hears_bytes(self, bytes: Vec<u8>) -> Self {
        self.then(Step::Hears(bytes))
    }

    /// Hears nothing for this long.
    pub(crate) fn hears_nothing_for(self, time: Duration) -> Self {
        self.then(Step::HearsNothing(time))
    }

    pub(crate) fn says(self, bytes: Vec<u8>) -> Self {
        self.then(Step::Says(bytes))
    }

    /// Says what depends on what it has heard.
    pub(crate) fn answers(
        self,
        answer: impl Fn(&[Vec<u8>]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        self.then(Step::Answers(Arc::new(answer)))
    }

    /// Says these bytes one by one, over and over, until the client leaves.
    pub(crate) fn drips(self, bytes: Vec<u8>) -> Self {
        self.then(Step::Drips(bytes))
    }

    /// Says these bytes over and over, as fast as they are taken, until the client leaves.
    pub(crate) fn floods(self, bytes: Vec<u8>) -> Self {
        self.then(Step::Floods(bytes))
    }

    /// Says the same so many times.
    pub(crate) fn says_again_and_again(self, bytes: Vec<u8>, times: usize) -> Self {
        self.then(Step::SaysAgain(bytes, times))
    }

    /// Waits for the test to give the word: see [`Backend::prompt`].
    pub(crate) fn prompted(self) -> Self {
        self.then(Step::IsPrompted)
    }

    /// Lets the test know that the play has come to this point: see [`Backend::cue`].
    pub(crate) fn cues(self) -> Self {
        self.then(Step::Cues)
    }

    /// Gets a `CancelRequest` with the session's key. Its socket stays open.
    pub(crate) fn cancel_comes(self) -> Self {
        self.then(Step::CancelComes)
    }

    /// Closes the socket of the oldest `CancelRequest` that is open.
    pub(crate) fn cancel_ends(self) -> Self {
        self.then(Step::CancelEnds)
    }

    /// Resets the socket of the oldest `CancelRequest` that is open.
    pub(crate) fn cancel_breaks(self) -> Self {
        self.then(Step::CancelBreaks)
    }

    /// Closes the socket of each `CancelRequest` that comes, and does nothing else until the client
    /// leaves.
    pub(crate) fn ends_cancels(self) -> Self {
        self.then(Step::EndsCancels)
    }

    /// Takes no more connections, so that no `CancelRequest` gets through.
    pub(crate) fn takes_no_cancels(self) -> Self {
        self.then(Step::NoMoreCancels)
    }

    /// Says nothing any more, which the client learns at once, and goes on to listen.
    pub(crate) fn end_of_file(self) -> Self {
        self.then(Step::EndOfFile)
    }

    /// Breaks the connection.
    pub(crate) fn resets(self) -> Self {
        self.then(Step::Resets)
    }

    /// The client closes its socket, without another word.
    pub(crate) fn left(self) -> Self {
        self.then(Step::IsLeft)
    }

    /// The client closes its socket, whatever it said before.
    pub(crate) fn left_at_last(self) -> Self {
        self.then(Step::IsLeftAtLast)
    }

    /// The client closes its socket, and connects anew.
    pub(crate) fn client_returns(self) -> Self {
        self.left_at_last().then(Step::ClientReturns)
    }

    /// The client says goodbye, and waits for the end.
    pub(crate) fn terminated(self) -> Self {
        self.hears_bytes(b"X\0\0\0\x04".to_vec()).end_of_file().left()
    }

    /// This script, and then the other one.
    pub(crate) fn followed_by(mut self, other: Self) -> Self {
        self.steps.extend(other.steps);
        self
    }

    /// Each beginning of this script, from nothing to the whole.
    pub(crate) fn beginnings(self) -> impl Iterator<Item = Self> {
        (0..=self.steps.len())
            .map(move |end| Self { steps: self.steps[..end].to_vec(), ..self.clone() })
    }

    /// This script without its last step.
    pub(crate) fn without_the_last(mut self) -> Self {
        self.steps.pop();
        self
    }

    /// The same, with every word said one byte at a time.
    pub(crate) fn byte_by_byte(mut self) -> Self {
        for step in &mut self.steps {
            if let Step::Says(bytes) = step {
                *step = Step::SaysByteByByte(std::mem::take(bytes));
            }
        }
        self
    }

    /// Begins to play to the first client that comes.
    pub(crate) async fn play(self) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let signs = Arc::new(Signs { cues: Semaphore::new(0), prompts: Semaphore::new(0) });
        let play = play(self, listener, Arc::clone(&signs));
        Backend { port, signs, play: Some(tokio::spawn(play)) }
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// The call of a function that takes nothing.
pub(crate) fn call_without_arguments(function: u32) -> Vec<u8> {
    message(b'F', &[&function.to_be_bytes()[..], &[0, 1, 0, 1, 0, 0, 0, 1]].concat())
}

fn function_call(function: u32) -> Vec<u8> {
    // One argument format, binary; one argument, of 8 bytes; the result in binary.
    let body =
        [&function.to_be_bytes()[..], &[0, 1, 0, 1, 0, 1, 0, 0, 0, 8], &KEY.to_be_bytes(), &[0, 1]];
    message(b'F', &body.concat())
}

/// What the test and the play tell each other, so that neither has to guess where the other is.
struct Signs {
    cues: Semaphore,
    prompts: Semaphore,
}

/// A backend that plays. The test ends with [`done`](Self::done), or fails.
#[must_use]
pub(crate) struct Backend {
    port: u16,
    signs: Arc<Signs>,
    play: Option<JoinHandle<()>>,
}

impl Backend {
    /// Where it is on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How to connect to it.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user(USER)
            .password(PASSWORD)
            .sslmode(SslMode::Disable)
            .connect_timeout(Duration::from_secs(15));
        config
    }

    /// Connects to it, for [`KEY`].
    pub(crate) async fn connect(&self) -> Result<Lock> {
        timely(Lock::connect(&self.config(), KEY)).await
    }

    /// Connects to it, for any key.
    pub(crate) async fn connect_session(&self) -> Result<Session> {
        timely(Session::connect(&self.config())).await
    }

    /// Waits until the script comes to its next cue.
    pub(crate) async fn cue(&self) {
        timely(self.signs.cues.acquire()).await.unwrap().forget();
        // What was said before the cue has arrived. The runtime sees it when it is idle next.
        sleep(Duration::from_millis(1)).await;
    }

    /// Lets the script go on.
    pub(crate) fn prompt(&self) {
        self.signs.prompts.add_permits(1);
    }

    /// Waits for the end of the play; fails the test if it did not go by the script.
    pub(crate) async fn done(mut self) {
        if let Some(play) = self.play.take() {
            if let Err(error) = play.await {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let forgotten = self.play.is_some() && !std::thread::panicking();
        assert!(!forgotten, "the test ended before the play: end it with `done`");
    }
}

async fn play(script: Script, listener: TcpListener, signs: Arc<Signs>) {
    let (session_sender, mut sessions) = unbounded_channel();
    let (cancel_sender, cancels) = unbounded_channel();
    let door = tokio::spawn(open_door(listener, session_sender, cancel_sender));

    let Some(first) = timely(sessions.recv()).await else { panic!("no client came") };
    let key = [&script.process_id.to_be_bytes()[..], &script.secret].concat();
    let mut stage = Stage {
        stream: Some(first.stream),
        heard: vec![first.packet],
        sessions,
        cancels,
        open_cancels: VecDeque::new(),
        cancel_key: key,
        signs,
        door,
    };
    for (line, step) in script.steps.into_iter().enumerate() {
        let told = step.to_string();
        let outcome = timeout(PATIENCE, stage.take(step)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(String::from("it did not come to that")));
        if let Err(problem) = outcome {
            panic!("line {} of the script, {told}: {problem}", line + 1);
        }
    }
    stage.door.abort();
    assert!(stage.sessions.try_recv().is_err(), "the client connected a second time");
    assert!(stage.cancels.try_recv().is_err(), "a CancelRequest came that is not in the script");
}

/// A connection, and its first packet, which has no type byte.
struct Guest {
    stream: TcpStream,
    packet: Vec<u8>,
}

async fn open_door(
    listener: TcpListener,
    sessions: UnboundedSender<Guest>,
    cancels: UnboundedSender<Guest>,
) {
    const CANCEL_REQUEST: [u8; 4] = 80_877_102_u32.to_be_bytes();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        // Whoever leaves before saying anything was no guest.
        let Ok(packet) = read_packet(&mut stream, Vec::new()).await else { continue };
        let guest = Guest { stream, packet };
        let room =
            if guest.packet[4..].starts_with(&CANCEL_REQUEST) { &cancels } else { &sessions };
        // The play may be over.
        let _ = room.send(guest);
    }
}

/// Reads a length, and what it announces, to behind what was read already.
async fn read_packet(stream: &mut TcpStream, mut packet: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    packet.extend(length.to_be_bytes());
    let start = packet.len();
    packet.resize(start + usize::try_from(length).unwrap() - 4, 0);
    stream.read_exact(&mut packet[start..]).await?;
    Ok(packet)
}

/// What the play needs while it goes on.
struct Stage {
    /// Until it is reset.
    stream: Option<TcpStream>,
    heard: Vec<Vec<u8>>,
    sessions: UnboundedReceiver<Guest>,
    cancels: UnboundedReceiver<Guest>,
    open_cancels: VecDeque<TcpStream>,
    cancel_key: Vec<u8>,
    signs: Arc<Signs>,
    door: JoinHandle<()>,
}

type Problem = String;

impl Stage {
    async fn take(&mut self, step: Step) -> Result<(), Problem> {
        match step {
            Step::HearsType(tag) => {
                let heard = self.hear().await?;
                if heard.first() == Some(&tag) { Ok(()) } else { Err(instead(&heard)) }
            }
            Step::Hears(bytes) => {
                let heard = self.hear().await?;
                if heard == bytes { Ok(()) } else { Err(instead(&heard)) }
            }
            Step::HearsNothing(time) => match timeout(time, self.hear()).await {
                Err(_) => Ok(()),
                Ok(heard) => Err(instead(&heard?)),
            },
            Step::Says(bytes) => self.say(&bytes).await,
            Step::SaysByteByByte(bytes) => self.say_byte_by_byte(&bytes).await,
            Step::Answers(answer) => self.say(&answer(&self.heard)).await,
            Step::Drips(bytes) => {
                while self.say_byte_by_byte(&bytes).await.is_ok() {}
                Ok(())
            }
            Step::Floods(bytes) => {
                while self.say(&bytes).await.is_ok() {}
                Ok(())
            }
            Step::SaysAgain(bytes, times) => {
                for _ in 0..times {
                    self.say(&bytes).await?;
                }
                Ok(())
            }
            Step::IsPrompted => {
                self.signs.prompts.acquire().await.unwrap().forget();
                Ok(())
            }
            Step::Cues => {
                self.signs.cues.add_permits(1);
                Ok(())
            }
            Step::CancelComes => self.take_cancel().await,
            Step::CancelEnds => self.open_cancel().map(drop),
            Step::CancelBreaks => self.open_cancel().map(|stream| reset(&stream)),
            Step::EndsCancels => self.end_cancels().await,
            Step::NoMoreCancels => {
                self.door.abort();
                Ok(())
            }
            Step::EndOfFile => self.stream()?.shutdown().await.map_err(|error| error.to_string()),
            Step::Resets => {
                if let Some(stream) = self.stream.take() {
                    reset(&stream);
                }
                Ok(())
            }
            Step::IsLeft => self.be_left().await,
            Step::IsLeftAtLast => {
                while self.be_left().await.is_err() {}
                Ok(())
            }
            Step::ClientReturns => {
                let Guest { stream, packet } =
                    self.sessions.recv().await.ok_or("no client came")?;
                self.heard.push(packet);
                self.stream = Some(stream);
                Ok(())
            }
        }
    }

    async fn hear(&mut self) -> Result<Vec<u8>, Problem> {
        let stream = self.stream()?;
        let packet = async {
            let tag = stream.read_u8().await?;
            read_packet(stream, vec![tag]).await
        };
        let packet = packet.await.map_err(|error| format!("the client left ({error})"))?;
        self.heard.push(packet.clone());
        Ok(packet)
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let said = self.stream()?.write_all(bytes).await;
        said.map_err(|error| format!("the client left ({error})"))
    }

    async fn say_byte_by_byte(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        for byte in bytes {
            self.say(&[*byte]).await?;
            // Bytes that wait together are read together.
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Waits for the client to close the socket. Says what it did if it does something else.
    async fn be_left(&mut self) -> Result<(), Problem> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let Ok(tag) = stream.read_u8().await else { return Ok(()) };
        match read_packet(stream, vec![tag]).await {
            Ok(packet) => Err(instead(&packet)),
            Err(error) => Err(format!("the client left within a message ({error})")),
        }
    }

    async fn take_cancel(&mut self) -> Result<(), Problem> {
        let guest = self.cancels.recv().await.ok_or("the door is closed")?;
        let packet = &guest.packet;
        if packet[8..] != self.cancel_key {
            return Err(format!("the CancelRequest was \"{}\"", packet.escape_ascii()));
        }
        self.open_cancels.push_back(guest.stream);
        Ok(())
    }

    fn open_cancel(&mut self) -> Result<TcpStream, Problem> {
        self.open_cancels.pop_front().ok_or_else(|| String::from("no CancelRequest is open"))
    }

    async fn end_cancels(&mut self) -> Result<(), Problem> {
        let stream = self.stream.as_mut().ok_or("the connection was reset before")?;
        loop {
            tokio::select! {
                biased;
                guest = self.cancels.recv() => drop(guest),
                heard = stream.read_u8() => match heard {
                    Ok(tag) => return Err(instead(&[tag])),
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    fn stream(&mut self) -> Result<&mut TcpStream, Problem> {
        self.stream.as_mut().ok_or_else(|| String::from("the connection was reset before"))
    }
}

fn instead(heard: &[u8]) -> Problem {
    format!("the client said \"{}\"", heard.escape_ascii())
}

/// Sees to it that the peer gets a reset when the socket is dropped.
fn reset(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = |bytes: &[u8]| bytes[..bytes.len().min(60)].escape_ascii().to_string();
        match self {
            Self::HearsType(tag) => write!(f, "hears a message '{}'", char::from(*tag)),
            Self::Hears(bytes) => write!(f, "hears \"{}\"", start(bytes)),
            Self::HearsNothing(time) => write!(f, "hears nothing for {time:?}"),
            Self::Says(bytes) | Self::SaysByteByByte(bytes) => {
                write!(f, "says \"{}\"", start(bytes))
            }
            Self::Answers(_) => f.write_str("answers"),
            Self::Drips(_) => f.write_str("drips until it is left"),
            Self::Floods(_) => f.write_str("floods until it is left"),
            Self::SaysAgain(bytes, times) => write!(f, "says \"{}\" {times} times", start(bytes)),
            Self::IsPrompted => f.write_str("is prompted"),
            Self::Cues => f.write_str("cues"),
            Self::CancelComes => f.write_str("gets a CancelRequest"),
            Self::CancelEnds => f.write_str("ends a CancelRequest"),
            Self::CancelBreaks => f.write_str("breaks a CancelRequest"),
            Self::EndsCancels => f.write_str("ends CancelRequests until it is left"),
            Self::NoMoreCancels => f.write_str("takes no more CancelRequests"),
            Self::EndOfFile => f.write_str("ends the stream"),
            Self::Resets => f.write_str("resets the connection"),
            Self::IsLeft => f.write_str("is left"),
            Self::IsLeftAtLast => f.write_str("is left at last"),
            Self::ClientReturns => f.write_str("is visited again"),
        }
    }
}
