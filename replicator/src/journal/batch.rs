//! A batch: the unit that is journaled and sent, the same bytes on every node.
//!
//! ```text
//! block 0    header: 128 bytes | descriptors, 32 bytes each | one CRC per payload block, 4 bytes each | zeroes
//! block 1..  payload blocks, in the order of the descriptors
//! ```
//!
//! A descriptor is a record. Record `i` of a batch has the sequence number `first_seq + i`. The header's checksum
//! covers the whole header block, so with it the CRC of every payload block: one number (`checksum`) names the bytes
//! of a batch, and the next header carries it (`prev_checksum`): a chain. A block's CRC is seeded with volume and
//! block number, so a block that went astray does not verify in a foreign place.

use std::mem::offset_of;

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::meta::config::{ClusterConfig, RawConfig};
use crate::meta::volumes::{RawVolumes, Volumes};
use crate::types::*;

/// The version of the journal format.
pub const JOURNAL_VERSION: u16 = 1;

/// The most records in one batch.
pub const DESCRIPTORS_MAX: usize = 64;

/// The most payload blocks in one batch (1.5 MiB).
pub const PAYLOAD_BLOCKS_MAX: usize = 384;

/// The most blocks of a batch, header included.
pub const BATCH_BLOCKS_MAX: u32 = 1 + PAYLOAD_BLOCKS_MAX as u32;

/// The most blocks that one zero record covers (64 MiB).
pub const ZERO_BLOCKS_MAX: u32 = 1 << 14;

const MAGIC: u64 = 0x4843_5441_424c_5052; // "RPLBATCH"
const FIXED_BYTES: usize = 128;
const DESCRIPTOR_BYTES: usize = 32;
const _: () = assert!(
    FIXED_BYTES + DESCRIPTORS_MAX * DESCRIPTOR_BYTES + PAYLOAD_BLOCKS_MAX * 4 <= BLOCK_BYTES
);

/// What a record does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Writes payload blocks.
    Write,
    /// Makes blocks read as zeroes, without payload.
    Zero {
        /// Whether stores may deallocate them.
        may_deallocate: bool,
    },
    /// Begins an epoch; its payload block holds a config.
    Epoch,
    /// Changes the membership; its payload block holds a config.
    Membership,
    /// Ends an epoch cleanly.
    Demote,
    /// Changes the table of volumes; its payload block holds the new one.
    Volumes,
}

/// One record of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// What it does.
    pub kind: Kind,
    /// To which volume (0 for the records that are not about one).
    pub volume: VolumeId,
    /// From which block on.
    pub block: u64,
    /// To how many blocks.
    pub blocks: u32,
    /// Where its payload begins: a block index in the batch, header included; 0 if it has none.
    pub payload: u32,
}

/// What the header says of the batch as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The resource.
    pub uuid: ResourceUuid,
    /// The history.
    pub history: HistoryId,
    /// The epoch that all its records were made in.
    pub epoch: Epoch,
    /// The epoch of the record before it.
    pub prev_epoch: Epoch,
    /// Its first record.
    pub first: Seq,
    /// What its maker knew to be committed.
    pub committed: Seq,
    /// Blocks of the batch before it; 0 if there is none.
    pub prev_blocks: u32,
    /// The checksum of the batch before it; 0 if there is none.
    pub prev_checksum: u32,
    /// How many records.
    pub records: u16,
    /// How many payload blocks.
    pub payload_blocks: u32,
    /// The header's checksum, which names the whole batch.
    pub checksum: u32,
}

impl Header {
    /// Its last record.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.records) - 1)
    }

    /// Its last record by full name.
    #[must_use]
    pub fn last_id(&self) -> RecordId {
        RecordId {
            epoch: self.epoch,
            seq: self.last(),
        }
    }

    /// The record before it.
    #[must_use]
    pub fn prev_id(&self) -> RecordId {
        RecordId {
            epoch: self.prev_epoch,
            seq: Seq(self.first.0 - 1),
        }
    }

    /// Blocks of the whole batch.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        1 + self.payload_blocks
    }
}

/// Why bytes are no batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchFault {
    /// The first bytes are not those of a header.
    #[error("no batch header")]
    Magic,
    /// A header, damaged.
    #[error("the batch header's checksum is wrong")]
    HeaderChecksum,
    /// A header of another version of the format.
    #[error("the batch is of format version {0}, this program knows {JOURNAL_VERSION}")]
    Version(u16),
    /// A header with a good checksum and fields that no writer makes.
    #[error("the batch header contradicts itself")]
    Field,
    /// Fewer bytes than the header says.
    #[error("the batch is cut short")]
    Short,
    /// A payload block is damaged.
    #[error("payload block {0} of the batch has a wrong checksum")]
    Payload(u32),
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U16,
    header_blocks: U16,
    records: U16,
    reserved0: U16,
    uuid: U128,
    history: U128,
    epoch: U64,
    prev_epoch: U64,
    first: U64,
    committed: U64,
    payload_blocks: U32,
    prev_blocks: U32,
    prev_checksum: U32,
    reserved1: [u8; 32],
    checksum: U32,
}
const _: () = assert!(size_of::<RawHeader>() == FIXED_BYTES);
const _: () = {
    assert!(offset_of!(RawHeader, version) == 8);
    assert!(offset_of!(RawHeader, header_blocks) == 10);
    assert!(offset_of!(RawHeader, records) == 12);
    assert!(offset_of!(RawHeader, uuid) == 16);
    assert!(offset_of!(RawHeader, history) == 32);
    assert!(offset_of!(RawHeader, epoch) == 48);
    assert!(offset_of!(RawHeader, prev_epoch) == 56);
    assert!(offset_of!(RawHeader, first) == 64);
    assert!(offset_of!(RawHeader, committed) == 72);
    assert!(offset_of!(RawHeader, payload_blocks) == 80);
    assert!(offset_of!(RawHeader, prev_blocks) == 84);
    assert!(offset_of!(RawHeader, prev_checksum) == 88);
    assert!(offset_of!(RawHeader, checksum) == CHECKSUM_AT);
};
/// The checksum is the last field of the fixed part, and is taken over the block with this field zero.
const CHECKSUM_AT: usize = FIXED_BYTES - 4;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawDescriptor {
    kind: u8,
    flags: u8,
    volume: U16,
    blocks: U32,
    block: U64,
    payload: U32,
    reserved: [u8; 12],
}
const _: () = assert!(size_of::<RawDescriptor>() == DESCRIPTOR_BYTES);
const _: () = {
    assert!(offset_of!(RawDescriptor, flags) == 1);
    assert!(offset_of!(RawDescriptor, volume) == 2);
    assert!(offset_of!(RawDescriptor, blocks) == 4);
    assert!(offset_of!(RawDescriptor, block) == 8);
    assert!(offset_of!(RawDescriptor, payload) == 16);
};

const KIND_WRITE: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_EPOCH: u8 = 16;
const KIND_MEMBERSHIP: u8 = 17;
const KIND_DEMOTE: u8 = 18;
const KIND_VOLUMES: u8 = 19;
const MAY_DEALLOCATE: u8 = 1;

/// The checksum of a payload block at its place.
#[must_use]
pub fn block_crc(volume: VolumeId, block: u64, bytes: &[u8]) -> u32 {
    debug_assert_eq!(bytes.len(), BLOCK_BYTES);
    let seed = (U16::new(volume.0), U64::new(block));
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(seed.0.as_bytes());
    hasher.update(seed.1.as_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn header_checksum(block: &[u8]) -> u32 {
    crate::checksum::with_field_at(&block[..BLOCK_BYTES], CHECKSUM_AT)
}

/// The records of a batch that is being made, and the checksums of its payload.
#[derive(Debug, Default, Clone)]
pub struct Draft {
    records: ArrayVec<Descriptor, DESCRIPTORS_MAX>,
    crcs: ArrayVec<u32, PAYLOAD_BLOCKS_MAX>,
}

/// What a batch's header takes from its place in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The resource.
    pub uuid: ResourceUuid,
    /// The history.
    pub history: HistoryId,
    /// The epoch that makes it.
    pub epoch: Epoch,
    /// The record before it.
    pub prev: RecordId,
    /// Blocks of the batch before it.
    pub prev_blocks: u32,
    /// The checksum of the batch before it.
    pub prev_checksum: u32,
    /// What is committed.
    pub committed: Seq,
}

impl Draft {
    /// The records so far.
    #[must_use]
    pub fn records(&self) -> &[Descriptor] {
        &self.records
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Payload blocks so far.
    #[must_use]
    pub fn payload_blocks(&self) -> u32 {
        u32::try_from(self.crcs.len()).expect("at most 384 blocks")
    }

    /// Whether one more record with this many payload blocks fits.
    #[must_use]
    pub fn fits(&self, payload_blocks: u32) -> bool {
        !self.records.is_full() && self.crcs.remaining_capacity() >= payload_blocks as usize
    }

    /// Adds a record whose payload (possibly none) is `payload`; its place in the batch is given by what was added
    /// before.
    ///
    /// # Panics
    /// If it does not fit, or the payload's length is not what the record says.
    pub fn push(&mut self, kind: Kind, volume: VolumeId, block: u64, blocks: u32, payload: &[u8]) {
        let at = 1 + self.payload_blocks();
        let payload_blocks = payload.len() / BLOCK_BYTES;
        match kind {
            Kind::Write => assert_eq!(payload_blocks, blocks as usize),
            Kind::Epoch | Kind::Membership | Kind::Volumes => {
                assert_eq!((payload_blocks, blocks), (1, 1));
            }
            Kind::Zero { .. } | Kind::Demote => assert_eq!(payload_blocks, 0),
        }
        for (index, bytes) in (0u64..).zip(payload.chunks_exact(BLOCK_BYTES)) {
            self.crcs.push(block_crc(volume, block + index, bytes));
        }
        let payload = if payload_blocks == 0 { 0 } else { at };
        self.records.push(Descriptor {
            kind,
            volume,
            block,
            blocks,
            payload,
        });
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.records.clear();
        self.crcs.clear();
    }

    /// Writes the header block.
    ///
    /// # Panics
    /// If there is no record, or `block` is no block.
    pub fn write_header(&self, place: &Place, block: &mut [u8]) -> Header {
        assert!(!self.records.is_empty());
        assert_eq!(block.len(), BLOCK_BYTES);
        block.fill(0);
        let raw = RawHeader {
            magic: U64::new(MAGIC),
            version: U16::new(JOURNAL_VERSION),
            header_blocks: U16::new(1),
            records: U16::new(u16::try_from(self.records.len()).expect("at most 64 records")),
            reserved0: U16::new(0),
            uuid: U128::new(place.uuid.0),
            history: U128::new(place.history.0),
            epoch: U64::new(place.epoch.0),
            prev_epoch: U64::new(place.prev.epoch.0),
            first: U64::new(place.prev.seq.0 + 1),
            committed: U64::new(place.committed.0),
            payload_blocks: U32::new(self.payload_blocks()),
            prev_blocks: U32::new(place.prev_blocks),
            prev_checksum: U32::new(place.prev_checksum),
            reserved1: [0; 32],
            checksum: U32::new(0),
        };
        block[..FIXED_BYTES].copy_from_slice(raw.as_bytes());
        let mut at = FIXED_BYTES;
        for record in &self.records {
            block[at..at + DESCRIPTOR_BYTES].copy_from_slice(record.to_raw().as_bytes());
            at += DESCRIPTOR_BYTES;
        }
        for crc in &self.crcs {
            block[at..at + 4].copy_from_slice(U32::new(*crc).as_bytes());
            at += 4;
        }
        let checksum = header_checksum(block);
        block[CHECKSUM_AT..FIXED_BYTES].copy_from_slice(U32::new(checksum).as_bytes());
        Header {
            uuid: place.uuid,
            history: place.history,
            epoch: place.epoch,
            prev_epoch: place.prev.epoch,
            first: place.prev.seq.next(),
            committed: place.committed,
            prev_blocks: place.prev_blocks,
            prev_checksum: place.prev_checksum,
            records: raw.records.get(),
            payload_blocks: self.payload_blocks(),
            checksum,
        }
    }
}

impl Descriptor {
    fn to_raw(self) -> RawDescriptor {
        let (kind, flags) = match self.kind {
            Kind::Write => (KIND_WRITE, 0),
            Kind::Zero {
                may_deallocate: false,
            } => (KIND_ZERO, 0),
            Kind::Zero {
                may_deallocate: true,
            } => (KIND_ZERO, MAY_DEALLOCATE),
            Kind::Epoch => (KIND_EPOCH, 0),
            Kind::Membership => (KIND_MEMBERSHIP, 0),
            Kind::Demote => (KIND_DEMOTE, 0),
            Kind::Volumes => (KIND_VOLUMES, 0),
        };
        RawDescriptor {
            kind,
            flags,
            volume: U16::new(self.volume.0),
            blocks: U32::new(self.blocks),
            block: U64::new(self.block),
            payload: U32::new(self.payload),
            reserved: [0; 12],
        }
    }

    fn from_raw(raw: &RawDescriptor) -> Option<Self> {
        let kind = match (raw.kind, raw.flags) {
            (KIND_WRITE, 0) => Kind::Write,
            (KIND_ZERO, 0) => Kind::Zero {
                may_deallocate: false,
            },
            (KIND_ZERO, MAY_DEALLOCATE) => Kind::Zero {
                may_deallocate: true,
            },
            (KIND_EPOCH, 0) => Kind::Epoch,
            (KIND_MEMBERSHIP, 0) => Kind::Membership,
            (KIND_DEMOTE, 0) => Kind::Demote,
            (KIND_VOLUMES, 0) => Kind::Volumes,
            _ => return None,
        };
        let (block, blocks) = (raw.block.get(), raw.blocks.get());
        block.checked_add(u64::from(blocks))?;
        Some(Self {
            kind,
            volume: VolumeId(raw.volume.get()),
            block,
            blocks,
            payload: raw.payload.get(),
        })
    }

    /// How many payload blocks it has.
    #[must_use]
    pub fn payload_blocks(&self) -> u32 {
        match self.kind {
            Kind::Write | Kind::Epoch | Kind::Membership | Kind::Volumes => self.blocks,
            Kind::Zero { .. } | Kind::Demote => 0,
        }
    }
}

/// Reads a header block: its checksum is compared, and that its fields agree with each other.
///
/// # Errors
/// Why it is none.
pub fn read_header(block: &[u8]) -> Result<Header, BatchFault> {
    let block = block.get(..BLOCK_BYTES).ok_or(BatchFault::Short)?;
    let (raw, _) = RawHeader::ref_from_prefix(block).map_err(|_| BatchFault::Short)?;
    if raw.magic.get() != MAGIC {
        return Err(BatchFault::Magic);
    }
    let checksum = raw.checksum.get();
    if checksum != header_checksum(block) {
        return Err(BatchFault::HeaderChecksum);
    }
    if raw.version.get() != JOURNAL_VERSION {
        return Err(BatchFault::Version(raw.version.get()));
    }
    let header = Header {
        uuid: ResourceUuid(raw.uuid.get()),
        history: HistoryId(raw.history.get()),
        epoch: Epoch(raw.epoch.get()),
        prev_epoch: Epoch(raw.prev_epoch.get()),
        first: Seq(raw.first.get()),
        committed: Seq(raw.committed.get()),
        prev_blocks: raw.prev_blocks.get(),
        prev_checksum: raw.prev_checksum.get(),
        records: raw.records.get(),
        payload_blocks: raw.payload_blocks.get(),
        checksum,
    };
    let sound = raw.header_blocks.get() == 1
        && (1..=DESCRIPTORS_MAX).contains(&usize::from(header.records))
        && header.payload_blocks as usize <= PAYLOAD_BLOCKS_MAX
        && header.prev_blocks <= BATCH_BLOCKS_MAX
        && (1..=NUMBER_MAX).contains(&header.first.0)
        && (1..=NUMBER_MAX).contains(&header.epoch.0)
        && header.prev_epoch <= header.epoch
        && header.committed <= header.last();
    if !sound {
        return Err(BatchFault::Field);
    }
    let mut payload = 1;
    for record in descriptors(block, &header) {
        let record = record.ok_or(BatchFault::Field)?;
        let blocks = record.payload_blocks();
        let shape = match record.kind {
            Kind::Write => record.blocks > 0,
            Kind::Zero { .. } => record.blocks > 0 && record.blocks <= ZERO_BLOCKS_MAX,
            Kind::Epoch | Kind::Membership | Kind::Volumes => {
                record.blocks == 1 && header.records == 1
            }
            Kind::Demote => record.blocks == 0 && header.records == 1,
        };
        if !shape || record.payload != if blocks == 0 { 0 } else { payload } {
            return Err(BatchFault::Field);
        }
        payload = payload.checked_add(blocks).ok_or(BatchFault::Field)?;
    }
    if payload != 1 + header.payload_blocks {
        return Err(BatchFault::Field);
    }
    Ok(header)
}

/// The records of a header block; `None` for one that makes no sense.
pub fn descriptors<'a>(
    block: &'a [u8],
    header: &Header,
) -> impl Iterator<Item = Option<Descriptor>> + 'a {
    block[FIXED_BYTES..]
        .chunks_exact(DESCRIPTOR_BYTES)
        .take(usize::from(header.records))
        .map(|raw| {
            RawDescriptor::ref_from_bytes(raw)
                .ok()
                .and_then(Descriptor::from_raw)
        })
}

/// Checks a whole batch, header and payload.
///
/// # Errors
/// What is wrong with it.
pub fn verify(bytes: &[u8]) -> Result<Header, BatchFault> {
    let header = read_header(bytes)?;
    if bytes.len() != header.blocks() as usize * BLOCK_BYTES {
        return Err(BatchFault::Short);
    }
    let crcs_at = FIXED_BYTES + usize::from(header.records) * DESCRIPTOR_BYTES;
    let mut crcs = bytes[crcs_at..BLOCK_BYTES].chunks_exact(4);
    for record in descriptors(bytes, &header).flatten() {
        for index in 0..record.payload_blocks() {
            let at = (record.payload + index) as usize * BLOCK_BYTES;
            let crc = block_crc(
                record.volume,
                record.block + u64::from(index),
                &bytes[at..at + BLOCK_BYTES],
            );
            if crcs.next() != Some(U32::new(crc).as_bytes()) {
                return Err(BatchFault::Payload(record.payload + index));
            }
        }
    }
    Ok(header)
}

/// The CRC that a verified batch carries for its payload block `block`, counted with the header as in [`Descriptor::payload`].
///
/// # Panics
/// If there is no such block.
#[must_use]
pub fn crc_of(bytes: &[u8], block: u32) -> u32 {
    let (raw, _) = RawHeader::ref_from_prefix(bytes).expect("a batch has a header");
    assert!(block > 0 && block <= raw.payload_blocks.get());
    let crcs_at = FIXED_BYTES + usize::from(raw.records.get()) * DESCRIPTOR_BYTES;
    let at = crcs_at + (block as usize - 1) * 4;
    let crc: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(crc)
}

/// The config in a verified batch that begins an epoch or changes the membership.
#[must_use]
pub fn config_of(bytes: &[u8], header: &Header) -> Option<ClusterConfig> {
    let record = descriptors(bytes, header).next()??;
    if !matches!(record.kind, Kind::Epoch | Kind::Membership) {
        return None;
    }
    let payload = bytes.get(BLOCK_BYTES..2 * BLOCK_BYTES)?;
    let (raw, _) = RawConfig::ref_from_prefix(payload).ok()?;
    ClusterConfig::from_raw(raw)
}

/// The table in a verified batch that changes the volumes.
#[must_use]
pub fn volumes_of(bytes: &[u8], header: &Header) -> Option<Volumes> {
    let record = descriptors(bytes, header).next()??;
    if record.kind != Kind::Volumes {
        return None;
    }
    let payload = bytes.get(BLOCK_BYTES..2 * BLOCK_BYTES)?;
    let (raw, _) = RawVolumes::ref_from_prefix(payload).ok()?;
    Volumes::from_raw(raw)
}

/// Fills the payload block of a record that changes the volumes.
pub fn write_volumes(volumes: &Volumes, block: &mut [u8]) {
    block.fill(0);
    let raw = volumes.to_raw();
    block[..size_of::<RawVolumes>()].copy_from_slice(raw.as_bytes());
}

/// Fills the payload block of an epoch or membership record.
pub fn write_config(config: &ClusterConfig, block: &mut [u8]) {
    block.fill(0);
    let raw = config.to_raw();
    block[..size_of::<RawConfig>()].copy_from_slice(raw.as_bytes());
}

#[cfg(test)]
mod tests;
