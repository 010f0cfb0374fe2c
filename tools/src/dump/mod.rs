//! `replctl dump`: what is on a node's disks, read by the same code that `repld` starts with, for the day when it does not
//! start. Writes nothing. Damage ends nothing: it is named with the file and the byte where it is, and reading goes on.

mod journal;
mod line;
mod meta;
mod sums;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nbd_server::config::{Config, Node, NodeRole};
use nix::fcntl::{Flock, FlockArg};
use replicator::io::DiskError;
use replicator::recover::BlockRead;

use self::line::{Damage, Line};
use crate::Failure;
use crate::output::{Reader, print};

/// What of the disks is shown, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) meta: bool,
    pub(crate) journal: bool,
    pub(crate) sums: bool,
    /// Whether the stores are read and compared with their checksums.
    pub(crate) verify: bool,
    pub(crate) json: bool,
}

/// Shows what is on the disks of `node`; fails with a sentence about the first damage if there is any.
pub(crate) fn dump(config: &Config, node: &Node, wanted: Wanted) -> Result<(), Failure> {
    if is_running(&node.data_dir) {
        eprintln!(
            "replctl: repld of {} runs: what it writes meanwhile may look like damage",
            node.name
        );
    }
    let mut out = Out::new(wanted.json);
    let mut shown = Out::new(wanted.json);
    shown.silent = !wanted.meta;
    let superblock = match Disk::open(&node.meta_path()) {
        Ok(mut disk) => meta::dump(&mut disk, &mut shown)?,
        Err(error) if wanted.meta => return Err(error),
        Err(error) => {
            // The journal can be read without; it is just not known where the log begins.
            eprintln!("replctl: {}", error.line());
            None
        }
    };
    out.damage = shown.damage;
    if wanted.journal && node.role == NodeRole::Data && !shown.gone {
        let mut disk = Disk::open(&node.journal_path())?;
        journal::dump(&mut disk, superblock.as_ref(), &mut out)?;
    }
    if wanted.sums && node.role == NodeRole::Data && !shown.gone && !out.gone {
        let mut disk = Disk::open(&node.sums_path())?;
        let tables = sums::dump(&mut disk, config, superblock.as_ref(), &mut out)?;
        if wanted.verify {
            let superblock = superblock.as_ref().ok_or_else(|| {
                Failure::Failed(
                    "without metadata it is not known what of the journal the stores have, so they are not compared"
                        .to_owned(),
                )
            })?;
            let mut journal = Disk::open(&node.journal_path())?;
            sums::verify(&tables, node, superblock, &mut journal, &mut out)?;
        }
    }
    match out.damage {
        None => Ok(()),
        Some((1, first)) => Err(Failure::Failed(format!("damage: {first}"))),
        Some((count, first)) => Err(Failure::Failed(format!(
            "damage in {count} places, first {first}"
        ))),
    }
}

/// Whether the lock on the data directory is held. It is not made if it is not there.
pub(crate) fn is_running(data_dir: &Path) -> bool {
    OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(data_dir.join("lock"))
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

/// Where lines go, and what they said of damage.
pub(crate) struct Out {
    json: bool,
    /// Nobody wants to see this part; its damage counts.
    silent: bool,
    /// Nobody reads any more.
    gone: bool,
    /// How much, and the first.
    damage: Option<(usize, Damage)>,
}

impl Out {
    fn new(json: bool) -> Self {
        Self {
            json,
            silent: false,
            gone: false,
            damage: None,
        }
    }

    fn line(&mut self, line: Line) -> Result<(), Failure> {
        if let Line::Damage(damage) = &line {
            let (count, _) = self.damage.get_or_insert_with(|| (0, damage.clone()));
            *count += 1;
        }
        if self.silent || self.gone {
            return Ok(());
        }
        let text = if self.json {
            serde_json::to_string(&line)
                .map_err(|error| Failure::Failed(format!("can not write JSON: {error}")))?
        } else {
            line.to_string()
        };
        self.gone |= print(&(text + "\n"))? == Reader::Gone;
        Ok(())
    }
}

/// A file or device that is read and left as it is.
pub(crate) struct Disk {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Disk {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |what: &str, error: io::Error| {
            Failure::Failed(format!("can not {what} {}: {error}", path.display()))
        };
        let file = File::open(path).map_err(|error| failed("open", error))?;
        let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0))
            .map_err(|error| failed("read the size of", error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
        })
    }
}

impl BlockRead for Disk {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| error.raw_os_error().map_or(DiskError::Short, DiskError::Os))
    }
}

/// What went wrong with a read, for people.
fn reading(error: DiskError) -> String {
    match error {
        DiskError::Short | DiskError::Volume(_) => "the file ends before it".to_owned(),
        DiskError::Os(number) => io::Error::from_raw_os_error(number).to_string(),
    }
}
