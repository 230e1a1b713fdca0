//! A router of any kind as the far side: one description of what it shall be, a spelling for each kind, and what it then
//! says of its sessions and routes.

mod bird;
mod frr;
mod gobgp;
mod openbgpd;

use std::collections::BTreeSet;
use std::net::IpAddr;

use manx_tests::process::Process;
use manx_tests::routers::bird::Bird;
use manx_tests::routers::frr::Frr;
use manx_tests::routers::gobgp::Gobgp;
use manx_tests::routers::openbgpd::Openbgpd;

use crate::eventually;
use crate::rack::{Over, Rack, address};

/// Which software.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bird,
    Frr,
    Gobgp,
    Openbgpd,
}

/// A session as the far side configures it.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The member at the other end.
    pub(crate) to: u8,
    pub(crate) over: Over,
    pub(crate) remote_as: u32,
    pub(crate) password: Option<&'static str>,
    pub(crate) ttl_security: bool,
    pub(crate) passive: bool,
    /// The other end is a reflection client.
    pub(crate) client: bool,
    pub(crate) hold: u16,
    /// Graceful restart is offered: as helper and for its own restarts.
    pub(crate) graceful: bool,
    /// Further lines for each of its families, in the kind's own spelling: of BIRD's channels and FRR's address families (for
    /// FRR without "neighbor ADDRESS"); GoBGP and OpenBGPD have one place for both and take these after [`Session::lines`].
    pub(crate) extra: String,
    /// Further lines for the session as a whole, in the same way: BFD, capabilities.
    pub(crate) lines: String,
}

/// A session with Manx over IPv4.
pub(crate) fn session(remote_as: u32) -> Session {
    Session {
        to: 1,
        over: Over::V4,
        remote_as,
        password: None,
        ttl_security: false,
        passive: false,
        client: false,
        hold: 90,
        graceful: false,
        extra: String::new(),
        lines: String::new(),
    }
}

impl Session {
    fn remote(&self) -> IpAddr {
        address(self.to, self.over)
    }
}

/// A route that the far side originates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    pub(crate) prefix: String,
    pub(crate) med: Option<u32>,
    pub(crate) local_pref: Option<u32>,
    /// "65010:7".
    pub(crate) community: Option<&'static str>,
    /// "65010:1:2".
    pub(crate) large_community: Option<&'static str>,
    /// The AS is put in front of the path so often as given.
    pub(crate) prepend: Option<u32>,
}

/// A route without attributes of choice.
pub(crate) fn network(prefix: &str) -> Network {
    Network { prefix: prefix.to_owned(), ..Network::default() }
}

impl Network {
    fn is_v4(&self) -> bool {
        !self.prefix.contains(':')
    }
}

/// A router as it is to be.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) asn: u32,
    pub(crate) sessions: Vec<Session>,
    pub(crate) networks: Vec<Network>,
    /// Further lines outside sessions, in the kind's own spelling.
    pub(crate) extra: String,
}

/// A router of this AS with one session.
pub(crate) fn config(asn: u32, session: Session) -> Config {
    Config { asn, sessions: vec![session], networks: Vec::new(), extra: String::new() }
}

/// A route as the far side has received it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// "65010 65020".
    pub(crate) as_path: String,
    pub(crate) next_hops: BTreeSet<IpAddr>,
    pub(crate) med: Option<u32>,
    pub(crate) local_pref: Option<u32>,
    pub(crate) communities: BTreeSet<String>,
    pub(crate) large_communities: BTreeSet<String>,
    pub(crate) originator: Option<String>,
    pub(crate) clusters: Vec<String>,
    pub(crate) stale: bool,
}

/// A running router.
pub(crate) struct Far {
    pub(crate) kind: Kind,
    /// Its number on the rack.
    pub(crate) n: u8,
    pub(crate) router: Router,
    /// What runs BGP.
    pub(crate) bgp: Process,
}

/// The door to it.
pub(crate) enum Router {
    Bird(Bird),
    Frr(Frr),
    Gobgp(Gobgp),
    Openbgpd(Openbgpd),
}

impl Far {
    /// Starts member `n` as a router.
    pub(crate) fn start(rack: &Rack, n: u8, kind: Kind, config: &Config) -> Far {
        let (netns, dir) = (rack.netns(n), rack.dir(n));
        let (router, bgp) = match kind {
            Kind::Bird => {
                let bird = Bird::new(netns, dir.clone());
                let process = bird.start(&bird::config(n, config, &dir)).unwrap();
                (Router::Bird(bird), process)
            }
            Kind::Frr => {
                let frr = Frr::new(netns, dir);
                let processes = frr.start(&frr::config(n, config)).unwrap();
                (Router::Frr(frr), *processes.last().unwrap())
            }
            Kind::Gobgp => {
                let gobgp = Gobgp::new(netns, dir);
                let process = gobgp.start(&gobgp::config(n, config)).unwrap();
                gobgp::announce(&gobgp, n, config);
                (Router::Gobgp(gobgp), process)
            }
            Kind::Openbgpd => {
                let openbgpd = Openbgpd::new(netns, dir);
                let process = openbgpd.start(&openbgpd::config(n, config)).unwrap();
                (Router::Openbgpd(openbgpd), process)
            }
        };
        Far { kind, n, router, bgp }
    }

    pub(crate) fn bird(&self) -> &Bird {
        let Router::Bird(bird) = &self.router else { panic!("it is {:?}", self.kind) };
        bird
    }

    /// Whether its session with `remote` is up.
    pub(crate) fn is_up(&self, remote: IpAddr) -> bool {
        match &self.router {
            Router::Bird(bird) => bird::is_up(bird, remote),
            Router::Frr(frr) => frr::is_up(frr, remote),
            Router::Gobgp(gobgp) => gobgp::is_up(gobgp, remote),
            Router::Openbgpd(openbgpd) => openbgpd::is_up(openbgpd, remote),
        }
    }

    /// All that it says of its session with `remote`.
    pub(crate) fn tells(&self, remote: IpAddr) -> String {
        match &self.router {
            Router::Bird(bird) => bird.ask("show protocols all").unwrap(),
            Router::Frr(frr) => frr.ask(&format!("show bgp neighbors {remote} json")).unwrap(),
            Router::Gobgp(gobgp) => gobgp.ask(&format!("neighbor {remote}")).unwrap(),
            Router::Openbgpd(openbgpd) => openbgpd.ask(&format!("show neighbor {remote}")).unwrap(),
        }
    }

    /// The route for a prefix that it has received and prefers.
    pub(crate) fn route(&self, prefix: &str) -> Option<Seen> {
        match &self.router {
            Router::Bird(bird) => bird::route(bird, prefix),
            Router::Frr(frr) => frr::route(frr, prefix),
            Router::Gobgp(gobgp) => gobgp::route(gobgp, prefix),
            Router::Openbgpd(openbgpd) => openbgpd::route(openbgpd, prefix),
        }
    }

    /// The AS_PATHs of all routes for a prefix that it has received.
    pub(crate) fn paths(&self, prefix: &str) -> BTreeSet<String> {
        match &self.router {
            Router::Bird(bird) => bird::paths(bird, prefix),
            Router::Frr(frr) => frr::paths(frr, prefix),
            Router::Gobgp(gobgp) => gobgp::paths(gobgp, prefix),
            Router::Openbgpd(_) => panic!("OpenBGPD is asked for its best route only"),
        }
    }

    /// Asks `remote` for its routes again (RFC 2918).
    pub(crate) fn refresh(&self, remote: IpAddr) {
        match &self.router {
            Router::Bird(bird) => bird.order("reload in all").map(drop),
            Router::Frr(frr) => frr.ask(&format!("clear bgp {remote} soft in")).map(drop),
            Router::Gobgp(_) => panic!("GoBGP keeps all that it has received and asks for nothing"),
            Router::Openbgpd(openbgpd) => openbgpd.ask(&format!("neighbor {remote} refresh")).map(drop),
        }
        .unwrap();
    }

    /// Takes the session with `remote` down, with a text (RFC 9003).
    pub(crate) fn shut(&self, remote: IpAddr, text: &str) {
        match &self.router {
            Router::Bird(bird) => bird.order(&format!("disable s0 \"{text}\"")).map(drop),
            Router::Frr(frr) => frr::configure(frr, &format!("neighbor {remote} shutdown message {text}")),
            Router::Gobgp(gobgp) => {
                gobgp.ask(&format!("neighbor {remote} shutdown --reason {text}")).map(drop)
            }
            Router::Openbgpd(openbgpd) => openbgpd.ask(&format!("neighbor {remote} down {text}")).map(drop),
        }
        .unwrap();
    }

    /// Gives its session with `remote`, the only one that it has, another TCP MD5 key. `config` is what it was started with.
    pub(crate) fn change_key(&self, rack: &Rack, config: &mut Config, remote: IpAddr, key: &'static str) {
        config.sessions[0].password = Some(key);
        match &self.router {
            Router::Bird(bird) => bird.reconfigure(&bird::config(self.n, config, &rack.dir(self.n))),
            Router::Frr(frr) => frr::configure(frr, &format!("neighbor {remote} password {key}")),
            Router::Gobgp(_) | Router::Openbgpd(_) => panic!("{:?} has no part in this", self.kind),
        }
        .unwrap();
    }

    /// Starts what runs BGP again after it was killed: BIRD in recovery mode, FRR's bgpd beside the others that still run.
    pub(crate) fn start_again(&self) {
        match &self.router {
            Router::Bird(bird) => bird.recover().map(drop),
            Router::Frr(frr) => frr.start_daemon("bgpd").map(drop),
            Router::Gobgp(_) | Router::Openbgpd(_) => panic!("{:?} does not restart gracefully", self.kind),
        }
        .unwrap();
    }

    /// Waits for a session with `remote`.
    #[track_caller]
    pub(crate) fn comes_up(&self, remote: IpAddr) {
        eventually(|| {
            if self.is_up(remote) { Ok(()) } else { Err(format!("{:?}: {}", self.kind, self.tells(remote))) }
        });
    }

    /// Waits for a route.
    #[track_caller]
    pub(crate) fn learns(&self, prefix: &str) -> Seen {
        eventually(|| self.route(prefix).ok_or_else(|| format!("{:?} {} lacks {prefix}", self.kind, self.n)))
    }

    /// Waits until a route is gone.
    #[track_caller]
    pub(crate) fn loses(&self, prefix: &str) {
        eventually(|| self.route(prefix).map_or(Ok(()), Err));
    }

    /// Waits until its log has this.
    #[track_caller]
    pub(crate) fn logs(&self, rack: &Rack, file: &str, text: &str) {
        let path = rack.dir(self.n).join(file);
        eventually(|| {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            if log.contains(text) {
                Ok(())
            } else {
                Err(format!("{:?} does not log {text:?}: {log}", self.kind))
            }
        });
    }

    /// Waits until it says this of its session with `remote`.
    #[track_caller]
    pub(crate) fn says(&self, remote: IpAddr, text: &str) {
        eventually(|| {
            let told = self.tells(remote);
            if told.contains(text) {
                Ok(())
            } else {
                Err(format!("{:?} does not say {text:?}: {told}", self.kind))
            }
        });
    }
}

/// The router id of member `n`.
fn router_id(n: u8) -> IpAddr {
    address(n, Over::V4)
}

/// "65010:1:2" in parts.
fn parts(community: &str) -> Vec<&str> {
    community.split(':').collect()
}
