//! What `replctl` says and exits with, where no `repld` runs.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

fn replctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_replctl"))
        .args(args)
        .output()
        .expect("replctl starts")
}

/// Exits with `code`, says one line that contains `fragments`, and nothing on stdout.
#[track_caller]
fn refused(args: &[&str], code: i32, fragments: &[&str]) {
    let output = replctl(args);
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(output.stdout.is_empty());
    for fragment in fragments {
        assert!(text.contains(fragment), "{fragment:?} is not in {text:?}");
    }
}

fn write_config(dir: &Path) -> String {
    let file = dir.join("pbx.toml");
    let mut text = "resource = \"r\"\njournal = { size = \"16MiB\" }\n".to_owned();
    for (name, port) in [("a", 7001), ("b", 7002)] {
        text.push_str(&format!(
            "[[node]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\ndata_dir = \"{0}/%n\"\n\
             run_dir = \"{0}/%n/run\"\n",
            dir.display()
        ));
    }
    text.push_str("[[volume]]\nname = \"db\"\nsize = \"1MiB\"\n");
    std::fs::write(&file, text).expect("the config is written");
    file.display().to_string()
}

#[test]
fn help_names_every_verb() {
    let output = replctl(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let verbs = [
        "create",
        "status",
        "promote",
        "demote",
        "connect",
        "disconnect",
        "events",
        "demo",
    ];
    for word in verbs
        .iter()
        .chain(&["--config", "--node", "/etc/replicator/pbx.toml", "17"])
    {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    for verb in verbs {
        assert_eq!(replctl(&[verb, "--help"]).status.code(), Some(0));
    }
}

#[test]
fn usage_errors_exit_with_2() {
    refused(&[], 2, &["no verb is given"]);
    refused(&["frobnicate"], 2, &["frobnicate", "replctl --help"]);
    refused(&["status", "--jsno"], 2, &["--jsno", "--json"]);
    refused(&["connect"], 2, &["<PEER>"]);
    refused(&["promote", "--timeout", "soon"], 2, &["soon"]);
    refused(
        &["--config", "/nonexistent", "status"],
        2,
        &["/nonexistent", "--config FILE"],
    );

    let dir = TempDir::new().unwrap();
    let config = write_config(dir.path());
    refused(
        &["--config", &config, "--node", "x", "status"],
        2,
        &["\"x\"", "a, b"],
    );
    refused(
        &["--config", &config, "--node", "a", "connect", "a"],
        2,
        &["peers of a are b"],
    );
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("resource", "resorce")).unwrap();
    refused(
        &["--config", &config, "status"],
        2,
        &["pbx.toml:1: ", "\"resource\""],
    );
}

#[test]
fn without_repld_they_exit_with_3() {
    let dir = TempDir::new().unwrap();
    let config = write_config(dir.path());
    for verb in [
        &["status"][..],
        &["status", "--json", "--watch"],
        &["promote"],
        &["demote", "--force"],
        &["connect", "b"],
        &["disconnect", "b"],
        &["events", "--json"],
    ] {
        let args = [&["--config", &config, "--node", "a"], verb].concat();
        refused(
            &args,
            3,
            &["repld is not running", "admin.sock does not exist"],
        );
    }
    std::fs::create_dir_all(dir.path().join("a/run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("a/run/admin.sock")).unwrap());
    refused(
        &["--config", &config, "--node", "a", "status"],
        3,
        &["has nobody listening"],
    );
}

#[test]
fn a_forced_promotion_wants_the_name_of_the_resource() {
    let dir = TempDir::new().unwrap();
    let config = write_config(dir.path());
    let args = ["--config", &config, "--node", "a", "promote", "--force"];
    for (line, code, words) in [
        ("", 2, "as one line on stdin"),
        ("yes\n", 2, "as one line on stdin"),
        ("r", 3, "repld is not running"),
        ("r\n", 3, "repld is not running"),
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_replctl"))
            .args(args)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(line.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line:?}: {text}");
        assert!(text.contains(words) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn create_is_silent_and_refuses_to_do_it_twice() {
    let dir = TempDir::new().unwrap();
    let config = write_config(dir.path());
    let args = ["create", "--config", &config, "--node", "a"];
    let output = replctl(&args);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    refused(&args, 1, &["a/meta exists", "--wipe"]);
    let output = replctl(&[&args[..], &["--wipe"]].concat());
    assert_eq!(output.status.code(), Some(0));
}
