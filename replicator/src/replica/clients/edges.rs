//! Requests that begin or end within a block: what the rest of the block holds is found first, and merged in order.

use super::Work;
use crate::io::*;
use crate::memory::{Buffer, Memory, Purpose};
use crate::replica::loads::LoadFor;
use crate::replica::{Pending, Replica};
use crate::store::extents::Source;
use crate::store::sums::GROUP_BLOCKS;
use crate::types::*;

/// What a block at the edge of an unaligned request holds before it.
#[derive(Debug)]
pub(super) struct Edge<B> {
    pub(super) block: u64,
    pub(super) content: Option<B>,
    pub(super) reading: bool,
    pub(super) generation: u64,
    /// It was lent: this is the last record that had changed the neighbourhood by then.
    pub(super) lent: Option<Seq>,
}

impl<B> Edge<B> {
    /// Whether it waits for this block to be mended.
    pub(super) fn waits_for(&self, block: u64) -> bool {
        self.block == block && self.content.is_none() && !self.reading
    }
}

/// How an edge stands.
pub(super) enum EdgeState {
    Known,
    Waiting,
}

impl<M: Memory> Replica<M> {
    /// Whether the old contents of the blocks at both ends are known; asks for them if not.
    pub(super) fn edges_ready(&mut self, index: u32) -> EdgeState {
        let op = &mut self.clients.ops[index as usize];
        let (volume, mut edges) = match &mut op.work {
            Work::Write { volume, edges, .. } | Work::Zero { volume, edges, .. } => {
                (*volume, std::mem::take(edges))
            }
            _ => return EdgeState::Known,
        };
        let mut state = EdgeState::Known;
        for (which, edge) in edges.iter_mut().enumerate() {
            if let Some(edge) = edge
                && !self.edge_ready(index, which, volume, edge)
            {
                state = EdgeState::Waiting;
            }
        }
        if let Work::Write { edges: e, .. } | Work::Zero { edges: e, .. } =
            &mut self.clients.ops[index as usize].work
        {
            *e = edges;
        }
        state
    }

    fn edge_ready(
        &mut self,
        index: u32,
        which: usize,
        volume: VolumeId,
        edge: &mut Edge<M::Buffer>,
    ) -> bool {
        if edge.reading {
            return false;
        }
        let newest = self
            .overlay
            .first_overlap(volume, edge.block, edge.block + 1);
        // What was lent is good until something newer is applied there.
        let changed = self.sums.changed(volume, edge.block / GROUP_BLOCKS);
        if newest.is_none() && edge.content.is_some() && edge.lent == Some(changed) {
            return true;
        }
        edge.lent = None;
        if newest.is_none() && self.repairs.concern(volume, edge.block, edge.block + 1) {
            edge.content = None;
            return false;
        }
        if newest.is_none() && edge.content.is_some() {
            // It was read from the store; nothing may have replaced it there meanwhile.
            if edge.generation == self.applier.generation {
                return true;
            }
            edge.content = None;
        }
        if edge.content.is_none() {
            edge.content = self.memory.alloc(Purpose::Edge, 1);
        }
        let Some(content) = edge.content.as_mut() else {
            return false;
        };
        let Some(extent) = newest else {
            edge.reading = true;
            edge.generation = self.applier.generation;
            let op = DiskOp::StoreRead {
                volume,
                offset: edge.block * BLOCK_BYTES_U64,
                buffer: content.clone(),
            };
            let generation = self.clients.ops[index as usize].generation;
            self.disk(
                Pending::Edge {
                    index,
                    generation,
                    which,
                },
                op,
            );
            return false;
        };
        match extent.within(edge.block, edge.block + 1).source {
            Source::Zero { .. } => {
                content.bytes_mut().fill(0);
                true
            }
            Source::Batch { entry, block } => {
                let at = block as usize * BLOCK_BYTES;
                let source = match self.log.entry(entry) {
                    Some(e) => e.buffer.as_ref(),
                    None => self.clients.open.as_ref().map(|o| &o.buffer),
                };
                if let Some(source) = source {
                    content
                        .bytes_mut()
                        .copy_from_slice(&source.bytes()[at..at + BLOCK_BYTES]);
                    return true;
                }
                edge.content = None;
                if !self.loads.is_loading(entry) {
                    self.start_load(entry, LoadFor::Read);
                }
                false
            }
        }
    }

    pub(in crate::replica) fn edge_read(
        &mut self,
        index: u32,
        generation: u32,
        which: usize,
        result: Result<(), DiskError>,
    ) {
        let op = &mut self.clients.ops[index as usize];
        if op.generation != generation {
            return;
        }
        let (Work::Write { volume, edges, .. } | Work::Zero { volume, edges, .. }) = &mut op.work
        else {
            return;
        };
        let volume = *volume;
        let Some(edge) = &mut edges[which] else {
            return;
        };
        edge.reading = false;
        let block = edge.block;
        let content = edge.content.as_ref().map(Buffer::bytes);
        let sum = self.sums.sum(volume, block);
        let sound = result.is_ok() && content.is_some_and(|bytes| sum.admits(volume, block, bytes));
        // If a newer version was written meanwhile, this one is not looked at.
        let newer = edge.generation != self.applier.generation
            || self
                .overlay
                .first_overlap(volume, block, block + 1)
                .is_some();
        if !sound && !planted!(SumsUnchecked) && (result.is_err() || !newer) {
            edge.content = None;
            self.found_bad(volume, block);
        }
    }
}

/// Blocks that a byte range touches.
pub(super) fn span(offset: u64, length: u64) -> u64 {
    (offset + length).div_ceil(BLOCK_BYTES_U64) - offset / BLOCK_BYTES_U64
}

pub(super) fn in_block(offset: u64) -> usize {
    usize::try_from(offset % BLOCK_BYTES_U64).expect("below 4096")
}

/// The blocks at the ends of a range that it covers in part only.
pub(super) fn edges_of<B>(offset: u64, length: u64) -> [Option<Edge<B>>; 2] {
    let edge = |block| {
        Some(Edge {
            block,
            content: None,
            reading: false,
            generation: 0,
            lent: None,
        })
    };
    let end = offset + length;
    let (first, last) = (offset / BLOCK_BYTES_U64, (end - 1) / BLOCK_BYTES_U64);
    let head = !offset.is_multiple_of(BLOCK_BYTES_U64);
    let tail = !end.is_multiple_of(BLOCK_BYTES_U64);
    match (head, tail) {
        (true, true) if first == last => [edge(first), None],
        (head, tail) => [
            if head { edge(first) } else { None },
            if tail { edge(last) } else { None },
        ],
    }
}

/// Fills the parts of an owned buffer's blocks that the write does not cover.
pub(super) fn widen<B: Buffer>(
    buffer: &mut B,
    offset: u64,
    length: u64,
    edges: &[Option<Edge<B>>; 2],
) {
    let first = offset / BLOCK_BYTES_U64;
    for edge in edges.iter().flatten() {
        let content = edge.content.as_ref().expect("the edges are known").bytes();
        let begin = edge.block * BLOCK_BYTES_U64;
        let from = in_block(offset.max(begin) - begin);
        let to = usize::try_from((offset + length).min(begin + BLOCK_BYTES_U64) - begin)
            .expect("in a block");
        let at = BLOCK_BYTES + usize::try_from(edge.block - first).expect("257") * BLOCK_BYTES;
        let block = &mut buffer.bytes_mut()[at..at + BLOCK_BYTES];
        block[..from].copy_from_slice(&content[..from]);
        block[to..].copy_from_slice(&content[to..]);
    }
}
