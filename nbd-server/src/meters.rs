//! Numbers that only rise, kept by the data thread for whoever wants to know: how many, how much, how long.
//!
//! The data thread is the only writer and never waits for a reader: a step is one load and one store of a word that
//! nobody else writes, without a lock, a locked instruction or an allocation. Readers see each word whole; words of
//! one histogram may be a step apart. So the numbers can be read also when the data thread hangs.

use std::sync::atomic::{AtomicU64, Ordering};

use replicator::io::SideFile;
use replicator::types::{NODES_MAX, VOLUMES_MAX};

/// The upper ends of all buckets of a [`Histogram`] but the last, which has none, in nanoseconds.
pub const BUCKET_NANOS: [u64; 18] = [
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// A number that only rises, until it wraps.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. To be called by one thread only.
    pub fn add(&self, more: u64) {
        let now = self.0.load(Ordering::Relaxed).wrapping_add(more);
        self.0.store(now, Ordering::Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took, each time.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last is for what is longer than all of [`BUCKET_NANOS`].
    buckets: [Counter; BUCKET_NANOS.len() + 1],
    sum_nanos: Counter,
}

impl Histogram {
    /// Counts one in. To be called by one thread only.
    pub fn observe(&self, nanos: u64) {
        let bucket = BUCKET_NANOS.partition_point(|end| *end < nanos);
        self.buckets[bucket].add(1);
        self.sum_nanos.add(nanos);
    }

    /// How many are in each bucket.
    pub fn buckets(&self) -> [u64; BUCKET_NANOS.len() + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].get())
    }

    /// All of them together.
    pub fn sum_nanos(&self) -> u64 {
        self.sum_nanos.get()
    }
}

/// Things of one kind: how long each took, how many bytes they moved, and how many failed.
#[derive(Debug, Default)]
pub struct Work {
    /// From begin to end, whatever the end.
    pub duration: Histogram,
    /// Of those that ended well.
    pub bytes: Counter,
    /// Those that did not.
    pub failed: Counter,
}

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// How operators read it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

kinds! {
    /// What clients ask for.
    RequestKind {
        /// A read.
        Read = "read",
        /// A write.
        Write = "write",
        /// A trim or write-zeroes.
        Zero = "zero",
        /// A flush.
        Flush = "flush",
    }
}

kinds! {
    /// What is done to a file.
    DiskKind {
        /// A read.
        Read = "read",
        /// A write; to journal and metadata durable when it ends.
        Write = "write",
        /// Zeroes, or a hole.
        Zero = "zero",
        /// Everything before is made durable.
        Flush = "flush",
    }
}

/// A file of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFile {
    /// The journal.
    Journal,
    /// The metadata.
    Meta,
    /// The store of the volume with this index.
    Store(usize),
    /// A file beside the stores.
    Side(SideFile),
}

const REQUEST_KINDS: usize = RequestKind::ALL.len();
const DISK_KINDS: usize = DiskKind::ALL.len();

/// What is counted of a peer.
#[derive(Debug, Default)]
pub struct PeerMeters {
    /// From the end of the turn in which a Primary admitted something to the turn in which the peer's acknowledgement came.
    pub acknowledgement: Histogram,
    /// Bytes sent.
    pub sent_bytes: Counter,
    /// Bytes received.
    pub received_bytes: Counter,
    /// Connections that came to stand.
    pub connections: Counter,
}

/// All that the data thread counts.
#[derive(Debug, Default)]
pub struct Meters {
    requests: [[Work; REQUEST_KINDS]; VOLUMES_MAX],
    journal: [Work; DISK_KINDS],
    meta: [Work; DISK_KINDS],
    stores: [[Work; DISK_KINDS]; VOLUMES_MAX],
    sums: [Work; DISK_KINDS],
    stage: [Work; DISK_KINDS],
    peers: [PeerMeters; NODES_MAX],
    /// Turns of the data thread.
    pub turns: Counter,
    /// Nanoseconds that it had nothing to do.
    pub idle_nanos: Counter,
}

impl Meters {
    /// Requests of a kind to a volume.
    pub fn requests(&self, volume: usize, kind: RequestKind) -> &Work {
        &self.requests[volume][kind as usize]
    }

    /// Operations of a kind on a file.
    pub fn disk(&self, file: DiskFile, kind: DiskKind) -> &Work {
        let work = match file {
            DiskFile::Journal => &self.journal,
            DiskFile::Meta => &self.meta,
            DiskFile::Store(volume) => &self.stores[volume],
            DiskFile::Side(SideFile::Sums) => &self.sums,
            DiskFile::Side(SideFile::Stage) => &self.stage,
        };
        &work[kind as usize]
    }

    /// What is counted of a node.
    pub fn peer(&self, node: usize) -> &PeerMeters {
        &self.peers[node]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_bucket_that_ends_at_or_after_it() {
        let histogram = Histogram::default();
        for nanos in [0, 20_000, 20_001, 10_000_000_000, 10_000_000_001, u64::MAX] {
            histogram.observe(nanos);
        }
        let buckets = histogram.buckets();
        assert_eq!((buckets[0], buckets[1]), (2, 1));
        assert_eq!((buckets[17], buckets[18]), (1, 2));
        assert_eq!(buckets.iter().sum::<u64>(), 6);
    }

    #[test]
    fn readers_on_other_threads_see_what_was_counted() {
        let meters = std::sync::Arc::new(Meters::default());
        let reader = std::sync::Arc::clone(&meters);
        for _ in 0..1000 {
            let work = meters.disk(DiskFile::Store(15), DiskKind::Write);
            work.duration.observe(1);
            work.bytes.add(4096);
        }
        let seen = std::thread::spawn(move || {
            let work = reader.disk(DiskFile::Store(15), DiskKind::Write);
            (work.duration.buckets()[0], work.bytes.get())
        });
        assert_eq!(seen.join().unwrap(), (1000, 4_096_000));
    }
}
