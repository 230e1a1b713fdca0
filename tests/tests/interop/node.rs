//! Manx in a namespace: the speaker with its driver, and what it has told so far.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use manx_bgp::net::{self, BgpHandle, Event, NetConfig, Shutdown};
use manx_bgp::speaker::{
    Explanation, FibNextHop, GracefulRestartConfig, LocalRoute, NextHopState, PeerConfig, PeerView, RemoteAs,
    RouteView, Speaker, SpeakerConfig,
};
use manx_bgp::types::{Asn, Family, HoldTime, Prefix, RouterId};

use crate::eventually;
use crate::rack::{Over, Rack, address};

/// Manx's AS where a test does not choose another.
pub(crate) const AS: u32 = 64512;

/// What the driver has told.
#[derive(Default)]
pub(crate) struct Told {
    /// The FIB as it has been told.
    pub(crate) fib: BTreeMap<Prefix, Vec<String>>,
    /// Prefixes taken out of the FIB at any time.
    pub(crate) removed: BTreeSet<Prefix>,
    /// "peer: from -> to (reason)".
    pub(crate) facts: Vec<String>,
    pub(crate) restart_complete: BTreeSet<Family>,
}

/// Manx as member 1 of a rack.
pub(crate) struct Manx {
    handle: BgpHandle,
    told: Arc<Mutex<Told>>,
    runtime: tokio::runtime::Runtime,
}

/// A prefix from text.
pub(crate) fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// A speaker's configuration with the router id of member 1.
pub(crate) fn speaker(asn: u32) -> SpeakerConfig {
    SpeakerConfig::new(Asn(asn), RouterId::new([10, 9, 0, 1].into()).unwrap())
}

/// The same with graceful restart.
pub(crate) fn graceful(asn: u32, restarting: bool) -> SpeakerConfig {
    let restart_time = Duration::from_secs(60);
    SpeakerConfig {
        graceful_restart: Some(GracefulRestartConfig { restart_time, long_lived_time: None, restarting }),
        ..speaker(asn)
    }
}

/// A peer at member `n`, named "nN", that is dialled again soon.
pub(crate) fn peer(n: u8, over: Over, asn: u32) -> PeerConfig {
    PeerConfig {
        connect_retry: Duration::from_secs(1),
        ..PeerConfig::new(format!("n{n}"), address(n, over), RemoteAs::Asn(Asn(asn)))
    }
}

/// A hold time of so many seconds.
pub(crate) fn hold(seconds: u16) -> Option<HoldTime> {
    HoldTime::from_wire(seconds).unwrap()
}

impl Manx {
    /// Starts a speaker that listens on port 179 in both families.
    pub(crate) fn start(rack: &Rack, config: SpeakerConfig) -> Manx {
        let listen = ["0.0.0.0:179", "[::]:179"].map(|a| a.parse::<SocketAddr>().unwrap()).to_vec();
        let net = NetConfig { listen, interfaces: net::system_interfaces(), paths: None };
        let (handle, mut events) = rack.netns(1).enter(|| net::spawn(net, config)).unwrap().unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let (answers, notes) = (handle.clone(), Arc::clone(&told));
        std::thread::spawn(move || {
            while let Some(event) = events.blocking_recv() {
                note(&mut notes.lock().unwrap(), &answers, event);
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Manx { handle, told, runtime }
    }

    /// Runs `f` on the driver's thread.
    pub(crate) fn with<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Speaker, Instant) -> R + Send + 'static,
    ) -> R {
        self.runtime.block_on(self.handle.with(f)).expect("the driver runs")
    }

    /// Stops it and waits until its sockets are closed.
    pub(crate) fn stop(&self, how: Shutdown) {
        self.runtime.block_on(self.handle.shutdown(how));
    }

    pub(crate) fn set_peer(&self, config: PeerConfig) {
        self.with(|speaker, now| speaker.set_peer(now, config));
    }

    pub(crate) fn originate(&self, route: LocalRoute) {
        self.with(|speaker, now| speaker.originate(now, route));
    }

    pub(crate) fn withdraw(&self, prefix: Prefix) {
        self.with(move |speaker, now| speaker.withdraw(now, prefix));
    }

    /// A peer by its name.
    pub(crate) fn named(&self, name: &str) -> PeerView {
        let name = name.to_owned();
        self.with(move |speaker, now| speaker.peer_view(now, &name)).expect("the peer is configured")
    }

    /// Peer "nN" as it stands.
    pub(crate) fn peer(&self, n: u8) -> PeerView {
        self.with(move |speaker, now| speaker.peer_view(now, &format!("n{n}")))
            .expect("the peer is configured")
    }

    pub(crate) fn explain(&self, prefix: Prefix) -> Explanation {
        self.with(move |speaker, _| speaker.explain(prefix))
    }

    /// The best path of a prefix, once there is one.
    pub(crate) fn learns(&self, text: &str) -> RouteView {
        eventually(|| {
            let explanation = self.explain(prefix(text));
            let best = explanation.paths.iter().find(|p| p.best).cloned();
            best.ok_or_else(|| format!("{text}: {explanation:?}; {:?}", self.facts()))
        })
    }

    /// Waits until peer "nN" is Established.
    #[track_caller]
    pub(crate) fn comes_up(&self, n: u8) {
        self.enters(n, "Established");
    }

    /// Waits until peer "nN" is in a state; gives what it shows then.
    #[track_caller]
    pub(crate) fn enters(&self, n: u8, state: &str) -> PeerView {
        eventually(|| {
            let view = self.peer(n);
            if view.state == state { Ok(view) } else { Err(format!("{view:?}; {:?}", self.facts())) }
        })
    }

    /// Waits until peer "nN" is not Established and its reason says this.
    #[track_caller]
    pub(crate) fn goes_down(&self, n: u8, says: &str) {
        let told = |fact: &String| fact.starts_with(&format!("n{n}: ")) && fact.contains(says);
        eventually(|| if self.facts().iter().any(told) { Ok(()) } else { Err(self.facts()) });
    }

    /// Waits until the reason of a peer by its name says this.
    #[track_caller]
    pub(crate) fn goes_down_named(&self, name: &str, says: &str) {
        eventually(|| match self.named(name).reason {
            Some(reason) if reason.contains(says) => Ok(()),
            other => Err(format!("{other:?} {:?}", self.facts())),
        });
    }

    pub(crate) fn facts(&self) -> Vec<String> {
        self.told.lock().unwrap().facts.clone()
    }

    /// Looks at what has been told.
    pub(crate) fn told<R>(&self, look: impl FnOnce(&Told) -> R) -> R {
        look(&self.told.lock().unwrap())
    }
}

impl Drop for Manx {
    fn drop(&mut self) {
        self.stop(Shutdown::Silent);
        if std::thread::panicking() {
            eprintln!("Manx said: {:#?}", self.facts());
        }
    }
}

/// "10.9.0.2", "fe80::1%3".
fn way(hop: &FibNextHop) -> String {
    match hop.ifindex {
        0 => hop.gateway.to_string(),
        ifindex => format!("{}%{ifindex}", hop.gateway),
    }
}

fn note(told: &mut Told, handle: &BgpHandle, event: Event) {
    match event {
        Event::Routes(changes) => {
            for change in changes {
                let hops: Vec<String> = change.next_hops.iter().map(way).collect();
                if hops.is_empty() {
                    told.fib.remove(&change.prefix);
                    told.removed.insert(change.prefix);
                } else {
                    told.fib.insert(change.prefix, hops);
                }
            }
        }
        Event::NextHops(hops) => {
            let reachable = NextHopState::Reachable { metric: 0, connected: true };
            for (hop, _) in hops.into_iter().filter(|(_, watch)| *watch) {
                handle.send(move |speaker, now| speaker.set_next_hop(now, hop, reachable));
            }
        }
        Event::RestartComplete(family) => {
            told.restart_complete.insert(family);
        }
        Event::Peer(fact) => {
            told.facts.push(format!("{}: {} -> {} ({})", fact.peer, fact.from, fact.to, fact.reason));
        }
        Event::Listening(_) => {}
        Event::ListenFailed { address, reason } => told.facts.push(format!("listen {address}: {reason}")),
    }
}
