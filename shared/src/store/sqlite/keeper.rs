//! Schema, health, word of changes, and the end.

use std::{sync::atomic::Ordering, time::Duration};

use async_trait::async_trait;
use sqlx::migrate::MigrateError;
use tokio::sync::broadcast;

use super::{
    Engine, MIGRATIONS,
    row::{Columns as _, failed},
};
use crate::{
    audit::{self, Action},
    seal::Sealed,
    store::{Change, Keeper, PING_TIMEOUT, Result, Retention, StoreError},
};

#[async_trait]
impl Keeper for Engine {
    async fn migrate(&self) -> Result<()> {
        self.database
            .migrate(MIGRATIONS)
            .await
            .map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(error),
                error => StoreError::Corrupt(error.to_string()),
            })
    }

    async fn ping(&self) -> Result<()> {
        // Of a table: without the schema there is nothing to work with.
        let look = sqlx::query("SELECT 1 FROM organizations LIMIT 1").execute(&self.readers);
        match tokio::time::timeout(PING_TIMEOUT, look).await {
            Ok(looked) => looked.map(drop).map_err(failed),
            Err(_) => Err(failed(sqlx::Error::PoolTimedOut)),
        }
    }

    async fn secret_check(&self, sealed: Sealed) -> Result<Sealed> {
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO secret_check (single, sealed) VALUES (1, ?) ON CONFLICT DO NOTHING",
                    )
                    .bind(sealed.0)
                    .execute(&mut tx.connection)
                    .await
                    .map_err(failed)?;
                    sqlx::query("SELECT sealed FROM secret_check")
                        .fetch_one(&mut tx.connection)
                        .await
                        .map_err(failed)?
                        .value(0)
                        .map(Sealed)
                })
            })
            .await
    }

    async fn kept_secret_check(&self) -> Result<Option<Sealed>> {
        let kept = sqlx::query("SELECT sealed FROM secret_check").fetch_optional(&self.readers);
        let kept = kept.await.map_err(failed)?;
        kept.map(|row| row.value(0).map(Sealed)).transpose()
    }

    async fn replace_secret_check(&self, before: &Sealed, after: Sealed) -> Result<bool> {
        let before = before.clone();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    let done = sqlx::query("UPDATE secret_check SET sealed = ? WHERE sealed = ?")
                        .bind(after.0)
                        .bind(before.0)
                        .execute(&mut tx.connection)
                        .await
                        .map_err(failed)?;
                    let replaced = done.rows_affected() > 0;
                    if replaced {
                        let changed = audit::Change::of(None, Action::SecretKeyChanged, "deployment");
                        tx.audit(changed).await?;
                    }
                    Ok(replaced)
                })
            })
            .await
    }

    async fn keep(&self, retention: Duration) -> Result<Retention> {
        self.writer
            .run(|tx| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE subscriptions SET former_secret = NULL, former_scheme = NULL, former_until = NULL \
                         WHERE former_until <= ?",
                    )
                    .bind(tx.now.millis())
                    .execute(&mut tx.connection)
                    .await
                    .map(drop)
                    .map_err(failed)
                })
            })
            .await?;
        self.keep_for(retention).await
    }

    async fn cancel_deleted(&self) -> Result<bool> {
        self.writer
            .run(|tx| Box::pin(super::retention::cancel_deleted(tx)))
            .await
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        let changes = self.changes.subscribe();
        // As an engine does that has to connect first, the first word says that listening has begun.
        if !self.listening.swap(true, Ordering::Relaxed) {
            let _: std::result::Result<_, _> = self.changes.send(Change::Everything);
        }
        changes
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
