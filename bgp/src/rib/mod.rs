//! The routing information base: one writer, compact, every prefix of a family in one table.
//!
//! ```text
//! UPDATE -> adj_rib_in (loops, filters, limits) -> loc_rib (table, decision) -> FIB changes
//!                                                     `-> adj_rib_out (dirty and advertised bits per peer)
//!                                                           `-> export, group (bytes made once for equal peers) -> UPDATE
//! ```
//!
//! Paths are kept once, after the import filter. What is refused is counted, with its reason and without its attributes.
//! What is advertised to a peer is one bit a prefix: attributes are computed when the peer's socket takes bytes, so that
//! a slow peer sees only the newest state and costs nothing meanwhile. Knows neither sessions nor time.

use std::net::Ipv4Addr;

use rustc_hash::FxHashSet;

use crate::filter::defaults::Protected;
use crate::rib::adj_rib_in::AdjIn;
use crate::rib::adj_rib_out::AdjOut;
use crate::rib::attributes::Attributes;
use crate::rib::bitset::BitSet;
use crate::rib::decision::{Facts, Multipath};
use crate::rib::group::Groups;
use crate::rib::next_hops::{NextHopId, NextHops};
use crate::rib::sources::Sources;
use crate::rib::table::Table;
use crate::types::{Asn, Family, PerFamily, RouterId};
use crate::wire::attribute::{AsPath, Origin, PathAttributes};

pub(crate) mod adj_rib_in;
pub(crate) mod adj_rib_out;
mod attributes;
mod bitset;
mod chunks;
mod decision;
pub(crate) mod export;
mod group;
mod loc_rib;
mod long_lived;
mod next_hops;
mod path;
mod refused;
mod sources;
mod table;
pub(crate) mod view;

pub(crate) use sources::{Source, SourceId};

/// Who we are, as far as routes are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) asn: Asn,
    pub(crate) router_id: RouterId,
    pub(crate) cluster_id: Ipv4Addr,
    pub(crate) multipath: Multipath,
}

impl Identity {
    pub(crate) fn new(
        asn: Asn,
        router_id: RouterId,
        cluster_id: Option<Ipv4Addr>,
        max_paths: usize,
        relax: bool,
    ) -> Self {
        Identity {
            asn,
            router_id,
            cluster_id: cluster_id.unwrap_or(router_id.addr()),
            multipath: Multipath { max: max_paths.max(1), relax },
        }
    }
}

/// All routes.
pub(crate) struct Rib {
    identity: Identity,
    attributes: Attributes,
    next_hops: NextHops,
    tables: PerFamily<Table>,
    sources: Sources,
    adj_in: Vec<Option<AdjIn>>,
    adj_out: Vec<Option<AdjOut>>,
    groups: Groups,
    /// Peers to whom several paths of a prefix go.
    add_path_targets: usize,
    /// Numbers of the peers that have an Adj-RIB-Out.
    targets: Vec<u32>,
    /// Peers that have something to be sent and have not been named since they last had nothing.
    woken: Vec<u32>,
    fib: PerFamily<FibQueue>,
    protected: Protected,
    /// `protected` changed since paths were last checked against it.
    protected_changed: bool,
    /// Next hops whose state changed since paths were last decided on.
    changed_hops: FxHashSet<NextHopId>,
    /// Slots whose next hops have had their first answer.
    answered_slots: Vec<(Family, u32)>,
    /// What leads through this node is advertised as the last choice (RFC 8326).
    draining: bool,
}

/// What the FIB has been told and what it has still to be told.
#[derive(Debug, Default)]
struct FibQueue {
    dirty: BitSet,
    told: BitSet,
    cursor: u32,
    /// A restart is under way: learned routes are neither told to the FIB nor advertised (RFC 4724 4.1).
    deferring: bool,
}

impl Rib {
    pub(crate) fn new(identity: Identity) -> Self {
        Rib {
            identity,
            attributes: Attributes::default(),
            next_hops: NextHops::default(),
            tables: PerFamily::from_fn(Table::new),
            sources: Sources::default(),
            adj_in: vec![Some(AdjIn::local())],
            adj_out: vec![None],
            groups: Groups::default(),
            add_path_targets: 0,
            targets: Vec::new(),
            woken: Vec::new(),
            fib: PerFamily::from_fn(|_| FibQueue::default()),
            protected: Protected::default(),
            protected_changed: false,
            changed_hops: FxHashSet::default(),
            answered_slots: Vec::new(),
            draining: false,
        }
    }

    /// Changes who we are. Multipath limits decide anew; the caller resets sessions if the rest changed.
    pub(crate) fn set_identity(&mut self, identity: Identity) {
        if identity == self.identity {
            return;
        }
        self.identity = identity;
        self.groups.forget_portions();
        for family in Family::ALL {
            let occupied: Vec<u32> = self.tables[family].occupied().collect();
            for slot in occupied {
                self.redecide(family, slot);
            }
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            attributes: &self.attributes,
            next_hops: &self.next_hops,
            sources: &self.sources,
            multipath: self.identity.multipath,
            local_as: self.identity.asn,
        }
    }

    /// Prefixes of a family in the table.
    pub(crate) fn prefixes(&self, family: Family) -> usize {
        self.tables[family].len()
    }

    /// Attribute sets in use.
    pub(crate) fn attribute_sets(&self) -> usize {
        self.attributes.len()
    }
}

/// The attributes of a route that this node originates, before anything is added.
pub(crate) fn local_attributes() -> PathAttributes {
    PathAttributes {
        origin: Origin::Igp,
        as_path: AsPath::default(),
        med: None,
        local_pref: None,
        atomic_aggregate: false,
        aggregator: None,
        communities: Default::default(),
        extended_communities: Vec::new(),
        large_communities: Vec::new(),
        originator_id: None,
        cluster_list: Vec::new(),
        unknown: Vec::new(),
    }
}
