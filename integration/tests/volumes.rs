//! Volumes that grow, are made smaller, come and go in a running resource: on all nodes or on none. P1 (acknowledged is durable), P10
//! (the image is yours).

use integration::{BOUND, MIB, Scene, small};
use nbd_server::nbd::client::Client;
use tools::cluster::exit;
use tools::demo::stop_cleanly;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

fn ctl(scene: &Scene, node: usize, verb: &[&str]) -> (i32, String) {
    let finished = scene.cluster.ctl(node, verb, BOUND).expect("replctl runs");
    (finished.code, finished.stderr)
}

/// Waits until a node says that a volume has this size; 0 is none.
fn await_size(scene: &mut Scene, node: usize, volume: &str, bytes: u64) {
    let what = format!("{volume} has {bytes} bytes");
    let result = scene.cluster.wait_status(node, &what, BOUND, |status| {
        let found = status.volumes.iter().find(|v| v.name == volume);
        found.map_or(0, |v| v.size) == bytes
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Writes the config file anew, with volumes of 4 MiB besides.
fn list(scene: &Scene, config: &str, volumes: &[&str]) {
    let volume = |name: &&str| format!("\n[[volume]]\nname = \"{name}\"\nsize = \"4MiB\"\n");
    let volumes: String = volumes.iter().map(volume).collect();
    let path = scene.cluster.config();
    std::fs::write(path, format!("{config}{volumes}")).expect("written");
}

fn adds(scene: &Scene, volume: &str, byte: u8) {
    let (code, text) = ctl(scene, A, &["add-volume", volume]);
    assert_eq!(code, exit::DONE, "{text}");
    let mut client = scene.open(A, volume);
    client.write_at(MIB, &[byte; 4096], true).expect("written");
    client.disconnect().expect("detached");
}

fn removes(scene: &mut Scene, volume: &str) {
    let detached = scene.cluster.wait_status(A, "nobody is there", BOUND, |s| {
        s.volumes.iter().all(|v| v.nbd_clients == Some(0))
    });
    detached.unwrap_or_else(|error| panic!("{error}"));
    let (code, text) = scene.confirmed(A, &["remove-volume", volume], &format!("{volume}\n"));
    assert_eq!(code, exit::DONE, "{text}");
}

/// A byte of a store that is not open.
fn stored(path: &std::path::Path, offset: u64) -> u8 {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes[usize::try_from(offset).expect("small")]
}

fn read(client: &mut Client, offset: u64) -> [u8; 4096] {
    let mut block = [1; 4096];
    client.read_at(offset, &mut block).expect("read");
    block
}

#[test]
fn a_volume_grows_under_load() {
    let mut scene = Scene::serving(small());
    let load = scene.work(A, scene.busy_streams());
    scene.await_writes(&load, 300);
    let mut before = scene.open(A, "db");
    assert_eq!(before.size(), 16 * MIB);
    // A file that is longer already, with something behind the end, as a device may have.
    let store = scene.cluster.store(C, "db");
    let file = std::fs::OpenOptions::new().write(true).open(&store);
    let file = file.expect("the store is a file");
    file.set_len(20 * MIB).expect("longer");
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 4096], 18 * MIB).expect("written");

    // All or none: a node that is away is named.
    scene.cluster.kill(B).expect("killed");
    let (code, text) = ctl(&scene, A, &["resize", "db", "24MiB", "--timeout", "3"]);
    assert_eq!(code, exit::FAILED, "{text}");
    assert!(text.contains("pbx-b"), "{text}");
    scene.cluster.start(B).expect("started");
    scene.await_caught_up(B, A);

    let (code, text) = ctl(&scene, A, &["resize", "db", "24MiB"]);
    assert_eq!(code, exit::DONE, "{text}");
    assert!(text.contains("config file on every node"), "{text}");
    // Whoever is attached can use it, whoever comes sees it.
    before
        .write_at(24 * MIB - 4096, &[5; 4096], false)
        .expect("behind the former end");
    let mut after = scene.open(A, "db");
    assert_eq!(after.size(), 24 * MIB);
    assert_eq!(read(&mut after, 18 * MIB), [0; 4096]);
    assert_eq!(read(&mut after, 24 * MIB - 4096), [5; 4096]);
    scene.await_writes(&load, 200);

    // The Primary dies; the file still has the old size, and is overruled.
    let streams = scene.kill_under(A, load);
    scene.promote(B);
    let mut after = scene.open(B, "db");
    assert_eq!(after.size(), 24 * MIB);
    assert_eq!(read(&mut after, 24 * MIB - 4096), [5; 4096]);
    scene.cluster.start(A).expect("it starts with the old file");
    scene.await_logged(A, "write 25165824 there on every node");
    let check = scene.cluster.ctl(A, &["check"], BOUND).expect("runs");
    assert!(
        check.stdout.contains("volume db has 25165824 bytes"),
        "{}",
        check.stdout
    );
    let load = scene.work(B, streams);
    scene.await_writes(&load, 200);
    scene.await_caught_up(A, B);
    for node in [A, B, C] {
        await_size(&mut scene, node, "db", 24 * MIB);
    }
    scene.finish(load);
    drop((before, after));
    scene.verify(B);
    stop_cleanly(&mut scene.cluster, B).unwrap_or_else(|error| panic!("{error}"));
    let image = |node| std::fs::read(scene.cluster.store(node, "db")).expect("the store is a file");
    let images = [A, B, C].map(image);
    assert!(
        images
            .iter()
            .all(|i| i.len() as u64 == 24 * MIB && *i == images[0])
    );
}

#[test]
fn a_volume_is_made_smaller_only_if_that_is_meant() {
    let mut scene = Scene::serving(small());
    let mut client = scene.open(A, "db");
    client
        .write_at(12 * MIB, &[7; 4096], true)
        .expect("written");
    let (code, text) = ctl(&scene, A, &["resize", "db", "8MiB"]);
    assert_eq!(code, exit::FAILED, "{text}");
    let forced = ["resize", "db", "8MiB", "--force"];
    let (code, text) = scene.confirmed(A, &forced, "yes\n");
    assert_eq!(code, exit::USAGE, "{text}");
    let (code, text) = scene.confirmed(A, &forced, "db\n");
    assert_eq!(code, exit::IN_USE, "{text}");
    client.disconnect().expect("detached");
    let detached = scene.cluster.wait_status(A, "nobody is there", BOUND, |s| {
        s.volumes.iter().all(|v| v.nbd_clients == Some(0))
    });
    detached.unwrap_or_else(|error| panic!("{error}"));
    let (code, text) = scene.confirmed(A, &forced, "db\n");
    assert_eq!(code, exit::DONE, "{text}");
    assert_eq!(scene.open(A, "db").size(), 8 * MIB);
    for node in [A, B, C] {
        await_size(&mut scene, node, "db", 8 * MIB);
    }
    // What was there is not there when it grows again.
    assert_eq!(ctl(&scene, A, &["resize", "db", "16MiB"]).0, exit::DONE);
    assert_eq!(read(&mut scene.open(A, "db"), 12 * MIB), [0; 4096]);
}

#[test]
fn volumes_come_and_go() {
    let mut scene = Scene::serving(small());
    let load = scene.work(A, scene.busy_streams());
    // It has to be in the file of every node first.
    let (code, text) = ctl(&scene, A, &["add-volume", "mail"]);
    assert_eq!(code, exit::USAGE, "{text}");
    let config = scene.cluster.config().to_owned();
    let good = std::fs::read_to_string(&config).expect("readable");
    list(&scene, &good, &["mail"]);
    // There is something at its place.
    let place = scene.cluster.data_dir(C).join("mail.img");
    std::fs::write(&place, [1; 4096]).expect("written");
    let (code, text) = ctl(&scene, A, &["add-volume", "mail"]);
    assert_eq!(code, exit::FAILED, "{text}");
    assert!(
        text.contains("pbx-c: there is something at the place"),
        "{text}"
    );
    std::fs::remove_file(&place).expect("removed");
    let (code, text) = ctl(&scene, A, &["add-volume", "mail"]);
    assert_eq!(code, exit::DONE, "{text}");
    let mut client = scene.open(A, "mail");
    client.write_at(MIB, &[3; 4096], true).expect("written");
    scene.await_writes(&load, 200);
    let streams = scene.kill_under(A, load);
    scene.promote(B);
    let mut client = scene.open(B, "mail");
    assert_eq!(read(&mut client, MIB), [3; 4096]);
    scene.cluster.start(A).expect("started");
    scene.await_caught_up(A, B);
    let load = scene.work(B, streams);
    let (code, text) = scene.confirmed(B, &["remove-volume", "mail"], "mail\n");
    assert_eq!(code, exit::IN_USE, "{text}");
    client.disconnect().expect("detached");
    let detached = scene.cluster.wait_status(B, "nobody is there", BOUND, |s| {
        let mail = s.volumes.iter().find(|v| v.name == "mail");
        mail.is_some_and(|v| v.nbd_clients == Some(0))
    });
    detached.unwrap_or_else(|error| panic!("{error}"));
    let (code, text) = scene.confirmed(B, &["remove-volume", "mail"], "mail\n");
    assert_eq!(code, exit::DONE, "{text}");
    std::fs::write(&config, &good).expect("restored");
    for node in [A, B, C] {
        await_size(&mut scene, node, "mail", 0);
        let kept = scene.cluster.data_dir(node).join("mail.img.removed");
        let result = scene.cluster.wait("its store is put aside", BOUND, |_| {
            Ok(if kept.exists() {
                Ok(())
            } else {
                Err("not yet".into())
            })
        });
        result.unwrap_or_else(|error| panic!("{error}"));
    }
    scene.await_writes(&load, 200);
    scene.finish(load);
    scene.verify(B);
    scene.stop_and_compare(B);
}

#[test]
fn a_node_that_was_away_past_the_journal_gets_others_in_the_places_of_volumes_that_are_gone() {
    let mut scene = Scene::serving(small());
    let good = std::fs::read_to_string(scene.cluster.config()).expect("readable");
    list(&scene, &good, &["mail", "fax"]);
    adds(&scene, "mail", 1);
    adds(&scene, "fax", 2);
    scene.await_caught_up(C, A);
    await_size(&mut scene, C, "fax", 4 * MIB);
    assert_eq!(ctl(&scene, A, &["drop", "pbx-c"]).0, exit::DONE);
    scene.cluster.kill(C).expect("killed");

    // One has another place then, and the other's place is that of a new one.
    removes(&mut scene, "mail");
    removes(&mut scene, "fax");
    list(&scene, &good, &["fax", "voice"]);
    adds(&scene, "fax", 3);
    adds(&scene, "voice", 4);
    let mut client = scene.open(A, "db");
    for n in 0..2 * small().journal_bytes / MIB {
        let bytes = vec![9; MIB as usize];
        client.write_at(n % 8 * MIB, &bytes, true).expect("written");
    }
    client.disconnect().expect("detached");

    scene.cluster.start(C).expect("it starts with what it has");
    assert_eq!(ctl(&scene, A, &["return", "pbx-c"]).0, exit::DONE);
    scene.await_membership(A, C, "member");
    scene.await_caught_up(C, A);
    scene.await_logged(C, "the resync is complete");
    let dir = scene.cluster.data_dir(C).to_owned();
    let was = ["mail.img.removed", "fax.img.removed"].map(|name| stored(&dir.join(name), MIB));
    assert_eq!(was, [1, 2], "what it had is kept");

    scene.cluster.kill(A).expect("killed");
    scene.promote(C);
    for (volume, byte) in [("fax", 3), ("voice", 4)] {
        assert_eq!(read(&mut scene.open(C, volume), MIB), [byte; 4096]);
    }
    scene.cluster.start(A).expect("started");
    scene.await_caught_up(A, C);
    stop_cleanly(&mut scene.cluster, C).unwrap_or_else(|error| panic!("{error}"));
    for (volume, byte) in [("fax", 3), ("voice", 4)] {
        let stores = [A, B, C].map(|node| stored(&scene.cluster.store(node, volume), MIB));
        assert_eq!(stores, [byte; 3], "{volume}");
    }
}

#[test]
fn a_volume_that_could_be_added_only_the_second_time_is_in_files_that_are_there() {
    let mut scene = Scene::serving(small());
    let config = std::fs::read_to_string(scene.cluster.config()).expect("the config");
    list(&scene, &config, &["mail"]);
    let stores = [A, B, C].map(|node| scene.cluster.store(node, "mail"));
    std::fs::write(&stores[C], [7; 4096]).expect("something is there");
    let (code, text) = ctl(&scene, A, &["add-volume", "mail", "--timeout", "10"]);
    assert_eq!(code, exit::FAILED, "{text}");
    assert!(text.contains("nothing is changed"), "{text}");
    // The others have made room, maybe a moment later. Who was told that takes everything away.
    for store in &stores {
        let made = scene.cluster.wait("there is a file", BOUND, |_| {
            let there = store.exists();
            Ok(there.then_some(()).ok_or_else(|| "there is none".into()))
        });
        made.unwrap_or_else(|error| panic!("{error}"));
    }
    for store in &stores {
        std::fs::remove_file(store).expect("removed");
    }
    adds(&scene, "mail", 8);
    stop_cleanly(&mut scene.cluster, A).expect("stopped");
    for store in &stores {
        assert_eq!(stored(store, MIB), 8, "{}", store.display());
    }
}
