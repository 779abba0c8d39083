//! One route's description, as it gathers.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
};

use axum::extract::State;
use http::HeaderMap;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::{
    Scope,
    http::{ApiError, Code},
};

/// What a caller has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Nothing.
    Nothing,
    /// A key with any one of these scopes; with none of them, any key.
    Key(&'static [Scope]),
    /// The deployment's admin token.
    AdminToken,
    /// A key with any one of these scopes, or the deployment's admin token.
    KeyOrAdminToken(&'static [Scope]),
    /// The deployment's admin token, unless the deployment is open.
    AdminTokenUnlessOpen,
}

/// A header of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Header {
    /// `location`.
    Location,
    /// `cache-control: no-store`: the answer holds a secret.
    NoStore,
    /// `retry-after`.
    RetryAfter,
    /// `www-authenticate`.
    WwwAuthenticate,
    /// `ratelimit-*`, and `x-ratelimit-*`, which say the same.
    RateLimit,
}

/// Where an answer leads: what of it another operation takes.
pub(super) struct Link {
    /// The other's name.
    pub(super) operation: &'static str,
    /// Its parameters, and where their values are: a runtime expression of OpenAPI.
    pub(super) parameters: &'static [(&'static str, &'static str)],
}

/// A parameter of a query.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    text: &'static str,
    schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Parameter {
    /// A parameter whose value is a `T`.
    pub const fn of<T: JsonSchema>(name: &'static str, text: &'static str) -> Self {
        Self {
            name,
            text,
            schema: |generator| generator.subschema_for::<T>(),
        }
    }
}

/// The parameters that a route's query may have.
pub trait Parameters: Send + Sync + 'static {
    /// All of them.
    const ALL: &'static [Parameter];
}

/// A route that takes none.
impl Parameters for () {
    const ALL: &'static [Parameter] = &[];
}

/// What an extractor says of its route.
pub trait Input {
    /// Says it.
    fn describe(operation: &mut Operation<'_>);
}

/// What an answer's type says of its route.
pub trait Output {
    /// Says it.
    fn describe(operation: &mut Operation<'_>);
}

/// A handler, by what is in its signature.
pub trait Described<A> {
    /// Says what the signature says.
    fn describe(operation: &mut Operation<'_>);
}

macro_rules! described {
    ($($argument:ident)*) => {
        impl<F, Answering, Answer, $($argument),*> Described<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Answering,
            Answering: Future<Output = Answer>,
            Answer: Output,
            $($argument: Input,)*
        {
            fn describe(operation: &mut Operation<'_>) {
                $($argument::describe(operation);)*
                Answer::describe(operation);
            }
        }
    };
}

described! {}
described! { A }
described! { A B }
described! { A B C }
described! { A B C D }
described! { A B C D E }
described! { A B C D E G }

macro_rules! says_nothing {
    ($($trait:ident for $type:ty),* $(,)?) => {$(
        impl $trait for $type {
            fn describe(_: &mut Operation<'_>) {}
        }
    )*};
}

says_nothing! {
    Input for HeaderMap,
    // What is in it its handler's documentation says.
    Input for axum::extract::Request,
    Output for axum::response::Response,
}

impl<S> Input for State<S> {
    fn describe(_: &mut Operation<'_>) {}
}

impl<T: Output> Output for Result<T, ApiError> {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
        operation.problem(Code::Internal, "a fault of ours");
    }
}

/// A route's description.
pub struct Operation<'a> {
    /// Existing clients' routes (`/api/…`) answer problems of another form.
    pub(super) compatible: bool,
    pub(super) path: &'static str,
    /// Of what is sent, and of what is answered: in the first what may be left out is not required.
    pub(super) asked: &'a mut SchemaGenerator,
    pub(super) answered: &'a mut SchemaGenerator,
    pub(super) security: Security,
    pub(super) parameters: Vec<Value>,
    pub(super) bodies: Map<String, Value>,
    pub(super) body_required: bool,
    pub(super) answers: BTreeMap<u16, Map<String, Value>>,
    pub(super) headers: BTreeMap<u16, BTreeSet<Header>>,
    pub(super) problems: BTreeMap<Code, Vec<&'static str>>,
    pub(super) links: BTreeMap<u16, Vec<Link>>,
    /// On every answer to whoever has a valid key.
    pub(super) limited: bool,
}

impl Operation<'_> {
    /// Its callers have to show this.
    pub fn needs(&mut self, security: Security) {
        self.security = security;
        match security {
            Security::Nothing => {}
            Security::Key(scopes) | Security::KeyOrAdminToken(scopes) => {
                self.problem(Code::Unauthorized, "there is no key, or it is not a valid one");
                self.problem(Code::Unavailable, "the key cannot be looked up at the moment");
                self.counts_addresses();
                if !scopes.is_empty() {
                    self.problem(Code::Forbidden, "the key lacks the scope");
                }
            }
            Security::AdminToken => {
                self.problem(Code::Unauthorized, "the admin token is missing or wrong");
                self.problem(Code::Forbidden, "the deployment has no admin token");
                self.counts_addresses();
            }
            Security::AdminTokenUnlessOpen => {
                self.problem(Code::Unauthorized, "the admin token is missing or wrong");
                self.problem(Code::Forbidden, "nobody, or not this caller, may do this here");
                self.counts_addresses();
            }
        }
    }

    /// Whoever has neither a key nor a token may not ask without end.
    fn counts_addresses(&mut self) {
        self.problem(
            Code::RateLimited,
            "too many requests without a valid key or token came from this address",
        );
        let status = Code::RateLimited.status().as_u16();
        self.headers.entry(status).or_default().insert(Header::RateLimit);
    }

    /// It counts against the organization's limit, and shows how that stands.
    pub fn limited(&mut self) {
        self.limited = true;
        self.problem(Code::RateLimited, "the organization's limit is used up");
    }

    /// It takes an id in its path, in the order of the path's names: a TypeID, or a UUID.
    pub fn path_id(&mut self, prefix: &str) {
        let taken = self
            .parameters
            .iter()
            .filter(|given| given["in"] == "path")
            .count();
        let name = self
            .path
            .split('{')
            .nth(taken + 1)
            .and_then(|rest| rest.split('}').next());
        let pattern = format!(
            "^({prefix}_[0-7][0-9a-hjkmnp-tv-z]{{25}}|[0-9a-f]{{8}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}})$"
        );
        self.parameters.push(json!({
            "name": name.unwrap_or_default(), "in": "path", "required": true,
            "description": format!("An id: `{prefix}_` and 26 characters, or a UUID."),
            "schema": {"type": "string", "pattern": pattern},
        }));
        self.problem(
            Code::NotFound,
            "there is no such thing, or it is another organization's",
        );
    }

    /// It takes these parameters in its query.
    pub fn query(&mut self, parameters: &[Parameter]) {
        for parameter in parameters {
            let schema = (parameter.schema)(self.asked);
            self.parameters.push(json!({
                "name": parameter.name, "in": "query", "required": false, "description": parameter.text, "schema": schema,
            }));
        }
        if !parameters.is_empty() {
            self.problem(Code::InvalidRequest, "a parameter breaks its rule");
        }
    }

    /// It takes this header.
    pub fn request_header(&mut self, name: &str, text: &str, schema: &Value) {
        self.parameters.push(json!({
            "name": name, "in": "header", "required": false, "description": text, "schema": schema,
        }));
    }

    /// It takes a body of this type, which may be left out unless something in it is required. May be said several times, for several types.
    pub fn body<T: JsonSchema>(&mut self, content_type: &str) {
        let whole = T::json_schema(self.asked);
        self.body_required |= ["required", "else"]
            .into_iter()
            .any(|rule| whole.get(rule).is_some());
        let schema = self.asked.subschema_for::<T>();
        self.body_of(content_type, &json!(schema));
    }

    /// It takes a body of this type.
    pub fn body_of(&mut self, content_type: &str, schema: &Value) {
        self.bodies
            .insert(content_type.to_owned(), json!({ "schema": schema }));
        self.problem(Code::InvalidJson, "the body is not JSON, or not of this shape");
        self.problem(Code::InvalidRequest, "a field or a header breaks its rule");
        self.problem(Code::RequestTimeout, "the body did not come within 30 seconds");
        self.problem(
            Code::PayloadTooLarge,
            "the body, or the payload in it, is too large",
        );
        self.problem(
            Code::UnsupportedMediaType,
            "the body is of a type or an encoding that is not taken",
        );
    }

    /// The body may not be left out.
    pub fn body_required(&mut self) {
        self.body_required = true;
    }

    /// It answers this as JSON.
    pub fn answer<T: JsonSchema>(&mut self, status: u16) {
        let schema = self.answered.subschema_for::<T>();
        self.answer_of(status, "application/json", &json!(schema));
    }

    /// It answers this as a type of its own.
    pub fn answer_of(&mut self, status: u16, content_type: &str, schema: &Value) {
        let answer = self.answers.entry(status).or_default();
        answer.insert(content_type.to_owned(), json!({ "schema": schema }));
    }

    /// It answers without a body.
    pub fn answer_nothing(&mut self, status: u16) {
        self.answers.entry(status).or_default();
    }

    /// Its answers with this status have this header.
    pub fn header(&mut self, status: u16, header: Header) {
        self.headers.entry(status).or_default().insert(header);
    }

    /// Its answers with this status lead to another operation, by these parameters of that one.
    pub fn link(
        &mut self,
        status: u16,
        operation: &'static str,
        parameters: &'static [(&'static str, &'static str)],
    ) {
        let link = Link {
            operation,
            parameters,
        };
        self.links.entry(status).or_default().push(link);
    }

    /// It may answer this problem.
    pub fn problem(&mut self, code: Code, when: &'static str) {
        let whens = self.problems.entry(code).or_default();
        if !whens.contains(&when) {
            whens.push(when);
        }
    }
}
