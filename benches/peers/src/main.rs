//! Times pglock beside its peers and beside bare sockets, in turns, on a server started for it.
//!
//! `pglock-peers [CHART]` prints a table and draws its first part as SVG. `benches/README.md` says
//! what is measured and how to read it; `tests/run peers` runs it.

mod bare;
mod cancel;
mod chart;
mod connect;
mod drivers;
mod hand_over;
mod messages;
mod pair;
mod redis;
mod rounds;
mod server;

use crate::rounds::{Group, Outcome};
use crate::server::{Server, Transport};

fn main() {
    let chart = std::env::args_os().nth(1);
    let server = Server::start();
    println!("{}\n", server.description());
    let mut outcomes: Vec<Outcome> = Vec::new();
    for group in groups(&server) {
        let outcome = group().run();
        println!("{outcome}");
        outcomes.push(outcome);
    }
    if let Some(path) = chart {
        outcomes.truncate(Transport::ALL.len());
        std::fs::write(path, chart::draw(&outcomes)).expect("the chart, written");
    }
}

/// Made one after the other, so that none has its sessions open while another is timed.
fn groups(server: &Server) -> Vec<Box<dyn FnOnce() -> Group + '_>> {
    let mut groups: Vec<Box<dyn FnOnce() -> Group + '_>> = Vec::new();
    for transport in Transport::ALL {
        groups.push(Box::new(move || pair::group(server, transport)));
    }
    groups.push(Box::new(|| connect::group(server)));
    groups.push(Box::new(|| hand_over::group(server)));
    groups.push(Box::new(|| cancel::group(server)));
    groups
}
