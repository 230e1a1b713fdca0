//! Calico's selector expressions: text -> a disjunction of conjunctions, the form in which everything else is written here.
//!
//! ```text
//! expr := and ("||" and)*      and := not ("&&" not)*      not := "!"* atom
//! atom := "(" expr ")" | "all()" | "global()" | "has(" label ")" | label op
//! op   := "==" text | "!=" text | "in" set | "not in" set | "contains" text | "starts with" text | "ends with" text
//! ```

use crate::model::Str;
use crate::selector::{Operator, Part, Requirement};

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Literal {
    /// About a label.
    Label(Requirement),
    /// It belongs to a namespace, or (`false`) to none.
    Namespaced(bool),
}

/// Each inner list is a conjunction; one of them must hold. An empty conjunction always holds.
pub(super) type Alternatives = Vec<Vec<Literal>>;

/// More alternatives than this are more rules than one selector is worth.
pub(super) const MAX_ALTERNATIVES: usize = 64;
/// Deeper nesting than this is nobody's honest work.
const MAX_DEPTH: usize = 32;

/// Reads an expression. An empty one selects everything.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(text: &str) -> Result<Alternatives, String> {
    if text.trim().is_empty() {
        return Ok(vec![Vec::new()]);
    }
    let mut parser = Parser { rest: text, depth: 0 };
    let expr = parser.or()?;
    parser.space();
    if !parser.rest.is_empty() {
        return Err(format!("unexpected {:?}", shortened(parser.rest)));
    }
    alternatives(&expr, false)
}

/// Every alternative of one joined with every one of the other.
///
/// # Errors
/// They are too many.
pub(super) fn both(a: &Alternatives, b: &Alternatives) -> Result<Alternatives, String> {
    if a.len().saturating_mul(b.len()) > MAX_ALTERNATIVES {
        return Err(format!("more than {MAX_ALTERNATIVES} alternatives: split it over several rules"));
    }
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| a.iter().chain(b).cloned().collect()));
    Ok(pairs.collect())
}

enum Expr {
    All,
    Literal(Literal),
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
}

/// Pushes negations down to the labels and multiplies out.
fn alternatives(expr: &Expr, negated: bool) -> Result<Alternatives, String> {
    Ok(match (expr, negated) {
        (Expr::All, false) => vec![Vec::new()],
        (Expr::All, true) => Vec::new(),
        (Expr::Literal(literal), false) => vec![vec![literal.clone()]],
        (Expr::Literal(literal), true) => vec![vec![opposite(literal)]],
        (Expr::Not(inner), _) => alternatives(inner, !negated)?,
        (Expr::And(parts), false) | (Expr::Or(parts), true) => {
            let mut all = vec![Vec::new()];
            for part in parts {
                all = both(&all, &alternatives(part, negated)?)?;
            }
            all
        }
        (Expr::Or(parts), false) | (Expr::And(parts), true) => {
            let mut any = Vec::new();
            for part in parts {
                any.extend(alternatives(part, negated)?);
            }
            if any.len() > MAX_ALTERNATIVES {
                return Err(format!(
                    "more than {MAX_ALTERNATIVES} alternatives: split it over several rules"
                ));
            }
            any
        }
    })
}

fn opposite(literal: &Literal) -> Literal {
    match literal {
        Literal::Namespaced(namespaced) => Literal::Namespaced(!namespaced),
        Literal::Label(Requirement { key, operator }) => {
            let operator = match operator.clone() {
                Operator::In(values) => Operator::NotIn(values),
                Operator::NotIn(values) => Operator::In(values),
                Operator::Exists => Operator::DoesNotExist,
                Operator::DoesNotExist => Operator::Exists,
                Operator::Like(part, text) => Operator::NotLike(part, text),
                Operator::NotLike(part, text) => Operator::Like(part, text),
            };
            Literal::Label(Requirement { key: key.clone(), operator })
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn or(&mut self) -> Result<Expr, String> {
        let mut parts = vec![self.and()?];
        while self.take("||") {
            parts.push(self.and()?);
        }
        Ok(Expr::Or(parts))
    }

    fn and(&mut self) -> Result<Expr, String> {
        let mut parts = vec![self.not()?];
        while self.take("&&") {
            parts.push(self.not()?);
        }
        Ok(Expr::And(parts))
    }

    fn not(&mut self) -> Result<Expr, String> {
        let mut negated = false;
        while self.take("!") {
            negated = !negated;
        }
        let atom = self.atom()?;
        Ok(if negated { Expr::Not(Box::new(atom)) } else { atom })
    }

    fn atom(&mut self) -> Result<Expr, String> {
        if self.take("(") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err("brackets within brackets, too deep".into());
            }
            let inner = self.or()?;
            self.depth -= 1;
            self.expect(")")?;
            return Ok(inner);
        }
        let label = self.label()?;
        if self.take("(") {
            return self.call(label);
        }
        let operator = self.operator(label)?;
        Ok(Expr::Literal(Literal::Label(Requirement { key: label.into(), operator })))
    }

    fn call(&mut self, name: &str) -> Result<Expr, String> {
        let expr = match name {
            "all" => Expr::All,
            "global" => Expr::Literal(Literal::Namespaced(false)),
            "has" => {
                let key = self.label()?;
                Expr::Literal(Literal::Label(Requirement { key: key.into(), operator: Operator::Exists }))
            }
            other => return Err(format!("unknown function {other:?}: all(), global() or has(label)")),
        };
        self.expect(")")?;
        Ok(expr)
    }

    fn operator(&mut self, label: &str) -> Result<Operator, String> {
        if self.take("==") {
            return Ok(Operator::In(vec![self.text()?]));
        }
        if self.take("!=") {
            return Ok(Operator::NotIn(vec![self.text()?]));
        }
        for part in [Part::Contains, Part::StartsWith, Part::EndsWith] {
            let words: Vec<&str> = part.as_str().split(' ').collect();
            if self.words(&words) {
                return Ok(Operator::Like(part, self.text()?));
            }
        }
        if self.words(&["not", "in"]) {
            return Ok(self.set()?.map_or(Operator::NotIn(Vec::new()), Operator::NotIn));
        }
        if self.words(&["in"]) {
            return Ok(self.set()?.map_or(Operator::In(Vec::new()), Operator::In));
        }
        Err(format!("no operator after label {label:?}, but {:?}", shortened(self.rest)))
    }

    /// `{"a", "b"}`; `None`: an empty one.
    fn set(&mut self) -> Result<Option<Vec<Str>>, String> {
        self.expect("{")?;
        if self.take("}") {
            return Ok(None);
        }
        let mut values = vec![self.text()?];
        while self.take(",") {
            values.push(self.text()?);
        }
        self.expect("}")?;
        Ok(Some(values))
    }

    fn text(&mut self) -> Result<Str, String> {
        self.space();
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let quote = quote.ok_or_else(|| format!("text in quotes, but {:?}", shortened(self.rest)))?;
        let (text, rest) =
            self.rest[1..].split_once(quote).ok_or_else(|| "a quote that nothing closes".to_string())?;
        self.rest = rest;
        Ok(text.into())
    }

    fn label(&mut self) -> Result<&'a str, String> {
        self.space();
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "-_./".contains(c)))
            .unwrap_or(self.rest.len());
        if end == 0 {
            return Err(format!("a label is missing before {:?}", shortened(self.rest)));
        }
        let (label, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(label)
    }

    /// These words, each whole, with space between them.
    fn words(&mut self, words: &[&str]) -> bool {
        let before = self.rest;
        for word in words {
            self.space();
            let rest = self.rest.strip_prefix(word);
            match rest.filter(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric())) {
                Some(rest) => self.rest = rest,
                None => {
                    self.rest = before;
                    return false;
                }
            }
        }
        true
    }

    fn take(&mut self, token: &str) -> bool {
        self.space();
        // `!` before `=` is half of another word.
        let rest = self.rest.strip_prefix(token).filter(|rest| token != "!" || !rest.starts_with('='));
        rest.map(|rest| self.rest = rest).is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) {
            return Ok(());
        }
        Err(format!("{token:?} is missing before {:?}", shortened(self.rest)))
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

fn shortened(text: &str) -> String {
    match text {
        "" => "the end".into(),
        text => text.chars().take(20).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Labels;
    use crate::selector::Selector;

    fn selects(expression: &str, labels: &[(&str, &str)]) -> bool {
        let labels: Labels = labels.iter().copied().collect();
        parse(expression).expect(expression).iter().any(|conjunction| {
            let requirements = conjunction.iter().map(|literal| match literal {
                Literal::Label(requirement) => requirement.clone(),
                Literal::Namespaced(_) => panic!("{expression}"),
            });
            Selector::new(requirements).matches(&labels)
        })
    }

    #[test]
    fn every_operator_means_what_calico_says() {
        let labels = [("a", "b"), ("app.io/tier", "front-end"), ("empty", "")];
        for (expression, expected) in [
            ("a == 'b'", true),
            ("a==\"b\"", true),
            ("a == 'c'", false),
            ("a != 'c'", true),
            ("missing != 'c'", true),
            ("missing == ''", false),
            ("empty == ''", true),
            ("a in {'b', 'c'}", true),
            ("a in { }", false),
            ("a not in {'b'}", false),
            ("a not in {}", true),
            ("missing not in {'b'}", true),
            ("has(a)", true),
            ("!has(a)", false),
            ("! has(missing)", true),
            ("app.io/tier contains 'nt-e'", true),
            ("app.io/tier starts with 'front'", true),
            ("app.io/tier ends with 'front'", false),
            ("missing contains ''", false),
            ("!(missing contains 'x')", true),
            ("all()", true),
            ("!all()", false),
            ("", true),
            ("a == 'b' && has(missing)", false),
            ("a == 'b' || has(missing)", true),
            ("has(missing) && has(missing) || a == 'b'", true),
            ("has(missing) && (has(missing) || a == 'b')", false),
            ("!(a == 'b' && app.io/tier starts with 'back')", true),
            ("!(a == 'b' || has(missing))", false),
            ("!!has(a)", true),
        ] {
            assert_eq!(selects(expression, &labels), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_no_expression_says_why() {
        for expression in [
            "a",
            "a =",
            "a == b",
            "a == 'b",
            "(a == 'b'",
            "a == 'b')",
            "a in 'b'",
            "a in {'b'",
            "has()",
            "has(a",
            "some(a)",
            "&& has(a)",
            "a == 'b' & has(a)",
            "== 'b'",
            "a starts 'b'",
            "a notin {'b'}",
            "ä == 'b'",
        ] {
            assert!(parse(expression).is_err(), "{expression}");
        }
        assert!(parse(&"(".repeat(1000)).is_err());
        let many: Vec<String> = (0..7).map(|i| format!("(a == '{i}' || has(b{i}))")).collect();
        assert!(parse(&many.join(" && ")).is_err(), "2^7 alternatives");
    }
}
