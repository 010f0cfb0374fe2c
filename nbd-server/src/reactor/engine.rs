//! What connections work with: the core, the ring, and the books about what was asked.

use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use replicator::Replica;
use replicator::io::{Answer, ClientError, ClientOp, Input, Output, READ_BYTES_MAX};
use replicator::memory::{Memory, Purpose};
use replicator::meta::volumes::Volumes;
use replicator::replica::Capacity;
use replicator::types::*;
use replicator::view::View;

use super::holes::{Cover, Mapper};
use super::pool::{Pool, PoolBuffer};
use super::record::{Event, Recorder};
use super::ring::Ring;
use super::slab::Slab;
use super::tag::Tag;
use crate::handle::Usage;
use crate::meters::{Meters, RequestKind};

/// The state machine that the reactor drives. A [`Replica`], or what stands in for it in a test.
pub trait Core {
    /// Takes one input.
    fn handle(&mut self, now: Time, input: Input<'_, PoolBuffer>);
    /// All inputs of a turn are in.
    fn end_turn(&mut self, now: Time);
    /// The next thing to do.
    fn poll(&mut self) -> Option<Output<PoolBuffer>>;
    /// When it wants to be woken.
    fn poll_timeout(&self) -> Option<Time>;
    /// How much more it takes.
    fn capacity(&self) -> Capacity;
    /// The memory.
    fn memory_mut(&mut self) -> &mut Pool;
    /// A snapshot.
    fn view(&self) -> View;
    /// The volumes, as the stores have them.
    fn volumes(&self) -> &Volumes;
    /// For which parts of a range, of so many bytes from an offset on, a store does not have the last word: the first of them
    /// in order, as many as fit.
    fn unapplied(&self, volume: VolumeId, range: (u64, u32), into: &mut Cover);
}

impl Core for Replica<Pool> {
    fn handle(&mut self, now: Time, input: Input<'_, PoolBuffer>) {
        Self::handle(self, now, input);
    }
    fn end_turn(&mut self, now: Time) {
        Self::end_turn(self, now);
    }
    fn poll(&mut self) -> Option<Output<PoolBuffer>> {
        Self::poll(self)
    }
    fn poll_timeout(&self) -> Option<Time> {
        Self::poll_timeout(self)
    }
    fn capacity(&self) -> Capacity {
        Self::capacity(self)
    }
    fn memory_mut(&mut self) -> &mut Pool {
        Self::memory_mut(self)
    }
    fn view(&self) -> View {
        Self::view(self)
    }
    fn volumes(&self) -> &Volumes {
        Self::volumes(self)
    }
    fn unapplied(&self, volume: VolumeId, (offset, len): (u64, u32), into: &mut Cover) {
        let end = (offset + u64::from(len)).div_ceil(BLOCK_BYTES_U64);
        let parts = Self::unapplied(self, volume, offset / BLOCK_BYTES_U64..end);
        into.extend(parts.take(into.remaining_capacity()));
    }
}

/// A request that the core works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The connection's key.
    pub client: u32,
    /// The key of what it is a piece of.
    pub job: u32,
    /// Which piece.
    pub piece: u32,
    /// Blocks of the answer, taken from the budget for reads.
    pub blocks: u32,
    /// Bytes of the answer.
    pub bytes: u32,
    /// Since when.
    pub since: Time,
}

/// The same, with what is counted of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InWork {
    /// What the connection knows of it.
    pub asked: Asked,
    kind: RequestKind,
    bytes: u64,
}

/// Blocks that answers to reads may take until they have been sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadBudget {
    free: u32,
    total: u32,
}

impl ReadBudget {
    /// A budget of so many blocks.
    ///
    /// # Panics
    /// If a connection that holds nothing could not have the largest piece of a read.
    pub fn new(blocks: u32) -> Self {
        assert!(blocks as usize >= 2 * (READ_BYTES_MAX as usize / BLOCK_BYTES + 1));
        Self {
            free: blocks,
            total: blocks,
        }
    }

    /// What is left of it.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// How much of it is taken.
    pub fn usage(&self) -> Usage {
        Usage {
            used: self.total - self.free,
            limit: self.total,
        }
    }

    /// Whether a connection that holds `held` blocks may have more: it holds no more than a third of what is left then, so that those
    /// which never read their replies do not stop the others, however many they are (dynamic thresholds: Choudhury and Hahne,
    /// 1998). One alone gets a quarter. Whoever holds nothing may have half of what there is.
    pub fn allows(&self, held: u32, blocks: u32) -> bool {
        let left = u64::from(self.free.saturating_sub(blocks));
        let holds = u64::from(held) + u64::from(blocks);
        3 * holds <= left || held == 0 && holds <= left
    }

    fn take(&mut self, blocks: u32) -> bool {
        let enough = self.free >= blocks;
        if enough {
            self.free -= blocks;
        }
        enough
    }

    /// Gives back what an answer took.
    pub fn give_back(&mut self, blocks: u32) {
        self.free += blocks;
    }
}

/// What connections wait for when they are not waiting for their own socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Supply {
    requests: u32,
    client_blocks: u32,
    peer_blocks: u32,
    read_blocks: u32,
}

impl Supply {
    /// Whether there is more of anything than there was.
    pub fn has_grown_since(&self, before: &Self) -> bool {
        self.requests > before.requests
            || self.client_blocks > before.client_blocks
            || self.peer_blocks > before.peer_blocks
            || self.read_blocks > before.read_blocks
    }
}

/// The core, the ring, and what was asked.
#[derive(Debug)]
pub struct Engine<C> {
    /// The state machine.
    pub core: C,
    /// The ring.
    pub ring: Ring<Tag>,
    /// What the core works on.
    pub asked: Slab<InWork>,
    /// What answers to reads may take.
    pub reads: ReadBudget,
    /// Who asks the stores for holes.
    pub mapper: Mapper,
    /// When the core took the last request.
    pub admitted_at: Time,
    /// The time of this turn.
    pub now: Time,
    /// What takes notes.
    pub recorder: Recorder,
    /// What counts.
    pub meters: Arc<Meters>,
}

impl<C: Core> Engine<C> {
    /// Takes the next input to the core.
    pub fn input(&mut self, input: Input<'_, PoolBuffer>) {
        if let Input::Client { req, op } = &input {
            self.recorder.note(|| Event::Asked {
                req: *req,
                op,
                admitted: self.core.view().admitted,
            });
            let (kind, bytes) = match op {
                ClientOp::Read { length, .. } => (RequestKind::Read, u64::from(*length)),
                ClientOp::Write { length, .. } => (RequestKind::Write, u64::from(*length)),
                ClientOp::Zero { length, .. } => (RequestKind::Zero, *length),
                ClientOp::Flush => (RequestKind::Flush, 0),
            };
            let work = u32::try_from(req.0).ok();
            if let Some(work) = work.and_then(|key| self.asked.get_mut(key)) {
                (work.kind, work.bytes) = (kind, bytes);
            }
        }
        self.core.handle(self.now, input);
    }

    /// Notes what the core answers to a request.
    pub fn note_answer(&self, req: ReqId, result: &Result<Answer<PoolBuffer>, ClientError>) {
        self.recorder.note(|| Event::Answered {
            req,
            done: result.is_ok(),
            committed: self.core.view().committed,
        });
    }

    /// A name for a request, if the core takes one now. `blocks` are those of a read's answer.
    pub fn admit(&mut self, asked: Asked) -> Option<ReqId> {
        if self.core.capacity().requests == 0
            || self.asked.is_full()
            || !self.reads.take(asked.blocks)
        {
            return None;
        }
        let key = self.asked.insert(InWork {
            asked,
            kind: RequestKind::Flush,
            bytes: 0,
        })?;
        self.admitted_at = self.now;
        Some(ReqId(u64::from(key)))
    }

    /// What a request was, now that it is answered.
    pub fn answered(&mut self, req: ReqId) -> Option<InWork> {
        self.asked.remove(u32::try_from(req.0).ok()?)
    }

    /// Counts a request to `volume` that is answered.
    pub fn count(&self, volume: VolumeId, work: &InWork, done: bool) {
        let counted = self.meters.requests(usize::from(volume.0), work.kind);
        counted.duration.observe(self.now.since(work.asked.since));
        if done {
            counted.bytes.add(work.bytes);
        } else {
            counted.failed.add(1);
        }
    }

    /// Forgets all requests: no answer comes any more.
    pub fn forget_all(&mut self) {
        while let Some(key) = self.asked.find(|_| true) {
            if let Some(work) = self.asked.remove(key) {
                self.reads.give_back(work.asked.blocks);
            }
        }
    }

    /// What connections may be waiting for.
    pub fn supply(&mut self) -> Supply {
        let requests = self.core.capacity().requests;
        let memory = self.core.memory_mut();
        Supply {
            requests,
            client_blocks: memory.free_blocks(Purpose::Client),
            peer_blocks: memory.free_blocks(Purpose::Peer),
            read_blocks: self.reads.free(),
        }
    }
}

/// Whether a connection can go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It waits for its own socket or for answers.
    Waits,
    /// It waits for memory or for the core to take more.
    Starved,
    /// It has had its share of this turn.
    More,
    /// It is over, and its socket shut down.
    Over,
}

/// The time that the core lives by.
pub fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
    Time(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
