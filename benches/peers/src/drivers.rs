//! The drivers that most programs would otherwise use, connected.

use pglock_test_cluster::Role;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, PgConnection};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::server::{DATABASE, HOST, Server, Transport};

/// A client whose connection is driven by a task of its own.
pub(crate) async fn tokio_postgres(server: &Server, transport: Transport, role: &Role) -> Client {
    let mut config = tokio_postgres::Config::new();
    config.port(server.cluster().port()).user(role.name).dbname(DATABASE);
    config.ssl_mode(tokio_postgres::config::SslMode::Disable);
    if let Some(password) = role.password {
        config.password(password);
    }
    match transport {
        Transport::Tcp => config.host(HOST),
        Transport::Unix => config.host_path(server.cluster().socket_dir()),
        Transport::Tls => config.host(HOST).ssl_mode(tokio_postgres::config::SslMode::Require),
    };
    if transport == Transport::Tls {
        let tls = MakeRustlsConnect::new(server.tls_config());
        let (client, connection) = config.connect(tls).await.expect("a session");
        tokio::spawn(connection);
        client
    } else {
        let (client, connection) = config.connect(NoTls).await.expect("a session");
        tokio::spawn(connection);
        client
    }
}

pub(crate) async fn sqlx(server: &Server, transport: Transport, role: &Role) -> PgConnection {
    let options = PgConnectOptions::new_without_pgpass()
        .port(server.cluster().port())
        .username(role.name)
        .database(DATABASE);
    let options = match role.password {
        Some(password) => options.password(password),
        None => options,
    };
    let options = match transport {
        Transport::Tcp => options.host(HOST).ssl_mode(PgSslMode::Disable),
        Transport::Unix => options.socket(server.cluster().socket_dir()),
        Transport::Tls => options.host(HOST).ssl_mode(PgSslMode::Require),
    };
    options.disable_statement_logging().connect().await.expect("a session")
}
