//! Label selectors in one canonical form, so that equal selectors are found equal and share one set in the kernel.
//!
//! Knows labels and nothing else. The semantics are those of `metav1.LabelSelector`: all requirements must hold; `NotIn` and
//! `DoesNotExist` hold also where the label is absent; no requirement at all selects everything.

use std::fmt;

use crate::model::{Labels, NAMESPACE_NAME_LABEL, Str};

/// What is asked of one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The label is there with one of these values (sorted, unique, not empty).
    In(Vec<Str>),
    /// The label is absent or has none of these values (sorted, unique, not empty).
    NotIn(Vec<Str>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is there and its value has this part.
    Like(Part, Str),
    /// The label is absent or its value has not this part.
    NotLike(Part, Str),
}

/// Which part of a text, as Calico's selectors ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Anywhere.
    Contains,
    /// At the beginning.
    StartsWith,
    /// At the end.
    EndsWith,
}

impl Part {
    /// As selectors spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Contains => "contains",
            Part::StartsWith => "starts with",
            Part::EndsWith => "ends with",
        }
    }

    fn is_in(self, part: &str, text: &str) -> bool {
        match self {
            Part::Contains => text.contains(part),
            Part::StartsWith => text.starts_with(part),
            Part::EndsWith => text.ends_with(part),
        }
    }
}

/// One label and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Str,
    /// The question.
    pub operator: Operator,
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.binary_search(v).is_ok()),
            Operator::NotIn(values) => value.is_none_or(|v| values.binary_search(v).is_err()),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Like(part, text) => value.is_some_and(|v| part.is_in(text, v)),
            Operator::NotLike(part, text) => value.is_none_or(|v| !part.is_in(text, v)),
        }
    }
}

/// Requirements joined by AND: sorted, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Selector {
    requirements: Box<[Requirement]>,
}

impl Selector {
    /// Brings requirements into canonical order; their value lists too.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut requirements: Vec<Requirement> = requirements
            .into_iter()
            .map(|mut r| {
                if let Operator::In(values) | Operator::NotIn(values) = &mut r.operator {
                    values.sort();
                    values.dedup();
                }
                r
            })
            .collect();
        requirements.sort();
        requirements.dedup();
        Selector { requirements: requirements.into() }
    }

    /// Selects all.
    pub fn everything() -> Self {
        Selector::default()
    }

    /// `key in (value)`, joined by AND: what `matchLabels` says.
    pub fn of_labels<K: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Selector::new(pairs.into_iter().map(|(k, v)| Requirement {
            key: k.as_ref().into(),
            operator: Operator::In(vec![v.as_ref().into()]),
        }))
    }

    /// Selects all, as written.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements in canonical order.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Do these labels satisfy every requirement?
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Is a namespace of which only the name is known selected for certain? Every namespace carries its name as a label;
    /// what else it carries may arrive any moment, so that no other requirement, `NotIn` included, counts as met.
    pub fn matches_unknown_namespace(&self, name: &str) -> bool {
        self.requirements.iter().all(|r| {
            &*r.key == NAMESPACE_NAME_LABEL && r.matches(&Labels::from_iter([(NAMESPACE_NAME_LABEL, name)]))
        })
    }
}

/// In the syntax of `kubectl get -l` as far as that goes, for people.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match &r.operator {
                Operator::In(values) => match values.as_slice() {
                    [one] => write!(f, "{}={one}", r.key)?,
                    many => write!(f, "{} in ({})", r.key, many.join(","))?,
                },
                Operator::NotIn(values) => match values.as_slice() {
                    [one] => write!(f, "{}!={one}", r.key)?,
                    many => write!(f, "{} notin ({})", r.key, many.join(","))?,
                },
                Operator::Exists => write!(f, "{}", r.key)?,
                Operator::DoesNotExist => write!(f, "!{}", r.key)?,
                Operator::Like(part, text) => write!(f, "{} {} {text:?}", r.key, part.as_str())?,
                Operator::NotLike(part, text) => write!(f, "not {} {} {text:?}", r.key, part.as_str())?,
            }
        }
        Ok(())
    }
}
