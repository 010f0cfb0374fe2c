//! What is kept of an attached device: a directory under `/run`, with what it is attached to. nbdfuse's file and process are there
//! too. A restart of the host empties it, and takes the devices with it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Wanted, Way};
use crate::Failure;

/// Where all of them are.
const ROOT: &str = "/run/replicator-attached";

/// What is said of a device that was taken away by force; of an attached one it is two lines.
const TAKEN_AWAY: &str = "taken away\n";

/// The directory of one device.
pub(super) struct State {
    dir: PathBuf,
}

impl State {
    /// That of a device, by its name.
    pub(super) fn of(device: &Path) -> Self {
        let mut name = String::new();
        for c in device.to_string_lossy().trim_start_matches('/').chars() {
            match c {
                '/' => name.push('-'),
                '-' | '%' => name.push_str(&format!("%{:02x}", u32::from(c))),
                c => name.push(c),
            }
        }
        Self {
            dir: Path::new(ROOT).join(name),
        }
    }

    /// How it is attached, or would be if nothing was said.
    pub(super) fn way(&self, device: &Path) -> Way {
        if self.mount().exists() {
            return Way::Fuse;
        }
        Way::Auto.of(device)
    }

    /// How what is attached is written down.
    pub(super) fn text(wanted: &Wanted<'_>) -> String {
        format!("{}\n{}\n", wanted.volume, wanted.socket.display())
    }

    /// What is attached, if that is known.
    pub(super) fn what(&self) -> Option<String> {
        fs::read_to_string(self.dir.join("what")).ok()
    }

    /// Writes down what is going to be attached.
    pub(super) fn keep(&self, wanted: &Wanted<'_>) -> Result<(), Failure> {
        self.note(&Self::text(wanted))
    }

    /// Writes down that it was taken away by force, while the kernel keeps it for those who use it.
    pub(super) fn keep_taken_away(&self) -> Result<(), Failure> {
        self.note(TAKEN_AWAY)
    }

    /// Whether it was.
    pub(super) fn is_taken_away(&self) -> bool {
        self.what().is_some_and(|what| what == TAKEN_AWAY)
    }

    fn note(&self, what: &str) -> Result<(), Failure> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir);
        made.and_then(|()| fs::write(self.dir.join("what"), what))
            .map_err(|error| {
                Failure::Failed(format!(
                    "{}: can not be written: {error}; attach as root",
                    self.dir.display()
                ))
            })
    }

    /// Nothing is attached any more.
    pub(super) fn forget(&self) {
        for name in ["what", "pid", "loop", "log"] {
            let _ = fs::remove_file(self.dir.join(name));
        }
        // What is left keeps the directory, and is looked at by the next attempt.
        let _ = fs::remove_dir(self.mount());
        let _ = fs::remove_dir(&self.dir);
        let _ = fs::remove_dir(ROOT);
    }

    /// Where nbdfuse is mounted.
    pub(super) fn mount(&self) -> PathBuf {
        self.dir.join("fuse")
    }

    /// nbdfuse's process.
    pub(super) fn pid(&self) -> PathBuf {
        self.dir.join("pid")
    }

    /// The loop device.
    pub(super) fn loop_device(&self) -> PathBuf {
        self.dir.join("loop")
    }

    /// What nbdfuse says.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}
