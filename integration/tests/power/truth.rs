//! What the three recordings together say: the one log, what of it was committed when, and what clients were promised
//! when. From the writes that ended, without the code that recovers.

use std::collections::HashMap;

use nbd_server::reactor::record::tape::Change;
use replicator::journal::batch::{self, Header, Kind};
use replicator::store::sums::BlockSum;
use replicator::types::*;

use crate::cluster::NODES;
use crate::stream::{Done, Moment, Stream};
use crate::walk::{Link, Walk};

/// A batch that became durable somewhere.
#[derive(Debug)]
struct Batch {
    header: Header,
    bytes: Vec<u8>,
}

/// What a record of the log made of a block.
#[derive(Clone, Copy, Debug)]
struct Version {
    seq: Seq,
    /// The batch, and the block in it; `None` for zeroes.
    from: Option<(u32, u32)>,
    /// What the table of checksums should have of it.
    sum: BlockSum,
}

/// The log, and times.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    batches: HashMap<u32, Batch>,
    /// The batches of the log, by checksum, and the last record of each.
    log: HashMap<u32, Seq>,
    pub(crate) tail: RecordId,
    /// All versions of a block, oldest first.
    blocks: HashMap<(VolumeId, u64), Vec<Version>>,
    /// When how much of the log was durable on a majority.
    majority: Vec<(u64, Seq)>,
    /// When clients were promised how much of the log.
    promised: Vec<(u64, Seq)>,
    /// Batches that were durable somewhere and did not become part of the log.
    pub(crate) cut: usize,
    /// Changes that clients were told to be done.
    pub(crate) done: usize,
}

static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

impl Truth {
    /// Goes through the recordings. An error if they contradict each other or the rules.
    pub(crate) fn of(streams: &[Stream]) -> Result<Self, String> {
        let mut truth = Self::default();
        let mut names = HashMap::new();
        let (mut tails, mut ends) = (Vec::new(), Vec::new());
        for (node, stream) in streams.iter().enumerate() {
            let mut walk = Walk::created(node);
            for Moment { nanos, step } in &stream.moments {
                let before = walk.tail();
                let mut added = Vec::new();
                walk.step(step, |link, bytes| added.push((*link, bytes.to_vec())))
                    .map_err(|error| format!("node {node}: {error}"))?;
                for (Link { header, .. }, bytes) in added {
                    let (id, name) = (header.last_id(), header.checksum);
                    if *names.entry(id).or_insert(name) != name {
                        return Err(format!("two batches are called {id} (N1)"));
                    }
                    truth.batches.insert(name, Batch { header, bytes });
                }
                if walk.tail() != before
                    && let Some(link) = walk.chain.last()
                {
                    tails.push((*nanos, node, link.header.checksum));
                }
            }
            ends.extend(walk.chain.last().map(|link| link.header));
        }
        let end = ends.iter().max_by_key(|header| header.last_id());
        truth.follow(end.ok_or("no log")?)?;
        for end in &ends {
            if !truth.log.contains_key(&end.checksum) {
                return Err(format!("a log ends with {}, which was cut", end.last_id()));
            }
        }
        truth.time(tails);
        for stream in streams {
            for done in &stream.done {
                let needed = truth.needed_for(done)?;
                truth.promised.push((done.nanos, needed));
                truth.done += 1;
            }
        }
        truth.promised.sort_unstable();
        running_maximum(&mut truth.promised);
        truth.cut = truth.batches.len() - truth.log.len();
        Ok(truth)
    }

    /// Makes the log what ends with this batch.
    fn follow(&mut self, end: &Header) -> Result<(), String> {
        self.tail = end.last_id();
        let mut chain = vec![end.checksum];
        let mut at = *end;
        while at.prev_id() != RecordId::NONE {
            let prev = self.batches.get(&at.prev_checksum);
            at = prev.ok_or("the log has a gap")?.header;
            chain.push(at.checksum);
        }
        for name in chain.into_iter().rev() {
            let batch = &self.batches[&name];
            self.log.insert(name, batch.header.last());
            let records = batch::descriptors(&batch.bytes, &batch.header).flatten();
            for (seq, record) in (batch.header.first.0..).map(Seq).zip(records) {
                let from = |index| match record.kind {
                    Kind::Write => Some(Some((name, record.payload + index))),
                    Kind::Zero { .. } => Some(None),
                    Kind::Epoch | Kind::Membership | Kind::Demote | Kind::Volumes => None,
                };
                for index in 0..record.blocks {
                    if let Some(from) = from(index) {
                        let block = (record.volume, record.block + u64::from(index));
                        let sum = from.map_or(BlockSum::ZERO, |(_, at)| {
                            let bytes = &batch.bytes[at as usize * BLOCK_BYTES..][..BLOCK_BYTES];
                            BlockSum::of(block.0, block.1, bytes)
                        });
                        let versions = self.blocks.entry(block).or_default();
                        versions.push(Version { seq, from, sum });
                    }
                }
            }
        }
        Ok(())
    }

    /// Works out when how much of the log was durable on a majority, from when a node's log had which end.
    fn time(&mut self, mut tails: Vec<(u64, usize, u32)>) {
        tails.sort_unstable();
        let mut durable = [Seq(0); NODES];
        for (nanos, node, name) in tails {
            durable[node] = durable[node].max(self.part_of_log(name));
            let mut sorted = durable;
            sorted.sort_unstable();
            self.majority.push((nanos, sorted[NODES / 2]));
        }
    }

    /// The last record of the log that a chain ending with this batch holds.
    fn part_of_log(&self, mut name: u32) -> Seq {
        loop {
            if let Some(seq) = self.log.get(&name) {
                return *seq;
            }
            let Some(batch) = self.batches.get(&name) else {
                return Seq(0);
            };
            name = batch.header.prev_checksum;
        }
    }

    /// Up to which record the log must be kept so that a change stays done.
    fn needed_for(&self, done: &Done) -> Result<Seq, String> {
        let length = match &done.change {
            Change::Bytes(bytes) => bytes.len() as u64,
            Change::Zeroes(length) => *length,
        };
        let (mut at, end) = (done.offset, done.offset + length);
        let mut needed = Seq(0);
        while at < end {
            let block = at / BLOCK_BYTES_U64;
            let to = end.min((block + 1) * BLOCK_BYTES_U64);
            let range = (at % BLOCK_BYTES_U64) as usize..(at % BLOCK_BYTES_U64 + to - at) as usize;
            let wanted = match &done.change {
                Change::Bytes(bytes) => {
                    &bytes[(at - done.offset) as usize..(to - done.offset) as usize]
                }
                Change::Zeroes(_) => &ZEROES[range.clone()],
            };
            let versions = self.blocks.get(&(done.volume, block));
            let found = versions.into_iter().flatten().find(|version| {
                version.seq > done.after
                    && version.seq <= done.until
                    && self.contents(version)[range.clone()] == *wanted
            });
            let found = found.ok_or_else(|| {
                format!(
                    "bytes {at}..{to} of volume {} were acknowledged, and no committed record has them",
                    done.volume
                )
            })?;
            needed = needed.max(found.seq);
            at = to;
        }
        Ok(needed)
    }

    fn contents(&self, version: &Version) -> &[u8] {
        match version.from {
            None => &ZEROES,
            Some((name, block)) => {
                &self.batches[&name].bytes[block as usize * BLOCK_BYTES..][..BLOCK_BYTES]
            }
        }
    }

    fn version(&self, volume: VolumeId, block: u64, through: Seq) -> Option<&Version> {
        let versions = self.blocks.get(&(volume, block))?;
        let newer = versions.partition_point(|version| version.seq <= through);
        versions[..newer].last()
    }

    /// A block after the replay of records 1 to `through`.
    pub(crate) fn block(&self, volume: VolumeId, block: u64, through: Seq) -> &[u8] {
        let version = self.version(volume, block, through);
        version.map_or(&ZEROES, |version| self.contents(version))
    }

    /// The last of the records 1 to `through` that changed a block; 0 if none did.
    pub(crate) fn changed(&self, volume: VolumeId, block: u64, through: Seq) -> Seq {
        let version = self.version(volume, block, through);
        version.map_or(Seq(0), |version| version.seq)
    }

    /// Whether what the table of checksums has of a block is right after the replay of records 1 to `through`.
    pub(crate) fn is_sum(&self, volume: VolumeId, block: u64, through: Seq, sum: BlockSum) -> bool {
        let version = self.version(volume, block, through);
        // Mostly it is the very sum; that spares the work of another one.
        sum == version.map_or(BlockSum::ZERO, |version| version.sum)
            || (sum != BlockSum::UNKNOWN
                && sum.admits(volume, block, self.block(volume, block, through)))
    }

    /// The last record of a batch, if it is part of the log.
    pub(crate) fn in_log(&self, name: u32) -> Option<Seq> {
        self.log.get(&name).copied()
    }

    /// How much of the log was durable on a majority by then: nothing beyond it was committed.
    pub(crate) fn majority_at(&self, nanos: u64) -> Seq {
        at(&self.majority, nanos)
    }

    /// How much of the log clients were promised by then.
    pub(crate) fn promised_at(&self, nanos: u64) -> Seq {
        at(&self.promised, nanos)
    }
}

fn running_maximum(points: &mut [(u64, Seq)]) {
    let mut most = Seq(0);
    for (_, seq) in points {
        most = most.max(*seq);
        *seq = most;
    }
}

fn at(points: &[(u64, Seq)], nanos: u64) -> Seq {
    match points.partition_point(|(when, _)| *when <= nanos) {
        0 => Seq(0),
        later => points[later - 1].1,
    }
}
