//! Writes and zeroes get their place in the one order: small ones are copied into the turn's batch, large ones become a
//! batch from the buffer that they came in. What can not be taken now is parked, in order of arrival.

use super::edges::{EdgeState, edges_of, in_block, span, widen};
use super::{OPEN_BLOCKS_MAX, OWN_BATCH_BLOCKS, Open, Work};
use crate::io::*;
use crate::journal::batch::{DESCRIPTORS_MAX, Descriptor, Kind};
use crate::memory::{Buffer, Memory, Purpose};
use crate::replica::Replica;
use crate::replica::applier::extent_of;
use crate::types::*;

impl<M: Memory> Replica<M> {
    pub(in crate::replica) fn client_write(
        &mut self,
        req: ReqId,
        volume: VolumeId,
        offset: u64,
        length: u32,
        data: WriteData<'_, M::Buffer>,
    ) {
        let aligned = offset.is_multiple_of(BLOCK_BYTES_U64)
            && u64::from(length).is_multiple_of(BLOCK_BYTES_U64);
        let blocks = span(offset, u64::from(length));
        let first = offset / BLOCK_BYTES_U64;
        let buffer = match data {
            WriteData::Owned(buffer) => {
                assert_eq!(
                    u64::from(buffer.blocks()),
                    u64::from(HEADER_BLOCKS) + blocks
                );
                Some(buffer)
            }
            WriteData::Borrowed(bytes) => {
                assert_eq!(bytes.len(), length as usize);
                let count = u32::try_from(blocks).expect("at most 257 blocks");
                let clients = &self.clients;
                if aligned
                    && clients.parked.is_empty()
                    && !clients.widens_before(clients.arrivals, volume, &(first..first + blocks))
                    && self.admits_now()
                    && self.open_for(count)
                {
                    let index = self.clients.take(req, Work::Flush);
                    let seq = self.push_write(volume, first, bytes);
                    self.clients.uncommitted.push_back((seq, index));
                    return;
                }
                // It has to wait, so it needs memory of its own. The driver leaves it some (`capacity`).
                let own = self
                    .memory
                    .alloc(Purpose::Client, HEADER_BLOCKS + count)
                    .or_else(|| self.memory.alloc(Purpose::Core, HEADER_BLOCKS + count));
                own.map(|mut buffer| {
                    let at = BLOCK_BYTES + in_block(offset);
                    buffer.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
                    buffer
                })
            }
        };
        let edges = if aligned {
            [None, None]
        } else {
            edges_of(offset, u64::from(length))
        };
        let index = self.clients.take(
            req,
            Work::Write {
                volume,
                offset,
                length,
                buffer,
                edges,
            },
        );
        if matches!(
            &self.clients.ops[index as usize].work,
            Work::Write { buffer: None, .. }
        ) {
            self.fail_op(index);
            return;
        }
        self.clients.parked.push_back(index);
        self.pump_parked();
    }

    /// Whether writes may get a sequence number now.
    pub(in crate::replica) fn admits_now(&self) -> bool {
        self.may_admit() && self.hold.is_none()
    }

    fn may_admit(&self) -> bool {
        self.serving() && self.lease_runs() && !self.demoting()
    }

    /// Makes sure that the open batch takes one more record with `blocks` payload blocks. `false` if it must wait.
    pub(in crate::replica) fn open_for(&mut self, blocks: u32) -> bool {
        let clients = &self.clients;
        if let Some(open) = &clients.open {
            let used = 1 + clients.draft.payload_blocks() + blocks;
            if used <= open.blocks && clients.draft.fits(blocks) {
                return self.room_for(blocks, 1);
            }
            self.close_batch();
        }
        if !self.room_for(blocks, 1) {
            return false;
        }
        let expected = self
            .clients
            .expected_blocks
            .clamp(1, OPEN_BLOCKS_MAX)
            .max(blocks);
        let buffer = self
            .memory
            .alloc(Purpose::Core, 1 + expected)
            .or_else(|| self.memory.alloc(Purpose::Core, 1 + blocks));
        let Some(buffer) = buffer else { return false };
        let blocks = buffer.blocks();
        self.clients.open = Some(Open { buffer, blocks });
        true
    }

    /// Whether ring and overlay take this besides the open batch.
    pub(in crate::replica) fn room_for(&self, blocks: u32, records: usize) -> bool {
        let draft = &self.clients.draft;
        let blocks = 2 + draft.payload_blocks() + blocks;
        let records = draft.records().len() + records;
        self.log
            .has_room(blocks, records, crate::journal::log::CONTROL_RESERVE_BLOCKS)
            && self.overlay.room() >= 2 * (records + 2)
    }

    pub(in crate::replica) fn next_seq(&self) -> Seq {
        Seq(self.log.tail().id.seq.0 + self.clients.draft.records().len() as u64 + 1)
    }

    /// The newest record that got a number.
    pub(in crate::replica) fn admitted(&self) -> Seq {
        Seq(self.next_seq().0 - 1)
    }

    /// Copies whole blocks into the open batch, which takes them.
    pub(in crate::replica) fn push_write(
        &mut self,
        volume: VolumeId,
        block: u64,
        bytes: &[u8],
    ) -> Seq {
        let seq = self.next_seq();
        let number = self.log.next_number();
        let clients = &mut self.clients;
        let open = clients.open.as_mut().expect("a batch was opened");
        let at = (1 + clients.draft.payload_blocks()) as usize * BLOCK_BYTES;
        open.buffer.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        let blocks = u32::try_from(bytes.len() / BLOCK_BYTES).expect("at most 384 blocks");
        clients
            .draft
            .push(Kind::Write, volume, block, blocks, bytes);
        clients.turn_blocks += blocks;
        let record = *clients.draft.records().last().expect("it was just pushed");
        self.overlay_insert(&record, number, seq);
        seq
    }

    pub(in crate::replica) fn push_zero(
        &mut self,
        volume: VolumeId,
        block: u64,
        blocks: u32,
        may_deallocate: bool,
    ) -> Seq {
        let seq = self.next_seq();
        let number = self.log.next_number();
        let draft = &mut self.clients.draft;
        draft.push(Kind::Zero { may_deallocate }, volume, block, blocks, &[]);
        let record = *draft.records().last().expect("it was just pushed");
        self.overlay_insert(&record, number, seq);
        seq
    }

    pub(in crate::replica) fn overlay_insert(
        &mut self,
        record: &Descriptor,
        number: u64,
        seq: Seq,
    ) {
        let extent = extent_of(record, number, seq).expect("client records are about blocks");
        self.overlay.insert(extent);
    }

    /// Closes the open batch: from here on it never changes.
    pub(in crate::replica) fn close_batch(&mut self) {
        let Some(mut open) = self.clients.open.take() else {
            return;
        };
        let draft = std::mem::take(&mut self.clients.draft);
        if !draft.is_empty() {
            open.buffer.shrink(1 + draft.payload_blocks());
            self.append_own(&draft, open.buffer, None);
        }
        self.clients.draft = draft;
        self.clients.draft.clear();
    }

    /// At the end of a turn: the batch leaves, and the next one's size is guessed from this turn.
    pub(in crate::replica) fn end_batch(&mut self) {
        self.close_batch();
        if self.clients.turn_blocks > 0 {
            self.clients.expected_blocks = self.clients.turn_blocks.next_power_of_two();
            self.clients.turn_blocks = 0;
        }
    }

    /// Takes parked requests in, in their order, as far as there is room.
    pub(in crate::replica) fn pump_parked(&mut self) {
        while let Some(&index) = self.clients.parked.front() {
            if !(self.admits_now() || planted!(HoldForgetsParked) && self.may_admit()) {
                return;
            }
            let follows = self.clients.follows_widening(index);
            if follows || matches!(self.edges_ready(index), EdgeState::Waiting) {
                // What comes after it must not wait for this disk read, unless it is about the same blocks.
                self.clients.parked.pop_front();
                self.clients.widen_later(index);
                continue;
            }
            if !self.admit(index) {
                return;
            }
            self.clients.parked.pop_front();
        }
    }

    /// Looks again at requests whose edges were being read.
    pub(in crate::replica) fn pump_widening(&mut self) {
        let mut at = 0;
        while at < self.clients.widening.len() {
            let index = self.clients.widening[at];
            let follows = self.clients.follows_widening(index);
            if !follows && matches!(self.edges_ready(index), EdgeState::Known) {
                self.clients.widening.remove(at);
                self.clients.parked.push_back(index);
            } else {
                at += 1;
            }
        }
    }

    pub(in crate::replica) fn admit(&mut self, index: u32) -> bool {
        let work = std::mem::replace(&mut self.clients.ops[index as usize].work, Work::Flush);
        match work {
            Work::Write {
                volume,
                offset,
                length,
                buffer,
                edges,
            } => {
                let blocks = u32::try_from(span(offset, u64::from(length))).expect("257 blocks");
                let own = blocks >= OWN_BATCH_BLOCKS;
                let fits = if own {
                    self.room_for(blocks, 1)
                } else {
                    self.open_for(blocks)
                };
                if !fits {
                    self.clients.ops[index as usize].work = Work::Write {
                        volume,
                        offset,
                        length,
                        buffer,
                        edges,
                    };
                    return false;
                }
                let mut buffer = buffer.expect("a parked write has its bytes");
                widen(&mut buffer, offset, u64::from(length), &edges);
                let first = offset / BLOCK_BYTES_U64;
                let seq = if own {
                    if !planted!(LargeWriteOvertakes) {
                        self.close_batch();
                    }
                    self.append_write(volume, first, blocks, buffer)
                } else {
                    self.push_write(volume, first, &buffer.bytes()[BLOCK_BYTES..])
                };
                self.clients.uncommitted.push_back((seq, index));
                true
            }
            Work::Zero {
                volume,
                offset,
                length,
                may_deallocate,
                mut edges,
            } => {
                let fits = self.open_for(2) && {
                    let draft = &self.clients.draft;
                    draft.records().len() + 3 <= DESCRIPTORS_MAX && self.room_for(2, 3)
                };
                if !fits {
                    self.close_batch();
                    self.clients.ops[index as usize].work = Work::Zero {
                        volume,
                        offset,
                        length,
                        may_deallocate,
                        edges,
                    };
                    // A full draft was closed; try once more with an empty one.
                    return self.clients.draft.is_empty()
                        && self.room_for(2, 3)
                        && self.open_for(2)
                        && self.admit(index);
                }
                let mut last = Seq(0);
                for edge in edges.iter_mut().flatten() {
                    let mut content = edge.content.take().expect("the edges are known");
                    let begin = edge.block * BLOCK_BYTES_U64;
                    let from = offset.max(begin) - begin;
                    let to = (offset + length).min(begin + BLOCK_BYTES_U64) - begin;
                    content.bytes_mut()[usize::try_from(from).expect("in a block")
                        ..usize::try_from(to).expect("in a block")]
                        .fill(0);
                    last = self.push_write(volume, edge.block, content.bytes());
                }
                let first = offset.div_ceil(BLOCK_BYTES_U64);
                let end = (offset + length) / BLOCK_BYTES_U64;
                if first < end {
                    let blocks = u32::try_from(end - first).expect("at most 2^14 blocks");
                    last = self.push_zero(volume, first, blocks, may_deallocate);
                }
                self.clients.uncommitted.push_back((last, index));
                true
            }
            Work::Flush | Work::Read { .. } | Work::Free => {
                unreachable!("only writes and zeroes are parked")
            }
        }
    }

    /// A large write makes a batch from the buffer that it came in.
    pub(in crate::replica) fn append_write(
        &mut self,
        volume: VolumeId,
        block: u64,
        blocks: u32,
        buffer: M::Buffer,
    ) -> Seq {
        let mut draft = std::mem::take(&mut self.clients.draft);
        draft.push(
            Kind::Write,
            volume,
            block,
            blocks,
            &buffer.bytes()[BLOCK_BYTES..],
        );
        let number = self.append_own(&draft, buffer, None);
        let seq = self.log.tail().id.seq;
        self.overlay_insert(&draft.records()[0], number, seq);
        draft.clear();
        self.clients.draft = draft;
        seq
    }
}
