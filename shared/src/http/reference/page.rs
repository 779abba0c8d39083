//! The description, for people: one page, made of the document, that reads without scripts.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Renders the document.
pub(super) fn render(document: &str) -> String {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let mut page = Page {
        document: &document,
        html: String::with_capacity(512 * 1024),
    };
    page.whole();
    page.html
}

struct Page<'a> {
    document: &'a Value,
    html: String,
}

/// An operation, with where it is.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    value: &'a Value,
}

const NO_VALUE: &Value = &Value::Null;

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The text, as it is written in HTML.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}

/// A line of Markdown: code and bold are all there is.
fn inline(text: &str) -> String {
    let mut html = String::new();
    for (at, part) in text.split('`').enumerate() {
        if at % 2 == 1 {
            let _ = write!(html, "<code>{}</code>", escaped(part));
            continue;
        }
        for (at, part) in part.split("**").enumerate() {
            let part = escaped(part);
            let _ = if at % 2 == 1 {
                write!(html, "<strong>{part}</strong>")
            } else {
                write!(html, "{part}")
            };
        }
    }
    html
}

/// Paragraphs of Markdown.
fn paragraphs(text: &str) -> String {
    let mut html = String::new();
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        let _ = write!(html, "<p>{}</p>", inline(paragraph));
    }
    html
}

fn slug(text: &str) -> String {
    text.to_lowercase().replace(' ', "-")
}

impl<'a> Page<'a> {
    fn add(&mut self, html: &str) {
        self.html.push_str(html);
    }

    fn operations(&self, tag: &str) -> Vec<Operation<'a>> {
        let paths = members(&self.document["paths"]);
        let all = paths.flat_map(|(path, methods)| {
            members(methods).map(|(method, value)| Operation {
                method: method.as_str(),
                path: path.as_str(),
                value,
            })
        });
        all.filter(|operation| operation.value["tags"][0].as_str() == Some(tag))
            .collect()
    }

    fn whole(&mut self) {
        let info = &self.document["info"];
        let (title, version) = (escaped(text(info, "title")), escaped(text(info, "version")));
        self.add(&format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta name=\"color-scheme\" content=\"light dark\"><title>{title} API</title>\
             <link rel=\"icon\" href=\"data:,\"><link rel=\"stylesheet\" href=\"docs/style.css\">\
             <script src=\"docs/script.js\" defer></script></head><body>\
             <a class=\"skip\" href=\"#content\">To the content</a>\
             <header><a class=\"brand\" href=\"#content\">{title} API</a> <span class=\"version\">{version}</span>\
             <a class=\"raw\" href=\"openapi.json\">openapi.json</a></header><div class=\"layout\">"
        ));
        self.navigation();
        self.add("<main id=\"content\">");
        self.add(&format!(
            "<section class=\"about\"><h1>{title} API</h1>{}</section>",
            paragraphs(text(info, "description"))
        ));
        for tag in items(&self.document["tags"]) {
            let name = text(tag, "name");
            self.add(&format!(
                "<section class=\"group\" aria-labelledby=\"{slug}\"><h2 id=\"{slug}\">{}</h2>{}",
                escaped(name),
                paragraphs(text(tag, "description")),
                slug = slug(name)
            ));
            for operation in self.operations(name) {
                self.operation(&operation);
            }
            self.add("</section>");
        }
        self.add("<section class=\"group\" aria-labelledby=\"shapes\"><h2 id=\"shapes\">Shapes</h2>");
        for (name, schema) in members(&self.document["components"]["schemas"]) {
            self.shape(name, schema);
        }
        self.add("</section><p class=\"nothing\" hidden>Nothing fits.</p></main></div></body></html>");
    }

    fn navigation(&mut self) {
        self.add(
            "<nav aria-label=\"Routes\"><label class=\"search\" hidden>Search <input type=\"search\" id=\"search\" \
             placeholder=\"path, name, word\" autocomplete=\"off\" spellcheck=\"false\"></label>\
             <details class=\"routes\" open><summary>Routes</summary>",
        );
        for tag in items(&self.document["tags"]) {
            let name = text(tag, "name");
            self.add(&format!(
                "<div class=\"links\"><a class=\"tag\" href=\"#{}\">{}</a><ul>",
                slug(name),
                escaped(name)
            ));
            for operation in self.operations(name) {
                self.add(&format!(
                    "<li data-for=\"{id}\"><a href=\"#{id}\"><span class=\"method {method}\">{method}</span> {}</a></li>",
                    escaped(text(operation.value, "summary")),
                    id = text(operation.value, "operationId"),
                    method = operation.method,
                ));
            }
            self.add("</ul></div>");
        }
        self.add("<div class=\"links\"><a class=\"tag\" href=\"#shapes\">Shapes</a></div></details></nav>");
    }

    fn operation(&mut self, operation: &Operation<'a>) {
        let value = operation.value;
        let path = escaped(operation.path)
            .replace('/', "/<wbr>")
            .replace('{', "<i>{")
            .replace('}', "}</i>");
        self.add(&format!(
            "<article class=\"operation\" id=\"{id}\"><h3><a href=\"#{id}\">{}</a></h3>\
             <p class=\"route\"><span class=\"method {method}\">{method}</span> <code>{path}</code></p>{}{}",
            escaped(text(value, "summary")),
            paragraphs(text(value, "description")),
            shown_security(&value["security"]),
            id = text(value, "operationId"),
            method = operation.method,
        ));
        self.parameters(value);
        if let Some(content) = value["requestBody"]["content"].as_object() {
            let required = value["requestBody"]["required"] == true;
            self.add(if required {
                "<h4>Body</h4>"
            } else {
                "<h4>Body <small>may be left out</small></h4>"
            });
            self.content(content);
        }
        self.answers(&value["responses"]);
        self.add("</article>");
    }

    /// What a reference points to, or the value itself.
    fn resolved(&self, value: &'a Value) -> &'a Value {
        let pointer = value["$ref"]
            .as_str()
            .and_then(|reference| reference.strip_prefix('#'));
        pointer.map_or(value, |pointer| {
            self.document.pointer(pointer).unwrap_or(NO_VALUE)
        })
    }

    fn parameters(&mut self, operation: &'a Value) {
        let mut rows = String::new();
        for parameter in items(&operation["parameters"]) {
            let parameter = self.resolved(parameter);
            let (name, place) = (text(parameter, "name"), text(parameter, "in"));
            // Every route takes it; it is said once, above.
            if name == "X-Request-Id" {
                continue;
            }
            let _ = write!(
                rows,
                "<tr><th scope=\"row\"><code>{}</code><small>{place}</small></th><td>{}</td><td>{}</td></tr>",
                escaped(name),
                kind(&parameter["schema"]),
                inline(text(parameter, "description")),
            );
        }
        if !rows.is_empty() {
            self.add(&format!(
                "<h4>Parameters</h4><div class=\"wide\"><table><tbody>{rows}</tbody></table></div>"
            ));
        }
    }

    fn content(&mut self, content: &'a Map<String, Value>) {
        for (media, value) in content {
            let schema = &value["schema"];
            self.add(&format!(
                "<p class=\"media\"><code>{}</code> {}</p>",
                escaped(media),
                kind(schema)
            ));
            let body = self.resolved(schema);
            self.properties(body);
        }
    }

    fn answers(&mut self, responses: &'a Value) {
        let (problems, answers): (Vec<_>, Vec<_>) = members(responses).partition(|(status, response)| {
            status.as_str() >= "400" && response["content"]["application/json"].is_null()
        });
        self.add("<h4>Answers</h4>");
        for (status, response) in answers {
            self.answer(status, response, "good");
        }
        if !problems.is_empty() {
            self.add(&format!(
                "<details><summary>{} kinds of problems</summary>",
                problems.len()
            ));
            for (status, response) in problems {
                self.answer(status, response, "bad");
            }
            self.add("</details>");
        }
    }

    fn answer(&mut self, status: &str, response: &'a Value, class: &str) {
        let bodies = members(&response["content"]).map(|(media, content)| {
            if media.ends_with("problem+json") {
                String::new()
            } else {
                format!(" <code>{}</code> {}", escaped(media), kind(&content["schema"]))
            }
        });
        let bodies: String = bodies.collect();
        let headers = members(&response["headers"]).filter(|(name, _)| *name != "X-Request-Id");
        let headers: Vec<String> = headers
            .map(|(name, _)| format!("<code>{}</code>", escaped(name)))
            .collect();
        let headers = if headers.is_empty() {
            String::new()
        } else {
            format!("<small>{}</small>", headers.join(" "))
        };
        self.add(&format!(
            "<div class=\"answer\"><b class=\"{class}\">{status}</b><div>{}{bodies}{headers}</div></div>",
            inline(text(response, "description"))
        ));
    }

    fn shape(&mut self, name: &str, schema: &'a Value) {
        let escaped = escaped(name);
        self.add(&format!(
            "<article class=\"shape\" id=\"shape-{escaped}\"><h3><a href=\"#shape-{escaped}\">{escaped}</a></h3>{}",
            paragraphs(text(schema, "description"))
        ));
        if schema["properties"].is_object() {
            self.properties(schema);
        } else {
            let kind = kind(schema);
            self.add(&format!("<p>{kind}</p>"));
        }
        self.add("</article>");
    }

    fn properties(&mut self, schema: &'a Value) {
        let required: Vec<&str> = items(&schema["required"]).filter_map(Value::as_str).collect();
        let mut rows = String::new();
        let (first, rest): (Vec<_>, Vec<_>) =
            members(&schema["properties"]).partition(|(name, _)| required.contains(&name.as_str()));
        for (name, property) in first.into_iter().chain(rest) {
            let must = if required.contains(&name.as_str()) {
                ""
            } else {
                "<small>optional</small>"
            };
            let _ = write!(
                rows,
                "<tr><th scope=\"row\"><code>{}</code>{must}</th><td>{}</td><td>{}</td></tr>",
                escaped(name),
                kind(property),
                inline(&text(property, "description").replace('\n', " ")),
            );
        }
        if !rows.is_empty() {
            self.add(&format!(
                "<div class=\"wide\"><table><tbody>{rows}</tbody></table></div>"
            ));
        }
    }
}

/// Who may call it.
fn shown_security(security: &Value) -> String {
    let mut scopes: Vec<&str> = Vec::new();
    let (mut key, mut admin, mut open) = (false, false, false);
    for requirement in items(security) {
        open |= requirement.as_object().is_some_and(Map::is_empty);
        for (scheme, roles) in members(requirement) {
            key |= scheme == "bearer";
            admin |= scheme == "adminToken";
            for role in items(roles).filter_map(Value::as_str) {
                if !scopes.contains(&role) {
                    scopes.push(role);
                }
            }
        }
    }
    let scopes: Vec<String> = scopes
        .iter()
        .map(|scope| format!("<code>{scope}</code>"))
        .collect();
    let who = match (admin, open, key) {
        (true, true, _) => "The admin token, unless the deployment is open.".to_owned(),
        (true, false, _) => "The deployment’s admin token.".to_owned(),
        (_, _, true) if scopes.is_empty() => "Any key.".to_owned(),
        (_, _, true) => format!("A key with {}.", scopes.join(" or ")),
        _ => "No key is needed.".to_owned(),
    };
    format!("<p class=\"who\">{who}</p>")
}

/// What a schema is, in a few words, and what it is unless given.
fn kind(schema: &Value) -> String {
    let mut words = kind_alone(schema);
    if let Some(default) = schema.get("default").filter(|default| !default.is_null()) {
        let _ = write!(
            words,
            ", <code>{}</code> unless given",
            escaped(&default.to_string())
        );
    }
    words
}

fn kind_alone(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = escaped(reference.rsplit('/').next().unwrap_or_default());
        return format!("<a href=\"#shape-{name}\">{name}</a>");
    }
    for (combined, word) in [("anyOf", " or "), ("oneOf", " or "), ("allOf", " and ")] {
        if let Some(parts) = schema[combined].as_array() {
            return parts.iter().map(kind).collect::<Vec<_>>().join(word);
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let values = values
            .iter()
            .map(|value| format!("<code>{}</code>", escaped(value.as_str().unwrap_or_default())));
        return values.collect::<Vec<_>>().join(" ");
    }
    if let Some(value) = schema.get("const") {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        return format!("<code>{}</code>", escaped(&value));
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect::<Vec<_>>(),
        Value::String(one) => vec![one.as_str()],
        _ if schema.get("not").is_some() => return "nothing".to_owned(),
        _ => return "any JSON".to_owned(),
    };
    let named = types.iter().map(|name| match *name {
        "array" => format!("array of {}", kind(&schema["items"])),
        "string" if schema["format"].is_string() => escaped(text(schema, "format")),
        other => other.to_owned(),
    });
    let mut words = named.collect::<Vec<_>>().join(" or ");
    let bounds = [
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
    ];
    for (least, most, unit) in bounds {
        let _ = match (&schema[least], &schema[most]) {
            (Value::Number(least), Value::Number(most)) => write!(words, ", {least} to {most}{unit}"),
            (Value::Null, Value::Number(most)) => write!(words, ", at most {most}{unit}"),
            (Value::Number(least), Value::Null) => write!(words, ", at least {least}{unit}"),
            _ => Ok(()),
        };
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_document_is_text_and_no_markup() {
        let document = r##"{"info":{"title":"<x>","version":"1","description":"a `<b>` **c&d**\n\ne"},
            "tags":[{"name":"T","description":"<script>"}],
            "paths":{"/a/{id}":{"get":{"operationId":"op","summary":"\"q\"","tags":["T"],"responses":{"200":{"description":"'"}}}}},
            "components":{"schemas":{"S":{"type":"object","required":["r"],"properties":{"d":{"$ref":"#/components/schemas/S","default":7},"o":{"type":"integer","minimum":1},"r":{"$ref":"#/components/schemas/S"}}}}}}"##;
        let html = render(document);
        for hostile in ["<x>", "<b>", "<script>", "c&d"] {
            assert!(!html.contains(hostile), "{hostile}");
        }
        for shown in [
            "<p>a <code>&lt;b&gt;</code> <strong>c&amp;d</strong></p><p>e</p>",
            "&quot;q&quot;",
            "/<wbr>a/<wbr><i>{id}</i>",
            "integer, at least 1",
            "S</a>, <code>7</code> unless given",
            "<a href=\"#shape-S\">S</a>",
        ] {
            assert!(html.contains(shown), "{shown}\n{html}");
        }
    }
}
