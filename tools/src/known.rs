//! Which volumes a node has: those that its superblock tells of, or those of the config file while there is none.

use std::os::unix::fs::FileExt;

use nbd_server::config::{Config, Node};
use replicator::io::DiskError;
use replicator::meta::config::Name;
use replicator::meta::volumes::{VolumeRecord, Volumes};
use replicator::recover::{BlockRead, read_superblock};

struct Meta(std::fs::File);

impl BlockRead for Meta {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let read = self.0.read_exact_at(buffer, offset);
        read.map_err(|error| error.raw_os_error().map_or(DiskError::Short, DiskError::Os))
    }
}

/// The volumes as the node knows them; `None` if it is not created, or can not be read.
pub(crate) fn by_node(node: &Node) -> Option<Volumes> {
    let meta = std::fs::File::open(node.meta_path()).ok()?;
    let chosen = read_superblock(&mut Meta(meta)).ok()?;
    Some(chosen.superblock.volumes)
}

/// The volumes of a node.
pub(crate) fn volumes(config: &Config, node: &Node) -> Volumes {
    let in_file = || {
        let volume = |v: &nbd_server::config::Volume| VolumeRecord {
            name: Name::from(&v.name).unwrap_or_default(),
            bytes: v.size_bytes,
        };
        config.volumes.iter().map(volume).collect()
    };
    by_node(node).unwrap_or_else(in_file)
}
