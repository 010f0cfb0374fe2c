//! What is not in the stores yet, and how it gets there.

pub mod extents;
