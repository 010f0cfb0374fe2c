//! Client requests: admission in one order, widening to whole blocks, reads from where the newest committed data is, and
//! answers while the lease runs.

use std::collections::VecDeque;

use super::{Pending, Replica};
use crate::io::*;
use crate::journal::batch::{Descriptor, Draft, Kind};
use crate::memory::{Buffer, Memory, Purpose};
use crate::replica::applier::extent_of;
use crate::replica::config::OnNoQuorum;
use crate::replica::loads::LoadFor;
use crate::store::extents::Source;
use crate::types::*;

/// Payload blocks from which on a write makes a batch of its own, from the buffer that it came in (64 KiB).
const OWN_BATCH_BLOCKS: u32 = 16;

/// Payload blocks of a batch of small writes, at most (512 KiB).
const OPEN_BLOCKS_MAX: u32 = 128;

/// What a block at the edge of an unaligned request holds before it.
#[derive(Debug)]
struct Edge<B> {
    block: u64,
    content: Option<B>,
    reading: bool,
    generation: u64,
}

/// A request being worked on.
#[derive(Debug)]
enum Work<B> {
    Free,
    Read {
        volume: VolumeId,
        offset: u64,
        length: u32,
        buffer: Option<B>,
        left: u32,
        error: bool,
    },
    Write {
        volume: VolumeId,
        offset: u64,
        length: u32,
        buffer: Option<B>,
        edges: [Option<Edge<B>>; 2],
    },
    Zero {
        volume: VolumeId,
        offset: u64,
        length: u64,
        may_deallocate: bool,
        edges: [Option<Edge<B>>; 2],
    },
    Flush,
}

#[derive(Debug)]
struct Op<B> {
    req: ReqId,
    generation: u32,
    work: Work<B>,
}

/// The batch of small writes that is being made in this turn.
#[derive(Debug)]
struct Open<B> {
    buffer: B,
    blocks: u32,
}

/// All client requests of this node.
#[derive(Debug)]
pub(super) struct Clients<B> {
    ops: Vec<Op<B>>,
    free: Vec<u32>,
    /// Waiting for admission, in order of arrival.
    parked: VecDeque<u32>,
    /// Waiting for the old contents of a block, or for those to be asked for.
    widening: Vec<u32>,
    /// Waiting for a commit, for memory, or for a batch to come back from the journal.
    reads: Vec<u32>,
    /// Admitted, by their last record.
    uncommitted: VecDeque<(Seq, u32)>,
    /// Finished; told as soon as the lease allows.
    ready: VecDeque<(u32, u32, Option<Answer<B>>)>,
    open: Option<Open<B>>,
    draft: Draft,
    expected_blocks: u32,
    turn_blocks: u32,
}

/// How an edge stands.
enum EdgeState {
    Known,
    Waiting,
}

impl<B: Buffer> Clients<B> {
    pub(super) fn new(requests_max: u32) -> Self {
        let n = requests_max as usize;
        Self {
            ops: (0..n)
                .map(|_| Op {
                    req: ReqId(0),
                    generation: 0,
                    work: Work::Free,
                })
                .collect(),
            free: (0..requests_max).rev().collect(),
            parked: VecDeque::with_capacity(n),
            widening: Vec::with_capacity(n),
            reads: Vec::with_capacity(n),
            uncommitted: VecDeque::with_capacity(n),
            ready: VecDeque::with_capacity(n),
            open: None,
            draft: Draft::default(),
            expected_blocks: 8,
            turn_blocks: 0,
        }
    }

    pub(super) fn free(&self) -> u32 {
        u32::try_from(self.free.len()).expect("at most 2^32 requests")
    }

    pub(super) fn in_work(&self) -> u32 {
        u32::try_from(self.ops.len() - self.free.len()).expect("at most 2^32 requests")
    }

    fn take(&mut self, req: ReqId, work: Work<B>) -> u32 {
        let index = self.free.pop().expect("the driver keeps to the capacity");
        let op = &mut self.ops[index as usize];
        op.req = req;
        op.work = work;
        index
    }

    fn release(&mut self, index: u32) -> ReqId {
        let op = &mut self.ops[index as usize];
        op.work = Work::Free;
        op.generation = op.generation.wrapping_add(1);
        self.free.push(index);
        op.req
    }

    /// Forgets all requests: their connections are being closed.
    pub(super) fn forget(&mut self) {
        for index in 0..self.ops.len() {
            if !matches!(self.ops[index].work, Work::Free) {
                self.release(u32::try_from(index).expect("at most 2^32 requests"));
            }
        }
        self.parked.clear();
        self.widening.clear();
        self.reads.clear();
        self.uncommitted.clear();
        self.ready.clear();
    }
}

impl<M: Memory> Replica<M> {
    pub(super) fn client(&mut self, req: ReqId, op: ClientOp<'_, M::Buffer>) {
        if self.leader.is_none() || self.demoting() {
            // It came with the event that ended the reign: its connection is being closed. Kept, it would be carried out
            // in a later reign, behind what its client has long since written elsewhere.
            return;
        }
        match op {
            ClientOp::Read {
                volume,
                offset,
                length,
            } => {
                assert!(length > 0 && length <= READ_BYTES_MAX);
                let work = Work::Read {
                    volume,
                    offset,
                    length,
                    buffer: None,
                    left: 0,
                    error: false,
                };
                let index = self.clients.take(req, work);
                if !self.try_read(index) {
                    self.clients.reads.push(index);
                }
            }
            ClientOp::Write {
                volume,
                offset,
                length,
                data,
            } => {
                assert!(length > 0 && length <= WRITE_BYTES_MAX);
                self.client_write(req, volume, offset, length, data);
            }
            ClientOp::Zero {
                volume,
                offset,
                length,
                may_deallocate,
            } => {
                assert!(length > 0 && length <= ZERO_BYTES_MAX);
                let edges = edges_of(offset, length);
                let work = Work::Zero {
                    volume,
                    offset,
                    length,
                    may_deallocate,
                    edges,
                };
                let index = self.clients.take(req, work);
                self.clients.parked.push_back(index);
                self.pump_parked();
            }
            ClientOp::Flush => {
                let index = self.clients.take(req, Work::Flush);
                self.finish(index, Answer::Done);
            }
        }
    }

    fn client_write(
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
                if aligned
                    && self.clients.parked.is_empty()
                    && self.admits_now()
                    && self.open_for(count)
                {
                    let index = self.clients.take(req, Work::Flush);
                    let seq = self.push_write(volume, offset / BLOCK_BYTES_U64, bytes);
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
    fn admits_now(&self) -> bool {
        self.serving() && self.lease_runs() && !self.demoting()
    }

    /// Makes sure that the open batch takes one more record with `blocks` payload blocks. `false` if it must wait.
    fn open_for(&mut self, blocks: u32) -> bool {
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
    fn room_for(&self, blocks: u32, records: usize) -> bool {
        let draft = &self.clients.draft;
        let blocks = 2 + draft.payload_blocks() + blocks;
        let records = draft.records().len() + records;
        self.log
            .has_room(blocks, records, crate::journal::log::CONTROL_RESERVE_BLOCKS)
            && self.overlay.room() >= 2 * (records + 2)
    }

    fn next_seq(&self) -> Seq {
        Seq(self.log.tail().id.seq.0 + self.clients.draft.records().len() as u64 + 1)
    }

    /// The newest record that got a number.
    pub(super) fn admitted(&self) -> Seq {
        Seq(self.next_seq().0 - 1)
    }

    /// Copies whole blocks into the open batch, which takes them.
    fn push_write(&mut self, volume: VolumeId, block: u64, bytes: &[u8]) -> Seq {
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

    fn push_zero(
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

    fn overlay_insert(&mut self, record: &Descriptor, number: u64, seq: Seq) {
        let extent = extent_of(record, number, seq).expect("client records are about blocks");
        self.overlay.insert(extent);
    }

    /// Closes the open batch: from here on it never changes.
    pub(super) fn close_batch(&mut self) {
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
    pub(super) fn end_batch(&mut self) {
        self.close_batch();
        if self.clients.turn_blocks > 0 {
            self.clients.expected_blocks = self.clients.turn_blocks.next_power_of_two();
            self.clients.turn_blocks = 0;
        }
    }

    /// Takes parked requests in, in their order, as far as there is room.
    pub(super) fn pump_parked(&mut self) {
        while let Some(&index) = self.clients.parked.front() {
            if !self.admits_now() {
                return;
            }
            match self.edges_ready(index) {
                EdgeState::Waiting => {
                    // What follows must not wait for this disk read.
                    self.clients.parked.pop_front();
                    self.clients.widening.push(index);
                    continue;
                }
                EdgeState::Known => {}
            }
            if !self.admit(index) {
                return;
            }
            self.clients.parked.pop_front();
        }
    }

    /// Looks again at requests whose edges were being read.
    pub(super) fn pump_widening(&mut self) {
        let mut at = 0;
        while at < self.clients.widening.len() {
            let index = self.clients.widening[at];
            if matches!(self.edges_ready(index), EdgeState::Known) {
                self.clients.widening.swap_remove(at);
                self.clients.parked.push_back(index);
            } else {
                at += 1;
            }
        }
    }

    fn admit(&mut self, index: u32) -> bool {
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
                    self.close_batch();
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
                    draft.records().len() + 3 <= crate::journal::batch::DESCRIPTORS_MAX
                        && self.room_for(2, 3)
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
    fn append_write(
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

    /// Whether the old contents of the blocks at both ends are known; asks for them if not.
    fn edges_ready(&mut self, index: u32) -> EdgeState {
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
        if newest.is_none() && edge.content.is_some() {
            // It was read from the store; nothing may have replaced it there meanwhile.
            if edge.generation == self.applier.generation {
                return true;
            }
            edge.content = None;
        }
        if edge.content.is_none() {
            edge.content = self.memory.alloc(Purpose::Client, 1);
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
                if !self.loads.is_loading(entry) && !self.applier.starves() {
                    self.start_load(entry, LoadFor::Entry);
                }
                false
            }
        }
    }

    pub(super) fn edge_read(
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
        if let Work::Write { edges, .. } | Work::Zero { edges, .. } = &mut op.work
            && let Some(edge) = &mut edges[which]
        {
            edge.reading = false;
        }
        if let Err(error) = result {
            self.log_error(format!("a store can not be read: {error}"));
            self.clients.widening.retain(|&i| i != index);
            self.fail_op(index);
        }
    }

    /// Looks again at reads that waited.
    pub(super) fn pump_reads(&mut self) {
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
    fn try_read(&mut self, index: u32) -> bool {
        let Work::Read {
            volume,
            offset,
            length,
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
        let mut missing = None;
        let mut at = start;
        while let Some(extent) = self.overlay.first_overlap(volume, at, end) {
            if extent.seq > self.committed {
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
            if !self.loads.is_loading(entry) && !self.applier.starves() {
                self.start_load(entry, LoadFor::Entry);
            }
            return false;
        }
        let blocks = u32::try_from(end - start).expect("at most 257 blocks");
        let Some(mut buffer) = self.memory.alloc(Purpose::Client, blocks) else {
            return false;
        };
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
        let mut left = 0;
        let mut at = start;
        while at < end {
            let next = self.overlay.first_overlap(volume, at, end);
            let gap_end = next.map_or(end, |e| e.start.max(at));
            if gap_end > at {
                let first = u32::try_from(at - start).expect("257 blocks");
                let count = u32::try_from(gap_end - at).expect("257 blocks");
                let op = DiskOp::StoreRead {
                    volume,
                    offset: at * BLOCK_BYTES_U64,
                    buffer: buffer.slice(first, count),
                };
                self.disk(Pending::Read { index, generation }, op);
                left += 1;
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
                error: false,
            };
        }
        true
    }

    pub(super) fn read_done(&mut self, index: u32, generation: u32, result: Result<(), DiskError>) {
        let op = &mut self.clients.ops[index as usize];
        if op.generation != generation {
            return;
        }
        let Work::Read {
            offset,
            length,
            buffer,
            left,
            error,
            ..
        } = &mut op.work
        else {
            return;
        };
        *left -= 1;
        *error |= result.is_err();
        if *left > 0 {
            return;
        }
        let (offset, length, failed) = (*offset, *length, *error);
        let buffer = buffer.take().expect("a read in flight has its buffer");
        if failed {
            self.log_error(format!("a store can not be read: {result:?}"));
            self.fail_op(index);
        } else {
            self.finish_read(index, offset, length, buffer);
        }
    }

    fn finish_read(&mut self, index: u32, offset: u64, length: u32, buffer: M::Buffer) {
        let answer = Answer::Data {
            buffer,
            start: in_block(offset),
            length: length as usize,
        };
        self.finish(index, answer);
    }

    fn finish(&mut self, index: u32, answer: Answer<M::Buffer>) {
        let generation = self.clients.ops[index as usize].generation;
        self.clients
            .ready
            .push_back((index, generation, Some(answer)));
        self.pump_ready();
    }

    fn fail_op(&mut self, index: u32) {
        let req = self.clients.release(index);
        self.out.push_back(Output::Reply {
            req,
            result: Err(ClientError::Io),
        });
    }

    /// Answers what is finished, while the lease runs (protocol L1: tested when a reply is released).
    pub(super) fn pump_ready(&mut self) {
        if !self.serving() || !self.lease_runs() {
            return;
        }
        while let Some((index, generation, answer)) = self.clients.ready.pop_front() {
            if self.clients.ops[index as usize].generation != generation {
                continue;
            }
            let req = self.clients.release(index);
            let answer = answer.expect("an answer is told once");
            self.out.push_back(Output::Reply {
                req,
                result: Ok(answer),
            });
        }
    }

    /// Answers writes up to `seq`.
    pub(super) fn pump_committed(&mut self, seq: Seq) {
        while let Some(&(last, index)) = self.clients.uncommitted.front()
            && last <= seq
        {
            self.clients.uncommitted.pop_front();
            self.finish(index, Answer::Done);
        }
    }

    /// With `on_no_quorum = "io-error"`: whatever waits while the lease is over gets an error.
    pub(super) fn pump_no_quorum(&mut self) {
        if self.config.on_no_quorum != OnNoQuorum::IoError || self.lease_runs() || !self.serving() {
            return;
        }
        for index in 0..self.clients.ops.len() {
            if !matches!(self.clients.ops[index].work, Work::Free) {
                self.fail_op(u32::try_from(index).expect("at most 2^32 requests"));
            }
        }
        self.clients.forget();
    }

    /// This node serves nobody any more: requests are forgotten, and what was admitted but has no batch yet is gone.
    pub(super) fn drop_clients(&mut self) {
        self.clients.forget();
        self.out.push_back(Output::DropClients);
    }

    /// Throws the open batch away, of which nobody has seen anything.
    pub(super) fn discard_open(&mut self) {
        self.clients.open = None;
        self.clients.draft.clear();
    }
}

/// Blocks that a byte range touches.
fn span(offset: u64, length: u64) -> u64 {
    (offset + length).div_ceil(BLOCK_BYTES_U64) - offset / BLOCK_BYTES_U64
}

fn in_block(offset: u64) -> usize {
    usize::try_from(offset % BLOCK_BYTES_U64).expect("below 4096")
}

/// The blocks at the ends of a range that it covers in part only.
fn edges_of<B>(offset: u64, length: u64) -> [Option<Edge<B>>; 2] {
    let edge = |block| {
        Some(Edge {
            block,
            content: None,
            reading: false,
            generation: 0,
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
fn widen<B: Buffer>(buffer: &mut B, offset: u64, length: u64, edges: &[Option<Edge<B>>; 2]) {
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
