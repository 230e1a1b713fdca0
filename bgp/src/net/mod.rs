//! The shell around the [`Speaker`]: sockets, a clock and a thread of its own. Decides nothing.
//!
//! ```text
//!  BgpHandle --commands--> driver thread --events--> the agent
//!                          | Speaker |
//!        listeners, dials, connections (readiness in, bytes both ways)
//! ```
//!
//! Everything that can grow is bounded: the kernel's socket buffers hold what we have not read, the speaker's dirty sets
//! hold what has not been sent or told, and both are only emptied as fast as the other side takes it.

mod connection;
mod dial;
mod driver;
mod interfaces;
mod link;
mod listener;
mod outbox;
pub mod sockopt;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};

use crate::speaker::{FibNextHop, PeerFact, RouteChange, Speaker, SpeakerConfig};
use crate::types::{Family, Prefix};

pub use interfaces::system_interfaces;

/// Events that may wait for the agent; a `Routes` event holds `MAX_BATCH` changes at most, `NextHops` so many next hops.
const EVENT_QUEUE: usize = 64;
/// Route changes in one event.
const MAX_BATCH: usize = 512;

/// Finds what the interface that holds a local address offers. The address comes as the socket knows it, with the scope
/// of link-local ones. Called once for each connection, on the driver's thread: it must be quick.
pub type InterfaceLookup = Arc<dyn Fn(SocketAddr) -> InterfaceAddresses + Send + Sync>;

/// What the driver needs besides the speaker's own configuration.
#[derive(Clone)]
pub struct NetConfig {
    /// Where to listen; IPv6 listeners take IPv6 only. A port that cannot be had is tried again until it can.
    pub listen: Vec<SocketAddr>,
    /// See `InterfaceLookup`; `system_interfaces` asks the kernel.
    pub interfaces: InterfaceLookup,
    /// Who hears of paths at once, before the speaker has drawn its conclusions for each route.
    pub paths: Option<mpsc::UnboundedSender<Path>>,
}

/// The way to a neighbour that BFD watches over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Who, as a next hop.
    pub neighbor: FibNextHop,
    /// False when it was up and no packet comes through any more; true when that is over, or is not watched any more.
    pub alive: bool,
}

/// The addresses of an interface, for next hops of our own.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InterfaceAddresses {
    /// Its index; 0 if unknown.
    pub ifindex: u32,
    /// An IPv4 address to give as next hop; where the session runs over IPv4, that one.
    pub ipv4: Option<Ipv4Addr>,
    /// A global IPv6 address to give as next hop; where the session runs over IPv6, that one.
    pub ipv6: Option<Ipv6Addr>,
    /// The link-local IPv6 address.
    pub link_local: Option<Ipv6Addr>,
    /// The subnets, host bits cleared.
    pub subnets: SmallVec<[Prefix; 2]>,
}

/// What the speaker tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Changes for the FIB, the last word on each prefix; never empty.
    Routes(Vec<RouteChange>),
    /// Next hops to resolve and to keep watching (`true`), or that no path uses any more, each once; never empty. Those to
    /// watch are answered with `Speaker::set_next_hop`; one may come again, and is answered again.
    NextHops(Vec<(FibNextHop, bool)>),
    /// Our own graceful restart is over for the family, and all changes it covers have been told.
    RestartComplete(Family),
    /// A session changed state. The oldest are dropped when nobody takes them.
    Peer(PeerFact),
    /// Connections are accepted here now.
    Listening(SocketAddr),
    /// Listening does not work, or not for some peer; tried again by itself.
    ListenFailed {
        /// Where.
        address: SocketAddr,
        /// What is wrong and what can be done about it.
        reason: String,
    },
}

/// How to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Close TCP without a NOTIFICATION: peers that help with graceful restart keep forwarding to us (RFC 4724 4).
    Silent,
    /// Cease, Administrative Shutdown, with this text (RFC 9003).
    Cease(String),
}

/// The driver has stopped; nothing can be asked of it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the BGP speaker has stopped")]
pub struct Stopped;

/// What the agent wants done with the speaker; gives the answer, to be sent when what follows from it is done as well.
type Call = Box<dyn FnOnce(&mut Speaker, Instant) -> Option<Answer> + Send>;
type Answer = Box<dyn FnOnce() + Send>;

enum Command {
    Run(Call),
    Listen(Vec<SocketAddr>),
    RefreshEndpoints,
    Stop(Shutdown, oneshot::Sender<()>),
}

/// The way to a running speaker. When the last clone is dropped, the speaker stops as with `Shutdown::Silent`.
#[derive(Clone, Debug)]
pub struct BgpHandle {
    commands: mpsc::UnboundedSender<Command>,
}

impl BgpHandle {
    /// Runs `f` on the driver's thread and gives its result. When it is there, sockets are as the speaker wants them:
    /// a new peer's key is on the listeners.
    ///
    /// # Errors
    /// `Stopped` when the driver has stopped or stops before `f` was run.
    pub async fn with<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Speaker, Instant) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, result) = oneshot::channel();
        self.run(Box::new(move |speaker, now| {
            let result = f(speaker, now);
            // If nobody waits for the answer any more, it does not matter.
            Some(Box::new(move || drop(answer.send(result))))
        }))?;
        result.await.map_err(|_| Stopped)
    }

    /// Runs `f` on the driver's thread, after what was sent before. Nothing happens if the driver has stopped.
    pub fn send(&self, f: impl FnOnce(&mut Speaker, Instant) + Send + 'static) {
        let _ = self.run(Box::new(move |speaker, now| {
            f(speaker, now);
            None
        }));
    }

    /// Listens at these addresses and no others. Established sessions stay.
    pub fn set_listen(&self, listen: Vec<SocketAddr>) {
        let _ = self.commands.send(Command::Listen(listen));
    }

    /// Looks the interfaces of all connections up again, after addresses changed.
    pub fn refresh_endpoints(&self) {
        let _ = self.commands.send(Command::RefreshEndpoints);
    }

    /// Stops the driver; ready when its sockets are closed. `Cease` waits a few seconds at most for peers to take it.
    pub async fn shutdown(&self, how: Shutdown) {
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop(how, done)).is_ok() {
            // An error means that it stopped by another command.
            let _ = stopped.await;
        }
    }

    fn run(&self, f: Call) -> Result<(), Stopped> {
        self.commands.send(Command::Run(f)).map_err(|_| Stopped)
    }
}

/// Starts a speaker on a thread of its own, in the network namespace of the calling thread. Listeners that fail are
/// reported as events and tried again; dialling works meanwhile.
///
/// # Errors
/// When the thread or its event loop cannot be made.
pub fn spawn(config: NetConfig, speaker: SpeakerConfig) -> io::Result<(BgpHandle, mpsc::Receiver<Event>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let link = link::spawn(speaker.seed, config.paths.clone())?;
    let (commands, received) = mpsc::unbounded_channel();
    let (events, told) = mpsc::channel(EVENT_QUEUE);
    std::thread::Builder::new().name("manx-bgp".into()).spawn(move || {
        let done = runtime.block_on(driver::run(config, speaker, link, received, events));
        // The sockets of readiness futures that nobody polled again go with the runtime, and only then is it done.
        drop(runtime);
        if let Some(done) = done {
            let _ = done.send(());
        }
    })?;
    Ok((BgpHandle { commands }, told))
}

/// The clock of the crate: everything else takes `now` as a value.
#[expect(clippy::disallowed_methods, reason = "the shell is where time comes from")]
fn now() -> Instant {
    Instant::now()
}
