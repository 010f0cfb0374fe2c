//! The library behind `repld`: config, admin protocol, NBD and the daemon's threads.

pub mod config;
