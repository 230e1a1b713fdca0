//! A Kubernetes LabelSelector over node labels.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::issue::Issues;

/// A LabelSelector as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelectorSpec {
    /// Labels with their values; all must be there.
    #[serde(default)]
    match_labels: Option<BTreeMap<String, String>>,
    /// Further conditions; all must hold.
    #[serde(default)]
    match_expressions: Option<Vec<Expression>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: String,
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
        assert_eq!(selector(spec).unwrap().matches(&labels), selected);
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
