//! Who is at the other end of an unnumbered link: neighbour discovery by router advertisements (RFC 4861), as FRR and others
//! use it to find BGP peers. Pure: packets and `now` come in, packets to send and neighbours go out.
//!
//! We advertise ourselves with a router lifetime of 0: nobody is to take us for a default router. A neighbour stays until
//! another one is heard or the link goes down; whether it is alive is BGP's and BFD's to find out.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use crate::session::timers::Jitter;
use crate::speaker::Neighbor;

/// ICMPv6 types (RFC 4861 4).
pub const ROUTER_SOLICITATION: u8 = 133;
/// See `ROUTER_SOLICITATION`.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// What neighbour discovery packets must arrive with: no router has touched them (RFC 4861 6.1).
pub const HOP_LIMIT: u8 = 255;

/// Between unsolicited advertisements, before jitter.
const INTERVAL: Duration = Duration::from_secs(10);
/// MIN_DELAY_BETWEEN_RAS (RFC 4861 10).
const MIN_DELAY: Duration = Duration::from_secs(3);
/// MAX_RA_DELAY_TIME: an answer to a solicitation waits up to so long, so that not all routers answer at once.
const ANSWER_DELAY: Duration = Duration::from_millis(500);
/// MAX_INITIAL_RTR_ADVERTISEMENTS, and MAX_RTR_SOLICITATIONS: the first ones follow each other fast.
const INITIAL: u8 = 3;
/// RTR_SOLICITATION_INTERVAL.
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
/// News about a link is told at most so often: a link full of routers must not keep the speaker busy.
const NEWS_INTERVAL: Duration = Duration::from_secs(1);

/// What to send on a link, to all nodes or to all routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// Router advertisement, to ff02::1.
    Advertisement,
    /// Router solicitation, to ff02::2.
    Solicitation,
}

impl Outgoing {
    /// The ICMPv6 message; its checksum is the kernel's to fill in.
    pub fn octets(self) -> Vec<u8> {
        match self {
            // Current hop limit and times unspecified, no flags, router lifetime 0 (RFC 4861 4.2).
            Outgoing::Advertisement => {
                let mut octets = vec![0; 16];
                octets[0] = ROUTER_ADVERTISEMENT;
                octets
            }
            Outgoing::Solicitation => vec![ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0],
        }
    }

    /// All nodes, or all routers, on the link.
    pub fn destination(self) -> Ipv6Addr {
        let group = match self {
            Outgoing::Advertisement => 1,
            Outgoing::Solicitation => 2,
        };
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, group)
    }
}

/// A received message that is as RFC 4861 6.1 wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A valid router advertisement.
    Advertisement,
    /// A valid router solicitation.
    Solicitation,
}

impl Heard {
    /// Checks a message; `None`: to be ignored. The kernel has checked the checksum.
    pub fn read(from: Ipv6Addr, hop_limit: u8, octets: &[u8]) -> Option<Self> {
        let &[kind, code, ..] = octets else { return None };
        if hop_limit != HOP_LIMIT || code != 0 {
            return None;
        }
        let (heard, header, legal) = match kind {
            ROUTER_ADVERTISEMENT => (Heard::Advertisement, 16, from.is_unicast_link_local()),
            ROUTER_SOLICITATION => (Heard::Solicitation, 8, !from.is_multicast()),
            _ => return None,
        };
        let options = octets.get(header..)?;
        (legal && options_are_whole(options)).then_some(heard)
    }
}

/// Options have a length in units of 8 octets, never 0 (RFC 4861 4.6).
fn options_are_whole(mut options: &[u8]) -> bool {
    while !options.is_empty() {
        let Some(length) = options.get(1).map(|units| usize::from(*units) * 8).filter(|l| *l > 0) else {
            return false;
        };
        let Some(rest) = options.get(length..) else { return false };
        options = rest;
    }
    true
}

/// A link as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// There is none of this name.
    Missing,
    /// It is down or has no carrier.
    Down,
    /// It works, under this index.
    Up(u32),
}

/// All links on which neighbours are looked for.
#[derive(Debug)]
pub struct Discovery {
    links: BTreeMap<String, Link>,
    jitter: Jitter,
}

#[derive(Debug)]
struct Link {
    state: Option<LinkState>,
    advertise_at: Option<Instant>,
    advertised: Option<Instant>,
    advertisements: u8,
    solicit_at: Option<Instant>,
    solicitations: u8,
    /// To be told, once `news_at` has come: first that nobody is there any more, and why; then who is.
    gone: Option<String>,
    found: Option<(Ipv6Addr, u32)>,
    news_at: Option<Instant>,
}

impl Discovery {
    /// None yet. The seed is for jitter.
    pub fn new(seed: u64) -> Self {
        Discovery { links: BTreeMap::new(), jitter: Jitter::new(seed) }
    }

    /// Begins on a link; `set_link` then says whether it is there.
    pub fn add(&mut self, interface: String) {
        self.links.entry(interface).or_insert(Link {
            state: None,
            advertise_at: None,
            advertised: None,
            advertisements: 0,
            solicit_at: None,
            solicitations: 0,
            gone: None,
            found: None,
            news_at: None,
        });
    }

    /// Ends on a link.
    pub fn remove(&mut self, interface: &str) {
        self.links.remove(interface);
    }

    /// The links in question.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.links.keys().map(String::as_str)
    }

    /// What the kernel shows of a link. One that comes up, also under another index, begins anew.
    pub fn set_link(&mut self, now: Instant, interface: &str, state: LinkState) {
        let Some(link) = self.links.get_mut(interface).filter(|l| l.state != Some(state)) else { return };
        link.state = Some(state);
        let up = matches!(state, LinkState::Up(_));
        link.advertise_at = up.then_some(now);
        link.solicit_at = up.then_some(now);
        (link.advertised, link.advertisements, link.solicitations) = (None, 0, 0);
        link.found = None;
        link.gone = Some(match state {
            LinkState::Missing => format!("there is no interface {interface}"),
            LinkState::Down => format!("interface {interface} is down"),
            LinkState::Up(_) => format!("no router advertisement on {interface} yet"),
        });
        link.news_at = Some(now);
    }

    /// A message on the link of this index.
    pub fn heard(&mut self, now: Instant, from: Ipv6Addr, ifindex: u32, heard: Heard) {
        let found = self.links.values_mut().find(|l| l.state == Some(LinkState::Up(ifindex)));
        let Some(link) = found else { return };
        match heard {
            Heard::Advertisement => {
                // There is a router, so that nobody has to be asked any more.
                link.solicit_at = None;
                link.found = Some((from, ifindex));
                link.news_at = Some(link.news_at.map_or(now, |last| last.max(now)));
            }
            Heard::Solicitation => {
                let delay = self.jitter.apply(ANSWER_DELAY);
                let earliest = link.advertised.map_or(now, |last| last + MIN_DELAY);
                let answer = earliest.max(now + delay);
                link.advertise_at = Some(link.advertise_at.map_or(answer, |at| at.min(answer)));
            }
        }
    }

    /// The next message that is due, with the index of its link.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(u32, Outgoing)> {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for link in self.links.values_mut() {
            let Some(LinkState::Up(ifindex)) = link.state else { continue };
            if due(link.advertise_at) {
                link.advertised = Some(now);
                link.advertisements = link.advertisements.saturating_add(1);
                let wait =
                    if link.advertisements < INITIAL { MIN_DELAY } else { self.jitter.apply(INTERVAL) };
                link.advertise_at = Some(now + wait);
                return Some((ifindex, Outgoing::Advertisement));
            }
            if due(link.solicit_at) {
                link.solicitations += 1;
                link.solicit_at = (link.solicitations < INITIAL).then(|| now + SOLICITATION_INTERVAL);
                return Some((ifindex, Outgoing::Solicitation));
            }
        }
        None
    }

    /// The next news: an interface and who is there. Told again while advertisements come, since the speaker heeds another
    /// neighbour only when it has no session with the present one. That the link went is therefore never left out, be it
    /// back already.
    pub fn poll_news(&mut self, now: Instant) -> Option<(String, Neighbor)> {
        self.links.iter_mut().find_map(|(interface, link)| {
            link.news_at.filter(|at| *at <= now)?;
            let news = match link.gone.take() {
                Some(reason) => Neighbor::Gone(reason),
                None => link.found.take().map(|(from, ifindex)| Neighbor::Found(from, ifindex))?,
            };
            // What is known of links that went is told at once; what is heard on them, not more often than that.
            link.news_at = Some(now + NEWS_INTERVAL);
            Some((interface.clone(), news))
        })
    }

    /// When something is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let of = |link: &Link| {
            let news = link.news_at.filter(|_| link.gone.is_some() || link.found.is_some());
            [link.advertise_at, link.solicit_at, news].into_iter().flatten().min()
        };
        self.links.values().filter_map(of).min()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn advertisement() -> Vec<u8> {
        Outgoing::Advertisement.octets()
    }

    /// With a source link-layer address, as FRR and BIRD send it.
    fn with_option(length: u8) -> Vec<u8> {
        [advertisement(), vec![1, length, 2, 0, 0, 0, 0, 1]].concat()
    }

    #[rstest]
    #[case::plain("fe80::1", 255, advertisement(), Some(Heard::Advertisement))]
    #[case::with_link_layer_address("fe80::1", 255, with_option(1), Some(Heard::Advertisement))]
    #[case::routed("fe80::1", 254, advertisement(), None)]
    #[case::global_source("fd00::1", 255, advertisement(), None)]
    #[case::short("fe80::1", 255, advertisement()[..15].to_vec(), None)]
    #[case::option_of_no_length("fe80::1", 255, with_option(0), None)]
    #[case::option_beyond_the_end("fe80::1", 255, with_option(2), None)]
    #[case::code("fe80::1", 255, [vec![134, 1], advertisement()[2..].to_vec()].concat(), None)]
    #[case::solicitation("::", 255, vec![133, 0, 0, 0, 0, 0, 0, 0], Some(Heard::Solicitation))]
    #[case::routed_solicitation("fe80::1", 64, vec![133, 0, 0, 0, 0, 0, 0, 0], None)]
    #[case::neighbor_solicitation("fe80::1", 255, vec![135; 24], None)]
    #[case::nothing("fe80::1", 255, vec![], None)]
    fn only_what_rfc_4861_6_1_allows_is_heard(
        #[case] from: &str,
        #[case] hop_limit: u8,
        #[case] octets: Vec<u8>,
        #[case] heard: Option<Heard>,
    ) {
        assert_eq!(Heard::read(ip(from), hop_limit, &octets), heard);
    }

    struct Bench {
        discovery: Discovery,
        now: Instant,
        sent: Vec<(Duration, u32, Outgoing)>,
        news: Vec<(String, Neighbor)>,
        start: Instant,
    }

    impl Bench {
        fn new() -> Self {
            #[expect(clippy::disallowed_methods, reason = "a virtual clock has to begin somewhere")]
            let start = Instant::now();
            let mut discovery = Discovery::new(1);
            discovery.add("eth1".to_owned());
            Bench { discovery, now: start, sent: Vec::new(), news: Vec::new(), start }
        }

        fn drain(&mut self) {
            while let Some((ifindex, what)) = self.discovery.poll_transmit(self.now) {
                self.sent.push((self.now - self.start, ifindex, what));
            }
            while let Some(news) = self.discovery.poll_news(self.now) {
                self.news.push(news);
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            self.drain();
            while let Some(at) = self.discovery.poll_timeout().filter(|at| *at <= end) {
                self.now = self.now.max(at);
                self.drain();
            }
            self.now = end;
        }

        fn link(&mut self, state: LinkState) {
            self.discovery.set_link(self.now, "eth1", state);
            self.drain();
        }

        fn hears(&mut self, from: &str, ifindex: u32, heard: Heard) {
            self.discovery.heard(self.now, ip(from), ifindex, heard);
            self.drain();
        }

        fn advertisements(&self) -> usize {
            self.sent.iter().filter(|(_, _, what)| *what == Outgoing::Advertisement).count()
        }
    }

    #[test]
    fn a_neighbour_is_found_and_lost_with_the_link() {
        let mut b = Bench::new();
        b.link(LinkState::Missing);
        b.link(LinkState::Up(7));
        b.run(Duration::from_secs(2));
        b.news.clear();
        b.hears("fe80::2", 7, Heard::Advertisement);
        assert_eq!(b.news, [("eth1".to_owned(), Neighbor::Found(ip("fe80::2"), 7))]);
        b.hears("fe80::9", 8, Heard::Advertisement);
        assert_eq!(b.news.len(), 1, "another link is none of its business");
        b.link(LinkState::Down);
        b.run(Duration::from_secs(2));
        assert_eq!(b.news.last().unwrap().1, Neighbor::Gone("interface eth1 is down".to_owned()));
        b.sent.clear();
        b.run(Duration::from_secs(60));
        assert!(b.sent.is_empty(), "nothing is sent into a link that is down");
    }

    #[test]
    fn a_link_that_was_down_for_a_moment_has_lost_its_neighbour() {
        let mut b = Bench::new();
        b.link(LinkState::Up(7));
        b.run(Duration::from_secs(2));
        b.hears("fe80::2", 7, Heard::Advertisement);
        b.run(Duration::from_secs(2));
        b.news.clear();
        // Nobody asks for news before the link is back and the next router has spoken.
        b.discovery.set_link(b.now, "eth1", LinkState::Down);
        b.discovery.set_link(b.now, "eth1", LinkState::Up(7));
        b.discovery.heard(b.now, ip("fe80::3"), 7, Heard::Advertisement);
        b.run(Duration::from_secs(2));
        let told: Vec<_> = b.news.iter().map(|(_, news)| news.clone()).collect();
        let gone = Neighbor::Gone("no router advertisement on eth1 yet".to_owned());
        assert_eq!(told, [gone, Neighbor::Found(ip("fe80::3"), 7)]);
    }

    #[test]
    fn a_link_full_of_routers_is_told_of_once_a_second() {
        let mut b = Bench::new();
        b.link(LinkState::Up(7));
        b.news.clear();
        for i in 0..1000 {
            b.hears(&format!("fe80::{i:x}"), 7, Heard::Advertisement);
            b.run(Duration::from_millis(10));
        }
        assert!((9..=12).contains(&b.news.len()), "{}", b.news.len());
    }

    #[test]
    fn advertisements_come_at_first_fast_and_then_at_their_interval() {
        let mut b = Bench::new();
        b.link(LinkState::Up(7));
        b.run(Duration::from_secs(7));
        assert_eq!(b.advertisements(), 3, "{:?}", b.sent);
        b.run(Duration::from_secs(100));
        assert!((13..=18).contains(&b.advertisements()), "{:?}", b.sent);
        let solicitations = b.sent.len() - b.advertisements();
        assert_eq!(solicitations, 3, "a host that nobody answers stops asking");
    }

    #[test]
    fn solicitations_are_answered_soon_but_not_without_limit() {
        let mut b = Bench::new();
        b.link(LinkState::Up(7));
        b.run(Duration::from_secs(20));
        b.sent.clear();
        for _ in 0..100 {
            b.hears("::", 7, Heard::Solicitation);
            b.run(Duration::from_millis(100));
        }
        assert!((3..=5).contains(&b.advertisements()), "one every three seconds: {:?}", b.sent);
    }
}
