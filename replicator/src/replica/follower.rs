//! Being Secondary: taking a Primary's log, acknowledging what is durable.

mod promises;

pub(super) use self::promises::Owed;

use super::{Incoming, Item, Replica};
use crate::io::*;
use crate::journal::batch::{self, Header};
use crate::memory::{Buffer, Memory};
use crate::meta::config::{ClusterConfig, ConfigAt};
use crate::meta::volumes::Volumes;
use crate::types::*;
use crate::wire::frame::Frame;

/// Batches received and not yet in the log, at most. A Primary's window is smaller.
pub const INCOMING_MAX: usize = 1100;

/// Whose log this Secondary takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Following {
    pub(super) conn: ConnId,
    pub(super) node: NodeId,
    pub(super) epoch: Epoch,
}

/// Whose log a batch belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Identity {
    Ours,
    JustTaken,
    Foreign,
}

impl<M: Memory> Replica<M> {
    /// Holds no config and no record.
    pub(super) fn fresh(&self) -> bool {
        self.log.config().is_none() && self.log.tail().id == RecordId::NONE
    }

    /// Through which record the stores are an image; 0 if they are none.
    pub(super) fn applied_in_stores(&self) -> Seq {
        if self.inconsistent() || self.merging() {
            Seq(0)
        } else {
            self.log.applied_id().seq
        }
    }

    pub(super) fn damaged(&self) -> bool {
        self.metadata.wanted.damaged_until != RecordId::NONE
    }

    /// Somebody speaks as the Primary of `epoch`: whether that is to be heard.
    pub(super) fn hear_primary(&mut self, conn: ConnId, epoch: Epoch) -> bool {
        let Some(peer) = self.peer_of(conn) else {
            return false;
        };
        let node = peer.node;
        let promised = self.metadata.wanted.promised;
        if epoch < promised && !planted!(StaleEpochHeard) {
            if self.metadata.durable_promised > epoch {
                let promised = self.metadata.durable_promised;
                let promised_to = self.node_named(&self.metadata.wanted.promised_to);
                self.send(
                    conn,
                    Frame::Refused {
                        promised,
                        promised_to,
                    },
                );
            }
            return false;
        }
        if self.leader.as_ref().is_some_and(|l| l.epoch < epoch) {
            self.log_warn(format!("a newer Primary, of epoch {epoch}, is there"));
            self.step_down();
        }
        self.candidate_hears_primary(node, epoch);
        if epoch > promised {
            self.promise(epoch, node);
        }
        if epoch > self.primary_epoch {
            self.resync_of_former_reign(conn);
        }
        let following = Following { conn, node, epoch };
        if self.following != Some(following) {
            self.following = Some(following);
            self.matched = Seq(0);
            self.acked_to_primary = Seq(0);
            self.primary_committed = Seq(0);
            self.primary_tail = Seq(0);
            self.catch_up_to = None;
            self.caught_up = false;
            self.told_outdated = false;
            let own = self.volumes().clone();
            self.forget_room(&own);
            self.heed_too_far();
        }
        self.last_primary = Some(node);
        self.primary_epoch = epoch;
        if self.demoted < epoch {
            self.released = false;
        }
        true
    }

    pub(super) fn got_heartbeat(
        &mut self,
        conn: ConnId,
        epoch: Epoch,
        number: u64,
        committed: Seq,
        tail: Seq,
        lease_ms: u32,
    ) {
        if !self.hear_primary(conn, epoch) {
            return;
        }
        self.heartbeat_heard_at = self.now;
        self.primary_committed = self.primary_committed.max(committed);
        self.primary_tail = self.primary_tail.max(tail);
        self.catch_up_to.get_or_insert(tail);
        if self.metadata.wanted.lease_ms < lease_ms {
            self.metadata.wanted.lease_ms = lease_ms;
            self.lease_version = self.metadata.changed();
        }
        let owed = Owed::HeartbeatAck {
            conn,
            epoch,
            number,
        };
        // One answer per connection is enough: the newest.
        self.owed
            .retain(|(_, o)| !matches!(o, Owed::HeartbeatAck { conn: c, .. } if *c == conn));
        let version = if self.metadata.durable_promised < epoch {
            self.metadata.changed()
        } else {
            self.lease_version
        };
        self.owed.push((version, owed));
    }

    /// A batch from somebody who speaks as Primary.
    pub(super) fn got_append(
        &mut self,
        conn: ConnId,
        epoch: Epoch,
        committed: Seq,
        buffer: M::Buffer,
    ) {
        if self.is_witness() {
            let reason = DropReason::Protocol("it sent a witness a log");
            self.give_up(conn, reason, false);
            return;
        }
        if !self.hear_primary(conn, epoch) {
            return;
        }
        if self.incoming.len() >= INCOMING_MAX {
            let reason = DropReason::Protocol("it sends more than its window");
            self.give_up(conn, reason, false);
            return;
        }
        self.primary_committed = self.primary_committed.max(committed);
        self.incoming.push_back(Incoming {
            conn,
            epoch,
            item: Item::Append(buffer),
        });
    }

    /// Takes received batches into the log, in order, as far as possible.
    pub(super) fn pump_incoming(&mut self) {
        while let Some(front) = self.incoming.front() {
            if self.drain.is_some() || self.failed.is_some() {
                return;
            }
            // While the log is about to begin anew, nothing is added to the old one.
            if self.metadata.durable_promised < front.epoch
                || !self.metadata.is_durable(self.append_after)
                || self.restart.is_some()
            {
                return;
            }
            let conn = front.conn;
            if !self
                .following
                .is_some_and(|f| f.conn == conn && f.epoch == front.epoch)
            {
                self.incoming.pop_front();
                continue;
            }
            if let Item::Append(buffer) = &front.item
                && self.needs_no_resync(conn, buffer)
            {
                self.is_fed_from_the_log();
                continue;
            }
            if self.stages(conn) {
                let Some(item) = self.incoming.pop_front() else {
                    return;
                };
                if !self.stage_next(&item) {
                    if self.peer_of(conn).is_some() {
                        self.incoming.push_front(item);
                    }
                    return;
                }
                continue;
            }
            if self.inconsistent() && !self.resync_is_ending() {
                // The Primary's idea of this node is old: tell it anew. Nothing goes to a log whose stores are no image.
                self.incoming.retain(|i| i.conn != conn);
                if let Some(peer) = self.peer_of(conn) {
                    let node = peer.node;
                    let report = self.report_to(node, 0, Epoch(0));
                    self.send(conn, Frame::Report(Box::new(report)));
                }
                return;
            }
            let Item::Append(buffer) = &front.item else {
                self.incoming.pop_front();
                continue;
            };
            let buffer = buffer.clone();
            let verified = if planted!(PeerBatchTrusted) {
                batch::read_header(buffer.bytes())
            } else {
                batch::verify(buffer.bytes())
            };
            match verified {
                Ok(header) => {
                    if !self.take_batch(conn, &header, buffer) {
                        return;
                    }
                    // Unless the connection was given up, and what it sent with it.
                    if self.incoming.front().is_some_and(|i| i.conn == conn) {
                        self.incoming.pop_front();
                    }
                }
                Err(_) => {
                    let reason = DropReason::Protocol("it sent a damaged batch");
                    self.give_up(conn, reason, false);
                }
            }
        }
    }

    /// The Primary's journal has what this node lacks, whatever it said before.
    fn is_fed_from_the_log(&mut self) {
        self.resync_abandon();
        self.told_outdated = false;
    }

    /// `false` if the batch must wait.
    fn take_batch(&mut self, conn: ConnId, header: &Header, buffer: M::Buffer) -> bool {
        let volumes = self.log.volumes_after(header.prev_id().seq);
        if volumes.is_some_and(|v| !self.records_make_sense(header, buffer.bytes(), v)) {
            let reason = DropReason::Protocol("it sent records that no volume can hold");
            self.give_up(conn, reason, false);
            return true;
        }
        let later = self.following.is_some_and(|f| header.epoch > f.epoch);
        if later && !planted!(LaterEpochTaken) {
            let reason = DropReason::Protocol("it sent a record of an epoch after its own");
            self.give_up(conn, reason, false);
            return true;
        }
        let config = batch::config_of(buffer.bytes(), header);
        match self.identity_of(header, config.as_ref()) {
            Identity::Ours => {}
            Identity::JustTaken => return false,
            Identity::Foreign => {
                let reason = DropReason::Unrelated("its log belongs to another resource");
                self.give_up(conn, reason, true);
                return true;
            }
        }
        let tail = self.log.tail();
        let same = planted!(SameNumberSameRecord) || self.log.contains(header.last_id());
        if header.last() <= tail.id.seq && same {
            self.is_fed_from_the_log();
            self.matched = self.matched.max(header.last());
            return true;
        }
        if header.prev_id() != tail.id {
            return self.cut_for(conn, header);
        }
        if header.prev_checksum != tail.checksum {
            self.fail("a batch has the name of another and different bytes", None);
            return true;
        }
        if !self
            .log
            .has_room(header.blocks(), usize::from(header.records), 0)
        {
            self.applier.urgent = true;
            return false;
        }
        let records: arrayvec::ArrayVec<_, { batch::DESCRIPTORS_MAX }> =
            batch::descriptors(buffer.bytes(), header)
                .flatten()
                .collect();
        self.is_fed_from_the_log();
        let volumes = batch::volumes_of(buffer.bytes(), header);
        self.log.append(header, records.into_iter(), config, buffer);
        if let Some(volumes) = volumes {
            self.log.note_volumes(volumes);
        }
        self.matched = self.matched.max(header.last());
        true
    }

    /// Whether a batch belongs to this resource. A fresh node takes the identity of the first config that lists its own
    /// incarnation (protocol D3), also in place of one that it drew itself for a first promotion that came to nothing; the
    /// batch waits until that is durable.
    fn identity_of(&mut self, header: &Header, config: Option<&ClusterConfig>) -> Identity {
        let fresh = self.fresh();
        let wanted = &mut self.metadata.wanted;
        if wanted.uuid == header.uuid && wanted.history == header.history {
            return Identity::Ours;
        }
        let listed = config.is_some_and(|c| c.is_voter(wanted.incarnation));
        if fresh && listed {
            wanted.uuid = header.uuid;
            wanted.history = header.history;
            self.append_after = self.metadata.changed();
            return Identity::JustTaken;
        }
        Identity::Foreign
    }

    pub(super) fn records_make_sense(
        &self,
        header: &Header,
        bytes: &[u8],
        volumes: &Volumes,
    ) -> bool {
        if planted!(RecordsUnchecked) {
            return true;
        }
        batch::descriptors(bytes, header)
            .flatten()
            .all(|record| match record.kind {
                batch::Kind::Write | batch::Kind::Zero { .. } => {
                    record.block + u64::from(record.blocks) <= volumes.blocks(record.volume)
                }
                batch::Kind::Epoch | batch::Kind::Membership => {
                    batch::config_of(bytes, header).is_some()
                }
                batch::Kind::Volumes => batch::volumes_of(bytes, header).is_some(),
                batch::Kind::Demote => true,
            })
    }

    /// The log does not end where the batch begins. If it holds the batch's predecessor, what follows that goes.
    fn cut_for(&mut self, conn: ConnId, header: &Header) -> bool {
        let prev = header.prev_id();
        let place = match self.log.number_of(prev.seq) {
            Some(number) => self.log.tail_before(number + 1),
            None => self.log.start(),
        };
        if place.id != prev || place.checksum != header.prev_checksum {
            // The Primary's idea of this log is old: tell it anew.
            self.incoming.retain(|i| i.conn != conn);
            if let Some(peer) = self.peer_of(conn) {
                let node = peer.node;
                let report = self.report_to(node, 0, Epoch(0));
                self.send(conn, Frame::Report(Box::new(report)));
            }
            return false;
        }
        !self.cut(prev.seq)
    }

    /// Cuts the log after `seq` and makes that durable. `true` once it is begun: what follows waits; `false` if the cut
    /// would be a bug.
    pub(super) fn cut(&mut self, seq: Seq) -> bool {
        if seq < self.committed {
            self.fail("a cut would take committed records", None);
            return false;
        }
        if !self.writer.is_idle() {
            return true;
        }
        let before = self.log.tail().id;
        self.log.cut_after(seq);
        self.writer.cut(self.log.next_number());
        self.applier.former_until = self.applier.former_until.min(seq);
        // Its acknowledgements are taken back in the superblock before the first byte of them is overwritten.
        self.append_after = self.metadata.changed();
        self.log_info(format!(
            "uncommitted records after {} are cut, the last was {before}",
            self.log.tail().id
        ));
        true
    }

    /// What a Secondary learns from its own log and says to its Primary.
    pub(super) fn pump_follower(&mut self) {
        let Some(following) = self.following else {
            return;
        };
        let mut committed = self.primary_committed.min(self.matched);
        if planted!(UnverifiedFloor) {
            committed = self.primary_committed.min(self.log.tail().id.seq);
        }
        self.committed = self.committed.max(committed);
        let mut durable = self.log.durable_id().seq.min(self.matched);
        if planted!(AckOnReceipt) {
            durable = self.matched;
        }
        // Once it has what the Primary had when it was first heard, the rest is in flight.
        self.caught_up |= self.catch_up_to.is_some_and(|seq| durable >= seq);
        let current = self.metadata.durable_promised == following.epoch;
        if durable > self.acked_to_primary && (current || planted!(StaleEpochHeard)) {
            self.acked_to_primary = durable;
            let frame = Frame::Ack {
                epoch: following.epoch,
                seq: durable,
            };
            self.send(following.conn, frame);
        }
        if self.damaged() && self.kept() >= self.metadata.wanted.damaged_until {
            self.log_info("this node's log is whole again".into());
            // All that was ever committed is in the log again, and nothing else was applied.
            let tail = self.log.tail().id.seq;
            self.applier.former_until = self.applier.former_until.min(tail);
            self.metadata.wanted.damaged_until = RecordId::NONE;
            self.metadata.changed();
        }
    }

    pub(super) fn got_demoted(&mut self, conn: ConnId, epoch: Epoch, committed: Seq) {
        let Some(node) = self.peer_of(conn).map(|p| p.node) else {
            return;
        };
        if self.last_primary == Some(node) && epoch >= self.primary_epoch {
            self.demoted = epoch;
            self.released = true;
            self.candidate_is_free();
        }
        if self
            .following
            .is_some_and(|f| f.conn == conn && f.epoch == epoch)
        {
            self.primary_committed = self.primary_committed.max(committed);
        }
    }

    /// A former Primary that has reconnected says that its reign ended cleanly.
    pub(super) fn note_demoted_by(&mut self, node: NodeId) {
        let Some(report) = self.peer(node).and_then(|p| p.report.as_ref()) else {
            return;
        };
        let demoted = report.demoted;
        if demoted.0 > 0 && self.last_primary == Some(node) && demoted >= self.primary_epoch {
            self.demoted = demoted;
            self.released = true;
        }
    }

    /// A peer says that this node is past its journal. Of another one than the Primary that is followed it is kept in mind: it may be
    /// the next Primary, who is heard in a moment, or a former one, who gives nothing any more.
    pub(super) fn got_too_far(&mut self, conn: ConnId) {
        if let Some(peer) = self.peer_of(conn) {
            peer.told_too_far = true;
        }
        self.heed_too_far();
    }

    /// What the Primary that is followed said of that.
    fn heed_too_far(&mut self) {
        let Some(conn) = self.following.map(|f| f.conn) else {
            return;
        };
        if !self.peer_of(conn).is_some_and(|p| p.told_too_far) {
            return;
        }
        if !self.told_outdated {
            self.log_warn(
                "this node is past the Primary's journal: Outdated, it needs a resync".into(),
            );
        }
        self.told_outdated = true;
        // What its stores are at does not move any more: what is staged is compared with that.
        self.matched = self.matched.min(self.committed);
        // Who belongs to no resource yet is invited first.
        if self.metadata.wanted.uuid != ResourceUuid(0)
            && let Some(peer) = self.peer_of(conn)
        {
            peer.told_too_far = false;
            self.resync_wanted(conn);
        }
    }

    /// A fresh node that meets one that is not takes its config if that lists this incarnation (protocol D3).
    pub(super) fn adopt_first_config(&mut self, node: NodeId) {
        let Some(report) = self.peer(node).and_then(|p| p.report.as_ref()) else {
            return;
        };
        let Some(ConfigAt { at, config }) = report.config.clone() else {
            return;
        };
        let (uuid, history) = (report.uuid, report.history);
        // A voter without the log that knew a config which may yet be lost would stand in the way of every promotion (protocol
        // M4). The first one may not be lost anyway: without it there is no resource.
        let safe = at.seq == Seq(1) || at.seq <= report.committed;
        let listed = config.is_voter(self.metadata.wanted.incarnation);
        if !safe || !listed || self.inconsistent() {
            return;
        }
        self.append_after = self.take_config(uuid, history, ConfigAt { at, config });
        self.log_info("this node has joined the resource's first config".into());
        // The Primary may have told it that it is past the journal when it belonged to nothing yet.
        self.heed_too_far();
    }
}
