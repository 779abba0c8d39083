//! RabbitMQ and PostgreSQL killed, hung, stopped and filled under load: 503 at worst, then recovery without a hand, and
//! nothing acknowledged is lost.

mod broker;
mod database;
mod queue;
