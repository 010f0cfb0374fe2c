//! Promotions and drops that leave somebody out: by P6, and for two nodes alone by somebody's word that the other is off
//! (protocol F0, F2, F3).

use crate::io::*;
use crate::memory::Memory;
use crate::meta::config::{ClusterConfig, ConfigAt, Standing, majority};
use crate::replica::Replica;
use crate::replica::peers::Peer;
use crate::types::*;
use crate::wire::frame::Report;

/// Somebody answers for a node's being off. Kept in memory only.
#[derive(Clone, Copy, Debug)]
pub(in crate::replica) struct Confirmation {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
}

/// Whether two data nodes are all there is.
fn are_two_alone(config: &ClusterConfig) -> bool {
    let counting = || config.nodes.iter().filter(|n| n.counts());
    counting().count() == 2 && counting().all(|n| n.voter && n.member)
}

/// The other one of two data nodes that are all there is.
fn other_of_two(config: &ClusterConfig, own: Incarnation) -> Option<&Standing> {
    let mut counting = config.nodes.iter().filter(|n| n.counts());
    let other = counting.find(|n| n.incarnation != own);
    other.filter(|_| are_two_alone(config) && config.is_member(own))
}

impl<M: Memory> Replica<M> {
    /// Somebody says that a node is off.
    pub(in crate::replica) fn confirm_stopped(&mut self, node: NodeId) -> AdminResult {
        let Some(peer) = self.peer(node) else {
            return Err(AdminError::Failed("this is no peer".into()));
        };
        let name = self.config.nodes[usize::from(node.0)];
        if peer.conn.is_some() {
            return Err(AdminError::Failed(format!(
                "{name} is connected: what answers is not off"
            )));
        }
        let entry = self.log.config().and_then(|c| c.config.entry(&name));
        let Some(entry) = entry.filter(|e| e.counts()) else {
            return Err(AdminError::Failed(format!(
                "{name} counts for nothing: nobody waits for it"
            )));
        };
        self.confirmed = Some(Confirmation {
            node,
            incarnation: entry.incarnation,
        });
        self.log_warn(format!(
            "somebody answers for it that {name} is off: until it is heard of, it is not waited for"
        ));
        self.candidate_is_free();
        Ok(())
    }

    /// A node that is heard of, or spoken to, is not off.
    pub(in crate::replica) fn void_confirmation(&mut self, node: NodeId) {
        if self.is_confirmed(node) {
            self.confirmed = None;
            let name = self.config.nodes[usize::from(node.0)];
            self.log_warn(format!(
                "{name} is heard of: the word that it is off is void"
            ));
        }
    }

    /// Whether somebody's word that a node is off holds.
    pub(in crate::replica) fn is_confirmed(&self, node: NodeId) -> bool {
        self.confirmed.is_some_and(|c| c.node == node)
    }

    /// A record that took this node for off is the newest config's: what it says itself counts for nothing (protocol F0).
    pub(in crate::replica) fn is_taken_for_stopped(&self, incarnation: Incarnation) -> bool {
        let newest = self.log.config();
        newest.is_some_and(|c| c.config.standing(incarnation).is_some_and(|s| s.stopped))
    }

    /// The Primary says which config is its latest, or that a change of it is pending.
    pub(in crate::replica) fn note_settled(
        &mut self,
        conn: ConnId,
        epoch: Epoch,
        settled: RecordId,
    ) {
        let speaks = self
            .following
            .filter(|f| f.conn == conn && f.epoch == epoch);
        if let Some(primary) = speaks {
            self.settled_told = Some((primary.node, settled));
        }
    }

    /// Drops the other one of two nodes that is confirmed to be off (protocol F2).
    pub(super) fn drop_as_confirmed(&mut self) -> bool {
        let Some(confirmed) = self.confirmed else {
            return false;
        };
        let own = self.metadata.wanted.incarnation;
        let config = self.settled_config().map(|c| c.config.clone());
        let next = config.and_then(|config| {
            let other = other_of_two(&config, own)?;
            (other.incarnation == confirmed.incarnation).then(|| without(&config, other))?
        });
        let Some(next) = next else { return false };
        let name = self.config.nodes[usize::from(confirmed.node.0)];
        let why = format!("{name} is off, as was confirmed: this node goes on alone");
        let changed = self.change_membership(next, &why);
        if changed {
            self.confirmed = None;
        }
        changed
    }

    /// Why nobody may go by a change of two data nodes alone that is pending: the vote of either may have been replaced by its
    /// confirmed stop (protocol F3) by the other one, who need not know of the change. So both are needed, or the change itself has
    /// one of them for confirmed to be off. Nothing could be committed without them (protocol M3).
    pub(in crate::replica) fn lacks_one_of_two(
        &self,
        adopted: &ConfigAt,
        answers: &[(NodeId, Report)],
    ) -> Option<AdminError> {
        let known = answers.iter().map(|(_, r)| r.committed).max();
        let base = self.rules().first().filter(|c| c.at < adopted.at)?;
        if known >= Some(adopted.at.seq) || !are_two_alone(&base.config) {
            return None;
        }
        let has_vote = |n: &Standing| {
            let answered = |(_, r): &(NodeId, Report)| r.incarnation == n.incarnation && !r.damaged;
            let stopped = adopted
                .config
                .standing(n.incarnation)
                .is_some_and(|s| s.stopped);
            stopped || answers.iter().any(answered)
        };
        let lacking = base
            .config
            .nodes
            .iter()
            .filter(|n| n.counts())
            .find(|n| !has_vote(n))?;
        Some(AdminError::NoQuorum(format!(
            "a change of the membership was under way among two data nodes alone, and {} may not know of it: both are needed; start {} \
             and try again",
            lacking.name, lacking.name
        )))
    }

    /// Whether a confirmed stop stands for the other node's vote in this node's promotion (protocol F3).
    pub(in crate::replica) fn has_confirmed_vote(&self, config: &ClusterConfig) -> bool {
        let own = self.metadata.wanted.incarnation;
        let Some(confirmed) = self.confirmed else {
            return false;
        };
        let other = other_of_two(config, own);
        let Some(ConfigAt { at, config: latest }) = self.log.config() else {
            return false;
        };
        let told = self.settled_told == Some((confirmed.node, *at));
        other.is_some_and(|o| o.incarnation == confirmed.incarnation)
            && latest == config
            && at.seq <= self.committed
            && told
    }

    /// What to say of confirmations to an operator who promotes one of two nodes alone in vain.
    pub(in crate::replica) fn confirmation_hint(&self, config: &ClusterConfig) -> String {
        let own = self.metadata.wanted.incarnation;
        let Some(other) = other_of_two(config, own) else {
            return String::new();
        };
        let name = other.name;
        match self.confirmed {
            Some(c) if c.incarnation == other.incarnation => format!(
                "; that {name} is off was confirmed, but it may have gone on without this node: start it, or promote this one with \
                 --force"
            ),
            _ => format!(
                "; once {name} is off for certain, `replctl confirm-stopped {name}` says so to this node"
            ),
        }
    }

    /// Whether this node is one of two that are alone.
    pub(in crate::replica) fn is_one_of_two(&self) -> bool {
        let own = self.metadata.wanted.incarnation;
        let config = self.log.config();
        config.is_some_and(|c| other_of_two(&c.config, own).is_some())
    }

    /// The config that this node's epoch record is to carry: the adopted one, or without one member that did not grant and
    /// could not be done without otherwise (protocol P4, P6, F3).
    pub(in crate::replica) fn config_to_carry(
        &self,
        config: ClusterConfig,
        grants: &[(NodeId, Report)],
    ) -> ClusterConfig {
        let own = self.metadata.wanted.incarnation;
        if self.has_confirmed_vote(&config)
            && let Some(other) = other_of_two(&config, own)
            && let Some(alone) = without(&config, other)
        {
            return alone;
        }
        let next = self.left_out(&config, grants).and_then(|n| {
            config.with(Standing {
                member: false,
                ..*n
            })
        });
        next.unwrap_or(config)
    }

    /// The member that this node's epoch record leaves out, if no other one grants (protocol P6).
    fn left_out<'a>(
        &self,
        config: &'a ClusterConfig,
        grants: &[(NodeId, Report)],
    ) -> Option<&'a Standing> {
        let members = config.members();
        let granted = |n: &&Standing| has_granted(n, grants);
        let alive = config.nodes.iter().filter(|n| n.member).filter(granted);
        let (alive, votes) = (alive.clone().count(), alive.filter(|n| n.voter).count());
        if members == 1 || alive < majority(members - 1) {
            return None;
        }
        // Whose addition is pending goes before others. No witness can be told of it before that node has it (M4), so where a
        // witness's vote is needed there is no waiting for one that is away; and as nobody relied on it yet, that is no matter of
        // the policy.
        let mut missing = config.nodes.iter().filter(|n| n.member && !granted(n));
        let added = missing.clone().find(|n| self.is_added(n));
        let policy_allows = self.config.drop_after_ns().is_some();
        if added.is_some() && votes < majority(config.voters()) {
            added
        } else if alive < majority(members) && policy_allows {
            missing.next()
        } else {
            None
        }
    }

    /// Whether a node counts by a config, and did not by the last one that is known to be committed.
    fn is_added(&self, node: &Standing) -> bool {
        let base = self.rules().first();
        node.member && base.is_some_and(|b| !b.config.is_member(node.incarnation))
    }

    /// Whether members that are there may yet grant, without whom one would have to be left out.
    pub(in crate::replica) fn hopes_for_members(
        &self,
        config: &ClusterConfig,
        grants: &[(NodeId, Report)],
    ) -> bool {
        let member = |i: Incarnation| config.is_member(i);
        let granting = grants.iter().filter(|(_, r)| member(r.incarnation));
        let here = self.peers.iter().filter(|p| p.conn.is_some());
        let mut here = here.filter_map(Peer::incarnation).filter(|i| member(*i));
        let granting = granting.count();
        let few = granting < majority(config.members()) && here.clone().count() + 1 > granting;
        let out = self.left_out(config, grants);
        few || out.is_some_and(|n| here.any(|i| i == n.incarnation))
    }

    /// What stood for a vote in a record stands for no other.
    pub(in crate::replica) fn use_confirmation(&mut self) {
        if let Some(confirmed) = self.confirmed
            && self.is_taken_for_stopped(confirmed.incarnation)
        {
            self.confirmed = None;
        }
    }

    /// Whether a node that wants to be Primary is a member, by the newest config that this voter and it know.
    pub(in crate::replica) fn may_stand(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let Some(own) = self.log.config() else {
            return self.fresh();
        };
        let report = self.peer(node).and_then(|p| p.report.as_ref());
        let theirs = report.and_then(|r| r.config.as_ref());
        let newer = theirs.filter(|c| c.at > own.at);
        newer.unwrap_or(own).config.is_member(incarnation)
    }
}

/// Whether a node is among those that promised an epoch, and its data counts.
fn has_granted(node: &Standing, grants: &[(NodeId, Report)]) -> bool {
    let mut grants = grants.iter();
    grants.any(|(_, r)| r.incarnation == node.incarnation && !r.damaged && !r.fresh)
}

/// A config without a node that is off, which names the vote that this stood for (protocol F0).
fn without(config: &ClusterConfig, other: &Standing) -> Option<ClusterConfig> {
    config.with(Standing {
        voter: false,
        member: false,
        stopped: true,
        ..*other
    })
}
