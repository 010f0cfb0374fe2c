//! Telling a peer what blocks hold, and what changed since when: for a resync, and for a block that is bad there.
//!
//! An answer is the newest that this node knows: what its stores hold, and over it what its log has and the stores lack. What
//! comes from a store is compared with its sum first; bytes that do not fit are nobody's business but of the repair. While
//! blocks are being read for a peer in resync, its stream of records stands still: so the answer has its place among them,
//! and holds everything that was sent before it.

mod missing;
mod newest;

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use self::newest::Held;
use super::{Pending, Replica};
use crate::io::*;
use crate::journal::batch::{self, Kind};
use crate::journal::log::TableAt;
use crate::memory::{Buffer, Memory, Purpose};
use crate::replica::loads::LoadFor;
use crate::store::block_set::BlockSet;
use crate::store::extents::Source;
use crate::store::sums::{BlockSum, GROUP_BLOCKS};
use crate::types::*;
use crate::wire::frame::{
    ASKED_BLOCKS_MAX, ASKED_GROUPS_MAX, Blocks, Changed, Compare, Compared, Frame,
};

/// Questions of one peer that wait, at most.
pub(super) const ASKS_MAX: usize = 16;

/// A question that found no memory is tried again after this long.
const RETRY_NS: u64 = 1_000_000;

/// A question.
#[derive(Debug)]
struct Serve<B> {
    conn: ConnId,
    token: u64,
    volume: VolumeId,
    block: u64,
    blocks: u32,
    /// What the asker has: it is given what differs from that. Empty if it wants all.
    has: ArrayVec<BlockSum, ASKED_BLOCKS_MAX>,
    /// The store did not give all: block by block it shows which.
    singly: bool,
    plan: Option<Plan<B>>,
}

/// An answer being made.
#[derive(Debug)]
struct Plan<B> {
    buffer: B,
    /// Which blocks of the range are in it, in order. What follows counts from its first block on.
    given: ArrayVec<u16, ASKED_BLOCKS_MAX>,
    from_store: BlockSet,
    left: u32,
    failed: BlockSet,
    /// What the disk does not keep, and a peer is asked for.
    waits: BlockSet,
    /// What nobody has, by its place in the range.
    lost: BlockSet,
    generation: u64,
    changed: Seq,
    through: Seq,
    sums: ArrayVec<BlockSum, ASKED_BLOCKS_MAX>,
    /// The sums that were recorded when it was begun, also where they are in doubt.
    recorded: ArrayVec<BlockSum, ASKED_BLOCKS_MAX>,
}

/// The questions of all peers. The first one is worked on.
#[derive(Debug)]
pub(super) struct Serves<B> {
    queue: VecDeque<Serve<B>>,
    /// The name of the first one, for completions of reads that were begun for an earlier one.
    serial: u64,
    retry_at: Option<Time>,
}

impl<B> Serves<B> {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::with_capacity(2 * ASKS_MAX),
            serial: 0,
            retry_at: None,
        }
    }

    /// Whether an answer is being made for this connection.
    pub(super) fn reads_for(&self, conn: ConnId) -> bool {
        self.queue
            .front()
            .is_some_and(|s| s.conn == conn && s.plan.is_some())
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        self.queue.front()?;
        self.retry_at
    }

    /// Forgets what a connection asked.
    pub(super) fn forget(&mut self, conn: ConnId) {
        self.forget_those(|s| s.conn == conn);
    }

    /// A resync begins anew: what was asked for the former one is not waited for any more.
    pub(super) fn forget_resync(&mut self, conn: ConnId) {
        self.forget_those(|s| s.conn == conn && !s.has.is_empty());
    }

    fn forget_those(&mut self, goes: impl Fn(&Serve<B>) -> bool) {
        if self.queue.front().is_some_and(&goes) {
            self.serial += 1;
        }
        self.queue.retain(|s| !goes(s));
    }
}

impl<M: Memory> Replica<M> {
    pub(super) fn got_blocks_ask(
        &mut self,
        conn: ConnId,
        token: u64,
        volume: VolumeId,
        block: u64,
        blocks: u32,
    ) {
        let ask = Serve {
            conn,
            token,
            volume,
            block,
            blocks,
            has: ArrayVec::new(),
            singly: false,
            plan: None,
        };
        self.take_question(ask);
    }

    /// A peer in resync says what it has of some blocks.
    pub(super) fn got_compare(&mut self, conn: ConnId, compare: &Compare) {
        let ask = Serve {
            conn,
            token: compare.token,
            volume: compare.volume,
            block: compare.block,
            blocks: u32::try_from(compare.sums.len()).expect("at most 256"),
            has: compare.sums.clone(),
            singly: false,
            plan: None,
        };
        self.take_question(ask);
    }

    fn take_question(&mut self, ask: Serve<M::Buffer>) {
        let of_conn = |s: &&Serve<M::Buffer>| s.conn == ask.conn;
        let waiting = self.serves.queue.iter().filter(of_conn).count();
        let too_many = ask.blocks as usize > ASKED_BLOCKS_MAX || waiting >= ASKS_MAX;
        if ask.blocks == 0 || too_many {
            let reason =
                DropReason::Protocol("it asks for blocks that there are not, or too much at once");
            self.give_up(ask.conn, reason, false);
            return;
        }
        self.serves.queue.push_back(ask);
    }

    /// Whether what this node says of its blocks is to be believed: it is Primary, or its log equals the Primary's.
    fn may_serve(&self) -> bool {
        let sound = !self.is_witness()
            && !self.fresh()
            && !self.damaged()
            && !self.merging()
            && !self.inconsistent();
        let equal = self.following.is_some() && self.matched == self.log.tail().id.seq;
        sound && (self.leader.is_some() || equal)
    }

    pub(super) fn pump_serves(&mut self) {
        self.serves.retry_at = None;
        while let Some(front) = self.serves.queue.front() {
            if front.plan.is_some() {
                if self.serve_waits() {
                    return;
                }
                continue;
            }
            let conn = front.conn;
            // One of two nodes may know of larger volumes first.
            let end = front.block.checked_add(u64::from(front.blocks));
            let blocks = self.blocks_by(front.volume, self.serve_limit(conn));
            let there = end.is_some_and(|end| end <= blocks);
            if !self.may_serve() || !there {
                self.serve_nothing();
                continue;
            }
            let staging = self.peer_of(conn).is_some_and(|p| p.staging);
            if staging {
                // Clients come first.
                let queued = self.peers.iter().map(|p| p.queued).max().unwrap_or(0);
                let ready = self.pace.ready(self.clients.in_work(), queued, self.now);
                if let Some(at) = ready {
                    self.serves.retry_at = Some(at);
                    return;
                }
            }
            if !self.serve_plan() {
                self.serves.retry_at.get_or_insert(self.now.after(RETRY_NS));
                return;
            }
        }
    }

    /// The log before this entry is what a peer is answered by.
    fn serve_limit(&self, conn: ConnId) -> u64 {
        let asker = self.peers.iter().find(|p| p.conn == Some(conn));
        asker.map_or(self.log.next_number(), |peer| self.feed_limit(peer))
    }

    /// What is asked about now may not be there any more.
    pub(super) fn serve_nothing_more(&mut self) {
        while !self.serves.queue.is_empty() {
            self.serve_nothing();
        }
    }

    /// This node can not answer the first question.
    fn serve_nothing(&mut self) {
        let nothing = (Seq(0), Seq(0), ArrayVec::new());
        self.serve_answer(nothing, [BlockSet::default(); 2], None);
    }

    /// The first question is answered: what changed and through which record, the sums, and which blocks are given, and lost.
    fn serve_answer(
        &mut self,
        (changed, through, sums): (Seq, Seq, ArrayVec<BlockSum, ASKED_BLOCKS_MAX>),
        [given, lost]: [BlockSet; 2],
        data: Option<M::Buffer>,
    ) {
        let Some(front) = self.serves.queue.pop_front() else {
            return;
        };
        self.serves.serial += 1;
        let token = front.token;
        let frame = if front.has.is_empty() {
            Frame::Blocks(Box::new(Blocks {
                token,
                changed,
                through,
                sums,
            }))
        } else {
            Frame::Compared(Box::new(Compared {
                token,
                changed,
                through,
                sums,
                given,
                lost,
            }))
        };
        if self.peer_of(front.conn).is_some_and(|p| p.staging) {
            let bytes = data.as_ref().map_or(0, |d| u64::from(d.blocks())) * BLOCK_BYTES_U64;
            self.pace.gave(bytes, self.now);
        }
        self.send_with(front.conn, frame, data);
    }

    /// Begins to make the answer to the first question. `false` if that must wait.
    fn serve_plan(&mut self) -> bool {
        let Some(front) = self.serves.queue.front() else {
            return true;
        };
        let (conn, volume, block) = (front.conn, front.volume, front.block);
        let (blocks, singly) = (front.blocks, front.singly);
        let has = front.has.clone();
        let limit = self.serve_limit(conn);
        let (held, changed) = self.newest_of(volume, block, blocks, limit);
        let through = self.log.tail_before(limit).id.seq;
        for h in &held {
            if let Held::Batch { entry, .. } = *h
                && self.log.entry(entry).is_none_or(|e| e.buffer.is_none())
            {
                if !self.loads.is_loading(entry) {
                    self.start_load(entry, LoadFor::Read);
                }
                return false;
            }
        }
        let mut sums: ArrayVec<BlockSum, ASKED_BLOCKS_MAX> = ArrayVec::new();
        for (h, b) in held.iter().zip(block..) {
            sums.push(match *h {
                Held::Store => self.sums.sum_for_sure(volume, b),
                Held::Zero => BlockSum::ZERO,
                Held::Batch { entry, block } => {
                    let buffer = self.log.entry(entry).and_then(|e| e.buffer.as_ref());
                    let bytes = buffer.expect("it was just seen").bytes();
                    BlockSum::of_crc(batch::crc_of(bytes, block))
                }
            });
        }
        let differs = |at: usize| {
            let same = has.get(at).is_some_and(|&h| h == sums[at]);
            sums[at] == BlockSum::UNKNOWN || (sums[at] != BlockSum::ZERO && !same)
        };
        let mut given: ArrayVec<u16, ASKED_BLOCKS_MAX> = ArrayVec::new();
        let all = has.is_empty() && (0..sums.len()).any(differs);
        given.extend(
            (0..sums.len())
                .filter(|&at| all || differs(at))
                .map(|at| u16::try_from(at).expect("256 blocks")),
        );
        if given.is_empty() {
            self.serve_answer((changed, through, sums), [BlockSet::default(); 2], None);
            return true;
        }
        let room = u32::try_from(given.len()).expect("256 blocks");
        let Some(mut buffer) = self.memory.alloc(Purpose::Core, room) else {
            return false;
        };
        let mut from_store = BlockSet::default();
        for (n, &at) in (0u32..).zip(&given) {
            let place = n as usize * BLOCK_BYTES;
            let target = &mut buffer.bytes_mut()[place..place + BLOCK_BYTES];
            match held[usize::from(at)] {
                Held::Store if sums[usize::from(at)] != BlockSum::ZERO => from_store.add(n, 1),
                Held::Store | Held::Zero => target.fill(0),
                Held::Batch { entry, block } => {
                    let source = self.log.entry(entry).and_then(|e| e.buffer.as_ref());
                    let from = block as usize * BLOCK_BYTES;
                    let source = source.expect("it was just seen").bytes();
                    target.copy_from_slice(&source[from..from + BLOCK_BYTES]);
                }
            }
        }
        let mut left = 0;
        let mut first = 0;
        while first < room {
            if !from_store.has(first) {
                first += 1;
                continue;
            }
            let at = |n: u32| given[n as usize];
            let mut end = first + 1;
            let follows = |n: u32| from_store.has(n) && at(n) == at(n - 1) + 1;
            while end < room && !singly && follows(end) {
                end += 1;
            }
            let op = DiskOp::StoreRead {
                volume,
                offset: (block + u64::from(at(first))) * BLOCK_BYTES_U64,
                buffer: buffer.slice(first, end - first),
            };
            let pending = Pending::Serve {
                serial: self.serves.serial,
                first,
                blocks: end - first,
            };
            self.disk(pending, op);
            left += 1;
            first = end;
        }
        let stored = self.blocks_stored(volume);
        let recorded = |b: u64| {
            if b < stored {
                self.sums.sum(volume, b)
            } else {
                BlockSum::ZERO
            }
        };
        let recorded = (block..block + u64::from(blocks)).map(recorded).collect();
        let generation = self.applier.generation;
        let front = self.serves.queue.front_mut().expect("it was just there");
        front.plan = Some(Plan {
            buffer,
            given,
            from_store,
            left,
            failed: BlockSet::default(),
            waits: BlockSet::default(),
            lost: BlockSet::default(),
            generation,
            changed,
            through,
            sums,
            recorded,
        });
        if left == 0 {
            self.serve_end();
        }
        true
    }

    pub(super) fn served(
        &mut self,
        serial: u64,
        (first, blocks): (u32, u32),
        result: Result<(), DiskError>,
    ) {
        if serial != self.serves.serial {
            return;
        }
        let Some(plan) = self.serves.queue.front_mut().and_then(|s| s.plan.as_mut()) else {
            return;
        };
        plan.left -= 1;
        if result.is_err() {
            plan.failed.add(first, blocks);
        }
        if plan.left == 0 {
            self.serve_end();
        }
    }

    /// All that the first answer needs is there: it is checked and sent.
    fn serve_end(&mut self) {
        let Some(front) = self.serves.queue.front_mut() else {
            return;
        };
        let (conn, volume, block) = (front.conn, front.volume, front.block);
        let Some(mut plan) = front.plan.take() else {
            return;
        };
        if !plan.failed.is_empty() && !front.singly {
            front.singly = true;
            self.serves.serial += 1;
            return;
        }
        let mut bad = ArrayVec::<u64, ASKED_BLOCKS_MAX>::new();
        for n in plan.from_store.iter() {
            let (at, place) = (
                usize::from(plan.given[n as usize]),
                n as usize * BLOCK_BYTES,
            );
            let bytes = &plan.buffer.bytes()[place..place + BLOCK_BYTES];
            let b = block + at as u64;
            // Also where the sum is in doubt: then a peer is asked which of the two is right.
            if plan.failed.has(n) || !plan.recorded[at].admits(volume, b, bytes) {
                bad.push(b);
            } else if plan.sums[at] == BlockSum::UNKNOWN {
                plan.sums[at] = BlockSum::of(volume, b, bytes);
            }
        }
        if !bad.is_empty() {
            if plan.generation != self.applier.generation {
                // A newer version was written while the old one was read: it is planned anew.
                self.serves.serial += 1;
                return;
            }
            if self.serve_without(&mut plan, &bad) {
                self.serve_given(plan);
                return;
            }
            let worn = bad
                .iter()
                .all(|&b| self.repairs.is_worn(volume, b, self.now));
            for &b in &bad {
                self.found_bad_for_peer(volume, b);
            }
            if worn && self.peer_of(conn).is_some_and(|p| p.staging) {
                // It would be asked for in vain again and again.
                for (n, &at) in (0..).zip(&plan.given) {
                    if bad.contains(&(block + u64::from(at))) {
                        plan.waits.add(n, 1);
                    }
                }
                if let Some(front) = self.serves.queue.front_mut() {
                    front.plan = Some(plan);
                }
                return;
            }
            self.serve_nothing();
            return;
        }
        self.serve_given(plan);
    }

    /// All that the first answer holds is good.
    fn serve_given(&mut self, plan: Plan<M::Buffer>) {
        let mut given = BlockSet::default();
        for &at in &plan.given {
            given.add(u32::from(at), 1);
        }
        let answer = (plan.changed, plan.through, plan.sums);
        let blocks = u32::try_from(plan.given.len()).expect("256 blocks");
        let data = (blocks > 0).then(|| plan.buffer.slice(0, blocks));
        self.serve_answer(answer, [given, plan.lost], data);
    }

    pub(super) fn got_changed_ask(
        &mut self,
        conn: ConnId,
        token: u64,
        volume: VolumeId,
        group: u64,
    ) {
        // A witness has no volumes to tell of, and one of two nodes may know of larger ones first.
        if volume.0 >= self.sums.volumes() || group >= self.sums.groups(volume) {
            let groups = ArrayVec::new();
            self.send(conn, Frame::Changed(Box::new(Changed { token, groups })));
            return;
        }
        let end = self
            .sums
            .groups(volume)
            .min(group + ASKED_GROUPS_MAX as u64);
        let mut groups: ArrayVec<Seq, ASKED_GROUPS_MAX> =
            (group..end).map(|g| self.sums.changed(volume, g)).collect();
        if !planted!(GroupMissed) {
            for (number, seq, record) in self.log.unapplied_records(self.log.next_number()) {
                let Some(extent) = super::applier::extent_of(record, number, seq) else {
                    continue;
                };
                if extent.volume != volume {
                    continue;
                }
                let first = (extent.start / GROUP_BLOCKS).max(group);
                let last = ((extent.end() - 1) / GROUP_BLOCKS + 1).min(end);
                for g in first..last {
                    groups[usize::try_from(g - group).expect("448 groups")] = seq;
                }
            }
        }
        self.send(conn, Frame::Changed(Box::new(Changed { token, groups })));
    }
}
