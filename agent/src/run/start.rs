//! Opening the rooms: sockets, kernel, threads, source. What fails here is a reason not to start, told in one line.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use manx_cni::reader::Reader;
use manx_cni::store::Store;
use manx_policy::engine::{Engine, EngineConfig, JumpPosition};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::{Event, Loop};
use crate::adopted::Adopted;
use crate::api::clock::Clock;
use crate::api::events::Events;
use crate::api::facts::{SharedFacts, epoch_now};
use crate::api::server::{self, Api};
use crate::api::summary;
use crate::api::why::DroppedSegments;
use crate::attachments::{self, Endpoints, Follower};
use crate::cni_config::CniConfig;
use crate::cni_server::{self, CniServer};
use crate::desired::{Desired, Gateways};
use crate::drained::OrderFile;
use crate::drops::Drops;
use crate::health::Health;
use crate::kernel::fib::{Fib, FibConfig, FibHandle};
use crate::kernel::iptables::{Backend, IptablesError};
use crate::kernel::link::Links;
use crate::kernel::policy::PolicyKernel;
use crate::kernel::sysctl;
use crate::metrics::{ApplyTimes, CniCounters};
use crate::options::{self, Feature, Jumps, Options, SourceOptions};
use crate::policy_worker::{self, PolicyHandle};
use crate::routes::{NextHops, Routes};
use crate::source::{Update, kube, manifest_dir};
use crate::view::{SourceStatus, paths};
use crate::{egress_nat, leaks, sockets, status, web};

/// Reading a predecessor's million routes takes a third of a second; more than this means that the kernel is in trouble.
const FIRST_DUMP: Duration = Duration::from_secs(30);
/// Events that wait for the loop. Senders wait when it is full: nothing is lost, nothing grows.
const QUEUE: usize = 64;

/// Opens everything, the packet filter first.
pub(super) async fn start(options: Options) -> anyhow::Result<(Loop, mpsc::Receiver<Event>)> {
    let run_dir = sockets::take_run_dir(&options.run_dir)?;
    let admin = sockets::listen(&run_dir, &options.run_dir.join(paths::ADMIN_SOCKET), 0o600)?;
    let read_only = sockets::listen(&run_dir, &options.run_dir.join(paths::READ_ONLY_SOCKET), 0o660)?;
    let web_socket = web::listen(options.metrics_addr).await?;

    // A configuration that cannot be used is told before anything is touched.
    let (source, server, updates) = follow_source(&options).await?;

    let health = Health::default();
    let facts = SharedFacts::default();
    let (events, inbox) = mpsc::channel(QUEUE);
    let store = match options.enabled(Feature::Cni) || options.enabled(Feature::Policy) {
        true => Some(Store::open(&options.run_dir).context("cannot open the store of attachments")?),
        false => None,
    };
    // Known before the first plan: a restart must not take a running pod for a stranger.
    let mut reader = store.clone().map(Reader::new);
    let attached = match &mut reader {
        Some(reader) => attachments::read(reader).context("cannot read the attachments")?,
        None => Endpoints::new(),
    };
    // Found out before anything of ours is written, and once for all that write.
    let backend = match options.enabled(Feature::Cni) || options.enabled(Feature::Policy) {
        true => Some(backend(options.iptables_backend).context("the packet filter cannot be written")?),
        false => None,
    };
    let applied = ApplyTimes::default();
    let policy = match backend.filter(|_| options.enabled(Feature::Policy)) {
        Some(backend) => Some(start_policy(&options, backend, &attached, &health, applied.clone(), &events)?),
        None => None,
    };
    let counters = CniCounters::default();
    let drops = match policy.is_some() && !options.no_drop_log {
        true => Some(Drops::spawn().context("cannot start the thread for dropped packets")?),
        false => None,
    };
    if let (Some(store), Some(reader)) = (&store, reader) {
        let follower = Follower::new(reader, attached, policy.clone(), facts.clone(), counters.clone());
        let mut addresses = follower.addresses();
        let to = events.clone();
        tokio::spawn(async move {
            // The first of them was there from the beginning.
            addresses.mark_changed();
            while addresses.changed().await.is_ok() {
                let held = addresses.borrow_and_update().clone();
                if to.send(Event::Attached(held)).await.is_err() {
                    return;
                }
            }
        });
        if options.enabled(Feature::Cni) {
            let socket = sockets::listen(&run_dir, &options.run_dir.join(manx_cni::agent::SOCKET), 0o600)?;
            let server = CniServer {
                policy: policy.clone(),
                facts: facts.clone(),
                look: follower.look(),
                counters: counters.clone(),
            };
            facts.with(|f| f.cni_blocked = Some("the source is not in sync yet".to_owned()));
            watch("cni.sock", &events, async move { cni_server::serve(socket, server).await });
            watch("leak sweep", &events, leaks::sweep(store.clone()));
        }
        watch("attachments", &events, follower.follow());
    }
    let (links, link_events) = Links::spawn().context("cannot follow the kernel's links")?;
    pump(link_events, events.clone(), Event::Link);
    let (fib, inherited) = match options.enabled(Feature::Bgp) && !options.no_fib {
        true => start_fib().await.map(|(fib, inherited)| (Some(fib), inherited))?,
        false => (None, false),
    };
    let cni = options.enabled(Feature::Cni).then(|| CniConfig {
        run_dir: options.run_dir.clone(),
        conf_dir: options.cni_conf_dir.clone(),
        bin_dir: options.cni_bin_dir.clone(),
        plugin: options.cni_plugin.clone(),
        node_name: options.node_name.clone(),
        interface_prefix: options.pod_interface_prefix.clone(),
    });
    let egress = match backend.filter(|_| options.enabled(Feature::Cni)) {
        Some(backend) => Some(
            egress_nat::spawn(backend, facts.clone()).context("cannot start the thread for egress NAT")?,
        ),
        None => None,
    };
    let api = Arc::new(Api {
        node: options.node_name.clone(),
        clock: Clock::default(),
        dropped: DroppedSegments::default(),
        started: epoch_now(),
        drained: OrderFile::new(&options.run_dir),
        events: Events::new(&options.node_name),
        source: source.clone(),
        facts: facts.clone(),
        bgp: std::sync::OnceLock::new(),
        bgp_enabled: options.enabled(Feature::Bgp),
        policy: policy.clone(),
        drops,
        fib: fib.clone(),
        links: links.clone(),
        store: store.filter(|_| cni.is_some()),
        cni: counters,
        applied,
    });
    watch("admin API", &events, serve(admin, server::Access::Admin, api.clone()));
    watch("read-only API", &events, serve(read_only, server::Access::ReadOnly, api.clone()));
    watch("health and metrics", &events, web::serve(web_socket, health.clone(), api.clone()));
    health.report("source", false, "not read yet");
    pump(updates, events.clone(), Event::Source);
    if let Some(server) = server {
        write_status(server, &options, &api, &health);
    }

    tracing::info!(node = %options.node_name, version = env!("CARGO_PKG_VERSION"), inherited, "agent started");
    // With CNI the attachments tell which interface is whose; without, the kernel's routes do.
    let adopting = policy.is_some() && !options.enabled(Feature::Cni);
    let adopted = adopting.then(|| Adopted::new(&options.node_name, &options.pod_interface_prefix));
    let agent = Loop {
        adopted,
        desired: Desired::new(&options.node_name, &options.namespace),
        _run_dir: run_dir,
        options,
        health,
        facts,
        api,
        events,
        in_sync: false,
        links,
        policy,
        fib,
        bgp: None,
        cni,
        egress,
        translated: None,
        inherited,
        restarting: Vec::new(),
        sweep_at: None,
        routes: Routes::default(),
        next_hops: NextHops::default(),
        gateways: Gateways::default(),
        told: Arc::default(),
        guarded: None,
        node: None,
    };
    Ok((agent, inbox))
}

/// What is followed, in words for the status, and what it says.
async fn follow_source(
    options: &Options,
) -> anyhow::Result<(SourceStatus, Option<Arc<kube::Api>>, mpsc::Receiver<Vec<Update>>)> {
    let status = |kind: &str, location: String| SourceStatus {
        kind: kind.to_owned(),
        location,
        ..SourceStatus::default()
    };
    match options.source() {
        SourceOptions::Manifests(dir) => {
            let status = status("manifests", dir.display().to_string());
            Ok((status, None, manifest_dir::spawn(dir).context("cannot follow the manifests")?))
        }
        SourceOptions::Api(access) => {
            let settings = kube::Settings {
                node_name: options.node_name.clone(),
                namespace: options.namespace.clone(),
                timing: kube::Timing::default(),
            };
            let (api, updates) = kube::spawn(access, settings).await?;
            Ok((status("kubernetes", api.server().to_owned()), Some(api), updates))
        }
    }
}

/// Tells the cluster how this node stands, from now on.
fn write_status(server: Arc<kube::Api>, options: &Options, api: &Arc<Api>, health: &Health) {
    let settings = status::Settings {
        node: options.node_name.clone(),
        namespace: options.namespace.clone(),
        cni: options.enabled(Feature::Cni),
        timing: status::Timing::default(),
    };
    let (api, health) = (api.clone(), health.clone());
    tokio::spawn(status::run(server, settings, move || {
        let (api, health) = (api.clone(), health.clone());
        async move { summary::node(&api, &health).await }
    }));
}

/// A router forwards. Where the agent may not write these (a read-only /proc/sys), an init container has, and the status
/// says so if it has not.
pub(super) fn enable_forwarding() {
    for name in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        if sysctl::read(name).is_ok_and(|value| value == "0") {
            match sysctl::write(name, "1") {
                Ok(()) => tracing::info!(name, "forwarding enabled"),
                Err(e) => tracing::warn!(name, error = %e, "forwarding is off and cannot be enabled"),
            }
        }
    }
}

fn start_policy(
    options: &Options,
    backend: Backend,
    attached: &Endpoints,
    health: &Health,
    applied: ApplyTimes,
    events: &mpsc::Sender<Event>,
) -> anyhow::Result<PolicyHandle> {
    let mut engine = Engine::new(EngineConfig {
        interface_prefix: options.pod_interface_prefix.clone(),
        mark_mask: options.mark_mask,
        jumps: match options.iptables_jumps {
            Jumps::Insert => JumpPosition::Insert,
            Jumps::Append => JumpPosition::Append,
        },
        log_drops: !options.no_drop_log,
        // Our own plugin's are; what another names its interfaces is not known.
        names_are_unique: options.enabled(options::Feature::Cni),
        deletions_apart: backend == Backend::Nft,
        ..EngineConfig::new(&options.node_name)
    })?;
    attachments::difference(&Endpoints::new(), attached).into_iter().for_each(|u| engine.apply(u));
    let kernel = PolicyKernel::open(backend).context("policy cannot be enforced")?;
    let events = events.clone();
    let notify = move |kernel: &policy_worker::Kernel| {
        // The loop may be gone at the very end; nobody needs the news then.
        let _ = events.blocking_send(Event::Policy(kernel.clone()));
    };
    policy_worker::spawn(engine, kernel, health.clone(), applied, notify)
        .context("cannot start the policy thread")
}

fn backend(option: options::Backend) -> Result<Backend, IptablesError> {
    match option {
        options::Backend::Auto => Backend::detect(),
        options::Backend::Nft => Ok(Backend::Nft),
        options::Backend::Legacy => Ok(Backend::Legacy),
    }
}

/// The writer, and whether a predecessor left routes.
async fn start_fib() -> anyhow::Result<(FibHandle, bool)> {
    let fib = Fib::spawn(FibConfig::default()).context("cannot program routes")?;
    let handle = fib.clone();
    let read = tokio::task::spawn_blocking(move || handle.wait_idle(FIRST_DUMP)).await?;
    anyhow::ensure!(read, "the kernel's routes could not be read within {} s", FIRST_DUMP.as_secs());
    let inherited = fib.inherited();
    Ok((fib, inherited))
}

async fn serve(listener: UnixListener, access: server::Access, api: Arc<Api>) -> anyhow::Result<()> {
    Ok(axum::serve(listener, server::router(api, access)).await?)
}

/// Carries a room's events to the loop.
pub(super) fn pump<T: Send + 'static>(
    mut from: mpsc::Receiver<T>,
    events: mpsc::Sender<Event>,
    wrap: impl Fn(T) -> Event + Send + 'static,
) {
    tokio::spawn(async move {
        while let Some(item) = from.recv().await {
            if events.send(wrap(item)).await.is_err() {
                return;
            }
        }
        // A room that has nothing to say any more is broken, but for the end of the agent.
        let ended = anyhow::anyhow!("{} has ended", std::any::type_name::<T>());
        let _ = events.send(Event::Broken(ended)).await;
    });
}

/// Runs a task that must not end; the loop hears of it when it does.
fn watch(
    name: &'static str,
    events: &mpsc::Sender<Event>,
    task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    let events = events.clone();
    tokio::spawn(async move {
        let error = match task.await {
            Ok(()) => anyhow::anyhow!("{name} has ended"),
            Err(e) => e.context(name),
        };
        let _ = events.send(Event::Broken(error)).await;
    });
}
