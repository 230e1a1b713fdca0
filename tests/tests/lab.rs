//! The lab as a test: the same program, and so the same checks, as `make lab`.

use std::process::Command;

/// Needs root, and the release binaries that `make build` makes.
#[test]
fn every_check_of_the_lab_passes() {
    run("manx-test", "manifests");
}

#[test]
fn every_check_of_the_lab_passes_with_the_kubernetes_api_as_source() {
    run("manx-test-api", "api");
}

fn run(name: &str, source: &str) {
    // A name of its own: what an interrupted run left is removed by the next one.
    let status = Command::new(env!("CARGO_BIN_EXE_manx-lab"))
        .args(["--name", name, "all", "--source", source])
        .status()
        .expect("cargo has built manx-lab");
    assert!(status.success(), "its own output says which check failed");
}
