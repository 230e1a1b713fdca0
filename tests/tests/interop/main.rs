//! The BGP speaker against Debian's routers: each test is a switch with Manx and some of them on it, in namespaces of its own.
//! What the far side holds is asked of the far side, in its own tongue.
//!
//! ```text
//!   manx .1   a .2   b .3   c .4        rack.rs  the namespaces
//!      |       |      |      |          node.rs  Manx: `manx_bgp::net` on a thread inside
//!      +-------+------+------+          far/     BIRD, FRR, GoBGP, OpenBGPD: one configuration, four spellings
//!            10.9.0.0/24
//!             fd09::/64
//! ```

#![expect(clippy::unwrap_used, reason = "helpers of a test")]
#![expect(clippy::result_large_err, reason = "what is awaited and does not come is told once")]

mod add_path;
mod bfd;
mod capabilities;
mod far;
mod long_lived;
mod node;
mod operations;
mod policy;
mod rack;
mod reflection;
mod restart;
mod routes;
mod sessions;
mod unnumbered;

use std::fmt::Debug;
use std::time::Duration;

use manx_tests::wait;

/// Longer than anything awaited here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until `look` gives a value; panics with its last complaint.
#[track_caller]
fn eventually<T, E: Debug>(look: impl FnMut() -> Result<T, E>) -> T {
    match wait::until(PATIENCE, look) {
        Ok((value, _)) => value,
        Err(complaint) => panic!("not within {PATIENCE:?}: {complaint:?}"),
    }
}
