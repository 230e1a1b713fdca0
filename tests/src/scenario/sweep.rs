//! Every question at once: each pod to each other, every port, protocol and family, over real sockets.
//!
//! Threads enter the namespaces to make sockets and send; one loop serves all answering ends and looks for answers. It ends as
//! soon as everything that is to be open has answered, and a packet that ought not to have come has had as much time as those
//! that came, and `QUIET` at least.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::station::{Station, init, raw, socket, unspecified};
use super::table::{Question, Transport};
use crate::probe::fresh_number;

/// How long what is to be shut is given to come through all the same.
const QUIET: Duration = Duration::from_millis(200);
/// How long what is to be open is given: a machine under load loses no packet, but takes its time.
const LIMIT: Duration = Duration::from_secs(4);
/// Datagrams without an answer are sent again after this.
const AGAIN: Duration = Duration::from_millis(500);

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It came through (and back, but for SCTP).
    Reached,
    /// Silence.
    Nothing,
    /// A refusal: a reset or an ICMP error, or no way to send.
    Refused(String),
}

/// Questions by their number, and where their packets go.
type Targets = Vec<(usize, SocketAddr)>;

/// An asking end of one pod.
struct Asker {
    tcp: Vec<(usize, Socket)>,
    /// For each family.
    udp: Vec<(UdpSocket, Targets)>,
    /// For each family, with the source port.
    sctp: Vec<(Socket, Targets, u16)>,
}

/// Asks every question at once. `open` says what is to be reached: it decides only how long to wait.
///
/// # Errors
/// When a namespace cannot be entered.
pub fn sweep(
    stations: &BTreeMap<String, Station>,
    ports: &[u16],
    open: impl Fn(&Question) -> bool,
) -> Result<Vec<(Question, Seen)>> {
    let questions = questions(stations, ports);
    let expected: Vec<bool> = questions.iter().map(&open).collect();
    let mut seen = vec![Seen::Nothing; questions.len()];
    // Tags tell one sweep's packets from those of another that come late.
    let first = u32::from(fresh_number()) << 16 | 1;
    let started = Instant::now();
    let mut askers = std::thread::scope(|scope| {
        let threads: Vec<_> = stations
            .iter()
            .map(|(name, station)| {
                let questions = &questions;
                scope.spawn(move || station.netns.enter(|| ask(name, stations, questions, first)))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("asking does not panic"));
        joined.map(|asker| Ok(asker??)).collect::<Result<Vec<Asker>>>()
    })?;
    let mut again = Instant::now() + AGAIN;
    loop {
        for station in stations.values() {
            station.take_connections();
            station.echo();
            for tag in station.inits() {
                if let Some(seen) = seen.get_mut(tag.wrapping_sub(first) as usize) {
                    *seen = Seen::Reached;
                }
            }
        }
        for asker in &mut askers {
            asker.look(first, &mut seen);
        }
        let waiting = expected.iter().zip(&seen).any(|(open, seen)| *open && *seen == Seen::Nothing);
        if (!waiting && started.elapsed() >= QUIET) || started.elapsed() >= LIMIT {
            return Ok(questions.into_iter().zip(seen).collect());
        }
        if Instant::now() >= again {
            again += AGAIN;
            for asker in &askers {
                asker.send_again(first, &seen);
            }
        }
        wait_for_answers(stations, &askers);
    }
}

fn questions(stations: &BTreeMap<String, Station>, ports: &[u16]) -> Vec<Question> {
    let mut all = Vec::new();
    for from in stations.keys() {
        for to in stations.keys().filter(|to| *to != from) {
            for port in ports {
                for transport in Transport::ALL {
                    for v6 in [false, true] {
                        all.push(Question { from: from.clone(), to: to.clone(), port: *port, transport, v6 });
                    }
                }
            }
        }
    }
    all
}

/// Runs inside the pod's namespace.
fn ask(
    name: &str,
    stations: &BTreeMap<String, Station>,
    questions: &[Question],
    first: u32,
) -> std::io::Result<Asker> {
    let mut asker = Asker { tcp: Vec::new(), udp: Vec::new(), sctp: Vec::new() };
    let own = |transport, v6| {
        let mine =
            move |(_, q): &(usize, &Question)| q.from == name && q.transport == transport && q.v6 == v6;
        let target = |(index, q): (usize, &Question)| {
            Some((index, SocketAddr::new(stations[&q.to].address(v6)?, q.port)))
        };
        questions.iter().enumerate().filter(mine).filter_map(target).collect::<Targets>()
    };
    for v6 in [false, true] {
        for (index, target) in own(Transport::Tcp, v6) {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            // Ends in a reset: nothing stays behind in TIME_WAIT, here or in conntrack.
            socket.set_linger(Some(Duration::ZERO))?;
            match socket.connect(&target.into()) {
                Err(e) if e.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(e),
                _ => asker.tcp.push((index, socket)),
            }
        }
        let datagrams =
            UdpSocket::from(socket(SocketAddr::new(unspecified(v6), fresh_number()), Type::DGRAM)?);
        let targets = own(Transport::Udp, v6);
        for (index, target) in &targets {
            datagrams.send_to(&tag(first, *index).to_be_bytes(), target)?;
        }
        asker.udp.push((datagrams, targets));
        let inits = raw(v6)?;
        let (targets, source) = (own(Transport::Sctp, v6), fresh_number());
        for (index, target) in &targets {
            send_init(&inits, source, *target, tag(first, *index))?;
        }
        asker.sctp.push((inits, targets, source));
    }
    Ok(asker)
}

fn tag(first: u32, index: usize) -> u32 {
    first.wrapping_add(u32::try_from(index).expect("questions are few"))
}

fn send_init(socket: &Socket, source: u16, target: SocketAddr, tag: u32) -> std::io::Result<()> {
    // A raw socket takes a port for a protocol number.
    let to = SocketAddr::new(target.ip(), 0);
    socket.send_to(&init(source, target.port(), tag), &to.into()).map(drop)
}

impl Asker {
    /// Takes in what has come back.
    fn look(&mut self, first: u32, seen: &mut [Seen]) {
        self.tcp.retain(|(index, socket)| {
            let outcome = match socket.take_error() {
                Ok(Some(error)) | Err(error) => Seen::Refused(error.to_string()),
                Ok(None) if socket.peer_addr().is_ok() => Seen::Reached,
                Ok(None) => return true,
            };
            seen[*index] = outcome;
            false
        });
        for (socket, _) in &self.udp {
            let mut buffer = [0; 64];
            // An ICMP error for one of them is reported to the socket and tells not for which; it stays unanswered.
            while let Ok((length, _)) = socket.recv_from(&mut buffer) {
                let Ok(tag) = <[u8; 4]>::try_from(&buffer[..length]) else { continue };
                if let Some(seen) = seen.get_mut(u32::from_be_bytes(tag).wrapping_sub(first) as usize) {
                    *seen = Seen::Reached;
                }
            }
        }
    }

    /// Datagrams may be lost on the way, as when a neighbour has to be resolved for many at once.
    fn send_again(&self, first: u32, seen: &[Seen]) {
        let unanswered = |index: usize| seen[index] == Seen::Nothing;
        for (socket, targets) in &self.udp {
            for (index, target) in targets.iter().filter(|(index, _)| unanswered(*index)) {
                let _ = socket.send_to(&tag(first, *index).to_be_bytes(), target);
            }
        }
        for (socket, targets, source) in &self.sctp {
            for (index, target) in targets.iter().filter(|(index, _)| unanswered(*index)) {
                let _ = send_init(socket, *source, *target, tag(first, *index));
            }
        }
    }
}

/// Sleeps until something can be read or a handshake has ended, for a moment at most.
fn wait_for_answers(stations: &BTreeMap<String, Station>, askers: &[Asker]) {
    let mut fds = Vec::new();
    for station in stations.values() {
        fds.extend(
            station.tcp.iter().chain(&station.sctp).map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(station.udp.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)));
    }
    for asker in askers {
        fds.extend(asker.tcp.iter().map(|(_, s)| PollFd::new(s.as_fd(), PollFlags::POLLOUT)));
        fds.extend(asker.udp.iter().map(|(s, _)| PollFd::new(s.as_fd(), PollFlags::POLLIN)));
    }
    // Interrupted or not: the caller looks again.
    let _ = poll(&mut fds, PollTimeout::from(20u8));
}
