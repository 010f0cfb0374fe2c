//! Applying: committed records go to the stores lazily, the newest version of each block only, in large writes; their
//! checksums go to the table; then stores and table are flushed, and then the floor moves.

use super::{Pending, Replica};
use crate::io::{DiskError, DiskOp, PARTS_MAX, Parts, SideFile};
use crate::journal::batch::{self, Kind};
use crate::memory::{Buffer, Memory, Purpose};
use crate::replica::loads::LoadFor;
use crate::store::extents::{Extent, ExtentMap, Source};
use crate::store::sums::BlockSum;
use crate::types::*;

/// Records applied in one go, at most.
const WINDOW_RECORDS_MAX: usize = 4096;

/// Blocks applied in one go, at most (32 MiB).
const WINDOW_BLOCKS_MAX: u64 = 8192;

/// Store operations in flight, at most.
const WRITES_MAX: u32 = 32;

/// Blocks of one store write, at most (2 MiB).
const WRITE_BLOCKS_MAX: u64 = 512;

/// Committed records wait for at most this long before they are applied, if nothing else happens.
const IDLE_NS: u64 = 200_000_000;

/// A batch that found no memory is tried again after this long.
const RETRY_NS: u64 = 1_000_000;

/// Bytes of committed records that make an apply start at once.
const BACKLOG_BYTES: u64 = 16 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Idle,
    Loading,
    Writing,
    Summing,
    Flushing,
}

/// The apply in progress.
#[derive(Debug)]
pub(super) struct Applier {
    phase: Phase,
    /// The number of the entry after the window.
    end: u64,
    plan: ExtentMap,
    /// Where the plan is to be continued.
    cursor: Option<(VolumeId, u64)>,
    left: u32,
    touched: u32,
    /// Pages of checksums were written.
    flush_sums: bool,
    /// When the oldest committed record that is not applied was noticed.
    waiting_since: Option<Time>,
    /// It is due, and waits for the superblock.
    waits: bool,
    /// When to look again for memory to read a batch back into.
    retry_at: Option<Time>,
    /// Rises when store contents replace overlay contents: what was read from a store before may be old.
    pub(super) generation: u64,
    /// Go no further than this record, and there at once: the table of sums is to be as of it for a moment.
    pub(super) stop_at: Option<Seq>,
    /// Apply whatever is committed, at once.
    pub(super) urgent: bool,
    /// Records through this one may have been applied before the last start. Until they are again, the stores and the table hold parts
    /// of them: they are as of no one record.
    pub(super) former_until: Seq,
}

impl Applier {
    /// `former_until`: the last record that may have been applied before this start.
    pub(super) fn new(former_until: Seq) -> Self {
        Self {
            former_until,
            phase: Phase::Idle,
            end: 0,
            plan: ExtentMap::with_capacity(2 * WINDOW_RECORDS_MAX + 2),
            cursor: None,
            left: 0,
            touched: 0,
            flush_sums: false,
            waiting_since: None,
            waits: false,
            retry_at: None,
            generation: 0,
            stop_at: None,
            urgent: false,
        }
    }

    /// The number of the entry after the window being applied; 0 if none is.
    pub(super) fn window_end(&self) -> u64 {
        if self.phase == Phase::Idle {
            0
        } else {
            self.end
        }
    }

    /// The same, once the table of sums is as of the window's end.
    pub(super) fn summed_end(&self) -> Option<u64> {
        matches!(self.phase, Phase::Summing | Phase::Flushing).then_some(self.end)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// When an apply is due for no other reason.
    pub(super) fn timeout(&self) -> Option<Time> {
        match self.phase {
            Phase::Idle if self.waits => None,
            Phase::Idle => Some(self.waiting_since?.after(IDLE_NS)),
            Phase::Loading => self.retry_at,
            Phase::Writing | Phase::Summing | Phase::Flushing => None,
        }
    }
}

impl<M: Memory> Replica<M> {
    /// The number of the first entry that may not be applied yet if what is committed ends with this record.
    pub(super) fn committed_number(&self, committed: Seq) -> u64 {
        if planted!(ApplyUncommitted) {
            return self.log.durable_number().max(self.log.applied_number());
        }
        let committed = match self.log.number_of(committed) {
            Some(number) if self.log.entry(number).is_some_and(|e| e.last == committed) => {
                number + 1
            }
            Some(number) => number,
            None => self.log.applied_number(),
        };
        committed
            .min(self.log.durable_number())
            .max(self.log.applied_number())
    }

    /// Whether the stores lack nothing that is known to be committed.
    pub(super) fn all_applied(&self) -> bool {
        self.log.applied_id().seq >= self.committed
    }

    /// Whether no apply runs, and a restart would know of the last one and repeat nothing.
    pub(super) fn applies_nothing(&self) -> bool {
        self.applier.is_idle()
            && self.metadata.is_settled()
            && self.log.floor_position() == self.log.applied_floor().position
    }

    pub(super) fn pump_applier(&mut self) {
        if self.failed.is_some() {
            return;
        }
        match self.applier.phase {
            Phase::Idle => self.apply_start(),
            Phase::Loading => self.apply_load(),
            Phase::Writing => self.apply_write(),
            Phase::Summing => self.apply_pages(),
            Phase::Flushing => {}
        }
    }

    /// A page of checksums was written.
    pub(super) fn apply_goes_on(&mut self) {
        if self.applier.phase == Phase::Summing {
            self.apply_pages();
        }
    }

    fn apply_start(&mut self) {
        let from = self.log.applied_number();
        let to = self.committed_number(self.committed);
        let to = self.stopped_at(to).max(from);
        self.applier.waits = false;
        if self.repairs.write() || self.resync_has_stores() || self.is_renewing() || self.unfit {
            // The end of that is an event, and no time has to pass for it.
            self.applier.waits = true;
            return;
        }
        if from == to {
            self.applier.waiting_since = None;
            if !self.sums.is_clean() && self.repairs.is_idle() {
                self.apply_sums_alone(from);
            }
            return;
        }
        let since = *self.applier.waiting_since.get_or_insert(self.now);
        let backlog = self.log.tail_before(to).position - self.log.tail_before(from).position;
        let trigger = (self.log.ring_bytes() / 4).min(BACKLOG_BYTES);
        let due = self.applier.urgent
            || self.applier.stop_at.is_some()
            || backlog * BLOCK_BYTES_U64 >= trigger
            || self.log.unapplied().len() >= WINDOW_RECORDS_MAX
            || self.now.since(since) >= IDLE_NS;
        if !due {
            return;
        }
        // A crash in the midst of it leaves stores with some of these records, so a restart has to know that they are
        // committed: it replays them then, also if nobody is there to tell it.
        let known = self.committed_number(self.metadata.durable_committed);
        let to = if planted!(AppliedBeforeKnown) {
            to
        } else {
            to.min(known)
        };
        if from == to {
            self.applier.waits = true;
            if self.metadata.is_settled() {
                self.metadata.changed();
            }
            return;
        }
        // What has to be read back must fit into the memory for it: a window that does not would wait for ever.
        let load_blocks_max = self.memory.total_blocks(Purpose::Apply);
        let (mut end, mut records, mut blocks) = (from, 0, 0);
        let mut load_blocks = 0;
        // A record that changes the volumes is by itself: what is before it is about those before.
        let to = match self.log.next_volumes_number() {
            Some(number) if number == from => {
                self.apply_volumes(from);
                return;
            }
            Some(number) => to.min(number),
            None => to,
        };
        while end < to {
            let entry = self
                .log
                .entry(end)
                .expect("what is not applied is in the log");
            records += usize::from(entry.records);
            blocks += u64::from(entry.blocks);
            if entry.buffer.is_none() {
                load_blocks += entry.blocks;
            }
            let full = records > WINDOW_RECORDS_MAX
                || blocks > WINDOW_BLOCKS_MAX
                || load_blocks > load_blocks_max;
            if full && end > from {
                break;
            }
            end += 1;
        }
        self.applier.end = end;
        self.applier.waiting_since = None;
        self.applier.phase = Phase::Loading;
        self.apply_load();
    }

    /// Checksums of blocks that were mended go to the disk without a record.
    fn apply_sums_alone(&mut self, end: u64) {
        self.applier.end = end;
        self.applier.plan.clear();
        self.applier.touched = 0;
        self.applier.left = 0;
        self.apply_sums();
    }

    /// The number of the entry after the record at which the table of sums is to stop, if that comes before `to`.
    fn stopped_at(&self, to: u64) -> u64 {
        let Some(stop) = self.applier.stop_at else {
            return to;
        };
        if self.log.applied_id().seq >= stop {
            return self.log.applied_number();
        }
        let number = self.log.number_of(stop);
        let ends = |n: &u64| self.log.entry(*n).is_some_and(|e| e.last == stop);
        number.filter(ends).map_or(to, |n| to.min(n + 1))
    }

    /// The stores come to a record that changes the volumes.
    fn apply_volumes(&mut self, number: u64) {
        self.applier.waits = true;
        if !self.fit_stores() {
            return;
        }
        self.applier.waits = false;
        self.applier.end = number + 1;
        self.applier.waiting_since = None;
        self.applier.plan.clear();
        self.applier.cursor = None;
        self.applier.left = 0;
        self.applier.touched = 0;
        self.applier.phase = Phase::Summing;
        self.applier.flush_sums = !self.sums.is_clean();
        self.apply_pages();
    }

    fn apply_load(&mut self) {
        let mut missing = false;
        self.applier.retry_at = None;
        let mut number = self.log.applied_number();
        while number < self.applier.end {
            let entry = self
                .log
                .entry(number)
                .expect("what is not applied is in the log");
            if entry.buffer.is_some() {
                number += 1;
                continue;
            }
            missing = true;
            if self.loads.is_loading(number) {
                number += 1;
                continue;
            }
            match self.start_load_until(number, self.applier.end, LoadFor::Apply) {
                Some(next) => number = next,
                None => {
                    // There is no room for it: the window ends before it, or with it, so that what lies behind can be
                    // evicted.
                    let end = number.max(self.log.applied_number() + 1);
                    if end < self.applier.end {
                        self.applier.end = end;
                        self.evict_from = self.evict_from.min(end);
                    }
                    self.applier.retry_at = Some(self.now.after(RETRY_NS));
                    break;
                }
            }
        }
        if !missing {
            self.apply_plan();
        }
    }

    fn apply_plan(&mut self) {
        self.applier.plan.clear();
        let mut touched = 0;
        for (number, seq, record) in self.log.unapplied_records(self.applier.end) {
            let trim = Kind::Zero {
                may_deallocate: true,
            };
            if planted!(TrimIsAHint) && record.kind == trim {
                continue;
            }
            if let Some(extent) = extent_of(record, number, seq) {
                touched |= 1 << extent.volume.0;
                self.applier.plan.insert(extent);
            }
        }
        if planted!(ZeroesFirst) {
            for (number, seq, record) in self.log.unapplied_records(self.applier.end) {
                if record.kind == Kind::Write
                    && let Some(extent) = extent_of(record, number, seq)
                {
                    self.applier.plan.insert(extent);
                }
            }
        }
        self.applier.touched = touched;
        self.applier.cursor = Some((VolumeId(0), 0));
        self.applier.left = 0;
        self.applier.phase = Phase::Writing;
        self.apply_write();
    }

    fn apply_write(&mut self) {
        while (self.applier.left < WRITES_MAX || planted!(UnboundedApply))
            && let Some((volume, block)) = self.applier.cursor
        {
            let Some(first) = self.applier.plan.next_from(volume, block) else {
                self.applier.cursor = None;
                break;
            };
            let op = match first.source {
                Source::Zero { may_deallocate } => {
                    self.applier.cursor = Some((first.volume, first.end()));
                    DiskOp::StoreZero {
                        volume: first.volume,
                        offset: first.start * BLOCK_BYTES_U64,
                        length: first.blocks * BLOCK_BYTES_U64,
                        may_deallocate,
                    }
                }
                Source::Batch { .. } => self.apply_gather(first),
            };
            self.disk(Pending::Apply, op);
            self.applier.left += 1;
        }
        if self.applier.left == 0 && self.applier.cursor.is_none() {
            self.apply_sums();
        }
    }

    /// Records what the stores hold now. The checksums are those that the journal carries: computed once, by whoever
    /// admitted the write. Nobody compares a store with them before the window has ended, since until then the overlay, or
    /// the log, has the last word on all of its blocks.
    fn apply_sums(&mut self) {
        self.applier.phase = Phase::Summing;
        let mut from = Some((VolumeId(0), 0));
        while let Some((volume, block)) = from {
            let Some(extent) = self.applier.plan.next_from(volume, block) else {
                break;
            };
            from = Some((extent.volume, extent.end()));
            let Extent {
                volume,
                start,
                blocks,
                seq,
                source,
            } = extent;
            match source {
                Source::Zero { .. } => {
                    self.sums
                        .write(volume, start, blocks, seq, |_| BlockSum::ZERO);
                }
                Source::Batch { entry, block } => {
                    let buffer = self.log.entry(entry).and_then(|e| e.buffer.as_ref());
                    let bytes = buffer.expect("the window was loaded").bytes();
                    self.sums.write(volume, start, blocks, seq, |b| {
                        let index =
                            u32::try_from(b - start).expect("a batch has at most 384 blocks");
                        BlockSum::of_crc(batch::crc_of(bytes, block + index))
                    });
                }
            }
        }
        self.applier.flush_sums = !self.sums.is_clean();
        self.apply_pages();
    }

    fn apply_pages(&mut self) {
        if self.write_pages(|r| &mut r.sums) || planted!(SumsAfterFloor) {
            self.apply_flush();
        }
    }

    /// One write for `first` and what follows it without a gap.
    fn apply_gather(&mut self, first: Extent) -> DiskOp<M::Buffer> {
        let mut parts: Parts<M::Buffer> = Parts::new();
        let mut next = first;
        let mut blocks = 0;
        while let Source::Batch { entry, block } = next.source {
            let buffer = self.log.entry(entry).and_then(|e| e.buffer.as_ref());
            let buffer = buffer.expect("the window was loaded");
            let count = u32::try_from(next.blocks).expect("a batch has at most 384 blocks");
            parts.push(buffer.slice(block, count));
            blocks += next.blocks;
            self.applier.cursor = Some((next.volume, next.end()));
            if parts.len() == PARTS_MAX {
                break;
            }
            match self.applier.plan.next_from(next.volume, next.end()) {
                Some(following)
                    if following.volume == next.volume
                        && following.start == next.end()
                        && blocks + following.blocks <= WRITE_BLOCKS_MAX =>
                {
                    next = following;
                }
                _ => break,
            }
        }
        DiskOp::StoreWrite {
            volume: first.volume,
            offset: first.start * BLOCK_BYTES_U64,
            parts,
        }
    }

    fn apply_flush(&mut self) {
        self.applier.phase = Phase::Flushing;
        for volume in 0..self.volumes().places() {
            let draining = self.drain.is_some();
            let mut touched = self.applier.touched & (1 << volume) != 0;
            if planted!(FloorBeforeFlush) {
                touched = false;
            }
            if planted!(DrainWithoutFlush) && draining {
                touched = false;
            }
            if touched {
                self.disk(
                    Pending::Apply,
                    DiskOp::StoreFlush {
                        volume: VolumeId(volume),
                    },
                );
                self.applier.left += 1;
            }
        }
        if self.applier.flush_sums && !planted!(SumsAfterFloor) {
            let file = SideFile::Sums;
            self.disk(Pending::Apply, DiskOp::SideFlush { file });
            self.applier.left += 1;
        }
        if self.applier.left == 0 {
            self.apply_end();
        }
    }

    pub(super) fn apply_done(&mut self, result: Result<(), DiskError>) {
        if let Err(error) = result {
            self.fail("a store can not be written", Some(error));
            return;
        }
        self.applier.left -= 1;
        match self.applier.phase {
            Phase::Writing => self.apply_write(),
            Phase::Flushing if self.applier.left == 0 => self.apply_end(),
            _ => {}
        }
    }

    fn apply_end(&mut self) {
        self.applier.phase = Phase::Idle;
        self.applier.generation += 1;
        let end = self.applier.end;
        let last = self.log.tail_before(end).id.seq;
        let mut from = Some((VolumeId(0), 0));
        while let Some((volume, block)) = from {
            let Some(extent) = self.applier.plan.next_from(volume, block) else {
                break;
            };
            from = Some((extent.volume, extent.end()));
            if !self.overlay.is_empty() {
                self.overlay.remove_not_newer(&Extent {
                    seq: last,
                    ..extent
                });
            }
        }
        self.log.set_applied(end);
        self.metadata.wanted.sums_written = self.sums.written();
        if planted!(RecycledTooEarly) {
            let floor = self.log.applied_floor().position;
            self.log.set_floor_position(floor);
        }
        self.applier.urgent = self.drain.is_some() || self.is_draining_for_hold();
        self.metadata.changed();
    }

    /// Makes the overlay what the log says: everything that the stores lack.
    pub(super) fn rebuild_overlay(&mut self) {
        self.overlay.clear();
        for (number, seq, record) in self.log.unapplied_records(self.log.next_number()) {
            if let Some(extent) = extent_of(record, number, seq) {
                if planted!(OverlayBackwards)
                    && self
                        .overlay
                        .first_overlap(extent.volume, extent.start, extent.end())
                        .is_some()
                {
                    continue;
                }
                self.overlay.insert(extent);
            }
        }
    }
}

/// What a record of entry `number` does to the blocks of a volume.
pub(super) fn extent_of(
    record: &crate::journal::batch::Descriptor,
    number: u64,
    seq: Seq,
) -> Option<Extent> {
    let source = match record.kind {
        Kind::Write => Source::Batch {
            entry: number,
            block: record.payload,
        },
        Kind::Zero { may_deallocate } => Source::Zero { may_deallocate },
        Kind::Epoch | Kind::Membership | Kind::Demote | Kind::Volumes => return None,
    };
    Some(Extent {
        volume: record.volume,
        start: record.block,
        blocks: u64::from(record.blocks),
        seq,
        source,
    })
}
