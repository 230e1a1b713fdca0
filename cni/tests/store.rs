//! The store under use, misuse, crashes and threads. No kernel but a file system.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;

use ipnetwork::IpNetwork;
use manx_cni::ipam::{COOL_DOWN, Pool};
use manx_cni::names::Key;
use manx_cni::reader::Reader;
use manx_cni::store::{Attachment, Store, StoreError, Wanted};
use proptest::prelude::*;
use tempfile::TempDir;

const NOW: u64 = 1_000_000;

struct Room {
    dir: TempDir,
    store: Store,
    pools: Vec<Pool>,
}

impl Room {
    fn new(cidrs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let cidrs: Vec<IpNetwork> = cidrs.iter().map(|c| c.parse().unwrap()).collect();
        let pools =
            [true, false].map(|v4| Pool::new(&cidrs, v4)).into_iter().filter(|p| !p.is_empty()).collect();
        Self { dir, store, pools }
    }

    fn reserve(&self, id: &str, now: u64) -> Result<Vec<String>, StoreError> {
        self.reserve_fixed(id, &[], &self.pools, now)
    }

    fn reserve_fixed(
        &self,
        id: &str,
        fixed: &[&str],
        pools: &[Pool],
        now: u64,
    ) -> Result<Vec<String>, StoreError> {
        let fixed: Vec<IpAddr> = fixed.iter().map(|ip| ip.parse().unwrap()).collect();
        let key = Key::new(id, "eth0");
        let wanted = Wanted { key: &key, network: "net", interface: "manx0", fixed: &fixed, pools };
        Ok(self.store.reserve(&wanted, now)?.iter().map(ToString::to_string).collect())
    }

    fn release(&self, id: &str, now: u64) {
        self.store.release(&Key::new(id, "eth0"), now).unwrap();
    }

    fn names(&self, room: &str) -> BTreeSet<String> {
        names(&self.dir.path().join("ipam").join(room))
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn attachment(id: &str) -> Attachment {
    Attachment {
        container_id: id.to_owned(),
        ifname: "eth0".to_owned(),
        network: Some("net".to_owned()),
        netns: None,
        namespace: Some("ns".to_owned()),
        pod: Some("pod".to_owned()),
        uid: None,
        interface: "manx0".to_owned(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        created: NOW,
    }
}

#[test]
fn both_families_come_together_and_ipv4_first() {
    let room = Room::new(&["fd00::/64", "10.0.0.0/24"]);
    assert_eq!(room.reserve("a", NOW).unwrap(), ["10.0.0.1", "fd00::1"]);
    assert_eq!(room.reserve("b", NOW).unwrap(), ["10.0.0.2", "fd00::2"]);
}

#[test]
fn when_one_family_is_exhausted_none_is_held() {
    let room = Room::new(&["fd00::/64", "10.0.0.0/31"]);
    room.reserve("a", NOW).unwrap();
    room.reserve("b", NOW).unwrap();
    assert!(matches!(room.reserve("c", NOW), Err(StoreError::Exhausted { family: "IPv4", total: 2 })));
    assert_eq!(room.names("addresses").len(), 4);
    assert_eq!(room.names("owners").len(), 2);
}

#[test]
fn when_an_address_cannot_be_taken_the_others_are_rolled_back() {
    let room = Room::new(&["fd00::/64", "10.0.0.0/24"]);
    // A file where the symlink of an owner would lie: the very first step fails.
    fs::write(room.dir.path().join("ipam/owners/a:eth0"), "").unwrap();
    assert!(matches!(room.reserve("a", NOW), Err(StoreError::Io { .. })));
    assert!(room.names("addresses").is_empty());
}

#[test]
fn a_released_address_rests_for_30_seconds() {
    let room = Room::new(&["10.0.0.0/30"]);
    assert_eq!(room.reserve("a", NOW).unwrap(), ["10.0.0.1"]);
    room.release("a", NOW);
    // Round robin goes on with .2, and .1 comes only when it has rested.
    assert_eq!(room.reserve("b", NOW).unwrap(), ["10.0.0.2"]);
    room.release("b", NOW + 10);
    let [pool] = room.store.pools(&["10.0.0.0/30".parse().unwrap()], NOW + 10).unwrap().try_into().unwrap();
    assert_eq!((pool.total, pool.used, pool.cooling, pool.free), (2, 0, 2, 0));
    assert_eq!(room.reserve("c", NOW + COOL_DOWN).unwrap(), ["10.0.0.1"]);
}

#[test]
fn the_longest_rested_address_is_given_first_when_all_rest() {
    let room = Room::new(&["10.0.0.0/29"]);
    for (i, id) in ["a", "b", "c", "d", "e", "f"].iter().enumerate() {
        assert_eq!(room.reserve(id, NOW).unwrap(), [format!("10.0.0.{}", i + 1)]);
    }
    room.release("c", NOW + 1);
    room.release("e", NOW);
    room.release("a", NOW + 2);
    assert_eq!(room.reserve("g", NOW + 3).unwrap(), ["10.0.0.5"]);
    assert_eq!(room.reserve("h", NOW + 3).unwrap(), ["10.0.0.3"]);
    assert_eq!(room.reserve("i", NOW + 3).unwrap(), ["10.0.0.1"]);
    assert!(matches!(room.reserve("j", NOW + 3), Err(StoreError::Exhausted { .. })));
}

#[test]
fn an_address_that_was_given_while_it_rested_rests_again_from_its_last_release() {
    let room = Room::new(&["10.0.0.0/31"]);
    room.reserve("a", NOW).unwrap();
    room.reserve("b", NOW).unwrap();
    room.release("a", NOW);
    assert_eq!(room.reserve("c", NOW + 20).unwrap(), ["10.0.0.0"]);
    room.release("c", NOW + 20);
    room.release("b", NOW + 10);
    let [pool] = room.store.pools(&["10.0.0.0/31".parse().unwrap()], NOW + 35).unwrap().try_into().unwrap();
    assert_eq!(pool.cooling, 2);
    assert_eq!(room.reserve("d", NOW + 36).unwrap(), ["10.0.0.1"], "released first");
}

#[test]
fn what_has_rested_is_forgotten() {
    let room = Room::new(&["fd00::/64"]);
    for i in 0..600 {
        let id = format!("c{i}");
        room.reserve(&id, NOW + i).unwrap();
        room.release(&id, NOW + i);
    }
    let quarters = room.names("cooling");
    assert!(quarters.len() <= 4, "{quarters:?}");
}

#[test]
fn release_goes_by_identity_and_not_by_todays_ranges() {
    let room = Room::new(&["10.0.0.0/24"]);
    room.reserve("a", NOW).unwrap();
    let tomorrow = Pool::new(&["10.9.0.0/24".parse().unwrap()], true);
    assert_eq!(room.reserve_fixed("b", &[], &[tomorrow], NOW).unwrap(), ["10.9.0.1"]);
    room.release("a", NOW);
    assert_eq!(room.names("addresses"), BTreeSet::from(["10.9.0.1".to_owned()]));
    assert_eq!(room.names("owners"), BTreeSet::from(["b:eth0".to_owned()]));
}

#[test]
fn release_twice_or_of_nothing_is_no_error() {
    let room = Room::new(&["10.0.0.0/24"]);
    room.reserve("a", NOW).unwrap();
    room.release("a", NOW);
    room.release("a", NOW);
    room.release("never", NOW);
    assert!(room.names("owners").is_empty());
}

#[test]
fn a_fixed_address_needs_no_rest_and_moves_no_cursor() {
    let room = Room::new(&["10.0.0.0/24"]);
    assert_eq!(room.reserve_fixed("a", &["10.0.0.9"], &[], NOW).unwrap(), ["10.0.0.9"]);
    assert!(matches!(room.reserve_fixed("b", &["10.0.0.9"], &[], NOW), Err(StoreError::Held { .. })));
    room.release("a", NOW);
    assert_eq!(room.reserve_fixed("b", &["10.0.0.9"], &[], NOW).unwrap(), ["10.0.0.9"]);
    assert_eq!(room.reserve("c", NOW).unwrap(), ["10.0.0.1"]);
}

#[test]
fn thousands_of_held_addresses_are_stepped_over() {
    let room = Room::new(&["10.0.0.0/20"]);
    // All but the last, as a full turn of round robin would leave them.
    for i in 1..4094_u32 {
        let ip = IpAddr::from((0x0a00_0000 + i).to_be_bytes());
        symlink("other:eth0", room.dir.path().join(format!("ipam/addresses/{ip}"))).unwrap();
    }
    assert_eq!(room.reserve("a", NOW).unwrap(), ["10.0.15.254"]);
    assert!(matches!(room.reserve("b", NOW), Err(StoreError::Exhausted { total: 4094, .. })));
}

#[test]
fn a_reader_sees_what_comes_goes_and_comes_back() {
    let room = Room::new(&["10.0.0.0/24"]);
    let mut reader = Reader::new(room.store.clone());
    let seen = |reader: &mut Reader| reader.read().unwrap().cloned().collect::<Vec<_>>();
    let publish = |attachment: &Attachment| {
        let mut pending = room.store.begin(&Key::new(&attachment.container_id, "eth0")).unwrap();
        pending.publish(attachment).unwrap();
        assert!(pending.finish().unwrap());
    };
    assert_eq!(seen(&mut reader), []);
    publish(&attachment("a"));
    publish(&attachment("b"));
    assert_eq!(seen(&mut reader), [attachment("a"), attachment("b")]);
    // What it has read it does not open again: a file that nobody may replace in place tells.
    let path = room.store.watch_dir().join("a:eth0");
    let before = fs::metadata(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace('{', "[")).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(seen(&mut reader), [attachment("a"), attachment("b")]);
    // Under its old name it may hold something else when it comes back, as a container that is started again.
    room.store.retract(&Key::new("a", "eth0")).unwrap();
    assert_eq!(seen(&mut reader), [attachment("b")]);
    let again = Attachment { created: NOW + 1, ..attachment("a") };
    publish(&again);
    assert_eq!(seen(&mut reader), [again, attachment("b")]);
    room.store.retract(&Key::new("a", "eth0")).unwrap();
    let third = Attachment { created: NOW + 2, ..attachment("a") };
    publish(&third);
    assert_eq!(seen(&mut reader), [third, attachment("b")], "without a look in between");
}

#[test]
fn an_attachment_appears_whole_and_in_one_step() {
    let room = Room::new(&["10.0.0.0/24"]);
    let key = Key::new("a", "eth0");
    let mut pending = room.store.begin(&key).unwrap();
    assert!(room.store.attachments().unwrap().is_empty(), "nothing is seen before");
    pending.publish(&attachment("a")).unwrap();
    assert_eq!(names(&room.store.watch_dir()), BTreeSet::from(["a:eth0".to_owned()]));
    assert_eq!(room.store.attachments().unwrap(), [attachment("a")]);
    assert!(pending.finish().unwrap());
    assert_eq!(room.store.attachments().unwrap(), [attachment("a")]);
    assert!(room.names("pending").is_empty());
    room.store.retract(&key).unwrap();
    assert!(names(&room.store.watch_dir()).is_empty());
}

#[test]
fn a_finished_attachment_cannot_be_begun_again() {
    let room = Room::new(&["10.0.0.0/24"]);
    let key = Key::new("a", "eth0");
    let mut pending = room.store.begin(&key).unwrap();
    assert!(matches!(room.store.begin(&key), Err(StoreError::Busy(_))));
    assert!(room.store.is_busy(&key));
    pending.publish(&attachment("a")).unwrap();
    pending.finish().unwrap();
    assert!(matches!(room.store.begin(&key), Err(StoreError::Attached(_))));
    assert!(!room.store.is_busy(&key));
    assert!(room.names("pending").is_empty(), "a refusal leaves no mark");
}

#[test]
fn an_add_that_crashed_is_told_from_a_finished_one() {
    let room = Room::new(&["10.0.0.0/24"]);
    let key = Key::new("a", "eth0");
    // A process that ends drops its lock and leaves the file.
    drop(room.store.begin(&key).unwrap());
    assert!(!room.store.is_busy(&key));
    let mut pending = room.store.begin(&key).unwrap();
    assert!(pending.crashed());
    pending.publish(&attachment("a")).unwrap();
    drop(pending);
    assert!(room.store.begin(&key).unwrap().crashed(), "also when it had published already");
}

#[test]
fn addresses_without_a_mark_are_a_crash_as_well() {
    let room = Room::new(&["10.0.0.0/24"]);
    room.reserve("a", NOW).unwrap();
    assert!(room.store.begin(&Key::new("a", "eth0")).unwrap().crashed());
    assert!(!room.store.begin(&Key::new("b", "eth0")).unwrap().crashed());
}

#[test]
fn a_del_that_comes_first_is_noticed_at_the_end() {
    let room = Room::new(&["10.0.0.0/24"]);
    let key = Key::new("a", "eth0");
    let pending = room.store.begin(&key).unwrap();
    room.store.abandon(&key).unwrap();
    assert!(!pending.finish().unwrap());
}

#[test]
fn what_rests_and_what_a_crash_holds_can_be_listed() {
    let world = Room::new(&["10.0.0.0/29"]);
    world.reserve("gone", 100).unwrap();
    world.release("gone", 100);
    assert_eq!(world.store.resting(110).unwrap(), [("10.0.0.1".parse().unwrap(), 130)]);
    assert_eq!(world.store.resting(130).unwrap(), []);

    let running = world.store.begin(&Key::new("runs", "eth0")).unwrap();
    world.reserve("runs", 110).unwrap();
    assert!(world.store.unfinished().unwrap().is_empty(), "its ADD is not over");
    drop(running);
    let leaked = world.store.unfinished().unwrap();
    assert_eq!(leaked.len(), 1);
    assert_eq!(
        (&leaked[0].0, leaked[0].1.ips[0].to_string()),
        (&Key::new("runs", "eth0"), "10.0.0.2".to_owned())
    );
}

#[test]
fn what_is_no_attachment_is_left_out() {
    let room = Room::new(&["10.0.0.0/24"]);
    fs::write(room.store.watch_dir().join("junk"), "{").unwrap();
    assert!(room.store.attachments().unwrap().is_empty());
}

#[test]
fn del_makes_no_directories() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Store::existing(dir.path()).is_none());
    assert!(names(dir.path()).is_empty());
}

#[test]
fn threads_never_get_the_same_address() {
    let room = Room::new(&["10.0.0.0/24", "fd00::/120"]);
    let got: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let room = &room;
                scope.spawn(move || {
                    (0..25)
                        .flat_map(|i| room.reserve(&format!("w{worker}i{i}"), NOW).unwrap())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(got.len(), 400);
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 400);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(64), ..ProptestConfig::default() })]

    /// Any sequence of reservations and releases over two families: both or none, never two owners, links both ways.
    #[test]
    fn owners_and_addresses_always_agree(ops in prop::collection::vec((any::<bool>(), 0_u8..12, 0_u64..20), 1..60)) {
        let room = Room::new(&["10.0.0.0/29", "fd00::/125"]);
        let mut model: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut now = NOW;
        for (take, who, pause) in ops {
            now += pause;
            let id = format!("c{who}");
            if !take {
                room.release(&id, now);
                model.remove(&id);
            } else if !model.contains_key(&id) {
                match room.reserve(&id, now) {
                    Ok(ips) => {
                        prop_assert_eq!(ips.len(), 2);
                        prop_assert!(!model.values().flatten().any(|held| ips.contains(held)), "two owners");
                        model.insert(id, ips);
                    }
                    Err(e) => {
                        prop_assert!(matches!(e, StoreError::Exhausted { .. }), "{}", e);
                        // 6 of IPv4, 7 of IPv6: IPv4 fills first.
                        prop_assert_eq!(model.len(), 6);
                    }
                }
            }
            let held: BTreeSet<String> = model.values().flatten().cloned().collect();
            prop_assert_eq!(room.names("addresses"), held);
            for (id, ips) in &model {
                let owned = room.store.owned(&Key::new(id, "eth0")).unwrap();
                prop_assert_eq!(&owned.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ips);
                prop_assert_eq!((owned.network.as_str(), owned.interface.as_str()), ("net", "manx0"));
            }
        }
    }

    /// A crash between any two steps of taking or releasing is repaired by a release.
    #[test]
    fn a_release_repairs_whatever_a_crash_has_left(owner in any::<bool>(), first in any::<bool>(), second in any::<bool>()) {
        let room = Room::new(&["10.0.0.0/29", "fd00::/125"]);
        room.reserve("a", NOW).unwrap();
        let ipam = room.dir.path().join("ipam");
        // The owner is first to come and last to go: without it there are no addresses.
        let (first, second) = (first && owner, second && owner);
        for (keep, path) in [(owner, "owners/a:eth0"), (first, "addresses/10.0.0.1"), (second, "addresses/fd00::1")] {
            if !keep {
                fs::remove_file(ipam.join(path)).unwrap();
            }
        }
        if !owner {
            // Then nothing is held.
            prop_assert!(room.names("addresses").is_empty());
        }
        room.release("a", NOW);
        prop_assert!(room.names("addresses").is_empty() && room.names("owners").is_empty());
    }
}

#[test]
fn a_crash_never_frees_what_is_anothers_by_now() {
    let room = Room::new(&["10.0.0.0/29"]);
    room.reserve("a", NOW).unwrap();
    // The release of a was killed between its address and its owner, and b got the address.
    fs::remove_file(room.dir.path().join("ipam/addresses/10.0.0.1")).unwrap();
    assert_eq!(room.reserve_fixed("b", &["10.0.0.1"], &[], NOW).unwrap(), ["10.0.0.1"]);
    room.release("a", NOW);
    assert_eq!(room.names("addresses"), BTreeSet::from(["10.0.0.1".to_owned()]));
}

#[test]
fn a_del_that_crashed_is_told_from_a_finished_attachment() {
    let room = Room::new(&["10.0.0.0/24"]);
    let key = Key::new("a", "eth0");
    room.store.condemn(&key).unwrap();
    assert!(room.names("pending").is_empty(), "there is nothing to take apart");
    let mut pending = room.store.begin(&key).unwrap();
    pending.publish(&attachment("a")).unwrap();
    room.store.condemn(&key).unwrap();
    assert!(pending.finish().unwrap());
    room.store.condemn(&key).unwrap();
    assert!(!room.store.is_busy(&key));
    assert!(room.store.begin(&key).unwrap().crashed());
}

/// How many cases to try: `make soak` asks for more by PROPTEST_CASES.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(usual, |_| ProptestConfig::default().cases)
}
