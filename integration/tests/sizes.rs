//! Clusters of other sizes than three: one node, five data nodes, and witnesses beside them. Whatever may be lost is lost, with the Primary
//! among it, and whoever is left goes on with everything that was acknowledged (P1, P7).

use integration::{BOUND, MIB, Scene, small};
use tools::cluster::{Spec, Status, exit};

fn of(data: usize, witnesses: usize) -> Spec {
    let data = ["pbx-a", "pbx-b", "pbx-c", "pbx-d", "pbx-e"]
        .into_iter()
        .take(data);
    let witnesses = ["pbx-w", "pbx-x", "pbx-y"].into_iter().take(witnesses);
    Spec {
        nodes: data.chain(witnesses.clone()).map(String::from).collect(),
        witnesses: witnesses.map(String::from).collect(),
        journal_bytes: 64 * MIB,
        ..small()
    }
}

/// Loses some nodes under load, the Primary first, goes on with another one, and takes all of them back.
fn lose(scene: &mut Scene, gone: &[usize], next: usize) {
    let load = scene.work(gone[0], scene.calm_streams());
    scene.await_writes(&load, 60);
    for &node in &gone[1..] {
        scene.cluster.kill(node).expect("killed");
    }
    // Those that are left are as many as it takes.
    scene.await_writes(&load, 60);
    let streams = scene.kill_under(gone[0], load);
    scene.promote(next);
    scene.verify(next);
    let load = scene.work(next, streams);
    scene.await_writes(&load, 60);
    for &node in gone {
        scene.cluster.start(node).expect("it starts again");
    }
    scene.await_writes(&load, 30);
    scene.finish(load);
    for &node in gone {
        if scene.cluster.is_witness(node) {
            continue;
        }
        let name = scene.cluster.name(node).to_owned();
        let counts = |status: &Status| {
            let peer = status.peer(&name);
            peer.is_some_and(|p| p.up_to_date() && p.membership.as_deref() == Some("member"))
        };
        let what = format!("{name} counts again");
        let result = scene.cluster.wait_status(next, &what, BOUND, counts);
        result.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn done(scene: &Scene, node: usize, verb: &[&str]) {
    let answer = scene.cluster.ctl(node, verb, BOUND).expect("answers");
    assert_eq!(answer.code, exit::DONE, "{}", answer.message());
}

#[test]
fn one_node_alone_keeps_what_it_acknowledged() {
    let mut scene = Scene::serving(of(1, 0));
    for _ in 0..3 {
        let load = scene.work(0, scene.calm_streams());
        scene.await_writes(&load, 100);
        scene.kill_under(0, load);
        scene.cluster.start(0).expect("it starts again");
        scene.promote(0);
        scene.verify(0);
    }
    scene.stop_and_compare(0);
}

#[test]
fn five_data_nodes_go_on_without_any_two() {
    let mut scene = Scene::serving(of(5, 0));
    lose(&mut scene, &[0, 1], 2);
    lose(&mut scene, &[2, 4], 3);
    lose(&mut scene, &[3, 0], 4);
    scene.stop_and_compare(4);
}

#[test]
fn three_data_nodes_and_two_witnesses_go_on_without_one_of_each_and_down_to_one() {
    let mut scene = Scene::serving(of(3, 2));
    lose(&mut scene, &[0, 3], 1);
    // Both witnesses; a vote of each data node is needed then.
    let load = scene.work(1, scene.calm_streams());
    scene.await_writes(&load, 60);
    for witness in [3, 4] {
        scene.cluster.kill(witness).expect("killed");
    }
    scene.await_writes(&load, 60);
    scene.finish(load);
    for witness in [3, 4] {
        scene.cluster.start(witness).expect("it starts again");
    }
    lose(&mut scene, &[1, 4], 2);
    // And down to one data node with the witnesses: one is dropped for good by an operator, then the Primary is lost.
    scene.cluster.kill(0).expect("killed");
    done(&scene, 2, &["drop", "pbx-a"]);
    lose(&mut scene, &[2], 1);
    scene.cluster.start(0).expect("it starts again");
    done(&scene, 1, &["return", "pbx-a"]);
    scene.stop_and_compare(1);
}

#[test]
fn five_data_nodes_and_three_witnesses_go_on_without_any_three() {
    let mut scene = Scene::serving(of(5, 3));
    lose(&mut scene, &[0, 1, 5], 2);
    lose(&mut scene, &[2, 6, 7], 0);
    scene.stop_and_compare(0);
}
