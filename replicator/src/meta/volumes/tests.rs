use super::*;

fn name(text: &str) -> Name {
    Name::from(text).unwrap()
}

fn two() -> Volumes {
    let none = Volumes::default();
    let one = none.with(name("db"), 8 << 20).unwrap();
    one.with(name("recordings"), 4096).unwrap()
}

#[test]
fn the_format_is_this() {
    let raw = two().without("db").unwrap().to_raw();
    let bytes = raw.as_bytes();
    assert_eq!(&bytes[..8], [2, 0, 1, 0, 0, 0, 0, 0]);
    assert!(bytes[8..80].iter().all(|&b| b == 0), "a hole");
    assert_eq!(bytes[80], 10);
    assert_eq!(&bytes[81..91], b"recordings");
    assert_eq!(&bytes[144..152], [0, 16, 0, 0, 0, 0, 0, 0]);
    assert!(bytes[152..].iter().all(|&b| b == 0));
    assert_eq!(bytes.len(), 1160);
}

#[test]
fn a_volume_keeps_its_id_and_a_hole_is_taken_by_the_next() {
    let holed = two().without("db").unwrap();
    assert_eq!(holed.find("recordings").unwrap().0, VolumeId(1));
    assert_eq!(holed.get(VolumeId(0)), None);
    let third = holed.with(name("mail"), 4096).unwrap();
    assert_eq!(third.find("mail").unwrap().0, VolumeId(0));
    assert_eq!(third.find("recordings").unwrap().0, VolumeId(1));
    assert_eq!(Volumes::from_raw(&third.to_raw()), Some(third));
}

#[test]
fn what_was_made_smaller_is_remembered() {
    let grown = two().resized("db", 9 << 20).unwrap();
    assert!(!grown.shrunk && grown.covers(&two()) && !two().covers(&grown));
    let shrunk = grown.resized("db", 8 << 20).unwrap();
    assert!(shrunk.shrunk && shrunk.resized("db", 9 << 20).unwrap().shrunk);
}

#[test]
fn tables_that_nobody_can_have_written_are_refused() {
    assert_eq!(two().resized("db", 4095), Err(VolumesError::Size));
    assert_eq!(two().resized("nothing", 4096), Err(VolumesError::Unknown));
    assert_eq!(two().with(name("db"), 4096), Err(VolumesError::Exists));
    let refused = |change: fn(&mut RawVolumes)| {
        let mut raw = two().to_raw();
        change(&mut raw);
        Volumes::from_raw(&raw).is_none()
    };
    assert!(refused(|raw| raw.count = U16::new(17)));
    assert!(refused(|raw| raw.volumes[0].length = 64));
    assert!(refused(|raw| raw.volumes[0].length = 0));
    assert!(refused(|raw| raw.volumes[0].bytes = U64::new(0)));
    assert!(refused(
        |raw| raw.volumes[0].bytes = U64::new(u64::MAX << 12)
    ));
    assert!(refused(|raw| raw.volumes[1] = raw.volumes[0]));
    assert!(refused(|raw| raw.volumes[0].name[0] = 0xff));
    let mut full = Volumes::default();
    for n in 0..VOLUMES_MAX {
        full = full.with(name(&format!("v{n}")), 4096).unwrap();
    }
    assert_eq!(full.with(name("more"), 4096), Err(VolumesError::Full));
}
