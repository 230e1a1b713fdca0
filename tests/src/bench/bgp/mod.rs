//! BGP side by side: an injector, a speaker under test, a monitor, and a session that only listens for KEEPALIVEs meanwhile.
//!
//! ```text
//!   far namespace                        near namespace
//!   injector  192.168.1.1  ---- inj ---- 192.168.0.1  Manx | BIRD | FRR | GoBGP ---> kernel
//!   monitors  172.16.1.n   ---- mon ---- 172.16.0.1
//! ```
//!
//! The clock runs from the first octet of the injector until the monitor holds every route, or until the kernel counts them all.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

mod bfd;
pub mod far;
mod kernel;
pub mod speaker;
pub mod table;

use self::bfd::Bfd;
use self::far::{Peer, Role, Session};
use self::kernel::Kernel;
use self::speaker::{Speaker, Task};
use super::fib::kernel_prefixes;
use super::floor::Floor;
use super::{Comparison, Sample, time_here};
use crate::netns::{End, Guard, Netns, connect};

pub use self::speaker::Kind;

const NEAR: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const INJECTOR: Peer = Peer { address: Ipv4Addr::new(192, 168, 1, 1), asn: 65001, role: Role::Inject };
const MONITOR: Peer = Peer { address: Ipv4Addr::new(172, 16, 1, 1), asn: 65002, role: Role::Monitor };
const WATCH: Peer = Peer { address: Ipv4Addr::new(172, 16, 1, 254), asn: 65003, role: Role::Watch };

/// The near end of the link with the monitors.
const NEAR_MONITORS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// Prefixes that are looked for in the kernel one by one.
const SAMPLES: usize = 256;
/// Of the row with many next hops.
const NEXT_HOPS: u16 = 5_000;
/// Of the row with many sessions, the injector's included.
const SESSIONS: u8 = 200;
/// Routes of the row with many sessions: each goes to every one of them.
const SESSION_ROUTES: u32 = 5_000;
/// Routes of the memory row.
const FEW_ROUTES: u32 = 5_000;

/// From the start of a speaker until its sessions are up.
const START_LIMIT: Duration = Duration::from_secs(120);
/// For a load; the slowest needs some minutes for a million routes.
const LOAD_LIMIT: Duration = Duration::from_secs(900);

/// A run: who takes part, and how often.
#[derive(Clone, Debug)]
pub struct Run {
    /// Begins the name of every namespace.
    pub prefix: String,
    /// Where manx-agent is.
    pub bin_dir: PathBuf,
    /// How often each has its turn.
    pub rounds: u32,
    /// Who takes part.
    pub kinds: Vec<Kind>,
}

/// `routes` routes from the injector to the monitor, and their withdrawal; nothing is written to the kernel.
///
/// # Errors
/// When a speaker does not come up or does not come to an end.
pub fn rib(run: &Run, routes: u32) -> Result<()> {
    let prefixes = table::prefixes(routes);
    let announced = table::announce(&prefixes, INJECTOR.asn, &[INJECTOR.address]);
    let withdrawn = table::withdraw(&prefixes);
    let mut adding =
        Comparison::new(&format!("{routes} routes from session to session, no kernel routes"), 1);
    let mut removing = Comparison::new(&format!("{routes} withdrawals from session to session"), 1);
    run.each(|kind, stand| {
        let far = stand.start(kind, false, &[INJECTOR, MONITOR, WATCH])?;
        adding.add(kind.name(), far.to_monitors(&announced, routes)?);
        removing.add(kind.name(), far.to_monitors(&withdrawn, 0)?);
        far.speaker.kill()
    })?;
    adding.print();
    removing.print();
    Ok(())
}

/// `routes` routes from the injector into the kernel and out of it, beside the floor: the same routes by raw netlink.
///
/// # Errors
/// As [`rib`].
pub fn fib(run: &Run, routes: u32) -> Result<()> {
    let prefixes = table::prefixes(routes);
    let announced = table::announce(&prefixes, INJECTOR.asn, &[INJECTOR.address]);
    let withdrawn = table::withdraw(&prefixes);
    let mut adding = Comparison::new(&format!("{routes} routes from the wire into the kernel"), 1);
    let mut removing =
        Comparison::new(&format!("{routes} routes withdrawn on the wire out of the kernel"), 1);
    run.each_with_floor(|who, stand| {
        let Some(kind) = who else {
            for by_id in [false, true] {
                let name = if by_id { "floor: raw netlink, next hop by id" } else { "floor: raw netlink" };
                let (added, deleted) = stand.floor(&prefixes, by_id)?;
                adding.add(name, added);
                removing.add(name, deleted);
            }
            return Ok(());
        };
        let far = stand.start(kind, true, &[INJECTOR, WATCH])?;
        adding.add(kind.name(), far.to_kernel(&announced, &prefixes, true)?);
        removing.add(kind.name(), far.to_kernel(&withdrawn, &prefixes, false)?);
        far.speaker.kill()
    })?;
    adding.print();
    removing.print();
    Ok(())
}

/// `routes` routes over 5,000 next hops, to the monitor and into the kernel.
///
/// # Errors
/// As [`rib`].
pub fn next_hops(run: &Run, routes: u32) -> Result<()> {
    let prefixes = table::prefixes(routes);
    let hops: Vec<_> = (0..NEXT_HOPS).map(|n| Ipv4Addr::from(0xc0a8_1000 + u32::from(n))).collect();
    let announced = table::announce(&prefixes, INJECTOR.asn, &hops);
    let withdrawn = table::withdraw(&prefixes);
    let title =
        |what: &str| Comparison::new(&format!("{routes} routes over {NEXT_HOPS} next hops: {what}"), 1);
    let mut session = title("from session to session, no kernel routes");
    let mut kernel = title("from the wire into the kernel");
    let mut back = title("withdrawn on the wire out of the kernel");
    run.each(|kind, stand| {
        let far = stand.start(kind, false, &[INJECTOR, MONITOR, WATCH])?;
        session.add(kind.name(), far.to_monitors(&announced, routes)?);
        far.speaker.kill()
    })?;
    run.each(|kind, stand| {
        if kind == Kind::Gobgp {
            return Ok(());
        }
        let far = stand.start(kind, true, &[INJECTOR, WATCH])?;
        kernel.add(kind.name(), far.to_kernel(&announced, &prefixes, true)?);
        back.add(kind.name(), far.to_kernel(&withdrawn, &prefixes, false)?);
        far.speaker.kill()
    })?;
    session.print();
    kernel.print();
    back.print();
    Ok(())
}

/// 5,000 routes from one session to the other 199.
///
/// # Errors
/// As [`rib`].
pub fn sessions(run: &Run) -> Result<()> {
    let prefixes = table::prefixes(SESSION_ROUTES);
    let announced = table::announce(&prefixes, INJECTOR.asn, &[INJECTOR.address]);
    let withdrawn = table::withdraw(&prefixes);
    let mut peers = vec![INJECTOR, WATCH];
    peers.extend((1..SESSIONS).map(|n| Peer { address: Ipv4Addr::new(172, 16, 1, n), ..MONITOR }));
    let mut starting = Comparison::new(&format!("Start until {SESSIONS} sessions are up"), 1);
    let mut adding = Comparison::new(&format!("{SESSION_ROUTES} routes to {} sessions", SESSIONS - 1), 1);
    let mut removing =
        Comparison::new(&format!("{SESSION_ROUTES} withdrawals to {} sessions", SESSIONS - 1), 1);
    run.each(|kind, stand| {
        let far = stand.start(kind, false, &peers)?;
        starting.add(kind.name(), far.started);
        adding.add(kind.name(), far.to_monitors(&announced, SESSION_ROUTES)?);
        removing.add(kind.name(), far.to_monitors(&withdrawn, 0)?);
        far.speaker.kill()
    })?;
    starting.print();
    adding.print();
    removing.print();
    Ok(())
}

/// A next hop that fails under `routes` routes, which two routers have announced with one each: from the moment at which the
/// kernel has lost its way to it until no packet is handed to that router any more.
///
/// # Errors
/// As [`rib`].
pub fn failover(run: &Run, routes: u32) -> Result<()> {
    let prefixes = table::prefixes(routes);
    let second = Peer { address: Ipv4Addr::new(172, 16, 1, 2), asn: 65004, role: Role::Inject };
    let ways = [
        (INJECTOR, Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(192, 168, 0, 2), "inj"),
        (second, Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(172, 16, 0, 2), "mon"),
    ];
    let title = format!("A next hop fails under {routes} routes, until another has taken over");
    let mut table = Comparison::new(&title, 1);
    for compat_mode in ["0", "1"] {
        run.only(|kind| kind == Kind::Manx).each(|kind, stand| {
            stand.near.sysctl("net.ipv4.nexthop_compat_mode", compat_mode)?;
            let index = |link: &'static str| stand.near.enter(move || nix::net::if_::if_nametoindex(link));
            let mut kernel = stand.near.enter(Kernel::open)??;
            for (_, hop, gateway, link) in ways {
                kernel.set_static(hop, gateway, index(link)??, true)?;
            }
            let far = stand.start(kind, true, &[INJECTOR, second, WATCH])?;
            let announce = |peer: Peer, hop| table::announce(&prefixes, peer.asn, &[hop]);
            far.to_kernel(&announce(INJECTOR, ways[0].1), &prefixes, true)?;
            far.sessions[&second.address].send(&announce(second, ways[1].1))?;
            far.speaker.settle()?;
            let sample: Vec<_> =
                prefixes.iter().step_by(prefixes.len() / 64).map(|(address, _)| *address).collect();
            let lost = |kernel: &mut Kernel| -> Result<bool> {
                sample.iter().try_fold(false, |lost, to| Ok(lost || kernel.gateway(*to)? == Some(ways[0].2)))
            };
            if !lost(&mut kernel)? {
                bail!("no packet is handed to the router that is to fail");
            }
            let cpu = far.speaker.cpu();
            kernel.set_static(ways[0].1, ways[0].2, index("inj")??, false)?;
            let began = Instant::now();
            while lost(&mut kernel)? {
                if began.elapsed() > LOAD_LIMIT {
                    bail!("packets are still handed to it after {LOAD_LIMIT:?}");
                }
            }
            let wall = began.elapsed();
            far.speaker.settle()?;
            let cpu = far.speaker.cpu().zip(cpu).map(|(after, before)| after.saturating_sub(before));
            let name = format!("{}, nexthop_compat_mode={compat_mode}", kind.name());
            table.add(&name, Sample { wall, cpu, ..Sample::default() });
            far.speaker.kill()
        })?;
    }
    table.print();
    Ok(())
}

/// What a node of a small cluster costs: two peers, and then 5,000 routes in the kernel.
///
/// # Errors
/// As [`rib`].
pub fn small(run: &Run) -> Result<()> {
    let prefixes = table::prefixes(FEW_ROUTES);
    let announced = table::announce(&prefixes, INJECTOR.asn, &[INJECTOR.address]);
    let mut idle = Comparison::new("Start until two sessions are up; nothing to do", 1);
    let mut filled = Comparison::new(&format!("{FEW_ROUTES} routes from the wire into the kernel"), 1);
    run.each(|kind, stand| {
        if kind == Kind::Gobgp {
            return Ok(());
        }
        let far = stand.start(kind, true, &[INJECTOR, WATCH])?;
        idle.add(kind.name(), far.started);
        filled.add(kind.name(), far.to_kernel(&announced, &prefixes, true)?);
        far.speaker.kill()
    })?;
    idle.print();
    filled.print();
    Ok(())
}

impl Run {
    /// The same with only some of those who take part.
    pub fn only(&self, takes_part: impl Fn(Kind) -> bool) -> Self {
        let kinds = self.kinds.iter().copied().filter(|kind| takes_part(*kind)).collect();
        Self { kinds, ..self.clone() }
    }

    /// Gives each its turn in each round, in an order that changes from round to round.
    fn each(&self, mut turn: impl FnMut(Kind, &Stand<'_>) -> Result<()>) -> Result<()> {
        let kinds: Vec<_> = self.kinds.iter().copied().map(Some).collect();
        self.turns(&kinds, |who, stand| who.map_or(Ok(()), |kind| turn(kind, stand)))
    }

    /// The same with those that write the kernel's table, and the floor as `None`, first in the first round.
    fn each_with_floor(&self, turn: impl FnMut(Option<Kind>, &Stand<'_>) -> Result<()>) -> Result<()> {
        let writers = self.kinds.iter().copied().filter(|kind| *kind != Kind::Gobgp);
        let everybody: Vec<_> = std::iter::once(None).chain(writers.map(Some)).collect();
        self.turns(&everybody, turn)
    }

    fn turns(
        &self,
        everybody: &[Option<Kind>],
        mut turn: impl FnMut(Option<Kind>, &Stand<'_>) -> Result<()>,
    ) -> Result<()> {
        for round in 0..usize::try_from(self.rounds)? {
            let mut order = everybody.to_vec();
            order.rotate_left(round % everybody.len().max(1));
            for who in order {
                let _guard = Guard::new(&self.prefix)?;
                let stand = Stand::new(self)?;
                let name = who.map_or("the floor", Kind::name);
                turn(who, &stand).with_context(|| format!("{name}, round {}", round + 1))?;
            }
        }
        Ok(())
    }
}

/// The two namespaces of a turn.
struct Stand<'a> {
    run: &'a Run,
    near: Netns,
    far: Netns,
    dir: tempfile::TempDir,
}

impl Drop for Stand<'_> {
    fn drop(&mut self) {
        // FRR's sockets are where its packaging wants them.
        let _ = std::fs::remove_dir_all(std::path::Path::new("/run/frr").join(self.near.name()));
    }
}

impl<'a> Stand<'a> {
    fn new(run: &'a Run) -> Result<Self> {
        let near = Netns::create(&format!("{}near", run.prefix))?;
        let far = Netns::create(&format!("{}far", run.prefix))?;
        for (link, net) in [("inj", "192.168"), ("mon", "172.16")] {
            connect(
                &End { netns: &near, interface: link, addresses: vec![format!("{net}.0.1/16")] },
                &End { netns: &far, interface: link, addresses: vec![format!("{net}.0.2/16")] },
            )?;
            // Every address of the far side at once.
            far.ip(&format!("route add local {net}.1.0/24 dev lo"))?;
        }
        let dir = tempfile::Builder::new().prefix(&run.prefix).tempdir_in("/run")?;
        Ok(Self { run, near, far, dir })
    }

    /// Starts a speaker and waits for its sessions.
    fn start(&self, kind: Kind, fib: bool, peers: &[Peer]) -> Result<Loaded<'_>> {
        let task = Task { address: NEAR, fib, peers: peers.to_vec() };
        let began = Instant::now();
        let speaker =
            Speaker::start(kind, &self.near, &self.dir.path().join("speaker"), &self.run.bin_dir, &task)?;
        let sessions = far::accept(&self.far, peers, START_LIMIT)?;
        let started = Sample {
            wall: began.elapsed(),
            cpu: speaker.cpu(),
            resident_kb: speaker.resident_kb(),
            ..Sample::default()
        };
        let watched = kind == Kind::Manx && peers.iter().any(|peer| peer.address == WATCH.address);
        let bfd = watched.then(|| Bfd::start(&self.far, WATCH.address, NEAR_MONITORS)).transpose()?;
        if let Some(bfd) = &bfd {
            let end = Instant::now() + START_LIMIT;
            while !bfd.is_up() {
                if Instant::now() > end {
                    bail!("BFD with the speaker is not Up within {START_LIMIT:?}");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(Loaded { near: &self.near, speaker, sessions, bfd, started })
    }

    /// Adds and deletes the routes by raw netlink.
    fn floor(&self, prefixes: &[table::Prefix], by_id: bool) -> Result<(Sample, Sample)> {
        self.near.enter(|| {
            let ifindex = nix::net::if_::if_nametoindex("inj")?;
            let mut floor = Floor::open()?;
            let ((), added) = time_here(|| {
                if by_id {
                    floor.add_by_id(prefixes, INJECTOR.address, ifindex)
                } else {
                    floor.add(prefixes, INJECTOR.address, ifindex)
                }
            })?;
            let ((), deleted) = time_here(|| floor.delete(prefixes))?;
            Ok((added, deleted))
        })?
    }
}

/// A speaker with its sessions.
struct Loaded<'a> {
    near: &'a Netns,
    speaker: Speaker,
    sessions: BTreeMap<Ipv4Addr, Session>,
    /// The other end of the BFD session with [`WATCH`], where the speaker has one.
    bfd: Option<Bfd>,
    /// How long it took to come so far.
    started: Sample,
}

impl Loaded<'_> {
    /// Sends `updates` and waits until every monitor holds `routes`.
    fn to_monitors(&self, updates: &[u8], routes: u32) -> Result<Sample> {
        let monitors = || {
            let others = [INJECTOR.address, WATCH.address];
            self.sessions
                .iter()
                .filter(move |(address, _)| !others.contains(address))
                .map(|(_, session)| session)
        };
        monitors().for_each(|monitor| monitor.expect(routes));
        self.load(updates, || {
            let mut last = Instant::now();
            for (number, monitor) in monitors().enumerate() {
                let reached = monitor.reached(LOAD_LIMIT)?;
                last = if number == 0 { reached } else { last.max(reached) };
            }
            Ok(last)
        })
    }

    /// Sends `updates` and waits until the kernel holds all of `prefixes`, or none.
    fn to_kernel(&self, updates: &[u8], prefixes: &[table::Prefix], there: bool) -> Result<Sample> {
        let base = self.near.enter(kernel_prefixes)??;
        let count = u32::try_from(prefixes.len())?;
        let enough = |held| if there { held >= base + count } else { held + count <= base };
        self.load(updates, || {
            self.near.enter(|| {
                let end = Instant::now() + LOAD_LIMIT;
                // Counting walks the whole table and holds up whoever writes it: a few prefixes are looked for one by one first,
                // those that were told last among them.
                let mut kernel = Kernel::open()?;
                let last = prefixes.len().saturating_sub(SAMPLES / 4);
                let spread = prefixes.iter().step_by((prefixes.len() / SAMPLES).max(1));
                for prefix in spread.chain(&prefixes[last..]) {
                    while kernel.holds(*prefix)? != there && Instant::now() < end {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
                loop {
                    let looked = Instant::now();
                    let held = kernel_prefixes()?;
                    if enough(held) {
                        return Ok(Instant::now());
                    }
                    if looked > end {
                        bail!("the kernel holds {held} routes after {LOAD_LIMIT:?}, {base} before");
                    }
                    // The kernel walks its whole table for the answer: nine tenths of the time it is left alone.
                    std::thread::sleep((looked.elapsed() * 9).max(Duration::from_millis(5)));
                }
            })?
        })
    }

    fn load(&self, updates: &[u8], wait: impl FnOnce() -> Result<Instant>) -> Result<Sample> {
        let injector = &self.sessions[&INJECTOR.address];
        let watch = &self.sessions[&WATCH.address];
        let cpu = self.speaker.cpu();
        watch.watch();
        self.bfd.iter().for_each(Bfd::watch);
        let began = Instant::now();
        injector.send(updates)?;
        let wall = wait()?.duration_since(began);
        Ok(Sample {
            wall,
            cpu: self.speaker.cpu().zip(cpu).map(|(after, before)| after.saturating_sub(before)),
            resident_kb: self.speaker.resident_kb(),
            silence: (wall > far::KEEPALIVE_DUE).then(|| watch.longest_silence()),
            late: match &self.bfd {
                Some(bfd) => Some(bfd.latest().context("the BFD session has left Up under the load")?),
                None => None,
            },
        })
    }
}
