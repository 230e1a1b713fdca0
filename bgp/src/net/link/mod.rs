//! What must be on time whatever the routes do: BFD and neighbour discovery, on a thread of their own. The driver says what
//! is wanted; what is found goes back as the latest of each kind, so that a driver that is busy for long is not flooded.
//!
//! ```text
//! driver --commands--> thread: bfd::Sessions     <-> UDP 3784
//!        <--reports--          discovery::Discovery <-> ICMPv6
//! ```

mod bfd_io;
mod monitor;
mod neighbor_io;

use std::io;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::bfd::{BfdConfig, BfdEnds, BfdStatus};
use crate::net::now;
use crate::speaker::{Neighbor, PeerAddr};
use bfd_io::BfdIo;
use neighbor_io::NeighborIo;

/// Reports that may wait for the driver.
const QUEUE: usize = 64;

/// What the driver wants.
#[derive(Debug)]
pub(super) enum Command {
    /// Run this session.
    Bfd(BfdEnds, BfdConfig),
    /// End it with AdminDown.
    BfdEnd(PeerAddr),
    /// Look for a neighbour on an interface, or not any more.
    Discover(String, bool),
    /// Links may have changed.
    LookAtLinks,
    /// AdminDown to everybody, then end.
    Stop(oneshot::Sender<()>),
}

/// What was found.
#[derive(Debug)]
pub(super) enum Report {
    /// How a BFD session stands.
    Bfd(PeerAddr, BfdStatus),
    /// Who is on an interface.
    Neighbor(String, Neighbor),
}

/// Starts the thread in the network namespace of the calling one. It ends with the sender of commands.
///
/// # Errors
/// When the thread or its event loop cannot be made.
pub(super) fn spawn(seed: u64) -> io::Result<(mpsc::UnboundedSender<Command>, mpsc::Receiver<Report>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (commands, received) = mpsc::unbounded_channel();
    let (reports, told) = mpsc::channel(QUEUE);
    let thread = std::thread::Builder::new().name("manx-link".into());
    thread.spawn(move || runtime.block_on(run(seed, received, reports)))?;
    Ok((commands, told))
}

async fn run(seed: u64, mut commands: mpsc::UnboundedReceiver<Command>, reports: mpsc::Sender<Report>) {
    let mut bfd = BfdIo::new(seed);
    let mut neighbors = NeighborIo::new(seed);
    loop {
        let at = now();
        bfd.turn(at);
        neighbors.turn(at);
        let mut full = false;
        loop {
            let Ok(room) = reports.try_reserve() else {
                full = true;
                break;
            };
            match bfd.poll_report().or_else(|| neighbors.poll_report(at)) {
                Some(report) => room.send(report),
                None => break,
            }
        }
        let deadline = bfd.deadline().into_iter().chain(neighbors.deadline(full)).min();
        tokio::select! {
            biased;
            () = until(deadline) => {}
            () = bfd.readable() => bfd.receive(now()),
            // Before what is heard on them: it may come from another router than before.
            () = neighbors.links_told() => neighbors.heed_links(now()),
            () = neighbors.readable() => neighbors.receive(now()),
            command = commands.recv() => match command {
                Some(Command::Bfd(ends, config)) => bfd.set(now(), ends, config),
                Some(Command::BfdEnd(remote)) => bfd.end(now(), Some(remote)),
                Some(Command::Discover(interface, true)) => neighbors.add(interface),
                Some(Command::Discover(interface, false)) => neighbors.remove(&interface),
                Some(Command::LookAtLinks) => neighbors.look_at_links(now()),
                Some(Command::Stop(done)) => {
                    bfd.end(now(), None);
                    // The driver waits for this; if it does not any more, nothing is left to say.
                    let _ = done.send(());
                    return;
                }
                None => return,
            },
            room = reports.reserve(), if full => {
                // Taken again above; the driver is gone where there is none.
                if room.is_err() {
                    return;
                }
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// After a socket could not be had.
const RETRY: Duration = Duration::from_secs(2);
