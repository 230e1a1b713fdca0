//! Gives back addresses of pods that nobody will DEL: a runtime that was killed, a node that lost its sandboxes.

use std::time::Duration;

use manx_cni::store::Store;
use manx_cni::sweep::Sweeper;
use tokio::time::MissedTickBehavior;

use crate::api::facts::epoch_now;

/// An address may stay lost so long, twice: a leak is believed when it was seen in two rounds.
const ROUND: Duration = Duration::from_secs(60);

/// Looks for leaks until the agent ends.
///
/// # Errors
/// A round panicked.
pub async fn sweep(store: Store) -> anyhow::Result<()> {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweeper = Sweeper::default();
    loop {
        rounds.tick().await;
        let store = store.clone();
        let (kept, swept) = tokio::task::spawn_blocking(move || {
            let swept = sweeper.round(&store, epoch_now());
            (sweeper, swept)
        })
        .await?;
        sweeper = kept;
        match swept {
            Ok(leaks) => {
                for key in leaks {
                    tracing::warn!(attachment = %key, "addresses of a pod that is gone were given back");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "leaked addresses cannot be looked for; the next round does");
            }
        }
    }
}
