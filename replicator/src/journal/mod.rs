//! The write-order journal: a ring of batches.

pub mod batch;
