//! What a node's disks say when it starts, put together: the superblock by quorum, the journal by its label and chain.

use crate::io::DiskError;
use crate::journal::scan::{Scanned, scan};
use crate::meta::label::{self, LabelError};
use crate::meta::superblock::{COPIES, Chosen, MetaError, Superblock, choose, copy_offset};
use crate::replica::ReplicaConfig;
use crate::store::sums::{Found, SumTable, Table};
use crate::types::*;

/// Reads the disks of a node that is not running yet. Blocking.
pub trait BlockRead {
    /// Fills `buffer` (a multiple of 4 KiB, any alignment in memory) from byte `offset` (a multiple of 4 KiB) on.
    ///
    /// # Errors
    /// The operating system's error number, or [`DiskError::Short`] past the end.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError>;
}

/// What was found on this node's disks.
#[derive(Debug)]
pub struct Recovered {
    /// The metadata.
    pub superblock: Superblock,
    /// In which order its copies are to be written.
    pub copies: [usize; COPIES],
    /// Whether all copies of the superblock are there; if not, they are written anew at once.
    pub copies_whole: bool,
    /// The log.
    pub scanned: Scanned,
    /// What is known of the blocks of the stores.
    pub sums: SumTable,
    /// In what state that was found.
    pub sums_found: Found,
    /// Pages of it are older than they should be: the disk lost writes, or something was put back.
    pub sums_forgotten: bool,
    /// What a resync has staged, if one is under way.
    pub staged: Option<SumTable>,
}

/// Why a node can not start from its disks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoverError {
    /// The metadata can not be used.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The journal is not this node's.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The journal's label can not be read.
    #[error("the journal can not be read: {0}")]
    Journal(DiskError),
    /// The metadata is another resource's.
    #[error("the metadata belongs to resource `{found}`, the config is for `{expected}`")]
    Resource {
        /// In the metadata.
        found: String,
        /// In the config.
        expected: String,
    },
    /// The metadata is another node's.
    #[error("the metadata belongs to node `{found}`, this is `{expected}`: was the disk moved?")]
    Node {
        /// In the metadata.
        found: String,
        /// In the config.
        expected: String,
    },
    /// Data node or witness: the config says the other.
    #[error(
        "this node was created as a {found}, the config makes it a {expected}: restore the config, or wipe and create \
         the node"
    )]
    Kind {
        /// As it was created.
        found: &'static str,
        /// In the config.
        expected: &'static str,
    },
    /// What a resync brought is damaged, and it is the image already.
    #[error(
        "what a resync has brought is damaged, and had not all reached the stores: wipe and create the node, it catches up from \
         its peers"
    )]
    Staged,
}

/// Reads the superblock alone.
///
/// # Errors
/// If it can not be used.
pub fn read_superblock(meta: &mut impl BlockRead) -> Result<Chosen, MetaError> {
    let mut copies = [[0; BLOCK_BYTES]; COPIES];
    let mut last = None;
    for (index, copy) in copies.iter_mut().enumerate() {
        if let Err(error) = meta.read(copy_offset(index), copy) {
            copy.fill(0xff);
            last = Some(error);
        }
    }
    choose(&copies).map_err(|error| match (error, last) {
        (MetaError::Damaged { intact: 0 }, Some(disk)) => MetaError::Read(disk),
        (other, _) => other,
    })
}

/// Reads the superblock and checks that it is this node's.
fn identified(meta: &mut impl BlockRead, config: &ReplicaConfig) -> Result<Chosen, RecoverError> {
    let chosen = read_superblock(meta)?;
    let superblock = &chosen.superblock;
    let me = config.nodes[usize::from(config.me.0)];
    if superblock.resource != config.resource {
        return Err(RecoverError::Resource {
            found: superblock.resource.to_string(),
            expected: config.resource.to_string(),
        });
    }
    if superblock.node != me {
        return Err(RecoverError::Node {
            found: superblock.node.to_string(),
            expected: me.to_string(),
        });
    }
    let kind = |witness| if witness { "witness" } else { "data node" };
    let (found, expected) = (superblock.journal_bytes == 0, config.is_witness(config.me));
    if found != expected {
        return Err(RecoverError::Kind {
            found: kind(found),
            expected: kind(expected),
        });
    }
    Ok(chosen)
}

/// Reads the disks of a data node. What is read is taken for durable, so the driver has to flush each file before: what a process
/// wrote that was killed may be in a device's cache only.
///
/// # Errors
/// If they can not be this node's, or can not be read at all. Damage that a peer can mend is no error: the node starts,
/// and counts for nothing until it is mended.
pub fn recover(
    meta: &mut impl BlockRead,
    journal: &mut impl BlockRead,
    sums: &mut impl BlockRead,
    config: &ReplicaConfig,
) -> Result<Recovered, RecoverError> {
    let Chosen {
        superblock,
        order,
        whole,
    } = identified(meta, config)?;
    let mut block = [0; BLOCK_BYTES];
    journal.read(0, &mut block).map_err(RecoverError::Journal)?;
    label::check(&superblock, &block)?;
    let scanned = scan(&superblock, journal);
    let volumes = || superblock.volumes.sizes();
    let applied = superblock.applied.id.seq;
    let (mut table, sums_found) = SumTable::load(Table::Stores, volumes(), sums, applied);
    let sums_forgotten = table.written() < superblock.sums_written;
    if sums_forgotten {
        table.doubt(applied);
    }
    table.outnumber(superblock.sums_written);
    let staged = match superblock.resync {
        None => None,
        // Nothing has come yet, whatever an earlier one left.
        Some(resync) if resync.in_place && resync.staged == RecordId::NONE => {
            Some(SumTable::new(Table::Staged, volumes()))
        }
        Some(resync) => {
            // What is lost of this one has to come again; once it is the image it can not.
            let sizes = || resync.sizes.into_iter();
            let (mut staged, found) = SumTable::load(Table::Staged, sizes(), sums, Seq(0));
            let forgotten = staged.written() < resync.written;
            staged.outnumber(resync.written);
            if resync.merging && (found.lost > 0 || forgotten) {
                return Err(RecoverError::Staged);
            }
            if forgotten {
                Some(SumTable::new(Table::Staged, sizes()))
            } else {
                Some(staged)
            }
        }
    };
    Ok(Recovered {
        sums: table,
        sums_found,
        sums_forgotten,
        staged,
        superblock,
        copies: order,
        copies_whole: whole,
        scanned,
    })
}

/// Reads the disk of a witness: its metadata is all that it has.
///
/// # Errors
/// If it can not be this node's, or can not be read.
pub fn recover_witness(
    meta: &mut impl BlockRead,
    config: &ReplicaConfig,
) -> Result<Recovered, RecoverError> {
    let Chosen {
        superblock,
        order,
        whole,
    } = identified(meta, config)?;
    Ok(Recovered {
        scanned: Scanned::no_log(&superblock),
        sums: SumTable::new(Table::Stores, std::iter::empty()),
        sums_found: Found::default(),
        sums_forgotten: false,
        staged: None,
        superblock,
        copies: order,
        copies_whole: whole,
    })
}

#[cfg(test)]
mod tests;
