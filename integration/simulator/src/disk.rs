//! Disks in memory, at the grain of sectors: they lose, keep and tear what was not durable when the power fails, and do
//! everything else that disks do to people. Contents are shared, not copied: a block of a batch is the same memory in
//! every journal, stream and store.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::rc::Rc;

use replicator::io::DiskError;
use replicator::memory::ALLOC_BLOCKS_MAX;
use replicator::meta::superblock::{COPIES, Superblock, choose, copy_offset};
use replicator::recover::BlockRead;
use replicator::types::{BLOCK_BYTES, BLOCK_BYTES_U64};

use crate::memory::Shared;
use crate::rng::Rng;

const SECTOR: usize = 512;

/// What a device has where nobody has written.
pub(crate) const LITTER: u8 = 0xd1;

/// The error number of a device that failed.
pub(crate) const EIO: i32 = 5;

/// The error number of a device that is full.
pub(crate) const ENOSPC: i32 = 28;

/// The contents of one block, within memory that others share.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    bytes: Rc<Vec<u8>>,
    at: usize,
    /// The disk harmed it: these are not the bytes that were written here.
    rotten: bool,
}

impl Block {
    pub(crate) fn zero() -> Self {
        thread_local! {
            static ZEROES: Rc<Vec<u8>> = Rc::new(vec![0; ALLOC_BLOCKS_MAX as usize * BLOCK_BYTES]);
        }
        let bytes = ZEROES.with(Rc::clone);
        Self {
            bytes,
            at: 0,
            rotten: false,
        }
    }

    fn owned(bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len(), BLOCK_BYTES);
        Self {
            bytes: Rc::new(bytes),
            at: 0,
            rotten: false,
        }
    }

    /// Whether it is the same memory. Nobody changes it while there are two handles.
    fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.bytes, &other.bytes) && self.at == other.at
    }

    /// Memory that holds these blocks one after the other, and the first one's place there, if there is some.
    pub(crate) fn in_one_piece(blocks: &[&Self]) -> Option<(Rc<Vec<u8>>, usize)> {
        let first = blocks.first()?;
        let follow = |(n, block): (usize, &&Self)| {
            Rc::ptr_eq(&block.bytes, &first.bytes) && block.at == first.at + n * BLOCK_BYTES
        };
        let zero = Self::zero();
        let zeroes = first.is(&zero) && blocks.iter().all(|block| block.is(&zero));
        let whole = zeroes || blocks.iter().enumerate().all(follow);
        whole.then(|| (Rc::clone(&first.bytes), first.at / BLOCK_BYTES))
    }

    /// The same bytes where they should not be.
    fn rotten(self) -> Self {
        Self {
            rotten: true,
            ..self
        }
    }

    /// The blocks of a piece of memory.
    pub(crate) fn all_of(
        bytes: &Rc<Vec<u8>>,
        first: usize,
        blocks: usize,
    ) -> impl Iterator<Item = Self> {
        (first..first + blocks).map(|block| Self {
            bytes: Rc::clone(bytes),
            at: block * BLOCK_BYTES,
            rotten: false,
        })
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.at..self.at + BLOCK_BYTES]
    }
}

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It is done.
    Done,
    /// It fails, and says so; some of it may be there.
    Fails(DiskError),
    /// The disk says that it is done, and nothing is.
    Lost,
    /// The disk says that it is done, and did it so many blocks further on.
    Stray(u64),
}

impl Fate {
    /// Whether something is lost by it of which nobody is told.
    pub(crate) fn harms(&self) -> bool {
        matches!(self, Self::Lost | Self::Stray(_))
    }
}

/// A completed write that no flush has covered, or one that is only begun.
struct Newer {
    /// When it was completed; `u64::MAX` while it is not.
    completed: u64,
    bytes: Block,
}

/// A block's durable contents, and what came after, in order.
struct Cell {
    durable: Block,
    newer: Vec<Newer>,
    /// What it held before the last write that was completed.
    before: Block,
}

impl Cell {
    fn newest(&self) -> &Block {
        self.newer.last().map_or(&self.durable, |n| &n.bytes)
    }

    /// Replaces what it holds, without a write.
    fn becomes(&mut self, bytes: Block) {
        match self.newer.last_mut() {
            Some(newer) => newer.bytes = bytes,
            None => self.durable = bytes,
        }
    }
}

/// A file or device. Blocks that were never written are zeroes.
#[derive(Default)]
pub(crate) struct Disk {
    cells: BTreeMap<u64, Cell>,
    /// Blocks that have something newer than what is durable.
    volatile: BTreeSet<u64>,
    clock: u64,
    /// Block ranges that are being written: two writes in flight never overlap.
    writing: Vec<(u64, u64)>,
    /// Every completed write is durable.
    write_through: bool,
    /// Nothing is durable before the disk tells the truth again, whatever it says.
    pub(crate) lies: bool,
    /// Blocks that can not be read until they are written.
    bad: BTreeSet<u64>,
    /// Blocks that it ever harmed, and how often it did harm.
    harmed_ever: BTreeSet<u64>,
    harms: u64,
    /// Blocks that can not be read, whatever is written to them.
    worn: BTreeSet<u64>,
    /// What was read from it as a superblock last, and from which blocks.
    superblock: RefCell<Option<SuperblockRead>>,
}

/// A superblock, or none, and the blocks that it was made of.
type SuperblockRead = ([Option<Block>; COPIES], Option<Superblock>);

/// The whole block number of a byte offset.
pub(crate) fn block_at(offset: u64) -> u64 {
    assert!(
        offset.is_multiple_of(BLOCK_BYTES_U64),
        "disk offsets are whole blocks"
    );
    offset / BLOCK_BYTES_U64
}

impl Disk {
    pub(crate) fn with(write_through: bool, contents: &[u8]) -> Self {
        let mut disk = Self {
            write_through,
            ..Self::default()
        };
        for (block, bytes) in (0..).zip(contents.chunks_exact(BLOCK_BYTES)) {
            if bytes.iter().any(|&b| b != 0) {
                disk.set(block, Block::owned(bytes.to_vec()));
            }
        }
        disk
    }

    /// These bytes were put there before anybody looked.
    pub(crate) fn hold(&mut self, block: u64, bytes: Vec<u8>) {
        self.set(block, Block::owned(bytes));
    }

    fn set(&mut self, block: u64, durable: Block) {
        let cell = self.cell(block);
        cell.before = std::mem::replace(&mut cell.durable, durable);
        cell.newer.clear();
        self.volatile.remove(&block);
    }

    fn cell(&mut self, block: u64) -> &mut Cell {
        self.cells.entry(block).or_insert_with(|| Cell {
            durable: Block::zero(),
            newer: Vec::new(),
            before: Block::zero(),
        })
    }

    /// A disk with the same contents, all of it durable.
    pub(crate) fn copy(&self) -> Self {
        let mut copy = Self {
            write_through: self.write_through,
            ..Self::default()
        };
        for (&block, cell) in &self.cells {
            copy.set(block, cell.newest().clone());
        }
        copy
    }

    /// What a block holds now; `None` for zeroes.
    pub(crate) fn block(&self, block: u64) -> Option<&Block> {
        Some(self.cells.get(&block)?.newest())
    }

    /// Reads blocks as a computer does.
    pub(crate) fn read(&self, block: u64, out: &mut [u8]) -> Result<(), DiskError> {
        let blocks = (out.len() / BLOCK_BYTES) as u64;
        self.readable(block, blocks)?;
        for (b, out) in (block..).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
            match self.block(b) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    /// The same, in memory that is there, if it can be.
    pub(crate) fn read_shared(&self, block: u64, blocks: u64) -> Result<Shared, DiskError> {
        self.readable(block, blocks)?;
        let zeroes = Block::zero();
        let held = |b| self.block(b).unwrap_or(&zeroes);
        let held: Vec<&Block> = (block..block + blocks).map(held).collect();
        Ok(Shared::of(&held))
    }

    fn readable(&self, block: u64, blocks: u64) -> Result<(), DiskError> {
        let harmed = |set: &BTreeSet<u64>| set.range(block..block + blocks).next().is_some();
        if harmed(&self.bad) || harmed(&self.worn) {
            return Err(DiskError::Os(EIO));
        }
        Ok(())
    }

    /// The superblock that a restart would find here. It is asked for with nearly every frame and seldom changes.
    pub(crate) fn superblock(&self) -> Option<Superblock> {
        let places: [u64; COPIES] = std::array::from_fn(|copy| block_at(copy_offset(copy)));
        if places.iter().any(|&place| self.readable(place, 1).is_err()) {
            return None;
        }
        let blocks = places.map(|place| self.block(place));
        let mut known = self.superblock.borrow_mut();
        if let Some((of, superblock)) = known.as_ref() {
            let same = |(a, b): (&Option<Block>, &Option<&Block>)| match (a, b) {
                (Some(a), Some(b)) => a.is(b),
                (None, None) => true,
                _ => false,
            };
            if of.iter().zip(&blocks).all(same) {
                return superblock.clone();
            }
        }
        let copies = blocks.map(|block| {
            let mut copy = [0; BLOCK_BYTES];
            if let Some(bytes) = block {
                copy.copy_from_slice(bytes);
            }
            copy
        });
        let superblock = choose(&copies).ok().map(|chosen| chosen.superblock);
        *known = Some((blocks.map(|block| block.cloned()), superblock.clone()));
        superblock
    }

    /// The blocks that were ever written.
    pub(crate) fn written(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.cells.iter().map(|(&b, c)| (b, c.newest()))
    }

    /// A write begins; if `early`, reads see it before it is completed.
    pub(crate) fn begin(&mut self, block: u64, data: &[Block], early: bool) {
        let end = block + data.len() as u64;
        assert!(
            self.writing.iter().all(|&(b, e)| end <= b || e <= block),
            "two writes in flight to the same blocks {block}..{end}"
        );
        self.writing.push((block, end));
        if early && !self.write_through {
            for (b, bytes) in (block..).zip(data) {
                self.push(b, u64::MAX, bytes);
            }
        }
    }

    fn push(&mut self, block: u64, completed: u64, bytes: &Block) {
        self.bad.remove(&block);
        if self.write_through && !self.lies {
            self.set(block, bytes.clone());
            return;
        }
        let cell = self.cell(block);
        cell.newer.retain(|n| n.completed != u64::MAX);
        if completed != u64::MAX {
            cell.before = cell.newest().clone();
        }
        let bytes = bytes.clone();
        cell.newer.push(Newer { completed, bytes });
        self.volatile.insert(block);
    }

    /// A write ended; what the disk says of it.
    pub(crate) fn end(
        &mut self,
        block: u64,
        data: &[Block],
        fate: Fate,
        rng: &mut Rng,
    ) -> Result<(), DiskError> {
        match fate {
            Fate::Done => {
                self.writing.retain(|&(b, _)| b != block);
                self.clock += 1;
                for (b, bytes) in (block..).zip(data) {
                    self.push(b, self.clock, bytes);
                }
                Ok(())
            }
            Fate::Fails(error) => {
                self.tear(block, data, rng);
                Err(error)
            }
            Fate::Lost => {
                self.forget(block, data.len());
                Ok(())
            }
            Fate::Stray(by) => {
                self.forget(block, data.len());
                self.clock += 1;
                for (b, bytes) in (block + by..).zip(data) {
                    self.does_harm(b);
                    self.push(b, self.clock, &bytes.clone().rotten());
                }
                Ok(())
            }
        }
    }

    /// A write that was begun leaves nothing: what was there before is old now.
    fn forget(&mut self, block: u64, blocks: usize) {
        self.writing.retain(|&(b, _)| b != block);
        for b in block..block + blocks as u64 {
            self.does_harm(b);
            let cell = self.cell(b);
            cell.newer.retain(|n| n.completed != u64::MAX);
            let old = cell.newest().clone().rotten();
            cell.becomes(old);
        }
    }

    /// A write failed or was cut off: some of it is there.
    pub(crate) fn tear(&mut self, block: u64, data: &[Block], rng: &mut Rng) {
        self.writing.retain(|&(b, _)| b != block);
        self.clock += 1;
        let mode = rng.below(5);
        let prefix = rng.below(data.len() as u64 + 1);
        for (b, bytes) in (block..).zip(data) {
            let kept = match mode {
                0 => continue,
                1 => bytes.clone(),
                2 if rng.chance(50) => continue,
                2 => bytes.clone(),
                3 if b >= block + prefix => continue,
                3 => bytes.clone(),
                _ => {
                    let old = self.block(b).cloned().unwrap_or_else(Block::zero);
                    mix(&old, bytes, rng)
                }
            };
            self.push(b, self.clock, &kept);
        }
    }

    /// The blocks before a place of which a power cut now could lose what they hold.
    pub(crate) fn unflushed_before(&self, end: u64) -> impl Iterator<Item = u64> {
        let writing = self.writing.iter().map(|&(b, _)| b);
        let volatile = self.volatile.range(..end).copied();
        volatile.chain(writing.filter(move |&b| b < end))
    }

    /// What a flush that begins now will make durable.
    pub(crate) fn flush_mark(&self) -> u64 {
        self.clock
    }

    /// A flush ended.
    pub(crate) fn flushed(&mut self, mark: u64) {
        if self.lies {
            return;
        }
        let cells = &mut self.cells;
        self.volatile.retain(|block| {
            let cell = cells.get_mut(block).expect("what is newer is in a cell");
            if let Some(last) = cell.newer.iter().rposition(|n| n.completed <= mark) {
                cell.durable = cell
                    .newer
                    .drain(..=last)
                    .next_back()
                    .expect("at least one")
                    .bytes;
            }
            !cell.newer.is_empty()
        });
    }

    /// The power fails: of what is not durable, anything may be lost, sector by sector.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) {
        for block in std::mem::take(&mut self.volatile) {
            let cell = self
                .cells
                .get_mut(&block)
                .expect("what is newer is in a cell");
            let newer = std::mem::take(&mut cell.newer);
            if newer.is_empty() {
                continue;
            }
            let last = &newer[rng.index(newer.len())].bytes;
            match rng.below(3) {
                0 => {}
                1 => cell.durable = last.clone(),
                _ => cell.durable = mix(&cell.durable, last, rng),
            }
        }
        self.writing.clear();
    }

    /// The disk tells the truth from now on, and about the past.
    pub(crate) fn settle(&mut self) {
        self.lies = false;
        if self.write_through {
            self.flushed(u64::MAX - 1);
        }
    }

    /// Rot: flips a bit of a block, if it was ever written.
    pub(crate) fn rot(&mut self, block: u64, bit: usize) {
        self.does_harm(block);
        if let Some(cell) = self.cells.get_mut(&block) {
            let mut bytes = cell.newest().to_vec();
            bytes[bit / 8 % BLOCK_BYTES] ^= 1 << (bit % 8);
            cell.becomes(Block::owned(bytes).rotten());
        }
    }

    /// A block holds what was written to another one.
    pub(crate) fn misdirect(&mut self, from: u64, to: u64) {
        self.does_harm(to);
        let other = self.block(from).cloned().unwrap_or_else(Block::zero);
        self.cell(to).becomes(other.rotten());
    }

    /// A block holds what it held before the last write to it, of which the disk said that it is done.
    pub(crate) fn take_back(&mut self, block: u64) {
        self.does_harm(block);
        let cell = self.cell(block);
        let before = cell.before.clone().rotten();
        cell.becomes(before);
    }

    /// A block is not what it should be.
    pub(crate) fn taint(&mut self, block: u64) {
        self.does_harm(block);
        let cell = self.cell(block);
        let old = cell.newest().clone().rotten();
        cell.becomes(old);
    }

    fn does_harm(&mut self, block: u64) {
        self.harmed_ever.insert(block);
        self.harms += 1;
    }

    /// Whether the disk ever harmed a block.
    pub(crate) fn was_harmed(&self, block: u64) -> bool {
        self.harmed_ever.contains(&block)
    }

    /// How often it did harm.
    pub(crate) fn harms(&self) -> u64 {
        self.harms
    }

    /// Whether the disk harmed a block: it holds what was not written there, or can not be read.
    pub(crate) fn is_harmed(&self, block: u64) -> bool {
        self.bad.contains(&block)
            || self.worn.contains(&block)
            || self.block(block).is_some_and(|b| b.rotten)
    }

    /// The blocks that the disk harmed.
    pub(crate) fn harmed(&self) -> impl Iterator<Item = u64> {
        let rotten = |c: &Cell| c.newest().rotten || c.durable.rotten;
        let cells = self.cells.iter().filter(move |(_, c)| rotten(c));
        let cells = cells.map(|(&b, _)| b);
        cells.chain(self.bad.iter().chain(&self.worn).copied())
    }

    /// Whether a block can not be read, whatever is written to it.
    pub(crate) fn is_worn(&self, block: u64) -> bool {
        self.worn.contains(&block)
    }

    /// A block can not be read any more, whatever is written to it.
    pub(crate) fn wear_out(&mut self, block: u64) {
        self.does_harm(block);
        self.worn.insert(block);
    }

    /// All blocks can be read again once they are written; what some held is lost.
    pub(crate) fn renew(&mut self) {
        let worn = std::mem::take(&mut self.worn);
        self.bad.extend(worn);
    }

    /// Something is there that nobody has written, unless somebody has.
    pub(crate) fn litter(&mut self, block: u64) {
        if !self.cells.contains_key(&block)
            && !self.writing.iter().any(|&(b, e)| (b..e).contains(&block))
        {
            self.set(block, Block::owned(vec![LITTER; BLOCK_BYTES]));
        }
    }

    /// What is behind a place is gone.
    pub(crate) fn truncate(&mut self, blocks: u64) {
        self.cells.retain(|&b, _| b < blocks);
        self.volatile.retain(|&b| b < blocks);
        self.bad.retain(|&b| b < blocks);
    }

    /// A block can not be read from now on.
    pub(crate) fn spoil(&mut self, block: u64) {
        self.does_harm(block);
        self.bad.insert(block);
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
    let mixed = Block::owned(bytes);
    if old.rotten || new.rotten {
        mixed.rotten()
    } else {
        mixed
    }
}

/// A disk as recovery reads it.
pub(crate) struct Reading<'a>(pub(crate) &'a Disk);

impl BlockRead for Reading<'_> {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read(block_at(offset), buffer)
    }
}
