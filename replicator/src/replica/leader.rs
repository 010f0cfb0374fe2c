//! Being Primary: the lease, what is committed, and stepping down.

mod demotion;

pub(super) use self::demotion::DemoteFor;

use self::demotion::Demoting;
use super::Replica;
use crate::io::*;
use crate::journal::batch::{self, Draft, Kind, Place};
use crate::memory::{Buffer, Memory, Purpose};
use crate::meta::config::{ClusterConfig, ConfigAt, majority};
use crate::replica::config::AckPolicy;
use crate::replica::peers::{Feed, Peer};
use crate::replica::volumes::Payload;
use crate::types::*;
use crate::wire::frame::Frame;

/// Heartbeats whose time of sending is remembered.
const HEARTBEATS: usize = 32;

/// A commit is told to the peers after this long if no batch carries the news before.
const TELL_COMMIT_NS: u64 = 5_000_000;

/// The bound on the drift of clocks against each other, in percent: a Primary counts its lease shorter, a voter longer.
const DRIFT_PERCENT: u64 = 1;

/// A reign.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) epoch: Epoch,
    /// Whether its epoch record is committed: only then exports are open.
    pub(super) committed: bool,
    /// Whether its exports were open once: its stores had all tables of volumes.
    pub(super) opened: bool,
    /// When it began.
    pub(super) began_at: Time,
    heartbeat: u64,
    heartbeat_at: Time,
    sent: [(u64, Time); HEARTBEATS],
    /// When the lease began or was last found running; the voter's view of this node's own reign.
    pub(super) ran_at: Time,
    pub(super) demoting: Option<Demoting>,
    tell_commit_at: Option<Time>,
    was_running: bool,
}

impl<M: Memory> Replica<M> {
    /// Whether this node is Primary: its epoch record is committed.
    pub(super) fn serving(&self) -> bool {
        self.leader.as_ref().is_some_and(|l| l.committed)
    }

    pub(super) fn demoting(&self) -> bool {
        self.leader.as_ref().is_some_and(|l| l.demoting.is_some())
    }

    /// Until when this Primary may answer (protocol L1): while a change of the membership is pending, by all configs.
    pub(super) fn lease_until(&self) -> Time {
        if self.leader.is_none() {
            return Time(0);
        }
        let mut rules = self.rules();
        if planted!(LeaseOfNewAlone) {
            rules = &rules[rules.len().saturating_sub(1)..];
        }
        let times = rules.iter().map(|c| self.lease_under(&c.config));
        times.min().unwrap_or(Time(0))
    }

    /// The same by the voters of one config.
    fn lease_under(&self, config: &ClusterConfig) -> Time {
        let own = self.metadata.wanted.incarnation;
        let counts = |p: &&Peer| {
            let incarnation = p.incarnation();
            incarnation.is_some_and(|i| config.is_voter(i) && !self.is_taken_for_stopped(i))
        };
        let peers = self.peers.iter().filter(counts);
        let mut times: arrayvec::ArrayVec<Time, NODES_MAX> =
            peers.filter_map(|p| p.supported_at).collect();
        // This node itself is one of the majority, if it votes.
        let needed = majority(config.voters()) - usize::from(config.is_voter(own));
        if needed == 0 {
            return Time(u64::MAX);
        }
        times.sort_unstable_by(|a, b| b.cmp(a));
        match times.get(needed - 1) {
            Some(at) => at.after(self.config.lease_ns() * (100 - DRIFT_PERCENT) / 100),
            None => Time(0),
        }
    }

    pub(super) fn lease_runs(&self) -> bool {
        self.now < self.lease_until()
    }

    /// How long until this node, as a voter, may promise a newer epoch to `asker`, in nanoseconds (protocol L2).
    pub(super) fn lease_wait_ns(&self, asker: NodeId) -> u64 {
        let lease_ns = u64::from(self.metadata.wanted.lease_ms) * 1_000_000;
        let wait = lease_ns * (100 + DRIFT_PERCENT) / 100;
        if planted!(NoLeaseWait) {
            return 0;
        }
        if let Some(leader) = &self.leader {
            if asker == self.config.me {
                return 0;
            }
            let until = leader.ran_at.after(wait);
            return until.since(self.now);
        }
        let is_off = self.last_primary.is_some_and(|p| self.is_confirmed(p));
        if lease_ns == 0 || self.released || is_off || self.last_primary == Some(asker) {
            return 0;
        }
        let from = self.started_at.max(self.heartbeat_heard_at);
        from.after(wait).since(self.now)
    }

    /// Makes a batch of this node's own of a draft whose payload is in `buffer` already, and appends it.
    pub(super) fn append_own(
        &mut self,
        draft: &Draft,
        mut buffer: M::Buffer,
        config: Option<ClusterConfig>,
    ) -> u64 {
        let leader = self.leader.as_ref().expect("only a Primary makes records");
        let tail = self.log.tail();
        let sb = &self.metadata.wanted;
        let place = Place {
            uuid: sb.uuid,
            history: sb.history,
            epoch: leader.epoch,
            prev: tail.id,
            prev_blocks: tail.blocks,
            prev_checksum: tail.checksum,
            committed: self.committed,
        };
        let header = draft.write_header(&place, &mut buffer.bytes_mut()[..BLOCK_BYTES]);
        self.log
            .append(&header, draft.records().iter().copied(), config, buffer)
    }

    /// Appends a control record. `false` if there is no memory or no room right now.
    pub(super) fn append_control(&mut self, kind: Kind, brings: Payload) -> bool {
        let payload = u32::from(!matches!(brings, Payload::None));
        if !self.log.has_room(1 + payload, 1, 0) {
            return false;
        }
        let Some(mut buffer) = self.memory.alloc(Purpose::Core, 1 + payload) else {
            return false;
        };
        let mut draft = Draft::default();
        match &brings {
            Payload::None => {}
            Payload::Config(config) => {
                batch::write_config(config, &mut buffer.bytes_mut()[BLOCK_BYTES..]);
            }
            Payload::Volumes(volumes) => {
                batch::write_volumes(volumes, &mut buffer.bytes_mut()[BLOCK_BYTES..]);
            }
        }
        draft.push(
            kind,
            VolumeId(0),
            0,
            payload,
            &buffer.bytes()[BLOCK_BYTES..],
        );
        match brings {
            Payload::None => self.append_own(&draft, buffer, None),
            Payload::Config(config) => self.append_own(&draft, buffer, Some(*config)),
            Payload::Volumes(volumes) => {
                let number = self.append_own(&draft, buffer, None);
                self.log.note_volumes(*volumes);
                number
            }
        };
        true
    }

    /// Begins a reign: the epoch record is appended, the peers are fed, the lease is sought. `false` if that must be
    /// tried again.
    pub(super) fn begin_reign(&mut self, epoch: Epoch, config: ClusterConfig) -> bool {
        self.close_batch();
        let continued = self.leader.take();
        let was_serving = continued.as_ref().is_some_and(|l| l.committed);
        self.leader = Some(Leader {
            epoch,
            committed: false,
            opened: false,
            began_at: self.now,
            heartbeat: 0,
            heartbeat_at: self.now,
            sent: [(0, Time(0)); HEARTBEATS],
            ran_at: self.now,
            demoting: None,
            tell_commit_at: None,
            was_running: false,
        });
        if !self.append_control(Kind::Epoch, Payload::Config(Box::new(config))) {
            self.leader = continued;
            self.applier.urgent = true;
            return false;
        }
        if !was_serving {
            self.rebuild_overlay();
        }
        // What it brings is older than what this node writes from here on.
        self.resync_abandon();
        self.following = None;
        self.matched = Seq(0);
        self.incoming.clear();
        self.released = false;
        self.told_outdated = false;
        self.last_primary = Some(self.config.me);
        self.primary_epoch = epoch;
        if self.metadata.wanted.lease_ms < self.config.lease_ms {
            self.metadata.wanted.lease_ms = self.config.lease_ms;
            self.metadata.changed();
        }
        for index in 0..self.peers.len() {
            let granted = self.peers[index]
                .report
                .as_ref()
                .is_some_and(|r| r.granted == epoch);
            self.peers[index].new_reign();
            let (node, conn) = (self.peers[index].node, self.peers[index].conn);
            let Some(conn) = conn else { continue };
            if granted {
                self.start_feed(node);
            } else {
                let token = self.next_token();
                self.send(conn, Frame::Ask { token });
            }
        }
        self.heartbeat();
        true
    }

    fn heartbeat(&mut self) {
        let now = self.now;
        let Some(leader) = self.leader.as_mut() else {
            return;
        };
        leader.heartbeat += 1;
        let number = leader.heartbeat;
        leader.sent[usize::try_from(number).expect("64 bits") % HEARTBEATS] = (number, now);
        leader.heartbeat_at = now.after(self.config.heartbeat_ns());
        self.repeat_heartbeat();
    }

    /// Sends the last heartbeat again, with what is committed now. Its time of sending stays the earlier one, which only
    /// makes the lease shorter.
    pub(super) fn repeat_heartbeat(&mut self) {
        for index in 0..self.peers.len() {
            if let Some(conn) = self.peers[index].conn {
                self.heartbeat_to(conn);
            }
        }
        self.committed_told = self.committed;
    }

    /// The last heartbeat, to one peer.
    pub(super) fn heartbeat_to(&mut self, conn: ConnId) {
        let Some(leader) = &self.leader else { return };
        let frame = Frame::Heartbeat {
            epoch: leader.epoch,
            number: leader.heartbeat,
            committed: self.committed,
            tail: self.log.tail().id.seq,
            lease_ms: self.config.lease_ms,
            settled: self.settled_config().map_or(RecordId::NONE, |c| c.at),
        };
        self.send(conn, frame);
    }

    pub(super) fn got_heartbeat_ack(
        &mut self,
        conn: ConnId,
        epoch: Epoch,
        number: u64,
        applied: Seq,
    ) {
        let Some(leader) = &self.leader else { return };
        if leader.epoch != epoch {
            return;
        }
        let (known, mut at) = leader.sent[usize::try_from(number).unwrap_or(0) % HEARTBEATS];
        if planted!(LeaseFromReceipt) {
            at = self.now;
        }
        if let Some(peer) = self.peer_of(conn) {
            peer.applied = peer.applied.max(applied);
        }
        if known != number || number == 0 {
            return;
        }
        if let Some(peer) = self.peer_of(conn) {
            peer.supported_at = peer.supported_at.max(Some(at));
            peer.refused = None;
        }
    }

    pub(super) fn got_ack(&mut self, conn: ConnId, epoch: Epoch, seq: Seq) {
        let Some(leader) = &self.leader else { return };
        let tail = self.log.tail().id.seq;
        if leader.epoch != epoch {
            return;
        }
        if seq > tail && !planted!(AckUnchecked) {
            let reason = DropReason::Protocol("it acknowledged a record that was never sent");
            self.give_up(conn, reason, false);
            return;
        }
        let start = self.log.start();
        let place = match self.log.number_of(seq) {
            Some(number) => Some(self.log.tail_before(number + 1)),
            None => (seq == start.id.seq).then_some(start),
        };
        let now = self.now;
        if let Some(peer) = self.peer_of(conn) {
            // What it staged is its log now.
            peer.staging &= seq < peer.staged;
            if seq > peer.acked {
                peer.advanced_at = now;
            }
            peer.acked = peer.acked.max(seq);
            if let Some(place) = place {
                peer.acked_position = peer.acked_position.max(place.position);
                peer.known.1 = peer.known.1.max(place.id);
            }
        }
        self.judge_lag(conn);
    }

    /// A peer promised somebody else a newer epoch.
    pub(super) fn got_refused(&mut self, conn: ConnId, promised: Epoch) {
        let now = self.now;
        let Some(leader) = &self.leader else { return };
        if promised <= leader.epoch {
            return;
        }
        self.highest_seen = self.highest_seen.max(promised);
        let Some(peer) = self.peer_of(conn) else {
            return;
        };
        if peer.refused.is_none() {
            peer.refused = Some((promised, now));
        }
    }

    /// How far a voter's or member's journal is known to equal this one: this node's own, or a peer's. A witness has the
    /// record of the latest config that it confirmed, and counts with that alone (protocol M3).
    pub(super) fn acked_by(&self, incarnation: Incarnation) -> Seq {
        if incarnation == self.metadata.wanted.incarnation {
            if planted!(CountOwnBeforeDurable) {
                return self.log.tail().id.seq;
            }
            return self.log.durable_id().seq;
        }
        if self.is_taken_for_stopped(incarnation) {
            return Seq(0);
        }
        self.peers
            .iter()
            .find(|p| p.conn.is_some() && p.incarnation() == Some(incarnation))
            .map_or(Seq(0), |p| p.acked)
    }

    /// The newest record that `needed` of the chosen nodes have.
    pub(super) fn reached(&self, config: &ClusterConfig, voters: bool) -> Seq {
        let mut acks: arrayvec::ArrayVec<Seq, NODES_MAX> = config
            .nodes
            .iter()
            .filter(|n| if voters { n.voter } else { n.member })
            .map(|n| self.acked_by(n.incarnation))
            .collect();
        acks.sort_unstable_by(|a, b| b.cmp(a));
        acks[majority(acks.len()) - 1 - usize::from(planted!(CommitWithOneLess))]
    }

    /// Works out what is committed (protocol N4, M2, M3) and what follows from it.
    pub(super) fn pump_commit(&mut self) {
        let Some(leader) = &self.leader else { return };
        let Some(newest) = self.log.config() else {
            return;
        };
        let (serves, at) = (leader.committed, newest.at.seq);
        let pending = at > self.committed;
        let carries_change = !pending || self.change_is_committed(newest);
        // While a change is pending, and until a restart would know that it is not, all rules have to be met.
        let mut rules = self.rules();
        if planted!(NewRuleTooEarly) {
            rules = &rules[rules.len().saturating_sub(1)..];
        }
        let reached = |c: &ConfigAt| self.reached(&c.config, false);
        let mut reached = rules.iter().map(reached).min().unwrap_or(Seq(0));
        if carries_change {
            reached = reached.max(at);
        } else if serves {
            // Nor does anything pass the change that one which is taken back restores (M5): it is committed by its own rules or
            // with that one.
            let first = self.log.configs().iter().map(|c| c.at.seq);
            let first = first.filter(|seq| *seq > self.committed).min();
            reached = reached.min(Seq(first.unwrap_or(at).0 - 1));
        } else {
            if planted!(CommitByCounting) {
                self.committed = self.committed.max(reached);
            }
            return;
        }
        if !serves {
            self.log_info(format!("this node is Primary of epoch {}", leader.epoch));
            if let Some(leader) = self.leader.as_mut() {
                leader.committed = true;
            }
        }
        if planted!(CommitWaitsForAll) {
            let connected = self.peers.iter().filter(|p| p.conn.is_some());
            reached = connected.map(|p| p.acked).fold(reached, Seq::min);
        }
        if reached > self.committed {
            self.committed = reached;
            // That a change of the membership is committed is news for who may have to go on without this node.
            let wait_ns = if pending { 0 } else { TELL_COMMIT_NS };
            let tell = self.now.after(wait_ns);
            if let Some(leader) = self.leader.as_mut() {
                let at = leader.tell_commit_at.get_or_insert(tell);
                *at = tell.min(*at);
            }
        }
        let mut answer = self.committed;
        if self.config.ack == AckPolicy::All {
            let newest = self.log.config();
            let member = |i| newest.is_some_and(|c| c.config.is_member(i));
            for peer in &self.peers {
                let counts = peer.incarnation().is_some_and(member);
                let fed = matches!(peer.feed, Feed::On { .. }) && peer.caught_up;
                // Who says that its disks do not answer is as good as away.
                let fed = fed && !peer.disks_hang;
                if peer.conn.is_some() && counts && fed {
                    answer = answer.min(peer.acked);
                }
            }
        }
        self.pump_committed(answer);
    }

    /// What the passing of time does to a reign.
    pub(super) fn pump_leader(&mut self) {
        let runs = self.lease_runs();
        let now = self.now;
        let Some(leader) = self.leader.as_mut() else {
            return;
        };
        if runs {
            leader.ran_at = now;
        }
        let (changed, committed) = (leader.was_running != runs, leader.committed);
        leader.was_running = runs;
        if changed && committed {
            if runs {
                self.log_info("the lease runs: I/O is served".into());
            } else {
                self.log_warn("the lease is over: a majority can not be reached, I/O waits".into());
            }
        }
        let Some(leader) = self.leader.as_mut() else {
            return;
        };
        if leader.heartbeat_at <= now {
            self.heartbeat();
        }
        let Some(leader) = self.leader.as_mut() else {
            return;
        };
        if leader.tell_commit_at.is_some_and(|at| at <= now) {
            leader.tell_commit_at = None;
            if self.committed_told < self.committed {
                // Not a new heartbeat: only few of those are remembered, and a slow peer answers late.
                self.repeat_heartbeat();
            }
        }
        self.pump_demoting();
        self.pump_refused();
    }

    pub(super) fn leader_timeout(&self) -> Option<Time> {
        let leader = self.leader.as_ref()?;
        let until = self.lease_until();
        let lease = (leader.was_running && until.0 != u64::MAX).then_some(until);
        let demote = leader.demoting.as_ref().map(|d| d.deadline);
        [
            Some(leader.heartbeat_at),
            leader.tell_commit_at,
            lease,
            demote,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Peers that promised a newer epoch: a majority of them means that this reign is over; fewer are won back by a
    /// higher epoch of this node's own (protocol P5).
    fn pump_refused(&mut self) {
        let Some(leader) = &self.leader else { return };
        let refusing = self
            .peers
            .iter()
            .filter(|p| p.refused.is_some_and(|(e, _)| e > leader.epoch));
        let voters = |config: &ClusterConfig| {
            let votes = |p: &&Peer| p.incarnation().is_some_and(|i| config.is_voter(i));
            refusing.clone().filter(votes).count()
        };
        let rules = self.rules();
        // One that is to join, or to return, takes nothing before it is won back, either.
        let fed = |p: &Peer| {
            let config = self.log.config().map(|c| &c.config);
            let standing = config.zip(p.incarnation());
            standing.is_some_and(|(c, i)| c.standing(i).is_some_and(|s| s.is_fed()))
        };
        if rules.iter().all(|c| voters(&c.config) == 0) && !refusing.clone().any(fed) {
            return;
        }
        let lost = |c: &ConfigAt| voters(&c.config) >= majority(c.config.voters());
        if rules.iter().any(lost) {
            self.log_warn("a majority promised a newer epoch to another node".into());
            self.step_down();
            return;
        }
        let grace_ns = 2 * self.config.heartbeat_ns();
        let stays = refusing
            .filter_map(|p| p.refused)
            .any(|(_, since)| self.now.since(since) >= grace_ns);
        if stays && self.candidacy.is_none() && !self.demoting() {
            self.log_info(
                "a peer keeps to a newer epoch that nobody won: taking a higher one".into(),
            );
            self.seek_higher_epoch();
        }
    }
}
