//! What the tests are made of: a world of real processes on one of the two engines, a real receiver for webhooks, and
//! clients that speak HTTP to them and know nothing of the inside.
//!
//! Every test has a world of its own: its own database and queues, or its own data directory. When it ends, however it
//! ends, its processes are killed by the ids they were started with, and what it made is removed. When it fails, it
//! shows what its processes printed. A server that is missing fails the test; nothing is ever skipped.
#![expect(
    clippy::missing_panics_doc,
    reason = "a test fails by panicking, and what is here fails tests"
)]

mod client;
mod collector;
mod document;
mod event_stream;
mod ledger;
mod node;
mod ports;
mod pressure;
mod private_postgres;
mod private_rabbit;
mod proxy;
mod receiver;
mod scratch;
mod servers;
mod small_disk;
mod tls;
mod told;
mod turn;
mod wait;
mod world;

pub use client::{Answer, Client, Subscription};
pub use collector::{Collector, Traced};
pub use document::{Access, Field, Operation, Parameter, Place};
pub use event_stream::{EventStream, StreamedEvent};
pub use ledger::{Ledger, Load, Post, is_keyed};
pub use node::{Ended, Node, Spec, binary};
pub use ports::free_port;
pub use pressure::Pressure;
pub use private_postgres::PrivatePostgres;
pub use private_rabbit::PrivateRabbit;
pub use proxy::{Link, Proxy};
pub use receiver::{Received, Receiver, Reply};
pub use scratch::Scratch;
pub use servers::{amqp_url, database_url};
pub use small_disk::SmallDisk;
pub use tls::{Authority, Flaw};
pub use told::{HANGING_HOSTS, MOVING_HOST, Told};
pub use turn::Turn;
pub use wait::eventually;
pub use world::{ADMIN_TOKEN, Engine, World, WorldBuilder};

/// Declares each of the functions, which take an [`Engine`], as a test on either engine: `embedded::name` and
/// `servers::name`.
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::Engine::Embedded).await;
                }
            )+
        }
        mod servers {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name($crate::Engine::Servers).await;
                }
            )+
        }
    };
}
