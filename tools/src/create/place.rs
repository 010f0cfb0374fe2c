//! Where a journal or a store is: a regular file that is made, or a block device that is there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nbd_server::reactor::places::device_is_blank;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

use super::{CreateError, Made, failed, sync_parent};

const BLOCK_BYTES: usize = 4096;
/// How much is written at once.
const CHUNK_BYTES: usize = 4 << 20;

/// Where a journal or a store goes.
#[derive(Debug)]
pub(super) enum Place {
    /// A regular file, not there or to be replaced.
    File(PathBuf),
    /// A block device that nobody else uses.
    Device {
        path: PathBuf,
        file: File,
        bytes: u64,
    },
}

impl Place {
    /// Looks at a path; without `wipe` nothing may be there.
    pub(super) fn inspect(path: &Path, wipe: bool) -> Result<Self, CreateError> {
        let kind = match std::fs::metadata(path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // /dev is no place for a file: it would be gone with the next boot.
                return if path.starts_with("/dev") && !path.starts_with("/dev/shm") {
                    Err(CreateError::NoDevice(path.to_owned()))
                } else {
                    Ok(Self::File(path.to_owned()))
                };
            }
            Err(error) => return Err(failed("look at", path)(error)),
        };
        if kind.is_file() {
            return if wipe {
                Ok(Self::File(path.to_owned()))
            } else {
                Err(CreateError::Exists(path.to_owned()))
            };
        }
        if !kind.is_block_device() {
            return Err(CreateError::WrongType(path.to_owned()));
        }
        // O_EXCL on a block device: nobody has it mounted or claimed.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_EXCL)
            .open(path)
            .map_err(
                |error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    Errno::EBUSY => CreateError::DeviceBusy(path.to_owned()),
                    Errno::ENXIO | Errno::ENODEV => CreateError::NoDevice(path.to_owned()),
                    _ => failed("open", path)(error),
                },
            )?;
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(failed("read the size of", path))?;
        if !wipe && !device_is_blank(&mut file, bytes).map_err(failed("read", path))? {
            return Err(CreateError::NotBlank(path.to_owned()));
        }
        Ok(Self::Device {
            path: path.to_owned(),
            file,
            bytes,
        })
    }

    /// The same, of what can not be a device.
    pub(super) fn inspect_file(path: &Path, wipe: bool) -> Result<Self, CreateError> {
        match Self::inspect(path, wipe)? {
            Self::Device { path, .. } => Err(CreateError::NoFile(path)),
            file @ Self::File(_) => Ok(file),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Device { path, .. } => path,
        }
    }

    /// Whether there is something.
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::File(path) => path.exists(),
            Self::Device { .. } => true,
        }
    }

    /// Whether what is there can be a seed of a volume of this size.
    pub(super) fn check_seed(&self, volume: u64) -> Result<(), CreateError> {
        match self {
            Self::File(path) => match std::fs::metadata(path) {
                Ok(metadata) if metadata.len() > volume => Err(CreateError::SeedTooLarge {
                    path: path.clone(),
                    bytes: metadata.len(),
                    volume,
                }),
                _ => Ok(()),
            },
            Self::Device { .. } => Ok(()),
        }
    }

    /// Keeps a store that is there, and makes it as long as its volume.
    pub(super) fn keep_store(&self, bytes: u64) -> Result<(), CreateError> {
        match self {
            Self::File(path) => OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|file| {
                    file.set_len(bytes)?;
                    file.sync_all()
                })
                .map_err(|error| no_space(error, "extend", path, bytes)),
            // What is recorded of its blocks must not be durable before they are.
            Self::Device { file, path, .. } => file
                .sync_all()
                .map_err(|error| no_space(error, "sync", path, bytes)),
        }
    }

    /// The size of a device.
    pub(super) fn device_bytes(&self) -> Option<u64> {
        match self {
            Self::File(_) => None,
            Self::Device { bytes, .. } => Some(*bytes),
        }
    }

    /// Whether both are one file or device under two names.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let identity = |place: &Self| match place {
            Self::File(path) => std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok(),
            Self::Device { file, .. } => file.metadata().map(|m| (0, m.rdev())).ok(),
        };
        let same_kind = self.device_bytes().is_some() == other.device_bytes().is_some();
        self.path() == other.path()
            || (same_kind && identity(self).is_some() && identity(self) == identity(other))
    }

    /// Makes a store that reads as zeroes: a sparse file of that size, or a device with as many zeroes at its start.
    pub(super) fn make_store(&self, bytes: u64, made: &mut Made) -> Result<(), CreateError> {
        match self {
            Self::File(path) => {
                let file = make_file(path, 0, made)?;
                file.set_len(bytes)
                    .and_then(|()| file.sync_all())
                    .map_err(|error| no_space(error, "make", path, bytes))?;
                sync_parent(path)
            }
            Self::Device { path, file, .. } => {
                zero_device(file, path, bytes)?;
                file.sync_all().map_err(failed("make durable", path))
            }
        }
    }

    /// Makes a file that reads as zeroes and has its room reserved where it is used, so that no write there fails for want of it.
    pub(super) fn make_reserved(
        &self,
        bytes: u64,
        mut used: impl Iterator<Item = (u64, u64)>,
        made: &mut Made,
    ) -> Result<(), CreateError> {
        let path = self.path();
        let file = make_file(path, 0, made)?;
        file.set_len(bytes)
            .and_then(|()| used.try_for_each(|range| preallocate(&file, range)))
            .and_then(|()| file.sync_all())
            .map_err(|error| no_space(error, "make", path, bytes))?;
        sync_parent(path)
    }

    /// Makes a journal: its label, then zeroes that were written, so that overwriting them needs no metadata update.
    pub(super) fn make_journal(
        &self,
        bytes: u64,
        label: &[u8],
        made: &mut Made,
    ) -> Result<(), CreateError> {
        let path = self.path();
        let opened;
        let file = match self {
            Self::File(path) => {
                opened = match make_file(path, libc::O_DIRECT, made) {
                    // A file system without O_DIRECT.
                    Err(CreateError::Io { source, .. })
                        if source.raw_os_error() == Some(libc::EINVAL) =>
                    {
                        make_file(path, 0, made)?
                    }
                    other => other?,
                };
                preallocate(&opened, (0, bytes))
                    .and_then(|()| write_zeroes(&opened, bytes))
                    .map_err(|error| no_space(error, "write", path, bytes))?;
                &opened
            }
            Self::Device { path, file, .. } => {
                zero_device(file, path, bytes)?;
                file
            }
        };
        file.sync_all().map_err(failed("make durable", path))?;
        let mut aligned = Aligned::zeroed(BLOCK_BYTES);
        aligned.bytes_mut()[..label.len()].copy_from_slice(label);
        file.write_all_at(aligned.bytes(), 0)
            .and_then(|()| file.sync_all())
            .map_err(failed("write", path))?;
        match self {
            Self::File(path) => sync_parent(path),
            Self::Device { .. } => Ok(()),
        }
    }
}

/// A new, empty file; the old one is removed, and missing directories are made.
fn make_file(path: &Path, flags: i32, made: &mut Made) -> Result<File, CreateError> {
    if let Some(parent) = path.parent() {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(parent)
            .map_err(failed("make the directory", parent))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", path)(error));
        }
        _ => made.file(path),
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
        .map_err(failed("make", path))
}

fn no_space(source: io::Error, what: &'static str, path: &Path, bytes: u64) -> CreateError {
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EFBIG | libc::EDQUOT) => CreateError::NoSpace {
            path: path.to_owned(),
            bytes,
            source,
        },
        _ => failed(what, path)(source),
    }
}

fn preallocate(file: &File, (offset, bytes): (u64, u64)) -> io::Result<()> {
    let number = |n| i64::try_from(n).map_err(|_| io::Error::from(Errno::EFBIG));
    let (from, length) = (number(offset)?, number(bytes)?);
    match fallocate(file, FallocateFlags::empty(), from, length) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            let end = offset + bytes;
            if file.metadata()?.len() < end {
                file.set_len(end)?;
            }
            Ok(())
        }
        other => other.map_err(Into::into),
    }
}

/// Writes zeroes over the first `bytes` of a device, or lets it do that by itself.
fn zero_device(file: &File, path: &Path, bytes: u64) -> Result<(), CreateError> {
    let length = i64::try_from(bytes).map_err(|_| failed("write", path)(Errno::EFBIG.into()))?;
    let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, flags, 0, length) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS | Errno::ENODEV) => {
            write_zeroes(file, bytes).map_err(failed("write", path))
        }
        Err(errno) => Err(failed("write", path)(errno.into())),
    }
}

fn write_zeroes(mut file: &File, bytes: u64) -> io::Result<()> {
    let chunk = Aligned::zeroed(CHUNK_BYTES);
    file.seek(SeekFrom::Start(0))?;
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        file.write_all(&chunk.bytes()[..length])?;
        left -= length as u64;
    }
    Ok(())
}

/// Bytes that begin at a multiple of 4 KiB, as O_DIRECT wants it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn zeroed(length: usize) -> Self {
        let memory = vec![0; length + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self {
            memory,
            start,
            length,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}
