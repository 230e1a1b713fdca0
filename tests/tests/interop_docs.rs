//! docs/interop.md says what is proven with which router. Here it is held to the tests that it names.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

const KINDS: [&str; 4] = ["Bird", "Frr", "Gobgp", "Openbgpd"];

/// A test function of the interop tests with what stands before it, from the end of the item before.
fn source(name: &str) -> String {
    let (file, function) = name.split_once("::").unwrap_or_else(|| panic!("{name} names no file and test"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(format!("{file}.rs"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let at = text.find(&format!("fn {function}(")).unwrap_or_else(|| panic!("there is no test {name}"));
    let begin = text[..at].rfind("\n}\n").map_or(0, |end| end + 3);
    let end = text[at..].find("\n}\n").map_or(text.len(), |end| at + end);
    text[begin..end].to_owned()
}

#[test]
fn a_router_that_is_marked_takes_part_in_the_test_that_is_named() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/interop.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut rows = 0;
    for line in page.lines().filter(|line| line.starts_with("| ") && line.ends_with("` |")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [what, marks @ .., test] = &cells[..] else { panic!("no row: {line}") };
        let test = test.trim_matches('`');
        let source = source(test);
        assert!(source.contains("#[test]") || source.contains("#[rstest]"), "{test} is no test");
        // A test that starts its routers in a fixture has them there.
        let fixture = if source.contains("Fabric::start()") { "Kind::Bird Kind::Frr" } else { "" };
        assert_eq!(marks.len(), KINDS.len(), "{line}");
        for (kind, mark) in KINDS.iter().zip(marks) {
            assert!(["x", "-"].contains(mark), "{line}");
            let named = |by: &str| format!("{source}{fixture}").contains(&format!("{by}::{kind}"));
            let takes_part = named("Kind") || named("Router");
            assert!(takes_part || *mark == "-", "{what}: {kind} has no part in {test}");
        }
        rows += 1;
    }
    assert!(rows > 20, "{rows} rows");
}
