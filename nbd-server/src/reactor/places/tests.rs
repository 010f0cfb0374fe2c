use replicator::meta::config::Name;
use replicator::types::BLOCK_BYTES_U64;
use tempfile::TempDir;

use super::*;

const MIB: u64 = 1 << 20;

fn places(dir: &TempDir, volumes: &Volumes) -> Places {
    let path = |name: &str| dir.path().join(name);
    let file = |name: &str| File::create(path(name)).unwrap();
    file("sums")
        .set_len(sums::file_bytes(volumes.sizes()))
        .unwrap();
    file("stage").set_len(volumes.sizes().sum()).unwrap();
    let stores = volumes.slots().map(|v| {
        let name = format!("{}.img", v.name);
        if v.bytes == 0 {
            return None;
        }
        file(&name).set_len(v.bytes).unwrap();
        Some(Store {
            name: v.name,
            bytes: v.bytes,
            path: path(&name),
        })
    });
    let root = dir.path().to_owned();
    Places {
        stores: stores.collect(),
        sums: Some(path("sums")),
        stage: Some(path("stage")),
        finder: Arc::new(move |name| match name {
            "nowhere" => None,
            _ => Some((root.join(format!("{name}.img")), MIB)),
        }),
    }
}

fn name(text: &str) -> Name {
    Name::from(text).unwrap()
}

fn one() -> Volumes {
    Volumes::default().with(name("db"), MIB).unwrap()
}

fn length(dir: &TempDir, name: &str) -> u64 {
    std::fs::metadata(dir.path().join(name)).unwrap().len()
}

/// The paths of stores, by the ids of the volumes.
fn paths(dir: &TempDir, names: &[&str]) -> Vec<Option<PathBuf>> {
    let path = |name: &&str| (!name.is_empty()).then(|| dir.path().join(format!("{name}.img")));
    names.iter().map(path).collect()
}

/// A table with these volumes, or holes.
fn table(names: &[&str]) -> Volumes {
    let record = |text: &&str| VolumeRecord {
        name: name(text),
        bytes: if text.is_empty() { 0 } else { MIB },
    };
    names.iter().map(record).collect()
}

fn has(dir: &TempDir, file: &str) -> u8 {
    std::fs::read(dir.path().join(file)).unwrap()[0]
}

#[test]
fn room_is_made_and_made_again_and_given_back() {
    let dir = TempDir::new().unwrap();
    let grown = one().resized("db", 300 * MIB).unwrap();
    for _ in 0..2 {
        let mut places = places(&dir, &one());
        places.make_room(&one(), &grown).unwrap();
        assert_eq!(length(&dir, "db.img"), 300 * MIB);
        assert_eq!(length(&dir, "stage"), 300 * MIB);
        assert_eq!(length(&dir, "sums"), sums::file_bytes(grown.sizes()));
        places.fit(&one()).unwrap();
        assert_eq!(length(&dir, "db.img"), MIB);
        assert!(places.sizes().eq([MIB]));
    }
}

#[test]
fn a_new_volume_goes_where_the_config_file_says_if_nothing_is_there() {
    let dir = TempDir::new().unwrap();
    let two = one().with(name("mail"), MIB).unwrap();
    let mut made = places(&dir, &one());
    made.make_room(&one(), &two).unwrap();
    assert_eq!(made.paths(), paths(&dir, &["db", "mail"]));
    // A file that is one hole was made for a change that did not come.
    places(&dir, &one()).make_room(&one(), &two).unwrap();
    std::fs::write(dir.path().join("mail.img"), [1; 4096]).unwrap();
    let refused = |volumes: &Volumes| {
        let mut places = places(&dir, &one());
        places.make_room(&one(), volumes).unwrap_err()
    };
    assert_eq!(refused(&two), VolumeTrouble::NotBlank.into());
    let nowhere = one().with(name("nowhere"), MIB).unwrap();
    assert_eq!(refused(&nowhere), VolumeTrouble::NotInConfig.into());
    let larger = one().with(name("other"), MIB + BLOCK_BYTES_U64).unwrap();
    let other = VolumeTrouble::OtherSize { bytes: MIB };
    assert_eq!(refused(&larger), other.into());
}

#[test]
fn a_place_that_was_made_for_a_change_that_did_not_come_is_given_to_the_next_one() {
    let dir = TempDir::new().unwrap();
    let mut places = places(&dir, &one());
    places.make_room(&one(), &table(&["db", "mail"])).unwrap();
    places.make_room(&one(), &table(&["db", "fax"])).unwrap();
    assert_eq!(places.paths(), paths(&dir, &["db", "fax"]));
}

#[test]
fn what_a_node_has_stays_until_others_are_its_volumes() {
    let own = table(&["db", "mail", "", "voice"]);
    // Removed while this node was away, and added again in another order; or one has the place of another, which nobody has any more; or
    // one that is there has gone to a place that was free.
    for (volumes, names) in [
        (
            table(&["mail", "db", "", "voice"]),
            ["mail", "db", "", "voice"],
        ),
        (table(&["mail", "", "", "voice"]), ["mail", "", "", "voice"]),
        (
            table(&["fax", "", "db", "voice"]),
            ["fax", "", "db", "voice"],
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let mut places = places(&dir, &own);
        for (file, byte) in [("db.img", 1), ("mail.img", 2), ("voice.img", 3)] {
            std::fs::write(dir.path().join(file), [byte; 4096]).unwrap();
        }
        places.make_room(&own, &volumes).unwrap();
        assert_eq!(places.paths(), paths(&dir, &["db", "mail", "", "voice"]));
        assert_eq!((has(&dir, "db.img"), has(&dir, "mail.img")), (1, 2));
        places.fit(&volumes).unwrap();
        assert_eq!(places.paths(), paths(&dir, &names));
        for (_, volume) in volumes.iter().filter(|(_, v)| v.name.as_str() != "voice") {
            let file = format!("{}.img", volume.name);
            assert_eq!((length(&dir, &file), has(&dir, &file)), (MIB, 0), "{file}");
        }
        let aside = ["db.img.removed", "mail.img.removed", "voice.img"];
        assert_eq!(aside.map(|file| has(&dir, file)), [1, 2, 3]);
        // Once more, as after a crash: nothing is left to be done.
        places.fit(&volumes).unwrap();
        assert_eq!(places.paths(), paths(&dir, &names));
    }
}

#[test]
fn whoever_gets_a_place_later_is_looked_for_before() {
    let dir = TempDir::new().unwrap();
    let mut places = places(&dir, &one());
    let nowhere = places.make_room(&one(), &table(&["nowhere"]));
    assert_eq!(nowhere, Err(VolumeTrouble::NotInConfig.into()));
    std::fs::write(dir.path().join("fax.img"), [1; 4096]).unwrap();
    let full = places.make_room(&one(), &table(&["fax"]));
    assert_eq!(full, Err(VolumeTrouble::NotBlank.into()));
    assert_eq!(places.paths(), paths(&dir, &["db"]));
}

#[test]
fn what_was_done_is_known_also_if_the_rest_can_not_be() {
    let dir = TempDir::new().unwrap();
    let places = places(&dir, &one());
    let wanted = Wanted::Fit {
        volumes: Box::new(table(&["nowhere"])),
    };
    let moved = places.changed(Ticket(1), &wanted);
    assert_eq!(moved.result.err(), Some(VolumeTrouble::NotInConfig.into()));
    assert_eq!(moved.places.paths(), [None]);
    assert_eq!(length(&dir, "db.img.removed"), MIB);
}

#[test]
fn only_a_store_that_was_to_be_made_is_made_at_the_start() {
    let dir = TempDir::new().unwrap();
    let places = places(&dir, &table(&["db", "mail"]));
    for file in ["db.img", "mail.img"] {
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
    places.complete(0b10).unwrap();
    assert_eq!(length(&dir, "mail.img"), MIB);
    assert!(!dir.path().join("db.img").exists(), "it may be elsewhere");
}

#[test]
fn the_store_of_a_volume_that_is_gone_is_kept_under_another_name() {
    let dir = TempDir::new().unwrap();
    for kept in ["db.img.removed", "db.img.removed.1"] {
        let mut places = places(&dir, &one());
        places.fit(&one().without("db").unwrap()).unwrap();
        assert_eq!(places.stores, [None]);
        assert!(!dir.path().join("db.img").exists());
        assert_eq!(length(&dir, kept), MIB);
    }
}

#[test]
fn a_store_of_a_change_that_did_not_come_is_looked_at_like_any_other_place() {
    let dir = TempDir::new().unwrap();
    let (before, after) = (table(&["db"]), table(&["db", "v2"]));
    let mut places = places(&dir, &before);
    let store = dir.path().join("v2.img");
    places.make_room(&before, &after).unwrap();
    assert_eq!(length(&dir, "v2.img"), MIB);
    // Nothing was written there: it is as good as a new one.
    places.make_room(&before, &after).unwrap();
    // Whoever was told that nothing is changed has removed it.
    std::fs::remove_file(&store).unwrap();
    places.make_room(&before, &after).unwrap();
    assert_eq!(length(&dir, "v2.img"), MIB);
    // Or has something else there by now.
    std::fs::write(&store, [7; 4096]).unwrap();
    let refused = places.make_room(&before, &after);
    assert_eq!(refused, Err(VolumeTrouble::NotBlank.into()));
    assert_eq!(has(&dir, "v2.img"), 7);
    // Once the node has the volume, it is its own.
    places.make_room(&after, &after).unwrap();
}

#[test]
fn a_volume_whose_blocks_nobody_could_remember_gets_no_room() {
    let dir = TempDir::new().unwrap();
    let before = table(&["db"]);
    let mut places = places(&dir, &before);
    let after = before.resized("db", 1 << 50).unwrap();
    let refused = places.make_room(&before, &after);
    assert_eq!(refused, Err(DiskError::Os(Errno::ENOMEM as i32)));
    assert_eq!(length(&dir, "db.img"), MIB, "nothing was changed");
}
