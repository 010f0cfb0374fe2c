//! Journals, stores and checksums that fail, hang or are slow, at the Primary and at a Secondary.

use std::time::Duration;

use integration::{BOUND, Disk, FailAt, MIB, Scene, dropped, roomy, small};
use nbd_server::nbd::client::ClientRequest;
use tools::cluster::{Spec, exit};
use tools::demo::workload::{Job, Pace, Running, Stream};

/// A file of a node.
#[derive(Clone, Copy)]
pub(super) enum File {
    Journal,
    Store,
    Sums,
    Meta,
    Stage,
}

/// A cluster whose first node is Primary, with bad disks in some places; each write to them takes `delay`.
pub(super) fn serving(spec: Spec, places: &[(usize, File)], delay: Duration) -> (Scene, Vec<Disk>) {
    let mut scene = Scene::laid_out(spec);
    for node in 0..scene.cluster.len() {
        scene.cluster.create(node).expect("created");
    }
    let disks = places.iter().map(|(node, file)| {
        let path = match file {
            File::Journal => scene.cluster.data_dir(*node).join("journal"),
            File::Store => scene.cluster.store(*node, "db"),
            File::Sums => scene.cluster.data_dir(*node).join("sums"),
            File::Meta => scene.cluster.data_dir(*node).join("meta"),
            File::Stage => scene.cluster.data_dir(*node).join("stage"),
        };
        Disk::under(&path, delay)
    });
    let disks = disks.collect();
    scene.cluster.start_all().expect("all start");
    scene.promote(0);
    (scene, disks)
}

fn with_disk(node: usize, file: File) -> (Scene, Disk) {
    let (scene, mut disks) = serving(roomy(), &[(node, file)], Duration::ZERO);
    (scene, disks.pop().expect("one was wanted"))
}

/// Waits until status of a node is as bad as that and names the disk; the log of it has to name it, too.
pub(super) fn await_blame(
    scene: &mut Scene,
    node: usize,
    disk: &Disk,
    health: &str,
    what: &[&str],
) {
    let path = disk.path().display().to_string();
    let name = scene.cluster.name(node).to_owned();
    let told = scene.cluster.wait_status(
        node,
        &format!("status of {name} blames {path}"),
        BOUND,
        |status| status.health == health && status.health_reason.contains(&path),
    );
    let reason = told.expect("it says so").health_reason;
    for part in what {
        assert!(reason.contains(part), "no {part:?} in {reason:?}");
    }
    scene.await_logged(node, &path);
}

/// The disk is mended and the node started again: it follows by itself.
pub(super) fn restart(scene: &mut Scene, node: usize, disk: &Disk) {
    disk.mend();
    scene
        .cluster
        .kill(node)
        .expect("it still runs, and says why it does nothing");
    scene.cluster.start(node).expect("started again");
}

fn fail_on_the_primary(file: File) {
    let (mut scene, disk) = with_disk(0, file);
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 200);
    disk.fail(FailAt::Writing);
    let streams = dropped(load);
    await_blame(
        &mut scene,
        0,
        &disk,
        "down",
        &["Input/output error", "restart repld"],
    );
    let refused = scene.cluster.ctl(0, &["promote"], BOUND).expect("answers");
    assert_eq!(refused.code, exit::FAILED, "{}", refused.message());
    scene.promote(1);
    scene.verify(1);
    let load = scene.work(1, streams);
    scene.await_writes(&load, 200);
    restart(&mut scene, 0, &disk);
    scene.await_writes(&load, 100);
    scene.finish(load);
    scene.await_caught_up(0, 1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

pub(crate) fn a_journal_that_fails_on_the_primary_ends_its_reign() {
    fail_on_the_primary(File::Journal);
}

pub(crate) fn a_store_that_fails_on_the_primary_ends_its_reign() {
    fail_on_the_primary(File::Store);
}

pub(crate) fn checksums_that_can_not_be_written_on_the_primary_end_its_reign() {
    fail_on_the_primary(File::Sums);
}

pub(crate) fn metadata_that_can_not_be_written_on_the_primary_ends_its_reign() {
    fail_on_the_primary(File::Meta);
}

pub(crate) fn a_journal_that_fails_on_a_secondary_lets_no_client_down() {
    let (mut scene, disk) = with_disk(1, File::Journal);
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 200);
    disk.fail(FailAt::Writing);
    await_blame(
        &mut scene,
        1,
        &disk,
        "down",
        &["Input/output error", "restart repld"],
    );
    scene.await_writes(&load, 200);
    restart(&mut scene, 1, &disk);
    scene.await_writes(&load, 100);
    scene.finish(load);
    scene.await_caught_up(1, 0);
    scene.verify(0);
    // And it has all of it.
    let done = scene.cluster.ctl(0, &["demote"], BOUND).expect("answers");
    assert_eq!(done.code, exit::DONE, "{}", done.message());
    scene.promote(1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

pub(crate) fn a_store_that_can_not_be_read_is_read_at_the_peers_and_named() {
    let (mut scene, disk) = with_disk(0, File::Store);
    let mut client = scene.open(0, "db");
    client.write_at(0, &[7; 1 << 20], true).expect("written");
    // What was applied is read from the store.
    let applied = scene
        .cluster
        .wait_status(0, "all is applied", BOUND, |status| {
            status.seq.applied.is_some() && status.seq.applied == status.seq.committed
        });
    applied.expect("soon");
    disk.fail(FailAt::Reading);
    let mut data = vec![0; 1 << 20];
    for _ in 0..5 {
        client.read_at(0, &mut data[..4096]).expect("a peer has it");
        assert_eq!(data[..4096], [7; 4096]);
    }
    client.read_at(0, &mut data).expect("a peer has all of it");
    assert_eq!(data, [7; 1 << 20]);
    // A part of a block needs the rest of it.
    client.write_at(5000, &[8; 100], true).expect("written");
    client.read_at(4096, &mut data[..4096]).expect("read");
    assert_eq!((data[903], data[904], data[1003], data[1004]), (7, 8, 8, 7));
    await_blame(
        &mut scene,
        0,
        &disk,
        "degraded",
        &["reading", "promote another node"],
    );
    client.disconnect().expect("the connection lived on");
    let done = scene.cluster.ctl(0, &["demote"], BOUND).expect("answers");
    assert_eq!(done.code, exit::DONE, "{}", done.message());
    scene.promote(1);
    let mut client = scene.open(1, "db");
    client.read_at(0, &mut data).expect("read elsewhere");
    assert_eq!(data[..4096], [7; 4096]);
    client.disconnect().expect("goodbye");
}

pub(crate) fn a_journal_that_hangs_on_the_primary_stops_nobody() {
    let (mut scene, disk) = with_disk(0, File::Journal);
    let load = scene.work(0, vec![commits(&scene)]);
    scene.await_writes(&load, 100);
    disk.hang();
    // A majority has what is written without this disk, for as long as the memory reaches.
    scene.await_writes(&load, 50);
    await_blame(&mut scene, 0, &disk, "degraded", &["is not answered"]);
    scene.await_writes(&load, 50);
    disk.wake();
    let well = scene
        .cluster
        .wait_status(0, "all is well", BOUND, |status| status.health == "ok");
    well.expect("the disk is back");
    scene.await_writes(&load, 50);
    scene.finish(load);
    scene.verify(0);
    scene.stop_and_compare(0);
}

/// Database commits, a few at a time, that write little.
fn commits(scene: &Scene) -> Stream {
    let pace = Pace {
        depth: 4,
        burst: 4,
        every: Duration::from_millis(20),
    };
    Stream::new(
        1,
        &scene.volumes[0],
        0..16 * MIB,
        Job::Commit { page: 8192 },
        pace,
    )
}

pub(crate) fn a_store_that_hangs_on_the_primary_moves_the_service() {
    let spec = Spec {
        disk_timeout_ms: Some(4000),
        ..roomy()
    };
    let (mut scene, mut disks) = serving(spec, &[(0, File::Store)], Duration::ZERO);
    let disk = disks.pop().expect("one was wanted");
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 200);
    let mut reader = scene.open(0, "db");
    disk.hang();
    // Reads wait for this disk, so the node gives the service up as soon as that has lasted.
    let streams = dropped(load);
    for page in 0..8 {
        // It may have dropped this one before.
        let offset = page * MIB;
        let _ = reader.submit(&ClientRequest::Read { offset, len: 4096 });
    }
    await_blame(
        &mut scene,
        0,
        &disk,
        "down",
        &["is not answered", "look at that device"],
    );
    scene.await_logged(0, "demoting");
    let refused = scene.cluster.ctl(0, &["promote", "--timeout", "2"], BOUND);
    let refused = refused.expect("answers");
    assert_eq!(refused.code, exit::NO_DATA, "{}", refused.message());
    scene.promote(1);
    scene.verify(1);
    let load = scene.work(1, streams);
    scene.await_writes(&load, 200);
    disk.wake();
    scene.await_writes(&load, 100);
    scene.finish(load);
    scene.await_caught_up(0, 1);
    let well = scene
        .cluster
        .wait_status(0, "all is well", BOUND, |status| status.health == "ok");
    well.expect("the disk is back");
    scene.verify(1);
    scene.stop_and_compare(1);
}

pub(crate) fn a_journal_that_hangs_for_longer_than_memory_reaches_moves_the_service() {
    let spec = Spec {
        disk_timeout_ms: Some(4000),
        ..roomy()
    };
    let (mut scene, mut disks) = serving(spec, &[(0, File::Journal)], Duration::ZERO);
    let disk = disks.pop().expect("one was wanted");
    let pages = Job::Commit { page: 128 << 10 };
    let stream = Stream::new(
        1,
        &scene.volumes[0],
        0..16 * MIB,
        pages,
        Pace::unbounded(16),
    );
    let load = scene.work(0, vec![stream]);
    scene.await_writes(&load, 20);
    disk.hang();
    let streams = dropped(load);
    scene.await_logged(0, "demoting");
    scene.promote(1);
    scene.verify(1);
    let load = scene.work(1, streams);
    scene.await_writes(&load, 20);
    scene.finish(load);
    disk.wake();
    // What it had written and nobody had asked for goes.
    scene.await_caught_up(0, 1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

/// The third node has a disk that hangs, and says so; clients go on.
fn with_hanging_disk_at_a_secondary(file: File, ack: &str) -> (Scene, Disk, Running) {
    let spec = Spec {
        disk_timeout_ms: Some(4000),
        ack: Some(ack.into()),
        ..roomy()
    };
    let (mut scene, mut disks) = serving(spec, &[(2, file)], Duration::ZERO);
    let disk = disks.pop().expect("one was wanted");
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 200);
    disk.hang();
    scene.await_writes(&load, 100);
    await_blame(&mut scene, 2, &disk, "down", &["is not answered"]);
    (scene, disk, load)
}

pub(crate) fn disks_that_hang_on_a_secondary_stop_nobody() {
    for (file, ack) in [
        (File::Journal, "majority"),
        (File::Store, "majority"),
        (File::Journal, "all"),
    ] {
        let (mut scene, disk, load) = with_hanging_disk_at_a_secondary(file, ack);
        // It is of no use, and both say so.
        await_disk_state(&mut scene, "Failed");
        let own = scene.cluster.status(2).expect("it answers");
        let state = &own.volume("db").expect("a volume").disk_state;
        assert_eq!(state, "Failed");
        let refused = scene.cluster.ctl(2, &["promote", "--timeout", "1"], BOUND);
        assert_ne!(refused.expect("answers").code, exit::DONE);
        scene.await_writes(&load, 100);
        disk.wake();
        scene.await_writes(&load, 100);
        await_disk_state(&mut scene, "UpToDate");
        scene.finish(load);
        scene.await_caught_up(2, 0);
        scene.verify(0);
        scene.stop_and_compare(0);
    }
}

/// Its journal and metadata would let it: it is the clients who would wait for that store.
pub(crate) fn a_node_whose_store_hangs_does_not_take_over_from_a_frozen_primary() {
    let (mut scene, disk, load) = with_hanging_disk_at_a_secondary(File::Store, "majority");
    let promote = |scene: &Scene, seconds| {
        let answer = scene
            .cluster
            .ctl(2, &["promote", "--timeout", seconds], BOUND);
        let answer = answer.expect("answers");
        (answer.code, answer.message())
    };
    let (code, said) = promote(&scene, "1");
    assert_eq!(code, exit::OTHER_PRIMARY, "{said}");
    scene.cluster.freeze(0).expect("frozen");
    let (code, said) = promote(&scene, "8");
    assert_eq!(code, exit::NO_DATA, "{said}");
    scene.promote(1);
    scene.cluster.thaw(0).expect("thawed");
    let streams = dropped(load);
    disk.wake();
    let load = scene.work(1, streams);
    scene.await_writes(&load, 100);
    scene.finish(load);
    scene.await_caught_up(2, 1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

/// Whoever changes its stores waits for that disk, and nobody else.
pub(crate) fn a_store_that_hangs_while_volumes_change_stops_no_node() {
    let (mut scene, disk, load) = with_hanging_disk_at_a_secondary(File::Store, "majority");
    let durable = |scene: &Scene| {
        let status = scene.cluster.status(0).expect("it answers");
        status.peer("pbx-c").and_then(|p| p.durable_seq)
    };
    let before = durable(&scene).expect("it is connected");
    let resize = ["resize", "recordings", "40MiB", "--timeout", "5"];
    let refused = scene.cluster.ctl(0, &resize, BOUND).expect("answers");
    assert_eq!(refused.code, exit::FAILED, "{}", refused.message());
    let waits = "pbx-c has not made room in time";
    assert!(refused.message().contains(waits), "{}", refused.message());
    // Its journal is a sound disk: it is fed all the time.
    scene.await_status(0, "pbx-c acknowledges", |status| {
        let peer = status.peer("pbx-c");
        peer.is_some_and(|p| p.durable_seq.is_some_and(|seq| seq > before))
    });
    scene.await_writes(&load, 100);
    disk.wake();
    scene.finish(load);
    scene.await_caught_up(2, 0);
    scene.verify(0);
    scene.stop_and_compare(0);
}

/// Waits until the Primary shows the third node's disk so.
fn await_disk_state(scene: &mut Scene, state: &str) {
    let what = format!("its disk is {state} to the Primary");
    let shown = scene.cluster.wait_status(0, &what, BOUND, |status| {
        let peer = status.peer("pbx-c");
        peer.is_some_and(|p| p.disk_state.as_deref() == Some(state))
    });
    shown.unwrap_or_else(|error| panic!("{error}"));
}

pub(crate) fn metadata_that_hangs_on_the_primary_moves_the_service() {
    let spec = Spec {
        disk_timeout_ms: Some(4000),
        ..small()
    };
    let (mut scene, mut disks) = serving(spec, &[(0, File::Meta)], Duration::ZERO);
    let disk = disks.pop().expect("one was wanted");
    let pages = Job::Commit { page: 128 << 10 };
    let pace = Pace::unbounded(16);
    let stream = Stream::new(1, &scene.volumes[0], 0..16 * MIB, pages, pace);
    let load = scene.work(0, vec![stream]);
    scene.await_writes(&load, 20);
    disk.hang();
    // Until the ring is full: what is applied can not be noted.
    let streams = dropped(load);
    scene.await_logged(0, "demoting");
    scene.promote(1);
    scene.verify(1);
    let load = scene.work(1, streams);
    scene.await_writes(&load, 20);
    scene.finish(load);
    disk.wake();
    scene.await_caught_up(0, 1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

pub(crate) fn a_full_journal_slows_clients_down_and_lets_none_down() {
    let places = [(0, File::Store), (1, File::Store), (2, File::Store)];
    let spec = Spec {
        // Nobody could do better.
        disk_timeout_ms: Some(3_600_000),
        ..small()
    };
    let (mut scene, disks) = serving(spec, &places, Duration::from_millis(50));
    // Whole blocks: what covers a part of one has to read the rest of it.
    let write = Job::Commit { page: 128 << 10 };
    let stream = Stream::new(1, &scene.volumes[0], 0..16 * MIB, write, Pace::unbounded(8));
    let load = scene.work(0, vec![stream]);
    scene.await_writes(&load, 10);
    for disk in &disks {
        disk.hang();
    }
    let full = scene
        .cluster
        .wait_status(0, "the journal is full", BOUND, |status| {
            status.journal_used().is_some_and(|bytes| bytes > 12 * MIB)
        });
    let full = full.expect("nothing is applied");
    assert_eq!(
        (full.role.as_str(), full.suspended.as_str()),
        ("Primary", "no")
    );
    await_blame(&mut scene, 0, &disks[0], "degraded", &["is not answered"]);
    for disk in &disks {
        disk.wake();
    }
    // Several times the journal's size, at the pace of the stores.
    while scene.tally.write_bytes() < 40 * MIB {
        scene.await_writes(&load, 10);
    }
    scene.finish(load);
    scene.verify(0);
    scene.stop_and_compare(0);
}
