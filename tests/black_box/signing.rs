//! Secrets: rotation while events flow, and both schemes, verified by libraries that are not ours.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use harness::{Client, Engine, Received, Receiver, World, eventually, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    a_rotated_secret_signs_beside_the_new_one_for_a_while,
    a_rotation_without_overlap_ends_the_old_secret,
    ed25519_is_verified_by_the_public_key,
    rotating_to_another_scheme_signs_by_both,
    what_cannot_be_rotated,
);

async fn rotate(client: &Client, subscription: &str, body: &Value) -> Value {
    let path = format!("/v1/subscriptions/{subscription}/rotate-secret");
    client.post(&path, body).await.expect(200)
}

/// Posts until a webhook fits: workers come to know of a rotation within a moment.
async fn until_signed(client: &Client, receiver: &Receiver, fits: impl Fn(&Received) -> bool) -> Received {
    eventually(
        "a webhook is signed as expected",
        Duration::from_secs(20),
        async || {
            let count = receiver.count("/hook");
            client.event("order.placed").await;
            let webhooks = receiver.wait_for("/hook", count + 1).await;
            let last = webhooks.last().expect("one arrived");
            if fits(last) {
                Ok(last.clone())
            } else {
                Err(last.header("webhook-signature").to_owned())
            }
        },
    )
    .await
}

fn signatures(webhook: &Received) -> usize {
    webhook.header("webhook-signature").split(' ').count()
}

fn verified_by(webhook: &Received, public_key: &str) -> bool {
    let public = STANDARD
        .decode(public_key.strip_prefix("whpk_").expect("its prefix"))
        .expect("base64");
    let public = VerifyingKey::from_bytes(public[..].try_into().expect("32 bytes")).expect("a key");
    let mut message = format!(
        "{}.{}.",
        webhook.webhook_id(),
        webhook.header("webhook-timestamp")
    )
    .into_bytes();
    message.extend_from_slice(&webhook.body);
    let signatures = webhook.header("webhook-signature").split(' ');
    signatures
        .filter_map(|signature| signature.strip_prefix("v1a,"))
        .any(|signature| {
            let signature = STANDARD.decode(signature).expect("base64");
            public
                .verify(&message, &Signature::from_slice(&signature).expect("64 bytes"))
                .is_ok()
        })
}

async fn a_rotated_secret_signs_beside_the_new_one_for_a_while(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    let rotated = rotate(&client, &subscription.id, &json!({"overlap_seconds": 6})).await;
    let new = rotated["secret"].as_str().expect("shown once").to_owned();
    assert!(rotated["former_secret_until"].is_string(), "{rotated}");
    let both = until_signed(&client, &receiver, |webhook| signatures(webhook) == 2).await;
    both.verify(&subscription.secret).expect("by the former");
    both.verify(&new).expect("by the new one");
    let after = until_signed(&client, &receiver, |webhook| signatures(webhook) == 1).await;
    after.verify(&new).expect("by the new one");
    assert!(after.verify(&subscription.secret).is_err(), "its time is over");
    let shown = client
        .get(&format!("/v1/subscriptions/{}", subscription.id))
        .await
        .expect(200);
    assert!(
        shown["former_secret_until"].is_null() && shown["secret"].is_null(),
        "{shown}"
    );
}

async fn a_rotation_without_overlap_ends_the_old_secret(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    // Three in a row: at most two sign.
    rotate(&client, &subscription.id, &json!({})).await;
    rotate(&client, &subscription.id, &json!({})).await;
    let own = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let rotated = rotate(&client, &subscription.id, &json!({"secret": own})).await;
    assert_eq!(rotated["secret"], own);
    let both = until_signed(&client, &receiver, |webhook| webhook.verify(own).is_ok()).await;
    assert_eq!(signatures(&both), 2);
    assert!(
        both.verify(&subscription.secret).is_err(),
        "the first signs no more"
    );
    let rotated = rotate(&client, &subscription.id, &json!({"overlap_seconds": 0})).await;
    let last = rotated["secret"].as_str().expect("shown once");
    let alone = until_signed(&client, &receiver, |webhook| webhook.verify(last).is_ok()).await;
    assert_eq!(signatures(&alone), 1);
}

async fn ed25519_is_verified_by_the_public_key(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let made = client
        .post(
            "/v1/subscriptions",
            &json!({"url": receiver.url("/hook"), "signature_scheme": "ed25519"}),
        )
        .await
        .expect(201);
    assert!(made["secret"].is_null(), "nobody needs the private half: {made}");
    let public = made["public_key"].as_str().expect("a public key");
    client.event("order.placed").await;
    let webhook = receiver.wait_for("/hook", 1).await.remove(0);
    assert!(verified_by(&webhook, public));
    assert!(webhook.header("webhook-signature").starts_with("v1a,"));
}

async fn rotating_to_another_scheme_signs_by_both(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    let rotated = rotate(&client, &subscription.id, &json!({"signature_scheme": "ed25519"})).await;
    let public = rotated["public_key"].as_str().expect("a public key");
    let both = until_signed(&client, &receiver, |webhook| verified_by(webhook, public)).await;
    both.verify(&subscription.secret).expect("by the former");
}

async fn what_cannot_be_rotated(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let stranger = world.organization().await;
    let push = client.subscribe_url("http://127.0.0.1:9/hook").await;
    let path = format!("/v1/subscriptions/{}/rotate-secret", push.id);
    stranger.post(&path, &json!({})).await.problem(404, "not_found");
    for (body, pointer) in [
        (json!({"overlap_seconds": 604_801}), "/overlap_seconds"),
        (json!({"overlap_seconds": -1}), "/overlap_seconds"),
        (json!({"secret": "whsec_short"}), "/secret"),
        (json!({"signature_scheme": "rsa"}), "/signature_scheme"),
        (
            json!({"signature_scheme": "ed25519", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}),
            "/secret",
        ),
        (json!({"overlap": 1}), "/overlap"),
    ] {
        let answer = client.post(&path, &body).await;
        assert_eq!(
            (answer.status, answer.pointers()),
            (422, vec![pointer.to_owned()]),
            "{body}"
        );
    }
    let change = client
        .patch(
            &format!("/v1/subscriptions/{}", push.id),
            &json!({"signature_scheme": "ed25519"}),
        )
        .await;
    assert_eq!(
        (change.status, change.pointers()),
        (422, vec!["/signature_scheme".to_owned()])
    );
    let pull = client
        .post("/v1/subscriptions", &json!({"kind": "pull"}))
        .await
        .expect(201);
    let path = format!(
        "/v1/subscriptions/{}/rotate-secret",
        pull["id"].as_str().expect("an id")
    );
    client.post(&path, &json!({})).await.problem(409, "conflict");
}
