//! Several servers behind one connection string, of which one is the primary: [`rounds`] of losing it,
//! and [`hosts`] that are not it. [`wishes`] are what a string asks of a session, from wherever its
//! parts come.

mod hosts;
mod rounds;
mod wishes;

use pglock::Config;
use pglock_test_cluster::{Cluster, role};

/// A connection string for these servers, in this order.
fn string_for(clusters: &[&Cluster]) -> String {
    let hosts: Vec<_> =
        clusters.iter().map(|cluster| format!("127.0.0.1:{}", cluster.port())).collect();
    format!("postgresql://{}@{}/app", role::TRUST.name, hosts.join(","))
}

/// How to connect to these places on 127.0.0.1, in this order, without TLS and without a password.
fn config_for(ports: &[u16]) -> Config {
    let mut config: Config =
        format!("user={} dbname=app sslmode=disable", role::TRUST.name).parse().unwrap();
    config.hosts(ports.iter().map(|&port| ("127.0.0.1", port)));
    config
}
