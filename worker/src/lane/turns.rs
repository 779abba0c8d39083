//! Whose turn it is: organizations take turns, and within one its lanes do.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use shared::{OrganizationId, SubscriptionId};

/// Lanes that wait for their turn.
#[derive(Debug, Default)]
pub struct Turns {
    organizations: VecDeque<OrganizationId>,
    lanes: HashMap<OrganizationId, VecDeque<SubscriptionId>>,
}

impl Turns {
    /// Puts a lane at the end of its organization's.
    pub fn push(&mut self, organization: OrganizationId, lane: SubscriptionId) {
        match self.lanes.entry(organization) {
            Entry::Occupied(mut lanes) => lanes.get_mut().push_back(lane),
            Entry::Vacant(none) => {
                none.insert(VecDeque::from([lane]));
                self.organizations.push_back(organization);
            }
        }
    }

    /// Takes the lane whose turn it is; its organization goes to the end.
    pub fn pop(&mut self) -> Option<SubscriptionId> {
        let organization = self.organizations.pop_front()?;
        let Entry::Occupied(mut lanes) = self.lanes.entry(organization) else {
            return None;
        };
        let lane = lanes.get_mut().pop_front();
        if lanes.get().is_empty() {
            lanes.remove();
        } else {
            self.organizations.push_back(organization);
        }
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_with_many_lanes_gets_no_more_turns_than_one_with_one() {
        let (large, small) = (OrganizationId::new(), OrganizationId::new());
        let lanes: Vec<_> = (0..4).map(|_| SubscriptionId::new()).collect();
        let mut turns = Turns::default();
        for lane in &lanes[..3] {
            turns.push(large, *lane);
        }
        turns.push(small, lanes[3]);
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order, [lanes[0], lanes[3], lanes[1], lanes[2]]);
        assert!(turns.lanes.is_empty() && turns.organizations.is_empty());
    }
}
