//! Translation of what pods send out of the cluster, in the kernel: one chain in the table `nat` and two sets a family.
//!
//! ```text
//! POSTROUTING -m set --match-set manx4-nat-pods src -j MANX-NAT
//! MANX-NAT -m set --match-set manx4-nat-inside dst -j RETURN
//! MANX-NAT -j MASQUERADE --random-fully
//! ```
//!
//! Only the first packet of a connection comes here. Nodes that come and go touch the sets alone. `--random-fully`: without
//! it two connections that leave at once may be given the same port, and the kernel drops one.
//!
//! Every round compares with what the kernel holds, so that a restart, a foreign flush and a change are one case. The
//! policy engine knows nothing of these names: [`is_ours`] tells them apart from its own.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use manx_bgp::types::Prefix;
use manx_policy::ir::{Member, SetKind};

use super::Family;
use super::cleanup;
use super::ipset::{IpsetError, Ipsets};
use super::iptables::{self, Backend, IptablesError};
use crate::desired::EgressIntent;

/// The table that our chain is in.
const TABLE: &str = "nat";
/// How the two sets of either family begin.
const SETS: [&str; 2] = ["manx4-nat-", "manx6-nat-"];
/// The chain, in both families.
const CHAIN: &str = "MANX-NAT";
/// `maxelem`: a limit, not a reservation.
const MAX_ELEMENTS: u32 = 1 << 20;

/// Does a set belong to this room?
pub fn is_ours(set: &str) -> bool {
    SETS.iter().any(|prefix| set.starts_with(prefix))
}

/// Does a table hold this room's rules and no others of ours?
pub fn is_table(table: &str) -> bool {
    table == TABLE
}

/// The kernel could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum EgressNatError {
    /// Rules.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// Sets.
    #[error(transparent)]
    Ipset(#[from] IpsetError),
    /// What the other back end holds of ours stays there.
    #[error("{0}")]
    Other(String),
}

/// The translation of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct EgressNat {
    backend: Backend,
    sets: Ipsets,
    /// By family: nothing of ours is in the tables of the other back end any more.
    alone: [bool; 2],
}

impl EgressNat {
    /// Writes through `backend`.
    ///
    /// # Errors
    /// No privilege, or the kernel lacks sets.
    pub fn open(backend: Backend) -> Result<Self, EgressNatError> {
        Ok(EgressNat { backend, sets: Ipsets::open()?, alone: [false; 2] })
    }

    /// Brings the kernel to the intent, `None`: no translation. Returns whether anything had to be changed.
    ///
    /// # Errors
    /// What was not done is done by the next call.
    pub fn converge(&mut self, intent: Option<&EgressIntent>) -> Result<bool, EgressNatError> {
        let mut changed = false;
        for family in Family::BOTH {
            // A family without pods gets no rules.
            let intent = intent.filter(|i| i.sources.iter().any(|p| is_of(*p, family)));
            changed |= match intent {
                Some(intent) => self.establish(family, intent)?,
                None => self.remove(family)?,
            };
        }
        Ok(changed)
    }

    /// Sets before the rules that speak of them.
    fn establish(&mut self, family: Family, intent: &EgressIntent) -> Result<bool, EgressNatError> {
        let names = set_names(family);
        let held = self.sets.list(&[SETS[index(family)]])?;
        let mut changed = false;
        // Inside first: a source that is known before its destinations are would be translated towards them.
        for (name, wanted) in [(&names.inside, &intent.inside), (&names.pods, &intent.sources)] {
            let wanted = members(wanted, family);
            let have: BTreeSet<Member> = match held.iter().find(|set| set.name == *name) {
                Some(set) => set.members.iter().copied().collect(),
                None => {
                    self.sets.create(name, SetKind::Net, family, MAX_ELEMENTS)?;
                    changed = true;
                    BTreeSet::new()
                }
            };
            let new: Vec<Member> = wanted.difference(&have).copied().collect();
            let old: Vec<Member> = have.difference(&wanted).copied().collect();
            changed |= !new.is_empty() || !old.is_empty();
            self.sets.add(name, &new)?;
            self.sets.delete(name, &old)?;
        }
        let found = Found::read(&iptables::save_table(self.backend, family, TABLE)?);
        if let Some(text) = found.towards(&rules(&names), &hook(&names)) {
            iptables::restore(self.backend, family, &text)?;
            changed = true;
        }
        Ok(changed | self.sweep_other_backend(family)?)
    }

    /// Takes what an agent that worked in the tables of the other back end has left there. Returns whether there was
    /// anything.
    fn sweep_other_backend(&mut self, family: Family) -> Result<bool, EgressNatError> {
        if self.alone[index(family)] {
            return Ok(false);
        }
        let removed = cleanup::remove_rules(self.backend.other(), family, is_table);
        let removed = removed.transpose().map_err(EgressNatError::Other)?;
        self.alone[index(family)] = true;
        Ok(removed.is_some())
    }

    fn remove(&mut self, family: Family) -> Result<bool, EgressNatError> {
        let held = self.sets.list(&[SETS[index(family)]])?;
        // The rules cannot be there without their sets; a host without translation is not made to load its table.
        if held.is_empty() {
            return Ok(false);
        }
        let found = Found::read(&iptables::save_table(self.backend, family, TABLE)?);
        if let Some(text) = found.away() {
            iptables::restore(self.backend, family, &text)?;
        }
        self.sweep_other_backend(family)?;
        for set in held {
            self.sets.destroy(&set.name)?;
        }
        Ok(true)
    }
}

struct SetNames {
    pods: String,
    inside: String,
}

fn set_names(family: Family) -> SetNames {
    let prefix = SETS[index(family)];
    SetNames { pods: format!("{prefix}pods"), inside: format!("{prefix}inside") }
}

fn index(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

fn is_of(prefix: Prefix, family: Family) -> bool {
    prefix.addr().is_ipv4() == (family == Family::Ipv4)
}

/// A set of blocks takes no /0: that is its two halves.
fn members(prefixes: &BTreeSet<Prefix>, family: Family) -> BTreeSet<Member> {
    let own = prefixes.iter().copied().filter(|p| is_of(*p, family)).map(IpNetwork::from);
    own.flat_map(|net| if net.prefix() == 0 { halves(net) } else { vec![net] }).map(Member::Net).collect()
}

fn halves(net: IpNetwork) -> Vec<IpNetwork> {
    let upper = match net {
        IpNetwork::V4(_) => [128, 0, 0, 0].into(),
        IpNetwork::V6(_) => [0x8000, 0, 0, 0, 0, 0, 0, 0].into(),
    };
    [net.network(), upper].into_iter().filter_map(|ip| IpNetwork::new(ip, 1).ok()).collect()
}

/// The rules of our chain, as `iptables-save` prints them.
fn rules(names: &SetNames) -> Vec<String> {
    vec![
        format!(
            "-A {CHAIN} -m set --match-set {} dst -m comment --comment \"manx:egress inside\" -j RETURN",
            names.inside
        ),
        format!("-A {CHAIN} -m comment --comment \"manx:egress outside\" -j MASQUERADE --random-fully"),
    ]
}

fn hook(names: &SetNames) -> String {
    format!(
        "-A POSTROUTING -m set --match-set {} src -m comment --comment \"manx:egress\" -j {CHAIN}",
        names.pods
    )
}

/// What a saved table `nat` holds of ours.
#[derive(Debug, Default)]
struct Found {
    chain: bool,
    rules: Vec<String>,
    hooks: Vec<String>,
}

impl Found {
    fn read(save: &str) -> Self {
        let mut found = Found::default();
        let own = format!("-A {CHAIN} ");
        for line in save.lines().map(str::trim_end) {
            found.chain |= line.starts_with(&format!(":{CHAIN} "));
            if line.starts_with(&own) {
                found.rules.push(line.to_owned());
            } else if line.starts_with("-A ") && line.ends_with(&format!("-j {CHAIN}")) {
                found.hooks.push(line.to_owned());
            }
        }
        found
    }

    /// The text that leads from here to one chain and one jump; `None`: it is so.
    fn towards(&self, rules: &[String], hook: &str) -> Option<String> {
        let same_rules = self.rules == rules;
        let same_hook = self.hooks == [hook];
        if same_rules && same_hook {
            return None;
        }
        let mut text = "*nat\n".to_owned();
        if !same_rules {
            text.push_str(&format!(":{CHAIN} - [0:0]\n"));
            rules.iter().for_each(|rule| text.push_str(&format!("{rule}\n")));
        }
        if !same_hook {
            self.hooks.iter().for_each(|old| text.push_str(&deletion(old)));
            text.push_str(&format!("{hook}\n"));
        }
        text.push_str("COMMIT\n");
        Some(text)
    }

    /// The text that takes all of it away; `None`: there is nothing.
    fn away(&self) -> Option<String> {
        if !self.chain && self.hooks.is_empty() {
            return None;
        }
        let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
        self.hooks.iter().for_each(|hook| text.push_str(&deletion(hook)));
        text.push_str(&format!("-X {CHAIN}\nCOMMIT\n"));
        Some(text)
    }
}

fn deletion(rule: &str) -> String {
    format!("-D {}\n", rule.trim_start_matches("-A "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*nat\n:POSTROUTING ACCEPT [3:180]\n:MANX-NAT - [0:0]\n\
        -A POSTROUTING -m set --match-set manx4-nat-pods src -m comment --comment \"manx:egress\" -j MANX-NAT\n\
        -A POSTROUTING -j KUBE-POSTROUTING\n\
        -A MANX-NAT -m set --match-set manx4-nat-inside dst -m comment --comment \"manx:egress inside\" -j RETURN\n\
        -A MANX-NAT -m comment --comment \"manx:egress outside\" -j MASQUERADE --random-fully\nCOMMIT\n";

    fn towards(saved: &str) -> Option<String> {
        let names = set_names(Family::Ipv4);
        Found::read(saved).towards(&rules(&names), &hook(&names))
    }

    #[test]
    fn what_is_right_is_left_alone() {
        assert_eq!(towards(SAVED), None);
    }

    #[test]
    fn a_jump_that_is_missing_or_doubled_is_mended_without_touching_the_chain() {
        let jump = SAVED.lines().nth(3).unwrap().to_owned() + "\n";
        let missing = towards(&SAVED.replace(&jump, "")).unwrap();
        assert_eq!(missing, format!("*nat\n{jump}COMMIT\n"));
        let doubled = towards(&SAVED.replace(&jump, &jump.repeat(2))).unwrap();
        assert_eq!(doubled.matches("-D POSTROUTING").count(), 2);
        assert_eq!(doubled.matches("-A POSTROUTING").count(), 1);
    }

    #[test]
    fn a_changed_rule_is_written_anew() {
        let text = towards(&SAVED.replace(" --random-fully", "")).unwrap();
        assert!(text.contains(":MANX-NAT - [0:0]\n") && text.contains("--random-fully"), "{text}");
        assert!(!text.contains("POSTROUTING"), "{text}");
    }

    #[test]
    fn nothing_of_ours_is_nothing_to_take_away() {
        assert_eq!(Found::read("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n").away(), None);
        let away = Found::read(SAVED).away().unwrap();
        assert!(away.contains("-D POSTROUTING") && away.ends_with("-X MANX-NAT\nCOMMIT\n"), "{away}");
        assert!(!away.contains("KUBE"), "{away}");
    }

    #[test]
    fn everything_is_two_halves() {
        let all = BTreeSet::from(["0.0.0.0/0".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        let v4: Vec<_> = members(&all, Family::Ipv4).into_iter().collect();
        assert_eq!(v4, ["0.0.0.0/1", "128.0.0.0/1"].map(|net| Member::Net(net.parse().unwrap())));
        assert_eq!(members(&all, Family::Ipv6).len(), 1);
    }
}
