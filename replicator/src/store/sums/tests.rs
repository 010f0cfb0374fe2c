//! The table of checksums: it comes back from the disk as it was written, whatever a crash or rot does to one slot.

use super::page::AREA_BYTES;
use super::*;
use crate::io::DiskError;
use crate::recover::BlockRead;

const V: VolumeId = VolumeId(1);

fn sizes() -> impl Iterator<Item = u64> {
    // Less than a group; one page and a bit; a whole number of pages.
    [3, PAGE_BLOCKS + 5, 2 * PAGE_BLOCKS]
        .into_iter()
        .map(|b| b * BLOCK_BYTES_U64)
}

struct File(Vec<u8>);

impl File {
    fn new() -> Self {
        Self(vec![0; index(file_bytes(sizes()))])
    }

    fn save(&mut self, table: &mut SumTable) -> Vec<u64> {
        let mut places = Vec::new();
        let mut block = [0; BLOCK_BYTES];
        while let Some(offset) = table.take_dirty(&mut block) {
            self.0[index(offset)..index(offset) + BLOCK_BYTES].copy_from_slice(&block);
            places.push(offset);
        }
        assert!(table.is_clean());
        places
    }

    fn load(&mut self, table: Table) -> (SumTable, Found) {
        SumTable::load(table, sizes(), self, Seq(99))
    }
}

impl BlockRead for File {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let from = index(offset);
        let bytes = self
            .0
            .get(from..from + buffer.len())
            .ok_or(DiskError::Short)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

fn sum(n: u64) -> BlockSum {
    BlockSum::of_crc(u32::try_from(n * 0x0101 + 7).expect("small"))
}

#[test]
fn a_new_table_knows_that_all_is_zero_and_a_staged_one_knows_nothing() {
    let mut file = File::new();
    let (stores, found) = file.load(Table::Stores);
    assert_eq!(found, Found::default());
    assert_eq!(stores.sum(V, PAGE_BLOCKS + 4), BlockSum::ZERO);
    assert_eq!(stores.changed(V, 0), Seq(0));
    let (staged, _) = file.load(Table::Staged);
    assert_eq!(staged.sum(V, 0), BlockSum::UNKNOWN);
}

#[test]
fn what_was_written_comes_back_from_either_slot() {
    let mut file = File::new();
    let mut table = SumTable::new(Table::Stores, sizes());
    let last = table.blocks(V) - 1;
    for round in 1..5u64 {
        table.write(V, last - 3, 4, Seq(round), |b| sum(b + round));
        table.write(VolumeId(0), 0, 3, Seq(10 + round), |b| sum(b + round));
        assert_eq!(file.save(&mut table).len(), 2, "one page of each volume");
        let (back, found) = file.load(Table::Stores);
        assert_eq!((found.whole, found.doubtful, found.lost), (2, 0, 0));
        for block in last - 3..=last {
            assert_eq!(back.sum(V, block), sum(block + round));
        }
        assert_eq!(back.changed(V, last / GROUP_BLOCKS), Seq(round));
        assert_eq!(back.changed(VolumeId(0), 0), Seq(10 + round));
        assert_eq!(back.sum(V, last - 4), BlockSum::ZERO);
    }
}

#[test]
fn a_torn_write_leaves_the_version_before() {
    let mut file = File::new();
    let mut table = SumTable::new(Table::Stores, sizes());
    for round in 1..6u64 {
        let before = file.0.clone();
        table.write(V, 0, 2, Seq(round), |b| sum(b + round));
        let offset = index(file.save(&mut table)[0]);
        let mut torn = File(file.0.clone());
        torn.0[offset + 512..offset + BLOCK_BYTES]
            .copy_from_slice(&before[offset + 512..offset + BLOCK_BYTES]);
        let (back, found) = torn.load(Table::Stores);
        assert_eq!(found.lost, 0);
        let expected = if round == 1 {
            BlockSum::ZERO
        } else {
            sum(round - 1)
        };
        // The first sector may be all that changed: then it is the new version, whole.
        let got = back.sum(V, 0);
        assert!(
            got == expected || got == sum(round),
            "{got:?} in round {round}"
        );
        assert_eq!(got == expected, back.changed(V, 0) == Seq(round - 1));
    }
}

#[test]
fn a_flip_of_any_byte_costs_a_version_or_the_page_and_never_gives_another_sum() {
    let mut file = File::new();
    let mut table = SumTable::new(Table::Stores, sizes());
    table.write(V, 0, PAGE_BLOCKS, Seq(1), sum);
    file.save(&mut table);
    table.write(V, 0, PAGE_BLOCKS, Seq(2), |b| sum(b + 1));
    let offset = index(file.save(&mut table)[0]);
    for at in 0..BLOCK_BYTES {
        file.0[offset + at] ^= 0x40;
        let (back, found) = file.load(Table::Stores);
        assert_eq!((found.doubtful, found.lost), (1, 0), "byte {at}");
        assert_eq!(back.sum(V, 3), sum(3), "byte {at}: the version before");
        file.0[offset + at] ^= 0x40;
    }
    let slot_0 = offset;
    let slot_1 = offset + AREA_BYTES as usize;
    file.0[slot_0 + 100] ^= 1;
    file.0[slot_1 + 100] ^= 1;
    let (mut back, found) = file.load(Table::Stores);
    assert_eq!(found.lost, 1);
    assert_eq!(back.sum(V, 3), BlockSum::UNKNOWN);
    assert_eq!(
        back.changed(V, 0),
        Seq(99),
        "it counts as changed by whatever is in the stores"
    );
    back.write(V, 3, 1, Seq(100), sum);
    file.save(&mut back);
    let (again, _) = file.load(Table::Stores);
    assert_eq!(again.sum(V, 3), sum(3));
    assert_eq!(again.sum(V, 4), BlockSum::UNKNOWN);
}

#[test]
fn a_page_in_a_foreign_place_is_no_page() {
    let mut file = File::new();
    let mut table = SumTable::new(Table::Stores, sizes());
    table.write(VolumeId(2), 0, 2 * PAGE_BLOCKS, Seq(1), sum);
    let places = file.save(&mut table);
    let (first, second) = (index(places[0]), index(places[1]));
    let page = file.0[first..first + BLOCK_BYTES].to_vec();
    file.0[second..second + BLOCK_BYTES].copy_from_slice(&page);
    let (back, found) = file.load(Table::Stores);
    assert_eq!((found.whole, found.doubtful), (1, 1));
    assert_eq!(
        back.sum(VolumeId(2), PAGE_BLOCKS),
        BlockSum::ZERO,
        "it was never written, as far as is known"
    );
}

#[test]
fn a_sum_admits_what_it_was_taken_of_and_nothing_else() {
    let mut bytes = vec![0; BLOCK_BYTES];
    assert!(BlockSum::ZERO.admits(V, 5, &bytes));
    let zero = BlockSum::of(V, 5, &bytes);
    assert!(zero.admits(V, 5, &bytes));
    bytes[4095] = 1;
    assert!(!BlockSum::ZERO.admits(V, 5, &bytes));
    assert!(!zero.admits(V, 5, &bytes));
    let one = BlockSum::of(V, 5, &bytes);
    assert!(
        one.admits(V, 5, &bytes)
            && !one.admits(V, 6, &bytes)
            && !one.admits(VolumeId(0), 5, &bytes)
    );
    assert!(BlockSum::UNKNOWN.admits(V, 5, &bytes));
}

#[test]
fn a_page_of_which_a_slot_rotted_may_have_changed_up_to_what_the_stores_have() {
    for versions in 1..4u64 {
        let mut file = File::new();
        let mut table = SumTable::new(Table::Stores, sizes());
        let mut places = Vec::new();
        for round in 1..=versions {
            table.write(V, 0, 4, Seq(round), |b| sum(b + round));
            places = file.save(&mut table);
        }
        file.0[index(places[0]) + 77] ^= 1;
        let (back, found) = file.load(Table::Stores);
        assert_eq!((found.doubtful, found.lost), (1, 0));
        for group in 0..PAGE_GROUPS as u64 {
            assert_eq!(back.changed(V, group), Seq(99), "{versions} versions");
        }
        assert_eq!(back.changed(VolumeId(0), 0), Seq(0));
    }
}

#[test]
fn sums_that_may_be_old_are_told_to_nobody_until_the_group_is_written() {
    let mut file = File::new();
    let mut table = SumTable::new(Table::Stores, sizes());
    let mut places = Vec::new();
    for round in 1..=2 {
        table.write(V, 0, 40, Seq(round), |b| sum(b + round));
        places = file.save(&mut table);
    }
    assert_eq!(table.sum_for_sure(V, 3), sum(5));
    file.0[index(places[0]) + 77] ^= 1;
    let (mut back, _) = file.load(Table::Stores);
    assert_eq!(back.sum(V, 3), sum(4));
    assert_eq!(back.sum_for_sure(V, 3), BlockSum::UNKNOWN);
    // That outlives the slot that was damaged.
    for round in 0..4 {
        back.write(V, 16 + round, 1, Seq(100 + round), sum);
        file.save(&mut back);
    }
    let (mut again, found) = file.load(Table::Stores);
    assert_eq!((found.whole, found.doubtful), (1, 0));
    assert_eq!(again.changed(V, 1), Seq(103));
    assert!(again.is_marked(V, 0) && again.is_marked(V, 1) && !again.is_marked(VolumeId(0), 0));
    again.write(V, 16, 16, Seq(104), sum);
    assert!(again.is_marked(V, 0) && !again.is_marked(V, 1));
    assert_eq!(again.sum_for_sure(V, 17), sum(17));
}

#[test]
fn where_data_begins() {
    let mut table = SumTable::new(Table::Stores, sizes());
    table.write(V, 5, 3, Seq(1), sum);
    table.write(V, 6, 1, Seq(2), |_| BlockSum::ZERO);
    assert_eq!(table.first_data(V, 0..20), Some((5, 1)));
    assert_eq!(table.first_data(V, 6..20), Some((7, 1)));
    assert_eq!(table.first_data(V, 8..20), None);
    assert_eq!(table.first_data(V, 8..8), None);
}

/// A change of these bytes is a change of the format: raise the version and tell it in `docs/format.md`.
#[test]
fn the_format_is_this() {
    let mut file = File::new();
    let mut table = SumTable::new(Table::Staged, sizes());
    // The last page of a volume, with less than a group.
    table.write(V, PAGE_BLOCKS, 2, Seq(0x0102_0304_0506), |b| {
        BlockSum::of_crc(0xa0b0_c0d0 + u32::try_from(b - PAGE_BLOCKS).expect("small"))
    });
    let places = file.save(&mut table);
    // The stripe of the volume before it, both slots of the stores' pages, the first slot of this table's, and a page before it.
    let (stripe, slot) = (4 * 64 * BLOCK_BYTES_U64, 64 * BLOCK_BYTES_U64);
    assert_eq!(places, [stripe + 3 * slot + BLOCK_BYTES_U64]);
    let block = &file.0[index(places[0])..][..BLOCK_BYTES];
    let hex: Vec<String> = block[..144]
        .chunks(16)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect())
        .collect();
    assert_eq!(hex, GOLDEN);
    assert!(block[144..].iter().all(|&b| b == 0));
}

const GOLDEN: [&str; 9] = [
    "5250504c53554d530200010048532a95",
    "01000000000000000100000000000000",
    "01000000000000000000000000000000",
    "00000000000000000000000000000000",
    "0605040302010000d0c0b0a0d1c0b0a0",
    "01000000010000000100000000000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
    "00000000000000000000000000000000",
];

/// A file that is as long as it is written.
#[derive(Default)]
struct Any(std::collections::BTreeMap<u64, Vec<u8>>);

impl Any {
    fn save(&mut self, table: &mut SumTable) {
        let mut block = [0; BLOCK_BYTES];
        while let Some(offset) = table.take_dirty(&mut block) {
            self.0.insert(offset, block.to_vec());
        }
    }
}

impl BlockRead for Any {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        for (at, block) in (offset..)
            .step_by(BLOCK_BYTES)
            .zip(buffer.chunks_exact_mut(BLOCK_BYTES))
        {
            match self.0.get(&at) {
                Some(bytes) => block.copy_from_slice(bytes),
                None => block.fill(0),
            }
        }
        Ok(())
    }
}

#[test]
fn pages_keep_their_places_when_volumes_grow_and_come() {
    let bytes = |blocks: &[u64]| {
        blocks
            .iter()
            .map(|b| b * BLOCK_BYTES_U64)
            .collect::<Vec<_>>()
    };
    // Each volume's second stripe begins behind all first ones.
    let stripe = STRIPE_PAGES * PAGE_BLOCKS;
    let (small, large) = (
        bytes(&[10, stripe - 3]),
        bytes(&[stripe + 1, 2 * stripe, 7]),
    );
    let mut file = Any::default();
    let mut table = SumTable::new(Table::Stores, small.iter().copied());
    table.write(VolumeId(0), 9, 1, Seq(1), sum);
    table.write(V, stripe - 4, 1, Seq(2), sum);
    file.save(&mut table);
    table.resize(large.iter().copied(), &[small[0], small[1]], Seq(0));
    table.write(VolumeId(0), stripe, 1, Seq(3), sum);
    table.write(VolumeId(2), 6, 1, Seq(4), sum);
    let check = |table: &SumTable| {
        assert_eq!(table.sum(VolumeId(0), 9), sum(9));
        assert_eq!(table.sum(VolumeId(0), 10), BlockSum::ZERO);
        assert_eq!(table.sum(VolumeId(0), stripe), sum(stripe));
        assert_eq!(table.sum(V, stripe - 4), sum(stripe - 4));
        assert_eq!(table.sum(V, 2 * stripe - 1), BlockSum::ZERO);
        assert_eq!(table.changed(V, (stripe - 4) / GROUP_BLOCKS), Seq(2));
        assert_eq!(table.changed(V, stripe / GROUP_BLOCKS), Seq(0));
        assert_eq!(table.sum(VolumeId(2), 6), sum(6));
    };
    check(&table);
    file.save(&mut table);
    let (loaded, found) = SumTable::load(Table::Stores, large.iter().copied(), &mut file, Seq(9));
    assert_eq!((found.lost, found.doubtful, found.whole), (0, 0, 4));
    check(&loaded);
    let used: Vec<_> = used(large.iter().copied()).collect();
    let within = |offset: &u64| {
        used.iter()
            .any(|(from, bytes)| (*from..from + bytes).contains(offset))
    };
    assert!(file.0.keys().all(within));
    assert!(
        file.0
            .keys()
            .all(|o| *o < file_bytes(large.iter().copied()))
    );
}

#[test]
fn what_a_volume_loses_is_forgotten_and_what_it_gets_again_counts_as_changed() {
    let sizes = |blocks: u64| [blocks * BLOCK_BYTES_U64];
    let mut table = SumTable::new(Table::Stores, sizes(3 * PAGE_BLOCKS).into_iter());
    for page in 0..3 {
        table.write(VolumeId(0), page * PAGE_BLOCKS, PAGE_BLOCKS, Seq(1), sum);
    }
    let mut file = Any::default();
    file.save(&mut table);
    let kept = PAGE_BLOCKS + 5;
    for group in [0, kept / GROUP_BLOCKS, kept / GROUP_BLOCKS + 1] {
        table.mark(VolumeId(0), group);
    }
    file.save(&mut table);
    let written = table.written();
    assert_eq!(table.written_within(&sizes(kept)), written - 1);
    table.resize(sizes(kept).into_iter(), &sizes(kept), Seq(7));
    assert_eq!(table.blocks(VolumeId(0)), kept);
    // The old pages are not there any more when it grows again; see `new_areas`.
    let gone: Vec<_> = new_areas(
        VolumeId(0),
        kept * BLOCK_BYTES_U64,
        3 * PAGE_BLOCKS * BLOCK_BYTES_U64,
    )
    .flat_map(|(from, bytes)| (from..from + bytes).step_by(BLOCK_BYTES))
    .collect();
    assert_eq!(gone.len(), 2);
    file.save(&mut table);
    file.0.retain(|at, _| !gone.contains(at));
    table.resize(sizes(3 * PAGE_BLOCKS).into_iter(), &sizes(kept), Seq(9));
    file.save(&mut table);
    let (loaded, _) = SumTable::load(
        Table::Stores,
        sizes(3 * PAGE_BLOCKS).into_iter(),
        &mut file,
        Seq(9),
    );
    for table in [table, loaded] {
        assert_eq!(table.sum(VolumeId(0), kept - 1), sum(kept - 1));
        assert_eq!(table.sum(VolumeId(0), kept), BlockSum::ZERO);
        assert_eq!(table.sum(VolumeId(0), 3 * PAGE_BLOCKS - 1), BlockSum::ZERO);
        let group = kept / GROUP_BLOCKS;
        assert_eq!(table.changed(VolumeId(0), group - 1), Seq(1));
        assert_eq!(table.changed(VolumeId(0), group), Seq(9));
        assert_eq!(table.changed(VolumeId(0), group + 1), Seq(9));
        let marked = [0, 1, group, group + 1].map(|g| table.is_marked(VolumeId(0), g));
        assert_eq!(
            marked,
            [true, false, true, false],
            "what is in doubt stays so"
        );
    }
}
