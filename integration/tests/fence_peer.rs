//! Handlers of DRBD's kind with real processes, both ways: `repl-fence fence-peer` is called as one, and `repld` of two nodes calls one
//! that really kills the other node. P1 (acknowledged is durable) and P4 (one writer) throughout. And what a Primary does about itself
//! when its lease is over.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use integration::{BOUND, Scene, dropped, roomy, small};
use tempfile::TempDir;
use tools::cluster::{Spec, exit};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// Calls `repl-fence fence-peer` on a node as DRBD would, for a peer; its exit code and what it said. What can be done has the time
/// for it on a slow machine as well; what can not is waited for in vain.
fn fence_peer(scene: &Scene, node: usize, peer: usize, seconds: &str) -> (i32, String) {
    let mut command = Command::new(scene.cluster.programs().repld.with_file_name("repl-fence"));
    command.arg("--config").arg(scene.cluster.config());
    command
        .args(["fence-peer", "--timeout", seconds])
        .env_clear();
    command.env("DRBD_RESOURCE", "pbx");
    command.env("DRBD_MY_NODE_ID", node.to_string());
    command.env("DRBD_PEER_NODE_ID", peer.to_string());
    for id in [A, B, C] {
        command.env(format!("DRBD_NODE_ID_{id}"), scene.cluster.name(id));
    }
    let output = command.output().expect("repl-fence runs");
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).expect("text");
    (output.status.code().expect("an exit code"), said)
}

#[test]
fn repl_fence_answers_as_a_handler_for_what_it_verified_and_nothing_else() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(A, scene.busy_streams());
    scene.await_writes(&load, 200);
    // A Primary that lives is not fenced by this; a Secondary that is connected knows that it is.
    assert_eq!(fence_peer(&scene, B, A, "20").0, 6);
    assert_eq!(fence_peer(&scene, A, C, "20").0, 4);
    scene.await_status(C, "it is fenced", |status| {
        status.health_reason.contains("this node is fenced")
    });
    scene.await_writes(&load, 100);
    let (code, said) = fence_peer(&scene, A, A, "3");
    assert_eq!(code, 1, "{said}");

    // A frozen Primary is fenced without its help.
    scene.cluster.freeze(A).expect("frozen");
    let (code, said) = fence_peer(&scene, B, A, "20");
    assert!(
        code == 5 && said.contains("was not reached"),
        "{code}: {said}"
    );
    let before = scene.tally.writes();
    scene.cluster.thaw(A).expect("thawed");
    scene.dropped_since(before, load);
    scene.promote(B);
    scene.verify(B);

    // Alone nothing can be verified, and that is said.
    scene.cluster.kill(A).expect("killed");
    scene.cluster.kill(C).expect("killed");
    scene.await_gone(B, C);
    let (code, said) = fence_peer(&scene, B, C, "3");
    assert_eq!(code, 1, "{said}");
    scene.cluster.kill(B).expect("killed");
    assert_eq!(fence_peer(&scene, B, C, "3").0, 1);
}

/// Two nodes, and a handler that kills the process of the peer, whose number lies in `PLACE/NAME`, if it is to: then it ends with
/// `PLACE/code`.
fn two(place: &Path) -> Spec {
    let handler = place.join("handler");
    let script = format!(
        "#!/bin/sh\ncd {}\neval name=\\$DRBD_NODE_ID_$DRBD_PEER_NODE_ID\necho \"$name\" >> calls\n\
         if [ \"$(cat code)\" = 7 ]; then kill -9 \"$(cat \"$name\")\" || exit 1; fi\nexit \"$(cat code)\"\n",
        place.display()
    );
    std::fs::write(&handler, script).expect("written");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&handler, mode).expect("a program");
    Spec {
        nodes: ["pbx-a", "pbx-b"].map(String::from).to_vec(),
        more: format!("\n[fencing]\nhandler = \"{}\"\n", handler.display()),
        ..roomy()
    }
}

/// The handler ends with this code from now on, and finds the nodes' processes.
fn prepare(scene: &Scene, place: &Path, code: i32) {
    std::fs::write(place.join("code"), code.to_string()).expect("written");
    for node in [A, B] {
        let pid = scene.cluster.pid(node).unwrap_or(0).to_string();
        std::fs::write(place.join(scene.cluster.name(node)), pid).expect("written");
    }
}

fn calls(place: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(place.join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn two_nodes_go_on_by_themselves_when_a_handler_switches_the_lost_one_off() {
    let dir = TempDir::new().expect("a directory");
    let place = dir.path();
    let mut scene = Scene::serving(two(place));
    prepare(&scene, place, 7);
    let load = scene.work(A, scene.calm_streams());
    scene.await_writes(&load, 100);

    // The Secondary hangs: it is killed, and the Primary goes on.
    scene.cluster.freeze(B).expect("frozen");
    scene.await_membership(A, B, "dropped");
    scene.await_writes(&load, 100);
    assert_eq!(calls(place), ["pbx-b"]);
    scene.cluster.kill(B).expect("it was killed");
    scene.cluster.start(B).expect("it starts again");
    prepare(&scene, place, 7);
    scene.await_membership(A, B, "member");
    scene.await_writes(&load, 50);
    scene.await_caught_up(B, A);

    // The Primary hangs: the promotion of the other one kills it.
    scene.cluster.freeze(A).expect("frozen");
    scene.promote(B);
    assert_eq!(calls(place), ["pbx-b", "pbx-a"]);
    let streams = scene.kill_under(A, load);
    scene.ends_with_both(B, A, streams);
}

#[test]
fn a_handler_that_is_not_certain_leaves_io_waiting_until_the_peer_is_back() {
    let dir = TempDir::new().expect("a directory");
    let place = dir.path();
    let mut scene = Scene::serving(two(place));
    prepare(&scene, place, 5);
    let load = scene.work(A, scene.calm_streams());
    scene.await_writes(&load, 100);
    scene.cluster.freeze(B).expect("frozen");
    scene.await_status(A, "why it waits is told", |status| {
        status.suspended == "quorum" && status.health_reason.contains("ended with 5")
    });
    scene.cluster.thaw(B).expect("thawed");
    scene.await_writes(&load, 100);
    scene.await_status(A, "all is well", |status| status.health == "ok");
    assert_eq!(calls(place), ["pbx-b"]);

    // A promotion that it does not help says so.
    let streams = scene.finish(load);
    scene.await_caught_up(B, A);
    scene.cluster.freeze(A).expect("frozen");
    let promote = ["promote", "--timeout", "20"];
    let answer = scene.cluster.ctl(B, &promote, BOUND).expect("answers");
    assert_eq!(answer.code, exit::NO_QUORUM);
    let said = answer.message();
    assert!(
        said.contains("the fence-peer handler ended with 5"),
        "{said}"
    );
    scene.cluster.thaw(A).expect("thawed");
    let load = scene.work(A, streams);
    scene.await_writes(&load, 50);
    scene.finish(load);
    scene.await_caught_up(B, A);
    scene.verify(A);
    scene.stop_and_compare(A);
}

#[test]
fn a_primary_without_a_lease_drops_its_clients_and_lets_the_watchdog_starve() {
    let dir = TempDir::new().expect("a directory");
    let device = dir.path().join("watchdog");
    std::fs::write(&device, "").expect("written");
    let mut scene = Scene::serving(Spec {
        policy: "disconnect_clients_after_ms = 1000\n".into(),
        more: format!(
            "\n[watchdog]\ndevice = \"{}\"\nafter_ms = 1500\n",
            device.display()
        ),
        ..small()
    });
    let load = scene.work(A, scene.calm_streams());
    scene.await_writes(&load, 100);
    for peer in [B, C] {
        scene.cluster.kill(peer).expect("killed");
    }
    drop(dropped(load));
    // The three share the device; two are gone, and the third one feeds it no more.
    scene.await_logged(A, "the watchdog is not fed any more");
    let bytes = || std::fs::metadata(&device).expect("it is there").len();
    let before = bytes();
    scene.cluster.kill(A).expect("killed");
    assert_eq!(bytes(), before);
    scene.cluster.start_all().expect("started");
    scene.promote(A);
    scene.verify(A);
    scene.stop_and_compare(A);
    // Whoever is stopped while it is well disarms it.
    assert_eq!(std::fs::read(&device).expect("read").last(), Some(&b'V'));
}
