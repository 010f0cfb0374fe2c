//! Two of three are gone, and an operator lets the third go on alone. P4 holds per history: what one side writes never reaches the other.

use integration::{BOUND, Scene, small};
use tools::cluster::exit;

fn force(scene: &Scene, node: usize, line: &str) -> (i32, String) {
    scene.confirmed(node, &["promote", "--force"], line)
}

#[test]
fn the_last_node_goes_on_alone_when_it_is_told_to_and_never_meets_the_others_again() {
    let mut scene = Scene::serving(small());
    // With a live Primary in sight it can only be a mistake.
    assert_eq!(force(&scene, 1, "pbx\n").0, exit::OTHER_PRIMARY);
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 300);
    let streams = scene.finish(load);
    for node in [1, 2] {
        scene.await_caught_up(node, 0);
    }
    for node in [0, 1] {
        scene.cluster.kill(node).expect("killed");
    }
    let alone = ["promote", "--timeout", "1"];
    let refused = scene.cluster.ctl(2, &alone, BOUND).expect("replctl runs");
    assert_eq!(refused.code, exit::NO_QUORUM);
    assert_eq!(force(&scene, 2, "yes\n").0, exit::USAGE);
    assert_eq!(force(&scene, 2, "pbx\n"), (exit::DONE, String::new()));
    scene.verify(2);
    let load = scene.work(2, streams);
    scene.await_writes(&load, 300);

    // The others come back, and go on as the majority that they are. Neither side disturbs the other.
    for node in [0, 1] {
        scene.cluster.start(node).expect("the killed node starts");
    }
    scene.promote(0);
    scene.await_writes(&load, 300);
    scene.finish(load);
    for (node, peer) in [(2, 0), (2, 1), (0, 2), (1, 2)] {
        let name = scene.cluster.name(peer).to_owned();
        let result = scene
            .cluster
            .wait_status(node, "they stay apart", BOUND, |status| {
                status
                    .peer(&name)
                    .is_some_and(|p| p.connection.as_deref() == Some("StandAlone"))
                    && status.health == "degraded"
                    && status.health_reason.contains("another history")
            });
        result.unwrap_or_else(|error| panic!("{error}"));
    }
    scene.verify(2);
    assert_eq!(scene.cluster.status(0).expect("answers").role, "Primary");
    assert_eq!(scene.cluster.status(2).expect("answers").role, "Primary");

    // It stays alone over a restart, and needs no force any more.
    scene.cluster.kill(2).expect("killed");
    scene.cluster.start(2).expect("it starts again");
    scene.promote(2);
    scene.verify(2);

    // The others' data is given up: with new disks they are taken in, one after the other, and have everything. Its journal no
    // longer reaches back to the beginning, so it comes by a resync.
    for node in [0, 1] {
        scene.cluster.kill(node).expect("killed");
        std::fs::remove_dir_all(scene.cluster.data_dir(node)).expect("wiped");
        scene.cluster.create(node).expect("created anew");
        scene.cluster.start(node).expect("it starts");
        let name = scene.cluster.name(node).to_owned();
        let connected = scene.cluster.expect_done(2, &["connect", &name]);
        connected.unwrap_or_else(|error| panic!("{error}"));
        // It has to be there first, and to have said that it holds nothing.
        scene.await_status(2, &format!("{name} is there, and new"), |status| {
            let peer = status.peer(&name);
            peer.is_some_and(|p| p.disk_state.as_deref() == Some("Inconsistent"))
        });
        let (code, said) = scene.confirmed(2, &["replace", &name], &format!("{name}\n"));
        assert_eq!((code, said.as_str()), (exit::DONE, ""));
        scene.await_caught_up(node, 2);
    }
    scene.cluster.kill(2).expect("killed");
    scene.ends_with(0);
}
