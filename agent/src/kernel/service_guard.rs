//! Addresses of Services that nobody translates go nowhere. Without this, a packet for an address of an advertised range that
//! no Service has would leave by the default route, come back by the advertised range, and go on so until its TTL is used up.
//!
//! A blackhole route would not do: the node itself looks for a route before its packets are translated, and could not
//! connect to a Service any more. So what the node sends looks into the main table first, and only what it forwards comes to
//! a rule that drops:
//!
//! ```text
//! 32764: from all iif lo lookup main proto manx
//! 32765: from all to 10.96.0.0/12 blackhole proto manx
//! 32766: from all lookup main
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use manx_bgp::types::Prefix;

use super::Family;
use super::fib::PROTOCOL;
use super::netlink::{Attrs, Batch, NLM_F_DUMP, Netlink, NetlinkError, u32_at};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
/// NLM_F_CREATE | NLM_F_EXCL.
const CREATE: u16 = 0x400 | 0x200;
/// `struct fib_rule_hdr` (include/uapi/linux/fib_rules.h).
const HEADER: usize = 12;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_BLACKHOLE: u8 = 6;
const FRA_DST: u16 = 1;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
/// RT_TABLE_MAIN.
const MAIN: u8 = 254;
/// Just before the main table's own rule.
const OWN_PRIORITY: u32 = 32_764;
const DROP_PRIORITY: u32 = 32_765;

/// One of our rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// What this node sends itself is routed as ever.
    Own,
    /// What it forwards to this range is dropped.
    Drop(IpNetwork),
}

/// Makes our rules in this namespace those that guard these ranges, and no others. A few messages, for the loop itself.
///
/// # Errors
/// The kernel can't be asked, or refuses.
pub fn set(ranges: &BTreeSet<Prefix>) -> Result<(), NetlinkError> {
    let mut socket = Netlink::route()?;
    let done = Family::BOTH.map(|family| {
        let drops = ranges.iter().map(|p| IpNetwork::from(*p)).filter(|net| Family::of(net.ip()) == family);
        set_family(&mut socket, family, drops.map(Rule::Drop).collect())
    });
    done.into_iter().collect()
}

fn set_family(socket: &mut Netlink, family: Family, mut wanted: BTreeSet<Rule>) -> Result<(), NetlinkError> {
    if !wanted.is_empty() {
        wanted.insert(Rule::Own);
    }
    let mut spare = Vec::new();
    let mut there = BTreeSet::new();
    for rule in read(socket, family)? {
        // The kernel takes the same rule twice.
        if !wanted.contains(&rule) || !there.insert(rule) {
            spare.push(rule);
        }
    }
    // The one that lets this node's own packets pass comes first and goes last.
    spare.sort_by(|a, b| b.cmp(a));
    let add = wanted.difference(&there).map(|rule| (RTM_NEWRULE, CREATE, *rule));
    let delete = spare.into_iter().map(|rule| (RTM_DELRULE, 0, rule));
    add.chain(delete).try_for_each(|(kind, flags, rule)| {
        let mut batch = Batch::new();
        put(&mut batch, kind, flags, family, rule);
        socket.request(&mut batch, || format!("{family} rule {rule:?}"))
    })
}

/// Our rules of a family, each as often as it is there.
///
/// # Errors
/// The kernel can't be asked.
fn read(socket: &mut Netlink, family: Family) -> Result<Vec<Rule>, NetlinkError> {
    let mut rules = Vec::new();
    let mut request = Batch::new();
    request.message(RTM_GETRULE, NLM_F_DUMP, |m| {
        let mut header = [0; HEADER];
        header[0] = family.number();
        m.fixed(&header);
    });
    // A torn reading is made good by the next one.
    socket.dump(
        &mut request,
        || format!("reading {family} rules"),
        |kind, payload| {
            if kind == RTM_NEWRULE {
                rules.extend(parse(payload));
            }
        },
    )?;
    Ok(rules)
}

fn put(batch: &mut Batch, kind: u16, flags: u16, family: Family, rule: Rule) {
    let (action, table, priority, len) = match rule {
        Rule::Own => (FR_ACT_TO_TBL, MAIN, OWN_PRIORITY, 0),
        Rule::Drop(range) => (FR_ACT_BLACKHOLE, 0, DROP_PRIORITY, range.prefix()),
    };
    batch.message(kind, flags, |m| {
        m.fixed(&[family.number(), len, 0, 0, table, 0, 0, action, 0, 0, 0, 0]);
        match rule {
            Rule::Own => {
                m.attr_str(FRA_IIFNAME, "lo");
                m.attr(FRA_TABLE, &u32::from(MAIN).to_ne_bytes());
            }
            Rule::Drop(range) => match range.network() {
                IpAddr::V4(ip) => m.attr(FRA_DST, &ip.octets()),
                IpAddr::V6(ip) => m.attr(FRA_DST, &ip.octets()),
            },
        }
        m.attr(FRA_PRIORITY, &priority.to_ne_bytes());
        m.attr(FRA_PROTOCOL, &[PROTOCOL]);
    });
}

/// A rule of ours; `None`: somebody else's.
fn parse(payload: &[u8]) -> Option<Rule> {
    let (len, action) = (*payload.get(1)?, *payload.get(7)?);
    let (mut protocol, mut priority, mut destination) = (0, 0, None);
    for (kind, value) in Attrs::new(payload.get(HEADER..)?) {
        match kind {
            FRA_PROTOCOL => protocol = *value.first()?,
            FRA_PRIORITY => priority = u32_at(value, 0)?,
            FRA_DST => {
                destination = match value.len() {
                    4 => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
                    16 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
                    _ => return None,
                };
            }
            _ => {}
        }
    }
    match (protocol == PROTOCOL, action, priority) {
        (true, FR_ACT_TO_TBL, OWN_PRIORITY) => Some(Rule::Own),
        (true, FR_ACT_BLACKHOLE, DROP_PRIORITY) => Some(Rule::Drop(IpNetwork::new(destination?, len).ok()?)),
        _ => None,
    }
}
