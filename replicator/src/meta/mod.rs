//! What a node knows of itself besides its log: identity, promises, membership, floors.

pub mod config;
pub mod fences;
pub mod label;
pub mod superblock;
pub mod volumes;
