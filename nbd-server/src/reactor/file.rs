//! Opening a node's files and devices, and reading them before the data path runs.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::{self, SFlag, fstat};
use replicator::io::DiskError;
use replicator::memory::Buffer;
use replicator::recover::BlockRead;
use replicator::types::BLOCK_BYTES;

use super::pool::{Pool, PoolBuffer};
use super::ring::Target;

/// Blocks that are read at once.
const BOUNCE_BLOCKS: u32 = 256;

/// Why a file can not be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The filesystem has no O_DIRECT.
    #[error(
        "{path}: the filesystem has no O_DIRECT (ramfs, tmpfs before Linux 6.6 and some network and FUSE \
         filesystems do not): put it on ext4, XFS, btrfs or a block device"
    )]
    NoDirect {
        /// Which file.
        path: PathBuf,
    },
    /// A device whose smallest write is larger than what is written.
    #[error(
        "{path}: has sectors of {bytes} bytes, the largest that work are {BLOCK_BYTES}; use another device"
    )]
    Sectors {
        /// Which device.
        path: PathBuf,
        /// Bytes of a logical sector.
        bytes: u64,
    },
    /// It can not be opened or read.
    #[error("{path}: {error}")]
    Other {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// A file or device that is read and written without the page cache.
#[derive(Clone, Debug)]
pub struct DirectFile {
    pub(super) fd: Rc<OwnedFd>,
    bytes: u64,
    pub(super) path: Rc<Path>,
    may_block: bool,
}

/// The same before the data thread has it: opening can take long, and may be done by another one.
#[derive(Debug)]
pub struct OpenedFile {
    fd: OwnedFd,
    bytes: u64,
    path: PathBuf,
    may_block: bool,
}

impl From<OpenedFile> for DirectFile {
    fn from(file: OpenedFile) -> Self {
        Self {
            fd: Rc::new(file.fd),
            bytes: file.bytes,
            path: file.path.into(),
            may_block: file.may_block,
        }
    }
}

impl OpenedFile {
    /// Opens an existing file or device for reading and writing, and makes durable what is in it.
    ///
    /// # Errors
    /// It can not be opened so.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let other = |error| OpenError::Other {
            path: path.to_owned(),
            error,
        };
        let mut file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => OpenError::NoDirect {
                    path: path.to_owned(),
                },
                _ => other(error),
            })?;
        // A process before this one may have been killed while what it wrote was in the device's cache only. What is read here is relied
        // on as durable, and so it has to be.
        file.sync_all().map_err(other)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(other)?;
        if let Some(sector_bytes) = sector_bytes(&file)
            && sector_bytes > BLOCK_BYTES as u64
        {
            return Err(OpenError::Sectors {
                path: path.to_owned(),
                bytes: sector_bytes,
            });
        }
        let may_block = may_block(&file).map_err(|errno| other(errno.into()))?;
        Ok(Self {
            fd: file.into(),
            bytes,
            path: path.to_owned(),
            may_block,
        })
    }
}

impl DirectFile {
    /// Opens an existing file or device, as [`OpenedFile::open`] does.
    ///
    /// # Errors
    /// It can not be opened so.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        OpenedFile::open(path).map(Self::from)
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn target(&self) -> Target<'_> {
        Target {
            file: &self.fd,
            may_block: self.may_block,
        }
    }

    pub(super) fn has(&self, offset: u64, length: u64) -> bool {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= self.bytes)
    }
}

/// Bytes of a logical sector of a block device, as the kernel shows it; `None` of a file.
fn sector_bytes(file: &File) -> Option<u64> {
    let metadata = file.metadata().ok()?;
    if !metadata.file_type().is_block_device() {
        return None;
    }
    let (major, minor) = (stat::major(metadata.rdev()), stat::minor(metadata.rdev()));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition has the queue of its disk.
    let queues = ["queue", "../queue"].map(|queue| device.join(queue).join("logical_block_size"));
    let text = queues
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())?;
    text.trim().parse().ok()
}

/// Whether to hand in an operation may take as long as the operation itself. The file systems of disks, and block devices,
/// say so in time and the kernel goes on by itself; FUSE (seen on Linux 6.18) and others just block the thread.
fn may_block(file: &File) -> nix::Result<bool> {
    use nix::sys::statfs::{
        BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs,
    };
    let kind = SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFBLK {
        return Ok(false);
    }
    let known = [
        BTRFS_SUPER_MAGIC,
        EXT4_SUPER_MAGIC,
        TMPFS_MAGIC,
        XFS_SUPER_MAGIC,
    ];
    Ok(!known.contains(&fstatfs(file)?.filesystem_type()))
}

/// Reads a file before the data path runs, by way of an aligned buffer.
#[derive(Debug)]
pub struct BlockingReader<'a> {
    file: &'a DirectFile,
    bounce: PoolBuffer,
}

impl<'a> BlockingReader<'a> {
    /// A reader with a buffer from `pool`; `None` if that is used up.
    pub fn new(file: &'a DirectFile, pool: &Pool) -> Option<Self> {
        let bounce = pool.alloc_connection(BOUNCE_BLOCKS)?;
        Some(Self { file, bounce })
    }
}

impl BlockRead for BlockingReader<'_> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let (mut offset, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let bounce = self.bounce.bytes_mut();
            let wanted = rest.len().min(bounce.len());
            let at = i64::try_from(offset).map_err(|_| DiskError::Short)?;
            let aligned = wanted.next_multiple_of(BLOCK_BYTES);
            let moved = match nix::sys::uio::pread(&self.file.fd, &mut bounce[..aligned], at) {
                Ok(0) => return Err(DiskError::Short),
                Ok(moved) => moved.min(wanted),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(DiskError::Os(errno as i32)),
            };
            let (filled, left) = rest.split_at_mut(moved);
            filled.copy_from_slice(&bounce[..moved]);
            offset += moved as u64;
            rest = left;
        }
        Ok(())
    }
}
