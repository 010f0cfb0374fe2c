//! The second half of a promotion: an epoch is taken and promised by enough nodes, and once the candidate has what they have it begins
//! its reign with the epoch record (protocol P1, P2, P4; D3 for the first of all).

use super::{ANSWER_NS, Phase, highest_config};
use crate::io::*;
use crate::memory::Memory;
use crate::meta::config::{ClusterConfig, ConfigAt, Standing};
use crate::replica::Replica;
use crate::replica::metadata::MetaVersion;
use crate::types::*;
use crate::wire::frame::{Frame, Report};

impl<M: Memory> Replica<M> {
    /// Takes an epoch above every one that was seen, and promises it to itself.
    pub(super) fn take_epoch(
        &mut self,
        answers: &[(NodeId, Report)],
        config: Option<ConfigAt>,
        first: bool,
    ) {
        let seen = answers
            .iter()
            .flat_map(|(_, r)| {
                [
                    r.promised,
                    r.tail.epoch,
                    r.config.as_ref().map_or(Epoch(0), |c| c.at.epoch),
                ]
            })
            .max()
            .unwrap_or(Epoch(0))
            .max(self.highest_seen)
            .max(self.metadata.wanted.promised);
        let epoch = Epoch(seen.0 + 1);
        let version = self.promise(epoch, self.config.me);
        self.following = None;
        self.matched = Seq(0);
        self.incoming.clear();
        let token = self.next_token();
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.epoch = epoch;
            candidacy.token = token;
            candidacy.config = config;
            candidacy.first = first;
        }
        self.set_phase(Phase::Promising {
            version,
            sent: false,
        });
    }

    pub(super) fn judge_promises(&mut self, version: MetaVersion, sent: bool) {
        if !self.metadata.is_durable(version) {
            return;
        }
        let Some(candidacy) = &self.candidacy else {
            return;
        };
        let (token, epoch, first) = (candidacy.token, candidacy.epoch, candidacy.first);
        if !sent {
            self.set_phase(Phase::Promising {
                version,
                sent: true,
            });
            let incarnation = self.metadata.wanted.incarnation;
            self.send_all(&Frame::Promise {
                token,
                epoch,
                incarnation,
            });
        }
        let grants = self.answers(Some(epoch));
        let done = if first {
            let all = grants.len() == self.config.nodes.len();
            if all && grants.iter().all(|(_, r)| r.fresh) && self.other_volumes(&grants).is_none() {
                self.first_identity(&grants);
                return;
            }
            Err(AdminError::NoQuorum(
                "not all nodes promised the first epoch".into(),
            ))
        } else {
            match highest_config(&grants) {
                Some(adopted) if self.waits_for_members(&adopted.config, &grants) => return,
                Some(adopted) => self.enough(&adopted, &grants, "").map(|()| adopted),
                None => Err(AdminError::NoQuorum("nobody knows the config".into())),
            }
        };
        match done {
            Ok(adopted) => self.fetch_from_newest(adopted, &grants),
            Err(error) => {
                let Some(candidacy) = &self.candidacy else {
                    return;
                };
                let answered = self.answers(None).len();
                let connected = self.peers.iter().filter(|p| p.conn.is_some()).count();
                if self.now.since(candidacy.since) >= ANSWER_NS || (answered > connected && sent) {
                    self.attempt_failed(error);
                }
            }
        }
    }

    /// Whether a member that is there may still grant, so that none has to be left out (protocol P6).
    fn waits_for_members(&self, config: &ClusterConfig, grants: &[(NodeId, Report)]) -> bool {
        let since = self.candidacy.as_ref().map_or(self.now, |c| c.since);
        self.now.since(since) < ANSWER_NS && self.hopes_for_members(config, grants)
    }

    /// The first promotion gives the resource its identity (protocol D3).
    fn first_identity(&mut self, grants: &[(NodeId, Report)]) {
        let uuid = self.random_wide();
        let history = self.random_wide();
        self.metadata.wanted.uuid = ResourceUuid(uuid);
        self.metadata.wanted.history = HistoryId(history);
        let version = self.metadata.changed();
        let mut nodes = arrayvec::ArrayVec::new();
        for (node, report) in grants {
            let name = self.config.nodes[usize::from(node.0)];
            let member = !self.config.is_witness(*node);
            nodes.push(Standing::full(name, report.incarnation, member));
        }
        nodes.sort_by_key(|n: &Standing| n.name);
        if let Some(candidacy) = self.candidacy.as_mut() {
            candidacy.config = Some(ConfigAt {
                at: RecordId::NONE,
                config: ClusterConfig { version: 1, nodes },
            });
        }
        self.set_phase(Phase::Identity { version });
    }

    pub(super) fn reign(&mut self) {
        let Some(candidacy) = &self.candidacy else {
            return;
        };
        let (epoch, first) = (candidacy.epoch, candidacy.first);
        let Some(ConfigAt { at, config }) = candidacy.config.clone() else {
            return;
        };
        if !first && !self.log.contains(at) {
            self.attempt_failed(AdminError::NoData(
                "no log within reach holds the record of the latest config".into(),
            ));
            return;
        }
        if self.metadata.wanted.promised != epoch {
            self.candidate_retry();
            return;
        }
        let config = if first {
            config
        } else {
            self.config_to_carry(config, &self.answers(Some(epoch)))
        };
        if self.begin_reign(epoch, config) {
            self.use_confirmation();
            self.set_phase(Phase::Reign);
            if let Some(candidacy) = self.candidacy.as_mut() {
                candidacy.last =
                    AdminError::NoQuorum("a majority did not take the epoch record".into());
            }
        }
    }
}
