//! Peers: who is connected, what they said of themselves, and feeding them the log, live or from the journal.

use super::{Pending, Replica};
use crate::io::*;
use crate::journal::log::last_common;
use crate::memory::{Buffer, Memory};
use crate::replica::loads::LoadFor;
use crate::types::*;
use crate::wire::frame::{Frame, Report};

/// Journal blocks sent to a peer and not yet acknowledged, at most (4 MiB).
const WINDOW_BLOCKS: u64 = 1024;

/// Batches handed to the driver for one peer and not yet sent, at most.
const QUEUE_MAX: u32 = 64;

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
    /// It is no member under its incarnation: a wiped or foreign node.
    NotMember,
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
    queued: u32,
    /// When the newest heartbeat that it answered was queued.
    pub(super) supported_at: Option<Time>,
    /// The higher epoch for which it refused this Primary.
    pub(super) refused: Option<(Epoch, Time)>,
    /// The newest that it was ever heard to have, under which incarnation: a node that reports less was rolled back.
    pub(super) known: (Incarnation, RecordId),
    /// It told this node that it is past its journal.
    pub(super) told_too_far: bool,
    /// How far behind it was when its feed began has been made up.
    pub(super) caught_up: bool,
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
            queued: 0,
            supported_at: None,
            refused: None,
            known: (Incarnation(0), RecordId::NONE),
            told_too_far: false,
            caught_up: false,
        }
    }

    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        self.report.as_ref().map(|r| r.incarnation)
    }

    /// Forgets what belongs to one reign.
    pub(super) fn new_reign(&mut self) {
        self.acked = Seq(0);
        self.supported_at = None;
        self.refused = None;
        self.caught_up = false;
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

    fn send_with(&mut self, conn: ConnId, frame: Frame, batch: Option<M::Buffer>) {
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
        let known = peer.known;
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
        let (known, wanted) = (peer.known, peer.wanted);
        *peer = Peer {
            known,
            wanted,
            ..Peer::new(node)
        };
        self.incoming.retain(|i| i.conn != conn);
        if self.following.is_some_and(|f| f.conn == conn) {
            self.following = None;
            self.matched = Seq(0);
        }
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

    pub(super) fn disconnect(&mut self, node: NodeId) -> AdminResult {
        let Some(peer) = self.peer_mut(node) else {
            return Err(AdminError::Failed("this is no peer".into()));
        };
        peer.wanted = false;
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
            damaged: self.damaged(),
            demoted: self.demoted,
            config: self.log.config_at(tail.seq).cloned(),
            epochs: self.log.epochs_until(tail.seq),
        }
    }

    pub(super) fn got_report(&mut self, conn: ConnId, report: Box<Report>) {
        let sb = &self.metadata.wanted;
        let me_fresh = self.fresh();
        if !me_fresh && !report.fresh {
            if report.uuid != sb.uuid {
                let reason = DropReason::Unrelated("it belongs to another resource");
                self.give_up(conn, reason, true);
                return;
            }
            if report.history != sb.history {
                let reason = DropReason::Unrelated("it belongs to another history");
                self.give_up(conn, reason, true);
                return;
            }
        }
        let my_tail = self.log.durable_id();
        // A record is cut only under a promise above its epoch, and none is acknowledged under one: so a node that promised
        // more has cut what the peer remembers, and one that did not has lost it.
        let rolled_back = !me_fresh
            && report.you_acked > my_tail
            && report.you_acked > sb.damaged_until
            && report.you_acked.epoch >= sb.promised;
        if rolled_back && self.incoming.is_empty() {
            self.log_error(format!(
                "this node has acknowledged record {} and its log ends at {my_tail}: it was rolled back; \
                 it counts for nothing until it has caught up",
                report.you_acked
            ));
            self.metadata.wanted.damaged_until = report.you_acked;
            self.metadata.changed();
        }
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        let node = peer.node;
        let tail = report.tail;
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
        if reports_less {
            let reminder = self.report_to(node, 0, Epoch(0));
            self.send(conn, Frame::Report(Box::new(reminder)));
        }
        if me_fresh && !fresh {
            self.adopt_first_config(node);
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

    /// Finds where a peer's log and this one part, and feeds it from there (protocol C1).
    pub(super) fn start_feed(&mut self, node: NodeId) {
        let Some(config) = self.log.config().map(|c| c.config.clone()) else {
            return;
        };
        let epochs = self.log.epochs().clone();
        let tail = self.log.tail().id;
        let Some(peer) = self.peer(node) else { return };
        let (Some(conn), Some(report)) = (peer.conn, peer.report.as_ref()) else {
            return;
        };
        let feed = if !config.is_member(report.incarnation) {
            Feed::NotMember
        } else {
            let common = last_common(&epochs, tail, &report.epochs, report.tail)
                .map_or(report.committed, |id| id.seq);
            let start = self.log.start().id.seq;
            // The batch with the last common record is sent too: it shows the peer that its log equals ours.
            let next = self.log.number_of(Seq(common.0.max(1)));
            match next {
                Some(next) => Feed::On {
                    next,
                    loading: false,
                },
                None if common == start => Feed::On {
                    next: self.log.first_number(),
                    loading: false,
                },
                None => Feed::TooFar,
            }
        };
        let name = self.config.nodes[usize::from(node.0)];
        match feed {
            Feed::TooFar => {
                let journal_floor = self.log.start().id.seq.next();
                self.send(conn, Frame::TooFarBehind { journal_floor });
                self.log_warn(format!(
                    "{name} needs records that are no longer in the journal (it begins at {journal_floor}): it is Outdated"
                ));
            }
            Feed::NotMember => self.log_warn(format!(
                "{name} is no member under its present incarnation (a new or wiped node): it counts for nothing"
            )),
            _ => {}
        }
        if let Some(peer) = self.peer_mut(node) {
            peer.feed = feed;
            peer.caught_up = false;
        }
    }

    /// Sends what a peer lacks, as far as its window and queue allow.
    pub(super) fn pump_feeds(&mut self) {
        let Some(leader) = &self.leader else { return };
        let epoch = leader.epoch;
        for index in 0..self.peers.len() {
            self.feed_peer(index, epoch);
        }
    }

    fn feed_peer(&mut self, index: usize, epoch: Epoch) {
        loop {
            let peer = &self.peers[index];
            let (
                Some(conn),
                Feed::On {
                    next,
                    loading: false,
                },
            ) = (peer.conn, peer.feed)
            else {
                return;
            };
            if next >= self.log.next_number() || peer.queued >= QUEUE_MAX {
                return;
            }
            if next < self.log.first_number() {
                let node = peer.node;
                self.start_feed(node);
                continue;
            }
            let acked_to = match self.log.number_of(peer.acked) {
                Some(number) => self.log.tail_before(number + 1).position,
                None => self.log.start().position,
            };
            let entry = self
                .log
                .entry(next)
                .expect("it is between the first and the next number");
            let sent_from = if peer.acked == Seq(0) {
                entry.position
            } else {
                acked_to
            };
            let first_of_feed = peer.acked == Seq(0) && peer.queued == 0;
            if !first_of_feed && entry.end().saturating_sub(sent_from) > WINDOW_BLOCKS {
                return;
            }
            // Until the first acknowledgement a few batches are all that goes unanswered.
            if peer.acked == Seq(0) && peer.queued >= 16 {
                return;
            }
            let committed = self.committed;
            if let Some(buffer) = entry.buffer.clone() {
                self.peers[index].feed = Feed::On {
                    next: next + 1,
                    loading: false,
                };
                self.send_with(conn, Frame::Append { epoch, committed }, Some(buffer));
                self.committed_told = committed;
                continue;
            }
            if !self.applier.starves() && self.start_load(next, LoadFor::Feed(conn)) {
                self.peers[index].feed = Feed::On {
                    next,
                    loading: true,
                };
            }
            return;
        }
    }

    pub(super) fn feed_loaded(&mut self, conn: ConnId, number: u64, buffer: M::Buffer) {
        let Some(leader) = &self.leader else { return };
        let (epoch, committed) = (leader.epoch, self.committed);
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        if peer.feed
            != (Feed::On {
                next: number,
                loading: true,
            })
        {
            return;
        }
        peer.feed = Feed::On {
            next: number + 1,
            loading: false,
        };
        self.send_with(conn, Frame::Append { epoch, committed }, Some(buffer));
    }

    pub(super) fn feed_gone(&mut self, conn: ConnId) {
        if let Some(peer) = self.peer_of(conn)
            && let Feed::On {
                next,
                loading: true,
            } = peer.feed
        {
            peer.feed = Feed::On {
                next,
                loading: false,
            };
        }
    }

    pub(super) fn batch_sent(&mut self, conn: ConnId) {
        if let Some(peer) = self.peer_of(conn) {
            peer.queued = peer.queued.saturating_sub(1);
        }
    }

    /// Another node, a candidate, wants what follows a record.
    pub(super) fn got_fetch(&mut self, conn: ConnId, token: u64, after: Seq) {
        let number = self.log.number_of(after.next());
        let found = number.filter(|&n| {
            n < self.log.durable_number()
                && self.log.entry(n).is_some_and(|e| e.first == after.next())
        });
        let Some(number) = found else {
            self.send(conn, Frame::Fetched { token });
            return;
        };
        if let Some(buffer) = self.log.entry(number).and_then(|e| e.buffer.clone()) {
            self.fetch_loaded(conn, token, Some(buffer));
        } else if !self.start_load(number, LoadFor::Fetch(conn, token)) {
            self.send(conn, Frame::Fetched { token });
        }
    }

    pub(super) fn fetch_loaded(&mut self, conn: ConnId, token: u64, buffer: Option<M::Buffer>) {
        debug_assert!(buffer.as_ref().is_none_or(|b| b.blocks() > 0));
        self.send_with(conn, Frame::Fetched { token }, buffer);
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
    }

    pub(super) fn silence_timeout(&self) -> Option<Time> {
        let (ping_ns, silence_ns) = (self.config.lease_ns() / 2, self.config.silence_ns());
        self.peers
            .iter()
            .filter(|p| p.conn.is_some())
            .map(|p| p.heard_at.after(silence_ns).min(p.sent_at.after(ping_ns)))
            .min()
    }

    pub(super) fn disk(&mut self, pending: Pending, op: DiskOp<M::Buffer>) {
        let ticket = self.pending.add(pending);
        self.out.push_back(Output::Disk { ticket, op });
    }
}
