//! Candidates that are timed in turns, so that whatever slows the machine slows them all.

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

/// Each gives a median; what counts is the median of those.
const ROUNDS: usize = 5;

/// Does what is timed a number of times, and appends how long each took.
pub(crate) type Turn = Box<dyn FnMut(&mut Vec<Duration>)>;

pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) turn: Turn,
}

/// Candidates for the same task.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    /// How often each has its turn in a round.
    pub(crate) turns: usize,
    /// The first is the yardstick.
    pub(crate) candidates: Vec<Candidate>,
}

pub(crate) struct Outcome {
    pub(crate) title: &'static str,
    pub(crate) figures: Vec<Figure>,
}

pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) median: Duration,
    /// What this is to the yardstick, round by round; the median of these.
    pub(crate) ratio: f64,
}

impl Group {
    pub(crate) fn run(mut self) -> Outcome {
        // Statements are prepared, caches filled and branches learned before it counts.
        self.round(1);
        let rounds: Vec<Vec<Duration>> = (0..ROUNDS).map(|_| self.round(self.turns)).collect();
        let figure = |(index, candidate): (usize, &Candidate)| Figure {
            name: candidate.name,
            median: median(rounds.iter().map(|medians| medians[index]).collect()),
            ratio: median_ratio(rounds.iter().map(|medians| (medians[index], medians[0]))),
        };
        let figures = self.candidates.iter().enumerate().map(figure).collect();
        Outcome { title: self.title, figures }
    }

    /// The median of each candidate.
    fn round(&mut self, turns: usize) -> Vec<Duration> {
        let count = self.candidates.len();
        let mut times = vec![Vec::new(); count];
        for turn in 0..turns {
            // Each is the first one now and then: nobody always comes after the same other.
            for index in (0..count).map(|offset| (turn + offset) % count) {
                (self.candidates[index].turn)(&mut times[index]);
            }
        }
        times.into_iter().map(median).collect()
    }
}

impl Candidate {
    /// What blocks.
    pub(crate) fn blocking(
        name: &'static str,
        count: usize,
        mut action: impl FnMut() + 'static,
    ) -> Self {
        let turn = move |times: &mut Vec<Duration>| {
            for _ in 0..count {
                let begin = Instant::now();
                action();
                times.push(begin.elapsed());
            }
        };
        Self { name, turn: Box::new(turn) }
    }

    /// What runs on the runtime, entered once for each turn.
    pub(crate) fn on(
        runtime: &Rc<Runtime>,
        name: &'static str,
        count: usize,
        mut action: impl AsyncFnMut() + 'static,
    ) -> Self {
        let runtime = Rc::clone(runtime);
        let turn = move |times: &mut Vec<Duration>| {
            runtime.block_on(async {
                for _ in 0..count {
                    let begin = Instant::now();
                    action().await;
                    times.push(begin.elapsed());
                }
            });
        };
        Self { name, turn: Box::new(turn) }
    }
}

fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

fn median_ratio(pairs: impl Iterator<Item = (Duration, Duration)>) -> f64 {
    let mut ratios: Vec<f64> =
        pairs.map(|(time, yardstick)| time.as_secs_f64() / yardstick.as_secs_f64()).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// A table in Markdown.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} | Median | To the bare socket |\n| --- | ---: | ---: |", self.title)?;
        for Figure { name, median, ratio } in &self.figures {
            let micros = median.as_secs_f64() * 1e6;
            writeln!(f, "| {name} | {micros:.1} µs | {ratio:.2} |")?;
        }
        Ok(())
    }
}
