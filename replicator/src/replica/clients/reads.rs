//! Reads: from memory what is there, from the store what is not, never what is not committed.

use super::Work;
use super::edges::{in_block, span};
use crate::io::*;
use crate::memory::{Buffer, Memory, Purpose};
use crate::replica::loads::LoadFor;
use crate::replica::{Pending, Replica};
use crate::store::block_set::BlockSet;
use crate::store::extents::Source;
use crate::types::*;
use crate::view::{Holds, Unapplied};

impl<M: Memory> Replica<M> {
    /// For which parts of a range of blocks the store does not have the last word, in order. It never waits: what is not
    /// committed yet may hold anything, and so may a block whose checksum is not that of zeroes, whatever the store shows.
    ///
    /// A driver that maps holes asks here first and then the store. What is not listed is in the store by then, with
    /// everything that was admitted before, so a hole that the store shows later reads as zeroes, or did meanwhile. (The
    /// other way round a write could leave this list for the store unseen.) The map is a read: it goes to a client
    /// only behind the answer to a [`ClientOp::Flush`] that was asked for after the store was looked at, since the lease has to
    /// run then.
    pub fn unapplied(
        &self,
        volume: VolumeId,
        blocks: std::ops::Range<u64>,
    ) -> impl Iterator<Item = Unapplied> {
        let std::ops::Range { mut start, end } = blocks;
        std::iter::from_fn(move || {
            if start >= end || planted!(MapForgetsUnapplied) {
                return None;
            }
            let extent = self.overlay.first_overlap(volume, start, end);
            let applied_to = extent.map_or(end, |e| e.start.clamp(start, end));
            if let Some((first, blocks)) = self.sums.first_data(volume, start..applied_to) {
                start = first + blocks;
                return Some(Unapplied {
                    start: first,
                    blocks,
                    holds: Holds::Anything,
                });
            }
            let part = extent?.within(start, end);
            start = part.end();
            let committed = part.seq <= self.committed;
            let holds = match part.source {
                Source::Zero { may_deallocate } if committed => Holds::Zeroes { may_deallocate },
                Source::Zero { .. } | Source::Batch { .. } => Holds::Anything,
            };
            Some(Unapplied {
                start: part.start,
                blocks: part.blocks,
                holds,
            })
        })
    }

    /// Looks again at reads that waited.
    pub(in crate::replica) fn pump_reads(&mut self) {
        let mut at = 0;
        while at < self.clients.reads.len() {
            if self.try_read(self.clients.reads[at]) {
                self.clients.reads.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// Plans a read. `false` if it has to wait for a commit, for memory, or for the journal.
    pub(in crate::replica) fn try_read(&mut self, index: u32) -> bool {
        let Work::Read {
            volume,
            offset,
            length,
            singly,
            given,
            ..
        } = self.clients.ops[index as usize].work
        else {
            return true;
        };
        if !self.serving() {
            return false;
        }
        let start = offset / BLOCK_BYTES_U64;
        let end = start + span(offset, u64::from(length));
        if self.repairs.concern_other_than(volume, start, end, given) {
            return false;
        }
        let mut missing = None;
        let mut at = start;
        while let Some(extent) = self.overlay.first_overlap(volume, at, end) {
            if extent.seq > self.committed && !planted!(UncommittedRead) {
                return false;
            }
            if planted!(ReadsWaitForAll)
                && self
                    .peers
                    .iter()
                    .any(|p| p.conn.is_some() && p.acked < extent.seq)
            {
                return false;
            }
            if let Source::Batch { entry, .. } = extent.source
                && self.log.entry(entry).is_none_or(|e| e.buffer.is_none())
            {
                missing.get_or_insert(entry);
            }
            at = extent.end();
        }
        if let Some(entry) = missing {
            if !self.loads.is_loading(entry) {
                self.start_load(entry, LoadFor::Read);
            }
            return false;
        }
        let blocks = u32::try_from(end - start).expect("at most 257 blocks");
        let kept = match &mut self.clients.ops[index as usize].work {
            Work::Read { kept, .. } => kept.take(),
            _ => None,
        };
        let buffer = kept.or_else(|| self.memory.alloc(Purpose::Client, blocks));
        let Some(mut buffer) = buffer else {
            return false;
        };
        // Also one that was read into before is ours alone now.
        let _ = buffer.bytes_mut();
        // First what is in memory, while the buffer is ours alone; then the gaps, from the store.
        let mut at = start;
        while let Some(extent) = self.overlay.first_overlap(volume, at, end) {
            let part = extent.within(start, end);
            let to = usize::try_from(part.start - start).expect("257 blocks") * BLOCK_BYTES;
            let bytes = usize::try_from(part.blocks).expect("257 blocks") * BLOCK_BYTES;
            let target = &mut buffer.bytes_mut()[to..to + bytes];
            match part.source {
                Source::Zero { .. } => target.fill(0),
                Source::Batch { entry, block } => {
                    let from = block as usize * BLOCK_BYTES;
                    let source = self.log.entry(entry).and_then(|e| e.buffer.as_ref());
                    let source = source.expect("it was checked above").bytes();
                    target.copy_from_slice(&source[from..from + bytes]);
                }
            }
            at = extent.end();
        }
        let generation = self.clients.ops[index as usize].generation;
        let mut from_store = BlockSet::default();
        let mut left = 0;
        let mut at = start;
        while at < end {
            let next = self.overlay.first_overlap(volume, at, end);
            let gap_end = next.map_or(end, |e| e.start.max(at));
            let mut piece = at;
            while piece < gap_end {
                let first = u32::try_from(piece - start).expect("257 blocks");
                if given.has(first) {
                    piece += 1;
                    continue;
                }
                let until = match (singly, given.is_empty()) {
                    (true, _) => piece + 1,
                    (false, true) => gap_end,
                    (false, false) => (piece + 1..gap_end)
                        .find(|b| given.has(u32::try_from(b - start).expect("257 blocks")))
                        .unwrap_or(gap_end),
                };
                let blocks = u32::try_from(until - piece).expect("257 blocks");
                from_store.add(first, blocks);
                let op = DiskOp::StoreRead {
                    volume,
                    offset: piece * BLOCK_BYTES_U64,
                    buffer: buffer.slice(first, blocks),
                };
                self.disk(
                    Pending::Read {
                        index,
                        generation,
                        first,
                        blocks,
                    },
                    op,
                );
                left += 1;
                piece = until;
            }
            at = next.map_or(end, |e| e.end());
        }
        if left == 0 {
            self.finish_read(index, offset, length, buffer);
        } else {
            self.clients.ops[index as usize].work = Work::Read {
                volume,
                offset,
                length,
                buffer: Some(buffer),
                left,
                from_store,
                stores: self.applier.generation,
                failed: BlockSet::default(),
                singly,
                given,
                kept: None,
            };
        }
        true
    }

    pub(in crate::replica) fn read_done(
        &mut self,
        index: u32,
        generation: u32,
        (first, blocks): (u32, u32),
        result: Result<(), DiskError>,
    ) {
        let op = &mut self.clients.ops[index as usize];
        if op.generation != generation {
            return;
        }
        let Work::Read {
            volume,
            offset,
            length,
            buffer,
            left,
            from_store,
            stores,
            failed,
            singly,
            given,
            ..
        } = &mut op.work
        else {
            return;
        };
        *left -= 1;
        if result.is_err() {
            failed.add(first, blocks);
        }
        if *left > 0 {
            return;
        }
        let (volume, offset, length) = (*volume, *offset, *length);
        let (from_store, stores, failed) = (*from_store, *stores, *failed);
        let buffer = buffer.take().expect("a read in flight has its buffer");
        let whole = failed.is_empty();
        if !whole && !*singly {
            // Which of its blocks the store does not give is seen when they are read one by one.
            *singly = true;
            self.read_again(index, buffer);
            return;
        }
        if whole && planted!(SumsUnchecked) {
            self.finish_read(index, offset, length, buffer);
            return;
        }
        let start = offset / BLOCK_BYTES_U64;
        let (mut sound, mut good) = (true, *given);
        for n in from_store.iter() {
            let at = n as usize * BLOCK_BYTES;
            let block = start + u64::from(n);
            let bytes = &buffer.bytes()[at..at + BLOCK_BYTES];
            if !failed.has(n) && self.sums.sum(volume, block).admits(volume, block, bytes) {
                good.add(n, 1);
                continue;
            }
            sound = false;
            // A newer version may have been written while the old one was read.
            let newer = self
                .overlay
                .first_overlap(volume, block, block + 1)
                .is_some();
            if failed.has(n) || !(newer || stores != self.applier.generation) {
                self.found_bad(volume, block);
            }
        }
        if sound {
            self.finish_read(index, offset, length, buffer);
        } else {
            if let Work::Read { given, .. } = &mut self.clients.ops[index as usize].work {
                *given = good;
            }
            self.read_again(index, buffer);
        }
    }

    /// Not all that was read can be used: the rest is planned anew, once what is bad has been seen to.
    fn read_again(&mut self, index: u32, buffer: M::Buffer) {
        if let Work::Read { given, kept, .. } = &mut self.clients.ops[index as usize].work {
            *kept = Some(buffer).filter(|_| !given.is_empty());
        }
        self.clients.reads.push(index);
    }

    pub(in crate::replica) fn finish_read(
        &mut self,
        index: u32,
        offset: u64,
        length: u32,
        buffer: M::Buffer,
    ) {
        let answer = Answer::Data {
            buffer,
            start: in_block(offset),
            length: length as usize,
        };
        self.finish(index, answer);
    }
}
