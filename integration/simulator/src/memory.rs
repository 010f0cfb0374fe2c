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
    /// What disk reads brought while there were several handles, by the byte where it begins.
    late: RefCell<Vec<(usize, Rc<Vec<u8>>)>>,
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
    merged: OnceCell<(usize, Rc<Vec<u8>>)>,
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
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block> {
        Block::all_of(&self.bytes, self.first, self.blocks)
    }

    /// Damages these bytes, and nobody else's.
    pub(crate) fn flip(&mut self, bit: u64) {
        let from = self.first * BLOCK_BYTES;
        let mut bytes = self.bytes[from..from + self.blocks * BLOCK_BYTES].to_vec();
        flip(&mut bytes, bit);
        (self.bytes, self.first) = (Rc::new(bytes), 0);
    }
}

/// Flips a bit, counted modulo how many there are.
pub(crate) fn flip(bytes: &mut [u8], bit: u64) {
    let bit = usize::try_from(bit % (bytes.len() as u64 * 8)).expect("a few MiB");
    bytes[bit / 8] ^= 1 << (bit % 8);
}

impl SimBuffer {
    /// A disk read ended: fills this handle's blocks.
    pub(crate) fn fill(&self, bytes: Vec<u8>) {
        assert_eq!(bytes.len(), self.blocks * BLOCK_BYTES);
        let at = self.first * BLOCK_BYTES;
        self.arena.late.borrow_mut().push((at, Rc::new(bytes)));
    }

    /// The bytes as they are now. Writing to the buffer later does not change them.
    pub(crate) fn share(&self) -> Shared {
        if self.arena.late.borrow().is_empty() {
            return Shared {
                bytes: Rc::clone(&self.arena.bytes),
                first: self.first,
                blocks: self.blocks,
            };
        }
        Shared {
            bytes: Rc::clone(&self.merge().1),
            first: 0,
            blocks: self.blocks,
        }
    }

    fn merge(&self) -> &(usize, Rc<Vec<u8>>) {
        let late = self.arena.late.borrow();
        let merged = self.merged.get_or_init(|| {
            let from = self.first * BLOCK_BYTES;
            if let [(at, bytes)] = late.as_slice()
                && (*at, bytes.len()) == (from, self.blocks * BLOCK_BYTES)
            {
                return (1, Rc::clone(bytes));
            }
            let mut bytes = self.arena.bytes[from..from + self.blocks * BLOCK_BYTES].to_vec();
            merge(&late, from, &mut bytes);
            (late.len(), Rc::new(bytes))
        });
        assert_eq!(merged.0, late.len(), "looked at before its read had ended");
        merged
    }
}

fn merge(late: &[(usize, Rc<Vec<u8>>)], from: usize, out: &mut [u8]) {
    for (at, bytes) in late {
        let begin = (*at).max(from);
        let end = (at + bytes.len()).min(from + out.len());
        if begin < end {
            out[begin - from..end - from].copy_from_slice(&bytes[begin - at..end - at]);
        }
    }
}

impl Buffer for SimBuffer {
    fn bytes(&self) -> &[u8] {
        if self.arena.late.borrow().is_empty() {
            let from = self.first * BLOCK_BYTES;
            return &self.arena.bytes[from..from + self.blocks * BLOCK_BYTES];
        }
        &self.merge().1
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.merged = OnceCell::new();
        let arena = Rc::get_mut(&mut self.arena).expect("written to while another handle exists");
        let plain = Rc::make_mut(&mut arena.bytes);
        for (at, bytes) in arena.late.get_mut().drain(..) {
            plain[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let from = self.first * BLOCK_BYTES;
        &mut plain[from..from + self.blocks * BLOCK_BYTES]
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
        let bytes = Rc::new(vec![POISON; blocks * BLOCK_BYTES]);
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
