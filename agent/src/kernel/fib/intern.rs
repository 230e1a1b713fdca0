//! Distinct routes by number: a million prefixes share a few next-hop sets. Pure.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::route::Route;

/// A distinct route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RouteId(u32);

impl RouteId {
    /// Something of ours with a shape that we never write. Equal to no desired route.
    pub(super) const STRANGE: Self = Self(0);
}

#[derive(Debug)]
struct Slot {
    route: Option<Arc<Route>>,
    references: usize,
}

/// Routes by number and back, counted.
#[derive(Debug)]
pub(super) struct Interner {
    ids: FxHashMap<Arc<Route>, RouteId>,
    slots: Vec<Slot>,
    free: Vec<RouteId>,
}

impl Interner {
    pub(super) fn new() -> Self {
        let strange = Slot { route: None, references: 1 };
        Self { ids: FxHashMap::default(), slots: vec![strange], free: Vec::new() }
    }

    /// Takes a reference.
    pub(super) fn intern(&mut self, route: &Route) -> RouteId {
        if let Some(&id) = self.ids.get(route) {
            return self.retain(id);
        }
        let route = Arc::new(route.clone());
        let slot = Slot { route: Some(route.clone()), references: 1 };
        let id = if let Some(id) = self.free.pop() {
            self.slots[id.0 as usize] = slot;
            id
        } else {
            self.slots.push(slot);
            RouteId(u32::try_from(self.slots.len() - 1).expect("memory ends before 2^32 distinct routes"))
        };
        self.ids.insert(route, id);
        id
    }

    /// Takes another reference.
    pub(super) fn retain(&mut self, id: RouteId) -> RouteId {
        self.slots[id.0 as usize].references += 1;
        id
    }

    /// Gives a reference back.
    pub(super) fn release(&mut self, id: Option<RouteId>) {
        let Some(id) = id.filter(|id| *id != RouteId::STRANGE) else { return };
        let slot = &mut self.slots[id.0 as usize];
        slot.references -= 1;
        if slot.references == 0 {
            let route =
                slot.route.take().expect("only the strange slot holds no route while it is referenced");
            self.ids.remove(&route);
            self.free.push(id);
        }
    }

    /// `None` for the strange one.
    pub(super) fn get(&self, id: RouteId) -> Option<&Route> {
        self.slots[id.0 as usize].route.as_deref()
    }

    /// Those that anybody refers to.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Route> {
        self.ids.keys().map(|route| &**route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fib::NextHop;

    fn via(last: u8) -> Route {
        Route::via([NextHop { gateway: [192, 0, 2, last].into(), ifindex: 1 }]).unwrap()
    }

    #[test]
    fn a_number_lives_as_long_as_somebody_refers_to_it() {
        let mut routes = Interner::new();
        let (a, b) = (routes.intern(&via(1)), routes.intern(&via(2)));
        assert_eq!(routes.intern(&via(1)), a);
        assert_ne!(a, b);
        routes.release(Some(a));
        assert_eq!(routes.get(a), Some(&via(1)));
        routes.release(Some(a));
        assert_eq!(routes.iter().collect::<Vec<_>>(), [&via(2)]);
        assert_eq!(routes.intern(&Route::Blackhole), a, "the number is used again");
        assert_eq!(routes.get(RouteId::STRANGE), None);
        routes.release(Some(RouteId::STRANGE));
    }
}
