//! Who is fenced (protocol F1): a mark for each node of the resource. Marks only ever rise, so that whoever hears of two takes
//! the higher one, in whatever order they come.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::*;

/// Whether a node is fenced, as a number that rises by one with each fence and each end of one: odd is fenced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct FenceMark(u64);

impl FenceMark {
    /// One from wire or disk; `None` if no node can have made it.
    #[must_use]
    pub fn checked(n: u64) -> Option<Self> {
        (n <= NUMBER_MAX).then_some(Self(n))
    }

    /// Whether the node is fenced.
    #[must_use]
    pub fn is_fenced(self) -> bool {
        self.0 % 2 == 1
    }

    /// The next fence, above all that was heard of so far.
    #[must_use]
    pub fn fenced_anew(self) -> Self {
        Self((self.0 + 1) | 1)
    }

    /// The end of this fence.
    #[must_use]
    pub fn unfenced(self) -> Self {
        Self(self.0 + self.0 % 2)
    }
}

/// The marks of all nodes of a resource, by node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FenceMarks([FenceMark; NODES_MAX]);

/// As it goes over the wire.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawFenceMarks([U64; NODES_MAX]);
const _: () = assert!(size_of::<RawFenceMarks>() == 64);

impl FenceMarks {
    /// A node's.
    ///
    /// # Panics
    /// If no resource has so many nodes.
    #[must_use]
    pub fn of(&self, node: NodeId) -> FenceMark {
        self.0[usize::from(node.0)]
    }

    /// Takes a mark if it is newer; whether it was.
    ///
    /// # Panics
    /// If no resource has so many nodes.
    pub fn learn(&mut self, node: NodeId, mark: FenceMark) -> bool {
        let known = &mut self.0[usize::from(node.0)];
        let newer = mark > *known;
        *known = mark.max(*known);
        newer
    }

    /// All of them, with their nodes.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, FenceMark)> {
        (0..).map(NodeId).zip(self.0)
    }

    pub(crate) fn to_raw(self) -> RawFenceMarks {
        RawFenceMarks(self.0.map(|m| U64::new(m.0)))
    }

    pub(crate) fn from_raw(raw: &RawFenceMarks) -> Option<Self> {
        let mut marks = Self::default();
        for (mark, raw) in marks.0.iter_mut().zip(raw.0) {
            *mark = FenceMark::checked(raw.get())?;
        }
        Some(marks)
    }
}

/// A mark on a disk, where a node goes by the checksum of its name: its number may change when nodes are added.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoredMark {
    /// The CRC32 of the node's name.
    pub name_crc: u32,
    /// Its mark.
    pub mark: FenceMark,
}

/// The marks of all nodes, as they are kept in the superblock; unused places have the lowest mark.
pub type StoredMarks = [StoredMark; NODES_MAX];

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawStoredMark {
    name_crc: U32,
    mark: U64,
}
const _: () = assert!(size_of::<RawStoredMark>() == 12);

impl StoredMark {
    /// The mark of the node with this name.
    #[must_use]
    pub fn new(name: &str, mark: FenceMark) -> Self {
        Self {
            name_crc: crc32fast::hash(name.as_bytes()),
            mark,
        }
    }

    /// Whether it is that of the node with this name.
    #[must_use]
    pub fn is_of(&self, name: &str) -> bool {
        self.name_crc == crc32fast::hash(name.as_bytes())
    }

    pub(crate) fn to_raw(self) -> RawStoredMark {
        RawStoredMark {
            name_crc: U32::new(self.name_crc),
            mark: U64::new(self.mark.0),
        }
    }

    pub(crate) fn from_raw(raw: &RawStoredMark) -> Option<Self> {
        Some(Self {
            name_crc: raw.name_crc.get(),
            mark: FenceMark::checked(raw.mark.get())?,
        })
    }
}

#[cfg(test)]
mod tests;
