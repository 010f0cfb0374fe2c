//! Links that swallow what is sent over them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::{BOUND, Network, Scene, dropped, read_on, roomy};
use tools::cluster::{Spec, exit};
use tools::demo::workload::Running;

fn serving() -> (Network, Scene) {
    let network = Network::new(3);
    let spec = Spec {
        hosts: network.hosts(),
        ..roomy()
    };
    (network, Scene::serving(spec))
}

/// Load goes on for longer than a lease and than a silent connection is kept.
fn outlast(scene: &mut Scene, load: &Running) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        scene.await_writes(load, 20);
    }
}

pub(crate) fn a_cut_between_any_two_nodes_stops_nobody() {
    let (network, mut scene) = serving();
    let load = scene.work(0, scene.calm_streams());
    for (left, right) in [(0, 1), (1, 2), (2, 0)] {
        network.cut(left, right);
        outlast(&mut scene, &load);
        network.heal();
        scene.await_writes(&load, 50);
    }
    scene.finish(load);
    assert_eq!(scene.cluster.status(0).expect("answers").role, "Primary");
    for node in [1, 2] {
        scene.await_caught_up(node, 0);
    }
    scene.verify(0);
    scene.stop_and_compare(0);
}

pub(crate) fn a_primary_cut_off_answers_nothing_once_another_one_serves() {
    let (network, mut scene) = serving();
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 300);
    let reader = scene.open(0, "db");
    let over = AtomicBool::new(false);
    let streams = std::thread::scope(|scope| {
        let reading = scope.spawn(|| read_on(reader, &over));
        network.isolate(0);
        scene.promote(1);
        let promoted = Instant::now();
        let mut client = scene.open(1, "recordings");
        for _ in 0..20 {
            client.flush().expect("the new Primary serves");
        }
        client.disconnect().expect("goodbye");
        let suspended = scene
            .cluster
            .wait_status(0, "the old Primary suspends", BOUND, |status| {
                status.suspended == "quorum" && status.health == "down"
            });
        let reason = suspended.expect("by its own clock").health_reason;
        assert!(reason.contains("majority"), "{reason}");
        scene.await_logged(0, "the lease is over");
        over.store(true, Ordering::Relaxed);
        let last = reading.join().expect("the reader");
        assert!(
            last < promoted,
            "a read was answered that was asked for {:?} after another node served",
            last - promoted
        );
        network.heal();
        dropped(load)
    });
    let load = scene.work(1, streams);
    scene.await_writes(&load, 200);
    scene.finish(load);
    scene.await_caught_up(0, 1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

pub(crate) fn a_secondary_cut_off_is_promoted_in_vain_and_disturbs_nobody() {
    let (network, mut scene) = serving();
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 200);
    network.isolate(2);
    outlast(&mut scene, &load);
    let refused = scene
        .cluster
        .ctl(2, &["promote", "--timeout", "3"], BOUND)
        .expect("answers");
    assert_eq!(refused.code, exit::NO_QUORUM, "{}", refused.message());
    let lonely = scene.cluster.status(2).expect("answers");
    assert_eq!(lonely.health, "down", "{lonely:?}");
    assert!(lonely.health_reason.contains("majority"), "{lonely:?}");
    let degraded = scene
        .cluster
        .wait_status(0, "redundancy is lost", BOUND, |status| {
            status.health == "degraded"
        });
    degraded.expect("it says so");
    network.heal();
    scene.await_writes(&load, 100);
    scene.finish(load);
    assert_eq!(scene.cluster.status(0).expect("answers").role, "Primary");
    scene.await_caught_up(2, 0);
    scene.verify(0);
    scene.stop_and_compare(0);
}

pub(crate) fn a_link_that_loses_one_direction_harms_nothing() {
    let (network, mut scene) = serving();
    let load = scene.work(0, scene.calm_streams());
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1)] {
        network.cut_one_way(from, to);
        outlast(&mut scene, &load);
        network.heal();
        scene.await_writes(&load, 50);
    }
    scene.finish(load);
    for node in [1, 2] {
        scene.await_caught_up(node, 0);
    }
    scene.verify(0);
    // The Primary hears all and none hears it: it answers nothing once its lease is over, and another one is promoted.
    network.cut_one_way(0, 1);
    network.cut_one_way(0, 2);
    scene.promote(2);
    scene.verify(2);
    network.heal();
    scene.await_caught_up(0, 2);
    scene.await_caught_up(1, 2);
    scene.stop_and_compare(2);
}
