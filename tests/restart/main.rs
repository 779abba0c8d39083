//! RabbitMQ and PostgreSQL killed, hung, stopped and filled under load: 503 at worst, then recovery without a hand, and
//! nothing acknowledged is lost.

mod both;
mod keys;
mod limits;
mod queue;
mod several;
mod writes;

use std::time::Duration;

/// How long a producer may wait for an answer: two seconds, and half a second for a busy test machine.
const IN_TIME: Duration = Duration::from_millis(2_500);
