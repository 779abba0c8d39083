//! The OpenAPI document that a server serves, as a client reads it: which operations there are, and where they take ids.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use serde_json::{Value, json};

/// Where a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the path.
    Path,
    /// In the query.
    Query,
    /// A header.
    Header,
}

/// A parameter of an operation.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// The prefix of the ids that it takes, if it takes ids: `evt`.
    pub id_of: Option<String>,
}

/// A field of an operation's body.
#[derive(Debug, Clone)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Whether it must be there.
    pub required: bool,
    /// The JSON types that it takes; `None`: any.
    pub types: Option<BTreeSet<String>>,
}

/// Whose key an operation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody's.
    Open,
    /// An organization's.
    Key,
    /// The deployment's admin token.
    Administration,
}

/// An operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its `operationId`.
    pub id: String,
    /// Its method.
    pub method: Method,
    /// Its path, with its parameters in braces.
    pub path: String,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// Whose key it asks for.
    pub access: Access,
    /// Whether it takes a body.
    pub has_body: bool,
    /// Whether it must have one.
    pub body_required: bool,
    /// The fields of its body of type `application/json`, if that is an object.
    pub fields: Vec<Field>,
    /// The members of its body that take ids, with the prefix of those; whether a member takes a list of them.
    pub ids_in_body: BTreeMap<String, (String, bool)>,
    /// Whether it answers with a stream of events, which does not end.
    pub streams: bool,
}

impl Operation {
    /// All operations of a document.
    #[must_use]
    pub fn all(document: &Value) -> Vec<Self> {
        let paths = document["paths"].as_object().expect("a document has paths");
        let mut operations = Vec::new();
        for (path, item) in paths {
            for (method, operation) in item.as_object().expect("a path has operations") {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
                operations.push(Self::of(document, path, method, operation));
            }
        }
        operations
    }

    fn of(document: &Value, path: &str, method: Method, operation: &Value) -> Self {
        let id = operation["operationId"].as_str();
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let contents = operation["requestBody"]["content"].as_object();
        let schemas = contents.into_iter().flatten();
        let mut ids_in_body = BTreeMap::new();
        for (_, content) in schemas {
            let schema = resolved(document, &content["schema"]);
            for (name, member) in schema["properties"].as_object().into_iter().flatten() {
                let member = resolved(document, member);
                let is_list = member["type"] == "array";
                let of = if is_list { &member["items"] } else { member };
                if let Some(prefix) = id_of(document, of) {
                    ids_in_body.insert(name.clone(), (prefix, is_list));
                }
            }
        }
        Self {
            id: id.expect("an operation has an id").to_owned(),
            method,
            path: path.to_owned(),
            parameters: parameters
                .map(|parameter| parameter_of(document, parameter))
                .collect(),
            access: access_of(operation),
            has_body: contents.is_some(),
            body_required: operation["requestBody"]["required"] == true,
            fields: contents.map_or_else(Vec::new, |contents| {
                fields_of(document, &contents["application/json"]["schema"])
            }),
            ids_in_body,
            streams: !operation["responses"]["200"]["content"]["text/event-stream"].is_null(),
        }
    }

    /// Those of its parameters that are in this place and take ids.
    pub fn ids_in(&self, place: Place) -> impl Iterator<Item = (&Parameter, &str)> {
        let parameters = self
            .parameters
            .iter()
            .filter(move |parameter| parameter.place == place);
        parameters.filter_map(|parameter| Some((parameter, parameter.id_of.as_deref()?)))
    }

    /// Whether it has a parameter of this name in its query.
    #[must_use]
    pub fn asks(&self, name: &str) -> bool {
        let mut parameters = self.parameters.iter();
        parameters.any(|parameter| parameter.place == Place::Query && parameter.name == name)
    }

    /// A body with these ids of each kind wherever it takes some, beside what else is in it.
    #[must_use]
    pub fn body_with(&self, mut body: Value, ids: &BTreeMap<String, Vec<String>>) -> Value {
        for (name, (prefix, is_list)) in &self.ids_in_body {
            let ids = &ids[prefix];
            body[name] = if *is_list { json!(ids) } else { json!(ids[0]) };
        }
        body
    }
}

/// What a schema refers to, or itself.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let Some(reference) = schema["$ref"].as_str() else {
        return schema;
    };
    let pointer = reference
        .strip_prefix('#')
        .expect("references stay in the document");
    let found = document.pointer(pointer).expect("a reference leads somewhere");
    resolved(document, found)
}

fn fields_of(document: &Value, schema: &Value) -> Vec<Field> {
    let schema = resolved(document, schema);
    let required = |name: &str| {
        let mut names = schema["required"].as_array().into_iter().flatten();
        names.any(|required| required == name)
    };
    let members = schema["properties"].as_object().into_iter().flatten();
    let fields = members.map(|(name, member)| Field {
        name: name.clone(),
        required: required(name),
        types: types_of(document, member),
    });
    fields.collect()
}

/// The JSON types of a schema; `None`: any.
fn types_of(document: &Value, schema: &Value) -> Option<BTreeSet<String>> {
    let schema = resolved(document, schema);
    if let Some(any) = schema["anyOf"].as_array() {
        let each = any.iter().map(|schema| types_of(document, schema));
        return each
            .collect::<Option<Vec<_>>>()
            .map(|each| each.into_iter().flatten().collect());
    }
    match &schema["type"] {
        Value::String(one) => Some(BTreeSet::from([one.clone()])),
        Value::Array(several) => Some(
            several
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        ),
        _ => None,
    }
}

/// The prefix of the ids that a schema takes: ids have a pattern, which begins with it.
fn id_of(document: &Value, schema: &Value) -> Option<String> {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().find_map(|schema| id_of(document, schema));
    }
    let pattern = resolved(document, schema)["pattern"].as_str()?;
    let rest = pattern.strip_prefix("^(").or_else(|| pattern.strip_prefix('^'))?;
    let (prefix, rest) = rest.split_once('_')?;
    let is_prefix = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_lowercase());
    (is_prefix && rest.starts_with("[0-7][")).then(|| prefix.to_owned())
}

fn parameter_of(document: &Value, parameter: &Value) -> Parameter {
    let parameter = resolved(document, parameter);
    let place = match parameter["in"].as_str() {
        Some("path") => Place::Path,
        Some("query") => Place::Query,
        Some("header") => Place::Header,
        other => panic!("a parameter is in {other:?}"),
    };
    let id_of = id_of(document, &parameter["schema"]);
    Parameter {
        name: parameter["name"]
            .as_str()
            .expect("a parameter has a name")
            .to_owned(),
        place,
        id_of,
    }
}

fn access_of(operation: &Value) -> Access {
    let requirements = operation["security"].as_array().into_iter().flatten();
    let mut access = Access::Open;
    for scheme in requirements
        .filter_map(Value::as_object)
        .flat_map(serde_json::Map::keys)
    {
        access = match scheme.as_str() {
            // What a key may do is an organization's, whoever else may.
            "adminToken" if access == Access::Key => Access::Key,
            "adminToken" => Access::Administration,
            "bearer" | "apiKey" => Access::Key,
            other => panic!("nothing is known of the security scheme {other}"),
        };
    }
    access
}
