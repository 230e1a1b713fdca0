//! Calico's selector expressions as Kubernetes' LabelSelectors, as far as those can say them: conditions that all hold.

use serde_json::{Value, json};

/// The LabelSelector that picks the same; `None` for `all()`.
///
/// # Errors
/// The part that a LabelSelector cannot say.
pub(super) fn label_selector(expression: &str) -> Result<Option<Value>, String> {
    let mut expressions = Vec::new();
    for part in split(expression) {
        expressions.extend(condition(part.trim()).ok_or_else(|| part.trim().to_owned())?);
    }
    Ok((!expressions.is_empty()).then(|| json!({"matchExpressions": expressions})))
}

/// At `&&` outside quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quote) = (Vec::new(), 0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, '&') if text[at..].starts_with("&&") => {
                parts.push(&text[start..at]);
                start = at + 2;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// One condition, or none for `all()`; the outer `None`: it is not understood.
fn condition(text: &str) -> Option<Option<Value>> {
    if text == "all()" || text.is_empty() {
        return Some(None);
    }
    let has = |text: &str| Some(label(text.strip_prefix("has(")?.strip_suffix(')')?.trim())?.to_owned());
    if let Some(key) = has(text) {
        return Some(Some(json!({"key": key, "operator": "Exists"})));
    }
    if let Some(key) = text.strip_prefix('!').and_then(|t| has(t.trim())) {
        return Some(Some(json!({"key": key, "operator": "DoesNotExist"})));
    }
    // `not in` before `in`, which it contains.
    for (sign, operator) in [("==", "In"), ("!=", "NotIn"), (" not in ", "NotIn"), (" in ", "In")] {
        if let Some((key, value)) = text.split_once(sign) {
            let key = label(key.trim())?;
            let values = match value.trim().strip_prefix('{') {
                Some(set) => {
                    set.strip_suffix('}')?.split(',').map(|v| quoted(v.trim())).collect::<Option<Vec<_>>>()?
                }
                None => vec![quoted(value.trim())?],
            };
            return Some(Some(json!({"key": key, "operator": operator, "values": values})));
        }
    }
    None
}

fn label(text: &str) -> Option<&str> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!text.is_empty() && text.chars().all(legal)).then_some(text)
}

fn quoted(text: &str) -> Option<&str> {
    let mark = text.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    let inner = text.strip_prefix(mark)?.strip_suffix(mark)?;
    (!inner.contains(mark)).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_that_all_hold_are_a_label_selector() {
        let selector =
            label_selector("rack == 'a && b' && zone in {\"1\", '2'} && has(gpu) && !has(spare) && x != 'y'")
                .unwrap();
        assert_eq!(
            selector.unwrap()["matchExpressions"],
            json!([
                {"key": "rack", "operator": "In", "values": ["a && b"]},
                {"key": "zone", "operator": "In", "values": ["1", "2"]},
                {"key": "gpu", "operator": "Exists"},
                {"key": "spare", "operator": "DoesNotExist"},
                {"key": "x", "operator": "NotIn", "values": ["y"]},
            ])
        );
        assert_eq!(label_selector("all()"), Ok(None));
        let not_in = label_selector("zone not in {'1'}").unwrap().unwrap();
        assert_eq!(not_in["matchExpressions"][0]["operator"], "NotIn");
    }

    #[test]
    fn what_a_label_selector_cannot_say_is_named() {
        for text in [
            "rack == 'a' || rack == 'b'",
            "(rack == 'a')",
            "rack starts with 'a'",
            "!(has(a))",
            "global()",
            "rack == a",
        ] {
            assert!(label_selector(text).is_err(), "{text}");
        }
    }
}
