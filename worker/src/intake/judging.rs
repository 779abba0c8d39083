//! What filters say of the events of a batch, before deliveries are planned.
//!
//! Evaluating is calculation, bounded for each event by steps: it is done on a thread of its own, so that nothing else of the
//! worker waits for it, and not at all for a batch whose organizations have no filters. What a filter says holds for the
//! version of the subscriptions that it was read with, as the plan does.
//!
//! One organization after another: so filters that are not kept compiled are compiled once for a batch, however many events ask
//! for them, and those of one organization at a time are held for it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use shared::{
    AcceptedEvent, Filter, OrganizationId, SubscriptionId,
    filter::{Filters, NotNow, Subject, Verdict, steps_each},
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

/// What is to be asked for one organization.
#[derive(Default)]
struct Asked {
    /// Each once.
    filters: Vec<Filter>,
    /// Where the filter of a subscription is among them.
    places: HashMap<SubscriptionId, usize>,
    cases: Vec<Case>,
}

/// An event, and the filters that it has to be looked at by, by their places.
struct Case {
    index: usize,
    event: AcceptedEvent,
    filters: Vec<(SubscriptionId, usize)>,
}

impl Asked {
    fn add(&mut self, index: usize, event: &AcceptedEvent, in_force: &InForce) {
        let mut filters = Vec::new();
        for subscription in in_force.wanting(&event.event_type) {
            let Some(filter) = &subscription.filter else {
                continue;
            };
            let place = *self.places.entry(subscription.id).or_insert_with(|| {
                self.filters.push(filter.clone());
                self.filters.len() - 1
            });
            filters.push((subscription.id, place));
        }
        if !filters.is_empty() {
            let event = event.clone();
            self.cases.push(Case {
                index,
                event,
                filters,
            });
        }
    }
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
    let mut asked: HashMap<OrganizationId, Asked> = HashMap::new();
    for (index, event) in events.iter().enumerate() {
        if filtering.contains(&event.organization)
            && let Some(known) = in_force.get(&event.organization)
        {
            asked
                .entry(event.organization)
                .or_default()
                .add(index, event, known);
        }
    }
    asked.retain(|_, asked| !asked.cases.is_empty());
    if asked.is_empty() {
        return Ok(Judged::default());
    }
    let filters = Arc::clone(filters);
    let judging = tokio::task::spawn_blocking(move || all(&filters, asked.into_values()));
    // It is told to stop, or has panicked: the frames come again.
    Ok(judging.await.map_err(|_| IntakeError::Stopped)??)
}

fn all(filters: &Filters, asked: impl Iterator<Item = Asked>) -> Result<Judged, NotNow> {
    let begun = Instant::now();
    let mut judged = HashSet::new();
    let (mut compiled, mut evaluated, mut failed) = (0, 0, 0);
    for asked in asked {
        let ready = filters.ready(&asked.filters)?;
        compiled += ready.compiled() as u64;
        for case in &asked.cases {
            let subject = Subject::of(&case.event);
            let steps = steps_each(case.filters.len());
            evaluated += case.filters.len() as u64;
            for (subscription, place) in &case.filters {
                match ready.judge(*place, &subject, steps) {
                    Verdict::Matches => drop(judged.insert((case.index, *subscription))),
                    Verdict::False => {}
                    Verdict::Failed(why) => {
                        failed += 1;
                        tracing::debug!(subscription.id = %subscription, event.id = %case.event.id, why, "a filter fails");
                    }
                }
            }
        }
    }
    telemetry::filter_seconds().record(begun.elapsed());
    telemetry::filters_compiled().increment(compiled);
    telemetry::filters_evaluated().increment(evaluated);
    telemetry::filters_failed().increment(failed);
    Ok(Judged(judged))
}
