//! What `replctl` and `repl-fence` are made of.

mod attach;
mod bar;
mod check;
pub mod cli;
pub mod create;
pub mod demo;
mod dump;
mod failover;
mod failure;
pub mod fence;
mod known;
mod ocf;
mod output;
mod status;
mod verify;

pub use demo::cluster;
pub use failure::Failure;
