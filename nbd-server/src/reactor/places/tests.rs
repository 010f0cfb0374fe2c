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
    let stores = volumes.iter().map(|(_, v)| {
        let name = format!("{}.img", v.name);
        file(&name).set_len(v.bytes).unwrap();
        Some(path(&name))
    });
    let root = dir.path().to_owned();
    Places {
        volumes: volumes.clone(),
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

#[test]
fn room_is_made_and_made_again_and_given_back() {
    let dir = TempDir::new().unwrap();
    let grown = one().resized("db", 300 * MIB).unwrap();
    for _ in 0..2 {
        let places = places(&dir, &one()).make_room(&grown).unwrap();
        assert_eq!(length(&dir, "db.img"), 300 * MIB);
        assert_eq!(length(&dir, "stage"), 300 * MIB);
        assert_eq!(length(&dir, "sums"), sums::file_bytes(grown.sizes()));
        let places = places.fit(&one()).unwrap();
        assert_eq!(length(&dir, "db.img"), MIB);
        assert_eq!(places.volumes, one());
    }
}

#[test]
fn a_new_volume_goes_where_the_config_file_says_if_nothing_is_there() {
    let dir = TempDir::new().unwrap();
    let two = one().with(name("mail"), MIB).unwrap();
    let made = places(&dir, &one()).make_room(&two).unwrap();
    assert_eq!(made.stores[1], Some(dir.path().join("mail.img")));
    // A file that is one hole was made for a change that did not come.
    places(&dir, &one()).make_room(&two).unwrap();
    std::fs::write(dir.path().join("mail.img"), [1; 4096]).unwrap();
    let refused = |volumes: &Volumes| places(&dir, &one()).make_room(volumes).unwrap_err();
    assert_eq!(refused(&two), VolumeTrouble::NotBlank.into());
    let nowhere = one().with(name("nowhere"), MIB).unwrap();
    assert_eq!(refused(&nowhere), VolumeTrouble::NotInConfig.into());
    let larger = one().with(name("other"), MIB + BLOCK_BYTES_U64).unwrap();
    let other = VolumeTrouble::OtherSize { bytes: MIB };
    assert_eq!(refused(&larger), other.into());
}

#[test]
fn a_store_is_never_that_of_two_volumes() {
    let dir = TempDir::new().unwrap();
    let two = one().with(name("mail"), MIB).unwrap();
    // Both were removed while this node was away, and added again in the other order.
    let table = |names: [&str; 2]| {
        let record = |text| VolumeRecord {
            name: name(text),
            bytes: MIB,
        };
        names.into_iter().map(record).collect::<Volumes>()
    };
    let swapped = table(["mail", "db"]);
    for file in ["db.img", "mail.img"] {
        let before = places(&dir, &two);
        std::fs::write(dir.path().join(file), [1; 4096]).unwrap();
        let refused = before.make_room(&swapped).unwrap_err();
        assert_eq!(refused, VolumeTrouble::NotBlank.into(), "{file}");
    }
    // Nothing is in them: then they may be used.
    let made = places(&dir, &two).make_room(&swapped).unwrap();
    let path = |name: &str| Some(dir.path().join(name));
    assert_eq!(made.stores, [path("mail.img"), path("db.img")]);
    made.fit(&swapped).unwrap();
    assert_eq!(
        (length(&dir, "mail.img"), length(&dir, "db.img")),
        (MIB, MIB)
    );
    // One has got another's place, and nobody has that any more.
    let moved = table(["mail", "gone"]);
    let moved = moved.without("gone").unwrap();
    let made = places(&dir, &two).make_room(&moved).unwrap();
    made.fit(&moved).unwrap();
    assert_eq!(length(&dir, "mail.img"), MIB);
}

#[test]
fn the_store_of_a_volume_that_is_gone_is_kept_under_another_name() {
    let dir = TempDir::new().unwrap();
    for kept in ["db.img.removed", "db.img.removed.1"] {
        let places = places(&dir, &one());
        let places = places.fit(&one().without("db").unwrap()).unwrap();
        assert_eq!(places.stores, [None]);
        assert!(!dir.path().join("db.img").exists());
        assert_eq!(length(&dir, kept), MIB);
    }
}
