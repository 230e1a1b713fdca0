//! Policy in a cluster of 10,000 pods and 1,000 policies, 110 pods on the node: cold start, a pod's label, a policy, memory, and what
//! a packet of an established flow costs.
//!
//! Engine and kernel room are driven as the policy thread drives them. "Bare" is the program itself with the same text: every
//! other change of a policy is made that way, so that both have the same tables before them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use manx_agent::kernel::iptables::{self, Backend};
use manx_agent::kernel::policy::PolicyKernel;
use manx_cni::names::Key;
use manx_cni::store::{Attachment, Store};
use manx_policy::engine::{Engine, EngineConfig};
use manx_policy::model::{Family, Update};
use manx_policy::plan::{Outcome, Plan, Step, StepResult};
use nix::sys::signal::Signal;
use socket2::Type;

use super::{Comparison, Sample, own_cpu, three_digits};
use crate::agent::Agent;
use crate::churn::crowd::{self, Dice, LOCAL, NODE, PORTS, Size, address};
use crate::churn::stage::Ground;
use crate::cluster::Cluster;
use crate::scenario::station::socket;
use crate::wait;

const SIZE: Size = Size { pods: 10_000, policies: 1_000 };
const MEMBERSHIPS: usize = 1_000;
const POLICIES: usize = 200;
/// Between two changes of policies, which people make and not machines.
const PAUSE: Duration = Duration::from_millis(50);
const PACKETS: u32 = 100_000;
/// Pods of the node that are namespaces: among them is a pair that may speak, whatever the policies.
const SPEAKERS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures each back end and prints the tables.
///
/// # Errors
/// When something does not come up, or the kernel refuses a plan.
pub fn run(prefix: &str, rounds: u32) -> Result<()> {
    println!("\n== {} pods, {} policies, {LOCAL} pods on the node", SIZE.pods, SIZE.policies);
    for backend in Backend::BOTH {
        let ground = Ground::new(&format!("{prefix}{backend}"), 2)?;
        ground.node.enter(|| changes(backend))??;
    }
    Backend::BOTH.into_iter().try_for_each(|backend| packets(prefix, backend, rounds))
}

fn changes(backend: Backend) -> Result<()> {
    let mut desk = Desk::open(backend)?;
    let started = Instant::now();
    let cold = desk.cold_start(SIZE)?;
    println!(
        "  {backend}: cold start, from the first object to full enforcement: {} ms, {} kB to iptables-restore, {} set members",
        millis(started.elapsed()),
        cold.restored / 1000,
        cold.members
    );

    let mut dice = Dice(1);
    let (mut times, mut sent) = (Vec::new(), Sent::default());
    while times.len() < MEMBERSHIPS {
        let (i, turn) = (dice.roll(SIZE.pods), dice.roll(1 << 16));
        let started = Instant::now();
        let plan = desk.change(crowd::pod(i, turn));
        if plan.is_empty() {
            continue; // The color that it had.
        }
        desk.execute(&plan)?;
        times.push(started.elapsed());
        sent += Sent::of(&plan);
    }
    print(&format!("{backend}: a pod's label"), &mut times, sent);

    // Who adds rules waits for the end of those that were deleted within the last 15 ms or so: without a pause each change waits
    // for the one before.
    policies(&mut desk, &format!("{backend}: a policy's port"), PAUSE)?;
    policies(&mut desk, &format!("{backend}: the same without a pause"), Duration::ZERO)
}

/// Changes of policies that govern a pod of this node, with our hands and with the bare program by turns.
fn policies(desk: &mut Desk, name: &str, pause: Duration) -> Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let mut sent = Sent::default();
    while bare.len() < POLICIES / 2 {
        desk.turn += 1;
        let turn = desk.turn;
        // A port that nobody had.
        let update = with_port(crowd::policy(turn % LOCAL.min(crowd::NAMESPACES), 0), 10_000 + turn as u16);
        std::thread::sleep(pause);
        let started = Instant::now();
        let plan = desk.change(update);
        let only_rules = plan.steps.iter().all(|step| step.set().is_none());
        if plan.is_empty() || !only_rules {
            desk.execute(&plan)?;
            continue;
        }
        if turn.is_multiple_of(2) {
            desk.execute(&plan)?;
            ours.push(started.elapsed());
            sent += Sent::of(&plan);
        } else {
            let started = Instant::now();
            desk.restore_bare(&plan)?;
            bare.push(started.elapsed());
        }
    }
    let n = ours.len().min(bare.len());
    ours.truncate(n);
    bare.truncate(n);
    print(name, &mut ours, sent);
    print(&format!("{name}, bare iptables-restore"), &mut bare, sent);
    println!(
        "  {name}: ratio of the p99: {:.2}, of the medians: {:.2}",
        ratio(&ours, &bare, 990),
        ratio(&ours, &bare, 500)
    );
    Ok(())
}

/// One port more in its first rule.
fn with_port(update: Update, port: u16) -> Update {
    let Update::SetPolicy(mut policy) = update else { unreachable!("a policy was asked for") };
    if let Some(rule) = policy.ingress.as_mut().and_then(|rules| rules.last_mut()) {
        rule.ports =
            Some(vec![manx_policy::model::Port::Range(manx_policy::model::Protocol::Udp, port, port)]);
    }
    Update::SetPolicy(policy)
}

/// Engine and kernel.
struct Desk {
    engine: Engine,
    kernel: PolicyKernel,
    /// Changes of policies so far.
    turn: usize,
}

impl Desk {
    fn open(backend: Backend) -> Result<Self> {
        Ok(Desk {
            engine: Engine::new(EngineConfig {
                deletions_apart: backend == Backend::Nft,
                ..EngineConfig::new(NODE)
            })?,
            kernel: PolicyKernel::open(backend)?,
            turn: 0,
        })
    }

    fn cold_start(&mut self, size: Size) -> Result<Sent> {
        crowd::everything(size).for_each(|update| self.engine.apply(update));
        self.engine.set_in_sync(true);
        let observed = self.kernel.observe(self.engine.wants())?;
        self.engine.observe(observed);
        let plan = self.engine.plan();
        self.execute(&plan)?;
        let status = self.engine.status();
        if status.endpoints_in_force != LOCAL {
            bail!("{} of {LOCAL} pods have their policy in force", status.endpoints_in_force);
        }
        Ok(Sent::of(&plan))
    }

    fn change(&mut self, update: Update) -> Plan {
        self.engine.apply(update);
        self.engine.plan()
    }

    fn execute(&mut self, plan: &Plan) -> Result<()> {
        if plan.is_empty() {
            return Ok(());
        }
        let outcome = self.kernel.execute(plan);
        if let Some(StepResult::Failed(reason)) =
            outcome.results.iter().find(|r| matches!(r, StepResult::Failed(_)))
        {
            bail!("the kernel refuses: {reason}");
        }
        self.engine.applied(plan.id, outcome);
        Ok(())
    }

    /// Both families at the same time, all that changes of one in a transaction.
    fn restore_bare(&mut self, plan: &Plan) -> Result<()> {
        let backend = self.kernel.backend();
        let mut texts: BTreeMap<Family, String> = BTreeMap::new();
        for step in &plan.steps {
            let Step::Restore { family, text } = step else { continue };
            let whole = texts.entry(*family).or_default();
            match whole.strip_suffix("COMMIT\n").zip(text.split_once('\n')) {
                Some((first, (_, second))) => *whole = format!("{first}{second}"),
                None => whole.clone_from(text),
            }
        }
        std::thread::scope(|scope| {
            let running: Vec<_> = texts
                .iter()
                .map(|(family, text)| scope.spawn(move || iptables::restore(backend, (*family).into(), text)))
                .collect();
            running.into_iter().try_for_each(|one| one.join().expect("restoring does not panic"))
        })?;
        let results = vec![StepResult::Done; plan.steps.len()];
        self.engine.applied(plan.id, Outcome { at: std::time::SystemTime::now(), results });
        Ok(())
    }
}

/// What went to the kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    restored: usize,
    members: usize,
}

impl Sent {
    fn of(plan: &Plan) -> Self {
        let mut sent = Sent::default();
        for step in &plan.steps {
            match step {
                Step::Restore { text, .. } => sent.restored += text.len(),
                Step::AddMembers { members, .. } | Step::DeleteMembers { members, .. } => {
                    sent.members += members.len();
                }
                Step::CreateSet { .. } | Step::DestroySet { .. } => {}
            }
        }
        sent
    }
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.restored += other.restored;
        self.members += other.members;
    }
}

fn print(name: &str, times: &mut [Duration], sent: Sent) {
    times.sort();
    let n = times.len();
    println!(
        "  {name}: median {} ms, p99 {} ms ({n} changes; each {} bytes of rules and {} set members)",
        millis(at(times, 500)),
        millis(at(times, 990)),
        sent.restored / n,
        three_digits(sent.members as f64 / n as f64)
    );
}

fn at(sorted: &[Duration], per_mille: usize) -> Duration {
    sorted[(sorted.len() - 1) * per_mille / 1000]
}

fn ratio(ours: &[Duration], bare: &[Duration], per_mille: usize) -> f64 {
    at(ours, per_mille).as_secs_f64() / at(bare, per_mille).as_secs_f64()
}

fn millis(time: Duration) -> String {
    three_digits(time.as_secs_f64() * 1e3)
}

/// What a packet of an established flow costs between two pods of a node: without any policy, with all of them, and without
/// any rule, where the kernel does not even track connections.
fn packets(prefix: &str, backend: Backend, rounds: u32) -> Result<()> {
    let title = format!("{backend}: a packet of an established UDP flow between two pods of the node");
    let mut table = Comparison::new(&title, PACKETS);
    let mut grounds = Vec::new();
    for (number, (name, policies)) in
        [("no policy", Some(0)), ("1000 policies", Some(SIZE.policies)), ("no rules", None)]
            .into_iter()
            .enumerate()
    {
        let ground = Ground::new(&format!("{prefix}{backend}{number}"), SPEAKERS)?;
        if let Some(policies) = policies {
            let size = Size { policies, ..SIZE };
            ground.node.enter(|| Desk::open(backend)?.cold_start(size))??;
        }
        grounds.push((name, Flow::find(&ground)?, ground));
    }
    for _ in 0..rounds {
        for (name, flow, _) in &grounds {
            table.add(name, flow.blast()?);
        }
    }
    table.print();
    Ok(())
}

/// Two sockets that have heard each other.
struct Flow {
    near: UdpSocket,
    far: UdpSocket,
}

impl Flow {
    /// The first pair of pods, with port and family, that may speak.
    fn find(ground: &Ground) -> Result<Self> {
        let pairs = (0..SPEAKERS * SPEAKERS).map(|n| (n / SPEAKERS, n % SPEAKERS));
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            for port in PORTS {
                for v6 in [false, true] {
                    let open = |pod: usize, port| {
                        ground.pods[pod]
                            .enter(|| socket(SocketAddr::new(address(pod, v6), port), Type::DGRAM))
                    };
                    let (near, far) = (UdpSocket::from(open(from, 0)??), UdpSocket::from(open(to, port)??));
                    for socket in [&near, &far] {
                        socket.set_nonblocking(false)?;
                        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
                    }
                    near.connect(far.local_addr()?)?;
                    near.send(b"x")?;
                    let Ok((_, peer)) = far.recv_from(&mut [0; 8]) else { continue };
                    far.connect(peer)?;
                    far.send(b"x")?;
                    near.recv(&mut [0; 8]).context("an answer is established")?;
                    return Ok(Flow { near, far });
                }
            }
        }
        bail!("none of the pairs may speak")
    }

    /// There and back, one after the other: each send runs the whole way through the node.
    fn blast(&self) -> Result<Sample> {
        let (started, cpu) = (Instant::now(), own_cpu());
        for _ in 0..PACKETS / 2 {
            self.near.send(b"x")?;
            self.far.recv(&mut [0; 8]).context("a packet was lost")?;
            self.far.send(b"x")?;
            self.near.recv(&mut [0; 8]).context("a packet was lost")?;
        }
        let wall = started.elapsed();
        Ok(Sample { wall, cpu: Some(own_cpu().saturating_sub(cpu)), ..Sample::default() })
    }
}

/// Memory of the real agent with the same cluster, read from manifests. `bin_dir`: where it is.
///
/// # Errors
/// When it does not come up.
pub fn memory(prefix: &str, bin_dir: &Path) -> Result<()> {
    let ground = Ground::new(&format!("{prefix}mem"), 0)?;
    let files = tempfile::Builder::new().prefix(prefix).tempdir_in("/run")?;
    let cluster = Cluster::new(files.path().join("manifests"))?;
    for (number, objects) in crowd::manifests(SIZE).chunks(500).enumerate() {
        cluster.put(&format!("crowd-{number}"), objects)?;
    }
    let agent = Agent {
        node: NODE.into(),
        netns: ground.node,
        bin_dir: bin_dir.to_owned(),
        manifests: cluster.dir().to_owned(),
        dir: files.path().join("agent"),
        cni_bin_dir: files.path().join("bin"),
        extra: ["--enable", "policy", "--iptables-backend", "nft"].map(str::to_owned).into(),
    };
    std::fs::create_dir_all(agent.run_dir())?;
    let store = Store::open(&agent.run_dir())?;
    for i in 0..LOCAL {
        let endpoint = crowd::endpoint(i);
        let pod = endpoint.pod.context("a pod of the crowd is named")?;
        let mut pending = store.begin(&Key::new(&endpoint.id.container_id, &endpoint.id.ifname))?;
        pending.publish(&Attachment {
            container_id: endpoint.id.container_id,
            ifname: endpoint.id.ifname,
            network: None,
            netns: None,
            namespace: pod.namespace,
            pod: Some(pod.name),
            uid: pod.uid,
            interface: endpoint.interface,
            ips: endpoint.addresses.to_vec(),
            created: 0,
        })?;
        pending.finish()?;
    }
    let started = Instant::now();
    let process = agent.start()?;
    let in_force = || -> Result<()> {
        let (_, status) = agent.ask("/v1/status")?;
        let policy = &status["policy"];
        if policy["endpointsInForce"] == LOCAL && policy["pending"] == false {
            Ok(())
        } else {
            bail!("{status}")
        }
    };
    wait::until(PATIENCE, in_force)?;
    let took = started.elapsed();
    // At rest: what parsing has needed has been given back by then, and nothing tells of that.
    std::thread::sleep(Duration::from_secs(5));
    let resident = process.resident_kb().context("the agent runs")?;
    println!(
        "  the agent with all of it from manifests: {} MB resident; {} ms from its start, with {} files of YAML to read, until all \
         policies are in force",
        three_digits(resident as f64 / 1024.0),
        millis(took),
        std::fs::read_dir(cluster.dir())?.count()
    );
    process.end(Signal::SIGKILL)
}
