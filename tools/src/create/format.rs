//! What a fresh node's disks say. The bytes are the core's: this is the one place where `create` asks it for them.

use nbd_server::config::{Config, Node};
use replicator::meta::config::Name;
use replicator::meta::label::{FormatParams, format_node, format_witness};
use replicator::meta::superblock::VolumeRecord;
use replicator::types::Incarnation;

use super::CreateError;

/// What goes onto the disks of a fresh node.
pub(super) struct NodeFormat {
    /// The whole of DATA_DIR/meta.
    pub(super) meta: Vec<u8>,
    /// The first block of the journal.
    pub(super) journal_label: Vec<u8>,
}

/// The bytes for `node`, with an incarnation of its own.
pub(super) fn node_format(
    config: &Config,
    node: &Node,
    seed: bool,
) -> Result<NodeFormat, CreateError> {
    let volumes = config.volumes.iter().map(|volume| {
        Ok(VolumeRecord {
            name: name(&volume.name)?,
            bytes: volume.size_bytes,
        })
    });
    let (meta, journal_label) = format_node(&FormatParams {
        resource: name(&config.resource)?,
        node: name(&node.name)?,
        incarnation: incarnation()?,
        journal_bytes: config.journal.size_bytes,
        volumes: volumes.collect::<Result<_, CreateError>>()?,
        seed,
    });
    Ok(NodeFormat {
        meta,
        journal_label,
    })
}

/// The bytes of DATA_DIR/meta for a witness, which has nothing else.
pub(super) fn witness_format(config: &Config, node: &Node) -> Result<Vec<u8>, CreateError> {
    let incarnation = incarnation()?;
    let (resource, node) = (name(&config.resource)?, name(&node.name)?);
    Ok(format_witness(resource, node, incarnation))
}

/// A life of its own.
fn incarnation() -> Result<Incarnation, CreateError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(CreateError::Random)?;
    Ok(Incarnation(u128::from_le_bytes(bytes)))
}

/// The config allows no longer names than the core.
fn name(name: &str) -> Result<Name, CreateError> {
    Name::from(name).map_err(|_| CreateError::LongName(name.to_owned()))
}
