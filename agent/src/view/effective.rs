//! `manxctl config effective`: what is in force, and where each value comes from.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ApiVersion, kind};

kind!(
    /// `kind` of [`Effective`].
    EffectiveKind = EffectiveConfiguration
);

/// The configuration of this node after defaults, selectors, precedence and other networks' objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Effective {
    /// Always `manx.dev/v1`.
    pub api_version: ApiVersion,
    /// Always `EffectiveConfiguration`.
    pub kind: EffectiveKind,
    /// This node.
    pub node: String,
    /// Of the speaker, by the names of BGPConfiguration's fields; empty where BGP is not enabled or not known yet.
    pub bgp: Vec<Setting>,
    /// Of the network, by the names of NetworkConfiguration's fields.
    pub network: Vec<Setting>,
    /// The peers that this node has.
    pub peers: Vec<EffectivePeer>,
    /// The filters that there are.
    pub filters: Vec<Sourced>,
    /// BGPPeers that are not for this node, and why.
    pub elsewhere: Vec<NotInForce>,
    /// What is said in vain, since a weightier object says it.
    pub unheard: Vec<NotInForce>,
    /// What is wrong with what is said, or not supported.
    pub problems: Vec<super::StatusProblem>,
}

/// A value and where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// Name of the field.
    pub field: String,
    /// Its value; null where it is not set.
    pub value: Value,
    /// `default`, or the object, such as `BGPPeer tor-a` or `Calico BGPConfiguration default`.
    pub from: String,
}

/// A peer and its settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EffectivePeer {
    /// Its name.
    pub name: String,
    /// The object that names it: a BGPPeer, or the other Node of the mesh.
    pub from: String,
    /// Its settings, by the names of BGPPeer's fields.
    pub settings: Vec<Setting>,
    /// Why it stays down, by its configuration alone; null: nothing keeps it.
    pub blocked: Option<String>,
}

/// Something by name, and the object that it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sourced {
    /// Its name.
    pub name: String,
    /// The object.
    pub from: String,
}

/// An object that is not in force here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NotInForce {
    /// Which.
    pub object: String,
    /// Why.
    pub reason: String,
}
