//! The node's log as it is kept in memory: where each batch is in the ring, which records the stores still lack, which
//! epochs and configs it holds. The bytes are in the ring, and for a while in the buffers that they came in.
//!
//! Places in the ring are counted on and on ([`Entry::position`]); modulo the ring's size they are disk places. A batch
//! may lie across the ring's end.

mod contents;

use std::collections::VecDeque;

use crate::io::PARTS_MAX;
use crate::journal::batch::{Descriptor, Header};
use crate::meta::config::{ClusterConfig, ConfigAt};
use crate::meta::label::LABEL_BLOCKS;
use crate::meta::superblock::AppliedFloor;
use crate::meta::volumes::Volumes;
use crate::types::*;
use crate::wire::frame::EpochHistory;

/// The in-flight bound of the journal writer, in blocks (8 MiB): recovery looks this far past a hole for survivors.
pub const INFLIGHT_BLOCKS_MAX: u64 = 2048;

/// The same bound in batches.
pub const INFLIGHT_BATCHES_MAX: usize = 2 * PARTS_MAX;

/// Blocks kept free for control records, so that a full journal can still change hands.
pub const CONTROL_RESERVE_BLOCKS: u64 = 64;

/// One batch of the log.
#[derive(Debug, Clone)]
pub struct Entry<B> {
    /// Its first record.
    pub first: Seq,
    /// Its last record.
    pub last: Seq,
    /// Its epoch.
    pub epoch: Epoch,
    /// Where it begins in the ring, in blocks, counted over the laps.
    pub position: u64,
    /// Its blocks.
    pub blocks: u32,
    /// Its checksum.
    pub checksum: u32,
    /// How many records.
    pub records: u16,
    /// Its bytes, while they are in memory.
    pub buffer: Option<B>,
}

impl<B> Entry<B> {
    /// Its last record by full name.
    #[must_use]
    pub fn id(&self) -> RecordId {
        RecordId {
            epoch: self.epoch,
            seq: self.last,
        }
    }

    /// The place after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.position + u64::from(self.blocks)
    }
}

/// The end of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tail {
    /// The last record.
    pub id: RecordId,
    /// The place after it.
    pub position: u64,
    /// Blocks of its batch.
    pub blocks: u32,
    /// The checksum of its batch.
    pub checksum: u32,
}

impl From<AppliedFloor> for Tail {
    fn from(floor: AppliedFloor) -> Self {
        Self {
            id: floor.id,
            position: floor.position,
            blocks: floor.blocks,
            checksum: floor.checksum,
        }
    }
}

/// What the log needs to begin with; made by [`scan`](crate::journal::scan).
#[derive(Debug)]
pub struct LogParts {
    /// Blocks of the ring.
    pub ring_blocks: u64,
    /// The place before the first entry.
    pub start: Tail,
    /// Batches, oldest first.
    pub entries: Vec<Entry<()>>,
    /// How many of them the stores have.
    pub applied_entries: usize,
    /// The durable applied floor.
    pub applied: AppliedFloor,
    /// Records of those that the stores do not have.
    pub descriptors: Vec<Descriptor>,
    /// The epochs.
    pub epochs: EpochHistory,
    /// The configs, the one at the applied floor first.
    pub configs: Vec<ConfigAt>,
    /// The tables of volumes, the one at the applied floor first.
    pub tables: Vec<TableAt>,
}

/// A table of volumes, and the record that brought it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableAt {
    /// The record; 0 if it is that of the superblock.
    pub at: Seq,
    /// The table.
    pub volumes: Volumes,
}

/// The log of one node.
#[derive(Debug)]
pub struct Log<B> {
    ring_blocks: u64,
    entries: VecDeque<Entry<B>>,
    entries_max: usize,
    /// The number of `entries[0]`; numbers are never reused for other bytes, except after a cut.
    base: u64,
    start: Tail,
    descriptors: VecDeque<Descriptor>,
    descriptors_max: usize,
    /// The number of the first entry that is not in the stores.
    applied: u64,
    /// The number of the first entry that is not durable in the journal.
    durable: u64,
    /// Ring places from here on are needed by recovery.
    floor_position: u64,
    epochs: EpochHistory,
    configs: Vec<ConfigAt>,
    /// The first is that of the applied floor.
    tables: Vec<TableAt>,
    /// The record of a config that came without it (protocol D3).
    adopted: Option<RecordId>,
}

impl<B: Clone> Log<B> {
    /// The log as it was found on disk. `descriptors_max` bounds the records that the stores lack.
    #[must_use]
    pub fn new(parts: LogParts, descriptors_max: usize) -> Self {
        let entries_max = usize::try_from(parts.ring_blocks / 2).unwrap_or(usize::MAX);
        let entries_max = entries_max
            .clamp(1024, 1 << 18)
            .max(parts.entries.len() + 1);
        let mut entries = VecDeque::with_capacity(entries_max);
        entries.extend(parts.entries.into_iter().map(|e| Entry {
            first: e.first,
            last: e.last,
            epoch: e.epoch,
            position: e.position,
            blocks: e.blocks,
            checksum: e.checksum,
            records: e.records,
            buffer: None,
        }));
        let floor = parts.applied.id.seq;
        let adopted = parts.configs.first().filter(|c| c.at.seq > floor);
        let adopted = adopted.map(|c| c.at);
        let descriptors_max = descriptors_max.max(parts.descriptors.len());
        let mut descriptors = VecDeque::with_capacity(descriptors_max);
        descriptors.extend(parts.descriptors);
        Self {
            ring_blocks: parts.ring_blocks,
            durable: entries.len() as u64,
            entries,
            entries_max,
            base: 0,
            start: parts.start,
            descriptors,
            descriptors_max,
            applied: parts.applied_entries as u64,
            floor_position: parts.applied.position,
            epochs: parts.epochs,
            configs: parts.configs,
            tables: parts.tables,
            adopted,
        }
    }

    /// Bytes of the ring.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        self.ring_blocks * BLOCK_BYTES_U64
    }

    /// Bytes of the ring that recovery would read.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        (self.tail().position - self.floor_position) * BLOCK_BYTES_U64
    }

    /// The end of the log.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.entries.back().map_or(self.start, |e| Tail {
            id: e.id(),
            position: e.end(),
            blocks: e.blocks,
            checksum: e.checksum,
        })
    }

    /// The number that the next entry gets.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// The number of the oldest entry.
    #[must_use]
    pub fn first_number(&self) -> u64 {
        self.base
    }

    /// The record before the oldest entry.
    #[must_use]
    pub fn start(&self) -> Tail {
        self.start
    }

    /// An entry by its number.
    #[must_use]
    pub fn entry(&self, number: u64) -> Option<&Entry<B>> {
        self.entries
            .get(usize::try_from(number.checked_sub(self.base)?).ok()?)
    }

    /// An entry by its number, for its buffer.
    pub fn entry_mut(&mut self, number: u64) -> Option<&mut Entry<B>> {
        self.entries
            .get_mut(usize::try_from(number.checked_sub(self.base)?).ok()?)
    }

    /// The number of the entry that holds a record.
    #[must_use]
    pub fn number_of(&self, seq: Seq) -> Option<u64> {
        let index = self.entries.partition_point(|e| e.last < seq);
        let entry = self.entries.get(index)?;
        (entry.first <= seq).then_some(self.base + index as u64)
    }

    /// The end of the log as it was after entry `number - 1`.
    #[must_use]
    pub fn tail_before(&self, number: u64) -> Tail {
        match number.checked_sub(1).and_then(|n| self.entry(n)) {
            Some(e) => Tail {
                id: e.id(),
                position: e.end(),
                blocks: e.blocks,
                checksum: e.checksum,
            },
            None => self.start,
        }
    }

    /// The last durable record such that all before are durable.
    #[must_use]
    pub fn durable_id(&self) -> RecordId {
        self.tail_before(self.durable).id
    }

    /// The number of the first entry that is not durable.
    #[must_use]
    pub fn durable_number(&self) -> u64 {
        self.durable
    }

    /// Everything before entry `number` is durable now.
    pub fn set_durable(&mut self, number: u64) {
        assert!(number >= self.durable && number <= self.next_number());
        self.durable = number;
    }

    /// The number of the first entry that the stores lack.
    #[must_use]
    pub fn applied_number(&self) -> u64 {
        self.applied
    }

    /// The last record in the stores.
    #[must_use]
    pub fn applied_id(&self) -> RecordId {
        self.tail_before(self.applied).id
    }

    /// The floor to write to the superblock.
    #[must_use]
    pub fn applied_floor(&self) -> AppliedFloor {
        let tail = self.tail_before(self.applied);
        AppliedFloor {
            id: tail.id,
            position: tail.position,
            blocks: tail.blocks,
            checksum: tail.checksum,
        }
    }

    /// The superblock durably says that recovery begins at `position`.
    pub fn set_floor_position(&mut self, position: u64) {
        assert!(position >= self.floor_position || planted!(RecycledTooEarly));
        self.floor_position = self.floor_position.max(position);
    }

    /// The ring place that recovery begins at.
    #[must_use]
    pub fn floor_position(&self) -> u64 {
        self.floor_position
    }

    /// The records of the entries that the stores lack, in order; each entry has [`Entry::records`] of them.
    #[must_use]
    pub fn unapplied(&self) -> &VecDeque<Descriptor> {
        &self.descriptors
    }

    /// Each record that the stores lack, before entry `end`, in order: the number of its entry, its own, and what it does.
    pub fn unapplied_records(&self, end: u64) -> impl Iterator<Item = (u64, Seq, &Descriptor)> {
        let seqs = (self.applied..end).flat_map(|number| {
            let entry = self
                .entry(number)
                .expect("what is not applied is in the log");
            (0..u64::from(entry.records)).map(move |n| (number, Seq(entry.first.0 + n)))
        });
        seqs.zip(&self.descriptors)
            .map(|((number, seq), record)| (number, seq, record))
    }

    /// Whether `blocks` blocks with `records` records fit, leaving `reserve` blocks free.
    #[must_use]
    pub fn has_room(&self, blocks: u32, records: usize, reserve: u64) -> bool {
        // Where entries are many and small, the oldest makes place for a new one, once recovery does not need it.
        let place = self.entries.len() < self.entries_max
            || self
                .entries
                .front()
                .is_some_and(|oldest| oldest.end() <= self.floor_position);
        self.tail().position + u64::from(blocks) + reserve <= self.floor_position + self.ring_blocks
            && self.descriptors.len() + records <= self.descriptors_max
            && place
    }

    /// Adds a batch. The caller has seen to it that it follows the tail, and that there is room.
    ///
    /// # Panics
    /// If it does not follow, or there is no room.
    pub fn append(
        &mut self,
        header: &Header,
        records: impl Iterator<Item = Descriptor>,
        config: Option<ClusterConfig>,
        buffer: B,
    ) -> u64 {
        let tail = self.tail();
        assert_eq!(
            header.prev_id(),
            tail.id,
            "a batch follows the one before it"
        );
        assert_eq!(
            header.prev_checksum, tail.checksum,
            "a batch is chained to the one before it"
        );
        let blocks = header.blocks();
        assert!(self.has_room(blocks, usize::from(header.records), 0));
        let needed = tail.position + u64::from(blocks);
        while let Some(oldest) = self.entries.front() {
            let overwritten = oldest.position + self.ring_blocks < needed;
            if !overwritten && self.entries.len() < self.entries_max {
                break;
            }
            assert!(self.base < self.applied && oldest.end() <= self.floor_position);
            self.start = Tail {
                id: oldest.id(),
                position: oldest.end(),
                blocks: oldest.blocks,
                checksum: oldest.checksum,
            };
            self.entries.pop_front();
            self.base += 1;
        }
        note_epoch(&mut self.epochs, header);
        if let Some(config) = config {
            self.configs.push(ConfigAt {
                at: header.last_id(),
                config,
            });
        }
        self.descriptors.extend(records);
        let number = self.next_number();
        self.entries.push_back(Entry {
            first: header.first,
            last: header.last(),
            epoch: header.epoch,
            position: tail.position,
            blocks,
            checksum: header.checksum,
            records: header.records,
            buffer: Some(buffer),
        });
        number
    }

    /// Cuts everything after `seq`, which must be the last record of a batch, or the start.
    ///
    /// # Panics
    /// If it is not, or if the stores have something of what goes.
    pub fn cut_after(&mut self, seq: Seq) {
        while let Some(last) = self.entries.back() {
            if last.last <= seq {
                break;
            }
            assert!(last.first > seq, "a batch is cut as a whole");
            assert!(
                self.next_number() > self.applied,
                "what is applied is never cut"
            );
            let records = self.descriptors.len() - usize::from(last.records);
            self.descriptors.truncate(records);
            self.entries.pop_back();
        }
        assert!(self.tail().id.seq <= seq);
        self.durable = self.durable.min(self.next_number());
        while self.epochs.last().is_some_and(|e| e.seq > seq) {
            self.epochs.pop();
        }
        while self.tables.len() > 1 && self.tables.last().is_some_and(|t| t.at > seq) {
            self.tables.pop();
        }
        // The first is the one at the applied floor, or came to a fresh node without its record: it stays.
        while self.configs.len() > 1 && self.configs.last().is_some_and(|c| c.at.seq > seq) {
            self.configs.pop();
        }
    }

    /// Begins anew after a record that came by a resync, in place of all that is here (protocol C2). Its place in the ring is
    /// the end of what was there.
    ///
    /// # Panics
    /// If that is not durable, or is newer than the record.
    pub fn restart(
        &mut self,
        start: Tail,
        epochs: EpochHistory,
        config: ConfigAt,
        volumes: TableAt,
    ) {
        assert!(self.durable == self.next_number() && self.tail().id <= start.id);
        assert!(start.position >= self.tail().position);
        self.base = self.next_number();
        self.entries.clear();
        self.descriptors.clear();
        self.start = start;
        self.applied = self.base;
        self.durable = self.base;
        self.epochs = epochs;
        self.configs.clear();
        self.configs.push(config);
        self.tables.clear();
        self.tables.push(volumes);
        self.adopted = None;
    }

    /// Forgets everything: a log that holds nothing begins at the end of what was there.
    ///
    /// # Panics
    /// If something is not durable yet.
    pub fn forget(&mut self) {
        assert!(self.durable == self.next_number());
        let position = self.tail().position;
        self.base = self.next_number();
        self.entries.clear();
        self.descriptors.clear();
        self.start = Tail {
            position,
            ..Tail::default()
        };
        self.applied = self.base;
        self.durable = self.base;
        self.epochs.clear();
        self.configs.clear();
        // The stores are what they are.
        self.tables.truncate(1);
        self.tables[0].at = Seq(0);
        self.adopted = None;
    }

    /// The stores have everything before entry `number` now.
    ///
    /// # Panics
    /// If that is not durable in the journal.
    pub fn set_applied(&mut self, number: u64) {
        assert!(number >= self.applied && number <= self.durable);
        for n in self.applied..number {
            let entry = self
                .entry_mut(n)
                .expect("what is not applied is in the log");
            let records = usize::from(entry.records);
            entry.buffer = None;
            self.descriptors.drain(..records);
        }
        self.applied = number;
        // Of the configs at or below the floor only the newest can still matter.
        let floor = self.applied_id().seq;
        while self.configs.get(1).is_some_and(|c| c.at.seq <= floor) {
            self.configs.remove(0);
        }
        while self.tables.get(1).is_some_and(|t| t.at <= floor) {
            self.tables.remove(0);
        }
    }

    /// Cuts `position..position + blocks` into what lies before and after the ring's end; each part as byte offset on
    /// the disk, first block of the range, and blocks.
    pub fn ring_parts(
        &self,
        position: u64,
        blocks: u32,
    ) -> impl Iterator<Item = (u64, u32, u32)> + use<B> {
        let at = position % self.ring_blocks;
        let before = u32::try_from((self.ring_blocks - at).min(u64::from(blocks)))
            .expect("not more than the blocks asked for");
        let offset = |block: u64| (LABEL_BLOCKS + block) * BLOCK_BYTES_U64;
        [
            (offset(at), 0, before),
            (offset(0), before, blocks - before),
        ]
        .into_iter()
        .filter(|&(_, _, blocks)| blocks > 0)
    }
}

/// Adds a batch to the history of epochs: if it begins one, the oldest makes room where there is none.
pub(crate) fn note_epoch(epochs: &mut EpochHistory, header: &Header) {
    if epochs.last().is_none_or(|last| last.epoch < header.epoch) {
        if epochs.is_full() {
            epochs.remove(0);
        }
        epochs.push(RecordId {
            epoch: header.epoch,
            seq: header.first,
        });
    }
}

/// The last record that two logs have in common (protocol C1): it lies in the newest epoch that both histories hold, at
/// the smaller of its two ends. `None` if they share no epoch.
#[must_use]
pub fn last_common(
    mine: &EpochHistory,
    my_tail: RecordId,
    theirs: &EpochHistory,
    their_tail: RecordId,
) -> Option<RecordId> {
    let end = |history: &EpochHistory, tail: RecordId, index: usize| {
        history
            .get(index + 1)
            .map_or(tail.seq, |next| Seq(next.seq.0 - 1))
    };
    for (i, m) in mine.iter().enumerate().rev() {
        if let Some(j) = theirs
            .iter()
            .position(|t| t.epoch == m.epoch && t.seq == m.seq)
        {
            let seq = end(mine, my_tail, i).min(end(theirs, their_tail, j));
            return Some(RecordId {
                epoch: m.epoch,
                seq,
            });
        }
    }
    None
}

#[cfg(test)]
mod tests;
