//! What every engine of the store must do, run through each of them; and what is an engine's own.

mod conformance;
mod postgres;
