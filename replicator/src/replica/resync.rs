//! Getting what is past a Primary's journal (protocol C2), as the one who lacks it.
//!
//! This node pulls. It asks which groups changed after what its stores hold, and for their blocks; the Primary answers in its
//! place among the records that it sends meanwhile. Both go to a file beside the stores, the *stage*, with a table of sums of
//! its own: the stores stay the consistent point in time that they are. With the question for blocks go the sums of what the
//! stores have, and what is the same there is not given: of such a block nothing is staged. A group is *known* once it was asked about and, if it
//! changed, has come; from then on records about it are staged, those about others are not: they come with their group.
//!
//! Every now and then what is staged is made durable, with the record that it goes through. So a resync goes on where it was
//! after a restart, on another connection, and with another Primary: what of it that one's log does not have is thrown away.
//!
//! When all groups are known, and all of that is committed, one write of the superblock makes what is staged the image: the log
//! begins anew after that record. Then it is laid over the stores, which can be begun again any number of times and needs nobody.

mod merging;
mod ops;
mod progress;
mod pulling;
mod staging;

use arrayvec::ArrayVec;

pub(super) use progress::Resync;
use progress::{Ask, Known, Open, Phase, Save};

use super::metadata::MetaVersion;
use super::{Incoming, Item, Pending, Replica, WithoutRoom};
use crate::io::*;
use crate::journal::batch::{self, Header, Kind};
use crate::journal::log::{TableAt, Tail};
use crate::memory::{Buffer, Memory, Purpose};
use crate::meta::config::ConfigAt;
use crate::meta::superblock::{self, AppliedFloor};
use crate::meta::volumes::Volumes;
use crate::replica::volumes::HasRoom;
use crate::store::sums::{self, BlockSum, GROUP_BLOCKS, SumTable, Table};
use crate::types::*;
use crate::view::SyncView;
use crate::wire::frame::{
    ASKED_BLOCKS_MAX, ASKED_GROUPS_MAX, Changed, Compare, Compared, EpochHistory, Frame, ResyncFrom,
};

/// Questions for blocks that are not answered yet, at most.
pub(super) const ASKS_MAX: usize = 4;

/// What is staged is made durable after so many bytes of it,
const SAVE_BYTES: u64 = 64 << 20;

/// or after so many leases, if there is any.
const SAVE_LEASES: u64 = 2;

/// Writes of what it brings that are under way, at most.
const WRITES_MAX: u32 = 32;

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
    pub(super) volumes: TableAt,
    pub(super) sums_written: u64,
}

/// What a write of something that was brought is to do.
enum Brought<B> {
    Data(B),
    Zeroes(u64),
}

impl<M: Memory> Replica<M> {
    /// Takes up what was found at start.
    pub(super) fn resync_of(
        mark: Option<superblock::Resync>,
        staged: Option<SumTable>,
        (base, position): (Seq, u64),
        now: Time,
        volumes: TableAt,
    ) -> Option<Resync> {
        let (mark, stage) = (mark?, staged?);
        let serial = 0;
        let through = stage.newest().max(mark.staged.seq);
        Some(Resync {
            serial,
            phase: if mark.merging {
                Phase::Stores(0)
            } else {
                Phase::Rest
            },
            in_place: mark.in_place,
            no_room: false,
            other_volumes: false,
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
            volumes,
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
            base,
        })
    }

    /// Whether the image is changing: from the write of the superblock that says so until the stores have it. Until then this
    /// node grants nothing and is no candidate: its log is about to begin anew, or its stores are not what the log says.
    pub(super) fn merging(&self) -> bool {
        self.resync.as_ref().is_some_and(|r| {
            matches!(
                r.phase,
                Phase::Mark(_) | Phase::Stores(_) | Phase::Merge | Phase::Flush(_) | Phase::End(_)
            )
        })
    }

    /// Whether it is past giving up: what is left of it comes to an end by itself.
    pub(super) fn resync_is_ending(&self) -> bool {
        let last = |r: &Resync| matches!(r.phase, Phase::Last(_));
        self.merging() || self.resync.as_ref().is_some_and(last)
    }

    /// Whether the applier has to keep away from stores and sums.
    pub(super) fn resync_has_stores(&self) -> bool {
        let saves = |r: &Resync| matches!(r.phase, Phase::Save(_)) || r.in_place;
        self.resync_is_ending() || self.resync.as_ref().is_some_and(saves)
    }

    /// Whether nothing of it is under way.
    pub(super) fn resync_rests(&self) -> bool {
        let rests = |r: &Resync| matches!(r.phase, Phase::Rest | Phase::Full(_)) && r.left == 0;
        self.resync_flying == 0 && self.resync.as_ref().is_none_or(rests)
    }

    /// Whether the stores are no image: a resync goes straight to them, or began with a seed (protocol C3). This node's log is
    /// whole, so it promises like any other; it is no candidate, and takes no record but by its resync.
    pub(super) fn inconsistent(&self) -> bool {
        self.resync.as_ref().is_some_and(|r| r.in_place)
    }

    /// How far it is.
    pub(super) fn resync_view(&self) -> Option<SyncView> {
        let resync = self.resync.as_ref()?;
        Some(SyncView {
            left_bytes: resync.left_bytes(),
            total_bytes: resync.total_bytes,
            full: matches!(resync.phase, Phase::Full(_)),
            in_place: resync.in_place,
        })
    }

    /// What a resync has staged is given up, unless it is the image already.
    pub(super) fn resync_abandon(&mut self) {
        if self.resync.is_none() || self.resync_is_ending() || self.inconsistent() {
            return;
        }
        self.resync = None;
        // It may have been about volumes that nobody brings any more.
        self.room_complaint = None;
        if self.metadata.wanted.resync.take().is_some() {
            // Only a superblock that does not speak of it any more lets its room go.
            self.stage_is_waste = Some(self.metadata.changed());
        }
    }

    /// Gives back the room of a resync that was given up.
    fn pump_waste(&mut self) {
        if let Some(version) = self.stage_is_waste
            && self.metadata.is_durable(version)
            && self.resync_flying == 0
        {
            self.stage_is_waste = None;
            self.discard_stage();
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
            // It is emptied at the beginning of the new one.
            self.stage_is_waste = None;
            let mark = superblock::Resync {
                staged: RecordId::NONE,
                blocks: 0,
                checksum: 0,
                committed: Seq(0),
                since: Seq(0),
                written: 0,
                merging: false,
                in_place: false,
                sizes: [0; VOLUMES_MAX],
                moved: 0,
            };
            let volumes = TableAt {
                at: self.log.applied_volumes_at(),
                volumes: self.volumes().clone(),
            };
            let stage = SumTable::new(Table::Staged, volumes.volumes.sizes());
            let base = self.log.applied_id().seq;
            self.resync = Self::resync_of(Some(mark), Some(stage), (base, 0), self.now, volumes);
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
        if matches!(
            resync.phase,
            Phase::Rest | Phase::Room | Phase::Ask | Phase::Run
        ) {
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
                Phase::Settle | Phase::Room | Phase::Ask | Phase::Run | Phase::Full(_)
            ) {
                resync.phase = Phase::Rest;
            }
        }
        if resync.again == Some(conn) {
            resync.again = None;
        }
    }

    /// A new reign begins, maybe on a connection on which an earlier one of the same node gave a resync: what it sends is for the log,
    /// unless it says otherwise. If it has said so already, no stream has begun yet.
    pub(super) fn resync_of_former_reign(&mut self, conn: ConnId) {
        if self.resync.as_ref().is_some_and(|r| r.stream == Some(conn)) {
            self.resync_loses(conn);
        }
    }

    /// Whether what arrives on this connection is to be staged.
    pub(super) fn stages(&self, conn: ConnId) -> bool {
        self.resync.as_ref().is_some_and(|r| {
            r.source == Some(conn)
                && !matches!(
                    r.phase,
                    Phase::Stores(_)
                        | Phase::Merge
                        | Phase::Flush(_)
                        | Phase::End(_)
                        | Phase::Last(_)
                )
        })
    }

    /// The Primary took this node for one that is past its journal by an old report, and has come to know better: it sends what
    /// is in this node's log or follows it, and heeds no question about a resync.
    pub(super) fn needs_no_resync(&self, conn: ConnId, batch: &M::Buffer) -> bool {
        let begins = |r: &Resync| {
            let unanswered = matches!(
                r.phase,
                Phase::Rest
                    | Phase::Settle
                    | Phase::Room
                    | Phase::Clear(_)
                    | Phase::Ask
                    | Phase::Full(_)
            );
            unanswered && !r.in_place && r.source == Some(conn)
        };
        let tail = self.log.tail();
        let follows = |h: &Header| {
            let next = h.prev_id() == tail.id && h.prev_checksum == tail.checksum;
            next || h.last() <= tail.id.seq && self.log.contains(h.last_id())
        };
        self.resync.as_ref().is_some_and(begins)
            && batch::read_header(batch.bytes()).is_ok_and(|h| follows(&h))
    }

    pub(super) fn pump_resync(&mut self) {
        self.pump_waste();
        let (now, renewing) = (self.now, self.is_renewing());
        let Some(resync) = self.resync.as_mut() else {
            return;
        };
        match resync.phase {
            Phase::Rest
            | Phase::Ask
            | Phase::Clear(_)
            | Phase::Stores(_)
            | Phase::Flush(_)
            | Phase::Last(_) => {}
            Phase::Full(until) => {
                if now >= until && !renewing {
                    resync.phase = Phase::Settle;
                    resync.stream = None;
                    self.resync_settle();
                }
            }
            Phase::Settle => self.resync_settle(),
            Phase::Room => {
                if self.resync_flying == 0 && self.resync_has_room() {
                    self.resync_clear();
                }
            }
            Phase::Run => self.resync_run(),
            Phase::Spoil(version) => {
                if self.metadata.is_durable(version) {
                    self.resync_clear();
                    self.report_to_all();
                }
            }
            Phase::Open(Open::Pages) => self.resync_open(),
            Phase::Open(Open::Sums) => {}
            Phase::Save(_) => self.resync_save(),
            Phase::Mark(version) => {
                if self.metadata.is_durable(version) {
                    self.resync_switch();
                }
            }
            Phase::Merge => self.resync_merge(),
            Phase::End(version) => {
                if self.metadata.is_durable(version) {
                    self.log_info("the resync is complete: the stores have it".into());
                    let left = self.discard_stage();
                    if let Some(resync) = self.resync.as_mut() {
                        resync.in_place = false;
                        resync.phase = Phase::Last(left);
                    }
                }
            }
        }
    }

    pub(super) fn resync_timeout(&self) -> Option<Time> {
        let resync = self.resync.as_ref()?;
        match resync.phase {
            // Once that has passed, what is waited for is an event.
            Phase::Run => resync.retry_at.filter(|at| *at > self.now),
            Phase::Full(until) => Some(until).filter(|_| !self.is_renewing()),
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
        let busy = !self.applier.is_idle() || !self.pages_are_idle() || self.repairs.write();
        if !self.all_applied() || busy {
            self.applier.urgent = true;
            return;
        }
        let (conn, nothing) = (resync.source, resync.at.id == RecordId::NONE);
        let applied = self.log.applied_id().seq;
        if !nothing && !resync.in_place && resync.base != applied {
            self.log_info("the stores have gone on since the resync began: it begins anew".into());
            self.resync_abandon();
            if let Some(conn) = conn {
                self.resync_wanted(conn);
            }
            return;
        }
        let in_place = self.config.without_room == WithoutRoom::InPlace;
        if resync.no_room && in_place && !resync.in_place && self.candidacy.is_none() {
            self.resync_spoil();
            return;
        }
        let in_place = resync.in_place;
        if let Some(resync) = self.resync.as_mut().filter(|_| nothing) {
            resync.base = applied;
        }
        if nothing && in_place {
            self.log_warn(
                "this node is Inconsistent: what its stores lack is brought straight to them, and until it is whole they are no \
                 image"
                    .into(),
            );
            self.resync_clear();
        } else if nothing {
            self.log_warn(
                "this node is past the Primary's journal: what changed since is staged beside the stores, which stay as they are \
                 until it is whole"
                    .into(),
            );
            self.resync_clear();
        } else {
            self.resync_ask();
        }
    }

    fn resync_clear(&mut self) {
        let left = self.discard_stage();
        if let Some(resync) = self.resync.as_mut() {
            resync.phase = Phase::Clear(left);
        }
    }

    /// There is no room to stage it, and the policy is not to wait: the stores are no image from here on. What is staged is waste.
    fn resync_spoil(&mut self) {
        self.log_error(
            "there is no room to stage the resync: it goes straight to the stores. This node is Inconsistent, and can not be \
             promoted, until it is whole"
                .into(),
        );
        let volumes = TableAt {
            at: self.log.applied_volumes_at(),
            volumes: self.volumes().clone(),
        };
        let stage = SumTable::new(Table::Staged, volumes.volumes.sizes());
        let mark = superblock::Resync::INCONSISTENT;
        self.metadata.wanted.resync = Some(mark);
        let version = self.metadata.changed();
        let serial = self.next_token();
        let base = self.log.applied_id().seq;
        let made = Self::resync_of(Some(mark), Some(stage), (base, 0), self.now, volumes);
        let before = std::mem::replace(&mut self.resync, made);
        if let (Some(resync), Some(before)) = (self.resync.as_mut(), before) {
            resync.serial = serial;
            (resync.source, resync.total_bytes) = (before.source, before.total_bytes);
            resync.phase = Phase::Spoil(version);
        }
    }

    /// The volumes change while something is brought to the stores: it begins anew, with what is there.
    pub(super) fn resync_again(&mut self, conn: ConnId) {
        let volumes = TableAt {
            at: self.log.applied_volumes_at(),
            volumes: self.volumes().clone(),
        };
        if let Some(resync) = self.resync.as_mut().filter(|r| r.in_place) {
            resync.begin_anew(volumes);
            resync.other_volumes = false;
            resync.phase = Phase::Run;
            self.metadata.wanted.resync = Some(superblock::Resync::INCONSISTENT);
            self.metadata.changed();
        } else {
            self.resync_abandon();
        }
        self.resync_wanted(conn);
    }

    /// Says to everybody what this node is now.
    fn report_to_all(&mut self) {
        for index in 0..self.peers.len() {
            let (node, conn) = (self.peers[index].node, self.peers[index].conn);
            if let Some(conn) = conn {
                let report = self.report_to(node, 0, Epoch(0));
                self.send(conn, Frame::Report(Box::new(report)));
            }
        }
    }

    /// Whether there is room for the volumes that are staged: for the stage, and for the stores that they are to go to.
    fn resync_has_room(&mut self) -> bool {
        let Some(resync) = self.resync.as_ref() else {
            return false;
        };
        let volumes = resync.volumes.volumes.clone();
        match self.has_room_for(&volumes) {
            HasRoom::Yes => self.room_is_idle(),
            HasRoom::NotYet => false,
            HasRoom::No(error) => {
                self.complain_of_room(&volumes, error);
                false
            }
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

    fn resync_run(&mut self) {
        let now = self.now;
        let resync = self.resync.as_mut().expect("it is pumped");
        let Some(conn) = resync.source else {
            resync.phase = Phase::Rest;
            return;
        };
        if resync.record > 0 {
            return;
        }
        let (left, due) = (resync.left, resync.save_is_due(self.config.lease_ns(), now));
        resync.committed = resync
            .committed
            .max(self.primary_committed.min(resync.at.id.seq));
        if due && self.applier.is_idle() {
            if left == 0 {
                self.resync_save_begin();
            }
            return;
        }
        if self.resync_holds() {
            let resync = self.resync.as_ref().expect("it is pumped");
            let committed = self.primary_committed >= resync.at.id.seq;
            // Nothing becomes the image of what another one than the Primary gave.
            let follows = self.following.is_some_and(|f| f.conn == conn);
            if committed && follows && left == 0 && self.applier.is_idle() {
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
}
