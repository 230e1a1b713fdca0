//! The far side: Debian's routers in a namespace, configured as a network engineer would, and asked in their own tongue.

use std::collections::BTreeMap;

use anyhow::Result;
use ipnetwork::IpNetwork;

pub mod bird;
pub mod frr;
pub mod gobgp;
pub mod openbgpd;

/// One BGP session as the router tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The peer's address.
    pub peer: String,
    /// The router's own word for the state; `Established` when it is up.
    pub state: String,
    /// Routes received and accepted, over all families.
    pub received: u64,
    /// Routes sent, over all families.
    pub sent: u64,
}

impl Session {
    /// Whether the session is up.
    pub fn is_established(&self) -> bool {
        self.state == "Established"
    }
}

/// What the lab asks of a router, whichever it is.
pub trait Router {
    /// The name and version of the software.
    ///
    /// # Errors
    /// When it does not answer.
    fn version(&self) -> Result<String>;

    /// Its BGP sessions.
    ///
    /// # Errors
    /// When it does not answer.
    fn sessions(&self) -> Result<Vec<Session>>;

    /// The BGP routes that it uses, with their next hops.
    ///
    /// # Errors
    /// When it does not answer.
    fn routes(&self) -> Result<BTreeMap<IpNetwork, Vec<String>>>;

    /// Its table of BGP routes as it prints it for a person.
    ///
    /// # Errors
    /// When it does not answer.
    fn table(&self) -> Result<String>;

    /// Its summary of sessions as it prints it for a person.
    ///
    /// # Errors
    /// When it does not answer.
    fn summary(&self) -> Result<String>;
}
