//! The `manx.dev/v1alpha1` objects: raw fields in, validated values out.
//!
//! A `…Spec` is what serde reads: every field of the interface, unknown ones refused. [`BgpPeer`] and its siblings are
//! what validation makes of it; behind them nobody checks again. All issues of an object are found at once, each with
//! the path of its field, so that a file can name the line. Nothing here does IO or knows where an object came from.
//!
//! Fields that are read and checked, but that this version does not act on, are named by the `unsupported` methods;
//! the status shows them, so that they are never silently without effect.

mod annotations;
mod bgp_configuration;
mod bgp_filter;
mod bgp_peer;
mod issue;
mod network;
mod selector;
mod values;

pub use annotations::{NodeAnnotations, PREFIX as ANNOTATION_PREFIX};
pub use bgp_configuration::{
    BgpConfiguration, BgpConfigurationSpec, Drain, GracefulRestart, Mesh, Multipath, ServiceAdvertisement,
};
pub use bgp_filter::{BgpFilter, BgpFilterSpec};
pub use bgp_peer::{BgpPeer, BgpPeerSpec, PeerTarget, SecretKeyRef, SourceAddress};
pub use issue::Issue;
pub use network::{AddressPool, EgressNat, NetworkConfiguration, NetworkConfigurationSpec};
pub use selector::{LabelSelector, LabelSelectorSpec};

/// API group of our own kinds.
pub const GROUP: &str = "manx.dev";
/// The version of our own kinds.
pub const VERSION: &str = "v1alpha1";
/// The name of kinds of which there is one.
pub const SINGLETON: &str = "default";
