//! `status --json`, exactly as the contract has it, and what we add to it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::VerifyStatus;

/// A node's view of the resource. Every key is always there, null where unknown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The resource's name.
    pub resource: String,
    /// The node that answers.
    pub node: String,
    /// Its role.
    pub role: Role,
    /// Whether it counts; null where unknown.
    pub membership: Option<Membership>,
    /// Whether it is fenced: not promoted before it is unfenced; null where unknown.
    #[serde(default)]
    pub fenced: Option<bool>,
    /// 0 before the first promotion.
    pub epoch: u64,
    /// Who is Primary, as far as this node knows.
    pub primary: Option<String>,
    /// Whether a majority of voters is reached.
    pub quorum: Option<bool>,
    /// Why I/O is held.
    pub suspended: Suspended,
    /// One verdict over everything.
    pub health: Health,
    /// Why it is not ok; empty if it is.
    pub health_reason: String,
    /// How far the records are.
    pub seq: SeqStatus,
    /// The volumes, by name.
    pub volumes: Vec<VolumeStatus>,
    /// The other nodes, by name.
    pub peers: Vec<PeerStatus>,
    /// The version of `repld`.
    pub version: String,
    /// Whether the data path's memory is locked.
    pub memory_locked: Option<bool>,
    /// How long the data thread has not moved, in milliseconds.
    pub last_progress_ms: Option<u64>,
    /// For how long a Primary may still answer, or for how long another node keeps to the lease of one that it has heard of, in
    /// milliseconds; null where unknown.
    #[serde(default)]
    pub lease_left_ms: Option<u64>,
    /// What is bounded, and how much of it is used.
    pub limits: Limits,
    /// What was found of the blocks at rest since the start.
    #[serde(default)]
    pub integrity: IntegrityStatus,
    /// Verifications: the one that is under way, and what the last one came to.
    #[serde(default)]
    pub verify: VerifyStatus,
}

/// What was found of the blocks at rest in the stores since the start; null where unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IntegrityStatus {
    /// Blocks that were not what was recorded of them.
    pub bad_blocks: Option<u64>,
    /// Those that were written anew from a good copy.
    pub repaired_blocks: Option<u64>,
    /// Those that no node has a good copy of.
    pub lost_blocks: Option<u64>,
    /// Pages of the table of checksums that could not be read.
    pub sums_pages_lost: Option<u32>,
}

/// How far the records are, as sequence numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SeqStatus {
    /// The newest that was admitted here.
    pub admitted: Option<u64>,
    /// The newest that is durable here.
    pub durable: Option<u64>,
    /// The newest that is known to be committed.
    pub committed: Option<u64>,
    /// The newest that is in the stores.
    pub applied: Option<u64>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its place among the volumes, for who counts by that.
    #[serde(skip)]
    pub id: usize,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The state of its data here.
    pub disk_state: DiskState,
    /// NBD connections in transmission.
    pub nbd_clients: Option<u32>,
    /// How a client on this host reaches it.
    pub uri: String,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The connection to it.
    pub connection: Connection,
    /// What happens on the connection.
    pub replication: Replication,
    /// The state of its data.
    pub disk_state: DiskState,
    /// Whether it counts; null where unknown.
    pub membership: Option<Membership>,
    /// Whether it is fenced, as this node knows; null where unknown.
    #[serde(default)]
    pub fenced: Option<bool>,
    /// How far its journal is known to be durable.
    pub durable_seq: Option<u64>,
    /// How far its stores are known to have all; known to a Primary.
    pub applied_seq: Option<u64>,
    /// Journal bytes that it lacks.
    pub behind_bytes: Option<u64>,
    /// How much of what it lacked when it fell behind it has now.
    pub sync_percent: Option<f64>,
    /// Bytes that a resync between it and this node has still to look at or to bring.
    #[serde(default)]
    pub sync_left_bytes: Option<u64>,
    /// How many of them go per second.
    #[serde(default)]
    pub sync_bytes_per_second: Option<u64>,
    /// In how many seconds it is complete at that speed.
    #[serde(default)]
    pub sync_seconds_left: Option<u64>,
    /// Why it is not connected, as far as known.
    pub connection_reason: Option<String>,
}

/// What is bounded, and how much of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// The journal's ring.
    pub journal: JournalStatus,
    /// The data path's memory.
    pub memory: MemoryStatus,
    /// Client requests being worked on.
    pub requests: Option<u32>,
    /// The bound of `requests`.
    pub requests_max: Option<u32>,
    /// The bound of NBD connections.
    pub nbd_connections_max: u32,
    /// The bound of NBD connections that have not yet chosen an export.
    pub nbd_negotiating_max: u32,
    /// The bound of admin connections.
    pub admin_connections_max: u32,
    /// The lease, in milliseconds.
    pub lease_ms: u32,
}

/// The journal's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Bytes of it that hold records not yet applied durably.
    pub used: Option<u64>,
}

/// The data path's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Bytes set aside.
    pub size: Option<u64>,
    /// Bytes in use.
    pub used: Option<u64>,
    /// Whether the buffers are registered with the ring.
    pub registered: Option<bool>,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$word_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word that operators know.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// The role of a node.
    Role {
        /// It serves.
        Primary = "Primary",
        /// It holds a copy.
        Secondary = "Secondary",
        /// Not known.
        Unknown = "Unknown",
        /// It votes only.
        Witness = "Witness",
    }
}

words! {
    /// Why I/O is held.
    Suspended {
        /// It is not.
        No = "no",
        /// A majority can not be reached.
        Quorum = "quorum",
        /// A fence is awaited.
        Fencing = "fencing",
        /// The operator wanted it.
        User = "user",
    }
}

words! {
    /// One verdict over everything.
    Health {
        /// As it should be.
        Ok = "ok",
        /// Serving or ready, redundancy lost.
        Degraded = "degraded",
        /// Can not serve.
        Down = "down",
    }
}

words! {
    /// The state of a connection.
    Connection {
        /// Not attempted, until an operator says so.
        StandAlone = "StandAlone",
        /// Being attempted.
        Connecting = "Connecting",
        /// It stands.
        Connected = "Connected",
    }
}

words! {
    /// What happens on a connection.
    Replication {
        /// Nothing.
        Off = "Off",
        /// Every write goes there at once.
        Established = "Established",
        /// The peer is brought up to date from here.
        SyncSource = "SyncSource",
        /// This node is brought up to date from there.
        SyncTarget = "SyncTarget",
        /// This node sends later what it can not send now.
        Ahead = "Ahead",
        /// The peer sends later what it can not send now.
        Behind = "Behind",
    }
}

words! {
    /// Whether a node counts.
    Membership {
        /// It votes, and its data counts if it has any.
        Member = "member",
        /// Its data does not count; it returns by itself once it has everything.
        Dropped = "dropped",
        /// It is new, or has new disks, and counts once it has everything.
        Joining = "joining",
        /// It counts for nothing until an operator says otherwise.
        Out = "out",
    }
}

words! {
    /// The state of a copy.
    DiskState {
        /// There is none.
        Diskless = "Diskless",
        /// A device failed.
        Failed = "Failed",
        /// No point in time.
        Inconsistent = "Inconsistent",
        /// A point in time that is known to be old.
        Outdated = "Outdated",
        /// Not known.
        DUnknown = "DUnknown",
        /// A point in time; nobody can be asked whether it is the newest.
        Consistent = "Consistent",
        /// The newest.
        UpToDate = "UpToDate",
    }
}
