//! Organizations that are being removed: what they have goes, some rows at a time.
//!
//! Any worker does a step of any removal, and two do not do the same at once. Steps follow each other without haste: removing a
//! large organization must not be felt by others.

use std::time::Duration;

use shared::store::{self, Removed, Store};
use tokio_util::sync::CancellationToken;

use crate::rounds::rounds;

/// How often it is asked whether there is one.
const LOOK: Duration = Duration::from_secs(1);
/// How long a pause there is after a step.
const PAUSE: Duration = Duration::from_millis(20);
/// The most organizations of a round.
const ROUND: u32 = 10;

/// Gets removals on, until the soft signal.
pub async fn remove(store: Store, soft: CancellationToken) -> anyhow::Result<()> {
    rounds("removals", (LOOK, PAUSE), soft, || round(&store)).await;
    Ok(())
}

/// A step of each of some removals; whether something was removed.
async fn round(store: &Store) -> store::Result<bool> {
    let mut some = false;
    for organization in store.removals.under_removal(ROUND).await? {
        match store.removals.remove_some(organization).await {
            Ok(Removed::Some) => some = true,
            Ok(Removed::NotNow) => {}
            Ok(Removed::All) => {
                tracing::info!(organization.id = %organization, "nothing is left of an organization that was removed");
            }
            Err(error) => {
                tracing::warn!(%error, organization.id = %organization, "removing an organization has to wait");
            }
        }
    }
    Ok(some)
}
