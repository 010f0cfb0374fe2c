//! Holds `docs/contract.md` against the programs: every verb, option, exit code, status key and command
//! that the page names is there, or is in the list below of those that are not there yet. A row that
//! appears has to leave the list: the test fails until it does.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use integration::{BOUND, Scene, programs, small};
use nbd_server::config::Config;
use serde_json::Value;

/// Rows of the contract's tables that this version does not have.
const NOT_THERE_YET: &[&str] = &[];

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn page() -> String {
    std::fs::read_to_string(workspace().join("docs/contract.md")).expect("docs/contract.md")
}

/// The text under a heading of the second level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page
        .find(&format!("\n## {heading}"))
        .unwrap_or_else(|| panic!("the page has no section {heading:?}"));
    let text = &page[start + 4 + heading.len()..];
    text.find("\n## ").map_or(text, |end| &text[..end])
}

/// The cells of a section's table, without its head.
fn rows(section: &str) -> Vec<Vec<String>> {
    let table: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    let rows: Vec<Vec<String>> = table[1..]
        .iter()
        .map(|line| {
            line.trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect();
    assert!(!rows.is_empty(), "a table without rows");
    rows
}

/// What stands between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The first block of a section that is fenced with this language.
fn block<'a>(section: &'a str, language: &str) -> &'a str {
    let text = section
        .split_once(&format!("```{language}\n"))
        .expect("a fenced block")
        .1;
    text.split_once("```").expect("its end").0
}

/// Compares what is there with the list; names the rows that have to move.
fn settle(prefix: &str, present: &BTreeSet<String>, all: &BTreeSet<String>) {
    for row in all {
        let listed = NOT_THERE_YET.contains(&row.as_str());
        assert!(
            present.contains(row) || listed,
            "the contract names `{row}`, and it is not there"
        );
        assert!(
            !present.contains(row) || !listed,
            "`{row}` is there now: take it off the list"
        );
    }
    for row in NOT_THERE_YET.iter().filter(|row| row.starts_with(prefix)) {
        assert!(
            all.contains(*row),
            "the list names `{row}`, and the contract does not"
        );
    }
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .expect("the program runs")
}

fn help(program: &Path, verb: &str) -> Option<String> {
    let output = run(program, &[verb, "--help"]);
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A row of a verb table as words: the verb, then its arguments and options; [--a or --b] are two options.
fn words(row: &str) -> Vec<String> {
    let row = row.replace("replctl ", "").replace(" or ", " ");
    row.split_whitespace()
        .map(|word| word.trim_matches(['[', ']']).to_owned())
        .collect()
}

#[test]
fn every_program_is_there() {
    let page = page();
    let dir = programs().repld.parent().expect("a directory").to_owned();
    let (mut all, mut present) = (BTreeSet::new(), BTreeSet::new());
    for row in rows(section(&page, "Programs")) {
        let name = quoted(&row[0])[0].to_owned();
        let path = dir.join(&name);
        all.insert(format!("program {name}"));
        if path.is_file() {
            let output = run(&path, &["--help"]);
            assert!(output.status.success(), "{name} --help");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            for option in ["--config", "--node"] {
                assert!(
                    text.contains(option),
                    "{name} --help says nothing of {option}"
                );
            }
            present.insert(format!("program {name}"));
        }
    }
    settle("program ", &present, &all);
}

#[test]
fn every_verb_and_option_is_there() {
    let page = page();
    let replctl = &programs().replctl;
    let general = run(replctl, &["--help"]);
    let general = String::from_utf8_lossy(&general.stdout).into_owned();
    let (mut all, mut present) = (BTreeSet::new(), BTreeSet::new());
    let table = section(&page, "replctl verbs");
    for row in rows(table) {
        for form in quoted(&row[0]) {
            let words = words(form);
            let name = format!("replctl {}", words.join(" "));
            let listed = general
                .lines()
                .any(|line| line.trim_start().split(' ').next() == Some(&words[0]));
            let complete = help(replctl, &words[0]).is_some_and(|text| {
                words[1..].iter().all(|word| {
                    let word = word.trim_matches(['<', '>']);
                    text.split(|c: char| !(c.is_alphanumeric() || c == '-'))
                        .any(|w| w == word)
                })
            });
            if listed && complete {
                present.insert(name.clone());
            }
            all.insert(name);
        }
    }
    settle("replctl ", &present, &all);
}

#[test]
fn every_fencing_verb_is_there() {
    let page = page();
    let fence = programs().repld.with_file_name("repl-fence");
    let text = section(&page, "replctl verbs");
    let line = text
        .lines()
        .find(|line| line.starts_with("`repl-fence "))
        .expect("the fencing line");
    let forms = quoted(line)[0].trim_start_matches("repl-fence ").to_owned();
    let (mut all, mut present) = (BTreeSet::new(), BTreeSet::new());
    for form in forms.split(" | ") {
        let verb = form.split(' ').next().expect("a verb");
        if fence.is_file() && help(&fence, verb).is_some() {
            present.insert(format!("repl-fence {form}"));
        }
        all.insert(format!("repl-fence {form}"));
    }
    settle("repl-fence ", &present, &all);
}

#[test]
fn exit_codes_are_those_of_the_page() {
    let page = page();
    let output = run(&programs().replctl, &["--help"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let flat: Vec<&str> = text.split_whitespace().collect();
    let flat = flat.join(" ");
    use tools::cluster::exit;
    let known = [
        exit::DONE,
        exit::FAILED,
        exit::USAGE,
        exit::UNREACHABLE,
        exit::NO_QUORUM,
        exit::OTHER_PRIMARY,
        exit::IN_USE,
        exit::NO_DATA,
    ];
    let mut seen = Vec::new();
    for row in rows(section(&page, "Exit codes of replctl")) {
        let code: i32 = row[0].parse().expect("a number");
        seen.push(code);
        let meaning = row[1].replace('`', "");
        assert!(
            flat.contains(&format!("{code} {meaning}")),
            "--help has no line {code} {meaning}"
        );
    }
    assert_eq!(seen, known);
}

#[test]
fn the_config_of_the_page_is_accepted() {
    let page = page();
    let text = block(section(&page, "Config"), "toml");
    let config = Config::parse(Path::new("contract.md"), text).expect("the example");
    assert_eq!((config.nodes.len(), config.volumes.len()), (3, 2));
}

/// Every key of `wanted` is in `there`, with a value of the same kind or null.
fn expect_keys(path: &str, wanted: &Value, there: &Value) {
    match (wanted, there) {
        (Value::Object(wanted), Value::Object(there)) => {
            for (key, value) in wanted {
                let found = there
                    .get(key)
                    .unwrap_or_else(|| panic!("no key {path}.{key}"));
                expect_keys(&format!("{path}.{key}"), value, found);
            }
        }
        (Value::Array(wanted), Value::Array(there)) => {
            assert!(!there.is_empty(), "{path} is empty");
            for found in there {
                expect_keys(&format!("{path}[]"), &wanted[0], found);
            }
        }
        (_, Value::Null)
        | (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_)) => {}
        (wanted, there) => panic!("{path} is {there}, of another kind than {wanted}"),
    }
}

#[test]
fn status_has_every_key_before_and_after_the_first_promotion() {
    let page = page();
    let example = block(section(&page, "`status --json`"), "json");
    let wanted: Value = serde_json::from_str(example).expect("the example is JSON");
    let scene = Scene::started(small());
    let ask = |node: usize| -> Value {
        let answer = scene
            .cluster
            .ctl(node, &["status", "--json"], BOUND)
            .expect("replctl runs");
        assert_eq!(answer.code, 0, "{}", answer.message());
        serde_json::from_str(&answer.stdout).expect("one JSON object")
    };
    let before = ask(0);
    expect_keys("status", &wanted, &before);
    assert_eq!(
        (&before["epoch"], &before["primary"]),
        (&Value::from(0), &Value::Null)
    );
    assert_eq!(before["role"], "Secondary");

    scene.promote(0);
    let primary = ask(0);
    expect_keys("status", &wanted, &primary);
    for (key, value) in [
        ("role", "Primary"),
        ("primary", "pbx-a"),
        ("suspended", "no"),
    ] {
        assert_eq!(primary[key], value, "{key}");
    }
    assert_eq!(primary["quorum"], true);
    let uri = primary["volumes"][0]["uri"].as_str().expect("a URI");
    let socket = scene.cluster.nbd_socket(0);
    assert_eq!(uri, format!("nbd+unix:///db?socket={}", socket.display()));
    expect_keys("status", &wanted, &ask(1));
}

#[test]
fn every_developers_command_is_there() {
    let page = page();
    let aliases = std::fs::read_to_string(workspace().join(".cargo/config.toml")).expect("aliases");
    let (mut all, mut present) = (BTreeSet::new(), BTreeSet::new());
    for row in rows(section(&page, "Commands for developers")) {
        let command = quoted(&row[0])[0];
        let mut words = command.split(' ');
        let (name, there) = match words.next() {
            Some("cargo") => {
                let alias = words.next().expect("a subcommand");
                let found = aliases
                    .lines()
                    .any(|line| line.starts_with(&format!("{alias} =")));
                (format!("cargo {alias}"), found)
            }
            Some(path) => (format!("file {path}"), workspace().join(path).is_file()),
            None => unreachable!("split gives one word at least"),
        };
        if there {
            present.insert(name.clone());
        }
        all.insert(name);
    }
    settle("cargo ", &present, &all);
}
