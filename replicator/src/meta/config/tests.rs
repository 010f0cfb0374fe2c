use proptest::prelude::*;

use super::*;
use crate::journal::testing::config;

fn bytes(config: &ClusterConfig) -> Vec<u8> {
    config.to_raw().as_bytes().to_vec()
}

fn read(bytes: &[u8]) -> Option<ClusterConfig> {
    ClusterConfig::from_raw(&RawConfig::read_from_bytes(bytes).unwrap())
}

#[test]
fn what_was_written_is_what_is_read() {
    assert_eq!(read(&bytes(&config(3))), Some(config(3)));
    assert_eq!(read(RawConfig::empty().as_bytes()), None);
}

#[test]
fn standing_is_counted_by_incarnation() {
    let config = config(1);
    assert_eq!((config.voters(), config.members()), (3, 2));
    assert!(config.is_voter(Incarnation(3)) && !config.is_member(Incarnation(3)));
    assert!(config.is_member(Incarnation(2)) && !config.is_voter(Incarnation(4)));
    let majorities: Vec<_> = (1..=8).map(majority).collect();
    assert_eq!(majorities, [1, 2, 2, 3, 3, 4, 4, 5]);
}

#[test]
fn a_node_that_counts_for_nothing_may_join_or_be_stopped_and_not_both() {
    let flags = 16 + 2 * 88 + 1;
    for (bits, is_fed) in [(0, false), (JOINING, true), (STOPPED, true)] {
        let mut bytes = bytes(&config(1));
        bytes[flags] = bits;
        let config = read(&bytes).unwrap();
        let standing = config.standing(Incarnation(3)).unwrap();
        assert!(!standing.counts());
        assert_eq!(standing.is_fed(), is_fed);
        assert_eq!(self::bytes(&config), bytes);
    }
    for bits in [JOINING | STOPPED, VOTER | JOINING, MEMBER | STOPPED] {
        let mut bytes = bytes(&config(1));
        bytes[flags] = bits;
        assert_eq!(read(&bytes), None, "flags {bits}");
    }
}

#[test]
fn a_changed_standing_takes_the_place_of_whatever_had_the_name() {
    let config = config(4);
    let name = Name::from("b").unwrap();
    let changed = config
        .with(Standing::full(name, Incarnation(9), true))
        .unwrap();
    assert_eq!(changed.version, 5);
    assert_eq!(changed.nodes.len(), 3);
    assert!(changed.is_member(Incarnation(9)) && changed.standing(Incarnation(2)).is_none());
    let mut full = config;
    for number in 4..=8u128 {
        let name = Name::from(&format!("n{number}")).unwrap();
        full = full
            .with(Standing::full(name, Incarnation(number), false))
            .unwrap();
    }
    assert!(full.nodes.is_sorted_by_key(|n| n.name));
    let name = Name::from("ninth").unwrap();
    assert_eq!(full.with(Standing::full(name, Incarnation(10), true)), None);
}

#[test]
fn a_config_that_no_record_can_carry_is_refused() {
    let node = |index: usize| 16 + index * 88;
    for (what, at, new) in [
        ("no version", 0, &[0u8][..]),
        ("nine nodes", 8, &[9]),
        ("65535 nodes", 8, &[0xff, 0xff]),
        ("a node without a name", node(0), &[0]),
        ("a name longer than its field", node(1), &[64]),
        ("a name that is no text", node(0) + 9, &[0xff]),
        ("two nodes of one name", node(1) + 9, b"a"),
        ("no incarnation", node(2) + 72, &[0]),
        ("two nodes of one incarnation", node(2) + 72, &[1]),
    ] {
        let mut bytes = bytes(&config(1));
        bytes[at..at + new.len()].copy_from_slice(new);
        assert_eq!(read(&bytes), None, "{what}");
    }
    for flag in [VOTER, MEMBER] {
        let mut bytes = bytes(&config(1));
        for index in 0..3 {
            bytes[node(index) + 1] &= !flag;
        }
        assert_eq!(read(&bytes), None, "nobody with flag {flag}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        scribbles in proptest::collection::vec((0..size_of::<RawConfig>(), any::<u8>()), 0..40),
    ) {
        let mut bytes = bytes(&config(1));
        for (at, byte) in scribbles {
            bytes[at] = byte;
        }
        if let Some(config) = read(&bytes) {
            prop_assert_eq!(read(&self::bytes(&config)), Some(config));
        }
    }
}
