//! Long-lived stale routes (RFC 9494): kept beyond the restart time of their peer as the last choice, marked by a
//! community that everybody sees who is told of them.

use crate::rib::Rib;
use crate::rib::sources::SourceId;
use crate::types::Family;
use crate::wire::community::well_known;

impl Rib {
    /// A peer's stale paths become long-lived stale ones (RFC 9494 4.2): they get LLGR_STALE, and those with NO_LLGR go.
    pub(crate) fn mark_long_lived(&mut self, peer: SourceId, family: Family) {
        let mut unwanted = Vec::new();
        for slot in self.slots_of(peer, family) {
            let before = self.selection(family, slot);
            let mut replaced = Vec::new();
            for at in 0..self.tables[family].paths(slot).len() {
                let path = self.tables[family].paths(slot)[at];
                if self.sources.peer(path.source) != peer || !path.is_stale() {
                    continue;
                }
                let set = self.attributes.shared(path.attributes);
                if set.communities.contains(&well_known::NO_LLGR) {
                    unwanted.push((path.source, slot));
                } else if let Err(place) = set.communities.binary_search(&well_known::LLGR_STALE) {
                    let mut set = self.attributes.whole(path.attributes);
                    set.communities.insert(place, well_known::LLGR_STALE);
                    let marked = self.attributes.intern(set);
                    self.tables[family].paths_mut(slot)[at].attributes = marked;
                    replaced.push(path.attributes);
                }
            }
            if !replaced.is_empty() {
                self.decide_and_tell(family, slot, &before);
            }
            // After the comparison: until then the freed numbers must not name something else.
            replaced.into_iter().for_each(|set| self.attributes.release(set));
        }
        for (source, slot) in unwanted {
            self.remove_at(source, family, slot);
        }
    }
}
