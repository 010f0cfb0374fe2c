//! Volumes that grow, are made smaller, come and go, while everything else goes on. The committed log says which there are at each
//! of its places; a node's superblock has to say the same of the place that its stores are at, and no committed record may be about
//! a block that its place knows of no volume for. What is behind a volume's end is nothing: what comes there again reads as zeroes,
//! whatever a device had there.

use replicator::io::AdminCommand;
use replicator::meta::config::Name;
use replicator::meta::superblock::{Superblock, VolumeRecord};
use replicator::meta::volumes::Volumes;
use replicator::types::*;

use crate::disk::Disk;
use crate::harness::*;
use crate::oracle::UNITS_PER_BLOCK;
use crate::rng::Rng;

/// No volume of a life gets larger.
const BLOCKS_MAX: u64 = 2600;

/// Stores that each data node has disks for.
pub(crate) const STORES: usize = 3;

/// A change that takes something away, and that is not answered yet.
#[derive(Debug)]
pub(crate) struct Shrinking {
    node: usize,
    /// What it does to readers: zeroes behind the new end, by volume.
    stamps: Vec<u64>,
}

pub(crate) fn id_of(volume: usize) -> VolumeId {
    VolumeId(u16::try_from(volume).expect("16 volumes"))
}

impl Cluster {
    /// The volumes that all nodes are created with.
    pub(crate) fn first_volumes(&self) -> Volumes {
        let blocks = self.options.volumes.iter().enumerate();
        blocks
            .map(|(v, blocks)| VolumeRecord {
                name: name(&format!("v{v}")),
                bytes: blocks * BLOCK_BYTES_U64,
            })
            .collect()
    }

    /// The volumes as a node's stores have them.
    pub(crate) fn volumes_at(&self, node: usize) -> Volumes {
        match &self.nodes[node].replica {
            Some(replica) => replica.volumes().clone(),
            None => self.nodes[node]
                .disks
                .meta
                .superblock()
                .map_or_else(|| self.first_volumes(), |s| s.volumes),
        }
    }

    /// Blocks of a volume, as a node's stores have it.
    pub(crate) fn blocks_at(&self, node: usize, volume: usize) -> u64 {
        self.volumes_at(node).blocks(id_of(volume))
    }

    /// Gives a volume another size, as an operator does.
    pub(crate) fn resize(&mut self, node: usize, volume: usize, blocks: u64, time: u64) -> u64 {
        let deadline = self.deadline(node, time);
        let command = AdminCommand::Resize {
            volume: self.name_at(node, volume),
            bytes: blocks * BLOCK_BYTES_U64,
            deadline,
        };
        let id = self.admin(node, command);
        let now = self.blocks_at(node, volume);
        if blocks < now {
            self.takes_away(node, id, &[(volume, blocks..now)]);
        }
        id
    }

    /// What a node calls the volume that has a place, or had it at first.
    fn name_at(&self, node: usize, volume: usize) -> Name {
        let volumes = self.volumes_at(node);
        volumes
            .get(id_of(volume))
            .map_or_else(|| name(&format!("v{volume}")), |v| v.name)
    }

    /// Adds a volume, as an operator does. It gets the first place that is free.
    pub(crate) fn add_volume(&mut self, node: usize, volume: &str, blocks: u64, time: u64) -> u64 {
        let deadline = self.deadline(node, time);
        let command = AdminCommand::AddVolume {
            volume: name(volume),
            bytes: blocks * BLOCK_BYTES_U64,
            deadline,
        };
        self.admin(node, command)
    }

    /// Removes a volume, as an operator does.
    pub(crate) fn remove_volume(&mut self, node: usize, volume: usize, time: u64) -> u64 {
        let deadline = self.deadline(node, time);
        let command = AdminCommand::RemoveVolume {
            volume: self.name_at(node, volume),
            deadline,
        };
        let id = self.admin(node, command);
        let now = self.blocks_at(node, volume);
        self.takes_away(node, id, &[(volume, 0..now)]);
        id
    }

    /// For readers, what a volume loses becomes zeroes, if the change happens.
    fn takes_away(&mut self, node: usize, id: u64, lost: &[(usize, std::ops::Range<u64>)]) {
        let now = self.now;
        let stamps = lost
            .iter()
            .map(|(volume, blocks)| {
                let units = blocks.start * UNITS_PER_BLOCK..blocks.end * UNITS_PER_BLOCK;
                let volume = *volume;
                self.within(node, |c| c.oracle.write(volume, units, true, now))
            })
            .collect();
        self.shrinking.insert(id, Shrinking { node, stamps });
    }

    /// A command was answered, or will not be any more.
    pub(crate) fn volumes_answered(&mut self, node: usize, id: u64, done: bool) {
        let Some(shrinking) = self.shrinking.remove(&id) else {
            return;
        };
        let (now, epoch) = (self.now, self.nodes[node].reign);
        for stamp in shrinking.stamps {
            if done {
                self.oracle.answered(stamp, now);
            } else {
                self.oracle.in_doubt(stamp, epoch);
            }
        }
    }

    /// A node is gone, and with it what it was told.
    pub(crate) fn volumes_unanswered(&mut self, node: usize) {
        let ids: Vec<u64> = self
            .shrinking
            .iter()
            .filter(|(_, s)| s.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.volumes_answered(node, id, false);
        }
    }

    /// What a node's superblock says of the volumes is what the log says at that place.
    pub(crate) fn table_is_right(&self, node: usize, superblock: &Superblock) {
        if node >= self.options.nodes || self.nodes[node].hurt || self.checks.is_beyond() {
            return;
        }
        if superblock.applied.id == RecordId::NONE {
            return;
        }
        let expected = self.checks.table_at(superblock.applied.id.seq.0);
        assert_eq!(
            superblock.volumes, *expected,
            "node {node} has other volumes at record {} than the log says",
            superblock.applied.id
        );
    }
}

/// A device has something behind the end of a volume; a file may have.
pub(crate) fn litter(store: &mut Disk, from: u64, to: u64, rng: &mut Rng) {
    for _ in 0..4 {
        if from < to {
            store.litter(rng.between(from, to - 1));
        }
    }
}

fn lease(c: &Cluster) -> u64 {
    u64::from(c.options.lease_ms) * MS
}

/// An operator changes the volumes, on the Primary mostly.
pub(crate) fn change_volumes(c: &mut Cluster, rng: &mut Rng) -> bool {
    let somebody = rng.index(c.nodes.len());
    let primary = c.primary().filter(|_| rng.chance(95));
    let Some(node) = primary.or(Some(somebody)).filter(|n| c.up(*n)) else {
        return false;
    };
    let time = rng.between(1, 8) * lease(c);
    let volume = rng.index(STORES);
    let now = c.blocks_at(node, volume);
    match (now, rng.below(100)) {
        (0, _) => {
            // Now and then it is another volume that gets the place.
            let name = if (c.now / US).is_multiple_of(2) {
                "v2"
            } else {
                "other"
            };
            c.add_volume(node, name, rng.between(20, 200), time);
        }
        // Clients of these two are always there.
        (_, 0..=39) if volume >= 2 => {
            c.remove_volume(node, volume, time);
        }
        (_, 0..=64) => {
            let more = (now + rng.between(1, 300)).min(BLOCKS_MAX);
            c.resize(node, volume, more, time);
        }
        _ => {
            let least = 40.min(now);
            let less = rng.between(least, now);
            c.resize(node, volume, less, time);
        }
    }
    true
}
