//! A node that was away for longer than the journal reaches back, whose stage fails or hangs while it is given what it lacks.

use std::time::Duration;

use integration::{BOUND, Disk, FailAt, MIB, Scene, small};
use tools::cluster::{Spec, exit};
use tools::demo::workload::Running;

use super::disks::{File, await_blame, restart, serving};

/// Such a node; it is away, and comes back once it is started.
fn away() -> (Scene, Disk, Running) {
    let spec = Spec {
        disk_timeout_ms: Some(4000),
        ..small()
    };
    // Slow enough that somebody can see it in the middle.
    let slow = Duration::from_millis(20);
    let (mut scene, mut disks) = serving(spec, &[(2, File::Stage)], slow);
    let disk = disks.pop().expect("one was wanted");
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 200);
    scene.cluster.kill(2).expect("killed");
    let enough = scene.tally.write_bytes() + 48 * MIB;
    while scene.tally.write_bytes() < enough {
        scene.await_writes(&load, 100);
    }
    (scene, disk, load)
}

/// It is given what it lacks.
fn await_target(scene: &mut Scene) {
    scene.await_status(2, "it is given what it lacks", |status| {
        let peer = status.peer("pbx-a");
        peer.is_some_and(|p| p.replication.as_deref() == Some("SyncTarget"))
    });
}

/// It comes to have all of it, and serves.
fn ends_whole(mut scene: Scene, load: Running) {
    scene.finish(load);
    scene.await_caught_up(2, 0);
    let done = scene.cluster.ctl(0, &["demote"], BOUND).expect("answers");
    assert_eq!(done.code, exit::DONE, "{}", done.message());
    scene.promote(2);
    scene.verify(2);
    scene.stop_and_compare(2);
}

pub(crate) fn a_stage_that_can_not_be_written_ends_the_resync_and_nothing_else() {
    let (mut scene, disk, load) = away();
    let applied = |scene: &Scene| scene.cluster.status(2).expect("it answers").seq.applied;
    scene.cluster.start(2).expect("it starts");
    await_target(&mut scene);
    let before = applied(&scene);
    disk.fail(FailAt::Writing);
    let what = &["Input/output error", "restart repld"];
    await_blame(&mut scene, 2, &disk, "down", what);
    scene.await_writes(&load, 100);
    restart(&mut scene, 2, &disk);
    // What it had staged by then is nothing that it gives away.
    await_target(&mut scene);
    assert_eq!(applied(&scene), before);
    ends_whole(scene, load);
}

pub(crate) fn a_stage_that_can_not_be_read_is_read_at_the_peers() {
    let (mut scene, disk, load) = away();
    disk.fail(FailAt::Reading);
    scene.cluster.start(2).expect("it starts");
    // When it lays what it staged over its stores.
    await_blame(&mut scene, 2, &disk, "degraded", &["reading"]);
    ends_whole(scene, load);
}

pub(crate) fn a_stage_that_hangs_stops_nobody() {
    let (mut scene, disk, load) = away();
    scene.cluster.start(2).expect("it starts");
    await_target(&mut scene);
    disk.hang();
    await_blame(&mut scene, 2, &disk, "down", &["is not answered"]);
    scene.await_writes(&load, 100);
    disk.wake();
    ends_whole(scene, load);
}
