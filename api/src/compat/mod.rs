//! The Zapier Triggers API as its existing clients know it: a thin layer over the same operations as `/v1`.
//!
//! Ids are plain UUIDs, fields that a route does not know are ignored, a broken rule is a 400, and problems carry
//! `error` and `message` besides (the server sees to the last two, by the path). `POST /api/events` is the `ingest`
//! crate's.

mod inbox;
mod keys;
mod webhook;

use std::sync::Arc;

use shared::http::{
    Code,
    openapi::{Header, Routes, doc, get, post},
};

use crate::Control;

pub(crate) fn routes() -> Routes<Arc<Control>> {
    let gone = "the organization is gone";
    Routes::of("Zapier Triggers API")
        .at(
            "/api/keys/generate",
            post(
                keys::generate,
                doc("compatGenerateKey", "Create an organization, with a key").header(201, Header::NoStore),
            ),
        )
        .at(
            "/api/keys",
            get(
                keys::show,
                doc("compatGetKey", "Get the key's organization").problem(Code::NotFound, gone),
            ),
        )
        .at(
            "/api/keys/rotate",
            post(
                keys::rotate,
                doc("compatRotateKey", "Rotate the key that asks")
                    .text("The old one ends at once.")
                    .header(200, Header::NoStore)
                    .problem(Code::NotFound, gone)
                    .problem(Code::Conflict, "another key has taken this one's place already"),
            ),
        )
        .at(
            "/api/webhook/config",
            post(
                webhook::configure,
                doc(
                    "compatConfigureWebhook",
                    "Set the organization's default push subscription",
                )
                .header(200, Header::NoStore)
                .problem(Code::Conflict, "others are changing it at the same time"),
            ),
        )
        .at(
            "/api/inbox",
            get(
                inbox::list,
                doc("compatListInbox", "List events")
                    .text("All of the organization's, newest first.")
                    .answers::<inbox::Page>(200),
            ),
        )
        .at(
            "/api/ack/{id}",
            post(
                inbox::acknowledge,
                doc("compatAcknowledge", "Acknowledge an event").header(404, Header::RetryAfter),
            ),
        )
}
