//! Disks in memory that lose and tear what was not durable when the power fails.

use std::collections::BTreeMap;
use std::rc::Rc;

use replicator::io::DiskError;
use replicator::recover::BlockRead;
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64};

use crate::rng::Rng;

const SECTOR: usize = 512;

pub(crate) type Block = Rc<[u8]>;

/// Completed writes are in one of these, durable up to a flush.
struct Version {
    /// When it was completed; `u64::MAX` while it is not.
    completed: u64,
    bytes: Block,
}

/// A file or device. Blocks that were never written are zeroes.
#[derive(Default)]
pub(crate) struct Disk {
    /// The versions of each block, the first one durable.
    blocks: BTreeMap<u64, Vec<Version>>,
    clock: u64,
    /// Block ranges that are being written: two writes in flight never overlap.
    writing: Vec<(u64, u64)>,
    /// Every completed write is durable.
    pub(crate) durable: bool,
}

fn zeroes() -> Block {
    Rc::from([0; BLOCK_BYTES].as_slice())
}

/// The whole block number of a byte offset.
pub(crate) fn block_at(offset: u64) -> u64 {
    assert!(
        offset.is_multiple_of(BLOCK_BYTES_U64),
        "disk offsets are whole blocks"
    );
    offset / BLOCK_BYTES_U64
}

impl Disk {
    pub(crate) fn with(durable: bool, contents: &[u8]) -> Self {
        let mut disk = Self {
            durable,
            ..Self::default()
        };
        for (block, bytes) in (0..).zip(contents.chunks_exact(BLOCK_BYTES)) {
            if bytes.iter().any(|&b| b != 0) {
                let version = Version {
                    completed: 0,
                    bytes: Rc::from(bytes),
                };
                disk.blocks.insert(block, vec![version]);
            }
        }
        disk
    }

    /// A disk with the same contents.
    pub(crate) fn copy(&self) -> Self {
        let newest = |(&b, v): (&u64, &Vec<Version>)| {
            let bytes = Rc::clone(&v.last()?.bytes);
            Some((
                b,
                vec![Version {
                    completed: 0,
                    bytes,
                }],
            ))
        };
        Self {
            blocks: self.blocks.iter().filter_map(newest).collect(),
            durable: self.durable,
            ..Self::default()
        }
    }

    /// What a read of a block gives; `None` for zeroes.
    pub(crate) fn block(&self, block: u64) -> Option<&Block> {
        Some(&self.blocks.get(&block)?.last()?.bytes)
    }

    pub(crate) fn read_bytes(&self, block: u64, out: &mut [u8]) {
        for (b, out) in (block..).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
            match self.block(b) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.fill(0),
            }
        }
    }

    /// The blocks that were ever written.
    pub(crate) fn written(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.blocks
            .iter()
            .filter_map(|(&b, v)| Some((b, &v.last()?.bytes)))
    }

    /// A write begins; if `early`, reads see it before it is completed.
    pub(crate) fn begin(&mut self, block: u64, data: &[Block], early: bool) {
        let end = block + data.len() as u64;
        assert!(
            self.writing.iter().all(|&(b, e)| end <= b || e <= block),
            "two writes in flight to the same blocks {block}..{end}"
        );
        self.writing.push((block, end));
        if early && !self.durable {
            for (b, bytes) in (block..).zip(data) {
                self.push(b, u64::MAX, bytes);
            }
        }
    }

    fn push(&mut self, block: u64, completed: u64, bytes: &Block) {
        let versions = self.blocks.entry(block).or_insert_with(|| {
            vec![Version {
                completed: 0,
                bytes: zeroes(),
            }]
        });
        versions.retain(|v| v.completed != u64::MAX);
        versions.push(Version {
            completed,
            bytes: Rc::clone(bytes),
        });
        if self.durable {
            versions.drain(..versions.len() - 1);
        }
    }

    /// A write is completed.
    pub(crate) fn complete(&mut self, block: u64, data: &[Block]) {
        self.writing.retain(|&(b, _)| b != block);
        self.clock += 1;
        for (b, bytes) in (block..).zip(data) {
            self.push(b, self.clock, bytes);
        }
    }

    /// A write failed or was cut off: some of it is there.
    pub(crate) fn tear(&mut self, block: u64, data: &[Block], rng: &mut Rng) {
        self.writing.retain(|&(b, _)| b != block);
        self.clock += 1;
        let mode = rng.below(4);
        for (b, bytes) in (block..).zip(data) {
            let kept = match mode {
                0 => continue,
                1 => Rc::clone(bytes),
                2 if rng.chance(50) => continue,
                2 => Rc::clone(bytes),
                _ => {
                    let old = self.block(b).cloned().unwrap_or_else(zeroes);
                    mix(&old, bytes, rng)
                }
            };
            self.push(b, self.clock, &kept);
        }
    }

    /// What a flush that begins now will make durable.
    pub(crate) fn flush_mark(&self) -> u64 {
        self.clock
    }

    /// A flush ended.
    pub(crate) fn flushed(&mut self, mark: u64) {
        for versions in self.blocks.values_mut() {
            if let Some(last) = versions.iter().rposition(|v| v.completed <= mark) {
                versions.drain(..last);
            }
        }
    }

    /// The power fails: of what is not durable, anything may be lost, sector by sector.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) {
        for versions in self.blocks.values_mut() {
            if versions.len() > 1 {
                let last = &versions[rng.index(versions.len())].bytes;
                let bytes = match rng.below(3) {
                    0 => Rc::clone(&versions[0].bytes),
                    1 => Rc::clone(last),
                    _ => mix(&versions[0].bytes, last, rng),
                };
                *versions = vec![Version {
                    completed: 0,
                    bytes,
                }];
            }
        }
        self.writing.clear();
    }

    /// Rot: flips a bit of a block.
    pub(crate) fn rot(&mut self, block: u64) {
        if let Some(version) = self.blocks.get_mut(&block).and_then(|v| v.last_mut()) {
            let mut bytes = version.bytes.to_vec();
            bytes[77] ^= 0x10;
            version.bytes = Rc::from(bytes);
        }
    }
}

fn mix(old: &Block, new: &Block, rng: &mut Rng) -> Block {
    let mut bytes = old.to_vec();
    let which = rng.next();
    for (i, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        if which >> i & 1 == 1 {
            sector.copy_from_slice(&new[i * SECTOR..(i + 1) * SECTOR]);
        }
    }
    Rc::from(bytes)
}

/// A disk as recovery reads it.
pub(crate) struct Reading<'a>(pub(crate) &'a Disk);

impl BlockRead for Reading<'_> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read_bytes(block_at(offset), buffer);
        Ok(())
    }
}

/// The disks of one node.
pub(crate) struct Disks {
    pub(crate) meta: Disk,
    pub(crate) journal: Disk,
    pub(crate) stores: Vec<Disk>,
}
