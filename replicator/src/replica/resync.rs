//! Getting what is past a Primary's journal (protocol C2), as the one who lacks it.
//!
//! This node pulls. It asks which groups changed after what its stores hold, and for their blocks; the Primary answers in its
//! place among the records that it sends meanwhile. Both go to a file beside the stores, the *stage*, with a table of sums of
//! its own: the stores stay the consistent point in time that they are. A group is *known* once it was asked about and, if it
//! changed, has come; from then on records about it are staged, those about others are not: they come with their group.
//!
//! Every now and then what is staged is made durable, with the record that it goes through. So a resync goes on where it was
//! after a restart, on another connection, and with another Primary: what of it that one's log does not have is thrown away.
//!
//! When all groups are known, and all of that is committed, one write of the superblock makes what is staged the image: the log
//! begins anew after that record. Then it is laid over the stores, which can be begun again any number of times and needs nobody.

use arrayvec::ArrayVec;

use super::metadata::MetaVersion;
use super::{Incoming, Item, Pending, Replica};
use crate::io::*;
use crate::journal::batch::{self, Header, Kind};
use crate::journal::log::Tail;
use crate::memory::{Buffer, Memory, Purpose};
use crate::meta::config::ConfigAt;
use crate::meta::superblock::{self, AppliedFloor};
use crate::store::sums::{BlockSum, GROUP_BLOCKS, SumTable, Table};
use crate::types::*;
use crate::view::SyncView;
use crate::wire::frame::{
    ASKED_BLOCKS_MAX, ASKED_GROUPS_MAX, Blocks, Changed, EpochHistory, Frame, ResyncFrom,
};

/// Questions for blocks that are not answered yet, at most.
pub(super) const ASKS_MAX: usize = 4;

/// What is staged is made durable after so many bytes of it,
const SAVE_BYTES: u64 = 64 << 20;

/// or after so many leases, if there is any.
const SAVE_LEASES: u64 = 2;

/// A question that a peer could not answer is asked again after this long.
const RETRY_NS: u64 = 200_000_000;

/// Without room it is tried again after this long.
const FULL_NS: u64 = 5_000_000_000;

/// Blocks that are laid over a store at once, at most (1 MiB).
const MERGE_BLOCKS_MAX: u64 = 256;

/// The log after a merge, for the superblock.
#[derive(Debug)]
pub(super) struct Restart {
    pub(super) floor: AppliedFloor,
    pub(super) config: ConfigAt,
    pub(super) epochs: EpochHistory,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Not asked for at the moment: the Primary is away, or feeds this node otherwise.
    Rest,
    /// What this node knows to be committed has to be in its stores first.
    Settle,
    /// The stage is emptied: operations left.
    Clear(u32),
    /// The Primary was asked to begin.
    Ask,
    Run,
    Save(Save),
    /// The image is being switched.
    Mark(MetaVersion),
    Merge,
    /// Everything is in the stores: this is made durable. Operations left.
    Flush(u32),
    /// The superblock is told.
    End(MetaVersion),
    /// The stage is emptied: operations left.
    Last(u32),
    /// There is no room for more; it is tried again then.
    Full(Time),
}

/// Making durable what is staged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Save {
    Stage,
    Pages,
    Sums,
    Mark(MetaVersion),
}

/// Blocks that were asked for.
#[derive(Clone, Copy, Debug)]
struct Ask {
    token: u64,
    volume: VolumeId,
    block: u64,
    blocks: u32,
}

/// Which record changed some groups last, as the Primary says; worked off from the front.
#[derive(Debug)]
struct Known {
    volume: VolumeId,
    group: u64,
    changed: Box<Changed>,
    next: usize,
}

/// A resync.
#[derive(Debug)]
pub(super) struct Resync {
    /// Which one, since the start.
    serial: u64,
    stage: SumTable,
    phase: Phase,
    /// Whom this node pulls from.
    source: Option<ConnId>,
    /// Whose stream it is that goes on after `at`: an answer to the newest question.
    stream: Option<ConnId>,
    /// The Primary asked for another one while this one was ending.
    again: Option<ConnId>,
    token: u64,
    /// The last record staged.
    at: Tail,
    committed: Seq,
    /// The record after which the stream began that reaches `at` without a gap. A group is known if what is known of it is
    /// not older.
    since: Seq,
    /// The newest record of which something may be staged.
    through: Seq,
    config: Option<ConfigAt>,
    epochs: EpochHistory,
    /// No group before this one has to be asked about.
    scan: (VolumeId, u64),
    known: Option<Known>,
    asked_about: Option<(u64, VolumeId, u64)>,
    asks: ArrayVec<Ask, ASKS_MAX>,
    /// Not to ask before.
    retry_at: Option<Time>,
    /// Operations of the item that is being staged, and where they write.
    left: u32,
    writing: ArrayVec<(VolumeId, u64, u64), 64>,
    /// The next record of the batch that is being staged.
    record: usize,
    unsaved_bytes: u64,
    saved_at: Time,
    /// Where the merge is.
    cursor: (VolumeId, u64),
    /// The stage did not give all: before here it is read block by block.
    singly_before: (VolumeId, u64),
    total_bytes: u64,
}

impl Resync {
    fn is_known(&self, volume: VolumeId, group: u64) -> bool {
        let as_of = self.stage.changed(volume, group);
        as_of > Seq(0) && as_of >= self.since
    }

    fn mark(&self, merging: bool) -> superblock::Resync {
        superblock::Resync {
            staged: self.at.id,
            blocks: self.at.blocks,
            checksum: self.at.checksum,
            committed: self.committed,
            since: self.since,
            written: self.stage.written(),
            merging,
        }
    }

    /// Forgets what is staged of records after `common`.
    fn forget_after(&mut self, common: Seq) {
        for v in 0..self.stage.volumes() {
            let volume = VolumeId(v);
            for group in 0..self.stage.groups(volume) {
                if self.stage.changed(volume, group) > common {
                    self.stage.forget(volume, group);
                }
            }
        }
        self.through = self.through.min(common);
    }

    /// Bytes of groups that are not known.
    fn left_bytes(&self) -> u64 {
        let mut groups = 0;
        let (first, from) = self.scan;
        for v in first.0..self.stage.volumes() {
            let volume = VolumeId(v);
            let from = if volume == first { from } else { 0 };
            groups += self.stage.groups(volume).saturating_sub(from);
        }
        let coming: u64 = self.asks.iter().map(|a| u64::from(a.blocks)).sum();
        (groups * GROUP_BLOCKS + coming) * BLOCK_BYTES_U64
    }
}

impl<M: Memory> Replica<M> {
    /// Takes up what was found at start.
    pub(super) fn resync_of(
        mark: Option<superblock::Resync>,
        staged: Option<SumTable>,
        position: u64,
        now: Time,
    ) -> Option<Resync> {
        let (mark, stage) = (mark?, staged?);
        let serial = 0;
        let through = stage.newest().max(mark.staged.seq);
        Some(Resync {
            serial,
            phase: if mark.merging {
                Phase::Merge
            } else {
                Phase::Rest
            },
            source: None,
            stream: None,
            again: None,
            token: 0,
            at: Tail {
                id: mark.staged,
                position,
                blocks: mark.blocks,
                checksum: mark.checksum,
            },
            committed: mark.committed,
            since: mark.since,
            through,
            config: None,
            epochs: EpochHistory::new(),
            scan: (VolumeId(0), 0),
            known: None,
            asked_about: None,
            asks: ArrayVec::new(),
            retry_at: None,
            left: 0,
            writing: ArrayVec::new(),
            record: 0,
            unsaved_bytes: 0,
            saved_at: now,
            cursor: (VolumeId(0), 0),
            singly_before: (VolumeId(0), 0),
            total_bytes: 0,
            stage,
        })
    }

    /// Whether what a resync brought is being laid over the stores.
    pub(super) fn merging(&self) -> bool {
        self.resync
            .as_ref()
            .is_some_and(|r| matches!(r.phase, Phase::Merge | Phase::Flush(_) | Phase::End(_)))
            && !planted!(GrantWhileMerging)
    }

    /// Whether the image is changing hands: from the write of the superblock that says so until the stores have it.
    pub(super) fn resync_is_ending(&self) -> bool {
        self.resync.as_ref().is_some_and(|r| {
            matches!(
                r.phase,
                Phase::Mark(_) | Phase::Merge | Phase::Flush(_) | Phase::End(_) | Phase::Last(_)
            )
        })
    }

    /// Whether the applier has to keep away from stores and sums.
    pub(super) fn resync_has_stores(&self) -> bool {
        let saves = |r: &Resync| matches!(r.phase, Phase::Save(_));
        self.resync_is_ending() || self.resync.as_ref().is_some_and(saves)
    }

    /// How far it is.
    pub(super) fn resync_view(&self) -> Option<SyncView> {
        let resync = self.resync.as_ref()?;
        Some(SyncView {
            left_bytes: resync.left_bytes(),
            total_bytes: resync.total_bytes,
            full: matches!(resync.phase, Phase::Full(_)),
        })
    }

    /// What a resync has staged is given up, unless it is the image already.
    pub(super) fn resync_abandon(&mut self) {
        if self.resync.is_none() || self.resync_is_ending() {
            return;
        }
        self.resync = None;
        if self.metadata.wanted.resync.take().is_some() {
            self.metadata.changed();
        }
    }

    /// The Primary says that this node is past its journal.
    pub(super) fn resync_wanted(&mut self, conn: ConnId) {
        // Who belongs to no resource yet has nothing to fetch: it is invited first.
        let nobody = self.metadata.wanted.uuid == ResourceUuid(0);
        if self.is_witness() || nobody || self.failed.is_some() {
            return;
        }
        if self.resync_is_ending() {
            if let Some(resync) = self.resync.as_mut() {
                resync.again = Some(conn);
            }
            return;
        }
        if self.resync.is_none() {
            let volumes = self.config.volumes.iter().map(|v| v.bytes);
            let mark = superblock::Resync {
                staged: RecordId::NONE,
                blocks: 0,
                checksum: 0,
                committed: Seq(0),
                since: Seq(0),
                written: 0,
                merging: false,
            };
            let stage = SumTable::new(Table::Staged, volumes);
            self.resync = Self::resync_of(Some(mark), Some(stage), 0, self.now);
            let serial = self.next_token();
            if let Some(resync) = self.resync.as_mut() {
                resync.serial = serial;
            }
        }
        let now = self.now;
        let resync = self.resync.as_mut().expect("it was just made");
        resync.source = Some(conn);
        resync.stream = None;
        resync.saved_at = now;
        if matches!(resync.phase, Phase::Rest | Phase::Ask | Phase::Run) {
            resync.phase = Phase::Settle;
        }
        self.incoming.retain(|i| i.conn != conn);
    }

    /// A connection is gone: the resync rests until the Primary, or another one, asks for it again.
    pub(super) fn resync_loses(&mut self, conn: ConnId) {
        let Some(resync) = self.resync.as_mut() else {
            return;
        };
        if resync.source == Some(conn) {
            resync.source = None;
            resync.stream = None;
            if matches!(
                resync.phase,
                Phase::Settle | Phase::Ask | Phase::Run | Phase::Full(_)
            ) {
                resync.phase = Phase::Rest;
            }
        }
        if resync.again == Some(conn) {
            resync.again = None;
        }
    }

    /// Whether what arrives on this connection is to be staged.
    pub(super) fn stages(&self, conn: ConnId) -> bool {
        self.resync.as_ref().is_some_and(|r| {
            r.source == Some(conn)
                && !matches!(
                    r.phase,
                    Phase::Merge | Phase::Flush(_) | Phase::End(_) | Phase::Last(_)
                )
        })
    }

    pub(super) fn pump_resync(&mut self) {
        let Some(resync) = self.resync.as_mut() else {
            return;
        };
        match resync.phase {
            Phase::Rest | Phase::Ask | Phase::Clear(_) | Phase::Flush(_) | Phase::Last(_) => {}
            Phase::Full(until) => {
                if self.now >= until {
                    resync.phase = Phase::Settle;
                    resync.stream = None;
                    self.resync_settle();
                }
            }
            Phase::Settle => self.resync_settle(),
            Phase::Run => self.resync_run(),
            Phase::Save(_) => self.resync_save(),
            Phase::Mark(version) => {
                if self.metadata.is_durable(version) {
                    self.resync_switch();
                }
            }
            Phase::Merge => self.resync_merge(),
            Phase::End(version) => {
                if self.metadata.is_durable(version) {
                    resync.phase = Phase::Last(2);
                    self.log_info("the resync is complete: the stores have it".into());
                    self.discard_stage();
                }
            }
        }
    }

    pub(super) fn resync_timeout(&self) -> Option<Time> {
        let resync = self.resync.as_ref()?;
        match resync.phase {
            // Once that has passed, what is waited for is an event.
            Phase::Run => resync.retry_at.filter(|at| *at > self.now),
            Phase::Full(until) => Some(until),
            Phase::Merge => Some(self.now.after(1_000_000)).filter(|_| resync.left == 0),
            _ => None,
        }
    }

    fn resync_settle(&mut self) {
        let resync = self.resync.as_ref().expect("it is pumped");
        // Writes of an earlier one must not land on what comes now.
        if resync.left > 0 || self.resync_flying > 0 {
            return;
        }
        if !self.all_applied() || !self.applier.is_idle() || !self.pages_are_idle() {
            self.applier.urgent = true;
            return;
        }
        let nothing = resync.at.id == RecordId::NONE;
        if nothing {
            self.log_warn(
                "this node is past the Primary's journal: what changed since is staged beside the stores, which stay as they are \
                 until it is whole"
                    .into(),
            );
            let resync = self.resync.as_mut().expect("it is pumped");
            resync.phase = Phase::Clear(2);
            self.discard_stage();
        } else {
            self.resync_ask();
        }
    }

    /// Empties the stage.
    fn discard_stage(&mut self) {
        let bytes = self.config.volumes.iter().map(|v| v.bytes).sum();
        let sizes = self.config.volumes.iter().map(|v| v.bytes);
        let (offset, length) = SumTable::new(Table::Staged, sizes).area();
        for (file, offset, length) in [
            (SideFile::Stage, 0, bytes),
            (SideFile::Sums, offset, length),
        ] {
            let op = DiskOp::SideDiscard {
                file,
                offset,
                length,
            };
            self.resync_disk(op);
        }
    }

    fn resync_ask(&mut self) {
        let token = self.next_token();
        let resync = self.resync.as_mut().expect("it is pumped");
        let Some(conn) = resync.source else {
            resync.phase = Phase::Rest;
            return;
        };
        resync.token = token;
        resync.phase = Phase::Ask;
        resync.known = None;
        resync.asked_about = None;
        resync.asks.clear();
        resync.record = 0;
        let frame = Frame::ResyncAsk {
            token,
            staged: resync.at.id,
            committed: resync.committed,
        };
        self.send(conn, frame);
    }

    pub(super) fn got_resync_from(&mut self, conn: ConnId, from: ResyncFrom) {
        let position = self.log.tail().position;
        let Some(resync) = self.resync.as_mut() else {
            return;
        };
        if resync.source != Some(conn) || resync.phase != Phase::Ask || resync.token != from.token {
            return;
        }
        let common = from.common.min(resync.at.id.seq);
        if common < resync.at.id.seq || common < resync.through {
            resync.forget_after(common);
        }
        // Without a gap what is known stays known.
        resync.since = if from.at.seq == common {
            resync.since.min(common)
        } else {
            from.at.seq
        };
        resync.at = Tail {
            id: from.at,
            position,
            blocks: from.blocks,
            checksum: from.checksum,
        };
        resync.through = resync.through.max(from.at.seq);
        resync.stream = Some(conn);
        resync.config = Some(from.config);
        resync.epochs = from.epochs;
        resync.scan = (VolumeId(0), 0);
        resync.phase = Phase::Run;
        resync.total_bytes = resync.total_bytes.max(resync.left_bytes());
        let text = format!(
            "resync: the stream of records begins after {}, {} was staged before",
            from.at, common
        );
        self.log_info(text);
        self.say_staged();
    }

    /// Takes what comes next, in order. `false` if it must wait.
    pub(super) fn stage_next(&mut self, item: &Incoming<M::Buffer>) -> bool {
        let Some(resync) = self.resync.as_mut() else {
            return true;
        };
        match resync.phase {
            Phase::Run if resync.stream == Some(item.conn) => {}
            // It was asked for by an earlier question.
            Phase::Run
            | Phase::Settle
            | Phase::Clear(_)
            | Phase::Ask
            | Phase::Rest
            | Phase::Full(_) => {
                return resync.left == 0;
            }
            _ => return false,
        }
        if resync.left > 0 || self.resync_holds() {
            return false;
        }
        let resync = self.resync.as_mut().expect("it was just there");
        resync.writing.clear();
        let base = self.log.applied_id().seq;
        match &item.item {
            Item::Append(buffer) => self.stage_batch(item.conn, buffer),
            Item::Changed(changed) => {
                let resync = self.resync.as_mut().expect("it was just there");
                if let Some((token, volume, group)) = resync.asked_about
                    && token == changed.token
                {
                    resync.asked_about = None;
                    // At this place in the stream that is true: what comes after it is staged if it is about these groups.
                    let at = resync.at.id.seq;
                    for (group, &changed) in (group..).zip(&changed.groups) {
                        let as_of = resync.stage.changed(volume, group);
                        if !resync.is_known(volume, group) && changed <= as_of.max(base) {
                            // What is here, or staged, is what it was then, and still is.
                            resync.stage.set_changed(volume, group, at);
                            resync.unsaved_bytes += 1;
                        }
                    }
                    resync.known = Some(Known {
                        volume,
                        group,
                        changed: changed.clone(),
                        next: 0,
                    });
                }
                true
            }
            Item::Blocks(blocks, data) => self.stage_blocks(item.conn, blocks, data.as_ref()),
        }
    }

    /// Whether all is there, and only its commit is awaited: nothing newer is staged then.
    fn resync_holds(&self) -> bool {
        self.resync.as_ref().is_some_and(|r| {
            self.resync_is_whole(r) && r.at.id.seq >= r.through && r.at.id >= self.log.tail().id
        })
    }

    fn resync_is_whole(&self, resync: &Resync) -> bool {
        resync.scan.0.0 >= resync.stage.volumes()
            && resync.known.is_none()
            && resync.asked_about.is_none()
            && resync.asks.is_empty()
    }

    fn stage_batch(&mut self, conn: ConnId, buffer: &M::Buffer) -> bool {
        let verified = batch::verify(buffer.bytes());
        let Ok(header) = verified else {
            let reason = DropReason::Protocol("it sent a damaged batch");
            self.give_up(conn, reason, false);
            return true;
        };
        let resync = self.resync.as_ref().expect("it is staged");
        let wanted = &self.metadata.wanted;
        let known = header.last() <= resync.at.id.seq;
        if known && resync.record == 0 {
            return true;
        }
        let follows =
            header.prev_id() == resync.at.id && header.prev_checksum == resync.at.checksum;
        let later = self.following.is_some_and(|f| header.epoch > f.epoch);
        let ours = wanted.uuid == header.uuid && wanted.history == header.history;
        if !follows || later || !ours || !self.records_make_sense(&header, buffer.bytes()) {
            let reason = DropReason::Protocol("what it sends for a resync does not follow");
            self.give_up(conn, reason, false);
            return true;
        }
        self.stage_records(&header, buffer)
    }

    /// Stages the records of a batch, in order; those that overlap wait for each other. `false` until all are there.
    fn stage_records(&mut self, header: &Header, buffer: &M::Buffer) -> bool {
        let base = self.stage_bases();
        let resync = self.resync.as_mut().expect("it is staged");
        let mut ops: Vec<(u64, M::Buffer)> = Vec::new();
        let records = usize::from(header.records);
        while resync.record < records {
            let record = batch::descriptors(buffer.bytes(), header)
                .nth(resync.record)
                .flatten()
                .expect("it was verified");
            let seq = Seq(header.first.0 + resync.record as u64);
            let (volume, start) = (record.volume, record.block);
            let end = start + u64::from(record.blocks);
            let about_blocks = matches!(record.kind, Kind::Write | Kind::Zero { .. });
            if about_blocks {
                let overlaps = |w: &(VolumeId, u64, u64)| w.0 == volume && w.1 < end && start < w.2;
                if resync.writing.iter().any(overlaps) || resync.writing.is_full() {
                    break;
                }
                let mut from = start;
                while from < end {
                    let group = from / GROUP_BLOCKS;
                    let to = ((group + 1) * GROUP_BLOCKS).min(end);
                    if resync.is_known(volume, group) {
                        let first = from - start;
                        resync
                            .stage
                            .write(volume, from, to - from, seq, |b| match record.kind {
                                Kind::Write => {
                                    let at = u32::try_from(b - start).expect("384 blocks");
                                    BlockSum::of_crc(batch::crc_of(
                                        buffer.bytes(),
                                        record.payload + at,
                                    ))
                                }
                                _ => BlockSum::ZERO,
                            });
                        resync.unsaved_bytes += (to - from) * BLOCK_BYTES_U64;
                        resync.through = resync.through.max(seq);
                        if record.kind == Kind::Write {
                            let at = record.payload + u32::try_from(first).expect("384 blocks");
                            let count = u32::try_from(to - from).expect("16 blocks");
                            let offset = (base[usize::from(volume.0)] + from) * BLOCK_BYTES_U64;
                            ops.push((offset, buffer.slice(at, count)));
                        }
                    }
                    from = to;
                }
                if record.kind == Kind::Write {
                    resync.writing.push((volume, start, end));
                }
            }
            resync.record += 1;
        }
        resync.left = u32::try_from(ops.len()).expect("few");
        let idle = ops.is_empty();
        for (offset, part) in ops {
            let mut parts = Parts::new();
            parts.push(part);
            let op = DiskOp::SideWrite {
                file: SideFile::Stage,
                offset,
                parts,
            };
            self.resync_disk(op);
        }
        let resync = self.resync.as_mut().expect("it is staged");
        if resync.record < records || !idle {
            return false;
        }
        resync.record = 0;
        resync.at = Tail {
            id: header.last_id(),
            position: resync.at.position,
            blocks: header.blocks(),
            checksum: header.checksum,
        };
        resync.through = resync.through.max(header.last());
        if resync
            .epochs
            .last()
            .is_none_or(|last| last.epoch < header.epoch)
        {
            if resync.epochs.is_full() {
                resync.epochs.remove(0);
            }
            resync.epochs.push(RecordId {
                epoch: header.epoch,
                seq: header.first,
            });
        }
        if let Some(config) = batch::config_of(buffer.bytes(), header) {
            resync.config = Some(ConfigAt {
                at: header.last_id(),
                config,
            });
        }
        self.say_staged();
        true
    }

    /// Tells the Primary how far this node is: there is room for more.
    fn say_staged(&mut self) {
        let Some(following) = self.following else {
            return;
        };
        let resync = self.resync.as_ref().expect("it is staged");
        let frame = Frame::Staged {
            epoch: following.epoch,
            seq: resync.at.id.seq,
            left_bytes: resync.left_bytes(),
            total_bytes: resync.total_bytes,
        };
        self.send(following.conn, frame);
    }

    /// Where each volume begins in the stage, in blocks.
    fn stage_bases(&self) -> ArrayVec<u64, VOLUMES_MAX> {
        let mut at = 0;
        self.config
            .volumes
            .iter()
            .map(|v| {
                let base = at;
                at += v.bytes / BLOCK_BYTES_U64;
                base
            })
            .collect()
    }

    /// Blocks that were asked for. `false` until they are in the stage.
    fn stage_blocks(&mut self, conn: ConnId, blocks: &Blocks, data: Option<&M::Buffer>) -> bool {
        let base = self.stage_bases();
        let now = self.now;
        let resync = self.resync.as_mut().expect("it is staged");
        let Some(index) = resync.asks.iter().position(|a| a.token == blocks.token) else {
            return true;
        };
        let ask = resync.asks[index];
        if resync.record > 0 {
            // They are in the stage now.
            resync.record = 0;
            resync.asks.remove(index);
            self.say_staged();
            return true;
        }
        if blocks.sums.is_empty() {
            // The Primary can not give them now: it may be mending them.
            resync.asks.remove(index);
            resync.scan = resync.scan.min((ask.volume, ask.block / GROUP_BLOCKS));
            resync.known = None;
            // An answer that is still to come would put the scan behind these groups.
            resync.asked_about = None;
            resync.retry_at = Some(now.after(RETRY_NS));
            return true;
        }
        let whole = blocks.sums.len() == ask.blocks as usize;
        let needs_data = blocks.sums.iter().any(|&s| s != BlockSum::ZERO);
        let has_data = data.is_some_and(|d| d.blocks() == ask.blocks);
        let sound = whole
            && (!needs_data || has_data)
            && blocks.sums.iter().enumerate().all(|(at, &sum)| {
                sum == BlockSum::ZERO
                    || data.is_some_and(|d| {
                        let bytes = &d.bytes()[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES];
                        sum != BlockSum::UNKNOWN
                            && sum.admits(ask.volume, ask.block + at as u64, bytes)
                    })
            });
        if !sound {
            let reason = DropReason::Protocol("it sent damaged blocks");
            self.give_up(conn, reason, false);
            return true;
        }
        let as_of = blocks.through.max(resync.at.id.seq);
        resync.through = resync.through.max(as_of);
        let (first, count) = (ask.block, u64::from(ask.blocks));
        for group in first / GROUP_BLOCKS..=(first + count - 1) / GROUP_BLOCKS {
            resync.stage.forget(ask.volume, group);
        }
        resync.stage.write(ask.volume, first, count, as_of, |b| {
            blocks.sums[usize::try_from(b - first).expect("256 blocks")]
        });
        resync.unsaved_bytes += count * BLOCK_BYTES_U64;
        let mut left = 0;
        let mut at = 0;
        let wanted = |at: usize| blocks.sums[at] != BlockSum::ZERO;
        let mut ops = ArrayVec::<(u64, u32, u32), ASKED_BLOCKS_MAX>::new();
        while at < blocks.sums.len() {
            if !wanted(at) {
                at += 1;
                continue;
            }
            let from = at;
            while at < blocks.sums.len() && wanted(at) {
                at += 1;
            }
            let offset = (base[usize::from(ask.volume.0)] + first + from as u64) * BLOCK_BYTES_U64;
            let range = |n: usize| u32::try_from(n).expect("256 blocks");
            ops.push((offset, range(from), range(at - from)));
            left += 1;
        }
        if left == 0 {
            resync.asks.remove(index);
            return true;
        }
        resync.left = left;
        // A mark that the item is under way.
        resync.record = 1;
        resync.writing.push((ask.volume, first, first + count));
        let data = data.expect("it was just seen").clone();
        for (offset, from, count) in ops {
            let mut parts = Parts::new();
            parts.push(data.slice(from, count));
            let op = DiskOp::SideWrite {
                file: SideFile::Stage,
                offset,
                parts,
            };
            self.resync_disk(op);
        }
        false
    }

    fn resync_disk(&mut self, op: DiskOp<M::Buffer>) {
        let serial = self.resync.as_ref().map_or(0, |r| r.serial);
        self.resync_flying += 1;
        self.disk(Pending::Resync { serial }, op);
    }

    /// An operation of a resync ended.
    pub(super) fn resync_done(&mut self, serial: u64, result: Result<(), DiskError>) {
        let now = self.now;
        self.resync_flying -= 1;
        if self.resync.as_ref().is_none_or(|r| r.serial != serial) {
            return;
        }
        if let Err(error) = result {
            self.resync_failed(error);
            return;
        }
        let Some(resync) = self.resync.as_mut() else {
            return;
        };
        match &mut resync.phase {
            Phase::Clear(left) => {
                *left -= 1;
                if *left == 0 {
                    self.resync_ask();
                }
            }
            Phase::Save(Save::Stage) => {
                resync.phase = Phase::Save(Save::Pages);
                self.resync_save();
            }
            Phase::Save(Save::Sums) => {
                let mark = resync.mark(false);
                self.metadata.wanted.resync = Some(mark);
                let version = self.metadata.changed();
                if let Some(resync) = self.resync.as_mut() {
                    resync.saved_at = now;
                    resync.phase = Phase::Save(Save::Mark(version));
                }
            }
            Phase::Last(left) => {
                *left -= 1;
                if *left == 0 {
                    let again = resync.again;
                    self.resync = None;
                    if let Some(conn) = again {
                        self.resync_wanted(conn);
                    }
                }
            }
            Phase::Flush(left) => {
                *left -= 1;
                if *left == 0 {
                    self.metadata.wanted.sums_written = self.sums.written();
                    self.metadata.wanted.resync = None;
                    let version = self.metadata.changed();
                    if let Some(resync) = self.resync.as_mut() {
                        resync.phase = Phase::End(version);
                    }
                }
            }
            Phase::Merge => {}
            _ => {
                resync.left = resync.left.saturating_sub(1);
                if resync.left == 0 {
                    resync.writing.clear();
                }
            }
        }
    }

    /// Without room the resync waits: what was not written is not known. Everything else ends this node.
    fn resync_failed(&mut self, error: DiskError) {
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        let now = self.now;
        let no_room = matches!(error, DiskError::Os(ENOSPC | EDQUOT));
        let staging = |r: &&mut Resync| r.left > 0;
        let Some(resync) = self.resync.as_mut().filter(staging).filter(|_| no_room) else {
            self.fail("what a resync brings can not be staged", Some(error));
            return;
        };
        for &(volume, start, end) in &resync.writing {
            for group in start / GROUP_BLOCKS..=(end - 1) / GROUP_BLOCKS {
                resync.stage.forget(volume, group);
            }
        }
        resync.left -= 1;
        if resync.left == 0 {
            resync.writing.clear();
        }
        if !matches!(resync.phase, Phase::Full(_)) {
            let left = resync.left_bytes();
            resync.phase = Phase::Full(now.after(FULL_NS));
            self.log_error(format!(
                "there is no room to stage the resync: free up to {left} bytes in the data directory; until then this node stays \
                 at its older point, and it tries again every few seconds"
            ));
        }
    }

    fn resync_run(&mut self) {
        let now = self.now;
        let resync = self.resync.as_mut().expect("it is pumped");
        let Some(conn) = resync.source else {
            resync.phase = Phase::Rest;
            return;
        };
        if resync.left > 0 || resync.record > 0 {
            return;
        }
        let save_ns = SAVE_LEASES * self.config.lease_ns();
        let due = resync.unsaved_bytes >= SAVE_BYTES
            || (resync.unsaved_bytes > 0 && now.since(resync.saved_at) >= save_ns);
        resync.committed = resync
            .committed
            .max(self.primary_committed.min(resync.at.id.seq));
        if due && self.applier.is_idle() {
            self.resync_save_begin();
            return;
        }
        if self.resync_holds() {
            let resync = self.resync.as_ref().expect("it is pumped");
            let committed = self.primary_committed >= resync.at.id.seq;
            if committed && self.applier.is_idle() {
                self.resync_save_begin();
            }
            return;
        }
        let resync = self.resync.as_mut().expect("it is pumped");
        if resync.retry_at.is_some_and(|at| now < at) {
            return;
        }
        resync.retry_at = None;
        self.resync_pull(conn);
    }

    /// Asks what changed, and for what did.
    fn resync_pull(&mut self, conn: ConnId) {
        loop {
            let resync = self.resync.as_mut().expect("it is pumped");
            let Some(known) = &resync.known else {
                break;
            };
            let (volume, group) = (known.volume, known.group + known.next as u64);
            let end = known.group + known.changed.groups.len() as u64;
            if group >= end {
                resync.known = None;
                resync.scan = (volume, group);
                continue;
            }
            let wanted = |g: u64| g < end && !resync.is_known(volume, g);
            let most = ASKED_BLOCKS_MAX as u64 / GROUP_BLOCKS;
            // This one has to come, and those after it that have to as well.
            let count = (0..most).take_while(|n| wanted(group + n)).count();
            if count > 0 && resync.asks.is_full() {
                return;
            }
            if let Some(known) = &mut resync.known {
                known.next += count.max(1);
            }
            if count == 0 {
                continue;
            }
            let count = count as u64;
            let block = group * GROUP_BLOCKS;
            let end = (block + count * GROUP_BLOCKS).min(resync.stage.blocks(volume));
            let blocks = u32::try_from(end - block).expect("256 blocks");
            let token = self.next_token();
            let resync = self.resync.as_mut().expect("it is pumped");
            resync.asks.push(Ask {
                token,
                volume,
                block,
                blocks,
            });
            self.send(
                conn,
                Frame::BlocksAsk {
                    token,
                    volume,
                    block,
                    blocks,
                },
            );
        }
        let resync = self.resync.as_mut().expect("it is pumped");
        if resync.asked_about.is_some() {
            return;
        }
        // The next group that is neither known nor on its way.
        let (mut volume, mut group) = resync.scan;
        while volume.0 < resync.stage.volumes() {
            if group >= resync.stage.groups(volume) {
                (volume, group) = (VolumeId(volume.0 + 1), 0);
                continue;
            }
            let coming = resync.asks.iter().any(|a| {
                let end = (a.block + u64::from(a.blocks)).div_ceil(GROUP_BLOCKS);
                a.volume == volume && (a.block / GROUP_BLOCKS..end).contains(&group)
            });
            if !coming && !resync.is_known(volume, group) {
                break;
            }
            group += 1;
        }
        resync.scan = (volume, group);
        if volume.0 < resync.stage.volumes() {
            let token = self.next_token();
            let resync = self.resync.as_mut().expect("it is pumped");
            resync.asked_about = Some((token, volume, group));
            self.send(
                conn,
                Frame::ChangedAsk {
                    token,
                    volume,
                    group,
                },
            );
        }
    }

    fn resync_save_begin(&mut self) {
        let resync = self.resync.as_mut().expect("it is pumped");
        resync.unsaved_bytes = 0;
        resync.phase = Phase::Save(Save::Stage);
        if planted!(StageNotFlushed) {
            resync.phase = Phase::Save(Save::Pages);
            return;
        }
        let file = SideFile::Stage;
        self.resync_disk(DiskOp::SideFlush { file });
    }

    fn resync_save(&mut self) {
        let resync = self.resync.as_ref().expect("it is pumped");
        match resync.phase {
            Phase::Save(Save::Pages) => {
                let written =
                    self.write_pages(|r| &mut r.resync.as_mut().expect("it is being saved").stage);
                if written {
                    self.resync.as_mut().expect("it is being saved").phase =
                        Phase::Save(Save::Sums);
                    let file = SideFile::Sums;
                    self.resync_disk(DiskOp::SideFlush { file });
                }
            }
            Phase::Save(Save::Mark(version)) if self.metadata.is_durable(version) => {
                let whole = self.resync_holds() && self.primary_committed >= resync.at.id.seq;
                let goes_on = resync.source.is_some() && resync.source == resync.stream;
                if whole && goes_on {
                    self.resync_mark();
                    return;
                }
                let resync = self.resync.as_mut().expect("it is pumped");
                resync.phase = match resync.source {
                    Some(_) if goes_on => Phase::Run,
                    // Another Primary, or another connection, came meanwhile.
                    Some(_) => Phase::Settle,
                    None => Phase::Rest,
                };
            }
            _ => {}
        }
    }

    /// All is staged, durable and committed: it becomes the image.
    fn resync_mark(&mut self) {
        let busy = !self.writer.is_idle() || self.log.durable_number() != self.log.next_number();
        if busy || self.repairs.write() {
            return;
        }
        let position = self.log.tail().position;
        let resync = self.resync.as_mut().expect("it is pumped");
        let Some(config) = resync.config.clone() else {
            resync.phase = Phase::Settle;
            return;
        };
        resync.at.position = position;
        let at = resync.at;
        self.restart = Some(Restart {
            floor: AppliedFloor {
                id: at.id,
                position,
                blocks: at.blocks,
                checksum: at.checksum,
            },
            config,
            epochs: resync.epochs.clone(),
        });
        self.metadata.wanted.resync = Some(resync.mark(true));
        let version = self.metadata.changed();
        if let Some(resync) = self.resync.as_mut() {
            resync.phase = Phase::Mark(version);
        }
    }

    /// The superblock says that what is staged is the image: so does the log now.
    fn resync_switch(&mut self) {
        let Some(restart) = self.restart.take() else {
            return;
        };
        let resync = self.resync.as_mut().expect("it is pumped");
        resync.phase = Phase::Merge;
        resync.cursor = (VolumeId(0), 0);
        resync.left = 0;
        let (at, source) = (resync.at, resync.source);
        self.log.restart(at, restart.epochs, restart.config);
        self.writer.cut(self.log.next_number());
        self.evict_from = self.log.next_number();
        self.committed = self.committed.max(at.id.seq);
        self.repairs.forget();
        self.told_outdated = false;
        if let Some(following) = self.following
            && Some(following.conn) == source
        {
            self.matched = at.id.seq;
        }
        self.log_info(format!(
            "resync: this node has everything through record {}; it is laid over the stores",
            at.id
        ));
    }

    /// Lays the next blocks over the stores, piece by piece.
    fn resync_merge(&mut self) {
        let base = self.stage_bases();
        loop {
            let resync = self.resync.as_mut().expect("it is pumped");
            if resync.left > 0 {
                return;
            }
            let (volume, block) = resync.cursor;
            if volume.0 >= resync.stage.volumes() {
                self.resync_flush();
                return;
            }
            let end = resync.stage.blocks(volume);
            // The next run of blocks that are all zeroes, or none.
            let mut first = block;
            while first < end && resync.stage.sum(volume, first) == BlockSum::UNKNOWN {
                first += 1;
            }
            if first == end {
                resync.cursor = (VolumeId(volume.0 + 1), 0);
                continue;
            }
            let zero = resync.stage.sum(volume, first) == BlockSum::ZERO;
            let mut last = first;
            let most = if (volume, first) < resync.singly_before {
                1
            } else {
                MERGE_BLOCKS_MAX
            };
            while last < end
                && last - first < most
                && resync.stage.sum(volume, last) != BlockSum::UNKNOWN
                && (resync.stage.sum(volume, last) == BlockSum::ZERO) == zero
            {
                last += 1;
            }
            let count = u32::try_from(last - first).expect("256 blocks");
            let stage_offset = (base[usize::from(volume.0)] + first) * BLOCK_BYTES_U64;
            if zero {
                resync.cursor = (volume, last);
                resync.left = 1;
                let op = DiskOp::StoreZero {
                    volume,
                    offset: first * BLOCK_BYTES_U64,
                    length: u64::from(count) * BLOCK_BYTES_U64,
                    may_deallocate: true,
                };
                self.disk(Pending::MergeWrite, op);
            } else {
                let Some(buffer) = self.memory.alloc(Purpose::Apply, count) else {
                    return;
                };
                let resync = self.resync.as_mut().expect("it is pumped");
                resync.cursor = (volume, last);
                resync.left = 1;
                let op = DiskOp::SideRead {
                    file: SideFile::Stage,
                    offset: stage_offset,
                    buffer: buffer.clone(),
                };
                self.merge = Some((volume, first, buffer));
                self.disk(Pending::MergeRead, op);
            }
            self.note_merged(volume, first, last);
        }
    }

    /// What the stores hold after the merge.
    fn note_merged(&mut self, volume: VolumeId, first: u64, last: u64) {
        let resync = self.resync.as_ref().expect("it is pumped");
        for block in first..last {
            let sum = resync.stage.sum(volume, block);
            let seq = resync.stage.changed(volume, block / GROUP_BLOCKS);
            self.sums.write(volume, block, 1, seq, |_| sum);
        }
    }

    pub(super) fn merge_read(&mut self, result: Result<(), DiskError>) {
        let Some((volume, first, buffer)) = self.merge.take() else {
            return;
        };
        if result.is_err() {
            // What can not be read stays out, like what rotted.
            let Some(resync) = self.resync.as_mut() else {
                return;
            };
            resync.left = 0;
            if buffer.blocks() > 1 {
                resync.cursor = (volume, first);
                resync.singly_before = (volume, first + u64::from(buffer.blocks()));
            }
            return;
        }
        let mut from = 0;
        let blocks = buffer.blocks();
        let mut left = 0;
        let sound = |n: u32| {
            let at = n as usize * BLOCK_BYTES;
            let bytes = &buffer.bytes()[at..at + BLOCK_BYTES];
            let block = first + u64::from(n);
            self.sums.sum(volume, block).admits(volume, block, bytes)
        };
        let mut ops = ArrayVec::<(u32, u32), ASKED_BLOCKS_MAX>::new();
        while from < blocks {
            // A block that rotted in the stage stays out; its sum says what belongs there, and a peer has it.
            if !sound(from) {
                from += 1;
                continue;
            }
            let mut to = from;
            while to < blocks && sound(to) {
                to += 1;
            }
            ops.push((from, to - from));
            from = to;
        }
        for (from, count) in ops {
            let mut parts = Parts::new();
            parts.push(buffer.slice(from, count));
            let op = DiskOp::StoreWrite {
                volume,
                offset: (first + u64::from(from)) * BLOCK_BYTES_U64,
                parts,
            };
            self.disk(Pending::MergeWrite, op);
            left += 1;
        }
        if let Some(resync) = self.resync.as_mut() {
            resync.left = left;
        }
    }

    pub(super) fn merge_written(&mut self, result: Result<(), DiskError>) {
        if let Err(error) = result {
            self.fail("a store can not be written", Some(error));
            return;
        }
        if let Some(resync) = self.resync.as_mut() {
            resync.left -= 1;
        }
    }

    fn resync_flush(&mut self) {
        if !self.write_pages(|r| &mut r.sums) {
            return;
        }
        let volumes = u16::try_from(self.config.volumes.len()).expect("at most 16 volumes");
        for volume in (0..volumes).map(VolumeId) {
            self.resync_disk(DiskOp::StoreFlush { volume });
        }
        let file = SideFile::Sums;
        self.resync_disk(DiskOp::SideFlush { file });
        self.applier.generation += 1;
        if let Some(resync) = self.resync.as_mut() {
            resync.phase = Phase::Flush(u32::from(volumes) + 1);
        }
    }

    pub(super) fn got_blocks(
        &mut self,
        conn: ConnId,
        blocks: Box<Blocks>,
        data: Option<M::Buffer>,
    ) {
        if self.got_repair(conn, &blocks, data.as_ref()) {
            return;
        }
        self.queue_for_stage(conn, Item::Blocks(blocks, data));
    }

    pub(super) fn got_changed(&mut self, conn: ConnId, changed: Box<Changed>) {
        debug_assert!(changed.groups.len() <= ASKED_GROUPS_MAX);
        self.queue_for_stage(conn, Item::Changed(changed));
    }

    /// Answers have their place among the records.
    fn queue_for_stage(&mut self, conn: ConnId, item: Item<M::Buffer>) {
        let epoch = match self.following {
            Some(f) if f.conn == conn && self.stages(conn) => f.epoch,
            _ => return,
        };
        self.incoming.push_back(Incoming { conn, epoch, item });
    }
}
