//! Processes killed and stopped while events are posted at a steady rate: every 202 is delivered, each in one delivery.

mod accepting;
mod again;
mod batches;
mod killed;
mod limits;
mod removed;
mod repeated;
mod stopped;
