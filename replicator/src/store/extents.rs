//! A map from block ranges to where their newest data is: the overlay over the stores, and the plan of an apply.
//!
//! It is a treap (Aragon and Seidel, 1989) in an arena that is allocated once: a node's priority is a hash of its
//! index, so the same operations give the same tree on every run, and no operation calls the system allocator.

use crate::types::*;

/// Where the data of an extent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// In a batch of the log.
    Batch {
        /// The number of the log's entry.
        entry: u64,
        /// The block of the batch, header included, at which the extent begins.
        block: u32,
    },
    /// Nowhere: it reads as zeroes.
    Zero {
        /// Whether the store may deallocate it.
        may_deallocate: bool,
    },
}

/// A range of blocks of one volume with one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The volume.
    pub volume: VolumeId,
    /// The first block.
    pub start: u64,
    /// How many blocks; never 0.
    pub blocks: u64,
    /// The record that wrote it.
    pub seq: Seq,
    /// Where its data is.
    pub source: Source,
}

impl Extent {
    /// The block after the last.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.blocks
    }

    /// The part of this extent within `start..end`, which must overlap it.
    #[must_use]
    pub fn within(&self, start: u64, end: u64) -> Self {
        let from = self.start.max(start);
        let to = self.end().min(end);
        assert!(from < to, "the ranges must overlap");
        let skipped =
            u32::try_from(from - self.start).expect("an extent has less than 2^32 blocks");
        let source = match self.source {
            Source::Batch { entry, block } => Source::Batch {
                entry,
                block: block + skipped,
            },
            zero @ Source::Zero { .. } => zero,
        };
        Self {
            start: from,
            blocks: to - from,
            source,
            ..*self
        }
    }

    fn key(&self) -> Key {
        (self.volume, self.start)
    }
}

type Key = (VolumeId, u64);

const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    extent: Extent,
    left: u32,
    right: u32,
}

/// Non-overlapping extents, ordered by volume and block.
#[derive(Debug)]
pub struct ExtentMap {
    nodes: Vec<Node>,
    capacity: usize,
    root: u32,
    free: u32,
    used: usize,
}

impl ExtentMap {
    /// An empty map that can hold `capacity` extents.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        assert!(capacity < NIL as usize, "fewer than 2^32 - 1 extents");
        Self {
            nodes: Vec::with_capacity(capacity),
            capacity,
            root: NIL,
            free: NIL,
            used: 0,
        }
    }

    /// How many extents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// How many more extents fit. An insertion takes two at most.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity - self.used
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.root = NIL;
        self.free = NIL;
        self.used = 0;
    }

    /// Adds an extent in place of whatever was in its range.
    ///
    /// # Panics
    /// If there is no room for two more.
    pub fn insert(&mut self, extent: Extent) {
        self.carve(&extent, |_| true);
        self.add(extent);
    }

    /// Removes what lies in the range of `extent` and is not newer than it.
    pub fn remove_not_newer(&mut self, extent: &Extent) {
        self.carve(extent, |seq| seq <= extent.seq);
    }

    fn carve(&mut self, hole: &Extent, goes: impl Fn(Seq) -> bool) {
        let (start, end) = (hole.start, hole.end());
        let mut from = start;
        while let Some(found) = self.first_overlap(hole.volume, from, end) {
            from = found.end();
            if goes(found.seq) {
                self.delete(found.key());
                if found.start < start {
                    self.add(found.within(found.start, start));
                }
                if found.end() > end {
                    self.add(found.within(end, found.end()));
                }
            }
            if from >= end {
                break;
            }
        }
    }

    /// The first extent that overlaps `start..end` of a volume, whole.
    #[must_use]
    pub fn first_overlap(&self, volume: VolumeId, start: u64, end: u64) -> Option<Extent> {
        // The candidate is the last extent that begins at or before `start`, else the first one after it.
        let (mut at, mut before, mut after) = (self.root, NIL, NIL);
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.extent.key() <= (volume, start) {
                before = at;
                at = node.right;
            } else {
                after = at;
                at = node.left;
            }
        }
        [before, after]
            .into_iter()
            .filter(|&i| i != NIL)
            .map(|i| self.nodes[i as usize].extent)
            .find(|extent| extent.volume == volume && extent.start < end && extent.end() > start)
    }

    /// The first extent at or after a place, in the order of volume and block.
    #[must_use]
    pub fn next_from(&self, volume: VolumeId, block: u64) -> Option<Extent> {
        let (mut at, mut found) = (self.root, None);
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.extent.key() >= (volume, block) {
                found = Some(node.extent);
                at = node.left;
            } else {
                at = node.right;
            }
        }
        found
    }

    fn add(&mut self, extent: Extent) {
        assert!(
            self.used < self.capacity,
            "the caller keeps room for two more extents"
        );
        let index = if self.free == NIL {
            self.nodes.push(Node {
                extent,
                left: NIL,
                right: NIL,
            });
            u32::try_from(self.nodes.len() - 1).expect("the capacity is below 2^32")
        } else {
            let index = self.free;
            self.free = self.nodes[index as usize].left;
            self.nodes[index as usize] = Node {
                extent,
                left: NIL,
                right: NIL,
            };
            index
        };
        self.used += 1;
        let (low, high) = self.split(self.root, extent.key());
        let low = self.merge(low, index);
        self.root = self.merge(low, high);
    }

    fn delete(&mut self, key: Key) {
        let (low, rest) = self.split(self.root, key);
        let (one, high) = self.split(rest, (key.0, key.1 + 1));
        let node = &mut self.nodes[one as usize];
        assert!(
            node.left == NIL && node.right == NIL,
            "one extent begins at a block"
        );
        node.left = self.free;
        self.free = one;
        self.used -= 1;
        self.root = self.merge(low, high);
    }

    /// Splits a tree into what is below `key` and the rest.
    fn split(&mut self, at: u32, key: Key) -> (u32, u32) {
        if at == NIL {
            return (NIL, NIL);
        }
        let node = self.nodes[at as usize];
        if node.extent.key() < key {
            let (low, high) = self.split(node.right, key);
            self.nodes[at as usize].right = low;
            (at, high)
        } else {
            let (low, high) = self.split(node.left, key);
            self.nodes[at as usize].left = high;
            (low, at)
        }
    }

    /// Joins two trees; everything in `low` is below everything in `high`.
    fn merge(&mut self, low: u32, high: u32) -> u32 {
        if low == NIL {
            return high;
        }
        if high == NIL {
            return low;
        }
        if priority(low) > priority(high) {
            let right = self.nodes[low as usize].right;
            self.nodes[low as usize].right = self.merge(right, high);
            low
        } else {
            let left = self.nodes[high as usize].left;
            self.nodes[high as usize].left = self.merge(low, left);
            high
        }
    }
}

/// A hash of the index (the finaliser of MurmurHash3), so that the tree is balanced and yet the same on every run.
fn priority(index: u32) -> u32 {
    let mut h = index.wrapping_add(0x9e37_79b9);
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests;
