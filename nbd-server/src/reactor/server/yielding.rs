//! A Primary whose disks hang leaves the service to another node; any node tells the core that they do, and so its peers.

use replicator::io::{AdminCommand, Input};
use replicator::view::{ConnectionState, DiskState, PeerView, Suspended};

use super::{Core, Runner, Server};
use crate::reactor::engine::InWork;

impl<C: Core> Server<C> {
    /// Leaves the service to another node if clients have waited for this one's disks for too long. Nothing is lost by it:
    /// the core demotes without the local disks, and takes up the log again when they answer.
    pub(super) fn watch_disks(&mut self) {
        let now = self.engine.now;
        self.disks.look(now);
        let (watch, limit) = (self.disks.watch(), self.disk_timeout_nanos);
        let hang = watch.silent_for_nanos() >= limit;
        if hang != self.disks_hang {
            self.disks_hang = hang;
            self.engine.input(Input::DisksHang(hang));
        }
        if !hang {
            return;
        }
        let watch = self.disks.watch();
        // Some wait for an answer, others to be heard: what the disk does not take fills the memory or the ring.
        let is_late = |work: &InWork| watch.age(now, work.asked.since) >= limit;
        let unanswered = self.engine.asked.find(is_late).is_some();
        let unheard = watch.age(now, self.engine.admitted_at) >= limit
            && self.parked.iter().any(|r| matches!(r, Runner::Client(_)));
        if !unanswered && !unheard {
            return;
        }
        let view = self.engine.core.view();
        let could_serve = |peer: &&PeerView| {
            peer.connection == ConnectionState::Connected && peer.disk_state == DiskState::UpToDate
        };
        let other = view.peers.iter().find(could_serve);
        let (true, Suspended::No, Some(_)) = (view.serving, view.suspended, other) else {
            return;
        };
        tracing::error!(
            "clients have waited for this node's disks for {} ms, and another node could serve them: demoting; promote it",
            self.disk_timeout_nanos / 1_000_000
        );
        let (answer, _nobody) = tokio::sync::oneshot::channel();
        let id = self.commands.open(answer);
        let command = AdminCommand::Demote;
        self.engine.input(Input::Admin { id, command });
    }
}
