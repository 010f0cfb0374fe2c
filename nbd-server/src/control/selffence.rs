//! What a node does about itself: a Primary whose lease is over disconnects its clients after a while, and a watchdog that is fed no
//! more resets the host. Both only if the config says so.
//!
//! The data does not need it: without a lease nothing is answered. It is for what else runs on the host and hangs on the disk, or
//! goes on with an address that others need.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use replicator::types::Time;
use replicator::view::Role;
use tokio::sync::oneshot;

use super::{Shared, boottime};
use crate::config;
use crate::handle::{DataCommand, Snapshot, ToData};

/// How often it is looked.
const TICK: Duration = Duration::from_millis(100);
/// How often a watchdog is fed.
pub(super) const FEED: Duration = Duration::from_secs(1);
/// A data thread that did not move for so long is not well.
const HANGS_AFTER: Duration = Duration::from_secs(5);
/// What tells a watchdog that it is closed on purpose.
const MAGIC_CLOSE: &[u8] = b"V";

/// A watchdog device that is open, and so will reset the host unless it is fed.
#[derive(Debug)]
pub(super) struct Watchdog {
    device: File,
    after: Duration,
    fed_at: Option<Instant>,
    starving: bool,
}

impl Watchdog {
    pub(super) fn open(config: &config::Watchdog) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(nix::libc::O_NONBLOCK);
        Ok(Self {
            device: options.open(&config.device)?,
            after: config.after,
            fed_at: None,
            starving: false,
        })
    }

    /// Feeds it if that is due, unless the node has been unwell for too long.
    fn look(&mut self, unwell_for: Option<Duration>) {
        let starving = unwell_for.is_some_and(|unwell| unwell >= self.after);
        if starving != self.starving {
            self.starving = starving;
            if starving {
                tracing::error!(
                    "this node serves nobody for {} ms: the watchdog is not fed any more, and will reset this host",
                    self.after.as_millis()
                );
            } else {
                tracing::warn!("this node is well again: the watchdog is fed");
            }
        }
        if starving || self.fed_at.is_some_and(|at| at.elapsed() < FEED) {
            return;
        }
        self.fed_at = Some(Instant::now());
        if let Err(error) = self.device.write_all(b".") {
            tracing::error!("the watchdog can not be fed: {error}");
        }
    }

    /// Closes it so that it does nothing any more, unless it is to reset the host.
    pub(super) fn close(mut self) {
        if self.starving {
            tracing::error!("the watchdog is left to reset this host");
            return;
        }
        if let Err(error) = self.device.write_all(MAGIC_CLOSE) {
            tracing::error!("the watchdog can not be disarmed: {error}");
        }
    }
}

/// Whether a Primary's lease is over; also while the data thread does not get to say so.
fn is_over(snapshot: &Snapshot, now: Time) -> bool {
    snapshot.view.role == Role::Primary && now >= snapshot.view.lease_until
}

fn hangs(snapshot: &Snapshot, now: Time) -> bool {
    let nanos = now.0.saturating_sub(snapshot.at.0);
    snapshot.at.0 != 0 && Duration::from_nanos(nanos) >= HANGS_AFTER
}

/// Watches this node.
pub(super) async fn run(shared: Rc<Shared>) {
    let after = shared.config.policy.disconnect_clients_after_ms;
    let after = (after > 0).then(|| Duration::from_millis(after.into()));
    if after.is_none() && shared.watchdog.borrow().is_none() {
        return;
    }
    let (mut over_since, mut unwell_since) = (None, None);
    let mut dropped_at = Time(0);
    loop {
        let (snapshot, now) = (shared.data.snapshot(), boottime());
        let over = is_over(&snapshot, now);
        let since =
            |since: Option<Instant>, is: bool| is.then(|| since.unwrap_or_else(Instant::now));
        over_since = since(over_since, over);
        unwell_since = since(unwell_since, over || hangs(&snapshot, now));
        if let Some(watchdog) = &mut *shared.watchdog.borrow_mut() {
            watchdog.look(unwell_since.map(|since| since.elapsed()));
        }
        let late = over_since.filter(|since| after.is_some_and(|after| since.elapsed() >= after));
        if late.is_some() != shared.turns_away.replace(late.is_some()) && late.is_some() {
            tracing::warn!(
                "no majority for {} ms: clients are disconnected, and turned away until there is one",
                shared.config.policy.disconnect_clients_after_ms
            );
        }
        let clients: u32 = snapshot.nbd_clients.iter().sum();
        // One time for each thing that the data thread has said: it may hang.
        if late.is_some() && clients > 0 && snapshot.at > dropped_at {
            dropped_at = now;
            let (answer, _nobody) = oneshot::channel();
            let command = DataCommand::DropClients;
            shared.data.send(ToData::Command { command, answer });
        }
        tokio::time::sleep(TICK).await;
    }
}
