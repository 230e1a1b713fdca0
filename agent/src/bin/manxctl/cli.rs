//! The command tree.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use manx_bgp::types::Prefix;

/// Asks the Manx agent of this node what it does and why.
///
/// Exit status: 0 yes or healthy, 1 no (down, absent, wrong), 2 usage, 3 agent unreachable, 4 a part of the answer is missing,
/// 5 no permission.
#[derive(Parser, Debug)]
#[command(name = "manxctl", version)]
pub(crate) struct Cli {
    /// Run directory of the agent.
    #[arg(long, global = true, env = "MANX_RUN_DIR", default_value = "/run/manx", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    /// Run this on another node, in the agent's pod there (by `kubectl exec`); `kubectl manx` wants it.
    #[arg(long, global = true, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// Namespace of the agents' pods, along with --node.
    #[arg(
        long,
        global = true,
        env = "MANX_NAMESPACE",
        default_value = "manx-system",
        value_name = "NAMESPACE"
    )]
    pub(crate) namespace: String,
    /// How to print.
    #[arg(short, long, global = true, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
    /// Ask again and again, every 2s or as given; with -o json one line for each change.
    #[arg(short, long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "2s",
          value_parser = interval, value_name = "INTERVAL")]
    pub(crate) watch: Option<Duration>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// The same with more columns.
    Wide,
    /// The document as the agent gives it.
    Json,
    /// The same as YAML.
    Yaml,
    /// Names alone, one a line.
    Name,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Whether the agent is healthy, and what is wrong if not.
    Status,
    /// What breaks networks like this one on this node, each with what was observed and how to mend it.
    ///
    /// Looks at the host itself and changes nothing; works without an agent as well. Exits with 1 if anything is found.
    Doctor(DoctorArgs),
    /// Pack all that helps to understand this node into one file, without secrets.
    ///
    /// What the agent says (status, peers with their history, routes, policy, addresses), what doctor finds, the kernel's
    /// addresses, routes, rules, sets and settings, the end of the log. What cannot be had is named in it; exits with 4 then.
    Bundle {
        /// The file, a .tar.gz; - is standard output. Named after node and time where it is not given.
        file: Option<PathBuf>,
        #[command(flatten)]
        places: DoctorArgs,
    },
    /// BGP peers of this node.
    Peers,
    /// One BGP peer.
    Peer {
        #[command(subcommand)]
        command: PeerCommand,
    },
    /// Routes: the table of this node, or what a peer told or was told.
    Routes(RoutesArgs),
    /// One route.
    Route {
        #[command(subcommand)]
        command: RouteCommand,
    },
    /// This node as a whole.
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// What happens on this node from now on, a line each.
    ///
    /// Sessions, best routes, next hops, repairs of kernel routes, changes of the packet filter, faults of the
    /// configuration. Of many route changes at once the first hundred in a second are told and the rest is counted; so is
    /// what a reader that is too slow has missed. Ends with the agent (exit status 3).
    Watch {
        /// Only these.
        #[arg(long, value_delimiter = ',', value_name = "TOPIC", value_parser = manx_agent::view::TOPICS)]
        only: Vec<String>,
    },
    /// Packets that policy has dropped on this node, by which rule of which policy; the latest 256, or with -f those to come.
    ///
    /// Each rule logs ten packets a second at most (NFLOG group 77); all that it drops is in its counter: `policy ls -o wide`,
    /// and the metric manx_policy_drops_total. Where no policy allows a packet, those that isolate the pod are named.
    Drops(DropsArgs),
    /// Network policy.
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Addresses of this node's pods.
    Ipam,
    /// Pods attached to this node.
    Pods,
    /// Configuration objects.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Versions of manxctl and of the agent.
    Version,
    /// Print a completion script.
    Completion {
        /// For this shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

#[derive(Subcommand, Debug)]
pub(crate) enum PeerCommand {
    /// All that is known of it. Exits with 1 unless it is Established.
    Show {
        /// Its address or its name.
        peer: String,
    },
    /// Why it is down: what a session needs, from the configuration up, and the first thing that is missing.
    ///
    /// Climbs a fixed ladder: selected by a BGPPeer, enabled, secret, filters, local address, route, neighbour (ARP), TCP
    /// (refused, silent, MD5, TTL), OPEN, families, NOTIFICATION, BFD, prefix limit. Exits with 1 if a rung fails.
    Why {
        /// Its address or its name; also an address that is no peer, to see why not.
        peer: String,
    },
    /// What became of its sessions: transitions with their reasons, oldest first.
    ///
    /// Kept over changes of the peer's configuration, not over a restart of the agent. While a session is down, equal
    /// attempts share a line.
    History {
        /// Its address or its name; of a peer that was removed, its name.
        peer: String,
    },
    /// End its session with Cease/Administrative Reset and begin anew.
    ///
    /// Also lifts a stop for too many prefixes. With --soft the session stays up and only routes are exchanged again.
    Reset {
        /// Its address or its name.
        peer: String,
        /// Ask for its routes again (in), send ours again (out), or both.
        #[arg(long, num_args = 0..=1, default_missing_value = "both", value_name = "DIRECTION")]
        soft: Option<Soft>,
    },
    /// Take it down with Cease/Administrative Shutdown, until it is enabled.
    ///
    /// Goes over the peer's configuration and stays through its changes; a change of spec.shutdown itself or a restart of
    /// the agent brings the configuration back.
    Disable {
        /// Its address or its name.
        peer: String,
        /// What its operator shall read (RFC 9003), at most 255 bytes.
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        message: String,
    },
    /// Let it come up, also where its configuration says shutdown.
    Enable {
        /// Its address or its name.
        peer: String,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Take this node out of routing without loss: GRACEFUL_SHUTDOWN first, after the delay the end of all sessions.
    ///
    /// Peers that know RFC 8326 prefer other ways at once; the sessions end with Cease/Administrative Shutdown. Stays
    /// through restarts of the agent, until `undrain` or a reboot. With -w it shows how far it has come, and ends with it.
    Drain {
        /// How long peers have to find other ways, such as 30s; the configuration's (spec.drain.delay) if not given.
        #[arg(long, value_parser = seconds, value_name = "DELAY")]
        delay: Option<u64>,
        /// What the operators of the peers shall read (RFC 9003), at most 255 bytes.
        #[arg(long, value_name = "TEXT")]
        message: Option<String>,
    },
    /// Take a drain back: routes are as before, and sessions come up again.
    Undrain,
}

/// What a soft reset exchanges again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Soft {
    /// The peer's routes.
    In,
    /// Ours.
    Out,
    /// Both.
    Both,
}

/// Where the container runtime looks for networks.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Directory that the container runtime reads CNI configuration from.
    #[arg(long, env = "MANX_CNI_CONF_DIR", default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub(crate) cni_conf_dir: PathBuf,
    /// Directory of the CNI plugin binaries.
    #[arg(long, env = "MANX_CNI_BIN_DIR", default_value = "/opt/cni/bin", value_name = "DIR")]
    pub(crate) cni_bin_dir: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct DropsArgs {
    /// A line for each packet from now on; ends with the agent (exit status 3).
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only packets from this pod or to it, NAMESPACE/NAME.
    #[arg(long, value_name = "POD")]
    pub(crate) pod: Option<String>,
    /// Only those that this policy drops, as `policy trace` names it.
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RoutesArgs {
    #[command(subcommand)]
    pub(crate) table: Option<Table>,
    /// Best paths only.
    #[arg(long, global = true)]
    pub(crate) best: bool,
    /// Refused paths only, with the reason.
    #[arg(long, global = true, conflicts_with = "best")]
    pub(crate) rejected: bool,
    /// What differs between this table and the kernel's: missing, changed, or under our number and nobody's. Exits with
    /// 1 if anything does.
    #[arg(long, conflicts_with_all = ["best", "rejected"])]
    pub(crate) drift: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Table {
    /// What a peer told us.
    In {
        /// Its address or its name.
        peer: String,
    },
    /// What we told a peer.
    Out {
        /// Its address or its name.
        peer: String,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum RouteCommand {
    /// Where a packet to an address goes, and whose route that is.
    Get {
        /// The address.
        ip: IpAddr,
    },
    /// Why a prefix goes where it goes: its paths, filters, and the kernel.
    Why {
        /// The prefix.
        prefix: Prefix,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum PolicyCommand {
    /// Which policies hold for a pod, or for each pod of a namespace.
    For {
        /// A pod as NAMESPACE/NAME or by its address, or a NAMESPACE.
        target: String,
    },
    /// Every policy, in the order in which they are asked, and since when this node enforces it.
    Ls,
    /// What happens to a flow, rule by rule. Exits with 1 where it is denied.
    Trace {
        /// Who opens it: NAMESPACE/NAME or an address.
        source: String,
        /// To whom: NAMESPACE/NAME or an address, then :PORT and /PROTO (tcp); without a port a ping. IPv6 in brackets.
        #[arg(value_name = "DESTINATION[:PORT[/PROTO]]")]
        destination: String,
    },
    /// Which flows of this node's pods proposed objects would cut or open, and which that live now they would end. Exits with
    /// 1 where one is cut.
    ///
    /// Tries each pod of this node with each kind of peer on each port that a rule names, and every entry of conntrack.
    Diff {
        /// Manifest of the objects as they would be; - is standard input.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// The rules of a pod of this node, as iptables-save would print them.
    Render {
        /// The pod, NAMESPACE/NAME.
        pod: String,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum ConfigCommand {
    /// Check manifests as the agent would, without one.
    Validate {
        /// Manifests, or directories of them; - is standard input.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// What is in force on this node, and where each value comes from: defaults, our objects, Calico's, annotations.
    ///
    /// Of peers only what differs from the default is shown; -o wide shows all, and the peers of other nodes.
    Effective,
    /// Print what objects for another network mean in ours, and name what has no equal here.
    ///
    /// Reads what `kubectl get -o yaml` prints of Calico's BGPPeer, BGPConfiguration and BGPFilter, of Nodes with
    /// kube-router's annotations, or of MetalLB's kinds. What cannot be said as it was meant is left out and named in a
    /// comment; exits with 4 then.
    Import {
        /// Whose objects they are.
        #[arg(value_enum)]
        origin: ImportFrom,
        /// Files with the objects; - is standard input.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// Whose objects are imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportFrom {
    /// projectcalico.org.
    Calico,
    /// Annotations of Nodes.
    KubeRouter,
    /// metallb.io.
    Metallb,
}

impl Command {
    /// Prints as things happen: not to be asked again and again.
    pub(crate) fn goes_on_by_itself(&self) -> bool {
        matches!(self, Command::Watch { .. } | Command::Drops(DropsArgs { follow: true, .. }))
    }

    /// Changes something: done once, never again and again.
    pub(crate) fn is_an_order(&self) -> bool {
        match self {
            Command::Peer { command } => match command {
                PeerCommand::Show { .. } | PeerCommand::Why { .. } | PeerCommand::History { .. } => false,
                PeerCommand::Reset { .. } | PeerCommand::Disable { .. } | PeerCommand::Enable { .. } => true,
            },
            Command::Node { command: NodeCommand::Undrain } => true,
            _ => false,
        }
    }
}

/// A namespace has neither a slash nor the shape of an address.
pub(crate) fn names_a_pod(target: &str) -> bool {
    target.contains('/') || target.parse::<IpAddr>().is_ok()
}

pub(crate) fn completion(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "manxctl", &mut script);
    crate::output::write(&script);
    ExitCode::SUCCESS
}

/// One page: the root command, then each of its subcommands.
pub(crate) fn man() -> ExitCode {
    crate::output::write(&man_page());
    ExitCode::SUCCESS
}

fn man_page() -> Vec<u8> {
    let mut page = Vec::new();
    let mut root = Cli::command();
    root.build();
    clap_mangen::Man::new(root.clone()).render(&mut page).expect("writing to memory cannot fail");
    render_subcommands(&root, "manxctl", &mut page);
    page
}

fn render_subcommands(command: &clap::Command, path: &str, page: &mut Vec<u8>) {
    for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
        let path = format!("{path} {}", sub.get_name());
        // What all commands take is told once, at the top.
        let common = |arg: &clap::Arg| {
            ["run_dir", "node", "namespace", "output", "watch", "help"].contains(&arg.get_id().as_str())
        };
        let has_its_own = sub.get_arguments().any(|arg| !common(arg));
        if has_its_own || !sub.has_subcommands() {
            page.extend_from_slice(format!(".SH \"{}\"\n", path.to_uppercase()).as_bytes());
            let man = clap_mangen::Man::new(sub.clone().mut_args(|arg| match common(&arg) {
                true => arg.hide(true),
                false => arg,
            }));
            man.render_description_section(page).expect("writing to memory cannot fail");
            if has_its_own {
                man.render_options_section(page).expect("writing to memory cannot fail");
            }
        }
        render_subcommands(sub, &path, page);
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let parsed = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    parsed.filter(|s| *s <= 86_400).ok_or_else(|| "write seconds or minutes, such as 30s or 5m".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("write seconds, such as 2s or 0.5s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_manual_names_every_commands_own_options_and_the_common_ones_once() {
        let page = String::from_utf8(man_page()).unwrap().replace('\\', "");
        for option in ["--delay", "--message", "--only", "--drift", "--rejected", "--soft", "--follow"] {
            assert!(page.contains(option), "{option}");
        }
        for command in ["MANXCTL PEER WHY", "MANXCTL NODE UNDRAIN", "MANXCTL ROUTES", "MANXCTL ROUTES IN"] {
            assert!(page.contains(&format!("\"{command}\"")), "{command}");
        }
        assert_eq!(page.matches("--run-dir").count(), 2, "in the synopsis and among the options");
    }

    #[test]
    fn pods_and_namespaces_are_told_apart() {
        assert!(names_a_pod("shop/web") && names_a_pod("10.244.1.2") && names_a_pod("fd00::2"));
        assert!(!names_a_pod("shop"));
    }

    #[test]
    fn routes_take_their_flags_on_either_side() {
        for line in ["manxctl routes --rejected in tor-a", "manxctl routes in tor-a --rejected"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Routes(args) = cli.command else { panic!("routes") };
            assert!(args.rejected && matches!(args.table, Some(Table::In { peer }) if peer == "tor-a"));
        }
    }

    #[test]
    fn a_soft_reset_has_a_direction_or_both() {
        let soft = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Peer { command: PeerCommand::Reset { soft, .. } } => soft,
            other => panic!("{other:?}"),
        };
        assert_eq!(soft("manxctl peer reset tor-a"), None);
        assert_eq!(soft("manxctl peer reset tor-a --soft"), Some(Soft::Both));
        assert_eq!(soft("manxctl peer reset tor-a --soft in"), Some(Soft::In));
        assert_eq!(soft("manxctl peer reset --soft=out tor-a"), Some(Soft::Out));
    }

    #[test]
    fn a_delay_is_seconds_or_minutes() {
        assert_eq!([seconds("0"), seconds("30s"), seconds("5m")], [Ok(0), Ok(30), Ok(300)]);
        for odd in ["", "-1", "1h", "1.5", "2000m", "99999999999999999999m"] {
            assert!(seconds(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_watch_has_an_interval() {
        let watch = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().watch;
        assert_eq!(watch("manxctl peers"), None);
        assert_eq!(watch("manxctl peers -w"), Some(Duration::from_secs(2)));
        assert_eq!(watch("manxctl -w=0.5s peers"), Some(Duration::from_millis(500)));
        assert!(Cli::try_parse_from(["manxctl", "peers", "-w=0"]).is_err());
    }
}
