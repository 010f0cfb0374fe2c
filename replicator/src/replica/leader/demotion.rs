//! The end of a reign: a clean one commits what is pending and a demote record (protocol D1), any other leaves that to the next Primary.

use crate::io::*;
use crate::journal::batch::Kind;
use crate::memory::Memory;
use crate::replica::Replica;
use crate::replica::peers::Feed;
use crate::replica::volumes::Payload;
use crate::types::*;
use crate::wire::frame::Frame;

/// Who asked for a demotion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::replica) enum DemoteFor {
    Operator(AdminId),
    Drain,
    /// It is fenced.
    Fence,
}

/// A demotion in progress.
#[derive(Debug)]
pub(in crate::replica) struct Demoting {
    pub(in crate::replica) why: DemoteFor,
    record: Option<Seq>,
    pub(super) deadline: Time,
}

impl<M: Memory> Replica<M> {
    /// Asks for a demotion.
    pub(in crate::replica) fn demote(&mut self, why: DemoteFor) {
        if self.leader.is_none() {
            self.demoted_for(why, Ok(()));
            return;
        }
        let serving = self.serving();
        self.close_batch();
        self.drop_clients();
        let deadline = self.now.after(self.config.lease_ns());
        let Some(leader) = self.leader.as_mut() else {
            return;
        };
        if let Some(earlier) = leader.demoting.take() {
            self.demoted_for(earlier.why, Ok(()));
        }
        if let Some(leader) = self.leader.as_mut() {
            leader.demoting = Some(Demoting {
                why,
                record: None,
                deadline,
            });
        }
        if !serving {
            self.end_demotion(false);
        }
    }

    /// Commits what is pending, then the demote record, then ends the reign; without a majority it ends unrecorded.
    pub(super) fn pump_demoting(&mut self) {
        let Some(leader) = &self.leader else { return };
        let Some(demoting) = &leader.demoting else {
            return;
        };
        if self.now >= demoting.deadline {
            self.end_demotion(false);
            return;
        }
        let record = demoting.record;
        let all_committed = self.committed == self.log.tail().id.seq;
        if let Some(seq) = record {
            if self.committed >= seq {
                self.end_demotion(true);
            }
        } else if all_committed && self.append_control(Kind::Demote, Payload::None) {
            let seq = self.log.tail().id.seq;
            if let Some(d) = self.leader.as_mut().and_then(|l| l.demoting.as_mut()) {
                d.record = Some(seq);
            }
        }
    }

    fn end_demotion(&mut self, clean: bool) {
        let Some(leader) = self.leader.as_mut() else {
            return;
        };
        let epoch = leader.epoch;
        let demoting = leader.demoting.take();
        if clean {
            let committed = self.committed;
            self.send_all(&Frame::Demoted { epoch, committed });
            self.demoted = epoch;
        }
        self.step_down();
        if clean {
            self.released = true;
            self.log_info(format!("demoted: epoch {epoch} is over"));
        }
        if let Some(demoting) = demoting {
            self.demoted_for(demoting.why, Ok(()));
        }
    }

    fn demoted_for(&mut self, why: DemoteFor, result: AdminResult) {
        match why {
            DemoteFor::Operator(id) => self.out.push_back(Output::AdminReply { id, result }),
            DemoteFor::Drain | DemoteFor::Fence => {}
        }
    }

    /// Ends the reign: clients are dropped unanswered, uncommitted records stay in the log until a newer Primary's cut.
    pub(in crate::replica) fn step_down(&mut self) {
        let Some(leader) = self.leader.take() else {
            return;
        };
        self.log_info(format!(
            "this node is Secondary: epoch {} is over for it",
            leader.epoch
        ));
        self.discard_open();
        self.drop_clients();
        self.hold_lost();
        self.wishes_lost();
        self.expected.clear();
        self.change_lost();
        self.overlay.clear();
        self.heartbeat_heard_at = self.heartbeat_heard_at.max(leader.ran_at);
        for peer in &mut self.peers {
            peer.feed = Feed::Off;
            peer.supported_at = None;
            peer.refused = None;
        }
        if let Some(demoting) = leader.demoting {
            self.demoted_for(demoting.why, Ok(()));
        }
    }
}
