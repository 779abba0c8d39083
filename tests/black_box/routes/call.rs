//! A request to an operation, made of what the document says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use harness::{Answer, Client, Operation, Place};
use serde_json::Value;

use super::{
    MARK, body_of,
    party::{Party, uuid},
};

/// Every choice of ids for an operation's path, from those that there are of each kind.
pub(super) fn choices(operation: &Operation, there_are: impl Fn(&str) -> Vec<String>) -> Vec<Vec<String>> {
    let mut choices = vec![Vec::new()];
    for (_, prefix) in operation.ids_in(Place::Path) {
        let ids = there_are(prefix);
        let longer = choices.iter().flat_map(|choice| {
            ids.iter().map(move |id| {
                let mut longer: Vec<String> = choice.clone();
                longer.push(id.clone());
                longer
            })
        });
        choices = longer.collect();
    }
    choices
}

/// A request to be made.
pub(super) struct Call<'a> {
    pub(super) operation: &'a Operation,
    pub(super) path: String,
    pub(super) header: Option<(String, String)>,
    pub(super) body: Option<Value>,
}

impl<'a> Call<'a> {
    pub(super) fn of(operation: &'a Operation, ids: &[String]) -> Self {
        let mut path = operation.path.clone();
        for ((parameter, _), id) in operation.ids_in(Place::Path).zip(ids) {
            path = path.replace(&format!("{{{}}}", parameter.name), id);
        }
        assert!(
            !path.contains('{'),
            "{} has a parameter that is no id",
            operation.id
        );
        if operation.asks("wait_ms") {
            path.push_str("?wait_ms=0");
        }
        Self {
            operation,
            path,
            header: None,
            body: None,
        }
    }

    /// With what is a party's own in its path.
    pub(super) fn own(operation: &'a Operation, party: &Party) -> Self {
        let ids = operation
            .ids_in(Place::Path)
            .map(|(_, prefix)| party.one_of(prefix));
        Self::of(operation, &ids.collect::<Vec<_>>())
    }

    /// With what is a party's own in its path, but for one parameter.
    pub(super) fn own_but(operation: &'a Operation, party: &Party, name: &str, value: &str) -> Self {
        let ids = operation.ids_in(Place::Path).map(|(parameter, prefix)| {
            if parameter.name == name {
                value.to_owned()
            } else {
                party.one_of(prefix)
            }
        });
        Self::of(operation, &ids.collect::<Vec<_>>())
    }

    pub(super) fn with_body(mut self, ids: &BTreeMap<String, Vec<String>>) -> Self {
        self.body = body_of(self.operation).map(|body| self.operation.body_with(body, ids));
        self
    }

    pub(super) fn asking(mut self, name: &str, value: &str) -> Self {
        let sign = if self.path.contains('?') { '&' } else { '?' };
        self.path = format!("{}{sign}{name}={value}", self.path);
        self
    }

    pub(super) fn request(&self, client: &Client) -> reqwest::RequestBuilder {
        let mut request = client.request(self.operation.method.clone(), &self.path);
        // It is in every problem, and is to be the same each time.
        request = request.header("x-request-id", "the-matrix");
        if let Some((name, value)) = &self.header {
            request = request.header(name, value);
        }
        if let Some(body) = &self.body {
            request = request.json(body);
        }
        request
    }

    pub(super) async fn send(&self, client: &Client) -> Answer {
        client.send(self.request(client)).await
    }

    /// Sends it, and looks whether the answer shows anything that was not in the request.
    pub(super) async fn shows_nothing_of(&self, marks: &BTreeSet<String>, client: &Client) -> Answer {
        let answer = self.send(client).await;
        let asked = format!("{} {:?} {:?}", self.path, self.header, self.body);
        // An id may be said back, in either form.
        let is_said =
            |mark: &str| asked.contains(mark) || (mark.contains('_') && asked.contains(&uuid(mark)));
        for mark in marks.iter().filter(|mark| *mark == MARK || !is_said(mark)) {
            assert!(
                !answer.text.contains(mark),
                "{} shows {mark}: {answer:?}",
                self.what()
            );
        }
        assert!(answer.status < 500, "{}: {answer:?}", self.what());
        answer
    }

    /// Opens it as a stream: what comes in a while.
    pub(super) async fn streamed(&self, client: &Client) -> String {
        let request = self.request(client).timeout(Duration::from_mins(1));
        let mut answer = request.send().await.expect("the request is answered");
        assert_eq!(answer.status(), 200, "{}", self.what());
        let mut text = String::new();
        let reading = async {
            while let Some(bytes) = answer.chunk().await.expect("the stream goes on") {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), reading).await;
        text
    }

    pub(super) fn what(&self) -> String {
        format!("{} ({} {})", self.operation.id, self.operation.method, self.path)
    }
}
