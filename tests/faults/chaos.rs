//! The faults, one after another, as a seed has them.
//!
//! What the server ends by itself (a session that is terminated, or all of them as it stops, or one
//! whose client seems to have closed it) is ended at once, whatever its client knows: a lease does not
//! change that. The client is told before the lock is free, but through a network that is slow or
//! silent, or a proxy, the next holder may hear of it before this one. So sessions are terminated here
//! where no proxy is in between, the server starts again once the proxy has told everybody, and no
//! half-closed connection tells the server first. What happens without that care,
//! [`Fence`](pglock::Fence) is for.

use std::ops::Range;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pglock_test_cluster::{
    Break, Cluster, Proxy, Settings, Shutdown, Traffic, Way, role, wait_until,
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
    KillBackend,
    Restart(Shutdown),
}

const FAULTS: [Fault; 16] = [
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
    Fault::KillBackend,
    Fault::Restart(Shutdown::Fast),
    Fault::Restart(Shutdown::Immediate),
];

pub(crate) struct Chaos {
    random: Random,
    // Ended in this order: who contends before what is contended for.
    processes: Vec<Process>,
    proxy: Proxy,
    cluster: Cluster,
    journals: Folder,
}

impl Chaos {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // A server that starts again by itself would not wait for the proxy.
        let cluster = Settings::new().set("restart_after_crash", "off").start();
        let proxy = Proxy::start(cluster.port());
        let journals = Folder::new();
        let processes = (0..PROCESSES)
            .map(|number| {
                let terms = terms(number, &cluster, &proxy);
                Process::start(number, terms, &journals, random.next())
            })
            .collect();
        Self { random, processes, proxy, cluster, journals }
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
        let mut look = self.cluster.raw();
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
                    self.proxy.set(*way, Traffic::Silent);
                }
                self.pause(200..3000);
                self.proxy.set_both(Traffic::Flows);
            }
            Fault::Slow(traffic) => {
                self.proxy.set_both(traffic);
                self.pause(500..1500);
                self.proxy.set_both(Traffic::Flows);
            }
            Fault::Break(how) => self.proxy.break_all(how),
            Fault::HalfClose => {
                self.proxy.set(Way::ToClient, Traffic::Ended);
                self.pause(50..200);
                self.proxy.set_both(Traffic::Flows);
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
                self.proxy.set_both(Traffic::Silent);
                self.pause(500..3000);
                self.processes[victim].thaw();
                self.pause(200..500);
                self.proxy.set_both(Traffic::Flows);
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
            Fault::KillBackend => self.kill_backend(),
            Fault::Restart(shutdown) => self.restart(shutdown),
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
        self.cluster.major_version() >= ENDS_SILENT_SESSIONS
    }

    fn terminate(&mut self) {
        let sessions = self.sessions("true");
        // Those of whom the network tells at once.
        let direct: Vec<_> = sessions.iter().filter(|(process, _)| *process < DIRECT).collect();
        if !direct.is_empty() {
            let (_, pid) = direct[self.random.below(direct.len())];
            // It may be gone by now.
            self.cluster.raw().rows(&format!("SELECT pg_terminate_backend({pid})"));
        }
    }

    /// Upon which the server ends all the others, and itself.
    fn kill_backend(&mut self) {
        let mut sessions = self.sessions("true");
        self.random.shuffle(&mut sessions);
        let Some((_, pid)) = sessions.pop() else { return };
        let kill = Command::new("sh").args(["-c", "kill -s KILL \"$1\"", "sh", &pid]).status();
        // It may be gone by now.
        if kill.unwrap().success() {
            self.cluster.wait_for_exit();
            self.start_again();
        }
    }

    fn restart(&mut self, shutdown: Shutdown) {
        self.cluster.stop(shutdown);
        self.start_again();
    }

    fn start_again(&mut self) {
        wait_until("the proxy has told everybody", PATIENCE, || self.proxy.connections() == 0);
        self.pause(0..300);
        self.cluster.start();
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
        let rows = self.cluster.raw().rows(&sql);
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

/// Some have TLS, some the shortest lease, some neither.
fn terms(number: usize, cluster: &Cluster, proxy: &Proxy) -> Terms {
    let mut url = cluster.url_for(&role::TRUST);
    if number >= DIRECT {
        url = url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", proxy.port()));
    }
    url.push_str("?connect_timeout=2");
    if number % 2 == 0 {
        url.push_str("&sslmode=disable");
    }
    let lease = Duration::from_millis(if number / 2 == number % 2 { 1000 } else { 1500 });
    let has_lease = cluster.major_version() >= ENDS_SILENT_SESSIONS;
    Terms { url, lease: has_lease.then_some(lease) }
}
