//! Routes: what is taken in, which path wins and why, what goes out and with which attributes.

mod decision;
mod taken_in;
mod told;

use manx_bgp::filter::*;
use manx_bgp::speaker::*;
use manx_bgp::types::*;
use manx_bgp::wire::attribute::*;
use manx_bgp::wire::message::*;
use std::sync::Arc;

use crate::bench::*;

const NO_EXPORT: u32 = 0xFFFF_FF01;
const NO_ADVERTISE: u32 = 0xFFFF_FF02;
const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;

fn internal(name: &str, address: &str) -> PeerConfig {
    PeerConfig { remote_as: RemoteAs::Internal, ..Bench::tor(name, address) }
}

fn accept_all() -> Vec<Arc<Filter>> {
    vec![Arc::new(Filter::accept_all("all"))]
}

fn filter(name: &str, rules: Vec<Rule>) -> Vec<Arc<Filter>> {
    vec![Arc::new(Filter { name: name.into(), ipv4: rules.clone(), ipv6: rules })]
}

/// Announced prefixes of a list of UPDATEs, sorted.
fn announced(updates: &[Update]) -> Vec<String> {
    let mut all: Vec<String> =
        updates.iter().flat_map(|u| &u.reach).flat_map(|r| &r.nlri).map(|n| n.prefix.to_string()).collect();
    all.sort();
    all
}

fn withdrawn(updates: &[Update]) -> Vec<String> {
    let mut all: Vec<String> =
        updates.iter().flat_map(|u| &u.withdrawn).map(|n| n.prefix.to_string()).collect();
    all.sort();
    all
}

/// The UPDATE that announces a prefix, of those sent last.
fn update_for(b: &mut Bench, conn: ConnId, prefix: &str) -> (PathAttributes, NextHop) {
    let updates = b.updates(conn);
    let found = updates.iter().find_map(|u| {
        let reach = u.reach.iter().find(|r| r.nlri.iter().any(|n| n.prefix == p(prefix)))?;
        Some((u.attributes.clone()?, reach.next_hop))
    });
    found.unwrap_or_else(|| panic!("{prefix} not announced in {updates:?}"))
}

fn as_path(set: &PathAttributes) -> String {
    as_path_text(&set.as_path)
}

/// Two external ToRs in ASes 65001 and 65002 and a third party that hears what we pass on.
struct Two {
    b: Bench,
    one: ConnId,
    two: ConnId,
    third: ConnId,
}

fn two() -> Two {
    two_with(SpeakerConfig::new(OUR_AS, id("10.0.0.1")))
}

fn two_with(config: SpeakerConfig) -> Two {
    let mut b = Bench::with(config);
    for (name, address) in [("one", "10.0.0.2"), ("two", "10.0.0.3")] {
        b.peer(Bench::tor(name, address));
    }
    b.peer(PeerConfig { export: accept_all(), ..Bench::tor("third", "10.0.0.9") });
    let one = b.establish("10.0.0.2", open(Asn(65001), "10.0.0.2"));
    let two = b.establish("10.0.0.3", open(Asn(65002), "10.0.0.3"));
    let third = b.establish("10.0.0.9", open(Asn(65009), "10.0.0.9"));
    b.messages(third);
    Two { b, one, two, third }
}

fn hops(b: &Bench, prefix: &str) -> Vec<String> {
    b.fib.get(&p(prefix)).map_or_else(Vec::new, |h| h.iter().map(ToString::to_string).collect())
}

const X: &str = "10.9.0.0/16";

/// The octets of the UPDATE that announces [`X`] as the first ToR does, for changing them or adding to them.
fn announcement() -> (bytes::BytesMut, manx_bgp::wire::EncodeContext) {
    let mut out = bytes::BytesMut::new();
    let ctx = manx_bgp::wire::EncodeContext::modern(PeerType::External);
    let encoded = manx_bgp::wire::EncodedAttributes::new(&attributes(&[65001]), &ctx);
    let mut nlri = [Nlri { prefix: p(X), path_id: 0 }].into_iter().peekable();
    let hop = NextHop::V4("10.0.0.2".parse().unwrap());
    manx_bgp::wire::reach(&mut out, &ctx, &encoded, hop, Family::Ipv4Unicast, &mut nlri).unwrap();
    (out, ctx)
}
