//! Forced promotion (protocol D2): for the day on which the others are gone for good, or too long. This node goes on alone, with the
//! log that it has, in a history of its own; it never meets the old one again but to say so.

use super::Phase;
use crate::io::*;
use crate::memory::Memory;
use crate::meta::config::ConfigAt;
use crate::meta::superblock::Fork;
use crate::replica::Replica;
use crate::types::*;

impl<M: Memory> Replica<M> {
    /// Whether this node's history is about to fork: it says nothing until that is durable.
    pub(in crate::replica) fn forking(&self) -> bool {
        let waits = self
            .candidacy
            .as_ref()
            .is_some_and(|c| matches!(c.phase, Phase::Forking));
        waits || !self.metadata.is_durable(self.silent_until)
    }

    /// An operator says that the others are stopped, and that this node is to go on alone.
    pub(in crate::replica) fn force(&mut self, id: AdminId, deadline: Time) {
        let refused = if self.serving() && !self.demoting() && self.lease_runs() {
            Some(Ok(()))
        } else {
            self.force_refused().map(Err)
        };
        if let Some(result) = refused {
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        if self.forking()
            && let Some(candidacy) = self.candidacy.as_mut()
        {
            candidacy.ids.push(id);
            candidacy.deadline = candidacy.deadline.max(deadline);
            return;
        }
        self.end_fencings(&AdminError::Failed(
            "this node goes on alone, by force".into(),
        ));
        self.end_candidacy(Err(AdminError::Failed(
            "a forced promotion took the place of this one".into(),
        )));
        if self.leader.is_some() {
            self.step_down();
        }
        for index in 0..self.peers.len() {
            if let Some(conn) = self.peers[index].conn {
                self.give_up(conn, DropReason::Forked, false);
            }
        }
        self.following = None;
        self.matched = Seq(0);
        self.incoming.clear();
        self.owed.clear();
        self.begin_candidacy(vec![id], deadline);
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.last = AdminError::Failed("this node's own disks did not answer".into());
        }
        self.set_phase(Phase::Forking);
    }

    fn force_refused(&self) -> Option<AdminError> {
        if self.drain.is_some() {
            return Some(AdminError::Failed("this node is stopping".into()));
        }
        if self.log.tail().id == RecordId::NONE {
            return Some(AdminError::NoData(
                "this node is new or was wiped and holds nothing of the resource: force one that has data".into(),
            ));
        }
        if self.inconsistent() {
            return Some(self.why_inconsistent());
        }
        if self.resync_awaits_stores() && self.lacks_room() {
            return Some(self.why_stores_are_missing());
        }
        if self.resync_is_ending() {
            return Some(AdminError::Failed(
                "this node is laying what a resync brought over its stores: try again when that is done, it needs nobody".into(),
            ));
        }
        let lease_ns = u64::from(self.metadata.wanted.lease_ms) * 1_000_000;
        let alive = self.now.since(self.heartbeat_heard_at) < lease_ns && !self.released;
        let primary = self.following.filter(|_| alive)?;
        Some(AdminError::OtherPrimary(format!(
            "{} is Primary and alive: demote it first",
            self.config.nodes[usize::from(primary.node.0)]
        )))
    }

    /// Forks the history, in one write of the superblock, once nothing of the old one is on its way to the disk.
    pub(super) fn fork(&mut self) {
        let tail = self.log.tail().id;
        if self.log.durable_number() != self.log.next_number() || !self.writer.is_idle() {
            return;
        }
        // Of what a restart reads, all must be of one history before, or of two.
        let parent = match self.metadata.wanted.fork {
            Some(earlier) if tail.seq <= earlier.at.seq => earlier.parent,
            Some(earlier) if self.log.applied_id().seq < earlier.at.seq => {
                self.applier.urgent = true;
                return;
            }
            _ => self.metadata.wanted.history,
        };
        let newest = self.log.config().map_or(Epoch(0), |c| c.at.epoch);
        let seen = self.highest_seen.max(self.metadata.wanted.promised);
        let epoch = Epoch(seen.max(newest).max(tail.epoch).0 + 1);
        self.report_fork(tail);
        self.resync_abandon();
        let history = HistoryId(self.random_wide());
        let wanted = &mut self.metadata.wanted;
        if !planted!(ForkKeepsHistory) {
            wanted.fork = Some(Fork { parent, at: tail });
            wanted.history = history;
        }
        wanted.damaged_until = RecordId::NONE;
        self.forget_fences();
        let wanted = &mut self.metadata.wanted;
        let config = wanted.alone_after(self.log.config());
        self.log.fork(config.clone());
        let version = self.promise(epoch, self.config.me);
        self.silent_until = version;
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.epoch = epoch;
            candidacy.config = Some(ConfigAt { at: tail, config });
        }
        self.set_phase(Phase::Identity { version });
    }

    fn report_fork(&mut self, tail: RecordId) {
        let damaged = self.metadata.wanted.damaged_until;
        if damaged != RecordId::NONE {
            self.log_error(format!(
                "forced: this node's journal was damaged, records after {tail} up to {damaged} are given up"
            ));
        }
        let committed = self.committed;
        if committed < tail.seq {
            self.log_warn(format!(
                "forced: records after {committed} up to {tail} were not known to be committed, and are part of the new history"
            ));
        }
        self.log_warn(format!(
            "forced: this node goes on alone from record {tail}; what other nodes hold beyond that is not in its data"
        ));
    }
}
