//! Stores, and the files beside them, that get longer or shorter while the data path runs. Lengths are changed and made durable by a
//! thread of their own, for each time, which opens them anew then: a file system may take as long as it likes for that.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::EventFd;
use nix::unistd::{Whence, lseek};
use replicator::io::{DiskError, VolumeTrouble};
use replicator::meta::config::Name;
use replicator::meta::volumes::{VolumeRecord, Volumes};
use replicator::store::sums;
use replicator::types::{Ticket, VolumeId};

use super::available_bytes;
use super::file::OpenedFile;

/// How much of both ends of a device has to be zero for it to count as blank.
const ENDS_BYTES: u64 = 1 << 20;

/// Says where the store of a volume goes that was not there when the node started, and how large its volume is, by the config
/// file as it is now; `None` if that knows no such volume.
pub type Finder = Arc<dyn Fn(&str) -> Option<(PathBuf, u64)> + Send + Sync>;

/// The store of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    /// What the volume is called.
    pub name: Name,
    /// How long the store has to be.
    pub bytes: u64,
    /// Where it is.
    pub path: PathBuf,
}

/// Where everything is.
#[derive(Clone)]
pub struct Places {
    /// The stores, by the ids of the volumes.
    pub stores: Vec<Option<Store>>,
    /// The table of checksums; a witness has none.
    pub sums: Option<PathBuf>,
    /// What a resync has brought until it is whole.
    pub stage: Option<PathBuf>,
    /// Where other stores are.
    pub finder: Finder,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places")
            .field("stores", &self.stores)
            .finish_non_exhaustive()
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Wanted {
    /// Nothing may be shorter than volumes need. The stores of those that the node has stay.
    Room {
        /// Those that the node has.
        own: Box<Volumes>,
        /// Those that are to come.
        volumes: Box<Volumes>,
    },
    /// Nothing need be longer, stores of volumes that are gone are put aside, and those that are missing are made.
    Fit {
        /// Those that the node has.
        volumes: Box<Volumes>,
    },
}

/// Everything, opened anew.
#[derive(Debug)]
pub struct Opened {
    /// The stores, by the ids of the volumes.
    pub stores: Vec<Option<OpenedFile>>,
    /// The table of checksums.
    pub sums: Option<OpenedFile>,
    /// What a resync has brought until it is whole.
    pub stage: Option<OpenedFile>,
}

/// How that ended, and where everything is now.
#[derive(Debug)]
pub struct Moved {
    /// Of which operation.
    pub ticket: Ticket,
    /// Where everything is, also if it could not be done: a part of it may have been.
    pub places: Places,
    /// What the data path goes on with.
    pub result: Result<Opened, DiskError>,
}

/// Starts such threads, and has what they did.
#[derive(Debug)]
pub struct Movers {
    done: Receiver<Moved>,
    tell: Sender<Moved>,
    bell: Option<Arc<EventFd>>,
}

impl Movers {
    /// None yet. They ring `bell`.
    pub fn new(bell: Option<Arc<EventFd>>) -> Self {
        let (tell, done) = channel();
        Self { done, tell, bell }
    }

    /// Begins.
    pub fn begin(&self, ticket: Ticket, wanted: Wanted, places: Places) {
        let before = places.clone();
        let (tell, bell) = (self.tell.clone(), self.bell.clone());
        let work = move || tell_of(&tell, bell.as_deref(), places.changed(ticket, &wanted));
        if let Err(error) = thread::Builder::new().name("places".to_owned()).spawn(work) {
            let moved = Moved {
                ticket,
                places: before,
                result: Err(os(&error)),
            };
            tell_of(&self.tell, self.bell.as_deref(), moved);
        }
    }

    /// The next that has ended.
    pub fn ended(&self) -> Option<Moved> {
        self.done.try_recv().ok()
    }
}

fn tell_of(tell: &Sender<Moved>, bell: Option<&EventFd>, moved: Moved) {
    // The data thread may have ended.
    let _ = tell.send(moved);
    if let Some(bell) = bell {
        let _ = bell.write(1);
    }
}

/// What a node remembers of the blocks of its volumes (README, "what it needs"): 1.2 MB for each GiB.
fn table_bytes(volumes: &Volumes) -> u64 {
    volumes.sizes().map(|bytes| bytes >> 20).sum::<u64>() * 1200
}

fn os(error: &io::Error) -> DiskError {
    DiskError::Os(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

impl Places {
    /// Stores that never change, one for each volume.
    pub fn fixed(
        volumes: &Volumes,
        stores: impl Iterator<Item = PathBuf>,
        sums: PathBuf,
        stage: PathBuf,
    ) -> Self {
        let store = |(path, volume): (PathBuf, &VolumeRecord)| {
            let (name, bytes) = (volume.name, volume.bytes);
            Some(Store { name, bytes, path })
        };
        Self {
            stores: stores.zip(volumes.slots()).map(store).collect(),
            sums: Some(sums),
            stage: Some(stage),
            finder: Arc::new(|_| None),
        }
    }

    /// How long each store has to be, by the ids of the volumes; 0 where there is none.
    pub fn sizes(&self) -> impl Iterator<Item = u64> + Clone {
        self.stores
            .iter()
            .map(|s| s.as_ref().map_or(0, |s| s.bytes))
    }

    /// Where the stores are, by the ids of the volumes.
    pub fn paths(&self) -> Vec<Option<PathBuf>> {
        let path = |store: &Option<Store>| store.as_ref().map(|s| s.path.clone());
        self.stores.iter().map(path).collect()
    }

    /// Makes the stores of some places, by bits, as long as they have to be. What a resync has staged becomes the image before they
    /// are, and the node may have stopped in between.
    ///
    /// # Errors
    /// Which one can not be so long.
    pub fn complete(&self, moved: u16) -> Result<(), String> {
        let stores = self.stores.iter().enumerate();
        let mut stores = stores.filter(|(place, _)| moved >> place & 1 == 1);
        stores.try_for_each(|(_, store)| {
            let Some(store) = store else { return Ok(()) };
            let result = lengthen(&store.path, store.bytes);
            result.map_err(|error| format!("{}: {error}", store.path.display()))
        })
    }

    /// Does what is wanted, and opens everything: both may take long.
    fn changed(mut self, ticket: Ticket, wanted: &Wanted) -> Moved {
        let done = match wanted {
            Wanted::Room { own, volumes } => self.make_room(own, volumes),
            Wanted::Fit { volumes } => self.fit(volumes),
        };
        let result = done.and_then(|()| self.open());
        Moved {
            ticket,
            places: self,
            result,
        }
    }

    fn open(&self) -> Result<Opened, DiskError> {
        let open = |path: &PathBuf| {
            OpenedFile::open(path).map_err(|error| {
                tracing::error!("{error}");
                DiskError::Os(Errno::EIO as i32)
            })
        };
        let of_store = |store: &Option<Store>| store.as_ref().map(|s| open(&s.path)).transpose();
        Ok(Opened {
            stores: self.stores.iter().map(of_store).collect::<Result<_, _>>()?,
            sums: self.sums.as_ref().map(open).transpose()?,
            stage: self.stage.as_ref().map(open).transpose()?,
        })
    }

    /// Where the store of a volume goes that has none.
    fn place_for(&self, volume: &VolumeRecord) -> Result<Store, DiskError> {
        let found = (self.finder)(&volume.name);
        let (path, bytes) = found.ok_or(VolumeTrouble::NotInConfig)?;
        if bytes != volume.bytes {
            return Err(VolumeTrouble::OtherSize { bytes }.into());
        }
        Ok(Store {
            name: volume.name,
            bytes,
            path,
        })
    }

    fn make_room(&mut self, own: &Volumes, volumes: &Volumes) -> Result<(), DiskError> {
        let more = table_bytes(volumes).saturating_sub(table_bytes(own));
        if available_bytes().is_some_and(|available| more > available) {
            // Once the change is in the log there is no way back: every start would need it.
            return Err(DiskError::Os(Errno::ENOMEM as i32));
        }
        for (id, volume) in volumes.iter() {
            let place = usize::from(id.0);
            if self.stores.len() <= place {
                self.stores.resize(place + 1, None);
            }
            let may_have = own.may_have(id, &volume.name);
            // One that the node does not have was made for a change that did not come: it may be gone, or be another's by now.
            let has = own.get(id).is_some_and(|v| v.name == volume.name);
            let here = self.stores[place].as_mut();
            if let Some(store) = here.filter(|s| has && s.name == volume.name) {
                lengthen(&store.path, volume.bytes)?;
                store.bytes = store.bytes.max(volume.bytes);
                continue;
            }
            let store = self.place_for(volume)?;
            if may_have {
                blank(&store.path)?;
                lengthen(&store.path, volume.bytes)?;
                self.stores[place] = Some(store);
            } else if !self.is_file_of(own, &store.path) {
                // A file that a volume has until then will be put aside. A device can not be: whoever has it is asked to wipe it.
                blank(&store.path)?;
                if store.path.exists() && !is_file(&store.path) {
                    lengthen(&store.path, volume.bytes)?;
                }
            }
        }
        if let Some(sums) = &self.sums {
            lengthen(sums, sums::file_bytes(volumes.sizes()))?;
            reserve(sums, sums::used(volumes.sizes()))?;
        }
        if let Some(stage) = &self.stage {
            lengthen(stage, volumes.sizes().sum())?;
        }
        Ok(())
    }

    /// Whether this is the file of a volume that the node has.
    fn is_file_of(&self, own: &Volumes, path: &Path) -> bool {
        let stores = (0..).map(VolumeId).zip(&self.stores);
        let mut of_own = stores.filter_map(|(id, store)| {
            let store = store.as_ref()?;
            own.get(id).filter(|v| v.name == store.name).map(|_| store)
        });
        of_own.any(|store| store.path == path) && is_file(path)
    }

    fn fit(&mut self, volumes: &Volumes) -> Result<(), DiskError> {
        let kept = |id: VolumeId, store: &Store| {
            let volume = volumes.get(id);
            volume.filter(|v| v.name == store.name).copied()
        };
        let stores = (0..).map(VolumeId).zip(&self.stores);
        let stores =
            stores.filter_map(|(id, store)| store.as_ref().filter(|s| kept(id, s).is_some()));
        let used: Vec<PathBuf> = stores.map(|store| store.path.clone()).collect();
        for (id, place) in (0..).map(VolumeId).zip(&mut self.stores) {
            let Some(store) = place else { continue };
            match kept(id, store) {
                Some(volume) => {
                    if is_file(&store.path) {
                        shorten(&store.path, volume.bytes)?;
                    }
                    store.bytes = volume.bytes;
                }
                None => {
                    if is_file(&store.path) && !used.contains(&store.path) {
                        put_aside(&store.path)?;
                    }
                    *place = None;
                }
            }
        }
        for (id, volume) in volumes.iter() {
            let place = usize::from(id.0);
            if self.stores.len() <= place {
                self.stores.resize(place + 1, None);
            }
            if self.stores[place].is_none() {
                let store = self.place_for(volume)?;
                blank(&store.path)?;
                lengthen(&store.path, store.bytes)?;
                self.stores[place] = Some(store);
            }
        }
        Ok(())
    }
}

fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file())
}

/// Makes a file as long as it has to be; one that is not there is made. A device has the size that it has.
fn lengthen(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(!path.starts_with("/dev"))
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| os(&error))?;
    let metadata = file.metadata().map_err(|error| os(&error))?;
    if metadata.file_type().is_block_device() {
        let has = file.seek(SeekFrom::End(0)).map_err(|error| os(&error))?;
        return match has < bytes {
            true => Err(VolumeTrouble::Device { bytes: has }.into()),
            false => Ok(()),
        };
    }
    if metadata.len() < bytes {
        file.set_len(bytes).map_err(|error| os(&error))?;
    }
    file.sync_all().map_err(|error| os(&error))?;
    sync_parent(path)
}

fn shorten(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let file = OpenOptions::new().write(true).open(path);
    let file = file.map_err(|error| os(&error))?;
    let long = file.metadata().is_ok_and(|m| m.len() > bytes);
    if long {
        file.set_len(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| os(&error))?;
    }
    Ok(())
}

/// Reserves room, so that no write there fails for want of it.
fn reserve(path: &Path, ranges: impl Iterator<Item = (u64, u64)>) -> Result<(), DiskError> {
    let file = OpenOptions::new().write(true).open(path);
    let file = file.map_err(|error| os(&error))?;
    for (offset, bytes) in ranges {
        let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else {
            return Err(DiskError::Os(Errno::EFBIG as i32));
        };
        match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, bytes) {
            Ok(()) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
            Err(errno) => return Err(DiskError::Os(errno as i32)),
        }
    }
    file.sync_all().map_err(|error| os(&error))
}

fn sync_parent(path: &Path) -> Result<(), DiskError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    let directory = File::open(parent).map_err(|error| os(&error))?;
    directory.sync_all().map_err(|error| os(&error))
}

/// Refuses what may be needed: a file with contents, or a device with something at one of its ends.
fn blank(path: &Path) -> Result<(), DiskError> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| os(&error))?,
    };
    let end = file.seek(SeekFrom::End(0)).map_err(|error| os(&error))?;
    let is_device = file
        .metadata()
        .is_ok_and(|m| m.file_type().is_block_device());
    if !is_device {
        // A file that is one hole was made before, for a change that did not come.
        return match lseek(&file, 0, Whence::SeekData) {
            Err(Errno::ENXIO) => Ok(()),
            _ if end == 0 => Ok(()),
            _ => Err(VolumeTrouble::NotBlank.into()),
        };
    }
    if device_is_blank(&mut file, end).map_err(|error| os(&error))? {
        Ok(())
    } else {
        Err(VolumeTrouble::NotBlank.into())
    }
}

/// Whether both ends of a device of so many bytes are zero: where a file system, a partition table or a label would be.
///
/// # Errors
/// If it can not be read.
pub fn device_is_blank(device: &mut File, bytes: u64) -> io::Result<bool> {
    for start in [0, bytes.saturating_sub(ENDS_BYTES)] {
        device.seek(SeekFrom::Start(start))?;
        let mut end = Vec::new();
        device.take(ENDS_BYTES).read_to_end(&mut end)?;
        if end.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives a store that nobody uses another name, under which its contents stay until somebody removes them.
fn put_aside(path: &Path) -> Result<(), DiskError> {
    let named = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(if n == 0 {
            ".removed".to_owned()
        } else {
            format!(".removed.{n}")
        });
        PathBuf::from(name)
    };
    let free = (0..10_000).map(named).find(|p| !p.exists());
    let to = free.ok_or(DiskError::Os(Errno::EEXIST as i32))?;
    std::fs::rename(path, &to).map_err(|error| os(&error))?;
    tracing::info!("{} is kept as {}", path.display(), to.display());
    sync_parent(path)
}

#[cfg(test)]
mod tests;
