//! `manxctl`: asks the agent of this node what it does and why, over the sockets in its run directory.
//!
//! `cli` is the command tree, `client` speaks HTTP over a unix socket, `show` turns documents into tables, `text` into
//! words, `history` and `why` tell of peers, `events` what happens, `drops` what was dropped, `doctor` what is wrong with
//! the host, `bundle` packs it all, `output` chooses the format; `validate` checks manifests and `import` translates other
//! networks' without an agent. Exit status: 0 yes or healthy, 1 no (down, absent, wrong), 2 usage, 3 agent unreachable, 4 a
//! part of the answer is missing, 5 no permission.
#![forbid(unsafe_code)]
mod bundle;
mod cli;
mod client;
mod doctor;
mod drops;
mod effective;
mod events;
#[cfg(test)]
mod golden;
mod history;
mod import;
mod output;
mod policy;
mod remote;
mod show;
mod text;
mod validate;
mod why;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use cli::{
    Cli, Command, ConfigCommand, DropsArgs, NodeCommand, PeerCommand, PolicyCommand, RouteCommand, Soft,
    Table,
};
use client::{Client, Failure};
use manx_agent::view::{self, paths};
use output::{Exit, Printer};
use remote::LocalFile;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(cli.output);
    if let Some(result) = elsewhere(&cli) {
        return result.unwrap_or_else(|failure| {
            printer.failure(&failure);
            failure.exit().into()
        });
    }
    let result = match &cli.command {
        Command::Completion { shell } => return cli::completion(*shell),
        Command::Man => return cli::man(),
        Command::Config { command: ConfigCommand::Validate { files } } => validate::run(files, &printer),
        Command::Config { command: ConfigCommand::Import { origin, files } } => {
            import::run(*origin, files, &printer)
        }
        command => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::unreachable(format!("no runtime: {e}")))
            .and_then(|runtime| runtime.block_on(ask(&cli, command, &printer))),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            printer.failure(&failure);
            failure.exit().into()
        }
    }
}

/// Runs the command on another node, if that is where it is to run.
fn elsewhere(cli: &Cli) -> Option<Result<ExitCode, Failure>> {
    let asks = matches!(&cli.command, Command::Config { command: ConfigCommand::Effective });
    let here = matches!(cli.command, Command::Config { .. } | Command::Completion { .. } | Command::Man);
    let here = here && !asks;
    match &cli.node {
        _ if here => None,
        Some(node) => {
            let file = match &cli.command {
                Command::Bundle { file, .. } => Some(LocalFile::Bundle(file.as_deref())),
                Command::Policy { command: PolicyCommand::Diff { file } } => Some(LocalFile::Input(file)),
                _ => None,
            };
            Some(remote::run(node, &cli.namespace, file))
        }
        None if remote::is_plugin(std::env::args_os().next().as_deref()) => {
            let text = "which node? kubectl manx --node NODE ...; kubectl get nodes lists them";
            Some(Err(Failure::Usage(text.to_owned())))
        }
        None => None,
    }
}

async fn ask(cli: &Cli, command: &Command, printer: &Printer) -> Result<Exit, Failure> {
    let client = Client::new(&cli.run_dir);
    if let Command::Node { command: NodeCommand::Drain { delay, message } } = command {
        return drain(&client, delay.as_ref(), message.as_deref(), cli.watch, printer).await;
    }
    let Some(every) = cli.watch.filter(|_| !command.goes_on_by_itself()) else {
        return ask_once(&client, command, printer).await;
    };
    if command.is_an_order() {
        return Err(Failure::Usage(
            "an order is given once: leave -w out, and watch with `peers -w`".to_owned(),
        ));
    }
    let mut clock = tokio::time::interval(every);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        printer.next_round();
        // The agent may be restarting under a watch: say so and look again.
        if let Err(failure) = ask_once(&client, command, printer).await {
            printer.failure(&failure);
            if !matches!(failure, Failure::Unreachable(_)) {
                return Ok(failure.exit());
            }
        }
        if printer.closed() {
            return Ok(Exit::Yes);
        }
    }
}

async fn ask_once(client: &Client, command: &Command, printer: &Printer) -> Result<Exit, Failure> {
    match command {
        Command::Status => {
            let status: view::Status = client.get(paths::STATUS, &[]).await?;
            warn_of_skew(&status.version);
            printer.print(&status)
        }
        Command::Config { command: ConfigCommand::Effective } => {
            printer.print(&client.get::<view::Effective>(paths::EFFECTIVE, &[]).await?)
        }
        Command::Version => version(client, printer).await,
        Command::Bundle { file, places } => bundle::pack(client, file.as_deref(), places, printer).await,
        Command::Doctor(places) => printer.print(&doctor::examine(client, places).await),
        Command::Peers => printer.print(&client.get::<view::PeerList>(paths::PEERS, &[]).await?),
        Command::Peer { command } => ask_of_peer(client, command, printer).await,
        Command::Routes(args) if args.drift => {
            if args.table.is_some() {
                let text = "--drift compares this node's own table with the kernel: name no peer";
                return Err(Failure::Usage(text.to_owned()));
            }
            printer.print(&client.get::<view::RouteDrift>(paths::ROUTE_DRIFT, &[]).await?)
        }
        Command::Routes(args) => {
            let mut query = match &args.table {
                None => vec![("table", "loc")],
                Some(Table::In { peer }) => vec![("table", "in"), ("peer", peer)],
                Some(Table::Out { peer }) => vec![("table", "out"), ("peer", peer)],
            };
            query.extend(args.best.then_some(("best", "true")));
            query.extend(args.rejected.then_some(("rejected", "true")));
            printer.print(&client.get::<view::RouteList>(paths::ROUTES, &query).await?)
        }
        Command::Route { command: RouteCommand::Get { ip } } => {
            let ip = ip.to_string();
            printer.print(&client.get::<view::RouteLookup>(paths::ROUTE_GET, &[("ip", &ip)]).await?)
        }
        Command::Route { command: RouteCommand::Why { prefix } } => {
            let prefix = prefix.to_string();
            let query = [("prefix", prefix.as_str())];
            printer.print(&client.get::<view::RouteExplanation>(paths::ROUTE_WHY, &query).await?)
        }
        Command::Node { command: NodeCommand::Undrain } => {
            printer.print(&client.post::<view::NodeDrain>(paths::NODE_UNDRAIN, &[]).await?)
        }
        Command::Drops(args) => drops(client, args, printer).await,
        Command::Watch { only } => watch(client, only, printer).await,
        Command::Policy { command } => ask_of_policy(client, command, printer).await,
        Command::Ipam => printer.print(&client.get::<view::Ipam>(paths::IPAM, &[]).await?),
        Command::Pods => printer.print(&client.get::<view::PodList>(paths::PODS, &[]).await?),
        Command::Node { command: NodeCommand::Drain { .. } } => unreachable!("is done before"),
        Command::Config { .. } | Command::Completion { .. } | Command::Man => {
            unreachable!("these need no agent and are done before")
        }
    }
}

async fn ask_of_policy(client: &Client, command: &PolicyCommand, printer: &Printer) -> Result<Exit, Failure> {
    match command {
        PolicyCommand::Ls => printer.print(&client.get::<view::PolicyList>(paths::POLICIES, &[]).await?),
        PolicyCommand::Trace { source, destination } => {
            let query = [("source", source.as_str()), ("destination", destination.as_str())];
            printer.print(&client.get::<view::Verdict>(paths::POLICY_TRACE, &query).await?)
        }
        PolicyCommand::Diff { file } => {
            let text = policy::read(file)?;
            printer.print(&client.send::<view::PolicyDiff>(paths::POLICY_DIFF, text).await?)
        }
        PolicyCommand::Render { pod } => {
            let query = [("pod", pod.as_str())];
            printer.print(&client.get::<view::PolicyRendering>(paths::POLICY_RENDER, &query).await?)
        }
        PolicyCommand::For { target } => {
            let query = [("target", target.as_str())];
            if cli::names_a_pod(target) {
                printer.print(&client.get::<view::PodPolicy>(paths::POLICY_FOR, &query).await?)
            } else {
                printer.print(&client.get::<view::PodPolicyList>(paths::POLICY_FOR, &query).await?)
            }
        }
    }
}

/// Orders a drain once; with a watch, looks at it until the sessions have ended.
async fn drain(
    client: &Client,
    delay: Option<&u64>,
    message: Option<&str>,
    watch: Option<Duration>,
    printer: &Printer,
) -> Result<Exit, Failure> {
    let delay = delay.map(u64::to_string);
    let mut query = Vec::new();
    query.extend(delay.as_ref().map(|delay| ("delay", delay.as_str())));
    query.extend(message.map(|message| ("message", message)));
    let mut state: view::NodeDrain = client.post(paths::NODE_DRAIN, &query).await?;
    let Some(every) = watch else { return printer.print(&state) };
    loop {
        printer.next_round();
        printer.print(&state)?;
        match state.phase {
            view::DrainPhase::Drained if state.established == 0 => return Ok(Exit::Yes),
            // Somebody has taken it back.
            view::DrainPhase::Serving => return Ok(Exit::No),
            view::DrainPhase::Draining | view::DrainPhase::Drained => {}
        }
        if printer.closed() {
            return Ok(Exit::Yes);
        }
        tokio::time::sleep(every).await;
        state = client.get(paths::NODE_DRAIN, &[]).await?;
    }
}

/// Prints the latest, or each as it comes.
async fn drops(client: &Client, args: &DropsArgs, printer: &Printer) -> Result<Exit, Failure> {
    let mut query: Vec<(&str, &str)> = Vec::new();
    query.extend(args.pod.as_ref().map(|pod| ("pod", pod.as_str())));
    query.extend(args.policy.as_ref().map(|policy| ("policy", policy.as_str())));
    if !args.follow {
        return printer.print(&client.get::<view::DropList>(paths::DROPS, &query).await?);
    }
    query.push(("follow", "true"));
    client
        .stream(paths::DROPS, &query, |event: view::DropEvent| {
            printer.line(&event)?;
            Ok(!printer.closed())
        })
        .await?;
    Ok(Exit::Yes)
}

/// Prints each event as it comes.
async fn watch(client: &Client, only: &[String], printer: &Printer) -> Result<Exit, Failure> {
    let only = only.join(",");
    let query = if only.is_empty() { Vec::new() } else { vec![("only", only.as_str())] };
    client
        .stream(paths::WATCH, &query, |event: view::Event| {
            printer.line(&event)?;
            Ok(!printer.closed())
        })
        .await?;
    Ok(Exit::Yes)
}

async fn ask_of_peer(client: &Client, command: &PeerCommand, printer: &Printer) -> Result<Exit, Failure> {
    let path = |peer: &str, below: &str| format!("{}/{}{below}", paths::PEERS, client::encode(peer));
    match command {
        PeerCommand::Show { peer } => printer.print(&client.get::<view::Peer>(&path(peer, ""), &[]).await?),
        PeerCommand::Why { peer } => {
            let path = path(peer, paths::PEER_WHY);
            printer.print(&client.get::<view::PeerDiagnosis>(&path, &[]).await?)
        }
        PeerCommand::History { peer } => {
            let path = path(peer, paths::PEER_HISTORY);
            printer.print(&client.get::<view::PeerHistory>(&path, &[]).await?)
        }
        PeerCommand::Reset { peer, soft } => {
            let how = match soft {
                None => "hard",
                Some(Soft::Both) => "soft",
                Some(Soft::In) => "in",
                Some(Soft::Out) => "out",
            };
            let path = path(peer, paths::PEER_RESET);
            printer.print(&client.post::<view::PeerAction>(&path, &[("how", how)]).await?)
        }
        PeerCommand::Disable { peer, message } => {
            let path = path(peer, paths::PEER_DISABLE);
            printer.print(&client.post::<view::PeerAction>(&path, &[("message", message)]).await?)
        }
        PeerCommand::Enable { peer } => {
            printer.print(&client.post::<view::PeerAction>(&path(peer, paths::PEER_ENABLE), &[]).await?)
        }
    }
}

/// Our own version in any case; the agent's where one answers.
async fn version(client: &Client, printer: &Printer) -> Result<Exit, Failure> {
    let agent = match client.get::<view::Status>(paths::STATUS, &[]).await {
        Ok(status) => Some(status.version),
        Err(failure) => {
            printer.failure(&failure);
            None
        }
    };
    if let Some(version) = &agent {
        warn_of_skew(version);
    }
    printer.print(&show::Version::new(agent))
}

/// Another version may know other fields; it answers all the same.
fn warn_of_skew(agent: &str) {
    if agent != env!("CARGO_PKG_VERSION") {
        let own = env!("CARGO_PKG_VERSION");
        _ = writeln!(std::io::stderr(), "manxctl: warning: this is manxctl {own}, the agent is {agent}");
    }
}
