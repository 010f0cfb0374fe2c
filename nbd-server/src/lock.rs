//! Who may touch a node's files: whoever holds the lock on `DATA_DIR/lock`.
//!
//! `repld` holds it as long as it runs and `replctl create` while it formats. The kernel lets go of it when the process
//! ends, however it ends, so it never has to be cleaned up.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock on a data directory, held until it is dropped.
#[derive(Debug)]
pub struct DataDirLock {
    _file: Flock<File>,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{} is in use by another repld or replctl create (its lock is held); stop that one first",
        data_dir.display()
    )]
    Held {
        /// The directory.
        data_dir: PathBuf,
    },
    /// The lock file can not be opened or locked.
    #[error(
        "can not lock {}: {source}; data_dir has to be a directory that this user may write to, with room in it", path.display()
    )]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DataDirLock {
    /// Takes the lock, or says who keeps it from being taken. The directory must exist.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it.
    pub fn take(data_dir: &Path) -> Result<Self, LockError> {
        let path = data_dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_CLOEXEC | nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| LockError::Io {
                path: path.clone(),
                source,
            })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Held {
                data_dir: data_dir.to_owned(),
            }),
            Err((_, errno)) => Err(LockError::Io {
                path,
                source: errno.into(),
            }),
        }
    }
}
