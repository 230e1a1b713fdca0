//! AS_PATH and AS4_PATH: codec, length, loop search, and the merge of RFC 6793 4.2.3.

use std::fmt;

use bytes::BufMut;
use smallvec::SmallVec;

use crate::types::Asn;
use crate::wire::attribute::{AsPath, Segment, SegmentKind};

/// The most AS numbers that fit one segment (one length octet).
const MAX_SEGMENT: usize = 255;

impl SegmentKind {
    fn from_wire(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => SegmentKind::Set,
            2 => SegmentKind::Sequence,
            3 => SegmentKind::ConfedSequence,
            4 => SegmentKind::ConfedSet,
            _ => return None,
        })
    }

    /// Whether it is one of the two confederation segments (RFC 5065 3).
    pub fn is_confed(self) -> bool {
        matches!(self, SegmentKind::ConfedSequence | SegmentKind::ConfedSet)
    }
}

impl Segment {
    /// What it adds to the length of the path: sets count one (RFC 4271 9.1.2.2 a), confederation segments nothing (RFC 5065 5.3).
    fn weight(&self) -> usize {
        match self.kind {
            SegmentKind::Sequence => self.asns.len(),
            SegmentKind::Set => 1,
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
        }
    }
}

impl AsPath {
    /// A path of one AS_SEQUENCE; empty if there are no numbers.
    pub fn sequence(asns: impl IntoIterator<Item = Asn>) -> Self {
        let asns: SmallVec<[Asn; 6]> = asns.into_iter().collect();
        let mut path = AsPath::default();
        if !asns.is_empty() {
            path.segments.push(Segment { kind: SegmentKind::Sequence, asns });
        }
        path
    }

    /// Whether there is no AS in it: a route of the own AS.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The length that the decision process compares (RFC 4271 9.1.2.2 a, RFC 5065 5.3).
    pub fn length(&self) -> usize {
        self.segments.iter().map(Segment::weight).sum()
    }

    /// The neighbour AS: the first of the leftmost AS_SEQUENCE (RFC 4271 9.1.2.2 c); `None` when the path starts with a set or is empty.
    pub fn first(&self) -> Option<Asn> {
        match self.segments.iter().find(|s| !s.kind.is_confed())? {
            Segment { kind: SegmentKind::Sequence, asns } => asns.first().copied(),
            _ => None,
        }
    }

    /// The AS that originated the route: the last number, unless the path ends with a set.
    pub fn origin(&self) -> Option<Asn> {
        match self.segments.last()? {
            Segment { kind: SegmentKind::Sequence, asns } => asns.last().copied(),
            _ => None,
        }
    }

    /// Every AS number in wire order, sets included.
    pub fn iter(&self) -> impl Iterator<Item = Asn> {
        self.segments.iter().flat_map(|s| s.asns.iter().copied())
    }

    /// How often an AS occurs anywhere in the path: loop detection (RFC 4271 9.1.2) with allowas-in.
    pub fn count(&self, asn: Asn) -> usize {
        self.iter().filter(|a| *a == asn).count()
    }

    /// Puts `asn` in front, `times` times, as RFC 4271 5.1.2 b wants it: into a leading AS_SEQUENCE with room, else into a new segment.
    pub fn prepend(&mut self, asn: Asn, times: usize) {
        if times == 0 {
            return;
        }
        match self.segments.first_mut() {
            Some(Segment { kind: SegmentKind::Sequence, asns }) if asns.len() + times <= MAX_SEGMENT => {
                asns.insert_many(0, std::iter::repeat_n(asn, times));
            }
            _ => {
                // Over 255 at once the encoder splits the segment.
                let asns = std::iter::repeat_n(asn, times).collect();
                self.segments.insert(0, Segment { kind: SegmentKind::Sequence, asns });
            }
        }
    }

    /// Replaces every occurrence of an AS number (as-override towards a customer that uses one AS at many sites).
    pub fn replace(&mut self, from: Asn, to: Asn) {
        for asn in self.segments.iter_mut().flat_map(|s| s.asns.iter_mut()).filter(|a| **a == from) {
            *asn = to;
        }
    }

    /// Takes private AS numbers (RFC 6996) out, but for `except`: by its own number the neighbour knows a loop.
    pub fn remove_private(&mut self, except: Asn) {
        for segment in &mut self.segments {
            segment.asns.retain(|asn| *asn == except || !asn.is_private());
        }
        self.segments.retain(|segment| !segment.asns.is_empty());
    }

    /// The path without confederation segments, as it leaves a confederation.
    pub(crate) fn without_confed(&self) -> AsPath {
        AsPath { segments: self.segments.iter().filter(|s| !s.kind.is_confed()).cloned().collect() }
    }

    /// Whether a confederation segment is in it.
    pub(crate) fn has_confed(&self) -> bool {
        self.segments.iter().any(|s| s.kind.is_confed())
    }

    /// Decodes the value of AS_PATH or AS4_PATH. Malformed by RFC 7606 7.2 (unknown segment type, segment longer than the
    /// attribute, a lone octet at the end, an empty segment) and RFC 7607 2 (AS 0): `Err` with the reason.
    pub(crate) fn decode(mut value: &[u8], four_octet: bool) -> Result<Self, &'static str> {
        let mut path = AsPath::default();
        while !value.is_empty() {
            let &[kind, count, ref rest @ ..] = value else {
                return Err("AS_PATH ends within a segment header");
            };
            let kind = SegmentKind::from_wire(kind).ok_or("AS_PATH segment of unknown type")?;
            if count == 0 {
                return Err("AS_PATH segment is empty");
            }
            let size = usize::from(count) * if four_octet { 4 } else { 2 };
            let (numbers, rest) =
                rest.split_at_checked(size).ok_or("AS_PATH segment is longer than the attribute")?;
            let asns: SmallVec<[Asn; 6]> = if four_octet {
                numbers.as_chunks::<4>().0.iter().map(|n| Asn(u32::from_be_bytes(*n))).collect()
            } else {
                numbers.as_chunks::<2>().0.iter().map(|n| Asn(u16::from_be_bytes(*n).into())).collect()
            };
            if asns.contains(&Asn(0)) {
                return Err("AS_PATH holds AS 0");
            }
            path.segments.push(Segment { kind, asns });
            value = rest;
        }
        Ok(path)
    }

    /// Appends the value. Segments of more than 255 numbers are split; 2-octet form puts AS_TRANS for what does not fit.
    pub(crate) fn encode(&self, out: &mut impl BufMut, four_octet: bool) {
        for segment in &self.segments {
            for asns in segment.asns.chunks(MAX_SEGMENT) {
                out.put_u8(segment.kind as u8);
                out.put_u8(u8::try_from(asns.len()).expect("chunks of 255"));
                for asn in asns {
                    if four_octet { out.put_u32(asn.0) } else { out.put_u16(asn.to_two_octets()) }
                }
            }
        }
    }

    /// The octets that `encode` appends.
    pub(crate) fn encoded_len(&self, four_octet: bool) -> usize {
        let width = if four_octet { 4 } else { 2 };
        self.segments.iter().map(|s| 2 * s.asns.len().div_ceil(MAX_SEGMENT) + width * s.asns.len()).sum()
    }

    /// Puts AS_PATH and AS4_PATH from an old speaker together (RFC 6793 4.2.3). `self` is the AS_PATH.
    ///
    /// An AS4_PATH longer than the AS_PATH is ignored; else it replaces the tail of the AS_PATH, and what the AS_PATH has more
    /// in front (old speakers that prepended themselves) stays. Confederation segments stay if they are in front of, or next to, what stays.
    pub(crate) fn merge_as4(self, as4: &AsPath) -> AsPath {
        // RFC 6793 3: confederation segments must not be in AS4_PATH; 6: discard them.
        let as4 = as4.without_confed();
        let Some(mut keep) = self.length().checked_sub(as4.length()) else {
            return self;
        };
        let mut merged = AsPath::default();
        for segment in self.segments {
            let weight = segment.weight();
            if weight > 0 && keep == 0 {
                break;
            }
            if weight <= keep {
                keep -= weight;
                merged.segments.push(segment);
            } else {
                merged.segments.push(Segment { kind: segment.kind, asns: segment.asns[..keep].into() });
                break;
            }
        }
        // A sequence cut in two becomes one again, so that equal paths are equal values.
        for segment in as4.segments {
            match merged.segments.last_mut() {
                Some(last)
                    if last.kind == SegmentKind::Sequence
                        && segment.kind == SegmentKind::Sequence
                        && last.asns.len() + segment.asns.len() <= MAX_SEGMENT =>
                {
                    last.asns.extend(segment.asns);
                }
                _ => merged.segments.push(segment),
            }
        }
        merged
    }
}

impl fmt::Display for AsPath {
    /// `64512 65001 {65002,65003}`, confederation segments in brackets as other daemons write them: `(1 2) [3,4]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.segments.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            let (open, separator, close) = match segment.kind {
                SegmentKind::Sequence => ("", " ", ""),
                SegmentKind::Set => ("{", ",", "}"),
                SegmentKind::ConfedSequence => ("(", " ", ")"),
                SegmentKind::ConfedSet => ("[", ",", "]"),
            };
            f.write_str(open)?;
            for (j, asn) in segment.asns.iter().enumerate() {
                write!(f, "{}{asn}", if j > 0 { separator } else { "" })?;
            }
            f.write_str(close)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(segments: &[(SegmentKind, &[u32])]) -> AsPath {
        let segments = segments
            .iter()
            .map(|(kind, asns)| Segment { kind: *kind, asns: asns.iter().map(|a| Asn(*a)).collect() });
        AsPath { segments: segments.collect() }
    }

    use SegmentKind::{ConfedSequence, ConfedSet, Sequence, Set};

    #[test]
    fn rfc4271_9_1_2_2_a_set_counts_one_and_a_confederation_nothing() {
        let p =
            path(&[(ConfedSequence, &[1, 2]), (Sequence, &[3, 4, 5]), (Set, &[6, 7, 8]), (ConfedSet, &[9])]);
        assert_eq!(p.length(), 4);
        assert_eq!(p.first(), Some(Asn(3)));
        assert_eq!(p.origin(), None);
        assert_eq!(p.to_string(), "(1 2) 3 4 5 {6,7,8} [9]");
    }

    #[test]
    fn rfc4271_5_1_2_prepending_opens_a_new_sequence_before_a_set_and_when_full() {
        let mut p = path(&[(Set, &[6, 7])]);
        p.prepend(Asn(5), 2);
        assert_eq!(p, path(&[(Sequence, &[5, 5]), (Set, &[6, 7])]));
        let mut full = AsPath::sequence(std::iter::repeat_n(Asn(9), 255));
        full.prepend(Asn(8), 1);
        assert_eq!(full.segments.len(), 2);
        assert_eq!(full.length(), 256);
        let mut none = AsPath::default();
        none.prepend(Asn(1), 0);
        assert!(none.is_empty());
    }

    #[test]
    fn private_numbers_are_taken_out_wherever_they_are_but_for_the_neighbours_own() {
        let mut p = path(&[(Sequence, &[64512, 3, 4_200_000_000, 65534, 65001]), (Set, &[64600, 64601])]);
        p.remove_private(Asn(65001));
        assert_eq!(p, path(&[(Sequence, &[3, 65001])]));
        let mut borders = path(&[(Sequence, &[64511, 65535, 4_199_999_999, 4_294_967_295])]);
        let public = borders.clone();
        borders.remove_private(Asn(1));
        assert_eq!(borders, public);
    }

    #[test]
    fn a_segment_over_255_is_split_on_the_wire() {
        let p = AsPath::sequence((1..=300).map(Asn));
        let mut out = Vec::new();
        p.encode(&mut out, true);
        assert_eq!(out.len(), p.encoded_len(true));
        let back = AsPath::decode(&out, true).unwrap();
        assert_eq!(back.segments.len(), 2);
        assert!(back.iter().eq(p.iter()));
    }

    #[test]
    fn rfc6793_4_2_3_as4_path_replaces_the_tail() {
        let merged = path(&[(Sequence, &[1, 23456, 23456])]).merge_as4(&path(&[(Sequence, &[70000, 80000])]));
        assert_eq!(merged, path(&[(Sequence, &[1, 70000, 80000])]));
        let set = path(&[(Sequence, &[1, 2, 23456]), (Set, &[5, 6])]);
        assert_eq!(
            set.merge_as4(&path(&[(Sequence, &[70000]), (Set, &[5, 6])])).to_string(),
            "1 2 70000 {5,6}"
        );
    }

    #[test]
    fn rfc6793_4_2_3_an_as4_path_longer_than_as_path_is_ignored() {
        let old = path(&[(Sequence, &[1, 2])]);
        assert_eq!(old.clone().merge_as4(&path(&[(Sequence, &[1, 2, 3])])), old);
    }

    #[test]
    fn rfc6793_4_2_3_leading_confederation_segments_are_kept() {
        let old = path(&[(ConfedSequence, &[64512]), (Sequence, &[23456, 3])]);
        assert_eq!(old.merge_as4(&path(&[(Sequence, &[70000, 3])])).to_string(), "(64512) 70000 3");
    }

    #[test]
    fn rfc6793_6_confederation_segments_in_as4_path_are_discarded() {
        let old = path(&[(Sequence, &[1, 23456])]);
        assert_eq!(old.merge_as4(&path(&[(ConfedSet, &[9]), (Sequence, &[70000])])).to_string(), "1 70000");
    }

    #[test]
    fn rfc7606_7_2_malformed_paths_are_named() {
        for (value, reason) in [
            (&[9, 1, 0, 0, 0, 1][..], "unknown type"),
            (&[2, 2, 0, 0, 0, 1], "longer than"),
            (&[2, 1, 0, 0, 0, 1, 2], "segment header"),
            (&[2, 0], "empty"),
            (&[2, 1, 0, 0, 0, 0], "AS 0"),
        ] {
            assert!(AsPath::decode(value, true).unwrap_err().contains(reason), "{value:?}");
        }
        assert!(AsPath::decode(&[], true).unwrap().is_empty());
    }
}
