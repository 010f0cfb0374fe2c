//! What the data thread publishes, and what it tells the control thread about.

use std::sync::Arc;

use replicator::meta::volumes::Volumes;
use replicator::types::{Time, VOLUMES_MAX};
use replicator::view::View;

use super::pool::Pool;
use crate::handle::{ControlHandle, Queues, Snapshot, ToControl, Trouble};

/// A snapshot is not older than this while the data thread lives, in nanoseconds.
pub const HEARTBEAT_NANOS: u64 = 200_000_000;

/// A snapshot of a busy node in which nothing but numbers changed is not older than this, in nanoseconds.
const NUMBERS_NANOS: u64 = 20_000_000;

/// How often the lock is tried when something important has changed.
const TRIES: u32 = 1000;

/// Keeps the snapshot up to date.
#[derive(Debug)]
pub struct Publisher {
    last: Snapshot,
    pool: Pool,
    published: bool,
}

impl Publisher {
    /// Publishes about a node with this memory.
    pub fn new(pool: Pool) -> Self {
        let last = Snapshot {
            memory_locked: pool.locked(),
            buffers_registered: false,
            memory_bytes: pool.total_bytes(),
            ..Snapshot::default()
        };
        Self {
            last,
            pool,
            published: false,
        }
    }

    /// When the next snapshot is due even if nothing happens.
    pub fn due(&self) -> Time {
        self.last.at.after(HEARTBEAT_NANOS)
    }

    /// Publishes if there is something to say. `about_to_wait` is whether nothing else is to be done at once.
    pub fn publish(
        &mut self,
        now: Time,
        view: View,
        (nbd_clients, volumes): ([u32; VOLUMES_MAX], &Arc<Volumes>),
        queues: impl FnOnce() -> Queues,
        trouble: &Trouble,
        (control, about_to_wait): (&ControlHandle, bool),
    ) {
        let changed = !self.published
            || self.has_changed(&view, &nbd_clients)
            || self.last.volumes != *volumes
            || self.last.trouble != *trouble;
        let age = now.since(self.last.at);
        let numbers = view != self.last.view;
        let is_due = changed
            || age >= HEARTBEAT_NANOS
            || (numbers && (about_to_wait || age >= NUMBERS_NANOS));
        if !is_due {
            return;
        }
        let before = std::mem::replace(&mut self.last.view, view);
        let clients = std::mem::replace(&mut self.last.nbd_clients, nbd_clients);
        let at = std::mem::replace(&mut self.last.at, now);
        let before_volumes = std::mem::replace(&mut self.last.volumes, Arc::clone(volumes));
        self.last.memory_used_bytes = self.pool.used_bytes();
        self.last.queues = queues();
        let troubled = std::mem::replace(&mut self.last.trouble, trouble.clone());
        let tries = if changed { TRIES } else { 1 };
        if (0..tries).any(|_| self.try_once(control)) {
            self.published = true;
            if changed {
                // The control thread may have ended; then nobody wants to know.
                let _ = control.sender.send(ToControl::Changed);
            }
        } else {
            // The next turn sees the same change and tries again.
            self.last.view = before;
            self.last.nbd_clients = clients;
            self.last.volumes = before_volumes;
            self.last.at = at;
            self.last.trouble = troubled;
        }
    }

    fn try_once(&self, control: &ControlHandle) -> bool {
        let Ok(mut snapshot) = control.snapshot.try_lock() else {
            std::hint::spin_loop();
            return false;
        };
        snapshot.clone_from(&self.last);
        true
    }

    /// Whether something changed that a person would want to see as an event.
    fn has_changed(&self, view: &View, nbd_clients: &[u32; VOLUMES_MAX]) -> bool {
        let last = &self.last.view;
        last.role != view.role
            || last.epoch != view.epoch
            || last.primary != view.primary
            || last.quorum != view.quorum
            || last.suspended != view.suspended
            || last.health != view.health
            || last.health_reason != view.health_reason
            || last.serving != view.serving
            || last.disk_state != view.disk_state
            || last.verify.by != view.verify.by
            || last.verify.ended != view.verify.ended
            || self.last.nbd_clients != *nbd_clients
            || last.peers.len() != view.peers.len()
            || last.peers.iter().zip(&view.peers).any(|(before, now)| {
                before.role != now.role
                    || before.connection != now.connection
                    || before.replication != now.replication
                    || before.disk_state != now.disk_state
            })
    }
}
