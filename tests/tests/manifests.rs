//! The manifests that we ship are ones that the agent reads without a complaint.

use std::collections::BTreeMap;
use std::path::Path;

use manx_agent::source::Update;
use manx_agent::source::directory::{Change, Directory};

#[test]
fn the_manifests_of_a_rack_have_no_problem() {
    without_problem("rack", 4, 9);
}

#[test]
fn the_manifests_of_unnumbered_links_have_no_problem() {
    without_problem("unnumbered", 2, 4);
}

/// So many files with so many objects, and nothing to complain of.
fn without_problem(example: &str, count: usize, wanted: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(example);
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("the manifests are there") {
        let path = entry.expect("a directory can be read").path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            files.insert(name, Change::Text(std::fs::read_to_string(&path).expect("a file can be read")));
        }
    }
    assert_eq!(files.len(), count);
    let (mut objects, mut problems) = (0, Vec::new());
    for update in Directory::new().turn(Ok(files)) {
        match update {
            Update::Set(_) => objects += 1,
            Update::Problems(all) => problems.extend(all.iter().map(|p| format!("{p:?}"))),
            Update::Remove(_) | Update::InSync => {}
        }
    }
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(objects, wanted);
}
