//! Memory as the core sees it: counted handles to whole, aligned blocks that the driver lends.
//!
//! The core never allocates payload memory itself. It asks a [`Memory`] for blocks and passes handles to the
//! driver inside disk operations, frames and replies; a block returns to the driver when the last handle is
//! dropped. So one buffer can be received into, journaled, sent to two peers and applied without a copy, and
//! nobody keeps books about who still needs it.

use crate::types::BLOCK_BYTES;

/// What blocks are for. Each purpose has a share of its own, so that one can not starve another: requests
/// waiting for a journal must not take the memory that the journal needs to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Payload of client requests and the answers to reads.
    Client,
    /// What blocks hold that a request covers in part, a block each. Two for each request that the core takes are always enough; with
    /// fewer, requests that have all other memory could wait for these for ever.
    Edge,
    /// Batches of small writes, control records, journal reads for catch-up and for clients' reads.
    Core,
    /// Journal reads of what is being applied, and nothing else: each window of an apply gives all of it back, so the next
    /// finds it whole, and what waits for room in the journal never waits for memory.
    Apply,
    /// Batches received from a peer.
    Peer,
}

/// A source of blocks. `alloc` must be cheap and must not call the system allocator.
pub trait Memory {
    /// The handle type.
    type Buffer: Buffer;

    /// `blocks` contiguous blocks (1 to [`ALLOC_BLOCKS_MAX`]) with undefined contents, or `None` if the share of
    /// `purpose` is used up for now.
    fn alloc(&mut self, purpose: Purpose, blocks: u32) -> Option<Self::Buffer>;

    /// Blocks that are free in the share of `purpose`.
    fn free_blocks(&self, purpose: Purpose) -> u32;

    /// All blocks of the share of `purpose`.
    fn total_blocks(&self, purpose: Purpose) -> u32;
}

/// The largest allocation that a [`Memory`] must be able to serve, in blocks (2 MiB).
pub const ALLOC_BLOCKS_MAX: u32 = 512;

/// A counted handle to contiguous blocks. Cloning counts, it does not copy.
pub trait Buffer: Clone {
    /// The bytes; a multiple of [`BLOCK_BYTES`] many.
    fn bytes(&self) -> &[u8];

    /// The bytes for writing.
    ///
    /// # Panics
    /// If another handle to any of these blocks exists.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// A handle to `blocks` blocks from block `first` on of the same memory.
    ///
    /// # Panics
    /// If the range is not within this buffer.
    #[must_use]
    fn slice(&self, first: u32, blocks: u32) -> Self;

    /// Gives back all but the first `blocks` blocks. Only the handle that `alloc` returned shrinks, before it is
    /// cloned.
    ///
    /// # Panics
    /// If another handle exists, or if `blocks` is 0 or more than there are.
    fn shrink(&mut self, blocks: u32);

    /// How many blocks this handle covers.
    fn blocks(&self) -> u32 {
        u32::try_from(self.bytes().len() / BLOCK_BYTES).expect("a buffer has at most 2^32 blocks")
    }
}
