//! Writes held for a snapshot. P1 (acknowledged is durable), P3 (a store is a point in time), P10 (the image is yours).

use integration::{BOUND, Scene, small};
use nbd_server::nbd::client::ClientRequest;
use tools::cluster::{Spec, exit};

fn ctl(scene: &Scene, node: usize, verb: &[&str]) -> (i32, String) {
    let finished = scene.cluster.ctl(node, verb, BOUND).expect("replctl runs");
    (finished.code, finished.stderr)
}

fn copies(scene: &Scene, node: usize) -> Vec<Vec<u8>> {
    let store = |name| std::fs::read(scene.cluster.store(node, name)).expect("the store is a file");
    scene.volumes.iter().map(|v| store(&v.name)).collect()
}

#[test]
fn stores_copied_while_writes_are_held_are_what_was_acknowledged() {
    let mut scene = Scene::serving(small());
    let load = scene.work(0, scene.busy_streams());
    for round in 0..3 {
        scene.await_writes(&load, 300 + 150 * round);
        assert_eq!(ctl(&scene, 0, &["suspend-io"]), (exit::DONE, String::new()));
        let status = scene.cluster.status(0).expect("answers");
        assert_eq!((&*status.suspended, &*status.health), ("user", "degraded"));
        // With whatever tool, on whatever node, however long it takes.
        let images = copies(&scene, 0);
        assert!((1..3).all(|node| copies(&scene, node) == images));
        // Reads go on, and show the same.
        for (volume, image) in scene.volumes.iter().zip(&images) {
            let mut read = vec![0; image.len()];
            scene
                .open(0, &volume.name)
                .read_at(0, &mut read)
                .expect("read");
            assert!(read == *image, "{} is not what is served", volume.name);
        }
        assert!(copies(&scene, 0) == images, "the stores rest");
        let now = scene.cluster.status(0).expect("answers");
        assert_eq!(now.seq.admitted, status.seq.admitted);
        assert_eq!(now.seq.applied, status.seq.admitted);
        // What waits is not in them, what was answered is.
        for (volume, image) in scene.volumes.iter().zip(&images) {
            let mut model = volume.oracle().clone();
            let losses = model.settle(0, image);
            assert!(losses.is_empty(), "{}: {}", volume.name, losses[0]);
        }
        assert_eq!(ctl(&scene, 0, &["resume-io"]), (exit::DONE, String::new()));
    }
    scene.await_writes(&load, 200);
    scene.finish(load);
    scene.verify(0);
    scene.stop_and_compare(0);
}

#[test]
fn who_resumes_hears_whether_the_copy_is_worth_anything() {
    let mut scene = Scene::serving(Spec {
        volumes: vec![("db".into(), 1 << 20)],
        ..small()
    });
    let (code, text) = ctl(&scene, 1, &["suspend-io"]);
    assert_eq!(code, exit::OTHER_PRIMARY, "{text}");
    assert!(text.contains("pbx-a"), "{text}");
    assert_eq!(
        ctl(&scene, 0, &["resume-io"]).0,
        exit::DONE,
        "nothing is held"
    );

    // A peer that is away is named, and does not keep the others from it.
    scene.cluster.kill(2).expect("killed");
    scene.await_gone(0, 2);
    let (code, text) = ctl(&scene, 0, &["suspend-io"]);
    assert_eq!(code, exit::DONE, "{text}");
    assert!(text.contains("pbx-c"), "{text}");
    let mut client = scene.open(0, "db");
    let data = [7; 4096];
    let write = ClientRequest::Write {
        offset: 0,
        data: &data,
        fua: false,
    };
    client.submit(&write).expect("sent");

    // Another one is promoted while the holder can not know: its hold is over when it hears of that.
    scene.cluster.freeze(0).expect("frozen");
    scene.cluster.start(2).expect("started again");
    scene.promote(1);
    scene.cluster.thaw(0).expect("thawed");
    let follows = |status: &tools::cluster::Status| {
        status.role == "Secondary" && status.primary.as_deref() == Some("pbx-b")
    };
    let result = scene.cluster.wait_status(0, "it follows", BOUND, follows);
    assert_eq!(result.expect("by itself").suspended, "no");
    assert!(client.wait().is_err(), "what was held is not answered");
    let (code, text) = ctl(&scene, 0, &["resume-io"]);
    assert_eq!(code, exit::FAILED, "{text}");
    assert!(text.contains("discard"), "{text}");
    assert_eq!(ctl(&scene, 0, &["resume-io"]).0, exit::OTHER_PRIMARY);
    let mut read = [1; 4096];
    scene.open(1, "db").read_at(0, &mut read).expect("read");
    assert_eq!(read, [0; 4096], "it was never admitted");
}
