//! Where the newest contents of blocks are, by the log and the stores, and how far a volume goes by them.

use super::*;

/// Where the newest contents of a block are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    Store,
    Zero,
    Batch { entry: u64, block: u32 },
}

impl<M: Memory> Replica<M> {
    /// Blocks that the stores have of a volume, or that it has by the log before an entry: there may not be room for them yet.
    pub(super) fn blocks_by(&self, volume: VolumeId, limit: u64) -> u64 {
        let through = self.log.tail_before(limit).id.seq;
        let mut tables = self.log.unapplied_volumes().iter().rev();
        let newest = tables.find(|t| t.at <= through);
        let newest = newest.map_or(0, |t| t.volumes.blocks(volume));
        self.blocks_stored(volume).max(newest)
    }

    /// Blocks that the stores have of a volume; 0 if they have none of it.
    pub(super) fn blocks_stored(&self, volume: VolumeId) -> u64 {
        if volume.0 < self.sums.volumes() {
            self.sums.blocks(volume)
        } else {
            0
        }
    }

    /// Where the newest contents of the blocks are that the first question is about, by the log before entry `limit`, and since
    /// when.
    pub(super) fn newest_of(
        &self,
        volume: VolumeId,
        start: u64,
        blocks: u32,
        limit: u64,
    ) -> (ArrayVec<Held, ASKED_BLOCKS_MAX>, Seq) {
        let end = start + u64::from(blocks);
        let mut held: ArrayVec<Held, ASKED_BLOCKS_MAX> = (0..blocks).map(|_| Held::Store).collect();
        let groups = start / GROUP_BLOCKS..=(end - 1) / GROUP_BLOCKS;
        let stored = self.blocks_stored(volume).div_ceil(GROUP_BLOCKS);
        let mut changed = groups
            .clone()
            .take_while(|&g| g < stored)
            .map(|g| self.sums.changed(volume, g))
            .max()
            .unwrap_or_default();
        let (near, far) = (
            groups.start() * GROUP_BLOCKS,
            (groups.end() + 1) * GROUP_BLOCKS,
        );
        let mut tables = self.log.unapplied_volumes().iter();
        let mut table = self.log.applied_volumes();
        for (number, seq, record) in self.log.unapplied_records(limit) {
            let Some(extent) = crate::replica::applier::extent_of(record, number, seq) else {
                if record.kind == Kind::Volumes
                    && let Some(TableAt { volumes, .. }) = tables.next()
                {
                    // Behind an end that is moved the stores may still have what was there.
                    let kept = table.common_bytes(volumes, volume) / BLOCK_BYTES_U64;
                    let (first, count) = (kept.clamp(start, end) - start, u64::from(blocks));
                    for at in first..count {
                        held[usize::try_from(at).expect("256 blocks")] = Held::Zero;
                    }
                    let comes_back = volumes.shrunk && kept < volumes.blocks(volume);
                    if first < count || comes_back && kept < far {
                        changed = changed.max(seq);
                    }
                    table = volumes;
                }
                continue;
            };
            if extent.volume != volume || extent.start >= far || extent.end() <= near {
                continue;
            }
            changed = changed.max(seq);
            if extent.start >= end || extent.end() <= start {
                continue;
            }
            let part = extent.within(start, end);
            for block in part.start..part.end() {
                let at = usize::try_from(block - start).expect("256 blocks");
                held[at] = match part.source {
                    Source::Zero { .. } => Held::Zero,
                    Source::Batch {
                        entry,
                        block: first,
                    } => Held::Batch {
                        entry,
                        block: first + u32::try_from(block - part.start).expect("256 blocks"),
                    },
                };
            }
        }
        (held, changed)
    }

    /// The newest record that is known here to be about a block's neighbourhood.
    pub(in crate::replica) fn newest_change(&self, volume: VolumeId, block: u64) -> Seq {
        self.newest_change_of(volume, block, 1)
    }

    /// The same, for several blocks.
    pub(in crate::replica) fn newest_change_of(
        &self,
        volume: VolumeId,
        block: u64,
        blocks: u32,
    ) -> Seq {
        let (_, changed) = self.newest_of(volume, block, blocks, self.log.next_number());
        changed
    }
}
