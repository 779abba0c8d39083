//! Every route of the served document, called by what the document says of it: nothing that it takes is forgotten when a route is
//! added. An operation that writes must say here what it is sent: one that does not fails a test by its name.

mod bodies;
mod call;
mod fields;
mod heads;
mod others;
mod party;

use std::sync::Arc;

use harness::{Access, Client, Node, Operation, Place, World};
use http::Method;
use serde_json::{Value, json};

use self::party::Party;

/// What is in all that the owner says, and in nothing that anybody else does.
const MARK: &str = "of-alpha-alone";

/// What an operation is sent. Ids are put in where the document says that there are some.
fn body_of(operation: &Operation) -> Option<Value> {
    let event = json!({"type": "pulled.by_stranger", "payload": {}, "dedup_id": MARK});
    Some(match operation.id.as_str() {
        "postEvent" | "compatPostEvent" => event,
        "postEvents" => json!([event]),
        "createKey" => json!({"name": "a stranger's key"}),
        "updateOrganization" => json!({"name": "a stranger's"}),
        "createSubscription" => json!({"url": "http://127.0.0.1:9/stranger"}),
        "updateSubscription" => json!({"description": "a stranger's", "event_types": ["stranger.*"]}),
        "extendPulled" => json!({"lease_seconds": 1}),
        "pullEvents" => json!({"max": 1_000, "lease_seconds": 1}),
        "rotateKey" | "rotateSecret" => json!({"overlap_seconds": 0}),
        "acknowledgeEvents" | "acknowledgePulled" | "releasePulled" | "createReplay" => json!({}),
        "createOrganization" => json!({"name": "a stranger's", "tier": "free"}),
        "compatGenerateKey" => json!({"organization_name": "a stranger's", "tier": "free"}),
        "compatConfigureWebhook" => json!({"webhook_url": "http://127.0.0.1:9/stranger"}),
        _ => return None,
    })
}

/// Whether it is known what to send to an operation: one that writes must be named here or in [`body_of`], unless it is all
/// said by the ids in its path.
fn is_known(operation: &Operation) -> bool {
    if operation.has_body {
        body_of(operation).is_some()
    } else {
        let is_said_by_ids = operation.ids_in(Place::Path).next().is_some();
        operation.method == Method::GET || is_said_by_ids || operation.id == "compatRotateKey"
    }
}

/// The processes that serve the API: a worker has its health and metrics alone.
fn serving(world: &World) -> impl Iterator<Item = &Arc<Node>> {
    world.nodes().iter().filter(|node| node.program() != "worker")
}

/// The operations that the world serves: each process the same.
async fn operations(world: &World) -> Vec<Operation> {
    let document = world.get(world.api(), "/openapi.json").await;
    for node in serving(world) {
        let served = world.get(node, "/openapi.json").await;
        assert_eq!(
            served.text,
            document.text,
            "{} serves another document",
            node.program()
        );
    }
    let operations = Operation::all(&document.expect(200));
    let unknown = operations.iter().filter(|operation| !is_known(operation));
    let unknown: Vec<_> = unknown.map(|operation| &operation.id).collect();
    assert!(
        unknown.is_empty(),
        "it is not known what to send to {unknown:?}: say it in body_of"
    );
    operations
}

/// Whoever may call an operation.
fn client_of(operation: &Operation, world: &World, party: &Party) -> Client {
    match operation.access {
        Access::Administration => world.admin(),
        Access::Open | Access::Key => party.client.clone(),
    }
}

/// As [`body_of`], and no repeat of what was sent before.
fn fresh_body_of(operation: &Operation, party: &Party) -> Option<Value> {
    let mut body = operation.body_with(body_of(operation)?, &party.ids);
    if let Some(members) = body.as_object_mut() {
        members.remove("dedup_id");
    }
    Some(body)
}
