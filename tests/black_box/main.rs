//! What clients and subscribers see, through real HTTP to the real binaries: the same tests on both engines.

mod again;
mod announced;
mod arriving;
mod batch;
mod cloud_events;
mod deduplication;
mod erasing;
mod failing;
mod hostile;
mod inbox;
mod isolation;
mod keys;
mod lanes;
mod limits;
mod operations;
mod order;
mod pulling;
mod refused;
mod seeing;
mod set_aside;
mod signing;
mod streaming;
mod subscriptions;
mod targets;
mod webhooks;
mod zapier;
