//! Client requests: admission in one order, widening to whole blocks, reads from where the newest committed data is, and
//! answers while the lease runs.

mod admission;
mod edges;
mod lending;
mod reads;

use std::collections::VecDeque;

use self::edges::{Edge, edges_of};
use super::Replica;
use crate::io::*;
use crate::journal::batch::Draft;
use crate::memory::{Buffer, Memory};
use crate::replica::config::OnNoQuorum;
use crate::store::block_set::BlockSet;
use crate::types::*;

/// Payload blocks from which on a write makes a batch of its own, from the buffer that it came in (64 KiB).
const OWN_BATCH_BLOCKS: u32 = 16;

/// Payload blocks of a batch of small writes, at most (512 KiB).
const OPEN_BLOCKS_MAX: u32 = 128;

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
        /// Which of its blocks come from the store, and as of which state of the stores.
        from_store: BlockSet,
        stores: u64,
        /// Which of them the store did not give.
        failed: BlockSet,
        /// It did not give all at once: block by block it shows which.
        singly: bool,
        /// Which of its blocks are there already, in a buffer that waits for the others.
        given: BlockSet,
        kept: Option<B>,
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

impl<B> Work<B> {
    /// The blocks that a write or a zeroing is about.
    fn written(&self) -> Option<(VolumeId, std::ops::Range<u64>)> {
        let (volume, offset, length) = match *self {
            Work::Write {
                volume,
                offset,
                length,
                ..
            } => (volume, offset, u64::from(length)),
            Work::Zero {
                volume,
                offset,
                length,
                ..
            } => (volume, offset, length),
            _ => return None,
        };
        let first = offset / BLOCK_BYTES_U64;
        Some((volume, first..first + edges::span(offset, length)))
    }

    /// Whether it can not go on without what the store holds of a block.
    fn waits_for(&self, volume: VolumeId, block: u64) -> bool {
        match self {
            Work::Read {
                volume: v,
                offset,
                length,
                given,
                ..
            } => {
                let place = lending::place_of(*offset, *length, block);
                *v == volume && place.is_some_and(|n| !given.has(n))
            }
            Work::Write {
                volume: v, edges, ..
            }
            | Work::Zero {
                volume: v, edges, ..
            } => *v == volume && edges.iter().flatten().any(|e| e.waits_for(block)),
            Work::Flush | Work::Free => false,
        }
    }
}

#[derive(Debug)]
struct Op<B> {
    req: ReqId,
    generation: u32,
    /// Its number, in order of arrival.
    arrival: u64,
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
    arrivals: u64,
    /// Waiting for admission, in order of arrival.
    parked: VecDeque<u32>,
    /// Waiting for the old contents of a block, or for those to be asked for, or for one before them that does and is about the same
    /// block; in order of arrival.
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

impl<B: Buffer> Clients<B> {
    pub(super) fn new(requests_max: u32) -> Self {
        let n = requests_max as usize;
        Self {
            ops: (0..n)
                .map(|_| Op {
                    req: ReqId(0),
                    generation: 0,
                    arrival: 0,
                    work: Work::Free,
                })
                .collect(),
            free: (0..requests_max).rev().collect(),
            arrivals: 0,
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

    /// Whether a request that came before `arrival` waits for old contents of one of these blocks. Who comes later and would overtake
    /// it could be answered, and lose a part of a block to it then: it can be of a client that is gone, so that nobody knows of it any
    /// more.
    fn widens_before(&self, arrival: u64, volume: VolumeId, blocks: &std::ops::Range<u64>) -> bool {
        let earlier = self.widening.iter().map(|&index| &self.ops[index as usize]);
        let mut written = earlier
            .take_while(|op| op.arrival < arrival)
            .filter_map(|op| op.work.written());
        written.any(|(v, b)| v == volume && b.start < blocks.end && blocks.start < b.end)
    }

    /// The same of a request that is here.
    fn follows_widening(&self, index: u32) -> bool {
        let op = &self.ops[index as usize];
        let written = op.work.written();
        written.is_some_and(|(volume, blocks)| self.widens_before(op.arrival, volume, &blocks))
    }

    fn widen_later(&mut self, index: u32) {
        let arrival = |index: u32| self.ops[index as usize].arrival;
        let at = self
            .widening
            .partition_point(|&other| arrival(other) < arrival(index));
        self.widening.insert(at, index);
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
        op.arrival = self.arrivals;
        self.arrivals += 1;
        op.work = work;
        index
    }

    fn release(&mut self, index: u32) -> ReqId {
        let op = &mut self.ops[index as usize];
        let done = std::mem::replace(&mut op.work, Work::Free);
        if planted!(LeakedRead) {
            std::mem::forget(done);
        }
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
        // What was made smaller meanwhile has no place for it; the driver sees to it that nobody is there then.
        let (volume, end) = match &op {
            ClientOp::Read {
                volume,
                offset,
                length,
            } => (*volume, offset + u64::from(*length)),
            ClientOp::Write {
                volume,
                offset,
                length,
                ..
            } => (*volume, offset + u64::from(*length)),
            ClientOp::Zero {
                volume,
                offset,
                length,
                ..
            } => (*volume, offset + length),
            ClientOp::Flush => (VolumeId(0), 0),
        };
        if end > self.limit(volume) {
            let result = Err(ClientError::Io);
            self.out.push_back(Output::Reply { req, result });
            return;
        }
        self.pace.begins(req, self.now);
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
                    from_store: BlockSet::default(),
                    stores: 0,
                    failed: BlockSet::default(),
                    singly: false,
                    given: BlockSet::default(),
                    kept: None,
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

    fn finish(&mut self, index: u32, answer: Answer<M::Buffer>) {
        let generation = self.clients.ops[index as usize].generation;
        self.clients
            .ready
            .push_back((index, generation, Some(answer)));
        self.pump_ready();
    }

    /// A block can not be read: neither can the requests that wait for it. Those that wait for admission have not come to it: what
    /// is admitted before them may write the block anew.
    pub(super) fn fail_reads_of(&mut self, volume: VolumeId, block: u64) {
        let clients = &mut self.clients;
        let ops = &clients.ops;
        let lost = |index: &mut u32| ops[*index as usize].work.waits_for(volume, block);
        let mut failed: Vec<u32> = clients.reads.extract_if(.., lost).collect();
        failed.extend(clients.widening.extract_if(.., lost));
        for index in failed {
            self.fail_op(index);
        }
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
        if !self.serving() || !(self.lease_runs() || planted!(AnswerPastLease)) {
            return;
        }
        while let Some((index, generation, answer)) = self.clients.ready.pop_front() {
            if self.clients.ops[index as usize].generation != generation {
                continue;
            }
            let req = self.clients.release(index);
            self.pace.ends(req, self.now);
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
        // The first heartbeats of a reign may still be under way.
        let ran_at = self.leader.as_ref().map_or(self.now, |l| l.ran_at);
        if self.now.since(ran_at) < self.config.heartbeat_ns() {
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
