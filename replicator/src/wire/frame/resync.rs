//! The bodies of the frames that give a peer blocks of the stores, and what changed in them since when.

use std::mem::offset_of;

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::epochs::{self, EPOCH_BYTES};
use super::{BODY_BYTES_MAX, EPOCH_HISTORY_MAX, EpochHistory, FrameError, seq};
use crate::journal::log::TableAt;
use crate::meta::config::{ClusterConfig, ConfigAt, RawConfig};
use crate::meta::volumes::{RawVolumes, Volumes};
use crate::store::sums::BlockSum;
use crate::types::*;

/// The most blocks that are asked for at once (1 MiB).
pub const ASKED_BLOCKS_MAX: usize = 256;

/// The most groups that are asked about at once: 28 MiB of a volume.
pub const ASKED_GROUPS_MAX: usize = 448;

/// The newest contents of a range of blocks; they follow, unless all of them are zeroes, or nothing was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blocks {
    /// From the question.
    pub token: u64,
    /// The newest record that may have changed the groups in which the range lies.
    pub changed: Seq,
    /// Everything through this record is in the contents, if it is about these blocks.
    pub through: Seq,
    /// The sums of the blocks, in order; empty if the node can not give them.
    pub sums: ArrayVec<BlockSum, ASKED_BLOCKS_MAX>,
}

/// Which record changed each of some groups last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// From the question.
    pub token: u64,
    /// By group, from the one that was asked about on. Shorter than asked for at the volume's end.
    pub groups: ArrayVec<Seq, ASKED_GROUPS_MAX>,
}

/// Where the stream of records for a resync begins: after this record. What comes after it is about this log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResyncFrom {
    /// From the question.
    pub token: u64,
    /// The record.
    pub at: RecordId,
    /// Blocks of its batch.
    pub blocks: u32,
    /// The checksum of its batch.
    pub checksum: u32,
    /// What was staged after this record is not in the sender's log.
    pub common: Seq,
    /// The config at that record.
    pub config: ConfigAt,
    /// The epoch history at that record.
    pub epochs: EpochHistory,
    /// The volumes at that record.
    pub volumes: TableAt,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawBlocks {
    token: U64,
    changed: U64,
    through: U64,
    count: U16,
    reserved: [u8; 6],
}
const _: () = assert!(size_of::<RawBlocks>() == 32);
const _: () = {
    assert!(offset_of!(RawBlocks, changed) == 8);
    assert!(offset_of!(RawBlocks, through) == 16);
    assert!(offset_of!(RawBlocks, count) == 24);
};
const _: () = assert!(size_of::<RawBlocks>() + 4 * ASKED_BLOCKS_MAX <= BODY_BYTES_MAX);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawChanged {
    token: U64,
    count: U16,
    reserved: [u8; 6],
}
const _: () = assert!(size_of::<RawChanged>() == 16);
const _: () = assert!(offset_of!(RawChanged, count) == 8);
const _: () = assert!(size_of::<RawChanged>() + 8 * ASKED_GROUPS_MAX <= BODY_BYTES_MAX);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawFrom {
    token: U64,
    epoch: U64,
    seq: U64,
    common: U64,
    config_epoch: U64,
    config_seq: U64,
    blocks: U32,
    checksum: U32,
    epoch_count: U16,
    reserved: [u8; 6],
    config: RawConfig,
    volumes_at: U64,
    volumes: RawVolumes,
}
const _: () = assert!(size_of::<RawFrom>() == 1952);
const _: () = {
    assert!(offset_of!(RawFrom, epoch) == 8);
    assert!(offset_of!(RawFrom, seq) == 16);
    assert!(offset_of!(RawFrom, common) == 24);
    assert!(offset_of!(RawFrom, config_epoch) == 32);
    assert!(offset_of!(RawFrom, config_seq) == 40);
    assert!(offset_of!(RawFrom, blocks) == 48);
    assert!(offset_of!(RawFrom, checksum) == 52);
    assert!(offset_of!(RawFrom, epoch_count) == 56);
    assert!(offset_of!(RawFrom, config) == 64);
    assert!(offset_of!(RawFrom, volumes_at) == 784);
    assert!(offset_of!(RawFrom, volumes) == 792);
};
const _: () = assert!(size_of::<RawFrom>() + EPOCH_HISTORY_MAX * EPOCH_BYTES <= BODY_BYTES_MAX);

fn id(epoch: u64, seq: u64) -> Result<RecordId, FrameError> {
    RecordId::checked(epoch, seq).ok_or(FrameError::Field)
}

pub(super) fn decode_blocks(body: &[u8]) -> Result<Blocks, FrameError> {
    let (raw, rest) = RawBlocks::ref_from_prefix(body).map_err(|_| FrameError::Length)?;
    let count = usize::from(raw.count.get());
    if count > ASKED_BLOCKS_MAX || rest.len() != 4 * count {
        return Err(FrameError::Length);
    }
    let sums = <[U32]>::ref_from_bytes(rest).map_err(|_| FrameError::Length)?;
    Ok(Blocks {
        token: raw.token.get(),
        changed: seq(raw.changed.get())?,
        through: seq(raw.through.get())?,
        sums: sums.iter().map(|s| BlockSum::from_wire(s.get())).collect(),
    })
}

pub(super) fn encode_blocks(blocks: &Blocks, out: &mut [u8]) -> usize {
    let raw = RawBlocks {
        token: U64::new(blocks.token),
        changed: U64::new(blocks.changed.0),
        through: U64::new(blocks.through.0),
        count: U16::new(u16::try_from(blocks.sums.len()).expect("at most 256")),
        reserved: [0; 6],
    };
    let mut at = size_of::<RawBlocks>();
    out[..at].copy_from_slice(raw.as_bytes());
    for sum in &blocks.sums {
        out[at..at + 4].copy_from_slice(U32::new(sum.to_wire()).as_bytes());
        at += 4;
    }
    at
}

pub(super) fn decode_changed(body: &[u8]) -> Result<Changed, FrameError> {
    let (raw, rest) = RawChanged::ref_from_prefix(body).map_err(|_| FrameError::Length)?;
    let count = usize::from(raw.count.get());
    if count > ASKED_GROUPS_MAX || rest.len() != 8 * count {
        return Err(FrameError::Length);
    }
    let groups = <[U64]>::ref_from_bytes(rest).map_err(|_| FrameError::Length)?;
    Ok(Changed {
        token: raw.token.get(),
        groups: groups
            .iter()
            .map(|n| seq(n.get()))
            .collect::<Result<_, _>>()?,
    })
}

pub(super) fn encode_changed(changed: &Changed, out: &mut [u8]) -> usize {
    let raw = RawChanged {
        token: U64::new(changed.token),
        count: U16::new(u16::try_from(changed.groups.len()).expect("at most 448")),
        reserved: [0; 6],
    };
    let mut at = size_of::<RawChanged>();
    out[..at].copy_from_slice(raw.as_bytes());
    for group in &changed.groups {
        out[at..at + 8].copy_from_slice(U64::new(group.0).as_bytes());
        at += 8;
    }
    at
}

pub(super) fn decode_from(body: &[u8]) -> Result<ResyncFrom, FrameError> {
    let (raw, rest) = RawFrom::ref_from_prefix(body).map_err(|_| FrameError::Length)?;
    let at = id(raw.epoch.get(), raw.seq.get())?;
    let epochs = epochs::decode(raw.epoch_count.get(), rest)?;
    if epochs.iter().any(|e| e.seq > at.seq) {
        return Err(FrameError::Field);
    }
    let config = ConfigAt {
        at: id(raw.config_epoch.get(), raw.config_seq.get())?,
        config: ClusterConfig::from_raw(&raw.config).ok_or(FrameError::Field)?,
    };
    if config.at.seq > at.seq
        || raw.volumes_at.get() > at.seq.0
        || epochs.last().is_none_or(|last| last.epoch != at.epoch)
    {
        return Err(FrameError::Field);
    }
    Ok(ResyncFrom {
        token: raw.token.get(),
        at,
        blocks: raw.blocks.get(),
        checksum: raw.checksum.get(),
        common: seq(raw.common.get())?,
        config,
        epochs,
        volumes: TableAt {
            at: seq(raw.volumes_at.get())?,
            volumes: Volumes::from_raw(&raw.volumes).ok_or(FrameError::Field)?,
        },
    })
}

pub(super) fn encode_from(from: &ResyncFrom, out: &mut [u8]) -> usize {
    let raw = RawFrom {
        token: U64::new(from.token),
        epoch: U64::new(from.at.epoch.0),
        seq: U64::new(from.at.seq.0),
        common: U64::new(from.common.0),
        config_epoch: U64::new(from.config.at.epoch.0),
        config_seq: U64::new(from.config.at.seq.0),
        blocks: U32::new(from.blocks),
        checksum: U32::new(from.checksum),
        epoch_count: U16::new(u16::try_from(from.epochs.len()).expect("at most 64")),
        reserved: [0; 6],
        config: from.config.config.to_raw(),
        volumes_at: U64::new(from.volumes.at.0),
        volumes: from.volumes.volumes.to_raw(),
    };
    let at = size_of::<RawFrom>();
    out[..at].copy_from_slice(raw.as_bytes());
    epochs::encode(&from.epochs, out, at)
}
