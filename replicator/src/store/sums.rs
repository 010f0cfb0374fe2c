//! What is known of every block of the stores: its checksum, and since when its neighbourhood has not changed.
//!
//! A *group* is 16 blocks (64 KiB). For each group there is the last record that changed it, and for each of its blocks a
//! [`BlockSum`]. 56 groups make a *page*, one block of the file of checksums; so this costs 0.12 % of the volumes, on disk
//! twice (see `page.rs`) and in memory once.
//!
//! With the sums every read from a store is checked: bytes that rotted, that went astray, or that a disk said it had
//! written and had not, differ from the sum that was recorded when the journal's record was applied. With the records, what a
//! peer lacks is known without a bitmap per peer: whatever changed after the last record that it has.

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

fn index(n: u64) -> usize {
    usize::try_from(n).expect("tables of 64-bit machines")
}

impl SumTable {
    /// A new node's table, for volumes of these sizes in bytes.
    #[must_use]
    pub fn new(table: Table, volumes: impl Iterator<Item = u64>) -> Self {
        Self::laid_out(table, volumes, |_| true)
    }

    /// The same, where only some parts are filled.
    fn laid_out(
        table: Table,
        volumes: impl Iterator<Item = u64>,
        is_filled: impl Fn(usize) -> bool,
    ) -> Self {
        let mut first_page = 0;
        let parts: Vec<_> = volumes
            .enumerate()
            .map(|(at, bytes)| {
                let blocks = bytes / BLOCK_BYTES_U64;
                let pages = pages_of(bytes);
                let (groups, sums) = if is_filled(at) {
                    (index(blocks.div_ceil(GROUP_BLOCKS)), index(blocks))
                } else {
                    (0, 0)
                };
                let part = Part {
                    blocks,
                    first_page,
                    changed: vec![Seq(0); groups],
                    marks: vec![false; groups],
                    sums: vec![table.never(); sums],
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
        let kept_blocks = |at: usize| kept.get(at).map_or(0, |bytes| bytes / BLOCK_BYTES_U64);
        let is_new = |at: usize| kept_blocks(at) == 0 || self.parts.len() <= at;
        let mut next = Self::laid_out(self.table, sizes, is_new);
        for (at, part) in next.parts.iter_mut().enumerate() {
            let kept_blocks = kept_blocks(at);
            let Some(old) = self.parts.get_mut(at).filter(|_| kept_blocks > 0) else {
                part.changed.fill(changed);
                continue;
            };
            let groups = index(kept_blocks.div_ceil(GROUP_BLOCKS));
            // It stays where it is in memory: there is not twice as much of that.
            let all = index(part.blocks.div_ceil(GROUP_BLOCKS));
            let (mut sums, mut since, mut marks) = (
                std::mem::take(&mut old.sums),
                std::mem::take(&mut old.changed),
                std::mem::take(&mut old.marks),
            );
            sums.truncate(index(kept_blocks));
            since.truncate(groups);
            marks.truncate(groups);
            sums.reserve_exact(index(part.blocks) - sums.len());
            sums.resize(index(part.blocks), self.table.never());
            since.resize(all, changed);
            marks.resize(all, false);
            if part.blocks > kept_blocks && kept_blocks % GROUP_BLOCKS != 0 {
                let edge = &mut since[groups - 1];
                *edge = (*edge).max(changed);
            }
            (part.sums, part.changed, part.marks) = (sums, since, marks);
        }
        for at in 0..next.parts.len() {
            let kept_blocks = kept_blocks(at);
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
mod page;
#[cfg(test)]
mod tests;

pub use digest::PageDigest;
use page::pages_of;
pub use page::{Found, PageRead, STRIPE_BYTES, STRIPE_PAGES, areas, file_bytes, new_areas, used};
