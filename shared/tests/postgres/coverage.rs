//! That removing an organization forgets no table, and that nothing is changed that cannot be written down.

use shared::store::Removed;
use sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};
use uuid::Uuid;

use super::on_a_store_at;
use crate::conformance::{
    audit_log::not_changed,
    removals::full,
    world::{organization, push},
};

/// Tables that say of which organization or subscription a row is; the parts of one are seen through it.
const TABLES: &str = "
    SELECT c.table_name || '.' || c.column_name FROM information_schema.columns c
    JOIN pg_class t ON t.relname = c.table_name AND t.relnamespace = c.table_schema::regnamespace
    WHERE c.table_schema = 'public' AND c.column_name = ANY ('{organization_id,subscription_id}')
      AND NOT t.relispartition AND t.relkind = ANY ('{r,p}')
      AND c.table_name <> 'removals'
    ORDER BY 1";

async fn rows_of(
    connection: &mut PgConnection,
    tables: &[String],
    organization: Uuid,
    subscription: Uuid,
) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for name in tables {
        let (table, column) = name.split_once('.').unwrap();
        let of = match column {
            "organization_id" => organization,
            _ => subscription,
        };
        let sql = format!("SELECT EXISTS (SELECT FROM {table} WHERE {column} = $1)");
        let some = query_scalar(AssertSqlSafe(sql))
            .bind(of)
            .fetch_one(&mut *connection);
        found.push((name.clone(), some.await.unwrap()));
    }
    found
}

#[tokio::test]
async fn removing_an_organization_forgets_no_table() {
    on_a_store_at(|store, url| async move {
        let ((ours, push), (theirs, their_push)) = (full(&store, 3).await, full(&store, 3).await);
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let tables: Vec<String> = query_scalar(TABLES).fetch_all(&mut connection).await.unwrap();
        assert!(tables.len() > 12, "{tables:?}");
        let all = |some| tables.iter().map(|name| (name.clone(), some)).collect::<Vec<_>>();
        let before = rows_of(&mut connection, &tables, ours.uuid(), push.uuid()).await;
        assert_eq!(before, all(true), "there must be something in each to be removed");
        store.removals.begin_removal(ours).await.unwrap();
        while store.removals.remove_some(ours).await.unwrap() != Removed::All {}
        let after = rows_of(&mut connection, &tables, ours.uuid(), push.uuid()).await;
        assert_eq!(after, all(false));
        let others = rows_of(&mut connection, &tables, theirs.uuid(), their_push.uuid()).await;
        assert_eq!(others, all(true), "nothing of another");
        connection.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_done() {
    on_a_store_at(|store, url| async move {
        let made = organization(&store).await;
        let push = push(&store, made.id).await;
        let mut connection = PgConnection::connect(&url).await.unwrap();
        raw_sql("ALTER TABLE audit_log RENAME TO away")
            .execute(&mut connection)
            .await
            .unwrap();
        not_changed(&store, made.id, &push).await;
        connection.close().await.unwrap();
    })
    .await;
}
