//! Next hops that stand in routes themselves, where the kernel has no objects for them.

use std::sync::Arc;

use super::{Form, Neighbor, Neighbors};
use rustc_hash::FxHashMap;

/// Lists of next hops that stand in routes themselves, by number.
#[derive(Debug, Default)]
pub(super) struct Inlines {
    by_list: FxHashMap<Arc<Neighbors>, usize>,
    lists: Vec<(Arc<Neighbors>, usize)>,
    free: Vec<usize>,
}

impl Inlines {
    /// The number, held once more.
    pub(super) fn intern(&mut self, list: Neighbors) -> Form {
        if let Some(&at) = self.by_list.get(&list) {
            self.lists[at].1 += 1;
            return Form::inline(at);
        }
        let list = Arc::new(list);
        let at = match self.free.pop() {
            Some(at) => {
                self.lists[at] = (list.clone(), 1);
                at
            }
            None => {
                self.lists.push((list.clone(), 1));
                self.lists.len() - 1
            }
        };
        self.by_list.insert(list, at);
        Form::inline(at)
    }

    pub(super) fn hold(&mut self, form: Form) {
        if let Some(at) = form.inline_at() {
            self.lists[at].1 += 1;
        }
    }

    pub(super) fn let_go(&mut self, form: Form) {
        let Some(at) = form.inline_at() else { return };
        let (list, holders) = &mut self.lists[at];
        *holders -= 1;
        if *holders == 0 {
            self.by_list.remove(list);
            self.free.push(at);
        }
    }

    pub(super) fn get(&self, at: usize) -> &[Neighbor] {
        &self.lists[at].0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Neighbor> {
        self.by_list.keys().flat_map(|list| list.iter())
    }
}
