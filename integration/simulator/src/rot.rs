//! Blocks that a disk harms while they rest (P6): bits that flip, blocks that hold what was written to another one, or that
//! hold what they held before (the disk lost a write and said that it is done), and blocks that can not be read; and the same
//! of the pages of checksums. A disk remembers which of its blocks it harmed, so that the checkers know what to expect: no
//! wrong byte reaches a client or a peer, and a block of which there is a good copy can be read.
//!
//! It befalls one node at a time, so that there is a good copy somewhere. And a node's checksums and its stores do not both
//! rot: nothing could tell which of two wrong ones is right while its peers are away.

use std::collections::BTreeSet;

use replicator::journal::batch;
use replicator::memory::Buffer;
use replicator::store::block_set::BlockSet;
use replicator::store::sums::{self, BlockSum, Table};
use replicator::types::*;

use crate::client::{Kind, Request};
use crate::disk::Fate;
use crate::drive::{STORE, SUMS};
use crate::harness::*;
use crate::memory::SimBuffer;
use crate::oracle::UNITS_PER_BLOCK;
use crate::rng::Rng;
use crate::volumes::id_of;

/// Most harm is done where most requests are.
const NEAR_BLOCKS: u64 = 12;

/// A data node at which blocks may rot: the one at which some have, if there is one; else the Primary more often than its
/// share.
fn target(c: &Cluster, rng: &mut Rng) -> Option<usize> {
    let primary = c.primary().filter(|_| rng.chance(40));
    let node = primary.unwrap_or_else(|| rng.index(c.options.nodes));
    let node = (0..c.options.nodes).find(|&n| c.rots(n)).unwrap_or(node);
    let n = &c.nodes[node];
    // A node that lost more than single blocks is another story.
    (!n.hurt && !n.ruined).then_some(node)
}

/// Blocks of a store rot, or the next write to a store goes astray.
pub(crate) fn rot_store(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = target(c, rng).filter(|&n| !c.nodes[n].sums_rotted) else {
        return false;
    };
    match rng.below(8) {
        0 => c.nodes[node].next_fate[STORE] = Some(Fate::Lost),
        1 => c.nodes[node].next_fate[STORE] = Some(Fate::Stray(rng.between(1, 40))),
        _ => {
            for _ in 0..rng.between(1, 6) {
                rot_block(c, rng, node);
            }
        }
    }
    true
}

fn rot_block(c: &mut Cluster, rng: &mut Rng, node: usize) {
    let volume = rng.index(c.options.volumes.len());
    let blocks = c.blocks_at(node, volume);
    let block = if rng.chance(30) {
        rng.below(NEAR_BLOCKS.min(blocks))
    } else {
        rng.below(blocks)
    };
    let volumes = c.volumes_at(node);
    let n = &mut c.nodes[node];
    // What is staged rots as well.
    if n.resyncs && rng.chance(60) {
        let base: u64 = (0..volume).map(|v| volumes.blocks(id_of(v))).sum();
        let (block, stage) = (base + block, &mut n.disks.stage);
        match rng.below(3) {
            0 => stage.rot(block, rng.index(BLOCK_BYTES * 8)),
            1 => stage.take_back(block),
            _ => stage.spoil(block),
        }
        return;
    }
    let store = &mut n.disks.stores[volume];
    match rng.below(6) {
        0 | 1 => store.rot(block, rng.index(BLOCK_BYTES * 8)),
        2 => store.misdirect(rng.below(blocks), block),
        3 => store.take_back(block),
        4 => store.spoil(block),
        _ => store.wear_out(block),
    }
}

/// A page of checksums rots.
pub(crate) fn rot_sums(c: &mut Cluster, rng: &mut Rng) -> bool {
    let Some(node) = target(c, rng) else {
        return false;
    };
    let doomed = c.nodes[node].next_fate[STORE].is_some();
    if doomed
        || c.nodes[node]
            .disks
            .stores
            .iter()
            .any(|s| s.harmed().next().is_some())
    {
        return false;
    }
    // Of a resync that is the image already nothing is told twice.
    let n = &mut c.nodes[node];
    if rng.chance(20) && !n.resyncs {
        n.next_fate[SUMS] = Some(Fate::Lost);
        n.sums_rotted = true;
        return true;
    }
    let volumes = c.volumes_at(node);
    let areas: Vec<_> = sums::areas(Table::Stores, volumes.sizes()).collect();
    let sums = &mut c.nodes[node].disks.sums;
    let of_stores = |(b, _): &(u64, _)| {
        let at = b * BLOCK_BYTES_U64;
        areas
            .iter()
            .any(|(from, bytes)| (*from..from + bytes).contains(&at))
    };
    let count = sums.written().filter(of_stores).count();
    if count == 0 {
        return false;
    }
    let nth = rng.index(count);
    let page = sums
        .written()
        .filter(of_stores)
        .nth(nth)
        .map_or(0, |(b, _)| b);
    sums.rot(page, rng.index(BLOCK_BYTES * 8));
    c.nodes[node].sums_rotted = true;
    true
}

fn blocks_of(request: &Request) -> (u64, u64) {
    let first = request.units.start / UNITS_PER_BLOCK;
    (first, request.units.end.div_ceil(UNITS_PER_BLOCK) - first)
}

impl Cluster {
    /// Whether a node has blocks that rotted and are not mended, or checksums that did.
    fn rots(&self, node: usize) -> bool {
        let n = &self.nodes[node];
        n.sums_rotted
            || n.next_fate[STORE].is_some()
            || n.disks.stores.iter().any(|s| s.harmed().next().is_some())
    }

    /// Whether a node can not give some of these blocks by itself.
    pub(crate) fn is_suspect(&self, node: usize, volume: usize, block: u64, blocks: u64) -> bool {
        let n = &self.nodes[node];
        let store = &n.disks.stores[volume];
        n.sums_rotted || (block..block + blocks).any(|b| store.is_harmed(b))
    }

    pub(crate) fn request_is_suspect(&self, request: &Request) -> bool {
        let (block, blocks) = blocks_of(request);
        self.is_suspect(request.node, request.volume, block, blocks)
    }

    /// Whether a request may wait for a bad block to be mended: it is about one, or is a write about blocks of an earlier write that
    /// waits for one, which it does not overtake.
    pub(crate) fn request_waits_for_mending(&self, request: &Request) -> bool {
        let writes = |r: &Request| matches!(r.kind, Kind::Write { .. } | Kind::Zero { .. });
        let mut behind = vec![request];
        let mut seen = BTreeSet::new();
        while let Some(request) = behind.pop() {
            if self.request_is_suspect(request) {
                return true;
            }
            let (block, blocks) = blocks_of(request);
            let before = self.requests.iter().filter(|(_, other)| {
                let (first, count) = blocks_of(other);
                let overlaps = first < block + blocks && block < first + count;
                let same = other.node == request.node && other.volume == request.volume;
                let earlier = other.asked <= request.asked && other.handed_in;
                same && overlaps && earlier && writes(other) && writes(request)
            });
            for (&id, other) in before {
                if seen.insert(id) {
                    behind.push(other);
                }
            }
        }
        false
    }

    /// Whether a request may fail since it is about a bad block: one that no other node has, or while not everything works.
    pub(crate) fn bad_block_excuses(&self, request: &Request) -> bool {
        if !self.request_is_suspect(request) {
            return false;
        }
        if !self.calm {
            return true;
        }
        let (block, blocks) = blocks_of(request);
        let node = request.node;
        let good = |b: u64| {
            (0..self.options.nodes).any(|other| {
                let n = &self.nodes[other];
                other != node
                    && !self.is_exile(other)
                    && !n.hurt
                    && self.is_fed(node, other)
                    && !self.is_suspect(other, request.volume, b, 1)
            })
        };
        !(block..block + blocks).all(good)
    }

    /// Whether a resync waits for a block that is bad where it comes from, while a record that changes that block waits for the
    /// resync to be committed. The peers have the newer contents only.
    pub(crate) fn bad_source_holds_up(&self, primary: usize) -> bool {
        let n = &self.nodes[primary];
        let waits = (0..self.options.nodes).any(|other| self.nodes[other].resyncs);
        waits && n.view.admitted > n.view.committed && self.rots(primary)
    }

    /// A node gives blocks to a peer: they must be what its log says (P6).
    pub(crate) fn gives_blocks(
        &mut self,
        node: usize,
        (conn, side): (usize, usize),
        (token, through, sums): (u64, Seq, &[BlockSum]),
        given: Option<[BlockSet; 2]>,
        data: Option<&SimBuffer>,
    ) {
        let asked = self.net.conns[conn].asked[1 - side].remove(&token);
        if let Some(asked) = asked.filter(|_| given.is_some()) {
            let target = self.net.conns[conn].nodes[1 - side];
            self.answers_resync((node, target), asked, !sums.is_empty());
            let lost = given.iter().flat_map(|[_, lost]| lost.iter());
            let lost = lost.map(|n| (asked.0, asked.1 + u64::from(n)));
            self.nodes[target].not_given.extend(lost);
        }
        if self.nodes[node].hurt || self.checks.is_beyond() || sums.is_empty() {
            return;
        }
        let through = through.0;
        if through > self.checks.journaled(node) {
            return;
        }
        let (volume, first, blocks) = asked.expect("it was asked for");
        assert_eq!(sums.len(), blocks as usize, "all or nothing");
        let id = VolumeId(u16::try_from(volume).expect("16 volumes"));
        let mut place = 0;
        for (at, block) in (0u32..).zip(first..first + u64::from(blocks)) {
            let expected = self.checks.crc_by(node, volume, block, through);
            let sum = sums[at as usize];
            let zeroes = [0; BLOCK_BYTES];
            if given.is_some_and(|[given, _]| !given.has(at)) {
                // What the asker has is said to be right, or what it should have is.
                let zero =
                    sum == BlockSum::ZERO && expected == batch::block_crc(id, block, &zeroes);
                assert!(
                    zero || sum == BlockSum::of_crc(expected),
                    "P6: node {node} tells a peer that block {block} of volume {volume} is what it has, and it is not that of \
                     record {through}"
                );
                continue;
            }
            let bytes = data.map_or(zeroes.as_slice(), |d| {
                &d.bytes()[place * BLOCK_BYTES..(place + 1) * BLOCK_BYTES]
            });
            place += 1;
            assert_eq!(
                batch::block_crc(id, block, bytes),
                expected,
                "P6: node {node} gives block {block} of volume {volume} to a peer, and it is not that of record {through}"
            );
            assert!(
                sum.admits(id, block, bytes),
                "P6: node {node} gives block {block} of volume {volume} to a peer with another one's checksum"
            );
        }
    }

    /// Whether a block of a volume is harmed, and by that is not what the log says.
    pub(crate) fn is_bad(&self, node: usize, volume: usize, block: u64) -> bool {
        let n = &self.nodes[node];
        let store = &n.disks.stores[volume];
        if block >= self.blocks_at(node, volume) || !store.is_harmed(block) {
            return false;
        }
        let id = VolumeId(u16::try_from(volume).expect("16 volumes"));
        let mut bytes = [0; BLOCK_BYTES];
        store.read(block, &mut bytes).is_err()
            || batch::block_crc(id, block, &bytes)
                != self.checks.crc_by(node, volume, block, n.view.applied.0)
    }

    /// All of a Primary was read: what could be mended is.
    pub(crate) fn nothing_bad_is_left(&self, primary: usize) {
        let n = &self.nodes[primary];
        let others =
            || (0..self.options.nodes).filter(|&n| n != primary && self.is_fed(primary, n));
        if n.hurt {
            return;
        }
        for (volume, store) in n.disks.stores.iter().enumerate() {
            let bad = |&b: &u64| {
                self.is_bad(primary, volume, b)
                    && !store.is_worn(b)
                    && others().any(|other| !self.is_bad(other, volume, b))
            };
            let left = store.harmed().find(bad);
            assert!(
                left.is_none(),
                "P6: all of node {primary} was read, and block {left:?} of volume {volume} is still bad"
            );
        }
    }
}
