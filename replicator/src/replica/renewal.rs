//! Giving this node's data up, and getting it anew (`invalidate`; protocol C4): the node becomes a new incarnation that holds
//! nothing. What its stores have is a seed: its first resync compares.
//!
//! Its copies of records may be what makes them committed. So the Primary is asked first: it takes this life of the node out of the
//! membership, and only when that is committed (the others have everything then) does this node forget. The Primary admits the
//! new life by itself. Where no Primary is heard an operator can insist; then it is as if the disks had been lost, and an
//! operator has to admit the new life. A node that other nodes left behind in another history has nobody to ask.
//!
//! Forgetting is one write of the superblock. Before it the node speaks to nobody, so it asserts nothing as either life. And what the
//! table of sums says of a block may be newer than the store, if a power cut came while it was applied: the log would mend that, and is
//! forgotten. So nothing is taken for known of what the stores lack, durably before.

use super::applier::extent_of;
use super::metadata::MetaVersion;
use super::peers::Peer;
use super::{Pending, Replica};
use crate::io::*;
use crate::journal::log::TableAt;
use crate::memory::Memory;
use crate::meta::superblock;
use crate::store::sums::{BlockSum, SumTable, Table};
use crate::types::*;
use crate::wire::frame::Frame;

/// Why a Primary does not let a node go, in a frame; else the number of an [`AdminError`].
const LET_GO: u32 = 0;
const COSTS_THE_QUORUM: u32 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The Primary was asked to let this life of the node go.
    Asked(ConnId),
    /// What is under way to the disks ends first.
    Quiet,
    /// The table of sums no longer speaks of blocks that records in the log are about, and is written.
    Doubting,
    /// It is flushed.
    Flushing,
    Doubted,
    /// The superblock is written.
    Writing(MetaVersion),
}

/// An operator gives this node's data up.
#[derive(Debug)]
pub(super) struct Renewal {
    id: AdminId,
    deadline: Time,
    token: u64,
    next: Incarnation,
    phase: Phase,
}

impl<M: Memory> Replica<M> {
    /// An operator gives this node's data up.
    pub(super) fn invalidate(&mut self, id: AdminId, deadline: Time, insists: bool) {
        let given_up_already =
            self.holds_nothing() && self.inconsistent() && self.renewal.is_none();
        let refused = self.invalidate_refused(insists);
        if given_up_already || refused.is_some() {
            let result = if given_up_already {
                Ok(())
            } else {
                refused.map_or(Ok(()), Err)
            };
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        let (token, next) = (self.next_token(), Incarnation(self.random_wide()));
        // It may be about to count without having heard of that: only the Primary knows.
        let asks = self.following.filter(|_| !self.released).map(|f| f.conn);
        let asks = asks.filter(|_| self.counts() || !insists);
        self.renewal = Some(Renewal {
            id,
            deadline,
            token,
            next,
            phase: asks.map_or(Phase::Quiet, Phase::Asked),
        });
        match asks {
            Some(conn) => {
                let incarnation = next;
                self.send(conn, Frame::Renew { token, incarnation });
            }
            None => self.falls_silent(),
        }
    }

    /// Whether this node has nothing of the resource, and is not to get it either.
    fn holds_nothing(&self) -> bool {
        self.fresh() && self.metadata.wanted.history == HistoryId(0)
    }

    /// Whether this life of the node has a part in the newest config.
    fn counts(&self) -> bool {
        let config = self.log.config().map(|c| &c.config);
        let own = self.metadata.wanted.incarnation;
        config.is_some_and(|c| c.standing(own).is_some_and(|s| s.counts()))
    }

    fn invalidate_refused(&self, insists: bool) -> Option<AdminError> {
        let failed = |text: &str| Some(AdminError::Failed(text.into()));
        if self.is_witness() {
            return failed("a witness has no data to give up");
        }
        if self.drain.is_some() {
            return failed("this node is stopping");
        }
        if self.leader.is_some() {
            return failed(
                "this node is Primary, its data is the resource's: demote it and promote another one first",
            );
        }
        if self.candidacy.is_some() {
            return failed("this node is being promoted: wait for the end of that");
        }
        if self.is_fencing() {
            return failed("this node is fencing another one: wait for the end of that");
        }
        if self.renewal.is_some() {
            return failed("this node's data is being given up already");
        }
        if self.resync_awaits_stores() && self.lacks_room() {
            return Some(self.why_stores_are_missing());
        }
        if self.holds_nothing() {
            return failed(
                "this node holds nothing of the resource: replctl replace on the Primary lets it join",
            );
        }
        let followed = self.following.is_some() && !self.released;
        let left_behind = self.peers.iter().any(|p| p.foreign.is_some());
        if followed || left_behind || insists {
            return None;
        }
        Some(AdminError::NoData(
            "no Primary is connected, so nobody is known to have this data: promote a node first, or insist with --force".into(),
        ))
    }

    /// Whether this node speaks to nobody, since what it is is about to change.
    pub(super) fn is_renewing(&self) -> bool {
        let quiet = |r: &Renewal| !matches!(r.phase, Phase::Asked(_));
        self.renewal.as_ref().is_some_and(quiet)
    }

    fn falls_silent(&mut self) {
        if let Some(renewal) = self.renewal.as_mut() {
            renewal.phase = Phase::Quiet;
        }
        for index in 0..self.peers.len() {
            if let Some(conn) = self.peers[index].conn {
                self.give_up(conn, DropReason::Renewed, false);
            }
        }
        self.following = None;
        self.matched = Seq(0);
        self.incoming.clear();
        self.owed.clear();
    }

    fn end_renewal(&mut self, result: AdminResult) {
        if let Some(renewal) = self.renewal.take() {
            let id = renewal.id;
            self.out.push_back(Output::AdminReply { id, result });
        }
    }

    /// The Primary's answer.
    pub(super) fn got_renewed(&mut self, conn: ConnId, token: u64, refused: u32) {
        let asked = |r: &&Renewal| r.phase == Phase::Asked(conn) && r.token == token;
        if self.renewal.as_ref().filter(asked).is_none() {
            return;
        }
        match refused {
            LET_GO => self.falls_silent(),
            COSTS_THE_QUORUM => self.end_renewal(Err(AdminError::NoQuorum(
                "the others need this node's copy: without it there would be no majority that has everything".into(),
            ))),
            _ => self.end_renewal(Err(AdminError::Failed(
                "the Primary could not take this node out of the resource: see its log, and try again".into(),
            ))),
        }
    }

    /// The connection on which the Primary was asked is gone.
    pub(super) fn renewal_loses(&mut self, conn: ConnId) {
        if self
            .renewal
            .as_ref()
            .is_some_and(|r| r.phase == Phase::Asked(conn))
        {
            self.end_renewal(Err(AdminError::Failed(
                "the connection to the Primary ended meanwhile: this node has its data still; try again".into(),
            )));
        }
    }

    pub(super) fn renewal_timeout(&self) -> Option<Time> {
        let asked = |r: &&Renewal| matches!(r.phase, Phase::Asked(_));
        self.renewal.as_ref().filter(asked).map(|r| r.deadline)
    }

    pub(super) fn pump_renewal(&mut self) {
        let Some(renewal) = &self.renewal else { return };
        match renewal.phase {
            Phase::Asked(_) => {
                if self.now >= renewal.deadline {
                    self.end_renewal(Err(AdminError::Failed(
                        "the Primary has not let this node go in time: this node has its data still; try again".into(),
                    )));
                }
            }
            Phase::Quiet if self.is_at_rest() => {
                if self.doubt_unapplied() {
                    self.renewal_goes_on(Phase::Doubting);
                    self.write_doubts();
                } else {
                    self.forget_everything();
                }
            }
            Phase::Doubting => self.write_doubts(),
            Phase::Doubted if self.is_at_rest() => self.forget_everything(),
            Phase::Quiet | Phase::Flushing | Phase::Doubted => {}
            Phase::Writing(version) => {
                if self.metadata.is_durable(version) {
                    self.log_warn(
                        "this node has given its data up: it is a new incarnation, and what its stores hold is a seed for its resync"
                            .into(),
                    );
                    self.end_renewal(Ok(()));
                }
            }
        }
    }

    /// Whether nothing is under way to the disks.
    fn is_at_rest(&self) -> bool {
        let logs = self.writer.is_idle() && self.log.durable_number() == self.log.next_number();
        let stores = self.applier.is_idle() && self.pages_are_idle() && !self.repairs.write();
        logs && stores && self.resync_rests() && self.metadata.is_settled()
    }

    /// Nothing is known any more of blocks that the log has something newer of than the stores. Whether there are any.
    fn doubt_unapplied(&mut self) -> bool {
        let mut any = false;
        for (number, seq, record) in self.log.unapplied_records(self.log.next_number()) {
            let Some(extent) = extent_of(record, number, seq) else {
                continue;
            };
            let is_there = extent.volume.0 < self.sums.volumes();
            let blocks = if is_there {
                self.sums.blocks(extent.volume)
            } else {
                0
            };
            for block in extent.start..extent.end().min(blocks) {
                self.sums.set(extent.volume, block, BlockSum::UNKNOWN);
                any = true;
            }
        }
        any
    }

    fn renewal_goes_on(&mut self, phase: Phase) {
        if let Some(renewal) = self.renewal.as_mut() {
            renewal.phase = phase;
        }
    }

    fn write_doubts(&mut self) {
        if self.write_pages(|replica| &mut replica.sums) {
            let file = SideFile::Sums;
            self.disk(Pending::Doubts, DiskOp::SideFlush { file });
            self.renewal_goes_on(Phase::Flushing);
        }
    }

    pub(super) fn doubts_flushed(&mut self, result: Result<(), DiskError>) {
        match result {
            Ok(()) => self.renewal_goes_on(Phase::Doubted),
            Err(error) => self.fail("the checksums can not be written", Some(error)),
        }
    }

    /// Becomes a new incarnation that holds nothing.
    fn forget_everything(&mut self) {
        let Some(next) = self.renewal.as_ref().map(|r| r.next) else {
            return;
        };
        self.log.forget();
        self.writer.cut(self.log.next_number());
        self.applier.former_until = Seq(0);
        self.evict_from = self.log.next_number();
        (self.committed, self.committed_told) = (Seq(0), Seq(0));
        self.metadata.durable_committed = Seq(0);
        self.primary_epoch = Epoch(0);
        self.last_primary = None;
        self.told_outdated = false;
        self.settled_told = None;
        self.repairs.forget();
        self.sums.forget_changes();
        let mark = superblock::Resync::INCONSISTENT;
        let volumes = TableAt {
            at: Seq(0),
            volumes: self.volumes().clone(),
        };
        let stage = SumTable::new(Table::Staged, volumes.volumes.sizes());
        self.resync = Self::resync_of(Some(mark), Some(stage), (Seq(0), 0), self.now, volumes);
        self.stage_is_waste = None;
        let wanted = &mut self.metadata.wanted;
        if wanted.labelled == Incarnation(0) {
            wanted.labelled = wanted.incarnation;
        }
        if !planted!(SameIncarnation) {
            wanted.incarnation = next;
        }
        wanted.uuid = ResourceUuid(0);
        wanted.history = HistoryId(0);
        wanted.damaged_until = RecordId::NONE;
        wanted.fork = None;
        wanted.resync = Some(mark);
        // What the former life promised ended with it; it counts no more.
        wanted.promised = Epoch(0);
        wanted.promised_to = crate::meta::config::Name::new();
        let version = self.metadata.changed();
        self.silent_until = version;
        // The others may be found in another history than the one that was left.
        for peer in &mut self.peers {
            peer.known = Peer::new(peer.node).known;
            peer.foreign = None;
            if !std::mem::replace(&mut peer.wanted, true) {
                let (peer, wanted) = (peer.node, true);
                self.out.push_back(Output::Reach { peer, wanted });
            }
        }
        if let Some(renewal) = self.renewal.as_mut() {
            renewal.phase = Phase::Writing(version);
        }
    }

    /// A node wants to give its data up, and to come back as another life.
    pub(super) fn got_renew(&mut self, conn: ConnId, token: u64, next: Incarnation) {
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        let (node, incarnation) = (peer.node, peer.incarnation());
        if !self.serving() || incarnation.is_none() || incarnation == Some(next) {
            self.send(conn, Frame::Renewed { token, refused: 1 });
            return;
        }
        self.expected.retain(|(n, _)| *n != node);
        // Whom an operator has dropped an operator admits again.
        if self.is_part(node) {
            self.expected.push((node, next));
        }
        self.wish_out_for(conn, token, node);
    }

    /// The life that was let go is out of the membership, or why it is not.
    pub(super) fn answer_renew(&mut self, conn: ConnId, token: u64, result: &AdminResult) {
        let refused = match result {
            Ok(()) => LET_GO,
            Err(AdminError::NoQuorum(_)) => COSTS_THE_QUORUM,
            Err(_) => 1,
        };
        if let Err(error) = result
            && let Some(node) = self.peer_of(conn).map(|p| p.node)
        {
            self.expected.retain(|(n, _)| *n != node);
            let name = self.config.nodes[usize::from(node.0)];
            self.log_warn(format!(
                "{name} wants to give its data up, and can not be let go: {error}"
            ));
        }
        self.send(conn, Frame::Renewed { token, refused });
    }

    /// Nodes that were let go are admitted as what they come back as.
    pub(super) fn admit_the_expected(&mut self) {
        let back = |&(node, next): &(NodeId, Incarnation)| {
            let report = self.peer(node).and_then(|p| p.report.as_ref());
            report.is_some_and(|r| r.fresh && r.incarnation == next)
        };
        let Some(index) = self.expected.iter().position(back) else {
            return;
        };
        let (node, _) = self.expected.remove(index);
        self.wish_new_for_nobody(node);
    }
}
