use std::fmt::Write as _;

use proptest::prelude::*;

use super::{
    compile::{Program, compile},
    kept::{BYTES_OF_A_CHARACTER, BYTES_OF_A_PATTERN, BYTES_OF_A_SET, judge},
    *,
};

const MANY: u32 = 1_000_000;

fn subject(payload: &str) -> Subject<'_> {
    let occurred_at = Timestamp::from_millis(1_767_323_045_678);
    Subject::new("order.placed", Some("shop/7"), Some(occurred_at), payload)
}

fn ask(filter: &str, payload: &str, steps: u32) -> Verdict {
    let filter = Filter::parse(filter).unwrap_or_else(|error| panic!("{filter} {error}"));
    judged(&filter, &subject(payload), steps)
}

fn judged(filter: &Filter, subject: &Subject<'_>, steps: u32) -> Verdict {
    let ready = Filters::default().ready(std::slice::from_ref(filter));
    ready.unwrap().judge(0, subject, steps)
}

fn program(text: &str) -> Result<Program, String> {
    compile(&[text]).unwrap().remove(0)
}

fn too_costly(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Failed(why) if why.contains("too costly"))
}

#[test]
fn filters_say_what_they_mean() {
    let payload = r#"{"amount":120,"price":9.5,"big":18446744073709551615,"currency":"EUR","tags":["new","vip"],
        "items":[{"sku":"a","n":1},{"sku":"b","n":5}],"note":null,"paid":true,"a-b":1,"at":"2026-01-02T03:04:05Z","ü":"é"}"#;
    for filter in [
        "payload.amount > 100 && payload.currency == 'EUR'",
        "type == 'order.placed' && source.startsWith('shop/')",
        "occurred_at > timestamp('2026-01-02T03:04:05Z') && occurred_at.getFullYear() == 2026",
        "occurred_at - timestamp(payload.at) < duration('1s')",
        "payload.price < 10 && payload.amount / 2 == 60 && payload.amount % 7 == 1",
        "payload.amount == 120.0 && payload.big > 1 && payload.big == 18446744073709551615u",
        "'vip' in payload.tags && !('old' in payload.tags) && size(payload.tags) == 2",
        "payload.currency in ['EUR', 'USD'] && 'amount' in payload",
        "payload.items.exists(item, item.sku == 'b' && item.n >= 5)",
        "payload.items.all(item, item.n > 0) && payload.items.exists_one(item, item.n == 1)",
        "payload.items.filter(item, item.n > 1).size() == 1",
        "payload.items.map(item, item.sku) == ['a', 'b']",
        "payload.items.map(item, item.n > 1, item.sku + '!') == ['b!']",
        "has(payload.note) && payload.note == null && !has(payload.missing)",
        "has(payload.missing) ? payload.missing > 1 : payload.paid",
        "payload['a-b'] == 1 && payload.items[0].sku == 'a' && payload.`a-b` == 1",
        "payload.currency.matches('^E(U|G)R$') && !matches(source, '^[0-9]+$')",
        "payload.missing == 1 || payload.paid",
        "payload.paid || payload.missing == 1",
        "[1, 2].exists(x, payload.missing == 1 || x == 2)",
        "payload.exists(name, name == 'amount') && payload['ü'] == 'é' && size(payload['ü']) == 1",
        "string(payload.amount) == '120' && int('7') == 7 && double(payload.amount) > 119.5",
        "{'a': [1, {'b': 2}]} == {'a': [1, {'b': 2}]} && [1, 2] != [1, 3] && -payload.amount == -120",
        "payload.currency.contains('U') && payload.currency.endsWith('R') && payload.currency < 'F'",
        "payload.paid",
    ] {
        assert_eq!(ask(filter, payload, 1_000), Verdict::Matches, "{filter}");
        let negated = format!("!({filter})");
        assert_eq!(ask(&negated, payload, 1_000), Verdict::False, "{negated}");
    }
}

#[test]
fn what_cannot_be_evaluated_says_why() {
    let payload = r#"{"amount":"12","list":[1],"map":{},"zero":0,"huge":9223372036854775807}"#;
    let mut told = String::new();
    for filter in [
        "payload.missing > 1",
        "payload['missing'] == 1",
        "payload.amount > 100",
        "payload.amount.missing == 1",
        "payload.list.name == 1",
        "payload.list[3] == 1",
        "payload.amount + 1 == 13",
        "payload.zero / payload.zero == 1",
        "payload.huge + 1 > 0",
        "payload.amount",
        "payload.amount && true",
        "payload.zero.exists(x, true)",
        "payload.list < payload.list",
        "size(payload.zero) == 1",
        "timestamp(payload.amount) > occurred_at",
        "int('x') == 1",
        "payload.amount.getFullYear() == 1",
        "{payload.list: 1} == {}",
        "occurred_at.getHours('Nowhere/City') == 1",
        "payload.list.all(x, x)",
    ] {
        let Verdict::Failed(why) = ask(filter, payload, 1_000) else {
            panic!("{filter} can be evaluated");
        };
        writeln!(told, "{filter}\n    {why}").unwrap();
    }
    insta::assert_snapshot!(told);
}

#[test]
fn a_payload_that_is_no_value_says_so() {
    for payload in ["1e999", r#"["\ud800"]"#] {
        let verdict = ask("payload == 1", payload, 100);
        assert!(
            matches!(&verdict, Verdict::Failed(why) if why.starts_with("the payload cannot be read")),
            "{verdict:?}"
        );
        assert_eq!(ask("type == 'order.placed'", payload, 100), Verdict::Matches);
    }
    let nothing = Subject::new("a", None, None, "null");
    let filter = Filter::parse("source == null && occurred_at == null && payload == null").unwrap();
    assert_eq!(judged(&filter, &nothing, 100), Verdict::Matches);
}

#[test]
fn bad_filters_are_refused_with_their_place() {
    let mut told = String::new();
    let long = format!("type == '{}'", "a".repeat(MAX_FILTER));
    let patterns = format!("type.matches('{}')", "a".repeat(300));
    let calls = ["type.matches('a')"; MAX_PATTERNS + 1].join("||");
    for filter in [
        "",
        &long,
        "type ==",
        "type = 'a'",
        "type == 'a",
        "payload.a > 1 &&& true",
        "a b",
        "type == \u{7}",
        "type == ü",
        "event.type == 'a'",
        "'payload.x' == payload.x && x == 1",
        "payload.items.exists(i, j.n > 1)",
        "payload.items.exists(i.n, true)",
        "payload.items.exists(i)",
        "has(payload)",
        "lower(type) == 'a'",
        "type.lowerAscii() == 'a'",
        "size() == 1",
        "type(payload) == int",
        "b'abc' == b'abc'",
        "Message{a: 1} == null",
        "payload.?a == 1",
        "[?payload.a] == []",
        "optional.none() == 1",
        "type.matches(payload.pattern)",
        "type.matches('[')",
        r"type.matches('(\\w{200}){200}')",
        &patterns,
        &calls,
        "'a'",
        "payload.a + 1",
        "[true]",
        "type",
        "@result == 1",
        "type.@in(1)",
        "99999999999999999999 == 1",
    ] {
        let rule = Filter::parse(filter).map_or_else(|error| error.to_string(), |_| "is taken".to_owned());
        let shown: String = filter.chars().filter(|c| !c.is_control()).take(60).collect();
        writeln!(told, "{shown}\n    {rule}").unwrap();
    }
    insta::assert_snapshot!(told);
}

/// As many characters as patterns may have, of two bytes each.
#[test]
fn characters_are_counted_and_not_bytes() {
    let text = "ü".repeat(256);
    let payload = format!("\"{text}\"");
    assert_eq!(
        ask(&format!("payload.matches('{text}')"), &payload, 5_000),
        Verdict::Matches
    );
    let padded = format!("payload == '{}'", "ü".repeat(MAX_FILTER - 13));
    assert_eq!(padded.chars().count(), MAX_FILTER);
    assert_eq!(ask(&padded, &payload, 5_000), Verdict::False);
}

/// A double has no number so small but zero, and none so large at all.
#[test]
fn numbers_are_the_nearest_that_there_are() {
    for payload in ["1e-400", "-1e-400", "0", "-0.0"] {
        assert_eq!(ask("payload == 0", payload, 100), Verdict::Matches, "{payload}");
        assert_eq!(
            ask("payload < 0 || payload > 0", payload, 100),
            Verdict::False,
            "{payload}"
        );
    }
    // 2 to the power of 64, and one more.
    for payload in ["18446744073709551616", "18446744073709551617"] {
        assert_eq!(
            ask("payload == 18446744073709551616.0", payload, 100),
            Verdict::Matches
        );
    }
}

/// Expressions of few characters that come to much once they are read, to be repeated.
const COSTLY: [&str; 26] = [
    "1",
    "x",
    "''",
    "[]",
    "{}",
    "!x",
    "-x",
    "x.a",
    "[x]",
    "{x:x}",
    "x[x]",
    "x+x",
    "x&&x",
    "x in x",
    "x?x:x",
    "x.size()",
    "has(x.a)",
    "[].all(x,x)",
    "x.all(a,a)",
    "x.all(a,!a)",
    "x.exists(a,a)",
    "x.exists_one(a,a)",
    "x.map(a,a)",
    "x.map(a,a,a)",
    "x.filter(a,a)",
    "x.all(a,a.all(b,b))",
];

/// A filter of the most characters, of which each comes to much; of another text for each number.
fn costly(part: &str, pattern: &str, number: usize) -> String {
    let before = format!("[type.matches('{pattern}'),'{number:03}'==''].all(x,[");
    let after = "]==[])";
    let room = MAX_FILTER - before.len() - after.len();
    let parts = vec![part; (room + 1) / (part.len() + 1)].join(",");
    let room = room - parts.len();
    format!("{before}{parts}{}{after}", " ".repeat(room))
}

fn heaviest_part() -> (&'static str, u64) {
    let weighed = COSTLY.map(|part| {
        let text = costly(part, "", 0);
        let program = program(&text).unwrap_or_else(|rule| panic!("{part}: {rule}"));
        let patterns: usize = program.patterns.values().map(|pattern| pattern.bytes).sum();
        (part, (text.len() + program.bytes - patterns) as u64)
    });
    weighed.into_iter().max_by_key(|(_, bytes)| *bytes).unwrap()
}

fn heaviest_pattern() -> (String, u64) {
    let mut heaviest = (String::new(), 0);
    for class in [
        r"\\w",
        r"\\W",
        r"\\pL",
        r"\\d",
        ".",
        "[^a]",
        "(a|b|ü)",
        "(?i:k)",
        r"(\\w|\\pN)",
        r"\\b\\w",
        "a?",
        "(a*)*",
    ] {
        for times in 1..200 {
            let pattern = format!("({class}){{{times}}}x");
            let Ok(program) = program(&format!("type.matches('{pattern}')")) else {
                break;
            };
            let bytes = program.patterns.values().map(|one| one.bytes as u64).sum();
            if bytes > heaviest.1 {
                heaviest = (pattern, bytes);
            }
        }
    }
    heaviest
}

/// However costly the filters are that organizations may have, those of several are kept, and each is compiled once.
#[test]
fn the_most_costly_filters_are_compiled_once() {
    let (part, of_characters) = heaviest_part();
    assert!(
        of_characters <= MAX_FILTER as u64 * BYTES_OF_A_CHARACTER,
        "{part}: {of_characters}"
    );
    let (pattern, of_a_pattern) = heaviest_pattern();
    assert!(of_a_pattern <= BYTES_OF_A_PATTERN, "{pattern}: {of_a_pattern}");

    let each = usize::try_from(MAX_CHARACTERS).unwrap() / MAX_FILTER;
    let sets: Vec<Vec<Filter>> = (0..3)
        .map(|set| {
            let mut kept = FiltersKept::default();
            let filters = (0..each).map(|at| {
                let filter = Filter::parse(&costly(part, &pattern, set * each + at)).unwrap();
                assert_eq!(
                    kept.room_for(&filter),
                    Ok(()),
                    "an organization may have them all"
                );
                kept.characters += MAX_FILTER as u64;
                kept.patterns += 1;
                filter
            });
            let filters = filters.collect();
            let full = kept.room_for(&Filter::from_trusted("a"));
            assert_eq!(full, Err(FiltersFull::Characters), "and not one more");
            filters
        })
        .collect();
    let filters = Filters::default();
    for (at, set) in sets.iter().enumerate() {
        assert_eq!(filters.ready(set).unwrap().compiled(), each);
        assert!(filters.weight() <= BYTES_OF_A_SET * (at as u64 + 1));
    }
    // In a row and all over again: an order in which what is kept by its last use would be gone each time.
    for _ in 0..3 {
        for set in &sets {
            assert_eq!(filters.ready(set).unwrap().compiled(), 0, "all are kept");
        }
    }
}

#[test]
fn the_same_text_is_compiled_once() {
    let filters = Filters::default();
    let asked = ["true", "false", "true", "nonsense("].map(Filter::from_trusted);
    let ready = filters.ready(&asked).unwrap();
    assert_eq!(ready.compiled(), 3);
    let verdicts = [0, 1, 2].map(|place| ready.judge(place, &subject("{}"), 100));
    assert_eq!(verdicts, [Verdict::Matches, Verdict::False, Verdict::Matches]);
    // One that cannot be read is as it is, and is not read again.
    assert!(matches!(ready.judge(3, &subject("{}"), 100), Verdict::Failed(_)));
    assert_eq!(filters.ready(&asked).unwrap().compiled(), 0);
}

#[test]
fn nothing_is_too_deep_for_the_stack() {
    for (open, within, close) in [
        ("(", "true", ")"),
        ("[", "1", "]"),
        ("{1:", "1", "}"),
        ("!", "true", ""),
        ("-", "1", ""),
        ("!-", "1", ""),
        ("size(", "type", ")"),
        ("true?true:", "true", ""),
        ("true?", "true", ":true"),
        ("1+", "1", ""),
        ("true||", "true", ""),
        ("payload[", "1", "]"),
        ("[1].map(x,", "x", ")"),
        ("[1].all(x,", "true", ")"),
        ("payload.x == (payload.x ? (", "true", ") : 1)"),
        ("", "payload", ".a"),
        ("", "payload", "[0]"),
        ("", "[1]", ".map(x,x)"),
    ] {
        for times in [8, 32, 64, 100, 400, 900, 2_000] {
            let text = format!("{}{within}{}", open.repeat(times), close.repeat(times));
            if let Ok(filter) = Filter::parse(&text) {
                let _ = judged(&filter, &subject("{}"), MANY);
            }
            // What is too long is refused before it is read: it is to be read all the same.
            let _ = program(&text);
        }
    }
}

#[test]
fn a_hostile_filter_runs_out_of_steps() {
    let zeros = format!("[{}]", vec!["0"; 100_000].join(","));
    let text = format!("\"{}\"", "a".repeat(200_000));
    let numbers = (0..200).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let nested = |times: usize| {
        let open: String = (0..times).fold(String::new(), |mut open, at| {
            write!(open, "[{numbers}].all(x{at}, ").unwrap();
            open
        });
        format!("{open}true{}", ")".repeat(times))
    };
    for (filter, payload) in [
        ("payload.all(x, payload.all(y, payload.all(z, true)))", &zeros),
        ("payload.map(x, payload.map(y, payload)).size() == 0", &zeros),
        ("payload.map(x, payload) == payload.map(x, payload)", &zeros),
        ("payload.exists(x, x == 1) || true", &zeros),
        ("true || payload.exists(x, payload == payload)", &zeros),
        ("payload.all(x, payload.map(y, 1/0 == 1) == [])", &zeros),
        ("payload + payload + payload + payload == []", &zeros),
        (
            "[1,2,3,4,5,6,7,8].all(x, [1,2,3,4,5,6,7,8].all(y, payload + payload != ''))",
            &text,
        ),
        (
            "[1,2,3,4,5,6,7,8].all(x, payload.contains('b') || payload.contains('c'))",
            &text,
        ),
        (
            "payload.matches('(a|aa)+$') && payload.matches('(a|aa)+b')",
            &text,
        ),
        (
            "[payload].map(a,[a,a]).map(b,[b,b]).map(c,[c,c]).map(d,[d,d]).map(e,[e,e]).map(f,[f,f]) == []",
            &zeros,
        ),
        (&nested(2), &zeros),
    ] {
        let verdict = ask(filter, payload, steps_each(1));
        let decided_at_once = filter.starts_with("true ||") || filter.starts_with("[payload]");
        assert_eq!(too_costly(&verdict), !decided_at_once, "{filter}: {verdict:?}");
    }
    // Lists that share their elements are looked through as often as they are shared.
    let shared = "[payload].map(a,[a,a]).map(b,[b,b]).map(c,[c,c]).map(d,[d,d])";
    assert!(too_costly(&ask(
        &format!("{shared} == {shared}"),
        &zeros,
        steps_each(1)
    )));
}

#[test]
fn what_one_filter_takes_does_not_depend_on_others() {
    assert_eq!(steps_each(0), 10_000);
    assert_eq!(steps_each(5), 10_000);
    assert_eq!(steps_each(50), 1_000);
    assert_eq!(steps_each(1_000_000), 100);
    // The order of a map's keys is not left to chance, and neither is what it costs.
    let members: Vec<String> = (0..500).map(|at| format!("\"k{at}\":{at}")).collect();
    let payload = format!("{{{}}}", members.join(","));
    let least = |filter: &str| (1..5_000).find(|steps| !too_costly(&ask(filter, &payload, *steps)));
    let filter = "payload.exists(k, payload[k] == 321)";
    let first = least(filter);
    assert!(first.is_some_and(|steps| steps > 500), "{first:?}");
    assert_eq!(least(filter), first);
}

/// A part of an expression that means something often enough.
fn part() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(vec![
            "payload",
            "payload.a",
            "payload.b",
            "payload.c",
            "payload['a']",
            "type",
            "source",
            "occurred_at",
            "true",
            "false",
            "null",
            "0",
            "1",
            "-1",
            "2u",
            "1.5",
            "0.0",
            "'a'",
            "''",
            "'order.placed'",
            "[]",
            "[1, 2]",
            "{}",
            "{'a': 1}",
            "9223372036854775807",
            "duration('1h')",
            "timestamp('2026-01-01T00:00:00Z')",
            "x",
            "'1'",
        ])
        .prop_map(str::to_owned),
        (-3..5_i64).prop_map(|n| n.to_string()),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            (
                two.clone(),
                prop::sample::select(vec![
                    "+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "&&", "||", "in"
                ])
            )
                .prop_map(|((a, b), op)| format!("({a} {op} {b})")),
            (two.clone(), inner.clone()).prop_map(|((a, b), c)| format!("({a} ? {b} : {c})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            inner.clone().prop_map(|a| format!("-({a})")),
            two.clone().prop_map(|(a, b)| format!("({a})[{b}]")),
            two.clone().prop_map(|(a, b)| format!("[{a}, {b}]")),
            two.clone().prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            (inner.clone(), prop::sample::select(vec!["a", "b"])).prop_map(|(a, f)| format!("({a}).{f}")),
            prop::sample::select(vec!["has(payload.a)", "has(payload.z)", "has(payload.a.b)"])
                .prop_map(str::to_owned),
            (
                two.clone(),
                prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter"])
            )
                .prop_map(|((a, b), name)| format!("({a}).{name}(x, {b})")),
            (two.clone(), inner.clone()).prop_map(|((a, b), c)| format!("({a}).map(x, {b}, {c})")),
            (
                two,
                prop::sample::select(vec!["contains", "startsWith", "endsWith"])
            )
                .prop_map(|((a, b), name)| format!("({a}).{name}({b})")),
            (
                inner.clone(),
                prop::sample::select(vec![
                    "size",
                    "int",
                    "uint",
                    "double",
                    "string",
                    "bool",
                    "timestamp",
                    "duration"
                ])
            )
                .prop_map(|(a, name)| format!("{name}({a})")),
            (
                inner,
                prop::sample::select(vec!["size", "getFullYear", "getHours", "getMilliseconds"])
            )
                .prop_map(|(a, name)| format!("({a}).{name}()")),
        ]
    })
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        (-3..4_i64).prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        prop::sample::select(vec![0.0, -0.0, 1.0, 1.5, -2.25, 1e300]).prop_map(Into::into),
        prop::sample::select(vec!["", "a", "1", "ab", "ü", "2026-01-01T00:00:00Z", "5m"])
            .prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map("[abc]", inner, 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    });
    (value.clone(), value.clone(), value).prop_map(|(a, b, c)| serde_json::json!({"a": a, "b": b, "c": c}))
}

/// What the library itself makes of an expression.
fn of_the_library(program: &Program, subject: &Subject<'_>) -> Option<bool> {
    let mut context = cel::Context::default();
    context.add_variable_from_value("type", subject.event_type.clone());
    context.add_variable_from_value("source", subject.source.clone());
    context.add_variable_from_value("occurred_at", subject.occurred_at.clone());
    context.add_variable_from_value("payload", subject.payload().unwrap());
    match Value::resolve(&program.expression, &context) {
        Ok(Value::Bool(truth)) => Some(truth),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 2_000 } else { 20_000 }))]

    #[test]
    fn evaluation_is_that_of_the_library(expression in part(), payload in json()) {
        let text = format!("({expression}) == ({expression}) || [0].exists(x, {expression})");
        for text in [&expression, &text] {
            let Ok(program) = program(text) else { continue };
            let payload = payload.to_string();
            let subject = subject(&payload);
            let verdict = judge(&program, &subject, MANY);
            prop_assert!(!too_costly(&verdict));
            let ours = match &verdict {
                Verdict::Matches => Some(true),
                Verdict::False => Some(false),
                Verdict::Failed(_) => None,
            };
            prop_assert_eq!(ours, of_the_library(&program, &subject), "{} {} {:?}", text, payload, verdict);
        }
    }

    #[test]
    fn few_steps_are_never_exceeded(expression in part(), payload in json(), steps in 0..200_u32) {
        let Ok(program) = program(&expression) else { return Ok(()) };
        let payload = payload.to_string();
        let subject = subject(&payload);
        let (with_few, with_many) = (judge(&program, &subject, steps), judge(&program, &subject, MANY));
        prop_assert!(with_few == with_many || too_costly(&with_few), "{} {:?} {:?}", expression, with_few, with_many);
    }

    #[test]
    fn any_text_is_taken_or_refused(text in "\\PC{0,80}") {
        let _ = program(&text);
    }

    #[test]
    fn any_row_of_tokens_is_taken_or_refused(tokens in prop::collection::vec(prop::sample::select(vec![
        "(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "!", "-", "+", "*", "==", "<", "&&", "||", "in", "a", "payload",
        "has", "all", "map", "x", "1", "1u", "0x", "1e", "'", "\"", "'''", "r'", "b'a'", "`", "\\", "@", "//", "null", "ü", " ",
    ]), 0..40)) {
        let text = tokens.concat();
        if let Ok(program) = program(&text) {
            let _ = judge(&program, &subject("{\"a\":[1]}"), 1_000);
        }
    }
}
