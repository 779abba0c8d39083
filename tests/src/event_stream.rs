//! A client of server-sent events, as a browser is one.

use std::time::Duration;

use serde_json::Value;

/// An event of a stream.
#[derive(Debug)]
pub struct StreamedEvent {
    /// Its `id`.
    pub id: String,
    /// Its `event`.
    pub event: String,
    /// Its `data`, as JSON.
    pub data: Value,
}

/// A stream that is being read.
pub struct EventStream {
    response: reqwest::Response,
    text: String,
}

impl EventStream {
    /// Opens one, and waits for its first words.
    pub async fn open(request: reqwest::RequestBuilder) -> Self {
        let request = request.timeout(Duration::from_mins(10));
        let response = request.send().await.expect("the request is answered");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Self {
            response,
            text: String::new(),
        };
        let greeted = stream.block(Duration::from_secs(20)).await;
        assert!(greeted.is_some_and(|block| block.starts_with(':')));
        stream
    }

    /// The next event; `None` if the stream ends first, and a failed test if neither comes in time.
    pub async fn next(&mut self, within: Duration) -> Option<StreamedEvent> {
        loop {
            let block = self.block(within).await?;
            let (mut id, mut event, mut data) = (None, None, Vec::new());
            for line in block.lines() {
                match line.split_once(": ") {
                    Some(("id", value)) => id = Some(value.to_owned()),
                    Some(("event", value)) => event = Some(value.to_owned()),
                    Some(("data", value)) => data.push(value.to_owned()),
                    // A comment.
                    _ => {}
                }
            }
            if let (Some(id), Some(event)) = (id, event) {
                let data = serde_json::from_str(&data.join("\n")).expect("data is JSON");
                return Some(StreamedEvent { id, event, data });
            }
        }
    }

    /// The next lines up to an empty one.
    async fn block(&mut self, within: Duration) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                return Some(std::mem::replace(&mut self.text, rest));
            }
            let chunk = tokio::time::timeout(within, self.response.chunk());
            match chunk.await.expect("the stream says something in time") {
                Ok(Some(chunk)) => self
                    .text
                    .push_str(std::str::from_utf8(&chunk).expect("whole characters")),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}
