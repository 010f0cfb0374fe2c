//! Memory that keeps the trait's rules to the letter, and says so loudly when the core does not.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use replicator::memory::{ALLOC_BLOCKS_MAX, Buffer, Memory, Purpose};
use replicator::types::BLOCK_BYTES;

use crate::disk::Block;

/// What new blocks are filled with: nobody may rely on it.
const POISON: u8 = 0xc5;

/// How much of each share is in use.
#[derive(Debug)]
struct Pool {
    total: [u32; 5],
    used: [Cell<u32>; 5],
}

#[derive(Debug)]
struct Arena {
    pool: Rc<Pool>,
    share: usize,
    /// Blocks of the share that it takes.
    blocks: u32,
    /// Others may look at these bytes for longer than the arena lives: disks and streams.
    bytes: Rc<Vec<u8>>,
    /// What disk reads brought while there were several handles, by the block where it begins.
    late: RefCell<Vec<(usize, Shared)>>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        let used = &self.pool.used[self.share];
        used.set(used.get() - self.blocks);
    }
}

/// A handle. What disk reads brought is merged when somebody looks; it may not change after that.
#[derive(Debug)]
pub(crate) struct SimBuffer {
    arena: Rc<Arena>,
    first: usize,
    blocks: usize,
    merged: OnceCell<(usize, Shared)>,
}

impl Clone for SimBuffer {
    fn clone(&self) -> Self {
        self.slice(0, Buffer::blocks(self))
    }
}

/// Bytes of a buffer as they are now, for disks and streams; they do not count for the share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) bytes: Rc<Vec<u8>>,
    /// In blocks.
    pub(crate) first: usize,
    pub(crate) blocks: usize,
}

impl Shared {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            blocks: bytes.len() / BLOCK_BYTES,
            bytes: Rc::new(bytes),
            first: 0,
        }
    }

    /// Blocks as one piece: the memory that they are in, if they follow each other there.
    pub(crate) fn of(blocks: &[&Block]) -> Self {
        if let Some((bytes, first)) = Block::in_one_piece(blocks) {
            return Self {
                bytes,
                first,
                blocks: blocks.len(),
            };
        }
        let mut bytes = Vec::with_capacity(blocks.len() * BLOCK_BYTES);
        for block in blocks {
            bytes.extend_from_slice(block);
        }
        Self::new(bytes)
    }

    fn as_slice(&self) -> &[u8] {
        let from = self.first * BLOCK_BYTES;
        &self.bytes[from..from + self.blocks * BLOCK_BYTES]
    }

    /// A part of it.
    fn slice(&self, first: usize, blocks: usize) -> Self {
        assert!(first + blocks <= self.blocks, "the part is within");
        Self {
            bytes: Rc::clone(&self.bytes),
            first: self.first + first,
            blocks,
        }
    }

    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block> {
        Block::all_of(&self.bytes, self.first, self.blocks)
    }

    /// Damages these bytes, and nobody else's.
    pub(crate) fn flip(&mut self, bit: u64) {
        let mut bytes = self.as_slice().to_vec();
        flip(&mut bytes, bit);
        *self = Self::new(bytes);
    }
}

/// Flips a bit, counted modulo how many there are.
pub(crate) fn flip(bytes: &mut [u8], bit: u64) {
    let bit = usize::try_from(bit % (bytes.len() as u64 * 8)).expect("a few MiB");
    bytes[bit / 8] ^= 1 << (bit % 8);
}

impl SimBuffer {
    /// A disk read ended: fills this handle's blocks.
    pub(crate) fn fill(&self, read: Shared) {
        assert_eq!(read.blocks, self.blocks);
        self.arena.late.borrow_mut().push((self.first, read));
    }

    /// The bytes as they are now. Writing to the buffer later does not change them.
    pub(crate) fn share(&self) -> Shared {
        if self.arena.late.borrow().is_empty() {
            return self.plain();
        }
        self.merge().clone()
    }

    /// What it holds without what disk reads brought.
    fn plain(&self) -> Shared {
        Shared {
            bytes: Rc::clone(&self.arena.bytes),
            first: self.first,
            blocks: self.blocks,
        }
    }

    fn merge(&self) -> &Shared {
        let late = self.arena.late.borrow();
        let merged = self.merged.get_or_init(|| {
            let end = self.first + self.blocks;
            let holds =
                |(at, read): &&(usize, Shared)| *at <= self.first && end <= at + read.blocks;
            if let Some((at, read)) = late.last().filter(holds) {
                return (late.len(), read.slice(self.first - at, self.blocks));
            }
            let mut bytes = self.plain().as_slice().to_vec();
            merge(&late, self.first, &mut bytes);
            (late.len(), Shared::new(bytes))
        });
        assert_eq!(merged.0, late.len(), "looked at before its read had ended");
        &merged.1
    }
}

/// Lays what disk reads brought over blocks that begin at `first`.
fn merge(late: &[(usize, Shared)], first: usize, out: &mut [u8]) {
    let blocks = out.len() / BLOCK_BYTES;
    for (at, read) in late {
        let begin = (*at).max(first);
        let end = (at + read.blocks).min(first + blocks);
        if begin < end {
            let part = read.slice(begin - at, end - begin);
            out[(begin - first) * BLOCK_BYTES..(end - first) * BLOCK_BYTES]
                .copy_from_slice(part.as_slice());
        }
    }
}

impl Buffer for SimBuffer {
    fn bytes(&self) -> &[u8] {
        if self.arena.late.borrow().is_empty() {
            let from = self.first * BLOCK_BYTES;
            return &self.arena.bytes[from..from + self.blocks * BLOCK_BYTES];
        }
        self.merge().as_slice()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let arena = Rc::get_mut(&mut self.arena).expect("written to while another handle exists");
        let late = arena.late.get_mut();
        if Rc::get_mut(&mut arena.bytes).is_none() || !late.is_empty() {
            // Others look at these bytes, or they are not in one place.
            let from = self.first * BLOCK_BYTES;
            let mut own = arena.bytes[from..from + self.blocks * BLOCK_BYTES].to_vec();
            merge(late, self.first, &mut own);
            arena.bytes = Rc::new(own);
            (self.first, self.merged) = (0, OnceCell::new());
            late.clear();
        }
        let bytes = Rc::get_mut(&mut arena.bytes).expect("nobody else has it");
        let from = self.first * BLOCK_BYTES;
        &mut bytes[from..from + self.blocks * BLOCK_BYTES]
    }

    fn slice(&self, first: u32, blocks: u32) -> Self {
        let (first, blocks) = (first as usize, blocks as usize);
        assert!(first + blocks <= self.blocks, "the slice is within");
        Self {
            arena: Rc::clone(&self.arena),
            first: self.first + first,
            blocks,
            merged: OnceCell::new(),
        }
    }

    fn shrink(&mut self, blocks: u32) {
        assert!(blocks > 0 && blocks as usize <= self.blocks && self.first == 0);
        let arena = Rc::get_mut(&mut self.arena).expect("shrunk while another handle exists");
        let used = &arena.pool.used[arena.share];
        used.set(used.get() - (arena.blocks - blocks));
        arena.blocks = blocks;
        self.blocks = blocks as usize;
    }

    fn blocks(&self) -> u32 {
        u32::try_from(self.blocks).expect("at most 512 blocks")
    }
}

/// Shares of bounded size.
#[derive(Debug)]
pub(crate) struct SimMemory(Rc<Pool>);

fn share(purpose: Purpose) -> usize {
    match purpose {
        Purpose::Client => 0,
        Purpose::Core => 1,
        Purpose::Peer => 2,
        Purpose::Apply => 3,
        Purpose::Edge => 4,
    }
}

impl SimMemory {
    /// Shares for clients, core, peers and applies, in blocks, and what so many requests cover in part.
    pub(crate) fn new([clients, core, peers, applies]: [u32; 4], requests_max: u32) -> Self {
        Self(Rc::new(Pool {
            total: [clients, core, peers, applies, 2 * requests_max],
            used: [const { Cell::new(0) }; 5],
        }))
    }

    /// Memory for bytes that are there already.
    pub(crate) fn adopt(&self, purpose: Purpose, shared: Shared) -> Option<SimBuffer> {
        let blocks = u32::try_from(shared.blocks).expect("at most 512 blocks");
        assert!((1..=ALLOC_BLOCKS_MAX).contains(&blocks));
        if blocks > self.free_blocks(purpose) {
            return None;
        }
        let share = share(purpose);
        let used = &self.0.used[share];
        used.set(used.get() + blocks);
        Some(SimBuffer {
            arena: Rc::new(Arena {
                pool: Rc::clone(&self.0),
                share,
                blocks,
                bytes: shared.bytes,
                late: RefCell::default(),
            }),
            first: shared.first,
            blocks: shared.blocks,
            merged: OnceCell::new(),
        })
    }
}

impl Memory for SimMemory {
    type Buffer = SimBuffer;

    fn alloc(&mut self, purpose: Purpose, blocks: u32) -> Option<SimBuffer> {
        assert!((1..=ALLOC_BLOCKS_MAX).contains(&blocks));
        if blocks > self.free_blocks(purpose) {
            return None;
        }
        let blocks = blocks as usize;
        thread_local! {
            static POISONED: Rc<Vec<u8>> = Rc::new(vec![POISON; ALLOC_BLOCKS_MAX as usize * BLOCK_BYTES]);
        }
        let bytes = POISONED.with(Rc::clone);
        self.adopt(
            purpose,
            Shared {
                bytes,
                first: 0,
                blocks,
            },
        )
    }

    fn free_blocks(&self, purpose: Purpose) -> u32 {
        let share = share(purpose);
        self.0.total[share] - self.0.used[share].get()
    }

    fn total_blocks(&self, purpose: Purpose) -> u32 {
        self.0.total[share(purpose)]
    }
}
