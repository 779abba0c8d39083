//! The subscriber: notes when each event arrives, and answers 200.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;

use crate::http::{Wire, find};

/// How long to wait for further arrivals before giving up on what is missing.
const PATIENCE: Duration = Duration::from_secs(15);

/// When events arrived, by number: the first time, and how often.
pub type Arrivals = HashMap<u64, (Instant, u32)>;

/// A running receiver.
pub struct Receiver {
    /// Where it is.
    pub address: SocketAddr,
    arrivals: Rc<RefCell<Arrivals>>,
    tasks: tokio::task::LocalSet,
}

/// What a receiver does with a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Notes it, and answers 200.
    Answer,
    /// Never answers, until the other side closes the connection.
    Hang,
    /// Closes the connection.
    Close,
}

/// Starts a receiver on a free port, which answers. It runs while this thread's runtime does.
pub async fn start() -> anyhow::Result<Receiver> {
    start_with(|_| Reply::Answer).await
}

/// As [`start`], with a reply by the number of the event.
pub async fn start_with(reply: impl Fn(u64) -> Reply + Send + Sync + 'static) -> anyhow::Result<Receiver> {
    let reply = Arc::new(reply);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<(u64, Instant)>();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (sender, reply) = (sender.clone(), Arc::clone(&reply));
            tokio::spawn(async move {
                let Ok(mut wire) = Wire::new(stream) else { return };
                while let Ok(Some(message)) = wire.receive().await {
                    let number = number(message.body);
                    match number.map_or(Reply::Answer, |number| reply(number)) {
                        Reply::Answer => {}
                        Reply::Hang => {
                            let _ = wire.receive().await;
                            return;
                        }
                        Reply::Close => return,
                    }
                    if let Some(number) = number
                        && sender.send((number, Instant::now())).is_err()
                    {
                        return;
                    }
                    if wire
                        .send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    let arrivals: Rc<RefCell<Arrivals>> = Rc::default();
    let noted = Rc::clone(&arrivals);
    let tasks = tokio::task::LocalSet::new();
    tasks.spawn_local(async move {
        while let Some((number, at)) = receiver.recv().await {
            noted.borrow_mut().entry(number).or_insert((at, 0)).1 += 1;
        }
    });
    Ok(Receiver {
        address,
        arrivals,
        tasks,
    })
}

/// The number in a webhook's body.
fn number(body: &[u8]) -> Option<u64> {
    let at = find(body, br#""n":""#)? + 5;
    std::str::from_utf8(body.get(at..at + 10)?).ok()?.parse().ok()
}

impl Receiver {
    /// Waits until `count` events have arrived in all, or nothing more arrives.
    pub async fn settle(&self, count: u64) {
        let mut seen = 0;
        let mut since = Instant::now();
        while since.elapsed() < PATIENCE {
            self.tasks
                .run_until(tokio::time::sleep(Duration::from_millis(20)))
                .await;
            let now = self.arrivals.borrow().len();
            if now as u64 >= count {
                return;
            }
            if now > seen {
                (seen, since) = (now, Instant::now());
            }
        }
    }

    /// Lets the receiver go on for a while.
    pub async fn go_on(&self, length: Duration) {
        self.tasks.run_until(tokio::time::sleep(length)).await;
    }

    /// How many have arrived of which this is true.
    pub fn count(&self, of: impl Fn(u64) -> bool) -> usize {
        self.arrivals
            .borrow()
            .keys()
            .filter(|number| of(**number))
            .count()
    }

    /// What has arrived.
    pub fn arrivals(&self) -> Arrivals {
        self.arrivals.borrow().clone()
    }
}
