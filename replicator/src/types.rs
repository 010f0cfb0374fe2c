//! The nouns of the protocol as types, so that a sequence number can not be taken for a block number
//! or a node for a connection. All are plain integers inside and compare as such.

use std::fmt;

/// Bytes in a block. Journal, wire, overlay, store and checksums know whole blocks only.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes in a block, for 64-bit offsets.
pub const BLOCK_BYTES_U64: u64 = 4096;

/// The most data nodes plus witnesses that one resource can have.
pub const NODES_MAX: usize = 8;

/// The most volumes that one resource can have.
pub const VOLUMES_MAX: usize = 16;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

newtype! {
    /// A point in time: nanoseconds of `CLOCK_BOOTTIME`, given by the driver, never decreasing.
    Time(u64)
}
newtype! {
    /// The position of a record in the one order of writes. The first record of a resource is 1; 0 means "none".
    Seq(u64)
}
newtype! {
    /// The reign of one Primary. 0 means "before the first promotion".
    Epoch(u64)
}
newtype! {
    /// A node: its position in the list of the resource's nodes sorted by name.
    NodeId(u8)
}
newtype! {
    /// A volume: its place in the table of volumes.
    VolumeId(u16)
}
newtype! {
    /// One life of a node's disks, drawn at random by `create`. A wiped node is another incarnation.
    Incarnation(u128)
}
newtype! {
    /// The identity of a resource, drawn once at its first promotion. 0 means "none yet".
    ResourceUuid(u128)
}
newtype! {
    /// The line of history that a log belongs to. A forced promotion starts a new one. 0 means "none yet".
    HistoryId(u128)
}
newtype! {
    /// One connection to a peer. Never reused, so that a late frame of a dead connection is recognised.
    ConnId(u64)
}
newtype! {
    /// A client's request, named by the driver. It may be reused once it was answered.
    ReqId(u64)
}
newtype! {
    /// A disk operation, named by the core. Each gets exactly one completion.
    Ticket(u64)
}
newtype! {
    /// An operator's command, named by the driver.
    AdminId(u64)
}

impl Seq {
    /// The record after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// No sequence number and no epoch ever gets as high as this: one from wire or disk that does is refused where it is decoded,
/// so that nothing behind can overflow.
pub const NUMBER_MAX: u64 = 1 << 62;

impl Seq {
    /// A sequence number from wire or disk; `None` if no node can have made it.
    #[must_use]
    pub fn checked(n: u64) -> Option<Self> {
        (n <= NUMBER_MAX || planted!(NumbersUnchecked)).then_some(Self(n))
    }
}

impl Epoch {
    /// An epoch from wire or disk; `None` if no node can have made it.
    #[must_use]
    pub fn checked(n: u64) -> Option<Self> {
        (n <= NUMBER_MAX || planted!(NumbersUnchecked)).then_some(Self(n))
    }
}

impl RecordId {
    /// An id from wire or disk; `None` if no node can have made it.
    #[must_use]
    pub fn checked(epoch: u64, seq: u64) -> Option<Self> {
        Some(Self {
            epoch: Epoch::checked(epoch)?,
            seq: Seq::checked(seq)?,
        })
    }
}

impl Time {
    /// This time and `nanos` more, saturating.
    #[must_use]
    pub fn after(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Nanoseconds since `earlier`, 0 if that lies in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The name of a record: the epoch it was made in, and its sequence number. Ordered epoch first, which is
/// how the tails of two logs are compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct RecordId {
    /// The epoch that the record was made in.
    pub epoch: Epoch,
    /// Its place in the order.
    pub seq: Seq,
}

impl RecordId {
    /// The place before the first record.
    pub const NONE: Self = Self {
        epoch: Epoch(0),
        seq: Seq(0),
    };
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}
