//! A network with faults between a client and a server.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::sleep;

/// The two ways through a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// What becomes of the bytes that go one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// They are passed on.
    Flows,
    /// Whatever has arrived is passed on after this time.
    Delayed(Duration),
    /// Each is passed on by itself.
    ByteByByte,
    /// Nothing is passed on, not even an end. What was sent meanwhile arrives once that is over, as
    /// TCP sends it again.
    Silent,
    /// The receiver is told that the sender has ended, while the other way stays open.
    Ended,
}

/// How connections are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Both sides are told of an end (FIN).
    Cut,
    /// Both sides are told of an error (RST).
    Reset,
}

/// Passes on everything between clients and a server on 127.0.0.1, until it is told otherwise. All its
/// connections share one fate, those that are open and those to come.
///
/// It runs on a thread of its own, so that a test that blocks does not hold it up. To the kernels of
/// client and server the network behind a silent proxy still answers: keepalive notices nothing there.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: watch::Sender<Network>,
    open: Arc<AtomicUsize>,
    /// Until drop.
    runtime: Option<Runtime>,
}

#[derive(Debug, Clone, Copy)]
struct Network {
    to_server: Traffic,
    to_client: Traffic,
    breaks: usize,
    /// How the last one was.
    last_break: Break,
}

impl Network {
    fn traffic(&self, way: Way) -> Traffic {
        match way {
            Way::ToServer => self.to_server,
            Way::ToClient => self.to_client,
        }
    }
}

impl Proxy {
    /// Starts a proxy before the server on this port. It ends with this value.
    pub fn start(server_port: u16) -> Self {
        let network = Network {
            to_server: Traffic::Flows,
            to_client: Traffic::Flows,
            breaks: 0,
            last_break: Break::Cut,
        };
        let (network, state) = watch::channel(network);
        let open = Arc::new(AtomicUsize::new(0));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread for a proxy");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port for a proxy");
        let port = listener.local_addr().expect("the port of a proxy").port();
        listener.set_nonblocking(true).expect("a socket that does not block");
        runtime.spawn(serve(listener, server_port, state, Arc::clone(&open)));
        Self { port, network, open, runtime: Some(runtime) }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Decides over the bytes that go this way from now on.
    pub fn set(&self, way: Way, traffic: Traffic) {
        self.network.send_modify(|network| match way {
            Way::ToServer => network.to_server = traffic,
            Way::ToClient => network.to_client = traffic,
        });
    }

    /// Decides over the bytes of both ways.
    pub fn set_both(&self, traffic: Traffic) {
        self.set(Way::ToServer, traffic);
        self.set(Way::ToClient, traffic);
    }

    /// Breaks the connections that are open now: the client hears of it first.
    pub fn break_all(&self, how: Break) {
        self.network.send_modify(|network| {
            network.breaks += 1;
            network.last_break = how;
        });
    }

    /// How many connections to the server are open.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped where nothing may block.
            runtime.shutdown_background();
        }
    }
}

async fn serve(
    listener: std::net::TcpListener,
    server_port: u16,
    network: watch::Receiver<Network>,
    open: Arc<AtomicUsize>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        let (network, open) = (network.clone(), Arc::clone(&open));
        tokio::spawn(async move {
            // Without a server, the client's connection ends.
            let server = TcpStream::connect(("127.0.0.1", server_port)).await?;
            open.fetch_add(1, Ordering::SeqCst);
            let carried = carry(client, server, network).await;
            open.fetch_sub(1, Ordering::SeqCst);
            carried
        });
    }
}

/// Carries bytes both ways until both have ended or the connection is broken.
async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    network: watch::Receiver<Network>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let breaks = network.borrow().breaks;
    let mut until_broken = network.clone();
    let broken = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both_ways = async {
            tokio::join!(
                carry_one_way(from_client, to_server, Way::ToServer, network.clone()),
                carry_one_way(from_server, to_client, Way::ToClient, network.clone()),
            )
        };
        tokio::select! {
            biased;
            broken = until_broken.wait_for(|network| network.breaks > breaks) => {
                broken.ok().map(|network| network.last_break)
            }
            _ = both_ways => None,
        }
    };
    if broken == Some(Break::Reset) {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    // Who holds a lock has to hear of its end before the server does, and gives it to the next one.
    drop(client);
    drop(server);
    Ok(())
}

/// Carries bytes one way until their sender ends, in whatever way, or nobody takes them.
async fn carry_one_way(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    mut network: watch::Receiver<Network>,
) -> io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let traffic = until_not_silent(&mut network, way).await?;
        if traffic == Traffic::Ended {
            break;
        }
        let read = tokio::select! {
            biased;
            _ = network.changed() => continue,
            read = from.read(&mut bytes) => read,
        };
        let Ok(count @ 1..) = read else {
            until_not_silent(&mut network, way).await?;
            break;
        };
        match until_not_silent(&mut network, way).await? {
            Traffic::ByteByByte => {
                for byte in &bytes[..count] {
                    to.write_all(&[*byte]).await?;
                    // Else the receiver might find several of them.
                    sleep(Duration::from_millis(1)).await;
                }
            }
            Traffic::Delayed(time) => {
                sleep(time).await;
                to.write_all(&bytes[..count]).await?;
            }
            Traffic::Flows | Traffic::Silent => to.write_all(&bytes[..count]).await?,
            Traffic::Ended => break,
        }
    }
    to.shutdown().await
}

/// What becomes of bytes that go this way, once anything becomes of them.
async fn until_not_silent(network: &mut watch::Receiver<Network>, way: Way) -> io::Result<Traffic> {
    let state = network.wait_for(|network| network.traffic(way) != Traffic::Silent).await;
    // The proxy is gone.
    Ok(state.map_err(io::Error::other)?.traffic(way))
}
