//! Stores, and the files beside them, that get longer or shorter while the data path runs. Lengths are changed and made durable by a
//! thread of their own, for each time: a file system may take as long as it likes for that. Then the data thread opens them anew.

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
use replicator::meta::superblock::VolumeRecord;
use replicator::meta::volumes::Volumes;
use replicator::store::sums;
use replicator::types::{Ticket, VolumeId};

/// How much of both ends of a device has to be zero for it to count as blank.
const ENDS_BYTES: u64 = 1 << 20;

/// Says where the store of a volume goes that was not there when the node started, and how large its volume is, by the config
/// file as it is now; `None` if that knows no such volume.
pub type Finder = Arc<dyn Fn(&str) -> Option<(PathBuf, u64)> + Send + Sync>;

/// Where everything is.
#[derive(Clone)]
pub struct Places {
    /// The volumes whose stores are known.
    pub volumes: Volumes,
    /// The stores, by the ids of the volumes.
    pub stores: Vec<Option<PathBuf>>,
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Nothing may be shorter than the volumes need.
    Room,
    /// Nothing need be longer, and stores of volumes that are gone are put aside.
    Fit,
}

/// How that ended, and where everything is now.
#[derive(Debug)]
pub struct Moved {
    /// Of which operation.
    pub ticket: Ticket,
    /// How.
    pub result: Result<Places, DiskError>,
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
    pub fn begin(&self, ticket: Ticket, wanted: Wanted, places: Places, volumes: Volumes) {
        let (tell, bell) = (self.tell.clone(), self.bell.clone());
        let work = move || {
            let result = match wanted {
                Wanted::Room => places.make_room(&volumes),
                Wanted::Fit => places.fit(&volumes),
            };
            // The data thread may have ended.
            let _ = tell.send(Moved { ticket, result });
            if let Some(bell) = bell {
                let _ = bell.write(1);
            }
        };
        if let Err(error) = thread::Builder::new().name("places".to_owned()).spawn(work) {
            let result = Err(os(&error));
            let _ = self.tell.send(Moved { ticket, result });
            if let Some(bell) = &self.bell {
                let _ = bell.write(1);
            }
        }
    }

    /// The next that has ended.
    pub fn ended(&self) -> Option<Moved> {
        self.done.try_recv().ok()
    }
}

fn os(error: &io::Error) -> DiskError {
    DiskError::Os(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

impl Places {
    /// Stores that never change, one for each volume.
    pub fn fixed(
        volumes: Volumes,
        stores: impl Iterator<Item = PathBuf>,
        sums: PathBuf,
        stage: PathBuf,
    ) -> Self {
        Self {
            volumes,
            stores: stores.map(Some).collect(),
            sums: Some(sums),
            stage: Some(stage),
            finder: Arc::new(|_| None),
        }
    }

    fn make_room(mut self, volumes: &Volumes) -> Result<Self, DiskError> {
        for (id, volume) in volumes.iter() {
            let place = usize::from(id.0);
            if self.stores.len() <= place {
                self.stores.resize(place + 1, None);
            }
            // A volume of that name at another place is another volume: it was removed, and its store may not be used for this one.
            let before = self.volumes.get(id).filter(|v| v.name == volume.name);
            let path = match before.and_then(|_| self.stores[place].clone()) {
                Some(path) => {
                    lengthen(&path, volume.bytes)?;
                    path
                }
                None => {
                    let found = (self.finder)(&volume.name);
                    let (path, bytes) = found.ok_or(VolumeTrouble::NotInConfig)?;
                    if bytes != volume.bytes {
                        return Err(VolumeTrouble::OtherSize { bytes }.into());
                    }
                    blank(&path)?;
                    lengthen(&path, volume.bytes)?;
                    path
                }
            };
            self.stores[place] = Some(path);
        }
        if let Some(sums) = &self.sums {
            lengthen(sums, sums::file_bytes(volumes.sizes()))?;
            reserve(sums, sums::used(volumes.sizes()))?;
        }
        if let Some(stage) = &self.stage {
            lengthen(stage, volumes.sizes().sum())?;
        }
        self.volumes = volumes.clone();
        Ok(self)
    }

    fn fit(mut self, volumes: &Volumes) -> Result<Self, DiskError> {
        let before = &self.volumes;
        let kept = |id: VolumeId| {
            let same = |v: &&VolumeRecord| before.get(id).is_none_or(|b| b.name == v.name);
            volumes.get(id).filter(same)
        };
        let places = (0..).map(VolumeId).zip(&self.stores);
        let used = places.filter(|(id, _)| kept(*id).is_some());
        let used: Vec<PathBuf> = used.filter_map(|(_, store)| store.clone()).collect();
        for (id, store) in (0..).map(VolumeId).zip(&mut self.stores) {
            let Some(path) = store.clone() else { continue };
            let is_file = std::fs::metadata(&path).is_ok_and(|m| m.is_file());
            match kept(id) {
                Some(volume) if is_file => shorten(&path, volume.bytes)?,
                Some(_) => {}
                None => {
                    if is_file && !used.contains(&path) {
                        put_aside(&path)?;
                    }
                    *store = None;
                }
            }
        }
        self.volumes = volumes.clone();
        Ok(self)
    }
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
    for start in [0, end.saturating_sub(ENDS_BYTES)] {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(start))
            .and_then(|_| (&file).take(ENDS_BYTES).read_to_end(&mut bytes))
            .map_err(|error| os(&error))?;
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(VolumeTrouble::NotBlank.into());
        }
    }
    Ok(())
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
