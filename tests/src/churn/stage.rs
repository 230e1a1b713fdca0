//! The node, its pods and everybody else as namespaces, the policy thread on the node, and the datagrams between them.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use manx_agent::health::Health;
use manx_agent::kernel::iptables::Backend;
use manx_agent::kernel::policy::PolicyKernel;
use manx_agent::metrics::ApplyTimes;
use manx_agent::policy_worker::{self, PolicyHandle};
use manx_policy::engine::{Engine, EngineConfig};
use socket2::Type;

use super::crowd::{Dice, NODE, PORTS, address, interface};
use super::judge::{Pair, Probe};
use crate::netns::{Guard, Netns};
use crate::probe::fresh_number;
use crate::scenario::station::socket;

/// For everything that is not measured.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two datagrams of one sender.
const PACE: Duration = Duration::from_millis(40);
/// After the last datagram: all that was to come has.
const QUIET: Duration = Duration::from_millis(300);
/// The node's end of every link.
const MAC: &str = "02:00:00:00:00:01";

/// Namespaces that stand until it is dropped.
pub struct Ground {
    /// The node.
    pub node: Netns,
    /// Pods that are namespaces.
    pub pods: Vec<Netns>,
    /// Where all other pods' addresses are.
    pub world: Netns,
    _guard: Guard,
}

/// The same with the policy thread on the node.
pub struct Stage {
    /// Where.
    pub ground: Ground,
    /// The way to the policy thread.
    pub policy: PolicyHandle,
}

impl Ground {
    /// Makes it, with so many pods on the node.
    ///
    /// # Errors
    /// When something cannot be made; needs root.
    pub fn new(prefix: &str, pods: usize) -> Result<Self> {
        let guard = Guard::new(&format!("{prefix}-"))?;
        let node = Netns::create(&format!("{prefix}-node"))?;
        for setting in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            node.sysctl(setting, "1")?;
        }
        for scope in ["all", "default"] {
            node.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
        }
        let world = Netns::create(&format!("{prefix}-world"))?;
        wire(&node, "eth9", &world)?;
        node.ip("-4 route add 10.128.0.0/16 dev eth9")?;
        node.ip("-6 route add fd00:128::/112 dev eth9")?;
        world.ip("-4 route add local 10.128.0.0/16 dev lo")?;
        world.ip("-6 route add local fd00:128::/112 dev lo")?;
        let mut made = Vec::new();
        for i in 0..pods {
            let pod = Netns::create(&format!("{prefix}-pod{i}"))?;
            let link = interface(i);
            wire(&node, &link, &pod)?;
            for (family, bits, v6) in [("-4", 32, false), ("-6", 128, true)] {
                let ip = address(i, v6);
                node.ip(&format!("{family} route add {ip}/{bits} dev {link}"))?;
                world.ip(&format!("{family} route add {ip}/{bits} via {} dev eth0 onlink", hop(v6)))?;
                pod.ip(&format!("{family} address add {ip}/{bits} dev eth0"))?;
                let mac = mac_of(&pod)?;
                node.ip(&format!("{family} neigh replace {ip} lladdr {mac} dev {link} nud permanent"))?;
            }
            made.push(pod);
        }
        Ok(Ground { node, pods: made, world, _guard: guard })
    }
}

impl Stage {
    /// Brings it up, with so many pods on the node.
    ///
    /// # Errors
    /// When something cannot be made; needs root.
    pub fn up(prefix: &str, pods: usize, backend: Backend) -> Result<Self> {
        let ground = Ground::new(prefix, pods)?;
        let policy = ground.node.enter(|| -> Result<PolicyHandle> {
            let config = EngineConfig { deletions_apart: backend == Backend::Nft, ..EngineConfig::new(NODE) };
            let engine = Engine::new(config)?;
            let kernel = PolicyKernel::open(backend)?;
            Ok(policy_worker::spawn(engine, kernel, Health::default(), ApplyTimes::default(), |_| {})?)
        })??;
        Ok(Stage { ground, policy })
    }

    /// Sends until `done`, between all of `watched`, the first `speaking` of which are on the node; to those alone. Returns what was
    /// sent and the ids of what has arrived.
    pub fn traffic(
        &self,
        watched: &[usize],
        speaking: usize,
        done: &AtomicBool,
    ) -> (Vec<Probe>, Result<BTreeSet<u64>>) {
        let ids = AtomicU64::new(1);
        let over = AtomicBool::new(false);
        let sent: Mutex<Vec<Probe>> = Mutex::default();
        let arrived = std::thread::scope(|scope| {
            let ears = self.ears();
            let hearing = scope.spawn(|| ears.map(|ears| hear(&ears, &over)));
            let ids = &ids;
            let talk = |netns: Netns, own: Vec<usize>, seed: u64| {
                let sent = &sent;
                move || {
                    let work = || talk(&own, speaking, seed, ids, done);
                    let said = netns.enter(work).expect("it is there");
                    sent.lock().expect("nobody panics").extend(said);
                }
            };
            let mut mouths: Vec<_> = (0..speaking)
                .map(|i| scope.spawn(talk(self.ground.pods[i].clone(), vec![i], i as u64)))
                .collect();
            // Four for the rest of the cluster, which speaks through one namespace.
            for k in 0..4 {
                let own = watched[speaking..].iter().copied().skip(k).step_by(4).collect();
                mouths.push(scope.spawn(talk(self.ground.world.clone(), own, 1000 + k as u64)));
            }
            mouths.into_iter().for_each(|mouth| mouth.join().expect("sending does not panic"));
            std::thread::sleep(QUIET);
            over.store(true, Ordering::Relaxed);
            hearing.join().expect("hearing does not panic")
        });
        (sent.into_inner().expect("nobody panics"), arrived)
    }

    fn ears(&self) -> Result<Vec<UdpSocket>> {
        let mut ears = Vec::new();
        for (i, pod) in self.ground.pods.iter().enumerate() {
            for port in PORTS {
                for v6 in [false, true] {
                    let at = SocketAddr::new(address(i, v6), port);
                    let ear =
                        pod.enter(|| socket(at, Type::DGRAM))?.with_context(|| format!("{at} is taken"))?;
                    ears.push(ear.into());
                }
            }
        }
        Ok(ears)
    }
}

/// Inside the sender's namespace.
fn talk(own: &[usize], speaking: usize, seed: u64, ids: &AtomicU64, done: &AtomicBool) -> Vec<Probe> {
    let mut dice = Dice(seed);
    let mut sent = Vec::new();
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(PACE);
        let pair = Pair {
            from: own[dice.roll(own.len())],
            to: dice.roll(speaking),
            port: PORTS[dice.roll(PORTS.len())],
            v6: dice.roll(2) == 1,
        };
        if pair.from == pair.to {
            continue;
        }
        let Ok(mouth) = socket(SocketAddr::new(address(pair.from, pair.v6), fresh_number()), Type::DGRAM)
        else {
            continue; // A port that is taken: the next one is not.
        };
        let id = ids.fetch_add(1, Ordering::Relaxed);
        let at = Instant::now();
        let target = SocketAddr::new(address(pair.to, pair.v6), pair.port);
        if UdpSocket::from(mouth).send_to(&id.to_be_bytes(), target).is_ok() {
            sent.push(Probe { id, pair, sent: at, taken: Instant::now(), arrived: false });
        }
    }
    sent
}

fn hear(ears: &[UdpSocket], over: &AtomicBool) -> BTreeSet<u64> {
    let mut heard = BTreeSet::new();
    loop {
        // Read once more after the end: nothing that came is missed.
        let last = over.load(Ordering::Relaxed);
        let mut buffer = [0; 8];
        for ear in ears {
            while ear.recv(&mut buffer).is_ok() {
                heard.insert(u64::from_be_bytes(buffer));
            }
        }
        if last {
            return heard;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A link between the node and a namespace, whose way to everywhere it is.
fn wire(node: &Netns, link: &str, far: &Netns) -> Result<()> {
    node.ip(&format!("link add {link} address {MAC} type veth peer name eth0 netns {}", far.name()))?;
    node.ip(&format!("link set {link} up"))?;
    far.ip("link set eth0 up")?;
    for (family, v6) in [("-4", false), ("-6", true)] {
        let hop = hop(v6);
        far.ip(&format!("{family} neigh replace {hop} lladdr {MAC} dev eth0 nud permanent"))?;
        far.ip(&format!("{family} route add default via {hop} dev eth0 onlink"))?;
    }
    Ok(())
}

/// Nobody's address, behind which the node's end is found.
fn hop(v6: bool) -> &'static str {
    if v6 { "fe80::1" } else { "169.254.1.1" }
}

fn mac_of(netns: &Netns) -> Result<String> {
    let links = netns.ip_json("link show eth0")?;
    links[0]["address"].as_str().map(str::to_owned).context("eth0 has an address")
}
