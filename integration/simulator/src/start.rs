//! How a node begins: its config, its fresh disks, and what it finds on them when it starts.

use replicator::journal::scan::Scanned;
use replicator::meta::config::Name;
use replicator::meta::label::{FormatParams, JOURNAL_BYTES_MIN, format_node, format_witness};
use replicator::recover::{Recovered, recover, recover_witness};
use replicator::types::*;
use replicator::{Replica, ReplicaConfig};

use crate::checks::{Batch, Proven};
use crate::disk::Reading;
use crate::disks::Disks;
use crate::drive::KINDS;
use crate::harness::*;
use crate::memory::SimMemory;
use crate::resync::Image;
use crate::volumes::STORES;

impl Cluster {
    pub(crate) fn config(&self, me: usize, names: &[Name]) -> ReplicaConfig {
        ReplicaConfig {
            resource: name("r0"),
            nodes: names.to_vec(),
            witnesses: (self.options.nodes..names.len()).map(node_id).collect(),
            me: node_id(me),
            lease_ms: self.options.lease_ms,
            on_no_quorum: self.options.on_no_quorum,
            ack: self.options.ack,
            requests_max: self.options.requests_max,
            drop_after_ms: self.options.drop_after_ms,
            without_room: self.options.without_room,
        }
    }

    /// The disks of a node that was just created.
    pub(crate) fn format(&mut self, config: &ReplicaConfig, seed: bool) -> Disks {
        let node = config.nodes[usize::from(config.me.0)];
        let incarnation = Incarnation(u128::from(self.rng.identity.next()) << 64 | 1);
        self.checks.born(usize::from(config.me.0), incarnation);
        if config.is_witness(config.me) {
            let meta = format_witness(config.resource, node, incarnation);
            return Disks::new(&meta, &[], 0);
        }
        let (meta, label) = format_node(&FormatParams {
            resource: config.resource,
            node,
            incarnation,
            journal_bytes: JOURNAL_BYTES_MIN,
            volumes: self.first_volumes().iter().map(|(_, v)| *v).collect(),
            seed,
        });
        Disks::new(&meta, &label, STORES)
    }

    /// Starts a node from its disks.
    pub(crate) fn restart(&mut self, node: usize) {
        self.within(node, |c| c.note_fork(node));
        self.within(node, |c| c.start(node));
    }

    fn start(&mut self, node: usize) {
        self.note_renewal(node);
        let n = &mut self.nodes[node];
        assert!(n.replica.is_none(), "node {node} runs");
        n.life += 1;
        n.wake_at = u64::MAX;
        n.frozen_until = 0;
        n.may_fail = n.hurt;
        n.drained = false;
        n.resyncs = false;
        n.next_fate = [None; KINDS];
        n.wrapped = None;
        n.wanted.fill(true);
        // The driver flushes each file as it opens it: what is read is durable.
        n.disks.flush_all();
        let meta = &mut Reading(&n.disks.meta);
        let recovered = if n.config.is_witness(n.config.me) {
            recover_witness(meta, &n.config)
        } else {
            let journal = &mut Reading(&n.disks.journal);
            let sums = &mut Reading(&n.disks.sums);
            recover(meta, journal, sums, &n.config)
        };
        let recovered = match recovered {
            Ok(recovered) => recovered,
            Err(error) => {
                assert!(
                    n.hurt || self.checks.is_beyond(),
                    "node {node} can not start: {error}"
                );
                n.ruined = true;
                self.trace(|| format!("{node} can not start: {error}"));
                return;
            }
        };
        self.check_recovered(node, &recovered);
        let memory = SimMemory::new(self.options.shares, self.options.requests_max);
        let mut seed = [0; 32];
        for word in seed.chunks_exact_mut(8) {
            word.copy_from_slice(&self.rng.identity.next().to_le_bytes());
        }
        let now = self.local(node, self.now);
        let config = self.nodes[node].config.clone();
        self.trace(|| {
            let s = &recovered.scanned;
            let tail = s.parts.entries.last().map(|e| e.id());
            format!(
                "{node} starts: tail {tail:?} committed {} {:?}",
                s.committed, s.seen
            )
        });
        let replica = Replica::open(config, recovered, memory, now, seed);
        self.nodes[node].view = replica.view();
        self.nodes[node].replica = Some(Box::new(replica));
        self.wake_by(node, self.now);
        for (conn, side) in std::mem::take(&mut self.nodes[node].orphans) {
            let wait = self.rng.net.below(50 * MS);
            self.after(wait, Event::Closed(conn, side));
        }
    }

    fn check_recovered(&mut self, node: usize, recovered: &Recovered) {
        let Recovered {
            superblock,
            scanned,
            ..
        } = recovered;
        let n = &self.nodes[node];
        let Scanned { parts, .. } = scanned;
        self.watch.journal_holds(node, parts);
        assert!(
            scanned.damaged_until == RecordId::NONE || n.hurt || self.checks.is_beyond(),
            "node {node} takes itself for damaged: {:?} {:?} acked {} committed {} tail {:?}",
            scanned.seen,
            scanned.end,
            superblock.acked,
            superblock.committed,
            parts.entries.last().map(|e| e.id()),
        );
        let batches = parts
            .entries
            .iter()
            .map(|e| Batch {
                first: e.first.0,
                last: e.last.0,
                epoch: e.epoch.0,
                checksum: e.checksum,
            })
            .collect();
        let applied = superblock.applied.id.seq.0;
        self.note_merge(node);
        self.table_is_right(node, superblock);
        let n = &self.nodes[node];
        let damaged = scanned.damaged_until != RecordId::NONE;
        if node < self.options.nodes {
            let proven = Proven {
                acked: (superblock.acked.epoch.0, superblock.acked.seq.0),
                committed: superblock.committed.0,
            };
            let hurt = n.hurt.then_some(proven);
            self.checks
                .recovered(node, batches, scanned.committed.0, applied, hurt, damaged);
        } else if damaged {
            self.checks.wiped(node);
        }
        let n = &self.nodes[node];
        let replayed = if n.hurt {
            u64::MAX
        } else {
            scanned.committed.0
        };
        if superblock.resync.is_some_and(|r| r.in_place && !r.merging) {
            return;
        }
        for volume in 0..n.disks.stores.len() {
            let image = Image::of(
                &n.disks,
                volume,
                recovered.staged.as_ref(),
                &superblock.volumes,
            );
            self.checks
                .store_is_prefix(node, volume, &image, applied, replayed);
        }
    }
}
