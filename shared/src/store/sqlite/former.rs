//! Events that have another id than they had.
//!
//! A former id belongs to whoever names it first. Who names it later is the same event once more, put back twice: it is not
//! stored, and its own id becomes one of the first's.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::{
    many::{portions, values},
    row::{Columns as _, failed},
};
use crate::{AcceptedEvent, EventId, OrganizationId, store::Result};

type Address = (OrganizationId, EventId);

/// Which events the former ids of a batch lead to.
pub(super) struct Formers {
    owners: HashMap<Address, EventId>,
    new: Vec<(Address, EventId)>,
}

impl Formers {
    /// As the store has them: by themselves, or as ids of events.
    pub(super) async fn of(connection: &mut SqliteConnection, events: &[AcceptedEvent]) -> Result<Self> {
        let asked: Vec<Address> = events
            .iter()
            .flat_map(|event| {
                event
                    .former_ids
                    .iter()
                    .map(|former| (event.organization, *former))
            })
            .collect();
        let mut owners = HashMap::with_capacity(asked.len());
        for portion in portions(&asked) {
            let values = values(portion.len(), 2);
            let sql = format!(
                "SELECT f.organization_id, f.id, f.event_id FROM (VALUES {values}) v CROSS JOIN former_ids f \
                 ON f.organization_id = v.column1 AND f.id = v.column2 \
                 UNION ALL \
                 SELECT e.organization_id, e.id, e.id FROM (VALUES {values}) v CROSS JOIN events e \
                 ON e.id = v.column2 AND e.organization_id = v.column1"
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (organization, id) in portion.iter().chain(portion) {
                query = query.bind(organization.uuid()).bind(id.uuid());
            }
            for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
                owners.insert((row.id(0)?, row.id(1)?), row.id(2)?);
            }
        }
        Ok(Self {
            owners,
            new: Vec::new(),
        })
    }

    /// Takes the event's former ids for it; whether it is there already, under another id.
    pub(super) fn claim(&mut self, event: &AcceptedEvent) -> bool {
        let address = |id: EventId| (event.organization, id);
        let mut owners = event
            .former_ids
            .iter()
            .filter_map(|id| self.owners.get(&address(*id)));
        let owner = owners.find(|owner| **owner != event.id).copied();
        let leads_to = owner.unwrap_or(event.id);
        for id in event
            .former_ids
            .iter()
            .chain(owner.is_some().then_some(&event.id))
        {
            if self.owners.insert(address(*id), leads_to).is_none() {
                self.new.push((address(*id), leads_to));
            }
        }
        owner.is_some()
    }

    /// Writes down what was claimed.
    pub(super) async fn insert(&self, connection: &mut SqliteConnection) -> Result<()> {
        for portion in portions(&self.new) {
            let sql = format!(
                "INSERT INTO former_ids (organization_id, id, event_id) VALUES {} \
                 ON CONFLICT (organization_id, id) DO NOTHING",
                values(portion.len(), 3)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for ((organization, id), event) in portion {
                query = query.bind(organization.uuid()).bind(id.uuid()).bind(event.uuid());
            }
            query.execute(&mut *connection).await.map_err(failed)?;
        }
        Ok(())
    }
}
