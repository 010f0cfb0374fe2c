//! What is known of every block of the stores: its checksum, and since when its neighbourhood has not changed.
//!
//! A *group* is 16 blocks (64 KiB). For each group there is the last record that changed it, and for each of its blocks a
//! [`BlockSum`]. 56 groups make a *page*, one block of the file of checksums; so this costs 0.12 % of the volumes, on disk
//! twice (see below) and in memory once.
//!
//! With the sums every read from a store is checked: bytes that rotted, that went astray, or that a disk said it had
//! written and had not, differ from the sum that was recorded when the journal's record was applied. With the records, what a
//! peer lacks is known without a bitmap per peer: whatever changed after the last record that it has.
//!
//! # On disk
//!
//! Each page has two slots. A version is written to the slot that does not hold the one before it, so a torn write leaves
//! the version before, and with that the replay from the applied floor makes the new one again. A page is written before the
//! floor moves past the records that changed it. A page that was never written means what a new node's table means.
//!
//! ```text
//! byte 0     magic, format, table, volume, page of the volume, version, checksum: 64 bytes
//! byte 64    56 groups: the record (8 bytes), 16 sums (4 bytes each)
//! ```

use std::mem::offset_of;
use std::ops::AddAssign;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::recover::BlockRead;
use crate::types::*;

/// The version of the format of the file of checksums.
pub const SUMS_VERSION: u16 = 2;

/// Blocks of a group.
pub const GROUP_BLOCKS: u64 = 16;

/// Groups of a page.
pub const PAGE_GROUPS: usize = 56;

/// Blocks that a page is about.
pub const PAGE_BLOCKS: u64 = GROUP_BLOCKS * PAGE_GROUPS as u64;

const GROUP_SUMS: usize = 16;
const MAGIC: u64 = 0x534d_5553_4c50_5052; // "RPPLSUMS"

/// What is known of a block's contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSum(u32);

impl BlockSum {
    /// It reads as zeroes.
    pub const ZERO: Self = Self(0);

    /// Nothing is known.
    pub const UNKNOWN: Self = Self(1);

    /// The block's CRC, as a batch carries it, is `crc`. (Two of the 2^32 values share theirs with another one: their own say
    /// something else here.)
    #[must_use]
    pub fn of_crc(crc: u32) -> Self {
        Self(if crc < 2 { crc + 2 } else { crc })
    }

    /// As it goes to the wire.
    #[must_use]
    pub fn to_wire(self) -> u32 {
        self.0
    }

    /// Reads what [`BlockSum::to_wire`] gave.
    #[must_use]
    pub fn from_wire(n: u32) -> Self {
        Self(n)
    }

    /// The sum of these contents of a block.
    #[must_use]
    pub fn of(volume: VolumeId, block: u64, bytes: &[u8]) -> Self {
        Self::of_crc(crate::journal::batch::block_crc(volume, block, bytes))
    }

    /// Whether these can be the contents; also if nothing is known.
    #[must_use]
    pub fn admits(self, volume: VolumeId, block: u64, bytes: &[u8]) -> bool {
        match self {
            Self::UNKNOWN => true,
            Self::ZERO => is_zero(bytes),
            sum => sum == Self::of(volume, block, bytes),
        }
    }
}

/// Whether a block is all zeroes.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Words, not bytes: this is on the way of every read of a hole.
    let (chunks, rest) = bytes.as_chunks::<32>();
    chunks.iter().all(|c| *c == [0; 32]) && rest.iter().all(|&b| b == 0)
}

/// Which table a page belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// That of the stores.
    Stores,
    /// That of what a resync has brought so far, for blocks beside the stores.
    Staged,
}

impl Table {
    fn number(self) -> u8 {
        match self {
            Self::Stores => 0,
            Self::Staged => 1,
        }
    }

    /// The sum of a block that was never recorded.
    fn never(self) -> BlockSum {
        match self {
            Self::Stores => BlockSum::ZERO,
            Self::Staged => BlockSum::UNKNOWN,
        }
    }
}

/// A volume's part of the table.
#[derive(Clone, Debug)]
struct Part {
    blocks: u64,
    first_page: u32,
    /// The last record that changed each group.
    changed: Vec<Seq>,
    /// Of the stores: the group is in doubt. Of what is staged: part of the group is as it is in the store.
    marks: Vec<bool>,
    sums: Vec<BlockSum>,
}

/// In a page, with the record that changed a group: its mark.
const MARK: u64 = 1 << 63;
impl Part {
    fn pages(&self) -> usize {
        self.changed.len().div_ceil(PAGE_GROUPS)
    }
}

/// The table, as it is in memory.
#[derive(Clone, Debug)]
pub struct SumTable {
    table: Table,
    parts: Vec<Part>,
    /// The newest version of each page; its slot is the lowest bit. 0: never written.
    versions: Vec<u64>,
    /// Pages that memory and disk do not agree about.
    dirty: Vec<bool>,
    /// None before this one is.
    dirty_from: usize,
    /// Pages of which neither slot was found whole.
    lost: Vec<usize>,
    dirty_pages: usize,
}

/// What was found when a table was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Pages that were written at least once and are whole.
    pub whole: u32,
    /// Pages of which one slot is damaged: a write that a crash tore, which the replay makes again, or rot. After rot the
    /// sums may be older than the stores; whoever finds such a block asks a peer which of the two is right. So all of their
    /// groups count as changed by the last record that the stores have: a peer's copy that has that is the newest, and a
    /// peer that lacks it is given all of them.
    pub doubtful: u32,
    /// Pages that are lost: nothing is known of their blocks.
    pub lost: u32,
}

impl AddAssign for Found {
    fn add_assign(&mut self, more: Self) {
        self.whole += more.whole;
        self.doubtful += more.doubtful;
        self.lost += more.lost;
    }
}

/// A page that was read.
#[derive(Clone, Copy, Debug)]
pub struct PageRead {
    /// Whose page.
    pub volume: VolumeId,
    /// Where its slots are in the file, in bytes.
    pub slots: [u64; 2],
    /// In what state it is: that of a table of this page alone.
    pub found: Found,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawGroup {
    changed: U64,
    sums: [U32; GROUP_SUMS],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPage {
    magic: U64,
    format: U16,
    table: u8,
    reserved0: u8,
    checksum: U32,
    version: U64,
    volume: U16,
    reserved1: [u8; 6],
    page: U64,
    reserved2: [u8; 24],
    groups: [RawGroup; PAGE_GROUPS],
}
const _: () = assert!(size_of::<RawPage>() == BLOCK_BYTES);
const _: () = {
    assert!(offset_of!(RawPage, format) == 8);
    assert!(offset_of!(RawPage, table) == 10);
    assert!(offset_of!(RawPage, checksum) == CHECKSUM_AT);
    assert!(offset_of!(RawPage, version) == 16);
    assert!(offset_of!(RawPage, volume) == 24);
    assert!(offset_of!(RawPage, page) == 32);
    assert!(offset_of!(RawPage, groups) == 64);
};
const CHECKSUM_AT: usize = 12;

fn checksum(block: &[u8]) -> u32 {
    crate::checksum::with_field_at(block, CHECKSUM_AT)
}

/// Pages of a stripe: as many of one volume lie together in the file. Stripes of the volumes take turns, so that pages keep their
/// places when a volume grows or another one comes.
pub const STRIPE_PAGES: u64 = 64;

/// Bytes that one slot of a stripe's pages has.
const AREA_BYTES: u64 = STRIPE_PAGES * BLOCK_BYTES_U64;

/// Bytes of a stripe: two tables with two slots each.
pub const STRIPE_BYTES: u64 = 4 * AREA_BYTES;

/// Where a stripe of a volume is in the file.
fn stripe_offset(volume: u64, stripe: u64) -> u64 {
    (stripe * VOLUMES_MAX as u64 + volume) * STRIPE_BYTES
}

/// The stripes of volumes of these sizes in bytes: which volume's, and where in the file.
fn stripes(volumes: impl Iterator<Item = u64>) -> impl Iterator<Item = (u64, u64)> {
    (0..).zip(volumes).flat_map(|(volume, bytes)| {
        let count = u64::from(pages_of(bytes)).div_ceil(STRIPE_PAGES);
        (0..count).map(move |stripe| (volume, stripe_offset(volume, stripe)))
    })
}

/// Bytes of the file of checksums for volumes of these sizes in bytes, by their ids. Most of it are holes.
#[must_use]
pub fn file_bytes(volumes: impl Iterator<Item = u64>) -> u64 {
    let ends = stripes(volumes).map(|(_, offset)| offset + STRIPE_BYTES);
    ends.max().unwrap_or(0)
}

/// The ranges of the file that are used for volumes of these sizes: from where, and how many bytes.
pub fn used(volumes: impl Iterator<Item = u64>) -> impl Iterator<Item = (u64, u64)> {
    stripes(volumes).map(|(_, offset)| (offset, STRIPE_BYTES))
}

/// Those of them that are one table's.
pub fn areas(table: Table, volumes: impl Iterator<Item = u64>) -> impl Iterator<Item = (u64, u64)> {
    let from = u64::from(table.number()) * 2 * AREA_BYTES;
    stripes(volumes).map(move |(_, offset)| (offset + from, 2 * AREA_BYTES))
}

/// Where the pages are of the table of the stores that a volume of `bytes` has, and with `before` bytes has not.
pub fn new_areas(volume: VolumeId, before: u64, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let (mut from, end) = (u64::from(pages_of(before)), u64::from(pages_of(bytes)));
    std::iter::from_fn(move || {
        if from >= end {
            return None;
        }
        let (stripe, first) = (from / STRIPE_PAGES, from % STRIPE_PAGES);
        let count = (STRIPE_PAGES - first).min(end - from);
        from += count;
        let offset = stripe_offset(u64::from(volume.0), stripe) + first * BLOCK_BYTES_U64;
        Some((offset, count * BLOCK_BYTES_U64))
    })
    .flat_map(|(offset, bytes)| [(offset, bytes), (offset + AREA_BYTES, bytes)])
}

fn pages_of(bytes: u64) -> u32 {
    u32::try_from((bytes / BLOCK_BYTES_U64).div_ceil(PAGE_BLOCKS))
        .expect("a volume has less than 2^32 pages")
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("tables of 64-bit machines")
}

impl SumTable {
    /// A new node's table, for volumes of these sizes in bytes.
    #[must_use]
    pub fn new(table: Table, volumes: impl Iterator<Item = u64>) -> Self {
        let mut first_page = 0;
        let parts: Vec<_> = volumes
            .map(|bytes| {
                let blocks = bytes / BLOCK_BYTES_U64;
                let pages = pages_of(bytes);
                let part = Part {
                    blocks,
                    first_page,
                    changed: vec![Seq(0); index(blocks.div_ceil(GROUP_BLOCKS))],
                    marks: vec![false; index(blocks.div_ceil(GROUP_BLOCKS))],
                    sums: vec![table.never(); index(blocks)],
                };
                first_page += pages;
                part
            })
            .collect();
        let pages = first_page as usize;
        Self {
            table,
            parts,
            versions: vec![0; pages],
            dirty: vec![false; pages],
            dirty_from: 0,
            lost: Vec::new(),
            dirty_pages: 0,
        }
    }

    /// Reads a table. What can not be read, or does not verify, is not known; it counts as changed by the last record that
    /// the stores have, `applied`.
    pub fn load(
        table: Table,
        volumes: impl Iterator<Item = u64>,
        disk: &mut impl BlockRead,
        applied: Seq,
    ) -> (Self, Found) {
        let mut found = Found::default();
        let loaded = Self::load_each(table, volumes, disk, applied, |page| found += page.found);
        (loaded, found)
    }

    /// The same, and tells of each page in what state it is.
    pub fn load_each(
        table: Table,
        volumes: impl Iterator<Item = u64>,
        disk: &mut impl BlockRead,
        applied: Seq,
        mut tell: impl FnMut(PageRead),
    ) -> Self {
        let mut loaded = Self::new(table, volumes);
        let pages = loaded.versions.len();
        let mut slots = [vec![0; AREA_BYTES as usize], vec![0; AREA_BYTES as usize]];
        let mut first = 0;
        while first < pages {
            // What lies together: a stripe of a volume.
            let part = &loaded.parts[loaded.part_of(first)];
            let (of_part, at) = (part.pages(), first - part.first_page as usize);
            let count = (STRIPE_PAGES as usize - at % STRIPE_PAGES as usize).min(of_part - at);
            for (slot, bytes) in slots.iter_mut().enumerate() {
                loaded.read_slots(disk, slot, first, &mut bytes[..count * BLOCK_BYTES]);
            }
            for n in 0..count {
                let at = n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES;
                let two = [&slots[0][at.clone()], &slots[1][at]];
                let found = loaded.load_page(first + n, two, applied);
                tell(PageRead {
                    volume: VolumeId(
                        u16::try_from(loaded.part_of(first + n)).expect("at most 16 volumes"),
                    ),
                    slots: [0, 1].map(|slot| loaded.slot_offset(first + n, slot)),
                    found,
                });
            }
            first += count;
        }
        loaded
    }

    /// Reads pages of one slot; what the disk does not give is read page by page, and is filled with ones if it is not
    /// given so either.
    fn read_slots(&self, disk: &mut impl BlockRead, slot: usize, first: usize, into: &mut [u8]) {
        let offset = |page| self.slot_offset(page, slot);
        if disk.read(offset(first), into).is_ok() {
            return;
        }
        for (page, block) in (first..).zip(into.chunks_exact_mut(BLOCK_BYTES)) {
            if disk.read(offset(page), block).is_err() {
                block.fill(0xff);
            }
        }
    }

    fn slot_offset(&self, page: usize, slot: usize) -> u64 {
        let part = self.part_of(page);
        let page = (page - self.parts[part].first_page as usize) as u64;
        let area = u64::from(self.table.number()) * 2 + slot as u64;
        stripe_offset(part as u64, page / STRIPE_PAGES)
            + area * AREA_BYTES
            + page % STRIPE_PAGES * BLOCK_BYTES_U64
    }

    fn load_page(&mut self, page: usize, slots: [&[u8]; 2], applied: Seq) -> Found {
        let mut found = Found::default();
        let part = self.part_of(page);
        let best = slots
            .iter()
            .zip(0u64..)
            .filter_map(|(bytes, slot)| {
                let raw = self.checked(page, part, bytes)?;
                (raw.version.get() % 2 == slot).then_some(raw)
            })
            .max_by_key(|raw| raw.version.get())
            .copied();
        let odd = |bytes: &&[u8]| !is_zero(bytes) && self.checked(page, part, bytes).is_none();
        let damaged = slots.iter().filter(|bytes| odd(bytes)).count();
        // What is staged can be had again. An older version of that must not be taken for the newest: blocks would be missed.
        let best = best.filter(|_| damaged == 0 || self.table == Table::Stores);
        match best {
            Some(raw) => {
                found.whole += 1;
                found.doubtful += u32::from(damaged > 0);
                self.take_page(page, &raw);
                if damaged > 0 {
                    // The one that is damaged may be the newer one: then any of its groups may have changed since.
                    self.doubt_page(page, applied);
                }
            }
            None if damaged == 0 => {}
            // The first version that was ever written goes to slot 1: torn, it leaves a page that was never written.
            None if damaged == 1 && is_zero(slots[0]) && self.table == Table::Stores => {
                found.doubtful += 1;
                self.doubt_page(page, applied);
            }
            None => {
                found.lost += 1;
                self.lose_page(page, applied);
            }
        }
        found
    }

    fn checked<'a>(&self, page: usize, part: usize, bytes: &'a [u8]) -> Option<&'a RawPage> {
        let raw = RawPage::ref_from_bytes(bytes).ok()?;
        let place = page - self.parts[part].first_page as usize;
        (raw.magic.get() == MAGIC
            && raw.checksum.get() == checksum(bytes)
            && raw.format.get() == SUMS_VERSION
            && raw.table == self.table.number()
            && usize::from(raw.volume.get()) == part
            && raw.page.get() == place as u64
            && raw.version.get() > 0
            && raw.version.get() <= NUMBER_MAX
            && raw
                .groups
                .iter()
                .all(|g| g.changed.get() & !MARK <= NUMBER_MAX))
        .then_some(raw)
    }

    fn part_of(&self, page: usize) -> usize {
        // Of those that begin with the page the last one has it: those before have none.
        self.parts
            .partition_point(|p| p.first_page as usize <= page)
            - 1
    }

    /// Makes it a table of volumes of other sizes. What a volume had goes where it ends earlier now, and what is new reads as
    /// never written; groups with new blocks count as changed by record `changed`. `kept` says how many bytes each
    /// volume keeps of what was there under its id.
    pub fn resize(&mut self, sizes: impl Iterator<Item = u64>, kept: &[u64], changed: Seq) {
        let mut next = Self::new(self.table, sizes);
        for (at, part) in next.parts.iter_mut().enumerate() {
            let kept_blocks = kept.get(at).map_or(0, |bytes| bytes / BLOCK_BYTES_U64);
            let Some(old) = self.parts.get_mut(at).filter(|_| kept_blocks > 0) else {
                part.changed.fill(changed);
                continue;
            };
            let groups = index(kept_blocks.div_ceil(GROUP_BLOCKS));
            // Most of it stays where it is in memory.
            let (mut sums, mut since, mut marks) = (
                std::mem::take(&mut old.sums),
                std::mem::take(&mut old.changed),
                std::mem::take(&mut old.marks),
            );
            sums.truncate(index(kept_blocks));
            since.truncate(groups);
            marks.truncate(groups);
            sums.resize(part.sums.len(), self.table.never());
            since.resize(part.changed.len(), changed);
            marks.resize(part.changed.len(), false);
            if part.blocks > kept_blocks && kept_blocks % GROUP_BLOCKS != 0 {
                let edge = &mut since[groups - 1];
                *edge = (*edge).max(changed);
            }
            (part.sums, part.changed, part.marks) = (sums, since, marks);
        }
        for at in 0..next.parts.len() {
            let kept_blocks = kept.get(at).map_or(0, |bytes| bytes / BLOCK_BYTES_U64);
            let kept_pages = index(kept_blocks.div_ceil(PAGE_BLOCKS));
            let (from, blocks, pages) = {
                let part = &next.parts[at];
                (part.first_page as usize, part.blocks, part.pages())
            };
            if let Some(old) = self.parts.get(at).filter(|_| kept_blocks > 0) {
                let before = old.first_page as usize;
                for page in 0..kept_pages {
                    next.versions[from + page] = self.versions[before + page];
                    if self.dirty[before + page] {
                        next.touch(from + page);
                    }
                }
                // What a page says of blocks behind the end is nothing.
                if (old.blocks != blocks || kept_blocks != blocks) && kept_pages > 0 {
                    next.touch(from + kept_pages - 1);
                }
            }
            if changed > Seq(0) {
                for page in kept_pages..pages {
                    next.touch(from + page);
                }
            }
        }
        *self = next;
    }

    /// How often those pages were written, all together, that a table keeps of which so many bytes of each volume are kept.
    #[must_use]
    pub fn written_within(&self, kept: &[u64]) -> u64 {
        let parts = self.parts.iter().zip(kept);
        let pages = parts.flat_map(|(part, bytes)| {
            let first = part.first_page as usize;
            let count = (pages_of(*bytes) as usize).min(part.pages());
            &self.versions[first..first + count]
        });
        pages.sum()
    }

    fn groups_of(&self, page: usize) -> (usize, std::ops::Range<usize>) {
        let part = self.part_of(page);
        let from = (page - self.parts[part].first_page as usize) * PAGE_GROUPS;
        let to = (from + PAGE_GROUPS).min(self.parts[part].changed.len());
        (part, from..to)
    }

    fn take_page(&mut self, page: usize, raw: &RawPage) {
        let (part, groups) = self.groups_of(page);
        let part = &mut self.parts[part];
        for (group, raw) in groups.zip(&raw.groups) {
            part.changed[group] = Seq(raw.changed.get() & !MARK);
            part.marks[group] = raw.changed.get() & MARK != 0;
            let first = group * GROUP_SUMS;
            let last = (first + GROUP_SUMS).min(part.sums.len());
            for (sum, raw) in part.sums[first..last].iter_mut().zip(&raw.sums) {
                *sum = BlockSum(raw.get());
            }
        }
        self.versions[page] = raw.version.get();
    }

    fn doubt_page(&mut self, page: usize, applied: Seq) {
        let (part, groups) = self.groups_of(page);
        let part = &mut self.parts[part];
        for changed in &mut part.changed[groups.clone()] {
            *changed = (*changed).max(applied);
        }
        part.marks[groups].fill(true);
    }

    fn lose_page(&mut self, page: usize, applied: Seq) {
        let (part, groups) = self.groups_of(page);
        let part = &mut self.parts[part];
        for group in groups {
            part.changed[group] = applied;
            let first = group * GROUP_SUMS;
            let last = (first + GROUP_SUMS).min(part.sums.len());
            part.sums[first..last].fill(BlockSum::UNKNOWN);
        }
        self.versions[page] = 2;
        self.lost.push(page);
    }

    /// Pages that are lost may be there again one day, if the disk only did not give them: what is written next in their place
    /// has to be newer. All pages together were written at least `written` times before, so none was oftener.
    pub fn outnumber(&mut self, written: u64) {
        for page in std::mem::take(&mut self.lost) {
            self.versions[page] = (written + 4) & !1;
        }
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u32 {
        u32::try_from(self.versions.len()).expect("fewer than 2^32 pages")
    }

    /// Blocks of a volume.
    #[must_use]
    pub fn blocks(&self, volume: VolumeId) -> u64 {
        self.parts[usize::from(volume.0)].blocks
    }

    /// Groups of a volume.
    #[must_use]
    pub fn groups(&self, volume: VolumeId) -> u64 {
        self.parts[usize::from(volume.0)].changed.len() as u64
    }

    /// How many volumes.
    #[must_use]
    pub fn volumes(&self) -> u16 {
        u16::try_from(self.parts.len()).expect("at most 16 volumes")
    }

    /// What is known of a block.
    #[must_use]
    pub fn sum(&self, volume: VolumeId, block: u64) -> BlockSum {
        self.parts[usize::from(volume.0)].sums[index(block)]
    }

    /// The first blocks in a range that are known to hold something else than zeroes: where they begin, and how many.
    #[must_use]
    pub fn first_data(&self, volume: VolumeId, range: std::ops::Range<u64>) -> Option<(u64, u64)> {
        let sums = &self.parts[usize::from(volume.0)].sums[index(range.start)..index(range.end)];
        let is_data = |sum: &BlockSum| !matches!(*sum, BlockSum::ZERO | BlockSum::UNKNOWN);
        let first = sums.iter().position(is_data)?;
        let count = sums[first..].iter().take_while(|s| is_data(s)).count();
        Some((range.start + first as u64, count as u64))
    }

    /// The last record that changed a group.
    #[must_use]
    pub fn changed(&self, volume: VolumeId, group: u64) -> Seq {
        self.parts[usize::from(volume.0)].changed[index(group)]
    }

    /// Whether a group is marked. In the table of the stores: its sums may be older than what the store holds, so nobody is told
    /// of them before the block was read. In that of what is staged: of a block of which nothing is known the store holds what
    /// the others hold, and the group did change.
    #[must_use]
    pub fn is_marked(&self, volume: VolumeId, group: u64) -> bool {
        self.parts[usize::from(volume.0)].marks[index(group)]
    }

    /// Marks a group.
    pub fn mark(&mut self, volume: VolumeId, group: u64) {
        let page = self.page_of(volume, group);
        self.parts[usize::from(volume.0)].marks[index(group)] = true;
        self.touch(page);
    }

    /// What is known of a block without a look at it, for a comparison with another node's.
    #[must_use]
    pub fn sum_for_sure(&self, volume: VolumeId, block: u64) -> BlockSum {
        if self.is_marked(volume, block / GROUP_BLOCKS) {
            BlockSum::UNKNOWN
        } else {
            self.sum(volume, block)
        }
    }

    fn page_of(&self, volume: VolumeId, group: u64) -> usize {
        self.parts[usize::from(volume.0)].first_page as usize + index(group) / PAGE_GROUPS
    }

    fn touch(&mut self, page: usize) {
        if !self.dirty[page] {
            self.dirty[page] = true;
            self.dirty_pages += 1;
        }
        self.dirty_from = self.dirty_from.min(page);
    }

    /// Records the contents of one block.
    pub fn set(&mut self, volume: VolumeId, block: u64, sum: BlockSum) {
        let page = self.page_of(volume, block / GROUP_BLOCKS);
        self.parts[usize::from(volume.0)].sums[index(block)] = sum;
        self.touch(page);
    }

    /// Records that a record changed a group.
    pub fn set_changed(&mut self, volume: VolumeId, group: u64, seq: Seq) {
        let page = self.page_of(volume, group);
        self.parts[usize::from(volume.0)].changed[index(group)] = seq;
        self.touch(page);
    }

    /// Records what record `seq` wrote to `blocks` blocks from `start` on.
    pub fn write(
        &mut self,
        volume: VolumeId,
        start: u64,
        blocks: u64,
        seq: Seq,
        sum: impl Fn(u64) -> BlockSum,
    ) {
        for block in start..start + blocks {
            self.parts[usize::from(volume.0)].sums[index(block)] = sum(block);
        }
        for group in start / GROUP_BLOCKS..=(start + blocks - 1) / GROUP_BLOCKS {
            let part = &mut self.parts[usize::from(volume.0)];
            let changed = &mut part.changed[index(group)];
            *changed = (*changed).max(seq);
            let all = ((group + 1) * GROUP_BLOCKS).min(part.blocks);
            if start <= group * GROUP_BLOCKS && all <= start + blocks {
                part.marks[index(group)] = false;
            }
            let page = self.page_of(volume, group);
            self.touch(page);
        }
    }

    /// Whether every page is on the disk as it is in memory, or on its way there.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dirty_pages == 0
    }

    /// The next page to be written: it counts as written from now on. Encodes it into `block` and returns its place in the
    /// file.
    ///
    /// # Panics
    /// If `block` is no block.
    pub fn take_dirty(&mut self, block: &mut [u8]) -> Option<u64> {
        assert_eq!(block.len(), BLOCK_BYTES);
        if self.dirty_pages == 0 {
            self.dirty_from = self.dirty.len();
            return None;
        }
        let page = self.dirty_from + self.dirty[self.dirty_from..].iter().position(|&d| d)?;
        self.dirty_from = page + 1;
        self.dirty[page] = false;
        self.dirty_pages -= 1;
        self.versions[page] += 1;
        let version = self.versions[page];
        self.encode(page, version, block);
        Some(self.slot_offset(page, usize::from(version % 2 == 1)))
    }

    fn encode(&self, page: usize, version: u64, block: &mut [u8]) {
        let (index, groups) = self.groups_of(page);
        let part = &self.parts[index];
        let mut raw =
            RawPage::read_from_bytes(&[0; BLOCK_BYTES]).expect("the length is the type's own");
        raw.magic = U64::new(MAGIC);
        raw.format = U16::new(SUMS_VERSION);
        raw.table = self.table.number();
        raw.version = U64::new(version);
        raw.volume = U16::new(u16::try_from(index).expect("at most 16 volumes"));
        raw.page = U64::new((page - part.first_page as usize) as u64);
        for (group, raw) in groups.zip(&mut raw.groups) {
            let mark = if part.marks[group] { MARK } else { 0 };
            raw.changed = U64::new(part.changed[group].0 | mark);
            let first = group * GROUP_SUMS;
            let last = (first + GROUP_SUMS).min(part.sums.len());
            for (sum, raw) in part.sums[first..last].iter().zip(&mut raw.sums) {
                *raw = U32::new(sum.0);
            }
        }
        raw.checksum = U32::new(checksum(raw.as_bytes()));
        block.copy_from_slice(raw.as_bytes());
    }

    /// How often pages were written, all together.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.versions.iter().sum()
    }

    /// Any page may be older than it should be: every group that was ever written counts as changed by `applied`.
    pub fn doubt(&mut self, applied: Seq) {
        for page in 0..self.versions.len() {
            self.doubt_page(page, applied);
        }
    }

    /// The newest record that any group is known to have been changed by.
    #[must_use]
    pub fn newest(&self) -> Seq {
        let all = self.parts.iter().flat_map(|p| &p.changed);
        all.copied().max().unwrap_or_default()
    }

    /// Forgets since when groups have not changed.
    pub fn forget_changes(&mut self) {
        for v in 0..self.volumes() {
            let volume = VolumeId(v);
            for group in 0..self.groups(volume) {
                if self.changed(volume, group) > Seq(0) {
                    self.set_changed(volume, group, Seq(0));
                }
            }
        }
    }

    /// Forgets a group: nothing is known of its blocks.
    pub fn forget(&mut self, volume: VolumeId, group: u64) {
        let page = self.page_of(volume, group);
        let part = &mut self.parts[usize::from(volume.0)];
        let first = index(group) * GROUP_SUMS;
        let last = (first + GROUP_SUMS).min(part.sums.len());
        part.changed[index(group)] = Seq(0);
        part.marks[index(group)] = false;
        part.sums[first..last].fill(BlockSum::UNKNOWN);
        self.touch(page);
    }
}

mod digest;
#[cfg(test)]
mod tests;

pub use digest::PageDigest;
