//! `repl-fence` against real processes: the Primary dead, frozen, and busy. P1 (acknowledged is durable) and P4 (one writer), and
//! what the helper says and exits with; by its own name and as a fence agent.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use integration::{BOUND, Scene, roomy, small};

fn repl_fence(scene: &Scene) -> PathBuf {
    scene.cluster.programs().repld.with_file_name("repl-fence")
}

/// Runs `repl-fence` on a node; its exit code and what it said.
fn fence(scene: &Scene, node: usize, verb: &[&str]) -> (i32, String) {
    let output = Command::new(repl_fence(scene))
        .arg("--config")
        .arg(scene.cluster.config())
        .args(["--node", scene.cluster.name(node)])
        .args(verb)
        .output()
        .expect("repl-fence runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("text");
    (output.status.code().expect("an exit code"), said)
}

#[track_caller]
fn must(scene: &Scene, node: usize, verb: &[&str], said: &str) {
    let (code, text) = fence(scene, node, verb);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(said), "{text}");
}

/// Runs the fence agent as Pacemaker does: options on stdin.
fn agent(scene: &Scene, node: usize, lines: &str) -> (i32, String) {
    let link = scene.cluster.dir().join("fence_repl");
    if !link.exists() {
        std::os::unix::fs::symlink(repl_fence(scene), &link).expect("a link");
    }
    let mut child = Command::new(&link)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent starts");
    let config = scene.cluster.config().display();
    let local = scene.cluster.name(node);
    let text = format!("config={config}\nlocal_node={local}\n{lines}");
    let mut stdin = child.stdin.take().expect("it was asked for");
    stdin.write_all(text.as_bytes()).expect("it listens");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
    (output.status.code().expect("an exit code"), said)
}

#[test]
fn a_failover_from_a_dead_primary_loses_nothing_and_keeps_it_out() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 300);
    scene.kill_under(0, load);
    must(&scene, 1, &["failover"], "pbx-a is fenced; pbx-");
    let status = scene.cluster.status(1).expect("it answers");
    let primary = if status.primary.as_deref() == Some("pbx-b") {
        1
    } else {
        2
    };
    scene.verify(primary);

    scene.cluster.start(0).expect("it starts again");
    scene.await_caught_up(0, primary);
    let refused = scene
        .cluster
        .ctl(0, &["promote", "--timeout", "2"], BOUND)
        .expect("answers");
    assert_ne!(refused.code, 0);
    scene
        .cluster
        .expect_done(primary, &["demote"])
        .expect("done");
    let refused = scene
        .cluster
        .ctl(0, &["promote", "--timeout", "2"], BOUND)
        .expect("answers");
    assert_eq!(refused.code, 10, "{}", refused.message());
    assert!(refused.message().contains("repl-fence unfence pbx-a"));
    must(&scene, 0, &["unfence", "pbx-a"], "pbx-a is not fenced");
    scene.promote(0);
    scene.verify(0);
    scene.stop_and_compare(0);
}

#[test]
fn a_frozen_primary_is_fenced_and_its_clients_hear_nothing_more() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 300);
    scene.cluster.freeze(0).expect("frozen");
    must(&scene, 2, &["fence", "pbx-a"], "pbx-a is fenced");
    let before = scene.tally.writes();
    scene.cluster.thaw(0).expect("thawed");
    scene.dropped_since(before, load);
    scene.promote(2);
    scene.verify(2);
    scene.await_caught_up(0, 2);
    scene.stop_and_compare(2);
}

#[test]
fn a_busy_primary_is_fenced_and_what_is_not_sure_is_not_said() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 300);

    // Who is cut off can not know.
    for peer in ["pbx-a", "pbx-b"] {
        let cut = scene.cluster.expect_done(2, &["disconnect", peer]);
        cut.expect("cut off");
    }
    let (code, said) = fence(&scene, 2, &["fence", "pbx-a", "--timeout", "2"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("1 of 3 voters"), "{said}");
    let (code, said) = fence(&scene, 2, &["status"]);
    assert_eq!(code, 1, "{said}");
    for peer in ["pbx-a", "pbx-b"] {
        let back = scene.cluster.expect_done(2, &["connect", peer]);
        back.expect("back");
    }
    for (verb, code) in [
        (&["fence", "pbx-x"][..], 2),
        (&["fence", "pbx-b"], 1),
        (&["fence"], 2),
        (&[], 2),
    ] {
        let (found, said) = fence(&scene, 1, verb);
        assert_eq!(found, code, "{verb:?}: {said}");
    }
    scene.await_writes(&load, 200);

    must(&scene, 1, &["fence", "pbx-a"], "pbx-a is fenced");
    let before = scene.tally.writes();
    scene.dropped_since(before, load);
    must(&scene, 1, &["status"], "FENCED");
    must(&scene, 1, &["status", "--json"], "\"pbx-a\": true");
    must(&scene, 1, &["failover"], "is Primary of epoch");
    let primary = scene.cluster.status(1).expect("it answers").primary;
    assert_ne!(primary.as_deref(), Some("pbx-a"));
    let primary = if primary.as_deref() == Some("pbx-b") {
        1
    } else {
        2
    };
    scene.verify(primary);
    scene.await_caught_up(0, primary);
    scene.stop_and_compare(primary);
}

#[test]
fn the_fence_agent_does_what_pacemaker_asks() {
    let mut scene = Scene::serving(small());
    let (code, said) = agent(&scene, 1, "action=metadata\n");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("<resource-agent name=\"fence_repl\""));
    for (action, code) in [("monitor", 0), ("validate-all", 0), ("list", 0)] {
        let (found, said) = agent(&scene, 1, &format!("action={action}\n"));
        assert_eq!(found, code, "{action}: {said}");
        assert!(
            action != "list" || said == "pbx-a,\npbx-b,\npbx-c,\n",
            "{said}"
        );
    }
    let ask = |scene: &Scene, action: &str, expected: i32| {
        let lines = format!("action={action}\nnodename=x\nport=pbx-a\n");
        let (code, said) = agent(scene, 1, &lines);
        assert_eq!(code, expected, "{action}: {said}");
        said
    };
    ask(&scene, "status", 0);
    ask(&scene, "reboot", 1);
    scene.cluster.kill(0).expect("killed");
    ask(&scene, "off", 0);
    ask(&scene, "status", 2);
    let (_, said) = agent(&scene, 2, "action=list-status\n");
    assert_eq!(said, "pbx-a,,off\npbx-b,,on\npbx-c,,on\n");
    // Twice is as good as once.
    ask(&scene, "off", 0);
    ask(&scene, "on", 0);
    ask(&scene, "status", 0);

    // Alone it can not tell, and says neither.
    scene.cluster.kill(2).expect("killed");
    let alone = |status: &tools::cluster::Status| status.quorum == Some(false);
    let waited = scene.cluster.wait_status(1, "it is alone", BOUND, alone);
    waited.unwrap_or_else(|error| panic!("{error}"));
    ask(&scene, "status", 1);
    let lines = "action=off\nport=pbx-a\npower_timeout=1\n";
    let (code, said) = agent(&scene, 1, lines);
    assert_eq!(code, 1, "{said}");
    scene.cluster.kill(1).expect("killed");
    let (code, said) = agent(&scene, 1, "action=monitor\n");
    assert_eq!(code, 1, "{said}");
}
