//! The code that the documentation shows, and code that others wrote, do what they should with a real deployment.

mod api;
mod examples;
mod links;
mod program;
mod verifying;
mod zapier;

#[test]
fn the_documentation_shows_the_files_as_they_are() {
    let read = |name: &str| std::fs::read_to_string(program::path(name)).expect("it is there");
    let documented = read("docs/delivery.md");
    for (language, file) in [
        ("python", "verify.py"),
        ("javascript", "verify.mjs"),
        ("java", "Verify.java"),
    ] {
        let shown = format!("```{language}\n{}```", read(&format!("examples/verify/{file}")));
        assert!(
            documented.contains(&shown),
            "docs/delivery.md shows another {file}"
        );
    }
}
