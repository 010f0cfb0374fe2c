//! Batches, rings and superblocks for tests, made with the real encoders.

use std::collections::BTreeSet;

use crate::io::DiskError;
use crate::journal::batch::{Draft, Header, Kind, Place, write_config};
use crate::journal::log::Tail;
use crate::meta::config::{ClusterConfig, Name, Standing};
use crate::meta::label::LABEL_BLOCKS;
use crate::meta::superblock::{AppliedFloor, Superblock, VolumeRecord};
use crate::recover::BlockRead;
use crate::types::*;
use crate::wire::frame::EpochHistory;

/// The smallest journal.
pub(crate) const JOURNAL_BYTES: u64 = 16 << 20;

/// Its ring.
pub(crate) const RING_BLOCKS: u64 = JOURNAL_BYTES / BLOCK_BYTES_U64 - LABEL_BLOCKS;

pub(crate) const UUID: ResourceUuid = ResourceUuid(0x1111_2222);
pub(crate) const HISTORY: HistoryId = HistoryId(0x3333_4444);

pub(crate) fn config(version: u64) -> ClusterConfig {
    let nodes = ["a", "b", "c"].into_iter().zip(1..);
    ClusterConfig {
        version,
        nodes: nodes
            .map(|(name, incarnation)| Standing {
                name: Name::from(name).unwrap(),
                incarnation: Incarnation(incarnation),
                voter: true,
                member: incarnation < 3,
                joining: false,
                stopped: false,
            })
            .collect(),
    }
}

/// The superblock of a node that belongs to the resource and has applied nothing.
pub(crate) fn superblock() -> Superblock {
    Superblock {
        version: 1,
        resource: Name::from("pbx").unwrap(),
        node: Name::from("a").unwrap(),
        incarnation: Incarnation(1),
        uuid: UUID,
        history: HISTORY,
        promised: Epoch(1),
        promised_to: Name::from("a").unwrap(),
        lease_ms: 1000,
        applied: AppliedFloor::default(),
        committed: Seq(0),
        acked: RecordId::NONE,
        damaged_until: RecordId::NONE,
        config: None,
        epochs: EpochHistory::new(),
        journal_bytes: JOURNAL_BYTES,
        volumes: std::iter::once(VolumeRecord {
            name: Name::from("db").unwrap(),
            bytes: 1 << 30,
        })
        .collect(),
        volumes_at: Seq(0),
        fork: None,
        resync: None,
        sums_written: 0,
        labelled: Incarnation(0),
        fences: Default::default(),
    }
}

/// A batch and where it belongs.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) header: Header,
    pub(crate) position: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Made {
    pub(crate) fn blocks(&self) -> u64 {
        u64::from(self.header.blocks())
    }

    pub(crate) fn end(&self) -> u64 {
        self.position + self.blocks()
    }

    /// The end of a log that ends with this batch.
    pub(crate) fn tail(&self) -> Tail {
        Tail {
            id: self.header.last_id(),
            position: self.end(),
            blocks: self.header.blocks(),
            checksum: self.header.checksum,
        }
    }

    pub(crate) fn floor(&self) -> AppliedFloor {
        let tail = self.tail();
        AppliedFloor {
            id: tail.id,
            position: tail.position,
            blocks: tail.blocks,
            checksum: tail.checksum,
        }
    }
}

/// A maker of batches, each chained to the one before.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) uuid: ResourceUuid,
    pub(crate) history: HistoryId,
    pub(crate) epoch: Epoch,
    pub(crate) committed: Seq,
    pub(crate) tail: Tail,
}

impl Chain {
    pub(crate) fn new() -> Self {
        Self {
            uuid: UUID,
            history: HISTORY,
            epoch: Epoch(1),
            committed: Seq(0),
            tail: Tail::default(),
        }
    }

    /// A chain whose first batch begins at `position` of the ring.
    pub(crate) fn at(position: u64) -> Self {
        let mut chain = Self::new();
        chain.tail.position = position;
        chain
    }

    /// One batch of these records: kind, volume, first block, blocks. Payload bytes are made up.
    pub(crate) fn make(&mut self, records: &[(Kind, u16, u64, u32)]) -> Made {
        let mut draft = Draft::default();
        let mut bytes = vec![0; BLOCK_BYTES];
        for &(kind, volume, block, blocks) in records {
            let from = bytes.len();
            match kind {
                Kind::Write => {
                    for index in 0..u64::from(blocks) {
                        let fill = (self.tail.id.seq.0 * 131 + block + index) % 251 + 1;
                        bytes.resize(bytes.len() + BLOCK_BYTES, u8::try_from(fill).unwrap());
                    }
                }
                Kind::Epoch | Kind::Membership => {
                    bytes.resize(from + BLOCK_BYTES, 0);
                    write_config(&config(self.epoch.0), &mut bytes[from..]);
                }
                Kind::Volumes => {
                    bytes.resize(from + BLOCK_BYTES, 0);
                    crate::journal::batch::write_volumes(&superblock().volumes, &mut bytes[from..]);
                }
                Kind::Zero { .. } | Kind::Demote => {}
            }
            draft.push(kind, VolumeId(volume), block, blocks, &bytes[from..]);
        }
        let place = Place {
            uuid: self.uuid,
            history: self.history,
            epoch: self.epoch,
            prev: self.tail.id,
            prev_blocks: self.tail.blocks,
            prev_checksum: self.tail.checksum,
            committed: self.committed,
        };
        let header = draft.write_header(&place, &mut bytes[..BLOCK_BYTES]);
        let made = Made {
            header,
            position: self.tail.position,
            bytes,
        };
        self.tail = made.tail();
        made
    }

    /// One batch that writes `blocks` blocks.
    pub(crate) fn write(&mut self, blocks: u32) -> Made {
        let block = self.tail.id.seq.0 * 8;
        self.make(&[(Kind::Write, 0, block, blocks)])
    }

    /// The record that begins `epoch`.
    pub(crate) fn epoch(&mut self, epoch: u64) -> Made {
        self.epoch = Epoch(epoch);
        self.make(&[(Kind::Epoch, 0, 0, 1)])
    }

    /// The record that ends the epoch.
    pub(crate) fn demote(&mut self) -> Made {
        self.make(&[(Kind::Demote, 0, 0, 0)])
    }
}

/// A journal on a disk that can fail.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    /// Blocks that can not be read.
    pub(crate) unreadable: BTreeSet<u64>,
    /// How many reads there were.
    pub(crate) reads: usize,
}

impl Disk {
    pub(crate) fn blank() -> Self {
        Self {
            bytes: vec![0; usize::try_from(JOURNAL_BYTES).unwrap()],
            unreadable: BTreeSet::new(),
            reads: 0,
        }
    }

    pub(crate) fn with<'a>(batches: impl IntoIterator<Item = &'a Made>) -> Self {
        let mut disk = Self::blank();
        for batch in batches {
            disk.put(batch);
        }
        disk
    }

    /// Block `position` of the ring.
    pub(crate) fn block(&mut self, position: u64) -> &mut [u8] {
        let at = usize::try_from(LABEL_BLOCKS + position % RING_BLOCKS).unwrap() * BLOCK_BYTES;
        &mut self.bytes[at..at + BLOCK_BYTES]
    }

    /// Writes a batch to its place.
    pub(crate) fn put(&mut self, batch: &Made) {
        self.put_at(batch.position, &batch.bytes);
    }

    /// Writes bytes, also a part of a block, to a place.
    pub(crate) fn put_at(&mut self, position: u64, bytes: &[u8]) {
        for (index, bytes) in (0..).zip(bytes.chunks(BLOCK_BYTES)) {
            self.block(position + index)[..bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl BlockRead for Disk {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.reads += 1;
        assert!(offset.is_multiple_of(BLOCK_BYTES_U64));
        assert!(!buffer.is_empty() && buffer.len().is_multiple_of(BLOCK_BYTES));
        let first = offset / BLOCK_BYTES_U64;
        let blocks = first..first + buffer.len() as u64 / BLOCK_BYTES_U64;
        if self.unreadable.iter().any(|b| blocks.contains(b)) {
            return Err(DiskError::Os(5));
        }
        let at = usize::try_from(offset).unwrap();
        let bytes = self.bytes.get(at..at + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(DiskError::Short)?);
        Ok(())
    }
}
