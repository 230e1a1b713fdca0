//! One node, its pods and one stranger as network namespaces; sockets in each of them.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use manx_policy::model::Protocol;
use nix::sched::{CloneFlags, setns};

/// How long an allowed packet may take on a busy machine before it counts as denied.
const PATIENCE: Duration = Duration::from_millis(800);

/// The ports on which everybody listens.
pub(crate) const PORTS: [u16; 3] = [80, 8080, 5353];

/// Runs a command; its output, or a panic with what it said.
pub(crate) fn run(command: &mut Command, input: Option<&str>) -> String {
    let said = try_run(command, input);
    said.unwrap_or_else(|error| panic!("{command:?}: {error}\n{}", input.unwrap_or_default()))
}

/// Runs a command; its output or what it said on failure.
pub(crate) fn try_run(command: &mut Command, input: Option<&str>) -> Result<String, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().unwrap();
    let input = input.unwrap_or_default().to_string();
    let writer = thread::spawn(move || _ = stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    writer.join().unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A network namespace of ours; gone when dropped.
#[derive(Debug)]
pub(crate) struct Netns {
    pub(crate) name: String,
}

impl Netns {
    pub(crate) fn new(purpose: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("manxpol-{}-{count}-{purpose}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]), None);
        let netns = Netns { name };
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    pub(crate) fn ip(&self, args: &[&str]) {
        run(Command::new("ip").args(["-n", &self.name]).args(args), None);
    }

    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args);
        command
    }

    pub(crate) fn sysctl(&self, setting: &str) {
        run(&mut self.command("sysctl", &["-qw", setting]), None);
    }

    /// Runs something on a thread inside.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.name);
        thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Listens on every port, TCP and UDP, on all addresses. The threads end with the process.
    pub(crate) fn listen(&self) {
        let (ready, is_ready) = mpsc::channel();
        let mut expected = 0;
        for port in PORTS {
            // One socket for both families.
            let address: SocketAddr = format!("[::]:{port}").parse().unwrap();
            let (tcp, udp) = (ready.clone(), ready.clone());
            expected += 2;
            self.inside(move || {
                let listener = TcpListener::bind(address).unwrap();
                tcp.send(()).unwrap();
                while let Ok((connection, _)) = listener.accept() {
                    drop(connection);
                }
            });
            self.inside(move || {
                let socket = UdpSocket::bind(address).unwrap();
                udp.send(()).unwrap();
                let mut buffer = [0; 64];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    _ = socket.send_to(&buffer[..length], from);
                }
            });
        }
        for _ in 0..expected {
            is_ready.recv().unwrap();
        }
    }

    /// Does a new flow from here get there and back?
    pub(crate) fn reaches(&self, to: IpAddr, protocol: Protocol, port: u16) -> thread::JoinHandle<bool> {
        self.inside(move || {
            let address = SocketAddr::new(to, port);
            match protocol {
                Protocol::Tcp => TcpStream::connect_timeout(&address, PATIENCE).is_ok(),
                Protocol::Udp => {
                    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(any).unwrap();
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    socket.connect(address).unwrap();
                    socket.send(b"manx").is_ok() && socket.recv(&mut [0; 64]).is_ok()
                }
                Protocol::Sctp => panic!("the kernel here has no SCTP sockets"),
            }
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        _ = try_run(Command::new("ip").args(["netns", "del", &self.name]), None);
    }
}

/// Somebody who lives behind an interface of the node.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) interface: String,
    pub(crate) addresses: [IpAddr; 2],
}

/// A node with pods and one stranger.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) node: Netns,
}

pub(crate) const NODE_ADDRESSES: [&str; 2] = ["172.16.0.1", "fd10::1"];

impl Lab {
    pub(crate) fn new() -> Self {
        let node = Netns::new("node");
        for setting in
            ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.all.accept_dad=0"]
        {
            node.sysctl(setting);
        }
        node.ip(&["addr", "add", &format!("{}/32", NODE_ADDRESSES[0]), "dev", "lo"]);
        node.ip(&["addr", "add", &format!("{}/128", NODE_ADDRESSES[1]), "dev", "lo", "nodad"]);
        node.listen();
        Lab { node }
    }

    /// Joins a new namespace to the node by a veth pair, with a host route and fixed neighbours, as a pod is joined.
    pub(crate) fn join(&self, interface: &str, addresses: [IpAddr; 2]) -> Host {
        let netns = Netns::new("pod");
        let inner = ["address", "02:00:00:00:00:02", "netns", &netns.name];
        let mut args = vec![
            "link",
            "add",
            interface,
            "address",
            "02:00:00:00:00:01",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
        ];
        args.extend(inner);
        self.node.ip(&args);
        self.node.ip(&["link", "set", interface, "up"]);
        netns.ip(&["link", "set", "eth0", "up"]);
        for (address, gateway) in addresses.iter().zip(["169.254.1.1", "fe80::1"]) {
            let full = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            match family {
                "-4" => netns.ip(&["addr", "add", &full, "dev", "eth0"]),
                _ => netns.ip(&["addr", "add", &full, "dev", "eth0", "nodad"]),
            }
            netns.ip(&[
                "neigh",
                "add",
                gateway,
                "lladdr",
                "02:00:00:00:00:01",
                "dev",
                "eth0",
                "nud",
                "permanent",
            ]);
            netns.ip(&[family, "route", "add", "default", "via", gateway, "dev", "eth0", "onlink"]);
            self.node.ip(&["route", "add", &full, "dev", interface]);
            let address = address.to_string();
            self.node.ip(&[
                "neigh",
                "add",
                &address,
                "lladdr",
                "02:00:00:00:00:02",
                "dev",
                interface,
                "nud",
                "permanent",
            ]);
        }
        netns.listen();
        Host { netns, interface: interface.to_string(), addresses }
    }
}
