//! Every route of the control plane over real HTTP, on a real embedded engine in a directory of the test's own.

mod answer;
mod compat;
mod deliveries;
mod described;
mod events;
mod harness;
mod inbox;
mod keys;
mod lists;
mod organizations;
mod pulls;
mod search;
mod set_aside;
mod subscriptions;
mod usage;
