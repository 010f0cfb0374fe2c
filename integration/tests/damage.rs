//! Disks that are not as `repld` left them: P6 (nothing silently wrong), P9 (bad input is an answer). The node stays out, or
//! mends itself from its peers; its clients notice nothing; `replctl dump` says where it is.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use integration::{BOUND, Scene, small};
use replicator::store::sums::STRIPE_PAGES;
use serde_json::Value;
use tools::cluster::{Finished, Spec, exit};

/// Which node is harmed. The Primary is the first.
const VICTIM: usize = 2;

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("as long");
    file.write_all_at(&[byte[0] ^ 4], offset).expect("written");
}

fn cut(path: &Path, bytes: u64) {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("it is there");
    file.set_len(bytes).expect("shorter");
}

fn file(scene: &Scene, node: usize, name: &str) -> PathBuf {
    scene.cluster.data_dir(node).join(name)
}

/// Runs `repld` of the victim, which must not start; what it says.
fn refuses(scene: &Scene) -> String {
    let mut command = Command::new(&scene.cluster.programs().repld);
    command.arg("--config").arg(scene.cluster.config());
    command.args(["--node", scene.cluster.name(VICTIM)]);
    let finished = tools::demo::finish(&mut command, BOUND, &AtomicBool::new(false));
    let finished = finished.expect("it runs");
    assert_eq!(finished.code, 1, "{}", finished.message());
    let said = finished
        .stderr
        .lines()
        .find(|line| line.starts_with("repld: "));
    said.expect("the reason").to_owned()
}

fn dump(scene: &Scene, options: &[&str]) -> Finished {
    let verb = [&["dump"], options].concat();
    let finished = scene
        .cluster
        .ctl(VICTIM, &verb, BOUND)
        .expect("replctl runs");
    assert!([0, 1].contains(&finished.code), "{}", finished.message());
    finished
}

/// The damage that `dump` names, as file and offset.
fn damage(scene: &Scene) -> Vec<(PathBuf, u64)> {
    let finished = dump(scene, &["--json"]);
    let lines = finished.stdout.lines();
    let values = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let found: Vec<_> = values
        .filter(|value| value["what"] == "damage")
        .map(|v| {
            let path = PathBuf::from(v["path"].as_str().expect("a path"));
            (path, v["offset"].as_u64().expect("an offset"))
        })
        .collect();
    assert_eq!(finished.code == exit::FAILED, !found.is_empty());
    found
}

/// The batches of the victim's log: offset, bytes, whether it is applied.
fn batches(scene: &Scene) -> Vec<(u64, u64, bool)> {
    let finished = dump(scene, &["--journal", "--json"]);
    let values = finished
        .stdout
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    values
        .filter(|value| value["what"] == "batch")
        .map(|v| {
            let number = |key: &str| v[key].as_u64().expect("a number");
            (number("offset"), number("bytes"), v["applied"] == true)
        })
        .collect()
}

#[test]
fn damaged_metadata_is_mended_or_refused_and_the_copy_is_named() {
    let mut scene = Scene::serving(small());
    let mut client = scene.open(0, "db");
    client.write_at(0, &[7; 8192], true).expect("written");
    scene.await_caught_up(VICTIM, 0);
    scene.cluster.terminate(VICTIM).expect("stopped");
    let meta = file(&scene, VICTIM, "meta");
    let sound = fs::read(&meta).expect("readable");
    let copy = |number: u64| number * 65_536;
    assert_eq!(damage(&scene), []);

    // One bit, two whole copies, half of the file: two equal copies are left, and it goes on.
    let mut mend = |what: &str, harm: &dyn Fn(), found: &[u64]| {
        fs::write(&meta, &sound).expect("restored");
        harm();
        let named = damage(&scene);
        let named: Vec<u64> = named
            .iter()
            .map(|(path, offset)| {
                assert_eq!(*path, meta);
                *offset
            })
            .collect();
        assert_eq!(named, found, "{what}");
        scene.cluster.start(VICTIM).expect("it starts");
        scene.await_caught_up(VICTIM, 0);
        scene.cluster.terminate(VICTIM).expect("stopped");
        assert_eq!(damage(&scene), [], "{what}: mended");
    };
    mend("a bit", &|| flip(&meta, copy(1) + 300), &[copy(1)]);
    let two = || [0, 3].into_iter().for_each(|n| flip(&meta, copy(n)));
    mend("two copies", &two, &[copy(0), copy(3)]);
    let end = 100_000;
    mend("cut", &|| cut(&meta, end), &[end, copy(2), copy(3)]);

    // Three copies: nothing proves that the last one is the newest.
    fs::write(&meta, &sound).expect("restored");
    [0, 1, 2]
        .into_iter()
        .for_each(|n| flip(&meta, copy(n) + 20));
    let said = refuses(&scene);
    assert!(said.contains("1 of 4 copies are intact"), "{said}");
    let text = dump(&scene, &["--meta"]).stdout;
    assert!(
        text.contains("no two copies agree") && text.contains("resource     pbx"),
        "{text}"
    );
    cut(&meta, 0);
    let said = refuses(&scene);
    assert!(said.contains("not created"), "{said}");
    client
        .write_at(0, &[8; 8192], true)
        .expect("nobody else minds");
}

#[test]
fn disks_that_belong_elsewhere_are_refused_by_name() {
    let mut scene = Scene::serving(small());
    scene.await_caught_up(VICTIM, 0);
    for node in [1, VICTIM] {
        scene.cluster.terminate(node).expect("stopped");
    }
    let (meta, journal) = (
        file(&scene, VICTIM, "meta"),
        file(&scene, VICTIM, "journal"),
    );
    let sound = [&meta, &journal].map(|path| fs::read(path).expect("readable"));
    let restore = || {
        fs::write(&meta, &sound[0]).expect("restored");
        fs::write(&journal, &sound[1]).expect("restored");
    };
    // Another node's journal, and all of another node.
    fs::copy(file(&scene, 1, "journal"), &journal).expect("copied");
    let said = refuses(&scene);
    assert!(
        said.contains("the journal belongs to another node"),
        "{said}"
    );
    assert_eq!(damage(&scene).first(), Some(&(journal.clone(), 0)));
    fs::copy(file(&scene, 1, "meta"), &meta).expect("copied");
    let said = refuses(&scene);
    assert!(
        said.contains("belongs to node `pbx-b`, this is `pbx-c`"),
        "{said}"
    );
    restore();
    // Another resource's.
    let config = scene.cluster.config().to_owned();
    let text = fs::read_to_string(&config).expect("readable");
    fs::write(
        &config,
        text.replace("resource = \"pbx\"", "resource = \"other\""),
    )
    .expect("written");
    let said = refuses(&scene);
    assert!(
        said.contains("belongs to resource `pbx`, the config is for `other`"),
        "{said}"
    );
    fs::write(&config, text).expect("restored");
    // No label, and not all of the journal or of a store.
    flip(&journal, 17);
    let said = refuses(&scene);
    assert!(
        said.contains("does not begin with a journal's label"),
        "{said}"
    );
    restore();
    cut(&journal, 5 << 20);
    let said = refuses(&scene);
    assert!(
        said.contains("has 5242880 bytes") && said.contains("journal"),
        "{said}"
    );
    assert_eq!(damage(&scene)[0], (journal.clone(), 5 << 20));
    restore();
    let store = scene.cluster.store(VICTIM, "recordings");
    let bytes = fs::metadata(&store).expect("there").len();
    cut(&store, 4096);
    let said = refuses(&scene);
    assert!(
        said.contains("recordings") && said.contains("4096"),
        "{said}"
    );
    cut(&store, bytes);
    scene.cluster.start(VICTIM).expect("as it was");
    scene.await_caught_up(VICTIM, 0);
}

#[test]
fn a_node_without_its_checksums_does_not_start_and_says_what_to_do() {
    let mut scene = Scene::serving(small());
    scene.await_caught_up(VICTIM, 0);
    scene.cluster.terminate(VICTIM).expect("stopped");
    let check_fails = |word: &str| {
        let check = scene.cluster.ctl(VICTIM, &["check"], BOUND);
        let check = check.expect("replctl runs");
        assert_eq!(check.code, exit::FAILED, "{}", check.stdout);
        let wrong = check
            .stdout
            .lines()
            .find(|line| line.starts_with("FAIL") && line.contains(word));
        assert!(wrong.is_some(), "{word}: {}", check.stdout);
    };
    for name in ["sums", "stage"] {
        let path = file(&scene, VICTIM, name);
        let shown = path.display().to_string();
        let kept = path.with_extension("kept");
        fs::rename(&path, &kept).expect("renamed");
        let said = refuses(&scene);
        let gone = format!("{shown} is not there");
        assert!(
            said.contains(&gone) && said.contains("create --wipe"),
            "{said}"
        );
        check_fails(&gone);
        fs::copy(&kept, &path).expect("copied");
        cut(&path, 4096);
        let said = refuses(&scene);
        let short = format!("{shown}: has 4096 bytes");
        assert!(
            said.contains(&short) && said.contains("cut short"),
            "{said}"
        );
        check_fails(&format!("{shown} has 4096 bytes"));
        fs::rename(&kept, &path).expect("put back");
    }
    scene.cluster.start(VICTIM).expect("as it was");
    scene.await_caught_up(VICTIM, 0);
}

/// What `dump --sums --verify` says of the volumes, by name.
fn verified(scene: &Scene) -> BTreeMap<String, Value> {
    let finished = dump(scene, &["--sums", "--verify", "--json"]);
    let lines = finished.stdout.lines();
    let values = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let of_volumes = values.filter(|value| value["what"] == "verified");
    of_volumes
        .map(|v| (v["volume"].as_str().expect("a name").to_owned(), v))
        .collect()
}

#[test]
fn blocks_that_rotted_at_rest_are_named_by_the_dump() {
    let mut scene = Scene::serving(small());
    let mut client = scene.open(0, "db");
    for block in [3, 700, 701, 702, 4095] {
        let bytes = [(block % 251) as u8 + 1; 4096];
        client
            .write_at(block * 4096, &bytes, true)
            .expect("written");
    }
    client.disconnect().expect("goodbye");
    scene.await_caught_up(VICTIM, 0);
    // What it does not know to be committed stays in its journal when it stops.
    scene.await_status(VICTIM, "it knows what is committed", |status| {
        status.seq.committed == status.seq.durable
    });
    scene.cluster.terminate(VICTIM).expect("stopped");
    let number = |volume: &Value, key: &str| volume[key].as_u64().expect("a number");
    for volume in verified(&scene).values() {
        assert_eq!(number(volume, "same"), number(volume, "blocks"), "{volume}");
    }
    // One that was written, one in the midst of others and one that never was, each by one bit.
    let store = scene.cluster.store(VICTIM, "db");
    let rotten: Vec<u64> = [3, 701, 1000].into_iter().map(|b| b * 4096).collect();
    for &offset in &rotten {
        flip(&store, offset + 4000);
    }
    let finished = dump(&scene, &["--sums", "--verify", "--json"]);
    assert_eq!(finished.code, exit::FAILED, "{}", finished.stdout);
    assert!(finished.stderr.contains("3 places"), "{}", finished.stderr);
    let lines = finished.stdout.lines();
    let values = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let named: Vec<u64> = values
        .filter(|v| v["what"] == "damage")
        .map(|v| {
            assert_eq!(v["path"].as_str(), store.to_str());
            number(&v, "offset")
        })
        .collect();
    assert_eq!(named, rotten);
    assert_eq!(number(&verified(&scene)["db"], "differ"), 3);
    for &offset in &rotten {
        flip(&store, offset + 4000);
    }
    // Both versions of a page of checksums: nothing is known of its blocks, and nothing is wrong with them.
    let sums = file(&scene, VICTIM, "sums");
    let kept = fs::read(&sums).expect("readable");
    for slot in 0..2 {
        flip(&sums, slot * STRIPE_PAGES * 4096 + 100);
    }
    assert_eq!(damage(&scene), [(sums.clone(), 0)]);
    let db = &verified(&scene)["db"];
    assert_eq!((number(db, "unknown"), number(db, "differ")), (896, 0));
    fs::write(&sums, kept).expect("restored");
    assert_eq!(damage(&scene), []);

    // What the journal has newer is skipped, whatever of it the stores have.
    scene.cluster.start(VICTIM).expect("started");
    scene.await_caught_up(VICTIM, 0);
    let mut streams = scene.busy_streams();
    for _ in 0..3 {
        let load = scene.work(0, streams);
        scene.await_writes(&load, 150);
        scene.cluster.kill(VICTIM).expect("killed");
        streams = scene.finish(load);
        for volume in verified(&scene).values() {
            let newer = number(volume, "skipped");
            let same = number(volume, "same");
            assert_eq!(same + newer, number(volume, "blocks"), "{volume}");
        }
        scene.cluster.start(VICTIM).expect("started");
        scene.await_caught_up(VICTIM, 0);
    }
    scene.cluster.terminate(VICTIM).expect("stopped");
    for volume in verified(&scene).values() {
        assert_eq!(
            number(volume, "differ") + number(volume, "unknown"),
            0,
            "{volume}"
        );
    }
}

#[test]
fn a_damaged_journal_is_named_and_mended_from_the_peers() {
    // The peers' journals reach back over the victim's absence.
    let journal_bytes = 128 << 20;
    let mut scene = Scene::serving(Spec {
        journal_bytes,
        ..small()
    });
    let mut streams = scene.busy_streams();
    let mut harmed = 0;
    for round in 0..4 {
        let load = scene.work(0, streams);
        scene.await_writes(&load, 150);
        scene.cluster.kill(VICTIM).expect("killed");
        // No more than its peers' journals hold.
        streams = scene.finish(load);
        let journal = file(&scene, VICTIM, "journal");
        let batches = batches(&scene);
        let unapplied = batches.iter().filter(|(_, _, applied)| !applied);
        // The newest that another one follows, and so on towards the older: a header, a payload.
        if let Some(&(offset, bytes, _)) = unapplied.rev().nth(1 + round) {
            let payload = round % 2 == 1 && bytes > 4096;
            flip(&journal, offset + if payload { 4096 + 99 } else { 200 });
            harmed += 1;
            let named = damage(&scene);
            let before = scene.cluster.log(VICTIM).len();
            scene.cluster.start(VICTIM).expect("started");
            scene.await_caught_up(VICTIM, 0);
            // A tail that nobody was told of is cut; anything else is damage, and has its place. What it says of that at its start
            // may come a moment after it answers.
            let place = (journal, offset);
            let what = format!("its log agrees with {named:?}");
            let agrees = scene.cluster.wait(&what, BOUND, |cluster| {
                let log = cluster.log(VICTIM);
                let start = log.get(before..).unwrap_or_default();
                let lost = start.contains("is damaged or missing");
                let same = named.first() == lost.then_some(&place);
                Ok(if start.contains("the log was recovered") && same {
                    Ok(())
                } else {
                    Err(start.to_owned())
                })
            });
            agrees.unwrap_or_else(|error| panic!("{error}"));
        } else {
            scene.cluster.start(VICTIM).expect("started");
            scene.await_caught_up(VICTIM, 0);
        }
    }
    assert!(harmed > 0, "there was never anything to harm");
    scene.verify(0);
    scene.stop_and_compare(0);
}

#[test]
fn a_node_of_another_history_stays_alone_and_says_so() {
    // The cluster is created anew, but for one node whose old disks come back.
    let mut scene = Scene::serving(small());
    let old = scene.cluster.data_dir(VICTIM).with_extension("old");
    scene.cluster.terminate_all().expect("stopped");
    fs::create_dir(&old).expect("made");
    for name in ["meta", "journal"] {
        fs::copy(file(&scene, VICTIM, name), old.join(name)).expect("kept");
    }
    for node in 0..3 {
        scene
            .cluster
            .expect_done(node, &["create", "--wipe"])
            .expect("created");
    }
    scene.cluster.start_all().expect("started");
    scene.promote(0);
    scene.cluster.terminate(VICTIM).expect("stopped");
    for name in ["meta", "journal"] {
        fs::copy(old.join(name), file(&scene, VICTIM, name)).expect("put back");
    }
    scene.cluster.start(VICTIM).expect("started");
    let alone = scene
        .cluster
        .wait_status(0, "it is StandAlone", BOUND, |status| {
            let peer = status
                .peer("pbx-c")
                .and_then(|peer| peer.connection.as_deref());
            peer == Some("StandAlone")
        });
    assert!(alone.expect("status says so").serves());
    scene.await_logged(0, "belongs to another resource");
    scene
        .open(0, "db")
        .write_at(0, &[1; 4096], true)
        .expect("two are a majority");
}
