//! A Kubernetes LabelSelector over node labels.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use super::issue::Issues;

/// A LabelSelector as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelectorSpec {
    /// Labels with their values; all must be there.
    #[serde(default)]
    match_labels: Option<BTreeMap<String, String>>,
    /// Further conditions; all must hold.
    #[serde(default)]
    match_expressions: Option<Vec<Expression>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Expression {
    /// The label.
    key: String,
    /// In, NotIn, Exists or DoesNotExist.
    operator: String,
    /// For In and NotIn: the values.
    #[serde(default)]
    values: Option<Vec<String>>,
}

/// A validated LabelSelector. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

impl LabelSelector {
    /// Whether an object with these labels is selected. `NotIn` and `DoesNotExist` also hold for an absent label.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
    }

    /// The first condition that these labels do not meet, in words; `None`: all are met.
    pub fn unmet(&self, labels: &BTreeMap<String, String>) -> Option<String> {
        let unmet = self.0.iter().find(|r| !LabelSelector(vec![(*r).clone()]).matches(labels))?;
        let key = match unmet {
            Requirement::In(key, _) | Requirement::NotIn(key, _) => key,
            Requirement::Exists(key) | Requirement::DoesNotExist(key) => key,
        };
        let has = match labels.get(key) {
            Some(value) => format!("{key}={value}"),
            None => format!("no label {key}"),
        };
        Some(format!("it wants {unmet}, this node has {has}"))
    }

    pub(super) fn validate(spec: LabelSelectorSpec, path: &str, issues: &mut Issues) -> Self {
        let labels = spec.match_labels.unwrap_or_default();
        let mut requirements: Vec<_> = labels.into_iter().map(|(k, v)| Requirement::In(k, vec![v])).collect();
        for (i, e) in spec.match_expressions.unwrap_or_default().into_iter().enumerate() {
            let path = format!("{path}.matchExpressions[{i}]");
            requirements.extend(issues.take(path, requirement(e)));
        }
        LabelSelector(requirements)
    }
}

impl fmt::Display for LabelSelector {
    /// `rack=a, zone in (1, 2), !spare`, as kubectl writes selectors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(", "))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(", ")),
            Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(", ")),
            Requirement::Exists(key) => f.write_str(key),
            Requirement::DoesNotExist(key) => write!(f, "!{key}"),
        }
    }
}

fn requirement(e: Expression) -> Result<Requirement, String> {
    let values = e.values.unwrap_or_default();
    match (e.operator.as_str(), values.is_empty()) {
        ("In", false) => Ok(Requirement::In(e.key, values)),
        ("NotIn", false) => Ok(Requirement::NotIn(e.key, values)),
        ("Exists", true) => Ok(Requirement::Exists(e.key)),
        ("DoesNotExist", true) => Ok(Requirement::DoesNotExist(e.key)),
        ("In" | "NotIn", true) => Err(format!("{}: operator {} needs values", e.key, e.operator)),
        ("Exists" | "DoesNotExist", false) => {
            Err(format!("{}: operator {} takes no values", e.key, e.operator))
        }
        (other, _) => Err(format!("{}: operator {other} must be In, NotIn, Exists or DoesNotExist", e.key)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn selector(spec: serde_json::Value) -> Result<LabelSelector, Vec<super::super::Issue>> {
        let mut issues = Issues::default();
        let spec = serde_json::from_value(spec).unwrap();
        let selector = LabelSelector::validate(spec, "spec.nodeSelector", &mut issues);
        issues.finish(selector)
    }

    #[rstest]
    #[case(json!({}), true)]
    #[case(json!({"matchLabels": {"rack": "a"}}), true)]
    #[case(json!({"matchLabels": {"rack": "b"}}), false)]
    #[case(json!({"matchLabels": {"rack": "a", "zone": "1"}}), false)]
    #[case(json!({"matchExpressions": [{"key": "rack", "operator": "In", "values": ["a", "b"]}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "rack", "operator": "NotIn", "values": ["a"]}]}), false)]
    #[case(json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "rack", "operator": "Exists"}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist", "values": []}]}), true)]
    fn labels_are_selected_as_kubernetes_does(#[case] spec: serde_json::Value, #[case] selected: bool) {
        let labels = BTreeMap::from([("rack".to_owned(), "a".to_owned())]);
        let selector = selector(spec).unwrap();
        assert_eq!(selector.matches(&labels), selected);
        assert_eq!(selector.unmet(&labels).is_none(), selected);
    }

    #[rstest]
    #[case(json!({"matchLabels": {"rack": "b"}}), "rack=b", "it wants rack=b, this node has rack=a")]
    #[case(json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["1", "2"]}]}), "zone in (1, 2)",
           "it wants zone in (1, 2), this node has no label zone")]
    #[case(json!({"matchExpressions": [{"key": "rack", "operator": "DoesNotExist"}]}), "!rack",
           "it wants !rack, this node has rack=a")]
    fn what_is_not_met_is_said_beside_what_is_there(
        #[case] spec: serde_json::Value,
        #[case] shown: &str,
        #[case] unmet: &str,
    ) {
        let labels = BTreeMap::from([("rack".to_owned(), "a".to_owned())]);
        let selector = selector(spec).unwrap();
        assert_eq!((selector.to_string().as_str(), selector.unmet(&labels).as_deref()), (shown, Some(unmet)));
    }

    #[rstest]
    #[case("In", json!([]), "needs values")]
    #[case("Exists", json!(["a"]), "takes no values")]
    #[case("Gt", json!(["1"]), "must be In")]
    fn a_senseless_expression_is_refused(
        #[case] operator: &str,
        #[case] values: serde_json::Value,
        #[case] reason: &str,
    ) {
        let spec = json!({"matchExpressions": [{"key": "rack", "operator": operator, "values": values}]});
        let issues = selector(spec).unwrap_err();
        assert_eq!(issues[0].path, "spec.nodeSelector.matchExpressions[0]");
        assert!(issues[0].reason.contains(reason));
    }
}
