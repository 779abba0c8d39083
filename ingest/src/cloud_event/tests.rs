use proptest::prelude::*;
use serde_json::json;

use super::*;

fn from_json(json: &str) -> Result<Posted, ApiError> {
    let body = Bytes::copy_from_slice(json.as_bytes());
    structured("the body", &body, &body, None)
}

fn head(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pairs = pairs
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()));
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let _: bool = headers.append::<http::HeaderName>(name, value);
    }
    headers
}

const LEAST: [(&str, &str); 4] = [
    ("ce-specversion", "1.0"),
    ("ce-type", "order.placed"),
    ("ce-source", "/orders"),
    ("ce-id", "7"),
];

fn from_headers(more: &[(&'static str, &str)], body: &'static [u8]) -> Result<Posted, ApiError> {
    binary(&head(&[&LEAST, more].concat()), &Bytes::from_static(body))
}

fn shown(refused: Result<Posted, ApiError>) -> String {
    let problem = refused.expect_err("a problem").to_result();
    serde_json::to_string_pretty(&problem).unwrap()
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_structured_event_is_read() {
    let event = from_json(&format!(
        r#"{{"specversion":"1.0","id":"A 1","source":"https://shop.example/orders?x=1","type":"order.placed",
            "time":"2026-01-31T12:00:00.5+01:00","subject":"7","dataschema":"x:y","traceparent":"{TRACE}","other":true,
            "datacontenttype":"application/json","data": {{"b": 1.0, "a": [1e400]}} }}"#
    ))
    .unwrap();
    assert_eq!(event.payload.as_str(), r#"{"b": 1.0, "a": [1e400]}"#);
    assert_eq!(event.source.unwrap().as_str(), "https://shop.example/orders?x=1");
    assert_eq!(
        event.dedup_id.unwrap().as_str(),
        "cloudevent:https://shop.example/orders?x=1 A 1"
    );
    assert_eq!(event.occurred_at.unwrap().to_string(), "2026-01-31T11:00:00.500Z");
    assert_eq!(event.trace.unwrap().as_str(), TRACE);
}

#[test]
fn data_of_every_kind_is_kept() {
    let payload = |member: &str| {
        let event = from_json(&format!(
            r#"{{"specversion":"1.0","id":"1","source":"/","type":"a"{member}}}"#
        ));
        event.unwrap().payload.as_str().to_owned()
    };
    assert_eq!(payload(""), "null");
    assert_eq!(payload(r#","data":null"#), "null");
    assert_eq!(
        payload(r#","data":"text","datacontenttype":"text/plain""#),
        r#""text""#
    );
    assert_eq!(payload(r#","data_base64":"AAEC\/w==""#), r#""AAEC\/w==""#);
    assert_eq!(payload(r#","data_base64":"AA==","data":null"#), r#""AA==""#);

    let payload = |content_type: Option<&'static str>, body: &'static [u8]| {
        let more: Vec<_> = content_type
            .map(|value| ("content-type", value))
            .into_iter()
            .collect();
        from_headers(&more, body).unwrap().payload.as_str().to_owned()
    };
    assert_eq!(
        payload(Some("application/json"), br#" {"a": 1.0} "#),
        r#"{"a": 1.0}"#
    );
    assert_eq!(payload(Some("application/vnd.a+json; charset=UTF-8"), b"1"), "1");
    assert_eq!(payload(None, b"[1]"), "[1]");
    assert_eq!(payload(None, b""), "null");
    assert_eq!(payload(Some("application/json"), b""), "null");
    assert_eq!(payload(Some("text/plain"), b"a\n\"b\""), r#""a\n\"b\"""#);
    assert_eq!(payload(Some("text/plain"), b""), r#""""#);
    assert_eq!(
        payload(Some("application/octet-stream"), &[0, 1, 255]),
        r#""AAH/""#
    );
    assert_eq!(
        payload(Some("application/xml; charset=latin1"), b"\xe9"),
        r#""6Q==""#
    );
}

#[test]
fn attributes_in_headers_are_decoded() {
    let id = |value: &str| {
        let mut headers = head(&LEAST);
        headers.insert("ce-id", HeaderValue::from_bytes(value.as_bytes()).unwrap());
        let event = binary(&headers, &Bytes::new()).unwrap();
        event
            .dedup_id
            .unwrap()
            .as_str()
            .replace("cloudevent:/orders ", "")
    };
    assert_eq!(id("Euro%20%E2%82%AC%20%F0%9F%98%80"), "Euro € 😀");
    assert_eq!(id("%2541"), "%41", "once");
    assert_eq!(id("100%"), "100%");
    assert_eq!(id(r#""a \"b\" %41""#), r#"a "b" A"#);
    assert_eq!(id("é"), "é");
    let event = from_headers(&[("ce-traceparent", TRACE), ("traceparent", "none")], b"").unwrap();
    assert_eq!(event.trace.unwrap().as_str(), TRACE);
    let event = from_headers(
        &[("traceparent", TRACE), ("ce-time", "2026-01-31T12:00:00Z")],
        b"",
    )
    .unwrap();
    assert_eq!(event.trace.unwrap().as_str(), TRACE);
    assert_eq!(event.occurred_at.unwrap().to_string(), "2026-01-31T12:00:00.000Z");
}

#[test]
fn every_broken_rule_of_a_structured_event_is_named() {
    insta::assert_snapshot!(shown(from_json("{}")));
    insta::assert_snapshot!(shown(from_json(
        r#"{"specversion":"0.3","id":"","source":"a b","type":"triggers.x","time":"now","data":1,"data_base64":"!"}"#
    )));
    insta::assert_snapshot!(shown(from_json(
        r#"{"specversion":"1.0","id":"1","source":"/","type":"a","data":1,"data_base64":"AA=="}"#
    )));
    insta::assert_snapshot!(shown(from_json("[]")));
    insta::assert_snapshot!(shown(from_json("{")));
}

#[test]
fn every_broken_rule_of_a_binary_event_is_named() {
    let none = binary(&head(&[("ce-id", "1")]), &Bytes::new());
    insta::assert_snapshot!(shown(none));
    let more = [
        ("ce-id", "8"),
        ("ce-time", "now"),
        ("content-type", "application/json"),
    ];
    insta::assert_snapshot!(shown(from_headers(&more, b"{")));
    insta::assert_snapshot!(shown(from_headers(&[("content-type", "application/json")], b"{")));
    insta::assert_snapshot!(shown(from_headers(&[("content-type", "text/plain")], b"\xff")));
    insta::assert_snapshot!(shown(from_headers(
        &[("content-type", "text/plain; charset=latin1")],
        b"a"
    )));
    let large = binary(&head(&LEAST), &vec![b'1'; 300_000].into());
    insta::assert_snapshot!(shown(large));
    let mut headers = head(&LEAST);
    headers.insert("ce-source", HeaderValue::from_static("%ff"));
    insta::assert_snapshot!(shown(binary(&headers, &Bytes::new())));
}

#[test]
fn the_form_is_told_by_the_head() {
    let form = |pairs: &[(&'static str, &str)]| Form::of(&head(pairs)).ok();
    assert_eq!(form(&[]), Some(Form::Plain));
    assert_eq!(form(&[("ce-other", "x")]), Some(Form::Plain));
    assert_eq!(form(&[("ce-id", "1")]), Some(Form::Binary));
    let structured = ("content-type", "Application/CloudEvents+JSON; charset=utf-8");
    assert_eq!(form(&[structured, ("ce-id", "1")]), Some(Form::Structured));
    for other in [
        "application/cloudevents",
        "application/cloudevents+xml",
        "application/cloudevents+json; charset=utf-16",
        "application/cloudevents-batch+avro",
    ] {
        assert_eq!(form(&[("content-type", other), ("ce-id", "1")]), None, "{other}");
    }
    assert!(is_batch(&head(&[(
        "content-type",
        "application/cloudevents-batch+json"
    )])));
}

/// The attributes that a problem names.
fn named(error: &ApiError, place: &str) -> Vec<String> {
    let problem = error.to_result();
    let errors = problem["errors"].as_array().cloned().unwrap_or_default();
    let named = errors.iter().filter_map(|error| error[place].as_str());
    named
        .map(|name| name.trim_start_matches('/').to_owned())
        .collect()
}

/// Attributes of an event, as texts that break a rule now and then.
fn attributes() -> impl Strategy<Value = std::collections::BTreeMap<&'static str, String>> {
    let name = prop::sample::select(vec!["specversion", "type", "source", "id", "time"]);
    let value = prop_oneof![
        Just("1.0".to_owned()),
        "[!-~]{0,20}",
        "[a-z]{255,258}",
        "[ -~äß\u{1}]{0,6}",
        "202[0-9]-[01][0-9]-[0-3][0-9]T12:00:00(\\.[0-9]{1,9})?(Z|[+-]0[0-9]:[0-6][0-9])",
    ];
    let attributes = prop::collection::btree_map(name, value, 0..6);
    (attributes, any::<bool>()).prop_map(|(mut attributes, least)| {
        for (name, value) in LEAST.iter().filter(|_| least) {
            let name = name.trim_start_matches("ce-");
            attributes.entry(name).or_insert_with(|| (*value).to_owned());
        }
        attributes
    })
}

proptest! {
    #[test]
    fn both_ways_obey_the_same_rules_and_name_what_breaks_them(attributes in attributes()) {
        let structured = from_json(&json!(attributes).to_string());
        let encode = |text: &str| {
            let encoded = percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
            HeaderValue::try_from(encoded.to_string()).unwrap()
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &attributes {
            headers.insert(http::HeaderName::try_from(format!("ce-{name}")).unwrap(), encode(value));
        }
        let binary = binary(&headers, &Bytes::new());
        match (structured, binary) {
            (Ok(structured), Ok(binary)) => {
                prop_assert_eq!(attributes["specversion"].as_str(), "1.0");
                prop_assert_eq!(structured.event_type.as_str(), attributes["type"].as_str());
                prop_assert_eq!(structured.source.as_ref().unwrap().as_str(), attributes["source"].as_str());
                prop_assert!((1..=256).contains(&attributes["id"].chars().count()));
                prop_assert!(structured.dedup_id.as_ref().unwrap().as_str().starts_with("cloudevent:"));
                prop_assert_eq!(structured.occurred_at.is_some(), attributes.contains_key("time"));
                prop_assert_eq!(structured.dedup_id, binary.dedup_id);
                prop_assert_eq!(structured.occurred_at, binary.occurred_at);
            }
            (Err(structured), Err(binary)) => {
                let mut of_structured = named(&structured, "pointer");
                let mut of_binary: Vec<_> = named(&binary, "header").iter().map(|name| name.to_lowercase().replace("ce-", "")).collect();
                of_structured.sort();
                of_binary.sort();
                prop_assert!(!of_structured.is_empty(), "{structured}");
                prop_assert_eq!(&of_structured, &of_binary);
                let mut mended = attributes.clone();
                for (name, value) in LEAST {
                    let name = name.trim_start_matches("ce-");
                    if of_structured.iter().any(|named| named == name) {
                        mended.insert(name, value.to_owned());
                    }
                }
                mended.retain(|name, _| *name != "time" || !of_structured.iter().any(|named| named == "time"));
                prop_assert!(from_json(&json!(mended).to_string()).is_ok(), "{of_structured:?} was not all");
            }
            (structured, binary) => prop_assert!(false, "{structured:?} is not {binary:?}"),
        }
    }

    #[test]
    fn any_structured_event_is_read_or_refused(text in "[\\[\\]{}\":,a-z0-9\\\\ ]{0,64}", bytes: Vec<u8>) {
        let _ = from_json(&text);
        let body = Bytes::from(bytes);
        let _ = structured("the body", &body, &body, None);
    }

    #[test]
    fn any_binary_event_is_read_or_refused(id: Vec<u8>, content_type in "[a-z/+;= ]{0,30}", body: Vec<u8>) {
        let mut headers = head(&LEAST);
        if let Ok(value) = HeaderValue::from_bytes(&id) {
            headers.insert("ce-id", value);
        }
        headers.insert("content-type", HeaderValue::from_str(&content_type).unwrap());
        let _ = binary(&headers, &body.into());
    }

    #[test]
    fn what_is_posted_either_way_is_the_same(
        id in "[^\\p{C}]{1,50}", source in "[!-~&&[^\"\\\\%]]{1,50}", data in "\\PC{0,50}"
    ) {
        let data = json!({"text": data});
        let event = json!({"specversion": "1.0", "id": id, "source": source, "type": "a.b", "data": data});
        let structured = from_json(&event.to_string()).unwrap();
        let encode = |text: &str| {
            let encoded = percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
            encoded.to_string()
        };
        let headers = head(&[
            ("ce-specversion", "1.0"),
            ("ce-type", "a.b"),
            ("ce-source", &encode(&source)),
            ("ce-id", &encode(&id)),
            ("content-type", "application/json"),
        ]);
        let binary = binary(&headers, &data.to_string().into()).unwrap();
        prop_assert_eq!(binary.dedup_id, structured.dedup_id);
        prop_assert_eq!(binary.payload, structured.payload);
        prop_assert_eq!(binary.source, structured.source);
    }
}
