//! Where subscriptions may point, as it is checked when a URL is saved. What counts is the check at each attempt.

use shared::{
    OrganizationId, SubscriptionUrl,
    guard::{Blocked, TargetPolicy},
    lookup::Lookups,
};

use crate::this_machine::FromThisMachine;

/// What a deployment lets subscriptions point to.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// What is open to whoever may manage subscriptions.
    pub policy: TargetPolicy,
    /// What is open besides to requests from this machine, under `triggers dev`.
    pub from_this_machine: Option<TargetPolicy>,
    /// By what hosts are looked up.
    pub lookups: Lookups,
}

impl Targets {
    /// Checks a URL that is to be saved. Resolves its host, for two seconds at most.
    pub(crate) async fn check(
        &self,
        url: &SubscriptionUrl,
        whose: OrganizationId,
        local: FromThisMachine,
    ) -> Result<(), Blocked> {
        let early = async |policy: &TargetPolicy| policy.check_early(url, &self.lookups, Some(whose)).await;
        match (early(&self.policy).await, &self.from_this_machine) {
            (Err(_), Some(more)) if local.0 => early(more).await,
            (checked, _) => checked,
        }
    }
}
