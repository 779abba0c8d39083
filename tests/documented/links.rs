//! What the documentation links to within the repository is there.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::program::path;

/// The pages for people.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![path("README.md"), path("CHANGELOG.md")];
    for directory in ["docs", "docs/decisions"] {
        let entries = std::fs::read_dir(path(directory)).expect("the directory is there");
        let files = entries.map(|entry| entry.expect("a directory can be read").path());
        pages.extend(files.filter(|file| file.extension().is_some_and(|extension| extension == "md")));
    }
    pages
}

fn read(page: &Path) -> String {
    std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()))
}

/// The text without what is shown as code in blocks.
fn prose(text: &str) -> String {
    let outside = text.split("```").step_by(2);
    outside.collect()
}

/// What the headings of a page are called in links, as forges call them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let text = prose(text);
    for heading in text.lines().filter(|line| line.starts_with('#')) {
        let words = heading
            .trim_start_matches('#')
            .trim()
            .to_lowercase()
            .replace(' ', "-");
        let kept: String = words
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
            .collect();
        assert!(anchors.insert(kept), "two headings are called so: {heading}");
    }
    anchors
}

/// The targets of links.
fn targets(text: &str) -> Vec<String> {
    let text = prose(text);
    let after = text.split("](").skip(1);
    after
        .filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()))
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut looked_at = 0;
    for page in pages() {
        for target in targets(&read(&page)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let other = match file {
                "" => page.clone(),
                file => page.parent().expect("a page is in a directory").join(file),
            };
            assert!(other.exists(), "{}: {target} is not there", page.display());
            if !anchor.is_empty() && other.extension().is_some_and(|extension| extension == "md") {
                let there = anchors(&read(&other));
                assert!(
                    there.contains(anchor),
                    "{}: {target} is not there",
                    page.display()
                );
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 50, "{looked_at}");
}
