//! The write-order journal: a ring of batches.
//!
//! [`batch`] is the format, [`log`] what the node keeps in memory of the ring, [`scan`] how the ring is read when the
//! node starts.

pub mod batch;
pub mod log;
pub mod scan;

#[cfg(test)]
pub(crate) mod testing;
