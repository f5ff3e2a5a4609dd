//! Two processes, each of which has many tasks that want the same key: who gets it how often, and who waits
//! for how long, by the bounds that [`hand_overs`](pglock::LockManagerBuilder::hand_overs) sets.
//!
//! `cargo bench --bench fairness` prints a table. `benches/README.md` says how to read it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark ends where what it measures did not happen"
)]

mod contender;

use std::env;
use std::io::Write;
use std::time::Duration;

use contender::{Part, Process, Terms, Turns};
use pglock_test_cluster::{Cluster, role};

/// How this group is chosen among others.
const NAME: &str = "fairness";
/// For how long each pair of processes contends, unless this variable says otherwise.
const SECONDS: u64 = 10;
const SECONDS_VARIABLE: &str = "PGLOCK_FAIRNESS_SECONDS";

/// How long a task keeps the key, and by which bounds it goes from task to task.
const CASES: [(Duration, u32, Duration); 14] = [
    (SHORT, 0, Duration::ZERO),
    (SHORT, 4, HUNDRED),
    (SHORT, 16, HUNDRED),
    (SHORT, 64, HUNDRED),
    (SHORT, 256, HUNDRED),
    (SHORT, 1024, HUNDRED),
    (SHORT, 4096, HUNDRED),
    (LONG, 0, Duration::ZERO),
    (LONG, 64, TEN),
    (LONG, 256, TEN),
    (LONG, 64, HUNDRED),
    (LONG, 256, HUNDRED),
    (LONG, 64, THOUSAND),
    (LONG, 1024, THOUSAND),
];
const SHORT: Duration = Duration::from_micros(10);
const LONG: Duration = Duration::from_millis(1);
const TEN: Duration = Duration::from_millis(10);
const HUNDRED: Duration = Duration::from_millis(100);
const THOUSAND: Duration = Duration::from_secs(1);

fn main() {
    if let Some(part) = Part::assigned() {
        return part.play();
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut filters = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
    if filters.peek().is_some() && !filters.any(|filter| NAME.contains(filter.as_str())) {
        return;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return println!("{NAME}: benchmark");
    }
    // To see whether it still works, a moment will do.
    let is_test = !arguments.iter().any(|argument| argument == "--bench")
        || arguments.iter().any(|argument| argument == "--test");
    let seconds = env::var(SECONDS_VARIABLE).map(|seconds| seconds.parse().expect("seconds"));
    let (cases, lasts) = if is_test {
        (&CASES[3..4], Duration::from_millis(200))
    } else {
        (&CASES[..], Duration::from_secs(seconds.unwrap_or(SECONDS)))
    };
    println!(
        "key kept for | hand-overs   within | turns/s | lesser share | mean wait | longest | ratio"
    );
    for &(work, count, within) in cases {
        let turns = contend(&Terms { work, count, within, lasts });
        print!("{:>12} | {count:>10} {:>8} | ", format!("{work:?}"), format!("{within:?}"));
        report(&turns, lasts);
    }
}

/// Has two processes contend.
fn contend(terms: &Terms) -> [Turns; 2] {
    let url = Cluster::default_cluster().url_for(&role::TRUST);
    let mut processes = [(); 2].map(|()| Process::start(&url, terms));
    processes.iter_mut().for_each(Process::await_ready);
    processes.iter_mut().for_each(Process::begin);
    processes.map(Process::end)
}

fn report(turns: &[Turns; 2], lasts: Duration) {
    let total = turns[0].count + turns[1].count;
    let lesser = 100 * turns[0].count.min(turns[1].count) / total;
    let mean = (turns[0].waited + turns[1].waited) / total;
    let longest = turns[0].longest.max(turns[1].longest);
    println!(
        "{:>7.0} | {lesser:>10} % | {:>6.1} ms | {:>4.0} ms | {:>5.1}",
        f64::from(total) / lasts.as_secs_f64(),
        mean.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3,
        longest.as_secs_f64() / mean.as_secs_f64(),
    );
    // A row at a time: the next one takes a while.
    std::io::stdout().flush().expect("a place for the table");
}
