//! Input nobody should send: each is answered with a problem that names the field and the rule, and leaves nothing.

mod events;
mod requests;
mod subscriptions;

/// A string of JSON, of one character so often.
fn long(character: char, length: usize) -> String {
    format!("\"{}\"", character.to_string().repeat(length))
}
