//! Peers: who is connected, what they said of themselves, and feeding them the log, live or from the journal.

use super::{Pending, Replica};
use crate::io::*;
use crate::memory::Memory;
use crate::meta::config::Standing;
use crate::types::*;
use crate::wire::frame::{Frame, Report};

/// What the Primary does for a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Feed {
    /// Nothing: not Primary, or not connected.
    #[default]
    Off,
    /// Waiting for its report.
    Asked,
    /// Sending; `next` is the number of the next entry.
    On {
        /// The next entry's number.
        next: u64,
        /// Whether that entry is being read from the journal.
        loading: bool,
    },
    /// It needs what the journal no longer has.
    TooFar,
    /// It has no standing under its incarnation: a wiped node, or one that was dropped.
    NotMember,
    /// It is a witness: it was told the config of this record, on this connection.
    Witness {
        /// The record.
        told: Seq,
    },
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) conn: Option<ConnId>,
    pub(super) wanted: bool,
    pub(super) heard_at: Time,
    pub(super) sent_at: Time,
    /// What it said last, on this connection.
    pub(super) report: Option<Box<Report>>,
    pub(super) feed: Feed,
    /// Acknowledged on this connection in this Primary's epoch.
    pub(super) acked: Seq,
    /// The place in the ring after that, also once the ring has gone past it; at first the place where its feed begins.
    pub(super) acked_position: u64,
    /// How far its stores have all, as it said on this connection in this reign.
    pub(super) applied: Seq,
    /// Batches handed to the driver and not yet sent.
    pub(super) queued: u32,
    /// Questions for blocks that it has not answered on this connection.
    pub(super) asked: usize,
    /// When the newest heartbeat that it answered was queued.
    pub(super) supported_at: Option<Time>,
    /// The higher epoch for which it refused this Primary.
    pub(super) refused: Option<(Epoch, Time)>,
    /// The newest that it was ever heard to have, under which incarnation: a node that reports less was rolled back.
    pub(super) known: (Incarnation, RecordId),
    /// It told this node that it is past its journal.
    pub(super) told_too_far: bool,
    /// The end of the log when its feed began, or when it was last found to lag: once it has acknowledged that, it is
    /// caught up, and what it lacks is in flight.
    pub(super) catch_up_to: Seq,
    /// Whether it is.
    pub(super) caught_up: bool,
    /// When it was last met, it had another history than this node, and this was its incarnation.
    pub(super) foreign: Option<Incarnation>,
    /// As it said on this connection, its disks do not answer.
    pub(super) disks_hang: bool,
    /// It stages what it is fed: that counts for nothing yet.
    pub(super) staging: bool,
    /// Through which record.
    pub(super) staged: Seq,
    /// Bytes that it lacks by that, and lacked at the beginning.
    pub(super) sync: (u64, u64),
    /// When it last acknowledged something new, or was known to have everything, on whatever connection.
    pub(super) advanced_at: Time,
}

impl Peer {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            conn: None,
            wanted: true,
            heard_at: Time(0),
            sent_at: Time(0),
            report: None,
            feed: Feed::Off,
            acked: Seq(0),
            acked_position: 0,
            applied: Seq(0),
            disks_hang: false,
            queued: 0,
            asked: 0,
            supported_at: None,
            refused: None,
            known: (Incarnation(0), RecordId::NONE),
            told_too_far: false,
            catch_up_to: Seq(0),
            caught_up: false,
            foreign: None,
            staging: false,
            staged: Seq(0),
            sync: (0, 0),
            advanced_at: Time(0),
        }
    }

    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        self.report.as_ref().map(|r| r.incarnation)
    }

    /// Forgets what belongs to one reign.
    pub(super) fn new_reign(&mut self) {
        self.acked = Seq(0);
        self.acked_position = 0;
        self.applied = Seq(0);
        self.disks_hang = false;
        self.supported_at = None;
        self.refused = None;
        self.caught_up = false;
        self.staging = false;
        self.feed = if self.conn.is_some() {
            Feed::Asked
        } else {
            Feed::Off
        };
    }
}

impl<M: Memory> Replica<M> {
    pub(super) fn peer(&self, node: NodeId) -> Option<&Peer> {
        self.peers.iter().find(|p| p.node == node)
    }

    pub(super) fn peer_mut(&mut self, node: NodeId) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|p| p.node == node)
    }

    pub(super) fn peer_of(&mut self, conn: ConnId) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|p| p.conn == Some(conn))
    }

    pub(super) fn send(&mut self, conn: ConnId, frame: Frame) {
        self.send_with(conn, frame, None);
    }

    pub(super) fn send_with(&mut self, conn: ConnId, frame: Frame, batch: Option<M::Buffer>) {
        let now = self.now;
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        peer.sent_at = now;
        if batch.is_some() {
            peer.queued += 1;
        }
        self.out.push_back(Output::Send { conn, frame, batch });
    }

    pub(super) fn send_all(&mut self, frame: &Frame) {
        for index in 0..self.peers.len() {
            if let Some(conn) = self.peers[index].conn {
                self.send(conn, frame.clone());
            }
        }
    }

    pub(super) fn peer_up(&mut self, conn: ConnId, node: NodeId) {
        let now = self.now;
        self.void_confirmation(node);
        if self.is_renewing() {
            self.drop_conn(conn, DropReason::Renewed, false);
            return;
        }
        if self.forking() {
            self.drop_conn(conn, DropReason::Forked, false);
            return;
        }
        let Some(peer) = self.peer_mut(node) else {
            self.drop_conn(
                conn,
                DropReason::Protocol("this is no node of the resource"),
                false,
            );
            return;
        };
        if !peer.wanted {
            self.drop_conn(conn, DropReason::Operator, true);
            return;
        }
        let (known, advanced_at) = (peer.known, peer.advanced_at);
        if let Some(old) = peer.conn {
            self.drop_conn(old, DropReason::Replaced, false);
            self.peer_gone(old);
        }
        let leading = self.leader.is_some();
        let peer = self.peer_mut(node).expect("it was just there");
        *peer = Peer {
            conn: Some(conn),
            heard_at: now,
            known,
            advanced_at,
            ..Peer::new(node)
        };
        if leading {
            peer.feed = Feed::Asked;
        }
        let report = self.report_to(node, 0, Epoch(0));
        self.send(conn, Frame::Report(Box::new(report)));
        if self.leader.is_some() {
            self.heartbeat_to(conn);
        }
    }

    /// A connection ended, or is as good as ended.
    pub(super) fn peer_gone(&mut self, conn: ConnId) {
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        let node = peer.node;
        let (known, wanted, advanced_at) = (peer.known, peer.wanted, peer.advanced_at);
        *peer = Peer {
            known,
            wanted,
            advanced_at,
            ..Peer::new(node)
        };
        self.incoming.retain(|i| i.conn != conn);
        if self.following.is_some_and(|f| f.conn == conn) {
            self.following = None;
            self.matched = Seq(0);
        }
        self.serves.forget(conn);
        self.verify.forget(conn, node);
        self.resync_loses(conn);
        self.renewal_loses(conn);
        self.change_loses(conn);
        self.repairs_lose(conn, node);
        self.candidate_lost(node);
    }

    pub(super) fn drop_conn(&mut self, conn: ConnId, reason: DropReason, stand_alone: bool) {
        self.out.push_back(Output::Drop {
            conn,
            reason,
            stand_alone,
        });
    }

    /// Gives up a connection: nothing that still arrives on it counts.
    pub(super) fn give_up(&mut self, conn: ConnId, reason: DropReason, stand_alone: bool) {
        if stand_alone && let Some(peer) = self.peer_of(conn) {
            peer.wanted = false;
        }
        self.drop_conn(conn, reason, stand_alone);
        self.peer_gone(conn);
    }

    pub(super) fn connect(&mut self, node: NodeId) -> AdminResult {
        let Some(peer) = self.peer_mut(node) else {
            return Err(AdminError::Failed("this is no peer".into()));
        };
        if !peer.wanted {
            peer.wanted = true;
            self.out.push_back(Output::Reach {
                peer: node,
                wanted: true,
            });
        }
        Ok(())
    }

    /// Peers that stayed apart since they had another history are met again once they gave that up: the config has another
    /// incarnation of them. (An operator said so to the Primary, and need not say it to each node.)
    pub(super) fn meet_the_converted(&mut self) {
        for index in 0..self.peers.len() {
            let Some(met) = self.peers[index].foreign else {
                continue;
            };
            let node = self.peers[index].node;
            let name = self.config.nodes[usize::from(node.0)];
            let config = self.log.config().map(|c| &c.config);
            let is_new = |s: &Standing| s.name == name && s.is_fed() && s.incarnation != met;
            if config.is_some_and(|c| c.nodes.iter().any(is_new)) {
                self.meet_again(node);
            }
        }
    }

    /// A peer that stays apart since it had another history may have given that up: it is met again. `false` if none stays apart.
    pub(super) fn meet_again(&mut self, node: NodeId) -> bool {
        let foreign = self.peer_mut(node).and_then(|p| p.foreign.take());
        foreign.is_some() && self.connect(node).is_ok()
    }

    pub(super) fn disconnect(&mut self, node: NodeId) -> AdminResult {
        let Some(peer) = self.peer_mut(node) else {
            return Err(AdminError::Failed("this is no peer".into()));
        };
        peer.wanted = false;
        peer.foreign = None;
        let conn = peer.conn;
        self.out.push_back(Output::Reach {
            peer: node,
            wanted: false,
        });
        if let Some(conn) = conn {
            self.give_up(conn, DropReason::Operator, true);
        }
        Ok(())
    }

    /// What this node can durably say of itself.
    pub(super) fn report_to(&self, node: NodeId, token: u64, granted: Epoch) -> Report {
        let sb = &self.metadata.wanted;
        let tail = self.log.durable_id();
        let promised = self.metadata.durable_promised;
        let promised_to = self.node_named(&sb.promised_to);
        let wait_ns = self.lease_wait_ns(node);
        Report {
            token,
            granted,
            uuid: sb.uuid,
            history: sb.history,
            incarnation: sb.incarnation,
            promised,
            promised_to: if promised == sb.promised {
                promised_to
            } else {
                None
            },
            tail,
            committed: self.committed.min(tail.seq),
            journal_floor: self.log.start().id.seq.next(),
            you_acked: self.peer(node).map_or(RecordId::NONE, |p| {
                if p.incarnation() == Some(p.known.0) {
                    p.known.1
                } else {
                    RecordId::NONE
                }
            }),
            lease_wait_ms: u32::try_from(wait_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX),
            fresh: self.fresh(),
            serving: self.serving() && self.lease_runs(),
            primary: self.leader.is_some(),
            candidate: self.candidacy.is_some(),
            damaged: self.damaged() || self.merging(),
            inconsistent: self.inconsistent() && !self.merging(),
            demoted: self.demoted,
            config: self.durable_config(),
            epochs: self.log.epochs_until(tail.seq),
            fences: self.metadata.durable_fences,
            volumes: self.volumes().digest(),
        }
    }

    pub(super) fn got_report(&mut self, conn: ConnId, report: Box<Report>) {
        let sb = &self.metadata.wanted;
        let me_fresh = self.fresh();
        if !me_fresh && !report.fresh && report.uuid != sb.uuid {
            let reason = DropReason::Unrelated("it belongs to another resource");
            self.give_up(conn, reason, true);
            return;
        }
        // Also who holds nothing yet has a history, once it is to join.
        let same_resource = report.uuid == sb.uuid && sb.uuid != ResourceUuid(0);
        if same_resource && report.history != sb.history {
            let reason = DropReason::Unrelated("it belongs to another history");
            let node = self.peer_of(conn).map(|p| p.node);
            self.give_up(conn, reason, true);
            if let Some(peer) = node.and_then(|n| self.peer_mut(n)) {
                peer.foreign = Some(report.incarnation);
            }
            return;
        }
        let sb = &self.metadata.wanted;
        let my_tail = self.kept();
        // A promise made after that acknowledgement was written together with what was acknowledged then, and a newer
        // Primary may have cut it since: only without one does the shorter log mean that something was lost.
        let rolled_back = !me_fresh
            && report.you_acked > my_tail
            && report.you_acked.epoch >= sb.promised
            && report.you_acked > sb.damaged_until;
        if rolled_back && self.incoming.is_empty() {
            self.log_error(format!(
                "this node has acknowledged record {} and holds nothing after {my_tail}: it was rolled back; \
                 it counts for nothing until it has caught up",
                report.you_acked
            ));
            // What was rolled back may have been applied before.
            let former_until = self.applier.former_until.max(report.you_acked.seq);
            self.applier.former_until = former_until;
            self.metadata.wanted.damaged_until = report.you_acked;
            self.metadata.changed();
        }
        let Some(node) = self.peer_of(conn).map(|p| p.node) else {
            return;
        };
        let tail = self.kept_by(node, &report);
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        // The first report went out before this node could know which life of the peer is there.
        let reports_less =
            peer.report.is_none() && peer.known.0 == report.incarnation && tail < peer.known.1;
        if peer.known.0 == report.incarnation {
            peer.known.1 = peer.known.1.max(tail);
        } else {
            peer.known = (report.incarnation, tail);
        }
        let (token, fresh) = (report.token, report.fresh);
        peer.report = Some(report);
        self.hear_marks(Some(node));
        if reports_less {
            let reminder = self.report_to(node, 0, Epoch(0));
            self.send(conn, Frame::Report(Box::new(reminder)));
        }
        if me_fresh && !fresh {
            self.adopt_first_config(node);
        }
        if !me_fresh && fresh && self.lists(node) {
            // It was fresh when this connection began, and so was this node: the first config came since.
            let news = self.report_to(node, 0, Epoch(0));
            self.send(conn, Frame::Report(Box::new(news)));
        }
        self.note_demoted_by(node);
        if token != 0 {
            self.candidate_report(node);
        }
        let feed = self.peer(node).map(|p| p.feed);
        let wants_feed =
            matches!(feed, Some(Feed::Asked)) || (token == 0 && !matches!(feed, Some(Feed::Off)));
        if self.leader.is_some() && wants_feed {
            self.start_feed(node);
        }
    }

    /// Whether the latest config that this node durably has lists a peer as it is now.
    fn lists(&self, node: NodeId) -> bool {
        let incarnation = self.peer(node).and_then(Peer::incarnation);
        incarnation.is_some_and(|i| {
            let config = self.durable_config();
            config.is_some_and(|c| c.config.standing(i).is_some())
        })
    }

    /// Connections that are silent for too long are given up; others hear that this node lives.
    pub(super) fn pump_silence(&mut self) {
        let (ping_ns, silence_ns) = (self.config.lease_ns() / 2, self.config.silence_ns());
        for index in 0..self.peers.len() {
            let peer = &self.peers[index];
            let Some(conn) = peer.conn else { continue };
            if self.now.since(peer.heard_at) >= silence_ns {
                let name = self.config.nodes[usize::from(peer.node.0)];
                self.log_warn(format!(
                    "{name} has been silent for too long: connection closed"
                ));
                self.give_up(conn, DropReason::Silent, false);
            } else if self.now.since(peer.sent_at) >= ping_ns {
                self.send(conn, Frame::Ping);
            }
        }
        if self.lost_sight() && self.now.since(self.looked_at) >= ping_ns {
            self.looked_at = self.now;
            let token = self.next_token();
            self.send_all(&Frame::Ask { token });
        }
    }

    /// Whether this node sees no Primary and does not know that there is none: one that it does not reach may go on with the
    /// others. Only they can tell whether this node's data is still the newest.
    fn lost_sight(&self) -> bool {
        self.leader.is_none()
            && self.following.is_none()
            && self.candidacy.is_none()
            && self.drain.is_none()
            && !self.released
            && !self.fresh()
            && self.peers.iter().any(|p| p.conn.is_some())
    }

    pub(super) fn silence_timeout(&self) -> Option<Time> {
        let (ping_ns, silence_ns) = (self.config.lease_ns() / 2, self.config.silence_ns());
        let look = self.lost_sight().then(|| self.looked_at.after(ping_ns));
        self.peers
            .iter()
            .filter(|p| p.conn.is_some())
            .map(|p| p.heard_at.after(silence_ns).min(p.sent_at.after(ping_ns)))
            .chain(look)
            .min()
    }

    pub(super) fn disk(&mut self, pending: Pending, op: DiskOp<M::Buffer>) {
        let ticket = self.pending.add(pending);
        self.out.push_back(Output::Disk { ticket, op });
    }
}
