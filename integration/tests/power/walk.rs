//! Going through a node's recording: its disks, and what it has durably and said, at each place.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nbd_server::reactor::record::tape::Part;
use replicator::journal::batch::{self, Header};
use replicator::meta::superblock::{COPIES, COPIES_QUORUM, COPY_STRIDE_BYTES, Superblock};
use replicator::types::*;

use crate::cluster::JOURNAL_BYTES;
use crate::media::Media;
use crate::stream::{Op, OpId, Step, Work};

/// Blocks of the ring.
pub(crate) const RING_BLOCKS: u64 = JOURNAL_BYTES / BLOCK_BYTES_U64 - 1;

/// A batch of the log, and its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) header: Header,
    pub(crate) position: u64,
}

impl Link {
    pub(crate) fn end(&self) -> u64 {
        self.position + u64::from(self.header.blocks())
    }
}

/// A node at some place of its recording.
#[derive(Clone)]
pub(crate) struct Walk {
    pub(crate) media: Media,
    /// The journal as it is for certain, if no durable write was in vain; zeroes elsewhere.
    journal: Arc<Vec<u8>>,
    open: HashMap<OpId, Arc<Op>>,
    /// The batches that are durable, each following the one before.
    pub(crate) chain: Vec<Link>,
    places: HashMap<u32, usize>,
    /// Every batch that was ever submitted, by checksum: its header, and the block of the ring that it was meant for.
    pub(crate) submitted: HashMap<u32, (Header, u64)>,
    /// Every superblock that was ever submitted, by version.
    pub(crate) versions: BTreeMap<u64, Superblock>,
    copies: [u64; COPIES],
    /// The newest superblock that is durable.
    pub(crate) version: u64,
    /// The highest epoch that a peer was told to be promised.
    pub(crate) promised: Epoch,
    /// A durable write that the disk loses, to show that this would be noticed.
    lost: Option<OpId>,
}

impl Walk {
    /// A node that was just created.
    pub(crate) fn created(node: usize) -> Self {
        let media = Media::created(node);
        let block = &media.bytes(Part::Meta)[..BLOCK_BYTES];
        let superblock = Superblock::decode(0, block).expect("of this version");
        let superblock = superblock.expect("it was just created");
        Self {
            journal: Arc::new(media.bytes(Part::Journal).to_vec()),
            media,
            open: HashMap::new(),
            chain: Vec::new(),
            places: HashMap::new(),
            submitted: HashMap::new(),
            copies: [superblock.version; COPIES],
            version: superblock.version,
            versions: BTreeMap::from([(superblock.version, superblock)]),
            promised: Epoch(0),
            lost: None,
        }
    }

    /// From now on the disk does not carry out this operation, and says that it did.
    pub(crate) fn lose(&mut self, id: OpId) {
        self.lost = Some(id);
    }

    /// The node's life after the power was cut in this state of its disks: it has said what it has said, has nothing in
    /// flight, and goes on from superblock `chosen`. A newer one that is there in a single copy is none; another may
    /// get its number.
    pub(crate) fn restarted(&self, chosen: u64) -> Self {
        let mut after = Self {
            media: self.media.restarted(),
            open: HashMap::new(),
            version: chosen,
            ..self.clone()
        };
        after.versions.retain(|version, _| *version <= chosen);
        for (copy, version) in after.copies.iter_mut().enumerate() {
            let at = copy * COPY_STRIDE_BYTES as usize;
            let block = &after.media.bytes(Part::Meta)[at..at + BLOCK_BYTES];
            let found = Superblock::decode(copy, block).ok().flatten();
            // A newer one is no copy of the one that may yet get its number.
            *version = found.map_or(0, |superblock| superblock.version);
            if *version > chosen {
                *version = 0;
            }
        }
        after
    }

    /// The newest record that is durable, with all before it.
    pub(crate) fn tail(&self) -> RecordId {
        let last = self.chain.last();
        last.map_or(RecordId::NONE, |link| link.header.last_id())
    }

    /// Takes the next step. `fresh` is given each batch that becomes durable. An error if the node did or said what it
    /// must not.
    pub(crate) fn step(
        &mut self,
        step: &Step,
        mut fresh: impl FnMut(&Link, &[u8]),
    ) -> Result<(), String> {
        match step {
            Step::Begin(id, op) => {
                self.open.insert(*id, Arc::clone(op));
                match (op.part, &op.work) {
                    (Part::Journal, Work::Write(bytes)) => self.journal_begins(op.offset, bytes)?,
                    (Part::Meta, Work::Write(bytes)) => self.meta_begins(op.offset, bytes)?,
                    _ => {}
                }
            }
            Step::End(id, moved) => {
                let op = self.open.remove(id).ok_or("what ends was not begun")?;
                if op.durable && *moved == Some(op.length()) {
                    match (op.part, &op.work) {
                        (Part::Journal, Work::Write(bytes)) => {
                            self.journal_ended(op.offset, bytes, &mut fresh);
                        }
                        (Part::Meta, Work::Write(bytes)) => self.meta_ended(op.offset, bytes),
                        _ => {}
                    }
                }
            }
            Step::Acked(seq) if *seq > self.tail().seq => {
                return Err(format!(
                    "acknowledged {seq}, and has {} durably",
                    self.tail()
                ));
            }
            Step::Acked(_) => {}
            Step::Reported(promised, tail) => {
                self.promised = self.promised.max(*promised);
                let durable = self.durable_version().promised;
                if *promised > durable {
                    return Err(format!("told of {promised}, has {durable} durably"));
                }
                if *tail != RecordId::NONE && !self.has(*tail) {
                    return Err(format!("told of {tail}, has {} durably", self.tail()));
                }
            }
        }
        let lost = match step {
            Step::Begin(id, _) | Step::End(id, _) => self.lost == Some(*id),
            Step::Acked(_) | Step::Reported(..) => false,
        };
        if lost { Ok(()) } else { self.media.step(step) }
    }

    /// The newest superblock that is durable.
    pub(crate) fn durable_version(&self) -> &Superblock {
        &self.versions[&self.version]
    }

    fn has(&self, id: RecordId) -> bool {
        let at = self
            .chain
            .partition_point(|link| link.header.last() < id.seq);
        self.chain
            .get(at)
            .is_some_and(|link| link.header.epoch == id.epoch && link.header.first <= id.seq)
    }

    fn journal_begins(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let mut at = 0;
        // A piece of a batch that goes on at the start of the ring has no header.
        while let Some(block) = bytes.get(at..at + BLOCK_BYTES)
            && let Ok(header) = batch::read_header(block)
        {
            let place = (offset + at as u64) / BLOCK_BYTES_U64 - 1;
            self.submitted.insert(header.checksum, (header, place));
            self.diverge(&header)?;
            at += header.blocks() as usize * BLOCK_BYTES;
        }
        // Until it has ended, nothing there is certain.
        Arc::make_mut(&mut self.journal)[offset as usize..][..bytes.len()].fill(0);
        Ok(())
    }

    /// A batch that follows an earlier one than the last takes the place of what came after it: from now on the disk may
    /// have the one or the other.
    fn diverge(&mut self, header: &Header) -> Result<(), String> {
        let Some(place) = self.places.get(&header.prev_checksum).copied() else {
            return Ok(());
        };
        if place + 1 < self.chain.len() {
            let next = self.chain[place + 1].header;
            if header.epoch <= next.epoch {
                return Err(format!(
                    "{} takes the place of {} (N2)",
                    header.last_id(),
                    next.last_id()
                ));
            }
            for link in self.chain.drain(place + 1..) {
                self.places.remove(&link.header.checksum);
            }
        }
        Ok(())
    }

    fn journal_ended(&mut self, offset: u64, bytes: &[u8], fresh: &mut impl FnMut(&Link, &[u8])) {
        let journal = Arc::make_mut(&mut self.journal);
        journal[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        loop {
            let (position, prev, checksum) =
                self.chain.last().map_or((0, RecordId::NONE, 0), |l| {
                    (l.end(), l.header.last_id(), l.header.checksum)
                });
            let Ok(header) = batch::read_header(&ring(&self.journal, position, 1)) else {
                return;
            };
            let batch = ring(&self.journal, position, u64::from(header.blocks()));
            let follows = header.prev_id() == prev && header.prev_checksum == checksum;
            if !follows || batch::verify(&batch).is_err() {
                return;
            }
            let link = Link { header, position };
            fresh(&link, &batch);
            self.places.insert(header.checksum, self.chain.len());
            self.chain.push(link);
        }
    }

    fn meta_begins(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let copy = (offset / COPY_STRIDE_BYTES) as usize;
        let decoded = Superblock::decode(copy, bytes).ok().flatten();
        let superblock = decoded.ok_or("a superblock that does not verify was submitted")?;
        let version = superblock.version;
        let earlier = self.versions.insert(version, superblock);
        if earlier.is_some_and(|earlier| earlier != self.versions[&version]) {
            return Err(format!("two superblocks of version {version}"));
        }
        Ok(())
    }

    fn meta_ended(&mut self, offset: u64, bytes: &[u8]) {
        let copy = (offset / COPY_STRIDE_BYTES) as usize;
        let Ok(Some(superblock)) = Superblock::decode(copy, bytes) else {
            return;
        };
        let version = superblock.version;
        self.copies[copy] = version;
        if self.copies.iter().filter(|v| **v == version).count() >= COPIES_QUORUM {
            self.version = self.version.max(version);
        }
    }
}

/// Blocks of the ring of a journal, which may lie across its end.
pub(crate) fn ring(journal: &[u8], position: u64, blocks: u64) -> Cow<'_, [u8]> {
    let at = position % RING_BLOCKS;
    let before = (RING_BLOCKS - at).min(blocks);
    let bytes = |block: u64, blocks: u64| {
        let from = (1 + block) as usize * BLOCK_BYTES;
        &journal[from..from + blocks as usize * BLOCK_BYTES]
    };
    if before == blocks {
        Cow::Borrowed(bytes(at, blocks))
    } else {
        let mut whole = bytes(at, before).to_vec();
        whole.extend_from_slice(bytes(0, blocks - before));
        Cow::Owned(whole)
    }
}
