//! Writing the superblock: one update at a time, two copies and then the other two, and who waits for it.

use super::{Pending, Replica, fence};
use crate::io::{DiskError, DiskOp, Parts};
use crate::memory::{Buffer, Memory, Purpose};
use crate::meta::config::ConfigAt;
use crate::meta::fences::FenceMarks;
use crate::meta::superblock::{COPIES, Superblock, copy_offset};
use crate::types::*;

/// A version of the superblock that something waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct MetaVersion(u64);

#[derive(Debug)]
struct Writing {
    version: MetaVersion,
    second_round: bool,
    left: u8,
    promised: Epoch,
    committed: Seq,
    config: Option<ConfigAt>,
    fences: FenceMarks,
    floor_position: u64,
}

/// The superblock as it should be, as it is, and the write between.
#[derive(Debug)]
pub(super) struct Metadata<B> {
    /// As it should be.
    pub(super) wanted: Superblock,
    /// What of it is durable: the promise.
    pub(super) durable_promised: Epoch,
    /// What a restart would know to be committed.
    pub(super) durable_committed: Seq,
    /// And the config.
    pub(super) durable_config: Option<ConfigAt>,
    /// Who is fenced, as it should be, and what of that is durable.
    pub(super) fences: FenceMarks,
    pub(super) durable_fences: FenceMarks,
    durable: MetaVersion,
    dirty: bool,
    writing: Option<Writing>,
    blocks: Vec<B>,
    /// The order in which the copies are written.
    order: [usize; COPIES],
}

impl<B: Buffer> Metadata<B> {
    pub(super) fn new(
        superblock: Superblock,
        order: [usize; COPIES],
        fences: FenceMarks,
        memory: &mut impl Memory<Buffer = B>,
    ) -> Self {
        let blocks = (0..COPIES)
            .map(|_| {
                memory
                    .alloc(Purpose::Core, 1)
                    .expect("the memory is still unused")
            })
            .collect();
        Self {
            durable_promised: superblock.promised,
            durable_committed: superblock.committed,
            durable_config: superblock.config.clone(),
            fences,
            durable_fences: fences,
            durable: MetaVersion(superblock.version),
            wanted: superblock,
            dirty: false,
            writing: None,
            blocks,
            order,
        }
    }

    /// Says that `wanted` was changed; returns the version to wait for.
    pub(super) fn changed(&mut self) -> MetaVersion {
        self.dirty = true;
        MetaVersion(self.writing.as_ref().map_or(self.durable, |w| w.version).0 + 1)
    }

    /// Whether a version is durable.
    pub(super) fn is_durable(&self, version: MetaVersion) -> bool {
        self.durable >= version
    }

    /// Whether nothing is being written or waits to be.
    pub(super) fn is_settled(&self) -> bool {
        !self.dirty && self.writing.is_none()
    }
}

impl<M: Memory> Replica<M> {
    /// Starts a superblock write if one is wanted and none runs.
    pub(super) fn pump_metadata(&mut self) {
        if !self.metadata.dirty || self.metadata.writing.is_some() || self.failed.is_some() {
            return;
        }
        let meta = &mut self.metadata;
        meta.dirty = false;
        let version = MetaVersion(meta.durable.0 + 1);
        let floor = self.log.applied_floor();
        let wanted = &mut meta.wanted;
        wanted.fences = fence::to_store(&meta.fences, &self.config.nodes);
        wanted.version = version.0;
        wanted.applied = floor;
        // No more than this node's own journal has: a Primary's copy may lag its peers', and recovery takes a record
        // that the superblock speaks of and the journal lacks for damage.
        wanted.acked = self.log.durable_id();
        // What a history began with is committed by that.
        let forked = wanted.fork.map_or(Seq(0), |f| f.at.seq);
        wanted.committed = self.committed.max(forked).min(wanted.acked.seq);
        wanted.config = self.log.config_at(floor.id.seq).cloned();
        wanted.epochs = self.log.epochs_until(floor.id.seq);
        if !planted!(TableForgotten) {
            wanted.volumes = self.log.applied_volumes().clone();
            wanted.volumes_at = self.log.applied_volumes_at();
        }
        let mut floor = floor;
        if let Some(restart) = &self.restart {
            // A resync is whole: in this write the image, the beginning of the log and its end become what it brought.
            floor = restart.floor;
            wanted.applied = floor;
            wanted.acked = floor.id;
            wanted.committed = floor.id.seq;
            wanted.config = Some(restart.config.clone());
            wanted.epochs = restart.epochs.clone();
            wanted.volumes = restart.volumes.volumes.clone();
            wanted.volumes_at = restart.volumes.at;
            wanted.sums_written = restart.sums_written;
        }
        for (copy, block) in meta.blocks.iter_mut().enumerate() {
            wanted.encode(copy, block.bytes_mut());
        }
        meta.writing = Some(Writing {
            version,
            second_round: false,
            left: 0,
            promised: wanted.promised,
            committed: wanted.committed,
            config: wanted.config.clone(),
            fences: meta.fences,
            floor_position: floor.position,
        });
        self.write_copies(0);
    }

    fn write_copies(&mut self, first: usize) {
        for copy in self.metadata.order.into_iter().skip(first).take(COPIES / 2) {
            let mut parts = Parts::new();
            parts.push(self.metadata.blocks[copy].clone());
            let op = DiskOp::MetaWrite {
                offset: copy_offset(copy),
                parts,
            };
            self.disk(Pending::Metadata, op);
            self.metadata
                .writing
                .as_mut()
                .expect("a write was begun")
                .left += 1;
        }
    }

    pub(super) fn metadata_written(&mut self, result: Result<(), DiskError>) {
        if let Err(error) = result {
            self.fail("the metadata file can not be written", Some(error));
            return;
        }
        let Some(writing) = self.metadata.writing.as_mut() else {
            return;
        };
        writing.left -= 1;
        if writing.left > 0 {
            return;
        }
        if !writing.second_round {
            writing.second_round = true;
            self.write_copies(COPIES / 2);
            return;
        }
        let Some(writing) = self.metadata.writing.take() else {
            return;
        };
        self.metadata.durable = writing.version;
        self.metadata.durable_promised = writing.promised;
        self.metadata.durable_committed = self.metadata.durable_committed.max(writing.committed);
        self.metadata.durable_config = writing.config;
        self.metadata.durable_fences = writing.fences;
        let floor = writing.floor_position;
        self.log.set_floor_position(floor);
        if let Some(fork) = self.metadata.wanted.fork
            && self.metadata.is_durable(self.silent_until)
        {
            self.committed = self.committed.max(fork.at.seq);
        }
    }
}
