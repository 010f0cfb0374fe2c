//! The superblock: what must be known before the log is read, and what must never be forgotten.
//!
//! The metadata file holds [`COPIES`] copies of it, each one block, [`COPY_STRIDE_BYTES`] apart, so that no plausible
//! single fault hits two. An update writes two copies durably, then the other two; so at every instant at least two
//! copies of the newest complete version are intact. It begins with copies that do not hold the version before, if a
//! crash or rot has left some. A reader takes the newest version of which it finds two: the
//! newest single copy may be a version that was never relied on, or one that went astray.

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::meta::config::{ClusterConfig, ConfigAt, NAME_BYTES_MAX, Name, RawConfig, Standing};
use crate::meta::fences::{RawStoredMark, StoredMark, StoredMarks};
use crate::meta::volumes::{RawVolume, RawVolumes, VOLUME_BYTES_MAX, Volumes};
use crate::types::*;
use crate::wire::frame::{EPOCH_HISTORY_MAX, EpochHistory};

/// The version of the metadata format.
pub const META_VERSION: u16 = 3;

/// How many copies there are.
pub const COPIES: usize = 4;

/// How many equal copies make a superblock.
pub const COPIES_QUORUM: usize = 2;

/// Bytes from one copy to the next.
pub const COPY_STRIDE_BYTES: u64 = 64 << 10;

/// Bytes of the metadata file.
pub const META_BYTES: u64 = COPIES as u64 * COPY_STRIDE_BYTES;

const MAGIC: u64 = 0x5245_5055_534c_5052; // "RPLSUPER"

pub use crate::meta::volumes::VolumeRecord;

/// The place in the log up to which the stores hold everything, durably: recovery begins there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AppliedFloor {
    /// The last record applied.
    pub id: RecordId,
    /// The place in the ring after its batch, in blocks, counted on and on over the laps.
    pub position: u64,
    /// Blocks of its batch; 0 if nothing was ever applied.
    pub blocks: u32,
    /// The checksum of its batch.
    pub checksum: u32,
}

/// Where the present history left another one (protocol D2): a forced promotion took this node's log as it was, and went on
/// with it alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fork {
    /// The history before.
    pub parent: HistoryId,
    /// The last record of it that this log holds. What follows is of the present history.
    pub at: RecordId,
}

/// How far a resync is (protocol C2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resync {
    /// The last record of the Primary's log that is staged, with all that the table of what is staged says.
    pub staged: RecordId,
    /// Blocks of its batch.
    pub blocks: u32,
    /// The checksum of its batch.
    pub checksum: u32,
    /// What of that is known to be committed.
    pub committed: Seq,
    /// The record after which the stream of records began that reaches to there without a gap.
    pub since: Seq,
    /// How often pages of the table of what is staged were written, all together.
    pub written: u64,
    /// What is staged is the image now, and is being laid over the stores.
    pub merging: bool,
    /// It is brought straight to the stores: they are no image until it is whole, and this node is Inconsistent (protocol C3).
    pub in_place: bool,
    /// The sizes of the volumes that it is of, in bytes.
    pub sizes: [u64; VOLUMES_MAX],
    /// A bit for each place whose store is to be made once this is the image, since the node had another volume there, or that volume
    /// elsewhere: it may not be there yet, or may be a shorter one.
    pub moved: u16,
}

impl Resync {
    /// That of a node whose stores are no image, and of which nothing has come yet.
    pub const INCONSISTENT: Self = Self {
        staged: RecordId::NONE,
        blocks: 0,
        checksum: 0,
        committed: Seq(0),
        since: Seq(0),
        written: 0,
        merging: false,
        in_place: true,
        sizes: [0; VOLUMES_MAX],
        moved: 0,
    };
}

/// What a node durably knows of itself, besides its log (protocol S1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Rises by one with every write.
    pub version: u64,
    /// The resource's name.
    pub resource: Name,
    /// This node's name.
    pub node: Name,
    /// This life of its disks.
    pub incarnation: Incarnation,
    /// The resource; 0 while fresh.
    pub uuid: ResourceUuid,
    /// The history; 0 while fresh.
    pub history: HistoryId,
    /// The highest epoch promised.
    pub promised: Epoch,
    /// To whom; empty if to nobody.
    pub promised_to: Name,
    /// The longest lease that a Primary ever told this node, in milliseconds.
    pub lease_ms: u32,
    /// Where recovery begins.
    pub applied: AppliedFloor,
    /// A committed floor; the log may know a higher one.
    pub committed: Seq,
    /// A record that this node has acknowledged; a log that recovers to less is damaged (protocol S3).
    pub acked: RecordId,
    /// If not none: this node counts for nothing until its log reaches this record.
    pub damaged_until: RecordId,
    /// The config at the applied floor; of a witness the latest that it was told.
    pub config: Option<ConfigAt>,
    /// The epoch history at the applied floor.
    pub epochs: EpochHistory,
    /// Bytes of the journal file or device in use; 0 if this is a witness, which has none.
    pub journal_bytes: u64,
    /// The volumes at the applied floor.
    pub volumes: Volumes,
    /// The record that made them so; 0 if none did.
    pub volumes_at: Seq,
    /// Where the history begins, if another one was before it.
    pub fork: Option<Fork>,
    /// A resync that has brought something.
    pub resync: Option<Resync>,
    /// The life of the disks that the journal's label names; 0 if it is the present one. They differ where a node gave its data up
    /// (`invalidate`).
    pub labelled: Incarnation,
    /// How often pages of the stores' checksums were written until the applied floor, all together. If fewer are found, the
    /// disk lost some.
    pub sums_written: u64,
    /// Who is fenced (protocol F1).
    pub fences: StoredMarks,
}

/// Why the metadata can not be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// Nothing there looks like a superblock.
    #[error("this node is not created: run `replctl create`")]
    Blank,
    /// Superblocks, but no two intact copies of one version.
    #[error(
        "the metadata is damaged: {intact} of {COPIES} copies are intact and no two agree. \
         Wipe this node and create it anew; it catches up from its peers"
    )]
    Damaged {
        /// How many copies verify.
        intact: usize,
    },
    /// Of another version of this program.
    #[error(
        "the metadata is of format version {found}, this program knows {META_VERSION}: {advice}",
        found = .0,
        advice = advice(*.0)
    )]
    Version(u16),
    /// The disk failed.
    #[error("the metadata can not be read: {0}")]
    Read(crate::io::DiskError),
}

fn advice(found: u16) -> &'static str {
    if found > META_VERSION {
        "a newer program created this node, run that one"
    } else {
        "a node of before keeps its checksums elsewhere, or has none; create it anew with `replctl create --wipe`, and it gets its \
         data from its peers (if they have it: else copy the volumes first, with the program that this node was created with)"
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawName {
    length: u8,
    bytes: [u8; NAME_BYTES_MAX],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawId {
    epoch: U64,
    seq: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSuperblock {
    magic: U64,
    format: U16,
    copy: u8,
    flags: u8,
    checksum: U32,
    version: U64,
    resource: RawName,
    node: RawName,
    promised_to: RawName,
    incarnation: U128,
    uuid: U128,
    history: U128,
    promised: U64,
    applied: RawId,
    applied_position: U64,
    applied_blocks: U32,
    applied_checksum: U32,
    committed: U64,
    acked: RawId,
    damaged_until: RawId,
    config_at: RawId,
    journal_bytes: U64,
    lease_ms: U32,
    epoch_count: U16,
    volume_count: U16,
    config: RawConfig,
    volumes: [RawVolume; VOLUMES_MAX],
    epochs: [RawId; EPOCH_HISTORY_MAX],
    parent: U128,
    forked_at: RawId,
    staged: RawId,
    staged_blocks: U32,
    staged_checksum: U32,
    staged_committed: U64,
    staged_since: U64,
    sums_written: U64,
    staged_written: U64,
    resync: u8,
    reserved0: u8,
    staged_moved: U16,
    reserved1: [u8; 4],
    labelled: U128,
    reserved: [u8; 480],
    fences: [RawStoredMark; NODES_MAX],
    volumes_at: U64,
    staged_bytes: [U64; VOLUMES_MAX],
}
const _: () = assert!(size_of::<RawSuperblock>() == BLOCK_BYTES);
const _: () = {
    assert!(offset_of!(RawSuperblock, format) == 8);
    assert!(offset_of!(RawSuperblock, copy) == 10);
    assert!(offset_of!(RawSuperblock, flags) == 11);
    assert!(offset_of!(RawSuperblock, checksum) == CHECKSUM_AT);
    assert!(offset_of!(RawSuperblock, version) == 16);
    assert!(offset_of!(RawSuperblock, resource) == 24);
    assert!(offset_of!(RawSuperblock, node) == 88);
    assert!(offset_of!(RawSuperblock, promised_to) == 152);
    assert!(offset_of!(RawSuperblock, incarnation) == 216);
    assert!(offset_of!(RawSuperblock, uuid) == 232);
    assert!(offset_of!(RawSuperblock, history) == 248);
    assert!(offset_of!(RawSuperblock, promised) == 264);
    assert!(offset_of!(RawSuperblock, applied) == 272);
    assert!(offset_of!(RawSuperblock, applied_position) == 288);
    assert!(offset_of!(RawSuperblock, applied_blocks) == 296);
    assert!(offset_of!(RawSuperblock, applied_checksum) == 300);
    assert!(offset_of!(RawSuperblock, committed) == 304);
    assert!(offset_of!(RawSuperblock, acked) == 312);
    assert!(offset_of!(RawSuperblock, damaged_until) == 328);
    assert!(offset_of!(RawSuperblock, config_at) == 344);
    assert!(offset_of!(RawSuperblock, journal_bytes) == 360);
    assert!(offset_of!(RawSuperblock, lease_ms) == 368);
    assert!(offset_of!(RawSuperblock, epoch_count) == 372);
    assert!(offset_of!(RawSuperblock, volume_count) == 374);
    assert!(offset_of!(RawSuperblock, config) == 376);
    assert!(offset_of!(RawSuperblock, volumes) == 1096);
    assert!(offset_of!(RawSuperblock, epochs) == 2248);
    assert!(offset_of!(RawSuperblock, parent) == 3272);
    assert!(offset_of!(RawSuperblock, forked_at) == 3288);
    assert!(offset_of!(RawSuperblock, staged) == 3304);
    assert!(offset_of!(RawSuperblock, staged_blocks) == 3320);
    assert!(offset_of!(RawSuperblock, staged_checksum) == 3324);
    assert!(offset_of!(RawSuperblock, staged_committed) == 3328);
    assert!(offset_of!(RawSuperblock, staged_since) == 3336);
    assert!(offset_of!(RawSuperblock, sums_written) == 3344);
    assert!(offset_of!(RawSuperblock, staged_written) == 3352);
    assert!(offset_of!(RawSuperblock, resync) == 3360);
    assert!(offset_of!(RawSuperblock, staged_moved) == 3362);
    assert!(offset_of!(RawSuperblock, labelled) == 3368);
    assert!(offset_of!(RawSuperblock, reserved) == 3384);
    assert!(offset_of!(RawSuperblock, fences) == 3864);
    assert!(offset_of!(RawSuperblock, volumes_at) == 3960);
    assert!(offset_of!(RawSuperblock, staged_bytes) == 3968);
};
const CHECKSUM_AT: usize = 12;
const HAS_CONFIG: u8 = 1;
const SHRUNK: u8 = 2;
const STAGING: u8 = 1;
const MERGING: u8 = 2;
const IN_PLACE: u8 = 3;
const WHOLE_IN_PLACE: u8 = 4;

fn raw_name(name: &Name) -> RawName {
    let mut raw = RawName {
        length: 0,
        bytes: [0; NAME_BYTES_MAX],
    };
    raw.length = u8::try_from(name.len()).expect("a name has at most 63 bytes");
    raw.bytes[..name.len()].copy_from_slice(name.as_bytes());
    raw
}

fn name(raw: &RawName) -> Option<Name> {
    Name::from(std::str::from_utf8(raw.bytes.get(..usize::from(raw.length))?).ok()?).ok()
}

fn raw_id(id: RecordId) -> RawId {
    RawId {
        epoch: U64::new(id.epoch.0),
        seq: U64::new(id.seq.0),
    }
}

fn id(raw: &RawId) -> Option<RecordId> {
    RecordId::checked(raw.epoch.get(), raw.seq.get())
}

fn checksum(block: &[u8]) -> u32 {
    crate::checksum::with_field_at(block, CHECKSUM_AT)
}

impl Superblock {
    /// Whether this node holds no config and no record (protocol D3).
    #[must_use]
    pub fn fresh(&self) -> bool {
        self.config.is_none() && self.applied.id == RecordId::NONE
    }

    /// The history that a batch with this last record is of, if it is in this node's log.
    #[must_use]
    pub fn history_of(&self, last: Seq) -> HistoryId {
        match self.fork {
            Some(fork) if last <= fork.at.seq => fork.parent,
            _ => self.history,
        }
    }

    /// The config that a forced promotion goes on with, after `before`: this node alone (protocol D2).
    #[must_use]
    pub fn alone_after(&self, before: Option<&ConfigAt>) -> ClusterConfig {
        let mut nodes = arrayvec::ArrayVec::new();
        nodes.push(Standing::full(self.node, self.incarnation, true));
        ClusterConfig {
            version: before.map_or(0, |c| c.config.version) + 1,
            nodes,
        }
    }

    /// Writes copy `copy` of it to a block.
    ///
    /// # Panics
    /// If `block` is no block, or there is no such copy.
    pub fn encode(&self, copy: usize, block: &mut [u8]) {
        assert!(copy < COPIES && block.len() == BLOCK_BYTES);
        let mut raw = RawSuperblock::read_from_bytes(&[0; BLOCK_BYTES])
            .expect("the length is the type's own");
        raw.magic = U64::new(MAGIC);
        raw.format = U16::new(META_VERSION);
        raw.copy = u8::try_from(copy).expect("there are four copies");
        raw.version = U64::new(self.version);
        raw.resource = raw_name(&self.resource);
        raw.node = raw_name(&self.node);
        raw.promised_to = raw_name(&self.promised_to);
        raw.incarnation = U128::new(self.incarnation.0);
        raw.uuid = U128::new(self.uuid.0);
        raw.history = U128::new(self.history.0);
        raw.promised = U64::new(self.promised.0);
        raw.applied = raw_id(self.applied.id);
        raw.applied_position = U64::new(self.applied.position);
        raw.applied_blocks = U32::new(self.applied.blocks);
        raw.applied_checksum = U32::new(self.applied.checksum);
        raw.committed = U64::new(self.committed.0);
        raw.acked = raw_id(self.acked);
        raw.damaged_until = raw_id(self.damaged_until);
        raw.journal_bytes = U64::new(self.journal_bytes);
        raw.lease_ms = U32::new(self.lease_ms);
        if self.volumes.shrunk {
            raw.flags |= SHRUNK;
        }
        if let Some(config) = &self.config {
            raw.flags |= HAS_CONFIG;
            raw.config_at = raw_id(config.at);
            raw.config = config.config.to_raw();
        }
        raw.epoch_count = U16::new(u16::try_from(self.epochs.len()).expect("at most 64"));
        for (out, epoch) in raw.epochs.iter_mut().zip(&self.epochs) {
            *out = raw_id(*epoch);
        }
        raw.volume_count = U16::new(self.volumes.places());
        raw.volumes = self.volumes.to_raw().volumes;
        raw.volumes_at = U64::new(self.volumes_at.0);
        if let Some(fork) = self.fork {
            raw.parent = U128::new(fork.parent.0);
            raw.forked_at = raw_id(fork.at);
        }
        raw.sums_written = U64::new(self.sums_written);
        raw.labelled = U128::new(self.labelled.0);
        if let Some(resync) = self.resync {
            raw.staged = raw_id(resync.staged);
            raw.staged_blocks = U32::new(resync.blocks);
            raw.staged_checksum = U32::new(resync.checksum);
            raw.staged_committed = U64::new(resync.committed.0);
            raw.staged_since = U64::new(resync.since.0);
            raw.staged_written = U64::new(resync.written);
            raw.resync = match (resync.in_place, resync.merging) {
                (false, false) => STAGING,
                (false, true) => MERGING,
                (true, false) => IN_PLACE,
                (true, true) => WHOLE_IN_PLACE,
            };
            raw.staged_bytes = resync.sizes.map(U64::new);
            raw.staged_moved = U16::new(resync.moved);
        }
        raw.fences = self.fences.map(StoredMark::to_raw);
        raw.checksum = U32::new(checksum(raw.as_bytes()));
        block.copy_from_slice(raw.as_bytes());
    }

    /// Reads copy `copy` from a block; `None` if it does not verify as just that copy.
    ///
    /// # Errors
    /// [`MetaError::Version`] if it verifies and is of another version.
    pub fn decode(copy: usize, block: &[u8]) -> Result<Option<Self>, MetaError> {
        let Ok(raw) = RawSuperblock::ref_from_bytes(block) else {
            return Ok(None);
        };
        if raw.magic.get() != MAGIC
            || (raw.checksum.get() != checksum(block) && !planted!(LoneSuperblock))
            || usize::from(raw.copy) != copy
        {
            return Ok(None);
        }
        if raw.format.get() != META_VERSION {
            return Err(MetaError::Version(raw.format.get()));
        }
        Ok(Self::from_raw(raw))
    }

    fn from_raw(raw: &RawSuperblock) -> Option<Self> {
        let config = if raw.flags & HAS_CONFIG == 0 {
            None
        } else {
            Some(ConfigAt {
                at: id(&raw.config_at)?,
                config: ClusterConfig::from_raw(&raw.config)?,
            })
        };
        let epochs = raw.epochs.get(..usize::from(raw.epoch_count.get()))?;
        let mut fences = StoredMarks::default();
        for (mark, raw) in fences.iter_mut().zip(&raw.fences) {
            *mark = StoredMark::from_raw(raw)?;
        }
        Some(Self {
            version: raw.version.get(),
            resource: name(&raw.resource)?,
            node: name(&raw.node)?,
            incarnation: Incarnation(raw.incarnation.get()),
            uuid: ResourceUuid(raw.uuid.get()),
            history: HistoryId(raw.history.get()),
            promised: Epoch::checked(raw.promised.get())?,
            promised_to: name(&raw.promised_to)?,
            lease_ms: raw.lease_ms.get(),
            applied: AppliedFloor {
                id: id(&raw.applied)?,
                position: raw.applied_position.get(),
                blocks: raw.applied_blocks.get(),
                checksum: raw.applied_checksum.get(),
            },
            committed: Seq::checked(raw.committed.get())?,
            acked: id(&raw.acked)?,
            damaged_until: id(&raw.damaged_until)?,
            config,
            epochs: epochs.iter().map(id).collect::<Option<_>>()?,
            journal_bytes: raw.journal_bytes.get(),
            volumes: Volumes::from_raw(&RawVolumes::of(
                raw.volume_count.get(),
                raw.flags & SHRUNK != 0,
                raw.volumes,
            ))?,
            volumes_at: Seq::checked(raw.volumes_at.get())?,
            fork: match raw.parent.get() {
                0 => None,
                parent => Some(Fork {
                    parent: HistoryId(parent),
                    at: id(&raw.forked_at)?,
                }),
            },
            sums_written: raw.sums_written.get(),
            labelled: Incarnation(raw.labelled.get()),
            fences,
            resync: match raw.resync {
                0 => None,
                state @ (STAGING | MERGING | IN_PLACE | WHOLE_IN_PLACE) => Some(Resync {
                    staged: id(&raw.staged)?,
                    blocks: raw.staged_blocks.get(),
                    checksum: raw.staged_checksum.get(),
                    committed: Seq::checked(raw.staged_committed.get())?,
                    since: Seq::checked(raw.staged_since.get())?,
                    written: raw.staged_written.get(),
                    merging: matches!(state, MERGING | WHOLE_IN_PLACE),
                    in_place: matches!(state, IN_PLACE | WHOLE_IN_PLACE),
                    sizes: staged_sizes(&raw.staged_bytes)?,
                    moved: raw.staged_moved.get(),
                }),
                _ => return None,
            },
        })
    }
}

/// The sizes of what is staged; `None` if no volumes have them.
fn staged_sizes(raw: &[U64; VOLUMES_MAX]) -> Option<[u64; VOLUMES_MAX]> {
    let sizes = raw.map(U64::get);
    let sound = |b: &u64| b.is_multiple_of(BLOCK_BYTES_U64) && *b <= VOLUME_BYTES_MAX;
    sizes.iter().all(sound).then_some(sizes)
}

/// Where copy `copy` is in the metadata file, in bytes.
#[must_use]
pub fn copy_offset(copy: usize) -> u64 {
    copy as u64 * COPY_STRIDE_BYTES
}

/// The superblock that the copies agree on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// It.
    pub superblock: Superblock,
    /// In which order updates write the copies, two and then two: those that do not hold it first. A crash may have
    /// left it in two copies only, and they must not be the two that the next update begins with.
    pub order: [usize; COPIES],
    /// Whether all copies hold it.
    pub whole: bool,
}

/// Chooses the superblock among the copies that were read: the newest version of which two are intact.
///
/// # Errors
/// If there is none.
pub fn choose(copies: &[[u8; BLOCK_BYTES]; COPIES]) -> Result<Chosen, MetaError> {
    let mut read = arrayvec::ArrayVec::<Option<Superblock>, COPIES>::new();
    for (index, block) in copies.iter().enumerate() {
        read.push(Superblock::decode(index, block)?);
    }
    let intact = || read.iter().flatten();
    let agreed = intact()
        .filter(|&a| {
            planted!(LoneSuperblock) || intact().filter(|&b| b == a).count() >= COPIES_QUORUM
        })
        .max_by_key(|a| a.version);
    match agreed {
        Some(superblock) => {
            let mut order = std::array::from_fn(|copy| copy);
            order.sort_by_key(|&copy| read[copy].as_ref() == Some(superblock));
            Ok(Chosen {
                superblock: superblock.clone(),
                order,
                whole: read.iter().all(|r| r.as_ref() == Some(superblock)),
            })
        }
        None if copies.iter().all(|c| c.iter().all(|&b| b == 0)) => Err(MetaError::Blank),
        None => Err(MetaError::Damaged {
            intact: intact().count(),
        }),
    }
}

#[cfg(test)]
mod tests;
