//! `docs/drbd-tests.md` is held against the sources: what it names is there, what is there it names, and its sums are right.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The names of all functions in the Rust files below a directory.
fn functions(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("a directory of the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let named = text.lines().filter_map(|line| {
                let (name, _) = line.trim_start().strip_prefix("fn ")?.split_once('(')?;
                Some(name.to_owned())
            });
            names.extend(named);
        }
    }
}

/// The tests of the stories that are DRBD's.
fn stories() -> BTreeSet<String> {
    let dir = root().join("integration/simulator/src/stories");
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).expect("this directory") {
        let path = entry.expect("an entry").path();
        let ours = ["rules.rs", "mending.rs", "page.rs"];
        if ours.iter().any(|o| path.ends_with(o)) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        for test in text.split("#[test]\nfn ").skip(1) {
            names.extend(test.split('(').next().map(str::to_owned));
        }
    }
    names
}

#[test]
fn the_page_about_drbds_tests_is_true() {
    let page = fs::read_to_string(root().join("docs/drbd-tests.md")).expect("the page");
    let mut known = BTreeSet::new();
    for dir in ["integration", "nbd-server", "replicator"] {
        functions(&root().join(dir), &mut known);
    }
    let mut named = BTreeSet::new();
    let mut sums = [[0; 4]; 3];
    let mut part = 0;
    let tables = page.find("\n## ").expect("sections");
    for line in page[tables..].lines() {
        part = match line {
            l if l.starts_with("## Endurance") => 1,
            "## Around DRBD" => 2,
            _ => part,
        };
        let Some((test, here)) = line
            .strip_prefix("| ")
            .and_then(|l| l.strip_suffix(" |"))
            .and_then(|l| l.split_once(" | "))
        else {
            continue;
        };
        if here == "here" {
            continue;
        }
        let class = match here {
            h if h.starts_with("does not apply: ") => 2,
            h if h.starts_with("not yet: ") => 3,
            _ => 1,
        };
        sums[part][0] += 1;
        sums[part][class] += 1;
        let mut tests = 0;
        for name in here.split('`').skip(1).step_by(2) {
            if name.ends_with(".sh") {
                let script = root().join("integration/real").join(name);
                assert!(script.exists(), "{test}: {name}");
            } else if known.contains(name) {
                named.insert(name.to_owned());
            } else {
                assert!(!name.contains('_'), "{test}: there is no test {name}");
                continue;
            }
            tests += 1;
        }
        assert!(
            class != 1 || tests > 0 || here.contains("`cargo sim`"),
            "{test}"
        );
    }
    for (part, what) in ["functional (`tests`)", "endurance, random, proxy"]
        .into_iter()
        .enumerate()
    {
        let [all, maps, not, later] = sums[part];
        let row = format!("| {what} | {all} | {maps} | {not} | {later} |");
        assert!(page.contains(&row), "the sums are {row}");
    }
    let stories = stories();
    let missing: Vec<_> = stories.difference(&named).collect();
    assert!(missing.is_empty() && stories.len() > 50, "{missing:?}");
}
