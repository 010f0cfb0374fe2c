//! Nodes that give their data up (protocol C4), and nodes that are made of a seed. Either way it is a life of its own: what it had
//! counts no more, and what its stores hold is no image until its resync has ended.

use replicator::store::sums::{BlockSum, SumTable, Table};
use replicator::types::*;

use crate::harness::*;
use crate::rng::Rng;

impl Cluster {
    /// A node's superblock may say that it gave its data up.
    pub(crate) fn note_renewal(&mut self, node: usize) {
        if !self.nodes[node].renews || self.checks.is_beyond() || self.is_exile(node) {
            return;
        }
        let Some(superblock) = self.nodes[node].disks.meta.superblock() else {
            return;
        };
        let life = superblock.incarnation;
        // Disks that were rolled back may have been another life's.
        let rolled_back = self.nodes[node].hurt && self.checks.is_over(life);
        if life == self.checks.life_of(node) || rolled_back {
            return;
        }
        self.trace(|| format!("-- {node} gives its data up"));
        self.checks.wiped(node);
        self.checks.born(node, life);
        self.watch.replaced(node);
        let n = &mut self.nodes[node];
        // An operator has to admit it, if the Primary that let it go is Primary no more.
        (n.wiped, n.renews, n.resyncs) = (true, false, true);
        (n.merges, n.in_place) = (None, true);
        self.resyncs_in_place += 1;
    }

    /// Gives a node new disks, with stores that somebody carried there: what it had before, or what another node has; with
    /// mistakes.
    pub(crate) fn wipe_for_a_seed(&mut self, node: usize, rng: &mut Rng) {
        let from = if rng.chance(50) {
            node
        } else {
            rng.index(self.options.nodes)
        };
        let stores = self.nodes[from].disks.copy().stores;
        self.wipe(node);
        let config = self.nodes[node].config.clone();
        let mut disks = self.format(&config, true);
        let volumes = self.first_volumes();
        let sizes: Vec<u64> = volumes.iter().map(|(_, v)| v.bytes).collect();
        let mut table = SumTable::new(Table::Stores, sizes.iter().copied());
        for ((volume, store), bytes) in (0..).zip(&stores).zip(sizes) {
            let size = bytes / BLOCK_BYTES_U64;
            for (block, bytes) in store.written().filter(|(b, _)| *b < size) {
                let mut bytes = bytes.to_vec();
                if rng.chance(3) {
                    bytes[0] ^= 1;
                }
                let sum = BlockSum::of(VolumeId(volume), block, &bytes);
                table.set(VolumeId(volume), block, sum);
                disks.stores[usize::from(volume)].hold(block, bytes);
            }
        }
        let mut page = vec![0; BLOCK_BYTES];
        while let Some(offset) = table.take_dirty(&mut page) {
            disks.sums.hold(offset / BLOCK_BYTES_U64, page.clone());
        }
        self.nodes[node].disks = disks;
        self.nodes[node].in_place = true;
    }
}
