//! The parts of `repld`, and what its tools share with it.

pub mod handle;
pub mod nbd;
pub mod reactor;
