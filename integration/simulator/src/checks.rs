//! What must hold between the nodes' logs and stores: one name, one batch (N1); one committed log (P2, P4); committed is
//! durable on a majority (P1); a store is a prefix (P3).

mod commits;
mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use replicator::journal::batch::{self, Kind};
use replicator::meta::config::{ClusterConfig, Standing};
use replicator::meta::volumes::Volumes;
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64, Incarnation, RecordId, VolumeId};

use crate::resync::Image;

/// A change of one block: volume, block, and the CRC of what it holds then.
type Change = (usize, u64, u32);

/// A batch's checksum, and what it changes.
type Made = (u32, Rc<Vec<Change>>);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) epoch: u64,
    pub(crate) checksum: u32,
}

/// What a node's superblock proves that its log had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proven {
    /// A record that it acknowledged, by its epoch and number.
    pub(crate) acked: (u64, u64),
    pub(crate) committed: u64,
}

/// A batch in a node's journal.
#[derive(Clone, Debug)]
struct Journaled {
    batch: Batch,
    durable: bool,
}

/// A node's log, from what it wrote to its journal.
#[derive(Default)]
struct NodeLog {
    batches: BTreeMap<u64, Journaled>,
    checked: u64,
}

pub(crate) struct Checks {
    logs: Vec<NodeLog>,
    /// The record of the config that each witness holds, as epoch and sequence number.
    witnesses: Vec<(u64, u64)>,
    /// The life of each node's disks, data nodes first.
    lives: Vec<Incarnation>,
    /// What nodes had, and in which life, before their disks were replaced or found to be damaged.
    gone: Vec<(Incarnation, NodeLog)>,
    /// The config of each batch that carries one, by epoch and first record.
    configs: BTreeMap<(u64, u64), Rc<ClusterConfig>>,
    /// The last config that is known to be committed, and its record's number.
    config: Option<(u64, Rc<ClusterConfig>)>,
    /// Who made the records of each epoch.
    makers: BTreeMap<u64, usize>,
    /// The end of each node's log when it last said what is committed.
    judged: Vec<u64>,
    /// All batches that were ever made, by epoch and first record.
    made: BTreeMap<(u64, u64), Made>,
    /// Those that are a demote record.
    demotes: BTreeSet<(u64, u64)>,
    chain: BTreeMap<u64, Batch>,
    chain_end: u64,
    /// The committed history of each block.
    blocks: BTreeMap<(usize, u64), Vec<(u64, u32)>>,
    /// The tables of volumes that batches brought, by epoch and first record.
    volumes: BTreeMap<(u64, u64), Rc<Volumes>>,
    /// The volumes at each place of the committed log, by the record that brought them; the first are those at the beginning.
    tables: Vec<(u64, Rc<Volumes>)>,
    /// Who served which epoch.
    served: BTreeMap<u64, usize>,
    /// Batches of which a harmed disk lost its copy and nothing on it can prove that there was one, by epoch and first record.
    silently_lost: BTreeSet<(u64, u64)>,
    /// More was lost than anything can keep: from here on nothing is promised.
    beyond: bool,
}

fn header_crcs(block: &[u8], records: u16, payload_blocks: u32) -> Vec<u32> {
    let at = 128 + usize::from(records) * 32;
    block[at..at + payload_blocks as usize * 4]
        .chunks_exact(4)
        .map(|c| u32::from_le_bytes(c.try_into().expect("4 bytes")))
        .collect()
}

fn changes_of(block: &[u8], header: &batch::Header) -> Vec<Change> {
    let crcs = header_crcs(block, header.records, header.payload_blocks);
    let mut changes = Vec::new();
    for record in batch::descriptors(block, header).flatten() {
        let volume = usize::from(record.volume.0);
        for index in 0..record.blocks {
            let at = record.block + u64::from(index);
            let crc = match record.kind {
                Kind::Write => crcs[(record.payload + index) as usize - 1],
                Kind::Zero { .. } => batch::block_crc(record.volume, at, &[0; BLOCK_BYTES]),
                _ => continue,
            };
            changes.push((volume, at, crc));
        }
    }
    changes
}

impl Checks {
    pub(crate) fn new(nodes: usize, witnesses: usize) -> Self {
        Self {
            gone: Vec::new(),
            lives: vec![Incarnation(0); nodes + witnesses],
            configs: BTreeMap::new(),
            config: None,
            makers: BTreeMap::new(),
            judged: vec![0; nodes + witnesses],
            logs: (0..nodes).map(|_| NodeLog::default()).collect(),
            witnesses: vec![(0, 0); witnesses],
            made: BTreeMap::new(),
            demotes: BTreeSet::new(),
            chain: BTreeMap::new(),
            chain_end: 0,
            blocks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            tables: vec![(0, Rc::default())],
            served: BTreeMap::new(),
            silently_lost: BTreeSet::new(),
            beyond: false,
        }
    }

    /// A node goes on alone from a record on (D2): all that its log holds is committed by that.
    pub(crate) fn fork(&self, node: usize, at: RecordId) -> Self {
        let mut fork = Self::new(self.logs.len(), self.witnesses.len());
        fork.lives.clone_from(&self.lives);
        fork.tables[0] = self.tables[0].clone();
        // The world that it left may give the same names to other records.
        let had = self
            .configs
            .iter()
            .filter(|((_, first), _)| *first <= at.seq.0);
        fork.configs = had.map(|(id, config)| (*id, config.clone())).collect();
        let mut alone = ClusterConfig {
            version: 1,
            ..ClusterConfig::default()
        };
        let name = crate::harness::name("alone");
        alone
            .nodes
            .push(Standing::full(name, self.lives[node], true));
        fork.config = Some((at.seq.0, Rc::new(alone)));
        let log = &self.logs[node].batches;
        let from = log
            .first_key_value()
            .map_or(at.seq.0 + 1, |(first, _)| *first);
        let before = self.chain.range(..from).map(|(_, batch)| batch);
        for batch in before.chain(log.values().map(|j| &j.batch)) {
            let key = (batch.epoch, batch.first);
            let made = self.made[&key].clone();
            if let Some(volumes) = self.volumes.get(&key) {
                fork.volumes.insert(key, volumes.clone());
            }
            fork.note_changes(batch, &made.1);
            fork.made.insert(key, made);
            fork.chain.insert(batch.first, batch.clone());
            fork.chain_end = batch.last;
        }
        assert_eq!(
            fork.chain_end, at.seq.0,
            "D2: node {node} goes on with the log that it has"
        );
        fork.logs[node] = NodeLog {
            batches: log.clone(),
            checked: at.seq.0,
        };
        fork
    }

    /// A node writes or sends the batch whose first block this is; its first record.
    pub(crate) fn saw(&mut self, node: usize, block: &[u8], sent: bool) -> Option<u64> {
        let header = batch::read_header(block).ok()?;
        if self.beyond {
            return Some(header.first.0);
        }
        let (first, epoch) = (header.first.0, header.epoch.0);
        let new = !self.made.contains_key(&(epoch, first));
        if block.len() > BLOCK_BYTES {
            self.learns_config(block, &header);
        }
        if new {
            self.begins(node, epoch, first);
            self.makers.entry(epoch).or_insert(node);
            let is = |kind| {
                batch::descriptors(block, &header)
                    .flatten()
                    .any(|d| d.kind == kind)
            };
            if is(Kind::Demote) {
                self.demotes.insert((epoch, first));
            }
            if is(Kind::Membership) {
                self.admits(node, (epoch, first), header.committed.0);
            }
        }
        let (checksum, _) = self.made.entry((epoch, first)).or_insert_with(|| {
            let changes = changes_of(block, &header);
            (header.checksum, Rc::new(changes))
        });
        assert_eq!(
            *checksum, header.checksum,
            "N1: record {epoch}.{first} names two batches"
        );
        let batch = Batch {
            first,
            last: header.last().0,
            epoch,
            checksum: header.checksum,
        };
        let log = &mut self.logs[node];
        if log.batches.get(&first).is_some_and(|j| j.batch == batch) {
            return Some(first);
        }
        if sent && log.batches.range(first..).next().is_some() {
            return Some(first); // An old one, from before a restart.
        }
        let gone = log.batches.split_off(&first);
        for old in gone.values().filter(|j| j.durable) {
            assert_ne!(
                self.chain.get(&old.batch.first),
                Some(&old.batch),
                "node {node} overwrites a committed record"
            );
        }
        log.checked = log.checked.min(first - 1);
        let durable = false;
        log.batches.insert(first, Journaled { batch, durable });
        Some(first)
    }

    /// A node makes the first batch of its epoch: it must have all that is committed (P1). If it does not, then either
    /// that is a fault of the core, or a member of every quorum that committed the rest has lost its copy by a fault of its
    /// disk and can not know: nothing can keep that, and the life ends here.
    fn begins(&mut self, node: usize, epoch: u64, first: u64) {
        let newest = self.chain.last_key_value().map_or(0, |(_, b)| b.epoch);
        if epoch <= newest || first > self.chain_end {
            return;
        }
        let lost = self
            .chain
            .range(..first)
            .next_back()
            .map_or(0, |(f, _)| f + 1);
        let excused = self
            .chain
            .range(lost.max(first)..)
            .all(|(f, b)| self.silently_lost.contains(&(b.epoch, *f)));
        assert!(
            excused,
            "P1: node {node} begins epoch {epoch} at {first}, and records up to {} are committed",
            self.chain_end
        );
        self.beyond = true;
    }

    /// More was lost than anything can keep: nothing is promised any more.
    pub(crate) fn ends_beyond(&mut self) {
        self.beyond = true;
    }

    /// Whether more was lost than anything can keep.
    pub(crate) fn is_beyond(&self) -> bool {
        self.beyond
    }

    /// A journal write with the batch that begins with record `first` ended.
    pub(crate) fn durable(&mut self, node: usize, first: u64) {
        if let Some(journaled) = self.logs[node].batches.get_mut(&first) {
            journaled.durable = true;
        }
    }

    /// The record of the config on a witness's disk, by the numbers of its epoch and its own.
    pub(crate) fn witness_holds(&mut self, node: usize, epoch: u64, seq: u64) {
        let held = &mut self.witnesses[node - self.logs.len()];
        assert!(
            *held <= (epoch, seq) || self.beyond,
            "S1: witness {node} forgets {held:?} for {epoch}.{seq}"
        );
        *held = (epoch, seq);
    }

    /// A whole batch may carry a config.
    pub(crate) fn learns_config(&mut self, bytes: &[u8], header: &batch::Header) {
        if let Some(config) = batch::config_of(bytes, header) {
            let key = (header.epoch.0, header.first.0);
            self.configs.entry(key).or_insert_with(|| Rc::new(config));
        }
        if let Some(volumes) = batch::volumes_of(bytes, header) {
            let key = (header.epoch.0, header.first.0);
            self.volumes.entry(key).or_insert_with(|| Rc::new(volumes));
        }
    }

    /// The volumes that all nodes are created with.
    pub(crate) fn begin_with(&mut self, volumes: Volumes) {
        self.tables[0] = (0, Rc::new(volumes));
    }

    /// The volumes after a record of the committed log.
    pub(crate) fn table_at(&self, seq: u64) -> &Volumes {
        let table = self.tables.iter().rev().find(|(at, _)| *at <= seq);
        &table.expect("the first begins at 0").1
    }

    /// What a committed batch does to blocks; behind the end of a volume that it makes smaller there is nothing.
    fn note_changes(&mut self, batch: &Batch, changes: &[Change]) {
        let key = (batch.epoch, batch.first);
        let table = self.tables.last().expect("the first stays").1.clone();
        for &(volume, block, crc) in changes {
            let id = VolumeId(u16::try_from(volume).expect("16 volumes"));
            assert!(
                block < table.blocks(id),
                "record {} is about block {block} of volume {volume}, which has {}",
                batch.first,
                table.blocks(id)
            );
            let history = self.blocks.entry((volume, block)).or_default();
            history.push((batch.last, crc));
        }
        if let Some(volumes) = self.volumes.get(&key) {
            for (&(volume, block), history) in &mut self.blocks {
                let id = VolumeId(u16::try_from(volume).expect("16 volumes"));
                if block >= table.common_bytes(volumes, id) / BLOCK_BYTES_U64 {
                    history.push((batch.last, batch::block_crc(id, block, &[0; BLOCK_BYTES])));
                }
            }
            self.tables.push((batch.last, volumes.clone()));
        }
    }

    /// A node has new disks.
    pub(crate) fn born(&mut self, node: usize, incarnation: Incarnation) {
        self.lives[node] = incarnation;
    }

    /// Whether a life of disks has ended.
    pub(crate) fn is_over(&self, incarnation: Incarnation) -> bool {
        self.gone.iter().any(|(life, _)| *life == incarnation)
    }

    /// Which node this life of disks is, if it still is.
    pub(crate) fn node_of(&self, incarnation: Incarnation) -> Option<usize> {
        self.lives.iter().position(|&l| l == incarnation)
    }

    /// The life of a node's disks.
    pub(crate) fn life_of(&self, node: usize) -> Incarnation {
        self.lives[node]
    }

    /// Whether a node holds, or held before its disks were harmed, durably and with all before it, the batch with record `seq`
    /// that is the one looked for.
    fn had(&self, incarnation: Incarnation, is_it: impl Fn(&Journaled) -> bool, seq: u64) -> bool {
        let had = |log: &NodeLog| {
            let upto = || log.batches.range(..=seq);
            upto().next_back().is_some_and(|(_, j)| is_it(j))
                && upto().rev().take(100).all(|(_, j)| j.durable)
        };
        let mut gone = self.gone.iter();
        self.node_of(incarnation)
            .and_then(|n| self.logs.get(n))
            .is_some_and(had)
            || gone.any(|(i, log)| *i == incarnation && had(log))
    }

    /// A node crashed: only what is durable is sure to be there.
    pub(crate) fn crashed(&mut self, node: usize) {
        let Some(log) = self.logs.get_mut(node) else {
            return;
        };
        if let Some(hole) = log.batches.values().find(|j| !j.durable) {
            let hole = hole.batch.first;
            log.batches.split_off(&hole);
        }
    }

    /// A node was recovered with this log.
    pub(crate) fn recovered(
        &mut self,
        node: usize,
        batches: Vec<Batch>,
        committed: u64,
        applied: u64,
        hurt: Option<Proven>,
        damaged: bool,
    ) {
        if self.beyond {
            return;
        }
        let known = std::mem::take(&mut self.logs[node].batches);
        let from = batches
            .first()
            .map_or(applied + 1, |b| b.first.min(applied + 1));
        for (first, old) in known.range(from..) {
            if batches.contains(&old.batch) || !old.durable || damaged {
                continue;
            }
            let Some(proven) = hurt else {
                panic!("P1: node {node} lost the durable batch at {first} in a crash");
            };
            let Batch { epoch, last, .. } = old.batch;
            assert!(
                (epoch, last) > proven.acked && last > proven.committed,
                "P6: node {node} does not say that it lost the batch at {first}, and knows that it had {proven:?}"
            );
            self.silently_lost.insert((old.batch.epoch, *first));
        }
        if hurt.is_some() {
            // What it has lost may have counted before.
            let (batches, checked) = (known, 0);
            let life = self.lives[node];
            self.gone.push((life, NodeLog { batches, checked }));
        }
        for batch in batches {
            assert!(
                self.made.contains_key(&(batch.epoch, batch.first)),
                "a batch out of nowhere was recovered: {batch:?}"
            );
            let durable = true;
            self.logs[node]
                .batches
                .insert(batch.first, Journaled { batch, durable });
        }
        self.logs[node].checked = from - 1;
        if !damaged {
            self.committed(node, committed);
        }
    }

    /// A node says that its journal equals the Primary's through `seq`, durably (S2).
    pub(crate) fn acknowledges(&self, node: usize, seq: u64) {
        if self.beyond {
            return;
        }
        let Some(log) = self.logs.get(node) else {
            return; // A witness has none.
        };
        let upto = || log.batches.range(..=seq).rev();
        let torn = upto().take(100).find(|(_, j)| !j.durable);
        let end = upto().next().map(|(_, j)| j.batch.last);
        assert!(
            torn.is_none() && end.is_none_or(|e| e >= seq),
            "S2: node {node} says that it has the log through {seq}, its journal ends with {end:?} and lacks {torn:?}"
        );
    }

    /// Whether an epoch's demote record is committed.
    pub(crate) fn ended_cleanly(&self, epoch: u64) -> bool {
        let of_epoch = self.demotes.range((epoch, 0)..(epoch + 1, 0));
        of_epoch.into_iter().any(|&(epoch, first)| {
            let committed = self.chain.get(&first);
            committed.is_some_and(|batch| batch.epoch == epoch)
        })
    }

    /// A node's superblock says that what a resync brought is its image, through a record (C2): that is committed, and nothing that the node
    /// has is newer. Its log begins anew there.
    pub(crate) fn merges(&mut self, node: usize, (epoch, seq): (u64, u64), hurt: bool) {
        if self.beyond {
            return;
        }
        let newest = self.chain.range(..=seq).next_back();
        assert!(
            newest.is_some_and(|(_, b)| (b.epoch, b.last) == (epoch, seq)),
            "C2: node {node} makes what it staged through {epoch}.{seq} its image, committed is {newest:?}"
        );
        let log = std::mem::take(&mut self.logs[node]);
        let tail = log.batches.values().rev().find(|j| j.durable);
        let tail = tail.map_or((0, 0), |j| (j.batch.epoch, j.batch.last));
        assert!(
            hurt || tail <= (epoch, seq),
            "C2: node {node} has a log through {tail:?}, and gives it up for {epoch}.{seq}"
        );
        self.logs[node].checked = seq;
        self.gone.push((self.lives[node], log));
    }

    /// A node's disks were replaced, or are known to be damaged. What it had counted until then.
    pub(crate) fn wiped(&mut self, node: usize) {
        if let Some(witness) = node.checked_sub(self.logs.len()) {
            self.witnesses[witness] = (0, 0);
            return;
        }
        let log = std::mem::take(&mut self.logs[node]);
        self.gone.push((self.lives[node], log));
        self.judged[node] = 0;
    }

    /// A node serves an epoch.
    pub(crate) fn serves(&mut self, node: usize, epoch: u64) {
        let first = *self.served.entry(epoch).or_insert(node);
        assert!(
            first == node || self.beyond,
            "P4: two Primaries of epoch {epoch}"
        );
    }

    /// A node of this epoch answers a client.
    pub(crate) fn answers(&self, node: usize, epoch: u64) {
        let newest = self.served.last_key_value().map_or(0, |(e, _)| *e);
        assert!(
            epoch >= newest || self.beyond,
            "P4: node {node} answers in epoch {epoch} while {newest} is served"
        );
    }

    /// The newest epoch that was ever served.
    pub(crate) fn newest_epoch(&self) -> u64 {
        self.served.last_key_value().map_or(0, |(e, _)| *e)
    }

    /// In how many epochs somebody served.
    pub(crate) fn epochs_served(&self) -> u64 {
        self.served.len() as u64
    }

    /// The last record that is known to be committed.
    pub(crate) fn chain_end(&self) -> u64 {
        self.chain_end
    }

    /// The last record that a node has given to its journal. What is only in its memory yet is not known here.
    pub(crate) fn journaled(&self, node: usize) -> u64 {
        let log = &self.logs[node];
        let last = log.batches.values().next_back();
        last.map_or(log.checked, |j| j.batch.last.max(log.checked))
    }

    /// The CRC of what a block holds by the log of a node, through a record.
    pub(crate) fn crc_by(&self, node: usize, volume: usize, block: u64, through: u64) -> u32 {
        let log = &self.logs[node];
        let after = log.batches.range(log.checked + 1..).rev();
        let mut beyond = after.filter(|(first, _)| **first <= through);
        let of = |&&(v, b, _): &&Change| (v, b) == (volume, block);
        let beyond = beyond.find_map(|(first, j)| {
            let (_, changes) = &self.made[&(j.batch.epoch, *first)];
            changes.iter().rev().find(of).map(|&(.., crc)| crc)
        });
        let committed = through.min(log.checked);
        let id = VolumeId(u16::try_from(volume).expect("16 volumes"));
        beyond
            .or_else(|| {
                let history = self.blocks.get(&(volume, block))?;
                let last = history.iter().rev().find(|(seq, _)| *seq <= committed);
                last.map(|(_, crc)| *crc)
            })
            .unwrap_or_else(|| batch::block_crc(id, block, &[0; BLOCK_BYTES]))
    }

    /// P3: a store is the replay up to `applied`, but for blocks that the replay of records up to `committed` overwrites, and
    /// for those that the disk harmed and nobody has mended yet.
    pub(crate) fn store_is_prefix(
        &self,
        node: usize,
        volume: usize,
        store: &Image<'_>,
        applied: u64,
        committed: u64,
    ) {
        if self.beyond {
            return;
        }
        let none = BTreeMap::<u64, u32>::new();
        let mut found = none;
        let id = VolumeId(u16::try_from(volume).expect("16 volumes"));
        for (block, bytes) in store.written() {
            found.insert(block, batch::block_crc(id, block, bytes));
        }
        for (&(_, block), history) in self.blocks.range((volume, 0)..(volume + 1, 0)) {
            if store.is_beyond(block) {
                continue;
            }
            let crc = found
                .remove(&block)
                .unwrap_or_else(|| batch::block_crc(id, block, &[0; BLOCK_BYTES]));
            // A batch with several changes of a block counts with the last.
            let expected = history
                .iter()
                .rev()
                .find(|(seq, _)| *seq <= applied)
                .map_or_else(
                    || batch::block_crc(id, block, &[0; BLOCK_BYTES]),
                    |(_, crc)| *crc,
                );
            let replay = applied.saturating_add(1)..=committed;
            let replayed = history.iter().any(|(seq, _)| replay.contains(seq));
            assert!(
                crc == expected || replayed || store.is_harmed(block),
                "P3: node {node} volume {volume} block {block} is not that of record {applied}: {history:?}"
            );
        }
        assert!(
            found.keys().all(|&block| {
                let zeroes = |b: &crate::disk::Block| b.iter().all(|&byte| byte == 0);
                store.block(block).is_none_or(zeroes) || store.is_harmed(block)
            }),
            "P3: node {node} has blocks in volume {volume} that no committed record wrote"
        );
    }
}
