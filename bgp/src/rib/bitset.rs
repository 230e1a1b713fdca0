//! A growing set of slot numbers, one bit each: a million prefixes cost a peer 125 kB.

/// A set of `u32`.
#[derive(Clone, Debug, Default)]
pub(crate) struct BitSet {
    words: Vec<u64>,
    count: usize,
}

impl BitSet {
    /// How many members.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn contains(&self, i: u32) -> bool {
        self.words.get(i as usize / 64).is_some_and(|w| w & (1 << (i % 64)) != 0)
    }

    /// Whether it is new.
    pub(crate) fn insert(&mut self, i: u32) -> bool {
        let at = i as usize / 64;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let bit = 1 << (i % 64);
        let new = self.words[at] & bit == 0;
        self.words[at] |= bit;
        self.count += usize::from(new);
        new
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, i: u32) -> bool {
        let Some(word) = self.words.get_mut(i as usize / 64) else {
            return false;
        };
        let bit = 1 << (i % 64);
        let there = *word & bit != 0;
        *word &= !bit;
        self.count -= usize::from(there);
        there
    }

    /// The first member at or after `start`.
    pub(crate) fn next_from(&self, start: u32) -> Option<u32> {
        let mut at = start as usize / 64;
        let mut word = *self.words.get(at)? & (u64::MAX << (start % 64));
        loop {
            if word != 0 {
                return Some((at * 64) as u32 + word.trailing_zeros());
            }
            at += 1;
            word = *self.words.get(at)?;
        }
    }

    /// All members, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let mut next = Some(0);
        std::iter::from_fn(move || {
            let found = self.next_from(next?)?;
            next = found.checked_add(1);
            Some(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_an_ordered_set(ops in prop::collection::vec((any::<bool>(), 0u32..300), 0..200), start in 0u32..400) {
            let mut bits = BitSet::default();
            let mut model = BTreeSet::new();
            for (insert, i) in ops {
                if insert {
                    prop_assert_eq!(bits.insert(i), model.insert(i));
                } else {
                    prop_assert_eq!(bits.remove(i), model.remove(&i));
                }
            }
            prop_assert_eq!(bits.len(), model.len());
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bits.next_from(start), model.range(start..).next().copied());
            prop_assert!(model.iter().all(|i| bits.contains(*i)));
        }
    }
}
