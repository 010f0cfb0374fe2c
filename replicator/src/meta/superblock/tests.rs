use proptest::prelude::*;

use super::*;
use crate::journal::testing::{config, superblock};
use crate::meta::fences::FenceMark;

type Copies = [[u8; BLOCK_BYTES]; COPIES];

fn copies_of(superblock: &Superblock) -> Copies {
    std::array::from_fn(|copy| {
        let mut block = [0; BLOCK_BYTES];
        superblock.encode(copy, &mut block);
        block
    })
}

fn chosen(copies: &Copies) -> Result<Superblock, MetaError> {
    choose(copies).map(|chosen| chosen.superblock)
}

fn version(version: u64) -> Superblock {
    Superblock {
        version,
        promised: Epoch(version * 10),
        committed: Seq(version * 100),
        ..superblock()
    }
}

/// That the first few nodes are fenced.
fn marks(fenced: usize) -> StoredMarks {
    let mut marks = StoredMarks::default();
    let mut mark = FenceMark::default();
    for (index, stored) in marks.iter_mut().take(fenced).enumerate() {
        mark = mark.fenced_anew();
        *stored = StoredMark::new(&format!("node-{index}"), mark);
    }
    marks
}

/// With every field in use.
fn full() -> Superblock {
    let id = |epoch, seq| RecordId {
        epoch: Epoch(epoch),
        seq: Seq(seq),
    };
    Superblock {
        version: 0x0102,
        applied: AppliedFloor {
            id: id(3, 40),
            position: 0x5_0607,
            blocks: 7,
            checksum: 0x8899_aabb,
        },
        committed: Seq(41),
        acked: id(3, 42),
        damaged_until: id(4, 43),
        config: Some(ConfigAt {
            at: id(2, 30),
            config: config(9),
        }),
        epochs: [id(1, 1), id(2, 30)].into_iter().collect(),
        resync: Some(Resync {
            staged: id(5, 60),
            blocks: 3,
            checksum: 0x1122_3344,
            committed: Seq(59),
            since: Seq(50),
            written: 0x0304,
            merging: true,
            in_place: false,
            sizes: std::array::from_fn(|v| v as u64 * 4096),
            moved: 0x0708,
        }),
        sums_written: 0x0102,
        fences: marks(3),
        volumes_at: Seq(39),
        labelled: Incarnation(0x0506),
        ..superblock()
    }
}

#[test]
fn what_was_written_is_what_is_read() {
    for superblock in [superblock(), full()] {
        for (index, block) in copies_of(&superblock).iter().enumerate() {
            let read = Superblock::decode(index, block).unwrap();
            assert_eq!(read.as_ref(), Some(&superblock));
        }
    }
    assert!(!full().fresh() && superblock().fresh());
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut block = copies_of(&full())[0];
    for at in 0..BLOCK_BYTES {
        for bit in 0..8 {
            block[at] ^= 1 << bit;
            assert_eq!(
                Superblock::decode(0, &block),
                Ok(None),
                "byte {at} bit {bit}"
            );
            block[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_copy_counts_in_its_own_place_only() {
    let copies = copies_of(&full());
    for (at, block) in copies.iter().enumerate() {
        for place in 0..COPIES {
            let read = Superblock::decode(place, block).unwrap();
            assert_eq!(read.is_some(), place == at);
        }
    }
    // Copy 1 went to the place of copy 2 and took it: one copy of the new version is left, which is not enough.
    let (old, new) = (copies_of(&version(1)), copies_of(&version(2)));
    let strayed = [old[0], old[1], new[1], old[3]];
    assert_eq!(chosen(&strayed), Ok(version(1)));
    assert_eq!(
        chosen(&[old[0], old[0], old[0], old[0]]),
        Err(MetaError::Damaged { intact: 1 })
    );
}

/// Every state in which a crash can leave an update: a copy has its old or its new contents, or is torn; the second
/// pair is only touched once the first is whole.
#[test]
fn a_crash_leaves_the_old_superblock_or_the_new_one() {
    let (old, new) = (version(7), version(8));
    let (was, is) = (copies_of(&old), copies_of(&new));
    let mut torn = is;
    for (torn, was) in torn.iter_mut().zip(&was) {
        torn[512..].copy_from_slice(&was[512..]);
        // Nothing of the two versions is in their last sectors: make it so.
        torn[100] ^= 0x80;
    }
    let contents = [&was, &torn, &is];
    for first in 0..9 {
        for second in 0..9 {
            let round_one = [first / 3, first % 3];
            let round_two = [second / 3, second % 3];
            if round_one != [2, 2] && round_two != [0, 0] {
                continue;
            }
            let states = [round_one[0], round_one[1], round_two[0], round_two[1]];
            let copies: Copies = std::array::from_fn(|copy| contents[states[copy]][copy]);
            let expected = if round_one == [2, 2] { &new } else { &old };
            assert_eq!(chosen(&copies).as_ref(), Ok(expected), "{states:?}");
        }
    }
}

/// The states of a crash in an update that writes the copies in this order.
fn crashes(was: &Copies, is: &Copies, order: [usize; COPIES]) -> Vec<Copies> {
    let mut states = Vec::new();
    for state in 0..18 {
        let mut copies = *was;
        let second_round = state / 9;
        if second_round == 1 {
            copies[order[0]] = is[order[0]];
            copies[order[1]] = is[order[1]];
        }
        let left = [state % 9 / 3, state % 3];
        for (&copy, left) in order[2 * second_round..].iter().zip(left) {
            match left {
                0 => {}
                1 => copies[copy] = [0x77; BLOCK_BYTES],
                _ => copies[copy] = is[copy],
            }
        }
        states.push(copies);
    }
    states
}

/// A crash may leave the new version in two copies only. The next update must not begin with those.
#[test]
fn a_second_crash_never_goes_behind_what_the_first_left() {
    let versions: Vec<_> = (7..10).map(version).collect();
    let copies: Vec<_> = versions.iter().map(copies_of).collect();
    let in_order = std::array::from_fn(|copy| copy);
    let mut starts = crashes(&copies[0], &copies[1], in_order);
    for rotten in 0..COPIES {
        starts.push(copies[0]);
        starts.last_mut().unwrap()[rotten].fill(1);
    }
    for start in starts {
        let Chosen {
            superblock, order, ..
        } = choose(&start).unwrap();
        for after in crashes(&start, &copies[2], order) {
            let found = choose(&after).map(|c| c.superblock);
            assert!(found == Ok(versions[2].clone()) || found == Ok(superblock.clone()));
        }
    }
}

#[test]
fn one_rotten_copy_does_no_harm() {
    let good = copies_of(&full());
    for rotten in 0..COPIES {
        for contents in [[0; BLOCK_BYTES], [0xff; BLOCK_BYTES], [0x5a; BLOCK_BYTES]] {
            let mut copies = good;
            copies[rotten] = contents;
            assert_eq!(chosen(&copies), Ok(full()));
        }
        // An older one that was not overwritten, by a lost write, does none either.
        let mut copies = good;
        copies[rotten] = copies_of(&version(1))[rotten];
        assert_eq!(chosen(&copies), Ok(full()));
    }
}

#[test]
fn what_can_not_be_used_is_named() {
    let blank = [[0; BLOCK_BYTES]; COPIES];
    assert_eq!(chosen(&blank), Err(MetaError::Blank));
    let noise = [[1; BLOCK_BYTES]; COPIES];
    assert_eq!(chosen(&noise), Err(MetaError::Damaged { intact: 0 }));
    let different: Copies = std::array::from_fn(|copy| copies_of(&version(copy as u64 + 1))[copy]);
    assert_eq!(chosen(&different), Err(MetaError::Damaged { intact: 4 }));
    let mut newer = copies_of(&full());
    for copy in &mut newer {
        copy[8] = 4;
        seal(copy);
    }
    assert_eq!(chosen(&newer), Err(MetaError::Version(4)));
    assert!(MetaError::Version(4).to_string().contains("newer program"));
    assert!(MetaError::Version(2).to_string().contains("create --wipe"));
}

/// Makes the checksum fit.
fn seal(block: &mut [u8; BLOCK_BYTES]) {
    let checksum = checksum(block);
    block[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(U32::new(checksum).as_bytes());
}

#[test]
fn a_good_checksum_does_not_excuse_impossible_fields() {
    let good = copies_of(&full())[0];
    for (what, at, byte) in [
        ("a name longer than its field", 24, 64),
        ("a name that is no text", 25, 0xff),
        ("more epochs than there is place for", 372, 65),
        ("more volumes than there is place for", 374, 17),
        ("a config of no version", 376, 0),
        ("a config of more nodes than there is place for", 384, 9),
    ] {
        let mut block = good;
        block[at] = byte;
        seal(&mut block);
        assert_eq!(Superblock::decode(0, &block), Ok(None), "{what}");
    }
}

/// A change of these bytes is a change of the format: raise the version and tell it in `docs/format.md`.
#[test]
fn the_format_is_this() {
    let block = copies_of(&full())[2];
    let hex: Vec<String> = block[..448]
        .chunks(16)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect())
        .collect();
    assert_eq!(hex, GOLDEN);
    assert_eq!(&block[1096..1099], b"\x02db");
    let epochs: Vec<_> = block[2248..2280].iter().step_by(8).collect();
    assert_eq!(epochs, [&1, &1, &2, &30]);
    assert!(block[2280..3304].iter().all(|&b| b == 0));
    let resync: String = block[3304..3361]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(
        resync,
        "05000000000000003c0000000000000003000000443322113b000000000000003200000000000000\
         0201000000000000040300000000000002"
    );
    assert_eq!(block[3361..3368], [0, 8, 7, 0, 0, 0, 0]);
    assert_eq!(block[3368..3371], [6, 5, 0]);
    assert!(block[3371..3864].iter().all(|&b| b == 0));
    let fenced: Vec<_> = block[3864..3960].chunks(12).map(|m| m[4]).collect();
    assert_eq!(fenced, [1, 3, 5, 0, 0, 0, 0, 0]);
    assert_eq!(block[3960..3968], 39u64.to_le_bytes());
    for (volume, bytes) in (0u64..).zip(block[3968..].chunks_exact(8)) {
        assert_eq!(bytes, (volume * 4096).to_le_bytes());
    }
}

const GOLDEN: [&str; 28] = [
    "52504c535550455203000201f7c07f29",
    "02010000000000000370627800000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
    "00000000000000000161000000000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
    "00000000000000000161000000000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
    "00000000000000000100000000000000",
    "00000000000000002222111100000000",
    "00000000000000004444333300000000",
    "00000000000000000100000000000000",
    "03000000000000002800000000000000",
    "070605000000000007000000bbaa9988",
    "29000000000000000300000000000000",
    "2a000000000000000400000000000000",
    "2b000000000000000200000000000000",
    "1e000000000000000000000100000000",
    "e8030000020001000900000000000000",
    "03000000000000000103000000000000",
    "00610000000000000000000000000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
];

fn any_id() -> impl Strategy<Value = RecordId> {
    (0..=NUMBER_MAX, 0..=NUMBER_MAX).prop_map(|(epoch, seq)| RecordId {
        epoch: Epoch(epoch),
        seq: Seq(seq),
    })
}

prop_compose! {
    fn any_superblock()(
        version in any::<u64>(),
        names in any::<[u8; 3]>(),
        wide in any::<[u128; 3]>(),
        ids in [any_id(), any_id(), any_id(), any_id()],
        numbers in proptest::array::uniform4(0..=NUMBER_MAX),
        small in any::<[u32; 3]>(),
        configured in any::<bool>(),
        epochs in proptest::collection::vec(any_id(), 0..=EPOCH_HISTORY_MAX),
        volumes in proptest::collection::vec(0..=crate::meta::volumes::VOLUME_BYTES_MAX / 4096, 0..=VOLUMES_MAX),
    ) -> Superblock {
        let name = |n: usize| Name::from(&"x".repeat(n)).unwrap();
        let [resource, node, promised_to] = names.map(|n| name(usize::from(n % 64)));
        Superblock {
            version,
            resource,
            node,
            incarnation: Incarnation(wide[0]),
            uuid: ResourceUuid(wide[1]),
            history: HistoryId(wide[2]),
            promised: Epoch(numbers[0]),
            promised_to,
            lease_ms: small[0],
            applied: AppliedFloor {
                id: ids[0],
                position: numbers[1],
                blocks: small[1],
                checksum: small[2],
            },
            committed: Seq(numbers[2]),
            acked: ids[1],
            damaged_until: ids[2],
            config: configured.then(|| ConfigAt { at: ids[3], config: config(version.max(1)) }),
            epochs: epochs.into_iter().collect(),
            journal_bytes: numbers[3],
            volumes_at: ids[0].seq,
            volumes: (1..)
                .zip(volumes)
                .map(|(n, blocks)| match blocks {
                    0 => VolumeRecord::default(),
                    _ => VolumeRecord { name: name(n), bytes: blocks * 4096 },
                })
                .collect(),
            resync: (small[0] % 3 > 0).then(|| Resync {
                staged: ids[2],
                blocks: small[1],
                checksum: small[2],
                committed: Seq(numbers[0]),
                since: Seq(numbers[2]),
                written: version,
                merging: small[0] % 3 == 1,
                in_place: small[1] % 2 == 1,
                sizes: [u64::from(small[1]) * 4096; VOLUMES_MAX],
                moved: (wide[0] >> 7) as u16,
            }),
            fork: (small[2] % 2 == 0).then(|| Fork { parent: HistoryId(wide[0] | 1), at: ids[1] }),
            sums_written: version,
            labelled: Incarnation(wide[0]),
            fences: marks(usize::from(names[0] % 9)),
        }
    }
}

proptest! {
    #[test]
    fn any_superblock_comes_back(superblock in any_superblock(), copy in 0..COPIES) {
        let block = copies_of(&superblock)[copy];
        prop_assert_eq!(Superblock::decode(copy, &block), Ok(Some(superblock)));
    }

    #[test]
    fn no_bytes_make_it_panic(
        scribbles in proptest::collection::vec((12..BLOCK_BYTES, any::<u8>()), 0..60),
    ) {
        let mut copies = copies_of(&full());
        for (at, byte) in scribbles {
            for copy in &mut copies {
                copy[at] = byte;
                seal(copy);
            }
        }
        let _ = choose(&copies);
    }
}
