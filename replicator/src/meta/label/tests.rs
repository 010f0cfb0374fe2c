use super::*;
use crate::journal::testing::{JOURNAL_BYTES, superblock};

fn label() -> Vec<u8> {
    let mut block = vec![9; BLOCK_BYTES];
    encode(Incarnation(1), JOURNAL_BYTES, &mut block);
    block
}

#[test]
fn a_journal_is_known_by_its_label() {
    assert_eq!(check(&superblock(), &label()), Ok(()));
}

#[test]
fn another_nodes_journal_is_foreign() {
    let mut other = superblock();
    other.incarnation = Incarnation(2);
    assert_eq!(check(&other, &label()), Err(LabelError::Foreign));
}

#[test]
fn another_size_is_named() {
    let mut other = superblock();
    other.journal_bytes += BLOCK_BYTES_U64;
    assert_eq!(check(&other, &label()), Err(LabelError::Size));
}

#[test]
fn another_version_is_named() {
    let mut block = label();
    block[8] = 2;
    block[40..44].fill(0);
    let checksum = crc32fast::hash(&block[..44]);
    block[40..44].copy_from_slice(U32::new(checksum).as_bytes());
    assert_eq!(check(&superblock(), &block), Err(LabelError::Version(2)));
}

#[test]
fn every_flipped_bit_of_a_label_is_noticed() {
    let mut block = label();
    for at in 0..size_of::<RawLabel>() {
        for bit in 0..8 {
            block[at] ^= 1 << bit;
            assert_eq!(check(&superblock(), &block), Err(LabelError::NoLabel));
            block[at] ^= 1 << bit;
        }
    }
}

#[test]
fn what_is_no_label_is_none() {
    for block in [
        vec![],
        vec![0; 10],
        vec![0; BLOCK_BYTES],
        vec![0xff; BLOCK_BYTES],
    ] {
        assert_eq!(check(&superblock(), &block), Err(LabelError::NoLabel));
    }
}

/// A change of these bytes is a change of the format: raise the version and tell it in `docs/format.md`.
#[test]
fn the_format_is_this() {
    let block = label();
    let hex: String = block[..44].iter().map(|b| format!("{b:02x}")).collect();
    let golden = "5250504a4f55524e01000000000000000100000000000000\
                  000000000000000000000001000000006fbe07f5";
    assert_eq!(hex, golden);
    assert!(block[44..].iter().all(|&b| b == 0));
}

#[test]
fn a_created_node_is_found_again() {
    let volumes = superblock().volumes;
    let params = FormatParams {
        resource: superblock().resource,
        node: superblock().node,
        incarnation: Incarnation(77),
        journal_bytes: JOURNAL_BYTES_MIN,
        volumes: volumes.iter().map(|(_, v)| *v).collect(),
        seed: false,
    };
    let (meta, label) = format_node(&params);
    assert_eq!(meta.len() as u64, META_BYTES);
    let copies = std::array::from_fn(|copy| {
        let at = usize::try_from(copy_offset(copy)).unwrap();
        meta[at..at + BLOCK_BYTES].try_into().unwrap()
    });
    let found = crate::meta::superblock::choose(&copies).unwrap().superblock;
    assert!(found.fresh());
    assert_eq!(found.volumes, volumes);
    assert_eq!(found.damaged_until, RecordId::NONE);
    assert_eq!(check(&found, &label), Ok(()));
}

#[test]
fn a_created_witness_is_its_metadata() {
    let meta = format_witness(superblock().resource, superblock().node, Incarnation(77));
    assert_eq!(meta.len() as u64, META_BYTES);
    let copies = std::array::from_fn(|copy| {
        let at = usize::try_from(copy_offset(copy)).unwrap();
        meta[at..at + BLOCK_BYTES].try_into().unwrap()
    });
    let found = crate::meta::superblock::choose(&copies).unwrap().superblock;
    assert!(found.fresh());
    assert_eq!(found.incarnation, Incarnation(77));
    assert_eq!(found.journal_bytes, 0);
}
