//! The document, put together from descriptions.

use std::collections::{BTreeMap, BTreeSet};

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    Header, Registered, Security,
    operation::Operation,
    schemas::{compatible_problem, one_problem, problem, problem_name},
};
use crate::{Scope, VERSION, http::Code};

const ABOUT: &str = "Triggers takes events over HTTP and pushes them, signed and retried, to every subscription that wants \
them, or keeps them in an inbox until they are fetched. A 202 is a promise: the event is on disk, and is delivered at least once.\n\n\
**Keys.** `Authorization: Bearer <key>`, or `X-API-Key: <key>`. A key sees its own organization alone; what belongs to another is \
404. The roles of a security requirement are the scopes that the key needs.\n\n\
**Ids** are TypeIDs: a prefix, `_` and 26 characters. A UUID is taken wherever an id is.\n\n\
**Problems** are `application/problem+json` (RFC 9457), with a stable `code`. 429 and 503 carry `Retry-After`. Beside those named \
with a route, each may answer 405 (`method_not_allowed`, with `Allow`), and 431 with no body when its head is too large.\n\n\
**Lists** take `limit` and `cursor`, and answer `next_cursor`, which is `null` at the end.\n\n\
Query parameters that a route does not know are ignored; fields that it does not know are refused, but on `/api` routes.";

/// Groups of routes, in order.
const TAGS: [(&str, &str); 11] = [
    ("Events", "Posting, looking up, following and erasing events."),
    ("Inbox", "Events that nobody has taken yet."),
    (
        "Deliveries",
        "One event to one subscription: its state, its attempts, trying again.",
    ),
    (
        "Subscriptions",
        "Who wants which events, and where they are sent.",
    ),
    ("Pull", "Fetching events instead of having them pushed."),
    ("Organizations", "The tenant: everything else belongs to one."),
    ("Keys", "Making, rotating and revoking API keys."),
    (
        "Zapier Triggers API",
        "The routes of existing clients: a thin layer over the same operations. Ids are plain UUIDs; problems carry `error` and `message` besides, and a broken rule is a 400.",
    ),
    ("Audit log", "Who has changed what."),
    (
        "Set aside",
        "What could not be taken in, for the deployment's operator.",
    ),
    ("Operating", "Health, metrics, and this description."),
];

fn generator(settings: SchemaSettings) -> SchemaGenerator {
    settings
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator()
}

/// The document of these routes.
///
/// # Panics
///
/// If what is said of a route contradicts itself, which a test of the document sees.
pub fn document(operations: Vec<Registered>) -> Value {
    let mut asked = generator(SchemaSettings::draft2020_12());
    let mut answered = generator(SchemaSettings::draft2020_12().for_serialize());
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for registered in operations {
        assert!(
            ids.insert(registered.doc.id),
            "two routes are called {}",
            registered.doc.id
        );
        let mut operation = Operation {
            compatible: registered.path.starts_with("/api/"),
            path: registered.path,
            asked: &mut asked,
            answered: &mut answered,
            security: Security::Nothing,
            parameters: Vec::new(),
            bodies: Map::new(),
            body_required: false,
            answers: BTreeMap::new(),
            headers: BTreeMap::new(),
            problems: BTreeMap::new(),
            links: BTreeMap::new(),
            limited: false,
        };
        (registered.describe)(&mut operation);
        for step in &registered.doc.steps {
            step(&mut operation);
        }
        let method = registered.method.as_str().to_ascii_lowercase();
        let described = one(&registered, operation);
        paths
            .entry(registered.path)
            .or_default()
            .insert(method, described);
    }
    let mut schemas = asked.take_definitions(true);
    for link in paths.values().flat_map(linked) {
        assert!(
            ids.contains(link),
            "nothing is called {link}, and an answer leads there"
        );
    }
    for (name, schema) in answered.take_definitions(true) {
        let before = schemas.insert(name.clone(), schema.clone());
        assert!(
            before.is_none_or(|before| before == schema),
            "{name} is sent and answered, and is not the same in both"
        );
    }
    for code in Code::ALL {
        schemas.insert(problem_name(code), one_problem(code));
    }
    schemas.insert("Problem".into(), problem());
    schemas.insert("CompatibleProblem".into(), compatible_problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Triggers",
            "version": VERSION,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": TAGS.map(|(name, text)| json!({"name": name, "description": text})),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": headers(),
            "parameters": {"RequestId": {
                "name": "X-Request-Id", "in": "header", "required": false,
                "description": "The request's id, for logs: 1 to 128 letters, digits and `-_.:/+=@`. One that is not sane is replaced.",
                "schema": {"type": "string"},
            }},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `trg_live_…`."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key: `trg_live_…`."},
                "adminToken": {"type": "http", "scheme": "bearer", "description": "The deployment's admin token (`TRIGGERS_ADMIN_TOKEN`)."},
            },
        },
    })
}

fn one(registered: &Registered, operation: Operation<'_>) -> Value {
    let (doc, path) = (&registered.doc, registered.path);
    assert!(!operation.answers.is_empty(), "{}: what does it answer?", doc.id);
    assert!(
        TAGS.iter().any(|(tag, _)| *tag == registered.tag),
        "{} is no group of routes",
        registered.tag
    );
    let named = path.matches('{').count();
    let taken = operation
        .parameters
        .iter()
        .filter(|given| given["in"] == "path")
        .count();
    assert_eq!(named, taken, "{}: its path and its handler differ", doc.id);
    let responses = responses(&operation);
    let mut parameters = operation.parameters;
    parameters.push(json!({"$ref": "#/components/parameters/RequestId"}));
    let mut described = json!({
        "operationId": doc.id,
        "summary": doc.summary,
        "tags": [registered.tag],
        "parameters": parameters,
        "responses": responses,
        "security": security(operation.security),
    });
    if !doc.text.is_empty() {
        described["description"] = doc.text.into();
    }
    if !operation.bodies.is_empty() {
        described["requestBody"] = json!({"required": operation.body_required, "content": operation.bodies});
    }
    described
}

/// The operations that the answers of a path's operations lead to.
fn linked(operations: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let responses = operations
        .values()
        .filter_map(|operation| operation["responses"].as_object());
    let links = responses
        .flat_map(Map::values)
        .filter_map(|response| response["links"].as_object());
    links
        .flat_map(Map::values)
        .filter_map(|link| link["operationId"].as_str())
}

fn security(security: Security) -> Value {
    match security {
        Security::Nothing => json!([]),
        Security::Key([]) => json!([{"bearer": []}, {"apiKey": []}]),
        Security::Key(scopes) => of_keys(scopes).collect(),
        Security::AdminToken => json!([{"adminToken": []}]),
        Security::KeyOrAdminToken(scopes) => of_keys(scopes).chain([json!({"adminToken": []})]).collect(),
        Security::AdminTokenUnlessOpen => json!([{"adminToken": []}, {}]),
    }
}

fn of_keys(scopes: &'static [Scope]) -> impl Iterator<Item = Value> {
    let each = scopes.iter().map(|scope| scope.as_str());
    each.flat_map(|scope| [json!({"bearer": [scope]}), json!({"apiKey": [scope]})])
}

fn responses(operation: &Operation<'_>) -> Map<String, Value> {
    let mut responses = Map::new();
    let key = matches!(
        operation.security,
        Security::Key(_) | Security::KeyOrAdminToken(_)
    );
    let mut all = operation.headers.clone();
    for (status, content) in &operation.answers {
        let mut response = json!({ "description": meaning(*status) });
        if !content.is_empty() {
            response["content"] = Value::Object(content.clone());
        }
        responses.insert(status.to_string(), response);
    }
    let mut problems: BTreeMap<u16, Vec<(Code, &[&str])>> = BTreeMap::new();
    for (code, whens) in &operation.problems {
        let status = code.status_in(operation.compatible).as_u16();
        problems.entry(status).or_default().push((*code, whens));
    }
    for (status, codes) in problems {
        let headers = all.entry(status).or_default();
        match status {
            401 => headers.extend([Header::WwwAuthenticate]),
            429 | 503 => headers.extend([Header::RetryAfter]),
            _ => {}
        }
        let lines = codes
            .iter()
            .map(|(code, whens)| format!("`{}`: {}.", code.as_str(), whens.join("; ")));
        let response = json!({
            "description": lines.collect::<Vec<_>>().join(" "),
            "content": {"application/problem+json": {"schema": problem_schema(operation.compatible, status, &codes)}},
        });
        let taken = responses.entry(status.to_string()).or_insert_with(|| json!({}));
        match taken.get_mut("content").and_then(Value::as_object_mut) {
            // A status that is an answer and a problem.
            Some(content) => {
                content.insert(
                    "application/problem+json".into(),
                    response["content"]["application/problem+json"].clone(),
                );
            }
            None => *taken = response,
        }
    }
    for (status, response) in &mut responses {
        let status: u16 = status.parse().unwrap_or_default();
        let own = all.remove(&status).unwrap_or_default();
        let limited = operation.limited && key && status != 401;
        response["headers"] = Value::Object(referred(&own, limited));
        if let Some(links) = operation.links.get(&status) {
            let links = links.iter().map(|link| {
                let parameters: BTreeMap<_, _> = link.parameters.iter().copied().collect();
                (
                    link.operation.to_owned(),
                    json!({"operationId": link.operation, "parameters": parameters}),
                )
            });
            response["links"] = Value::Object(links.collect());
        }
    }
    assert!(all.is_empty(), "headers of answers that there are not: {all:?}");
    responses
}

/// One of these, by the names of their schemas.
fn problem_schema(compatible: bool, status: u16, codes: &[(Code, &[&str])]) -> Value {
    if compatible {
        let names: Vec<&str> = codes.iter().map(|(code, _)| code.as_str()).collect();
        return json!({
            "allOf": [
                {"$ref": "#/components/schemas/CompatibleProblem"},
                {"properties": {"status": {"const": status}, "code": {"enum": names}}},
            ],
        });
    }
    let referred = codes
        .iter()
        .map(|(code, _)| json!({"$ref": format!("#/components/schemas/{}", problem_name(*code))}));
    let mut referred: Vec<Value> = referred.collect();
    if referred.len() == 1 {
        return referred.swap_remove(0);
    }
    json!({ "anyOf": referred })
}

fn meaning(status: u16) -> &'static str {
    match status {
        201 => "Created.",
        202 => "Accepted.",
        204 => "Done.",
        304 => "Not changed since.",
        503 => "Not ready.",
        _ => "OK.",
    }
}

/// The headers of answers, by their names in the document.
const HEADERS: [(&str, &str, &str, &str); 11] = [
    (
        "RequestId",
        "X-Request-Id",
        "string",
        "The request's id: the caller's, if it sent one that is sane.",
    ),
    ("Location", "Location", "string", "Where the thing is now."),
    (
        "CacheControl",
        "Cache-Control",
        "string",
        "`no-store`: the answer holds a secret, or changes at once.",
    ),
    (
        "RetryAfter",
        "Retry-After",
        "integer",
        "Seconds to wait before trying again.",
    ),
    (
        "WwwAuthenticate",
        "WWW-Authenticate",
        "string",
        "How to authenticate.",
    ),
    (
        "RateLimitLimit",
        "RateLimit-Limit",
        "integer",
        "Accepted events a minute. Not there for a key without a limit.",
    ),
    (
        "RateLimitRemaining",
        "RateLimit-Remaining",
        "integer",
        "Events that are taken at once.",
    ),
    (
        "RateLimitReset",
        "RateLimit-Reset",
        "integer",
        "Seconds until the whole limit is there again.",
    ),
    (
        "XRateLimitLimit",
        "X-RateLimit-Limit",
        "integer",
        "As `RateLimit-Limit`.",
    ),
    (
        "XRateLimitRemaining",
        "X-RateLimit-Remaining",
        "integer",
        "As `RateLimit-Remaining`.",
    ),
    (
        "XRateLimitReset",
        "X-RateLimit-Reset",
        "integer",
        "As `RateLimit-Reset`.",
    ),
];

fn headers() -> Map<String, Value> {
    let described = HEADERS.iter().map(|(component, _, kind, text)| {
        let required = *component == "RequestId";
        let header = json!({"description": text, "required": required, "schema": {"type": kind}});
        ((*component).to_owned(), header)
    });
    described.collect()
}

fn referred(own: &BTreeSet<Header>, limited: bool) -> Map<String, Value> {
    let mut components = vec!["RequestId"];
    for header in own {
        components.extend(match header {
            Header::Location => ["Location"].as_slice(),
            Header::NoStore => &["CacheControl"],
            Header::RetryAfter => &["RetryAfter"],
            Header::WwwAuthenticate => &["WwwAuthenticate"],
            Header::RateLimit => &[],
        });
    }
    if limited || own.contains(&Header::RateLimit) {
        components.extend(
            HEADERS
                .iter()
                .map(|header| header.0)
                .filter(|name| name.contains("RateLimit")),
        );
    }
    let names: BTreeMap<&str, &str> = HEADERS.iter().map(|header| (header.0, header.1)).collect();
    let referred = components.into_iter().map(|component| {
        let reference = json!({"$ref": format!("#/components/headers/{component}")});
        (names[component].to_owned(), reference)
    });
    referred.collect()
}
