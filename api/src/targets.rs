//! Where subscriptions may point, as it is checked when a URL is saved. What counts is the check at each attempt.

use shared::{
    SubscriptionUrl,
    guard::{Blocked, TargetPolicy},
};

use crate::this_machine::FromThisMachine;

/// What a deployment lets subscriptions point to.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// What is open to whoever may manage subscriptions.
    pub policy: TargetPolicy,
    /// What is open besides to requests from this machine, under `triggers dev`.
    pub from_this_machine: Option<TargetPolicy>,
}

impl Targets {
    /// Checks a URL that is to be saved. Resolves its host, for two seconds at most.
    pub(crate) async fn check(&self, url: &SubscriptionUrl, local: FromThisMachine) -> Result<(), Blocked> {
        match (self.policy.check_early(url).await, &self.from_this_machine) {
            (Err(_), Some(more)) if local.0 => more.check_early(url).await,
            (checked, _) => checked,
        }
    }
}
