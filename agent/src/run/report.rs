//! What the loop knows, put where the API and the health checks read it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use manx_bgp::speaker::PeerFact;

use super::Loop;
use crate::desired::BgpIntent;
use crate::kernel::sysctl;
use crate::options::Feature;
use crate::view::StatusProblem;

/// What a person would notice is a session that comes or goes; a router that is away is dialled every few seconds.
pub(super) fn report_peer(fact: &PeerFact) {
    let PeerFact { peer, from, to, reason, .. } = fact;
    let notable = |state: &str| ["Established", "Disabled"].contains(&state);
    match notable(from) || notable(to) {
        true => tracing::info!(%peer, from, to, %reason, "session changed"),
        false => tracing::debug!(%peer, from, to, %reason, "session changed"),
    }
}

impl Loop {
    /// What the objects say about BGP.
    pub(super) fn report_intent(&self, intent: &Arc<BgpIntent>) {
        for problem in intent.problems.iter().filter(|problem| !self.told.problems.contains(problem)) {
            tracing::warn!(%problem, "configuration");
        }
        self.facts.with(|f| {
            f.listeners.retain(|address, _| intent.listens_on(*address));
            f.asn = intent.speaker.as_ref().map(|s| s.asn.0);
            f.router_id = intent.speaker.as_ref().map(|s| s.router_id.to_string());
            f.node_addresses = intent.node_addresses.iter().map(ToString::to_string).collect();
            f.originated = intent.originate.iter().map(ToString::to_string).collect();
            f.services = intent.services.iter().map(ToString::to_string).collect();
            f.peers = intent.peers.iter().map(|(name, peer)| (name.clone(), peer.info.clone())).collect();
            f.ranges = intent.ranges.iter().map(|(name, range)| (name.clone(), range.info.clone())).collect();
            f.drain_delay = intent.drain_delay;
            f.peer_objects.clone_from(&intent.objects);
            f.bgp_problems.clone_from(&intent.problems);
            f.intent = intent.clone();
        });
    }

    /// What the objects say about the network.
    pub(super) fn report_network(&self) {
        let uplinks = self.desired.this_node().map(|node| node.internal_ips.clone()).unwrap_or_default();
        let settings = self.desired.network_settings(self.links.mtu_of(&uplinks));
        self.facts.with(|f| f.network = settings);
    }

    /// Whether BGP connections are accepted at an address; `failed` says why not.
    pub(super) fn report_listener(&self, address: SocketAddr, failed: Option<String>) {
        if !self.told.listens_on(address) {
            // Said before the speaker heard that it is not to listen there any more.
            return;
        }
        let before = self.facts.with(|f| f.listeners.insert(address, failed.clone()));
        if before.as_ref() == Some(&failed) {
            // Tried again, with the same result.
            return;
        }
        match failed {
            None => tracing::info!(%address, "listening for BGP"),
            Some(reason) => tracing::warn!(%address, %reason, "cannot listen for BGP"),
        }
    }

    /// Whether pods can be attached; `blocked` says why not.
    pub(super) fn report_plugin(&self, blocked: Option<String>) {
        let observed = blocked.clone().unwrap_or_else(|| "pods can be attached".to_owned());
        self.health.report("cni", blocked.is_none(), observed);
        let changed = self.facts.with(|f| {
            let changed = f.cni_blocked != blocked;
            f.cni_blocked.clone_from(&blocked);
            changed
        });
        if let (true, Some(reason)) = (changed, blocked) {
            tracing::warn!(%reason, "pods cannot be attached");
        }
    }

    /// What no event announces.
    pub(super) async fn report_tick(&self) {
        let facts = self.facts.get();
        let source = match (facts.in_sync, facts.stale) {
            (false, _) => "not in sync",
            (true, true) => "in sync, but something in it cannot be read: an older version is in force",
            (true, false) => "in sync",
        };
        self.health.report("source", facts.in_sync, source);
        if self.policy.is_some() {
            let kernel = facts.policy;
            let ok = kernel.closed && !kernel.pending;
            let observed = kernel.error.unwrap_or_else(|| match ok {
                true => "applied".to_owned(),
                false => "not in the kernel yet".to_owned(),
            });
            self.health.report("policy", ok, observed);
        }
        if self.options.enabled(Feature::Bgp) && self.told.speaker.is_none() {
            let why = self
                .told
                .problems
                .first()
                .map_or("the source is not in sync".to_owned(), ToString::to_string);
            self.health.report("peers", false, why);
        }
        if let Some(bgp) = self.bgp.as_ref().filter(|_| self.told.speaker.is_some())
            && let Ok(peers) = bgp.with(|speaker, now| speaker.peers(now)).await
        {
            let required = |name: &str| facts.peers.get(name).is_some_and(|p| p.required);
            let down = peers.iter().filter(|p| required(&p.name) && p.state != "Established");
            let down = down.map(|p| format!("{} is in {}", p.name, p.state));
            let absent = self.told.absent.iter().map(|name| format!("{name} finds no default gateway"));
            let down: Vec<_> = down.chain(absent).collect();
            let observed =
                if down.is_empty() { "required peers are Established".to_owned() } else { down.join(", ") };
            self.health.report("peers", down.is_empty(), observed);
        }
        let problems = self.namespace_problems();
        self.facts.with(|f| f.kernel_problems = problems);
    }

    /// Settings of the network namespace without which packets do not flow, or flow worse.
    fn namespace_problems(&self) -> Vec<StatusProblem> {
        let setting = |name: &str, wanted: &str, why: &str| {
            let value = sysctl::read(name).ok()?;
            (value != wanted).then(|| StatusProblem {
                object: Some(name.to_owned()),
                reason: format!("is {value}, should be {wanted}: {why}"),
                ..StatusProblem::default()
            })
        };
        let ipv6 = self.node.as_ref().is_some_and(|n| n.pod_cidrs.iter().any(|c| c.is_ipv6()));
        let forward = "packets of pods are not forwarded";
        let hash = "flows between the same two addresses all take one of several equal paths";
        let mut problems = vec![setting("net.ipv4.ip_forward", "1", forward)];
        if ipv6 {
            problems.push(setting("net.ipv6.conf.all.forwarding", "1", forward));
        }
        // One peer, one path: nothing to hash over.
        if self.told.peers.len() > 1 {
            problems.push(setting("net.ipv4.fib_multipath_hash_policy", "1", hash));
            problems.push(setting("net.ipv6.fib_multipath_hash_policy", "1", hash).filter(|_| ipv6));
        }
        let overshadowed =
            self.cni.as_ref().filter(|_| self.node.is_some()).and_then(|c| c.overshadowed_by());
        problems.push(overshadowed.map(|path: PathBuf| StatusProblem {
            file: Some(path.display().to_string()),
            reason:
                "sorts before Manx's conflist, so that the runtime uses that network: remove it".to_owned(),
            ..StatusProblem::default()
        }));
        let egress = self.facts.with(|f| f.egress_error.clone());
        problems.push(egress.map(|reason| StatusProblem {
            object: Some("egress NAT".to_owned()),
            reason,
            ..StatusProblem::default()
        }));
        let adopted = self.adopted.iter().flat_map(|adopted| adopted.problems());
        problems.into_iter().flatten().chain(adopted).collect()
    }
}
