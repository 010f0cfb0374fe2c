//! The table of checksums on disk: pages, where they are in the file, and what is made of one that is damaged.
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

use super::*;
use crate::recover::BlockRead;

const MAGIC: u64 = 0x534d_5553_4c50_5052; // "RPPLSUMS"

/// In a page, with the record that changed a group: its mark.
const MARK: u64 = 1 << 63;

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
pub(super) const AREA_BYTES: u64 = STRIPE_PAGES * BLOCK_BYTES_U64;

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

pub(super) fn pages_of(bytes: u64) -> u32 {
    u32::try_from((bytes / BLOCK_BYTES_U64).div_ceil(PAGE_BLOCKS))
        .expect("a volume has less than 2^32 pages")
}

impl SumTable {
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

    pub(super) fn doubt_page(&mut self, page: usize, applied: Seq) {
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
}
