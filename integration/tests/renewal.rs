//! A node gives its data up and fetches it anew, begins with an image that was carried by hand, or belongs to a history that the others
//! left behind. P1 (acknowledged is durable) under load, and only what differs is carried.

use integration::{BOUND, MIB, Scene, roomy, small};
use tools::cluster::exit;

fn invalidate(scene: &Scene, node: usize, more: &[&str], line: &str) -> (i32, String) {
    let mut verb = vec!["invalidate", "--timeout", "60"];
    verb.extend(more);
    scene.confirmed(node, &verb, line)
}

#[test]
fn a_node_gives_its_data_up_under_load_and_has_it_again() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 200);
    let (code, said) = invalidate(&scene, 2, &[], "yes\n");
    assert_eq!(code, exit::USAGE, "{said}");
    let (code, said) = invalidate(&scene, 0, &[], "pbx\n");
    assert_eq!(code, exit::FAILED, "{said}");
    let (code, said) = invalidate(&scene, 2, &[], "pbx\n");
    assert_eq!((code, said.as_str()), (exit::DONE, ""));
    scene.await_caught_up(2, 0);
    scene.node_2_counts(load);
}

#[test]
fn a_node_begins_with_an_image_that_was_carried_by_hand() {
    let mut scene = Scene::serving(roomy());
    let load = scene.work(0, scene.calm_streams());
    scene.await_writes(&load, 200);
    // What is copied is no image of one moment, and what it lacks or has too much is found.
    scene.cluster.kill(2).expect("killed");
    let (from, to) = (scene.cluster.data_dir(1), scene.cluster.data_dir(2));
    std::fs::remove_dir_all(to).expect("wiped");
    std::fs::create_dir_all(to).expect("a directory");
    for store in ["db.img", "recordings.img"] {
        std::fs::copy(from.join(store), to.join(store)).expect("carried");
    }
    let created = scene.cluster.ctl(2, &["create", "--seed"], BOUND);
    let created = created.expect("answers");
    assert_eq!(created.code, exit::DONE, "{}", created.message());
    scene.cluster.start(2).expect("it starts");
    scene.await_status(2, "it says what it is", |status| {
        status.health == "down" && status.health_reason.contains("Inconsistent")
    });
    let refused = scene.cluster.ctl(2, &["promote", "--timeout", "1"], BOUND);
    assert_eq!(refused.expect("answers").code, exit::NO_DATA);
    scene.await_membership(0, 2, "out");
    let (code, said) = scene.confirmed(0, &["replace", "pbx-c"], "pbx-c\n");
    assert_eq!((code, said.as_str()), (exit::DONE, ""));
    scene.await_caught_up(2, 0);
    scene.finish(load);
    scene.cluster.kill(0).expect("killed");
    scene.ends_with(2);
}

#[test]
fn a_resource_does_not_begin_with_a_seed() {
    let mut scene = Scene::laid_out(small());
    for node in [0, 1] {
        scene.cluster.create(node).expect("created");
    }
    let store = scene.cluster.data_dir(2).join("db.img");
    std::fs::create_dir_all(scene.cluster.data_dir(2)).expect("a directory");
    std::fs::write(&store, vec![7; 1 << 20]).expect("a seed");
    let created = scene.cluster.ctl(2, &["create", "--seed"], BOUND);
    assert_eq!(created.expect("answers").code, exit::DONE);
    for node in 0..3 {
        scene.cluster.start(node).expect("it starts");
    }
    let refused = scene.cluster.ctl(0, &["promote", "--timeout", "20"], BOUND);
    let refused = refused.expect("answers");
    assert_eq!(refused.code, exit::NO_DATA, "{}", refused.message());
    assert!(refused.message().contains("copy the image"));
    // A file that is larger than its volume is another image.
    scene.cluster.kill(2).expect("killed");
    let file = std::fs::File::create(&store).expect("a seed");
    file.set_len(17 * MIB).expect("it grows");
    let refused = scene.cluster.ctl(2, &["create", "--seed", "--wipe"], BOUND);
    assert_eq!(refused.expect("answers").code, exit::FAILED);
}

#[test]
fn nodes_that_were_left_behind_give_their_data_up_and_are_three_again() {
    let mut scene = Scene::serving(small());
    let load = scene.work(0, scene.busy_streams());
    scene.await_writes(&load, 300);
    let streams = scene.finish(load);
    for node in [1, 2] {
        scene.await_caught_up(node, 0);
    }
    for node in [0, 1] {
        scene.cluster.kill(node).expect("killed");
    }
    for node in [0, 1] {
        scene.await_gone(2, node);
    }
    let forced = scene.confirmed(2, &["promote", "--force"], "pbx\n");
    assert_eq!(forced, (exit::DONE, String::new()));
    let load = scene.work(2, streams);
    scene.await_writes(&load, 100);
    for node in [0, 1] {
        scene.cluster.start(node).expect("it starts again");
        let apart = scene
            .cluster
            .wait_status(node, "it is left behind", BOUND, |status| {
                status.health_reason.contains("another history")
                    || status
                        .peer("pbx-c")
                        .is_some_and(|p| p.connection.as_deref() == Some("StandAlone"))
            });
        apart.unwrap_or_else(|error| panic!("{error}"));
        if node == 1 {
            // The one that came over before is apart from it too.
            scene.await_status(0, "it is left behind", |status| {
                let peer = status.peer("pbx-b");
                peer.is_some_and(|p| p.connection.as_deref() == Some("StandAlone"))
            });
        }
        // It waits for somebody to let it join, in vain so far.
        let (code, said) = scene.confirmed(node, &["invalidate", "--timeout", "1"], "pbx\n");
        assert_eq!(code, exit::FAILED, "{said}");
        assert!(said.contains("replctl replace"), "{said}");
        let name = scene.cluster.name(node).to_owned();
        let connected = scene.cluster.expect_done(2, &["connect", &name]);
        connected.unwrap_or_else(|error| panic!("{error}"));
        let mut replaced = (exit::FAILED, String::new());
        for _ in 0..300 {
            // It has to be there first.
            replaced = scene.confirmed(2, &["replace", &name], &format!("{name}\n"));
            if replaced.0 == exit::DONE {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        assert_eq!(replaced, (exit::DONE, String::new()));
        scene.await_caught_up(node, 2);
    }
    scene.finish(load);
    scene.cluster.kill(2).expect("killed");
    scene.promote(0);
    scene.verify(0);
    scene.cluster.start(2).expect("it starts again");
    scene.await_caught_up(1, 0);
    scene.await_caught_up(2, 0);
    scene.stop_and_compare(0);
}
