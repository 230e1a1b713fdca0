//! Beside kube-proxy: rules of its shape in the same kernel, in iptables and in nf_tables, and packets through ClusterIP, NodePort,
//! externalTrafficPolicy Local and hostPort from pods, from a node and from outside. Policy judges what a packet has become
//! (after DNAT, before masquerading), and neither program's rules disturb the other's. Needs root.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use manx_tests::agent::built_binaries;
use manx_tests::netns::Netns;
use manx_tests::probe::server::Server;
use manx_tests::probe::{Outcome, Proto, client};
use manx_tests::scenario::rack::{Rack, World, node_address};
use manx_tests::wait;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
/// For a connection that nobody lets through.
const IN_VAIN: Duration = Duration::from_millis(800);
/// Where the pods answer.
const TARGET: u16 = 8080;
/// Service `web`: its endpoint is x/b, on node-2.
const WEB: u16 = 30080;
/// Service `local`, externalTrafficPolicy Local: its endpoint is x/a, on node-1.
const LOCAL: u16 = 30081;
/// x/a's hostPort.
const HOST_PORT: u16 = 8888;

#[derive(Clone, Copy)]
enum Mode {
    /// kube-proxy's iptables mode, by `iptables-nft` or `iptables-legacy`.
    Iptables(&'static str),
    /// Its nftables mode.
    Nftables,
}

struct Stage {
    rack: Rack,
    world: World,
    mode: Mode,
    outside: Netns,
    _servers: Vec<Server>,
}

/// A family's addresses.
struct Plan {
    v6: bool,
    web_ip: IpAddr,
    local_ip: IpAddr,
    web: IpAddr,
    local: IpAddr,
    pods: &'static str,
}

impl Plan {
    fn new(rack: &Rack, v6: bool) -> Self {
        let service = |last: u8| {
            if v6 { format!("fd00:96::{last}") } else { format!("10.96.0.{last}") }
                .parse()
                .expect("an address")
        };
        Plan {
            v6,
            web_ip: service(10),
            local_ip: service(11),
            web: rack.pods["x/b"].address(v6),
            local: rack.pods["x/a"].address(v6),
            pods: if v6 { "fd00:10:200::/48" } else { "10.200.0.0/16" },
        }
    }

    /// `10.0.0.1:80` or `[fd00::1]:80`.
    fn socket(&self, ip: IpAddr) -> String {
        if self.v6 { format!("[{ip}]:{TARGET}") } else { format!("{ip}:{TARGET}") }
    }

    /// What kube-proxy writes in iptables mode, as of Kubernetes 1.33, and the runtime's portmap for the hostPort. `here`: the
    /// node has the endpoint of `local`.
    fn iptables(&self, here: bool) -> String {
        let (web_ip, local_ip, web, local, pods) =
            (self.web_ip, self.local_ip, self.web, self.local, self.pods);
        let (to_web, to_local) = (self.socket(web), self.socket(local));
        let mut text = String::new();
        let mut put = |line: &str| writeln!(text, "{line}").expect("writing to a String cannot fail");
        put("*nat");
        for chain in [
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
            "KUBE-SVC-WEB",
            "KUBE-SEP-WEB",
            "KUBE-EXT-WEB",
            "KUBE-SVC-LOCAL",
            "KUBE-SVL-LOCAL",
            "KUBE-SEP-LOCAL",
            "KUBE-EXT-LOCAL",
            "CNI-HOSTPORT-DNAT",
            "CNI-HOSTPORT-SETMARK",
            "CNI-HOSTPORT-MASQ",
        ] {
            put(&format!(":{chain} - [0:0]"));
        }
        put("-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000");
        put("-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN");
        put("-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000");
        put("-A KUBE-POSTROUTING -j MASQUERADE --random-fully");
        put(&format!("-A KUBE-SERVICES -d {web_ip} -p tcp -m tcp --dport 80 -j KUBE-SVC-WEB"));
        put(&format!("-A KUBE-SERVICES -d {local_ip} -p tcp -m tcp --dport 80 -j KUBE-SVC-LOCAL"));
        put("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
        put(&format!("-A KUBE-NODEPORTS -p tcp -m tcp --dport {WEB} -j KUBE-EXT-WEB"));
        put(&format!("-A KUBE-NODEPORTS -p tcp -m tcp --dport {LOCAL} -j KUBE-EXT-LOCAL"));
        put("-A KUBE-EXT-WEB -j KUBE-MARK-MASQ");
        put("-A KUBE-EXT-WEB -j KUBE-SVC-WEB");
        put(&format!("-A KUBE-SVC-WEB ! -s {pods} -d {web_ip} -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ"));
        put("-A KUBE-SVC-WEB -j KUBE-SEP-WEB");
        put(&format!("-A KUBE-SEP-WEB -s {web} -j KUBE-MARK-MASQ"));
        put(&format!("-A KUBE-SEP-WEB -p tcp -m tcp -j DNAT --to-destination {to_web}"));
        put(&format!("-A KUBE-EXT-LOCAL -s {pods} -j KUBE-SVC-LOCAL"));
        put("-A KUBE-EXT-LOCAL -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ");
        put("-A KUBE-EXT-LOCAL -m addrtype --src-type LOCAL -j KUBE-SVC-LOCAL");
        if here {
            put("-A KUBE-EXT-LOCAL -j KUBE-SVL-LOCAL");
            put("-A KUBE-SVL-LOCAL -j KUBE-SEP-LOCAL");
        }
        put(&format!(
            "-A KUBE-SVC-LOCAL ! -s {pods} -d {local_ip} -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ"
        ));
        put("-A KUBE-SVC-LOCAL -j KUBE-SEP-LOCAL");
        put(&format!("-A KUBE-SEP-LOCAL -s {local} -j KUBE-MARK-MASQ"));
        put(&format!("-A KUBE-SEP-LOCAL -p tcp -m tcp -j DNAT --to-destination {to_local}"));
        if here {
            put("-A CNI-HOSTPORT-SETMARK -j MARK --or-mark 0x2000");
            put("-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE");
            put(&format!(
                "-A CNI-HOSTPORT-DNAT -s {local} -p tcp -m tcp --dport {HOST_PORT} -j CNI-HOSTPORT-SETMARK"
            ));
            put(&format!(
                "-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport {HOST_PORT} -j DNAT --to-destination {to_local}"
            ));
        }
        put("COMMIT");
        put("*filter");
        for chain in [
            "KUBE-FORWARD",
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-EXTERNAL-SERVICES",
        ] {
            put(&format!(":{chain} - [0:0]"));
        }
        put("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP");
        put("-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT");
        put("-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        if !here {
            put(&format!(
                "-A KUBE-EXTERNAL-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport {LOCAL} -j DROP"
            ));
        }
        put("COMMIT");
        text
    }

    /// The same in nftables mode: verdict maps by address and port, and by port.
    fn nftables(&self, here: bool) -> String {
        let (web_ip, local_ip, web, local, pods) =
            (self.web_ip, self.local_ip, self.web, self.local, self.pods);
        let (ip, kind) = if self.v6 { ("ip6", "ipv6_addr") } else { ("ip", "ipv4_addr") };
        let (to_web, to_local) = (self.socket(web), self.socket(local));
        let externally = if here { "goto endpoint-local" } else { "drop" };
        let host_port = match here {
            true => format!("fib daddr type local tcp dport {HOST_PORT} goto endpoint-local"),
            false => String::new(),
        };
        let text = format!(
            "add table {ip} kube-proxy
delete table {ip} kube-proxy
table {ip} kube-proxy {{
  map service-ips {{ type {kind} . inet_proto . inet_service : verdict
    elements = {{ {web_ip} . tcp . 80 : goto service-web, {local_ip} . tcp . 80 : goto service-local }} }}
  map service-nodeports {{ type inet_proto . inet_service : verdict
    elements = {{ tcp . {WEB} : goto external-web, tcp . {LOCAL} : goto external-local }} }}
  set cluster-ips {{ type {kind}; elements = {{ {web_ip}, {local_ip} }} }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services }}
  chain nat-output {{ type nat hook output priority -100; policy accept; jump services }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept; jump masquerading }}
  chain filter-forward {{ type filter hook forward priority -110; policy accept; ct state new jump cluster-ips-check }}
  chain cluster-ips-check {{ {ip} daddr @cluster-ips reject }}
  chain masquerading {{
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }}
  chain mark-for-masquerade {{ meta mark set meta mark | 0x4000 }}
  chain services {{
    {ip} daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local meta l4proto . th dport vmap @service-nodeports
    {host_port}
  }}
  chain service-web {{
    {ip} daddr {web_ip} tcp dport 80 {ip} saddr != {pods} jump mark-for-masquerade
    numgen random mod 1 vmap {{ 0 : goto endpoint-web }}
  }}
  chain service-local {{
    {ip} daddr {local_ip} tcp dport 80 {ip} saddr != {pods} jump mark-for-masquerade
    numgen random mod 1 vmap {{ 0 : goto endpoint-local }}
  }}
  chain external-web {{ jump mark-for-masquerade; goto service-web }}
  chain external-local {{
    {ip} saddr {pods} goto service-local
    fib saddr type local jump mark-for-masquerade
    fib saddr type local goto service-local
    {externally}
  }}
  chain endpoint-web {{
    {ip} saddr {web} jump mark-for-masquerade
    meta l4proto tcp dnat to {to_web}
  }}
  chain endpoint-local {{
    {ip} saddr {local} jump mark-for-masquerade
    meta l4proto tcp dnat to {to_local}
  }}
}}
"
        );
        // Debian's nft wants each statement ended before its chain is.
        text.replace(" }", "\n}")
    }
}

/// The jumps that kube-proxy keeps, with table and chain; it puts them first, whatever is there.
const JUMPS: [(&str, &str, &str); 10] = [
    ("nat", "PREROUTING", "-j KUBE-SERVICES"),
    ("nat", "OUTPUT", "-j KUBE-SERVICES"),
    ("nat", "POSTROUTING", "-j KUBE-POSTROUTING"),
    ("nat", "PREROUTING", "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"),
    ("nat", "POSTROUTING", "-j CNI-HOSTPORT-MASQ"),
    ("filter", "INPUT", "-m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES"),
    ("filter", "INPUT", "-j KUBE-NODEPORTS"),
    ("filter", "FORWARD", "-j KUBE-FORWARD"),
    ("filter", "FORWARD", "-m conntrack --ctstate NEW -j KUBE-SERVICES"),
    ("filter", "FORWARD", "-m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL"),
];

impl Stage {
    fn up(name: &str, backend: &str, mode: Mode) -> Self {
        let name = format!("{name}{}", std::process::id());
        let mut rack = Rack::up(&name, 2, backend, &built_binaries()).expect("the rack comes up");
        let world = World::new();
        rack.apply(&world).expect("the agents follow");
        let servers = ["x/a", "x/b"].map(|pod| Server::start(&rack.pods[pod].netns).expect("it answers"));
        let outside = Netns::named(&format!("{name}-router"));
        let stage = Stage { rack, world, mode, outside, _servers: servers.into() };
        stage.sync_proxy(true);
        stage
    }

    /// A turn of kube-proxy on each node: all that it has to say, and its jumps in front where they are not there or `again`.
    fn sync_proxy(&self, again: bool) {
        for (node, v6) in [("node-1", false), ("node-1", true), ("node-2", false), ("node-2", true)] {
            let plan = Plan::new(&self.rack, v6);
            let here = node == "node-1";
            let netns = &self.rack.nodes[node].agent.netns;
            let Mode::Iptables(backend) = self.mode else {
                feed(netns, "nft", &["-f", "-"], &plan.nftables(here));
                continue;
            };
            let tool = format!("{}-{backend}", if v6 { "ip6tables" } else { "iptables" });
            feed(netns, &format!("{tool}-restore"), &["--noflush", "--wait"], &plan.iptables(here));
            for (table, chain, jump) in JUMPS {
                let there = netns.run(&format!("{tool} -w -t {table} -C {chain} {jump}")).is_ok();
                if there && again {
                    run(netns, &format!("{tool} -w -t {table} -D {chain} {jump}"));
                }
                if !there || again {
                    run(netns, &format!("{tool} -w -t {table} -I {chain} {jump}"));
                }
            }
        }
    }

    fn apply(&mut self, objects: &[(&str, Value)]) {
        self.world.objects =
            objects.iter().map(|(name, object)| ((*name).to_owned(), object.clone())).collect();
        self.rack.apply(&self.world).expect("the agents follow");
    }

    fn of(&self, who: &str) -> Netns {
        match who {
            "outside" => self.outside.clone(),
            node if node.starts_with("node-") => self.rack.nodes[node].agent.netns.clone(),
            pod => self.rack.pods[pod].netns.clone(),
        }
    }

    /// As whom the server saw the connection; `None`: it did not come.
    fn connect(&self, who: &str, to: IpAddr, port: u16, limit: Duration) -> Option<IpAddr> {
        match client::probe(&self.of(who), Proto::Tcp, to, port, limit).expect("it can be probed") {
            Outcome::Answered(answer) => answer.seen_as,
            _ => None,
        }
    }

    /// It gets through, seen as `source`.
    fn reaches(&self, who: &str, to: IpAddr, port: u16, source: IpAddr) {
        let through = || self.connect(who, to, port, Duration::from_secs(2)).ok_or("no answer");
        let seen = wait::until(PATIENCE, through);
        let (seen, _) = seen.unwrap_or_else(|e| panic!("{who} to {to} port {port}: {e}\n{}", self.rules()));
        assert_eq!(seen, source, "{who} to {to} port {port} is seen as somebody else");
    }

    /// It does not.
    fn is_stopped(&self, who: &str, to: IpAddr, port: u16) {
        let seen = self.connect(who, to, port, IN_VAIN);
        assert_eq!(seen, None, "{who} to {to} port {port} gets through\n{}", self.rules());
    }

    fn address(&self, who: &str, v6: bool) -> IpAddr {
        match who {
            "node-1" => node_address(1, v6),
            "node-2" => node_address(2, v6),
            // The router's end of the cable to each node.
            "outside-1" => if v6 { "fd00:99:1::" } else { "10.99.1.0" }.parse().expect("an address"),
            "outside-2" => if v6 { "fd00:99:2::" } else { "10.99.2.0" }.parse().expect("an address"),
            pod => self.rack.pods[pod].address(v6),
        }
    }

    fn rules(&self) -> String {
        let netns = &self.rack.nodes["node-1"].agent.netns;
        netns.run("nft list ruleset").unwrap_or_default()
    }

    /// kube-proxy's own rules: in iptables line by line without counters, in nf_tables word by word, since maps have no order.
    fn proxy_rules(&self, node: &str) -> Vec<String> {
        let netns = &self.rack.nodes[node].agent.netns;
        let mut rules: Vec<String> = match self.mode {
            Mode::Nftables => ["ip", "ip6"]
                .iter()
                .flat_map(|family| {
                    let text =
                        run(netns, &format!("nft -s list table {family} kube-proxy")).replace(',', " ");
                    text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
                })
                .collect(),
            Mode::Iptables(backend) => ["iptables", "ip6tables"]
                .iter()
                .flat_map(|tool| {
                    let text = run(netns, &format!("{tool}-{backend}-save"));
                    let theirs = |line: &&str| line.contains("KUBE-") || line.contains("CNI-HOSTPORT");
                    let bare = |line: &str| line.split_once(" [").map_or(line, |(chain, _)| chain).to_owned();
                    text.lines().filter(theirs).map(bare).collect::<Vec<_>>()
                })
                .collect(),
        };
        rules.sort();
        rules
    }

    /// What holds whatever policy says about x, as long as it lets y in.
    fn carries_y(&self) {
        for v6 in [false, true] {
            let plan = Plan::new(&self.rack, v6);
            let ip = |who| self.address(who, v6);
            // Nothing of a pod is translated on the way to a ClusterIP but the destination.
            self.reaches("y/a", plan.web_ip, 80, ip("y/a"));
            self.reaches("y/a", plan.local_ip, 80, ip("y/a"));
            self.reaches("y/b", plan.local_ip, 80, ip("y/b"));
            // A NodePort of the pod's own node, its endpoint there as well: judged before it is masqueraded.
            self.reaches("y/b", ip("node-2"), WEB, ip("node-2"));
            self.reaches("y/b", ip("node-1"), LOCAL, ip("y/b"));
            self.reaches("y/a", ip("node-1"), HOST_PORT, ip("y/a"));
            // A node reaches its own pods, as the kubelet must.
            self.reaches("node-1", plan.local_ip, 80, ip("node-1"));
            self.reaches("node-2", ip("node-2"), WEB, ip("node-2"));
        }
    }

    fn carries_outside(&self) {
        for v6 in [false, true] {
            let ip = |who| self.address(who, v6);
            self.reaches("outside", ip("node-1"), LOCAL, ip("outside-1"));
            self.reaches("outside", ip("node-1"), HOST_PORT, ip("outside-1"));
            // Masqueraded, since the mark of kube-proxy is on it.
            self.reaches("outside", ip("node-2"), WEB, ip("node-2"));
            // externalTrafficPolicy Local, and no endpoint here.
            self.is_stopped("outside", ip("node-2"), LOCAL);
        }
    }

    /// z and the world outside are not let in, by whatever address they ask.
    fn stops_strangers(&self) {
        for v6 in [false, true] {
            let plan = Plan::new(&self.rack, v6);
            let ip = |who| self.address(who, v6);
            for (to, port) in
                [(plan.web_ip, 80), (plan.local_ip, 80), (ip("node-2"), WEB), (ip("node-1"), HOST_PORT)]
            {
                self.is_stopped("z/a", to, port);
            }
            self.is_stopped("z/b", ip("node-2"), WEB);
            self.is_stopped("outside", ip("node-1"), LOCAL);
            self.is_stopped("outside", ip("node-1"), HOST_PORT);
            // kube-proxy accepts what has its mark; policy is asked before.
            self.is_stopped("outside", ip("node-2"), WEB);
        }
    }
}

fn feed(netns: &Netns, program: &str, arguments: &[&str], text: &str) {
    let mut command = netns.command(program);
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program is there");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {words}\n{text}");
}

fn run(netns: &Netns, line: &str) -> String {
    netns.run(line).unwrap_or_else(|error| panic!("{error:#}"))
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Into x come only those of y, to the port of the endpoint and not to that of the Service; and, if so, the world outside.
fn only_y(outside_too: bool) -> Value {
    let mut from = vec![json!({"namespaceSelector": {"matchLabels": {"ns": "y"}}})];
    if outside_too {
        from.extend(["10.99.0.0/16", "fd00:99::/32"].map(|cidr| json!({"ipBlock": {"cidr": cidr}})));
    }
    let ports = json!([{"port": TARGET}]);
    policy(
        "x",
        "only-y",
        &json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": ports}]}),
    )
}

fn lives_beside(name: &str, backend: &str, mode: Mode) {
    let mut stage = Stage::up(name, backend, mode);
    let written = ["node-1", "node-2"].map(|node| stage.proxy_rules(node));
    stage.carries_y();
    stage.carries_outside();

    stage.apply(&[("only-y", only_y(false))]);
    stage.carries_y();
    stage.stops_strangers();

    // kube-proxy starts anew and puts its jumps in front of ours.
    stage.sync_proxy(true);
    let v4 = |who: &str| stage.address(who, false);
    let shut = || match stage.connect("outside", v4("node-2"), WEB, IN_VAIN) {
        None => Ok(()),
        Some(seen) => Err(format!("open for {seen}")),
    };
    wait::until(PATIENCE, shut).unwrap_or_else(|e| panic!("{e}\n{}", stage.rules()));
    stage.stops_strangers();
    stage.carries_y();

    stage.apply(&[("only-y", only_y(true))]);
    stage.carries_outside();
    stage.sync_proxy(false);
    stage.carries_y();

    // The sender's side is asked about the endpoint too: y/a may go to x/b alone, by whatever name.
    let to = json!([{"namespaceSelector": {"matchLabels": {"ns": "x"}}, "podSelector": {"matchLabels": {"pod": "b"}}}]);
    let egress = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"],
                        "egress": [{"to": to, "ports": [{"port": TARGET}]}]});
    stage.apply(&[("only-y", only_y(true)), ("to-b", policy("y", "to-b", &egress))]);
    for v6 in [false, true] {
        let plan = Plan::new(&stage.rack, v6);
        stage.reaches("y/a", plan.web_ip, 80, stage.address("y/a", v6));
        stage.is_stopped("y/a", plan.local_ip, 80);
    }
    for (node, written) in ["node-1", "node-2"].into_iter().zip(written) {
        assert_eq!(stage.proxy_rules(node), written, "kube-proxy's rules on {node} are as it wrote them");
    }
}

#[test]
fn kernel_beside_kube_proxy_in_iptables_nft() {
    lives_beside("mxkn", "nft", Mode::Iptables("nft"));
}

#[test]
fn kernel_beside_kube_proxy_in_iptables_legacy() {
    lives_beside("mxkl", "legacy", Mode::Iptables("legacy"));
}

#[test]
fn kernel_beside_kube_proxy_in_nftables() {
    lives_beside("mxkt", "nft", Mode::Nftables);
}
