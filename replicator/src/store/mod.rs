//! What is not in the stores yet, how it gets there, and what is known of the blocks that are.

pub mod block_set;
pub mod extents;
pub mod sums;
