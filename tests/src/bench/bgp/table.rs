//! A table as the Internet has it: distinct prefixes of every length in the order of no plan, about seven to a set of attributes,
//! encoded before the clock runs.

use std::net::Ipv4Addr;

use super::far::{UPDATE, message};

/// Prefixes that share a set of attributes: seven on average in the Internet's table.
const PER_ATTRIBUTES: u64 = 7;
/// An UPDATE without its header.
const BODY_LEN: usize = 4096 - 19;
/// The longest prefix of a table; [`slot`] depends on it.
const LONGEST: u8 = 24;

/// A prefix and its length.
pub type Prefix = (Ipv4Addr, u8);

/// `count` distinct prefixes, none within another, in an order that looks random and is always the same.
///
/// # Panics
/// When there is no room for so many: beyond a few millions.
pub fn prefixes(count: u32) -> Vec<Prefix> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut all = Vec::with_capacity(usize::try_from(count).expect("a count fits"));
    let mut next: u64 = 0x0100_0000;
    for _ in 0..count {
        let length = length(random.below(1000));
        let size = 1 << (32 - u32::from(length));
        loop {
            next = next.next_multiple_of(size);
            match SPECIAL.iter().find(|(from, to)| next < *to && next + size > *from) {
                Some((_, to)) => next = *to,
                None => break,
            }
        }
        assert!(next + size <= 0xe000_0000, "there is no room for {count} prefixes");
        all.push((Ipv4Addr::from(u32::try_from(next).expect("an address")), length));
        next += size;
    }
    for i in (1..all.len()).rev() {
        let other = random.below(i as u64 + 1);
        all.swap(i, usize::try_from(other).expect("an index"));
    }
    all
}

/// Blocks that are nobody's on the Internet: private ones, of which the bench uses some itself, loopback, link-local.
const SPECIAL: [(u64, u64); 7] = [
    (0x0000_0000, 0x0100_0000),
    (0x0a00_0000, 0x0b00_0000),
    (0x6440_0000, 0x6480_0000),
    (0x7f00_0000, 0x8000_0000),
    (0xa9fe_0000, 0xa9ff_0000),
    (0xac10_0000, 0xac20_0000),
    (0xc0a8_0000, 0xc0a9_0000),
];

/// The Internet's mixture, by the thousand.
fn length(thousandth: u64) -> u8 {
    match thousandth {
        0..600 => 24,
        600..700 => 23,
        700..820 => 22,
        820..870 => 21,
        870..920 => 20,
        920..950 => 19,
        950..970 => 18,
        970..980 => 17,
        980..990 => 16,
        _ => LONGEST,
    }
}

/// A number of its own for each prefix of a table: no two of them share a /24.
pub fn slot((address, _): Prefix) -> usize {
    usize::try_from(address.to_bits() >> (32 - LONGEST)).expect("24 bits")
}

/// UPDATEs that announce these prefixes, and End-of-RIB: seven on average to a set of attributes with a path of three to six ASes
/// and one to three communities. With several next hops the sets take them in turn.
pub fn announce(prefixes: &[Prefix], asn: u32, next_hops: &[Ipv4Addr]) -> Vec<u8> {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut all = Vec::new();
    let mut rest = prefixes;
    for next_hop in next_hops.iter().cycle() {
        let group = usize::try_from(1 + random.below(2 * PER_ATTRIBUTES - 1)).expect("a few");
        let (now, later) = rest.split_at(group.min(rest.len()));
        let attributes = attributes(&mut random, asn, *next_hop);
        let mut body = vec![0, 0];
        body.extend(u16::try_from(attributes.len()).expect("few attributes").to_be_bytes());
        body.extend(&attributes);
        now.iter().for_each(|prefix| put_prefix(&mut body, *prefix));
        all.extend(message(UPDATE, &body));
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    all.extend(message(UPDATE, &[0, 0, 0, 0]));
    all
}

/// UPDATEs that withdraw these prefixes, as many to a message as there is room for.
pub fn withdraw(prefixes: &[Prefix]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut withdrawn = Vec::with_capacity(BODY_LEN);
    let mut flush = |withdrawn: &mut Vec<u8>| {
        let mut body = u16::try_from(withdrawn.len()).expect("less than a message").to_be_bytes().to_vec();
        body.append(withdrawn);
        body.extend([0, 0]);
        all.extend(message(UPDATE, &body));
    };
    for prefix in prefixes {
        // Two lengths of two octets; a prefix takes five at most.
        if withdrawn.len() + 4 + 5 > BODY_LEN {
            flush(&mut withdrawn);
        }
        put_prefix(&mut withdrawn, *prefix);
    }
    flush(&mut withdrawn);
    all
}

fn attributes(random: &mut Random, asn: u32, next_hop: Ipv4Addr) -> Vec<u8> {
    let mut attributes = vec![0x40, 1, 1, 0]; // ORIGIN IGP
    let path = 3 + random.below(4);
    let octets = u8::try_from(path).expect("a few");
    attributes.extend([0x40, 2, 2 + 4 * octets, 2, octets]); // AS_PATH: one sequence
    attributes.extend(asn.to_be_bytes());
    for _ in 1..path {
        attributes.extend(some(random, 100_000, 60_000).to_be_bytes());
    }
    attributes.extend([0x40, 3, 4]); // NEXT_HOP
    attributes.extend(next_hop.octets());
    let communities = u8::try_from(1 + random.below(3)).expect("a few");
    attributes.extend([0xc0, 8, 4 * communities]);
    for _ in 0..communities {
        attributes.extend(some(random, 3356 << 16, 4000).to_be_bytes());
    }
    attributes
}

fn some(random: &mut Random, from: u32, span: u64) -> u32 {
    from + u32::try_from(random.below(span)).expect("a small span")
}

fn put_prefix(body: &mut Vec<u8>, (address, length): Prefix) {
    body.push(length);
    body.extend(&address.octets()[..usize::from(length).div_ceil(8)]);
}

/// xorshift: the same table in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[cfg(test)]
mod tests {
    use super::super::far::Held;
    use super::*;

    #[test]
    fn no_prefix_lies_within_another_or_within_what_the_bench_uses() {
        let all = prefixes(20_000);
        let mut ranges: Vec<_> = all.iter().map(|(a, l)| (u64::from(a.to_bits()), 1 << (32 - l))).collect();
        assert!(!ranges.is_sorted());
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        assert!(all.iter().all(|(a, _)| !a.is_private()));
    }

    #[test]
    fn a_monitor_counts_what_is_announced_and_withdrawn() {
        let all = prefixes(5_000);
        let mut held = Held::default();
        let mut feed = |bytes: &[u8]| {
            let mut rest = bytes;
            while let Some((header, tail)) = rest.split_at_checked(19) {
                let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
                held.update(&tail[..length - 19]).unwrap();
                rest = &tail[length - 19..];
            }
            held.count()
        };
        let announced = announce(&all, 65001, &[Ipv4Addr::new(192, 168, 1, 1)]);
        assert_eq!(feed(&announced), 5_000);
        assert_eq!(feed(&announced), 5_000, "announced again it is the same table");
        assert_eq!(feed(&withdraw(&all[..2_000])), 3_000);
        assert_eq!(feed(&withdraw(&all)), 0);
    }

    #[test]
    fn every_message_has_a_legal_length() {
        let all = prefixes(5_000);
        for bytes in [announce(&all, 65001, &[Ipv4Addr::LOCALHOST]), withdraw(&all)] {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
                assert!((23..=4096).contains(&length));
                rest = &rest[length..];
            }
        }
    }
}
