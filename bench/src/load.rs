//! Posting events: in a closed loop (as many at once as there are connections), or in an open one (at a rate, whatever
//! the answers, so that a stall shows in every event that it delays).

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet};

use crate::http::{Wire, find};

/// Connections of an open loop, unless a scenario needs more at once.
pub const OPEN_CONNECTIONS: u16 = 64;

/// How events are posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// By this many connections, each as soon as it is answered.
    Closed {
        /// How many.
        connections: u16,
    },
    /// As closed, until this many are posted, however long that takes.
    Counted {
        /// How many connections.
        connections: u16,
        /// How many events.
        count: u64,
    },
    /// At this rate.
    Open {
        /// Events a second.
        rate: u32,
        /// Over how many connections.
        connections: u16,
    },
}

/// Where to post what.
#[derive(Debug, Clone)]
pub struct Load {
    /// The front.
    pub target: SocketAddr,
    /// The API keys of the organizations, which take turns.
    pub keys: Vec<String>,
    /// How many types events have, which take turns: `bench.event`, or `bench.0` and so on.
    pub types: u64,
    /// Bytes a payload.
    pub payload: usize,
    /// How many events are posted at once: one by one, or in batches of as many.
    pub batch: u64,
}

/// One event's fate.
#[derive(Debug, Clone, Copy)]
pub struct Post {
    /// Its number, which its payload begins with.
    pub number: u64,
    /// When it was to be posted.
    pub due: Instant,
    /// When it was answered.
    pub answered: Instant,
    /// With which status.
    pub status: u16,
}

/// A run.
#[derive(Debug)]
pub struct Run {
    /// Every event of it.
    pub posts: Vec<Post>,
    /// How long it took, from the first to the last answer.
    pub took: Duration,
    next: u64,
}

impl Run {
    /// How many numbers are used up by this run and those before it.
    pub fn posted(&self) -> u64 {
        self.next
    }
}

/// The payload of event `number`: `{"n":"0000000042","pad":"xxx…"}`.
pub fn payload(number: u64, bytes: usize) -> String {
    let head = format!(r#"{{"n":"{number:010}","pad":""#);
    format!("{head}{}\"}}", "x".repeat(bytes.saturating_sub(head.len() + 2)))
}

/// When a closed loop ends.
#[derive(Debug, Clone, Copy)]
enum End {
    At(Instant),
    /// Before the event of this number.
    Before(u64),
}

impl End {
    fn is_reached(self, next: u64) -> bool {
        match self {
            Self::At(end) => Instant::now() >= end,
            Self::Before(end) => next >= end,
        }
    }
}

impl Load {
    /// The request of an event, or of a batch that begins with it, written out.
    fn request(&self, number: u64) -> Vec<u8> {
        let turn = (number / self.batch) % self.types;
        let event_type = match self.types {
            1 => "event".to_owned(),
            _ => turn.to_string(),
        };
        let event = |number| {
            format!(
                r#"{{"type":"bench.{event_type}","payload":{}}}"#,
                payload(number, self.payload)
            )
        };
        let (path, body) = match self.batch {
            1 => ("/v1/events", event(number)),
            count => {
                let events: Vec<String> = (number..number + count).map(event).collect();
                ("/v1/events/batch", format!("[{}]", events.join(",")))
            }
        };
        // By the type, so that each type is of one organization.
        let key = &self.keys[(turn % self.keys.len() as u64) as usize];
        format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.target,
            key,
            body.len()
        )
        .into_bytes()
    }

    async fn connect(&self) -> anyhow::Result<Wire> {
        let stream = TcpStream::connect(self.target)
            .await
            .context("the front does not take a connection")?;
        Ok(Wire::new(stream)?)
    }

    /// Posts for a while, with numbers from `first`.
    pub async fn run(&self, shape: Shape, length: Duration, first: u64) -> anyhow::Result<Run> {
        let posts = Rc::new(RefCell::new(Vec::new()));
        let begun = Instant::now();
        let local = tokio::task::LocalSet::new();
        let next = local
            .run_until(async {
                match shape {
                    Shape::Closed { connections } => {
                        let end = End::At(begun + length);
                        self.closed(connections, end, first, &posts).await
                    }
                    Shape::Counted { connections, count } => {
                        let end = End::Before(first + count);
                        self.closed(connections, end, first, &posts).await
                    }
                    Shape::Open { rate, connections } => {
                        self.open((rate, connections), length, first, &posts).await
                    }
                }
            })
            .await?;
        let posts = std::mem::take(&mut *posts.borrow_mut());
        let last = posts
            .iter()
            .map(|post: &Post| post.answered)
            .max()
            .unwrap_or(begun);
        Ok(Run {
            posts,
            took: last - begun,
            next,
        })
    }

    async fn closed(
        &self,
        connections: u16,
        end: End,
        first: u64,
        posts: &Rc<RefCell<Vec<Post>>>,
    ) -> anyhow::Result<u64> {
        let next = Rc::new(RefCell::new(first));
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let mut wire = self.connect().await?;
            let (load, posts, next) = (self.clone(), Rc::clone(posts), Rc::clone(&next));
            tasks.spawn_local(async move {
                while !end.is_reached(*next.borrow()) {
                    let first = *next.borrow();
                    *next.borrow_mut() += load.batch;
                    let request = load.request(first);
                    let due = Instant::now();
                    let status = exchange(&mut wire, &request).await?;
                    let answered = Instant::now();
                    let events = (first..first + load.batch).map(|number| Post {
                        number,
                        due,
                        answered,
                        status,
                    });
                    posts.borrow_mut().extend(events);
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(*next.borrow())
    }

    async fn open(
        &self,
        (rate, connections): (u32, u16),
        length: Duration,
        first: u64,
        posts: &Rc<RefCell<Vec<Post>>>,
    ) -> anyhow::Result<u64> {
        let count = (f64::from(rate) * length.as_secs_f64()) as u64;
        let (sender, receiver) = mpsc::unbounded_channel();
        // A thread of its own: a runtime's timer has a grain of a millisecond, which would be measured as latency.
        let pacer = std::thread::spawn(move || {
            let begun = Instant::now();
            for index in 0..count {
                let due = begun + Duration::from_secs_f64(index as f64 / f64::from(rate));
                if let Some(wait) = due.checked_duration_since(Instant::now()) {
                    std::thread::sleep(wait);
                }
                if sender.send((first + index, due)).is_err() {
                    break;
                }
            }
        });
        let receiver = Rc::new(tokio::sync::Mutex::new(receiver));
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let mut wire = self.connect().await?;
            let (load, posts, receiver) = (self.clone(), Rc::clone(posts), Rc::clone(&receiver));
            tasks.spawn_local(async move {
                loop {
                    let next = receiver.lock().await.recv().await;
                    let Some((number, due)) = next else {
                        return anyhow::Ok(());
                    };
                    let request = load.request(number);
                    // An idle connection may have been closed meanwhile: the next request takes a new one.
                    let status = if let Ok(status) = exchange(&mut wire, &request).await {
                        status
                    } else {
                        wire = load.connect().await?;
                        exchange(&mut wire, &request).await?
                    };
                    posts.borrow_mut().push(Post {
                        number,
                        due,
                        answered: Instant::now(),
                        status,
                    });
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        if pacer.join().is_err() {
            bail!("the pacer panicked");
        }
        Ok(first + count)
    }
}

async fn exchange(wire: &mut Wire, request: &[u8]) -> anyhow::Result<u16> {
    wire.send(request).await?;
    let message = wire.receive().await?.context("the front closed the connection")?;
    // Of a batch, all or the run is of no use: what is measured are events that got in.
    if message.body.starts_with(b"{\"accepted\":") && find(message.body, b"\"refused\":0,").is_none() {
        bail!("events of a batch were refused");
    }
    let status = message
        .first_line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    status.context("the front does not speak HTTP")
}
