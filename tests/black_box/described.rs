//! `/docs`: the description for people, from the binary alone. What it is made of comes from the same server, and nothing else is
//! asked for.

use std::collections::BTreeSet;

use harness::{Engine, World, on_both_engines};

on_both_engines!(the_page_asks_for_nothing_from_elsewhere);

/// The values of attributes that name an address, in a page.
fn addresses(page: &str) -> BTreeSet<&str> {
    let attributes = ["href", "src", "srcset", "action", "poster", "data", "content"];
    let mut addresses = BTreeSet::new();
    for attribute in attributes {
        for rest in page.split(&format!(" {attribute}=\"")).skip(1) {
            addresses.extend(rest.split('"').next());
        }
    }
    addresses
}

/// Whether an address is on another server, or might be.
fn is_outside(address: &str) -> bool {
    let scheme = address.split_once(':').map(|(scheme, _)| scheme);
    let has_scheme = scheme.is_some_and(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    (has_scheme && address != "data:,") || address.starts_with("//")
}

async fn the_page_asks_for_nothing_from_elsewhere(engine: Engine) {
    let world = World::start(engine).await;
    // A worker has its health and metrics alone.
    for node in world.nodes().iter().filter(|node| node.program() != "worker") {
        let page = world.get(node, "/docs").await;
        assert_eq!(page.status, 200);
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
        // A browser holds to it, whatever the page says.
        let policy = page.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        assert!(
            !policy.contains("http") && !policy.contains('*') && !policy.contains("unsafe"),
            "{policy}"
        );
        let addresses = addresses(&page.text);
        for address in &addresses {
            assert!(!is_outside(address), "{address}");
        }
        let files = ["docs/style.css", "docs/script.js", "openapi.json"];
        for (file, kind) in files
            .into_iter()
            .zip(["text/css", "text/javascript", "application/json"])
        {
            assert!(addresses.contains(file), "{addresses:?}");
            let file = world.get(node, &format!("/{file}")).await;
            assert_eq!(file.status, 200);
            assert!(file.header("content-type").starts_with(kind), "{file:?}");
            if kind != "application/json" {
                for call in [
                    "url(",
                    "@import",
                    "import ",
                    "import(",
                    "fetch(",
                    "XMLHttpRequest",
                    "://",
                ] {
                    assert!(!file.text.contains(call), "{kind}: {call}");
                }
            }
        }
        // A link within the page leads somewhere.
        for anchor in addresses.iter().filter_map(|address| address.strip_prefix('#')) {
            assert!(page.text.contains(&format!(" id=\"{anchor}\"")), "#{anchor}");
        }
        // Every operation is there.
        let document = world.get(node, "/openapi.json").await.expect(200);
        for operation in harness::Operation::all(&document) {
            assert!(
                page.text.contains(&format!(" id=\"{}\"", operation.id)),
                "{}",
                operation.id
            );
        }
    }
}
