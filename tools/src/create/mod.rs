//! `replctl create`: formats a node's journal, metadata and stores, and makes the files beside the stores.
//!
//! Everything is looked at before anything is written. The metadata is written last and removed first, so a node is
//! either created in full or not created: `repld` starts only where there is metadata.

mod format;
mod place;
mod seed;
#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nbd_server::config::{Config, ConfigError, Node, NodeRole, size};
use nbd_server::lock::{DataDirLock, LockError};
use replicator::store::sums;

use place::Place;

/// Why a node was not created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// A volume or the journal does not fit its device.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Somebody uses the directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is a node, or what is left of one.
    #[error(
        "{} exists: this node was created before, or a create was interrupted; replctl create --wipe \
         replaces it and destroys this node's data", .0.display()
    )]
    Exists(PathBuf),
    /// A device with something on it.
    #[error(
        "{} is not blank, there is something in its first or last MiB; name another device, or let \
         replctl create --wipe destroy it", .0.display()
    )]
    NotBlank(PathBuf),
    /// A device that somebody uses.
    #[error("{} is in use, mounted or part of another device; release it or name another", .0.display())]
    DeviceBusy(PathBuf),
    /// A device that is not there.
    #[error("there is no device {}; make it, or correct the config", .0.display())]
    NoDevice(PathBuf),
    /// Neither file nor block device.
    #[error("{} is neither a regular file nor a block device; name another path", .0.display())]
    WrongType(PathBuf),
    /// A device where a file belongs.
    #[error("{} is a device, and has to be a regular file; remove it", .0.display())]
    NoFile(PathBuf),
    /// A seed that is larger than its volume.
    #[error(
        "{} has {} and its volume only {}: a seed that is larger than the volume is another image; correct the config, or take \
         the right file", path.display(), size::format(*bytes), size::format(*volume)
    )]
    SeedTooLarge {
        /// The seed.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The volume's.
        volume: u64,
    },
    /// A witness has no stores.
    #[error("a witness has no data: create it without --seed")]
    SeedOfWitness,
    /// Two paths that lead to one thing.
    #[error("{} and {} are the same file or device; give each its own", .0.display(), .1.display())]
    SamePlace(PathBuf, PathBuf),
    /// No room.
    #[error("no room for {} of {}: {source}; free some space or make it smaller", path.display(), size::format(*bytes))]
    NoSpace {
        /// What there is no room for.
        path: PathBuf,
        /// How large it is.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something.
    #[error("can not {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No randomness.
    #[error("the system has no random numbers: {0}")]
    Random(getrandom::Error),
    /// A name that does not fit the metadata.
    #[error("{0:?} is too long; names have at most 63 bytes")]
    LongName(String),
}

/// Adds to a system error what was tried and on what.
fn failed<'p>(what: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> CreateError + 'p {
    move |source| CreateError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Formats `node`. With `wipe` also what exists is replaced, with `seed` what the stores hold is kept.
///
/// # Errors
/// Nothing was changed if it is about something that exists, is in use or does not fit.
pub fn create(config: &Config, node: &Node, wipe: bool, seed: bool) -> Result<(), CreateError> {
    make_dir(&node.data_dir)?;
    make_dir(&node.run_dir)?;
    let _lock = DataDirLock::take(&node.data_dir)?;

    let meta = node.meta_path();
    if !wipe && std::fs::symlink_metadata(&meta).is_ok() {
        return Err(CreateError::Exists(meta));
    }
    if seed && node.role == NodeRole::Witness {
        return Err(CreateError::SeedOfWitness);
    }
    if node.role == NodeRole::Witness {
        let bytes = format::witness_format(config, node)?;
        remove_meta(&meta, node)?;
        let mut made = Made::default();
        write_meta(&meta, &bytes, &mut made)?;
        made.keep();
        return Ok(());
    }
    let journal = Place::inspect(&node.journal_path(), wipe)?;
    if let Some(bytes) = journal.device_bytes() {
        config.check_journal(journal.path(), bytes)?;
    }
    let mut stores: Vec<(Place, u64)> = Vec::new();
    for volume in &config.volumes {
        let store = Place::inspect(&node.store_path(volume), wipe || seed)?;
        if seed {
            store.check_seed(volume.size_bytes)?;
        }
        if let Some(bytes) = store.device_bytes() {
            config.check_store(volume, store.path(), bytes)?;
        }
        stores.push((store, volume.size_bytes));
    }
    let sums = Place::inspect_file(&node.sums_path(), wipe)?;
    let stage = Place::inspect_file(&node.stage_path(), wipe)?;
    let places: Vec<&Place> = [&journal, &sums, &stage]
        .into_iter()
        .chain(stores.iter().map(|(store, _)| store))
        .collect();
    for (index, place) in places.iter().enumerate() {
        if let Some(other) = places[..index].iter().find(|other| other.is_same(place)) {
            return Err(CreateError::SamePlace(
                other.path().to_owned(),
                place.path().to_owned(),
            ));
        }
    }
    let volumes = || config.volumes.iter().map(|volume| volume.size_bytes);
    let format = format::node_format(config, node, seed)?;

    // From here on there is no node until the metadata is back.
    remove_meta(&meta, node)?;
    let mut made = Made::default();
    for (store, bytes) in &stores {
        if seed && store.is_there() {
            store.keep_store(*bytes)?;
        } else {
            store.make_store(*bytes, &mut made)?;
        }
    }
    let (bytes, used) = (sums::file_bytes(volumes()), sums::used(volumes()));
    sums.make_reserved(bytes, used, &mut made)?;
    if seed {
        let stores: Vec<_> = stores.iter().map(|(s, bytes)| (s.path(), *bytes)).collect();
        seed::sum(&stores, sums.path())?;
    }
    stage.make_store(volumes().sum(), &mut made)?;
    journal.make_journal(config.journal.size_bytes, &format.journal_label, &mut made)?;
    write_meta(&meta, &format.meta, &mut made)?;
    made.keep();
    Ok(())
}

fn remove_meta(meta: &Path, node: &Node) -> Result<(), CreateError> {
    match std::fs::remove_file(meta) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", meta)(error)),
        _ => sync_dir(&node.data_dir),
    }
}

/// Files that were made; they are removed again unless all goes well.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn file(&mut self, path: &Path) {
        self.0.push(path.to_owned());
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.drain(..) {
            // The first failure is what is reported.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn make_dir(dir: &Path) -> Result<(), CreateError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("make the directory", dir))
}

fn sync_dir(dir: &Path) -> Result<(), CreateError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("make durable", dir))
}

fn sync_parent(path: &Path) -> Result<(), CreateError> {
    path.parent().map_or(Ok(()), sync_dir)
}

fn write_meta(path: &Path, bytes: &[u8], made: &mut Made) -> Result<(), CreateError> {
    let new = path.with_extension("new");
    made.file(&new);
    made.file(path);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(failed("write", &new))?;
    std::fs::rename(&new, path).map_err(failed("write", path))?;
    sync_parent(path)
}
