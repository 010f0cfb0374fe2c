//! Looking at a page for whoever verifies, this node or a peer: its blocks are read and compared with their sums, what is bad
//! is mended if that is wanted, and then the answer is what the table of sums says. Nothing of it outlives the question, so it
//! does no harm when whoever asked is gone.
//!
//! What the store holds of a block that records in the log are about does not matter, since they are about to be applied. But a
//! disk may not keep what it is given then. So where such a block is not as recorded, it is read again once they are applied,
//! and before the next ones are.
//!
//! Clients come first: while they are served, as much time goes by between two reads as the one before took.

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use super::super::{Pending, Replica};
use crate::io::*;
use crate::memory::{Buffer, Memory, Purpose};
use crate::store::block_set::BlockSet;
use crate::store::sums::{BlockSum, GROUP_BLOCKS};
use crate::types::*;
use crate::wire::frame::{
    BAD_NAMED_MAX, CHECKED_BLOCKS_MAX, CheckAsk, Checked, Frame, Mend, VerifyFrame,
};

/// Questions of one peer at once, at most. It has one, and may ask another one when the first takes too long.
const ASKS_MAX: usize = 4;

/// Blocks that are read at once.
const READ_BLOCKS: u64 = 128;

/// For a record to be applied, or a repair to go on, so long is waited.
const WAIT_NS: u64 = 2_000_000_000;

/// What found no memory, or no place among the repairs, is tried again after this long.
const RETRY_NS: u64 = 2_000_000;

#[derive(Debug)]
enum State<B> {
    /// The next blocks are to be read.
    Read,
    Reading {
        buffer: B,
        blocks: u64,
        left: u32,
        failed: BlockSet,
        generation: u64,
        singly: bool,
        at: Time,
    },
    /// Of the blocks that were read last some are bad, and are being mended.
    Mending,
    /// The table is to be as of a record.
    Await,
}

#[derive(Debug)]
struct Check<B> {
    /// Who asked; `None` for this node.
    conn: Option<ConnId>,
    ask: CheckAsk,
    state: State<B>,
    /// The next block to be read.
    at: u64,
    /// The store did not give all blocks: block by block it shows which.
    singly: bool,
    bad: ArrayVec<u16, CHECKED_BLOCKS_MAX>,
    left: u16,
    /// Bad ones among the blocks that are read over and over while they are mended, when they were fewest.
    before: Option<usize>,
    /// Those of these blocks that were seen to since then, from the first one of the read.
    tried: BlockSet,
    /// Some of these blocks were not as recorded, and records up to this one were about to change that: all are read as of it, or
    /// of a later one.
    settled: Option<Seq>,
    since: Time,
}

/// The questions. The first one is worked on.
#[derive(Debug)]
pub(in crate::replica) struct Checks<B> {
    queue: VecDeque<Check<B>>,
    /// The name of what is read, for completions of reads that were begun for something else.
    serial: u64,
    not_before: Time,
    retry_at: Option<Time>,
}

impl<B> Checks<B> {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::with_capacity(2 * ASKS_MAX),
            serial: 0,
            not_before: Time(0),
            retry_at: None,
        }
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        self.queue.front()?;
        self.retry_at
    }

    /// Forgets what was asked by somebody who is gone.
    pub(super) fn forget(&mut self, conn: Option<ConnId>) {
        if self.queue.front().is_some_and(|c| c.conn == conn) {
            self.serial += 1;
        }
        self.queue.retain(|c| c.conn != conn);
    }
}

/// What a step of a question came to.
enum Step {
    /// Go on.
    On,
    /// Something has to happen first.
    Wait,
    /// It can be answered.
    Answer,
    /// Nothing can be said of the page now.
    Unable,
}

impl<M: Memory> Replica<M> {
    /// A peer asks for what is known of a page.
    pub(super) fn got_check(&mut self, conn: ConnId, ask: CheckAsk) {
        // Whoever asks on has given up the oldest of its questions.
        let checks = &mut self.verify.checks;
        let of_conn = |c: &Check<M::Buffer>| c.conn == Some(conn);
        if checks.queue.iter().filter(|c| of_conn(c)).count() >= ASKS_MAX
            && let Some(oldest) = checks.queue.iter().position(of_conn)
        {
            checks.serial += u64::from(oldest == 0);
            checks.queue.remove(oldest);
        }
        self.note_verifier(conn);
        self.check(Some(conn), ask);
    }

    pub(super) fn check(&mut self, conn: Option<ConnId>, ask: CheckAsk) {
        let blocks = self.sums.blocks_of_page(ask.volume, ask.page);
        self.verify.checks.queue.push_back(Check {
            conn,
            ask,
            state: if ask.read && !planted!(VerifyTrustsTable) {
                State::Read
            } else {
                State::Await
            },
            at: blocks.start,
            singly: false,
            bad: ArrayVec::new(),
            left: 0,
            before: None,
            tried: BlockSet::default(),
            settled: None,
            since: self.now,
        });
    }

    /// A peer says that this node's copy of a block is wrong. Whether it is the block will show: only a copy that fits is taken, and
    /// only while nothing newer is known here.
    pub(super) fn got_mend(&mut self, mend: Mend) {
        if self.cannot_verify().is_none() {
            self.mend_block(mend);
        }
    }

    pub(super) fn pump_checks(&mut self) {
        self.applier.stop_at = None;
        self.verify.checks.retry_at = None;
        while !self.verify.checks.queue.is_empty() {
            let unable = self.cannot_verify().is_some();
            let front = &self.verify.checks.queue[0];
            let (ask, conn) = (front.ask, front.conn);
            let blocks = self.sums.blocks_of_page(ask.volume, ask.page);
            let step = if unable || blocks.is_empty() || front.at > blocks.end {
                Step::Answer
            } else {
                self.check_step(ask, &blocks)
            };
            match step {
                Step::On => {}
                Step::Wait => return,
                Step::Answer | Step::Unable => {
                    let known = !unable && !blocks.is_empty() && matches!(step, Step::Answer);
                    let checked = self.checked(known.then_some(blocks));
                    self.verify.checks.queue.pop_front();
                    self.verify.checks.serial += 1;
                    match conn {
                        Some(conn) => {
                            let frame = VerifyFrame::Checked(Box::new(checked));
                            self.send(conn, Frame::Verify(frame));
                        }
                        None => self.got_checked(self.config.me, Box::new(checked), 0),
                    }
                }
            }
        }
    }

    fn check_step(&mut self, ask: CheckAsk, blocks: &std::ops::Range<u64>) -> Step {
        let now = self.now;
        let front = &mut self.verify.checks.queue[0];
        // What is asked of the sums alone is read at the record that they are to be as of, and only where they are in doubt.
        let doubts = !ask.read && matches!(front.state, State::Read | State::Reading { .. });
        let wanted = ask.as_of.max(self.applier.former_until);
        if doubts {
            self.applier.stop_at = Some(wanted);
        }
        match front.state {
            State::Read if front.at == blocks.end => {
                front.state = State::Await;
                front.since = now;
                Step::On
            }
            State::Read => {
                if doubts {
                    let next = self.sums.first_in_doubt(ask.volume, front.at..blocks.end);
                    let next = next.unwrap_or(blocks.end);
                    if std::mem::replace(&mut front.at, next) != next {
                        return Step::On;
                    }
                    // The stores may be past the table until an apply has ended; no other one begins.
                    if !self.applier.is_idle() {
                        return Step::Wait;
                    }
                }
                if now < self.verify.checks.not_before {
                    self.verify.checks.retry_at = Some(self.verify.checks.not_before);
                    return Step::Wait;
                }
                if let Some(seq) = self.verify.checks.queue[0].settled
                    && let Some(step) = self.check_settles(seq)
                {
                    return step;
                }
                if self.check_read(blocks) {
                    return Step::On;
                }
                self.verify.checks.retry_at = Some(now.after(RETRY_NS));
                Step::Wait
            }
            State::Reading { .. } => {
                if front.settled.is_some() {
                    self.applier.stop_at = Some(self.sums_as_of());
                }
                Step::Wait
            }
            State::Mending => {
                let end = (front.at + READ_BLOCKS).min(blocks.end);
                if self.repairs.concern(ask.volume, front.at, end) {
                    return Step::Wait;
                }
                front.state = State::Read;
                front.settled = None;
                Step::On
            }
            State::Await => {
                let since = front.since;
                // What was found by comparing the sums is being mended.
                if ask.repair && self.repairs.concern(ask.volume, blocks.start, blocks.end) {
                    self.verify.checks.queue[0].since = now;
                    return Step::Wait;
                }
                let as_of = self.sums_as_of();
                if ask.sums
                    && as_of == ask.as_of
                    && as_of >= wanted
                    && self.verify.checks.queue[0].at < blocks.end
                {
                    self.verify.checks.queue[0].state = State::Read;
                    return Step::On;
                }
                if as_of >= wanted || now.since(since) >= WAIT_NS {
                    return Step::Answer;
                }
                // The table stops at this record, so that it can be compared with others that do.
                self.applier.stop_at = Some(wanted);
                self.verify.checks.retry_at = Some(since.after(WAIT_NS));
                Step::Wait
            }
        }
    }

    /// The store is to hold what the table says, as of this record or a later one. `None` if it does: then nothing is applied
    /// while it is read. (Without memory for that it is, since that gives some back.)
    fn check_settles(&mut self, seq: Seq) -> Option<Step> {
        let as_of = self.sums_as_of();
        if as_of >= seq && self.applier.is_idle() {
            return None;
        }
        if as_of < seq {
            let until = self.verify.checks.queue[0].since.after(WAIT_NS);
            if self.now >= until {
                // It may never be committed, or the store can not keep up.
                return Some(Step::Unable);
            }
            self.verify.checks.retry_at = Some(until);
        }
        self.applier.stop_at = Some(seq.max(as_of));
        Some(Step::Wait)
    }

    /// The record as of which the table of sums is.
    pub(in crate::replica) fn sums_as_of(&self) -> Seq {
        match self.applier.summed_end() {
            Some(end) => self.log.tail_before(end).id.seq,
            None => self.log.applied_id().seq,
        }
    }

    /// Begins to read the next blocks. `false` if there is no memory.
    fn check_read(&mut self, blocks: &std::ops::Range<u64>) -> bool {
        let front = &self.verify.checks.queue[0];
        let (volume, at, singly) = (front.ask.volume, front.at, front.singly);
        let count = READ_BLOCKS.min(blocks.end - at);
        let small = u32::try_from(count).expect("128 blocks");
        let Some(buffer) = self.memory.alloc(Purpose::Core, small) else {
            return false;
        };
        self.verify.checks.serial += 1;
        let serial = self.verify.checks.serial;
        let step = if singly { 1 } else { small };
        let mut left = 0;
        for first in (0..small).step_by(step as usize) {
            let op = DiskOp::StoreRead {
                volume,
                offset: (at + u64::from(first)) * BLOCK_BYTES_U64,
                buffer: buffer.slice(first, step),
            };
            self.disk(
                Pending::Check {
                    serial,
                    first,
                    blocks: step,
                },
                op,
            );
            left += 1;
        }
        self.verify.checks.queue[0].state = State::Reading {
            buffer,
            blocks: count,
            left,
            failed: BlockSet::default(),
            generation: self.applier.generation,
            singly,
            at: self.now,
        };
        true
    }

    pub(in crate::replica) fn check_was_read(
        &mut self,
        serial: u64,
        (first, count): (u32, u32),
        result: Result<(), DiskError>,
    ) {
        if serial != self.verify.checks.serial {
            return;
        }
        let Some(front) = self.verify.checks.queue.front_mut() else {
            return;
        };
        let State::Reading { left, failed, .. } = &mut front.state else {
            return;
        };
        *left -= 1;
        if result.is_err() {
            failed.add(first, count);
        }
        if *left == 0 {
            self.check_compare();
        }
    }

    /// What was read is compared with its sums.
    fn check_compare(&mut self) {
        let front = &mut self.verify.checks.queue[0];
        let (volume, at) = (front.ask.volume, front.at);
        let whole = front.ask.read;
        let repair = front.ask.repair && whole;
        let State::Reading {
            buffer,
            blocks,
            failed,
            generation,
            singly,
            at: began_at,
            ..
        } = std::mem::replace(&mut front.state, State::Read)
        else {
            return;
        };
        if self.clients.in_work() > 0 {
            let took = self.now.since(began_at);
            self.verify.checks.not_before = self.now.after(took);
        }
        let fits = at + blocks <= self.sums.blocks(volume);
        if self.cannot_verify().is_some() || !fits {
            return;
        }
        if !failed.is_empty() && !singly {
            self.verify.checks.queue[0].singly = true;
            return;
        }
        let settled = self.verify.checks.queue[0].settled.is_some();
        let (mut bad, mut settles) = (ArrayVec::<u64, { READ_BLOCKS as usize }>::new(), false);
        for n in 0..blocks {
            let small = u32::try_from(n).expect("128 blocks");
            let from = small as usize * BLOCK_BYTES;
            let bytes = &buffer.bytes()[from..from + BLOCK_BYTES];
            let admits = self.sums.sum(volume, at + n).admits(volume, at + n, bytes);
            if !failed.has(small) && admits {
                continue;
            }
            // A record that the store lacks, or half has, is about it: what it holds does not matter, but for its sum.
            if whole && !settled && self.rewritten(volume, at + n) {
                settles = true;
                break;
            }
            bad.push(at + n);
        }
        if settles {
            let small = u32::try_from(blocks).expect("128 blocks");
            let newest = self.newest_change_of(volume, at, small);
            let front = &mut self.verify.checks.queue[0];
            (front.settled, front.since) = (Some(newest), self.now);
            return;
        }
        if !bad.is_empty() && generation != self.applier.generation {
            // Newer versions were written while the old ones were read.
            return;
        }
        let start = self
            .sums
            .blocks_of_page(volume, self.verify.checks.queue[0].ask.page)
            .start;
        let front = &mut self.verify.checks.queue[0];
        for block in &bad {
            let n = u16::try_from(block - start).expect("896 blocks");
            if !front.bad.contains(&n) {
                front.bad.push(n);
            }
        }
        if front.before.is_none_or(|n| bad.len() < n) {
            (front.before, front.tried) = (Some(bad.len()), BlockSet::default());
        }
        let nth = |block: u64| u32::try_from(block - at).expect("128 blocks");
        let tried = front.tried;
        let untried = || bad.iter().copied().filter(|&b| !tried.has(nth(b)));
        if repair && untried().next().is_some() {
            // Only so many are seen to at once, and nobody may have the first ones: the others follow.
            let mut now_tried = tried;
            for block in untried() {
                if self.found_bad_by_check(volume, block) {
                    now_tried.add(nth(block), 1);
                }
            }
            if now_tried == tried {
                // No place for another repair: the same once more, a little later.
                self.verify.checks.not_before = self.now.after(RETRY_NS);
                return;
            }
            let front = &mut self.verify.checks.queue[0];
            front.tried = now_tried;
            front.state = State::Mending;
            return;
        }
        for &block in bad.iter().filter(|_| whole && !repair) {
            self.tell_bad(volume, block);
        }
        let front = &mut self.verify.checks.queue[0];
        front.left += u16::try_from(bad.len()).expect("128 blocks");
        (front.before, front.tried) = (None, BlockSet::default());
        front.settled = None;
        front.singly = false;
        front.at += blocks;
    }

    /// The answer to the first question, about these blocks if anything can be said of them.
    fn checked(&self, blocks: Option<std::ops::Range<u64>>) -> Checked {
        let front = &self.verify.checks.queue[0];
        // What was applied before the last start and is not again is in it as well: it is no image then.
        let as_of = self.sums_as_of();
        let is_whole = as_of >= self.applier.former_until;
        let mut checked = Checked {
            token: front.ask.token,
            as_of: if is_whole { as_of } else { Seq(0) },
            digest: 0,
            blocks: 0,
            unknown: 0,
            bad: 0,
            left: 0,
            named: ArrayVec::new(),
            sums: ArrayVec::new(),
        };
        let Some(blocks) = blocks else { return checked };
        let found = self.sums.digest(front.ask.volume, blocks.clone());
        let small = |n: usize| u16::try_from(n).expect("896 blocks");
        checked.digest = found.digest;
        checked.unknown = found.unknown;
        let checked_blocks = u16::try_from(blocks.end - blocks.start).expect("896 blocks");
        checked.blocks = checked_blocks;
        // The volume may have been made smaller while it was read.
        let bad = || front.bad.iter().copied().filter(|&n| n < checked_blocks);
        checked.bad = small(bad().count());
        checked.left = front.left.min(checked.bad);
        checked.named.extend(bad().take(BAD_NAMED_MAX));
        let exact = checked.as_of == front.ask.as_of || planted!(VerifyUnaligned);
        if front.ask.sums && exact {
            // A sum in doubt that is not that of what the store holds tells nothing of this copy.
            let told = |(n, block): (u16, u64)| {
                let marked = self.sums.is_marked(front.ask.volume, block / GROUP_BLOCKS);
                if marked && front.bad.contains(&n) {
                    BlockSum::UNKNOWN
                } else {
                    self.sums.sum(front.ask.volume, block)
                }
            };
            checked.sums = (0..).zip(blocks).map(told).collect();
        }
        checked
    }
}

/// A bad block that was found by reading everything.
impl<M: Memory> Replica<M> {
    fn found_bad_by_check(&mut self, volume: VolumeId, block: u64) -> bool {
        self.found_bad(volume, block);
        self.repairs.concern(volume, block, block + 1)
    }

    fn tell_bad(&mut self, volume: VolumeId, block: u64) {
        self.verify.told += 1;
        if self.verify.told <= super::TOLD_MAX {
            let name = self.volume_name(volume);
            self.log_error(format!(
                "verify: block {block} of volume {name} is bad: the store does not give back what was written there; \
                 replctl verify --repair mends it"
            ));
        }
    }
}

/// The sum of a block of a page, by an answer.
pub(super) fn sum_at(checked: &Checked, at: usize) -> BlockSum {
    checked.sums.get(at).copied().unwrap_or(BlockSum::UNKNOWN)
}
