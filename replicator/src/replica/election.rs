//! Promotion: asking, being promised, fetching what others have, and committing the epoch record (protocol P1 to P5, D3).

mod fetch;
mod force;
mod promising;

use super::Replica;
use crate::io::*;
use crate::memory::Memory;
use crate::meta::config::{ConfigAt, majority};
use crate::replica::metadata::MetaVersion;
use crate::types::*;
use crate::wire::frame::{Frame, Report};

/// How long answers to a question are awaited before it is judged by those that came.
pub(super) const ANSWER_NS: u64 = 400_000_000;

/// How long a fetch may go without a batch.
const FETCH_NS: u64 = 5_000_000_000;

/// The pause between attempts, at least; as much again is drawn at random.
pub(super) const PAUSE_NS: u64 = 40_000_000;

#[derive(Debug)]
enum Phase {
    Pause {
        until: Time,
    },
    Asking,
    Promising {
        version: MetaVersion,
        sent: bool,
    },
    Fetching {
        source: NodeId,
        target: RecordId,
        asked: Option<Seq>,
    },
    Identity {
        version: MetaVersion,
    },
    /// Forced: what was being written has to be durable before the history forks.
    Forking,
    Reign,
}

/// An attempt to become Primary.
#[derive(Debug)]
pub(super) struct Candidacy {
    ids: Vec<AdminId>,
    deadline: Time,
    phase: Phase,
    since: Time,
    token: u64,
    pub(super) epoch: Epoch,
    config: Option<ConfigAt>,
    first: bool,
    last: AdminError,
}

impl<M: Memory> Replica<M> {
    pub(super) fn next_token(&mut self) -> u64 {
        self.token += 1;
        self.token
    }

    pub(super) fn promote(&mut self, id: AdminId, deadline: Time) {
        // A reign that its promotion waits for is not what was asked for yet.
        let reigns = |c: &Candidacy| matches!(c.phase, Phase::Reign);
        let opening = self.candidacy.as_ref().is_some_and(reigns);
        if self.serving() && !opening && !self.demoting() && self.lease_runs() {
            self.out
                .push_back(Output::AdminReply { id, result: Ok(()) });
            return;
        }
        if self.drain.is_some() {
            let result = Err(AdminError::Failed("this node is stopping".into()));
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        if self.inconsistent() {
            let result = Err(self.why_inconsistent());
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.ids.push(id);
            candidacy.deadline = candidacy.deadline.max(deadline);
            return;
        }
        self.begin_candidacy(vec![id], deadline);
    }

    /// Why a node whose stores are no image is not promoted.
    fn why_inconsistent(&self) -> AdminError {
        let text = if self.fresh() {
            "this node is Inconsistent: it was made of a seed, which is only compared with what a Primary has. To begin a resource \
             with an image, create all nodes without a seed, promote one, and copy the image to its export"
        } else {
            "this node is Inconsistent: a resync goes straight to its stores, and they are no image until it is whole"
        };
        AdminError::NoData(text.into())
    }

    fn why_exports_wait(&self) -> AdminError {
        let text = if self.lacks_room() {
            "there is no room on this node for volumes as large as the resource has them: its log says what to do. Another node may \
             have it"
        } else {
            "this node's stores have not come to the last change of the volumes in time: give it more with --timeout"
        };
        AdminError::Failed(text.into())
    }

    /// A Primary that lost a voter to a failed promotion seeks an epoch above that one.
    pub(super) fn seek_higher_epoch(&mut self) {
        let deadline = self.now.after(10 * self.config.lease_ns());
        self.begin_candidacy(Vec::new(), deadline);
    }

    /// A peer asked this node to become Primary.
    pub(super) fn stand_for_peer(&mut self, deadline: Time) {
        self.begin_candidacy(Vec::new(), deadline);
    }

    /// Whether this node has taken an epoch, and seeks to reign in it.
    pub(super) fn is_standing(&self) -> bool {
        let asks_only = |c: &Candidacy| matches!(c.phase, Phase::Pause { .. } | Phase::Asking);
        self.candidacy.as_ref().is_some_and(|c| !asks_only(c))
    }

    fn begin_candidacy(&mut self, ids: Vec<AdminId>, deadline: Time) {
        self.candidacy = Some(Candidacy {
            ids,
            deadline,
            phase: Phase::Pause { until: self.now },
            since: self.now,
            token: 0,
            epoch: Epoch(0),
            config: None,
            first: false,
            last: AdminError::NoQuorum("no peer has answered yet".into()),
        });
    }

    pub(super) fn end_candidacy(&mut self, result: AdminResult) {
        let Some(candidacy) = self.candidacy.take() else {
            return;
        };
        for id in candidacy.ids {
            self.out.push_back(Output::AdminReply {
                id,
                result: result.clone(),
            });
        }
    }

    /// This attempt failed; another follows after a pause.
    fn attempt_failed(&mut self, error: AdminError) {
        let jitter = self.random() % PAUSE_NS;
        let until = self.now.after(PAUSE_NS + jitter);
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.last = error;
            candidacy.phase = Phase::Pause { until };
            candidacy.first = false;
        }
    }

    /// Somebody else was promised a newer epoch: this attempt is void.
    pub(super) fn candidate_retry(&mut self) {
        if self.candidacy.is_some() {
            self.attempt_failed(AdminError::NoQuorum(
                "another node was promised a newer epoch meanwhile".into(),
            ));
        }
    }

    /// Somebody speaks as the Primary of an epoch. If that is newer than the one being sought, this attempt is void. Whether
    /// that Primary still lives is for the next question to find out: its words may be old, and its reign over since.
    pub(super) fn candidate_hears_primary(&mut self, node: NodeId, epoch: Epoch) {
        let Some(candidacy) = &self.candidacy else {
            return;
        };
        let asks_only = matches!(candidacy.phase, Phase::Pause { .. } | Phase::Asking);
        let unwanted = candidacy.ids.is_empty() && self.leader.is_none();
        let error = AdminError::OtherPrimary(format!(
            "{} is Primary",
            self.config.nodes[usize::from(node.0)]
        ));
        if unwanted {
            // It was only to remain Primary, and this node no longer is.
            self.end_candidacy(Err(error));
        } else if !asks_only && candidacy.epoch < epoch {
            self.attempt_failed(error);
        }
    }

    /// The last Primary has ended its reign: whoever waits for its lease need not.
    pub(super) fn candidate_is_free(&mut self) {
        let now = self.now;
        self.fencings_go_on();
        if let Some(Candidacy {
            phase: Phase::Pause { until },
            ..
        }) = self.candidacy.as_mut()
        {
            *until = now;
        }
    }

    pub(super) fn candidate_lost(&mut self, node: NodeId) {
        if let Some(Candidacy {
            phase: Phase::Fetching { source, .. },
            ..
        }) = &self.candidacy
            && *source == node
        {
            self.attempt_failed(AdminError::NoData(
                "the connection to the node with the newest data ended".into(),
            ));
        }
    }

    pub(super) fn candidacy_timeout(&self) -> Option<Time> {
        let candidacy = self.candidacy.as_ref()?;
        if self.demoting() {
            return Some(candidacy.deadline);
        }
        let next = match &candidacy.phase {
            Phase::Pause { until } => return Some((*until).min(candidacy.deadline)),
            Phase::Asking | Phase::Promising { .. } => candidacy.since.after(ANSWER_NS),
            Phase::Fetching { .. } => candidacy.since.after(FETCH_NS),
            Phase::Identity { .. } | Phase::Forking | Phase::Reign => candidacy.deadline,
        };
        // A time that has passed is waited for no more: it is this node's own disk that the attempt waits for then.
        let next = if next > self.now {
            next
        } else {
            candidacy.deadline
        };
        Some(next.min(candidacy.deadline))
    }

    pub(super) fn pump_candidacy(&mut self) {
        let Some(candidacy) = &self.candidacy else {
            return;
        };
        if self.now >= candidacy.deadline {
            let mut error = candidacy.last.clone();
            if matches!(candidacy.phase, Phase::Reign) {
                if self.serving() && self.exports_wait() {
                    error = self.why_exports_wait();
                }
                self.step_down();
            }
            self.end_candidacy(Err(error));
            return;
        }
        if self.demoting() {
            return; // First the old reign ends.
        }
        match candidacy.phase {
            Phase::Pause { until } if self.now >= until => self.ask(),
            Phase::Pause { .. } => {}
            Phase::Asking => self.judge_answers(),
            Phase::Promising { version, sent } => self.judge_promises(version, sent),
            Phase::Fetching {
                source,
                target,
                asked,
            } => self.fetch(source, target, asked),
            Phase::Forking => self.fork(),
            Phase::Identity { version } => {
                let early = planted!(ForkServesEarly) && version == self.silent_until;
                if self.metadata.is_durable(version) || early {
                    self.reign();
                }
            }
            Phase::Reign => {
                if self.leader.is_none() {
                    self.attempt_failed(AdminError::NoQuorum(
                        "the epoch record was not committed".into(),
                    ));
                } else if self.serving() && self.lease_runs() {
                    if self.exports_wait() {
                        // Clients may know the volumes as they are with what is not applied yet.
                        self.applier.urgent = true;
                    } else {
                        self.end_candidacy(Ok(()));
                    }
                }
            }
        }
    }

    fn set_phase(&mut self, phase: Phase) {
        let now = self.now;
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.phase = phase;
            candidacy.since = now;
        }
    }

    fn ask(&mut self) {
        let token = self.next_token();
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.token = token;
        }
        self.set_phase(Phase::Asking);
        self.send_all(&Frame::Ask { token });
        self.judge_answers();
    }

    /// A report with a token came in.
    pub(super) fn candidate_report(&mut self, node: NodeId) {
        let Some(candidacy) = &self.candidacy else {
            return;
        };
        let token = candidacy.token;
        let Some(report) = self.peer(node).and_then(|p| p.report.as_ref()) else {
            return;
        };
        if report.token == token && report.serving {
            let name = self.config.nodes[usize::from(node.0)];
            if self.leader.is_some() {
                self.step_down();
            }
            self.end_candidacy(Err(AdminError::OtherPrimary(format!(
                "{name} is Primary and alive: demote it first, or fence it"
            ))));
        }
    }

    /// The reports that answer the present question, with the nodes they are from; this node's own first.
    fn answers(&self, granted: Option<Epoch>) -> Vec<(NodeId, Report)> {
        let Some(candidacy) = &self.candidacy else {
            return Vec::new();
        };
        let me = self.config.me;
        let mut own = self.report_to(me, candidacy.token, granted.unwrap_or(Epoch(0)));
        own.lease_wait_ms =
            u32::try_from(self.lease_wait_ns(me).div_ceil(1_000_000)).unwrap_or(u32::MAX);
        let mut answers = vec![(me, own)];
        for peer in &self.peers {
            if let (Some(_), Some(report)) = (peer.conn, &peer.report)
                && report.token == candidacy.token
                && granted.is_none_or(|epoch| report.granted == epoch)
            {
                answers.push((peer.node, (**report).clone()));
            }
        }
        answers
    }

    pub(super) fn names(&self, nodes: impl Iterator<Item = NodeId>) -> String {
        let names: Vec<_> = nodes
            .map(|n| self.config.nodes[usize::from(n.0)].as_str())
            .collect();
        if names.is_empty() {
            "nobody".into()
        } else {
            names.join(", ")
        }
    }

    /// Why fresh nodes are no resource: they were not created with the same volumes.
    fn other_volumes(&self, answers: &[(NodeId, Report)]) -> Option<AdminError> {
        let own = self.volumes().digest();
        let data = |n: NodeId| !self.config.is_witness(n);
        let (node, _) = answers.iter().find(|(n, r)| data(*n) && r.volumes != own)?;
        let name = self.config.nodes[usize::from(node.0)];
        Some(AdminError::NoData(format!(
            "{name} was created with other volumes or sizes than this node: use one file on all nodes, and create them from it \
             with `replctl create --wipe`"
        )))
    }

    fn judge_answers(&mut self) {
        let answers = self.answers(None);
        let connected = self.peers.iter().filter(|p| p.conn.is_some()).count();
        let Some(candidacy) = &self.candidacy else {
            return;
        };
        // A Primary that has not answered is waited for, unless enough voters know that its lease is over.
        let asked_at = candidacy.since;
        let waited = self.now.since(asked_at) >= ANSWER_NS;
        if answers.len() < connected + 1 && !waited && !self.ready_without_the_rest(&answers) {
            return;
        }
        let answered: Vec<NodeId> = answers.iter().map(|(n, _)| *n).collect();
        let all =
            (0..self.config.nodes.len()).map(|n| NodeId(u8::try_from(n).expect("at most 8 nodes")));
        let missing = self.names(all.filter(|n| !answered.contains(n)));
        if self.fresh() {
            if answers.iter().any(|(_, r)| !r.fresh) {
                self.attempt_failed(AdminError::NoData(
                    "this node is new or was wiped and holds nothing of the resource".into(),
                ));
            } else if answers.len() < self.config.nodes.len() {
                self.attempt_failed(AdminError::NoQuorum(format!(
                    "the first promotion needs all nodes of the resource; not reached: {missing}"
                )));
            } else if answers.iter().any(|(_, r)| r.inconsistent) {
                let seeded = answers.iter().filter(|(_, r)| r.inconsistent);
                let names = self.names(seeded.map(|(n, _)| *n));
                self.attempt_failed(AdminError::NoData(format!(
                    "{names} was made of a seed, and this is the first promotion: create all nodes without a seed, promote \
                     one, and copy the image to its export"
                )));
            } else if let Some(error) = self.other_volumes(&answers) {
                self.attempt_failed(error);
            } else {
                self.take_epoch(&answers, None, true);
            }
            return;
        }
        let Some(adopted) = highest_config(&answers) else {
            return;
        };
        let waits: Vec<_> = answers
            .iter()
            .filter(|(_, r)| r.lease_wait_ms > 0)
            .collect();
        let wait_ms = waits
            .iter()
            .map(|(_, r)| r.lease_wait_ms)
            .max()
            .unwrap_or(0);
        let waiting = self.names(waits.iter().map(|(n, _)| *n));
        if let Err(error) = self.enough(&adopted, &answers, &missing) {
            self.attempt_failed(error);
            return;
        }
        let ready = ready(&answers);
        let own_ready = ready.first().is_some_and(|(n, _)| *n == self.config.me);
        if !own_ready || self.enough(&adopted, &ready, "").is_err() {
            self.attempt_failed(AdminError::NoQuorum(format!(
                "the lease of the last Primary is not over for {waiting} ({wait_ms} ms)"
            )));
            // The next attempt is due when it is, as told when the question was asked; soon, if that Primary has ended its
            // reign and only the news of it is under way.
            let wait_ns = if self.released {
                0
            } else {
                (u64::from(wait_ms) * 1_000_000).min(2 * self.config.lease_ns())
            };
            let until = asked_at.after(wait_ns).max(self.now.after(PAUSE_NS));
            if let Some(candidacy) = self.candidacy.as_mut() {
                candidacy.phase = Phase::Pause { until };
            }
            return;
        }
        if let Err(error) = self.can_fetch(&adopted.config, &ready) {
            self.attempt_failed(error);
            return;
        }
        self.take_epoch(&answers, Some(adopted), false);
    }

    /// Whether these answers make a promotion, whatever the others would say: no lease of any Primary runs then.
    fn ready_without_the_rest(&self, answers: &[(NodeId, Report)]) -> bool {
        let ready = ready(answers);
        !self.fresh()
            && ready.first().is_some_and(|(n, _)| *n == self.config.me)
            && highest_config(answers).is_some_and(|c| self.enough(&c, &ready, "").is_ok())
    }

    /// Whether these nodes would make a promotion (protocol P2).
    fn enough(
        &self,
        adopted: &ConfigAt,
        answers: &[(NodeId, Report)],
        missing: &str,
    ) -> Result<(), AdminError> {
        let config = &adopted.config;
        let me = self.config.me;
        let fencing = |r: &Report| r.fences.of(me).is_fenced() && !planted!(FencedIsPromised);
        let counts = |r: &&(NodeId, Report)| !r.1.fresh && !r.1.damaged && !fencing(&r.1);
        let voters = answers
            .iter()
            .filter(counts)
            .filter(|(_, r)| config.is_voter(r.incarnation))
            .count();
        let members = answers
            .iter()
            .filter(counts)
            .filter(|(_, r)| config.is_member(r.incarnation))
            .count();
        let (voters, members) = if planted!(BlankGrantCounts) {
            (answers.len(), answers.len())
        } else {
            (voters, members)
        };
        let voters = voters + usize::from(self.has_confirmed_vote(config));
        let voters_needed = majority(config.voters());
        let members_needed = config.members() - majority(config.members()) + 1;
        if voters < voters_needed || members < members_needed {
            if answers.iter().any(|(_, r)| fencing(r)) {
                return Err(self.fenced_error());
            }
            let missing = if missing.is_empty() {
                "some nodes did not promise"
            } else {
                missing
            };
            return Err(AdminError::NoQuorum(format!(
                "{voters} of {} voters can be counted on and {voters_needed} are needed; not reached: {missing}{}",
                config.voters(),
                self.confirmation_hint(config),
            )));
        }
        if let Some(error) = self.lacks_one_of_two(adopted, answers) {
            return Err(error);
        }
        if !config.is_member(self.metadata.wanted.incarnation) {
            return Err(AdminError::NoData(
                "this node is no member of the resource under its present incarnation".into(),
            ));
        }
        if self.merging() {
            return Err(AdminError::NoData(
                "this node is laying what a resync brought over its stores: it can be promoted when that is done".into(),
            ));
        }
        if self.damaged() {
            return Err(AdminError::NoData(
                "this node's log is damaged and has to catch up from a Primary first".into(),
            ));
        }
        Ok(())
    }
}

/// The answers of nodes whose lease rule lets them promise.
fn ready(answers: &[(NodeId, Report)]) -> Vec<(NodeId, Report)> {
    let may = |r: &Report| r.lease_wait_ms == 0;
    answers.iter().filter(|(_, r)| may(r)).cloned().collect()
}

pub(super) fn highest_config(answers: &[(NodeId, Report)]) -> Option<ConfigAt> {
    answers
        .iter()
        .filter_map(|(_, r)| r.config.clone())
        .max_by_key(|c| c.at)
}
