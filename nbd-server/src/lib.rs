//! The parts of `repld`, and what its tools share with it.

pub mod admin;
pub mod config;
pub mod handle;
pub mod lock;
pub mod nbd;
