//! What filters say of the events of a batch, before deliveries are planned.
//!
//! Evaluating is calculation, bounded for each event by steps: it is done on a thread of its own, so that nothing else of the
//! worker waits for it, and not at all for a batch whose organizations have no filters. What a filter says holds for the
//! version of the subscriptions that it was read with, as the plan does.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use shared::{
    AcceptedEvent, Filter, OrganizationId, SubscriptionId,
    filter::{Filters, Subject, Verdict, steps_each},
    store::InForce,
    telemetry,
};

use super::IntakeError;

/// Which filtered subscriptions an event of the batch matches.
#[derive(Debug, Default)]
pub(super) struct Judged(HashSet<(usize, SubscriptionId)>);

impl Judged {
    /// Whether the event at this place of the batch matches the filter of this subscription.
    pub(super) fn matches(&self, event: usize, subscription: SubscriptionId) -> bool {
        self.0.contains(&(event, subscription))
    }
}

/// An event, and the filters that it has to be looked at by.
struct Case {
    index: usize,
    event: AcceptedEvent,
    filters: Vec<(SubscriptionId, Filter)>,
}

/// Asks all filters that the events of a batch have to pass.
pub(super) async fn judge(
    filters: &Arc<Filters>,
    events: &[AcceptedEvent],
    in_force: &HashMap<OrganizationId, Arc<InForce>>,
) -> Result<Judged, IntakeError> {
    let filtering: HashSet<OrganizationId> = in_force
        .values()
        .filter(|known| known.has_filters())
        .map(|known| known.organization)
        .collect();
    if filtering.is_empty() {
        return Ok(Judged::default());
    }
    let cases: Vec<Case> = events
        .iter()
        .enumerate()
        .filter(|(_, event)| filtering.contains(&event.organization))
        .filter_map(|(index, event)| {
            let wanting = in_force.get(&event.organization)?.wanting(&event.event_type);
            let filters = wanting.filter_map(|one| Some((one.id, one.filter.clone()?)));
            Some(Case {
                index,
                event: event.clone(),
                filters: filters.collect(),
            })
        })
        .filter(|case| !case.filters.is_empty())
        .collect();
    if cases.is_empty() {
        return Ok(Judged::default());
    }
    let filters = Arc::clone(filters);
    let judging = tokio::task::spawn_blocking(move || all(&filters, &cases));
    // It is told to stop, or has panicked: the frames come again.
    judging.await.map_err(|_| IntakeError::Stopped)
}

fn all(filters: &Filters, cases: &[Case]) -> Judged {
    let begun = Instant::now();
    let mut judged = HashSet::new();
    let (mut evaluated, mut failed) = (0, 0);
    for case in cases {
        let subject = Subject::of(&case.event);
        let steps = steps_each(case.filters.len());
        evaluated += case.filters.len() as u64;
        for (subscription, filter) in &case.filters {
            match filters.judge(filter, &subject, steps) {
                Verdict::Matches => drop(judged.insert((case.index, *subscription))),
                Verdict::False => {}
                Verdict::Failed(why) => {
                    failed += 1;
                    tracing::debug!(subscription.id = %subscription, event.id = %case.event.id, why, "a filter fails");
                }
            }
        }
    }
    telemetry::filter_seconds().record(begun.elapsed());
    telemetry::filters_evaluated().increment(evaluated);
    telemetry::filters_failed().increment(failed);
    Judged(judged)
}
