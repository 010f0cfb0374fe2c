//! Pages as verifications compare them: which blocks one is about, and what its sums come to.

use super::{BlockSum, GROUP_BLOCKS, PAGE_BLOCKS, SumTable, index};
use crate::types::*;

/// What the sums of a page come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageDigest {
    /// All sums, in 64 bits.
    pub digest: u64,
    /// Blocks of which nothing is known.
    pub unknown: u16,
}

impl SumTable {
    /// How many pages are about a volume; 0 if there is no such volume.
    #[must_use]
    pub fn pages_of_volume(&self, volume: VolumeId) -> u32 {
        let part = self.parts.get(usize::from(volume.0));
        part.map_or(0, |p| super::pages_of(p.blocks * BLOCK_BYTES_U64))
    }

    /// The blocks that a page of a volume is about; none if there is no such page.
    #[must_use]
    pub fn blocks_of_page(&self, volume: VolumeId, page: u32) -> std::ops::Range<u64> {
        let blocks = self
            .parts
            .get(usize::from(volume.0))
            .map_or(0, |p| p.blocks);
        let start = (u64::from(page) * PAGE_BLOCKS).min(blocks);
        start..(start + PAGE_BLOCKS).min(blocks)
    }

    /// The first block of a range whose sum may be older than what the store holds.
    #[must_use]
    pub fn first_in_doubt(&self, volume: VolumeId, blocks: std::ops::Range<u64>) -> Option<u64> {
        let groups = blocks.start / GROUP_BLOCKS..blocks.end.div_ceil(GROUP_BLOCKS);
        let marks = &self.parts[usize::from(volume.0)].marks;
        let marked = marks[index(groups.start)..index(groups.end)].iter();
        let first = marked.zip(groups).find(|(mark, _)| **mark)?;
        Some((first.1 * GROUP_BLOCKS).max(blocks.start))
    }

    /// The sums of a range of blocks, in order.
    pub fn sums_of(
        &self,
        volume: VolumeId,
        blocks: std::ops::Range<u64>,
    ) -> impl Iterator<Item = BlockSum> {
        let sums = &self.parts[usize::from(volume.0)].sums;
        sums[index(blocks.start)..index(blocks.end)].iter().copied()
    }

    /// What the sums of a range of blocks come to.
    #[must_use]
    pub fn digest(&self, volume: VolumeId, blocks: std::ops::Range<u64>) -> PageDigest {
        let mut found = PageDigest {
            digest: blocks.start + 1,
            unknown: 0,
        };
        for sum in self.sums_of(volume, blocks) {
            found.digest = crate::checksum::mix(found.digest ^ u64::from(sum.to_wire()));
            found.unknown += u16::from(sum == BlockSum::UNKNOWN);
        }
        found
    }
}
