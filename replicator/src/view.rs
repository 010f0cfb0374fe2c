//! A snapshot of a replica, for status, metrics and tests: plain numbers, cheap to copy each turn.

use arrayvec::ArrayVec;

use crate::types::*;
use crate::wire::frame::Verified;

/// DRBD's words for roles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Role {
    /// Serves the exports.
    Primary,
    /// Holds a copy.
    Secondary,
    /// Votes only.
    Witness,
    /// Not known.
    #[default]
    Unknown,
}

/// DRBD's words for the state of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DiskState {
    /// Not known.
    #[default]
    DUnknown,
    /// Freshly created: holds nothing of the resource yet.
    Inconsistent,
    /// A consistent point in time, known to be behind.
    Outdated,
    /// A consistent point in time; nobody can be asked whether it is the newest.
    Consistent,
    /// The newest.
    UpToDate,
    /// A device failed.
    Failed,
    /// There is none: a witness.
    Diskless,
}

/// DRBD's words for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ConnectionState {
    /// Being attempted.
    #[default]
    Connecting,
    /// Stands.
    Connected,
    /// Not attempted, until an operator says so.
    StandAlone,
}

/// DRBD's words for what happens on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReplicationState {
    /// Nothing.
    #[default]
    Off,
    /// Live.
    Established,
    /// The peer is being fed from the journal.
    Behind,
    /// The peer feeds this node from its journal.
    Ahead,
    /// This node gives the peer what is past its journal.
    SyncSource,
    /// The peer gives this node what is past its journal.
    SyncTarget,
}

/// How far a resync is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyncView {
    /// Bytes of which it is not known whether they have to come, or known that they have to.
    pub left_bytes: u64,
    /// The same when it began.
    pub total_bytes: u64,
    /// There is no room for more.
    pub full: bool,
    /// It goes straight to the stores, which are no image meanwhile.
    pub in_place: bool,
}

/// Why I/O is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Suspended {
    /// It is not.
    #[default]
    No,
    /// The lease is over or a majority can not be reached.
    Quorum,
    /// An operator holds writes. Reads go on while there is a quorum.
    User,
}

/// One verdict over everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Health {
    /// As it should be.
    #[default]
    Ok,
    /// Serving or ready, but redundancy is lost.
    Degraded,
    /// Can not serve.
    Down,
}

/// Whether a node counts, by the newest config.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Membership {
    /// Not known.
    #[default]
    Unknown,
    /// It votes and its journal counts; a witness votes.
    Full,
    /// Its journal does not count; it returns by itself once it has everything.
    Dropped,
    /// It is new, or has new disks, and counts once it has everything.
    Joining,
    /// It counts for nothing until an operator says otherwise.
    Out,
}

/// What is known of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerView {
    /// Which node.
    pub node: NodeId,
    /// It is promised no epoch.
    pub fenced: bool,
    /// Its role.
    pub role: Role,
    /// The connection.
    pub connection: ConnectionState,
    /// What happens on it.
    pub replication: ReplicationState,
    /// Its disk.
    pub disk_state: DiskState,
    /// Whether it counts.
    pub membership: Membership,
    /// How far its journal is known to be durable.
    pub durable: Option<Seq>,
    /// How far its stores are known to have all, in this reign.
    pub applied: Option<Seq>,
    /// Journal bytes that it lacks.
    pub behind_bytes: Option<u64>,
    /// A resync between it and this node.
    pub sync: Option<SyncView>,
}

/// What was found of the blocks at rest in this node's stores, since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Integrity {
    /// Blocks that were not what was recorded of them when they were written.
    pub bad_blocks: u64,
    /// Those of them that were written anew from a good copy.
    pub repaired_blocks: u64,
    /// Those of them that no node has a good copy of.
    pub lost_blocks: u64,
    /// Pages of the table of checksums that could not be read: nothing is known of their blocks.
    pub sums_pages_lost: u32,
}

/// What is wrong with a copy of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FindingKind {
    /// The store does not give back what was written there.
    Bad,
    /// Another block was recorded than on the nodes that are right.
    Differs,
    /// Nothing was recorded.
    Unknown,
}

/// Something that a verification found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whose copy it is.
    pub node: NodeId,
    /// The volume.
    pub volume: VolumeId,
    /// The block.
    pub block: u64,
    /// What is wrong with it.
    pub kind: FindingKind,
}

/// Verifications: the one that is under way, and what the last one came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyView {
    /// Who runs one; this node or a peer.
    pub by: Option<NodeId>,
    /// What it came to so far, if this node runs it.
    pub running: Option<Verified>,
    /// Bytes that it has to compare yet.
    pub left_bytes: u64,
    /// How many have ended since this node started, as far as it knows.
    pub ended: u64,
    /// Who ran the last of them, and what it came to.
    pub last: Option<(NodeId, Verified)>,
    /// The first things that were found, by the newest one that this node has run.
    pub findings: ArrayVec<Finding, 16>,
}

/// A snapshot of a replica.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// This node's role.
    pub role: Role,
    /// The newest epoch in which this node has seen a Primary; 0 before the first promotion.
    pub epoch: Epoch,
    /// Who is Primary, as far as this node knows.
    pub primary: Option<NodeId>,
    /// Whether a majority of voters is reached.
    pub quorum: bool,
    /// Why I/O is held.
    pub suspended: Suspended,
    /// The verdict.
    pub health: Health,
    /// Why it is not ok; empty if it is.
    pub health_reason: &'static str,
    /// Whether exports serve: this node is Primary and its epoch record is committed.
    pub serving: bool,
    /// The newest record admitted here.
    pub admitted: Seq,
    /// The newest record such that it and all before are durable here.
    pub durable: Seq,
    /// The newest record known to be committed.
    pub committed: Seq,
    /// The newest record such that it and all before are in the stores.
    pub applied: Seq,
    /// The oldest record that the journal still has.
    pub journal_floor: Seq,
    /// The state of this node's disks.
    pub disk_state: DiskState,
    /// Whether it has stepped aside: a device failed, and it does nothing more until it is restarted.
    pub failed: bool,
    /// Whether its disks do not answer.
    pub disks_hang: bool,
    /// Whether this node counts.
    pub membership: Membership,
    /// Whether this node is promised no epoch, as it knows itself.
    pub fenced: bool,
    /// Whether a change of the membership is under way, as a Primary knows it.
    pub changing: bool,
    /// Bytes of the journal ring.
    pub journal_bytes: u64,
    /// Bytes of it that hold records not yet applied durably.
    pub journal_used_bytes: u64,
    /// Batches of the Primary that are not in the log yet; at most [`INCOMING_MAX`](crate::replica::INCOMING_MAX).
    pub incoming: u32,
    /// Until when a Primary may answer; the beginning of time on others, the end of time where nobody is to be asked.
    pub lease_until: Time,
    /// Until when this node, as a voter, keeps to the lease of a Primary that it has heard of; the beginning of time if to none.
    pub heard_lease_until: Time,
    /// Client requests being worked on, and their bound.
    pub requests: u32,
    /// The bound of `requests`.
    pub requests_max: u32,
    /// What was found of the blocks at rest.
    pub integrity: Integrity,
    /// Verifications.
    pub verify: VerifyView,
    /// The peers, by node.
    pub peers: ArrayVec<PeerView, NODES_MAX>,
}

/// A range of blocks for which a store does not have the last word: records that it lacks say otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unapplied {
    /// The first block.
    pub start: u64,
    /// How many blocks; never 0.
    pub blocks: u64,
    /// What the range is known to hold.
    pub holds: Holds,
}

/// What is known of a range without a look at its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    /// Nothing is known: any bytes.
    Anything,
    /// It reads as zeroes, and no failover can change that.
    Zeroes {
        /// Whether the stores may deallocate it.
        may_deallocate: bool,
    },
}
