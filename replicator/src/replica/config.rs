//! What the operator decided, as far as the core needs to know.

use crate::meta::config::Name;
use crate::types::*;

/// What to do when the majority is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnNoQuorum {
    /// Hold I/O until the majority is back.
    SuspendIo,
    /// Fail I/O.
    IoError,
}

/// Whom an acknowledgement waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckPolicy {
    /// A majority of the members.
    Majority,
    /// Every connected member besides.
    All,
}

/// What to do where there is no room to stage a resync.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WithoutRoom {
    /// Wait for room, at the older point.
    #[default]
    Wait,
    /// Bring it straight to the stores, and be Inconsistent meanwhile.
    InPlace,
}

/// What the operator decided, the same on every node but for `me`.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// The resource's name.
    pub resource: Name,
    /// The names of the nodes, sorted: a [`NodeId`] is a position in here.
    pub nodes: Vec<Name>,
    /// Which of them are witnesses: they vote and keep no data.
    pub witnesses: Vec<NodeId>,
    /// Which of them this is.
    pub me: NodeId,
    /// The length of the lease, in milliseconds.
    pub lease_ms: u32,
    /// What to do when the majority is lost.
    pub on_no_quorum: OnNoQuorum,
    /// Whom an acknowledgement waits for.
    pub ack: AckPolicy,
    /// The bound of client requests being worked on.
    pub requests_max: u32,
    /// After how long without progress a member is dropped where the others can go on without it and not with it, in
    /// milliseconds; 0 if never, also not in a promotion (protocol M6, P6).
    pub drop_after_ms: u32,
    /// What to do where there is no room to stage a resync.
    pub without_room: WithoutRoom,
}

impl ReplicaConfig {
    /// Whether a node is a witness.
    #[must_use]
    pub fn is_witness(&self, node: NodeId) -> bool {
        self.witnesses.contains(&node)
    }

    /// The time after which a member is dropped, in nanoseconds, if the policy allows that.
    #[must_use]
    pub fn drop_after_ns(&self) -> Option<u64> {
        (self.drop_after_ms > 0).then(|| u64::from(self.drop_after_ms) * 1_000_000)
    }

    /// The lease, in nanoseconds.
    #[must_use]
    pub fn lease_ns(&self) -> u64 {
        u64::from(self.lease_ms) * 1_000_000
    }

    /// How often a Primary says that it lives, in nanoseconds: five times in a lease.
    #[must_use]
    pub fn heartbeat_ns(&self) -> u64 {
        self.lease_ns() / 5
    }

    /// After how long without a word a peer's connection is given up, in nanoseconds.
    #[must_use]
    pub fn silence_ns(&self) -> u64 {
        3 * self.lease_ns()
    }
}
