//! Unnumbered peers (RFC 4861, RFC 8950) with FRR and with BIRD: two links without addresses, both families over each.

use std::collections::BTreeSet;

use manx_bgp::bfd::BfdConfig;
use manx_bgp::speaker::{LocalRoute, PeerConfig, RemoteAs};
use manx_bgp::types::Asn;
use manx_tests::netns::{self, End};
use manx_tests::routers::bird::Bird;
use manx_tests::routers::frr::Frr;
use rstest::rstest;

use crate::eventually;
use crate::node::{AS, Manx, prefix, speaker};
use crate::rack::Rack;

const LINKS: [&str; 2] = ["u0", "u1"];
const OURS: [&str; 2] = ["10.200.0.0/24", "fd00:200::/64"];
const THEIRS: [&str; 2] = ["10.210.0.0/24", "fd00:210::/64"];

/// Two links between Manx and member 2, beside the switch that nobody uses here.
fn links() -> Rack {
    let rack = Rack::new(2);
    let (ours, theirs) = (rack.netns(1), rack.netns(2));
    for link in LINKS {
        netns::connect(
            &End { netns: &ours, interface: link, addresses: vec![] },
            &End { netns: &theirs, interface: link, addresses: vec![] },
        )
        .unwrap();
    }
    rack
}

fn frr_config() -> String {
    let mut text =
        "hostname n2\nbfd\n profile fast\n  receive-interval 100\n  transmit-interval 100\n".to_owned();
    for link in LINKS {
        text += &format!("interface {link}\n ipv6 nd ra-interval 3\n no ipv6 nd suppress-ra\n");
    }
    text += "router bgp 65010\n bgp router-id 10.9.0.2\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n \
             no bgp network import-check\n bgp bestpath as-path multipath-relax\n";
    for link in LINKS {
        text += &format!(
            " neighbor {link} interface remote-as external\n neighbor {link} capability extended-nexthop\n \
             neighbor {link} bfd profile fast\n neighbor {link} timers connect 1\n"
        );
    }
    for (family, network) in [("ipv4", THEIRS[0]), ("ipv6", THEIRS[1])] {
        text += &format!(" address-family {family} unicast\n  network {network}\n  maximum-paths 16\n");
        for link in LINKS {
            text += &format!("  neighbor {link} activate\n");
        }
        text += " exit-address-family\n";
    }
    text
}

fn bird_config() -> String {
    let mut text = "router id 10.9.0.2;\nprotocol device { scan time 1; }\n\
        protocol kernel { merge paths yes limit 16; ipv4 { import none; export where source = RTS_BGP; }; }\n\
        protocol kernel { merge paths yes limit 16; ipv6 { import none; export where source = RTS_BGP; }; }\n\
        protocol radv { interface \"u*\" { min ra interval 3; max ra interval 5; default lifetime 0; }; }\n\
        protocol bfd { interface \"u*\" { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; }; }\n"
        .to_owned();
    for (family, network) in [("ipv4", THEIRS[0]), ("ipv6", THEIRS[1])] {
        text += &format!("protocol static {{ {family}; route {network} blackhole; }}\n");
    }
    for link in LINKS {
        text += &format!(
            "protocol bgp p{link} {{ local as 65010; neighbor range fe80::/10 as {AS}; interface \"{link}\"; \
             dynamic name \"d{link}\"; bfd on;\n\
             ipv4 {{ import all; export where source = RTS_STATIC; extended next hop on; }};\n\
             ipv6 {{ import all; export where source = RTS_STATIC; }}; }}\n"
        );
    }
    text
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Router {
    Frr,
    Bird,
}

/// Starts it; gives how to ask it for BFD.
fn start(rack: &Rack, router: Router) -> Box<dyn Fn() -> String> {
    let (netns, dir) = (rack.netns(2), rack.dir(2));
    match router {
        Router::Frr => {
            let frr = Frr::new(netns, dir);
            frr.start(&frr_config()).unwrap();
            Box::new(move || frr.ask("show bfd peers").unwrap())
        }
        Router::Bird => {
            let bird = Bird::new(netns, dir);
            bird.start(&bird_config()).unwrap();
            Box::new(move || bird.ask("show bfd sessions").unwrap())
        }
    }
}

#[rstest]
fn sessions_and_routes_of_both_families_over_two_unnumbered_links(
    #[values(Router::Frr, Router::Bird)] router: Router,
) {
    let rack = links();
    let bfd = start(&rack, router);
    let node = Manx::start(&rack, speaker(AS));
    OURS.iter().for_each(|text| node.originate(LocalRoute::new(prefix(text))));
    for link in LINKS {
        node.set_peer(PeerConfig {
            connect_retry: std::time::Duration::from_secs(1),
            bfd: Some(BfdConfig::default()),
            ..PeerConfig::on_interface(link, link, RemoteAs::External)
        });
    }
    for link in LINKS {
        let view = eventually(|| {
            let view = node.named(link);
            if view.state == "Established" { Ok(view) } else { Err(format!("{view:?} {:?}", node.facts())) }
        });
        assert_eq!(view.remote_as, Some(Asn(65010)));
        assert!(view.families.iter().all(|f| f.negotiated), "{view:?}");
        eventually(|| match node.named(link).bfd {
            Some(seen) if seen.state == "Up" => Ok(()),
            seen => Err(format!("{seen:?}, there: {}", bfd())),
        });
    }
    // In: two ways for each prefix, each a link-local address on its own link.
    for text in THEIRS {
        eventually(|| {
            let ways = node.told(|t| t.fib.get(&prefix(text)).cloned().unwrap_or_default());
            let links: BTreeSet<&str> =
                ways.iter().filter_map(|way| way.split_once('%')).map(|(_, l)| l).collect();
            let right = ways.iter().all(|way| way.starts_with("fe80::")) && links.len() == 2;
            if right { Ok(()) } else { Err(format!("{text}: {ways:?} {:?}", node.explain(prefix(text)))) }
        });
    }
    // Out: the router has both in its kernel, IPv4 over our IPv6 addresses.
    for text in OURS {
        let family = if text.contains(':') { "-6" } else { "-4" };
        eventually(|| {
            let route = rack.netns(2).ip(&format!("{family} route show {text}")).unwrap();
            let right =
                LINKS.iter().all(|link| route.contains(&format!("dev {link}"))) && route.contains("fe80::");
            if right { Ok(()) } else { Err(format!("{text}: {route} {:?}", node.facts())) }
        });
    }
    // The router's end of a link goes: the session with it, by name.
    rack.netns(2).ip("link set u0 down").unwrap();
    node.goes_down_named("u0", "interface u0 is down");
    eventually(|| {
        let ways = node.told(|t| t.fib.get(&prefix(THEIRS[0])).cloned().unwrap_or_default());
        if ways.len() == 1 { Ok(()) } else { Err(ways) }
    });
}
