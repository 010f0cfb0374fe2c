//! Fencing (protocol F1): making sure that a node commits nothing more, whether it is dead, frozen, cut off, or alive and busy;
//! and letting it go again.
//!
//! A fence is two things that enough voters keep durably. A *mark* (`meta::fences`) says that the node is fenced: who keeps it
//! grants that node no epoch. And a *promise* of an epoch that the node does not own ends what it may reign in now. A mark alone
//! would leave it its present reign, a promise alone would let it be promoted again the moment after. Where another
//! node is Primary, the promises that made it so will do, and it is not disturbed; else whoever fences takes an epoch itself, and
//! never reigns in it. Voters promise when the fenced node's lease is over (L2), so that is over too when the fence is
//! reported. The node itself steps down as soon as it hears of its mark, and if it can commit its demote record, nobody has to wait for the
//! lease.
//!
//! Marks spread from node to node and only ever rise. A fence is therefore raised above everything that a majority knows, and
//! the end of one is only told once a majority knows of that one: so a word that is late never ends a later fence.

mod marks;

pub(super) use self::marks::{from_store, to_store};

use super::Replica;
use super::election::{ANSWER_NS, PAUSE_NS, highest_config};
use super::metadata::MetaVersion;
use crate::io::*;
use crate::memory::Memory;
use crate::meta::config::{ClusterConfig, majority};
use crate::meta::fences::FenceMark;
use crate::types::*;
use crate::wire::frame::{Fence, Frame, Report};

/// The longest that a peer is asked to try to become Primary.
const STAND_MS_MAX: u32 = 86_400_000;

const DECIDED_OTHERWISE: &str = "somebody else decided otherwise meanwhile";

/// What is to become of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aim {
    Fence,
    Unfence,
    /// Fence it, if there is one, and promote another.
    Failover,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Pause {
        until: Time,
    },
    /// Enough voters have to say what they know.
    Asking,
    /// Enough voters have to keep the mark.
    Marking {
        sent: bool,
    },
    /// An epoch was taken, and has to be promised.
    Promising {
        epoch: Epoch,
        version: MetaVersion,
        sent: bool,
    },
    /// A peer was asked to become Primary.
    Standing {
        node: NodeId,
        asked_at: Time,
    },
}

/// An operator's wish, on its way.
#[derive(Debug)]
pub(super) struct Fencing {
    id: AdminId,
    aim: Aim,
    /// `None`: it is not known yet, or there is no Primary to fence.
    peer: Option<NodeId>,
    deadline: Time,
    phase: Phase,
    since: Time,
    token: u64,
    /// The mark that has to be kept, once it is raised.
    mark: Option<FenceMark>,
    /// The fence that is to end, once it is known: none that somebody asked for later.
    ends: Option<FenceMark>,
    last: AdminError,
}

/// What a step led to.
enum Step {
    Waits,
    /// It is over.
    Ends(AdminResult),
    /// This node is to be promoted, for the same operator.
    Promotes,
}

impl<M: Memory> Replica<M> {
    /// Whether operators who fence nodes, or end that, wait for this node.
    pub(super) fn is_fencing(&self) -> bool {
        !self.fencings.is_empty()
    }

    pub(super) fn fenced_error(&self) -> AdminError {
        let name = self.config.nodes[usize::from(self.config.me.0)];
        AdminError::NoQuorum(format!(
            "this node is fenced: run repl-fence unfence {name} once it is fit to be Primary"
        ))
    }

    /// A peer says that this node has the best data.
    pub(super) fn got_stand(&mut self, for_ms: u32) {
        let may = !self.is_witness()
            && self.leader.is_none()
            && self.candidacy.is_none()
            && self.renewal.is_none()
            && self.drain.is_none()
            && !self.is_fenced(self.config.me);
        if may {
            self.log_info("a peer asks this node to become Primary: it has the best data".into());
            let time_ns = u64::from(for_ms.min(STAND_MS_MAX)) * 1_000_000;
            self.stand_for_peer(self.now.after(time_ns));
        }
    }

    pub(super) fn begin_fencing(
        &mut self,
        id: AdminId,
        aim: Aim,
        peer: Option<NodeId>,
        deadline: Time,
    ) {
        let refused = if self.drain.is_some() {
            Some("this node is stopping".to_owned())
        } else if self.renewal.is_some() {
            Some("this node's data is being given up".to_owned())
        } else if self.forking() {
            Some("this node goes on alone, by force: it knows nobody to fence".to_owned())
        } else if self.fresh() {
            Some("this node is new or was wiped, and knows nobody to fence".to_owned())
        } else if aim != Aim::Unfence && peer == Some(self.config.me) {
            Some("a node can not fence itself: do it on another one".to_owned())
        } else if self.fencings.iter().any(|f| f.peer == peer) || self.fencings.len() >= NODES_MAX {
            Some("this node is being fenced or unfenced already: wait for that".to_owned())
        } else {
            None
        };
        if let Some(text) = refused {
            let result = Err(AdminError::Failed(text));
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        let known = peer.map(|p| self.metadata.fences.of(p));
        self.fencings.push(Fencing {
            id,
            aim,
            peer,
            deadline,
            phase: Phase::Pause { until: self.now },
            since: self.now,
            token: 0,
            mark: None,
            ends: known.filter(|m| m.is_fenced()),
            last: AdminError::NoQuorum("no peer has answered yet".into()),
        });
    }

    /// Fences the Primary that this node knows of, and promotes the node with the best data.
    pub(super) fn failover(&mut self, id: AdminId, deadline: Time) {
        if self.leader.is_some() {
            let text = "this node is Primary: run it on another one, or demote this one first";
            let result = Err(AdminError::Failed(text.into()));
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        self.begin_fencing(id, Aim::Failover, None, deadline);
    }

    /// Who may still reign, by what a majority answered and by what this node knows itself.
    fn who_reigns(&self, answers: &[(NodeId, Report)]) -> Option<NodeId> {
        let says = |what: fn(&Report) -> bool| answers.iter().find(|(_, r)| what(r)).map(|a| a.0);
        says(|r| r.serving)
            .or(says(|r| r.primary))
            .or(self.last_primary.filter(|_| !self.released))
            .filter(|&n| n != self.config.me)
    }

    pub(super) fn end_fencings(&mut self, error: &AdminError) {
        for fencing in std::mem::take(&mut self.fencings) {
            let result = Err(error.clone());
            let id = fencing.id;
            self.out.push_back(Output::AdminReply { id, result });
        }
    }

    /// A Primary has ended its reign: whoever waits for its lease need not.
    pub(super) fn fencings_go_on(&mut self) {
        for fencing in &mut self.fencings {
            if let Phase::Pause { until } = &mut fencing.phase {
                *until = self.now;
            }
        }
    }

    pub(super) fn fencing_timeout(&self) -> Option<Time> {
        let next = |f: &Fencing| {
            let next = match f.phase {
                Phase::Pause { until } => return until.min(f.deadline),
                Phase::Standing { asked_at, .. } => asked_at.after(PAUSE_NS),
                _ => f.since.after(ANSWER_NS),
            };
            // A time that has passed is waited for no more: it is this node's own disk that it waits for then.
            let next = if next > self.now { next } else { f.deadline };
            next.min(f.deadline)
        };
        self.fencings.iter().map(next).min()
    }

    pub(super) fn pump_fencings(&mut self) {
        // What it heard of others before is of its history from now on, or is not.
        if self.fresh() != self.marks_while_fresh {
            self.marks_while_fresh = self.fresh();
            self.hear_marks(None);
        }
        if self.marks_told < self.marks_version && self.metadata.is_durable(self.marks_version) {
            self.marks_told = self.marks_version;
            self.tell_marks(0, Epoch(0));
        }
        // Whoever falls silent has ended them, or waited for their end, and begins none.
        assert!(self.fencings.is_empty() || !self.forking() && !self.is_renewing());
        let mut at = 0;
        while at < self.fencings.len() {
            let mut fencing = self.fencings.remove(at);
            match self.step_fencing(&mut fencing) {
                Step::Waits => {
                    self.fencings.insert(at, fencing);
                    at += 1;
                }
                Step::Ends(result) => {
                    let id = fencing.id;
                    self.out.push_back(Output::AdminReply { id, result });
                }
                Step::Promotes => self.promote(fencing.id, fencing.deadline),
            }
        }
    }

    fn tell_marks(&mut self, token: u64, epoch: Epoch) {
        let fence = Fence {
            token,
            epoch,
            incarnation: self.metadata.wanted.incarnation,
            marks: self.metadata.durable_fences,
        };
        self.send_all(&Frame::Fence(Box::new(fence)));
    }

    fn step_fencing(&mut self, fencing: &mut Fencing) -> Step {
        if self.now >= fencing.deadline {
            return Step::Ends(Err(fencing.last.clone()));
        }
        match fencing.phase {
            Phase::Pause { until } if self.now < until => Step::Waits,
            Phase::Pause { .. } => {
                fencing.token = self.next_token();
                fencing.since = self.now;
                fencing.phase = Phase::Asking;
                let token = fencing.token;
                self.send_all(&Frame::Ask { token });
                self.judge_knowledge(fencing)
            }
            Phase::Asking => self.judge_knowledge(fencing),
            Phase::Marking { sent } => self.judge_marks(fencing, sent),
            Phase::Promising {
                epoch,
                version,
                sent,
            } => self.judge_fence_promises(fencing, epoch, version, sent),
            Phase::Standing { node, asked_at } => self.judge_standing(fencing, node, asked_at),
        }
    }

    /// What this node and its peers say of themselves, on the present connections; in answer to a question if one is named.
    fn known_reports(&self, token: Option<u64>) -> Vec<(NodeId, Report)> {
        let me = self.config.me;
        let mut reports = vec![(me, self.report_to(me, 0, Epoch(0)))];
        for peer in self.peers.iter().filter(|p| p.conn.is_some()) {
            if let Some(report) = &peer.report
                && token.is_none_or(|t| report.token == t)
            {
                reports.push((peer.node, (**report).clone()));
            }
        }
        reports
    }

    /// Whether these nodes can fence somebody (protocol P2): a majority of the voters, and so many members that the others can commit
    /// nothing without them.
    fn can_fence(&self, reports: &[(NodeId, Report)]) -> Result<(), AdminError> {
        let all = self.known_reports(None);
        let Some(adopted) = highest_config(&all) else {
            return Err(AdminError::NoQuorum("nobody knows the config".into()));
        };
        let config: &ClusterConfig = &adopted.config;
        let sound = || reports.iter().filter(|(_, r)| !r.fresh && !r.damaged);
        let voters = sound().filter(|(_, r)| config.is_voter(r.incarnation));
        let voters = voters.count() + usize::from(self.has_confirmed_vote(config));
        let members = sound().filter(|(_, r)| config.is_member(r.incarnation));
        let members = members.count();
        let voters_needed = majority(config.voters());
        let members_needed = config.members() - majority(config.members()) + 1;
        if voters >= voters_needed && members >= members_needed {
            return self.lacks_one_of_two(&adopted, reports).map_or(Ok(()), Err);
        }
        let nodes = (0..).map(NodeId).take(self.config.nodes.len());
        let missing = nodes.filter(|n| reports.iter().all(|(r, _)| r != n));
        let missing = self.names(missing);
        Err(AdminError::NoQuorum(format!(
            "{voters} of {} voters and {members} of {} data nodes answer for it, {voters_needed} and {members_needed} are needed; \
             not among them: {missing}",
            config.voters(),
            config.members(),
        )))
    }

    /// Tries again later.
    fn fencing_failed(&mut self, fencing: &mut Fencing, error: AdminError, wait_ns: u64) -> Step {
        let jitter = self.random() % PAUSE_NS;
        fencing.last = error;
        fencing.phase = Phase::Pause {
            until: self.now.after(wait_ns.max(PAUSE_NS) + jitter),
        };
        Step::Waits
    }

    fn judge_knowledge(&mut self, fencing: &mut Fencing) -> Step {
        let answers = self.known_reports(Some(fencing.token));
        let connected = self.peers.iter().filter(|p| p.conn.is_some()).count();
        if let Err(error) = self.can_fence(&answers) {
            let waited = self.now.since(fencing.since) >= ANSWER_NS;
            if waited || answers.len() > connected {
                return self.fencing_failed(fencing, error, 0);
            }
            return Step::Waits;
        }
        if fencing.aim == Aim::Failover && fencing.mark.is_none() {
            fencing.peer = self.who_reigns(&answers);
        }
        let Some(peer) = fencing.peer else {
            return self.choose(fencing);
        };
        let known = self.metadata.fences.of(peer);
        if fencing.mark.is_none() {
            let mark = match fencing.aim {
                Aim::Fence | Aim::Failover => known.fenced_anew(),
                Aim::Unfence => {
                    if known.is_fenced() && *fencing.ends.get_or_insert(known) < known {
                        return Step::Ends(Err(AdminError::Failed(DECIDED_OTHERWISE.into())));
                    }
                    // First enough voters have to know which fence it is that ends.
                    let knows = |r: &Report| r.fences.of(peer) == known;
                    let mut knowing = answers;
                    knowing.retain(|(_, r)| knows(r));
                    if let Err(error) = self.can_fence(&knowing) {
                        return self.fencing_failed(fencing, error, 0);
                    }
                    known.unfenced()
                }
            };
            fencing.mark = Some(mark);
            self.raise_mark(peer, mark);
        }
        fencing.since = self.now;
        fencing.phase = Phase::Marking { sent: false };
        self.judge_marks(fencing, false)
    }

    /// Those who durably keep the mark, or a later one that says the same.
    fn keepers(&self, fencing: &Fencing) -> Vec<(NodeId, Report)> {
        let (Some(peer), Some(mark)) = (fencing.peer, fencing.mark) else {
            return Vec::new();
        };
        let mut keepers = self.known_reports(None);
        keepers.retain(|(_, r)| {
            let kept = r.fences.of(peer);
            kept >= mark && kept.is_fenced() == mark.is_fenced()
        });
        keepers
    }

    fn judge_marks(&mut self, fencing: &mut Fencing, sent: bool) -> Step {
        let Some(peer) = fencing.peer else {
            return Step::Waits;
        };
        if self.metadata.fences.of(peer).is_fenced() != (fencing.aim != Aim::Unfence) {
            return Step::Ends(Err(AdminError::Failed(DECIDED_OTHERWISE.into())));
        }
        if !self.metadata.is_durable(self.marks_version) {
            return Step::Waits;
        }
        if !sent {
            fencing.phase = Phase::Marking { sent: true };
            self.tell_marks(fencing.token, Epoch(0));
        }
        let keepers = self.keepers(fencing);
        if let Err(error) = self.can_fence(&keepers) {
            if self.now.since(fencing.since) >= ANSWER_NS {
                return self.fencing_failed(fencing, error, 0);
            }
            return Step::Waits;
        }
        if fencing.aim == Aim::Unfence {
            return Step::Ends(Ok(()));
        }
        if self.is_out(peer, &keepers) {
            return self.is_done(fencing);
        }
        let name = self.config.nodes[usize::from(peer.0)];
        let other = |(n, r): &&(NodeId, Report)| r.serving && *n != peer;
        if let Some((reigning, _)) = keepers.iter().find(other) {
            // Its followers promise its epoch with the next heartbeat.
            let reigning = self.config.nodes[usize::from(reigning.0)];
            let text = format!("{reigning} is Primary, and not enough nodes follow it yet");
            return self.fencing_failed(fencing, AdminError::NoQuorum(text), 0);
        }
        if self.leader.is_some() || self.is_standing() {
            let text = "this node's own promotion is under way".into();
            return self.fencing_failed(fencing, AdminError::NoQuorum(text), 0);
        }
        let mut ready = keepers;
        let waits = ready.iter().map(|(_, r)| r.lease_wait_ms).max();
        ready.retain(|(_, r)| r.lease_wait_ms == 0);
        let own_ready = ready.iter().any(|(n, _)| *n == self.config.me);
        if !own_ready || self.can_fence(&ready).is_err() {
            let wait_ms = waits.unwrap_or(0);
            let text = format!("the lease of {name} is not over ({wait_ms} ms)");
            let wait_ns = if self.released {
                0
            } else {
                u64::from(wait_ms) * 1_000_000
            };
            let since = self.now.since(fencing.since);
            let wait_ns = wait_ns.saturating_sub(since);
            return self.fencing_failed(fencing, AdminError::NoQuorum(text), wait_ns);
        }
        self.take_fence_epoch(fencing);
        Step::Waits
    }

    /// Whether enough of those who keep the mark have promised one epoch that the node does not own.
    fn is_out(&self, peer: NodeId, keepers: &[(NodeId, Report)]) -> bool {
        let newest = keepers.iter().map(|(_, r)| r.promised).max();
        let mut promised = keepers.to_vec();
        promised.retain(|(_, r)| {
            Some(r.promised) == newest && r.promised_to.is_some_and(|to| to != peer)
        });
        self.can_fence(&promised).is_ok()
    }

    fn take_fence_epoch(&mut self, fencing: &mut Fencing) {
        let reports = self.known_reports(None);
        let seen = reports.iter().flat_map(|(_, r)| {
            let config = r.config.as_ref().map_or(Epoch(0), |c| c.at.epoch);
            [r.promised, r.tail.epoch, config]
        });
        let seen = seen.max().unwrap_or(Epoch(0));
        let seen = seen.max(self.highest_seen);
        let epoch = Epoch(seen.max(self.metadata.wanted.promised).0 + 1);
        self.candidate_retry();
        self.following = None;
        self.matched = Seq(0);
        self.incoming.clear();
        let version = self.promise(epoch, self.config.me);
        fencing.since = self.now;
        fencing.phase = Phase::Promising {
            epoch,
            version,
            sent: false,
        };
    }

    fn judge_fence_promises(
        &mut self,
        fencing: &mut Fencing,
        epoch: Epoch,
        version: MetaVersion,
        sent: bool,
    ) -> Step {
        let Some(peer) = fencing.peer else {
            return Step::Waits;
        };
        if !self.metadata.is_durable(version) {
            return Step::Waits;
        }
        if !sent && self.metadata.wanted.promised > epoch {
            let text = "this node promised a newer epoch meanwhile";
            return self.fencing_failed(fencing, AdminError::NoQuorum(text.into()), 0);
        }
        if !sent {
            fencing.phase = Phase::Promising {
                epoch,
                version,
                sent: true,
            };
            fencing.token = self.next_token();
            self.tell_marks(fencing.token, epoch);
        }
        if self.is_out(peer, &self.keepers(fencing)) {
            return self.is_done(fencing);
        }
        if self.now.since(fencing.since) >= ANSWER_NS {
            let text = "not enough voters promised an epoch to this node";
            return self.fencing_failed(fencing, AdminError::NoQuorum(text.into()), 0);
        }
        Step::Waits
    }

    fn is_done(&mut self, fencing: &mut Fencing) -> Step {
        if fencing.aim == Aim::Failover {
            return self.choose(fencing);
        }
        if let Some(peer) = fencing.peer {
            let name = self.config.nodes[usize::from(peer.0)];
            self.log_info(format!("{name} is fenced: it commits nothing any more"));
        }
        Step::Ends(Ok(()))
    }

    /// Promotes the node with the best data: this one, if no other has more.
    fn choose(&mut self, fencing: &mut Fencing) -> Step {
        let reports = self.known_reports(None);
        let config = highest_config(&reports).map(|c| c.config);
        let fit = |(n, r): &&(NodeId, Report)| {
            let member = config.as_ref().is_some_and(|c| c.is_member(r.incarnation));
            member && !r.fresh && !r.damaged && !self.is_fenced(*n)
        };
        let me = self.config.me;
        let best = reports.iter().filter(fit);
        let best = best.max_by_key(|(n, r)| (r.tail, *n == me)).map(|b| b.0);
        let Some(node) = best else {
            let text = "no node within reach has data that it could be promoted with";
            return self.fencing_failed(fencing, AdminError::NoData(text.into()), 0);
        };
        if node == me {
            return Step::Promotes;
        }
        let Some(conn) = self.peer(node).and_then(|p| p.conn) else {
            return Step::Waits;
        };
        let name = self.config.nodes[usize::from(node.0)];
        fencing.last = AdminError::NoQuorum(format!(
            "{name} has the best data, was asked to become Primary, and is not"
        ));
        let left_ms = fencing.deadline.since(self.now) / 1_000_000;
        let for_ms = u32::try_from(left_ms).unwrap_or(STAND_MS_MAX);
        self.send(conn, Frame::Stand { for_ms });
        fencing.phase = Phase::Standing {
            node,
            asked_at: self.now,
        };
        Step::Waits
    }

    fn judge_standing(&mut self, fencing: &mut Fencing, node: NodeId, asked_at: Time) -> Step {
        let fenced = fencing.peer;
        let reports = self.known_reports(None);
        let serves = |(n, r): &(NodeId, Report)| r.serving && Some(*n) != fenced;
        if reports.iter().any(serves) {
            return Step::Ends(Ok(()));
        }
        if self.peer(node).is_none_or(|p| p.conn.is_none()) {
            let text = "the node that was to become Primary is gone".into();
            return self.fencing_failed(fencing, AdminError::NoQuorum(text), 0);
        }
        if self.now.since(asked_at) >= PAUSE_NS {
            fencing.phase = Phase::Standing {
                node,
                asked_at: self.now,
            };
            let token = self.next_token();
            self.send_all(&Frame::Ask { token });
        }
        Step::Waits
    }
}
