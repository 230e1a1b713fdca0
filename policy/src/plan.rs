//! From what should be and what is to ordered steps, as data. Knows no process and no socket: whoever executes a [`Plan`]
//! reports back what became of each step.

use std::time::SystemTime;

use crate::ir::{Member, SetKind};
use crate::model::Family;

/// Numbers plans, so that an outcome finds its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PlanId(pub u64);

/// Steps towards the desired state. Empty when the kernel already holds it.
///
/// The steps of one family go in order; the families are independent and may go in parallel. When a step fails, the later
/// ones of its family are not executed but reported as [`StepResult::Skipped`]: a rule must not appear before the set that it
/// speaks of has been filled.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// To be given back with the outcome.
    pub id: PlanId,
    /// In order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Nothing to do: no outcome needs to be reported.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// One thing to do to the kernel. Each may be repeated: creating what is there with the same type, adding a member that is
/// there and deleting one that is not are successes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create an empty set.
    CreateSet {
        /// Family of its addresses.
        family: Family,
        /// At most 31 bytes.
        name: String,
        /// Type.
        kind: SetKind,
        /// `maxelem`.
        max_elements: u32,
    },
    /// Add members; an element that is already there is no error.
    AddMembers {
        /// Family of the set.
        family: Family,
        /// Kernel name.
        set: String,
        /// Type of the set.
        kind: SetKind,
        /// What to add, sorted.
        members: Vec<Member>,
    },
    /// Delete members; an element that is not there is no error.
    DeleteMembers {
        /// Family of the set.
        family: Family,
        /// Kernel name.
        set: String,
        /// Type of the set.
        kind: SetKind,
        /// What to delete, sorted.
        members: Vec<Member>,
    },
    /// Feed this to `iptables-restore --noflush` or `ip6tables-restore --noflush`. It may speak of several tables.
    Restore {
        /// Which of the two.
        family: Family,
        /// Complete input, ending in a newline.
        text: String,
    },
    /// Destroy a set that no rule of ours speaks of any more. One that is not there is no error.
    DestroySet {
        /// Family of its addresses.
        family: Family,
        /// Kernel name.
        name: String,
    },
}

impl Step {
    /// The set that it is about; `None`: rules.
    pub fn set(&self) -> Option<&str> {
        match self {
            Step::CreateSet { name, .. } | Step::DestroySet { name, .. } => Some(name),
            Step::AddMembers { set, .. } | Step::DeleteMembers { set, .. } => Some(set),
            Step::Restore { .. } => None,
        }
    }

    /// Whose sequence this step belongs to.
    pub fn family(&self) -> Family {
        match self {
            Step::CreateSet { family, .. }
            | Step::AddMembers { family, .. }
            | Step::DeleteMembers { family, .. }
            | Step::Restore { family, .. }
            | Step::DestroySet { family, .. } => *family,
        }
    }
}

/// What became of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// In the kernel.
    Done,
    /// Refused, with the kernel's or the tool's words.
    Failed(String),
    /// Not tried, since an earlier step of the family failed.
    Skipped,
}

/// What became of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// When the last step ended.
    pub at: SystemTime,
    /// One for each step of the plan, in its order. Missing ones count as skipped.
    pub results: Vec<StepResult>,
}

/// What the kernel holds, as its tools print it. Parts that were not looked at are left out and stay as they were known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// When it was read.
    pub at: SystemTime,
    /// The output of `iptables-save` or `ip6tables-save`, complete with its `*table` lines; tables filter, mangle and raw at
    /// least, in one text or joined.
    pub rules: Vec<(Family, String)>,
    /// Every set whose name begins with `manx4-` or `manx6-`; `None`: not looked at.
    pub sets: Option<Vec<ObservedSet>>,
}

/// A set of ours as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSet {
    /// Kernel name.
    pub name: String,
    /// `None`: a type that we never use.
    pub kind: Option<SetKind>,
    /// Members in any order.
    pub members: Vec<Member>,
}

/// What the engine must see before it plans further: at start everything, after a failure what has become uncertain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wants {
    /// The IPv4 tables.
    pub ipv4_rules: bool,
    /// The IPv6 tables.
    pub ipv6_rules: bool,
    /// The sets.
    pub sets: bool,
}

impl Wants {
    /// Nothing is missing.
    pub fn is_empty(self) -> bool {
        self == Wants::default()
    }

    /// The tables of one family.
    pub fn rules(self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4_rules,
            Family::Ipv6 => self.ipv6_rules,
        }
    }
}
