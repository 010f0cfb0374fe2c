//! The work that every system does.

/// What a job does to its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Writes blocks at random.
    RandomWrite,
    /// Reads blocks at random.
    RandomRead,
    /// Writes one block after the other.
    SequentialWrite,
}

/// A piece of work for fio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its name in the results.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// What it does.
    pub pattern: Pattern,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Requests in flight.
    pub depth: u32,
    /// Whether each write is followed by a flush.
    pub flush: bool,
}

/// A system that others are compared with, and its name in the results.
pub const BASELINE: &str = "qemu-quorum";

/// All jobs, in the order of the table.
pub const JOBS: &[Job] = &[
    Job {
        name: "randwrite-4k-qd1-flush",
        title: "4 KiB random write, depth 1, a flush after each",
        pattern: Pattern::RandomWrite,
        block_bytes: 4096,
        depth: 1,
        flush: true,
    },
    Job {
        name: "randwrite-4k-qd32-flush",
        title: "4 KiB random write, depth 32, a flush after each",
        pattern: Pattern::RandomWrite,
        block_bytes: 4096,
        depth: 32,
        flush: true,
    },
    Job {
        name: "randwrite-4k-qd1",
        title: "4 KiB random write, depth 1",
        pattern: Pattern::RandomWrite,
        block_bytes: 4096,
        depth: 1,
        flush: false,
    },
    Job {
        name: "randwrite-4k-qd32",
        title: "4 KiB random write, depth 32",
        pattern: Pattern::RandomWrite,
        block_bytes: 4096,
        depth: 32,
        flush: false,
    },
    Job {
        name: "seqwrite-128k-qd8",
        title: "128 KiB sequential write, depth 8",
        pattern: Pattern::SequentialWrite,
        block_bytes: 128 << 10,
        depth: 8,
        flush: false,
    },
    Job {
        name: "randread-4k-qd32",
        title: "4 KiB random read, depth 32",
        pattern: Pattern::RandomRead,
        block_bytes: 4096,
        depth: 32,
        flush: false,
    },
];

impl Job {
    /// The job of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        JOBS.iter().find(|job| job.name == name)
    }
}
