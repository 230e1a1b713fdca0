//! The fuzz targets without a fuzzer: the committed seeds, and for some seconds inputs that are made of them. What libFuzzer does
//! better, it does in `make fuzz`; here nothing is needed but the compiler, and what it once found stays found.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and this one asks the clock when its time is over"
)]

#[path = "../../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is the library of the fuzz targets as well")]
mod manx_fuzz;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// For each target, unless `MANX_FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 2;
/// As much as a message holds, and some more.
const MAX_LEN: usize = 8192;
/// Octets that have a meaning in some field or stand at the edge of one.
const TELLING: [u8; 14] = [0, 1, 2, 3, 4, 14, 15, 16, 0x40, 0x7f, 0x80, 0x90, 0xc0, 0xff];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_target_has_its_seeds_and_its_place_here() {
    let here: BTreeSet<String> = manx_fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(here, names(&folder("fuzz_targets")));
    assert_eq!(here, names(&folder("seeds")));
}

#[test]
fn seeds_and_their_mutations_are_survived() {
    let seconds = std::env::var("MANX_FUZZ_SECONDS").ok().map_or(SECONDS, |text| text.parse().unwrap());
    std::thread::scope(|scope| {
        for (name, target) in manx_fuzz::TARGETS {
            scope.spawn(move || fuzz(name, *target, Duration::from_secs(seconds)));
        }
    });
}

fn fuzz(name: &str, target: fn(&[u8]), time: Duration) {
    let files = std::fs::read_dir(folder("seeds").join(name)).unwrap();
    let seeds: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    let run = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            let hex: String = input.iter().map(|octet| format!("{octet:02x}")).collect();
            panic!("{name} does not survive this input, to be a seed once it does: {hex}");
        }
    };
    assert!(!seeds.is_empty(), "{name} has no seeds");
    seeds.iter().for_each(|seed| run(seed));
    // Other inputs in each run: what is found is printed whole.
    let mut random: SmallRng = rand::make_rng();
    let end = Instant::now() + time;
    while Instant::now() < end {
        for _ in 0..100 {
            let mut input = seeds.choose(&mut random).unwrap().clone();
            for _ in 0..random.random_range(1..=8) {
                mutate(&mut input, &seeds, &mut random);
            }
            input.truncate(MAX_LEN);
            run(&input);
        }
    }
}

/// Changes one thing: an octet, a length, a piece of it, or what follows.
fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut SmallRng) {
    let at = random.random_range(0..=input.len());
    let to = random.random_range(at..=input.len().min(at + 64));
    match random.random_range(0..7) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = *TELLING.choose(random).unwrap(),
        2 if at < input.len() => {
            let step: i8 = random.random_range(-4..=4);
            input[at] = input[at].wrapping_add_signed(step);
        }
        3 => drop(input.drain(at..to)),
        4 => {
            let piece = input[at..to].to_vec();
            input.splice(at..at, piece);
        }
        5 => input.insert(at, random.random()),
        _ => {
            let other = seeds.choose(random).unwrap();
            let from = random.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

#[test]
fn mutations_differ_from_their_seed_and_reach_every_octet() {
    let seeds = [vec![0; 16], vec![1; 16]];
    let mut random = SmallRng::seed_from_u64(1);
    let mut changed = BTreeSet::new();
    for _ in 0..2000 {
        let mut input = seeds[0].clone();
        mutate(&mut input, &seeds, &mut random);
        changed.extend(input.iter().zip(&seeds[0]).enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i));
    }
    assert_eq!(changed.len(), 16);
}
