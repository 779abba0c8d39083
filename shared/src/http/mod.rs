//! HTTP conventions that every role keeps: problems, field by field validation, bodies with caps, request ids, and a
//! server whose every wait has an end.

pub mod body;
pub mod fields;
mod heard;
mod limit_state;
mod linger;
pub mod openapi;
pub mod ops;
pub(crate) mod origin;
mod places;
pub mod problem;
pub mod query;
pub mod reference;
pub mod room;
pub mod server;
mod spare;
mod stall;

pub use body::JsonBody;
pub use fields::{Fields, Unknown};
pub use limit_state::LimitState;
pub use problem::{ApiError, Code, FieldError};
pub use query::Query;
