//! What clients and subscribers see, through real HTTP to the real binaries: the same tests on both engines.

mod arriving;
mod deduplication;
mod failing;
mod hostile;
mod inbox;
mod isolation;
mod keys;
mod limits;
mod operations;
mod refused;
mod set_aside;
mod subscriptions;
mod targets;
mod zapier;
