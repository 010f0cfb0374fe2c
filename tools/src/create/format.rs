//! What a fresh node's disks say. The bytes are the core's: this is the one place where `create` asks it for them.

use nbd_server::config::{Config, Node};

use super::CreateError;

/// What goes onto the disks of a fresh node.
pub(super) struct NodeFormat {
    /// The whole of DATA_DIR/meta.
    pub(super) meta: Vec<u8>,
    /// The first block of the journal.
    pub(super) journal_label: [u8; 4096],
}

/// The bytes for `node`, with an incarnation of its own.
pub(super) fn node_format(_config: &Config, node: &Node) -> Result<NodeFormat, CreateError> {
    let mut incarnation = [0; 16];
    getrandom::fill(&mut incarnation).map_err(CreateError::Random)?;
    let mut meta = vec![0; 4096];
    meta[..16].copy_from_slice(&incarnation);
    meta[16..16 + node.name.len()].copy_from_slice(node.name.as_bytes());
    Ok(NodeFormat {
        meta,
        journal_label: [0; 4096],
    })
}
