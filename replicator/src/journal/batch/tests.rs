use proptest::prelude::*;

use super::*;
use crate::journal::testing::{Chain, config};

const ZERO: Kind = Kind::Zero {
    may_deallocate: false,
};
const TRIM: Kind = Kind::Zero {
    may_deallocate: true,
};

/// A record of each kind in the batches that may hold it.
fn every_kind() -> Vec<Vec<(Kind, u16, u64, u32)>> {
    vec![
        vec![(Kind::Epoch, 0, 0, 1)],
        vec![(Kind::Membership, 0, 0, 1)],
        vec![
            (Kind::Write, 0, 7, 2),
            (ZERO, 1, 100, ZERO_BLOCKS_MAX),
            (TRIM, 15, 0, 1),
            (Kind::Write, 3, 1 << 40, 1),
        ],
        vec![(TRIM, 0, 0, 1)],
        vec![(Kind::Demote, 0, 0, 0)],
    ]
}

/// `bytes` with a header checksum that fits them.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = header_checksum(&bytes);
    bytes[CHECKSUM_AT..FIXED_BYTES].copy_from_slice(U32::new(checksum).as_bytes());
    bytes
}

#[test]
fn what_was_written_is_what_is_read() {
    let mut chain = Chain::new();
    chain.epoch = Epoch(5);
    for records in every_kind() {
        let before = chain.tail;
        let made = chain.make(&records);
        let header = verify(&made.bytes).unwrap();
        assert_eq!(header, made.header);
        assert_eq!(header.prev_id(), before.id);
        assert_eq!(header.prev_checksum, before.checksum);
        assert_eq!(header.prev_blocks, before.blocks);
        assert_eq!(header.last(), Seq(before.id.seq.0 + records.len() as u64));
        assert_eq!(header.blocks() as usize * BLOCK_BYTES, made.bytes.len());
        let found: Vec<_> = descriptors(&made.bytes, &header).flatten().collect();
        let said: Vec<_> = found
            .iter()
            .map(|d| (d.kind, d.volume.0, d.block, d.blocks))
            .collect();
        assert_eq!(said, records);
        let control = matches!(records[0].0, Kind::Epoch | Kind::Membership);
        let expected = control.then(|| config(5));
        assert_eq!(config_of(&made.bytes, &header), expected);
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_noticed() {
    for records in every_kind() {
        let mut bytes = Chain::new().make(&records).bytes;
        for at in 0..BLOCK_BYTES {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                assert!(verify(&bytes).is_err(), "byte {at} bit {bit}");
                bytes[at] ^= 1 << bit;
            }
        }
        assert!(verify(&bytes).is_ok());
    }
}

#[test]
fn a_block_that_went_astray_does_not_verify() {
    let good = Chain::new().write(1).bytes;
    for (what, at) in [
        ("the volume", FIXED_BYTES + 2),
        ("the block", FIXED_BYTES + 8),
    ] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let checksum = header_checksum(&bytes);
        bytes[CHECKSUM_AT..FIXED_BYTES].copy_from_slice(U32::new(checksum).as_bytes());
        assert_eq!(verify(&bytes), Err(BatchFault::Payload(1)), "{what}");
    }

    let block = [9; BLOCK_BYTES];
    let here = block_crc(VolumeId(0), 7, &block);
    assert_ne!(here, block_crc(VolumeId(1), 7, &block));
    assert_ne!(here, block_crc(VolumeId(0), 8, &block));
    // The seed is ten bytes in front, so that volume and block can not stand for each other.
    assert_ne!(
        block_crc(VolumeId(1), 0, &block),
        block_crc(VolumeId(0), 1, &block)
    );
}

#[test]
fn a_batch_of_another_length_is_cut_short() {
    let bytes = Chain::new().write(2).bytes;
    for length in [
        0,
        1,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        2 * BLOCK_BYTES,
        bytes.len() - 1,
    ] {
        assert_eq!(verify(&bytes[..length]), Err(BatchFault::Short), "{length}");
    }
    let longer = [&bytes[..], &[0; BLOCK_BYTES]].concat();
    assert_eq!(verify(&longer), Err(BatchFault::Short));
}

#[test]
fn what_is_no_header_is_named() {
    assert_eq!(read_header(&[0; BLOCK_BYTES]), Err(BatchFault::Magic));
    let good = Chain::new().write(1).bytes;
    let mut damaged = good.clone();
    damaged[16] ^= 1;
    assert_eq!(read_header(&damaged), Err(BatchFault::HeaderChecksum));
    let mut newer = good;
    newer[8] = 2;
    assert_eq!(read_header(&sealed(newer)), Err(BatchFault::Version(2)));
}

#[test]
fn a_header_with_a_good_checksum_and_impossible_fields_is_refused() {
    let good = Chain::new().write(2).bytes;
    let with = |at: usize, bytes: &[u8]| {
        let mut block = good.clone();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        read_header(&sealed(block))
    };
    assert!(with(0, &[]).is_ok());
    let descriptor = FIXED_BYTES;
    for (what, at, bytes) in [
        ("no header blocks", 10, &[0u8][..]),
        ("two header blocks", 10, &[2]),
        ("no records", 12, &[0]),
        ("65 records", 12, &[65]),
        ("65535 records", 12, &[0xff, 0xff]),
        ("epoch 0", 48, &[0]),
        ("a previous epoch that is newer", 56, &[2]),
        ("first record 0", 64, &[0]),
        ("first record at the end of numbers", 64, &[0xff; 8]),
        ("a committed floor above itself", 72, &[2]),
        ("one payload block", 80, &[1]),
        ("three payload blocks", 80, &[3]),
        ("2^32 - 1 payload blocks", 80, &[0xff; 4]),
        ("a batch before it of 386 blocks", 84, &[0x82, 1]),
        ("kind 0", descriptor, &[0]),
        ("kind 3", descriptor, &[3]),
        ("a write with flags", descriptor + 1, &[1]),
        ("a write of nothing", descriptor + 4, &[0]),
        ("a write of 2^32 - 1 blocks", descriptor + 4, &[0xff; 4]),
        ("blocks past 2^64", descriptor + 8, &[0xff; 8]),
        ("payload in the header", descriptor + 16, &[0]),
        ("payload with a gap", descriptor + 16, &[2]),
    ] {
        assert_eq!(with(at, bytes), Err(BatchFault::Field), "{what}");
    }
    let with_records = |records: &[(Kind, u16, u64, u32)]| {
        let bytes = Chain::new().make(records).bytes;
        read_header(&bytes).map(|_| ())
    };
    let refused = Err(BatchFault::Field);
    assert_eq!(with_records(&[(ZERO, 0, 0, 0)]), refused);
    assert_eq!(with_records(&[(ZERO, 0, 0, ZERO_BLOCKS_MAX + 1)]), refused);
    assert_eq!(with_records(&[(Kind::Demote, 0, 0, 1)]), refused);
    for control in [
        (Kind::Demote, 0, 0, 0),
        (Kind::Epoch, 0, 0, 1),
        (Kind::Membership, 0, 0, 1),
    ] {
        assert_eq!(with_records(&[control, (ZERO, 0, 0, 1)]), refused);
        assert_eq!(with_records(&[(ZERO, 0, 0, 1), control]), refused);
    }
}

#[test]
fn the_largest_batch_fits_its_header() {
    let mut records = vec![(Kind::Write, 0, 0, 6); DESCRIPTORS_MAX];
    assert_eq!(records.len() * 6, PAYLOAD_BLOCKS_MAX);
    let made = Chain::new().make(&records);
    assert_eq!(made.header.blocks(), BATCH_BLOCKS_MAX);
    assert!(verify(&made.bytes).is_ok());

    records.truncate(1);
    let mut draft = Draft::default();
    assert!(draft.is_empty() && draft.fits(384) && !draft.fits(385));
    for index in 0..63 {
        draft.push(ZERO, VolumeId(0), index, 1, &[]);
    }
    assert!(draft.fits(384));
    let payload = vec![0; 384 * BLOCK_BYTES];
    draft.push(Kind::Write, VolumeId(0), 0, 384, &payload);
    assert!(!draft.fits(0), "64 records are all");
    assert_eq!(draft.payload_blocks(), 384);
    draft.clear();
    draft.push(Kind::Write, VolumeId(0), 0, 384, &payload);
    assert!(draft.fits(0) && !draft.fits(1));
    assert_eq!(draft.records().len(), 1);
}

/// A change of these bytes is a change of the format: raise the version and tell it in `docs/format.md`.
#[test]
fn the_format_of_a_header_is_this() {
    let mut chain = Chain::new();
    chain.epoch = Epoch(2);
    chain.committed = Seq(0x0102);
    chain.tail.id = RecordId {
        epoch: Epoch(1),
        seq: Seq(0x0304),
    };
    chain.tail.blocks = 5;
    chain.tail.checksum = 0x1122_3344;
    let made = chain.make(&[(Kind::Write, 1, 0x0506, 1), (TRIM, 2, 9, 0x4000)]);
    let header = &made.bytes[..BLOCK_BYTES];
    let hex: Vec<String> = header[..FIXED_BYTES + 2 * DESCRIPTOR_BYTES + 4]
        .chunks(16)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect())
        .collect();
    assert_eq!(hex, GOLDEN);
    let rest = &header[FIXED_BYTES + 2 * DESCRIPTOR_BYTES + 4..];
    assert!(rest.iter().all(|&b| b == 0));
}

const GOLDEN: [&str; 13] = [
    "52504c42415443480100010002000000",
    "22221111000000000000000000000000",
    "44443333000000000000000000000000",
    "02000000000000000100000000000000",
    "05030000000000000201000000000000",
    "01000000050000004433221100000000",
    "00000000000000000000000000000000",
    "0000000000000000000000002f45ad08",
    "01000100010000000605000000000000",
    "01000000000000000000000000000000",
    "02010200004000000900000000000000",
    "00000000000000000000000000000000",
    "e70a3bd2",
];

proptest! {
    #[test]
    fn a_damaged_payload_byte_is_noticed(blocks in 1u32..6, at in any::<usize>(), flip in 1u8..) {
        let mut bytes = Chain::new().write(blocks).bytes;
        let at = BLOCK_BYTES + at % (bytes.len() - BLOCK_BYTES);
        bytes[at] ^= flip;
        let block = u32::try_from(at / BLOCK_BYTES).unwrap();
        prop_assert_eq!(verify(&bytes), Err(BatchFault::Payload(block)));
    }

    #[test]
    fn no_bytes_make_it_panic(
        rest in proptest::collection::vec(any::<u8>(), 600),
        small in any::<bool>(),
    ) {
        // Magic and version are right and the checksum fits, so that the fields are looked at.
        let mut bytes = Chain::new().write(1).bytes;
        for (at, byte) in (12..).zip(rest) {
            bytes[at] = if small { byte % 4 } else { byte };
        }
        let bytes = sealed(bytes);
        if let Ok(header) = verify(&bytes) {
            let _ = config_of(&bytes, &header);
        }
        if let Ok(header) = read_header(&bytes) {
            prop_assert_eq!(descriptors(&bytes, &header).flatten().count(), usize::from(header.records));
            let _ = (header.last(), header.prev_id(), header.blocks());
        }
    }

    #[test]
    fn any_batch_comes_back(
        records in proptest::collection::vec((0u8..3, 0u16..16, 0u64..1 << 50, 1u32..7), 1..DESCRIPTORS_MAX),
        committed in 0u64..1000,
        before in 0u64..1 << 40,
    ) {
        let mut chain = Chain::new();
        chain.tail.id = RecordId { epoch: Epoch(1), seq: Seq(before) };
        chain.committed = Seq(committed.min(before));
        let records: Vec<_> = records
            .into_iter()
            .map(|(kind, volume, block, blocks)| {
                ([Kind::Write, ZERO, TRIM][usize::from(kind)], volume, block, blocks)
            })
            .collect();
        let made = chain.make(&records);
        let header = verify(&made.bytes).unwrap();
        prop_assert_eq!(header, made.header);
        let said: Vec<_> = descriptors(&made.bytes, &header)
            .flatten()
            .map(|d| (d.kind, d.volume.0, d.block, d.blocks))
            .collect();
        prop_assert_eq!(said, records);
    }
}
