//! The label: the first block of the journal, so that a journal of another node, or of another life of this one, is
//! recognised before a byte of it is believed. And the contents of a node that was just created.

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::journal::batch::JOURNAL_VERSION;
use crate::meta::config::Name;
use crate::meta::superblock::{
    AppliedFloor, COPIES, META_BYTES, Resync, Superblock, VolumeRecord, copy_offset,
};
use crate::types::*;
use crate::wire::frame::EpochHistory;

/// The smallest journal, in bytes.
pub const JOURNAL_BYTES_MIN: u64 = 16 << 20;

/// Blocks in front of the ring.
pub const LABEL_BLOCKS: u64 = 1;

const MAGIC: u64 = 0x4e52_554f_4a50_5052; // "RPPJOURN"

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawLabel {
    magic: U64,
    version: U16,
    reserved: [u8; 6],
    incarnation: U128,
    journal_bytes: U64,
    checksum: U32,
}
const _: () = assert!(size_of::<RawLabel>() == 44);
const _: () = {
    assert!(offset_of!(RawLabel, version) == 8);
    assert!(offset_of!(RawLabel, incarnation) == 16);
    assert!(offset_of!(RawLabel, journal_bytes) == 32);
    assert!(offset_of!(RawLabel, checksum) == 40);
};

/// Why the journal is not this node's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LabelError {
    /// The block is no label.
    #[error(
        "the journal does not begin with a journal's label: it is not a journal, or damaged there. Give this node its journal \
         back, or wipe it and create it anew; it catches up from its peers"
    )]
    NoLabel,
    /// Another node's, or an older life's.
    #[error(
        "the journal belongs to another node or to an earlier life of this one. Give this node its journal back, or wipe it \
         and create it anew; it catches up from its peers"
    )]
    Foreign,
    /// Of another version.
    #[error(
        "the journal is of format version {0}, this program knows {JOURNAL_VERSION}: run the version that created this node"
    )]
    Version(u16),
    /// Of another size than the metadata says.
    #[error(
        "the journal's label says another size than the metadata: wipe this node and create it anew; it catches up from its \
         peers"
    )]
    Size,
}

/// Writes the label of a journal of `journal_bytes`, label included.
pub fn encode(incarnation: Incarnation, journal_bytes: u64, block: &mut [u8]) {
    block.fill(0);
    let mut raw = RawLabel {
        magic: U64::new(MAGIC),
        version: U16::new(JOURNAL_VERSION),
        reserved: [0; 6],
        incarnation: U128::new(incarnation.0),
        journal_bytes: U64::new(journal_bytes),
        checksum: U32::new(0),
    };
    raw.checksum = U32::new(crc32fast::hash(raw.as_bytes()));
    block[..size_of::<RawLabel>()].copy_from_slice(raw.as_bytes());
}

/// Checks that a block is the label of the journal that `superblock` belongs to.
///
/// # Errors
/// Why it is not.
pub fn check(superblock: &Superblock, block: &[u8]) -> Result<(), LabelError> {
    let (raw, _) = RawLabel::ref_from_prefix(block).map_err(|_| LabelError::NoLabel)?;
    let mut zeroed = *raw;
    zeroed.checksum = U32::new(0);
    if raw.magic.get() != MAGIC || raw.checksum.get() != crc32fast::hash(zeroed.as_bytes()) {
        return Err(LabelError::NoLabel);
    }
    if raw.version.get() != JOURNAL_VERSION {
        return Err(LabelError::Version(raw.version.get()));
    }
    let labelled = match superblock.labelled {
        Incarnation(0) => superblock.incarnation,
        labelled => labelled,
    };
    if raw.incarnation.get() != labelled.0 {
        return Err(LabelError::Foreign);
    }
    if raw.journal_bytes.get() != superblock.journal_bytes {
        return Err(LabelError::Size);
    }
    Ok(())
}

/// What a node is created with.
#[derive(Clone, Debug)]
pub struct FormatParams {
    /// The resource's name.
    pub resource: Name,
    /// The node's name.
    pub node: Name,
    /// Random.
    pub incarnation: Incarnation,
    /// Bytes of the journal, label included; a multiple of 4 KiB, at least [`JOURNAL_BYTES_MIN`]. (A witness has none:
    /// [`format_witness`].)
    pub journal_bytes: u64,
    /// The volumes, in the config's order, at most 16.
    pub volumes: Vec<VolumeRecord>,
    /// The stores hold something already, which is no image of the resource: a seed for the first resync. The table of checksums
    /// says what.
    pub seed: bool,
}

/// The contents of a new node's metadata file, and of the first block of its journal (the rest of which is zeroes).
///
/// # Panics
/// If there are more than 16 volumes, or the journal's size is not allowed.
#[must_use]
pub fn format_node(params: &FormatParams) -> (Vec<u8>, Vec<u8>) {
    assert!(params.journal_bytes >= JOURNAL_BYTES_MIN);
    assert!(params.journal_bytes.is_multiple_of(BLOCK_BYTES_U64));
    let mut label = vec![0; BLOCK_BYTES];
    encode(params.incarnation, params.journal_bytes, &mut label);
    (metadata_of(params), label)
}

/// The contents of a new witness's metadata file: all that it has.
#[must_use]
pub fn format_witness(resource: Name, node: Name, incarnation: Incarnation) -> Vec<u8> {
    metadata_of(&FormatParams {
        resource,
        node,
        incarnation,
        journal_bytes: 0,
        volumes: Vec::new(),
        seed: false,
    })
}

fn metadata_of(params: &FormatParams) -> Vec<u8> {
    let superblock = Superblock {
        version: 1,
        resource: params.resource,
        node: params.node,
        incarnation: params.incarnation,
        uuid: ResourceUuid(0),
        history: HistoryId(0),
        promised: Epoch(0),
        promised_to: Name::new(),
        lease_ms: 0,
        applied: AppliedFloor::default(),
        committed: Seq(0),
        acked: RecordId::NONE,
        damaged_until: RecordId::NONE,
        config: None,
        epochs: EpochHistory::new(),
        journal_bytes: params.journal_bytes,
        volumes: params.volumes.iter().copied().collect(),
        volumes_at: Seq(0),
        fork: None,
        resync: params.seed.then_some(Resync::INCONSISTENT),
        labelled: Incarnation(0),
        sums_written: 0,
        fences: Default::default(),
    };
    let mut meta = vec![0; usize::try_from(META_BYTES).expect("256 KiB")];
    for copy in 0..COPIES {
        let at = usize::try_from(copy_offset(copy)).expect("below 256 KiB");
        superblock.encode(copy, &mut meta[at..at + BLOCK_BYTES]);
    }
    meta
}

#[cfg(test)]
mod tests;
