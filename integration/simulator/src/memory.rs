//! Memory that keeps the trait's rules to the letter, and says so loudly when the core does not.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use replicator::memory::{ALLOC_BLOCKS_MAX, Buffer, Memory, Purpose};
use replicator::types::BLOCK_BYTES;

/// What new blocks are filled with: nobody may rely on it.
const POISON: u8 = 0xc5;

/// How much of each share is in use.
#[derive(Debug)]
struct Pool {
    total: [u32; 4],
    used: [Cell<u32>; 4],
}

#[derive(Debug)]
struct Arena {
    pool: Rc<Pool>,
    share: usize,
    bytes: Vec<u8>,
    /// What disk reads brought while there were several handles, by the byte where it begins.
    late: RefCell<Vec<(usize, Vec<u8>)>>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        let used = &self.pool.used[self.share];
        used.set(used.get() - blocks_of(self.bytes.len()));
    }
}

fn blocks_of(bytes: usize) -> u32 {
    u32::try_from(bytes / BLOCK_BYTES).expect("at most 512 blocks")
}

/// A handle. What disk reads brought is merged when somebody looks; it may not change after that.
#[derive(Debug)]
pub(crate) struct SimBuffer {
    arena: Rc<Arena>,
    first: usize,
    blocks: usize,
    merged: OnceCell<(usize, Vec<u8>)>,
}

impl Clone for SimBuffer {
    fn clone(&self) -> Self {
        self.slice(0, Buffer::blocks(self))
    }
}

impl SimBuffer {
    /// A disk read ended: fills this handle's blocks.
    pub(crate) fn fill(&self, bytes: Vec<u8>) {
        assert_eq!(bytes.len(), self.blocks * BLOCK_BYTES);
        let at = self.first * BLOCK_BYTES;
        self.arena.late.borrow_mut().push((at, bytes));
    }
}

fn merge(late: &[(usize, Vec<u8>)], from: usize, out: &mut [u8]) {
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
        let from = self.first * BLOCK_BYTES;
        let plain = &self.arena.bytes[from..from + self.blocks * BLOCK_BYTES];
        let late = self.arena.late.borrow();
        if late.is_empty() {
            return plain;
        }
        let (count, bytes) = self.merged.get_or_init(|| {
            let mut bytes = plain.to_vec();
            merge(&late, from, &mut bytes);
            (late.len(), bytes)
        });
        assert_eq!(*count, late.len(), "looked at before its read had ended");
        bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.merged = OnceCell::new();
        let arena = Rc::get_mut(&mut self.arena).expect("written to while another handle exists");
        for (at, bytes) in arena.late.get_mut().drain(..) {
            arena.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let from = self.first * BLOCK_BYTES;
        &mut arena.bytes[from..from + self.blocks * BLOCK_BYTES]
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
        let blocks = blocks as usize;
        assert!(blocks > 0 && blocks <= self.blocks && self.first == 0);
        let arena = Rc::get_mut(&mut self.arena).expect("shrunk while another handle exists");
        let used = &arena.pool.used[arena.share];
        used.set(used.get() - blocks_of(arena.bytes.len() - blocks * BLOCK_BYTES));
        arena.bytes.truncate(blocks * BLOCK_BYTES);
        self.blocks = blocks;
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
    }
}

impl SimMemory {
    /// Shares for clients, core, peers and applies, in blocks.
    pub(crate) fn new(total: [u32; 4]) -> Self {
        Self(Rc::new(Pool {
            total,
            used: [const { Cell::new(0) }; 4],
        }))
    }
}

impl Memory for SimMemory {
    type Buffer = SimBuffer;

    fn alloc(&mut self, purpose: Purpose, blocks: u32) -> Option<SimBuffer> {
        assert!((1..=ALLOC_BLOCKS_MAX).contains(&blocks));
        if blocks > self.free_blocks(purpose) {
            return None;
        }
        let share = share(purpose);
        let used = &self.0.used[share];
        used.set(used.get() + blocks);
        let blocks = blocks as usize;
        Some(SimBuffer {
            arena: Rc::new(Arena {
                pool: Rc::clone(&self.0),
                share,
                bytes: vec![POISON; blocks * BLOCK_BYTES],
                late: RefCell::default(),
            }),
            first: 0,
            blocks,
            merged: OnceCell::new(),
        })
    }

    fn free_blocks(&self, purpose: Purpose) -> u32 {
        let share = share(purpose);
        self.0.total[share] - self.0.used[share].get()
    }

    fn total_blocks(&self, purpose: Purpose) -> u32 {
        self.0.total[share(purpose)]
    }
}
