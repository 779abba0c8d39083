//! The processes themselves: what they print, which settings they take, and whom they let in.

mod client;
mod config;
mod dev;
mod resealing;
mod settings;
mod starting;
