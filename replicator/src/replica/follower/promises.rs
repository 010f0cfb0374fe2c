//! Promises of epochs, and every answer that has to wait until the superblock has what it says.

use crate::memory::Memory;
use crate::replica::Replica;
use crate::replica::metadata::MetaVersion;
use crate::types::*;
use crate::wire::frame::Frame;

/// An answer that waits for the superblock.
#[derive(Clone, Copy, Debug)]
pub(in crate::replica) enum Owed {
    Grant {
        conn: ConnId,
        token: u64,
        epoch: Epoch,
    },
    HeartbeatAck {
        conn: ConnId,
        epoch: Epoch,
        number: u64,
    },
    /// That marks are kept.
    Kept { conn: ConnId, token: u64 },
    /// Of a witness, for a config.
    Ack {
        conn: ConnId,
        epoch: Epoch,
        seq: Seq,
    },
}

impl<M: Memory> Replica<M> {
    pub(in crate::replica) fn promise(&mut self, epoch: Epoch, to: NodeId) -> MetaVersion {
        assert!(
            epoch >= self.metadata.wanted.promised,
            "a promise is never taken back"
        );
        self.metadata.wanted.promised = epoch;
        self.metadata.wanted.promised_to = self.config.nodes[usize::from(to.0)];
        self.highest_seen = self.highest_seen.max(epoch);
        self.metadata.changed()
    }

    /// Sends what waited for the superblock.
    pub(in crate::replica) fn pump_owed(&mut self) {
        let mut at = 0;
        while at < self.owed.len() {
            let (version, owed) = self.owed[at];
            let early = planted!(GrantBeforeDurable) && matches!(owed, Owed::Grant { .. });
            if !self.metadata.is_durable(version) && !early {
                at += 1;
                continue;
            }
            self.owed.remove(at);
            match owed {
                Owed::HeartbeatAck {
                    conn,
                    epoch,
                    number,
                } => {
                    let current = self.metadata.durable_promised == epoch;
                    if current || planted!(StaleEpochHeard) {
                        let applied = self.applied_in_stores();
                        let frame = Frame::HeartbeatAck {
                            epoch,
                            number,
                            applied,
                            disks_hang: self.disks_hang,
                        };
                        self.send(conn, frame);
                    }
                }
                Owed::Kept { conn, token } => {
                    if let Some(node) = self.peer_of(conn).map(|p| p.node) {
                        let report = self.report_to(node, token, Epoch(0));
                        self.send(conn, Frame::Report(Box::new(report)));
                    }
                }
                Owed::Ack { conn, epoch, seq } => {
                    if self.metadata.durable_promised == epoch {
                        self.send(conn, Frame::Ack { epoch, seq });
                    }
                }
                Owed::Grant { conn, token, epoch } => {
                    let current = self.metadata.durable_promised == epoch || early;
                    if let Some(node) = self.peer_of(conn).map(|p| p.node)
                        && current
                    {
                        let report = self.report_to(node, token, epoch);
                        self.send(conn, Frame::Report(Box::new(report)));
                    }
                }
            }
        }
    }

    /// A candidate wants an epoch promised (protocol P1, L2).
    pub(in crate::replica) fn got_promise(
        &mut self,
        conn: ConnId,
        token: u64,
        epoch: Epoch,
        incarnation: Incarnation,
    ) {
        let Some(node) = self.peer_of(conn).map(|p| p.node) else {
            return;
        };
        let fenced = self.is_fenced(node) && !planted!(FencedIsPromised);
        let may = self.may_stand(node, incarnation) && !fenced;
        self.promise_if(conn, token, epoch, incarnation, may);
    }

    /// Somebody wants an epoch promised, who may have it as far as he is concerned.
    pub(in crate::replica) fn promise_if(
        &mut self,
        conn: ConnId,
        token: u64,
        epoch: Epoch,
        incarnation: Incarnation,
        may: bool,
    ) {
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        let node = peer.node;
        let same = peer.incarnation() == Some(incarnation);
        let promised = self.metadata.wanted.promised;
        let grants = same
            && may
            && (epoch > promised || (epoch == promised && planted!(TwoGrants)))
            && self.lease_wait_ns(node) == 0
            && self.drain.is_none()
            && !self.merging();
        if !grants {
            let report = self.report_to(node, token, Epoch(0));
            self.send(conn, Frame::Report(Box::new(report)));
            return;
        }
        if self.leader.is_some() {
            self.log_warn(format!(
                "{} asks for epoch {epoch} and this node's lease is over",
                self.config.nodes[usize::from(node.0)]
            ));
            self.step_down();
        }
        self.candidate_retry();
        self.following = None;
        self.matched = Seq(0);
        self.incoming.clear();
        let version = self.promise(epoch, node);
        self.owed
            .push((version, Owed::Grant { conn, token, epoch }));
    }
}
