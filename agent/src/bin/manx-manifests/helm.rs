//! As much of Helm's template language as the chart uses, so that the chart can be tested where Helm is not.
//!
//! Actions `if`, `else`, `with`, `range $k, $v :=`, `end`, comments; pipelines of paths, variables, texts and the functions `default`,
//! `join`, `nindent`, `quote`, `toYaml`. Anything else is an error: then a test with the real Helm has to be looked at first.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Renders a template with values.
pub(crate) fn render(template: &str, values: &Value) -> String {
    let root = json!({
        "Values": values,
        "Release": {"Namespace": "manx-system", "Name": "manx"},
        "Chart": {"AppVersion": "0.1.0", "Name": "manx"},
    });
    let tokens = tokens(template);
    let mut rest = tokens.as_slice();
    let nodes = parse(&mut rest);
    assert!(rest.is_empty(), "an `end` too many");
    let mut out = String::new();
    let mut scope = Scope { root: &root, dot: &root, vars: BTreeMap::new() };
    run(&nodes, &mut scope, &mut out);
    out
}

enum Token {
    Text(String),
    Action(String),
}

fn tokens(template: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = template;
    let mut trim = false;
    loop {
        let (text, from) = rest.split_at(rest.find("{{").unwrap_or(rest.len()));
        let mut text = if trim { text.trim_start() } else { text };
        let Some(action) = from.strip_prefix("{{") else {
            tokens.push(Token::Text(text.to_owned()));
            return tokens;
        };
        let action = match action.strip_prefix("- ") {
            Some(action) => {
                text = text.trim_end();
                action
            }
            None => action,
        };
        tokens.push(Token::Text(text.to_owned()));
        let mut quoted = false;
        let end = action
            .char_indices()
            .find(|(at, c)| {
                quoted ^= *c == '"';
                !quoted && action[*at..].starts_with("}}")
            })
            .map(|(at, _)| at)
            .expect("an action ends");
        let body = &action[..end];
        trim = body.ends_with(" -");
        tokens.push(Token::Action(body.strip_suffix(" -").unwrap_or(body).trim().to_owned()));
        rest = &action[end + 2..];
    }
}

enum Node {
    Text(String),
    Print(String),
    If(String, Vec<Node>, Vec<Node>),
    With(String, Vec<Node>),
    Range(String, String, String, Vec<Node>),
}

/// Up to `else`, `end` or the end of the template, which stay.
fn parse(rest: &mut &[Token]) -> Vec<Node> {
    let mut nodes = Vec::new();
    while let Some((token, after)) = rest.split_first() {
        match token {
            Token::Text(text) => nodes.push(Node::Text(text.clone())),
            Token::Action(action) if action == "end" || action == "else" => return nodes,
            Token::Action(action) => {
                *rest = after;
                let (word, argument) = action.split_once(' ').unwrap_or((action, ""));
                match word {
                    "if" => {
                        let yes = parse(rest);
                        let no = if is(rest, "else") { take(rest, parse) } else { Vec::new() };
                        nodes.push(Node::If(argument.to_owned(), yes, no));
                    }
                    "with" => nodes.push(Node::With(argument.to_owned(), parse(rest))),
                    "range" => {
                        let (names, list) =
                            argument.split_once(":=").expect("range names what it ranges over");
                        let (key, value) = names.split_once(',').expect("range has a key and a value");
                        let name = |text: &str| text.trim().to_owned();
                        nodes.push(Node::Range(name(key), name(value), name(list), parse(rest)));
                    }
                    _ if action.starts_with("/*") => continue,
                    _ => {
                        nodes.push(Node::Print(action.clone()));
                        continue;
                    }
                }
                assert!(is(rest, "end"), "`{action}` has no end");
                *rest = &rest[1..];
                continue;
            }
        }
        *rest = after;
    }
    nodes
}

fn is(rest: &[Token], word: &str) -> bool {
    matches!(rest.first(), Some(Token::Action(action)) if action == word)
}

fn take(rest: &mut &[Token], parse: fn(&mut &[Token]) -> Vec<Node>) -> Vec<Node> {
    *rest = &rest[1..];
    parse(rest)
}

struct Scope<'a> {
    root: &'a Value,
    dot: &'a Value,
    vars: BTreeMap<String, Value>,
}

fn run(nodes: &[Node], scope: &mut Scope<'_>, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(pipeline) => out.push_str(&text(&evaluate(pipeline, scope))),
            Node::If(condition, yes, no) => {
                run(if truth(&evaluate(condition, scope)) { yes } else { no }, scope, out);
            }
            Node::With(what, body) => {
                let dot = evaluate(what, scope);
                if truth(&dot) {
                    let vars = scope.vars.clone();
                    run(body, &mut Scope { root: scope.root, dot: &dot, vars }, out);
                }
            }
            Node::Range(key, value, list, body) => {
                for (k, v) in evaluate(list, scope).as_object().into_iter().flatten() {
                    scope.vars.insert(key.clone(), json!(k));
                    scope.vars.insert(value.clone(), v.clone());
                    run(body, scope, out);
                }
            }
        }
    }
}

fn evaluate(pipeline: &str, scope: &Scope<'_>) -> Value {
    let mut piped: Option<Value> = None;
    for command in split(pipeline, '|') {
        let words = split(&command, ' ');
        let (first, rest) = words.split_first().expect("a command has a word");
        let mut arguments: Vec<Value> = rest.iter().map(|word| operand(word, scope)).collect();
        arguments.extend(piped.take());
        piped = Some(match (first.as_str(), arguments.as_slice()) {
            ("toYaml", [value]) => json!(serde_saphyr::to_string(value).unwrap().trim_end()),
            ("nindent", [by, value]) => {
                let indent = " ".repeat(usize::try_from(by.as_u64().unwrap()).unwrap());
                json!(text(value).lines().map(|l| format!("\n{indent}{l}")).collect::<String>())
            }
            ("join", [by, list]) => {
                let items: Vec<String> = list.as_array().unwrap().iter().map(text).collect();
                json!(items.join(by.as_str().unwrap()))
            }
            ("default", [default, value]) => if truth(value) { value } else { default }.clone(),
            ("quote", [value]) => json!(json!(text(value)).to_string()),
            (word, []) => operand(word, scope),
            other => panic!("{pipeline}: {other:?} is not known here"),
        });
    }
    piped.expect("a pipeline has a command")
}

/// Words apart by `by`, none of them empty; what is between quotes stays together.
fn split(text: &str, by: char) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        quoted ^= c == '"';
        if c == by && !quoted {
            words.push(String::new());
        } else {
            words.last_mut().expect("there is one").push(c);
        }
    }
    words.iter().map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect()
}

fn operand(word: &str, scope: &Scope<'_>) -> Value {
    if let Some(path) = word.strip_prefix('.') {
        let mut at = scope.dot;
        for name in path.split('.').filter(|n| !n.is_empty()) {
            at = at.get(name).unwrap_or_else(|| panic!("there is no value {word}"));
        }
        return at.clone();
    }
    if word.starts_with('$') {
        return scope.vars.get(word).unwrap_or_else(|| panic!("there is no variable {word}")).clone();
    }
    serde_json::from_str(word).unwrap_or_else(|_| panic!("{word} is not known here"))
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
