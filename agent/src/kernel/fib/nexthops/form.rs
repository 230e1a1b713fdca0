//! Small names for what routes are: four bytes in the books instead of lists of next hops.

use super::{FIRST_ID, LAST_ID};

/// What the kernel holds for a prefix, or should hold, in four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::kernel::fib) struct Form(u32);

impl Form {
    /// No route of ours.
    pub(in crate::kernel::fib) const NOTHING: Self = Self(0);
    /// A route of ours in a shape that we never write.
    pub(in crate::kernel::fib) const STRANGE: Self = Self(1);
    /// Drops.
    pub(in crate::kernel::fib) const BLACKHOLE: Self = Self(2);
    /// From here on, and below the numbers of objects: next hops in the route itself.
    pub(super) const FIRST_INLINE: u32 = 3;

    /// A route that uses a nexthop object.
    pub(in crate::kernel::fib) fn object(id: u32) -> Self {
        debug_assert!((FIRST_ID..=LAST_ID).contains(&id));
        Self(id)
    }

    pub(super) fn inline(at: usize) -> Self {
        let at = u32::try_from(at).ok().and_then(|at| at.checked_add(Self::FIRST_INLINE));
        Self(at.filter(|at| *at < FIRST_ID).expect("memory ends before 2^30 distinct lists of next hops"))
    }

    /// The object that it uses.
    pub(in crate::kernel::fib) fn id(self) -> Option<u32> {
        (FIRST_ID..=LAST_ID).contains(&self.0).then_some(self.0)
    }

    pub(super) fn inline_at(self) -> Option<usize> {
        (Self::FIRST_INLINE..FIRST_ID).contains(&self.0).then(|| (self.0 - Self::FIRST_INLINE) as usize)
    }
}

/// A route that is wanted somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::kernel::fib) struct SetId(std::num::NonZeroU32);

impl SetId {
    pub(super) fn new(at: usize) -> Self {
        let number = u32::try_from(at + 1).ok().and_then(std::num::NonZeroU32::new);
        Self(number.expect("memory ends before 2^32 distinct routes"))
    }

    pub(super) fn at(self) -> usize {
        self.0.get() as usize - 1
    }
}
