//! Nodes that are past a Primary's journal (protocol C2). A node's image is its stores; from the write of the superblock that says so
//! until it says otherwise it is what was staged, laid over the stores. That is a prefix at every instant (P3), and it changes
//! hands only when all of it is committed.

use replicator::meta::superblock::Superblock;
use replicator::meta::volumes::Volumes;
use replicator::store::sums::{BlockSum, SumTable, Table};
use replicator::types::*;
use replicator::wire::frame::Frame;

use crate::disk::{Block, Disk, Reading};
use crate::disks::Disks;
use crate::harness::*;

/// What is staged of a volume.
struct Staged<'a> {
    table: &'a SumTable,
    stage: &'a Disk,
    volume: VolumeId,
    /// The block of the stage at which the volume begins.
    base: u64,
}

/// What a volume of a node holds.
pub(crate) struct Image<'a> {
    store: &'a Disk,
    /// Blocks of it.
    blocks: u64,
    staged: Option<Staged<'a>>,
}

/// Blocks of a volume of a table, if it has it.
fn blocks_in(table: &SumTable, volume: VolumeId) -> u64 {
    if volume.0 < table.volumes() {
        table.blocks(volume)
    } else {
        0
    }
}

impl<'a> Image<'a> {
    /// With what is staged laid over it, if that is the image.
    pub(crate) fn of(
        disks: &'a Disks,
        volume: usize,
        staged: Option<&'a SumTable>,
        volumes: &Volumes,
    ) -> Self {
        let merging = disks.meta.superblock().and_then(|s| s.resync);
        let staged = staged.filter(|_| merging.is_some_and(|r| r.merging && !r.in_place));
        let id = |v: usize| VolumeId(u16::try_from(v).expect("16 volumes"));
        Self {
            store: &disks.stores[volume],
            blocks: volumes.blocks(id(volume)),
            staged: staged.map(|table| Staged {
                table,
                stage: &disks.stage,
                volume: id(volume),
                base: (0..volume).map(|v| blocks_in(table, id(v))).sum(),
            }),
        }
    }

    /// Whether a block is behind the end: what is there is nothing.
    pub(crate) fn is_beyond(&self, block: u64) -> bool {
        block >= self.blocks
    }

    fn sum(&self, block: u64) -> BlockSum {
        self.staged.as_ref().map_or(BlockSum::UNKNOWN, |s| {
            if block < blocks_in(s.table, s.volume) {
                s.table.sum(s.volume, block)
            } else {
                BlockSum::UNKNOWN
            }
        })
    }

    /// What a block holds; `None` for zeroes.
    pub(crate) fn block(&self, block: u64) -> Option<&'a Block> {
        match (&self.staged, self.sum(block)) {
            (None, _) | (_, BlockSum::UNKNOWN) => self.store.block(block),
            (_, BlockSum::ZERO) => None,
            (Some(s), _) => s.stage.block(s.base + block),
        }
    }

    /// Whether the disk harmed what it holds.
    pub(crate) fn is_harmed(&self, block: u64) -> bool {
        match (&self.staged, self.sum(block)) {
            (None, _) | (_, BlockSum::UNKNOWN) => self.store.is_harmed(block),
            (_, BlockSum::ZERO) => false,
            (Some(s), _) => s.stage.is_harmed(s.base + block),
        }
    }

    /// The blocks that may hold something else than zeroes, in order.
    pub(crate) fn written(&self) -> impl Iterator<Item = (u64, &'a Block)> {
        let mut blocks: Vec<u64> = self.store.written().map(|(b, _)| b).collect();
        if let Some(s) = &self.staged {
            let size = blocks_in(s.table, s.volume);
            blocks.extend((0..size).filter(|&b| s.table.sum(s.volume, b) != BlockSum::UNKNOWN));
            blocks.sort_unstable();
            blocks.dedup();
        }
        blocks.retain(|&b| b < self.blocks);
        blocks.into_iter().filter_map(|b| Some((b, self.block(b)?)))
    }
}

impl Cluster {
    /// A node's superblock may say that what it staged is its image now.
    pub(crate) fn note_merge(&mut self, node: usize) {
        if node >= self.options.nodes || self.checks.is_beyond() {
            return;
        }
        let Some(superblock) = self.nodes[node].disks.meta.superblock() else {
            return;
        };
        let n = &mut self.nodes[node];
        let was_in_place = n.in_place;
        n.in_place = superblock.resync.is_some_and(|r| r.in_place);
        if n.in_place && !was_in_place {
            self.resyncs_in_place += 1;
        }
        let n = &mut self.nodes[node];
        n.resyncs |= superblock.resync.is_some();
        let merges = superblock.resync.filter(|r| r.merging).map(|r| r.staged);
        if n.merges == merges {
            return;
        }
        n.merges = merges;
        match merges {
            Some(staged) => {
                self.trace(|| format!("-- what {node} staged through {staged} is its image"));
                self.note_lost(node, &superblock);
                // Disks that were rolled back are those of before, with what they say of themselves.
                let hurt = self.nodes[node].hurt;
                self.checks
                    .merges(node, (staged.epoch.0, staged.seq.0), hurt);
            }
            None => {
                if !was_in_place {
                    self.keep_harm(node);
                }
                self.trace(|| format!("-- what {node} staged is in its stores"));
                self.resyncs += 1;
                self.nodes[node].merged = true;
            }
        }
    }

    /// What a resync could not bring is bad in what becomes the image: only its checksums are right.
    fn note_lost(&mut self, node: usize, superblock: &Superblock) {
        let n = &mut self.nodes[node];
        let in_place = superblock.resync.is_some_and(|r| r.in_place);
        let sizes = superblock.volumes.sizes();
        let sums = &mut Reading(&n.disks.sums);
        let (table, _) = SumTable::load(Table::Staged, sizes, sums, Seq(0));
        for (volume, block) in std::mem::take(&mut n.not_given) {
            let id = |v: usize| VolumeId(u16::try_from(v).expect("16 volumes"));
            if block >= blocks_in(&table, id(volume)) {
                continue;
            }
            let base: u64 = (0..volume).map(|v| blocks_in(&table, id(v))).sum();
            let (disk, at) = if in_place {
                (&mut n.disks.stores[volume], block)
            } else {
                (&mut n.disks.stage, base + block)
            };
            let sum = table.sum(id(volume), block);
            let mut bytes = [0; BLOCK_BYTES];
            let read = disk.read(at, &mut bytes);
            let needed = !matches!(sum, BlockSum::UNKNOWN | BlockSum::ZERO);
            if needed && (read.is_err() || !sum.admits(id(volume), block, &bytes)) {
                disk.taint(at);
            }
        }
    }

    /// What was laid over the stores is in them, but for what the disk had harmed before: a peer has that.
    fn keep_harm(&mut self, node: usize) {
        let volumes = self.volumes_at(node);
        let sizes = volumes.sizes();
        let disks = &mut self.nodes[node].disks;
        let (table, _) = SumTable::load(Table::Staged, sizes, &mut Reading(&disks.sums), Seq(0));
        let mut base = 0;
        for (volume, store) in (0..).zip(&mut disks.stores) {
            let blocks = volumes.blocks(VolumeId(volume));
            for block in 0..blocks {
                let sum = table.sum(VolumeId(volume), block);
                let whole = matches!(sum, BlockSum::UNKNOWN | BlockSum::ZERO);
                if !whole && disks.stage.is_harmed(base + block) {
                    store.taint(block);
                }
            }
            base += blocks;
        }
    }

    /// P3: what a node would find on its disks if it started now is a prefix.
    pub(crate) fn image_is_prefix(&mut self, node: usize) {
        let seen = self.nodes[node].image_seen;
        let n = &self.nodes[node];
        if node >= self.options.nodes || n.hurt || self.checks.is_beyond() {
            return;
        }
        let Some(superblock) = n.disks.meta.superblock() else {
            return;
        };
        if superblock.version == seen {
            return;
        }
        self.table_is_right(node, &superblock);
        if superblock.resync.is_some_and(|r| r.in_place && !r.merging) {
            // It says itself that its stores are no image.
            return;
        }
        let applied = superblock.applied.id.seq;
        let staged = superblock.resync.filter(|r| r.merging).map(|_| {
            let sizes = superblock.volumes.sizes();
            SumTable::load(Table::Staged, sizes, &mut Reading(&n.disks.sums), Seq(0)).0
        });
        let replayed = n.view.committed.max(superblock.committed);
        for volume in 0..n.disks.stores.len() {
            let image = Image::of(&n.disks, volume, staged.as_ref(), &superblock.volumes);
            self.checks
                .store_is_prefix(node, volume, &image, applied.0, replayed.0);
        }
        let n = &mut self.nodes[node];
        n.image_seen = superblock.version;
        if std::mem::take(&mut n.merged) && superblock.resync.is_none() {
            n.resyncs = false;
        }
    }

    /// A node speaks: one whose stores are no image does not want to be Primary (protocol C3).
    pub(crate) fn says_inconsistent(&self, node: usize, frame: &Frame) {
        let n = &self.nodes[node];
        if !n.in_place || n.hurt || self.checks.is_beyond() {
            return;
        }
        let wants = matches!(frame, Frame::Promise { .. } | Frame::Append { .. });
        assert!(
            !wants,
            "C3: node {node} is Inconsistent, and says {frame:?}"
        );
    }
}
