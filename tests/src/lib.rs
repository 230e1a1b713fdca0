//! Test support: nodes, ToRs and pods as network namespaces, with real routers, the real agent and the real CNI plugin.
//!
//! ```text
//!            outside                 bin/lab.rs   brings it up, checks, takes it down
//!               |                    topology.rs  who is connected to whom, every address and AS number
//!             spine                  lab.rs       the standing lab: namespaces, routers, agents, pods
//!            /     \                 routers/     BIRD and FRR as a network engineer would configure them
//!        tor-a     tor-b             agent.rs     manx-agent and manxctl in a node's namespace
//!        (BIRD)    (FRR)             kubelet.rs   attaches pods as a container runtime does
//!        /    \    /    \            cluster.rs   the manifest directory: Kubernetes objects as YAML
//!    node-1   node-2   node-3        probe/       TCP, UDP and ping between namespaces, with what the receiver saw
//!     pods     pods     pods         checks/      one file per promise
//!                                 bench/       side-by-side measurements
//! ```
//!
//! Nothing here knows how Manx works inside: what is checked is what the kernel, the routers and the pods see.

#![forbid(unsafe_code)]

pub mod agent;
pub mod apiserver;
pub mod bench;
pub mod capture;
pub mod checks;
pub mod churn;
pub mod cluster;
pub mod command;
pub mod kubelet;
pub mod lab;
pub mod netns;
pub mod observe;
pub mod probe;
pub mod process;
pub mod report;
pub mod routers;
pub mod scenario;
pub mod show;
pub mod topology;
pub mod wait;
