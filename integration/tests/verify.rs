//! `replctl verify` with real processes: bytes are flipped in a node's stores behind its back; they are named, nothing else is,
//! they are mended, and clients notice nothing.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use integration::{BOUND, MIB, Scene, small};
use serde_json::Value;
use tools::cluster::{Spec, exit};

fn flip(path: &Path, block: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.expect("it is there");
    let (mut byte, at) = ([0], block * 4096 + 1234);
    file.read_exact_at(&mut byte, at).expect("as long");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");
    file.sync_all().expect("on the disk");
}

/// The exit code, and what it came to.
fn verify(scene: &Scene, node: usize, options: &[&str]) -> (i32, Value) {
    let verb = [&["verify", "--json"], options].concat();
    let finished = scene.cluster.ctl(node, &verb, BOUND).expect("replctl runs");
    let value = serde_json::from_str(&finished.stdout);
    let value = value.unwrap_or_else(|e| panic!("{e}: {}", finished.message()));
    (finished.code, value)
}

/// Node, volume and block of each bad one.
fn found(result: &Value) -> Vec<(String, String, u64)> {
    let text = |v: &Value| v.as_str().expect("a text").to_owned();
    let findings = result["findings"].as_array().expect("a list");
    let mut found: Vec<_> = findings
        .iter()
        .map(|f| {
            assert_eq!(f["kind"], "bad", "{f}");
            let block = f["block"].as_u64().expect("a number");
            (text(&f["node"]), text(&f["volume"]), block)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn flipped_bytes_are_found_and_mended_under_load_and_nothing_else_is_reported() {
    // Nobody writes to the last volume.
    let mut volumes = small().volumes;
    volumes.push(("still".into(), 8 * MIB));
    let mut scene = Scene::serving(Spec { volumes, ..small() });
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 400);
    let streams = scene.finish(load);
    for node in 1..3 {
        scene.await_caught_up(node, 0);
    }
    let (code, result) = verify(&scene, 1, &[]);
    assert_eq!(
        (code, &result["clean"]),
        (exit::DONE, &Value::Bool(true)),
        "{result}"
    );
    let counts = |what: &str| result["counts"][what].as_u64().expect("a number");
    let (wire, bytes) = (counts("wire_bytes"), counts("bytes"));
    assert!(
        bytes >= 56 * MIB && wire * 500 < bytes,
        "{wire} bytes on the wire for {bytes}"
    );

    // At rest: some of what was written, on a Secondary.
    let names: Vec<String> = (0..3).map(|n| scene.cluster.name(n).to_owned()).collect();
    let mut wrong = Vec::new();
    for block in [0, 3, 700, 4095] {
        flip(&scene.cluster.store(2, "db"), block);
        wrong.push((names[2].clone(), "db".to_owned(), block));
    }
    let (code, result) = verify(&scene, 0, &[]);
    assert_eq!(code, exit::FAILED);
    assert_eq!(found(&result), wrong);
    assert_eq!(result["counts"]["left_blocks"], 4);
    let (code, result) = verify(&scene, 0, &["--repair"]);
    assert_eq!(code, exit::DONE, "{result}");
    assert_eq!(found(&result), wrong);

    // Under load, also on the Primary.
    let load = scene.work(0, streams);
    scene.await_writes(&load, 100);
    let mut wrong = Vec::new();
    for (node, blocks) in [(0, [5, 900]), (1, [17, 2047])] {
        for block in blocks {
            flip(&scene.cluster.store(node, "still"), block);
            wrong.push((names[node].clone(), "still".to_owned(), block));
        }
    }
    let (code, result) = verify(&scene, 2, &[]);
    assert_eq!(
        (code, found(&result)),
        (exit::FAILED, wrong.clone()),
        "{result}"
    );
    let (code, result) = verify(&scene, 1, &["--repair"]);
    assert_eq!((code, found(&result)), (exit::DONE, wrong), "{result}");
    for node in 0..3 {
        let (code, result) = verify(&scene, node, &[]);
        assert_eq!((code, found(&result)), (exit::DONE, vec![]), "{result}");
        assert_eq!(result["missed"], Value::Array(vec![]));
    }
    scene.await_writes(&load, 100);
    scene.finish(load);

    // Every node knows the date, also after a restart.
    scene.cluster.terminate(2).expect("stopped");
    scene.cluster.start(2).expect("started");
    scene.await_caught_up(2, 0);
    for node in 0..3 {
        let status = scene.cluster.expect_done(node, &["status", "--json"]);
        let status: Value = serde_json::from_str(&status.expect("a status").stdout).expect("JSON");
        let verify = &status["verify"];
        assert!(verify["last_clean"].is_string(), "{verify}");
        assert!(verify["next"].is_string(), "{verify}");
        assert_eq!(verify["last"]["clean"], true, "{verify}");
    }
    scene.verify(0);
    scene.stop_and_compare(0);
}

#[test]
fn it_says_who_was_away_and_can_be_stopped() {
    let mut scene = Scene::serving(small());
    scene.cluster.terminate(2).expect("stopped");
    let (code, result) = verify(&scene, 0, &["--repair"]);
    assert_eq!(code, exit::FAILED);
    assert_eq!(result["missed"], serde_json::json!([scene.cluster.name(2)]));
    assert_eq!(result["finished"], true);
    scene.cluster.start(2).expect("started");
    scene.await_caught_up(2, 0);
    // One at a time; the slow one is ended, and whoever waits for it hears of that.
    let slow = std::thread::scope(|threads| {
        let slow = threads.spawn(|| verify(&scene, 0, &["--rate", "64KiB"]));
        let running = |status: &Value| status["verify"]["running"]["by"].is_string();
        let begun = std::time::Instant::now();
        loop {
            let status = scene.cluster.expect_done(1, &["status", "--json"]);
            let status = serde_json::from_str(&status.expect("a status").stdout).expect("JSON");
            if running(&status) {
                break;
            }
            assert!(begun.elapsed() < BOUND, "{status}");
        }
        let second = scene
            .cluster
            .ctl(1, &["verify"], BOUND)
            .expect("replctl runs");
        assert_eq!(second.code, exit::FAILED);
        assert!(
            second.stderr.contains("is verifying already"),
            "{}",
            second.stderr
        );
        let done = scene.cluster.ctl(0, &["verify", "--stop"], BOUND);
        assert_eq!(done.expect("replctl runs").code, exit::DONE);
        slow.join().expect("it ends")
    });
    assert_eq!(
        (slow.0, &slow.1["finished"]),
        (exit::FAILED, &Value::Bool(false))
    );
    // On a node that is not Primary a timer has nothing to do.
    let idle = scene.cluster.ctl(1, &["verify", "--if-primary"], BOUND);
    assert_eq!(idle.expect("replctl runs").code, exit::DONE);
    assert!(scene.cluster.data_dir(1).join("verify.json").exists());
    scene.stop_and_compare(0);
}

#[test]
fn one_that_is_due_begins_by_itself() {
    let mut scene = Scene::started(small());
    scene.cluster.terminate_all().expect("stopped");
    let config = scene.cluster.config().to_owned();
    let text = fs::read_to_string(&config).expect("a config");
    fs::write(
        &config,
        format!("{text}\n[scrub]\nevery = \"1s\"\nrate = \"0\"\n"),
    )
    .expect("written");
    // The first one begins with the reign, and the next not before a minute has passed.
    flip(&scene.cluster.store(1, "db"), 11);
    scene.cluster.start_all().expect("started");
    scene.promote(0);
    let begun = std::time::Instant::now();
    loop {
        let status = scene.cluster.expect_done(1, &["status", "--json"]);
        let status: Value = serde_json::from_str(&status.expect("a status").stdout).expect("JSON");
        if status["integrity"]["repaired_blocks"] == 1 && status["verify"]["last"]["clean"] == true
        {
            break;
        }
        assert!(begun.elapsed() < BOUND, "{status}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    scene.stop_and_compare(0);
}
