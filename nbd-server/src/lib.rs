//! The parts of `repld`, and what its tools share with it.

pub mod admin;
pub mod args;
pub mod config;
pub mod control;
pub mod handle;
pub mod lock;
pub mod meters;
pub mod nbd;
pub mod reactor;
