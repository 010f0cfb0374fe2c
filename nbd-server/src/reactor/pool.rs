//! The memory of the data path: one mapping, made, touched and (where the limit allows) locked at start, lent in
//! counted handles of whole 4 KiB blocks. Lending allocates nothing.
//!
//! Each share has a [`Runs`] of its own. The count of an allocation and what the kernel is writing to it are kept
//! beside the memory, by block. A [`PoolBuffer`] is not `Send`: all of it happens on the data thread.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::rc::Rc;

use nix::libc::c_void;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use replicator::memory::{Buffer, Memory, Purpose};
use replicator::types::BLOCK_BYTES;

use super::runs::{CHUNK_BLOCKS, Runs};
use crate::handle::Usage;

const SHARES: usize = 6;
/// The driver's own share: receive buffers and frames of connections.
const CONNECTIONS: usize = 5;

/// What a byte of a freed block is in debug builds.
const POISON: u8 = 0xdb;

/// How many blocks each share has. Rounded up to whole chunks of 2 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolSizes {
    /// [`Purpose::Client`].
    pub client_blocks: u32,
    /// [`Purpose::Edge`].
    pub edge_blocks: u32,
    /// [`Purpose::Core`].
    pub core_blocks: u32,
    /// Of [`Purpose::Apply`].
    pub apply_blocks: u32,
    /// [`Purpose::Peer`].
    pub peer_blocks: u32,
    /// Buffers of connections.
    pub connection_blocks: u32,
}

/// The memory of the data path. Clones are handles to the same memory.
#[derive(Clone)]
pub struct Pool {
    shared: Rc<Shared>,
}

struct Shared {
    base: NonNull<u8>,
    map_bytes: NonZeroUsize,
    locked: bool,
    shares: [Share; SHARES],
    /// Per block.
    books: Box<[Book]>,
}

struct Share {
    /// Its first block in the mapping.
    first: u32,
    runs: RefCell<Runs>,
}

/// What is noted of a block.
#[derive(Default)]
struct Book {
    /// Handles to the allocation that begins here.
    handles: Cell<u32>,
    /// Blocks of the allocation that begins here.
    blocks: Cell<u32>,
    /// How many fills are going on anywhere in the allocation that begins here.
    fills: Cell<u32>,
    /// How many fills are going on in this block.
    filling: Cell<u32>,
}

impl Pool {
    /// Maps, touches and tries to lock the memory.
    ///
    /// # Errors
    /// The system has not that much memory.
    pub fn new(sizes: &PoolSizes) -> io::Result<Self> {
        let counts = [
            sizes.client_blocks,
            sizes.edge_blocks,
            sizes.core_blocks,
            sizes.apply_blocks,
            sizes.peer_blocks,
            sizes.connection_blocks,
        ]
        .map(|blocks| blocks.next_multiple_of(CHUNK_BLOCKS).max(CHUNK_BLOCKS));
        let mut total = 0_u32;
        let shares = counts.map(|blocks| {
            let first = total;
            total = total.saturating_add(blocks);
            Share {
                first,
                runs: RefCell::new(Runs::new(blocks)),
            }
        });
        let map_bytes = NonZeroUsize::new(total as usize * BLOCK_BYTES)
            .expect("every share has a chunk at least");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory that exists.
        let map = unsafe { mmap_anonymous(None, map_bytes, protection, MapFlags::MAP_PRIVATE) }?;
        // Huge pages are a wish: with them the kernel finds the pages behind a disk operation faster.
        // SAFETY: the range is the new mapping, and the advice changes nothing about its contents.
        let _ = unsafe { madvise(map, map_bytes.get(), MmapAdvise::MADV_HUGEPAGE) };
        let base = map.cast::<u8>();
        for block in 0..total as usize {
            // SAFETY: the offset is within the mapping.
            let at = unsafe { base.add(block * BLOCK_BYTES) };
            // SAFETY: the mapping is readable and writable, and nobody else knows it yet. Volatile, so that the page
            // is touched although it has this value already.
            unsafe { at.write_volatile(0) };
        }
        // SAFETY: the range is the mapping.
        let locked = unsafe { mlock(map, map_bytes.get()) }.is_ok();
        let books = (0..total).map(|_| Book::default()).collect();
        Ok(Self {
            shared: Rc::new(Shared {
                base,
                map_bytes,
                locked,
                shares,
                books,
            }),
        })
    }

    /// Whether the memory is locked.
    pub fn locked(&self) -> bool {
        self.shared.locked
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.shared.map_bytes.get() as u64
    }

    /// What is lent at present.
    pub fn used_bytes(&self) -> u64 {
        let free: u64 = self.shared.shares.iter().map(Share::free_bytes).sum();
        self.total_bytes() - free
    }

    /// How much of each share is lent, in blocks: of clients, edges, core, applies, peers and connections.
    pub fn shares(&self) -> [Usage; SHARES] {
        std::array::from_fn(|share| {
            let runs = self.shared.shares[share].runs.borrow();
            let limit = runs.total_blocks();
            Usage {
                used: limit - runs.free_blocks(),
                limit,
            }
        })
    }

    /// Blocks for a connection's own buffers.
    pub fn alloc_connection(&self, blocks: u32) -> Option<PoolBuffer> {
        self.alloc_from(CONNECTIONS, blocks)
    }

    fn alloc_from(&self, share: usize, blocks: u32) -> Option<PoolBuffer> {
        let share = &self.shared.shares[share];
        let first = share.first + share.runs.borrow_mut().alloc(blocks)?;
        let book = &self.shared.books[first as usize];
        book.handles.set(1);
        book.blocks.set(blocks);
        Some(PoolBuffer {
            shared: Rc::clone(&self.shared),
            head: first,
            first,
            blocks,
            not_send: PhantomData,
        })
    }

    fn share(&self, purpose: Purpose) -> &Share {
        &self.shared.shares[share_of(purpose)]
    }
}

fn share_of(purpose: Purpose) -> usize {
    match purpose {
        Purpose::Client => 0,
        Purpose::Edge => 1,
        Purpose::Core => 2,
        Purpose::Apply => 3,
        Purpose::Peer => 4,
    }
}

impl Memory for Pool {
    type Buffer = PoolBuffer;

    fn alloc(&mut self, purpose: Purpose, blocks: u32) -> Option<PoolBuffer> {
        self.alloc_from(share_of(purpose), blocks)
    }

    fn free_blocks(&self, purpose: Purpose) -> u32 {
        self.share(purpose).runs.borrow().free_blocks()
    }

    fn total_blocks(&self, purpose: Purpose) -> u32 {
        self.share(purpose).runs.borrow().total_blocks()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("total_bytes", &self.total_bytes())
            .field("used_bytes", &self.used_bytes())
            .field("locked", &self.locked())
            .finish()
    }
}

impl Share {
    fn free_bytes(&self) -> u64 {
        u64::from(self.runs.borrow().free_blocks()) * BLOCK_BYTES as u64
    }
}

impl Shared {
    fn pointer(&self, block: u32) -> NonNull<u8> {
        // SAFETY: block numbers come from the shares, which lend blocks of the mapping only.
        unsafe { self.base.add(block as usize * BLOCK_BYTES) }
    }

    fn share_with(&self, block: u32) -> &Share {
        self.shares
            .iter()
            .rev()
            .find(|share| share.first <= block)
            .expect("the first share begins at block 0")
    }

    fn give_back(&self, first: u32, blocks: u32) {
        if cfg!(debug_assertions) {
            let at = self.pointer(first);
            // SAFETY: the blocks are in the mapping, and the last handle to them is being dropped.
            unsafe { at.write_bytes(POISON, blocks as usize * BLOCK_BYTES) };
        }
        let share = self.share_with(first);
        share.runs.borrow_mut().free(first - share.first, blocks);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let map = self.base.cast::<c_void>();
        // SAFETY: the last handle is gone, and whatever the kernel still works on holds one: see `Ring`.
        if let Err(error) = unsafe { munmap(map, self.map_bytes.get()) } {
            tracing::error!(%error, "the memory of the data path could not be unmapped");
        }
    }
}

/// A counted handle to some blocks of a [`Pool`]. They return to it when the last handle to any block of the same
/// allocation is dropped.
pub struct PoolBuffer {
    shared: Rc<Shared>,
    /// The first block of the allocation.
    head: u32,
    /// The first block of this handle.
    first: u32,
    blocks: u32,
    not_send: PhantomData<*const u8>,
}

impl PoolBuffer {
    fn book(&self) -> &Book {
        &self.shared.books[self.head as usize]
    }

    fn length(&self) -> usize {
        self.blocks as usize * BLOCK_BYTES
    }

    fn is_being_filled(&self) -> bool {
        let blocks = self.first as usize..(self.first + self.blocks) as usize;
        self.book().fills.get() > 0
            && self.shared.books[blocks]
                .iter()
                .any(|book| book.filling.get() > 0)
    }

    /// Where the kernel may read `length` bytes from byte `start` on, as long as a handle is kept.
    ///
    /// # Panics
    /// If the range is not within this buffer.
    pub(super) fn read_pointer(&self, start: usize, length: usize) -> *const u8 {
        self.bytes()[start..start + length].as_ptr()
    }

    /// Notes that the kernel is going to write to `length` bytes from byte `start` on. Until the [`Filling`] is
    /// dropped nobody can look at those blocks.
    ///
    /// # Panics
    /// If the range is not within this buffer.
    pub(super) fn fill(self, start: usize, length: usize) -> Filling {
        assert!(
            start <= self.length() && length <= self.length() - start,
            "only the buffer's own bytes are filled"
        );
        let book = self.book();
        book.fills.set(book.fills.get() + 1);
        let filling = Filling {
            first: self.first + (start / BLOCK_BYTES) as u32,
            end: self.first + (start + length).div_ceil(BLOCK_BYTES) as u32,
            start,
            buffer: self,
        };
        filling.count(1);
        filling
    }
}

impl Buffer for PoolBuffer {
    fn bytes(&self) -> &[u8] {
        assert!(
            !self.is_being_filled(),
            "a buffer is looked at only when its read has ended"
        );
        let at = self.shared.pointer(self.first);
        // SAFETY: this handle keeps the blocks lent; they were zeroed by the kernel before they were ever lent;
        // nobody writes to them: `bytes_mut` needs the only handle, and the kernel is not filling them.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), self.length()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        assert_eq!(
            self.book().handles.get(),
            1,
            "a shared buffer is not written to"
        );
        let at = self.shared.pointer(self.first);
        // SAFETY: as in `bytes`; this is the only handle to the allocation, and it is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), self.length()) }
    }

    fn slice(&self, first: u32, blocks: u32) -> Self {
        assert!(
            blocks > 0 && first <= self.blocks && blocks <= self.blocks - first,
            "a slice lies within its buffer"
        );
        let mut part = self.clone();
        part.first += first;
        part.blocks = blocks;
        part
    }

    fn shrink(&mut self, blocks: u32) {
        let book = self.book();
        assert_eq!(book.handles.get(), 1, "a shared buffer does not shrink");
        assert!(
            self.first == self.head && self.blocks == book.blocks.get(),
            "only the handle to a whole allocation shrinks"
        );
        assert!(
            (1..=self.blocks).contains(&blocks),
            "a buffer shrinks to a part of it"
        );
        if blocks < self.blocks {
            book.blocks.set(blocks);
            self.shared
                .give_back(self.first + blocks, self.blocks - blocks);
            self.blocks = blocks;
        }
    }

    fn blocks(&self) -> u32 {
        self.blocks
    }
}

impl Clone for PoolBuffer {
    fn clone(&self) -> Self {
        let handles = &self.book().handles;
        handles.set(handles.get().checked_add(1).expect("handles are few"));
        Self {
            shared: Rc::clone(&self.shared),
            ..*self
        }
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        let book = self.book();
        let left = book.handles.get() - 1;
        book.handles.set(left);
        if left == 0 {
            self.shared.give_back(self.head, book.blocks.get());
        }
    }
}

impl fmt::Debug for PoolBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolBuffer({}+{})", self.first, self.blocks)
    }
}

/// Blocks that the kernel is writing to.
#[derive(Debug)]
pub(super) struct Filling {
    buffer: PoolBuffer,
    first: u32,
    end: u32,
    start: usize,
}

impl Filling {
    /// Where the kernel writes.
    pub(super) fn pointer(&self) -> *mut u8 {
        let at = self.buffer.shared.pointer(self.buffer.first);
        // SAFETY: `fill` has checked that the range lies within the buffer.
        unsafe { at.add(self.start) }.as_ptr()
    }

    fn count(&self, by: i32) {
        for book in &self.buffer.shared.books[self.first as usize..self.end as usize] {
            let now = book.filling.get().checked_add_signed(by);
            book.filling
                .set(now.expect("fills are begun and ended once"));
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.count(-1);
        let book = self.buffer.book();
        book.fills.set(book.fills.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::prelude::*;

    use super::*;

    fn small_pool() -> Pool {
        Pool::new(&PoolSizes {
            client_blocks: 1,
            edge_blocks: 1,
            core_blocks: 1,
            apply_blocks: 1,
            peer_blocks: 1,
            connection_blocks: 1,
        })
        .unwrap()
    }

    fn panics<T>(f: impl FnOnce() -> T) -> bool {
        catch_unwind(AssertUnwindSafe(f)).is_err()
    }

    #[test]
    fn a_block_returns_with_its_last_handle() {
        let mut pool = small_pool();
        let buffer = pool.alloc(Purpose::Client, 4).unwrap();
        let part = buffer.slice(2, 1);
        assert_eq!(pool.free_blocks(Purpose::Client), CHUNK_BLOCKS - 4);
        drop(buffer);
        assert_eq!(pool.free_blocks(Purpose::Client), CHUNK_BLOCKS - 4);
        drop(part);
        assert_eq!(pool.free_blocks(Purpose::Client), CHUNK_BLOCKS);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn a_shared_buffer_is_neither_written_nor_shrunk() {
        let mut pool = small_pool();
        let mut buffer = pool.alloc(Purpose::Core, 2).unwrap();
        let mut other = buffer.slice(1, 1);
        assert!(panics(|| buffer.bytes_mut()[0] = 1));
        assert!(panics(|| other.bytes_mut()[0] = 1));
        assert!(panics(|| buffer.shrink(1)));
        assert!(panics(|| buffer.slice(1, 2)));
        drop(other);
        buffer.bytes_mut()[0] = 1;
        assert!(panics(|| buffer.shrink(0)));
        buffer.shrink(1);
        assert_eq!(buffer.bytes().len(), BLOCK_BYTES);
        assert_eq!(pool.free_blocks(Purpose::Core), CHUNK_BLOCKS - 1);
    }

    #[test]
    fn nobody_looks_at_blocks_that_the_kernel_fills() {
        let mut pool = small_pool();
        let buffer = pool.alloc(Purpose::Core, 4).unwrap();
        let filling = buffer.slice(1, 2).fill(BLOCK_BYTES, BLOCK_BYTES);
        assert!(panics(|| buffer.bytes()[0]));
        assert_eq!(buffer.slice(0, 2).bytes().len(), 2 * BLOCK_BYTES);
        drop(filling);
        assert_eq!(buffer.bytes().len(), 4 * BLOCK_BYTES);
    }

    #[test]
    fn one_share_can_not_use_up_another() {
        let mut pool = small_pool();
        let mut held = Vec::new();
        while let Some(buffer) = pool.alloc(Purpose::Client, 8) {
            held.push(buffer);
        }
        assert_eq!(pool.free_blocks(Purpose::Client), 0);
        assert!(pool.alloc(Purpose::Peer, CHUNK_BLOCKS).is_some());
        assert!(pool.alloc(Purpose::Core, CHUNK_BLOCKS).is_some());
        assert!(pool.alloc_connection(CHUNK_BLOCKS).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_was_written_stays_until_the_handle_goes(
            steps in proptest::collection::vec((1..=40_u32, any::<usize>(), 0..4_u8), 1..200)
        ) {
            let mut pool = small_pool();
            let mut live: Vec<(PoolBuffer, u8)> = Vec::new();
            for (index, (blocks, which, action)) in steps.into_iter().enumerate() {
                let mark = (index % 251) as u8;
                if action < 2 {
                    if let Some(mut buffer) = pool.alloc(Purpose::Peer, blocks) {
                        buffer.bytes_mut().fill(mark);
                        live.push((buffer, mark));
                    }
                } else if !live.is_empty() {
                    let index = which % live.len();
                    if action == 2 {
                        let (buffer, mark) = live.swap_remove(index);
                        prop_assert!(buffer.bytes().iter().all(|byte| *byte == mark));
                    } else {
                        let keep = 1 + blocks % live[index].0.blocks();
                        live[index].0.shrink(keep);
                    }
                }
            }
            for (buffer, mark) in &live {
                prop_assert!(buffer.bytes().iter().all(|byte| byte == mark));
            }
            drop(live);
            prop_assert!(pool.alloc(Purpose::Peer, CHUNK_BLOCKS).is_some());
        }
    }
}
