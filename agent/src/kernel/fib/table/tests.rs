//! The books against a model of the kernel: whatever happens in whatever order, what is wanted is there in the end,
//! what is not ours is as its owner left it, and no deletion precedes a change of next hops.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::kernel::fib::NextHop;

const PREFIXES: u8 = 6;

fn net(index: u8) -> IpNetwork {
    IpNetwork::new([10, index, 0, 0].into(), 16).unwrap()
}

fn route(number: u8) -> Route {
    if number == 0 {
        return Route::Blackhole;
    }
    Route::via([NextHop { gateway: [192, 0, 2, number].into(), ifindex: u32::from(number % 2) }]).unwrap()
}

/// One event in the life of a table.
#[derive(Clone, Copy, Debug)]
enum Event {
    Set(u8, Option<u8>),
    /// So many jobs are written.
    Write(usize),
    /// So many jobs are sent and their answers lost; the table is read again.
    Lost(usize),
    /// Somebody deletes ours and is heard.
    Removed(u8),
    /// Somebody changes ours and is heard.
    Changed(u8, u8),
    /// The kernel takes ours and says nothing; the table is read again.
    Taken(u8),
    /// Another owner's route comes where there is none, or goes, and is heard.
    Other(u8, bool),
    /// The kernel refuses this one from now on, or no longer.
    Refusing(u8, bool),
    Retry,
    Sweep,
}

fn event() -> impl Strategy<Value = Event> {
    let prefix = 0..PREFIXES;
    prop_oneof![
        5 => (prefix.clone(), proptest::option::of(0..4u8)).prop_map(|(p, r)| Event::Set(p, r)),
        4 => (1..4usize).prop_map(Event::Write),
        1 => (1..4usize).prop_map(Event::Lost),
        1 => prefix.clone().prop_map(Event::Removed),
        1 => (prefix.clone(), 0..4u8).prop_map(|(p, r)| Event::Changed(p, r)),
        1 => prefix.clone().prop_map(Event::Taken),
        2 => (prefix.clone(), any::<bool>()).prop_map(|(p, b)| Event::Other(p, b)),
        2 => (prefix, any::<bool>()).prop_map(|(p, b)| Event::Refusing(p, b)),
        1 => Just(Event::Retry),
        1 => Just(Event::Sweep),
    ]
}

/// One slot a prefix at our metric, as the kernel has it with NLM_F_EXCL and NLM_F_REPLACE.
#[derive(Default)]
struct Kernel {
    ours: BTreeMap<IpNetwork, Route>,
    others: BTreeMap<IpNetwork, ()>,
    refusing: BTreeMap<IpNetwork, ()>,
}

struct World {
    table: Table,
    kernel: Kernel,
    wanted: BTreeMap<IpNetwork, Route>,
    now: Instant,
}

impl World {
    fn new(inherited: &[(u8, u8)]) -> Self {
        let mut kernel = Kernel::default();
        kernel.ours.extend(inherited.iter().map(|(p, r)| (net(*p), route(*r))));
        let mut world = Self { table: Table::new(), kernel, wanted: BTreeMap::new(), now: Instant::now() };
        world.read_again();
        world
    }

    fn refuse(errno: i32) -> Refusal {
        Refusal { errno, message: None }
    }

    /// Writes at most so many jobs; returns whether there were any.
    fn write(&mut self, max: usize, answers_arrive: bool) -> bool {
        let mut jobs = Vec::new();
        let mut written = Vec::new();
        self.table.next_batch(max, &mut jobs, |_, _, route| written.push(route.cloned()));
        let mut refusals = Vec::new();
        for (index, (job, route)) in jobs.iter().zip(written).enumerate() {
            if let Err(errno) = self.carry_out(job, route) {
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
        any
    }

    fn carry_out(&mut self, job: &Job, route: Option<Route>) -> Result<(), i32> {
        let Job { prefix, operation, .. } = job;
        match operation {
            Operation::Delete => self.kernel.ours.remove(prefix).map(drop).ok_or(libc::ESRCH),
            _ if self.kernel.refusing.contains_key(prefix) => Err(libc::ENETUNREACH),
            Operation::Add if self.kernel.ours.contains_key(prefix) => Err(libc::EEXIST),
            Operation::Add if self.kernel.others.contains_key(prefix) => Err(libc::EEXIST),
            Operation::Add | Operation::Replace => {
                assert!(
                    !self.kernel.others.contains_key(prefix),
                    "{prefix}: another owner's route is clobbered"
                );
                self.kernel.ours.insert(*prefix, route.expect("a write has a route"));
                Ok(())
            }
        }
    }

    fn read_again(&mut self) {
        self.table.begin_dump();
        for (prefix, route) in &self.kernel.ours {
            self.table.seen(*prefix, Some(route), Cause::Resync);
        }
        self.table.end_dump(Family::Ipv4, &Cause::Resync);
    }

    fn look_at_conflicts(&mut self) {
        for index in 0..PREFIXES {
            let prefix = net(index);
            if self.table.is_conflict(prefix) {
                if let Some(route) = self.kernel.ours.get(&prefix) {
                    self.table.adopt(prefix, Some(route));
                }
                if self.kernel.others.contains_key(&prefix) {
                    self.table.blame(prefix, "another owner");
                }
            }
        }
        self.table.conflicts_seen(Family::Ipv4);
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
            Event::Write(max) => drop(self.write(max, true)),
            Event::Lost(max) => drop(self.write(max, false)),
            Event::Removed(prefix) => {
                if self.kernel.ours.remove(&net(prefix)).is_some() {
                    self.table.changed(net(prefix), Held::Nothing, Cause::Removed { by: "x".to_owned() });
                }
            }
            Event::Changed(prefix, number) => {
                if let Some(held) = self.kernel.ours.get_mut(&net(prefix)) {
                    *held = route(number);
                    let cause = Cause::Changed { by: "x".to_owned() };
                    self.table.changed(net(prefix), Held::Route(&route(number)), cause);
                }
            }
            Event::Taken(prefix) => {
                self.kernel.ours.remove(&net(prefix));
                self.read_again();
            }
            Event::Other(prefix, true) => {
                // It replaces ours, as `ip route replace` does.
                self.kernel.ours.remove(&net(prefix));
                self.kernel.others.insert(net(prefix), ());
                self.table.changed(net(prefix), Held::Nothing, Cause::Changed { by: "x".to_owned() });
            }
            Event::Other(prefix, false) => {
                if self.kernel.others.remove(&net(prefix)).is_some() {
                    self.table.contest(net(prefix), false);
                }
            }
            Event::Refusing(prefix, true) => drop(self.kernel.refusing.insert(net(prefix), ())),
            Event::Refusing(prefix, false) => drop(self.kernel.refusing.remove(&net(prefix))),
            Event::Retry => self.table.retry_all(),
            Event::Sweep => self.table.sweep(Family::Ipv4),
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
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(512), ..ProptestConfig::default() })]

    #[test]
    fn what_is_wanted_is_there_in_the_end(
        inherited in vec((0..PREFIXES, 0..4u8), 0..4),
        events in vec(event(), 0..60),
    ) {
        let mut world = World::new(&inherited);
        for event in events {
            world.happen(event);
        }
        world.table.sweep(Family::Ipv4);
        world.rest();
        let blocked = |prefix: &IpNetwork, world: &World| {
            world.kernel.others.contains_key(prefix) || world.kernel.refusing.contains_key(prefix)
        };
        for (prefix, route) in &world.wanted {
            if world.kernel.ours.get(prefix) == Some(route) {
                prop_assert_eq!(world.table.state(*prefix), RouteState::Installed);
            } else {
                prop_assert!(blocked(prefix, &world), "{} is not there and nothing is in its way", prefix);
                let missing = matches!(world.table.state(*prefix), RouteState::Missing { .. });
                prop_assert!(missing, "{:?}", world.table.state(*prefix));
            }
        }
        for prefix in world.kernel.ours.keys() {
            prop_assert!(world.wanted.contains_key(prefix), "{} was left behind", prefix);
        }
        let there = world.wanted.iter().filter(|(prefix, route)| world.kernel.ours.get(prefix) == Some(route));
        prop_assert_eq!(world.table.stats().installed(Family::Ipv4), there.count());

        // Once nothing is in the way all is there, and once nothing is wanted nothing is left, not even in the books.
        world.kernel.refusing.clear();
        for index in 0..PREFIXES {
            world.happen(Event::Other(index, false));
        }
        world.rest();
        prop_assert_eq!(&world.kernel.ours, &world.wanted);
        prop_assert_eq!(world.table.stats().missing, 0);
        world.table.flush_all();
        world.rest();
        prop_assert!(world.kernel.ours.is_empty());
        prop_assert_eq!(world.table.entries.len(), 0);
        prop_assert_eq!(world.table.routes.iter().count(), 0, "all references were given back");
        prop_assert_eq!((world.table.lost.len(), world.table.contested.len()), (0, 0));
    }
}

#[test]
fn what_changes_while_it_waits_is_written_once() {
    let mut world = World::new(&[]);
    for number in [1, 2, 0, 3] {
        world.happen(Event::Set(1, Some(number)));
    }
    let mut jobs = Vec::new();
    world.table.next_batch(10, &mut jobs, |_, operation, written| {
        assert_eq!((operation, written), (Operation::Add, Some(&route(3))));
    });
    assert_eq!(jobs.len(), 1);
    // Another word while it is on its way: written again afterwards, as a replacement.
    world.happen(Event::Set(1, Some(1)));
    assert!(world.table.idle());
    world.table.complete(&mut jobs, &[], world.now);
    world.table.next_batch(10, &mut jobs, |_, operation, written| {
        assert_eq!((operation, written), (Operation::Replace, Some(&route(1))));
    });
    // And taken back while it is on its way.
    world.happen(Event::Set(1, None));
    world.table.complete(&mut jobs, &[], world.now);
    world.table.next_batch(10, &mut jobs, |_, operation, _| assert_eq!(operation, Operation::Delete));
    assert_eq!(jobs.len(), 1);
}

#[test]
fn a_change_and_back_before_it_is_written_costs_nothing() {
    let mut world = World::new(&[(1, 1)]);
    world.happen(Event::Set(1, Some(2)));
    world.happen(Event::Set(1, Some(1)));
    assert!(!world.write(10, true));
    assert_eq!(world.table.state(net(1)), RouteState::Installed);
    assert_eq!(world.table.stats().written, 0);
}

/// How many cases to try: `make soak` asks for more by PROPTEST_CASES.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(usual, |_| ProptestConfig::default().cases)
}

#[test]
fn a_retry_whose_answer_is_lost_is_tried_again() {
    let mut world = World::new(&[]);
    for event in
        [Event::Refusing(4, true), Event::Set(4, Some(0)), Event::Write(1), Event::Retry, Event::Lost(1)]
    {
        world.happen(event);
    }
    world.kernel.refusing.clear();
    world.rest();
    assert_eq!(world.kernel.ours, world.wanted);
}
