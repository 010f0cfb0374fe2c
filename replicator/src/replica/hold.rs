//! Writes held for an operator, who copies the stores meanwhile: what was admitted is committed, applied and flushed, here
//! and on the peers that keep up, and nothing is admitted until the operator says so. Reads go on. A hold is this Primary's
//! own and lives in memory only: it ends with the reign, whatever ends that, and the operator is told when he asks to resume.

use super::Replica;
use super::peers::Feed;
use crate::io::*;
use crate::memory::Memory;
use crate::types::*;

/// While peers are waited for they are asked this often how far they are.
const ASK_NS: u64 = 20_000_000;

/// Writes are held.
#[derive(Debug)]
pub(super) struct Hold {
    /// Who waits for the stores to be the images; `None` once they are.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: AdminId,
    deadline: Time,
    ask_at: Time,
}

impl<M: Memory> Replica<M> {
    pub(super) fn suspend_io(&mut self, id: AdminId, deadline: Time) {
        let answer = match &self.hold {
            Some(Hold { waiting: None }) => Some(Ok(())),
            Some(_) => Some(Err(AdminError::Failed(
                "another suspend-io is under way; wait for its end".into(),
            ))),
            None if self.volumes_change() => Some(Err(AdminError::Failed(
                "the volumes are being changed; wait for the end of that".into(),
            ))),
            None => self.not_holding().map(Err),
        };
        if let Some(result) = answer {
            self.out.push_back(Output::AdminReply { id, result });
            return;
        }
        self.log_info("writes are held for an operator: the stores are brought up to date".into());
        self.hold_was_lost = false;
        let waiting = Waiting {
            id,
            deadline,
            ask_at: self.now,
        };
        self.hold = Some(Hold {
            waiting: Some(waiting),
        });
        self.applier.urgent = true;
    }

    pub(super) fn resume_io(&mut self) -> AdminResult {
        if self.hold.is_some() {
            let early = "resume-io came before the stores were up to date";
            self.end_hold(Err(AdminError::Failed(early.into())));
            self.log_info("writes go on: the operator holds them no more".into());
            return Ok(());
        }
        if std::mem::take(&mut self.hold_was_lost) {
            return Err(AdminError::Failed(
                "writes have not been held all the time: this node ceased to be Primary meanwhile; \
                 discard what was copied from the stores and begin again"
                    .into(),
            ));
        }
        match self.not_holding() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Why there is nothing to hold here.
    fn not_holding(&self) -> Option<AdminError> {
        if self.serving() && !self.demoting() {
            return None;
        }
        let primary = self.following.filter(|_| !self.released);
        Some(match primary {
            Some(following) => AdminError::OtherPrimary(format!(
                "{} is Primary: writes are held and resumed there",
                self.config.nodes[usize::from(following.node.0)]
            )),
            None => AdminError::Failed(
                "this node is not Primary: it holds no writes; promote it first".into(),
            ),
        })
    }

    /// Until the stores are the images.
    pub(super) fn is_draining_for_hold(&self) -> bool {
        self.hold.as_ref().is_some_and(|h| h.waiting.is_some())
    }

    pub(super) fn pump_hold(&mut self) {
        let Some(waiting) = self.hold.as_ref().and_then(|h| h.waiting.as_ref()) else {
            return;
        };
        let (deadline, ask_at) = (waiting.deadline, waiting.ask_at);
        let committed = self.serving() && self.lease_runs() && self.committed == self.admitted();
        let files_rest = self.room_is_idle() && !self.unfit && !self.fitting;
        let rests = self.applies_nothing() && files_rest && !self.repairs.write();
        let drained = committed && self.all_applied() && rests;
        let late = self.now >= deadline;
        // What is copied shall hold no block that is known to be bad.
        let best = self.peers_have_applied() && self.repairs.is_idle();
        let done = drained && (late || best);
        if done || (committed && planted!(HoldBeforeApplied)) {
            self.log_info(format!(
                "the stores hold everything up to record {} and rest until writes go on",
                self.committed
            ));
            if let Some(waiting) = self.hold.as_mut().and_then(|h| h.waiting.take()) {
                let (id, result) = (waiting.id, Ok(()));
                self.out.push_back(Output::AdminReply { id, result });
            }
        } else if late {
            let error = if self.lease_runs() {
                AdminError::Failed(
                    "the stores did not get up to date in time, and writes go on: a disk is slow; \
                     give it more time with --timeout"
                        .into(),
                )
            } else {
                AdminError::NoQuorum(
                    "a majority of the nodes can not be reached: what was admitted is not committed; \
                     nothing is held"
                        .into(),
                )
            };
            self.log_warn(format!("nothing is held: {error}"));
            self.end_hold(Err(error));
        } else if self.now >= ask_at {
            let next = self.now.after(ASK_NS);
            if let Some(waiting) = self.hold.as_mut().and_then(|h| h.waiting.as_mut()) {
                waiting.ask_at = next;
            }
            self.repeat_heartbeat();
        }
    }

    /// Whether the stores of every peer that keeps up have what is committed. One that is behind is not waited for: it has
    /// an older point in time anyway.
    fn peers_have_applied(&self) -> bool {
        let keeps_up = |f: &Feed, caught_up: bool| matches!(f, Feed::On { .. }) && caught_up;
        self.peers
            .iter()
            .filter(|p| p.conn.is_some() && keeps_up(&p.feed, p.caught_up))
            .all(|p| p.applied >= self.committed)
    }

    pub(super) fn hold_timeout(&self) -> Option<Time> {
        let waiting = self.hold.as_ref()?.waiting.as_ref()?;
        Some(waiting.deadline.min(waiting.ask_at))
    }

    /// The reign is over, and with it the hold.
    pub(super) fn hold_lost(&mut self) {
        if self.hold.is_some() {
            self.log_warn("writes are held no more: this node ceases to be Primary".into());
            self.hold_was_lost = true;
            let text = "this node ceased to be Primary meanwhile: nothing is held";
            self.end_hold(Err(AdminError::Failed(text.into())));
        }
    }

    fn end_hold(&mut self, result: AdminResult) {
        if let Some(Waiting { id, .. }) = self.hold.take().and_then(|h| h.waiting) {
            self.out.push_back(Output::AdminReply { id, result });
        }
    }
}
