//! A recording of what the data path did to its disks, and of what it told others meanwhile: for tests that cut the
//! power afterwards, at any place of it.
//!
//! The reactor notes [`Event`]s in the order in which it sees them: an operation before the kernel gets it, its end
//! before the core hears of it, a promise to a client or a peer before it is sent. Without the feature `record`, which
//! is off in what is shipped, nothing is noted and nothing is compiled. With it, a [`Recorder`] that has a file writes
//! one entry for each event, with one `write(2)`, so that also a process that is killed leaves everything that the
//! kernel can have heard of. `tape` has the format.

#[cfg(feature = "record")]
pub mod tape;

use std::os::fd::RawFd;

use nix::errno::Errno;
use replicator::io::ClientOp;
use replicator::types::{ReqId, Seq};
use replicator::wire::frame::Frame;

use super::pool::PoolBuffer;
use super::ring::Segment;

/// Names a directory; the daemon then records to a file of its own there, if it is built to.
pub const RECORD_DIR: &str = "REPLICATOR_RECORD_DIR";

/// Something that is worth remembering. Operations are known by their key until they have ended.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// What the files are called in what follows. Comes first.
    Files {
        /// The metadata file.
        meta: RawFd,
        /// The journal.
        journal: RawFd,
        /// The table of checksums.
        sums: RawFd,
        /// What a resync has brought.
        stage: RawFd,
        /// The stores, in the order of the volumes.
        stores: &'a [RawFd],
    },
    /// A write is submitted.
    Write {
        /// Which operation.
        key: u32,
        /// To which file.
        file: RawFd,
        /// From which byte on.
        offset: u64,
        /// Whether with RWF_DSYNC.
        durable: bool,
        /// The bytes.
        segments: &'a [Segment],
    },
    /// A range is to become zeroes, by `fallocate(2)`.
    Zero {
        /// Which operation.
        key: u32,
        /// Of which file.
        file: RawFd,
        /// The mode of the call.
        mode: i32,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// `fdatasync(2)` is submitted.
    Flush {
        /// Which operation.
        key: u32,
        /// Of which file.
        file: RawFd,
    },
    /// An operation ended.
    Ended {
        /// Which.
        key: u32,
        /// What the kernel says: bytes moved, or why not.
        result: Result<u32, Errno>,
    },
    /// A client's request is handed to the core.
    Asked {
        /// The name of the request, until it is answered.
        req: ReqId,
        /// What it wants.
        op: &'a ClientOp<'a, PoolBuffer>,
        /// The newest record by then: the request's come later.
        admitted: Seq,
    },
    /// A request is answered.
    Answered {
        /// Which.
        req: ReqId,
        /// Whether it was done.
        done: bool,
        /// The newest record that is committed: the request's are among those.
        committed: Seq,
    },
    /// A frame goes to a peer.
    Said(&'a Frame),
}

/// Takes notes, or not.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    #[cfg(feature = "record")]
    tape: Option<std::sync::Arc<std::sync::Mutex<tape::Tape>>>,
}

#[cfg(feature = "record")]
impl Recorder {
    /// Records to a new file.
    ///
    /// # Errors
    /// It exists, or can not be made.
    pub fn create(path: &std::path::Path) -> std::io::Result<Self> {
        let tape = tape::Tape::create(path)?;
        Ok(Self {
            tape: Some(std::sync::Arc::new(std::sync::Mutex::new(tape))),
        })
    }

    /// Records to `repld-PID.tape` in the directory that [`RECORD_DIR`] names, or not at all if it names none.
    ///
    /// # Errors
    /// See [`Recorder::create`].
    pub fn from_environment() -> std::io::Result<Self> {
        let Some(dir) = std::env::var_os(RECORD_DIR) else {
            return Ok(Self::default());
        };
        let name = format!("repld-{}.tape", std::process::id());
        Self::create(&std::path::Path::new(&dir).join(name))
    }

    /// Notes an event, if anything is recorded.
    ///
    /// # Panics
    /// If that can not be written: a recording with a gap would be a lie.
    pub fn note<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if let Some(tape) = &self.tape {
            let mut tape = tape.lock().expect("no panic while something is noted");
            tape.write(&event()).expect("the recording can be written");
        }
    }
}

#[cfg(not(feature = "record"))]
impl Recorder {
    /// Records nothing: this daemon is not built to.
    ///
    /// # Errors
    /// Never.
    pub fn from_environment() -> std::io::Result<Self> {
        if std::env::var_os(RECORD_DIR).is_some() {
            tracing::warn!("{RECORD_DIR} is set, but this daemon is built without `record`");
        }
        Ok(Self::default())
    }

    /// Notes nothing.
    #[inline(always)]
    pub fn note<'a>(&self, _event: impl FnOnce() -> Event<'a>) {}
}
