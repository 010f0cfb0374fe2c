//! Two data nodes and a witness go on after losing any one of them, and a node that lost its disks is replaced. P1
//! (acknowledged is durable) at every step.

use integration::{BOUND, Scene, roomy};
use tools::cluster::{Spec, exit};

/// pbx-a and pbx-b keep the data, pbx-w votes.
fn with_witness() -> Spec {
    Spec {
        nodes: ["pbx-a", "pbx-b", "pbx-w"].map(String::from).to_vec(),
        witnesses: vec!["pbx-w".into()],
        ..roomy()
    }
}

const A: usize = 0;
const B: usize = 1;
const W: usize = 2;

fn replace(scene: &Scene, primary: usize, peer: &str, line: &str) -> (i32, String) {
    scene.confirmed(primary, &["replace", peer], line)
}

#[test]
fn two_data_nodes_and_a_witness_go_on_without_any_one_of_them() {
    let mut scene = Scene::serving(with_witness());
    let load = scene.work(A, scene.busy_streams());
    scene.await_writes(&load, 300);

    // The Primary dies.
    let streams = scene.kill_under(A, load);
    scene.promote(B);
    scene.verify(B);
    let load = scene.work(B, streams);
    scene.await_writes(&load, 300);
    scene.await_membership(B, A, "dropped");
    scene.cluster.start(A).expect("it starts again");
    scene.await_caught_up(A, B);
    scene.await_membership(B, A, "member");
    scene.await_writes(&load, 200);

    // The witness dies.
    scene.cluster.kill(W).expect("killed");
    scene.await_writes(&load, 300);
    scene.cluster.start(W).expect("it starts again");
    let settled = scene
        .cluster
        .wait_status(B, "all is well", BOUND, |status| status.health == "ok");
    settled.unwrap_or_else(|error| panic!("{error}"));

    // The Secondary dies: writes wait, and go on without it.
    scene.cluster.kill(A).expect("killed");
    scene.await_writes(&load, 300);
    scene.await_membership(B, A, "dropped");
    let streams = scene.finish(load);
    scene.verify(B);

    // What it missed makes it no Primary, with the witness's vote or without.
    scene.cluster.kill(B).expect("killed");
    scene.cluster.start(A).expect("it starts again");
    let alone = ["promote", "--timeout", "4"];
    let refused = scene.cluster.ctl(A, &alone, BOUND).expect("answers");
    assert!(
        [exit::NO_DATA, exit::NO_QUORUM].contains(&refused.code),
        "{}",
        refused.message()
    );
    scene.cluster.start(B).expect("it starts again");
    scene.promote(B);
    scene.await_membership(B, A, "member");
    let load = scene.work(B, streams);
    scene.await_writes(&load, 200);
    let streams = scene.kill_under(B, load);
    scene.promote(A);
    scene.verify(A);
    drop(streams);
    scene.cluster.start(B).expect("it starts again");
    scene.await_caught_up(B, A);
    scene.await_membership(A, B, "member");
    scene.stop_and_compare(A);
}

#[test]
fn a_node_that_lost_its_disks_is_replaced_on_line() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 100);
    scene.cluster.kill(2).expect("killed");
    std::fs::remove_dir_all(scene.cluster.data_dir(2)).expect("wiped");
    scene.cluster.create(2).expect("created anew");
    scene.cluster.start(2).expect("it starts");
    scene.await_membership(0, 2, "out");

    let returns = ["return", "pbx-c"];
    let refused = scene.cluster.ctl(0, &returns, BOUND).expect("answers");
    assert_eq!(refused.code, exit::FAILED, "{}", refused.message());
    assert!(refused.message().contains("replctl replace"));
    let (code, said) = replace(&scene, 0, "pbx-c", "yes\n");
    assert_eq!(code, exit::USAGE, "{said}");
    let (code, said) = replace(&scene, 1, "pbx-c", "pbx-c\n");
    assert_eq!(code, exit::OTHER_PRIMARY, "{said}");
    let (code, said) = replace(&scene, 0, "pbx-c", "pbx-c\n");
    assert_eq!((code, said.as_str()), (exit::DONE, ""));
    scene.await_membership(0, 2, "member");

    scene.node_2_counts(load);
}

#[test]
fn an_operator_drops_a_node_and_takes_it_back() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.calm_streams());
    let dropped = scene.cluster.ctl(0, &["drop", "pbx-b"], BOUND);
    let dropped = dropped.expect("answers");
    assert_eq!(dropped.code, exit::DONE, "{}", dropped.message());
    assert!(
        dropped
            .stderr
            .contains("2 data nodes and 0 witnesses are left"),
        "{}",
        dropped.stderr
    );
    scene.await_membership(0, 1, "out");
    let refused = scene.cluster.ctl(1, &["promote", "--timeout", "1"], BOUND);
    assert_ne!(refused.expect("answers").code, exit::DONE);
    // The next one would be one too many.
    scene.cluster.kill(2).expect("killed");
    let away = scene
        .cluster
        .wait_status(0, "pbx-c is away", BOUND, |status| {
            let peer = status.peer("pbx-c");
            peer.is_some_and(|p| p.connection.as_deref() == Some("Connecting"))
        });
    away.unwrap_or_else(|error| panic!("{error}"));
    let refused = scene
        .cluster
        .ctl(0, &["drop", "pbx-c", "--timeout", "5"], BOUND);
    assert_eq!(refused.expect("answers").code, exit::NO_QUORUM);
    scene.cluster.start(2).expect("it starts again");
    scene.await_writes(&load, 50);
    let returned = scene.cluster.ctl(0, &["return", "pbx-b"], BOUND);
    let returned = returned.expect("answers");
    assert_eq!(returned.code, exit::DONE, "{}", returned.message());
    scene.await_membership(0, 1, "member");
    scene.finish(load);
    scene.verify(0);
    scene.stop_and_compare(0);
}
