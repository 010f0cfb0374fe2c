//! Which volumes this node has, and where their stores are. What the node knows of them counts, and not the config file, which says
//! where they are, and what they were when the node was created: it may be older, or newer.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbd_server::config::{Config, Node, NodeRole, Volume};
use nbd_server::reactor::places::{Finder, Places, Store};
use replicator::io::DiskError;
use replicator::meta::config::Name;
use replicator::meta::volumes::{VolumeRecord, Volumes};
use replicator::recover::{BlockRead, read_superblock};

use super::Failure;

/// The metadata, read by the ordinary way.
struct Meta(std::fs::File);

impl BlockRead for Meta {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0
            .read_exact_at(buffer, offset)
            .map_err(|error| error.raw_os_error().map_or(DiskError::Short, DiskError::Os))
    }
}

/// The volumes of the config file, as a node is created with them.
fn of_file(config: &Config) -> Result<Volumes, Failure> {
    let volume = |v: &Volume| {
        let name = Name::from(&v.name).map_err(Failure::usage)?;
        let bytes = v.size_bytes;
        Ok(VolumeRecord { name, bytes })
    };
    config.volumes.iter().map(volume).collect()
}

/// Where everything of a node is.
pub(crate) fn of(config: &Config, node: &Node) -> Result<Places, Failure> {
    let file = config.file.clone();
    let name = node.name.clone();
    let finder: Finder = Arc::new(move |volume| {
        let config = Config::load(&file)
            .inspect_err(|error| tracing::error!("{error}"))
            .ok()?;
        let (_, node) = config.node(&name).ok()?;
        let found = config.volumes.iter().find(|v| v.name == volume)?;
        Some((node.store_path(found), found.size_bytes))
    });
    if node.role == NodeRole::Witness {
        return Ok(Places {
            stores: Vec::new(),
            sums: None,
            stage: None,
            finder,
        });
    }
    let in_file = of_file(config)?;
    let meta = std::fs::File::open(node.meta_path()).map_err(Failure::failed)?;
    // What can not be used is told with the rest of what the disks say.
    let found = read_superblock(&mut Meta(meta)).ok().map(|c| c.superblock);
    let volumes = match &found {
        None => in_file,
        Some(superblock) if superblock.fresh() && superblock.volumes != in_file => {
            return Err(Failure::usage(format!(
                "the volumes of {} are not those that this node was created with ({}), and it holds nothing yet: create it anew with \
                 replctl create --wipe",
                config.file.display(),
                list(&superblock.volumes),
            )));
        }
        Some(superblock) => {
            compare(config, &superblock.volumes, &in_file);
            superblock.volumes.clone()
        }
    };
    let store = |v: &VolumeRecord| -> Result<Option<Store>, Failure> {
        if v.bytes == 0 {
            return Ok(None);
        }
        let volume = Volume::named(&v.name, v.bytes);
        let path = node.store_path(&volume);
        let listed = config.volumes.iter().any(|other| other.name == volume.name);
        if !listed && !path.exists() {
            return Err(Failure::usage(format!(
                "volume `{}` is part of the resource and not in {}, and {} is not there: put the volume back into the file",
                v.name,
                config.file.display(),
                path.display()
            )));
        }
        let (name, bytes) = (v.name, v.bytes);
        Ok(Some(Store { name, bytes, path }))
    };
    let places = Places {
        stores: volumes.slots().map(store).collect::<Result<_, _>>()?,
        sums: Some(node.sums_path()),
        stage: Some(node.stage_path()),
        finder,
    };
    if let Some(resync) = found.and_then(|s| s.resync).filter(|r| r.merging) {
        places.complete(resync.moved).map_err(Failure::failed)?;
    }
    Ok(places)
}

fn list(volumes: &Volumes) -> String {
    let text = volumes
        .iter()
        .map(|(_, v)| format!("{} {}", v.name, v.bytes));
    text.collect::<Vec<_>>().join(", ")
}

/// Says what is to be changed in the config file.
fn compare(config: &Config, volumes: &Volumes, in_file: &Volumes) {
    let file = config.file.display();
    for (_, volume) in volumes.iter() {
        let (name, bytes) = (volume.name, volume.bytes);
        match in_file.find(&name) {
            Some((_, listed)) if listed.bytes != bytes => tracing::warn!(
                "volume {name} has {bytes} bytes, and {} in {file}: write {bytes} there on every node",
                listed.bytes
            ),
            Some(_) => {}
            None => tracing::warn!(
                "volume {name} with {bytes} bytes is part of the resource and not in {file}: write it there on every node"
            ),
        }
    }
    for (_, listed) in in_file
        .iter()
        .filter(|(_, v)| volumes.find(&v.name).is_none())
    {
        tracing::warn!(
            "volume {} of {file} is not part of the resource: replctl add-volume {} adds it",
            listed.name,
            listed.name
        );
    }
}
