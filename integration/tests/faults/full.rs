//! A file system without room for a sparse store.

use std::process::Command;

use integration::{BOUND, MIB, Scene, small};
use tools::cluster::{Spec, exit};
use tools::demo::workload::{Job, Pace, Stream};

pub(crate) fn a_full_disk_makes_a_node_step_aside_until_there_is_room() {
    let spec = Spec {
        volumes: vec![("db".into(), 32 * MIB)],
        // What is written while that node is away fits.
        journal_bytes: 64 * MIB,
        ..small()
    };
    let mut scene = Scene::laid_out(spec);
    // The journal has its room for good; the store does not.
    let dir = scene.cluster.data_dir(1).to_owned();
    std::fs::create_dir_all(&dir).expect("a mount point");
    mount(&dir, "72m");
    for node in 0..3 {
        scene.cluster.create(node).expect("created");
    }
    scene.cluster.start_all().expect("all start");
    scene.promote(0);

    let write = Job::Append {
        least: 64 << 10,
        most: 256 << 10,
        flush_every: 8,
    };
    let stream = Stream::new(1, &scene.volumes[0], 0..32 * MIB, write, Pace::unbounded(4));
    let load = scene.work(0, vec![stream]);
    while scene.tally.write_bytes() < 20 * MIB {
        scene.await_writes(&load, 10);
    }
    let path = dir.join("db.img").display().to_string();
    let told = scene
        .cluster
        .wait_status(1, "status says so", BOUND, |status| {
            status.health == "down" && status.health_reason.contains(&path)
        });
    let reason = told.expect("it does").health_reason;
    assert!(reason.contains("No space left"), "{reason}");
    assert!(reason.contains("free space"), "{reason}");
    // Nobody else minds.
    scene.await_writes(&load, 20);
    scene.finish(load);
    scene.verify(0);

    // A restart alone does not help, and does no harm.
    scene.cluster.kill(1).expect("killed");
    scene.cluster.start(1).expect("started again");
    let told = scene
        .cluster
        .wait_status(1, "status says so", BOUND, |status| {
            status.health == "down" && status.health_reason.contains("No space left")
        });
    told.expect("it is still full");
    mount(&dir, "remount,size=160m");
    scene.cluster.kill(1).expect("killed");
    scene.cluster.start(1).expect("started again");
    scene.await_caught_up(1, 0);
    let done = scene.cluster.ctl(0, &["demote"], BOUND).expect("answers");
    assert_eq!(done.code, exit::DONE, "{}", done.message());
    scene.promote(1);
    scene.verify(1);
    scene.stop_and_compare(1);
}

fn mount(dir: &std::path::Path, options: &str) {
    let options = if options.starts_with("remount") {
        options.to_owned()
    } else {
        format!("size={options}")
    };
    let mut command = Command::new("mount");
    let done = command
        .args(["-t", "tmpfs", "-o", &options, "none"])
        .arg(dir)
        .status();
    assert!(done.expect("mount starts").success(), "mount -o {options}");
}
