//! Listen ranges: whoever connects from a configured range becomes a peer for as long as he stays, by the range's
//! template. We never dial into a range. A peer that has gone is shown for a while, so that people see why and its
//! hold-down counts; then it is forgotten, and its name and its place in the range are free.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::session::State;
use crate::speaker::input::canonical;
use crate::speaker::peer::socket_options;
use crate::speaker::{Effect, PeerConfig, PeerTarget, Speaker};
use crate::types::Prefix;

/// How long a peer of a range is remembered after its session, or its attempt at one: longer than the longest hold-down, so
/// that coming back does not clear it.
const LINGER: Duration = Duration::from_secs(120);

/// A range of addresses from which peers may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRange {
    /// Unique among ranges; the peers are named `NAME@ADDRESS`.
    pub name: String,
    /// Where they come from. Of several ranges with an address the narrowest takes it; a peer configured by address goes first.
    pub range: Prefix,
    /// So many at once; further ones are refused.
    pub max_peers: usize,
    /// What they are; name, address, port and `passive` are the range's business.
    pub template: PeerConfig,
}

/// A range as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeView {
    /// Configured name.
    pub name: String,
    /// Configured range.
    pub range: Prefix,
    /// Peers of it that are known now.
    pub peers: usize,
    /// How many there may be.
    pub max_peers: usize,
    /// Connections refused because there were so many already.
    pub refused: u64,
}

/// A configured range and what became of it.
#[derive(Debug)]
pub(super) struct Range {
    config: PeerRange,
    refused: u64,
}

/// What a peer of a range has besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) range: String,
    /// When it is forgotten; `None` while it has a connection.
    pub(super) leaves: Option<Instant>,
}

impl PeerRange {
    fn peer(&self, address: IpAddr) -> PeerConfig {
        PeerConfig {
            name: format!("{}@{address}", self.name),
            target: PeerTarget::Address(address),
            passive: true,
            ..self.template.clone()
        }
    }
}

impl Speaker {
    /// Adds a range or changes it. Its peers follow, as little disturbed as the change allows; those outside the new range get
    /// Cease (6/3).
    pub fn set_range(&mut self, now: Instant, config: PeerRange) {
        let (name, range) = (config.name.clone(), config.range);
        let old = self.ranges.get(&name);
        if old.is_some_and(|old| old.config == config) {
            return;
        }
        let refused = old.map_or(0, |old| old.refused);
        if let Some(moved) = old.map(|old| old.config.range).filter(|was| *was != range) {
            self.effects.push_back(Effect::ListenRange(moved, None));
        }
        self.ranges.insert(name.clone(), Range { config, refused });
        self.tell_ranges();
        for (member, address) in self.members(&name) {
            let stays = self.ranges[&name].config.peer(address);
            match range.contains_addr(address) {
                true => self.set_peer(now, stays),
                false => self.remove_peer(now, &member),
            }
        }
    }

    /// Removes a range and its peers (Cease 6/3).
    pub fn remove_range(&mut self, now: Instant, name: &str) {
        let Some(range) = self.ranges.remove(name) else { return };
        self.effects.push_back(Effect::ListenRange(range.config.range, None));
        for (member, _) in self.members(name) {
            self.remove_peer(now, &member);
        }
    }

    /// All ranges by name.
    pub fn ranges(&self) -> Vec<RangeView> {
        let view = |range: &Range| RangeView {
            name: range.config.name.clone(),
            range: range.config.range,
            peers: self.members(&range.config.name).len(),
            max_peers: range.config.max_peers,
            refused: range.refused,
        };
        self.ranges.values().map(view).collect()
    }

    /// What listeners need to know of the ranges.
    pub(super) fn tell_ranges(&mut self) {
        for Range { config, .. } in self.ranges.values() {
            let options = socket_options(&config.template, self.config.asn);
            self.effects.push_back(Effect::ListenRange(config.range, Some(options)));
        }
    }

    /// The peer for a connection from `address`, which nobody is configured at by himself: one is made if a range covers it and
    /// has room.
    pub(super) fn welcome(&mut self, now: Instant, address: IpAddr) -> Option<u32> {
        let address = canonical(address);
        let covering = self.ranges.values().filter(|r| r.config.range.contains_addr(address));
        let config = covering.max_by_key(|r| r.config.range.len())?.config.clone();
        let blocked = config.template.admin_blocked.is_some() || config.template.shutdown.is_some();
        if blocked || self.down_text().is_some() {
            return None;
        }
        if self.members(&config.name).len() >= config.max_peers && !self.make_room(now, &config.name) {
            self.ranges.get_mut(&config.name).expect("found just now").refused += 1;
            return None;
        }
        let peer = config.peer(address);
        let name = peer.name.clone();
        self.set_peer(now, peer);
        let id = *self.by_name.get(&name)?;
        let member = Membership { range: config.name, leaves: Some(now + LINGER) };
        self.peers[id as usize].as_mut().expect("named peers exist").member = Some(member);
        self.schedule(id);
        Some(id)
    }

    /// Notes whether a peer of a range is there, after each event of its session.
    pub(super) fn note_presence(&mut self, now: Instant, id: u32) {
        let Some(peer) = self.peers[id as usize].as_mut() else { return };
        let away = peer.session.state() < State::OpenSent;
        if let Some(member) = &mut peer.member {
            member.leaves = away.then(|| member.leaves.unwrap_or(now + LINGER));
        }
    }

    /// Forgets a peer of a range whose time has come. One whose routes are kept stays until they are gone.
    pub(super) fn forget_absent(&mut self, now: Instant, id: u32) {
        let gone = self.peer(id).filter(|p| p.leaving_at().is_some_and(|at| at <= now));
        if let Some(name) = gone.map(|p| p.config.name.clone()) {
            self.remove_peer(now, &name);
        }
    }

    /// Forgets the member that has been away longest and left no routes. Whether there was one.
    fn make_room(&mut self, now: Instant, range: &str) -> bool {
        let away =
            self.peers.iter().flatten().filter(|p| p.member.as_ref().is_some_and(|m| m.range == range));
        // A hold-down is respected: its peer could come back at once otherwise.
        let idle = away.filter(|p| p.session.state() != State::Idle);
        let oldest = idle.filter_map(|p| Some((p.leaving_at()?, p.config.name.clone()))).min();
        let Some((_, name)) = oldest else { return false };
        self.remove_peer(now, &name);
        true
    }

    fn members(&self, range: &str) -> Vec<(String, IpAddr)> {
        let members = self.peers.iter().flatten();
        let members = members.filter(|p| p.member.as_ref().is_some_and(|m| m.range == range));
        members.filter_map(|p| Some((p.config.name.clone(), p.remote?.ip))).collect()
    }
}
