//! Which blocks of a share are free: a buddy allocator over block numbers. It knows no memory.
//!
//! An allocation takes exactly the blocks that it asks for; what rounding up to a power of two would waste is given
//! back at once. Freed neighbours grow together again, so that after everything was freed the largest allocation
//! fits as it did at first.

use replicator::memory::ALLOC_BLOCKS_MAX;

/// Blocks in the largest chunk; a share is a multiple of it.
pub const CHUNK_BLOCKS: u32 = ALLOC_BLOCKS_MAX;

const ORDERS: usize = CHUNK_BLOCKS.ilog2() as usize + 1;
const NONE: u32 = u32::MAX;
const NOT_FREE: u8 = u8::MAX;

const _: () = assert!(CHUNK_BLOCKS.is_power_of_two());

/// A share's free blocks.
#[derive(Debug)]
pub struct Buddy {
    /// First free chunk of each order.
    heads: [u32; ORDERS],
    /// Per block: links of the list that it is the head of a chunk in.
    links: Box<[Link]>,
    free_blocks: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    previous: u32,
    /// The order of the free chunk that begins here, or `NOT_FREE`.
    order: u8,
}

impl Buddy {
    /// `blocks` free blocks, numbered from 0.
    ///
    /// # Panics
    /// If `blocks` is no multiple of [`CHUNK_BLOCKS`].
    pub fn new(blocks: u32) -> Self {
        assert!(
            blocks.is_multiple_of(CHUNK_BLOCKS),
            "a share is a multiple of {CHUNK_BLOCKS} blocks"
        );
        let empty = Link {
            next: NONE,
            previous: NONE,
            order: NOT_FREE,
        };
        let mut buddy = Self {
            heads: [NONE; ORDERS],
            links: vec![empty; blocks as usize].into_boxed_slice(),
            free_blocks: 0,
        };
        for chunk in (0..blocks).step_by(CHUNK_BLOCKS as usize).rev() {
            buddy.free(chunk, CHUNK_BLOCKS);
        }
        buddy
    }

    /// All blocks, free or not.
    pub fn total_blocks(&self) -> u32 {
        u32::try_from(self.links.len()).expect("a share has at most 2^32 blocks")
    }

    /// Free blocks.
    pub fn free_blocks(&self) -> u32 {
        self.free_blocks
    }

    /// Takes `blocks` neighbouring blocks; the first one's number, or `None` if there is no such gap.
    ///
    /// # Panics
    /// If `blocks` is 0 or more than [`CHUNK_BLOCKS`].
    pub fn alloc(&mut self, blocks: u32) -> Option<u32> {
        assert!(
            (1..=CHUNK_BLOCKS).contains(&blocks),
            "an allocation has 1 to {CHUNK_BLOCKS} blocks"
        );
        let wanted = blocks.next_power_of_two().ilog2() as usize;
        let found = (wanted..ORDERS).find(|&order| self.heads[order] != NONE)?;
        let first = self.heads[found];
        self.unlink(first);
        let taken = 1_u32 << found;
        self.free_blocks -= taken;
        if taken > blocks {
            self.free(first + blocks, taken - blocks);
        }
        Some(first)
    }

    /// Gives back `blocks` blocks from `first` on: all or a part of what was allocated.
    pub fn free(&mut self, first: u32, blocks: u32) {
        let (mut at, end) = (first, first + blocks);
        while at < end {
            let fits = (end - at).ilog2();
            let aligned = at.trailing_zeros().min(ORDERS as u32 - 1);
            let order = fits.min(aligned);
            self.free_chunk(at, order as usize);
            at += 1 << order;
        }
        self.free_blocks += blocks;
    }

    fn free_chunk(&mut self, first: u32, order: usize) {
        let (mut first, mut order) = (first, order);
        while order + 1 < ORDERS {
            let neighbour = first ^ (1 << order);
            if usize::from(self.links[neighbour as usize].order) != order {
                break;
            }
            self.unlink(neighbour);
            first = first.min(neighbour);
            order += 1;
        }
        let next = self.heads[order];
        if next != NONE {
            self.links[next as usize].previous = first;
        }
        debug_assert_eq!(
            self.links[first as usize].order, NOT_FREE,
            "a block was freed twice"
        );
        self.links[first as usize] = Link {
            next,
            previous: NONE,
            order: u8::try_from(order).expect("there are few orders"),
        };
        self.heads[order] = first;
    }

    fn unlink(&mut self, first: u32) {
        let Link {
            next,
            previous,
            order,
        } = self.links[first as usize];
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous == NONE {
            self.heads[usize::from(order)] = next;
        } else {
            self.links[previous as usize].next = next;
        }
        self.links[first as usize].order = NOT_FREE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Alloc(u32),
        /// Frees one of the live allocations.
        Free(usize),
        /// Shrinks one of the live allocations to a part of it.
        Shrink(usize, u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => prop_oneof![1..=8_u32, 1..=CHUNK_BLOCKS, Just(257_u32)].prop_map(Step::Alloc),
            3 => any::<usize>().prop_map(Step::Free),
            1 => (any::<usize>(), any::<u32>()).prop_map(|(i, n)| Step::Shrink(i, n)),
        ];
        proptest::collection::vec(step, 1..300)
    }

    proptest! {
        #[test]
        fn blocks_are_never_lent_twice_and_all_come_back(steps in steps()) {
            const TOTAL: u32 = 3 * CHUNK_BLOCKS;
            let mut buddy = Buddy::new(TOTAL);
            let mut live: Vec<(u32, u32)> = Vec::new();
            let mut lent = vec![false; TOTAL as usize];
            for step in steps {
                match step {
                    Step::Alloc(blocks) => {
                        if let Some(first) = buddy.alloc(blocks) {
                            for block in &mut lent[first as usize..(first + blocks) as usize] {
                                prop_assert!(!*block, "block lent twice");
                                *block = true;
                            }
                            live.push((first, blocks));
                        }
                    }
                    Step::Free(which) => {
                        if !live.is_empty() {
                            let (first, blocks) = live.swap_remove(which % live.len());
                            buddy.free(first, blocks);
                            lent[first as usize..(first + blocks) as usize].fill(false);
                        }
                    }
                    Step::Shrink(which, to) => {
                        if !live.is_empty() {
                            let index = which % live.len();
                            let (first, blocks) = live[index];
                            let kept = 1 + to % blocks;
                            if kept < blocks {
                                buddy.free(first + kept, blocks - kept);
                                lent[(first + kept) as usize..(first + blocks) as usize].fill(false);
                                live[index].1 = kept;
                            }
                        }
                    }
                }
                let used = u32::try_from(lent.iter().filter(|b| **b).count()).unwrap();
                prop_assert_eq!(buddy.free_blocks(), TOTAL - used);
            }
            for (first, blocks) in live {
                buddy.free(first, blocks);
            }
            prop_assert_eq!(buddy.free_blocks(), TOTAL);
            for _ in 0..TOTAL / CHUNK_BLOCKS {
                prop_assert!(buddy.alloc(CHUNK_BLOCKS).is_some(), "free blocks did not grow together");
            }
            prop_assert!(buddy.alloc(1).is_none());
        }
    }

    #[test]
    fn a_request_of_a_mebibyte_and_a_header_takes_no_more_than_that() {
        let mut buddy = Buddy::new(CHUNK_BLOCKS);
        assert!(buddy.alloc(257).is_some());
        assert_eq!(buddy.free_blocks(), 255);
        assert!(buddy.alloc(128).is_some());
    }
}
