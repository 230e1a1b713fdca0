//! The only image that pods here run: busybox, as a docker archive that containerd and podman both load.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use manx_tests::command;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Its name in both runtimes.
pub(crate) const IMAGE: &str = "localhost/manx-test:1";

/// Writes the archive into a directory.
pub(crate) fn write(dir: &Path) -> PathBuf {
    let root = dir.join("rootfs");
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "run", "www"] {
        fs::create_dir_all(root.join(sub)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is installed");
    for tool in ["sh", "sleep", "httpd", "nc", "grep", "cat", "printf"] {
        symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
    tar(&root, &dir.join("layer.tar"), &["."]);
    let layer = fs::read(dir.join("layer.tar")).unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["sleep", "3600"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    fs::write(dir.join(&config_name), config).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = dir.join("image.tar");
    tar(dir, &archive, &[&config_name, "layer.tar", "manifest.json"]);
    archive
}

fn tar(from: &Path, to: &Path, what: &[&str]) {
    command::output(Command::new("tar").arg("-C").arg(from).arg("-cf").arg(to).args(what)).unwrap();
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
