//! Blocks that a resync is not given, since they are bad where it comes from, and so is what is recorded of them: the source does not
//! know what they should hold.
//!
//! Nobody has what it lacks if no good copy is among those that work: then the node in resync counts for nothing, and whoever
//! needs it for a majority can not be promoted, nor commit anything. That excuses a cluster, and only if it was seen: the
//! newest answer to that very question was empty, one of the blocks is bad, and no other node that is fed can give it.

use std::ops::Range;

use replicator::view::ReplicationState;

use crate::harness::*;

/// A question of a resync that was answered with nothing.
#[derive(Clone, Debug)]
pub(crate) struct Withheld {
    at: u64,
    source: usize,
    target: usize,
    volume: usize,
    blocks: Range<u64>,
}

impl Cluster {
    /// A node answers what a resync asked of some blocks.
    pub(crate) fn answers_resync(
        &mut self,
        (source, target): (usize, usize),
        (volume, block, blocks): (usize, u64, u32),
        gives: bool,
    ) {
        let blocks = block..block + u64::from(blocks);
        self.withheld.retain(|w| {
            (w.target, w.volume) != (target, volume)
                || w.blocks.end <= blocks.start
                || blocks.end <= w.blocks.start
        });
        if !gives {
            self.withheld.push(Withheld {
                at: self.now,
                source,
                target,
                volume,
                blocks,
            });
        }
    }

    /// Whether one of these nodes is in resync, and since that time waits for a block that is bad where it comes from, while no
    /// other of them has a good copy.
    pub(crate) fn bad_block_holds_up(&self, nodes: &[usize], since: u64) -> bool {
        self.withheld.iter().any(|w| {
            let waits = w.at >= since && self.nodes[w.target].resyncs;
            let among = nodes.contains(&w.source) && nodes.contains(&w.target);
            let nobody_has = |block: u64| {
                self.is_suspect(w.source, w.volume, block, 1)
                    && !nodes
                        .iter()
                        .any(|&n| n != w.source && self.could_give(n, w, block))
            };
            waits && among && w.blocks.clone().any(nobody_has)
        })
    }

    /// Whether another node has a good copy of a block that the source can take. Where a record that is not committed changes
    /// it, the others have the newer contents only.
    fn could_give(&self, node: usize, withheld: &Withheld, block: u64) -> bool {
        let (source, volume) = (withheld.source, withheld.volume);
        let n = &self.nodes[node];
        let fed = self.nodes[source]
            .view
            .peers
            .iter()
            .any(|p| usize::from(p.node.0) == node && p.replication != ReplicationState::Off);
        let has = node < self.options.nodes
            && (fed || node == source)
            && !self.is_exile(node)
            && !n.resyncs
            && !n.hurt
            && !n.wiped
            && !self.is_suspect(node, volume, block, 1);
        let contents = |through| self.checks.crc_by(source, volume, block, through);
        let committed = self.nodes[source].view.committed.0;
        has && contents(committed) == contents(self.checks.journaled(source))
    }
}
