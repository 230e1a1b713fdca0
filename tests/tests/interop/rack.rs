//! A switch in a namespace, and the namespaces around it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use manx_tests::command;
use manx_tests::netns::{self, End, Guard, Netns};

/// The namespaces and files of one test; gone when it goes out of scope.
pub(crate) struct Rack {
    prefix: String,
    files: tempfile::TempDir,
    _guard: Guard,
}

/// Which address of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    V4,
    V6,
}

/// The address of member `n`.
pub(crate) fn address(n: u8, over: Over) -> IpAddr {
    match over {
        Over::V4 => Ipv4Addr::new(10, 9, 0, n).into(),
        Over::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

impl Rack {
    /// A switch with `members` namespaces around it.
    pub(crate) fn new(members: u8) -> Rack {
        // Tests may share the process.
        static RACKS: AtomicU32 = AtomicU32::new(0);
        let number = RACKS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("manx-interop-{}-{number}-", std::process::id());
        let guard = Guard::new(&prefix).unwrap();
        let files = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        // OpenBGPD's processes without privilege look into it.
        command::output(command::words("chmod 755").arg(files.path())).unwrap();
        let rack = Rack { prefix, files, _guard: guard };
        let switch = Netns::create(&format!("{}switch", rack.prefix)).unwrap();
        switch.ip("link add br0 type bridge").unwrap();
        switch.ip("link set br0 up").unwrap();
        for n in 1..=members {
            let member = Netns::create(rack.netns(n).name()).unwrap();
            let port = format!("port{n}");
            let addresses =
                vec![format!("{}/24", address(n, Over::V4)), format!("{}/64", address(n, Over::V6))];
            netns::connect(
                &End { netns: &member, interface: "eth0", addresses },
                &End { netns: &switch, interface: &port, addresses: vec![] },
            )
            .unwrap();
            switch.ip(&format!("link set {port} master br0")).unwrap();
        }
        rack
    }

    /// The namespace of member `n`; 1 is Manx's.
    pub(crate) fn netns(&self, n: u8) -> Netns {
        Netns::named(&format!("{}{n}", self.prefix))
    }

    /// Where member `n` keeps its files.
    pub(crate) fn dir(&self, n: u8) -> PathBuf {
        self.files.path().join(n.to_string())
    }

    /// A counter of `nstat` in the namespace of member `n`, since the namespace was made.
    pub(crate) fn counter(&self, n: u8, name: &str) -> u64 {
        let out = self.netns(n).run(&format!("nstat -asz {name}")).unwrap();
        let line = out.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {out}"));
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        // FRR's directories are named after namespaces.
        for netns in netns::with_prefix(&self.prefix) {
            let _ = std::fs::remove_dir_all(std::path::Path::new("/run/frr").join(netns.name()));
        }
    }
}
