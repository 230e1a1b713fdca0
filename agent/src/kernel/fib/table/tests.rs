//! The books against a model of the kernel: whatever happens in whatever order, what is wanted is there in the end and leads
//! where it should, what is not ours is as its owner left it, no deletion precedes a change of next hops, and no object goes
//! while a route uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::kernel::fib::PROTOCOL;
use crate::kernel::fib::message::KernelHop;
use crate::kernel::fib::nexthops::ObjectOperation;
use crate::kernel::fib::object::Content;
use crate::kernel::fib::route::Neighbor;

const PREFIXES: u8 = 6;
/// Next hops 0 to 3; 0 and 2 leave by link 0, the others by link 1, unless they move.
const HOPS: u8 = 4;

fn net(index: u8) -> IpNetwork {
    IpNetwork::new([10, index, 0, 0].into(), 16).unwrap()
}

fn hop(number: u8) -> NextHop {
    NextHop { gateway: [192, 0, 2, number].into(), ifindex: 0 }
}

fn neighbor(number: u8, moved: bool) -> Neighbor {
    let gateway = [192, 0, 2, number + if moved { 100 } else { 0 }].into();
    Neighbor { gateway, ifindex: u32::from(number % 2), onlink: false }
}

/// What a next hop resolves to: a bit for its usual neighbor, for another one on the same link, and for one on the other link.
/// Next hops share none.
fn neighbors(number: u8, which: u8) -> Neighbors {
    let across = Neighbor { ifindex: 1 - u32::from(number % 2), ..neighbor(number + 200, false) };
    let all = [neighbor(number, false), neighbor(number, true), across];
    (0..3).filter(|bit| which & 1 << bit != 0).map(|bit| all[bit]).collect()
}

/// 0 is a blackhole, then one next hop, then two, then one with a backup.
fn route(number: u8) -> Route {
    let pair = |a: u8| [hop(a), hop((a + 1) % HOPS)];
    match number {
        0 => Route::Blackhole,
        1..=4 => Route::via([hop(number - 1)]).unwrap(),
        5..=8 => Route::via(pair(number - 5)).unwrap(),
        _ => {
            let [a, b] = pair((number - 9) % HOPS);
            Route::via([a]).unwrap().with_backup(Some(b))
        }
    }
}

/// How many there are.
const ROUTES: u8 = 13;

/// One event in the life of a table.
#[derive(Clone, Copy, Debug)]
enum Event {
    Set(u8, Option<u8>),
    /// A next hop resolves to these of its neighbours.
    Resolve(u8, u8),
    /// A turn of the writer with at most so many routes.
    Write(usize),
    /// The same, with the answers lost; everything is read again.
    Lost(usize),
    /// Somebody deletes ours and is heard.
    Removed(u8),
    /// Somebody changes ours and is heard.
    Changed(u8),
    /// The kernel takes ours and says nothing; the table is read again.
    Taken(u8),
    /// Another owner's route comes where there is none, or goes, and is heard.
    Other(u8, bool),
    /// The kernel refuses this one from now on, or no longer.
    Refusing(u8, bool),
    /// A link goes with its objects and the routes that used them; objects are read again. Or it returns.
    Link(u32, bool),
    /// Somebody deletes one of our objects and is heard.
    ObjectRemoved(u8),
    Retry,
    Sweep,
}

fn event() -> impl Strategy<Value = Event> {
    let prefix = 0..PREFIXES;
    prop_oneof![
        6 => (prefix.clone(), proptest::option::of(0..ROUTES)).prop_map(|(p, r)| Event::Set(p, r)),
        3 => (0..HOPS, 0..8u8).prop_map(|(h, which)| Event::Resolve(h, which)),
        5 => (1..4usize).prop_map(Event::Write),
        1 => (1..4usize).prop_map(Event::Lost),
        1 => prefix.clone().prop_map(Event::Removed),
        1 => prefix.clone().prop_map(Event::Changed),
        1 => prefix.clone().prop_map(Event::Taken),
        2 => (prefix.clone(), any::<bool>()).prop_map(|(p, b)| Event::Other(p, b)),
        2 => (prefix, any::<bool>()).prop_map(|(p, b)| Event::Refusing(p, b)),
        2 => (0..2u32, any::<bool>()).prop_map(|(l, b)| Event::Link(l, b)),
        1 => any::<u8>().prop_map(Event::ObjectRemoved),
        1 => Just(Event::Retry),
        1 => Just(Event::Sweep),
    ]
}

/// What a route in the model is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Blackhole,
    Object(u32),
    Inline(Vec<Neighbor>),
}

impl Held {
    fn new(spelling: Spelling<'_>) -> Self {
        match spelling {
            Spelling::Blackhole => Self::Blackhole,
            Spelling::Object(id) => Self::Object(id),
            Spelling::Inline(hops) => Self::Inline(hops.to_vec()),
        }
    }

    fn told(&self, prefix: IpNetwork) -> KernelRoute {
        let hops = match self {
            Self::Inline(hops) => hops
                .iter()
                .map(|hop| KernelHop {
                    ifindex: hop.ifindex,
                    gateway: Some(hop.gateway),
                    weight: 0,
                    onlink: false,
                })
                .collect(),
            _ => Vec::new(),
        };
        KernelRoute {
            prefix,
            protocol: PROTOCOL,
            metric: 77,
            table: 254,
            blackhole: *self == Self::Blackhole,
            unicast: *self != Self::Blackhole,
            next_hop: if let Self::Object(id) = self { Some(*id) } else { None },
            hops,
        }
    }
}

/// One slot a prefix at our metric, as the kernel has it with NLM_F_EXCL and NLM_F_REPLACE, and our objects.
#[derive(Default)]
struct Kernel {
    ours: BTreeMap<IpNetwork, Held>,
    objects: BTreeMap<u32, Content>,
    others: BTreeSet<IpNetwork>,
    refusing: BTreeSet<IpNetwork>,
    down: BTreeSet<u32>,
}

impl Kernel {
    /// An object goes: out of its groups, and with it the groups that it leaves empty and the routes that used them.
    fn remove_object(&mut self, id: u32) {
        self.objects.remove(&id);
        self.ours.retain(|_, held| *held != Held::Object(id));
        let mut empty = Vec::new();
        for (group, content) in &mut self.objects {
            if let Content::Members(members) = content {
                members.retain(|member| *member != id);
                if members.is_empty() {
                    empty.push(*group);
                }
            }
        }
        empty.into_iter().for_each(|group| self.remove_object(group));
    }

    fn on_link(&self, content: &Content, link: u32) -> bool {
        matches!(content, Content::Neighbor(neighbor) if neighbor.ifindex == link)
    }

    fn put_object(&mut self, id: u32, content: &Content) -> Result<(), i32> {
        let possible = match content {
            Content::Neighbor(neighbor) => !self.down.contains(&neighbor.ifindex),
            Content::Members(members) => members.iter().all(|member| self.objects.contains_key(member)),
            Content::Strange => false,
        };
        possible.then(|| drop(self.objects.insert(id, content.clone()))).ok_or(libc::ENETDOWN)
    }

    /// The neighbours that packets for a prefix go to; empty: dropped. `None`: no route.
    fn leads_to(&self, prefix: IpNetwork) -> Option<BTreeSet<Neighbor>> {
        let single = |id: &u32| match self.objects.get(id) {
            Some(Content::Neighbor(neighbor)) => Some(*neighbor),
            _ => None,
        };
        Some(match self.ours.get(&prefix)? {
            Held::Blackhole => BTreeSet::new(),
            Held::Inline(hops) => hops.iter().copied().collect(),
            Held::Object(id) => match &self.objects[id] {
                Content::Members(members) => members.iter().filter_map(single).collect(),
                _ => single(id).into_iter().collect(),
            },
        })
    }
}

struct World {
    table: Table,
    kernel: Kernel,
    wanted: BTreeMap<IpNetwork, Route>,
    resolved: BTreeMap<NextHop, Neighbors>,
    now: Instant,
}

impl World {
    fn new(objects: bool) -> Self {
        let mut table = Table::new();
        if !objects {
            table.without_objects();
        }
        let mut world = Self {
            table,
            kernel: Kernel::default(),
            wanted: BTreeMap::new(),
            resolved: BTreeMap::new(),
            now: Instant::now(),
        };
        (0..HOPS).for_each(|hop| world.happen(Event::Resolve(hop, 1)));
        world
    }

    /// The process ends, and another finds what it left. It knows the same before it asks for anything.
    fn restart(&mut self) {
        let objects = self.table.next_hops.uses_objects();
        self.table = Table::new();
        if !objects {
            self.table.without_objects();
        }
        self.read_again();
        self.table.resolve(self.resolved.clone());
        for (prefix, route) in self.wanted.clone() {
            self.table.set(prefix, Some(&route));
        }
    }

    fn refuse(errno: i32) -> Refusal {
        Refusal { errno, message: None }
    }

    fn write_objects(&mut self, answers_arrive: bool) {
        while self.table.has_objects() {
            let mut jobs = Vec::new();
            self.table.next_objects(&mut jobs);
            let mut refusals = Vec::new();
            for (index, job) in jobs.iter().enumerate() {
                let done = match (job.operation, &job.content) {
                    (ObjectOperation::Delete, _) => {
                        let used = self.kernel.ours.values().any(|held| *held == Held::Object(job.id));
                        assert!(!used, "an object goes while a route uses it");
                        self.kernel.remove_object(job.id);
                        Ok(())
                    }
                    (ObjectOperation::Create, Some(content)) => {
                        assert!(!self.kernel.objects.contains_key(&job.id));
                        self.kernel.put_object(job.id, content)
                    }
                    (_, Some(content)) => match self.kernel.objects.contains_key(&job.id) {
                        true => self.kernel.put_object(job.id, content),
                        false => Err(libc::ENOENT),
                    },
                    (_, None) => unreachable!("a write has content"),
                };
                refusals.extend(done.err().map(|errno| (index, Self::refuse(errno))));
            }
            if answers_arrive {
                self.table.complete_objects(&mut jobs, &refusals, self.now);
            } else {
                self.table.give_back_objects(&mut jobs);
                return self.read_again();
            }
        }
    }

    /// A turn of the writer; returns whether there was anything to do.
    fn write(&mut self, max: usize, answers_arrive: bool) -> bool {
        self.write_objects(answers_arrive);
        let mut jobs = Vec::new();
        let mut written = Vec::new();
        self.table.next_batch(max, &mut jobs, |prefix, operation, route| {
            written.push((prefix, operation, route.map(Held::new)));
        });
        let mut refusals = Vec::new();
        for (index, (prefix, operation, route)) in written.into_iter().enumerate() {
            if let Err(errno) = self.carry_out(prefix, operation, route) {
                refusals.push((index, Self::refuse(errno)));
            }
        }
        let any = !jobs.is_empty();
        if answers_arrive {
            self.table.complete(&mut jobs, &refusals, self.now);
        } else {
            self.table.give_back(&mut jobs);
            self.read_again();
        }
        any || self.table.has_objects()
    }

    fn carry_out(&mut self, prefix: IpNetwork, operation: Operation, route: Option<Held>) -> Result<(), i32> {
        if let Some(Held::Object(id)) = &route
            && !self.kernel.objects.contains_key(id)
        {
            return Err(libc::EINVAL);
        }
        match operation {
            Operation::Delete => self.kernel.ours.remove(&prefix).map(drop).ok_or(libc::ESRCH),
            _ if self.kernel.refusing.contains(&prefix) => Err(libc::ENETUNREACH),
            Operation::Add if self.kernel.ours.contains_key(&prefix) => Err(libc::EEXIST),
            Operation::Add if self.kernel.others.contains(&prefix) => Err(libc::EEXIST),
            Operation::Add | Operation::Replace => {
                assert!(
                    !self.kernel.others.contains(&prefix),
                    "{prefix}: another owner's route is clobbered"
                );
                self.kernel.ours.insert(prefix, route.expect("a write has a route"));
                Ok(())
            }
        }
    }

    fn read_objects(&mut self, cause: &Cause) {
        self.table.begin_objects();
        for (id, content) in self.kernel.objects.clone() {
            let found = KernelObject { id, protocol: PROTOCOL, content, ifindex: 0 };
            self.table.object_seen(found, true, cause.clone(), self.now);
        }
        self.table.end_objects();
    }

    fn read_again(&mut self) {
        self.read_objects(&Cause::Resync);
        self.table.begin_dump(Family::Ipv4);
        for (prefix, held) in &self.kernel.ours {
            self.table.seen(&held.told(*prefix), Cause::Resync, self.now);
        }
        self.table.end_dump(Family::Ipv4, &Cause::Resync, self.now);
    }

    fn look_at_conflicts(&mut self) {
        for index in 0..PREFIXES {
            let prefix = net(index);
            if self.table.is_conflict(prefix) {
                if let Some(held) = self.kernel.ours.get(&prefix) {
                    self.table.adopt(&held.told(prefix), self.now);
                }
                if self.kernel.others.contains(&prefix) {
                    self.table.blame(prefix, "another owner");
                }
            }
        }
        self.table.conflicts_seen(Family::Ipv4);
    }

    fn changed(&mut self, prefix: IpNetwork) {
        let cause = Cause::Changed { by: "x".to_owned() };
        let held = self.kernel.ours.get(&prefix).map(|held| held.told(prefix));
        self.table.changed(prefix, held.as_ref(), cause, self.now);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Set(prefix, wanted) => {
                let wanted = wanted.map(route);
                self.table.set(net(prefix), wanted.as_ref());
                match wanted {
                    Some(route) => drop(self.wanted.insert(net(prefix), route)),
                    None => drop(self.wanted.remove(&net(prefix))),
                }
            }
            Event::Resolve(number, which) => {
                self.table.resolve([(hop(number), neighbors(number, which))]);
                self.resolved.insert(hop(number), neighbors(number, which));
            }
            Event::Write(max) => drop(self.write(max, true)),
            Event::Lost(max) => drop(self.write(max, false)),
            Event::Removed(prefix) => {
                if self.kernel.ours.remove(&net(prefix)).is_some() {
                    self.changed(net(prefix));
                }
            }
            Event::Changed(prefix) => {
                if let Some(held) = self.kernel.ours.get_mut(&net(prefix)) {
                    *held = Held::Inline(vec![neighbor(99, false)]);
                    self.changed(net(prefix));
                }
            }
            Event::Taken(prefix) => {
                self.kernel.ours.remove(&net(prefix));
                self.read_again();
            }
            Event::Other(prefix, true) => {
                // It replaces ours, as `ip route replace` does.
                self.kernel.ours.remove(&net(prefix));
                self.kernel.others.insert(net(prefix));
                self.changed(net(prefix));
            }
            Event::Other(prefix, false) => {
                if self.kernel.others.remove(&net(prefix)) {
                    self.table.contest(net(prefix), false);
                }
            }
            Event::Refusing(prefix, true) => drop(self.kernel.refusing.insert(net(prefix))),
            Event::Refusing(prefix, false) => drop(self.kernel.refusing.remove(&net(prefix))),
            Event::Link(link, false) => {
                self.kernel.down.insert(link);
                let objects = self.kernel.objects.iter();
                let gone: Vec<u32> = objects
                    .filter(|(_, content)| self.kernel.on_link(content, link))
                    .map(|(id, _)| *id)
                    .collect();
                gone.into_iter().for_each(|id| self.kernel.remove_object(id));
                self.kernel.ours.retain(
                    |_, held| !matches!(held, Held::Inline(hops) if hops.iter().all(|hop| hop.ifindex == link)),
                );
                self.table.retry_all();
                self.read_objects(&Cause::Link);
                self.read_again();
            }
            Event::Link(link, true) => {
                self.kernel.down.remove(&link);
                self.table.retry_all();
            }
            Event::ObjectRemoved(which) => {
                let at = usize::from(which) % self.kernel.objects.len().max(1);
                let Some(id) = self.kernel.objects.keys().nth(at).copied() else { return };
                self.kernel.remove_object(id);
                self.table.object_gone(id, Cause::Removed { by: "x".to_owned() }, self.now);
                // Of its groups the kernel tells as well; here a reading does.
                self.read_objects(&Cause::Resync);
            }
            Event::Retry => self.table.retry_all(),
            Event::Sweep => Family::BOTH.into_iter().for_each(|family| self.table.sweep(family)),
        }
    }

    /// Lets everything come to rest.
    fn rest(&mut self) {
        for _ in 0..10 {
            while self.write(2, true) {}
            self.look_at_conflicts();
            self.now += Duration::from_secs(20);
            self.table.retry_due(self.now);
        }
        while self.write(2, true) {}
        self.look_at_conflicts();
    }

    fn usable(&self, hop: &NextHop) -> Vec<Neighbor> {
        // Without objects the kernel of this model takes a route over a link that is down.
        let up = |neighbor: &&Neighbor| {
            !self.table.next_hops.uses_objects() || !self.kernel.down.contains(&neighbor.ifindex)
        };
        self.resolved[hop].iter().filter(up).copied().collect()
    }

    /// Where a route should lead now; `None`: it cannot be in the kernel, or it does not matter where it leads.
    fn should_lead_to(&self, route: &Route) -> Option<BTreeSet<Neighbor>> {
        let Route::Unicast { hops, backup } = route else { return Some(BTreeSet::new()) };
        let mut ways: BTreeSet<_> = hops.iter().flat_map(|hop| self.usable(hop)).collect();
        if ways.is_empty() {
            ways.extend(backup.iter().flat_map(|hop| self.usable(hop)));
        }
        (!ways.is_empty()).then_some(ways)
    }
}

/// The kernel takes the last member of a group along with the group and its routes.
#[test]
fn a_member_of_a_predecessors_group_stays_while_a_route_uses_the_group() {
    let mut world = World::new(true);
    for event in [Event::Resolve(1, 0), Event::Set(0, Some(9)), Event::Write(1), Event::Resolve(0, 0)] {
        world.happen(event);
    }
    let held = world.kernel.ours.clone();
    assert_eq!(held.len(), 1, "it was written");
    world.restart();
    world.happen(Event::Sweep);
    world.rest();
    assert_eq!(world.kernel.ours, held, "nothing better is known than what is there");
    assert!(world.kernel.leads_to(net(0)).is_some());
    world.happen(Event::Set(0, None));
    world.rest();
    assert!(world.kernel.ours.is_empty() && world.kernel.objects.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(512), ..ProptestConfig::default() })]

    #[test]
    fn what_is_wanted_is_there_in_the_end(
        objects in any::<bool>(),
        before in vec(event(), 0..20),
        events in vec(event(), 0..60),
        which_in_the_end in 1..8u8,
    ) {
        let mut world = World::new(objects);
        for event in before {
            world.happen(event);
        }
        world.restart();
        for event in events {
            world.happen(event);
        }
        world.happen(Event::Sweep);
        world.rest();
        let blocked = |prefix: &IpNetwork, world: &World| {
            world.kernel.others.contains(prefix) || world.kernel.refusing.contains(prefix)
        };
        for (prefix, route) in &world.wanted {
            let (leads, should) = (world.kernel.leads_to(*prefix), world.should_lead_to(route));
            let state = world.table.state(*prefix, world.now);
            if should.is_none() {
                // Nothing better is known than what is there.
            } else if blocked(prefix, &world) {
                let missing = matches!(state, RouteState::Missing { .. });
                prop_assert!(missing || leads == should, "{:?}", state);
            } else {
                prop_assert_eq!((leads, state), (should, RouteState::Installed));
            }
        }
        for prefix in world.kernel.ours.keys() {
            prop_assert!(world.wanted.contains_key(prefix), "{} was left behind", prefix);
        }
        let installed = world.wanted.keys().filter(|p| world.table.state(**p, world.now) == RouteState::Installed);
        prop_assert_eq!(world.table.stats().installed(Family::Ipv4), installed.count());

        // Once nothing is in the way all is there, and once nothing is wanted nothing is left, not even in the books.
        world.kernel.refusing.clear();
        for index in 0..PREFIXES {
            world.happen(Event::Other(index, false));
        }
        [0, 1].into_iter().for_each(|link| world.happen(Event::Link(link, true)));
        (0..HOPS).for_each(|hop| world.happen(Event::Resolve(hop, which_in_the_end)));
        world.rest();
        for (prefix, route) in &world.wanted {
            prop_assert_eq!(world.kernel.leads_to(*prefix), world.should_lead_to(route));
        }
        prop_assert_eq!(world.kernel.ours.len(), world.wanted.len());
        prop_assert_eq!(world.table.stats().missing, 0);
        world.table.flush_all();
        world.rest();
        prop_assert!(world.kernel.ours.is_empty() && world.kernel.objects.is_empty());
        prop_assert_eq!(world.table.books.len(), 0);
        prop_assert!(world.table.next_hops.is_void(), "all references were given back");
        prop_assert_eq!((world.table.lost.len(), world.table.contested.len(), world.table.parked), (0, 0, 0));
    }

    /// Promise 2: a fresh process keeps what is right, objects and groups alike.
    #[test]
    fn a_restart_writes_nothing_where_nothing_has_changed(
        objects in any::<bool>(),
        wanted in vec(0..ROUTES, 1..6),
        ways in vec(1..8u8, HOPS as usize),
        dead in proptest::option::of(0..HOPS),
    ) {
        let mut world = World::new(objects);
        (0..HOPS).zip(ways).for_each(|(hop, which)| world.happen(Event::Resolve(hop, which)));
        for (prefix, number) in wanted.into_iter().enumerate() {
            world.happen(Event::Set(prefix as u8, Some(number)));
        }
        world.rest();
        if let Some(dead) = dead {
            world.happen(Event::Resolve(dead, 0));
            world.rest();
        }
        // What leads nowhere would be taken away by those who say what is wanted.
        let lost: Vec<_> = world.wanted.iter().filter(|(_, r)| world.should_lead_to(r).is_none()).map(|(p, _)| *p).collect();
        for prefix in lost {
            world.wanted.remove(&prefix);
            world.table.set(prefix, None);
        }
        world.rest();
        let routes = world.kernel.ours.clone();
        world.restart();
        while world.write(2, true) {}
        prop_assert_eq!(world.table.stats().written, 0);
        world.happen(Event::Sweep);
        world.rest();
        prop_assert_eq!(&world.kernel.ours, &routes);
        prop_assert_eq!((world.table.stats().written, world.table.stats().deleted), (0, 0));
    }
}

#[test]
fn what_changes_while_it_waits_is_written_once() {
    let mut world = World::new(false);
    for number in [1, 2, 0, 3] {
        world.happen(Event::Set(1, Some(number)));
    }
    let way = |number| [neighbor(number, false)];
    let mut jobs = Vec::new();
    world.table.next_batch(10, &mut jobs, |_, operation, written| {
        assert_eq!((operation, written), (Operation::Add, Some(Spelling::Inline(&way(2)))));
    });
    assert_eq!(jobs.len(), 1);
    // Another word while it is on its way: written again afterwards, as a replacement.
    world.happen(Event::Set(1, Some(1)));
    assert!(world.table.idle());
    world.table.complete(&mut jobs, &[], world.now);
    world.table.next_batch(10, &mut jobs, |_, operation, written| {
        assert_eq!((operation, written), (Operation::Replace, Some(Spelling::Inline(&way(0)))));
    });
    // And taken back while it is on its way.
    world.happen(Event::Set(1, None));
    world.table.complete(&mut jobs, &[], world.now);
    world.table.next_batch(10, &mut jobs, |_, operation, _| assert_eq!(operation, Operation::Delete));
    assert_eq!(jobs.len(), 1);
}

#[test]
fn a_change_and_back_before_it_is_written_costs_nothing() {
    let mut world = World::new(true);
    world.happen(Event::Set(1, Some(1)));
    world.rest();
    world.happen(Event::Set(1, Some(2)));
    world.happen(Event::Set(1, Some(1)));
    world.rest();
    assert_eq!(world.table.state(net(1), world.now), RouteState::Installed);
    assert_eq!(world.table.stats().written, 1);
}

#[test]
fn a_next_hop_that_moves_or_dies_costs_no_route() {
    let mut world = World::new(true);
    world.happen(Event::Set(0, Some(1)));
    world.happen(Event::Set(1, Some(5)));
    world.happen(Event::Set(2, Some(9)));
    world.rest();
    let written = world.table.stats().written;
    for to in [2, 0] {
        world.happen(Event::Resolve(0, to));
        world.write_objects(true);
        assert!(world.table.idle());
        for prefix in [1, 2] {
            let route = world.wanted[&net(prefix)].clone();
            assert_eq!(world.kernel.leads_to(net(prefix)), world.should_lead_to(&route));
        }
    }
    assert_eq!(world.table.stats().written, written);
}

/// An object whose change the kernel refuses still leads to where its next hop was: no group is to send there.
#[test]
fn a_next_hop_that_moves_to_a_link_that_is_down_is_left_out_of_its_groups() {
    let mut world = World::new(true);
    for event in [
        Event::Resolve(3, 0b100),
        Event::Set(0, Some(7)),
        Event::Write(1),
        Event::Link(1, false),
        Event::Resolve(3, 0b001),
    ] {
        world.happen(event);
    }
    world.rest();
    let route = world.wanted[&net(0)].clone();
    assert_eq!(world.should_lead_to(&route).map(|ways| ways.len()), Some(1));
    assert_eq!(world.kernel.leads_to(net(0)), world.should_lead_to(&route));
    world.happen(Event::Link(1, true));
    world.rest();
    assert_eq!(world.should_lead_to(&route).map(|ways| ways.len()), Some(2));
    assert_eq!(world.kernel.leads_to(net(0)), world.should_lead_to(&route));
}

/// A next hop behind several gateways: routes are written anew when it becomes several, and never for what happens to one of them.
#[test]
fn one_gateway_of_several_that_comes_goes_or_moves_costs_no_route() {
    let mut world = World::new(true);
    for prefix in 0..3 {
        world.happen(Event::Set(prefix, Some([1, 5, 9][usize::from(prefix)])));
    }
    world.rest();
    world.happen(Event::Resolve(0, 0b011));
    world.write_objects(true);
    let (reached, route) = (world.kernel.leads_to(net(0)), world.wanted[&net(0)].clone());
    assert_eq!(reached.map(|ways| ways.len()), Some(1), "until the routes have been written it is one");
    world.rest();
    assert_eq!(world.kernel.leads_to(net(0)), world.should_lead_to(&route));
    let written = world.table.stats().written;
    for which in [0b111, 0b101, 0b100, 0b110, 0, 0b010, 0b001] {
        world.happen(Event::Resolve(0, which));
        world.write_objects(true);
        assert!(world.table.idle(), "{which:b}");
        for (prefix, route) in world.wanted.clone() {
            let should = world.should_lead_to(&route);
            assert!(should.is_none() || world.kernel.leads_to(prefix) == should, "{which:b} {prefix}");
        }
    }
    assert_eq!(world.table.stats().written, written);
}

/// How many cases to try: `make soak` asks for more by PROPTEST_CASES.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(usual, |_| ProptestConfig::default().cases)
}

#[test]
fn a_retry_whose_answer_is_lost_is_tried_again() {
    let mut world = World::new(true);
    for event in
        [Event::Refusing(4, true), Event::Set(4, Some(0)), Event::Write(1), Event::Retry, Event::Lost(1)]
    {
        world.happen(event);
    }
    world.kernel.refusing.clear();
    world.rest();
    assert_eq!(world.kernel.ours, BTreeMap::from([(net(4), Held::Blackhole)]));
}
