//! Keeping the speaker at what the objects say: the difference between two intents, as calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use manx_bgp::net::{self, NetConfig};
use manx_bgp::speaker::{GracefulRestartConfig, LocalRoute, Speaker, SpeakerConfig};

use tokio::sync::mpsc;

use super::start::pump;
use super::{Event, Loop};
use crate::api::facts::epoch_now;
use crate::config::GracefulRestart;
use crate::delta::{Change, changes};
use crate::desired::{BgpIntent, Gateway, SpeakerIntent};
use crate::kernel::{Family, service_guard};

/// Without graceful restart nobody says when a predecessor's routes are stale: then they go after so long.
const SWEEP_WITHOUT_RESTART: Duration = Duration::from_secs(120);
/// How often to look whether the rules that guard Service ranges are still there.
const GUARD_AUDIT: Duration = Duration::from_secs(30);

impl Loop {
    /// Brings the speaker from what it was told to what it should be.
    pub(super) fn reconcile_bgp(&mut self) -> anyhow::Result<()> {
        let gateways = self.links.default_gateways().into_iter();
        let gateways = gateways.map(|(family, address, interface)| Gateway {
            family: family.into(),
            address,
            interface,
        });
        self.gateways.see(Instant::now(), &gateways.collect());
        self.desired.set_gateways(self.gateways.known());
        let mut intent = self.desired.bgp(&self.links.addresses());
        if !self.options.bgp_listen.is_empty() {
            intent.listen = self.options.bgp_listen.iter().copied().collect();
        }
        if intent == *self.told {
            return Ok(());
        }
        let intent = Arc::new(intent);
        self.report_intent(&intent);
        // Own prefixes first: at no instant is one advertised and not backed by its blackhole.
        if let Some(fib) = &self.fib {
            fib.set(self.routes.originate(&intent.originate));
        }
        let told = std::mem::replace(&mut self.told, intent.clone());
        self.guard_services(Instant::now());
        let Some(speaker) = &intent.speaker else {
            // Its Node object is gone: what the speaker says cannot be right any more.
            self.tell_speaker(move |speaker, now| difference(speaker, now, &told, &BgpIntent::default()));
            return Ok(());
        };
        let config = self.speaker_config(speaker);
        let Some(handle) = &self.bgp else {
            return self.start_speaker(config, intent);
        };
        if told.listen != intent.listen {
            handle.set_listen(intent.listen.iter().copied().collect());
        }
        self.tell_speaker(move |speaker, now| {
            if told.speaker != intent.speaker {
                speaker.configure(now, config);
            }
            difference(speaker, now, &told, &intent);
        });
        Ok(())
    }

    /// Before a range is advertised, and again now and then, since anybody may change rules.
    pub(super) fn guard_services(&mut self, now: Instant) {
        let ranges = &self.told.service_ranges;
        let fresh = |(guarded, at): &(_, Instant)| guarded == ranges && now < *at + GUARD_AUDIT;
        if self.fib.is_none() || self.guarded.as_ref().is_some_and(fresh) {
            return;
        }
        if let Err(error) = service_guard::set(ranges) {
            tracing::warn!(%error, "packets for addresses that no Service has may go in circles");
        }
        self.guarded = Some((ranges.clone(), now));
    }

    /// The speaker starts with all that it should know, so that its first OPEN and its first UPDATE are right.
    fn start_speaker(&mut self, config: SpeakerConfig, intent: Arc<BgpIntent>) -> anyhow::Result<()> {
        let (paths, mut news) = mpsc::unbounded_channel();
        let net = NetConfig {
            listen: intent.listen.iter().copied().collect(),
            interfaces: net::system_interfaces(),
            paths: Some(paths),
        };
        let restarting = config.graceful_restart.as_ref().is_some_and(|g| g.restarting);
        if self.inherited && !restarting {
            self.sweep_at = Some(Instant::now() + SWEEP_WITHOUT_RESTART);
        }
        let (handle, events) = net::spawn(net, config).context("cannot start the BGP speaker")?;
        pump(events, self.events.clone(), Event::Bgp);
        let inbox = self.events.clone();
        tokio::spawn(async move {
            while let Some(path) = news.recv().await {
                if inbox.send(Event::Path(path)).await.is_err() {
                    return;
                }
            }
        });
        // A speaker lives as long as the agent, so that this is the first and only time.
        let _ = self.api.bgp.set(handle.clone());
        self.bgp = Some(handle);
        if restarting {
            self.restarting = Family::BOTH.to_vec();
        }
        self.facts.with(|f| f.restarting = restarting);
        let drained = self.api.drained.load().context("cannot tell whether this node is drained")?;
        self.tell_speaker(move |speaker, now| {
            // Before its peers, so that none of them is dialled.
            if let Some(order) = drained {
                speaker.drain(now, order.remaining(epoch_now()), &order.message);
            }
            difference(speaker, now, &BgpIntent::default(), &intent);
        });
        Ok(())
    }

    fn speaker_config(&self, intent: &SpeakerIntent) -> SpeakerConfig {
        let restart = |gr: GracefulRestart| GracefulRestartConfig {
            restart_time: gr.restart_time,
            long_lived_time: gr.long_lived_time,
            restarting: self.inherited,
        };
        SpeakerConfig {
            cluster_id: intent.cluster_id,
            max_paths: intent.max_paths,
            as_path_relax: intent.as_path_relax,
            graceful_restart: intent.graceful_restart.map(restart),
            // Any seed will do: jitter only has to differ between nodes that start together.
            seed: u64::from(intent.router_id.addr().to_bits()) << 32 | u64::from(std::process::id()),
            hostname: self.options.node_name.clone(),
            ..SpeakerConfig::new(intent.asn, intent.router_id)
        }
    }

    pub(super) fn tell_speaker(&self, f: impl FnOnce(&mut Speaker, Instant) + Send + 'static) {
        if let Some(bgp) = &self.bgp {
            bgp.send(f);
        }
    }
}

/// Own prefixes come before the peers that are told of them, and go after.
fn difference(speaker: &mut Speaker, now: Instant, told: &BgpIntent, intent: &BgpIntent) {
    if told.addresses != intent.addresses {
        speaker.set_local_addresses(now, intent.addresses.clone());
    }
    let [before, after] = [told, intent].map(|of| &of.originate | &of.services);
    for prefix in after.difference(&before) {
        speaker.originate(now, LocalRoute::new(*prefix));
    }
    for change in changes(&told.peers, &intent.peers) {
        match change {
            Change::Set(_, peer) => speaker.set_peer(now, peer.config.clone()),
            Change::Remove(name) => speaker.remove_peer(now, name),
        }
    }
    for change in changes(&told.ranges, &intent.ranges) {
        match change {
            Change::Set(_, range) => speaker.set_range(now, range.config.clone()),
            Change::Remove(name) => speaker.remove_range(now, name),
        }
    }
    for prefix in before.difference(&after) {
        speaker.withdraw(now, *prefix);
    }
}
