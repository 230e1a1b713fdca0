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

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::bfd::{BfdConfig, BfdEnds, BfdStatus, State};
use crate::net::{Path, now};
use crate::speaker::{FibNextHop, Neighbor, PeerAddr};
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
pub(super) fn spawn(
    seed: u64,
    paths: Option<mpsc::UnboundedSender<Path>>,
) -> io::Result<(mpsc::UnboundedSender<Command>, mpsc::Receiver<Report>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (commands, received) = mpsc::unbounded_channel();
    let (reports, told) = mpsc::channel(QUEUE);
    let thread = std::thread::Builder::new().name("manx-link".into());
    thread.spawn(move || runtime.block_on(run(seed, received, reports, Paths::new(paths))))?;
    Ok((commands, told))
}

/// Paths that are dead, and who is told.
struct Paths {
    dead: BTreeSet<PeerAddr>,
    tell: Option<mpsc::UnboundedSender<Path>>,
}

impl Paths {
    fn new(tell: Option<mpsc::UnboundedSender<Path>>) -> Self {
        Self { dead: BTreeSet::new(), tell }
    }

    /// RFC 5882 4.2: an end that its administrator has shut says nothing of the path; one that was never up does not either.
    fn note(&mut self, remote: PeerAddr, status: &BfdStatus) {
        let dead = status.flaps > 0 && status.state != State::Up && !status.administrative;
        self.set(remote, dead);
    }

    fn set(&mut self, remote: PeerAddr, dead: bool) {
        let changed = if dead { self.dead.insert(remote) } else { self.dead.remove(&remote) };
        if let Some(tell) = self.tell.as_ref().filter(|_| changed) {
            let neighbor = FibNextHop { gateway: remote.ip, ifindex: remote.ifindex };
            // Nobody who listens any more does not need to know.
            let _ = tell.send(Path { neighbor, alive: !dead });
        }
    }
}

async fn run(
    seed: u64,
    mut commands: mpsc::UnboundedReceiver<Command>,
    reports: mpsc::Sender<Report>,
    mut paths: Paths,
) {
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
                Some(report) => {
                    if let Report::Bfd(remote, status) = &report {
                        paths.note(*remote, status);
                    }
                    room.send(report);
                }
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
                Some(Command::BfdEnd(remote)) => {
                    bfd.end(now(), Some(remote));
                    paths.set(remote, false);
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_dead_when_it_was_up_and_nobody_has_shut_it_until_it_is_up_again_or_not_watched() {
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut paths = Paths::new(Some(tell));
        let remote = PeerAddr::new("192.0.2.1".parse().unwrap(), 0);
        let status = |state, flaps, administrative| BfdStatus {
            state,
            remote_state: State::Down,
            since: now(),
            detection_time: None,
            tx_interval: Duration::from_secs(1),
            multiplier: 3,
            flaps,
            administrative,
            reason: None,
        };
        paths.note(remote, &status(State::Down, 0, false));
        paths.note(remote, &status(State::Up, 0, false));
        paths.note(remote, &status(State::Down, 1, true));
        assert!(told.try_recv().is_err(), "never up, up, and shut: no news of the path");
        paths.note(remote, &status(State::Down, 1, false));
        paths.note(remote, &status(State::Init, 1, false));
        paths.note(remote, &status(State::Up, 1, false));
        paths.note(remote, &status(State::Down, 2, false));
        paths.set(remote, false);
        let alive: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).map(|path| path.alive).collect();
        assert_eq!(alive, [false, true, false, true]);
    }
}
