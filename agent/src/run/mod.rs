//! The agent's loop: what happened -> what should be -> tell the rooms. Decides nothing itself.
//!
//! ```text
//! source ---+            +--> speaker (its own thread)
//! speaker --+--> Loop ---+--> fib (its own thread)
//! links ----+            +--> policy (its own thread)
//! pods -----+            +--> egress NAT (its own thread)
//! signals --+            +--> node.json, conflist
//! ```
//!
//! Before the source is in sync, the only thing written to the kernel is the closing dispatch, by the policy thread.

mod report;
mod speaker;
mod start;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use manx_bgp::net::{self, BgpHandle};
use manx_bgp::speaker::{FibNextHop, NextHopState};
use manx_bgp::types::Prefix;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::adopted::Adopted;
use crate::api::facts::SharedFacts;
use crate::api::server::Api;
use crate::attachments::Addresses;
use crate::cni_config::CniConfig;
use crate::desired::{self, BgpIntent, Desired, EgressIntent, Gateways, NodeIntent};
use crate::egress_nat::EgressHandle;
use crate::health::Health;
use crate::kernel::Family;
use crate::kernel::fib::FibHandle;
use crate::kernel::link::{LinkEvent, LinksHandle};
use crate::options::{Feature, Options};
use crate::policy_worker::{self, PolicyHandle};
use crate::routes::{self, NextHops, Routes};
use crate::sockets::RunDir;
use crate::source::Update;
use crate::view::StatusProblem;
use report::report_peer;

/// How long a stop waits for the packet filter to take what is being written.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often the loop says that it lives while nothing happens, and looks at what no event announces.
const TICK: Duration = Duration::from_secs(2);

/// Runs the agent until SIGTERM or SIGINT. Kernel routes and rules stay as they are, and peers hear nothing but the end
/// of the connection, so that graceful restart holds; peers of a drained node get a Cease.
///
/// # Errors
/// What keeps it from starting, in words for the person who started it; or a room that broke.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let (mut agent, mut events) = start::start(options).await?;
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            event = events.recv() => match event {
                Some(event) => agent.on_event(event).await?,
                None => bail!("every source of events has ended"),
            },
            _ = tick.tick() => agent.on_tick().await?,
        }
    }
    tracing::info!("stopping; routes and rules stay");
    // Nobody waits any more for an event to be taken.
    drop(events);
    agent.stop().await;
    Ok(())
}

/// Everything that the loop reacts to.
enum Event {
    /// Cluster objects changed.
    Source(Vec<Update>),
    /// The speaker has news.
    Bgp(net::Event),
    /// BFD has found the way to a neighbour dead, or alive again.
    Path(net::Path),
    /// Links, addresses or other owners' routes changed.
    Link(LinkEvent),
    /// Pods of this node hold these addresses now.
    Attached(Addresses),
    /// The packet filter took a change, or refused it.
    Policy(policy_worker::Kernel),
    /// A task that must not end has ended.
    Broken(anyhow::Error),
}

struct Loop {
    options: Options,
    _run_dir: RunDir,
    health: Health,
    facts: SharedFacts,
    api: Arc<Api>,
    events: mpsc::Sender<Event>,
    desired: Desired,
    in_sync: bool,
    links: LinksHandle,
    policy: Option<PolicyHandle>,
    /// Pods of another plugin, where policy alone is ours.
    adopted: Option<Adopted>,
    fib: Option<FibHandle>,
    bgp: Option<BgpHandle>,
    cni: Option<CniConfig>,
    egress: Option<EgressHandle>,
    /// What the thread of egress NAT was told last; the outer `None`: nothing yet.
    translated: Option<Option<EgressIntent>>,
    /// Routes of a predecessor were in the kernel at the start.
    inherited: bool,
    /// Families of which the speaker has not said yet that they can be swept.
    restarting: Vec<Family>,
    /// When to sweep them, where no speaker says.
    sweep_at: Option<Instant>,
    routes: Routes,
    next_hops: NextHops,
    /// Who may be a peer as default gateway.
    gateways: Gateways,
    /// What the speaker was told last.
    told: Arc<BgpIntent>,
    /// The Service ranges that are guarded, and since when nobody has looked whether they are.
    guarded: Option<(BTreeSet<Prefix>, Instant)>,
    /// What the plugin was told last.
    node: Option<NodeIntent>,
}

impl Loop {
    async fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Source(updates) => match self.on_source(updates) {
                true => self.reconcile().await,
                false => Ok(()),
            },
            Event::Bgp(event) => {
                self.on_bgp(event);
                Ok(())
            }
            Event::Path(path) => {
                self.on_path(path);
                Ok(())
            }
            Event::Link(event) => {
                self.on_link(event);
                self.reconcile().await
            }
            Event::Policy(kernel) => {
                let before = self.facts.with(|f| std::mem::replace(&mut f.policy, kernel.clone()));
                self.api.events.policy(&before, &kernel);
                self.tell_plugin();
                Ok(())
            }
            Event::Attached(addresses) => {
                self.desired.set_attached(addresses);
                self.reconcile().await
            }
            Event::Broken(e) => Err(e),
        }
    }

    /// Whether anything has changed but what is the policy thread's alone.
    fn on_source(&mut self, updates: Vec<Update>) -> bool {
        let mut changed = false;
        let mut policy = Vec::new();
        for update in updates {
            match update {
                Update::Set(object) => {
                    changed |= self.desired.set(&object);
                    policy.extend(desired::policy::update(&object));
                    if let Some(adopted) = &mut self.adopted {
                        adopted.set(&object);
                    }
                }
                Update::Remove(key) => {
                    changed |= self.desired.remove(&key);
                    policy.extend(desired::policy::removal(&key));
                    if let Some(adopted) = &mut self.adopted {
                        adopted.remove(&key);
                    }
                }
                Update::Problems(problems) => {
                    let shown: Vec<_> = problems.iter().map(StatusProblem::from).collect();
                    let before = self.facts.with(|f| {
                        f.stale = problems.iter().any(|p| p.stale);
                        std::mem::replace(&mut f.source_problems, shown.clone())
                    });
                    self.api.events.config(&before, &shown);
                }
                Update::InSync => {
                    tracing::info!("source in sync");
                    self.in_sync = true;
                    changed = true;
                    start::enable_forwarding();
                    self.facts.with(|f| f.in_sync = true);
                }
            }
        }
        policy.extend(self.adopt());
        if let Some(handle) = &self.policy {
            handle.update(policy);
            if self.in_sync {
                handle.in_sync();
            }
        }
        changed
    }

    /// Interfaces of another plugin's pods that came or went.
    fn adopt(&mut self) -> Vec<manx_policy::model::Update> {
        let Some(adopted) = &mut self.adopted else { return Vec::new() };
        let (links, desired) = (&self.links, &self.desired);
        let updates = adopted.turn(|ip| links.host_route(ip), |ip| desired.holds(ip));
        let count = adopted.count() as u64;
        self.facts.with(|f| f.attachments = count);
        updates
    }

    fn adopt_anew(&mut self) {
        let updates = self.adopt();
        if let Some(policy) = self.policy.as_ref().filter(|_| !updates.is_empty()) {
            policy.update(updates);
        }
    }

    fn on_bgp(&mut self, event: net::Event) {
        match event {
            net::Event::Routes(changes) => {
                self.api.events.routes(Instant::now(), &changes);
                if let Some(fib) = &self.fib {
                    fib.set(self.routes.learned(changes));
                }
            }
            net::Event::NextHops(hops) => self.on_next_hops(&hops),
            net::Event::RestartComplete(family) => {
                tracing::info!(%family, "graceful restart is over, stale routes go");
                if let Some(fib) = &self.fib {
                    fib.sweep(family.into());
                }
                self.restarting.retain(|waiting| *waiting != family.into());
                let restarting = !self.restarting.is_empty();
                self.facts.with(|f| f.restarting = restarting);
            }
            net::Event::Listening(address) => self.report_listener(address, None),
            net::Event::ListenFailed { address, reason } => self.report_listener(address, Some(reason)),
            net::Event::Peer(fact) => {
                report_peer(&fact);
                self.api.events.peer(&fact);
            }
        }
    }

    /// Next hops that the speaker wants watched, or no more.
    fn on_next_hops(&mut self, hops: &[(FibNextHop, bool)]) {
        let (mut resolved, mut states) = (Vec::new(), Vec::new());
        for (hop, watch) in hops.iter().copied() {
            if watch {
                let egress = routes::egress(&self.links, hop);
                resolved.push((hop.into(), routes::neighbors(egress.as_ref())));
                states.push((hop, self.next_hops.track(hop, egress)));
            } else {
                self.next_hops.untrack(hop);
                if let Some(fib) = &self.fib {
                    fib.forget(hop.into());
                }
            }
        }
        if let Some(fib) = &self.fib {
            fib.resolve(resolved);
        }
        self.tell_speaker(move |speaker, now| {
            states.into_iter().for_each(|(hop, state)| speaker.set_next_hop(now, hop, state));
        });
    }

    /// All routes that lead to a neighbour turn at once; what else follows is the speaker's, and takes as long as there are
    /// routes to decide on.
    fn on_path(&mut self, path: net::Path) {
        let hop = path.neighbor;
        let way = self.next_hops.set_alive(hop, path.alive);
        if let (Some(way), Some(fib)) = (way, &self.fib) {
            tracing::info!(next_hop = %hop.gateway, alive = path.alive, "BFD: next hop changed");
            fib.resolve([(hop.into(), way)]);
        }
    }

    fn on_link(&mut self, event: LinkEvent) {
        if let LinkEvent::LinkDown(ifindex) = event {
            // Directly connected external peers fall over at once instead of after the hold time.
            self.tell_speaker(move |speaker, now| speaker.link_down(now, ifindex));
        }
        self.adopt_anew();
        let links = self.links.clone();
        let moved = self.next_hops.refresh(|hop| routes::egress(&links, hop));
        // The kernel first: all routes that lead there turn at once, whatever the speaker makes of it.
        if let Some(fib) = self.fib.as_ref().filter(|_| !moved.is_empty()) {
            fib.resolve(moved.iter().map(|moved| (moved.hop.into(), moved.neighbors.clone())));
        }
        for moved in moved {
            tracing::info!(next_hop = %moved.hop.gateway, state = ?moved.state, "next hop changed");
            self.api.events.next_hop(moved.hop.gateway, moved.state != NextHopState::Unreachable);
            self.tell_speaker(move |speaker, now| speaker.set_next_hop(now, moved.hop, moved.state));
        }
        if let Some(bgp) = &self.bgp {
            bgp.refresh_endpoints();
        }
        if let Some(fib) = &self.fib {
            // What the kernel refused for want of a link or an address may work now.
            fib.retry();
        }
    }

    async fn on_tick(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        self.health.beat("run", now);
        // A route to a pod is no news to those who follow next hops.
        self.adopt_anew();
        self.api.dropped.sample(now);
        self.api.events.flush(now);
        if self.sweep_at.is_some_and(|at| now >= at) {
            self.sweep_at = None;
            if let Some(fib) = &self.fib {
                Family::BOTH.into_iter().for_each(|family| fib.sweep(family));
            }
        }
        // What could not be written may be writable now, and what somebody removed is missing.
        if self.cni.as_ref().is_some_and(|cni| !cni.is_written()) {
            self.node = None;
            self.tell_plugin();
        }
        if self.in_sync && self.options.enabled(Feature::Bgp) {
            self.guard_services(now);
        }
        if self.gateways.lingering() {
            self.reconcile().await?;
        }
        self.report_tick().await;
        Ok(())
    }

    /// Compares what should be with what was told last, and tells the difference.
    async fn reconcile(&mut self) -> anyhow::Result<()> {
        if !self.in_sync {
            return Ok(());
        }
        if self.options.enabled(Feature::Bgp) {
            self.reconcile_bgp()?;
        }
        self.tell_plugin();
        self.reconcile_egress();
        self.report_network();
        Ok(())
    }

    fn reconcile_egress(&mut self) {
        let Some(egress) = &self.egress else { return };
        let intent = self.desired.egress_nat();
        if self.translated.as_ref() != Some(&intent) {
            egress.set(intent.clone());
            self.translated = Some(intent);
        }
    }

    /// node.json and the conflist, in this order, once pods can be attached safely.
    fn tell_plugin(&mut self) {
        let Some(cni) = self.cni.clone() else { return };
        if self.in_sync && self.desired.node(None).is_none() {
            // There is no address to give: better a clear refusal than pods that nobody has a route to.
            self.node = None;
            if let Err(error) = cni.withdraw_node() {
                tracing::warn!(%error, "cannot tell the CNI plugin that this node has no pod CIDR");
            }
        }
        let written = match self.plugin_blocked() {
            Some(reason) => Err(reason),
            None => self.write_plugin_files(&cni).map_err(|e| format!("{e:#}")),
        };
        self.report_plugin(written.err());
    }

    fn plugin_blocked(&self) -> Option<String> {
        if !self.in_sync {
            return Some("the source is not in sync yet".to_owned());
        }
        if self.policy.is_some() && !self.facts.with(|f| f.policy.closed) {
            return Some("the closing dispatch is not in the kernel yet".to_owned());
        }
        let none = self.desired.node(None).is_none();
        none.then(|| {
            format!(
                "Node {} has no spec.podCIDRs: pods get their addresses from there",
                self.options.node_name
            )
        })
    }

    fn write_plugin_files(&mut self, cni: &CniConfig) -> anyhow::Result<()> {
        let uplinks = self.desired.this_node().map(|n| n.internal_ips.clone()).unwrap_or_default();
        let Some(intent) = self.desired.node(self.links.mtu_of(&uplinks)) else { return Ok(()) };
        if self.node.as_ref() != Some(&intent) {
            cni.write_node(&intent)?;
            if cni.install_plugin()? {
                tracing::info!(dir = %cni.bin_dir.display(), "CNI plugin installed");
            }
            let conflist = cni.write_conflist()?;
            let cidrs: Vec<_> = intent.pod_cidrs.iter().map(ToString::to_string).collect();
            tracing::info!(
                cidrs = cidrs.join(","),
                mtu = intent.mtu,
                conflist = %conflist.display(),
                "pods can be attached"
            );
            self.facts.with(|f| {
                f.conflist = Some(conflist.display().to_string());
                f.pod_cidrs = cidrs;
            });
            self.node = Some(intent);
        }
        Ok(())
    }

    /// The speaker closes its connections without a word, unless the node is drained: then nobody shall keep its routes. The
    /// policy thread ends after what it is doing, and if that
    /// takes too long, without: the next agent makes it good.
    async fn stop(self) {
        if let Some(bgp) = &self.bgp {
            let drained = bgp.with(|speaker, now| speaker.drain_view(now)).await.ok().flatten();
            let how = drained.map_or(net::Shutdown::Silent, |drain| net::Shutdown::Cease(drain.text));
            bgp.shutdown(how).await;
        }
        if let Some(policy) = &self.policy {
            let _ = tokio::time::timeout(LAST_WORDS, policy.stop()).await;
        }
    }
}
