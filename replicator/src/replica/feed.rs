//! Feeding peers the log: live from memory, from the journal what they lack (protocol C1), and a candidate what it asks for.

use super::Replica;
use super::peers::{Feed, Peer};
use crate::journal::log::{TableAt, Tail, last_common};
use crate::memory::{Buffer, Memory};
use crate::meta::config::ConfigAt;
use crate::replica::loads::LoadFor;
use crate::types::*;
use crate::wire::frame::{Frame, ResyncFrom};

/// Journal blocks sent to a peer and not yet acknowledged, at most (4 MiB).
const WINDOW_BLOCKS: u64 = 1024;

/// A peer that lags by more is behind (16 MiB).
const LAG_BLOCKS_MAX: u64 = 4 * WINDOW_BLOCKS;

/// Batches handed to the driver for one peer and not yet sent, at most.
const QUEUE_MAX: u32 = 64;

impl<M: Memory> Replica<M> {
    /// Finds where a peer's log and this one part, and feeds it from there (protocol C1).
    pub(in crate::replica) fn start_feed(&mut self, node: NodeId) {
        if self.log.config().is_none() {
            return;
        }
        let epochs = self.log.epochs().clone();
        let tail = self.log.tail().id;
        let Some(peer) = self.peer(node) else { return };
        let (Some(conn), Some(report)) = (peer.conn, peer.report.as_ref()) else {
            return;
        };
        let fed = self.is_to_be_fed(report.incarnation) && !self.joins_too_early(report);
        let feed = if !fed {
            Feed::NotMember
        } else if self.config.is_witness(node) {
            Feed::Witness { told: Seq(0) }
        } else if report.inconsistent && !planted!(InconsistentFed) {
            Feed::TooFar
        } else {
            let common = last_common(&epochs, tail, &report.epochs, report.tail)
                .map_or(report.committed, |id| id.seq);
            // What is older than this history is not handed out in its name.
            let forked = self.metadata.wanted.fork.map_or(Seq(0), |f| f.at.seq);
            let start = self.log.start().id.seq;
            // Who holds nothing yet may have been created with other volumes than the log began with.
            let suits = !report.fresh
                || (report.volumes == self.volumes().digest()
                    && self.log.applied_volumes_at() == Seq(0)
                    && self.log.unapplied_volumes().is_empty());
            // The batch with the last common record is sent too: it shows the peer that its log equals ours.
            let next = self.log.number_of(Seq(common.0.max(1)));
            match next.filter(|_| common > forked || forked == Seq(0)) {
                _ if !suits => Feed::TooFar,
                Some(next) => Feed::On {
                    next,
                    loading: false,
                },
                None if common == start && common >= forked => Feed::On {
                    next: self.log.first_number(),
                    loading: false,
                },
                None => Feed::TooFar,
            }
        };
        match feed {
            Feed::TooFar => {
                self.invite(node);
                let name = self.config.nodes[usize::from(node.0)];
                let journal_floor = self.log.start().id.seq.next();
                let inconsistent = |p: &Peer| p.report.as_ref().is_some_and(|r| r.inconsistent);
                let text = if self.peer(node).is_some_and(inconsistent) {
                    format!("{name} is Inconsistent: it is given what its stores lack")
                } else {
                    format!(
                        "{name} needs records that are no longer in the journal (it begins at {journal_floor}): it is Outdated"
                    )
                };
                self.log_warn(text);
                self.send(conn, Frame::TooFarBehind { journal_floor });
            }
            Feed::NotMember => self.log_warn(self.why_not_fed(node)),
            Feed::On { .. } => self.invite(node),
            _ => {}
        }
        let from = match feed {
            Feed::On { next, .. } => self.log.tail_before(next).position,
            _ => 0,
        };
        if let Some(peer) = self.peer_mut(node) {
            if peer.acked == Seq(0) {
                peer.acked_position = from;
            }
            peer.feed = feed;
            peer.staging = false;
            peer.catch_up_to = tail.seq;
            peer.caught_up = false;
        }
    }

    /// Journal bytes that a peer has not acknowledged.
    pub(in crate::replica) fn lag_blocks(&self, peer: &Peer) -> u64 {
        let acked = match self.log.number_of(peer.acked) {
            Some(number) => self.log.tail_before(number + 1).position,
            None => self.log.start().position,
        };
        self.log.tail().position - acked
    }

    /// Judges whether a peer that has just acknowledged something is caught up.
    pub(in crate::replica) fn judge_lag(&mut self, conn: ConnId) {
        let tail = self.log.tail().id.seq;
        let Some(index) = self.peers.iter().position(|p| p.conn == Some(conn)) else {
            return;
        };
        let lag = self.lag_blocks(&self.peers[index]);
        let peer = &mut self.peers[index];
        if peer.caught_up && lag > LAG_BLOCKS_MAX {
            peer.caught_up = false;
            peer.catch_up_to = tail;
        } else if !peer.caught_up && peer.acked >= peer.catch_up_to {
            peer.caught_up = lag <= WINDOW_BLOCKS;
            peer.catch_up_to = tail;
        }
    }

    /// Sends what a peer lacks, as far as its window and queue allow.
    pub(in crate::replica) fn pump_feeds(&mut self) {
        let Some(leader) = &self.leader else { return };
        let epoch = leader.epoch;
        for index in 0..self.peers.len() {
            self.tell_witness(index);
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
            let next = next.max(self.number_after_acked(peer));
            let limit = self.feed_limit(peer).min(self.feed_end(peer));
            if next >= limit || peer.queued >= QUEUE_MAX {
                return;
            }
            if peer.staging && self.serves.reads_for(conn) {
                return;
            }
            if next < self.log.first_number() {
                let node = peer.node;
                self.start_feed(node);
                continue;
            }
            let mut acked_to = peer.acked_position;
            if planted!(WindowFromJournal) {
                acked_to = acked_to.max(self.log.start().position);
            }
            if planted!(FeedsInStep) {
                let fed = self
                    .peers
                    .iter()
                    .filter(|p| matches!(p.feed, Feed::On { .. }));
                acked_to = fed.map(|p| p.acked_position).fold(acked_to, u64::min);
            }
            let entry = self
                .log
                .entry(next)
                .expect("it is between the first and the next number");
            let unacked = entry.end().saturating_sub(acked_to);
            if unacked > WINDOW_BLOCKS && !planted!(WindowIgnored) {
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
            let end = self.log.durable_number().min(limit);
            if self
                .start_load_until(next, end, LoadFor::Feed(conn))
                .is_some()
            {
                self.peers[index].feed = Feed::On {
                    next,
                    loading: true,
                };
            }
            return;
        }
    }

    /// The number of the first entry that a peer has not acknowledged in this epoch, on this connection; 0 if that is not
    /// known. A report makes its feed begin anew from what that says, and acknowledgements that follow the report say more: what
    /// it has is not sent again, nor outside of the window.
    fn number_after_acked(&self, peer: &Peer) -> u64 {
        let number = self.log.number_of(peer.acked);
        number.map_or(0, |n| n + 1)
    }

    /// The number of the entry at which what a peer may be sent ends. A resync is about what is committed: nothing that is
    /// staged is ever taken back, and a peer that is needed for a majority can end it first.
    pub(in crate::replica) fn feed_limit(&self, peer: &Peer) -> u64 {
        if peer.staging && !planted!(ResyncUncommitted) {
            self.committed_number(self.committed)
        } else {
            self.log.next_number()
        }
    }

    /// One of the batches that were read for a peer; the rest of them follows.
    pub(in crate::replica) fn feed_loaded(&mut self, conn: ConnId, number: u64, buffer: M::Buffer) {
        let Some(leader) = &self.leader else { return };
        let (epoch, committed) = (leader.epoch, self.committed);
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        let expected = Feed::On {
            next: number,
            loading: true,
        };
        if peer.feed != expected {
            return;
        }
        peer.feed = Feed::On {
            next: number + 1,
            loading: true,
        };
        let peer = self.peers.iter().find(|p| p.conn == Some(conn));
        if peer.is_none_or(|p| number >= self.number_after_acked(p)) {
            self.send_with(conn, Frame::Append { epoch, committed }, Some(buffer));
        }
    }

    /// What was read for a peer has been sent, or was gone.
    pub(in crate::replica) fn feed_goes_on(&mut self, conn: ConnId) {
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

    /// What a peer needs next can not be had from this node's journal: for that peer it is as if it were past it.
    pub(in crate::replica) fn feed_ends(&mut self, conn: ConnId) {
        let journal_floor = self.log.start().id.seq.next();
        if let Some(peer) = self.peer_of(conn) {
            peer.feed = Feed::TooFar;
            peer.caught_up = false;
            self.send(conn, Frame::TooFarBehind { journal_floor });
        }
    }

    /// A peer that is past the journal wants to be given what it lacks otherwise: it has staged something through a record,
    /// of which at least what is at or below `committed` is in this log. The stream begins there if that is known to be committed and
    /// the journal still has what follows, else at the end of what is committed.
    pub(in crate::replica) fn got_resync_ask(
        &mut self,
        conn: ConnId,
        token: u64,
        staged: RecordId,
        committed: Seq,
    ) {
        if self.leader.is_none() {
            return;
        }
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        if !peer.staging && peer.feed != Feed::TooFar {
            return;
        }
        self.serves.forget_resync(conn);
        // The peer begins anew with each change of the volumes that its stream holds, and the stream begins before that until then.
        self.applier.urgent |= !self.log.unapplied_volumes().is_empty();
        let has = staged != RecordId::NONE && self.log.contains(staged);
        let common = if has {
            staged.seq
        } else {
            committed.min(staged.seq)
        };
        // What this Primary does not know to be committed its answers do not hold.
        let end = self.committed_number(self.committed);
        let common = common.min(self.log.tail_before(end).id.seq);
        let (place, next, config) = self.stream_from(common);
        let Some(config) = config else { return };
        let epochs = self.log.epochs_until(place.id.seq);
        let volumes = TableAt {
            at: self.log.applied_volumes_at(),
            volumes: self.volumes().clone(),
        };
        let from = ResyncFrom {
            token,
            at: place.id,
            blocks: place.blocks,
            checksum: place.checksum,
            common,
            config,
            epochs,
            volumes,
        };
        if let Some(peer) = self.peer_of(conn) {
            peer.staging = true;
            peer.staged = place.id.seq;
            peer.acked = Seq(0);
            peer.acked_position = place.position;
            peer.caught_up = false;
            peer.feed = Feed::On {
                next,
                loading: false,
            };
        }
        self.send(conn, Frame::ResyncFrom(Box::new(from)));
    }

    /// Where a stream of records for a resync begins: the place, the number of the next entry, and the config there.
    fn stream_from(&self, common: Seq) -> (Tail, u64, Option<ConfigAt>) {
        // Answers are about the volumes that the stores have: what changes them comes in the stream.
        let end = self.committed_number(self.committed);
        let end = end.min(self.log.next_volumes_number().unwrap_or(end));
        let end = (self.log.tail_before(end), end);
        let volumes_at = self.log.applied_volumes_at();
        let number = self.log.number_of(common.next());
        let begins =
            number.filter(|&n| self.log.entry(n).is_some_and(|e| e.first == common.next()));
        let forked = self.metadata.wanted.fork.map_or(Seq(0), |f| f.at.seq);
        let (place, next) = match begins {
            Some(number) if common > Seq(0) && common >= forked && common >= volumes_at => {
                (self.log.tail_before(number), number)
            }
            _ => end,
        };
        // A config that is not known for so early a place: then there is no stream from there.
        let config = |place: &Tail| {
            let epoch = self.log.epochs_until(place.id.seq).last().map(|e| e.epoch);
            let config = self.log.config_at(place.id.seq).cloned();
            config.filter(|_| epoch == Some(place.id.epoch))
        };
        match config(&place) {
            Some(config) => (place, next, Some(config)),
            None => (end.0, end.1, config(&end.0)),
        }
    }

    pub(in crate::replica) fn got_staged(
        &mut self,
        conn: ConnId,
        epoch: Epoch,
        seq: Seq,
        sync: (u64, u64),
    ) {
        if self.leader.as_ref().is_none_or(|l| l.epoch != epoch) {
            return;
        }
        let number = self.log.number_of(seq);
        let position = number.map(|n| self.log.tail_before(n + 1).position);
        if let Some(peer) = self.peer_of(conn).filter(|p| p.staging) {
            peer.sync = sync;
            peer.staged = peer.staged.max(seq);
            if let Some(position) = position {
                peer.acked_position = peer.acked_position.max(position);
            }
        }
    }

    pub(in crate::replica) fn batch_sent(&mut self, conn: ConnId) {
        if let Some(peer) = self.peer_of(conn) {
            peer.queued = peer.queued.saturating_sub(1);
        }
    }

    /// Another node, a candidate, wants what follows a record.
    pub(in crate::replica) fn got_fetch(&mut self, conn: ConnId, token: u64, after: Seq) {
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

    pub(in crate::replica) fn fetch_loaded(
        &mut self,
        conn: ConnId,
        token: u64,
        buffer: Option<M::Buffer>,
    ) {
        debug_assert!(buffer.as_ref().is_none_or(|b| b.blocks() > 0));
        self.send_with(conn, Frame::Fetched { token }, buffer);
    }
}
