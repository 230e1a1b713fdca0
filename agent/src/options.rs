//! The command line of `manx-agent`, each flag with its environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::source::kube::Access;

/// What the agent does on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Feature {
    /// Speak BGP and program routes.
    Bgp,
    /// Enforce NetworkPolicy.
    Policy,
    /// Serve the CNI plugin: node.json, conflist, confirmation of policy.
    Cni,
}

/// Which iptables implementation to write through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Whichever the host's other rules are in; nft where there are none.
    Auto,
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
}

/// Where our jumps stand among the host's own rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Jumps {
    /// At the top: ours is the first word on pod traffic.
    Insert,
    /// At the end: the host's rules come first, and what they accept is not policed. There is no guard outside the filter table.
    Append,
}

/// Log line format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The Manx node agent: speaks BGP, programs routes and network policy, serves the CNI plugin.
///
/// It runs in the network namespace that it is started in. SIGTERM and SIGINT stop it without a word to its peers
/// and leave kernel routes and rules as they are, so that a restart costs no packet.
#[derive(Parser, Debug)]
#[command(
    name = "manx-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// Other things than running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: Option<Options>,
}

/// Other things than running.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Remove all that Manx ever put into this namespace's kernel, and nothing else.
    Cleanup {
        /// Also with live pods: their interfaces go too.
        #[arg(long)]
        force: bool,
        /// Run directory whose files are removed too.
        #[arg(long, env = "MANX_RUN_DIR", default_value = "/run/manx", value_name = "DIR")]
        run_dir: PathBuf,
        /// CNI configuration directory whose Manx conflist is removed too.
        #[arg(long, env = "MANX_CNI_CONF_DIR", default_value = "/etc/cni/net.d", value_name = "DIR")]
        cni_conf_dir: PathBuf,
        /// Directory of CNI plugin binaries from which `manx` is removed too; not touched where it is not given.
        #[arg(long, env = "MANX_CNI_BIN_DIR", value_name = "DIR")]
        cni_bin_dir: Option<PathBuf>,
        /// Configuration directory of iproute2 from which the name of our route protocol is removed too; not touched where it
        /// is not given.
        #[arg(long, env = "MANX_IPROUTE2_DIR", value_name = "DIR")]
        iproute2_dir: Option<PathBuf>,
        /// First letters of the names of pod interfaces, where the run directory does not say.
        #[arg(long, env = "MANX_POD_INTERFACE_PREFIX", default_value = "manx", value_parser = interface_prefix, value_name = "PREFIX")]
        pod_interface_prefix: String,
    },
    /// Prepare this node for the agent: kernel modules, forwarding and multipath, the CNI plugin.
    ///
    /// For a privileged init container, so that the agent needs no more than NET_ADMIN, NET_RAW and NET_BIND_SERVICE.
    Prepare {
        /// What the agent will do on this node.
        #[arg(
            long,
            env = "MANX_ENABLE",
            value_delimiter = ',',
            default_value = "bgp,policy,cni",
            value_name = "LIST"
        )]
        enable: Vec<Feature>,
        /// The plugin to install as `manx`.
        #[arg(long, env = "MANX_CNI_PLUGIN", value_name = "FILE")]
        cni_plugin: Option<PathBuf>,
        /// Directory of CNI plugin binaries.
        #[arg(long, env = "MANX_CNI_BIN_DIR", default_value = "/opt/cni/bin", value_name = "DIR")]
        cni_bin_dir: PathBuf,
        /// Configuration directory of iproute2, for the name of our route protocol.
        #[arg(long, env = "MANX_IPROUTE2_DIR", value_name = "DIR")]
        iproute2_dir: Option<PathBuf>,
    },
}

/// How the agent runs.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Name of this node's Node object.
    #[arg(long, env = "MANX_NODE_NAME", value_name = "NAME")]
    pub node_name: String,
    /// Directory of Kubernetes manifests that holds the cluster's state; watched.
    #[arg(long, env = "MANX_MANIFESTS", value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// How to reach the Kubernetes API that holds the cluster's state; without this and --manifests: as a pod of the cluster.
    #[arg(long, env = "MANX_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// What to do on this node.
    #[arg(
        long,
        env = "MANX_ENABLE",
        value_delimiter = ',',
        default_value = "bgp,policy,cni",
        value_name = "LIST"
    )]
    pub enable: Vec<Feature>,
    /// Namespace whose Secrets hold the passwords of BGP peers.
    #[arg(long, env = "MANX_NAMESPACE", default_value = "manx-system", value_name = "NAMESPACE")]
    pub namespace: String,
    /// Directory of node.json, the sockets and the CNI plugin's attachments; must be on tmpfs.
    #[arg(long, env = "MANX_RUN_DIR", default_value = "/run/manx", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Directory that the container runtime reads CNI configuration from.
    #[arg(long, env = "MANX_CNI_CONF_DIR", default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub cni_conf_dir: PathBuf,
    /// Directory of the CNI plugin binaries, to find out which ones can be chained.
    #[arg(long, env = "MANX_CNI_BIN_DIR", default_value = "/opt/cni/bin", value_name = "DIR")]
    pub cni_bin_dir: PathBuf,
    /// The plugin to install in that directory as `manx` and to keep in step; without it, whoever set up the node does that.
    #[arg(long, env = "MANX_CNI_PLUGIN", value_name = "FILE")]
    pub cni_plugin: Option<PathBuf>,
    /// Listen here for BGP instead of on port 179 of the node's addresses; may be repeated.
    #[arg(long, env = "MANX_BGP_LISTEN", value_delimiter = ',', value_name = "ADDR:PORT")]
    pub bgp_listen: Vec<SocketAddr>,
    /// iptables implementation to write through.
    #[arg(long, env = "MANX_IPTABLES_BACKEND", default_value = "auto", value_name = "BACKEND")]
    pub iptables_backend: Backend,
    /// Where the jumps to our chains stand among the host's own rules.
    #[arg(long, env = "MANX_IPTABLES_JUMPS", default_value = "insert", value_name = "PLACE")]
    pub iptables_jumps: Jumps,
    /// Packet mark bits that Manx may use: at least four.
    #[arg(long, env = "MANX_MARK_MASK", default_value = "0x0f000000", value_parser = mark_mask, value_name = "MASK")]
    pub mark_mask: u32,
    /// Log no drops to NFLOG group 77: for a kernel without nfnetlink_log.
    #[arg(long, env = "MANX_NO_DROP_LOG")]
    pub no_drop_log: bool,
    /// First letters of the names of pod interfaces on the host.
    #[arg(long, env = "MANX_POD_INTERFACE_PREFIX", default_value = "manx", value_parser = interface_prefix, value_name = "PREFIX")]
    pub pod_interface_prefix: String,
    /// Learn and reflect, but write no routes into the kernel.
    #[arg(long, env = "MANX_NO_FIB", value_parser = FalseyValueParser::new())]
    pub no_fib: bool,
    /// Where metrics and health are served.
    #[arg(long, env = "MANX_METRICS_ADDR", default_value = "127.0.0.1:9474", value_name = "ADDR:PORT")]
    pub metrics_addr: SocketAddr,
    /// Log filter, such as `info` or `manx_bgp=debug`.
    #[arg(long, env = "MANX_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Log line format.
    #[arg(long, env = "MANX_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Where cluster state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOptions {
    /// This directory of manifests.
    Manifests(PathBuf),
    /// The Kubernetes API.
    Api(Access),
}

impl Options {
    /// Whether this part of the agent is to run.
    pub fn enabled(&self, feature: Feature) -> bool {
        self.enable.contains(&feature)
    }

    /// Where cluster state comes from.
    pub fn source(&self) -> SourceOptions {
        match (&self.manifests, &self.kubeconfig) {
            (Some(dir), _) => SourceOptions::Manifests(dir.clone()),
            (None, Some(file)) => SourceOptions::Api(Access::Kubeconfig(file.clone())),
            (None, None) => SourceOptions::Api(Access::InCluster),
        }
    }
}

fn mark_mask(text: &str) -> Result<u32, String> {
    let mask = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .map_err(|e| format!("not a number: {e}"))?;
    if mask.count_ones() < 4 {
        return Err(format!("{mask:#010x} has {} bits, at least 4 are needed", mask.count_ones()));
    }
    Ok(mask)
}

/// An interface name is this and 11 hex digits, and the kernel allows 15 characters.
fn interface_prefix(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric());
    if text.is_empty() || text.len() > 4 || !plain {
        return Err("1 to 4 letters or digits (the kernel allows 15, the hash takes 11)".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mark_mask_needs_four_bits() {
        assert_eq!(mark_mask("0x0f000000"), Ok(0x0f00_0000));
        assert!(mark_mask("0x07000000").unwrap_err().contains("at least 4"));
        assert!(mark_mask("x").is_err());
    }

    #[test]
    fn cleanup_needs_no_node_name() {
        let cli = Cli::try_parse_from(["manx-agent", "cleanup", "--force"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Cleanup { force: true, .. })));
        assert!(Cli::try_parse_from(["manx-agent"]).is_err());
    }

    #[test]
    fn there_is_one_source() {
        let parse = |more: &[&str]| {
            let cli = Cli::try_parse_from(["manx-agent", "--node-name", "n1"].iter().chain(more))?;
            Ok::<_, clap::Error>(cli.run.unwrap().source())
        };
        assert_eq!(parse(&["--manifests", "d"]).unwrap(), SourceOptions::Manifests("d".into()));
        assert_eq!(
            parse(&["--kubeconfig", "f"]).unwrap(),
            SourceOptions::Api(Access::Kubeconfig("f".into()))
        );
        assert_eq!(parse(&[]).unwrap(), SourceOptions::Api(Access::InCluster));
        assert!(parse(&["--manifests", "d", "--kubeconfig", "f"]).is_err());
    }

    #[test]
    fn a_pod_interface_prefix_leaves_room_for_the_hash() {
        assert!(interface_prefix("manx").is_ok());
        assert!(interface_prefix("manxes").is_err());
        assert!(interface_prefix("ma x").is_err());
    }
}
