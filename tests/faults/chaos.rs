//! The faults, one after another, as a seed has them.
//!
//! What the server ends by itself (a session that is terminated, or all of them as it stops, or one
//! whose client seems to have closed it) is ended at once, whatever its client knows: a lease does not
//! change that. The client is told before the lock is free, but through a network that is slow or
//! silent, or a proxy, the next holder may hear of it before this one. So sessions are terminated here
//! where no proxy is in between, a server that stops fast has nobody behind the proxy any more, another takes
//! the place of one that has ended once the proxy has told everybody, and no half-closed connection tells
//! the server first. What happens without that care,
//! [`Fence`](pglock::Fence) is for.

use std::mem;
use std::ops::Range;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pglock_test_cluster::{
    Break, Cluster, Proxy, Settings, Shutdown, Traffic, Way, role, signal, wait_until,
};

use crate::history::Watch;
use crate::processes::{Folder, Process, Terms};
use crate::random::Random;

const PROCESSES: usize = 4;
/// The first ones; the others go through the proxy.
const DIRECT: usize = 2;
/// The first major version whose servers end sessions that are silent.
const ENDS_SILENT_SESSIONS: u32 = 14;
/// How long a fault is held back until it finds the holder that it would strike.
const HOLDER_WITHIN: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Silence(&'static [Way]),
    Slow(Traffic),
    Break(Break),
    /// Towards the client.
    HalfClose,
    Freeze,
    /// A process is frozen while the network is silent, so that it finds no word of the server.
    FreezeInSilence,
    /// A process is frozen while the server is started anew.
    FreezeThroughRestart,
    Kill,
    Terminate,
    FreezeBackend,
    KillBackend,
    Restart(Shutdown),
    /// The server takes nobody in, and goes on with whom it has for a while.
    SmartStop,
    /// The primary is stopped, and its standby takes its place.
    Promote(Shutdown),
}

const FAULTS: [Fault; 20] = [
    Fault::Silence(&[Way::ToServer]),
    Fault::Silence(&[Way::ToClient]),
    Fault::Silence(&[Way::ToServer, Way::ToClient]),
    Fault::Slow(Traffic::Delayed(Duration::from_millis(30))),
    Fault::Slow(Traffic::ByteByByte),
    Fault::Break(Break::Cut),
    Fault::Break(Break::Reset),
    Fault::HalfClose,
    Fault::Freeze,
    Fault::FreezeInSilence,
    Fault::FreezeThroughRestart,
    Fault::Kill,
    Fault::Terminate,
    Fault::FreezeBackend,
    Fault::KillBackend,
    Fault::Restart(Shutdown::Fast),
    Fault::Restart(Shutdown::Immediate),
    Fault::SmartStop,
    Fault::Promote(Shutdown::Fast),
    Fault::Promote(Shutdown::Immediate),
];

pub(crate) struct Chaos {
    random: Random,
    // Ended in this order: who contends before what is contended for.
    processes: Vec<Process>,
    primary: Server,
    standby: Server,
    journals: Folder,
}

struct Server {
    proxy: Proxy,
    cluster: Cluster,
}

impl Chaos {
    pub(crate) fn new(test: &'static str, seed: u64) -> Self {
        let mut random = Random::new(seed);
        // A server that starts again by itself would not wait for the proxy.
        let settings = Settings::new().set("restart_after_crash", "off");
        let primary = Server::new(settings.clone().start());
        let standby = Server::new(settings.start_standby_of(&primary.cluster));
        let journals = Folder::new();
        let processes = (0..PROCESSES)
            .map(|number| {
                let terms = terms(test, number, [&primary, &standby]);
                Process::start(number, terms, &journals, random.next())
            })
            .collect();
        Self { random, processes, primary, standby, journals }
    }

    /// Strikes for this long, then lets all end. Returns their journals.
    pub(crate) fn reign(mut self, duration: Duration) -> Folder {
        let (begun, mut watch) = (Instant::now(), Watch::new());
        let mut faults = Vec::new();
        while begun.elapsed() < duration {
            if faults.is_empty() {
                faults.extend(FAULTS);
                self.random.shuffle(&mut faults);
            }
            self.pause(50..600);
            let fault = faults.pop().unwrap();
            println!("{:8.3} s: {fault:?}", begun.elapsed().as_secs_f64());
            self.strike(fault);
            watch.look();
        }
        self.processes.iter_mut().for_each(Process::dismiss);
        for process in &mut self.processes {
            assert!(process.wait().success(), "a contender failed");
        }
        watch.look();
        let mut look = self.primary.cluster.raw();
        wait_until("nobody has or awaits a lock", PATIENCE, || {
            look.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"
        });
        self.journals
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Silence(ways) => {
                self.await_holder(DIRECT..PROCESSES);
                for way in ways {
                    self.primary.proxy.set(*way, Traffic::Silent);
                }
                self.pause(200..3000);
                self.primary.proxy.set_both(Traffic::Flows);
            }
            Fault::Slow(traffic) => {
                self.primary.proxy.set_both(traffic);
                self.pause(500..1500);
                self.primary.proxy.set_both(Traffic::Flows);
            }
            Fault::Break(how) => self.primary.proxy.break_all(how),
            Fault::HalfClose => {
                self.primary.proxy.set(Way::ToClient, Traffic::Ended);
                self.pause(50..200);
                self.primary.proxy.set_both(Traffic::Flows);
            }
            // Without a lease, the others would only wait for the thaw.
            Fault::Freeze | Fault::FreezeInSilence if !self.has_leases() => {}
            Fault::Freeze => {
                let victim = self.process(0..PROCESSES);
                self.processes[victim].freeze();
                self.pause(100..3000);
                self.processes[victim].thaw();
            }
            Fault::FreezeInSilence => {
                self.await_holder(DIRECT..PROCESSES);
                let victim = self.process(DIRECT..PROCESSES);
                self.processes[victim].freeze();
                self.primary.proxy.set_both(Traffic::Silent);
                self.pause(500..3000);
                self.processes[victim].thaw();
                self.pause(200..500);
                self.primary.proxy.set_both(Traffic::Flows);
            }
            Fault::FreezeThroughRestart => {
                let victim = self.process(0..DIRECT);
                self.processes[victim].freeze();
                self.restart(Shutdown::Immediate);
                self.pause(50..500);
                self.processes[victim].thaw();
            }
            Fault::Kill => {
                let (victim, seed) = (self.process(0..PROCESSES), self.random.next());
                self.processes[victim].replace(&self.journals, seed);
            }
            Fault::Terminate => self.terminate(),
            Fault::FreezeBackend => self.freeze_backend(),
            Fault::KillBackend => self.kill_backend(),
            Fault::Restart(shutdown) => self.restart(shutdown),
            Fault::SmartStop => self.stop_smartly(),
            Fault::Promote(shutdown) => self.promote(shutdown),
        }
    }

    /// One of these processes: the one that has the lock, if it is among them, two times out of three.
    fn process(&mut self, among: Range<usize>) -> usize {
        let any = among.start + self.random.below(among.len());
        if self.random.below(3) == 0 {
            return any;
        }
        let holder = self.sessions("granted").pop();
        holder.map(|(process, _)| process).filter(|process| among.contains(process)).unwrap_or(any)
    }

    /// Waits a while until one of these processes has the lock.
    fn await_holder(&self, among: Range<usize>) {
        let begun = Instant::now();
        let is_holder = |(process, _): &(usize, String)| among.contains(process);
        while begun.elapsed() < HOLDER_WITHIN && !self.sessions("granted").iter().any(is_holder) {
            sleep(Duration::from_millis(10));
        }
    }

    fn has_leases(&self) -> bool {
        self.primary.cluster.major_version() >= ENDS_SILENT_SESSIONS
    }

    fn terminate(&mut self) {
        let sessions = self.sessions("true");
        // Those of whom the network tells at once.
        let direct: Vec<_> = sessions.iter().filter(|(process, _)| *process < DIRECT).collect();
        if !direct.is_empty() {
            let (_, pid) = direct[self.random.below(direct.len())];
            // It may be gone by now.
            self.primary.cluster.raw().rows(&format!("SELECT pg_terminate_backend({pid})"));
        }
    }

    /// That of the holder, two times out of three.
    fn freeze_backend(&mut self) {
        let mut sessions = self.sessions("true");
        if self.random.below(3) == 0 {
            self.random.shuffle(&mut sessions);
        }
        let Some((_, pid)) = sessions.pop() else { return };
        if try_signal(&pid, "STOP") {
            self.pause(100..3000);
            signal(&pid, "CONT");
        }
    }

    /// Upon which the server ends all the others, and itself.
    fn kill_backend(&mut self) {
        let mut sessions = self.sessions("true");
        self.random.shuffle(&mut sessions);
        let Some((_, pid)) = sessions.pop() else { return };
        if try_signal(&pid, "KILL") {
            self.primary.cluster.wait_for_exit();
            self.start_again();
        }
    }

    fn restart(&mut self, shutdown: Shutdown) {
        self.stop(shutdown);
        self.start_again();
    }

    /// The server would wait for its clients for ever, of which there is one more.
    fn stop_smartly(&mut self) {
        let mut client = self.primary.cluster.raw();
        self.primary.cluster.begin_to_stop(Shutdown::Smart);
        wait_until("the server takes nobody in", PATIENCE, || {
            !self.primary.cluster.takes_clients()
        });
        self.pause(100..1500);
        assert!(!self.primary.cluster.takes_clients(), "a server that stops has taken somebody in");
        assert_eq!(client.value("SELECT 'served'"), "served");
        self.restart(Shutdown::Fast);
    }

    /// A server that stops fast ends one session after another, and those whom it ends last may get the locks
    /// of the first for a moment. Who is behind the proxy hears of the end before that, by the proxy's own
    /// hand, and does not get through until the server has stopped.
    fn stop(&mut self, shutdown: Shutdown) {
        if shutdown == Shutdown::Fast {
            self.primary.proxy.break_all(Break::Cut);
            self.primary.proxy.set_both(Traffic::Ended);
            self.primary.await_told();
        }
        self.primary.cluster.stop(shutdown);
        self.primary.proxy.set_both(Traffic::Flows);
    }

    fn start_again(&mut self) {
        self.primary.await_told();
        self.pause(0..300);
        self.primary.cluster.start();
    }

    fn promote(&mut self, shutdown: Shutdown) {
        self.stop(shutdown);
        self.primary.await_told();
        self.pause(0..300);
        self.standby.cluster.promote();
        mem::swap(&mut self.primary, &mut self.standby);
        self.pause(0..300);
        self.standby.cluster.follow(&self.primary.cluster);
    }

    /// The processes and the backends of the sessions that have or await the lock, if they meet this
    /// condition, the holder's last.
    fn sessions(&self, condition: &str) -> Vec<(usize, String)> {
        let sql = format!(
            "SELECT split_part(application_name, '.', 1), pid FROM pg_locks \
             JOIN pg_stat_activity USING (pid) \
             WHERE locktype = 'advisory' AND application_name <> '' AND {condition} \
             ORDER BY granted"
        );
        let rows = self.primary.cluster.raw().rows(&sql);
        rows.into_iter()
            .map(|row| match row.as_slice() {
                [Some(process), Some(pid)] => (process.parse().unwrap(), pid.clone()),
                _ => panic!("{row:?}"),
            })
            .collect()
    }

    fn pause(&mut self, ms: Range<u64>) {
        sleep(Duration::from_millis(self.random.within(ms)));
    }
}

impl Server {
    fn new(cluster: Cluster) -> Self {
        Self { proxy: Proxy::start(cluster.port()), cluster }
    }

    /// Waits, once the server has ended, until those behind the proxy know.
    fn await_told(&self) {
        wait_until("the proxy has told everybody", PATIENCE, || self.proxy.connections() == 0);
    }
}

/// Some have TLS, some the shortest lease, some neither.
fn terms(test: &'static str, number: usize, servers: [&Server; 2]) -> Terms {
    let hosts = servers.map(|Server { proxy, cluster }| {
        format!("127.0.0.1:{}", if number < DIRECT { cluster.port() } else { proxy.port() })
    });
    let mut url = format!(
        "postgresql://{}@{}/app?target_session_attrs=read-write&connect_timeout=2",
        role::TRUST.name,
        hosts.join(",")
    );
    if number % 2 == 0 {
        url.push_str("&sslmode=disable");
    }
    let lease = Duration::from_millis(if number / 2 == number % 2 { 1000 } else { 1500 });
    let has_lease = servers[0].cluster.major_version() >= ENDS_SILENT_SESSIONS;
    Terms { test, url, lease: has_lease.then_some(lease) }
}

/// Sends a signal to a backend, which may be gone by now: says whether it was not.
fn try_signal(pid: &str, signal: &str) -> bool {
    let kill = Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, pid]).status();
    kill.unwrap().success()
}
