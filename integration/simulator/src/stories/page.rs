//! `docs/drbd-tests.md` is held against the sources: what it names is there, what has a name of DRBD's it names, and
//! its sums are right.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The names of all tests in the Rust files below a directory.
fn tests(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("a directory of the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tests(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let named = text.split("#[test]\n").skip(1).filter_map(|test| {
                let (name, _) = test.trim_start().strip_prefix("fn ")?.split_once('(')?;
                Some(name.to_owned())
            });
            names.extend(named);
        }
    }
}

#[test]
fn the_page_about_drbds_tests_is_true() {
    let page = fs::read_to_string(root().join("docs/drbd-tests.md")).expect("the page");
    let mut known = BTreeSet::new();
    for dir in ["integration", "nbd-server", "replicator"] {
        tests(&root().join(dir), &mut known);
    }
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
        let own = test.replace('-', "_");
        assert!(
            !known.contains(&own) || here.contains(&format!("`{own}`")),
            "{test} has a story of its name and does not name it"
        );
        let mut named = 0;
        for name in here.split('`').skip(1).step_by(2) {
            if name.ends_with(".sh") {
                let script = root().join("integration/real").join(name);
                assert!(script.exists(), "{test}: {name}");
            } else if !known.contains(name) {
                assert!(!name.contains('_'), "{test}: there is no test {name}");
                continue;
            }
            named += 1;
        }
        assert!(
            class != 1 || named > 0 || here.contains("`cargo sim`"),
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
}
