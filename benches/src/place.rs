//! Where the stores are: on a disk, or in memory. What a write and a flush of that disk cost, and how many flushes it did.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::Serialize;
use tempfile::TempDir;
use tools::demo::probe_direct_io;

use crate::error::{BenchError, io_error};

/// What kind of place it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// What is flushed stays when the power goes.
    Disk,
    /// Nothing stays.
    Memory,
}

impl Medium {
    /// For people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Disk => "stores on the disk",
            Self::Memory => "stores in memory",
        }
    }
}

/// A directory of our own, gone with the value.
#[derive(Debug)]
pub struct Place {
    /// What it is on.
    pub medium: Medium,
    dir: TempDir,
    /// The kernel's counters of the device below.
    counters: Option<PathBuf>,
}

/// What a disk takes for 4 KiB, in microseconds (medians).
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct FlushCost {
    /// A write without any promise.
    pub write_us: f64,
    /// `fdatasync` after such a write.
    pub flush_us: f64,
    /// A write that is durable when it ends (`O_DSYNC`).
    pub durable_write_us: f64,
}

impl Place {
    /// A new directory in `parent`, which has to do O_DIRECT and to have room for `bytes`. The inner error says why it can not be used.
    ///
    /// # Errors
    /// The directory can not be made or looked at.
    pub fn new(parent: &Path, bytes: u64) -> Result<Result<Self, String>, BenchError> {
        let dir = tempfile::Builder::new().prefix("sbs-").tempdir_in(parent);
        let dir = dir.map_err(|source| io_error("make a directory in", parent, source))?;
        let path = dir.path();
        if let Err(error) = probe_direct_io(path) {
            return Ok(Err(format!(
                "{} has no O_DIRECT ({error})",
                parent.display()
            )));
        }
        let os = |source: nix::Error| io_error("look at", path, source.into());
        let facts = statfs(path).map_err(os)?;
        let block_bytes = u64::try_from(facts.block_size()).unwrap_or(0);
        let free = facts.blocks_available().saturating_mul(block_bytes);
        let medium = if facts.filesystem_type() == TMPFS_MAGIC {
            Medium::Memory
        } else {
            Medium::Disk
        };
        let free = match medium {
            Medium::Disk => free,
            Medium::Memory => free.min(available_memory_bytes().unwrap_or(u64::MAX)),
        };
        if free < bytes {
            let (free, bytes) = (free >> 20, bytes >> 20);
            return Ok(Err(format!(
                "{} has {free} MiB free, {bytes} MiB are needed",
                parent.display()
            )));
        }
        let device = std::fs::metadata(path).map_err(|source| io_error("look at", path, source))?;
        let counters = match medium {
            Medium::Disk => counters_of(device.dev()),
            Medium::Memory => None,
        };
        Ok(Ok(Self {
            medium,
            dir,
            counters,
        }))
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How many flushes the device has done since the system started, whoever asked; `None` where nobody counts.
    #[must_use]
    pub fn device_flushes(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.counters.as_ref()?).ok()?;
        // Documentation/block/stat.rst: the sixteenth number.
        text.split_whitespace().nth(15)?.parse().ok()
    }

    /// Measures what a write and a flush cost here.
    ///
    /// # Errors
    /// The disk does not do it.
    pub fn flush_cost(&self, bound: Duration) -> Result<FlushCost, BenchError> {
        let path = self.dir().join("flush-cost");
        let measured = measure(&path, bound / 2).map_err(|source| io_error("write", &path, source));
        // A file that stays goes with the directory.
        let _ = std::fs::remove_file(&path);
        measured
    }
}

#[repr(align(4096))]
struct Page([u8; 4096]);

const PROBE_BYTES: u64 = 16 << 20;

fn measure(path: &Path, bound: Duration) -> io::Result<FlushCost> {
    let open = |flags: OFlag| {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .custom_flags((OFlag::O_DIRECT | flags).bits())
            .open(path)
    };
    let file = open(OFlag::empty())?;
    let page = Page([0x5a; 4096]);
    for at in (0..PROBE_BYTES).step_by(4096) {
        file.write_all_at(&page.0, at)?;
    }
    file.sync_all()?;
    // Every place once, in an order that is none.
    let mut place = (0_u64..).map(|n| n * 1031 % (PROBE_BYTES / 4096) * 4096);
    let mut next = || place.next().unwrap_or(0);
    let (mut writes, mut flushes) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while begun.elapsed() < bound || writes.len() < 20 {
        writes.push(timed(|| file.write_all_at(&page.0, next()))?);
        flushes.push(timed(|| file.sync_data())?);
    }
    let durable = open(OFlag::O_DSYNC)?;
    let mut durable_writes = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < bound || durable_writes.len() < 20 {
        durable_writes.push(timed(|| durable.write_all_at(&page.0, next()))?);
    }
    Ok(FlushCost {
        write_us: middle(writes),
        flush_us: middle(flushes),
        durable_write_us: middle(durable_writes),
    })
}

fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// The counters of a block device, or of the whole disk for a partition, since flushes are counted there.
fn counters_of(device: u64) -> Option<PathBuf> {
    let link = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let mut dir = std::fs::canonicalize(link).ok()?;
    if dir.join("partition").exists() {
        dir.pop();
    }
    let stat = dir.join("stat");
    stat.exists().then_some(stat)
}

fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Makes a file of zeroes that are really there, so that writing to it needs no new blocks.
pub(crate) fn make_zeroed(path: &Path, bytes: u64) -> Result<(), BenchError> {
    const CHUNK: usize = 1 << 20;
    let make = || -> io::Result<()> {
        let file = File::create_new(path)?;
        let zeroes = vec![0; CHUNK];
        for at in (0..bytes).step_by(CHUNK) {
            let length = (bytes - at).min(CHUNK as u64);
            file.write_all_at(&zeroes[..length as usize], at)?;
        }
        file.sync_all()
    };
    make().map_err(|source| io_error("make", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_without_room_says_so() {
        let parent = std::env::temp_dir();
        let answer = Place::new(&parent, u64::MAX).unwrap();
        let reason = answer.expect_err("nobody has that much");
        assert!(
            reason.contains("are needed") || reason.contains("O_DIRECT"),
            "{reason}"
        );
    }

    #[test]
    fn a_durable_write_is_measured() {
        let dir = tools::demo::scratch_dir(None).unwrap();
        let cost = measure(&dir.path().join("file"), Duration::from_millis(1)).unwrap();
        assert!(cost.write_us > 0.0 && cost.flush_us > 0.0 && cost.durable_write_us > 0.0);
    }
}
