//! What is set aside, and why.

use std::collections::HashSet;

use shared::{
    AcceptedEvent, Entry, EventId, OrganizationId, Timestamp,
    queue::frame,
    store::{ID_OUT_OF_RANGE, SetAside},
    telemetry,
};

use super::{Intake, IntakeError};

/// Why something is set aside, as operators know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It is no frame, or one of a newer version.
    Unreadable,
    /// The store refuses it for its content.
    Refused,
    /// Its organization does not exist.
    UnknownOrganization,
    /// The time of its id is not kept.
    IdOutOfRange,
    /// It failed again and again while the store took others.
    RepeatedlyFailing,
}

impl Reason {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
            Self::UnknownOrganization => "unknown_organization",
            Self::IdOutOfRange => ID_OUT_OF_RANGE,
            Self::RepeatedlyFailing => "repeatedly_failing",
        }
    }
}

/// One event, in a frame of its own.
pub(super) fn event_aside(reason: Reason, detail: &impl ToString, event: &AcceptedEvent) -> SetAside {
    let frame = frame::encode(&Entry::Event(event.clone())).to_vec();
    aside(reason, detail, Some((event.organization, event.id)), frame)
}

/// A whole frame.
pub(super) fn frame_aside(reason: Reason, detail: &impl ToString, frame: Vec<u8>) -> SetAside {
    aside(reason, detail, None, frame)
}

fn aside(
    reason: Reason,
    detail: &impl ToString,
    event: Option<(OrganizationId, EventId)>,
    frame: Vec<u8>,
) -> SetAside {
    let (organization, event) = event.unzip();
    SetAside {
        id: SetAside::id_of(event, &frame),
        reason: reason.as_str().to_owned(),
        detail: detail.to_string().replace('\0', "\u{fffd}"),
        organization,
        event,
        frame,
        at: Timestamp::now(),
        times: 1,
    }
}

impl Intake {
    /// Sets these aside. Events of organizations that are being removed, or were, are dropped: nothing of those is kept.
    pub(super) async fn set_aside(&self, items: &[SetAside]) -> Result<(), IntakeError> {
        let items = self.without_removed(items).await?;
        if items.is_empty() {
            return Ok(());
        }
        self.store.events.set_aside(&items).await?;
        for item in &items {
            tracing::error!(
                reason = item.reason, detail = item.detail, event.id = ?item.event, organization.id = ?item.organization,
                set_aside.id = %item.id, "set aside: it cannot be taken in; see /v1/set-aside"
            );
        }
        telemetry::set_aside().increment(items.len() as u64);
        Ok(())
    }

    async fn without_removed(&self, items: &[SetAside]) -> Result<Vec<SetAside>, IntakeError> {
        let organizations: HashSet<OrganizationId> =
            items.iter().filter_map(|item| item.organization).collect();
        if organizations.is_empty() {
            return Ok(items.to_vec());
        }
        let organizations: Vec<OrganizationId> = organizations.into_iter().collect();
        let removed = self.store.removals.removed(&organizations).await?;
        let is_removed = |item: &SetAside| item.organization.is_some_and(|id| removed.contains(&id));
        let left: Vec<SetAside> = items.iter().filter(|item| !is_removed(item)).cloned().collect();
        let dropped = items.len() - left.len();
        if dropped > 0 {
            telemetry::dropped().increment(dropped as u64);
            tracing::info!(events = dropped, "events of removed organizations were dropped");
        }
        Ok(left)
    }
}
