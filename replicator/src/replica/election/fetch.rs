//! A candidate fetches what any granting member has and it lacks, and cuts what differs (protocol P3).

use super::{FETCH_NS, Phase};
use crate::io::*;
use crate::journal::batch;
use crate::journal::log::last_common;
use crate::memory::{Buffer, Memory};
use crate::meta::config::{ClusterConfig, ConfigAt, Standing};
use crate::replica::Replica;
use crate::types::*;
use crate::wire::frame::{Frame, Report};

impl<M: Memory> Replica<M> {
    /// The node with the newest tail among those whose data counts.
    fn newest<'a>(
        &self,
        config: &ClusterConfig,
        answers: &'a [(NodeId, Report)],
    ) -> Option<&'a (NodeId, Report)> {
        // Of equals the first counts, which is this node.
        answers
            .iter()
            .filter(|(_, r)| !r.fresh && !r.damaged)
            .filter(|(_, r)| config.standing(r.incarnation).is_some_and(Standing::counts))
            .reduce(|best, next| {
                if next.1.tail > best.1.tail {
                    next
                } else {
                    best
                }
            })
    }

    /// Where this log and another part: the last record to keep.
    fn common_with(&self, report: &Report) -> Seq {
        last_common(
            self.log.epochs(),
            self.log.tail().id,
            &report.epochs,
            report.tail,
        )
        .map_or(self.committed, |id| id.seq)
    }

    pub(super) fn can_fetch(
        &self,
        config: &ClusterConfig,
        answers: &[(NodeId, Report)],
    ) -> Result<(), AdminError> {
        let Some((node, report)) = self.newest(config, answers) else {
            return Ok(());
        };
        if *node != self.config.me && self.common_with(report).next() < report.journal_floor {
            return Err(AdminError::NoData(format!(
                "this node is Outdated: {} has data that its journal no longer holds; promote that node",
                self.names([*node].into_iter())
            )));
        }
        Ok(())
    }

    pub(in crate::replica) fn fetch_from_newest(
        &mut self,
        adopted: ConfigAt,
        grants: &[(NodeId, Report)],
    ) {
        let Some((source, report)) = self.newest(&adopted.config, grants) else {
            return;
        };
        let (source, target) = (*source, report.tail);
        let keep = if source == self.config.me {
            None
        } else {
            Some(self.common_with(report))
        };
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.config = Some(adopted);
        }
        let keep = keep.filter(|_| !planted!(SkipFetch));
        let Some(keep) = keep else {
            self.reign();
            return;
        };
        if self.leader.is_some() {
            // A Primary that sought a higher epoch and finds a newer log was superseded: what its clients wait for is
            // about to be cut.
            self.step_down();
        }
        let at_batch_end = match self.log.number_of(keep) {
            Some(number) => self.log.tail_before(number + 1).id.seq == keep,
            None => keep == self.log.start().id.seq,
        };
        if keep < self.log.tail().id.seq {
            if !at_batch_end {
                self.attempt_failed(AdminError::Failed(
                    "the newest log of a peer does not fit this one".into(),
                ));
                return;
            }
            if !self.writer.is_idle() {
                return; // Judged again when the writes in flight have ended.
            }
            if !self.cut(keep) {
                return;
            }
        }
        self.set_phase(Phase::Fetching {
            source,
            target,
            asked: None,
        });
        self.fetch(source, target, None);
    }

    pub(in crate::replica) fn fetch(
        &mut self,
        source: NodeId,
        target: RecordId,
        asked: Option<Seq>,
    ) {
        let tail = self.log.tail().id;
        if tail == target {
            if self.log.durable_id() == target {
                self.reign();
            }
            return;
        }
        let Some(candidacy) = &self.candidacy else {
            return;
        };
        if self.now.since(candidacy.since) >= FETCH_NS {
            self.attempt_failed(AdminError::NoData(
                "the node with the newest data does not deliver it".into(),
            ));
            return;
        }
        if asked == Some(tail.seq) || !self.metadata.is_durable(self.append_after) {
            return;
        }
        let token = candidacy.token;
        let Some(conn) = self.peer(source).and_then(|p| p.conn) else {
            return;
        };
        self.set_phase(Phase::Fetching {
            source,
            target,
            asked: Some(tail.seq),
        });
        self.send(
            conn,
            Frame::Fetch {
                token,
                after: tail.seq,
            },
        );
    }

    /// What a granting node has and this one lacks.
    pub(in crate::replica) fn got_fetched(
        &mut self,
        conn: ConnId,
        token: u64,
        buffer: Option<M::Buffer>,
    ) {
        let Some(node) = self.peer_of(conn).map(|p| p.node) else {
            return;
        };
        let Some(candidacy) = &self.candidacy else {
            return;
        };
        let Phase::Fetching { source, target, .. } = candidacy.phase else {
            return;
        };
        if candidacy.token != token || source != node {
            return;
        }
        let gone = AdminError::NoData(
            "the node with the newest data no longer has in its journal what this one lacks".into(),
        );
        let Some(buffer) = buffer else {
            self.attempt_failed(gone);
            return;
        };
        let tail = self.log.tail();
        let sb = &self.metadata.wanted;
        let header = match batch::verify(buffer.bytes()) {
            Ok(h)
                if h.prev_id() == tail.id
                    && h.prev_checksum == tail.checksum
                    && h.uuid == sb.uuid
                    && h.history == sb.history
                    && h.epoch < candidacy.epoch
                    && h.last_id() <= target
                    && self.records_make_sense(&h, buffer.bytes(), self.log.volumes()) =>
            {
                h
            }
            _ => {
                let reason = DropReason::Protocol("it sent a batch that does not follow");
                self.give_up(conn, reason, false);
                return;
            }
        };
        if !self
            .log
            .has_room(header.blocks(), usize::from(header.records), 0)
        {
            self.applier.urgent = true;
            self.attempt_failed(AdminError::Failed(
                "the journal is full of what is not applied yet".into(),
            ));
            return;
        }
        let config = batch::config_of(buffer.bytes(), &header);
        let records: arrayvec::ArrayVec<_, { batch::DESCRIPTORS_MAX }> =
            batch::descriptors(buffer.bytes(), &header)
                .flatten()
                .collect();
        let volumes = batch::volumes_of(buffer.bytes(), &header);
        // The log goes on from where the stores are: what was staged to be laid over them is not needed.
        self.resync_abandon();
        self.log
            .append(&header, records.into_iter(), config, buffer);
        if let Some(volumes) = volumes {
            self.log.note_volumes(volumes);
        }
        self.set_phase(Phase::Fetching {
            source,
            target,
            asked: None,
        });
        self.fetch(source, target, None);
    }
}
