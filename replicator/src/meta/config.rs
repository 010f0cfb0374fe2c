//! The membership of a resource: who votes, and whose journals count. It is changed by committed records only
//! (protocol M1 to M6), so it has a raw form that goes into records, reports and the superblock alike.

use std::mem::offset_of;

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::*;

/// The most bytes of a node's name.
pub const NAME_BYTES_MAX: usize = 63;

/// The name of a node or of a volume: 1 to [`NAME_BYTES_MAX`] bytes.
pub type Name = arrayvec::ArrayString<NAME_BYTES_MAX>;

/// One node's standing. Two incarnations of a node are two nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The node's name.
    pub name: Name,
    /// Which life of its disks.
    pub incarnation: Incarnation,
    /// Whether it votes.
    pub voter: bool,
    /// Whether its journal counts.
    pub member: bool,
    /// It counts for nothing yet, and is admitted as soon as its log has reached the Primary's (protocol D4, M4).
    pub joining: bool,
    /// It counts for nothing: a confirmed stop stood for its vote when it was dropped (protocol F0). It returns by itself.
    pub stopped: bool,
}

impl Standing {
    /// A node that votes, and whose journal counts if it is to be a member.
    #[must_use]
    pub fn full(name: Name, incarnation: Incarnation, member: bool) -> Self {
        Self {
            name,
            incarnation,
            voter: true,
            member,
            joining: false,
            stopped: false,
        }
    }

    /// Whether it counts for something.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.voter || self.member
    }

    /// Whether it is known by its present life, and not dropped by an operator for good: such a node is given the log.
    #[must_use]
    pub fn is_fed(&self) -> bool {
        self.counts() || self.joining || self.stopped
    }
}

/// Who votes and whose journals count.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterConfig {
    /// Rises by one with each change.
    pub version: u64,
    /// The nodes.
    pub nodes: ArrayVec<Standing, NODES_MAX>,
}

/// A config and the record that brought it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigAt {
    /// The epoch or membership record.
    pub at: RecordId,
    /// The config.
    pub config: ClusterConfig,
}

/// `floor(n/2) + 1`.
#[must_use]
pub fn majority(n: usize) -> usize {
    n / 2 + 1
}

impl ClusterConfig {
    /// How many vote.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.nodes.iter().filter(|n| n.voter).count()
    }

    /// How many journals count.
    #[must_use]
    pub fn members(&self) -> usize {
        self.nodes.iter().filter(|n| n.member).count()
    }

    /// The standing of an incarnation, if it has one.
    #[must_use]
    pub fn standing(&self, incarnation: Incarnation) -> Option<&Standing> {
        self.nodes.iter().find(|n| n.incarnation == incarnation)
    }

    /// The entry of a node, whichever life of it that is.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Standing> {
        self.nodes.iter().find(|n| n.name.as_str() == name)
    }

    /// The next version of it, in which a node stands as this says, in place of whatever was there under its name. `None` if
    /// there is no room for another node.
    #[must_use]
    pub fn with(&self, standing: Standing) -> Option<Self> {
        let mut next = self.clone();
        next.version += 1;
        match next.nodes.iter_mut().find(|n| n.name == standing.name) {
            Some(entry) => *entry = standing,
            None => {
                next.nodes.try_push(standing).ok()?;
                next.nodes.sort_by_key(|n| n.name);
            }
        }
        Some(next)
    }

    /// Whether this incarnation's journal counts.
    #[must_use]
    pub fn is_member(&self, incarnation: Incarnation) -> bool {
        self.standing(incarnation).is_some_and(|n| n.member)
    }

    /// Whether this incarnation votes.
    #[must_use]
    pub fn is_voter(&self, incarnation: Incarnation) -> bool {
        self.standing(incarnation).is_some_and(|n| n.voter)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
/// One [`Standing`] as it is on disk and on the wire.
pub struct RawStanding {
    name_bytes: u8,
    flags: u8,
    reserved: [u8; 7],
    name: [u8; NAME_BYTES_MAX],
    incarnation: U128,
}
const _: () = assert!(size_of::<RawStanding>() == 88);
const _: () = {
    assert!(offset_of!(RawStanding, flags) == 1);
    assert!(offset_of!(RawStanding, name) == 9);
    assert!(offset_of!(RawStanding, incarnation) == 72);
};

/// [`ClusterConfig`] as it is on disk and on the wire: 720 bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawConfig {
    version: U64,
    count: U16,
    reserved: U16,
    reserved2: U32,
    nodes: [RawStanding; NODES_MAX],
}
const _: () = assert!(size_of::<RawConfig>() == 720);
const _: () = {
    assert!(offset_of!(RawConfig, count) == 8);
    assert!(offset_of!(RawConfig, nodes) == 16);
};

const VOTER: u8 = 1;
const MEMBER: u8 = 2;
const JOINING: u8 = 4;
const STOPPED: u8 = 8;

impl RawConfig {
    /// All zeroes: no config.
    #[must_use]
    pub fn empty() -> Self {
        Self::read_from_bytes(&[0; size_of::<Self>()]).expect("the length is the type's own")
    }
}

impl ClusterConfig {
    /// As it goes to disk and wire.
    #[must_use]
    pub fn to_raw(&self) -> RawConfig {
        let mut raw = RawConfig::empty();
        raw.version = U64::new(self.version);
        raw.count = U16::new(u16::try_from(self.nodes.len()).expect("at most 8 nodes"));
        for (out, node) in raw.nodes.iter_mut().zip(&self.nodes) {
            out.name_bytes = u8::try_from(node.name.len()).expect("a name has at most 63 bytes");
            out.name[..node.name.len()].copy_from_slice(node.name.as_bytes());
            let bit = |on: bool, bit: u8| if on { bit } else { 0 };
            out.flags = bit(node.voter, VOTER)
                | bit(node.member, MEMBER)
                | bit(node.joining, JOINING)
                | bit(node.stopped, STOPPED);
            out.incarnation = U128::new(node.incarnation.0);
        }
        raw
    }

    /// Reads what [`ClusterConfig::to_raw`] wrote; `None` if it can not have.
    #[must_use]
    pub fn from_raw(raw: &RawConfig) -> Option<Self> {
        let count = usize::from(raw.count.get());
        let mut nodes = ArrayVec::<Standing, NODES_MAX>::new();
        for node in raw.nodes.get(..count)? {
            let text = node.name.get(..usize::from(node.name_bytes))?;
            let name = Name::from(std::str::from_utf8(text).ok()?).ok()?;
            let incarnation = Incarnation(node.incarnation.get());
            let listed = |n: &Standing| n.name == name || n.incarnation == incarnation;
            if name.is_empty() || incarnation.0 == 0 || nodes.iter().any(listed) {
                return None;
            }
            let standing = Standing {
                name,
                incarnation,
                voter: node.flags & VOTER != 0,
                member: node.flags & MEMBER != 0,
                joining: node.flags & JOINING != 0,
                stopped: node.flags & STOPPED != 0,
            };
            // What counts already neither joins nor is stopped, and no node is both.
            let states = u8::from(standing.counts())
                + u8::from(standing.joining)
                + u8::from(standing.stopped);
            if states > 1 {
                return None;
            }
            nodes.push(standing);
        }
        let config = Self {
            version: raw.version.get(),
            nodes,
        };
        (config.version > 0 && config.voters() > 0 && config.members() > 0).then_some(config)
    }
}

#[cfg(test)]
mod tests;
