//! Changes of the membership (protocol M1 to M6): who asks for one, when the next one may be made, and which rules hold while one
//! is pending. Everything is decided anew in each turn from the newest config and from what operators wait for, so that
//! nothing has to be remembered over a change of Primary.

mod confirm;
mod wishes;

pub(super) use self::confirm::Confirmation;

use super::Replica;
use super::peers::{Feed, Peer};
use crate::io::*;
use crate::journal::batch::Kind;
use crate::memory::Memory;
use crate::meta::config::{ClusterConfig, ConfigAt, Standing, majority};
use crate::replica::volumes::Payload;
use crate::types::*;
use crate::wire::frame::{Frame, Report, Told};

/// Operators who wait for a change at one time, at most.
const WISHES_MAX: usize = 16;

/// What an operator wants of a node's standing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    /// It counts for nothing.
    Out,
    /// This life of it counts.
    In(Incarnation),
}

/// Who waits for a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asker {
    Operator(AdminId),
    /// A node that gives its data up, by its question.
    Peer(ConnId, u64),
    /// It was told before that it will be.
    Nobody,
}

/// Somebody waits for a change.
#[derive(Debug)]
pub(super) struct Wish {
    who: Asker,
    deadline: Time,
    node: NodeId,
    goal: Goal,
}

impl<M: Memory> Replica<M> {
    /// The configs whose rules hold: the last one that a restart would know to be committed, and all after it (protocol M2).
    /// The committed floor past a membership record is durable before the rules from before it fall away (protocol M3).
    pub(super) fn rules(&self) -> &[ConfigAt] {
        let configs = self.log.configs();
        let known = self.known_committed();
        let first = configs.iter().rposition(|c| c.at.seq <= known);
        &configs[first.unwrap_or(0)..]
    }

    /// What is committed, as far as a restart would know it.
    fn known_committed(&self) -> Seq {
        if planted!(FloorNotKept) {
            return self.committed;
        }
        self.committed.min(self.metadata.durable_committed)
    }

    /// The newest config, if it is committed and a restart would know that: only then may it be changed (protocol M1).
    pub(super) fn settled_config(&self) -> Option<&ConfigAt> {
        let newest = self.log.config()?;
        (newest.at.seq <= self.known_committed()).then_some(newest)
    }

    /// Whether a record that is committed once `votes` say so is: it is that of the newest config (protocol M3).
    pub(super) fn change_is_committed(&self, newest: &ConfigAt) -> bool {
        let at = newest.at.seq;
        let prefix = self.reached(&newest.config, false) >= at;
        let old_rules = |c: &ConfigAt| {
            planted!(OldVotersForgotten) || self.votes(&c.config, &newest.config) >= at
        };
        prefix
            && self.votes(&newest.config, &newest.config) >= at
            && self.rules().iter().all(old_rules)
    }

    /// The newest record that a majority of a config's voters have. The vote of a node whose confirmed stop the newest config
    /// names is given (protocol F0).
    fn votes(&self, config: &ClusterConfig, newest: &ClusterConfig) -> Seq {
        let voters = config.nodes.iter().filter(|n| n.voter);
        let mut acks: arrayvec::ArrayVec<Seq, NODES_MAX> = voters
            .map(|n| {
                if newest.standing(n.incarnation).is_some_and(|s| s.stopped) {
                    Seq(u64::MAX)
                } else {
                    self.acked_by(n.incarnation)
                }
            })
            .collect();
        acks.sort_unstable_by(|a, b| b.cmp(a));
        acks[majority(acks.len()) - 1]
    }

    /// Whether somebody without the log may know of a config: no promotion can miss its record then (protocol M4).
    pub(super) fn may_be_told(&self, config: &ConfigAt) -> bool {
        let at = config.at.seq;
        if self.log.durable_id().seq < at {
            return false;
        }
        if at <= self.committed {
            return true;
        }
        let Some(base) = self.rules().first() else {
            return true;
        };
        let added = |n: &&Standing| n.member && !base.config.is_member(n.incarnation);
        let mut added = config.config.nodes.iter().filter(added);
        let joined = base.at == config.at || added.all(|n| self.acked_by(n.incarnation) >= at);
        self.reached(&config.config, false) >= at && joined
    }

    /// The number of the first entry that a peer is not given yet: one that has no part in a pending config hears of that only when
    /// nobody can miss it any more, and one that was dropped hears no more than that.
    pub(super) fn feed_end(&self, peer: &Peer) -> u64 {
        let next = self.log.next_number();
        let (Some(newest), Some(incarnation)) = (self.log.config(), peer.incarnation()) else {
            return next;
        };
        let standing = newest.config.standing(incarnation);
        if standing.is_some_and(|s| s.member) {
            return next;
        }
        // What was pending when a later config came is told with that one.
        let known = |c: &ConfigAt| c.at.seq <= self.committed || self.may_be_told(c);
        let configs = self.log.configs();
        let told = configs.iter().rposition(known).map_or(0, |at| at + 1);
        if let Some(config) = configs.get(told)
            && !planted!(DroppedToldEarly)
        {
            return self.log.number_of(config.at.seq).unwrap_or(next);
        }
        if standing.is_some_and(Standing::is_fed) {
            return next;
        }
        self.log.number_of(newest.at.seq).map_or(0, |n| n + 1)
    }

    /// Whether a peer is given the log, or as a witness the config: it counts or is to count by the newest config, or by one whose
    /// rules still hold, which can not be done without it then.
    pub(super) fn is_to_be_fed(&self, incarnation: Incarnation) -> bool {
        let newest = self.log.config().map(|c| &c.config);
        let standing = newest.and_then(|c| c.standing(incarnation));
        let counts = |c: &ConfigAt| c.config.standing(incarnation).is_some_and(Standing::counts);
        standing.is_some_and(Standing::is_fed) || self.rules().iter().any(counts)
    }

    /// Whether a peer holds nothing, and is to join by a config that is not settled yet: it can not be invited.
    pub(super) fn joins_too_early(&self, report: &Report) -> bool {
        let joins = |c: &ConfigAt| {
            c.config
                .standing(report.incarnation)
                .is_some_and(|s| s.joining)
        };
        report.fresh && self.log.config().is_some_and(joins) && self.settled_config().is_none()
    }

    /// Appends a membership record and sees to it that everybody is fed who is to be from now on.
    fn change_membership(&mut self, config: ClusterConfig, why: &str) -> bool {
        self.close_batch();
        if !self.append_control(Kind::Membership, Payload::Config(Box::new(config))) {
            self.applier.urgent = true;
            return false;
        }
        let at = self.log.tail().id;
        self.log_warn(format!("record {at} changes the membership: {why}"));
        self.changed_at = self.now;
        true
    }

    /// A peer's standing may have changed.
    fn suit_feed(&mut self, index: usize) {
        let peer = &self.peers[index];
        let (node, feed) = (peer.node, peer.feed);
        let Some(report) = peer.report.as_ref() else {
            return;
        };
        let fed = self.is_to_be_fed(report.incarnation) && !self.joins_too_early(report);
        match feed {
            Feed::NotMember if fed => self.start_feed(node),
            Feed::Witness { .. } if !fed => self.peers[index].feed = Feed::NotMember,
            // It hears that it was dropped, and no more: what it had by then is not all any more, also if it is to return (protocol M4).
            Feed::On { .. } if !self.is_to_be_fed(report.incarnation) => self.is_behind(node),
            _ => {}
        }
    }

    /// Invites a peer that is to join and holds nothing yet: it learns what it is to be part of.
    pub(super) fn invite(&mut self, node: NodeId) {
        let Some(config) = self.settled_config().cloned() else {
            return;
        };
        let Some(peer) = self.peer(node) else { return };
        let (Some(conn), Some(report)) = (peer.conn, peer.report.as_ref()) else {
            return;
        };
        let joins = config
            .config
            .standing(report.incarnation)
            .is_some_and(|s| s.joining);
        if !report.fresh || !joins {
            return;
        }
        let told = Told {
            uuid: self.metadata.wanted.uuid,
            history: self.metadata.wanted.history,
            config,
        };
        self.send(conn, Frame::Invite(Box::new(told)));
    }

    /// A Primary wants this node to join. That is heard only while it holds nothing, and if it is meant (protocol D4): it counts
    /// for nothing until a record says so that reached it with the log before.
    pub(super) fn got_invite(&mut self, conn: ConnId, told: Told) {
        let sb = &self.metadata.wanted;
        let meant = |s: &Standing| s.joining && s.name == sb.node;
        let standing = told.config.config.standing(sb.incarnation);
        if self.is_witness() || !standing.is_some_and(meant) {
            let reason = DropReason::Protocol("it invited a node that it does not mean");
            self.give_up(conn, reason, false);
            return;
        }
        if !self.fresh() {
            return; // It has come that far already.
        }
        let wanted = &mut self.metadata.wanted;
        if (wanted.uuid, wanted.history) != (told.uuid, told.history) {
            (wanted.uuid, wanted.history) = (told.uuid, told.history);
            self.append_after = self.metadata.changed();
            self.log_info("this node is to join: it takes the log from its beginning".into());
        }
    }

    /// What a turn does about the membership.
    pub(super) fn pump_membership(&mut self) {
        self.keep_floor();
        // Also of a reign that is ending, or has not begun, an operator hears in time.
        self.answer_wishes();
        if !self.serving() || self.demoting() || self.drain.is_some() {
            return;
        }
        self.admit_the_expected();
        self.note_progress();
        for index in 0..self.peers.len() {
            self.suit_feed(index);
        }
        if self.settled_config().is_some() {
            let _ = self.drop_as_confirmed()
                || (self.lease_runs()
                    && (self.change_as_wished()
                        || self.admit_the_ready()
                        || self.drop_the_missing()));
        } else {
            self.abandon();
        }
    }

    /// What is known to be committed is made durable once it goes past a config (protocol M3).
    fn keep_floor(&mut self) {
        let passed = |c: &&ConfigAt| c.at.seq <= self.committed;
        let newest = self.log.configs().iter().rev().find(passed);
        let Some(at) = newest.map(|c| c.at.seq) else {
            return;
        };
        let behind = self.metadata.durable_committed < at && self.log.durable_id().seq >= at;
        if behind && self.metadata.is_settled() {
            self.metadata.changed();
        }
    }

    /// Members that have everything do not lag; how long the others do is counted from when they last acknowledged something.
    fn note_progress(&mut self) {
        let (now, tail) = (self.now, self.log.tail().id.seq);
        for peer in &mut self.peers {
            if peer.conn.is_some() && peer.acked >= tail {
                peer.advanced_at = now;
            }
        }
    }

    /// A member that is not heard of, or does not get on.
    fn lags_since(&self, standing: &Standing) -> Option<Time> {
        if standing.incarnation == self.metadata.wanted.incarnation {
            return None;
        }
        let node = self.node_named(&standing.name);
        let peer = node.and_then(|n| self.peer(n));
        let began = self.leader.as_ref().map_or(self.now, |l| l.began_at);
        Some(peer.map_or(began, |p| p.advanced_at.max(began)))
    }

    /// Whether a config could commit with the nodes that are there, of the members with those that get on.
    fn can_go_on(&self, config: &ClusterConfig) -> bool {
        let members = config.nodes.iter().filter(|n| n.member);
        let members = members.filter(|n| self.gets_on(n));
        self.can_vote(config) && members.count() >= majority(config.members())
    }

    /// Whether a node is there, and does not hang.
    fn gets_on(&self, standing: &Standing) -> bool {
        // Who is given nothing by the newest config can not get on: of him it counts that he is there.
        let newest = self.log.config().map(|c| &c.config);
        let now = newest.and_then(|c| c.standing(standing.incarnation));
        let is_fed = now.is_some_and(Standing::is_fed);
        let since = self.lags_since(standing).filter(|_| is_fed);
        let hangs = since.is_some_and(|at| self.now.since(at) >= self.patience_ns());
        self.is_here(standing.incarnation) && !hangs
    }

    /// Whether a pending change could be committed with the nodes that are there: who has no log is not told of it before whom it
    /// adds has it (protocol M4), so that one can not be done without where a witness's vote is needed.
    fn can_come_about(&self, base: &ClusterConfig, change: &ConfigAt) -> bool {
        let (at, config) = (change.at.seq, &change.config);
        let has_it = |n: &Standing| self.acked_by(n.incarnation) >= at;
        let added = |n: &&Standing| n.member && !base.is_member(n.incarnation);
        let mut added = config.nodes.iter().filter(added);
        let all_told = added.all(|n| has_it(n) || self.gets_on(n));
        let hears = |n: &&Standing| {
            let is_told = all_told || config.is_member(n.incarnation) || has_it(n);
            is_told && self.is_here(n.incarnation)
        };
        let can_vote = |c: &ClusterConfig| {
            let voters = c.nodes.iter().filter(|n| n.voter).filter(hears);
            voters.count() >= majority(c.voters())
        };
        self.can_go_on(config) && can_vote(base) && can_vote(config)
    }

    /// Whether this life of a node is this node, or connected.
    fn is_here(&self, incarnation: Incarnation) -> bool {
        let mut peers = self.peers.iter().filter(|p| p.conn.is_some());
        incarnation == self.metadata.wanted.incarnation
            || peers.any(|p| p.incarnation() == Some(incarnation))
    }

    /// Whether a majority of a config's voters is there.
    fn can_vote(&self, config: &ClusterConfig) -> bool {
        let voters = config.nodes.iter().filter(|n| n.voter);
        voters.filter(|n| self.is_here(n.incarnation)).count() >= majority(config.voters())
    }

    /// How long a change may take before it is given up.
    fn patience_ns(&self) -> u64 {
        let silence = self.config.silence_ns();
        self.config.drop_after_ns().unwrap_or(silence).max(silence)
    }

    /// Drops a member without which the others can go on and with which they can not (protocol M6). Its vote it keeps.
    fn drop_the_missing(&mut self) -> bool {
        let (Some(after), Some(settled)) = (self.config.drop_after_ns(), self.settled_config())
        else {
            return false;
        };
        let config = &settled.config;
        let lags = |n: &Standing| self.lags_since(n).filter(|&at| self.now.since(at) >= after);
        let missing = config.nodes.iter().filter(|n| n.member);
        let missing = missing.filter_map(|n| lags(n).map(|at| (at, *n)));
        let count = missing.clone().count();
        let members = config.members();
        let alive = members - count;
        let needed = alive < majority(members) && alive >= majority(members - 1);
        let Some((_, standing)) = missing.min_by_key(|(at, n)| (*at, n.name)) else {
            return false;
        };
        let Some(next) = config.with(Standing {
            member: false,
            ..standing
        }) else {
            return false;
        };
        if !needed {
            return false;
        }
        let why = format!(
            "{} is dropped, so that the others go on; it returns by itself",
            standing.name
        );
        if let Some(node) = self.node_named(&standing.name) {
            self.is_behind(node);
        }
        self.change_membership(next, &why)
    }

    /// A peer counts as behind until it has acknowledged what there is now.
    fn is_behind(&mut self, node: NodeId) {
        let tail = self.log.tail().id.seq;
        if let Some(peer) = self.peer_mut(node) {
            peer.caught_up = false;
            peer.catch_up_to = tail;
        }
    }

    /// Admits a node whose log has reached this one's (protocol M4).
    fn admit_the_ready(&mut self) -> bool {
        let Some(settled) = self.settled_config() else {
            return false;
        };
        let ready = |standing: &&Standing| {
            let Some(node) = self.node_named(&standing.name) else {
                return false;
            };
            let Some(peer) = self.peer(node) else {
                return false;
            };
            let here = peer.conn.is_some() && peer.incarnation() == Some(standing.incarnation);
            if self.config.is_witness(node) {
                return here && standing.joining;
            }
            let reached = matches!(peer.feed, Feed::On { .. }) && peer.caught_up;
            let outside = !standing.member && standing.is_fed();
            here && outside && reached
        };
        let Some(standing) = settled.config.nodes.iter().find(ready).copied() else {
            return false;
        };
        let witness = self
            .node_named(&standing.name)
            .is_some_and(|n| self.config.is_witness(n));
        let full = Standing::full(standing.name, standing.incarnation, !witness);
        let Some(next) = settled.config.with(full) else {
            return false;
        };
        let why = format!("{} counts from here on", standing.name);
        self.change_membership(next, &why)
    }

    /// Gives up a change that can not be committed, if the config before it can (protocol M5).
    fn abandon(&mut self) {
        let [base, .., newest] = self.rules() else {
            return;
        };
        if newest.at.seq <= self.committed || base.config.nodes == newest.config.nodes {
            return;
        }
        let mut restored = ClusterConfig {
            version: newest.config.version + 1,
            ..base.config.clone()
        };
        let mut confirmed = None;
        if let Some(stopped) = self.confirmed
            && newest.config.is_voter(stopped.incarnation)
            && !base.config.is_voter(stopped.incarnation)
            && let Some(standing) = newest.config.standing(stopped.incarnation)
            && let Some(config) = restored.with(Standing {
                voter: false,
                member: false,
                stopped: true,
                ..*standing
            })
        {
            restored = config;
            restored.version = newest.config.version + 1;
            confirmed = Some(stopped.node);
        }
        let late = self.now.since(self.changed_at) >= self.patience_ns();
        let waited = late && self.lease_runs();
        let gives_up =
            waited && self.can_go_on(&base.config) && !self.can_come_about(&base.config, newest);
        if !gives_up && confirmed.is_none() {
            return;
        }
        let added: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|p| p.incarnation().is_some_and(|i| !base.config.is_member(i)))
            .map(|p| p.node)
            .collect();
        for node in added {
            self.is_behind(node);
        }
        let why = "the change before it can not be committed, and is taken back";
        if self.change_membership(restored, why) && confirmed.is_some() {
            self.confirmed = None;
        }
    }
}
