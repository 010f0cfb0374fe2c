//! What a status says about promotion.

use std::cmp::Reverse;
use std::time::Duration;

use nbd_server::admin::{Connection, DiskState, Membership, PeerStatus, Role, Status};
use nbd_server::config::Config;

use super::Moment;

/// A data thread that has not moved for so long is no good Primary.
const SLOW_MS: u64 = 2_000;

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// `repld` does not say.
    Silent,
    /// It is Primary.
    Primary {
        /// Until when it may serve.
        lease_until: Moment,
    },
    /// It has the newest data, reaches a majority, and hears no Primary.
    Fit {
        /// How many others should be asked before it.
        place: u32,
    },
    /// Nothing is to be done.
    Secondary,
}

/// What the status says that was asked for at a time.
pub(super) fn judge(status: &Status, config: &Config, at: Moment) -> Standing {
    let left = status.lease_left_ms;
    if status.role == Role::Primary {
        // From when it was asked for: so it can only be later.
        let left = Duration::from_millis(left.unwrap_or(0));
        return Standing::Primary {
            lease_until: at.after(left),
        };
    }
    let whole = !status.volumes.is_empty()
        && status
            .volumes
            .iter()
            .all(|v| v.disk_state == DiskState::UpToDate);
    let fit = whole
        // The first promotion of a resource is an operator's.
        && status.epoch > 0
        && status.quorum == Some(true)
        && status.fenced == Some(false)
        && status.membership == Some(Membership::Member)
        && status.last_progress_ms.is_some_and(|ms| ms < SLOW_MS)
        && left == Some(0);
    if !fit {
        return Standing::Secondary;
    }
    // By the length of the log, and by name among equals.
    let own = (Reverse(status.seq.durable), &status.node);
    let comes_first = |peer: &&PeerStatus| {
        let could = peer.connection == Connection::Connected
            && status.primary.as_ref() != Some(&peer.name)
            && peer.fenced == Some(false)
            && peer.membership == Some(Membership::Member)
            && is_data(config, &peer.name);
        could && (Reverse(peer.durable_seq), &peer.name) < own
    };
    let place = status.peers.iter().filter(comes_first).count();
    Standing::Fit {
        place: u32::try_from(place).unwrap_or(u32::MAX),
    }
}

fn is_data(config: &Config, name: &str) -> bool {
    let node = config.nodes.iter().find(|node| node.name == name);
    node.is_some_and(|node| node.role == nbd_server::config::NodeRole::Data)
}
