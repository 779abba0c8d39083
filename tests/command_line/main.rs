//! The processes themselves: what they print, which settings they take, and whom they let in.

mod dev;
mod resealing;
mod settings;
mod starting;
