//! To come.
/// To come.
#[derive(Debug)]
pub enum PublishError {}
/// To come.
#[derive(Debug)]
pub struct Publisher;
