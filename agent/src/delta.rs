//! What must be done to turn one map into another: the comparison that every reconciling room shares.

use std::collections::BTreeMap;

/// One difference between what is and what should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a, K, V> {
    /// Missing, or there with another value.
    Set(&'a K, &'a V),
    /// There, but not wanted.
    Remove(&'a K),
}

/// The differences in key order, so that equal inputs give equal work in equal order.
pub fn changes<'a, K: Ord, V: PartialEq>(
    actual: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = Change<'a, K, V>> {
    let gone = actual.keys().filter(|k| !desired.contains_key(k)).map(Change::Remove);
    let new = desired.iter().filter(|(k, v)| actual.get(k) != Some(v)).map(|(k, v)| Change::Set(k, v));
    gone.chain(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_come_out_removals_first() {
        let actual = BTreeMap::from([("a", 1), ("b", 2), ("c", 3)]);
        let desired = BTreeMap::from([("b", 2), ("c", 4), ("d", 5)]);
        let got: Vec<_> = changes(&actual, &desired).collect();
        assert_eq!(got, [Change::Remove(&"a"), Change::Set(&"c", &4), Change::Set(&"d", &5)]);
        assert_eq!(changes(&desired, &desired).count(), 0);
    }
}
