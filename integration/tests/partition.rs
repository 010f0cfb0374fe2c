//! Live nodes lose sight of each other, by `replctl disconnect`. P4 (one writer), P5 (no taken-back reads), P7 (bounded stall).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::{BOUND, Scene, dropped, read_on, roomy};
use tools::cluster::exit;

/// Ends or restores replication between a node and some peers.
fn link(scene: &Scene, verb: &str, node: usize, peers: &[usize]) {
    for peer in peers {
        let peer = scene.cluster.name(*peer);
        let done = scene
            .cluster
            .ctl(node, &[verb, peer], BOUND)
            .expect("replctl runs");
        assert_eq!(done.code, exit::DONE, "{verb} {peer}: {}", done.message());
    }
}

#[test]
fn a_primary_that_is_cut_off_answers_nothing_once_another_one_serves() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 300);
    let reader = scene.open(0, "db");
    let over = AtomicBool::new(false);
    let streams = std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_on(reader, &over));
        link(&scene, "disconnect", 0, &[1, 2]);
        scene.promote(1);
        let promoted = Instant::now();
        // The new Primary moves on, well past what the old one knows.
        let mut client = scene.open(1, "recordings");
        for _ in 0..20 {
            client.flush().expect("the new Primary serves");
        }
        client.disconnect().expect("goodbye");
        // The old one has had more than a second of being wrong about itself.
        let seen = scene
            .cluster
            .wait_status(0, "the old Primary suspends", BOUND, |status| {
                status.suspended == "quorum" || status.role == "Secondary"
            });
        seen.expect("by its own clock");
        over.store(true, Ordering::Relaxed);
        let last = reading.join().expect("the reader");
        assert!(
            last < promoted,
            "a read was answered that was asked for {:?} after another node served",
            last - promoted
        );

        link(&scene, "connect", 0, &[1, 2]);
        dropped(load)
    });
    let load = scene.work(1, streams);
    scene.await_writes(&load, 200);
    scene.finish(load);
    scene.await_caught_up(0, 1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

#[test]
fn a_cut_off_secondary_is_promoted_in_vain_and_disturbs_nobody() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 200);
    link(&scene, "disconnect", 2, &[0, 1]);
    scene.await_writes(&load, 100);
    let refused = scene
        .cluster
        .ctl(2, &["promote", "--timeout", "4"], BOUND)
        .expect("answers");
    assert_eq!(refused.code, exit::NO_QUORUM, "{}", refused.message());
    link(&scene, "connect", 2, &[0, 1]);
    scene.await_writes(&load, 200);
    scene.finish(load);
    assert_eq!(scene.cluster.status(0).expect("answers").role, "Primary");
    scene.await_caught_up(2, 0);
    scene.verify(0);
    scene.stop_and_compare(0);
}

#[test]
fn links_that_come_and_go_one_at_a_time_stop_nobody() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.busy_streams());
    for (left, right) in [(0, 1), (1, 2), (2, 0), (1, 0)] {
        link(&scene, "disconnect", left, &[right]);
        // Long enough for the lease and for connections to be given up.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            scene.await_writes(&load, 50);
        }
        link(&scene, "connect", left, &[right]);
        scene.await_writes(&load, 50);
    }
    scene.finish(load);
    for node in [1, 2] {
        scene.await_caught_up(node, 0);
    }
    scene.verify(0);
    scene.stop_and_compare(0);
}
